"""What a black box hands back, a JSON object or a dictionary, read as the result of an attempt."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.trial import DRIVER_KINDS, ErrorKind

log = logging.getLogger(__name__)

#: A field ``<metric><suffix>`` is the standard error of the field ``<metric>``.
SEM_SUFFIXES = ("_sem", "_stderr")

#: What a program may report of itself; the other kinds are found by the driver.
REPORTED_KINDS = tuple(str(kind) for kind in ErrorKind if kind not in DRIVER_KINDS)


def read_output(output: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The result of an attempt: `metrics`, `sems` and, under `output`, the fields that are no numbers.

    Args:
        output: what the black box said. Its number fields are the metrics; ``<metric>_sem`` or ``<metric>_stderr``
            is the standard error of ``<metric>``. A field `error` ends the attempt with that kind.
        metric: the field that is optimised.

    Raises:
        AttemptError: `diverged` where the metric is NaN or infinite, `bad_result` where it is absent or no number,
            the black box's own kind where it reports one.
    """
    if output.get("error"):
        raise reported_error(output)
    value = output.get(metric)
    if value is None or not _is_number(value):
        seen = f"{value!r} is no number" if metric in output else f"absent; there is {', '.join(output) or 'nothing'}"
        raise AttemptError(ErrorKind.BAD_RESULT, f"metric {metric!r}: {seen}")
    if not math.isfinite(value):
        raise AttemptError(ErrorKind.DIVERGED, f"metric {metric!r} is {value}")
    numbers = {str(name): float(number) for name, number in output.items() if _is_number(number)}
    rest = {str(name): _jsonable(field) for name, field in output.items() if not _is_number(field)}
    metrics: dict[str, float] = {}
    sems: dict[str, float] = {}
    for name, number in numbers.items():
        base = next((name.removesuffix(suffix) for suffix in SEM_SUFFIXES if name.endswith(suffix)), "")
        is_sem = base in numbers and name != metric
        if is_sem and number < 0:
            log.warning("%s=%s is left out: a standard error is not below zero", name, number)
        elif math.isfinite(number):
            (sems if is_sem else metrics)[base if is_sem else name] = number
        else:
            log.warning("%s=%s is left out: only finite numbers are kept", name, number)
    return {"metrics": metrics, "sems": sems, **({"output": rest} if rest else {})}


def reported_error(output: Mapping[str, Any]) -> AttemptError:
    """The error that a black box reports with ``{"error": kind, "message": text}``; an unknown kind is `code`."""
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
    """`value` as strict JSON: what is not finite becomes null, what JSON has no word for becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
