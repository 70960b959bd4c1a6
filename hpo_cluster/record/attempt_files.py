"""The files of an attempt, which driver and job exchange: how both read and check them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
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
    """Return step and folder of each complete checkpoint of an attempt, the latest first."""
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
    """Return the step of the attempt's latest complete checkpoint; 0 if it has none."""
    return max((step for step, _ in checkpoints_of(files)), default=0)


def job_identity() -> dict[str, Any]:
    """Return what identifies this process's job: the scheduler's id (or the pid), host, node, pid and start time."""
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
    """Return why `result` (parsed ``result.json``) is not valid; empty if it is. Driver and job use the same rule."""
    if not isinstance(result, Mapping):
        return ["is not a JSON object"]
    metrics = result.get("metrics")
    if not isinstance(metrics, Mapping) or not metrics:
        return ["metrics is missing or empty"]
    faults = []
    for section in ("metrics", "sems"):
        numbers = result.get(section) or {}
        if not isinstance(numbers, Mapping):
            faults.append(f"{section} is not an object")
            continue
        wrong = [(name, value) for name, value in numbers.items() if not is_finite_number(value)]
        faults += [f"{section}.{name}={value!r:.80} is not a finite number" for name, value in wrong]
    return faults


def is_finite_number(value: Any) -> bool:
    """Return whether a value of parsed JSON is a finite number that fits into a float."""
    try:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # an integer that is too large for a float
        return False


TAIL_BYTES = 20_000


def document_of(path: Path, token: str) -> dict[str, Any] | None:
    """Return what the job with `token` wrote into `path`; None if there is nothing yet, or another job wrote it.

    Fields of a wrong type are left out: a program that writes into an attempt's folder can harm that attempt only.
    """
    document = read_json(path)
    if document is not None and document.get("token") != token:
        log.debug("file=%s token=%s ignored: not this attempt's", path, document.get("token"))
        return None
    return None if document is None else sound_fields(document, path)


#: Maximum length of a text field of a job's document; it is copied into the journal and shown to users.
TEXT_AT_MOST = 4000


#: The type of each field of a job's documents that the driver uses.
FIELDS: Mapping[str, type] = {
    **dict.fromkeys(["kind", "message", "node", "host", "job", "phase", "pid_started", "started_at", "ended_at"], str),
    **dict.fromkeys(["physical_batch_size", "pid"], int),
    "energy_wh": float,
}


def sound_fields(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a job's document without the fields that have a wrong type, and with long texts cut."""
    wrong = [name for name, kind in FIELDS.items() if name in document and not _is(kind, name, document[name])]
    if wrong:
        log.warning("file=%s fields left out, of a wrong type: %s", path, ", ".join(wrong))
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
    """Return the attempt's result; None if it has not published a valid one of its own."""
    result = document_of(files.result, token)
    return None if result is None or result_faults(result) else result


def curve_series(result: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return what was measured along a result's learning curve, each with its steps; empty without a curve."""
    curve, series = result.get("curve"), dict[str, list[tuple[float, float]]]()
    for point in curve if isinstance(curve, list) else []:
        step: Any = point.get("step") if isinstance(point, dict) else None
        for name, number in point.items() if is_finite_number(step) else ():
            if name != "step" and is_finite_number(number):
                series.setdefault(name, []).append((step, number))
    return series


def curve_losses(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return step and training loss of each point of a result's learning curve; empty without a curve."""
    return curve_series(result).get("train_loss", [])


#: Names of the files with a job's standard output and standard error.
OUT, ERR = "*out*", "*err*"

#: What the runtime inside a job says: what it does next, and why an attempt failed. The journal says it as well.
_OF_THE_RUNTIME = re.compile(r"[\d-]{10} [\d:,]{12} INFO hpo_cluster\.objectives\.\w+ |attempt failed: \w+: ")


def log_tail(files: AttemptLayout) -> str:
    """Return the end of the newest log of the attempt's job, standard error first; empty if there is none."""
    return next((text for pattern in (ERR, OUT) if (text := _newest(files, pattern)[1])), "")


def program_output(files: AttemptLayout, most: int) -> list[tuple[Path, list[str]]]:
    """Return the last lines that the attempt's program wrote to standard output, then those to standard error.

    Args:
        files: of the attempt.
        most: maximum number of lines of each stream.

    Returns:
        File and lines, without what the job's runtime says and without a stream that has nothing else.
    """
    ends = []
    for path, text in (_newest(files, pattern) for pattern in (OUT, ERR)):
        written = (line.rstrip().rpartition("\r")[2] for line in text.split("\n"))  # after \r: a bar, redrawn
        lines = [line for line in written if line and not _OF_THE_RUNTIME.match(line)][-most:]
        ends += [(path, lines)] if path is not None and lines else []
    return ends


def _newest(files: AttemptLayout, pattern: str) -> tuple[Path | None, str]:
    """Return the newest log of the attempt's job that is not empty, and its end."""
    for path in sorted(matching(files.job_dir, pattern), key=written_at, reverse=True):
        if text := read_bytes(path, -TAIL_BYTES).decode(errors="replace").strip():
            return path, text
    return None, ""
