"""Decisions at rungs: who is compared, who goes on, what the budget allows, and what a restarted driver says again."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpo_cluster.driver.climbing import REST, Climbing, climbers
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.fidelity import Ladder
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record.climb import room_for, within_budget
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.rung_files import publish_word, read_word
from hpo_cluster.trial import State

LADDER = Ladder("steps", (1 / 9, 1 / 3, 1.0))


class Held(MemoryJournal):
    """An open campaign without jobs, of which the attempts' folders are real."""

    def __init__(self, directory: Path, *, budget: int = 10, maximize: bool = True, **fidelity: Any) -> None:
        super().__init__(["x"], maximize=maximize, ladder=LADDER)
        self.layout, self.held = CampaignLayout(directory), set[int]()
        self.lock = SimpleNamespace(check=lambda: None)
        self.spec = SimpleNamespace(
            operation=Operation(budget=budget),
            objective=SimpleNamespace(direction="maximize" if maximize else "minimize"),
            fidelity=Fidelity(kind="steps", **{"rule": "asha", **fidelity}),
        )

    def append(self, event: str, at: str = "2027-01-31T18:00:00Z", **fields: Any) -> None:
        super().append(event, at, **fields)

    def begin(self, *trials: int) -> None:
        for trial in trials:
            row = {"trial": trial, "parameters": {"x": 0.5}, "seed": 0, "origin": "evaluated"}
            self.append("asked", trials=[row], decision={})
            self.attempt(trial)

    def attempt(self, trial: int, number: int = 0) -> None:
        self.append("intent", trial=trial, attempt=number, token="t", code="c")
        self.append("running", trial=trial, attempt=number)
        self.layout.attempt(trial, number).dir.mkdir(parents=True)

    def rung(self, trial: int, rung: int, value: float, attempt: int = 0) -> None:
        self.append("rung", trial=trial, attempt=attempt, rung=rung, value=value, metrics={})

    def pause(self, trial: int, value: float) -> None:
        """Begin a trial and pause it at the lowest rung."""
        self.begin(trial)
        self.rung(trial, 0, value)
        self.append("paused", trial=trial, attempt=0, rung=0)

    def words(self, rung: int = 0) -> dict[int, bool | None]:
        return {trial.number: read_word(self.layout.attempt(trial.number, 0), rung) for trial in self.record.rows}

    def goals(self) -> list[int]:
        return [trial.climb.goal for trial in self.record.rows if trial.climb is not None]


def climbing(held: Held) -> Climbing:
    return Climbing(held)  # type: ignore[arg-type]


def test_what_the_rules_see_of_each_trial(tmp_path: Path) -> None:
    held = Held(tmp_path, maximize=False)
    held.pause(0, 0.5)
    held.begin(1, 2, 3, 4)
    for trial, state in ((1, "diverged"), (2, "cancelled"), (3, "failed")):
        if trial > 1:
            held.rung(trial, 0, 0.25)
        if trial == 3:
            held.append("promoted", trial=3, rung=1, why="")
        held.append("ended", trial=trial, attempt=0, state=state, error={"kind": "code", "message": ""})
    seen = {each.trial: (each.goal, each.targets) for each in climbers(held.record, -1.0)}
    assert seen[0] == (0, (-0.5,))
    assert math.isnan(seen[1][1][0])  # failed before the first rung: the worst there
    assert seen[2] == (2, (-0.25,))  # compared, and never promoted
    assert seen[3][1][0] == -0.25
    assert math.isnan(seen[3][1][1])
    assert seen[4] == (0, ())


def test_each_job_that_waits_gets_its_word_and_the_best_goes_on(tmp_path: Path) -> None:
    held = Held(tmp_path)
    held.begin(0, 1, 2, 3)
    for trial, value in ((0, 0.1), (1, 0.3), (2, 0.2)):
        held.rung(trial, 0, value)
    made = climbing(held)
    made.answer()
    assert held.words() == {0: False, 1: True, 2: False, 3: None}
    assert held.goals() == [0, 1, 0, 0]
    count = held.record.last["seq"]  # type: ignore[index]
    made.answer()
    assert held.record.last["seq"] == count  # type: ignore[index]  # nothing is decided twice


def test_smaller_is_better_if_so_wished(tmp_path: Path) -> None:
    held = Held(tmp_path, maximize=False)
    held.begin(0, 1, 2)
    for trial in (0, 1, 2):
        held.rung(trial, 0, float(trial))
    climbing(held).answer()
    assert held.goals() == [1, 0, 0]


def test_the_next_driver_says_the_word_that_its_predecessor_owed(tmp_path: Path) -> None:
    held = Held(tmp_path)
    held.begin(0, 1, 2)
    for trial in (0, 1):
        held.rung(trial, 0, 0.5)
        held.append("promoted", trial=trial, rung=1, why="1 of 3 at rung 0")
    publish_word(held.layout.attempt(1, 0), 0, go_on=False)  # its job has given up meanwhile
    climbing(held).answer()
    assert held.words() == {0: True, 1: False, 2: None}
    held.append("paused", trial=1, attempt=0, rung=0)
    assert held.record.trials[1].state is State.PROPOSED  # it gets another job


def test_no_trial_goes_on_once_the_gpu_hours_are_used_up(tmp_path: Path) -> None:
    held = Held(tmp_path, rule="all")
    held.spec.operation = Operation(budget=10, deadline="2020-01-01T00:00")  # type: ignore[arg-type]
    held.begin(0)
    held.rung(0, 0, 0.5)
    climbing(held).answer()
    assert held.words() == {0: False}


def test_paused_trials_are_taken_up_as_far_as_there_are_places(tmp_path: Path) -> None:
    held = Held(tmp_path, eta=1.5)
    for trial in range(6):
        held.pause(trial, trial / 10)
    made = climbing(held)
    made.promote_paused(0)
    assert held.goals() == [0] * 6
    made.promote_paused(2)
    assert held.goals() == [0, 0, 0, 0, 1, 1]
    assert made.may_promote()


def test_the_budget_keeps_what_takes_one_trial_to_the_top(tmp_path: Path) -> None:
    held = Held(tmp_path, budget=1, rule="all")
    for trial, value in ((0, 0.1), (1, 0.2)):
        held.pause(trial, value)
    made = climbing(held)
    assert room_for(held.record, 1) == 0
    made.promote_paused(5)
    assert held.goals() == [0, 0]  # 7/9 are left, and 8/9 would be needed
    held = Held(tmp_path / "other", budget=2, rule="all")
    for trial in range(8):
        held.pause(trial, trial / 10)
    made = climbing(held)
    made.promote_paused(8)
    assert held.goals() == [0, 0, 0, 0, 0, 0, 1, 1]  # 2/3 are left: what takes one of them to the top
    assert held.record.committed == pytest.approx(8 / 9 + 2 * 2 / 9)


def test_the_rest_of_the_budget_finishes_the_best(tmp_path: Path) -> None:
    held = Held(tmp_path, budget=1)
    held.pause(0, 0.1)
    assert held.record.committed == pytest.approx(1 / 9)
    made = climbing(held)
    assert made.may_promote()
    made.promote_paused(1)
    trial = held.record.trials[0]
    assert trial.climb is not None
    assert (trial.climb.goal, trial.climb.why) == (1, REST)
    held.attempt(0, 1)
    held.rung(0, 1, 0.2, attempt=1)
    made.answer()
    assert read_word(held.layout.attempt(0, 1), 1)
    assert trial.climb.goal == 2


def test_an_exhausted_space_still_has_a_result(tmp_path: Path) -> None:
    held = Held(tmp_path)
    held.pause(0, 0.1)
    held.pause(1, 0.2)
    made = climbing(held)
    assert not made.may_promote()  # there is room for other trials
    made.exhausted = True
    made.promote_paused(2)
    assert held.goals() == [0, 1]


def test_proposals_that_the_budget_does_not_allow_are_left_for_later(tmp_path: Path) -> None:
    held = Held(tmp_path, budget=2)
    assert room_for(held.record, 2) == 10
    rows = [{"trial": n, "origin": "evaluated", "info": {"rung": n}} for n in (2, 1, 0)]
    assert within_budget(rows, held.record, 2) == rows[:2]  # 1, then 1/3, and 2/3 are left
    held.begin(0)
    assert room_for(held.record, 2) == 9


def test_checkpoints_are_removed_once_nothing_goes_on_from_them(tmp_path: Path) -> None:
    held = Held(tmp_path)
    for trial in (0, 1, 2):
        held.pause(trial, 0.5)
    held.append("promoted", trial=1, rung=2, why="by hand")
    held.attempt(1, 1)
    held.begin(3)
    held.append("ended", trial=3, attempt=0, state="completed", value=1.0, metrics={})
    places = [(0, 0), (1, 0), (1, 1), (3, 0)]
    for place in places:
        (held.layout.attempt(*place).checkpoint_dir / "1").mkdir(parents=True)
        held.layout.attempt(*place).trial_checkpoint_dir.mkdir(exist_ok=True)

    def shared() -> list[int]:
        return [trial for trial in (0, 1, 3) if held.layout.attempt(trial, 0).trial_checkpoint_dir.exists()]

    def kept() -> list[tuple[int, int]]:
        return [place for place in places if held.layout.attempt(*place).checkpoint_dir.exists()]

    climbing(held)
    assert (kept(), shared()) == ([(0, 0), (1, 0), (1, 1)], [0, 1])
    held.spec.fidelity = Fidelity(kind="steps", keep="none")
    made = climbing(held)
    assert (kept(), shared()) == ([(1, 0), (1, 1)], [1])
    held.append("ended", trial=1, attempt=0, state="completed", value=1.0, metrics={})  # the first attempt's, late
    made.tidy(held.record.trials[1])
    assert (kept(), shared()) == ([(1, 1)], [1])  # it still runs
