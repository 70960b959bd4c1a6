"""AdamW over an adapter, as one operator.

It computes what `torch.optim.AdamW` computes with ``fused=True``, whose first step imports torch's compiler: 1 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Decay:
    """The settings of AdamW that stay the same in a training, under the names that torch gives them."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01


class AdamW:
    """Optimizer with decoupled weight decay (Loshchilov & Hutter, 2019).

    Args:
        parameters: what is trained, all on one device.
        settings: all but the learning rate.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], settings: Decay) -> None:
        self.settings = settings
        self._parameters = list(parameters)
        self._means, self._squares = ([torch.zeros_like(each) for each in self._parameters] for _ in range(2))
        self._step = torch.zeros((), device=self._parameters[0].device)

    def step(self, learning_rate: float) -> None:
        """Update the parameters by their gradients. One without a gradient decays."""
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters]
        self._step += 1
        torch._fused_adamw_(
            self._parameters, gradients, self._means, self._squares, [], [self._step] * len(gradients),
            lr=learning_rate, **vars(self.settings), amsgrad=False, maximize=False,
        )  # fmt: skip

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for each in self._parameters:
            each.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the form of `torch.optim.AdamW`."""
        pairs = zip(self._means, self._squares, strict=True)
        state = [{"step": self._step, "exp_avg": mean, "exp_avg_sq": square} for mean, square in pairs]
        return {"state": dict(enumerate(state))}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Restore what `state_dict`, or that of `torch.optim.AdamW`, returned.

        Raises:
            KeyError, ValueError: if it does not fit; nothing is changed then.
        """
        state = [kept["state"][number] for number in range(len(self._parameters))]
        pairs = [
            *zip(self._means, (each["exp_avg"] for each in state), strict=True),
            *zip(self._squares, (each["exp_avg_sq"] for each in state), strict=True),
            (self._step, state[0]["step"]),
        ]
        if len(kept["state"]) != len(state) or any(mine.shape != theirs.shape for mine, theirs in pairs):
            raise ValueError("the state of its optimizer has other shapes")
        for mine, theirs in pairs:
            mine.copy_(theirs)
