"""A training checkpoint as one file: a run resumed from it ends with the same weights as an uninterrupted one.

The file holds tensors, numbers and text only, so that loading it runs no code.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litgpt.lora import lora_filter

from hpo_cluster.objectives.lora.adamw import AdamW
from hpo_cluster.objectives.lora.instruction_data import files_of
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import TrainSettings

FILE = "state.pt"
FORMAT = 1

#: Settings that may differ in a resumed training run, because they do not affect results.
FREE_SETTINGS = ("tokens_at_once", "checkpoint_interval_s")


def fingerprint(
    objective: LoraObjective, train: TrainSettings, seed: int, unlike: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what must be equal for a training run to resume from a checkpoint (JSON); the code is not included.

    Args:
        objective: the settings.
        train: those of this attempt.
        seed: of the training.
        unlike: result of `unlike_litgpt`. Earlier versions trained as LitGPT does.
    """
    data = Path(objective.data.path)
    base = Path(objective.model.checkpoint_dir)
    files = [path for path in files_of(data) if path is not None]
    unused = {*FREE_SETTINGS, "seed"}
    if train.lr_schedule != "wsd":  # earlier versions do not have it
        unused.add("lr_decay_share")
    return {
        "format": FORMAT,
        "seed": seed,
        "train": train.model_dump(mode="json", exclude=unused),
        "data": objective.data.model_dump(mode="json", exclude={"name", "path", "url"}),
        "data_files": [_digest(path) for path in files],
        "model_files": [_digest(base / name) for name in ("model_config.yaml", "tokenizer.json")],
        "model_size": (base / "lit_model.pth").stat().st_size,
        **({"unlike_litgpt": dict(unlike)} if unlike else {}),
    }


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of the entries in which two fingerprints differ; nested entries as ``section.name``."""
    names = []
    for name in sorted({*one, *other}):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += [f"{name}.{field}" for field in differences(a, b)]
        elif a != b:
            names.append(name)
    return names


def write_checkpoint(
    folder: Path, model: Any, optimizer: AdamW, counters: Mapping[str, Any], mark: Mapping[str, Any]
) -> None:
    """Write the adapter, the optimizer, the random generators and `counters` to `folder`.

    Args:
        folder: an empty folder.
        model: a `litgpt.lora.GPT`, merged or not.
        optimizer: the optimizer of the adapter.
        counters: position in the training run, as plain values.
        mark: `fingerprint` of the training run.
    """
    kept = {
        "mark": json.dumps(mark),
        "counters": dict(counters),
        **contents(model, optimizer),
    }
    with (folder / FILE).open("wb") as stream:  # with our own stream, a full disk raises an OSError
        torch.save(kept, stream)


def contents(model: Any, optimizer: AdamW) -> dict[str, Any]:
    """Return what `restore` needs: adapter, optimizer and random generators. Tensors may be those of the training."""
    return {
        "adapter": {name: value.cpu() for name, value in model.state_dict().items() if lora_filter(name, value)},
        "optimizer": optimizer.state_dict(),
        "generators": generators_of(next(model.parameters()).device),
    }


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote: tensors on the CPU, the fingerprint parsed."""
    kept: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    return {**kept, "mark": json.loads(kept["mark"])}


def restore(kept: Mapping[str, Any], model: Any, optimizer: AdamW) -> None:
    """Restore the adapter, the optimizer and the random generators from a checkpoint.

    Raises:
        KeyError, ValueError: if the checkpoint does not fit; nothing is changed then.
    """
    adapter, generators = kept["adapter"], kept["generators"]
    mine = {name: value.shape for name, value in model.state_dict().items() if lora_filter(name, value)}
    if mine != {name: value.shape for name, value in adapter.items()}:
        raise ValueError("its adapter has other names or shapes")
    optimizer.load_state_dict(kept["optimizer"])  # it is checked before anything changes
    model.load_state_dict(adapter, strict=False)
    set_generators(generators, next(model.parameters()).device)


def generators_of(device: torch.device) -> dict[str, Any]:
    """Return the states of the global random generators of Python, NumPy and torch, as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    states: dict[str, Any] = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss)],
        "numpy_cached": float(cached),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `generators_of` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss = states["numpy"]
    cached = states["numpy_cached"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
