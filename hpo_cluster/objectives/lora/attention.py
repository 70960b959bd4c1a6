"""Causal attention inside each example of a packed row.

On a GPU in half precision this is flash attention of variable length, also for sliding windows. Elsewhere, and if
scores are capped (Gemma 2), the examples are padded to one length for the attention alone: the rest of the model does
no work for padding. If the lengths differ too much for that, the examples are computed one after the other.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

log = logging.getLogger(__name__)

#: The examples are padded if that gives at most this many times the tokens; otherwise they are computed one by one.
WIDEST = 4


@dataclass(frozen=True)
class Rule:
    """Settings of the attention of one layer.

    Attributes:
        scale: factor of the scores.
        window: largest number of tokens that a token attends to, itself included; None: all before it.
        cap: limit of the softly capped scores; None: scores are not capped.
    """

    scale: float
    window: int | None = None
    cap: float | None = None


class Examples:
    """The examples of a packed row, and their layout for the attention: in the row, or padded side by side.

    Args:
        lengths: number of tokens of each example.
        positions: position of each token of the row in its example, on the device of the model.
        row: whether the examples stay in the row without regard to their lengths.
    """

    def __init__(self, lengths: tuple[int, ...], positions: torch.Tensor, *, row: bool) -> None:
        self.lengths, self.positions, self.device = lengths, positions, positions.device
        self.longest = max(lengths)
        wide = len(lengths) * self.longest > WIDEST * sum(lengths)
        self.in_a_row = row or wide or len(lengths) == 1
        self._masks = dict[tuple[int, int, torch.dtype], torch.Tensor]()

    def laid(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` of shape (1, tokens, features) in the layout: the same, or (examples, longest, features)."""
        if self.in_a_row:
            return x
        return x.flatten(0, 1).index_select(0, self._into).view(len(self.lengths), self.longest, -1)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` from the layout to the row: the inverse of `laid`."""
        return x if self.in_a_row else x.flatten(0, 1).index_select(0, self._out).unsqueeze(0)

    def table(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of a table (positions, …) for the tokens in the layout, with a first dimension of 1."""
        return (values[self.positions] if self.in_a_row else values[: self.longest]).unsqueeze(0)

    @functools.cached_property
    def ends(self) -> torch.Tensor:
        """The cumulative lengths of the examples, beginning with 0 (int32), as flash attention expects them."""
        return self._there(functional.pad(torch.tensor(self.lengths).cumsum(0), (1, 0)).to(torch.int32))

    @functools.cached_property
    def _into(self) -> torch.Tensor:
        """The index in the row of each place side by side; padding repeats the last token of its example."""
        lengths = torch.tensor(self.lengths)[:, None]
        places = torch.minimum(torch.arange(self.longest), lengths - 1)
        return self._there((lengths.cumsum(0) - lengths + places).flatten())

    @functools.cached_property
    def _out(self) -> torch.Tensor:
        """The place side by side of each token in the row."""
        real = torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]
        return self._there(real.flatten().nonzero()[:, 0])

    def _there(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.device.type == "cpu" else x.pin_memory().to(self.device, non_blocking=True)

    def mask(self, length: int, window: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask to add to the scores, zero where a token attends to another; all layers share it."""
        key = length, window, dtype
        if key not in self._masks:
            places = torch.arange(length, device=self.device)
            distance = places[:, None] - places[None, :]
            hidden = (distance < 0) | (distance >= window)
            mask = torch.zeros(length, length, dtype=dtype, device=self.device)
            self._masks[key] = mask.masked_fill_(hidden, torch.finfo(dtype).min)
        return self._masks[key]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule) -> torch.Tensor:
        """Compute the attention inside each example.

        Args:
            q: queries in the layout, of shape (rows, tokens, heads, size).
            k: keys, with the same number of heads or a divisor of it.
            v: values, with as many heads as the keys.
            rule: settings of the layer.

        Returns:
            The result in the layout, of shape (rows, tokens, heads, size of the values).
        """
        if self.in_a_row and _flash(q, k, v, rule):
            return varlen(q, k, v, rule, self)
        if len(self.lengths) == 1 or not self.in_a_row:
            return self._causal(q, k, v, rule)
        turns = zip(*(torch.split(x, list(self.lengths), 1) for x in (q, k, v)), strict=True)
        return torch.cat([self._causal(a, b, c, rule) for a, b, c in turns], 1)

    def _causal(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule) -> torch.Tensor:
        """Compute the attention of padded rows. Padding comes last, so that no token attends to it."""
        length, times = q.shape[1], q.shape[2] // k.shape[2]
        flash_on_cpu = rule.cap is None and q.device.type == "cpu"  # supports grouped queries
        if times > 1 and not flash_on_cpu:
            k, v = (x.unsqueeze(3).expand(-1, -1, -1, times, -1).flatten(2, 3) for x in (k, v))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        window = length if rule.window is None else min(rule.window, length)
        if rule.cap is None:
            mask = None if window == length else self.mask(length, window, q.dtype)
            causal = mask is None
            out = functional.scaled_dot_product_attention(
                q, k, v, mask, scale=rule.scale, is_causal=causal, enable_gqa=times > 1 and flash_on_cpu
            )
        else:
            scores = torch.tanh(q @ k.mT * rule.scale / rule.cap) * rule.cap + self.mask(length, window, q.dtype)
            out = scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v
        return out.transpose(1, 2)


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule) -> bool:
    """Return whether flash attention of variable length can be used."""
    if not q.dtype == k.dtype == v.dtype or q.shape[-1] != v.shape[-1]:
        return False
    return flash_is_right(q.device, q.dtype, q.shape[-1], q.shape[2], k.shape[2], rule)


def varlen_attn(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Call torch's flash attention of variable length, which exists since torch 2.10."""
    from torch.nn.attention.varlen import varlen_attn  # here, as it imports torch's compiler: 1 s

    return varlen_attn(*arguments, **settings)  # type: ignore[return-value]


def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: Rule, examples: Examples) -> torch.Tensor:
    """Compute `Examples.attend` of a row by flash attention, in one kernel."""
    ends, longest = examples.ends, examples.longest
    q, k, v = (x.squeeze(0).contiguous() for x in (q, k, v))
    window = (-1 if rule.window is None else rule.window - 1, 0)
    grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=rule.scale, window_size=window, enable_gqa=grouped)
    return out.unsqueeze(0)


@functools.lru_cache
def flash_is_right(device: torch.device, dtype: torch.dtype, size: int, heads: int, groups: int, rule: Rule) -> bool:
    """Return whether flash attention of variable length exists and is right on a few tokens, with its gradients.

    Drivers, cards and versions differ, so it is tried once before it is used.
    """
    if device.type != "cuda" or rule.cap is not None:
        return False
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        error = flash_error(device, dtype, size, heads, groups, rule)
    except Exception as fault:  # whatever is missing, there is another way
        log.warning(
            "no flash attention of variable length (%s: %s): a slower method is used", type(fault).__name__, fault
        )
        return False
    if error > 0.05:  # of numbers about one, with the 8 bits of bfloat16
        log.warning("flash attention of variable length is off by %.2g here: a slower method is used", error)
    return error <= 0.05


def flash_error(device: torch.device, dtype: torch.dtype, size: int, heads: int, groups: int, rule: Rule) -> float:
    """Return the largest relative difference between `varlen` and padded attention, gradients included."""
    lengths = (9, 15)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    row, sides = (Examples(lengths, positions, row=row) for row in (True, False))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(lengths), number, size) for number in (heads, groups, groups)]
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]

    def slowly(*inputs: torch.Tensor) -> torch.Tensor:
        q, k, v = (sides.laid(x.flatten(2)).view(len(lengths), max(lengths), -1, size) for x in inputs)
        return sides.back(sides.attend(q, k, v, rule).flatten(2)).view(shapes[0])

    found = list[list[torch.Tensor]]()
    with torch.enable_grad():
        for way in (lambda q, k, v: varlen(q, k, v, rule, row), slowly):
            leaves = [x.clone().requires_grad_() for x in inputs]
            out = way(*leaves)
            found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(*found, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in pairs)


def rule_of(layer: Any) -> Rule:
    """Return the settings of an attention layer of LitGPT."""
    config = layer.config
    size = config.qk_head_dim if config.latent_attention else config.head_size
    window = config.sliding_window_size if getattr(layer, "apply_sliding_window_attention", False) else None
    scale = layer.mscale**2 / math.sqrt(config.attention_scores_scalar or size)
    return Rule(scale, window, config.attention_logit_softcapping)
