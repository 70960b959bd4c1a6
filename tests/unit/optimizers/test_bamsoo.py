"""BaMSOO against a plain sequential program, with a model that is quick and always the same."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from support import partition_references
from support.simulated import simulation, wavy

from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import Observations, scaled, unscaled
from hpo_cluster.optimizers.bayesian.surrogate import SurrogateError
from hpo_cluster.optimizers.partition import bamsoo
from hpo_cluster.optimizers.partition.bamsoo import bound_width
from hpo_cluster.optimizers.partition.soo import PRESETS
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Space

REAL = Space({"x": Float(-5.0, 5.0), "y": Float(1e-6, 1e-1, log=True)})
MIXED = Space({"x": Float(0.0, 1.0), "rank": Integer(1, 9), "scheme": Categorical(("a", "b", "c"))})
FINITE = Space({"rank": Integer(1, 9), "bias": Categorical((False, True))})
SPACES = {"real": REAL, "mixed": MIXED, "finite": FINITE}


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-((a[:, None] - b[None]) ** 2).sum(axis=2) / (2 * 0.3**2))


def posterior(points: np.ndarray, values: np.ndarray, at: np.ndarray, pending: np.ndarray):
    """Mean and deviation of a process without noise and with fixed scales."""
    mean, spread = values.mean(), values.std()
    gram = kernel(points, points) + 1e-6 * np.eye(len(points))
    mu = mean + kernel(at, points) @ np.linalg.solve(gram, values - mean)
    every = np.concatenate([points, pending])
    gram = kernel(every, every) + 1e-6 * np.eye(len(every))
    across = kernel(at, every)
    variance = 1.0 - (across * np.linalg.solve(gram, across.T).T).sum(axis=1)
    return mu, spread * np.sqrt(np.maximum(variance, 0.0))


def quick_fit(features: Features, observations: Observations, outcome: str):
    values = observations.outcomes(outcome)
    if len(values) < 2 or not np.ptp(values) > 0:
        raise SurrogateError("too few")
    points = observations.points
    return SimpleNamespace(
        observations=observations,
        outcomes=values,
        posterior=lambda at, pending: posterior(points, values, at, pending),
        describe=lambda: {"observations": len(values)},
    )


def screening(space: Space, **settings: float):
    def screen(configuration: Configuration, evaluated, screened):
        values = np.array([value for _, value in evaluated])
        if len(values) < 2 or not np.ptp(values) > 0:
            return None
        points = np.array([space.encode(c) for c, _ in evaluated])
        mu, sigma = posterior(points, values, space.encode(configuration)[None], points[:0])
        width = settings.get("beta") or math.sqrt(2 * math.log(math.pi**2 * screened**2 / (6 * settings["eta"])))
        return float(mu[0] - width * sigma[0]), float(mu[0] + width * sigma[0])

    return screen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bamsoo, "fit", quick_fit)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(("settings", "K"), [({"beta": 0.5}, 2), ({"beta": 0.5}, 3), ({"eta": 0.5}, 3)], ids=str)
def test_one_worker_evaluates_what_the_sequential_program_does(name: str, preset: str, settings, K: int) -> None:
    space, rules = SPACES[name], PRESETS[preset]
    optimizer = make_optimizer("bamsoo", space, preset=preset, sections=K, outcome="raw", **settings)
    run = simulation(space, K).run(optimizer, 30)
    theirs = partition_references.soo(
        *(space, wavy(space, K), 30, K, rules.eligibility, rules.strict, rules.h_max),
        screen=screening(space, **settings),
    )
    assert run.evaluated == theirs
    assert len(theirs) == min(30, space.size)
    if settings.get("beta"):  # it did screen
        assert len(run.record.trials) > len(theirs)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("trouble", [(), ("diverged", "cancelled", "failed")])
def test_a_new_optimizer_gives_every_ask_again(name: str, workers: int, refresh: bool, trouble) -> None:
    settings = {"beta": 0.5, "refresh": refresh, "preset": "greedy"}
    run = simulation(SPACES[name], 1, trouble).run(make_optimizer("bamsoo", SPACES[name], **settings), 25, workers)
    assert sum(len(ask.settled) for *_, ask in run.asks) > 0
    for history, n, ask in run.asks:
        assert make_optimizer("bamsoo", SPACES[name], **settings).ask(history, n) == ask


def test_the_past_is_not_fitted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    monkeypatch.setattr(bamsoo, "fit", lambda *arguments: fits.append(1) or quick_fit(*arguments))
    run = simulation(REAL, 0).run(make_optimizer("bamsoo", REAL, beta=0.5), 25)
    assert len(fits) > 15
    fits.clear()
    make_optimizer("bamsoo", REAL, beta=0.5).ask(run.history(), 1)
    assert len(fits) <= 1


@pytest.mark.usefixtures("quick")
def test_an_approximation_is_a_row_with_the_user_s_sign() -> None:
    run = simulation(REAL, 0).run(make_optimizer("bamsoo", REAL, beta=0.5), 25)
    history = run.history()
    approximated = history[history.origin == "approximated"]
    assert len(approximated) > 0
    assert (approximated.target < history[history.origin == "evaluated"].target.max()).all()
    minimised = history.assign(value=-history.target)
    optimizer = make_optimizer("bamsoo", REAL, beta=0.5)
    for end in range(2, len(history)):
        ask, other = optimizer.ask(history[:end], 1), optimizer.ask(minimised[:end], 1)
        assert ask.proposals == other.proposals
        assert [row.value for row in ask.settled] == [-row.value for row in other.settled]


@pytest.mark.usefixtures("quick")
def test_a_tree_without_limit_of_depth_does_not_approximate_for_ever() -> None:
    optimizer = make_optimizer("bamsoo", REAL, preset="greedy", beta=0.01, sections=3)
    run = simulation(REAL, 4).run(optimizer, 40)
    gaps = [len(ask.settled) for *_, ask in run.asks]
    assert max(gaps) == 8 * 3


@pytest.mark.usefixtures("quick")
def test_every_worker_is_busy_from_the_start() -> None:
    assert len(make_optimizer("bamsoo", REAL, eta=0.5).ask(pd.DataFrame(), 30).proposals) == 30


def test_bounds_widen_with_every_screened_cell() -> None:
    assert [round(bound_width(50, eta), 2) for eta in (0.05, 0.5, 1.0)] == [4.76, 4.25, 4.08]
    assert 0 < bound_width(1, 1.0) < bound_width(2, 1.0)


@pytest.mark.parametrize("outcome", ["ranked", "soft", "raw", "clip", "winsor"])
def test_an_outcome_goes_back_to_its_target(outcome) -> None:
    targets = np.array([-30.0, 0.1, 0.2, 0.4, 0.5, 0.55])
    outcomes = scaled(targets, outcome)
    if outcome in ("ranked", "soft", "raw"):
        assert [unscaled(y, targets, outcome) for y in outcomes] == pytest.approx(targets.tolist())
    assert math.isfinite(unscaled(-1e9, targets, outcome))
