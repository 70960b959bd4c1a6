"""The forward pass of a packed row through a LitGPT model, and its loss, with few kernels.

The model's own modules and weights are used. During the pass, the forward methods of some modules are replaced: those
that do not know where an example begins, and those that launch many small kernels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from litgpt.model import RMSNorm
from torch.nn import functional

from hpo_cluster.objectives.lora import low_rank
from hpo_cluster.objectives.lora.attention import Examples, Rule, flash_is_right, rule_of
from hpo_cluster.objectives.lora.forward import head
from hpo_cluster.objectives.lora.packing import Pass

#: Largest number of logits in memory at once: 1 GB with their gradients.
LOGITS_AT_ONCE = 2**26

Precision = Callable[[], AbstractContextManager[Any]]


class PackedModel:
    """A `litgpt.lora.GPT` that accepts packed rows.

    Args:
        model: the model; it is changed only during a forward pass.
        precision: returns the context manager of a forward pass.
        half: whether the forward pass computes in 16 bits.
    """

    def __init__(self, model: Any, precision: Precision, *, half: bool) -> None:
        self.model, self.precision, self.half = model, precision, half
        self.logits_at_once = LOGITS_AT_ONCE
        self._attention = [(block.attn, rule_of(block.attn)) for block in model.transformer.h]
        self._short = [(module, forward) for module in model.modules() if (forward := _shorter(module)) is not None]

    def loss(self, part: Pass, *, backward: bool) -> torch.Tensor:
        """Return the weighted sum of the losses of a pass, on the device; with `backward`, add its gradient."""
        device = next(self.model.parameters()).device
        part = part.to(device)
        total = torch.zeros((), device=device)
        if not len(part.learned):
            return total
        hidden = self.hidden(part)
        if len(part.learned) < len(part.tokens):
            hidden = hidden.index_select(0, part.learned)
        size = max(1, self.logits_at_once // self.model.config.padded_vocab_size)
        gradients = []
        pieces = (torch.split(x, size) for x in (hidden.detach(), part.targets, part.weights))
        for piece, targets, weights in zip(*pieces, strict=True):
            with self.precision(), self._standing_in(None):
                logits = head(self.model, piece.requires_grad_(backward))
            losses = functional.cross_entropy(logits, targets, reduction="none")
            loss = losses @ weights
            if backward:  # now, so that memory holds the logits of one piece only
                torch.autograd.backward(loss)
                gradients.append(piece.grad)
            total = total + loss.detach()
        if backward and hidden.requires_grad:
            GivenGradient.apply(hidden, gradients).backward()  # type: ignore[no-untyped-call]
        return total

    def hidden(self, part: Pass) -> torch.Tensor:
        """Return the output of the last norm, of shape (tokens, embedding size), for a pass on the device."""
        examples = Examples(part.lengths, part.positions, row=self._in_a_row(part.tokens.device))
        with self.precision(), self._standing_in(examples):
            return self._blocks(part, examples)

    def _in_a_row(self, device: torch.device) -> bool:
        """Return whether the examples stay in a row: if all layers can use flash attention, or latent attention."""
        config = self.model.config
        if config.latent_attention:
            return True
        dtype = torch.bfloat16 if self.half else torch.float32
        heads = (config.head_size, config.n_head, config.n_query_groups)
        return all(flash_is_right(device, dtype, *heads, rule) for _, rule in self._attention)

    def _blocks(self, part: Pass, examples: Examples) -> torch.Tensor:
        """Compute `litgpt.GPT.forward` up to the head, with the positions of the pass."""
        model, config = self.model, self.model.config
        cos, sin = examples.table(model.cos), examples.table(model.sin)
        x = model.transformer.wte(part.tokens.unsqueeze(0))
        if config.scale_embeddings:
            x = x * torch.tensor(config.n_embd**0.5, dtype=x.dtype)
        tables = {None: (cos, sin)}
        if config.rope_indices is not None:
            tables = {index: (cos[..., index], sin[..., index]) for index in set(config.rope_indices)}
        if not config.latent_attention:
            tables = {index: (cos[:, :, None], _signed(sin)[:, :, None]) for index, (cos, sin) in tables.items()}
        for number, block in enumerate(model.transformer.h):
            index = None if config.rope_indices is None else config.rope_indices[number]
            x = block(x, *tables[index])
        hidden: torch.Tensor = model.transformer.ln_f(x)[0]
        return hidden

    @contextlib.contextmanager
    def _standing_in(self, examples: Examples | None) -> Iterator[None]:
        """Replace forward methods inside the context; `examples` None leaves the attention as it is."""
        changed = list[tuple[Any, str]]()

        def put(module: Any, name: str, value: Any) -> None:
            setattr(module, name, value)
            changed.append((module, name))

        try:
            for module, forward in self._short:
                put(module, "forward", forward)
            if examples is not None:
                for layer, rule in self._attention:
                    if layer.config.latent_attention:
                        put(layer, "scaled_dot_product_attention", partial(_attend, rule, examples))
                    else:
                        put(layer, "forward", partial(_attention, layer, rule, examples))
            yield
        finally:
            for module, name in changed:
                delattr(module, name)


def _attention(
    layer: Any, rule: Rule, examples: Examples, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any
) -> torch.Tensor:
    """Compute `CausalSelfAttention.forward` of LitGPT with attention inside each example."""
    config = layer.config
    heads, groups, size = config.n_head, config.n_query_groups, config.head_size
    both, v = torch.split(examples.laid(layer.qkv(x)), [(heads + groups) * size, groups * size], -1)
    if config.norm_qk and config.norm_qk_type == "olmo2":
        q, k = torch.split(both, [heads * size, groups * size], -1)
        both = torch.cat((layer.norm_q(q), layer.norm_k(k)), -1)
    both, v = both.view(*both.shape[:2], heads + groups, size), v.view(*v.shape[:2], groups, size)
    if config.norm_qk and config.norm_qk_type == "default":
        q, k = torch.split(both, [heads, groups], -2)
        both = torch.cat((layer.norm_q(q), layer.norm_k(k)), -2)
    q, k = torch.split(_turned(both, cos, sin, config).to(v.dtype), [heads, groups], -2)
    return layer.proj(examples.back(examples.attend(q, k, v, rule).flatten(-2)))  # type: ignore[no-any-return]


def _attend(
    rule: Rule, examples: Examples, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _mask: Any = None
) -> torch.Tensor:
    return examples.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), rule)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, config: Any) -> torch.Tensor:
    """Apply the rotary position embedding to `x` (rows, tokens, heads, size); `sin` comes from `_signed`."""
    size = config.rope_n_elem
    if not size:
        return x
    turning = x[..., :size]
    if config.rope_interleave:
        turning = turning.reshape(*x.shape[:-1], size // 2, 2).transpose(-1, -2).flatten(-2)
    turned: torch.Tensor = Rotation.apply(turning, cos, sin)  # type: ignore[no-untyped-call]
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)


def _signed(sin: torch.Tensor) -> torch.Tensor:
    """Return the sines with the signs of the rotation: negative in the first half."""
    first = sin.shape[-1] - sin.shape[-1] // 2
    return torch.cat((-sin[..., :first], sin[..., first:]), -1)


def _shorter(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return a forward method with fewer kernels for a module, if there is one."""
    if isinstance(module, RMSNorm):
        weight = (1 + module.weight if module.add_unit_offset else module.weight).detach()
        return partial(_rms_norm, weight, weight.float() * len(weight) ** 0.5, module.eps)
    return low_rank.short_forward(module)


def _rms_norm(weight: torch.Tensor, scaled: torch.Tensor, eps: float, x: torch.Tensor) -> torch.Tensor:
    """Apply the root-mean-square norm over the last dimension; it computes in float32, as LitGPT's does."""
    if x.device.type == "cuda":  # one kernel there
        return functional.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps).to(x.dtype)  # autocast widens it
    return RootMeanSquareNorm.apply(x, scaled, eps)  # type: ignore[no-any-return, no-untyped-call]


class GivenGradient(torch.autograd.Function):
    """Passes a known gradient on, from a result of zero; torch's own way for that imports sympy (0.5 s)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, pieces: list[torch.Tensor]) -> torch.Tensor:
        """Return zero."""
        ctx.pieces = pieces
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of `x`, which is in pieces."""
        return ctx.pieces[0] if len(ctx.pieces) == 1 else torch.cat(ctx.pieces), None


class Rotation(torch.autograd.Function):
    """The rotary position embedding, with half as many kernels backward as autograd takes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return `x` rotated; `sin` comes from `_signed`."""
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, x.roll(-(x.shape[-1] // 2), -1), sin, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of `x`."""
        cos, sin = ctx.saved_tensors
        turned = (gradient * sin).roll(gradient.shape[-1] // 2, -1)
        return torch.addcmul(turned, gradient, cos, out=torch.empty_like(gradient)), None, None


class RootMeanSquareNorm(torch.autograd.Function):
    """The root-mean-square norm for devices on which torch has no kernel for it, with weights that are not trained.

    It divides by the length of a vector instead of its root mean square; the weights are scaled to compensate.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return `x` divided by its length, times the weight."""
        size = x.shape[-1]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        factor = length.square_().add_(size * eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return torch.mul(x * factor, weight, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of `x`."""
        x, weight, factor = ctx.saved_tensors
        scaled = (gradient * weight).mul_(factor)
        normed = x * factor
        along = (scaled * normed).sum(-1, keepdim=True)
        return torch.addcmul(scaled, normed, along, value=-1, out=torch.empty_like(x)), None, None
