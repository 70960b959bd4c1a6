"""Hugging Face folders as base models: recognise one, and find the LitGPT checkpoint that `prepare` made from it.

The jobs read LitGPT checkpoints. A checkpoint made from a Hugging Face folder is in shared storage, under a name that
is derived from the folder's path, so that `prepare` and `run` accept the same ``model.checkpoint_dir``.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpo_cluster.record.files import read_json

#: Files that a LitGPT checkpoint must have.
CHECKPOINT_FILES = ("lit_model.pth", "model_config.yaml", "tokenizer.json", "tokenizer_config.json")

#: Directory of the converted models.
CONVERTED_DIR = "storage:checkpoints/converted"

#: File in a converted model that records its source. Not named .json, since such files are linked into each adapter.
ORIGIN = "converted_from"


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that `folder` lacks to be a LitGPT checkpoint."""
    return [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]


def weight_files(folder: Path) -> list[str]:
    """Return the names of the Hugging Face weight files in a folder and of their index; safetensors are preferred.

    Files that the index names are listed even if they are missing.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = f"{single}.index.json"
        if (folder / index).is_file():
            shards = (read_json(folder / index) or {}).get("weight_map")
            names = set(shards.values()) if isinstance(shards, dict) else set()
            return [index, *sorted(str(name) for name in names)]
        if (folder / single).is_file():
            return [single]
    return []


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder contains a Hugging Face model and not a LitGPT checkpoint."""
    is_litgpt = (folder / "lit_model.pth").exists()
    return not is_litgpt and (folder / "config.json").is_file() and bool(weight_files(folder))


def converted_dir(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """Return the path of the LitGPT checkpoint for a Hugging Face folder, whether it exists or not.

    Args:
        folder: absolute path. Its hash keeps folders with the same name apart, and comes first in the new name, because
            LitGPT's tokenizer has special rules for folders whose names begin with that of a model.
        resolve: turns ``storage:…`` into a path.
    """
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return resolve(CONVERTED_DIR) / f"{mark}-{folder.name}"


def litgpt_dir(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """Return the LitGPT checkpoint that jobs read for a configured folder: the converted one, or the folder itself."""
    if (folder / "lit_model.pth").exists():
        return folder
    converted = converted_dir(folder, resolve)
    return converted if converted.is_dir() else folder


def origin(folder: Path) -> dict[str, Any]:
    """Return the state of a folder to be converted: size (bytes) and modification time (ns) of each file used."""
    tokenizer = ("vocab.json", "merges.txt", *(path.name for path in folder.glob("*token*")))
    names = {"config.json", *weight_files(folder), *tokenizer}
    stats = {name: (folder / name).stat() for name in sorted(names) if (folder / name).is_file()}
    files = {name: [status.st_size, status.st_mtime_ns] for name, status in stats.items()}
    return {"folder": str(folder), "files": files}


def write_origin(converted: Path, made_of: dict[str, Any]) -> None:
    """Record in a converted model the state of its source folder, as `origin` returns it."""
    (converted / ORIGIN).write_text(json.dumps(made_of, indent=1) + "\n")


def conversion_fault(folder: Path, resolve: Callable[[str], Path]) -> str | None:
    """Return why jobs cannot use a Hugging Face folder in its current state, and what to do; None if they can."""
    if not is_hugging_face(folder):
        return None
    words = ["model=local", f"model.checkpoint_dir={folder}", f"storage_dir={resolve('storage:')}"]
    prepare = f"hpo-cluster prepare {shlex.join(words)}"
    converted = converted_dir(folder, resolve)
    if not converted.is_dir():
        return f"{folder} is a Hugging Face model that has not been converted for LitGPT yet; run: {prepare}"
    if missing := missing_files(converted):
        return f"{converted}, made of {folder}, lacks {', '.join(missing)}; move it away and run: {prepare}"
    made_of = read_json(converted / ORIGIN)
    if made_of is not None and made_of.get("files") != origin(folder)["files"]:
        changed = f"{folder} has changed since it was converted to {converted}"
        return f"{changed}; move {converted} away and run: {prepare} (or give model.checkpoint_dir={converted})"
    return None
