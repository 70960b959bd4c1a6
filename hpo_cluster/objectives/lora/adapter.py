"""The files of a fine-tuned model: its adapter as LitGPT keeps it, and LitGPT's own route from there to a score."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.lora import lora_filter
from litgpt.prompts import PromptStyle, save_prompt_style

from hpo_cluster.objectives.lora.settings import LORA_MATRICES, LoraObjective, TrainSettings


def lora_settings(train: TrainSettings) -> dict[str, Any]:
    """LitGPT's names and values of the LoRA settings."""
    chosen = {f"lora_{name}": getattr(train, f"lora_{name}") for name in LORA_MATRICES}
    return {"lora_r": train.lora_rank, "lora_alpha": train.alpha, "lora_dropout": train.lora_dropout, **chosen}


def weights_dtype(train: TrainSettings) -> torch.dtype:
    """Type of all weights, the adapter's included."""
    return torch.bfloat16 if train.precision == "bf16-true" else torch.float32


def save_adapter(model: Any, objective: LoraObjective, train: TrainSettings, folder: Path) -> None:
    """Write the LoRA weights and what LitGPT's ``merge_lora`` needs to `folder`, which appears whole or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = {name: value.cpu() for name, value in model.state_dict().items() if lora_filter(name, value)}
        torch.save({"model": weights}, temporary / "lit_model.pth.lora")
        base = Path(objective.model.checkpoint_dir)
        arguments = {"checkpoint_dir": str(base), "precision": train.precision, **lora_settings(train)}
        (temporary / "hyperparameters.yaml").write_text(yaml.safe_dump(arguments))
        save_prompt_style(PromptStyle.from_name(objective.data.prompt_style), temporary)
        for path in base.iterdir():  # a tokenizer is often larger than an adapter: linked, not copied
            if path.suffix in (".json", ".yaml") or path.name == "tokenizer.model":
                (temporary / path.name).symlink_to(path)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def converted_lm(model: Any, objective: LoraObjective, train: TrainSettings, device: torch.device, folder: Path) -> Any:
    """The classic route, for cross-checks: what ``litgpt merge_lora`` and ``litgpt evaluate`` do, through files.

    Args:
        model: the trained model; None scores the base model.
        folder: where the merged and the converted weights go, several times the size of the model.
    """
    from lm_eval.models.huggingface import HFLM

    base = Path(objective.model.checkpoint_dir)
    source, converted = base, folder / "converted"
    converted.mkdir()
    if model is not None:
        source = folder / "merged"
        save_adapter(model, objective, train, source)
        merge(source, base, train.precision)
    convert_to_hugging_face(source, converted)
    dtype = str(weights_dtype(train)).removeprefix("torch.")
    return HFLM(pretrained=str(converted), device=str(device), batch_size=objective.tasks.batch_size, dtype=dtype)


def merge(source: Path, base: Path, precision: str) -> None:
    """Write the weights of a base model with an adapter into the adapter's folder, as ``litgpt merge_lora`` does."""
    from litgpt.scripts.merge_lora import merge_lora

    with contextlib.redirect_stdout(sys.stderr):  # LitGPT prints what it is called with
        merge_lora(source, pretrained_checkpoint_dir=base, precision=precision)


def convert_to_hugging_face(source: Path, converted: Path) -> None:
    """Write a LitGPT checkpoint into an empty folder as transformers reads it.

    The configuration of a model with tied embeddings is untied if its head was trained: transformers would put the
    embeddings in the head's place, and a perplexity of 667 become one of 218 300, without a word.
    """
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
    from litgpt.utils import copy_config_files

    with contextlib.redirect_stdout(sys.stderr):
        copy_config_files(source, converted)
        convert_lit_checkpoint(source, converted)
    # transformers reads pytorch_model.bin, and reads it with weights_only, which LitGPT's writer does not allow for
    weights = torch.load(converted / "model.pth", map_location="cpu", weights_only=True)
    torch.save(weights, converted / "pytorch_model.bin")
    (converted / "model.pth").unlink()
    config = json.loads((converted / "config.json").read_text())
    head = next((value for name, value in weights.items() if name in HEADS), None)
    embeddings = next((value for name, value in weights.items() if name.endswith(EMBEDDINGS)), None)
    if config.get("tie_word_embeddings", True) and head is not None and embeddings is not None:
        config["tie_word_embeddings"] = head.shape == embeddings.shape and torch.equal(head, embeddings)
        (converted / "config.json").unlink()  # it may be a link to the base model's
        (converted / "config.json").write_text(json.dumps(config, indent=2) + "\n")


#: Names of the head and of the embeddings in the families that LitGPT converts.
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")


def export_adapter(adapter_dir: Path, folder: Path) -> None:
    """Write the model that an attempt has fine-tuned as a Hugging Face model, whose log-likelihoods are the attempt's.

    Args:
        adapter_dir: as `save_adapter` has written it; it is left as it is.
        folder: a new folder; it appears whole or not at all.
    """
    settings = yaml.safe_load((adapter_dir / "hyperparameters.yaml").read_text())
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        merged, converted = temporary / "merged", temporary / "model"
        shutil.copytree(adapter_dir, merged)
        converted.mkdir()
        merge(merged, Path(settings["checkpoint_dir"]), settings["precision"])
        convert_to_hugging_face(merged, converted)
        converted.chmod(0o755)
        converted.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
