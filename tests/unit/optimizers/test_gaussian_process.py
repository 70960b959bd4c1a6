"""The process: that its hyperparameters are the likeliest, what it predicts, and that threads change nothing."""

from __future__ import annotations

import gc
import math

import numpy as np
import pandas as pd
import pytest
import torch
from botorch.models import ModelListGP, SingleTaskGP

from hpo_cluster.optimizers.bayesian.gaussian_process import (
    LEAST,
    MOST_NOISE,
    MOST_SCALE,
    Process,
    computing,
    tensor,
    together,
)
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Float, Space


def waves(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(5 * x[:, 0]) + (x[:, 1] - 0.4) ** 2)


def kernel(scales: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The Matern 5/2 of another library."""
    from sklearn.gaussian_process.kernels import Matern

    return np.asarray(Matern(scales, nu=2.5)(one, other))


def predicted(
    process: Process, inputs: np.ndarray, outcomes: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance from their definition, given standardised outcomes."""
    gram = kernel(process.scales, inputs, inputs) + process.noise * np.eye(len(inputs))
    cross = kernel(process.scales, inputs, at)
    mean = process.mean + cross.T @ np.linalg.solve(gram, outcomes - process.mean)
    return mean, kernel(process.scales, at, at) - cross.T @ np.linalg.solve(gram, cross)


class Density:
    """Posterior density of the logarithms of the hyperparameters' values, from its definition."""

    def __init__(self, inputs: np.ndarray, outcomes: np.ndarray) -> None:
        self.x, self.y, self.columns = inputs, outcomes, inputs.shape[1]

    def __call__(self, theta: np.ndarray) -> float:
        scales, noise = np.exp(theta[:-1]), math.exp(theta[-1])
        gram = kernel(scales, self.x, self.x) + (noise + 1e-8) * np.eye(len(self.y))
        solve = np.linalg.solve(gram, np.column_stack([np.ones(len(self.y)), self.y]))
        rest = self.y - solve[:, 1].sum() / solve[:, 0].sum()
        likelihood = -0.5 * rest @ np.linalg.solve(gram, rest) - 0.5 * np.linalg.slogdet(gram)[1]
        centre = math.sqrt(2) + 0.5 * math.log(self.columns)
        prior = -(((theta[:-1] - centre) ** 2).sum()) / 6 - theta[:-1].sum() - (theta[-1] + 4) ** 2 / 8 - theta[-1]
        return float(likelihood + prior)

    def of(self, process: Process) -> float:
        return self(np.append(np.log(process.scales), math.log(process.noise)))


@pytest.fixture(scope="module")
def process() -> Process:
    x = np.random.default_rng(0).random((40, 3))
    return Process.fitted(x, 7.0 + 3.0 * waves(x))


def test_predicts_what_it_has_not_seen(process: Process) -> None:
    x = np.random.default_rng(1).random((50, 3))
    mean, variance = process.posterior(x)
    error = process.location + process.spread * mean - (7.0 + 3.0 * waves(x))
    assert np.sqrt((error**2).mean()) < 0.1
    assert (np.abs(error) < 4 * process.spread * np.sqrt(variance) + 0.02).mean() > 0.9


def test_the_posterior_is_that_of_the_textbook(process: Process) -> None:
    at = np.random.default_rng(9).random((30, 3))
    mean, covariance = predicted(process, process.inputs, process.outcomes, at)
    found, variance = process.posterior(at)
    assert found == pytest.approx(mean, abs=1e-5)
    assert variance == pytest.approx(np.diag(covariance), abs=1e-5)
    assert process.means(at) == pytest.approx(found, abs=1e-9)


@pytest.mark.parametrize("exponent", [-1000, -1, 900, 1020])
def test_the_unit_of_the_outcomes_changes_nothing(exponent: int) -> None:
    """Not even where their squares are no numbers."""
    x = np.random.default_rng(0).random((12, 3))
    one, other = (Process.fitted(x, np.ldexp(waves(x), e)) for e in (0, exponent))
    assert np.array_equal(one.posterior(x), other.posterior(x))
    assert (other.location, other.spread) == (math.ldexp(one.location, exponent), math.ldexp(one.spread, exponent))


def test_length_scales_say_what_matters(process: Process) -> None:
    assert process.scales[0] < process.scales[1] < process.scales[2]


def test_fit_is_a_stationary_point(process: Process) -> None:
    density = Density(process.inputs, process.outcomes)
    found = np.append(np.log(process.scales), math.log(process.noise))
    top = density(found)
    for axis in range(4):
        for step in (-0.3, 0.3):
            moved = found + step * np.eye(4)[axis]
            moved[:3] = np.minimum(moved[:3], math.log(MOST_SCALE))  # as far as the fit may go
            moved[3] = max(moved[3], math.log(LEAST.noise))
            assert density(moved) < top + 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_finds_a_high_top(seed: int) -> None:
    """Not far below the highest of some random starts."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    x = rng.random((25, 2))
    y = np.sin(4 * x[:, 0]) + x[:, 1] ** 2 + 0.1 * rng.standard_normal(25)
    process = Process.fitted(x, y)
    density = Density(x, process.outcomes)
    bounds = [(math.log(LEAST.scale), math.log(MOST_SCALE))] * 2 + [(math.log(LEAST.noise), math.log(MOST_NOISE))]
    starts = rng.uniform([low for low, _ in bounds], [high for _, high in bounds], (5, 3))
    best = min(minimize(lambda theta: -density(theta), start, bounds=bounds).fun for start in starts)
    assert density.of(process) > -best - 0.5


def test_other_observations_keep_the_hyperparameters(process: Process) -> None:
    """The mean is the likeliest one of theirs."""
    x = np.random.default_rng(5).random((60, 3))
    told = process.conditioned_on(x, waves(x))
    assert np.array_equal(told.scales, process.scales)
    assert told.noise == process.noise
    gram = kernel(told.scales, x, x) + told.noise * np.eye(60)
    weights = np.linalg.solve(gram, np.ones(60))
    assert told.mean == pytest.approx(weights @ told.outcomes / weights.sum(), abs=1e-5)


def test_believing_is_conditioning_on_what_was_expected(process: Process) -> None:
    """As if all were observed, but with the mean as it was: the mean stays, and the variance falls."""
    rng = np.random.default_rng(3)
    there, at = rng.random((5, 3)), rng.random((40, 3))
    inputs = np.concatenate([process.inputs, there])
    expected, covariance = predicted(process, inputs, np.append(process.outcomes, process.means(there)), at)
    mean, variance = process.fantasizing(there).posterior(at)
    assert mean == pytest.approx(expected, abs=1e-5)
    assert mean == pytest.approx(process.means(at), abs=1e-5)
    assert variance == pytest.approx(np.diag(covariance), abs=1e-5)
    assert (variance < process.posterior(at)[1] + 1e-9).all()
    assert process.fantasizing(there[:0]) is process


def test_samples_have_the_posteriors_moments(process: Process) -> None:
    at = np.random.default_rng(3).random((4, 3))
    draws = process.sample(at, np.random.default_rng(4).standard_normal((4, 20000)))
    mean, covariance = predicted(process, process.inputs, process.outcomes, at)
    assert draws.mean(axis=1) == pytest.approx(mean, abs=0.02)
    assert np.cov(draws) == pytest.approx(covariance, abs=0.02)


def test_a_tiny_cell_is_seen_in_its_units() -> None:
    """Inputs of a box of one millionth, with points that nearly coincide, and many fantasized between them."""
    x = np.random.default_rng(7).random((60, 3))
    x[30:] = x[:30] + 1e-7
    side = np.full(3, 1e-6)
    plain, tiny = Process.fitted(x, waves(x)), Process.fitted(0.5 + 1e-6 * x, waves(x), units=side)
    at = np.random.default_rng(8).random((90, 3))
    assert tiny.posterior(0.5 + 1e-6 * at)[0] == pytest.approx(plain.posterior(at)[0], abs=0.02)
    assert np.isfinite(tiny.fantasizing(0.5 + 1e-6 * at).posterior(0.5 + 1e-6 * at)[0]).all()


def living() -> int:
    """How many models have not been freed."""
    return sum(issubclass(type(found), (SingleTaskGP, ModelListGP)) for found in gc.get_objects())


def test_models_are_freed_without_the_garbage_collector(process: Process) -> None:
    """They hold large matrices, and the collector of a driver with many objects runs rarely."""
    x = np.random.default_rng(6).random((12, 3))
    gc.disable()
    try:
        before = living()
        one, other = Process.fitted(x, waves(x)), process.fantasizing(x)
        lists = together([one, other])
        lists.posterior(tensor(x))
        assert living() == before + 3  # that with the two starts of the fit is gone
        del one, other, lists
        assert living() == before
    finally:
        gc.enable()


def test_what_goes_wrong_in_the_libraries_is_an_arithmetic_error() -> None:
    from linear_operator.utils.errors import NotPSDError

    with pytest.raises(ArithmeticError, match="NotPSDError: no factor"), computing(0):
        raise NotPSDError("no factor")
    with pytest.raises(TypeError), computing(0):
        raise TypeError("a fault of ours")


def found_with(threads: int) -> list[list[float]]:
    """Hyperparameters, predictions and proposals, computed with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = np.random.default_rng(0).random((150, 5))
        y = waves(x) + x[:, 2]
        process = Process.fitted(x, y)
        space = Space({name: Float(0.0, 1.0) for name in "abcde"})
        rows = [
            {"trial": trial, "state": "completed", "origin": "evaluated", "value": value, "target": value}
            | dict(zip("abcde", point, strict=True))
            for trial, (point, value) in enumerate(zip(x[:40].tolist(), y[:40].tolist(), strict=True))
        ]
        asks = [make_optimizer(name, space, 1).ask(pd.DataFrame(rows), 1) for name in ("bo", "mosaic")]
    finally:
        torch.set_num_threads(before)
    proposed = [space.encode(ask.proposals[0].parameters).tolist() for ask in asks]
    return [[*process.scales, process.noise], process.means(x[::10]).tolist(), *proposed]


def test_one_thread_or_two_make_no_difference() -> None:
    """But for rounding: a thousandth in what is proposed, less in what is predicted."""
    one, two = found_with(1), found_with(2)
    assert two[0] == pytest.approx(one[0], rel=1e-3)
    assert two[1] == pytest.approx(one[1], abs=1e-5)
    assert two[2:] == [pytest.approx(point, abs=1e-3) for point in one[2:]]
