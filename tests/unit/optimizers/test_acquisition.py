"""The acquisition functions: what they must equal, and the search that climbs them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.sampling.normal import SobolQMCNormalSampler

from hpo_cluster.optimizers.bayesian import acquisition as acquisition_module
from hpo_cluster.optimizers.bayesian.acquisition import (
    CAUTION,
    LABELS,
    LOOKS,
    Acquisition,
    Sum,
    climbed,
    drawn,
    fantasized,
    feasibility,
    feasibility_penalty,
    guided,
    improvement,
    noisy_improvement,
    upper_bound,
    values_of,
)
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.gaussian_process import Process, computing, tensor
from hpo_cluster.space import Categorical, Float, Integer, Prior, Space

RNG = np.random.default_rng(0)
X, PENDING = RNG.random((30, 3)), RNG.random((5, 3))
NOBODY = PENDING[:0]


def waves(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(5 * x[:, 0]) + (x[:, 1] - 0.4) ** 2)


PROCESS = Process.fitted(X, waves(X) + 0.05 * RNG.standard_normal(30))
LABELLED = Process.fitted(X, np.where(X[:, 2] > 0.6, -1.0, 1.0), LABELS)


def draw(seed: int) -> Acquisition:
    with computing(seed):
        return drawn(PROCESS)


ALL: dict[str, Callable[[], Acquisition]] = {
    "qlognei": lambda: noisy_improvement(PROCESS, PENDING, 64, 0),
    "nothing pending": lambda: noisy_improvement(PROCESS, NOBODY, 64, 0),
    "log_ei": lambda: improvement(PROCESS, PENDING, 64, 0),
    "log_ei, nothing pending": lambda: improvement(PROCESS, NOBODY, 64, 0),
    "ucb": lambda: upper_bound(PROCESS, PENDING, 4.0),
    "thompson": lambda: draw(1),
    "feasibility": lambda: feasibility(LABELLED),
    "feasibility penalty": lambda: feasibility_penalty(feasibility(LABELLED)),
    "sum": lambda: Sum([noisy_improvement(PROCESS, NOBODY, 64, 0), feasibility(LABELLED)]),
}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())
def test_the_same_again_and_climbed_from_every_start(make: Callable[[], Acquisition]) -> None:
    """Another one made the same way has the same values, whatever PyTorch has drawn in between."""
    starts = np.random.default_rng(1).random((6, 3))
    acquisition = make()
    torch.rand(7)
    values = values_of(acquisition, starts)
    assert np.array_equal(values, values_of(make(), starts))
    low, high = np.array([0.0, 0.1, 0.0]), np.array([1.0, 0.6, 1.0])
    moving = np.array([True, True, False])
    ends = climbed(acquisition, starts, moving, low, high)
    assert np.array_equal(ends[:, 2], starts[:, 2])
    assert ((ends >= low - 1e-12) & (ends <= high + 1e-12))[:, :2].all()
    begun = np.column_stack([np.clip(starts, low, high)[:, :2], starts[:, 2]])
    assert (values_of(acquisition, ends) >= values_of(acquisition, begun) - 1e-9).all()
    alone = climbed(acquisition, starts[3:4], moving, low, high)
    assert alone[0] == pytest.approx(ends[3], abs=1e-3)


def test_log_ei_is_the_textbooks_where_nothing_is_pending() -> None:
    from scipy.stats import norm

    at = np.random.default_rng(3).random((200, 3))
    mean, variance = PROCESS.posterior(at)
    u = (mean - PROCESS.outcomes.max()) / np.sqrt(variance)
    at, u, variance = at[u > -5], u[u > -5], variance[u > -5]
    assert len(at) > 10
    expected = np.log(np.sqrt(variance) * (norm.pdf(u) + u * norm.cdf(u)))
    assert values_of(improvement(PROCESS, NOBODY, 64, 0), at) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("pending", [NOBODY, PENDING], ids=["nothing pending", "pending"])
@pytest.mark.parametrize("units", [None, np.array([0.5, 0.2, 1.0])], ids=["plain", "units"])
def test_the_noisy_improvement_is_botorchs(pending: np.ndarray, units: np.ndarray | None) -> None:
    """With its gradient: the same draws by another way."""
    process = PROCESS if units is None else Process.fitted(X, PROCESS.outcomes, units=units)
    at = np.concatenate([np.random.default_rng(7).random((40, 3)), X[:10] + 0.01, PENDING + 0.01])
    ours = noisy_improvement(process, pending, 64, 3)
    best = ours.X_baseline[: len(ours.X_baseline) - len(pending)]  # type: ignore[attr-defined]
    theirs = qLogNoisyExpectedImprovement(
        process.gp,
        best,
        SobolQMCNormalSampler(torch.Size([64]), seed=3),
        X_pending=tensor(pending) if len(pending) else None,
        prune_baseline=False,
    )
    found = []
    for acquisition in (ours, theirs):
        inputs = tensor(at)[:, None].requires_grad_(True)
        values = acquisition(inputs)
        found += [values.detach().numpy(), torch.autograd.grad(values.sum(), inputs)[0].numpy()]
    assert np.ptp(found[0]) > 1
    assert found[0] == pytest.approx(found[2], abs=1e-6)
    assert found[1] == pytest.approx(found[3], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("make", [noisy_improvement, improvement])
def test_pending_points_leave_little_to_gain_where_they_are(make: Callable[..., Acquisition]) -> None:
    x = np.random.default_rng(6).random((8, 3))
    process = Process.conditioned(x, waves(x), [0.5] * 3, 1e-6)
    at = np.random.default_rng(5).random((200, 3))
    alone = values_of(make(process, NOBODY, 256, 0), at)
    best = at[int(alone.argmax())][None]
    beside = values_of(make(process, best, 256, 0), np.concatenate([best, at]))
    assert beside[0] < beside.max() - 0.1
    assert beside[1 + int(alone.argmax())] == pytest.approx(beside[0], abs=1e-3)


def test_the_bound_is_the_mean_and_so_many_deviations() -> None:
    at = np.random.default_rng(3).random((50, 3))
    mean, variance = PROCESS.posterior(at)
    assert values_of(upper_bound(PROCESS, NOBODY, 9.0), at) == pytest.approx(mean + 3 * np.sqrt(variance), abs=1e-6)
    told = Process.conditioned(np.concatenate([X, at[:1]]), np.arange(31.0), PROCESS.scales.tolist(), PROCESS.noise)
    expected = mean + 3 * np.sqrt(told.posterior(at)[1])
    assert values_of(upper_bound(PROCESS, at[:1], 9.0), at) == pytest.approx(expected, abs=1e-4)


def test_draws_have_the_posteriors_moments() -> None:
    at = np.random.default_rng(4).random((40, 3))
    draws = np.array([values_of(draw(seed), at) for seed in range(40)])
    mean, variance = PROCESS.posterior(at)
    far = (draws - mean) / np.sqrt(variance + 0.01)
    assert np.abs(draws.mean(axis=0) - mean).mean() < 0.1 * mean.std()
    assert 0.5 < far.std() < 1.1
    assert (draws.std(axis=1) > 0.8 * mean.std()).all()


def test_feasibility_is_high_where_it_was_seen() -> None:
    sure, lost = np.array([[0.5, 0.5, 0.1]]), np.array([[0.5, 0.5, 0.95]])
    feasible = feasibility(LABELLED)
    assert np.exp(values_of(feasible, sure)[0] / CAUTION) > 0.9
    assert np.exp(values_of(feasible, lost)[0] / CAUTION) < 0.1
    assert values_of(feasibility_penalty(feasible), sure)[0] == 0.0
    assert values_of(feasibility_penalty(feasible), lost)[0] == pytest.approx(
        values_of(feasible, lost)[0] + CAUTION * math.log(2)
    )


def test_only_points_that_may_be_the_best_are_compared_with() -> None:
    best = noisy_improvement(PROCESS, NOBODY, 64, 0).X_baseline.numpy()  # type: ignore[attr-defined]
    means = PROCESS.means(best)
    assert means.max() == pytest.approx(PROCESS.means(X).max())
    assert len(best) < 15
    assert means.min() > np.median(PROCESS.means(X))


def test_only_some_points_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition_module, "LOOKED_AT", 2)
    monkeypatch.setattr(acquisition_module, "LOOKS", 10 * LOOKS)
    best = noisy_improvement(PROCESS, NOBODY, 64, 0).X_baseline  # type: ignore[attr-defined]
    assert len(best) <= 2


def test_too_many_pending_points_are_believed() -> None:
    assert fantasized(PROCESS, PENDING, averaged=5, most=3) == (PROCESS, PENDING)
    process, rest = fantasized(PROCESS, PENDING, averaged=4, most=3)
    assert len(rest) == 0
    best = PENDING[np.argsort(-PROCESS.posterior(PENDING)[0])[:3]]
    assert process.inputs[len(X) :] == pytest.approx(best)


def test_the_prior_is_the_spaces_at_its_values_and_has_a_gradient() -> None:
    space = Space(
        {
            "x": Float(1e-4, 1.0, log=True, prior=Prior(1e-2, 0.2)),
            "n": Integer(1, 9, prior=Prior(3, 0.2)),
            "b": Categorical((False, True), prior=(1, 3)),
            "o": Categorical((2, 4, 8), ordered=True, prior=(1, 2, 5)),
        }
    )
    features = Features(space)
    points = space.snap(np.random.default_rng(0).random((20, 4)))
    columns = features.encode(points)
    flat = Sum([lambda inputs: 0.0 * inputs[..., 0, 0]])
    prior = guided(flat, features, 3.0)
    ours, theirs = values_of(prior, columns), 3.0 * space.log_prior(points)
    assert ours - ours[0] == pytest.approx(theirs - theirs[0])
    inside = np.clip(columns, 1e-3, 1 - 1e-3) - 1e-4  # off the values, where the slope of a discrete one jumps
    at = tensor(inside)[:, None].requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior(at).sum(), at)
    steps = 1e-7 * np.eye(4)
    numeric = [(values_of(prior, inside + step) - values_of(prior, inside - step)) / 2e-7 for step in steps]
    assert gradient[:, 0].numpy() == pytest.approx(np.stack(numeric, axis=1), rel=1e-4, abs=1e-4)
    assert (gradient[:, 0, 2] > 0).all()


def test_the_prior_works_on_every_acquisition() -> None:
    space = Space({name: Float(0.0, 1.0, prior=Prior(0.9, 0.1)) for name in "xyz"})
    features = Features(space)
    at = np.random.default_rng(2).random((20, 3))
    for make in ALL.values():
        expected = values_of(make(), at) + 0.5 * (-0.5 * ((at - 0.9) / 0.1) ** 2).sum(axis=1)
        assert values_of(guided(make(), features, 0.5), at) == pytest.approx(expected)
