"""What a trial is, the states it goes through and the value objects that the layers exchange."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hpo_cluster.space import Configuration

#: Number of the baseline trial (the model before fine-tuning): outside the budget, and so outside the numbering.
BASELINE = -1


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

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the trial."""
        return self not in (State.PROPOSED, State.SUBMITTED, State.RUNNING)

    @property
    def counts(self) -> bool:
        """Whether a trial in this state has used one unit of the budget."""
        return self.ended and self is not State.CANCELLED


class Origin(StrEnum):
    """Where the value of a row of the history comes from."""

    EVALUATED = "evaluated"
    INHERITED = "inherited"
    APPROXIMATED = "approximated"
    IMPUTED = "imputed"
    IMPORTED = "imported"
    BASELINE = "baseline"


class ErrorKind(StrEnum):
    """Why an attempt ended without a result. The job writes the first group, the driver the second."""

    DIVERGED = "diverged"  # a loss that is NaN or infinite
    OUT_OF_MEMORY = "out_of_memory"  # of the device or the host
    BAD_DATA = "bad_data"  # training data that cannot be read as what it should be
    MISSING_TASK = "missing_task"  # an lm-eval task that is not there
    MISSING_MODEL = "missing_model"  # no checkpoint where the config says
    BAD_CONFIG = "bad_config"  # settings that do not fit the tasks, the model or one another
    BAD_RESULT = "bad_result"  # the objective's output is not what was agreed
    CODE = "code"  # any other exception: the program or its configuration
    DISK = "disk"  # no space or no right to write
    INTERRUPTED = "interrupted"  # asked to end before it was done; what it had is in its checkpoint

    VANISHED = "vanished"  # the job ended for the scheduler and left no file
    NODE = "node"  # so it did, since its node failed
    PREEMPTED = "preempted"  # since the nodes were wanted for others
    WALLTIME = "walltime"  # since its time was over
    CANCELLED = "cancelled"  # since somebody ended it with the scheduler's own command


#: Kinds that the driver finds; a job reports the others.
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
    """A row that needs no job: its value is inherited, approximated or imported (then with all that was measured)."""

    parameters: Configuration
    origin: Origin
    value: float | None
    info: Mapping[str, Any] = field(default_factory=dict)
    value_sem: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """The answer of `Optimizer.ask`: at most n proposals, rows that need no job, what shaped the decision (JSON)."""

    proposals: tuple[Proposal, ...] = ()
    settled: tuple[Settled, ...] = ()
    decision: Mapping[str, Any] = field(default_factory=dict)


def derive_seed(*parts: int | str) -> int:
    """A seed in ``0..2^31-1`` that depends on all `parts` and on nothing else, equal on every machine."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def trial_label(trial: int) -> str:
    """Name of a trial in paths and messages: ``t0007``, or ``baseline``."""
    return "baseline" if trial == BASELINE else f"t{trial:04d}"
