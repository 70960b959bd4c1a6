"""Read the published JSON lines of the study of 2025.

Reference: N. Davouse and E.-G. Talbi, "Bayesian and Partition-Based Optimization for Hyperparameter Optimization of LLM
Fine-Tuning", OLA 2025.

A line holds ``solution`` (values as proposed and as used), ``score`` (of each task, with standard errors), ``timing``
and ``info``. Values of BaMSOO that were approximated have bounds in place of scores; the lower one was taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.trial import Origin

#: The parameters in the order of the lines.
PARAMETERS = ("lora_rank", "lora_alpha", "lora_dropout", "learning_rate", "weight_decay")
#: What was maximised.
METRIC = "hellaswag/acc"
STDERR = "_stderr"


def is_of_2025(data: Mapping[str, Any]) -> bool:
    """Return whether a JSON line has the form of that study."""
    solution = data.get("solution")
    return isinstance(solution, Mapping) and "converted_values" in solution and isinstance(data.get("score"), Mapping)


def row_of_2025(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line as a row of a history."""
    values = data["solution"]["converted_values"]
    row: dict[str, Any] = {f"params.{name}": value for name, value in zip(PARAMETERS, values, strict=False)}
    score, timing = data["score"], data.get("timing") or {}
    row |= {"started_at": timing.get("opening_time"), "ended_at": timing.get("ending_time")}
    if "LCB" in score:
        return {**row, "origin": str(Origin.APPROXIMATED), "value": score["LCB"]}
    for task, metrics in score.items():
        for name, number in metrics.items():
            short = name.partition(",")[0]
            if not short.endswith(STDERR):
                row[f"{METRIC_PREFIX}{task}/{short}"] = number
    task, _, name = METRIC.partition("/")
    row["value"] = row.get(METRIC_PREFIX + METRIC)
    row["value_sem"] = (score.get(task) or {}).get(f"{name}{STDERR},none")
    return row
