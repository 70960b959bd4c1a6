"""The steps of a training, their learning rates and the order of the examples, as in LitGPT's ``finetune_lora``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.settings import TrainSettings
from hpo_cluster.trial import ErrorKind


@dataclass(frozen=True)
class Plan:
    """Numbers of micro-batches in a step, of steps in the run and of steps in the schedule, by LitGPT's rules.

    A last accumulation that is not full is dropped. Over several epochs the remainders of the epochs are joined, so
    `steps` can exceed `schedule`, and a cosine schedule then rises again.
    """

    accumulation: int
    steps: int
    schedule: int


def make_plan(train: TrainSettings, examples: int) -> Plan:
    """Return the plan for `examples` training examples."""
    accumulation = train.global_batch_size // train.micro_batch_size
    micro_batches = math.ceil(examples / train.micro_batch_size)
    limit = train.max_steps or sys.maxsize
    plan = Plan(
        accumulation,
        steps=min(train.epochs * micro_batches // accumulation, limit),
        schedule=min(train.epochs * (micro_batches // accumulation), limit),
    )
    if plan.schedule < 1:
        message = f"{examples} training examples do not fill one step of global_batch_size={train.global_batch_size}"
        raise AttemptError(ErrorKind.BAD_DATA, message)
    return plan


def rung_step(steps: int, share: float) -> int:
    """Return the number of steps, of `steps` in all, after which a share of a training is done; at least one."""
    return max(1, round(steps * share))


def decay_steps(train: TrainSettings, steps: int) -> int:
    """Return the number of steps in which ``lr_schedule=wsd`` falls to zero, for `steps` steps; at least one."""
    return max(1, round(train.lr_decay_share * steps))


def branch_end(train: TrainSettings, plan: Plan, branch: int) -> int:
    """Return the step after which the decayed copy is finished that leaves the training after step `branch`."""
    return min(plan.steps, branch + decay_steps(train, branch))


def learning_rate(train: TrainSettings, plan: Plan, step: int, branch: int | None = None) -> float:
    """Return the learning rate of a step (from 0): linear from zero over the warm-up, then the configured schedule.

    Args:
        train: the settings.
        plan: numbers of steps.
        step: number of the step.
        branch: number of steps after which a copy left the training, to fall to zero at `branch_end`; None for the
            training itself.
    """
    if branch is not None:
        end = branch_end(train, plan, branch)
        falling = train.learning_rate * (end - step) / (end - branch)
        return min(learning_rate(train, plan, step), falling)
    warmup = train.warmup_steps(plan.schedule)
    if train.lr_schedule == "wsd":  # https://arxiv.org/abs/2404.06395, https://arxiv.org/abs/2405.18392
        rising = step / warmup if step < warmup else 1.0
        return train.learning_rate * min(rising, (plan.steps - step) / decay_steps(train, plan.steps))
    if step < warmup:
        return train.learning_rate * step / warmup
    if train.lr_schedule == "constant":
        return train.learning_rate
    period = max(1, plan.schedule - warmup)
    if train.lr_schedule == "linear":
        return train.learning_rate * max(0.0, 1 - (step - warmup) / period)
    return train.learning_rate * (1 + math.cos(math.pi * (step - warmup) / period)) / 2


def micro_batch_order(examples: int, micro_batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of the examples of each micro-batch, in LitGPT's order, epoch after epoch without end.

    The order depends on the arguments alone, not on the global generator, so a resumed run can skip the micro-batches
    that it has already trained on.
    """
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(seed)
    numbers: Any = range(examples)
    loader: DataLoader[int] = DataLoader(
        numbers, batch_size=micro_batch_size, shuffle=True, generator=generator, collate_fn=list
    )
    while True:
        yield from loader
