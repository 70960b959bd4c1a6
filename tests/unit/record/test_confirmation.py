"""What is confirmed, with which seeds, and what the replicates say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from hpo_cluster.cli.display import progress_line
from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Bound, Goal, Goals
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.confirmation import (
    Wanted,
    chosen,
    confirmation_cost,
    confirmation_status,
    missing_rows,
    quantile,
)
from hpo_cluster.record.confirmed_front import confirmed_front, front_table
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.status import summarise
from hpo_cluster.trial import trial_label

AT = "2026-11-01T00:00:00+00:00"


class Journal:
    """Events of a campaign with values for trials 0, 1, 2, …"""

    def __init__(self, values: list[float | None], same: bool = False) -> None:
        self.record, self.count = Record(), 0
        self.append("created", schema=1, campaign="c", code="")
        self.append(
            "started", host="a", pid=1, operation={"budget": 9, "workers": 2}, settings={}, code="", versions={}
        )
        for number, value in enumerate(values):
            row = {"trial": number, "parameters": {"x": 0 if same else number}, "seed": number, "origin": "evaluated"}
            self.append("asked", trials=[row], decision={})
            self.evaluate(number, value)

    def append(self, event: str, at: str = AT, **fields: Any) -> None:
        self.record.apply({"seq": self.count, "at": at, "event": event, **fields})
        self.count += 1

    def evaluate(self, trial: int, value: float | None) -> None:
        self.append("intent", trial=trial, attempt=0, token="k", code="")
        self.append("running", trial=trial, attempt=0, started_at=AT)
        state = "failed" if value is None else "completed"
        error = {"kind": "code", "message": "no"} if value is None else None
        self.append("ended", "2026-11-01T00:01:00+00:00", trial=trial, attempt=0, state=state, value=value, error=error)


def confirm(journal: Journal, wanted: Wanted) -> list[dict[str, Any]]:
    rows = missing_rows(journal.record, chosen(journal.record, wanted, None, maximize=True), wanted.replicates, 0)
    if rows:
        journal.append("asked", trials=rows, decision={})
    return rows


def test_only_what_is_missing_is_asked_for() -> None:
    journal = Journal([1.0, 3.0, None, 2.0])
    rows = confirm(journal, Wanted(top=2, replicates=2))
    assert [(row["info"]["confirms"], row["info"]["replicate"]) for row in rows] == [(1, 0), (3, 0), (1, 1), (3, 1)]
    assert [trial_label(row["trial"]) for row in rows] == ["c0001", "c0002", "c0003", "c0004"]
    assert [trial.number for trial in journal.record.in_flight] == [-2, -3, -4, -5]
    seeds = [row["seed"] for row in rows]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3], "one seed for each replicate"
    assert not set(seeds) & {0, 1, 2, 3}
    assert confirm(journal, Wanted(top=2, replicates=2)) == []
    more = confirm(journal, Wanted(top=3, replicates=3))
    assert [(row["info"]["confirms"], row["info"]["replicate"]) for row in more] == [
        (0, 0),
        (0, 1),
        (1, 2),
        (3, 2),
        (0, 2),
    ]
    assert trial_label(more[0]["trial"]) == "c0005"


def test_budget_best_and_numbers_are_untouched() -> None:
    journal = Journal([1.0, 3.0])
    before = journal.record.spent, journal.record.next_trial, dict(journal.record.counts)
    for row in confirm(journal, Wanted(top=1, replicates=2)):
        journal.evaluate(row["trial"], 99.0)
    best = journal.record.best(maximize=True)
    assert best is not None
    assert best.number == 1
    assert (journal.record.spent, journal.record.next_trial, dict(journal.record.counts)) == before
    assert [trial.number for trial in journal.record.valued] == [0, 1]


def test_a_configuration_is_confirmed_once() -> None:
    record = Journal([1.0, 3.0, 2.0], same=True).record
    assert [trial.number for trial in chosen(record, Wanted(), None, maximize=True)] == [1]
    assert [trial.number for trial in chosen(record, Wanted(), None, maximize=False)] == [0]


@pytest.mark.parametrize(
    ("values", "wanted", "message"),
    [
        ([None], Wanted(), "no trial has a value yet"),
        ([1.0, None], Wanted(trials=(0, 1, 7)), "t0001, t0007: only a trial that this campaign has completed"),
    ],
)
def test_what_cannot_be_confirmed(values: list[float | None], wanted: Wanted, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(Journal(values).record, wanted, None, maximize=True)


def test_constraints_and_fronts_choose() -> None:
    journal = Journal([])
    for number, (speed, size) in enumerate([(1.0, 5.0), (3.0, 9.0), (2.0, 6.0), (0.5, 7.0)]):
        row = {"trial": number, "parameters": {"x": number}, "seed": number, "origin": "evaluated"}
        journal.append("asked", trials=[row], decision={})
        journal.append("intent", trial=number, attempt=0, token="k", code="")
        metrics = {"speed": speed, "size": size}
        journal.append("ended", trial=number, attempt=0, state="completed", value=speed, metrics=metrics)
    bounded = Goals((Goal("speed", "maximize"),), (Bound("size", at_most=8.0),))
    assert [t.number for t in chosen(journal.record, Wanted(), bounded, maximize=True)] == [2, 0, 3]
    several = Goals((Goal("speed", "maximize"), Goal("size", "minimize")))
    assert [t.number for t in chosen(journal.record, Wanted(top=2), several, maximize=True)] == [2, 1]
    assert [t.number for t in chosen(journal.record, Wanted(trials=(3, 1)), several, maximize=True)] == [3, 1]


def of_two_goals(points: dict[int, tuple[float, float]], again: dict[int, list[tuple[float, float] | None]]) -> Journal:
    """Return a campaign with these speeds and sizes by trial, first and in confirmations; None is a failed one."""
    journal = Journal([])

    def ended(number: int, row: dict[str, Any], values: tuple[float, float] | None) -> None:
        journal.append("asked", trials=[{"trial": number, "seed": number, **row}], decision={})
        journal.append("intent", trial=number, attempt=0, token="k", code="")
        end: dict[str, Any] = {"state": "failed", "error": {"kind": "code", "message": "no"}}
        if values is not None:
            metrics = dict(zip(("speed", "size"), values, strict=True))
            end = {"state": "completed", "value": values[0], "metrics": metrics}
        journal.append("ended", trial=number, attempt=0, **end)

    for number, values in points.items():
        ended(number, {"parameters": {"x": number}, "origin": "evaluated"}, values)
    number = -2
    for of, found in again.items():
        for replicate, each in enumerate(found):
            info = {"confirms": of, "replicate": replicate}
            ended(number, {"parameters": {"x": of}, "origin": "confirmation", "info": info}, each)
            number -= 1
    return journal


TWO_GOALS = Goals((Goal("speed", "maximize"), Goal("size", "minimize")), (Bound("size", at_most=8.0),))


def test_points_of_the_front_are_chosen_by_what_they_add() -> None:
    points = {0: (4.0, 4.0), 1: (4.1, 4.1), 2: (4.2, 4.2), 3: (0.0, 0.0), 4: (6.0, 7.9), 5: (5.0, 5.0)}
    record = of_two_goals(points, {}).record
    assert [t.number for t in record.front(TWO_GOALS)] == [4, 5, 2, 1, 0, 3]
    picked = [t.number for t in chosen(record, Wanted(top=6), TWO_GOALS, maximize=True)]
    assert picked[:4] == [0, 5, 3, 4]  # trials 1 and 2 are neighbours of the first
    assert sorted(picked) == [0, 1, 2, 3, 4, 5]
    for top in range(1, 6):
        assert [t.number for t in chosen(record, Wanted(top=top), TWO_GOALS, maximize=True)] == picked[:top]


def test_what_of_a_front_is_left() -> None:
    points = {0: (3.0, 6.0), 1: (2.0, 5.0), 2: (1.0, 4.0), 3: (0.5, 3.0), 4: (4.0, 7.5)}
    again = {
        0: [(2.0, 6.0), (3.0, 7.0)],
        1: [(3.0, 5.0), None],  # better than trial 0 in both by its mean
        2: [(1.0, 4.0)],
        3: [None],
        4: [(5.0, 9.0), (5.0, 8.0)],
    }
    rows = confirmed_front(of_two_goals(points, again).record, TWO_GOALS)
    assert rows is not None
    assert [row["trial"] for row in rows] == [4, 1, 0, 2, 3]
    by_trial = {row["trial"]: row for row in rows}
    assert by_trial[0]["metrics"]["speed"] == {
        "first": 3.0, "mean": 2.5, "sem": pytest.approx(0.5), "lowest": 2.0, "highest": 3.0
    }  # fmt: skip
    assert by_trial[0]["dominated_by"] == [1]
    assert by_trial[4]["violates"] == ["size"]
    assert not any(by_trial[number]["dominated_by"] for number in (1, 2, 3))  # 4 dominates nothing
    assert (by_trial[1]["done"], by_trial[1]["replicates"]) == (1, 2)
    head, *table = front_table(rows, ["speed", "size"])
    assert head == ["trial", "seeds", "metric", "first", "again", "spread", "by these means"]
    assert table[4:6] == [
        ["t0000", "2/2", "speed", "3", "2.5 ± 0.5", "2 to 3", "dominated by t0001"],
        ["", "", "size", "6", "6.5 ± 0.5", "6 to 7", ""],
    ]
    assert [row[-1] for row in table[::2]] == [
        "violates size",
        "on the front",
        "dominated by t0001",
        "on the front",
        "",
    ]
    assert confirmed_front(of_two_goals(points, {}).record, TWO_GOALS) is None
    assert confirmed_front(of_two_goals(points, again).record, Goals(TWO_GOALS.metrics[:1])) is None


def test_mean_spread_and_pairs() -> None:
    journal = Journal([10.0, 11.0])
    values = {(1, 0): 5.0, (0, 0): 6.0, (1, 1): 7.0, (0, 1): 9.0, (1, 2): 4.0, (0, 2): None}
    for row in confirm(journal, Wanted(top=2, replicates=3)):
        journal.evaluate(row["trial"], values[row["info"]["confirms"], row["info"]["replicate"]])
    found = confirmation_status(journal.record, maximize=True)
    assert found is not None
    assert (found["wanted"], found["done"], found["failed"]) == (6, 5, 1)
    best, other = found["trials"]
    assert (best["trial"], best["first"], best["mean"], best["behind"]) == (0, 10.0, 7.5, None)
    assert (other["lowest"], other["highest"], other["replicates"]) == (4.0, 7.0, 3)
    assert other["sem"] == pytest.approx(stats.sem([5.0, 7.0, 4.0]))
    pairs = [1.0, 2.0]  # of the seeds that both have
    low, high = stats.t.interval(0.95, 1, loc=1.5, scale=stats.sem(pairs))
    assert other["behind"]["mean"] == 1.5
    assert (other["behind"]["low"], other["behind"]["high"]) == pytest.approx((low, high), rel=1e-3)
    worst = confirmation_status(journal.record, maximize=False)
    assert worst is not None
    assert worst["trials"][0]["trial"] == 1
    assert worst["trials"][1]["behind"]["mean"] == 1.5


@pytest.mark.parametrize("freedom", [1, 2, 5, 15, 16, 20, 40, 1000])
def test_quantiles(freedom: int) -> None:
    assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_what_a_confirmation_would_cost() -> None:
    assert confirmation_cost(Journal([]).record) is None
    cost = confirmation_cost(Journal([1.0, 2.0]).record)
    assert cost == {"evaluations": 6, "gpu_hours": 0.0, "seconds": 180.0}


def test_a_running_confirmation_counts_as_running_and_no_time_is_left(tmp_path: Path) -> None:
    journal = Journal([1.0])
    journal.append("started", host="a", pid=1, operation={"budget": 1, "workers": 1}, settings={}, code="", versions={})
    number = confirm(journal, Wanted(top=1, replicates=1))[0]["trial"]
    journal.append("intent", trial=number, attempt=0, token="k", code="")
    journal.append("running", trial=number, attempt=0, started_at=AT)
    status = summarise(journal.record, CampaignLayout(tmp_path), "maximize", driver_alive=True)
    line = progress_line(status)
    assert "1/1 done · 1 running" in line
    assert "left" not in line
