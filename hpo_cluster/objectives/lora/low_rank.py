"""LitGPT's linear layers with low-rank updates, in fewer kernels than its modules take.

A layer computes ``x W' + s (mask * x) A' B'``, where W is frozen, and s holds the dropout's factor. Forward it takes
three products, one of which adds to the result in place; backward five, or four for an input without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from litgpt.lora import LoRALinear, LoRAQKVLinear

from hpo_cluster.objectives.lora.dropout import GivenDropout


def has_update(module: Any) -> bool:
    """Return whether a module is a linear layer with a low-rank update."""
    return isinstance(module, LoRALinear) and hasattr(module, "lora_A")


def short_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a forward method with fewer kernels for a linear layer with updates; None for other modules."""
    if not has_update(module):
        return None
    if isinstance(module, LoRAQKVLinear):
        ones = [module.lora_B.new_ones(rows, 1, requires_grad=False) for rows in module.qkv_shapes]
        own = torch.block_diag(*ones)  # type: ignore[no-untyped-call]
        return partial(_queries_keys_values, module, own.unsqueeze(2))
    return lambda x: _updated(module, x, module.lora_B)


def _queries_keys_values(layer: Any, own: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Apply the layer of queries, keys and values, each of which has a low-rank update of its own or none.

    Args:
        layer: the layer of LitGPT.
        own: ones where a row of B belongs to an update, of shape (rows of B, updates, 1). With it, one product is
            enough for all updates.
        x: input.
    """
    up = (layer.lora_B.unsqueeze(1) * own).flatten(1)
    return _updated(layer, x, layer.zero_pad(up.T).T)


def _updated(layer: Any, x: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Apply a layer whose update has `up` as its second matrix."""
    rows, mask, scale = x.flatten(0, -2), None, layer.scaling
    if isinstance(layer.lora_dropout, GivenDropout):
        mask = layer.lora_dropout.mask(rows)
        scale = scale if mask is None else scale / (1.0 - layer.lora_dropout.p)
    tensors = [rows, layer.linear.weight, layer.linear.bias, layer.lora_A, up]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = [each if each is None else each.to(dtype) for each in tensors]
    out: torch.Tensor = UpdatedLinear.apply(*tensors, mask, scale)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], out.shape[-1])


class UpdatedLinear(torch.autograd.Function):
    """A frozen linear layer with a low-rank update that is trained."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """Return the output (rows x outputs) for an input (rows x inputs); the update sees what `mask` keeps."""
        kept = x if mask is None else x * mask
        low = kept @ a.T
        ctx.scale = scale
        ctx.save_for_backward(kept, weight, a, b, mask, low)
        return torch.nn.functional.linear(x, weight, bias).addmm_(low, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the input and of both matrices of the update."""
        kept, weight, a, b, mask, low = ctx.saved_tensors
        of_low = torch.addmm(low, gradient, b, beta=0, alpha=ctx.scale)  # a product with a factor, in one kernel
        of_b = torch.addmm(b, gradient.T, low, beta=0, alpha=ctx.scale)
        of_a = of_low.T @ kept
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            of_x = of_x.addmm_(of_low, a) if mask is None else of_x.addcmul_(of_low @ a, mask)
        return of_x, None, None, of_a, of_b, None, None
