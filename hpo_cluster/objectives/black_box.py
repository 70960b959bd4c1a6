"""Turn the output of a black box, a JSON object or a dictionary, into the result of an attempt."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import GPU_SECONDS, Goals
from hpo_cluster.trial import DRIVER_KINDS, ErrorKind

log = logging.getLogger(__name__)

#: A field ``<metric><suffix>`` is the standard error of the field ``<metric>``.
SEM_SUFFIXES = ("_sem", "_stderr")

#: What a black box is told besides its parameters, as a placeholder or an argument: the share of a whole evaluation to
#: do, and the folder that all evaluations of a trial share.
FIDELITY, CHECKPOINT = "fidelity", "checkpoint"

#: Error kinds that a program may report; only the driver sets the others.
REPORTED_KINDS = tuple(str(kind) for kind in ErrorKind if kind not in DRIVER_KINDS)


def needed_metrics(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields that a black box must report: all that its settings name, but not what the job measures."""
    goals = Goals.of(settings)
    return (settings["metric"],) if goals is None else tuple(name for name in goals.names if name != GPU_SECONDS)


def read_output(output: Mapping[str, Any], *needed: str) -> dict[str, Any]:
    """Return the result of an attempt: `metrics`, `sems` and, under `output`, the fields that are not numbers.

    Args:
        output: output of the black box. Its number fields are the metrics; ``<metric>_sem`` or ``<metric>_stderr``
            is the standard error of ``<metric>``. A field `error` ends the attempt with that error kind.
        needed: the fields that are optimised or constrained.

    Raises:
        AttemptError: of kind `diverged` if one of these is NaN or infinite, `bad_result` if one is missing or not a
            number, or the kind that the black box reports.
    """
    if output.get("error"):
        raise reported_error(output)
    for name in needed:  # first: a training that diverged may measure nothing else
        if _is_number(output.get(name)) and not math.isfinite(output[name]):
            raise AttemptError(ErrorKind.DIVERGED, f"metric {name!r} is {output[name]}")
    if wrong := [name for name in needed if not _is_number(output.get(name))]:
        raise AttemptError(ErrorKind.BAD_RESULT, "; ".join(_not_a_number(name, output) for name in wrong))
    numbers = {str(name): float(number) for name, number in output.items() if _is_number(number)}
    rest = {str(name): _jsonable(field) for name, field in output.items() if not _is_number(field)}
    metrics: dict[str, float] = {}
    sems: dict[str, float] = {}
    for name, number in numbers.items():
        base = next((name.removesuffix(suffix) for suffix in SEM_SUFFIXES if name.endswith(suffix)), "")
        is_sem = base in numbers and name not in needed
        if is_sem and number < 0:
            log.warning("%s=%s is left out: a standard error is not below zero", name, number)
        elif math.isfinite(number):
            (sems if is_sem else metrics)[base if is_sem else name] = number
        else:
            log.warning("%s=%s is left out: only finite numbers are kept", name, number)
    return {"metrics": metrics, "sems": sems, **({"output": rest} if rest else {})}


def _not_a_number(name: str, output: Mapping[str, Any]) -> str:
    """Return a message about a field that is missing or not a number."""
    there = (
        f"{output.get(name)!r} is not a number" if name in output else f"missing; got {', '.join(output) or 'nothing'}"
    )
    return f"metric {name!r}: {there}"


def reported_error(output: Mapping[str, Any]) -> AttemptError:
    """Return the error that a black box reports as ``{"error": kind, "message": text}``; an unknown kind is `code`."""
    kind, message = str(output["error"]), str(output.get("message") or "no message")
    if kind in REPORTED_KINDS:
        size = output.get("physical_batch_size")
        return AttemptError(kind, message, **({"physical_batch_size": size} if isinstance(size, int) else {}))
    return AttemptError(ErrorKind.CODE, f"{kind}: {message}")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) or (hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0)


def _jsonable(value: Any) -> Any:
    """Convert `value` to strict JSON: NaN and infinity become null, objects that JSON does not know become text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
