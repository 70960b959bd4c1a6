"""LoRA dropout whose masks do not depend on how the tokens of a step are cut into passes.

`torch.nn.Dropout` draws a mask of the shape of its input, so other passes would give another training run. Here the
masks come from one of two sources. `StepMasks` draws one mask for a whole step at each dropout layer, from a generator
that is seeded with the training seed and the number of the step: few draws, no state to save, the same masks after a
resume. `LitgptMasks` draws as LitGPT's loop does: micro-batch by micro-batch, from the global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from litgpt.lora import LoRALayer

from hpo_cluster.objectives.lora.packing import Example, Pass


class Masks(Protocol):
    """A source of masks. Masks are booleans of shape (tokens, features), false for the elements to set to zero."""

    def step(self, number: int, micro_batches: Sequence[Sequence[Example]]) -> None:
        """Start an optimizer step. Its passes may be repeated afterwards."""

    def give(self, part: Pass) -> None:
        """Prepare the masks for the forward pass of these examples."""

    def mask(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        """Return the mask for the input `x` of a dropout layer in that pass."""


@dataclass
class Site:
    """One dropout layer of the model.

    Attributes:
        kind: its input: ``tokens``, all tokens; ``head``, only the positions that predict a learned token, in several
            calls; ``expert``, the tokens that are routed to the expert.
        used: number of the head's positions that earlier calls have used up.
        kept: mask of the head in the present pass.
    """

    kind: str = "tokens"
    used: int = 0
    kept: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class GivenDropout(torch.nn.Module):
    """Dropout layer with masks from a `Masks` source.

    Args:
        p: probability that an element is set to zero.
        site: describes the layer.
    """

    def __init__(self, p: float, site: Site) -> None:
        super().__init__()
        self.p, self.site = p, site
        self.masks: Masks | None = None

    def mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return the mask for `x` of shape (…, tokens, features); None in evaluation mode."""
        return self.masks.mask(self.site, x) if self.training and self.masks is not None else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the mask to `x` of shape (…, tokens, features); return `x` in evaluation mode."""
        mask = self.mask(x)
        return x if mask is None else x * mask * (1.0 / (1.0 - self.p))


def replace_dropouts(model: Any, p: float) -> list[GivenDropout]:
    """Replace each LoRA dropout layer by a `GivenDropout` without a source, in the order of the modules."""
    made = []
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALayer):
            kind = "head" if layer is model.lm_head else "expert" if ".experts." in name else "tokens"
            layer.lora_dropout = GivenDropout(p, Site(kind))
            made.append(layer.lora_dropout)
    return made


def divisible(model: Any, p: float) -> bool:
    """Return whether masks can be drawn for a whole step: not if an expert has dropout, whose tokens are routed."""
    config = model.config
    return not (config.n_expert and config.lora_mlp and p > 0)


class StepMasks:
    """Masks that are drawn once per dropout layer for all tokens of a step.

    The draws depend only on the seed, the number of the step and the model. Each pass, on whatever rank, draws them
    again and takes its part, so that memory holds at most one mask besides those that the backward pass needs.

    Args:
        dropouts: the dropout layers of the model, from `replace_dropouts`.
        seed: training seed.
        device: device of the model.
    """

    def __init__(self, dropouts: Sequence[GivenDropout], seed: int, device: torch.device) -> None:
        self._dropouts, self._seed = dropouts, seed
        self._generator = torch.Generator(device)
        self._part: Pass | None = None
        self._number = 0
        for dropout in dropouts:
            dropout.masks = self

    def step(self, number: int, micro_batches: Sequence[Sequence[Example]]) -> None:
        """See `Masks`."""
        self._number = number

    def give(self, part: Pass) -> None:
        """See `Masks`."""
        self._part = part
        words = np.random.SeedSequence([self._seed, self._number, part.draw.number]).generate_state(1, np.uint64)
        self._generator.manual_seed(int(words[0] >> np.uint64(1)))
        for dropout in self._dropouts:
            dropout.site.used = 0

    def mask(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        """See `Masks`."""
        part, features = self._part, x.shape[-1]
        assert part is not None
        if site.kind == "expert":
            return self._drawn(len(x), x)
        if site.kind == "tokens":
            return self._drawn(part.draw.tokens, x)[part.places]
        if site.used == 0:
            site.kept = self._drawn(part.draw.learned, x)[part.learned_places]
        begin, site.used = site.used, site.used + x.numel() // features
        return site.kept[begin : site.used]

    def _drawn(self, rows: int, x: torch.Tensor) -> torch.Tensor:
        keep = 1.0 - self._dropouts[0].p
        empty = torch.empty(rows, x.shape[-1], dtype=torch.bool, device=x.device)
        return empty.bernoulli_(keep, generator=self._generator)


@dataclass(frozen=True)
class _Shape:
    """Shape and type of what LitGPT's loop draws at one dropout layer."""

    site: Site
    features: int
    dtype: torch.dtype


class LitgptMasks:
    """The draws of LitGPT's ``finetune_lora``: each micro-batch padded to its longest sequence, the head in pieces.

    Args:
        model: a `litgpt.lora.GPT` that contains `dropouts`.
        dropouts: its dropout layers, from `replace_dropouts`.
        precision: returns the context manager of a forward pass, which decides the dtypes of the masks.

    Raises:
        ValueError: if the draws depend on the routing of a mixture of experts.
    """

    #: Positions that LitGPT passes to the language-model head in one call in training.
    HEAD_PIECE = 128

    def __init__(
        self, model: Any, dropouts: Sequence[GivenDropout], precision: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._p = dropouts[0].p
        if not divisible(model, self._p):
            raise ValueError("train.dropout_draws=litgpt: not for a mixture of experts with lora_mlp and lora_dropout")
        self._device = next(model.parameters()).device
        self._drawn: list[dict[int, torch.Tensor]] = []
        self._given: dict[int, torch.Tensor] = {}
        shapes: list[_Shape] = []

        def note(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            shapes.append(_Shape(module.site, inputs[0].shape[-1], inputs[0].dtype))

        # Masks are drawn in the order of the calls. One pass in evaluation mode, without draws, records that order.
        hooks = [dropout.register_forward_pre_hook(note) for dropout in dropouts]
        was_training = model.training
        with torch.no_grad(), precision():
            model.eval()(torch.zeros(1, 1, dtype=torch.long, device=self._device))
        model.train(was_training)
        for hook in hooks:
            hook.remove()
        self._shapes = shapes
        for dropout in dropouts:
            dropout.masks = self

    def step(self, number: int, micro_batches: Sequence[Sequence[Example]]) -> None:
        """Draw all masks of the step; see `Masks`."""
        self._drawn = [
            {
                id(shape.site): self._draw(shape, len(batch), max(len(example["input_ids"]) for example in batch))
                for shape in self._shapes
            }
            for batch in micro_batches
        ]

    def _draw(self, shape: _Shape, rows: int, length: int) -> torch.Tensor:
        piece = self.HEAD_PIECE if shape.site.kind == "head" else length
        sizes = [(rows, min(piece, length - begin), shape.features) for begin in range(0, length, piece)]
        draws = [torch.ones(size, dtype=shape.dtype, device=self._device) for size in sizes]
        return torch.cat([torch.nn.functional.dropout(ones, self._p) != 0 for ones in draws], dim=1)

    def give(self, part: Pass) -> None:
        """See `Masks`."""
        for shape in self._shapes:
            shape.site.used = 0
            drawn = [batch[id(shape.site)] for batch in self._drawn]
            rows = zip(part.members, part.lengths, strict=True)
            mask = torch.cat([drawn[batch][row, :length] for (batch, row), length in rows])
            self._given[id(shape.site)] = mask[part.learned.to(mask.device)] if shape.site.kind == "head" else mask

    def mask(self, site: Site, x: torch.Tensor) -> torch.Tensor:
        """See `Masks`."""
        begin, site.used = site.used, site.used + x.numel() // x.shape[-1]
        return self._given[id(site)][begin : site.used]
