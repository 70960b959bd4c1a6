"""The files of an attempt, as the driver and the job share them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_cluster.record.clock import is_time
from hpo_cluster.record.files import matching, read_bytes, read_json, written_at
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.processes import process_start

log = logging.getLogger(__name__)

SCHEMA = 1


CLAIMED_EXIT_STATUS, NOTHING_WRITTEN_EXIT_STATUS = 3, 4


CHECKPOINT_LIST = "checkpoint.json"  # in each checkpoint: its step, and the sizes of its files


def checkpoints_of(files: AttemptLayout) -> list[tuple[int, Path]]:
    """Step and folder of an attempt's whole checkpoints, the last one first."""
    found = []
    with contextlib.suppress(OSError):
        for path in files.checkpoint_dir.iterdir():
            listed = read_json(path / CHECKPOINT_LIST) or {}
            sizes, step = listed.get("files"), listed.get("step")
            if not isinstance(sizes, dict) or type(step) is not int or path.name != str(step):
                continue
            with contextlib.suppress(OSError):
                if {name: (path / name).stat().st_size for name in sizes} == sizes:
                    found.append((step, path))
    return sorted(found, reverse=True)


def checkpoint_step(files: AttemptLayout) -> int:
    """How far the attempt's last whole checkpoint is; zero where it has none."""
    return max((step for step, _ in checkpoints_of(files)), default=0)


def job_identity() -> dict[str, Any]:
    """Which job this process is: the scheduler's id (or the pid), host, node, pid and its start time."""
    job_id = os.environ.get("SLURM_JOB_ID") or os.environ.get("OAR_JOB_ID") or str(os.getpid())
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return {
        "job": job_id,
        "host": socket.gethostname(),
        "node": node,
        "pid": os.getpid(),
        "pid_started": process_start(os.getpid()),
    }


def result_faults(result: Any) -> list[str]:
    """Why `result` (parsed ``result.json``) is not one; empty when it is. Driver and job use the same rule."""
    if not isinstance(result, Mapping):
        return ["is no JSON object"]
    metrics = result.get("metrics")
    if not isinstance(metrics, Mapping) or not metrics:
        return ["metrics is missing or empty"]
    faults = []
    for section in ("metrics", "sems"):
        numbers = result.get(section) or {}
        if not isinstance(numbers, Mapping):
            faults.append(f"{section} is no object")
            continue
        wrong = [(name, value) for name, value in numbers.items() if not is_finite_number(value)]
        faults += [f"{section}.{name}={value!r:.80} is no finite number" for name, value in wrong]
    return faults


def is_finite_number(value: Any) -> bool:
    """Return whether a value of parsed JSON is a number, and one that a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


TAIL_BYTES = 20_000


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


def log_tail(files: AttemptLayout) -> str:
    """The end of the newest log of the attempt's job, its standard error first; empty if there is none."""
    for pattern in ("*err*", "*out*"):
        for path in sorted(matching(files.job_dir, pattern), key=written_at, reverse=True):
            if text := read_bytes(path, -TAIL_BYTES).decode(errors="replace").strip():
                return text
    return ""
