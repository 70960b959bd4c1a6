"""What became of an attempt: from its own files first, from the scheduler second, from the end of its log last."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.clock import is_time, seconds_since
from hpo_cluster.files import is_there, matching, read_bytes, read_json, written_at
from hpo_cluster.layout import AttemptLayout
from hpo_cluster.trial import EndReason, ErrorKind, JobStatus
from hpo_cluster.worker import result_faults

log = logging.getLogger(__name__)

TAIL_BYTES = 20_000

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


def document_of(path: Path, token: str) -> dict[str, Any] | None:
    """What the job with that token wrote into `path`; None where nothing is there yet, or it is somebody else's.

    A field that is not what it should be is left out: whoever writes into an attempt's folder harms that one alone.
    """
    document = read_json(path)
    if document is not None and document.get("token") != token:
        log.debug("file=%s token=%s ignored: not this attempt's", path, document.get("token"))
        return None
    return None if document is None else sound_fields(document, path)


#: Characters of such a text that are kept: it goes into the journal, and to whoever looks.
TEXT_AT_MOST = 4000

#: What the fields of a job's documents are, where the driver uses them.
FIELDS: Mapping[str, type] = {
    **dict.fromkeys(["kind", "message", "node", "host", "job", "phase", "pid_started", "started_at", "ended_at"], str),
    **dict.fromkeys(["physical_batch_size", "pid"], int),
}


def sound_fields(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a job's document without the fields that are not what they should be."""
    wrong = [name for name, kind in FIELDS.items() if name in document and not _is(kind, name, document[name])]
    if wrong:
        log.warning("file=%s fields left out, not what they should be: %s", path, ", ".join(wrong))
    sound = {name: value for name, value in document.items() if name not in wrong}
    return {
        name: value[:TEXT_AT_MOST] if name in FIELDS and isinstance(value, str) else value
        for name, value in sound.items()
    }


def _is(kind: type, name: str, value: Any) -> bool:
    if value is None:
        return name not in ("kind", "message")
    if type(value) is not kind:
        return False
    return is_time(value) if name.endswith("_at") else True


def valid_result(files: AttemptLayout, token: str) -> dict[str, Any] | None:
    """The attempt's result, where it has published one that is whole and its own."""
    result = document_of(files.result, token)
    return None if result is None or result_faults(result) else result


def reported_failure(files: AttemptLayout, token: str) -> Failure | None:
    """What the attempt's own files say went wrong; None where they say nothing."""
    if is_there(files.result) and (faults := result_faults(read_json(files.result))):
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


def log_tail(files: AttemptLayout) -> str:
    """The end of the newest log of the attempt's job, its standard error first; empty if there is none."""
    for pattern in ("*err*", "*out*"):
        for path in sorted(matching(files.job_dir, pattern), key=written_at, reverse=True):
            if text := read_bytes(path, -TAIL_BYTES).decode(errors="replace").strip():
                return text
    return ""
