"""Numbers, names of contestants and tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.optimizers.contestants import MODULES, parse

LABELS = {
    "turbo[regions=5]": "turbo, 5 regions",
    "peer:optuna-tpe": "Optuna TPE",
    "peer:optuna-gp": "Optuna GP",
    "peer:ax": "Ax",
    "peer:smac": "SMAC",
    "peer:smac-bb": "SMAC black box",
    "peer:hebo": "HEBO",
    "nomad": "NOMAD",
    "peer:nevergrad-ngopt": "Nevergrad NGOpt",
    "peer:nevergrad-de": "Nevergrad DE",
    "peer:cma": "CMA-ES (pycma)",
}


def label(name: str) -> str:
    """Return the name of a contestant in the tables."""
    return LABELS.get(name, name.replace("outcome=", "").replace("sampler=", "").replace("algorithm=", ""))


def number(value: float) -> str:
    """Return a number with two significant digits."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return "0"
    if value >= 1000:
        return f"{value:.1e}"
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Return a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'|'.join('---' for _ in head)}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def is_peer(name: str) -> bool:
    """Return whether a contestant is another library."""
    return name.startswith("peer:") or parse(name)[0] in MODULES
