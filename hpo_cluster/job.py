"""A job of a launcher: its handle, its state and why it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True)
class JobRef:
    """A handle on a job, which can be written to the journal and rebuilt from it.

    Args:
        backend: name of the launcher that submitted the job.
        job_id: the scheduler's id, or the process id; ids are recycled, so it never identifies a job alone.
        token: the job's name, unique for each attempt.
        submitted_at: UTC, ISO 8601.
        host: where it was submitted.
        extra: what one launcher alone needs, for instance the start time of a process.
    """

    backend: str
    job_id: str
    token: str
    submitted_at: str
    host: str
    extra: Mapping[str, Any] = field(default_factory=dict)


class JobState(StrEnum):
    """State of a job as its launcher knows it. UNKNOWN is never terminal."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"
    UNKNOWN = "unknown"


class EndReason(StrEnum):
    """Reason why a job ended, as far as its scheduler knows."""

    WELL = "well"  # its program ended with status 0
    EXIT = "exit"  # its program ended with another status, or was ended by a signal
    WALLTIME = "walltime"
    PREEMPTED = "preempted"
    NODE = "node"  # the node failed, or the job could not be started on it
    OUT_OF_MEMORY = "out_of_memory"  # of the host: the scheduler killed it
    CANCELLED = "cancelled"  # by a person or a site's rule
    FORGOTTEN = "forgotten"  # the scheduler no longer knows the job


@dataclass(frozen=True)
class JobStatus:
    """State of a job as its scheduler reports it.

    Args:
        state: state of the job, the same for all launchers.
        reason: why the job ended; None if it has not ended, or if the reason is not known.
        detail: state and reason in the scheduler's own words.
        node: node on which the job runs or ran.
        remedy: what the user can do about a job that waits and will not start as it is; empty if nothing is known.
    """

    state: JobState
    reason: EndReason | None = None
    detail: str = ""
    node: str | None = None
    remedy: str = ""
