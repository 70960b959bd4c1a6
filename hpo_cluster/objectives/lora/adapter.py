"""The files of a fine-tuned model: its adapter in LitGPT's format, merged weights and the Hugging Face model."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from litgpt.lora import lora_filter
from litgpt.prompts import PromptStyle, save_prompt_style

from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import LORA_MATRICES, TrainSettings


def lora_settings(train: TrainSettings) -> dict[str, Any]:
    """Return the LoRA settings under the names that LitGPT gives them."""
    chosen = {f"lora_{name}": getattr(train, f"lora_{name}") for name in LORA_MATRICES}
    return {"lora_r": train.lora_rank, "lora_alpha": train.alpha, "lora_dropout": train.lora_dropout, **chosen}


def weights_dtype(train: TrainSettings) -> torch.dtype:
    """Return the dtype of all weights, including the adapter's."""
    return torch.bfloat16 if train.precision == "bf16-true" else torch.float32


def save_adapter(model: Any, objective: LoraObjective, train: TrainSettings, folder: Path) -> None:
    """Write the LoRA weights and the files that LitGPT's ``merge_lora`` needs to `folder`, atomically."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        weights = {name: value.cpu() for name, value in model.state_dict().items() if lora_filter(name, value)}
        torch.save({"model": weights}, temporary / "lit_model.pth.lora")
        base = Path(objective.model.checkpoint_dir)
        arguments = {"checkpoint_dir": str(base), "precision": train.precision, **lora_settings(train)}
        if objective.score_precision is not None:
            arguments["score_precision"] = objective.score_precision
        (temporary / "hyperparameters.yaml").write_text(yaml.safe_dump(arguments))
        save_prompt_style(PromptStyle.from_name(objective.data.prompt_style), temporary)
        for path in base.iterdir():  # link, do not copy: a tokenizer is often larger than an adapter
            if path.suffix in (".json", ".yaml") or path.name == "tokenizer.model":
                (temporary / path.name).symlink_to(path)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def converted_lm(model: Any, objective: LoraObjective, train: TrainSettings, device: torch.device, folder: Path) -> Any:
    """Return an lm-eval model made through files, as ``litgpt merge_lora`` and ``litgpt evaluate`` do, for comparison.

    Args:
        model: the trained model; None scores the base model.
        folder: receives the merged and the converted weights, several times the size of the model.
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
    """Merge the adapter in `source` into the base model and write the weights there, as ``litgpt merge_lora`` does."""
    from litgpt.scripts.merge_lora import merge_lora

    with contextlib.redirect_stdout(io.StringIO()):  # LitGPT prints its arguments
        merge_lora(source, pretrained_checkpoint_dir=base, precision=precision)


def convert_to_hugging_face(source: Path, converted: Path) -> None:
    """Convert a LitGPT checkpoint to a model that transformers can load, in an empty folder.

    If the head of a model with tied embeddings was trained, set ``tie_word_embeddings`` to false. Otherwise
    transformers would silently replace the head by the embeddings (seen: a perplexity of 218 300 instead of 667).
    """
    from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
    from litgpt.utils import copy_config_files

    with contextlib.redirect_stdout(io.StringIO()):
        copy_config_files(source, converted)
        convert_lit_checkpoint(source, converted)
    # transformers reads pytorch_model.bin, with weights_only, which LitGPT's writer does not provide for
    weights = torch.load(converted / "model.pth", map_location="cpu", weights_only=True)
    torch.save(weights, converted / "pytorch_model.bin")
    (converted / "model.pth").unlink()
    config = json.loads((converted / "config.json").read_text())
    head = next((value for name, value in weights.items() if name in HEADS), None)
    embeddings = next((value for name, value in weights.items() if name.endswith(EMBEDDINGS)), None)
    if config.get("tie_word_embeddings", True) and head is not None and embeddings is not None:
        config["tie_word_embeddings"] = head.shape == embeddings.shape and torch.equal(head, embeddings)
        (converted / "config.json").unlink()  # it may be a link to the file of the base model
        (converted / "config.json").write_text(json.dumps(config, indent=2) + "\n")


#: Names of the head and of the embeddings in the model families that LitGPT converts.
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")


def export_adapter(adapter_dir: Path, folder: Path) -> None:
    """Export the fine-tuned model of an attempt as a Hugging Face model with the same log-likelihoods.

    It is in the precision of training, or in float32 if ``objective.score_precision`` was given.

    Args:
        adapter_dir: written by `save_adapter`; not changed.
        folder: a folder that does not exist yet; created atomically.
    """
    settings = yaml.safe_load((adapter_dir / "hyperparameters.yaml").read_text())
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        merged, converted = temporary / "merged", temporary / "model"
        shutil.copytree(adapter_dir, merged)
        converted.mkdir()
        if settings.get("score_precision"):  # LitGPT merges in the precision of the adapter
            path = merged / "lit_model.pth.lora"
            weights = torch.load(path, weights_only=True)["model"]
            torch.save({"model": {name: value.float() for name, value in weights.items()}}, path)
            settings["precision"] = "32-true"
        merge(merged, Path(settings["checkpoint_dir"]), settings["precision"])
        convert_to_hugging_face(merged, converted)
        converted.chmod(0o755)
        converted.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
