"""The small process: its gradient, what it predicts, its acquisition function."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpo_cluster.optimizers.process import NoisyImprovement, Process, log_improvement, matern


def waves(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(5 * x[:, 0]) + (x[:, 1] - 0.4) ** 2)


@pytest.fixture
def process() -> Process:
    x = np.random.default_rng(0).random((40, 3))
    return Process.fitted(x, 7.0 + 3.0 * waves(x))


def test_predicts_what_it_has_not_seen(process: Process) -> None:
    x = np.random.default_rng(1).random((50, 3))
    mean, variance = process.posterior(x)
    error = process.location + process.spread * mean - (7.0 + 3.0 * waves(x))
    assert np.sqrt((error**2).mean()) < 0.1
    assert (np.abs(error) < 4 * process.spread * np.sqrt(variance) + 0.02).mean() > 0.9


def test_length_scales_say_what_matters(process: Process) -> None:
    assert process.scales[0] < process.scales[1] < process.scales[2]


def test_fit_is_a_stationary_point(process: Process) -> None:
    """Of the posterior density, computed here from its definition."""
    x, y, c = process.inputs, process.outcomes, 3

    def density(theta: np.ndarray) -> float:
        scales, noise = np.exp(theta[:c]), math.exp(theta[c])
        gram = matern(x, x, scales) + (noise + 1e-8) * np.eye(len(y))
        solve = np.linalg.solve(gram, np.column_stack([np.ones(len(y)), y]))
        rest = y - solve[:, 1].sum() / solve[:, 0].sum()
        likelihood = -0.5 * rest @ np.linalg.solve(gram, rest) - 0.5 * np.linalg.slogdet(gram)[1]
        centre = math.sqrt(2) + 0.5 * math.log(c)
        prior = -(((theta[:c] - centre) ** 2).sum()) / 6 - theta[:c].sum() - (theta[c] + 4) ** 2 / 2 - theta[c]
        return float(likelihood + prior)

    found = np.append(np.log(process.scales), math.log(process.noise))
    top = density(found)
    for axis in range(c + 1):
        for step in (-0.3, 0.3):
            assert density(found + step * np.eye(c + 1)[axis]) < top + 1e-3


def test_believing_leaves_the_mean_and_lowers_the_variance(process: Process) -> None:
    rng = np.random.default_rng(2)
    there, at = rng.random((3, 3)), rng.random((20, 3))
    believing = process.believing(there)
    assert believing.posterior(at)[0] == pytest.approx(process.posterior(at)[0], abs=0.05)
    assert (believing.posterior(there)[1] < process.posterior(there)[1]).all()


def test_samples_have_the_posteriors_moments(process: Process) -> None:
    at = np.random.default_rng(3).random((4, 3))
    draws = process.sample(at, np.random.default_rng(4).standard_normal((4, 20000)))
    mean, covariance, _ = process.joint(at)
    assert draws.mean(axis=1) == pytest.approx(mean, abs=0.02)
    assert np.cov(draws) == pytest.approx(covariance, abs=0.02)


def test_log_improvement_far_and_near() -> None:
    u = np.array([-60.0, -20.0001, -19.9999, 0.0, 6.0])
    logs = log_improvement(u)
    assert np.isfinite(logs).all()
    assert logs[1] == pytest.approx(logs[2], abs=0.01)
    assert np.exp(logs[3]) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert np.exp(logs[4]) == pytest.approx(6.0)


def test_improvement_without_noise_is_expected_improvement() -> None:
    x = np.linspace(0, 1, 9)[:, None]
    y = np.sin(6 * x[:, 0])
    process = Process.conditioned(x, y, np.array([0.3]), 1e-8, 0.0, 1.0)
    at = np.linspace(0.03, 0.97, 30)[:, None]
    mean, variance = process.posterior(at)
    best = process.posterior(x)[0].max()
    sure = log_improvement((mean - best) / np.sqrt(variance)) + 0.5 * np.log(variance)
    drawn = NoisyImprovement(process, np.empty((0, 1)), 512, 0)(at)
    near = sure > sure.max() - 3
    assert drawn[near] == pytest.approx(sure[near], abs=0.3)


def test_pending_points_leave_nothing_to_gain_where_they_are() -> None:
    x = np.random.default_rng(6).random((8, 3))
    process = Process.conditioned(x, waves(x), np.full(3, 0.5), 1e-6, 0.0, 1.0)
    at = np.random.default_rng(5).random((200, 3))
    alone = NoisyImprovement(process, np.empty((0, 3)), 64, 0)(at)
    best = at[int(alone.argmax())][None]
    beside = NoisyImprovement(process, best, 64, 0)(np.concatenate([best, at]))
    assert beside[0] < alone.max() - 2
    assert beside.max() > beside[0]


def test_inputs_far_from_the_origin_are_as_good_as_near_ones() -> None:
    """As they are in units of a tiny cell; with points that nearly coincide, and many believed between them."""
    x = np.random.default_rng(7).random((60, 3))
    x[30:] = x[:30] + 1e-7
    near, far = Process.fitted(x, waves(x)), Process.fitted(x + 1e6, waves(x))
    at = np.random.default_rng(8).random((90, 3))
    assert far.posterior(at + 1e6)[0] == pytest.approx(near.posterior(at)[0], abs=0.02)
    assert np.isfinite(far.believing(at + 1e6).posterior(at + 1e6)[0]).all()
