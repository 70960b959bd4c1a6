"""The base model with the layers of an untrained adapter, as LitGPT makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from litgpt.lora import GPT, lora_filter, mark_only_lora_as_trainable

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.error_kinds import classify
from hpo_cluster.objectives.lora import kept
from hpo_cluster.objectives.lora.adapter import lora_settings, weights_dtype
from hpo_cluster.objectives.lora.model_config import read_config
from hpo_cluster.objectives.lora.settings import TrainSettings
from hpo_cluster.trial import ErrorKind


def load_model(checkpoint_dir: Path, train: TrainSettings, device: torch.device, *, baseline: bool) -> Any:
    """Return the base model, frozen, with untrained LoRA layers (B is zero); for the baseline without LoRA layers.

    All weights are first drawn from the global generator, in LitGPT's order and on the device, so that the adapter is
    the same as LitGPT's. The base weights are then read from the checkpoint.
    """
    config = read_config(checkpoint_dir, **({} if baseline else lora_settings(train)))
    try:
        with torch.device(device), default_dtype(weights_dtype(train)):
            model = GPT(config)
    except torch.OutOfMemoryError as error:
        hint = "each GPU of a trial holds the whole model: use GPUs with more memory, train.precision=bf16-true or a "
        message = f"the base model does not fit into the GPU; {hint}smaller model ({error})"
        raise AttemptError(ErrorKind.OUT_OF_MEMORY, message) from error
    mark_only_lora_as_trainable(model)
    read_base(model, checkpoint_dir)
    return model


def read_base(model: Any, checkpoint_dir: Path) -> None:
    """Read the base weights of a model from its checkpoint, in the dtype of the model."""
    try:
        weights = kept.base_weights(checkpoint_dir / "lit_model.pth")
        loaded = model.load_state_dict(weights.get("model", weights), strict=False)
    except Exception as error:
        if classify(error) != ErrorKind.CODE:
            raise
        message = f"{checkpoint_dir}/lit_model.pth is not a checkpoint of the model in model_config.yaml: {error}"
        raise AttemptError(ErrorKind.MISSING_MODEL, message) from error
    missing = [name for name in loaded.missing_keys if not lora_filter(name, None)]
    if missing or loaded.unexpected_keys:
        message = f"{checkpoint_dir}/lit_model.pth: missing {missing[:5]}, unexpected {loaded.unexpected_keys[:5]}"
        raise AttemptError(ErrorKind.MISSING_MODEL, message)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` the default of new tensors while the context lasts."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
