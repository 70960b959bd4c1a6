"""A small Gaussian process for many fits: some hundred points, milliseconds, numpy and SciPy alone.

What `turbo` and `mosaic` fit to the points of a region. The priors are those of `hpo_cluster.surrogate`; the kernel is
Matérn 5/2, rougher than the RBF, since a region is seen at its own scale. Without output scale; outcomes are
standardised.

Symbols: ``X`` inputs (``n x c``, in units of the region), ``y`` standardised outcomes, ``l`` length-scales (``c``),
``s`` noise variance, ``k`` the kernel, ``L`` Cholesky factor of ``k(X, X) + s I``, ``m`` the constant mean.

References: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, algorithm
2.1 and equation 5.9; C. Hvarfner, E. O. Hellsten and L. Nardi, ICML 2024 (arXiv:2402.02229), for the prior; S. Ament et
al., NeurIPS 2023 (arXiv:2310.20708), for the logarithm of the expected improvement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

#: Bounds of the length-scales and of the noise variance, where the search starts, and the most steps it takes.
SCALES, NOISES = (0.02, 100.0), (1e-6, 1.0)
START_SCALE, START_NOISE, STEPS = 0.7, 1e-3, 30

#: Standardised improvement below which an expansion is used.
FAR = -20.0

#: Added to diagonals whose Cholesky factor is wanted.
JITTER = 1e-8


def matern(a: Array, b: Array, scales: Array) -> Array:
    """Matérn 5/2 correlations (``n x m``) of inputs (``n x c`` and ``m x c``)."""
    middle = a.mean(axis=0)  # inputs in units of a tiny region are large numbers that differ by little
    u, v = (a - middle) / scales, (b - middle) / scales
    square = (u * u).sum(axis=1)[:, None] + (v * v).sum(axis=1)[None, :] - 2.0 * (u @ v.T)
    r = np.sqrt(5.0 * np.maximum(square, 0.0))
    return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r), dtype=np.float64)


@dataclass(frozen=True)
class Process:
    """A process conditioned on observations.

    Args:
        inputs: ``n x c``.
        outcomes: standardised (``n``).
        scales: length-scales (``c``).
        noise: variance.
        mean: the constant.
        location: of the outcomes before they were standardised.
        spread: likewise.
        factor: lower Cholesky factor (``n x n``).
        weights: ``(k(X, X) + s I)^-1 (y - m)`` (``n``).
    """

    inputs: Array
    outcomes: Array
    scales: Array
    noise: float
    mean: float
    location: float
    spread: float
    factor: Array
    weights: Array

    @classmethod
    def fitted(cls, inputs: Array, outcomes: Array) -> Process:
        """Maximum a posteriori from a fixed start.

        Args:
            inputs: ``n x c``, n at least 2.
            outcomes: ``n``, not all equal, in any units.
        """
        location, spread = float(outcomes.mean()), float(outcomes.std())
        y = (outcomes - location) / spread
        scales, noise = _hyperparameters(inputs, y)
        return cls.conditioned(inputs, y, scales, noise, location, spread)

    @classmethod
    def conditioned(
        cls, inputs: Array, y: Array, scales: Array, noise: float, location: float, spread: float
    ) -> Process:
        """The process of standardised outcomes with hyper-parameters as they are."""
        from scipy.linalg import cho_solve

        factor = _root(matern(inputs, inputs, scales) + noise * np.eye(len(y)))
        solved = cho_solve((factor, True), np.column_stack([np.ones(len(y)), y]), check_finite=False)
        mean = float(solved[:, 1].sum() / solved[:, 0].sum())
        weights = solved[:, 1] - mean * solved[:, 0]
        return cls(inputs, y, scales, noise, mean, location, spread, factor, weights)

    def told(self, inputs: Array, outcomes: Array) -> Process:
        """The process of other observations (``n x c`` and ``n``, in any units) with these hyper-parameters."""
        location, spread = float(outcomes.mean()), float(outcomes.std())
        y = (outcomes - location) / spread
        return self.conditioned(inputs, y, self.scales, self.noise, location, spread)

    def believing(self, inputs: Array) -> Process:
        """With its own mean at `inputs` (``m x c``) as if it had been observed there (kriging believer)."""
        mean, _ = self.posterior(inputs)
        joined = np.concatenate([self.inputs, inputs]), np.concatenate([self.outcomes, mean])
        return self.conditioned(*joined, self.scales, self.noise, self.location, self.spread)

    def half(self, inputs: Array) -> tuple[Array, Array]:
        """Posterior mean (``m``) and ``L^-1 k(X, inputs)`` (``n x m``), standardised."""
        from scipy.linalg import solve_triangular

        cross = matern(self.inputs, inputs, self.scales)
        return self.mean + cross.T @ self.weights, solve_triangular(
            self.factor, cross, lower=True, check_finite=False, overwrite_b=True
        )

    def posterior(self, inputs: Array) -> tuple[Array, Array]:
        """Mean and variance (``m`` each) of the noiseless function, standardised."""
        mean, half = self.half(inputs)
        return mean, np.maximum(1.0 - (half * half).sum(axis=0), 1e-12)

    def joint(self, inputs: Array) -> tuple[Array, Array, Array]:
        """Mean (``m``), covariance (``m x m``) and `half` of the noiseless function, standardised."""
        mean, half = self.half(inputs)
        return mean, matern(inputs, inputs, self.scales) - half.T @ half, half

    def sample(self, inputs: Array, normals: Array) -> Array:
        """Joint draws (``m x k``) at `inputs` (``m x c``) from standard normal ones (``m x k``)."""
        mean, covariance, _ = self.joint(inputs)
        return np.asarray(mean[:, None] + _root(covariance) @ normals, dtype=np.float64)


class NoisyImprovement:
    """Logarithm of the expected improvement over the best of the observed and the pending points, both uncertain.

    The values of the process at the best observed points and at the pending ones are drawn jointly, and the analytic
    expected improvement given each draw is averaged: qLogNEI for one point, up to its Monte Carlo error.

    Args:
        process: fitted.
        pending: inputs in flight (``p x c``).
        draws: number of draws.
        seed: of the draws.
        baseline: number of the best observed points that take part.
    """

    def __init__(self, process: Process, pending: Array, draws: int, seed: int, baseline: int = 16) -> None:
        from scipy.linalg import cho_solve
        from scipy.stats import norm, qmc

        self.process = process
        mean, _ = process.posterior(process.inputs)
        best = np.argsort(-mean, kind="stable")[:baseline]
        self.points = np.concatenate([process.inputs[best], pending.reshape(-1, process.inputs.shape[1])])
        mean, covariance, self.half = process.joint(self.points)
        self.root = _root(covariance)
        uniform = qmc.Sobol(len(mean), rng=np.random.default_rng(seed)).random(draws)
        normals = norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6)).T
        deviations = self.root @ normals
        self.best = (mean[:, None] + deviations).max(axis=0)
        self.weights = cho_solve((self.root, True), deviations, check_finite=False)

    def __call__(self, inputs: Array) -> Array:
        """Values (``m``) at inputs (``m x c``)."""
        from scipy.linalg import solve_triangular

        mean, half = self.process.half(inputs)
        cross = matern(self.points, inputs, self.process.scales) - self.half.T @ half
        told = solve_triangular(self.root, cross, lower=True, check_finite=False)
        variance = np.maximum(1.0 - (half * half).sum(axis=0) - (told * told).sum(axis=0), 1e-12)
        deviation = np.sqrt(variance)[:, None]
        means = mean[:, None] + cross.T @ self.weights
        logs = log_improvement((means - self.best) / deviation) + np.log(deviation)
        top = logs.max(axis=1, keepdims=True)
        return np.asarray(top[:, 0] + np.log(np.exp(logs - top).mean(axis=1)), dtype=np.float64)


def log_improvement(u: Array) -> Array:
    """``log(phi(u) + u Phi(u))``, by its expansion far below zero, where the two cancel."""
    from scipy.special import ndtr

    low = np.minimum(u, FAR)
    far = -0.5 * low * low - 0.5 * math.log(2 * math.pi) - 2.0 * np.log(-low) + np.log1p(-3.0 / (low * low))
    high = np.maximum(u, FAR)
    near = np.log(np.exp(-0.5 * high * high) / math.sqrt(2 * math.pi) + high * ndtr(high))
    return np.where(u < FAR, far, near)


def _root(covariance: Array) -> Array:
    """Lower Cholesky factor (``m x m``), with as much added to the diagonal as it takes."""
    jitter = JITTER
    while True:
        try:
            root = np.linalg.cholesky(covariance + jitter * np.eye(len(covariance)))
            return np.asarray(root, dtype=np.float64)
        except np.linalg.LinAlgError:
            jitter *= 10.0


def _hyperparameters(inputs: Array, y: Array) -> tuple[Array, float]:
    """Length-scales (``c``) and noise variance of the highest posterior density found."""
    from scipy.linalg import lapack
    from scipy.optimize import minimize

    n, c = inputs.shape
    centre, width = math.sqrt(2) + 0.5 * math.log(c), math.sqrt(3)
    squares = ((inputs[:, None, :] - inputs[None, :, :]) ** 2).reshape(n * n, c)

    def loss(theta: Array) -> tuple[float, Array]:
        logs, log_noise = theta[:c], theta[c]
        inverse = np.exp(-2.0 * logs)
        r = np.sqrt(5.0 * (squares @ inverse)).reshape(n, n)
        decay = np.exp(-r)
        gram = (1.0 + r + r * r / 3.0) * decay
        gram[np.diag_indices(n)] += math.exp(log_noise) + JITTER
        factor, info = lapack.dpotrf(gram, lower=1)
        if info:
            return 1e10, np.zeros_like(theta)
        precision, _ = lapack.dpotri(factor, lower=1)
        precision = np.tril(precision) + np.tril(precision, -1).T
        ones, told = precision.sum(axis=1), precision @ y
        rest = told - (told.sum() / ones.sum()) * ones  # precision times (y - mean), the mean being the best constant
        residual = y - told.sum() / ones.sum()
        value = 0.5 * residual @ rest + np.log(np.diag(factor)).sum()
        slope = precision - np.outer(rest, rest)
        shared = (slope * ((5.0 / 3.0) * (1.0 + r) * decay)).reshape(n * n)
        gradient = np.empty(c + 1)
        gradient[:c] = 0.5 * (shared @ squares) * inverse
        gradient[c] = 0.5 * np.trace(slope) * math.exp(log_noise)
        value += (((logs - centre) / width) ** 2).sum() / 2 + logs.sum() + (log_noise + 4.0) ** 2 / 2 + log_noise
        gradient[:c] += (logs - centre) / width**2 + 1.0
        gradient[c] += log_noise + 5.0
        return float(value), gradient

    start = np.append(np.full(c, math.log(START_SCALE)), math.log(START_NOISE))
    bounds = [(math.log(SCALES[0]), math.log(SCALES[1]))] * c + [(math.log(NOISES[0]), math.log(NOISES[1]))]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS})
    return np.exp(found.x[:c]), float(np.exp(found.x[c]))
