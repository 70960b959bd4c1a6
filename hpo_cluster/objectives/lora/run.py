"""A model that is trained: its packed forward pass, its dropout masks, its precision, its share of the memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from hpo_cluster.objectives.lora import dropout, memory
from hpo_cluster.objectives.lora.base_model import default_dtype
from hpo_cluster.objectives.lora.packed_forward import PackedModel
from hpo_cluster.objectives.lora.ranks import Ranks
from hpo_cluster.objectives.lora.settings import TrainSettings


@dataclass
class Run:
    """Parts of a run that stay the same while a model is trained and validated, except for `tokens_at_once`.

    Attributes:
        seed: seed of the dropout masks.
        ranks: this rank and the others.
        packed: the model with the forward pass of packed rows.
        masks: source of the dropout masks; None without dropout.
        tokens_at_once: largest number of tokens in a pass; halved when memory runs out.
        whole_micro_batches: whether each micro-batch must be a pass of its own.
    """

    model: Any
    train: TrainSettings
    device: torch.device
    seed: int
    ranks: Ranks = field(default_factory=Ranks)
    packed: PackedModel = field(init=False)
    masks: dropout.Masks | None = field(init=False, default=None)
    tokens_at_once: int = field(init=False)
    whole_micro_batches: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.packed = PackedModel(self.model, self.precision, half=self.train.precision != "32-true")
        p = self.train.lora_dropout if self.model.config.lora_r > 0 else 0.0
        if p > 0:
            dropouts = dropout.replace_dropouts(self.model, p)
            self.whole_micro_batches = not dropout.divisible(self.model, p)
            if self.train.dropout_draws == "litgpt":
                self.masks = dropout.LitgptMasks(self.model, dropouts, self.precision)
            else:
                self.masks = dropout.StepMasks(dropouts, self.seed, self.device)
        self.tokens_at_once = self.train.tokens_at_once or memory.tokens_that_fit(self.packed, self.device)

    def precision(self) -> AbstractContextManager[Any]:
        """Return the context in which a forward pass runs."""
        if self.train.precision == "bf16-mixed":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext() if self.train.precision == "32-true" else default_dtype(torch.bfloat16)
