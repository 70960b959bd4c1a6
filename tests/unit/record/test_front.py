from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Bound, Goal, Goals, dominates, gain, hypervolume, reference_of, undominated
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.record.preference import Preference, preferred, read_preference, with_full_names

GOALS = Goals((Goal("acc", "maximize"), Goal("cost", "minimize")), (Bound("memory", at_most=4.0),))


def points(count: int, dim: int, seed: int = 0, *, grid: bool = False) -> list[tuple[float, ...]]:
    drawn = np.random.default_rng(seed).random((count, dim))
    return [tuple(map(float, row)) for row in (np.round(drawn * 4) / 4 if grid else drawn)]


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_the_front_is_what_nothing_dominates(dim: int) -> None:
    cloud = points(60, dim, grid=True)  # on a grid there are equals and ties
    front = undominated(cloud)
    assert front == sorted(front, reverse=True)
    assert set(front) == {a for a in cloud if not any(dominates(b, a) for b in cloud)}
    assert len(front) == len(set(front))


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_the_hypervolume_is_that_of_botorch(dim: int) -> None:
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("botorch.utils.multi_objective.hypervolume")
    front = undominated(points(40, dim))
    reference = [0.1] * dim
    theirs = module.Hypervolume(torch.tensor(reference, dtype=torch.double)).compute(
        torch.tensor(front, dtype=torch.double)
    )
    assert hypervolume(front, reference) == pytest.approx(theirs, rel=1e-9)


def test_the_gains_of_points_add_up_to_the_volume() -> None:
    cloud, reference = points(30, 3), (0.2, 0.2, 0.2)
    gained = sum(gain(point, undominated(cloud[:i]), reference) for i, point in enumerate(cloud))
    assert gained == pytest.approx(hypervolume(undominated(cloud), reference))
    assert gain((0.1, 0.9, 0.9), [], reference) == 0.0  # not better than the reference everywhere
    assert hypervolume([(1.0, 2.0), (2.0, 1.0)], (0.0, 0.0)) == 3.0


def test_a_reference_is_given_or_follows_from_the_front() -> None:
    given = Goals((Goal("acc", "maximize"), Goal("cost", "minimize", reference=100.0))).references
    cloud = [(0.5, -10.0), (0.9, -30.0), (0.1, -70.0)]  # the last one is dominated
    assert reference_of(given, cloud) == (pytest.approx(0.42), -100.0)
    assert reference_of((math.nan, math.nan), cloud) == (pytest.approx(0.42), pytest.approx(-36.0))
    assert reference_of(given, [(0.5, -10.0)])[0] < 0.5  # one point still has a volume


class Log:
    """A campaign in memory whose trials end with metrics."""

    def __init__(self) -> None:
        self.journal = MemoryJournal(["x"], maximize=True, goals=GOALS)

    @property
    def record(self) -> Record:
        return self.journal.record

    def add(self, number: int, **metrics: float) -> None:
        row = {"trial": number, "parameters": {"x": 0.5}, "seed": number, "origin": "evaluated"}
        self.journal.append("asked", "2027-01-31T18:00:00Z", trials=[row], decision={})
        self.end(number, **metrics)

    def end(self, number: int, **metrics: float) -> None:
        ended: dict[str, Any] = {"state": "failed", "error": {"kind": "code", "message": ""}}
        if metrics:
            ended = {"state": "completed", "value": metrics["acc"], "metrics": metrics, "sems": {"cost": 0.0}}
        self.journal.append("ended", "2027-01-31T18:00:00Z", trial=number, attempt=None, **ended)

    @property
    def front(self) -> list[int]:
        return [trial.number for trial in self.record.front(GOALS)]


def test_the_front_of_a_record_follows_every_event() -> None:
    rng, log = np.random.default_rng(0), Log()
    for number in range(60):
        if number % 7 == 6:
            log.add(number)
        else:
            acc, cost, memory = (float(value) for value in np.round(rng.random(3) * 10) / 2)
            log.add(number, acc=acc, cost=cost, memory=memory)
        done = [t for t in log.record.rows if t.metrics and t.metrics["memory"] <= 4.0]
        targets = {t.number: (t.metrics["acc"], -t.metrics["cost"]) for t in done}
        front = {n for n, mine in targets.items() if not any(dominates(other, mine) for other in targets.values())}
        assert set(log.front) == front
        assert [targets[n][0] for n in log.front] == sorted((targets[n][0] for n in front), reverse=True)
    frame = log.journal.history()
    assert set(frame[frame["front"]]["trial"]) == front
    log.journal.append("reopened", trial=6)  # a trial that failed is tried again, and is better than all
    log.end(6, acc=9.0, cost=0.0, memory=1.0)
    assert log.front == [6]


def test_the_history_has_a_column_for_each_objective_and_constraint() -> None:
    log = Log()
    log.add(0, acc=0.5, cost=3.0, memory=1.0)
    log.add(1, acc=0.9, cost=5.0, memory=9.0)
    log.add(2)
    frame = log.journal.history()
    assert (
        frame["value_acc"].tolist()[:2] == frame["target_acc"].tolist()[:2] == frame["value"].tolist()[:2] == [0.5, 0.9]
    )
    assert frame["value_cost"].tolist()[:2] == [3.0, 5.0]
    assert frame["target_cost"].tolist()[:2] == [-3.0, -5.0]
    assert frame["value_sem_cost"].tolist()[:2] == [0.0, 0.0]
    assert frame["value_sem_acc"].isna().all()
    assert frame["slack_memory"].tolist()[:2] == [3.0, -5.0]
    assert frame["feasible"].tolist() == [True, False, None]
    assert frame["front"].tolist() == [True, False, False]
    assert frame.loc[2, ["value_acc", "target_cost", "slack_memory"]].isna().all()


@pytest.fixture
def log() -> Log:
    log = Log()
    for number, (acc, cost, memory) in enumerate([(0.5, 10, 1), (0.7, 20, 1), (0.8, 40, 1), (0.95, 50, 9)]):
        log.add(number, acc=acc, cost=float(cost), memory=float(memory))
    log.add(4)
    return log


@pytest.mark.parametrize(
    ("parts", "best"),
    [
        ({}, 2),  # trial 3 violates the constraint
        ({"weights": {"acc": 1, "cost": -0.01}}, 1),
        ({"weights": {"acc": 1, "cost": -0.001}}, 2),
        ({"weights": {"cost": -1}}, 0),
        ({"at_most": {"cost": 25}}, 1),
        ({"at_least": {"acc": 0.6}, "weights": {"cost": -1}}, 1),
        ({"at_most": {"memory": 3}}, 2),
    ],
)
def test_the_best_for_a_preference(log: Log, parts: dict[str, Any], best: int) -> None:
    assert preferred(log.record, GOALS, "maximize", read_preference(parts)).number == best


@pytest.mark.parametrize("parts", [{}, {"at_most": {"cost": 25}}, {"weights": {"acc": 1}}])
def test_of_trials_equally_good_the_best_is_one_that_no_other_dominates(parts: dict[str, Any]) -> None:
    log = Log()
    for number, (acc, cost) in enumerate([(0.9, 30), (0.9, 20), (0.9, 10), (0.9, 10), (0.7, 5)]):
        log.add(number, acc=acc, cost=float(cost), memory=1.0)
    best = preferred(log.record, GOALS, "maximize", read_preference(parts))
    assert best.number == log.front[0] == 2


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"weights": {"acc": 1, "cost": 0.01}}, "cost is to be minimised, so its weight is below 0"),
        ({"at_most": {"task/cost": 3}}, "no trial has the metric task/cost; did you mean cost?"),
        ({"at_most": {"cots": 3}}, "no trial has the metric cots; did you mean cost? accepted: acc, cost, memory"),
        ({"at_most": {"cost": 3}}, "none of 4 trials is within the bounds: cost goes from 10 to 40"),
        ({"weights": [1, 2]}, "weights=[1, 2]: give a number for each metric"),
        ({"weights": {"acc": "much"}}, "give a number for each metric"),
        ({"at_most": "cost"}, "such as at_most='{gpu_seconds: 30}'"),
        ({"weihgts": {"acc": 1}}, "weihgts: is not a key; did you mean weights?"),
    ],
)
def test_a_preference_that_cannot_be(log: Log, parts: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        preferred(log.record, GOALS, "maximize", read_preference(parts))
    assert fault in str(raised.value)


def test_a_task_need_not_be_typed() -> None:
    names = ("val/acc", "val/f1", "cost", "test/f1")
    typed = Preference(weights={"acc": 1.0, "cost": -2.0, "f1": 3.0}, at_most={"f1": 1.0, "acc": 0.5})
    full = with_full_names(typed, names)
    assert full.weights == {"val/acc": 1.0, "cost": -2.0, "f1": 3.0}  # two have the name f1
    assert full.at_most == {"f1": 1.0, "val/acc": 0.5}
    assert with_full_names(typed, ()) == typed


def test_without_several_objectives_the_best_is_the_best_value(log: Log) -> None:
    assert preferred(log.record, None, "maximize", Preference()).number == 3
    assert preferred(log.record, None, "minimize", Preference()).number == 0


def test_goals_are_read_from_what_a_campaign_records() -> None:
    assert Goals.of({"kind": "command", "metric": "value"}) is None
    written = {
        "metrics": [
            {"name": "acc", "direction": "maximize", "reference": None},
            {"name": "cost", "direction": "minimize"},
        ],
        "constraints": [{"name": "memory", "at_most": 4.0, "at_least": None}],
    }
    assert Goals.of(written) == GOALS
    assert GOALS.names == ("acc", "cost", "memory")
    bound = Bound("m", at_least=1.0, at_most=4.0)
    assert [bound.slack(value) for value in (0.0, 1.0, 2.0, 4.0)] == [-1.0, 0.0, 1.0, 0.0]
