"""Confirmations of several objectives: each metric again with new seeds, and what of the front they leave.

A front of noisy measurements is partly lucky, each point of it in the metric in which it is good. The means of
evaluations with new seeds have no such bias: a point that another one dominates by them was perhaps there by luck.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_cluster.goals import Goals, dominates
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.confirmation import confirmations_of
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.trial import State, trial_label


def confirmed_front(record: Record, goals: Goals | None) -> list[dict[str, Any]] | None:
    """Return what confirmations have found of each metric, as plain data; None with one objective, or without any.

    Returns:
        An entry for each confirmed trial, the best mean of the first objective first: ``trial``; ``replicates`` and
        ``done``, numbers of evaluations; ``metrics``, by name of objectives and constraints: ``first``, the value that
        made it a point of the front, ``mean``, ``sem``, ``lowest`` and ``highest`` of the replicates; by these means
        ``dominated_by``, the confirmed trials that dominate it, and ``violates``, the constraints that do not hold.
    """
    if goals is None or not goals.several or not record.confirmations:
        return None
    rows = [
        _row(record.trials.get(number), number, trials, goals) for number, trials in confirmations_of(record).items()
    ]
    means = {row["trial"]: _means(row) for row in rows if row["done"]}
    good = {number: goals.targets(mean) for number, mean in means.items() if goals.feasible(mean)}
    for row in rows:
        mean = means.get(row["trial"])
        mine = None if mean is None else goals.targets(mean)
        row["dominated_by"] = [number for number, other in good.items() if mine is not None and dominates(other, mine)]
        row["violates"] = [] if mean is None else _violated(goals, mean)
    return sorted(rows, key=lambda row: (not row["done"], _rank(means.get(row["trial"]), goals), row["trial"]))


def _violated(goals: Goals, metrics: Mapping[str, float]) -> list[str]:
    return [bound.name for bound in goals.constraints if bound.slack(metrics[bound.name]) < 0]


def front_table(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> list[list[str]]:
    """Return confirmed trials as a table, its head first: a row for each trial and objective.

    Args:
        rows: as `confirmed_front` returns them.
        objectives: names of the objectives.
    """
    table = [["trial", "seeds", "metric", "first", "again", "spread", "by these means"]]
    for row in rows:
        trial = [trial_label(row["trial"]), f"{row['done']}/{row['replicates']}"]
        for line, name in enumerate(objectives):
            found = row["metrics"][name]
            again = _number(found["mean"]) + ("" if found["sem"] is None else f" ± {_number(found['sem'])}")
            spread = "" if found["lowest"] is None else f"{_number(found['lowest'])} to {_number(found['highest'])}"
            last = "" if line else _place(row)
            table.append([*(["", ""] if line else trial), name, _number(found["first"]), again, spread, last])
    return table


def _place(row: Mapping[str, Any]) -> str:
    """Return whether a trial is still on the front, in words."""
    if not row["done"]:
        return ""
    if row["violates"]:
        return f"violates {', '.join(row['violates'])}"
    if row["dominated_by"]:
        return f"dominated by {', '.join(map(trial_label, row['dominated_by']))}"
    return "on the front"


def _row(first: TrialRecord | None, number: int, trials: Sequence[TrialRecord], goals: Goals) -> dict[str, Any]:
    """Return what the replicates of one configuration say of each metric."""
    done = [trial.metrics for trial in trials if trial.state is State.COMPLETED]
    metrics = {}
    for name in goals.names:
        values = [measured[name] for measured in done if name in measured]
        metrics[name] = {
            "first": None if first is None else first.metrics.get(name),
            "mean": statistics.fmean(values) if values else None,
            "sem": statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
            "lowest": min(values, default=None),
            "highest": max(values, default=None),
        }
    return {"trial": number, "replicates": len(trials), "done": len(done), "metrics": metrics}


def _means(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the means of a row; NaN for a metric that no replicate has."""
    found = {name: values["mean"] for name, values in row["metrics"].items()}
    return {name: math.nan if mean is None else mean for name, mean in found.items()}


def _rank(mean: Mapping[str, float] | None, goals: Goals) -> float:
    return math.inf if mean is None else -goals.targets(mean)[0]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
