"""LoRA dropout whose masks do not depend on how many sequences go through the device at once.

`torch.nn.Dropout` draws a mask of the shape it is given, so another physical batch would be another training run. Here
the masks of each *micro*-batch are drawn as plain dropout would draw them (same generator, same order, same shapes),
and rows of them are handed to whatever physical batch those sequences travel in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


class GivenDropout(torch.nn.Module):
    """Dropout with a mask that was drawn before.

    Attributes:
        p: probability that an element is zeroed.
        mask: booleans (batch, length, features); used up from position 0 in consecutive calls, because LitGPT calls
            the language-model head on pieces of the sequence.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._mask = torch.empty(0)
        self._position = 0

    def give(self, mask: torch.Tensor) -> None:
        """Set the mask (batch, length, features) for the next forward pass of the model."""
        self._mask, self._position = mask, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the next positions of the mask to `x` (batch, length, features); the identity in evaluation mode."""
        if not self.training:
            return x
        begin, self._position = self._position, self._position + x.shape[1]
        return x * self._mask[:, begin : self._position].to(x.dtype) * (1.0 / (1.0 - self.p))


@dataclass(frozen=True)
class _Site:
    """One dropout of the model, in the order of the forward pass."""

    module: GivenDropout
    features: int
    dtype: torch.dtype
    piece: int | None  # positions in one call; None: all of them


class MicroBatchDropout:
    """Replaces every LoRA dropout of a model, and hands out masks drawn for each micro-batch.

    Args:
        model: a `litgpt.lora.GPT` with LoRA dropout above zero; its dropouts are replaced.
        p: the dropout probability.
        head_piece: positions that go through the language-model head in one call.
        precision: makes the context of a forward pass, which decides the types of the masks.

    Raises:
        ValueError: for a mixture of experts with LoRA on its MLP: its masks have shapes that depend on the routing.
    """

    def __init__(
        self, model: Any, p: float, head_piece: int, precision: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        from litgpt.lora import LoRALayer

        if model.config.n_expert and model.config.lora_mlp:
            raise ValueError(
                "physical_batch_size must equal micro_batch_size for a mixture of experts with lora_mlp and dropout"
            )
        self.p = p
        self._device = next(model.parameters()).device
        self._micro_batches: dict[int, list[torch.Tensor]] = {}
        sites: list[_Site] = []
        hooks = []
        for layer in (module for module in model.modules() if isinstance(module, LoRALayer)):
            dropout = layer.lora_dropout = GivenDropout(p)
            piece = head_piece if layer is model.lm_head else None

            def note(module: Any, inputs: tuple[torch.Tensor, ...], piece: int | None = piece) -> None:
                sites.append(_Site(module, inputs[0].shape[-1], inputs[0].dtype, piece))

            hooks.append(dropout.register_forward_pre_hook(note))
        # The order of the draws is the order of the calls: one pass in evaluation mode, which draws nothing, shows it.
        was_training = model.training
        with torch.no_grad(), precision():
            model.eval()(torch.zeros(1, 1, dtype=torch.long, device=self._device))
        model.train(was_training)
        for hook in hooks:
            hook.remove()
        self._sites = sites

    def draw(self, micro_batch: int, rows: int, length: int) -> None:
        """Draw the masks of the next micro-batch from the global generator; call in the order of training.

        Args:
            micro_batch: its number within the optimizer step; 0 forgets those of the step before.
            rows: its sequences.
            length: its longest sequence, in tokens.
        """
        if micro_batch == 0:
            self._micro_batches.clear()
        masks = []
        for site in self._sites:
            piece = site.piece or length
            shapes = [(rows, min(piece, length - begin), site.features) for begin in range(0, length, piece)]
            draws = [torch.ones(shape, dtype=site.dtype, device=self._device) for shape in shapes]
            kept = [torch.nn.functional.dropout(ones, self.p) != 0 for ones in draws]
            masks.append(torch.cat(kept, dim=1))
        self._micro_batches[micro_batch] = masks

    def give(self, rows: Sequence[tuple[int, int]]) -> None:
        """Hand the masks to the model for one physical batch: (micro-batch, row in it) of each of its sequences."""
        for index, site in enumerate(self._sites):
            parts = [self._micro_batches[micro_batch][index][row] for micro_batch, row in rows]
            site.module.give(pad_sequence(parts, batch_first=True))
