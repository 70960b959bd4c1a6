"""The benchmark of several objectives: its problems, its measure and its page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.optimizers import cache
from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.simulate import Run
from benchmarks.several_objectives import report, run
from benchmarks.several_objectives.contestants import NAMES, missing
from benchmarks.several_objectives.problems import PROBLEMS, Volume, volume_of
from benchmarks.several_objectives.problems import missing as missing_problem
from hpo_cluster.goals import hypervolume, undominated
from hpo_cluster.space import Configuration


@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - {"village"}))
def test_no_random_points_dominate_more_than_the_best_front(name: str) -> None:
    problem = PROBLEMS[name]()
    rng, volume, share = np.random.default_rng(0), Volume(problem), 0.0
    for trial in range(60):
        configuration = problem.space.decode(rng.random(problem.space.dim))
        before, share = share, volume.add(*problem.observe(configuration, 0, trial))
        assert before <= share <= 1
    assert share < 0.99


def on_the_front(name: str, share: float) -> Configuration:
    space = PROBLEMS[name]().space
    if name == "bnh":
        return {"x1": 5 * share, "x2": min(5 * share, 3.0)}
    return {"x1": share, **dict.fromkeys(space.names[1:], 0.0 if name == "zdt1" else 0.5)}


@pytest.mark.parametrize("name", sorted(set(PROBLEMS) - {"village"}))
def test_points_of_the_best_front_have_nearly_its_volume(name: str) -> None:
    problem = PROBLEMS[name]()
    volume = Volume(problem)
    for share in np.linspace(0, 1, 61).tolist():
        metrics = problem.truth(on_the_front(name, share))
        last = volume.add(metrics, metrics)
    assert 0.95 < last <= 1 + 1e-9


def test_a_volume_of_many_points_is_that_of_few() -> None:
    points = np.random.default_rng(0).random((30, 2))
    front = undominated(tuple(-x for x in row) for row in points.tolist())
    assert volume_of(points, (0.9, 0.8)) == pytest.approx(hypervolume(front, (-0.9, -0.8)))


def test_the_measure_is_that_of_true_values_at_the_observed_front() -> None:
    problem = PROBLEMS["dtlz2"]()
    volume = Volume(problem)
    best = problem.truth(on_the_front("dtlz2", 0.5))
    first = volume.add({"f1": 0.1, "f2": 0.1}, best)  # looks better than it is
    assert first == pytest.approx((1.1 - 1 / math.sqrt(2)) ** 2 / problem.most)
    assert volume.add({"f1": 0.2, "f2": 0.2}, {"f1": 0.0, "f2": 0.0}) == first  # is better, and looks dominated


@pytest.mark.parametrize("name", NAMES)
def test_every_contestant_is_told_its_trials(name: str) -> None:
    if missing(name):
        pytest.skip(missing(name))
    made = run.execute(Key("c2dtlz2", name, 0, 3, 7))
    assert sorted(made.trials) == list(range(7))
    assert made.true == sorted(made.true)
    if name == "random":
        assert run.execute(Key("c2dtlz2", name, 0, 3, 7)).true == made.true


def test_the_page_has_all_problems_and_contestants(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    for problem in ("zdt1", "bnh"):
        for at, name in enumerate(NAMES):
            for seed in range(6):
                share = 0.9 - 0.1 * at + 0.01 * seed
                made = Run(list(range(12)), [float(i) for i in range(12)], [share] * 12, [share] * 12, [0.1] * 12)
                cache.append(results, Key(problem, name, seed, 1, 12), {"optuna": "5"}, made)
    assert report.main(["--results", str(results), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "several_objectives.md").read_text()
    assert "| bo | 6 | 0.1 | 0.925 (0.913, 0.938) | 0.925 (0.913, 0.938) |" in page
    assert "| zdt1 | random | 0.031 | better |" in page
    assert (tmp_path / "several_objectives.png").stat().st_size > 1000


def test_what_is_missing_is_named() -> None:
    assert "there is no such problem" in missing_problem("zdt9")
    assert "is unknown" in missing("peer:optuna-cmaes")
