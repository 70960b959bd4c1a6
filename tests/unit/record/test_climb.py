"""Trials that climb: what the journal's events about rungs make of the record, the history and the budget."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hpo_cluster.fidelity import Ladder
from hpo_cluster.record.climb import lingers_at, rung_table, saved
from hpo_cluster.record.curves import curves_of
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.trial import State

LADDER = Ladder("steps", (1 / 9, 1 / 3, 1.0))


class Log(MemoryJournal):
    """A journal in memory, of trials that climb."""

    def __init__(self, ladder: Ladder | None = LADDER) -> None:
        super().__init__(["x"], maximize=True, ladder=ladder)

    def append(self, event: str, at: str = "2027-01-31T18:00:00Z", **fields: Any) -> None:
        super().append(event, at, **fields)

    def ask(self, *trials: int, rung: int | None = None) -> None:
        info = {} if rung is None else {"rung": rung}
        rows = [{"trial": n, "parameters": {"x": 0.5}, "seed": n, "origin": "evaluated", "info": info} for n in trials]
        self.append("asked", trials=rows, decision={})

    def begin(self, trial: int, attempt: int = 0) -> None:
        self.append("intent", trial=trial, attempt=attempt, token=f"{trial}-{attempt}", code="c")
        self.append("running", trial=trial, attempt=attempt, started_at="2027-01-31T18:00:00Z")

    def rung(self, trial: int, rung: int, value: float, attempt: int = 0) -> None:
        self.append("rung", trial=trial, attempt=attempt, rung=rung, value=value, metrics={"value": value}, seconds=2.5)

    def climb(self, trial: int, *values: float) -> None:
        """Ask for a trial that is paused after these rungs."""
        self.ask(trial)
        self.begin(trial)
        for rung, value in enumerate(values):
            self.rung(trial, rung, value)
            if rung < len(values) - 1:
                self.append("promoted", trial=trial, rung=rung + 1, why="1 of 1")
        self.append("paused", trial=trial, attempt=0, rung=len(values) - 1)


def test_a_trial_climbs_pauses_and_is_completed() -> None:
    log = Log()
    log.ask(0)
    trial = log.record.trials[0]
    assert (log.record.spent, log.record.committed) == (0, pytest.approx(1 / 9))
    log.begin(0)
    assert lingers_at(trial, trial.attempts[0]) is None
    log.rung(0, 0, 0.5)
    assert (trial.state, lingers_at(trial, trial.attempts[0])) == (State.RUNNING, 0)
    assert log.record.spent == pytest.approx(1 / 9)
    log.append("paused", trial=0, attempt=0, rung=0)
    assert (trial.state, trial.attempt, log.record.in_flight) == (State.PAUSED, None, [])
    assert trial.value is None
    assert log.record.best(maximize=True) is None  # a value at a low rung is never the result
    log.append("promoted", trial=0, rung=1, why="by hand")
    assert (trial.state, log.record.committed) == (State.PROPOSED, pytest.approx(1 / 3))
    log.begin(0, 1)
    log.rung(0, 1, 0.6, attempt=1)
    log.append("promoted", trial=0, rung=2, why="1 of 3 at rung 1")
    assert log.record.committed == 1
    log.append("ended", trial=0, attempt=1, state="completed", value=0.7, metrics={"value": 0.7})
    assert (log.record.spent, log.record.committed) == (1, 1)
    assert log.record.best(maximize=True) is trial
    assert [trial.climb.scores[k].value for k in range(3)] == [0.5, 0.6, 0.7]  # type: ignore[union-attr]


def test_the_history_holds_the_rungs_and_no_value_of_a_low_one() -> None:
    log = Log()
    log.climb(0, 0.5, 0.6)
    log.climb(1, 0.4)
    log.ask(2)
    frame = log.history().set_index("trial")
    assert list(frame.columns[:15]) == [
        *("state", "origin", "value", "value_sem", "target", "rung", "fidelity", "goal", "rung_value"),
        *("rung_target", "paused_seq", "paused_value", "value@1/9", "value@1/3", "x"),
    ]
    assert frame["value"].isna().all()
    assert frame["ended_seq"].isna().all()
    assert frame.loc[0, ["rung", "goal", "rung_value", "paused_value", "value@1/9"]].tolist() == [1, 1, 0.6, 0.6, 0.5]
    assert frame.loc[1, ["rung", "goal", "rung_value", "value@1/9"]].tolist() == [0, 0, 0.4, 0.4]
    assert frame.loc[0, "fidelity"] == pytest.approx(1 / 3)
    assert math.isnan(frame.loc[2, "rung"])
    assert frame.loc[2, "goal"] == 0
    first = frame.loc[1, ["paused_seq", "paused_value"]].tolist()
    log.append("promoted", trial=1, rung=1, why="by hand")
    log.begin(1, 1)
    log.rung(1, 1, 0.9, attempt=1)
    log.append("paused", trial=1, attempt=1, rung=1)
    assert log.history().set_index("trial").loc[1, ["paused_seq", "paused_value"]].tolist() == first


def test_without_rungs_nothing_is_added() -> None:
    log = Log(None)
    log.ask(0, 1)
    log.begin(0)
    log.append("ended", trial=0, attempt=0, state="failed", error={"kind": "code", "message": ""})
    assert (log.record.spent, log.record.committed) == (1, 2)
    assert type(log.record.spent) is int
    assert not {"rung", "goal", "fidelity"} & set(log.history().columns)


def test_an_attempt_lost_at_its_goal_leaves_the_trial_paused_and_below_it_to_be_tried_again() -> None:
    log = Log()
    error = {"kind": "walltime", "message": ""}
    log.ask(0, 1)
    for trial in (0, 1):
        log.begin(trial)
        log.rung(trial, 0, 0.5)
    log.append("promoted", trial=1, rung=1, why="1 of 2 at rung 0")
    for trial in (0, 1):
        log.append("attempt_failed", trial=trial, attempt=0, error=error)
    assert [trial.state for trial in log.record.rows] == [State.PAUSED, State.PROPOSED]
    assert log.record.rows[1].climb.goal == 1  # type: ignore[union-attr]
    assert +log.record.counts == {State.PAUSED: 1, State.PROPOSED: 1}


def test_a_failed_trial_has_spent_the_share_of_its_goal_and_a_cancelled_one_what_it_reached() -> None:
    log = Log()
    for trial, state in ((0, "failed"), (1, "cancelled")):
        log.ask(trial)
        log.begin(trial)
        log.rung(trial, 0, 0.5)
        log.append("promoted", trial=trial, rung=1, why="")
        log.append("ended", trial=trial, attempt=0, state=state, error={"kind": "code", "message": ""})
    assert [trial.spent for trial in log.record.rows] == [pytest.approx(1 / 3), pytest.approx(1 / 9)]


def test_with_separate_runs_the_shares_add_up() -> None:
    log = Log(Ladder("data", LADDER.shares))
    log.climb(0, 0.5, 0.6)
    assert log.record.spent == pytest.approx(1 / 9 + 1 / 3)


def test_a_proposal_may_begin_higher() -> None:
    log = Log()
    log.ask(0, rung=1)
    log.ask(1, rung=7)
    assert [(t.climb.first, t.climb.goal) for t in log.record.rows if t.climb] == [(1, 1), (2, 2)]


def test_how_well_a_rung_agrees_is_known_once_four_trials_have_climbed() -> None:
    same, turned = Log(), Log()
    for trial in range(12):
        if trial == 3:
            assert rung_table(same.record, maximize=True)[0]["agreement"] is None
        same.climb(trial, trial, trial)
        turned.climb(trial, trial, -trial)
    assert rung_table(same.record, maximize=True)[0]["agreement"] > 0.9
    assert rung_table(same.record, maximize=False)[0]["agreement"] > 0.9
    assert rung_table(turned.record, maximize=True)[0]["agreement"] < -0.5
    assert [row["agreement"] for row in rung_table(same.record, maximize=True)[1:]] == [None, None]


def test_the_table_of_rungs_the_curves_and_what_was_saved() -> None:
    log = Log()
    log.climb(0, 0.5, 0.6)
    log.climb(1, 0.4)
    table = rung_table(log.record, maximize=True)
    assert [(row["label"], row["reached"], row["promoted"], row["paused"]) for row in table] == [
        ("1/9", 2, 1, 1),
        ("1/3", 1, 0, 1),
        ("1", 0, 0, 0),
    ]
    assert (table[0]["best"]["value"], table[2]["best"]) == (0.5, None)
    assert rung_table(log.record, maximize=False)[0]["best"]["trial"] == 1
    assert saved(log.record) == pytest.approx(2 / 3 + 8 / 9)
    curves = curves_of(log.record)
    assert curves[["trial", "rung", "value", "seconds"]].to_numpy().tolist() == [
        [0, 0, 0.5, 2.5],
        [0, 1, 0.6, 2.5],
        [1, 0, 0.4, 2.5],
    ]
    assert curves["metric.value"].tolist() == [0.5, 0.6, 0.4]


def test_failures_below_a_rung_do_not_count_above_it() -> None:
    log = Log()
    log.ask(0)
    log.begin(0)
    log.append("attempt_failed", trial=0, attempt=0, error={"kind": "vanished", "message": ""})
    log.begin(0, 1)
    log.rung(0, 0, 0.5, attempt=1)
    log.append("paused", trial=0, attempt=1, rung=0, energy_wh=2.0)
    assert log.record.trials[0].forgiven == 2
    assert log.record.energy_kwh == 0.002
