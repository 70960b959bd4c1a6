"""The acquisition functions: their gradients, and what they must equal."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from hpo_cluster.optimizers.bayesian.acquisition import (
    CAUTION,
    LABELS,
    Acquisition,
    Doubt,
    Draw,
    Feasibility,
    NoisyImprovement,
    Scaled,
    Sum,
    UpperBound,
    believed,
    likely_best,
    log_improvement,
)
from hpo_cluster.optimizers.bayesian.gaussian_process import Process

RNG = np.random.default_rng(0)
X, PENDING = RNG.random((30, 3)), RNG.random((5, 3))
NOBODY = PENDING[:0]


def waves(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(5 * x[:, 0]) + (x[:, 1] - 0.4) ** 2)


PROCESS = Process.fitted(X, waves(X) + 0.05 * RNG.standard_normal(30), "rbf")
ROUGH = Process.fitted(X, waves(X), "matern")
LABELLED = Process.fitted(X, np.where(X[:, 2] > 0.6, -1.0, 1.0), "matern", LABELS)

ALL: dict[str, Acquisition] = {
    "qlognei": NoisyImprovement(PROCESS, PENDING, 64, 0),
    "qlognei, matern": NoisyImprovement(ROUGH, PENDING, 64, 0),
    "nothing pending": NoisyImprovement(PROCESS, NOBODY, 64, 0),
    "log_ei": NoisyImprovement(PROCESS, PENDING, 64, 0, least=1.0),
    "log_ei, nothing pending": NoisyImprovement(PROCESS, NOBODY, 64, 0, least=1.0),
    "ucb": UpperBound(PROCESS, PENDING, 4.0),
    "thompson": Draw(PROCESS, 1),
    "thompson, matern": Draw(ROUGH, 1),
    "feasibility": Feasibility(LABELLED),
    "doubt": Doubt(Feasibility(LABELLED)),
    "scaled": Scaled(NoisyImprovement(PROCESS, PENDING, 64, 0), np.array([2.0, 0.5, 1.0])),
    "sum": Sum([NoisyImprovement(PROCESS, NOBODY, 64, 0), Feasibility(LABELLED)]),
}


@pytest.mark.parametrize("acquisition", ALL.values(), ids=ALL.keys())
def test_gradients(acquisition: Acquisition) -> None:
    at = np.random.default_rng(1).random((12, 3))
    values, gradient = acquisition.with_gradient(at)
    assert values == pytest.approx(acquisition(at))
    steps = 1e-6 * np.eye(3)
    numeric = np.stack([(acquisition(at + step) - acquisition(at - step)) / 2e-6 for step in steps], axis=1)
    assert gradient == pytest.approx(numeric, abs=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("pending", [NOBODY, PENDING], ids=["nothing pending", "pending"])
def test_noisy_improvement_is_botorchs(pending: np.ndarray) -> None:
    """The same model, and so many draws that both are near the expectation."""
    import torch
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.models import SingleTaskGP
    from botorch.sampling.normal import SobolQMCNormalSampler

    y = PROCESS.location + PROCESS.spread * PROCESS.outcomes
    model = SingleTaskGP(torch.from_numpy(X), torch.from_numpy(y).unsqueeze(-1))
    model.covar_module.lengthscale = torch.from_numpy(PROCESS.scales)
    model.likelihood.noise = torch.tensor([PROCESS.noise], dtype=torch.float64)
    model.mean_module.constant = PROCESS.mean
    model.eval()
    theirs = qLogNoisyExpectedImprovement(
        model,
        X_baseline=torch.from_numpy(X),
        sampler=SobolQMCNormalSampler(torch.Size([2048]), seed=0),
        X_pending=torch.from_numpy(pending) if len(pending) else None,
        prune_baseline=False,
    )
    at = np.random.default_rng(2).random((200, 3))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(at).unsqueeze(1)).numpy() - math.log(PROCESS.spread)
    ours = NoisyImprovement(PROCESS, pending, 2048, 0)(at)
    high = expected > expected.max() - 2.5  # far below the top the expectation hangs on a few draws
    assert high.sum() > 5
    assert ours[high] == pytest.approx(expected[high], abs=0.03)


def test_log_ei_is_analytic_where_nothing_is_pending() -> None:
    at = np.random.default_rng(3).random((50, 3))
    mean, variance = PROCESS.posterior(at)
    expected = log_improvement((mean - 0.7) / np.sqrt(variance)) + 0.5 * np.log(variance)
    assert NoisyImprovement(PROCESS, NOBODY, 64, 0, least=0.7)(at) == pytest.approx(expected)


def test_log_improvement_far_and_near() -> None:
    u = np.array([-60.0, -20.0001, -19.9999, 0.0, 6.0])
    logs = log_improvement(u)
    assert np.isfinite(logs).all()
    assert logs[1] == pytest.approx(logs[2], abs=0.01)
    assert np.exp(logs[3]) == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert np.exp(logs[4]) == pytest.approx(6.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda process, pending: NoisyImprovement(process, pending, 64, 0),
        lambda process, pending: NoisyImprovement(process, pending, 64, 0, least=1.0),
    ],
    ids=["qlognei", "log_ei"],
)
def test_pending_points_leave_nothing_to_gain_where_they_are(
    make: Callable[[Process, np.ndarray], Acquisition],
) -> None:
    x = np.random.default_rng(6).random((8, 3))
    process = Process.conditioned("rbf", x, waves(x), np.full(3, 0.5), 1e-6)
    at = np.random.default_rng(5).random((200, 3))
    alone = make(process, NOBODY)(at)
    best = at[int(alone.argmax())][None]
    beside = make(process, best)(np.concatenate([best, at]))
    assert beside[0] < alone.max() - 2
    assert beside.max() > beside[0]


def test_the_bound_is_the_mean_and_so_many_deviations() -> None:
    at = np.random.default_rng(3).random((50, 3))
    mean, variance = PROCESS.posterior(at)
    assert UpperBound(PROCESS, NOBODY, 9.0)(at) == pytest.approx(mean + 3 * np.sqrt(variance))
    beside = UpperBound(PROCESS, at[:1], 9.0)(at)
    told = PROCESS.conditioned(PROCESS.kernel, np.concatenate([X, at[:1]]), np.zeros(31), PROCESS.scales, PROCESS.noise)
    assert beside == pytest.approx(mean + 3 * np.sqrt(told.posterior(at)[1]))


def test_draws_have_the_posteriors_moments() -> None:
    at = np.random.default_rng(4).random((6, 3))
    draws = np.array([Draw(PROCESS, seed)(at) for seed in range(1500)])
    mean, covariance, _ = PROCESS.joint(at)
    assert draws.mean(axis=0) == pytest.approx(mean, abs=0.05)
    assert np.cov(draws.T) == pytest.approx(covariance, abs=0.06)


def test_feasibility_is_high_where_it_was_seen() -> None:
    sure, lost = np.array([[0.5, 0.5, 0.1]]), np.array([[0.5, 0.5, 0.95]])
    feasibility = Feasibility(LABELLED)
    assert np.exp(feasibility(sure)[0] / CAUTION) > 0.9
    assert np.exp(feasibility(lost)[0] / CAUTION) < 0.1
    assert Doubt(feasibility)(sure)[0] == 0.0
    assert Doubt(feasibility)(lost)[0] == pytest.approx(feasibility(lost)[0] + CAUTION * math.log(2))


def test_only_points_that_may_be_the_best_are_compared_with() -> None:
    best = likely_best(PROCESS, 0)
    mean, _ = PROCESS.posterior(X)
    assert int(mean.argmax()) in best
    assert len(best) < 15
    assert mean[best].min() > np.median(mean)


def test_too_many_pending_points_are_believed() -> None:
    assert believed(PROCESS, PENDING, averaged=5, most=3) == (PROCESS, PENDING)
    process, rest = believed(PROCESS, PENDING, averaged=4, most=3)
    assert len(rest) == 0
    best = PENDING[np.argsort(-PROCESS.posterior(PENDING)[0])[:3]]
    assert process.inputs[len(X) :] == pytest.approx(best)
