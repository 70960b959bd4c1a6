"""Trials: their states, the origins of their values, the kinds of errors, and the objects that the layers exchange."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_cluster.space import Configuration

#: Number of the baseline trial (the model before fine-tuning). It is outside the budget, so it has no ordinary number.
BASELINE = -1

#: Number of the first confirmation: a configuration evaluated again with a new seed. The second one is -3, and so on.
FIRST_CONFIRMATION = -2


class State(StrEnum):
    """State of a trial."""

    PROPOSED = "proposed"
    SUBMITTED = "submitted"
    RUNNING = "running"
    COMPLETED = "completed"
    DIVERGED = "diverged"
    INFEASIBLE = "infeasible"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"  # at a rung below the top; it may be promoted

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the trial, unless it is promoted or tried again."""
        return self not in (State.PROPOSED, State.SUBMITTED, State.RUNNING)

    @property
    def counts(self) -> bool:
        """Whether a trial in this state has used one unit of the budget."""
        return self.ended and self is not State.CANCELLED


#: The states of trials that have ended without a value, for good.
WITHOUT_VALUE = (State.DIVERGED, State.INFEASIBLE, State.FAILED)


class Origin(StrEnum):
    """Source of the value in a row of the history."""

    EVALUATED = "evaluated"
    INHERITED = "inherited"
    APPROXIMATED = "approximated"
    IMPUTED = "imputed"
    IMPORTED = "imported"
    BASELINE = "baseline"
    CONFIRMATION = "confirmation"


class ErrorKind(StrEnum):
    """Reason why an attempt ended without a result. The job reports the first group, the driver finds the second."""

    DIVERGED = "diverged"  # a loss that is NaN or infinite
    OUT_OF_MEMORY = "out_of_memory"  # of the device or the host
    BAD_DATA = "bad_data"  # training data that cannot be read as what it should be
    MISSING_TASK = "missing_task"  # an lm-eval task that does not exist
    MISSING_MODEL = "missing_model"  # no checkpoint in the configured folder
    BAD_CONFIG = "bad_config"  # settings that do not fit the tasks, the model or one another
    BAD_RESULT = "bad_result"  # the objective's output is not what was agreed
    CODE = "code"  # any other exception: a fault of the program or of its configuration
    DISK = "disk"  # no space left, or no permission to write
    INTERRUPTED = "interrupted"  # asked to end before it was done; its state is in its checkpoint

    VANISHED = "vanished"  # the scheduler says that the job ended, and the job left no file
    NODE = "node"  # the same, because its node failed
    PREEMPTED = "preempted"  # the same, because other jobs took its nodes
    WALLTIME = "walltime"  # the same, because its walltime was over
    CANCELLED = "cancelled"  # the same, because somebody cancelled it with the scheduler's own command


#: Kinds that the driver finds. A job reports the others.
DRIVER_KINDS = frozenset(
    {ErrorKind.VANISHED, ErrorKind.NODE, ErrorKind.PREEMPTED, ErrorKind.WALLTIME, ErrorKind.CANCELLED}
)


@dataclass(frozen=True)
class Proposal:
    """A configuration that an optimizer wants evaluated. `info` (JSON) says how it was found."""

    parameters: Configuration
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """A row that needs no job: its value is inherited, approximated or imported (imported with all its metrics)."""

    parameters: Configuration
    origin: Origin
    value: float | None
    info: Mapping[str, Any] = field(default_factory=dict)
    value_sem: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sems: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """The answer of `Optimizer.ask`: at most n proposals, rows that need no job, what led to the decision (JSON)."""

    proposals: tuple[Proposal, ...] = ()
    settled: tuple[Settled, ...] = ()
    decision: Mapping[str, Any] = field(default_factory=dict)


def derive_seed(*parts: int | str) -> int:
    """Return a seed in ``0..2^31-1`` that depends on `parts` alone, and is the same on every machine."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def trial_label(trial: int) -> str:
    """Return the name of a trial in paths and messages: ``t0007``, ``baseline``, or ``c0001`` for a confirmation."""
    if trial <= FIRST_CONFIRMATION:
        return f"c{FIRST_CONFIRMATION - trial + 1:04d}"
    return "baseline" if trial == BASELINE else f"t{trial:04d}"
