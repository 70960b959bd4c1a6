"""The comparison of optimizers with rungs: its simulator, its problems, and what is made of the runs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.optimizers.cache import Key, append, latest
from benchmarks.rungs import contestants, report
from benchmarks.rungs.problems import LADDER, WHOLE, curves
from benchmarks.rungs.simulate import Asked, Run, simulate
from hpo_cluster.space import Configuration


class Scripted:
    """Begins trials without end; those that `on` names go on from every rung, others later if `later` says so."""

    def __init__(self, on: set[int], later: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.on, self.later = on, later
        self.log: list[tuple[str, int, int]] = []
        self.at: dict[int, int] = {}

    def ask(self, trial: int) -> Asked:
        self.log.append(("ask", trial, 0))
        return Asked({"x": float(trial)}, 0)

    def reached(self, trial: int, rung: int, value: float) -> None:
        self.log.append(("reached", trial, rung))
        self.at[trial] = rung

    def deserving(self) -> list[int]:
        return [trial for trial, rung in self.at.items() if trial in self.on and rung < 2]

    def goes_on(self, trial: int, rung: int) -> None:
        del self.at[trial]

    def paused(self, trial: int) -> None:
        self.log.append(("paused", trial, self.at[trial]))
        self.on |= self.later & {trial}


def observe(trial: int, configuration: Configuration) -> tuple[tuple[float, ...], float]:
    return (0.1, 0.2, float(trial)), float(trial) + 0.5


def test_one_worker_climbs_and_spends_what_it_should() -> None:
    contestant = Scripted({0})
    run = simulate(contestant, observe, LADDER, 1 + 3 / 9, 1, lambda trial: 1.0)
    assert [entry[:2] for entry in contestant.log[:4]] == [("ask", 0), ("reached", 0), ("reached", 0), ("reached", 0)]
    assert (run.spent, run.times, run.observed, run.true) == ([1.0], [1.0], [0.0], [0.5])
    assert run.reached == [4, 1, 1]  # three more at the lowest rung for the rest
    assert len(run.cpu_s) == 4


def test_a_free_worker_takes_up_a_paused_trial_before_a_new_one() -> None:
    contestant = Scripted(set(), later={0})
    simulate(contestant, observe, LADDER, 2.0, 1, lambda trial: 1.0)
    assert contestant.log[:4] == [("ask", 0, 0), ("reached", 0, 0), ("paused", 0, 0), ("reached", 0, 1)]


def test_spending_counts_what_is_in_flight() -> None:
    run = simulate(Scripted({0}), observe, LADDER, 5.0, 2, lambda trial: 1.0 if trial == 0 else 2.0)
    assert run.times == [1.0]
    assert run.spent == pytest.approx([1 + 0.5])  # the other worker is half as fast


def test_without_rungs_every_trial_is_whole() -> None:
    run = simulate(Scripted(set()), lambda t, c: ((1.0,), 2.0), WHOLE, 7, 3, lambda trial: 1.0)
    assert run.reached == [7]
    assert len(run.true) == 7


@pytest.mark.parametrize(("name", "wanted"), [("curves90", 0.9), ("curves30", 0.3), ("curves00", 0.0)])
def test_the_lowest_rung_agrees_with_the_top_as_much_as_asked_for(name: str, wanted: float) -> None:
    problem = curves(name)
    points = np.random.default_rng(1).random((400, problem.space.dim))
    values = np.array([problem.truths(problem.space.decode(point)) for point in points])
    assert spearmanr(values[:, 0], values[:, 2])[0] == pytest.approx(wanted, abs=0.1)
    assert values[:, 2].max() <= problem.best
    configuration = problem.space.decode(points[0])
    assert problem.observe(configuration, 0, 0) == problem.observe(configuration, 0, 0)
    assert problem.observe(configuration, 0, 0) != problem.observe(configuration, 1, 0)


def test_optuna_stops_trials_for_good() -> None:
    pytest.importorskip("optuna")
    problem = curves("curves90")
    contestant, ladder = contestants.make("peer:optuna-random-halving", problem.space, 0)
    run = simulate(contestant, lambda t, c: problem.observe(c, 0, t), ladder, 6, 2, lambda trial: 1.0)
    assert run.reached[0] > run.reached[1] >= run.reached[2] > 0


def test_names_that_nobody_knows_are_left_out_with_a_message() -> None:
    assert "is unknown" in contestants.missing("peer:nobody")
    assert "is unknown" in contestants.missing("nobody+asha")
    assert contestants.missing("bo+careful") == ""


def test_the_report_reads_regrets_by_what_was_spent(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    one = Run([1.0, 2.0], [1.0, 2.0], [0.5, 0.4], [0.6, 0.9], [9, 3, 2], [0.1])
    append(path, Key("curves60", "random", 0, 8, 50.0), {}, one)
    append(path, Key("curves60", "bo", 0, 8, 50.0), {}, one)
    with path.open("a") as file:
        file.write('{"problem": "cut o')
    found = latest(path)
    assert [key.optimizer for key in found] == ["random", "bo"]
    run = next(iter(found.values()))
    assert report.regret_at(run, 0.5, 1.0) == math.inf
    assert report.regret_at(run, 2.0, 1.0) == pytest.approx(0.4)  # of the best seen, not of the best
    text = "\n".join(report.measured(found))
    assert "| `random` | 1 | 9, 2 | 2.72 (2.72, 2.72)" in text
    assert "Spent until it is as low" in text
    assert report.quartiles(np.array([1.0, 2.0, math.inf])) == (1.0, 2.0, math.inf)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("random", ""),
        ("bo+careful@1/3", "bo"),
        ("random+asha", "random"),
        ("hyperband+careful", "random"),
        ("peer:optuna-tpe", ""),
        ("peer:optuna-tpe-halving", "peer:optuna-tpe"),
        ("peer:optuna-random-hyperband", "random"),
    ],
)
def test_each_contestant_is_compared_with_itself_without_rungs(name: str, other: str) -> None:
    assert report.without_rungs(name) == other


def test_regrets_are_compared_over_the_seeds_of_both() -> None:
    def run(regret: float) -> dict[str, object]:
        return {"spent": [1.0], "observed": [0.0], "true": [1 - regret], "budget": 50.0}

    without = {seed: run(0.1 + seed / 100) for seed in range(9)}
    runs = {"random": without, "random+asha": {seed: run(0.05 + seed / 200) for seed in range(7)}}
    assert report.against(runs, "random+asha", 1.0) == "0.50 (p = 0.016)"
    assert report.against(runs, "random", 1.0) == ""
    assert report.against({"random": {0: without[0]}, "random+asha": {0: run(0.11)}}, "random+asha", 1.0) == "1.10"
