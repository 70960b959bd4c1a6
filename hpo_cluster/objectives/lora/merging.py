"""Merge an adapter into its model, and measure how much of the update is lost in rounding.

Weights in bfloat16 have 8 significant bits. A small update changes many of them by less than half of the last bit, and
is rounded away there; in float32 nothing is lost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from litgpt.lora import LoRAQKVLinear

from hpo_cluster.objectives.lora.low_rank import has_update

#: Largest number of weights whose rounding error is computed at once.
AT_ONCE = 2**24


def merge(model: Any, computed_in: torch.dtype) -> float | None:
    """Merge the adapter into the weights as LitGPT does, in place.

    Args:
        model: a `litgpt.lora.GPT`.
        computed_in: dtype of the matrix products with the merged weights.

    Returns:
        The loss of the merge; see `_Loss`. None without an adapter.
    """
    loss = _Loss(computed_in)
    for layer in _adapted(model):
        before = layer.linear.weight.detach().clone()
        layer.merge()
        loss.add(before, layer.linear.weight, update(layer))
    return loss.relative


def merge_in(model: Any, dtype: torch.dtype) -> float | None:
    """Merge the adapter in float32, then convert all weights but the adapter's to `dtype`, in place.

    The adapter is left as it is, so that a checkpoint of the training can be written at any time.

    Returns:
        The loss of the merge; see `_Loss`. None without an adapter.
    """
    loss = _Loss(dtype)
    for layer in _adapted(model):
        before, change = layer.linear.weight, update(layer)
        merged = (before.float() + change).to(dtype)
        loss.add(before, merged, change)
        layer.linear.weight.data = merged
        layer.merged = True
    for name, value in model.named_parameters():
        if "lora_" not in name:
            value.data = value.data.to(dtype)
    return loss.relative


def update(layer: Any) -> torch.Tensor:
    """Return what the adapter of a layer adds to its weights, computed in float32."""
    a, b = layer.lora_A.detach().float(), layer.lora_B.detach().float()
    if not isinstance(layer, LoRAQKVLinear):
        plain: torch.Tensor = (b @ a) * layer.scaling
        return plain
    parts = zip(b.split(layer.qkv_shapes), a.chunk(len(layer.qkv_shapes)), strict=True)
    rows = torch.cat([up @ down for up, down in parts]) * layer.scaling
    padded: torch.Tensor = layer.zero_pad(rows.T)
    return padded.T.contiguous()


def _adapted(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if has_update(layer)]


class _Loss:
    """The part of the update that is lost: the norm of the rounding error divided by the norm of the update.

    Both are Frobenius norms over all adapted matrices together. The error is the difference between the change of the
    rounded weights and the update; 0 means that nothing is lost, 1 as much as if there were no update at all.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.squares: list[torch.Tensor] = []  # of the error and of the update; read from the device at the end

    def add(self, before: torch.Tensor, after: torch.Tensor, change: torch.Tensor) -> None:
        """Add one matrix."""
        rows = max(1, AT_ONCE // before.shape[1])
        for part in zip(*(torch.split(each, rows) for each in (before, after, change)), strict=True):
            old, new = (weights.detach().to(self.dtype).float() for weights in part[:2])
            both = (new - old - part[2], part[2])
            self.squares.append(torch.stack([each.double().square().sum() for each in both]))

    @property
    def relative(self) -> float | None:
        """The loss; 0 for an update of zero; None without an adapter."""
        if not self.squares:
            return None
        error, whole = torch.stack(self.squares).sum(0).tolist()
        return math.sqrt(error / whole) if whole else 0.0
