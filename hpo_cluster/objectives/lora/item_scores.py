"""What lm-eval scores for each item of a task, taken while a model is scored, and kept beside the result.

lm-eval returns means only, unless it is to keep each document with its prompts and answers. So its tasks are watched
while they turn the answers of an item into scores. Nothing here may end an evaluation: without items its result is
worth as much.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import numbers
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hpo_cluster.objectives.lora.tasks import names_in
from hpo_cluster.record.items import Items, TaskItems, write_items

if TYPE_CHECKING:
    from hpo_cluster.objectives.lora.objective import LoraObjective
    from hpo_cluster.objectives.worker import Attempt

log = logging.getLogger("lora")

#: For each task, an item and its scores by metric, in the order in which lm-eval computes them.
Seen = dict[str, list[tuple[Any, Mapping[str, Any]]]]


@contextlib.contextmanager
def watched(tasks: Mapping[str, Any]) -> Iterator[Seen]:
    """Within the context, note what tasks (result of `load_tasks`) score for each item; the tasks are used once."""
    seen: Seen = {}
    for name, task in tasks.get("tasks", {}).items():
        seen[name] = []
        task.process_results = _noting(task.process_results, seen[name])
    yield seen


def _noting(process: Callable[[Any, Any], Any], seen: list[tuple[Any, Mapping[str, Any]]]) -> Callable[[Any, Any], Any]:
    """Return `process_results` of a task, which also appends each item with its scores to `seen`."""

    def note(item: Any, answers: Any) -> Any:
        scores = process(item, answers)
        seen.append((item, scores))
        return scores

    return note


def keep_items(
    attempt: Attempt, objective: LoraObjective, tasks: Mapping[str, Any], seen: Seen, metrics: Mapping[str, float]
) -> None:
    """Write what each item has scored beside the result; if that fails, say so in the log and go on.

    Args:
        attempt: the attempt.
        objective: its settings.
        tasks: the tasks, which have been scored.
        seen: what `watched` has noted.
        metrics: the result's.
    """
    try:
        items = items_of(objective, tasks, seen, metrics)
        if items.tasks:
            write_items(attempt.files, items, attempt.params.get("token"))
    except Exception as error:
        log.warning("the scores of single items are not kept: %s: %s", type(error).__name__, error)


def items_of(objective: LoraObjective, tasks: Mapping[str, Any], seen: Seen, metrics: Mapping[str, float]) -> Items:
    """Return the items of all tasks, with those of their scores whose mean is a metric that the campaign needs.

    The arguments are those of `keep_items`.
    """
    wanted = [wanted.name.rpartition("/") for wanted in objective.wanted if "/" in wanted.name]
    measures = list(dict.fromkeys(measure for _, _, measure in wanted))
    named = [objective.tasks.validation, *objective.tasks.test, *(task for task, _, _ in wanted)]
    found: dict[str, TaskItems] = {}
    for name, pairs in seen.items():
        scores = {
            measure: values
            for measure, values in _scores(tasks["tasks"][name], pairs).items()
            if measure in measures and _is_mean(values, metrics.get(f"{name}/{measure}"))
        }
        if scores:
            count = max(map(len, scores.values()))
            found[name] = TaskItems(_digest([item for item, _ in pairs[:count]]), scores)
    groups = {}
    for name in dict.fromkeys(name for name in named if name in tasks["groups"]):
        parts = [part for part in dict.fromkeys(names_in([name], tasks)) if part in tasks["tasks"]]
        own = [measure for measure in measures if f"{name}/{measure}" in metrics]
        if own and all(_is_mean_of(found, parts, measure, metrics[f"{name}/{measure}"]) for measure in own):
            groups[name] = parts
    items = Items(found, groups, objective.metric)
    return items if items.of(objective.metric) else Items(found, groups)


def _scores(task: Any, pairs: Sequence[tuple[Any, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Return the scores of a task's items by metric, named as in a result; those that are no numbers are left out.

    lm-eval scores all items with one filter of the answers, then all of them with the next filter.
    """
    filters = list(task.instances[0].filtered_resps)
    count = len(pairs) // len(filters)
    found: dict[str, list[float]] = {}
    for number, filter_name in enumerate(filters):
        rows = [scores for _, scores in pairs[number * count : (number + 1) * count]]
        for metric in rows[0] if rows else ():
            values = [row.get(metric) for row in rows]
            numeric = [float(value) for value in values if isinstance(value, numbers.Real)]
            if len(numeric) == count and all(map(math.isfinite, numeric)):
                found[metric if filter_name == "none" else f"{metric},{filter_name}"] = numeric
    return found


def _is_mean(values: Sequence[float], metric: float | None) -> bool:
    return metric is not None and math.isclose(statistics.fmean(values), metric, rel_tol=1e-6, abs_tol=1e-9)


def _is_mean_of(found: Mapping[str, TaskItems], parts: Sequence[str], measure: str, metric: float) -> bool:
    """Return whether the metric of a group is the mean over the items of all its tasks."""
    if not all(part in found and measure in found[part].scores for part in parts):
        return False
    return _is_mean([score for part in parts for score in found[part].scores[measure]], metric)


def _digest(items: Sequence[Any]) -> str:
    """Return the digest of items in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
