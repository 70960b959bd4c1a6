"""What Bayesian optimization maximises: acquisition functions of one point, with pending trials and gradients.

Each is made of a `Process` and gives values (``m``) at inputs (``m x c``), in units of the standardised outcomes; with
gradients (``m x c``) on demand. A term is added to another by adding their values, since all but the bound and the draw
are logarithms.

Symbols: ``f`` the process, ``x`` a point, ``X`` observed points, ``P`` pending points, ``B`` the best observed points,
``Phi`` and ``phi`` the standard normal distribution and its density.

    NoisyImprovement   log E[ max(0, f(x) - max(b, f(B), f(P))) ]: values at B and P are drawn jointly, and given each
                       draw the expectation is the analytic one. With B the likely best points and no b that is qLogNEI
                       for one point, up to its Monte Carlo error; with b the best outcome and no B it is LogEI, which
                       looks only for what is better than the pending points turn out
    UpperBound         mean + sqrt(beta) deviation, the latter as if there were outcomes at P already (GP-BUCB)
    Draw               one function drawn from the process (Thompson sampling), as random waves and a correction
    Feasibility        log of the probability that a configuration can be evaluated at all, by a process of the labels,
                       times `CAUTION`

References: S. Ament, S. Daulton, D. Eriksson, M. Balandat and E. Bakshy, "Unexpected Improvements to Expected
Improvement for Bayesian Optimization", NeurIPS 2023 (arXiv:2310.20708); B. Letham, B. Karrer, G. Ottoni and E. Bakshy,
"Constrained Bayesian Optimization with Noisy Experiments", Bayesian Analysis 14(2), 495-519, 2019, section 4; T.
Desautels, A. Krause and J. W. Burdick, "Parallelizing Exploration-Exploitation Tradeoffs in Gaussian Process Bandit
Optimization", JMLR 15, 2014, section 3; J. T. Wilson, V. Borovitskiy, A. Terenin, P. Mostowsky and M. P. Deisenroth,
"Efficiently Sampling Functions from Gaussian Process Posteriors", ICML 2020 (arXiv:2002.09309), equation 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.bayesian.gaussian_process import Array, Basis, Least, Process, grown, root_of, variance_of

#: Standardised improvement below which an expansion is used.
FAR = -20.0

#: Waves that a drawn function is made of.
WAVES = 1024

#: Keep the `BOUNDED` observed points with the highest posterior means; of those, keep the `LOOKED_AT` with the highest
#: upper bounds and draw `LOOKS` joint samples at them, to find the points that may be the best.
BOUNDED, LOOKED_AT, LOOKS = 256, 64, 256

#: Power of the probability of feasibility: the process of labels is too sure of itself near the edge.
CAUTION = 8

#: Lower bounds of the length-scales and noise variance of the process of labels, which would otherwise follow each
#: step between labels.
LABELS = Least(scale=0.3, noise=0.03)


class Acquisition(Protocol):
    """A function to maximise."""

    def __call__(self, inputs: Array) -> Array:
        """Values (``m``) at inputs (``m x c``)."""

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """The same, and their gradients (``m x c``)."""


class Conditioned:
    """The process given more points ``Z = (X, P)``: with ``J`` the factor of their covariance, ``H(x) = J^-1 k(Z, x)``.

    Args:
        process: of the observations.
        points: P (``p x c``, p may be 0).
        noise: variance of the noise of the outcomes at P.
    """

    def __init__(self, process: Process, points: Array, noise: float = 0.0) -> None:
        self.process, self.factor, self.basis = process, process.factor, process.basis
        self.mean, self.root = np.empty(0), np.empty((0, 0))
        if len(points):
            self.mean, covariance, half = process.joint(points)
            self.root = root_of(covariance + noise * np.eye(len(points)))
            self.factor = grown(process.factor, half, self.root)
            self.basis = Basis(process.kernel, np.concatenate([process.inputs, points]), process.scales)

    def half(self, inputs: Array) -> Array:
        """H (``(n + p) x m``)."""
        return self._solved(self.basis.correlations(inputs))

    def half_with_slopes(self, inputs: Array) -> tuple[Array, Array]:
        """H, and what `gradient` needs."""
        cross, slopes = self.basis.with_slopes(inputs)
        return self._solved(cross), slopes

    def gradient(self, by_half: Array, slopes: Array, inputs: Array) -> Array:
        """Gradient (``m x c``) at inputs, from that by H (``(n + p) x m``)."""
        from scipy.linalg import solve_triangular

        by_cross = solve_triangular(self.factor, by_half, lower=True, trans="T", check_finite=False)
        return self.basis.gradient(by_cross * slopes, inputs)

    def _solved(self, cross: Array) -> Array:
        from scipy.linalg import solve_triangular

        return np.asarray(solve_triangular(self.factor, cross, lower=True, check_finite=False), dtype=np.float64)


class NoisyImprovement:
    """Logarithm of the expected improvement over uncertain values.

    Args:
        process: fitted.
        pending: inputs in flight (``p x c``).
        draws: number of draws.
        seed: of the draws.
        least: b, standardised; None: the best observed points take part instead (B).
    """

    def __init__(self, process: Process, pending: Array, draws: int, seed: int, least: float | None = None) -> None:
        best = process.inputs[likely_best(process, seed)] if least is None else pending[:0]
        self._given = Conditioned(process, np.concatenate([best, pending]))
        count = len(self._given.mean)
        normals = _normals(count, draws, seed) if count else np.empty((0, 1))
        values = self._given.mean[:, None] + self._given.root @ normals
        floor = -math.inf if least is None else least
        self._best = values.max(axis=0, initial=floor)
        shared = np.broadcast_to(process.coordinates[:, None], (len(process.coordinates), normals.shape[1]))
        self._coordinates = np.concatenate([shared, normals])

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        return self._values(self._given.half(inputs))[0]

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        half, slopes = self._given.half_with_slopes(inputs)
        values, weights, u, deviation = self._values(half)
        rise = weights * _rise(u)  # of each draw's logarithm with u, by its share of the value
        lift = (weights - rise * u).sum(axis=1) / (deviation * deviation)
        by_half = self._coordinates @ (rise / deviation[:, None]).T - half * lift
        return values, self._given.gradient(by_half, slopes, inputs)

    def _values(self, half: Array) -> tuple[Array, Array, Array, Array]:
        """Values (``m``), each draw's share and standardised improvement (``m x k`` each), deviations (``m``)."""
        deviation = np.sqrt(variance_of(half))
        means = self._given.process.mean + half.T @ self._coordinates
        u = (means - self._best) / deviation[:, None]
        logs = log_improvement(u)
        top = logs.max(axis=1, keepdims=True)
        shares = np.exp(logs - top)
        total = shares.sum(axis=1, keepdims=True)
        values = top[:, 0] + np.log(total[:, 0] / u.shape[1]) + np.log(deviation)
        return values, shares / total, u, deviation


class Scaled:
    """An acquisition function of inputs in other units.

    Args:
        acquisition: of inputs divided by `units`.
        units: ``c``.
    """

    def __init__(self, acquisition: Acquisition, units: Array) -> None:
        self._acquisition, self._units = acquisition, units

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        return self._acquisition(inputs / self._units)

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        values, gradient = self._acquisition.with_gradient(inputs / self._units)
        return values, gradient / self._units


class UpperBound:
    """Upper confidence bound.

    Args:
        process: fitted.
        pending: inputs in flight (``p x c``).
        beta: square of the bound's width in standard deviations.
    """

    def __init__(self, process: Process, pending: Array, beta: float) -> None:
        self._given = Conditioned(process, pending, process.noise)
        self._width = math.sqrt(beta)
        self._coordinates = np.append(process.coordinates, np.zeros(len(self._given.mean)))

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        return self._values(self._given.half(inputs))[0]

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        half, slopes = self._given.half_with_slopes(inputs)
        values, deviation = self._values(half)
        by_half = self._coordinates[:, None] - self._width * half / deviation
        return values, self._given.gradient(by_half, slopes, inputs)

    def _values(self, half: Array) -> tuple[Array, Array]:
        deviation = np.sqrt(variance_of(half))
        return self._given.process.mean + half.T @ self._coordinates + self._width * deviation, deviation


class Draw:
    """One function drawn from the process.

    Args:
        process: fitted.
        seed: of the draw.
    """

    def __init__(self, process: Process, seed: int) -> None:
        from scipy.linalg import solve_triangular

        rng = np.random.default_rng(seed)
        self._process = process
        self._middle = process.inputs.mean(axis=0)
        frequencies = rng.standard_normal((process.inputs.shape[1], WAVES))
        if process.kernel == "matern":
            frequencies /= np.sqrt(rng.chisquare(5, WAVES) / 5)
        self._frequencies = frequencies / process.scales[:, None]
        self._phases = rng.uniform(0.0, 2 * math.pi, WAVES)
        self._heights = rng.standard_normal(WAVES) * math.sqrt(2 / WAVES)
        noise = math.sqrt(process.noise) * rng.standard_normal(len(process.inputs))
        wanting = process.outcomes - process.mean - self._waves(process.inputs)[0] - noise
        half = solve_triangular(process.factor, wanting, lower=True, check_finite=False)
        self._weights = solve_triangular(process.factor, half, lower=True, trans="T", check_finite=False)

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        correction = self._process.basis.correlations(inputs).T @ self._weights
        return np.asarray(self._process.mean + self._waves(inputs)[0] + correction, dtype=np.float64)

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        cross, slopes = self._process.basis.with_slopes(inputs)
        waves, angles = self._waves(inputs)
        gradient = -(np.sin(angles) * self._heights) @ self._frequencies.T
        gradient += self._process.basis.gradient(self._weights[:, None] * slopes, inputs)
        return self._process.mean + waves + cross.T @ self._weights, gradient

    def _waves(self, inputs: Array) -> tuple[Array, Array]:
        angles = (inputs - self._middle) @ self._frequencies + self._phases
        return np.cos(angles) @ self._heights, angles


class Feasibility:
    """Logarithm of the probability of feasibility, times `CAUTION`.

    Args:
        process: of labels, 1 for what could be evaluated and -1 for what could not.
    """

    def __init__(self, process: Process) -> None:
        self._given = Conditioned(process, process.inputs[:0])

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        from scipy.special import log_ndtr

        return np.asarray(CAUTION * log_ndtr(self._standardised(self._given.half(inputs))[0]), dtype=np.float64)

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        from scipy.special import log_ndtr

        half, slopes = self._given.half_with_slopes(inputs)
        u, variance = self._standardised(half)
        values = log_ndtr(u)
        rise = np.exp(-0.5 * u * u - 0.5 * math.log(2 * math.pi) - values)
        coordinates = self._given.process.coordinates[:, None]
        by_half = CAUTION * rise * (coordinates / np.sqrt(variance) + half * (u / variance))
        return CAUTION * values, self._given.gradient(by_half, slopes, inputs)

    def _standardised(self, half: Array) -> tuple[Array, Array]:
        """Return by how many standard deviations the label lies above 0 (``m``), and its variance."""
        process = self._given.process
        variance = variance_of(half) + process.noise
        mean = process.location / process.spread + process.mean + half.T @ process.coordinates
        return mean / np.sqrt(variance), variance


class Doubt:
    """The log feasibility minus that of a probability of one half, where that is negative; 0 elsewhere."""

    def __init__(self, feasibility: Feasibility) -> None:
        self._feasibility = feasibility

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        return np.minimum(self._feasibility(inputs) + CAUTION * math.log(2), 0.0)

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        values, gradient = self._feasibility.with_gradient(inputs)
        doubted = values + CAUTION * math.log(2)
        return np.minimum(doubted, 0.0), np.where(doubted[:, None] < 0, gradient, 0.0)


class Sum:
    """The sum of several acquisition functions.

    Args:
        terms: at least one.
    """

    def __init__(self, terms: Sequence[Acquisition]) -> None:
        self._terms = terms

    def __call__(self, inputs: Array) -> Array:
        """See `Acquisition`."""
        return np.asarray(sum(term(inputs) for term in self._terms), dtype=np.float64)

    def with_gradient(self, inputs: Array) -> tuple[Array, Array]:
        """See `Acquisition`."""
        found = [term.with_gradient(inputs) for term in self._terms]
        return sum(values for values, _ in found), sum(gradient for _, gradient in found)  # type: ignore[return-value]


def believed(process: Process, pending: Array, averaged: int, most: int) -> tuple[Process, Array]:
    """Return the process and the pending inputs (``p x c``) to average over.

    If more than `averaged` are pending, the process fantasizes its own mean at the `most` best of them, and no input is
    left to average over.
    """
    if len(pending) <= averaged:
        return process, pending
    best = np.argsort(-process.means(pending), kind="stable")[:most]
    return process.believing(pending[best]), pending[:0]


def likely_best(process: Process, seed: int) -> NDArray[np.int64]:
    """Return the indices of the observed points that are the best one in some joint sample."""
    high = np.sort(np.argsort(-process.means(process.inputs), kind="stable")[:BOUNDED])
    mean, variance = process.posterior(process.inputs[high])
    first = high[np.argsort(-(mean + 2 * np.sqrt(variance)), kind="stable")[:LOOKED_AT]]
    normals = np.random.default_rng(seed).standard_normal((len(first), LOOKS))
    best: NDArray[np.int64] = first[np.unique(process.sample(process.inputs[first], normals).argmax(axis=0))]
    return best


def log_improvement(u: Array) -> Array:
    """``log(phi(u) + u Phi(u))``, by its expansion far below zero, where the two terms cancel."""
    from scipy.special import ndtr

    low = np.minimum(u, FAR)
    far = -0.5 * low * low - 0.5 * math.log(2 * math.pi) - 2.0 * np.log(-low) + np.log1p(-3.0 / (low * low))
    high = np.maximum(u, FAR)
    near = np.log(np.exp(-0.5 * high * high) / math.sqrt(2 * math.pi) + high * ndtr(high))
    return np.where(u < FAR, far, near)


def _rise(u: Array) -> Array:
    """Derivative of `log_improvement`."""
    from scipy.special import log_ndtr

    return np.asarray(np.exp(log_ndtr(u) - log_improvement(u)), dtype=np.float64)


def _normals(count: int, draws: int, seed: int) -> Array:
    """Quasi-random standard normal numbers (``count x draws``)."""
    from scipy.stats import norm, qmc

    uniform = qmc.Sobol(count, rng=np.random.default_rng(seed)).random(draws)
    return np.asarray(norm.ppf(np.clip(uniform, 1e-6, 1 - 1e-6)).T, dtype=np.float64)
