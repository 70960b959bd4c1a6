"""The process: its gradients, what it predicts, and that it is BoTorch's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpo_cluster.optimizers.bayesian.gaussian_process import (
    LEAST,
    MOST_SCALE,
    NOISE_PRIOR,
    Basis,
    Density,
    Kernel,
    Process,
)


def waves(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(5 * x[:, 0]) + (x[:, 1] - 0.4) ** 2)


@pytest.fixture(params=["rbf", "matern"])
def process(request: pytest.FixtureRequest) -> Process:
    x = np.random.default_rng(0).random((40, 3))
    return Process.fitted(x, 7.0 + 3.0 * waves(x), request.param)


def test_predicts_what_it_has_not_seen(process: Process) -> None:
    x = np.random.default_rng(1).random((50, 3))
    mean, variance = process.posterior(x)
    error = process.location + process.spread * mean - (7.0 + 3.0 * waves(x))
    assert np.sqrt((error**2).mean()) < 0.1
    assert (np.abs(error) < 4 * process.spread * np.sqrt(variance) + 0.02).mean() > 0.9


@pytest.mark.parametrize("exponent", [-1000, -1, 900, 1020])
def test_the_unit_of_the_outcomes_changes_nothing(exponent: int) -> None:
    """Not even where their squares are no numbers."""
    x = np.random.default_rng(0).random((12, 3))
    one, other = (Process.fitted(x, np.ldexp(waves(x), e), "matern") for e in (0, exponent))
    assert np.array_equal(one.posterior(x), other.posterior(x))
    assert (other.location, other.spread) == (math.ldexp(one.location, exponent), math.ldexp(one.spread, exponent))


def test_length_scales_say_what_matters(process: Process) -> None:
    assert process.scales[0] < process.scales[1] < process.scales[2]


def test_fit_is_a_stationary_point(process: Process) -> None:
    """Of the posterior density, computed here from its definition."""
    x, y, c = process.inputs, process.outcomes, 3

    def density(theta: np.ndarray) -> float:
        scales, noise = np.exp(theta[:c]), math.exp(theta[c])
        gram = Basis(process.kernel, x, scales).correlations(x) + (noise + 1e-8) * np.eye(len(y))
        solve = np.linalg.solve(gram, np.column_stack([np.ones(len(y)), y]))
        rest = y - solve[:, 1].sum() / solve[:, 0].sum()
        likelihood = -0.5 * rest @ np.linalg.solve(gram, rest) - 0.5 * np.linalg.slogdet(gram)[1]
        centre = math.sqrt(2) + 0.5 * math.log(c)
        prior = -(((theta[:c] - centre) ** 2).sum()) / 6 - theta[:c].sum() - (theta[c] + 4) ** 2 / 8 - theta[c]
        return float(likelihood + prior)

    found = np.append(np.log(process.scales), math.log(process.noise))
    top = density(found)
    for axis in range(c + 1):
        for step in (-0.3, 0.3):
            moved = found + step * np.eye(c + 1)[axis]
            moved[:c] = np.minimum(moved[:c], math.log(MOST_SCALE))  # as far as the fit may go
            moved[c] = max(moved[c], math.log(LEAST.noise))
            assert density(moved) < top + 1e-3


def test_means_are_the_posteriors(process: Process) -> None:
    at = np.random.default_rng(9).random((30, 3))
    assert process.means(at) == pytest.approx(process.posterior(at)[0], abs=1e-6)


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


def test_inputs_far_from_the_origin_are_as_good_as_near_ones() -> None:
    """As they are in units of a tiny cell; with points that nearly coincide, and many believed between them."""
    x = np.random.default_rng(7).random((60, 3))
    x[30:] = x[:30] + 1e-7
    near, far = (Process.fitted(x + away, waves(x), "matern") for away in (0.0, 1e6))
    at = np.random.default_rng(8).random((90, 3))
    assert far.posterior(at + 1e6)[0] == pytest.approx(near.posterior(at)[0], abs=0.02)
    assert np.isfinite(far.believing(at + 1e6).posterior(at + 1e6)[0]).all()


@pytest.mark.parametrize("kernel", ["rbf", "matern"])
def test_the_gradient_of_the_density_is_right(kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    density = Density(kernel, rng.random((15, 3)), rng.standard_normal(15))
    at = np.array([-0.5, 0.3, 1.0, -3.0])
    _, gradient = density.negative(at)
    steps = 1e-6 * np.eye(4)
    numeric = [(density.negative(at + s)[0] - density.negative(at - s)[0]) / 2e-6 for s in steps]
    assert gradient == pytest.approx(numeric, rel=1e-5)


def test_matern_is_scikit_learns() -> None:
    from sklearn.gaussian_process.kernels import Matern

    rng = np.random.default_rng(0)
    x, at, scales = rng.random((6, 2)), rng.random((5, 2)), np.array([0.3, 2.0])
    assert Basis("matern", x, scales).correlations(at) == pytest.approx(Matern(scales, nu=2.5)(x, at))


@pytest.mark.parametrize("kernel", ["rbf", "matern"])
def test_density_and_posterior_are_botorchs(kernel: Kernel) -> None:
    """Of its model with the same priors, at some hyperparameters; the density up to a constant."""
    import torch
    from botorch.models import SingleTaskGP
    from gpytorch.kernels import MaternKernel, RBFKernel
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior

    rng = np.random.default_rng(0)
    x, at = rng.random((25, 2)), rng.random((40, 2))
    y = 5 + np.sin(4 * x[:, 0]) + x[:, 1] ** 2 + 0.1 * rng.standard_normal(25)
    prior = LogNormalPrior(math.sqrt(2) + 0.5 * math.log(2), math.sqrt(3))
    kinds = {"rbf": lambda: RBFKernel(ard_num_dims=2, lengthscale_prior=prior)}
    kinds["matern"] = lambda: MaternKernel(2.5, ard_num_dims=2, lengthscale_prior=prior)
    theirs = SingleTaskGP(torch.from_numpy(x), torch.from_numpy(y).unsqueeze(-1), covar_module=kinds[kernel]())
    theirs.likelihood.noise_covar.register_prior("noise_prior", LogNormalPrior(*NOISE_PRIOR), "noise")
    mll = ExactMarginalLogLikelihood(theirs.likelihood, theirs)
    standard = (y - y.mean()) / y.std(ddof=1)
    density = Density(kernel, x, standard)
    differences = []
    for scales, noise in (((0.3, 0.8), 0.01), ((2.0, 0.2), 0.3), ((0.1, 5.0), 0.002)):
        ours = Process.conditioned(kernel, x, standard, np.array(scales), noise, y.mean(), y.std(ddof=1))
        theirs.covar_module.lengthscale = torch.tensor(scales, dtype=torch.float64)
        theirs.likelihood.noise = torch.tensor([noise], dtype=torch.float64)
        theirs.mean_module.constant = ours.mean
        theirs.train()
        value = 25 * float(mll(theirs(*theirs.train_inputs), theirs.train_targets).detach())
        differences.append(value + density.negative(np.log([*scales, noise]))[0])
        theirs.eval()
        posterior = theirs.posterior(torch.from_numpy(at))
        mean, variance = ours.posterior(at)
        assert ours.location + ours.spread * mean == pytest.approx(posterior.mean.detach().numpy()[:, 0], abs=1e-4)
        assert ours.spread**2 * variance == pytest.approx(posterior.variance.detach().numpy()[:, 0], abs=1e-5)
    assert differences == pytest.approx([differences[0]] * 3, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_finds_a_high_top(seed: int) -> None:
    """Not far below the highest of 20 random starts."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    x = rng.random((25, 2))
    y = np.sin(4 * x[:, 0]) + x[:, 1] ** 2 + 0.1 * rng.standard_normal(25)
    density = Density("matern", x, (y - y.mean()) / y.std(ddof=1))
    scales, noise = density.mode(LEAST)
    found = density.negative(np.log([*scales, noise]))[0]
    bounds = [(math.log(LEAST.scale), math.log(MOST_SCALE))] * 2 + [(math.log(LEAST.noise), 0.0)]
    starts = rng.uniform([low for low, _ in bounds], [high for _, high in bounds], (20, 3))
    best = min(minimize(density.negative, start, jac=True, bounds=bounds).fun for start in starts)
    assert found < best + 0.5


def test_believing_is_conditioning_on_what_was_expected(process: Process) -> None:
    """As if all were fitted anew, but with the mean as it was."""
    rng = np.random.default_rng(3)
    there, at = rng.random((5, process.inputs.shape[1])), rng.random((40, process.inputs.shape[1]))
    inputs = np.concatenate([process.inputs, there])
    gram = Basis(process.kernel, inputs, process.scales).correlations(inputs) + process.noise * np.eye(len(inputs))
    cross = Basis(process.kernel, inputs, process.scales).correlations(at)
    told = np.concatenate([process.outcomes, process.means(there)]) - process.mean
    mean, variance = process.believing(there).posterior(at)
    assert mean == pytest.approx(process.mean + cross.T @ np.linalg.solve(gram, told), abs=1e-5)
    assert variance == pytest.approx(1.0 - (cross * np.linalg.solve(gram, cross)).sum(axis=0), abs=1e-5)
