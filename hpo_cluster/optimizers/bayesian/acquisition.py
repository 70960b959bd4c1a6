"""What Bayesian optimization maximises: BoTorch's acquisition functions of one point, with pending trials.

Each is made of a `Process` and gives values (``b``) at inputs (``b x 1 x c``), in units of the standardised outcomes. A
term is added to another by adding their values, since all but the bound and the draw are logarithms.

    noisy_improvement  ``qLogNoisyExpectedImprovement``: over the best of the observed and the pending points
    improvement        ``LogExpectedImprovement`` over the best outcome; with pending points ``qLogExpectedImprovement``
    upper_bound        ``UpperConfidenceBound``, as if the posterior mean had been observed at pending points (GP-BUCB)
    drawn              ``PathwiseThompsonSampling``: one function drawn from the process
    feasibility        ``LogProbabilityOfFeasibility`` by a process of labels, times `CAUTION`
    guided             ``PriorGuidedAcquisitionFunction``: with the priors of a space (piBO)

`climbed` maximises one from several starts, all in one evaluation (``gen_candidates_scipy``).

References: S. Ament, S. Daulton, D. Eriksson, M. Balandat and E. Bakshy, "Unexpected Improvements to Expected
Improvement for Bayesian Optimization", NeurIPS 2023 (arXiv:2310.20708); T. Desautels, A. Krause and J. W. Burdick,
"Parallelizing Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization", JMLR 15, 2014, section 3;
J. T. Wilson, V. Borovitskiy, A. Terenin, P. Mostowsky and M. P. Deisenroth, "Efficiently Sampling Functions from
Gaussian Process Posteriors", ICML 2020 (arXiv:2002.09309).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from botorch.acquisition import LogExpectedImprovement, PriorGuidedAcquisitionFunction, UpperConfidenceBound
from botorch.acquisition.analytic import LogProbabilityOfFeasibility
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.acquisition.utils import prune_inferior_points
from botorch.generation.gen import gen_candidates_scipy
from botorch.posteriors import Posterior
from botorch.sampling.normal import SobolQMCNormalSampler
from numpy.typing import NDArray
from torch import Tensor, nn

from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.gaussian_process import LEAST_VARIANCE, Array, LowerBounds, Process, tensor
from hpo_cluster.space import Categorical

#: Inputs (``b x 1 x c``) to values (``b``).
Acquisition: TypeAlias = Callable[[Tensor], Tensor]

#: Of the observed points, keep the `LOOKED_AT` with the highest upper bounds and draw `LOOKS` joint samples at them, to
#: find the points that may be the best.
LOOKED_AT, LOOKS = 64, 256

#: Inputs that are scored at once, and most steps of a gradient search.
SCORED, ASCENT = 512, 30

#: Power of the probability of feasibility: the process of labels is too sure of itself near the edge.
CAUTION = 8

#: Lower bounds of the length-scales and noise variance of the process of labels, which would otherwise follow each
#: step between labels.
LABELS = LowerBounds(scale=0.3, noise=0.03)


def noisy_improvement(
    process: Process, pending: Array, draws: int, seed: int, known: Array | None = None
) -> Acquisition:
    """Return the logarithm of the expected improvement over observed and pending points (``p x c``).

    Args:
        process: fitted.
        pending: ``p x c``.
        draws: Monte Carlo samples.
        seed: of the samples.
        known: what counts as observed (``n x c``), if not the inputs of the process.
    """
    known = process.inputs if known is None else known
    best = prune_inferior_points(process.gp, _highest(process, known), sampler=sampler_of(LOOKS, seed))
    return NoisyImprovement(process, best, tensor(pending), sampler_of(draws, seed))


def improvement(process: Process, pending: Array, draws: int, seed: int, best: float | None = None) -> Acquisition:
    """Return the logarithm of the expected improvement over the best outcome, with pending points (``p x c``).

    `best` (standardised) takes the place of the highest outcome where not every outcome is acceptable or at the top.
    """
    best = float(process.outcomes.max()) if best is None else best
    if len(pending) == 0:
        return LogExpectedImprovement(process.gp, best)  # type: ignore[no-any-return]
    sampler = sampler_of(draws, seed)
    return qLogExpectedImprovement(process.gp, best, sampler, X_pending=tensor(pending))  # type: ignore[no-any-return]


def upper_bound(process: Process, pending: Array, beta: float) -> Acquisition:
    """Return the upper confidence bound; `beta` is the square of its width in standard deviations."""
    return UpperConfidenceBound(process.fantasizing(pending).gp, beta)  # type: ignore[no-any-return]


def drawn(process: Process) -> Acquisition:
    """Return one function drawn from the process, with PyTorch's generator as it is."""
    found = PathwiseThompsonSampling(process.gp)
    found(tensor(process.inputs[:1])[:, None])  # draws it
    return found  # type: ignore[no-any-return]


def feasibility(process: Process) -> Acquisition:
    """Return the logarithm of the probability of feasibility, times `CAUTION`.

    Args:
        process: of labels, 1 for what could be evaluated and -1 for what could not.
    """
    zero = -process.location / process.spread
    return Sum([LogProbabilityOfFeasibility(Observed(process), {0: (zero, None)})], CAUTION)


def feasibility_penalty(feasible: Acquisition, power: float = CAUTION) -> Acquisition:
    """Return a penalty, to be added to acquisition functions that are not logarithms.

    It is the logarithm of the probability of feasibility minus that of one half, and 0 where that would be positive.

    Args:
        feasible: logarithm of the probability of feasibility, times `power`.
        power: see `feasible`.
    """
    return lambda inputs: (feasible(inputs) + power * math.log(2)).clamp(max=0.0)


def guided(acquisition: Acquisition, features: Features, weight: float) -> Acquisition:
    """Return the acquisition function plus the weighted logarithm of the priors' density (piBO)."""
    whole = Sum([acquisition])  # BoTorch wants a module, with the attribute `model`
    return PriorGuidedAcquisitionFunction(  # type: ignore[no-any-return]
        whole, LogPrior(features), log=True, prior_exponent=weight
    )


class NoisyImprovement(qLogNoisyExpectedImprovement):  # type: ignore[misc]
    """BoTorch's function with the same draws, at single inputs only, for a fraction of the time.

    BoTorch computes the joint posterior of each input and of the points that it is compared with, again for each input.
    What follows from these points alone is kept here. With a root ``R`` of the inverse covariance of the outcomes, and
    the Cholesky factor ``L`` of the posterior covariance of the points, the draws at ``x`` are

        mean(x) + z u + z_x sqrt(1 - v v - u u),    v = k(x, observed) R,    L u = k(x, points) - V v

    where ``V`` is ``v`` of the points, ``z`` and ``z_x`` are the standard normal numbers of the points and of ``x``.

    Args:
        process: of the columns.
        best: observed points that may be the best (``r x c``).
        pending: points in flight (``p x c``).
        sampler: of the numbers.
    """

    def __init__(self, process: Process, best: Tensor, pending: Tensor, sampler: SobolQMCNormalSampler) -> None:
        super().__init__(process.gp, best, sampler, X_pending=pending, prune_baseline=False)
        points, observed = self.X_baseline, tensor(process.inputs)
        with torch.no_grad():
            super()._get_samples_and_objectives(points[:1, None])  # draws the numbers
            (weights, root), count = process.caches, len(observed)
            unit = torch.eye(len(points), dtype=torch.float64)
            inverse = torch.linalg.solve_triangular(self._baseline_L, unit, upper=False).T
            solved = torch.zeros(count + len(points), count + len(points) + 1, dtype=torch.float64)
            solved[:count, :count] = root
            solved[:count, count:-1] = -root @ (process.covariance(points, observed) @ root).T @ inverse
            solved[count:, count:-1] = inverse
            solved[:count, -1] = weights
        self._process, self._mean, self._every = process, process.mean, torch.cat([observed, points])
        self._solved = solved  # from the covariance with every point to v, u and the mean
        self._numbers = self.sampler.base_samples.reshape(-1, len(points) + 1)

    def _get_samples_and_objectives(self, X: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803 - BoTorch's name
        """Return the draws at inputs (``b x 1 x c``), as samples and as objectives."""
        solved = self._process.covariance(X[:, 0], self._every) @ self._solved
        parts, mean = solved[:, :-1], solved[:, -1] + self._mean
        across = (1 - parts.square().sum(dim=1)).clamp(min=LEAST_VARIANCE).sqrt()
        along = parts[:, 1 - self._numbers.shape[1] :]
        samples = mean + self._numbers[:, :-1] @ along.T + self._numbers[:, -1:] * across
        return samples[..., None, None], samples[..., None]


class Observed(nn.Module):
    """A process with its noise: labels near a known one are not quite sure.

    Args:
        process: fitted.
    """

    num_outputs, batch_shape = 1, torch.Size()  # what BoTorch asks of a model

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._gp = process.gp

    def posterior(self, X: Tensor, posterior_transform: None = None) -> Posterior:  # noqa: N803 - BoTorch's name
        """Return the posterior of outcomes at inputs (``... x c``)."""
        return self._gp.posterior(X, observation_noise=True)


class Sum(nn.Module):
    """The sum of several acquisition functions, times a factor.

    Args:
        terms: at least one.
        factor: of the sum.
    """

    model = None  # BoTorch asks for it, and uses none

    def __init__(self, terms: Sequence[Acquisition], factor: float = 1.0) -> None:
        super().__init__()
        self._terms, self._factor = tuple(terms), factor

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the values (``b``) at inputs (``b x 1 x c``)."""
        return self._factor * torch.stack([term(inputs) for term in self._terms]).sum(dim=0)


class LogPrior(nn.Module):
    """Logarithm of the priors' density at columns, up to a constant.

    Between two values of a discrete parameter it is interpolated. Unordered choices of more than two, which have no
    values in between, are left out.

    Args:
        features: the columns.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self._normals: list[tuple[int, float, float]] = []  # column, mean and deviation
        self._choices: list[tuple[int, Tensor]] = []  # column, logarithms of the values' probabilities
        for axis, (_, parameter) in enumerate(features.space):
            if parameter.prior is None or features.one_hot[axis]:
                continue
            column, (first, last) = features.start[axis], features.ends[axis]
            if isinstance(parameter, Categorical):
                self._choices.append((column, tensor(np.log(np.array(parameter.prior, dtype=np.float64)))))
            else:
                mean, spread = parameter.prior_position
                self._normals.append((column, (mean - first) / (last - first), spread / (last - first)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the values (``...``) at inputs (``... x c``)."""
        total = torch.zeros_like(inputs[..., 0])
        for column, mean, spread in self._normals:
            total = total - 0.5 * ((inputs[..., column] - mean) / spread) ** 2
        for column, logs in self._choices:
            place = inputs[..., column] * (len(logs) - 1)
            below = place.detach().floor().long().clamp(0, len(logs) - 2)
            total = total + logs[below] + (logs[below + 1] - logs[below]) * (place - below)
        return total


def fantasized(process: Process, pending: Array, averaged: int, most: int) -> tuple[Process, Array]:
    """Return the process and the pending inputs (``p x c``) to average over.

    If more than `averaged` are pending, the process fantasizes its own mean at the `most` best of them, and no input is
    left to average over.
    """
    if len(pending) <= averaged:
        return process, pending
    best = np.argsort(-process.means(pending), kind="stable")[:most]
    return process.fantasizing(pending[best]), pending[:0]


def values_of(acquisition: Acquisition, inputs: Array) -> Array:
    """Return the values (``m``) at inputs (``m x c``)."""
    if len(inputs) == 0:
        return np.empty(0)
    with torch.no_grad():
        parts = [acquisition(tensor(inputs[i : i + SCORED])[:, None]) for i in range(0, len(inputs), SCORED)]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


def climbed(acquisition: Acquisition, starts: Array, moving: NDArray[np.bool_], low: Array, high: Array) -> Array:
    """Return inputs (``k x c``) after L-BFGS-B from each start, all starts in one evaluation.

    Args:
        acquisition: to maximise.
        starts: ``k x c``.
        moving: which columns move (``c``); the others stay as they are in each start.
        low: least values of those that move (``c``).
        high: greatest ones (``c``).
    """
    fixed = {int(column): tensor(starts[:, column]) for column in np.flatnonzero(~moving)}
    begin = np.where(moving, np.clip(starts, low, high), starts)
    with warnings.catch_warnings(record=True):  # a search that ends early is good enough
        ends, _ = gen_candidates_scipy(
            tensor(begin)[:, None],
            acquisition,
            lower_bounds=tensor(low),
            upper_bounds=tensor(high),
            options={"maxiter": ASCENT},
            fixed_features=fixed or None,
        )
    return np.asarray(ends[:, 0].detach().numpy(), dtype=np.float64)


def _highest(process: Process, known: Array) -> Tensor:
    """Return the known inputs with the highest upper bounds (at most `LOOKED_AT`), in their order."""
    mean, variance = process.posterior(known)
    return tensor(known[np.sort(np.argsort(-(mean + 2 * np.sqrt(variance)), kind="stable")[:LOOKED_AT])])


def sampler_of(draws: int, seed: int) -> SobolQMCNormalSampler:
    """Return what draws quasi-random standard normal numbers."""
    return SobolQMCNormalSampler(torch.Size([draws]), seed=seed)
