"""What became of an attempt: from its own files first, from the scheduler second, from the end of its log last."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpo_cluster.job import EndReason, JobStatus
from hpo_cluster.record.attempt_files import document_of, log_tail, result_faults
from hpo_cluster.record.clock import seconds_since
from hpo_cluster.record.files import read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)


#: What a job that left no report most probably died of, by why its scheduler says it ended.
KINDS_OF_REASONS: Mapping[EndReason, ErrorKind] = {
    EndReason.WALLTIME: ErrorKind.WALLTIME,
    EndReason.PREEMPTED: ErrorKind.PREEMPTED,
    EndReason.NODE: ErrorKind.NODE,
    EndReason.OUT_OF_MEMORY: ErrorKind.OUT_OF_MEMORY,
    EndReason.CANCELLED: ErrorKind.CANCELLED,
    EndReason.WELL: ErrorKind.VANISHED,
    EndReason.EXIT: ErrorKind.VANISHED,
    EndReason.FORGOTTEN: ErrorKind.VANISHED,
}

#: Those of them for which jobs are asked to end.
REASONS_TO_END = frozenset({ErrorKind.WALLTIME, ErrorKind.PREEMPTED, ErrorKind.NODE, ErrorKind.CANCELLED})
#: Seconds after its report in which the scheduler's reason is waited for.
REASON_WITHIN_S = 60.0

#: The same by what its log ends with, where the scheduler says no more than that it is over.
KINDS_OF_WORDS: tuple[tuple[re.Pattern[str], ErrorKind], ...] = (
    (re.compile(r"CUDA out of memory|OutOfMemoryError|oom[-_ ]kill|Out Of Memory", re.I), ErrorKind.OUT_OF_MEMORY),
    (re.compile(r"DUE TO TIME LIMIT", re.I), ErrorKind.WALLTIME),
    (re.compile(r"DUE TO PREEMPTION", re.I), ErrorKind.PREEMPTED),
    (re.compile(r"Node failure|DUE TO NODE FAILURE|Communication connection failure", re.I), ErrorKind.NODE),
    (re.compile(r"No space left on device|Disk quota exceeded|Stale file handle", re.I), ErrorKind.DISK),
)


@dataclass(frozen=True)
class Failure:
    """An attempt that ended without a result. `seen` is its error file, where it wrote one."""

    kind: str
    message: str
    seen: Mapping[str, Any] = field(default_factory=dict)


def reported_failure(files: AttemptLayout, token: str) -> Failure | None:
    """What the attempt's own files say went wrong; None where they say nothing."""
    if files.result.exists() and (faults := result_faults(read_json(files.result))):
        return Failure(ErrorKind.BAD_RESULT, f"{files.result.name}: {'; '.join(faults)}")
    error = document_of(files.error, token)
    if error is None:
        return None
    return Failure(error.get("kind", ErrorKind.CODE), error.get("message", "its error file says no more"), error)


def awaits_reason(failure: Failure) -> bool:
    """Whether an attempt has only just said that it was asked to end: its scheduler may soon say why."""
    ended_at = failure.seen.get("ended_at")
    if failure.kind != ErrorKind.INTERRUPTED or not isinstance(ended_at, str):
        return False
    return seconds_since(ended_at) < REASON_WITHIN_S


def explained(failure: Failure, status: JobStatus) -> Failure:
    """A reported failure, with the scheduler's reason where all that the attempt knows is that it was asked to end."""
    kind = KINDS_OF_REASONS[status.reason] if status.reason is not None else ErrorKind.VANISHED
    if failure.kind != ErrorKind.INTERRUPTED or kind not in REASONS_TO_END:
        return failure
    return Failure(kind, f"{failure.message} ({status.detail})", failure.seen)


def silent_failure(files: AttemptLayout, job_id: str | None, status: JobStatus) -> Failure:
    """Why a job that is over for its scheduler, and has published nothing, most probably ended."""
    tail = log_tail(files)
    kind = KINDS_OF_REASONS[status.reason] if status.reason is not None else ErrorKind.VANISHED
    if kind is ErrorKind.VANISHED:
        kind = next((kind for pattern, kind in KINDS_OF_WORDS if pattern.search(tail)), kind)
    said = f" ({status.detail})" if status.detail else ""
    lines = [line for line in tail.splitlines() if line.strip()]
    words = f"; its log ends: {lines[-1].strip()[:300]}" if lines else ""
    return Failure(kind, f"job {job_id} ended{said} and left no result{words}")
