"""Which scores of single items are kept: those whose mean is a metric that the campaign needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpo_cluster.objectives.lora.item_scores import items_of, watched
from hpo_cluster.objectives.lora.objective import Wanted


def task(*filters: str, scores: Any) -> Any:
    """A task that scores each item (a number) with each filter of the answers as `scores` says."""
    instance = SimpleNamespace(filtered_resps=dict.fromkeys(filters))
    return SimpleNamespace(process_results=scores, instances=[instance])


def objective(*metrics: str) -> Any:
    wanted = tuple(Wanted(name, name, None, name) for name in metrics)
    named = SimpleNamespace(validation="val", test=("test",))
    return SimpleNamespace(wanted=wanted, metric=metrics[0], tasks=named)


def seen_of(tasks: dict[str, Any], count: int = 3) -> dict[str, Any]:
    """Score as lm-eval does: all items with one filter of the answers, then all of them with the next."""
    with watched({"tasks": tasks}) as seen:
        for each in tasks.values():
            for name in each.instances[0].filtered_resps:
                for item in range(count):
                    each.process_results(item, name)
    return seen


def test_each_filter_has_scores_of_its_own() -> None:
    tasks = {"val": task("strict", "none", scores=lambda item, name: {"em": float(item > 0 or name == "none")})}
    metrics = {"val/em,strict": 2 / 3, "val/em": 1.0}
    for metric, scores in (("val/em,strict", [0.0, 1.0, 1.0]), ("val/em", [1.0, 1.0, 1.0])):
        items = items_of(objective(metric), {"tasks": tasks, "groups": {}}, seen_of(tasks), metrics)
        assert items.tasks["val"].scores == {metric.partition("/")[2]: scores}
        assert items.optimised == metric
        tasks["val"].process_results = lambda item, name: {"em": float(item > 0 or name == "none")}


@pytest.mark.parametrize(
    "scores",
    [
        lambda item, name: {"f1": (item, 1)},  # what a metric of the whole task is computed from
        lambda item, name: {"f1": float("nan")},
        lambda item, name: {"f1": 1.0} if item else {},
        lambda item, name: {"f1": item * 2.0},  # the metric is not their mean
        lambda item, name: {"acc": 1.0},
    ],
)
def test_what_is_not_the_mean_of_numbers_is_not_kept(scores: Any) -> None:
    tasks = {"val": task("none", scores=scores)}
    items = items_of(objective("val/f1"), {"tasks": tasks, "groups": {}}, seen_of(tasks), {"val/f1": 1.0})
    assert items.tasks == {}
    assert items.optimised is None


def test_scores_between_0_and_1_are_kept() -> None:
    tasks = {"val": task("none", scores=lambda item, name: {"f1": item / 2, "acc": 1.0})}
    items = items_of(objective("val/f1"), {"tasks": tasks, "groups": {}}, seen_of(tasks), {"val/f1": 0.5})
    assert items.tasks["val"].scores == {"f1": [0.0, 0.5, 1.0]}


def test_other_items_and_more_of_them_have_another_digest() -> None:
    digests = set()
    for count in (3, 4):
        tasks = {"val": task("none", scores=lambda item, name: {"acc": 1.0})}
        what = objective("val/acc")
        items = items_of(what, {"tasks": tasks, "groups": {}}, seen_of(tasks, count), {"val/acc": 1.0})
        digests.add(items.tasks["val"].digest)
    assert len(digests) == 2
