"""LoRA dropout whose masks do not depend on the physical batch size.

`torch.nn.Dropout` draws a mask of the shape of its input, so another physical batch size would change the training
result. Here the masks of each *micro*-batch are drawn as plain dropout would draw them (same generator, order and
shapes), and each sequence takes its row of a mask into the physical batch that it is part of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence


class GivenDropout(torch.nn.Module):
    """Dropout with a mask that is set beforehand.

    Attributes:
        p: probability that an element is zeroed.
        mask: booleans (batch, length, features); consecutive calls use consecutive positions, because LitGPT calls the
            language-model head on pieces of the sequence.
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
    """One dropout layer of the model."""

    module: GivenDropout
    features: int
    dtype: torch.dtype
    piece: int | None  # positions per call; None: all


class MicroBatchDropout:
    """Replacement of all LoRA dropout layers of a model, with masks that are drawn for each micro-batch.

    Args:
        model: a `litgpt.lora.GPT` with LoRA dropout above zero; its dropout layers are replaced.
        p: the dropout probability.
        head_piece: positions that LitGPT passes to the language-model head in one call.
        precision: returns the context manager of a forward pass, which decides the dtypes of the masks.

    Raises:
        ValueError: for a mixture of experts with LoRA on its MLP, because the routing decides the shapes of its masks.
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
        # Masks are drawn in the order of the calls. One pass in evaluation mode, without draws, records that order.
        was_training = model.training
        with torch.no_grad(), precision():
            model.eval()(torch.zeros(1, 1, dtype=torch.long, device=self._device))
        model.train(was_training)
        for hook in hooks:
            hook.remove()
        self._sites = sites

    def draw(self, micro_batch: int, rows: int, length: int) -> None:
        """Draw the masks of a micro-batch from the global generator. Call it in the order of training.

        Args:
            micro_batch: number within the optimizer step; 0 discards the masks of the previous step.
            rows: number of sequences in the micro-batch.
            length: tokens of its longest sequence.
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
        """Set the masks for one physical batch. `rows` has the micro-batch and the row in it of each sequence."""
        for index, site in enumerate(self._sites):
            parts = [self._micro_batches[micro_batch][index][row] for micro_batch, row in rows]
            site.module.give(pad_sequence(parts, batch_first=True))
