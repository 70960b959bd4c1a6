"""A function beside an edge: values rise towards a line beyond which memory runs out, its optimum 2 at (0, 1) on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Float, Space
from hpo_cluster.trial import Ask

SQUARE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})

#: Random trials before the optimizer's, and the most of its own.
RANDOM, ASKED = 12, 20


def row(trial: int, x: float, y: float) -> dict[str, Any]:
    """A trial that ended: what is infeasible tells nothing of the value."""
    lost = x + y > 1.0
    state, target = ("infeasible", math.nan) if lost else ("completed", x + 2 * y)
    return {"trial": trial, "state": state, "origin": "evaluated", "value": target, "target": target, "x": x, "y": y}


def search(name: str, least: float, completed: int, **settings: Any) -> tuple[list[dict[str, Any]], Ask]:
    """The rows of a sequential campaign, and the last answer.

    It ends once so many of the optimizer's trials are completed and one of them has a target above the least.
    """
    rng = np.random.default_rng(0)
    rows = [row(trial, *(float(u) for u in rng.random(2))) for trial in range(RANDOM)]
    optimizer = make_optimizer(name, SQUARE, initial=4, **settings)
    for _ in range(ASKED):
        ask = optimizer.ask(pd.DataFrame(rows), 1)
        at = ask.proposals[0].parameters
        rows.append(row(len(rows), float(at["x"]), float(at["y"])))
        found = [r["target"] for r in rows[RANDOM:] if r["state"] == "completed"]
        if len(found) >= completed and max(found) > least:
            break
    return rows, ask
