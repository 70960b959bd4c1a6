"""The benchmark's own loop, clock, statistics and cache, on numbers made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.optimizers import cache, contestants, report, run
from benchmarks.optimizers import statistics as st
from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.problems import ISLAND_CENTRE, ISLAND_TOP, island, synthetic
from benchmarks.optimizers.simulate import Run, duration, simulate
from hpo_cluster.optimizers.registry import OPTIMIZERS
from hpo_cluster.space import Configuration


class Counter:
    """Proposes x = 0, 1, 2...; records what it was told and how many trials were in flight when asked."""

    def __init__(self, count: int = 10**6) -> None:
        self.count, self.flying, self.told, self.seen = count, 0, list[tuple[int, float]](), list[int]()

    def ask(self, trial: int) -> Configuration | None:
        if trial == self.count:
            return None
        self.seen.append(self.flying)
        self.flying += 1
        return {"x": trial}

    def tell(self, trial: int, target: float) -> None:
        self.flying -= 1
        self.told.append((trial, target))


def double(trial: int, configuration: Configuration) -> tuple[float, float]:
    return 2.0 * float(configuration["x"]), float(configuration["x"])


def test_a_free_worker_gets_the_next_trial_at_once() -> None:
    lasts = {0: 3.0, 1: 1.0, 2: 1.0, 3: 5.0, 4: 1.0}
    counter = Counter()
    made = simulate(counter, double, budget=5, workers=2, lasts=lasts.__getitem__)
    # worker A: trial 0 until 3, then 3 until 8 or so; worker B: 1 until 1, 2 until 2, then 3 from 2 until 7
    assert made.trials == [1, 2, 0, 4, 3]
    assert made.times == [1.0, 2.0, 3.0, 4.0, 7.0]
    assert made.observed == [2.0, 4.0, 0.0, 8.0, 6.0]
    assert made.true == [1.0, 2.0, 0.0, 4.0, 3.0]
    assert counter.told == [(1, 2.0), (2, 4.0), (0, 0.0), (4, 8.0), (3, 6.0)]
    assert counter.seen == [0, 1, 1, 1, 1]


def test_one_worker_is_a_sequence() -> None:
    made = simulate(Counter(), double, budget=4, workers=1, lasts=lambda trial: 1.5)
    assert made.trials == [0, 1, 2, 3]
    assert made.times == [1.5, 3.0, 4.5, 6.0]


def test_an_exhausted_optimizer_ends_the_run() -> None:
    made = simulate(Counter(3), double, budget=9, workers=2, lasts=lambda trial: 1.0)
    assert sorted(made.trials) == [0, 1, 2]


def test_cpu_time_is_that_of_asking_and_telling() -> None:
    ticks = iter(range(100))
    made = simulate(Counter(), double, budget=3, workers=1, lasts=lambda t: 1.0, clock=lambda: float(next(ticks)))
    assert made.cpu_s == [1.0, 2.0, 2.0]  # an ask, then each with the tell before it


def test_durations_vary_about_one_and_do_not_depend_on_the_optimizer() -> None:
    found = [duration("p", 0, trial) for trial in range(500)]
    assert all(0.8 <= d <= 1.2 for d in found)
    assert np.mean(found) == pytest.approx(1, abs=0.02)
    assert found == [duration("p", 0, trial) for trial in range(500)]
    assert duration("p", 1, 0) != duration("p", 0, 0)


def test_regret_is_of_the_best_observed_by_its_true_value() -> None:
    regret = st.regrets(observed=[1.0, 3.0, 2.0, 4.0], true=[1.0, 1.5, 2.5, 0.5], best=5.0)
    assert regret.tolist() == [4.0, 3.5, 3.5, 4.5]  # the last one only looks better


def test_regret_at_a_time_counts_what_has_ended() -> None:
    times, regret = [1.0, 2.0, 4.0], np.array([5.0, 3.0, 1.0])
    assert math.isnan(st.regret_at(times, regret, 0.9))
    assert [st.regret_at(times, regret, t) for t in (1.0, 3.9, 4.0, 99.0)] == [5.0, 3.0, 1.0, 1.0]


def test_quartiles_and_floor() -> None:
    assert st.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert st.floor_of([1.0, 10.0, 100.0]) == pytest.approx(0.01)


def test_the_paired_test_minds_pairs_and_the_floor() -> None:
    base = {seed: float(10 * seed) for seed in range(10)}
    better = {seed: value - 1 - 0.1 * seed for seed, value in base.items()}
    assert st.wilcoxon(better, base, floor=-1e9) == pytest.approx(2 / 2**10)  # all ten of one sign
    assert st.wilcoxon(base, dict(base), floor=0.0) == 1.0
    assert st.wilcoxon(dict.fromkeys(range(10), 1e-09), dict.fromkeys(range(10), 1e-12), floor=1e-6) == 1.0
    assert math.isnan(st.wilcoxon({0: 1.0}, base, floor=0.0))


def test_ranks_share_ties_below_the_floor() -> None:
    medians = {"a": 1e-9, "b": 1e-5, "c": 2.0, "d": 1.0}
    assert st.ranks(medians, floor=1e-3) == {"a": 1.5, "b": 1.5, "d": 3.0, "c": 4.0}


def test_standing_against_the_best_rival() -> None:
    rng = np.random.default_rng(0)
    ours = {seed: 1.0 + 0.01 * float(rng.random()) for seed in range(10)}
    good = {seed: value - 0.5 for seed, value in ours.items()}
    bad = {seed: value + 5.0 for seed, value in ours.items()}
    mixed = {seed: value + (0.1 if seed % 2 else -0.1) for seed, value in ours.items()}
    assert st.best_or_level(ours, {"good": good, "bad": bad}, 0.0)[::2] == ("good", "worse")
    assert st.best_or_level(ours, {"bad": bad}, 0.0)[::2] == ("bad", "better")
    assert st.best_or_level(ours, {"mixed": mixed, "bad": bad}, 0.0)[::2] == ("mixed", "level")
    assert st.best_or_level(ours, {"good": good}, floor=9.0)[2] == "level"
    assert st.best_or_level(ours, {"good": {0: 0.1, 1: 0.1}}, 0.0)[2] == "untested"


def test_every_optimizer_of_the_registry_takes_part() -> None:
    whole = [name for name, entry in OPTIMIZERS.items() if not entry.needs_fidelity]
    assert contestants.names()[: len(whole)] == whole
    assert len(OPTIMIZERS) > 4
    assert contestants.parse("bo[outcome=raw,initial=4]") == ("bo", {"outcome": "raw", "initial": 4})
    assert "unknown" in contestants.missing("nobody")
    assert contestants.missing("random") == ""


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", ["random", "lhs", "sobol"])
def test_ours_go_through_the_loop(name: str, workers: int) -> None:
    key = Key("ackley5mix", name, 0, workers, 12)
    made = run.execute(key)
    assert sorted(made.trials) == list(range(12))
    assert made == Run(**{**vars(run.execute(key)), "cpu_s": made.cpu_s})
    assert all(first <= second for first, second in zip(made.times, made.times[1:], strict=False))


def test_pending_trials_reach_the_optimizer() -> None:
    space = synthetic()["branin"].space
    ours = contestants.Ours("random", space, 9, 1, 0)
    first = ours.ask(0)
    ours.ask(1)
    ours.tell(0, 2.5)
    frame = ours.campaign.history()
    assert frame["state"].tolist() == ["completed", "proposed"]
    assert frame["target"].tolist()[0] == 2.5
    assert {name: frame[name][0] for name in space.names} == first
    assert (frame["ended_seq"][0], frame["asked_seq"].tolist()) == (2, [0, 1])


@pytest.mark.parametrize("name", sorted(synthetic()))
def test_no_configuration_is_better_than_the_best_known(name: str) -> None:
    problem, rng = synthetic()[name], np.random.default_rng(0)
    values = [problem.truth(problem.space.decode(rng.random(problem.space.dim))) for _ in range(300)]
    assert max(values) <= problem.best
    assert problem.observe(problem.space.decode(np.full(problem.space.dim, 0.4)), 0, 3)[1] <= problem.best


def test_noise_belongs_to_the_trial() -> None:
    problem = synthetic()["cliff_noisy"]
    at = problem.space.decode(np.full(5, 0.3))
    assert problem.observe(at, 0, 1) == problem.observe(at, 0, 1)
    observed = [problem.observe(at, 0, trial)[0] - problem.truth(at) for trial in range(300)]
    assert np.std(observed) == pytest.approx(problem.noise, rel=0.15)


def test_the_island_lies_behind_the_cliff() -> None:
    def along(s: float) -> float:
        return island(np.array([s, s, *ISLAND_CENTRE[2:]]))

    assert along(0.74) == pytest.approx(ISLAND_TOP, abs=1e-6)
    assert 0.84 < along(0.6) < 0.86  # the plateau
    assert along(0.635) < 0.5  # what lies between
    assert island(np.array([0.95, 0.95, 0.35, 0.5, 0.5])) == pytest.approx(0.25, abs=0.01)
    rng = np.random.default_rng(0)
    above = np.mean([island(u) > 0.851 for u in rng.random((4000, 5))])
    assert 0.003 < above < 0.03


def test_runs_are_kept_by_version_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    path, key = tmp_path / "runs.jsonl", Key("branin", "random", 0, 1, 2)
    made = Run([0, 1], [1.0, 2.0], [0.5, 0.25], [0.5, 0.25], [0.001, 0.002])
    cache.append(path, key, {"numpy": "1"}, made)
    with path.open("a") as file:
        file.write('{"problem": "branin", "optim')
    assert cache.done(path, {"random": {"numpy": "1"}}) == {key}
    assert cache.done(path, {"random": {"numpy": "2"}}) == set()
    assert cache.done(path, None) == {key}
    assert cache.latest(path)[key]["observed"] == [0.5, 0.25]


def test_a_duel_is_told_with_and_without_runs_of_random_search(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    best = synthetic()["branin"].best
    for name, regret in (("mosaic", 0.01), ("bo", 0.1)):
        for seed in range(2):
            told = Run([0], [1.0], [best - regret], [best - regret], [0.0])
            cache.append(results, Key("branin", name, seed, 8, 64), {}, told)
    lines = list(report.duel(report.Results(results, 8), "mosaic", "bo"))
    assert lines[0] == "`mosaic` against `bo`: geometric mean of the ratios of regrets 0.1"
    assert lines[-2] == "| branin | 2 | 0.01 | 0.1 | 0.1 | – | untested |"
    assert list(report.duel(report.Results(results, 8), "mosaic", "turbo")) == []
