"""A Gaussian process: hyperparameters, posterior, draws, and the gradients that a search needs. numpy and SciPy alone.

The process has a constant mean, no output scale and one inferred noise level; outcomes are standardised. The prior of
each length-scale is that of BoTorch's ``SingleTaskGP``, a log-normal that grows with the number of columns; that of the
noise is wider and lower, since evaluations of the same configuration mostly agree. With the same kernel and priors the
density and the posterior are BoTorch's (the tests compare them); gradients are written out, so that a fit takes
milliseconds where automatic differentiation takes tenths of a second.

Symbols: ``X`` inputs (``n x c``), ``y`` standardised outcomes, ``l`` length-scales (``c``), ``s`` noise variance, ``k``
the kernel, ``L`` lower Cholesky factor of ``k(X, X) + s I``, ``m`` the constant mean, ``a = L^-1 (y - m)``, ``H(x) =
L^-1 k(X, x)``: the posterior mean is ``m + H'a``, the variance ``1 - H'H``.

References: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, algorithm
2.1, equations 5.8 and 5.9; C. Hvarfner, E. O. Hellsten and L. Nardi, "Vanilla Bayesian Optimization Performs Great in
High Dimensions", ICML 2024 (arXiv:2402.02229), for the prior; M. Balandat et al., "BoTorch: A Framework for Efficient
Monte-Carlo Bayesian Optimization", NeurIPS 2020 (arXiv:1910.06403).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

#: ``rbf`` is smooth; ``matern`` (5/2) is rougher, for what is seen at a small scale.
Kernel: TypeAlias = Literal["rbf", "matern"]

#: Upper bounds of the length-scales and of the noise variance in a fit, and the most steps it takes.
MOST_SCALE, MOST_NOISE, STEPS = 100.0, 1.0, 60

#: Location and scale of the logarithm of the noise variance, and the scale of that of a length-scale.
NOISE_PRIOR, SCALE_SPREAD = (-4.0, 2.0), math.sqrt(3)

#: Logarithms of the noise variance that a fit starts from.
NOISE_STARTS = (-8.0, -2.0)

#: Added to diagonals whose Cholesky factor is wanted.
JITTER = 1e-8

#: Least variance of the noiseless function.
LEAST_VARIANCE = 1e-12


class Least(NamedTuple):
    """Lower bounds of the length-scales and of the noise variance in a fit."""

    scale: float = 0.02
    noise: float = 1e-6


#: The bounds of a fit unless others are given.
LEAST = Least()


class Basis:
    """Inputs of a kernel, and the kernel between them and others.

    Args:
        kernel: which.
        inputs: ``n x c``.
        scales: length-scales (``c``).
    """

    def __init__(self, kernel: Kernel, inputs: Array, scales: Array) -> None:
        self.kernel, self.scales = kernel, scales
        self._middle = inputs.mean(axis=0)  # inputs in units of a tiny region are large numbers that differ by little
        self._z = (inputs - self._middle) / scales
        self._squares = (self._z * self._z).sum(axis=1)

    def correlations(self, inputs: Array) -> Array:
        """The kernel (``n x m``) to inputs (``m x c``)."""
        return correlation(self.kernel, self._distances(self._scaled(inputs)))

    def with_slopes(self, inputs: Array) -> tuple[Array, Array]:
        """The kernel (``n x m``), and what `gradient` needs of its derivative (``n x m``)."""
        return correlation_and_slope(self.kernel, self._distances(self._scaled(inputs)))

    def gradient(self, weights: Array, inputs: Array) -> Array:
        """Gradient (``m x c``) at inputs (``m x c``) of sums of the kernel, by weights times slopes (``n x m``)."""
        z = self._scaled(inputs)
        return np.asarray((weights.T @ self._z - weights.sum(axis=0)[:, None] * z) / self.scales, dtype=np.float64)

    def _scaled(self, inputs: Array) -> Array:
        return np.asarray((inputs - self._middle) / self.scales, dtype=np.float64)

    def _distances(self, z: Array) -> Array:
        squares = self._squares[:, None] + (z * z).sum(axis=1) - 2.0 * (self._z @ z.T)
        return np.asarray(np.maximum(squares, 0.0), dtype=np.float64)


def correlation(kernel: Kernel, squares: Array) -> Array:
    """The kernel at squared distances in units of the length-scales."""
    if kernel == "rbf":
        return np.asarray(np.exp(-0.5 * squares), dtype=np.float64)
    r = np.sqrt(5.0 * squares)
    return np.asarray((1.0 + r + r * r / 3.0) * np.exp(-r), dtype=np.float64)


def correlation_and_slope(kernel: Kernel, squares: Array) -> tuple[Array, Array]:
    """The kernel and minus twice its derivative by the squared distance."""
    if kernel == "rbf":
        found = correlation(kernel, squares)
        return found, found
    r = np.sqrt(5.0 * squares)
    decay = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * decay, (5.0 / 3.0) * (1.0 + r) * decay


class Density:
    """Posterior density of the hyperparameters, up to a constant; the mean is the one that is best given the others.

    Args:
        kernel: which.
        inputs: ``n x c``.
        y: standardised outcomes (``n``).
    """

    def __init__(self, kernel: Kernel, inputs: Array, y: Array) -> None:
        self.kernel, self.y = kernel, y
        self.x = inputs - inputs.mean(axis=0)
        count = inputs.shape[1]
        self.location = np.append(np.full(count, math.sqrt(2) + 0.5 * math.log(count)), NOISE_PRIOR[0])
        self.scale = np.append(np.full(count, SCALE_SPREAD), NOISE_PRIOR[1])

    def negative(self, logs: Array) -> tuple[float, Array]:
        """Minus its logarithm at the logarithms of length-scales and noise (``c + 1``), and the gradient."""
        from scipy.linalg import lapack

        z = self.x * np.exp(-logs[:-1])
        squares = (z * z).sum(axis=1)
        gram, slope = correlation_and_slope(self.kernel, np.maximum(squares[:, None] + squares - 2.0 * (z @ z.T), 0.0))
        gram = gram + (math.exp(logs[-1]) + JITTER) * np.eye(len(z))
        factor, info = lapack.dpotrf(gram, lower=1)
        if info:
            return 1e10, np.zeros_like(logs)
        inverse, _ = lapack.dpotri(factor, lower=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        ones, told = inverse.sum(axis=1), inverse @ self.y
        mean = told.sum() / ones.sum()
        rest = told - mean * ones
        value = 0.5 * (self.y - mean) @ rest + np.log(np.diag(factor)).sum()
        w = inverse - np.outer(rest, rest)
        weights = w * slope  # with D_j the squared differences of column j: sum(weights * D_j) / (2 l_j^2)
        moments = weights.sum(axis=1) @ (z * z) - ((weights @ z) * z).sum(axis=0)
        gradient = np.append(moments, 0.5 * np.trace(w) * math.exp(logs[-1]))
        deviation = (logs - self.location) / self.scale
        return float(value + 0.5 * deviation @ deviation + logs.sum()), gradient + deviation / self.scale + 1.0

    def mode(self, least: Least) -> tuple[Array, float]:
        """Return the length-scales (``c``) and noise variance at the higher of two local maxima found by L-BFGS-B.

        The density often has one maximum with little noise and short length-scales, and one with much noise and long
        ones. Both starts have the length-scales at the modes of their priors.
        """
        from scipy.optimize import minimize

        bounds = np.log([(least.scale, MOST_SCALE)] * (len(self.location) - 1) + [(least.noise, MOST_NOISE)])
        scales = self.location[:-1] - self.scale[:-1] ** 2
        found = []
        for noise in NOISE_STARTS:
            start = np.clip(np.append(scales, noise), bounds[:, 0], bounds[:, 1])
            options = {"maxiter": STEPS}
            found.append(minimize(self.negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options))
        best = min(found, key=lambda result: float(result.fun))
        return np.exp(best.x[:-1]), float(np.exp(best.x[-1]))


@dataclass(frozen=True)
class Process:
    """A process conditioned on observations.

    Args:
        kernel: which.
        inputs: ``n x c``.
        outcomes: standardised (``n``).
        scales: length-scales (``c``).
        noise: variance.
        mean: the constant.
        location: of the outcomes before they were standardised.
        spread: likewise.
        factor: L (``n x n``).
        coordinates: a (``n``).
    """

    kernel: Kernel
    inputs: Array
    outcomes: Array
    scales: Array
    noise: float
    mean: float
    location: float
    spread: float
    factor: Array
    coordinates: Array

    @classmethod
    def fitted(cls, inputs: Array, outcomes: Array, kernel: Kernel, least: Least = LEAST) -> Process:
        """Maximum a posteriori from two fixed starts.

        Args:
            inputs: ``n x c``, n at least 2.
            outcomes: ``n``, not all equal, in any units.
            kernel: which.
            least: bounds of what is fitted.
        """
        y, location, spread = _standardised(outcomes)
        scales, noise = Density(kernel, inputs, y).mode(least)
        return cls.conditioned(kernel, inputs, y, scales, noise, location, spread)

    @classmethod
    def conditioned(
        cls,
        kernel: Kernel,
        inputs: Array,
        y: Array,
        scales: Array,
        noise: float,
        location: float = 0.0,
        spread: float = 1.0,
    ) -> Process:
        """The process of standardised outcomes with hyperparameters as they are, and the best mean."""
        from scipy.linalg import solve_triangular

        factor = root_of(Basis(kernel, inputs, scales).correlations(inputs) + noise * np.eye(len(y)))
        solved = solve_triangular(factor, np.column_stack([np.ones(len(y)), y]), lower=True, check_finite=False)
        mean = float((solved[:, 0] @ solved[:, 1]) / (solved[:, 0] @ solved[:, 0]))
        return cls(kernel, inputs, y, scales, noise, mean, location, spread, factor, solved[:, 1] - mean * solved[:, 0])

    def told(self, inputs: Array, outcomes: Array) -> Process:
        """Return the process of other observations (``n x c`` and ``n``, in any units) with these hyperparameters."""
        y, location, spread = _standardised(outcomes)
        return self.conditioned(self.kernel, inputs, y, self.scales, self.noise, location, spread)

    def believing(self, inputs: Array) -> Process:
        """Return the process that fantasizes its own mean at `inputs` (``m x c``; kriging believer).

        The Cholesky factor is extended by their rows; fantasized outcomes have coordinates of 0.
        """
        means, covariance, half = self.joint(inputs)
        return replace(
            self,
            inputs=np.concatenate([self.inputs, inputs]),
            outcomes=np.concatenate([self.outcomes, means]),
            factor=grown(self.factor, half, root_of(covariance + self.noise * np.eye(len(means)))),
            coordinates=np.concatenate([self.coordinates, np.zeros(len(means))]),
        )

    @cached_property
    def basis(self) -> Basis:
        """The kernel from the inputs to others."""
        return Basis(self.kernel, self.inputs, self.scales)

    @cached_property
    def weights(self) -> Array:
        """``(k(X, X) + s I)^-1 (y - m)`` (``n``)."""
        from scipy.linalg import solve_triangular

        found = solve_triangular(self.factor, self.coordinates, lower=True, trans="T", check_finite=False)
        return np.asarray(found, dtype=np.float64)

    def means(self, inputs: Array) -> Array:
        """Posterior mean (``m``) at inputs (``m x c``), standardised: much cheaper than with the variance."""
        return np.asarray(self.mean + self.basis.correlations(inputs).T @ self.weights, dtype=np.float64)

    def half(self, inputs: Array) -> Array:
        """H (``n x m``) of inputs (``m x c``)."""
        from scipy.linalg import solve_triangular

        cross = self.basis.correlations(inputs)
        found = solve_triangular(self.factor, cross, lower=True, check_finite=False, overwrite_b=True)
        return np.asarray(found, dtype=np.float64)

    def posterior(self, inputs: Array) -> tuple[Array, Array]:
        """Mean and variance (``m`` each) of the noiseless function at inputs (``m x c``), standardised."""
        half = self.half(inputs)
        return self.mean + half.T @ self.coordinates, variance_of(half)

    def joint(self, inputs: Array) -> tuple[Array, Array, Array]:
        """Mean (``m``), covariance (``m x m``) of the noiseless function and H at inputs (``m x c``), standardised."""
        half = self.half(inputs)
        prior = Basis(self.kernel, inputs, self.scales).correlations(inputs)
        return self.mean + half.T @ self.coordinates, prior - half.T @ half, half

    def sample(self, inputs: Array, normals: Array) -> Array:
        """Joint draws (``m x k``) at inputs (``m x c``) from standard normal numbers (``m x k``)."""
        mean, covariance, _ = self.joint(inputs)
        return np.asarray(mean[:, None] + root_of(covariance) @ normals, dtype=np.float64)


class Fitted:
    """Remembers the last process fitted under each name: a cache, whose loss costs time and changes nothing."""

    def __init__(self, kernel: Kernel, least: Least = LEAST) -> None:
        self._kernel: Kernel = kernel
        self._least = least
        self._last: dict[object, tuple[bytes, Process]] = {}

    def process(self, name: object, inputs: Array, outcomes: Array) -> Process:
        """See `Process.fitted`."""
        digest = inputs.tobytes() + outcomes.tobytes()
        if name not in self._last or self._last[name][0] != digest:
            self._last[name] = digest, Process.fitted(inputs, outcomes, self._kernel, self._least)
        return self._last[name][1]


def root_of(covariance: Array) -> Array:
    """Return the lower Cholesky factor (``m x m``), with as much added to the diagonal as is necessary."""
    jitter = JITTER
    while True:
        try:
            root = np.linalg.cholesky(covariance + jitter * np.eye(len(covariance)))
            return np.asarray(root, dtype=np.float64)
        except np.linalg.LinAlgError:
            jitter *= 10.0


def grown(factor: Array, half: Array, root: Array) -> Array:
    """Extend a lower Cholesky factor (``n x n``) by points: their H (``n x m``) and the root of their covariance."""
    return np.block([[factor, np.zeros_like(half)], [half.T, root]])


def variance_of(half: Array) -> Array:
    """Variance (``m``) of the noiseless function, standardised, from H (``n x m``)."""
    return np.asarray(np.maximum(1.0 - (half * half).sum(axis=0), LEAST_VARIANCE), dtype=np.float64)


def _standardised(outcomes: Array) -> tuple[Array, float, float]:
    """Return the outcomes (``n``) scaled to mean 0 and variance 1, and their former mean and deviation.

    They are scaled by a power of two first, which rounds nothing: squares of extreme numbers would overflow or vanish.
    """
    unit = int(np.frexp(np.abs(outcomes).max())[1])
    shares = np.ldexp(outcomes, -unit)
    location, spread = float(shares.mean()), float(shares.std(ddof=1))
    return (shares - location) / spread, float(np.ldexp(location, unit)), float(np.ldexp(spread, unit))
