"""The Gaussian process that stands for the objective: what it is trained on, how it is fitted, what it recommends.

The model is BoTorch's `SingleTaskGP` with its defaults: an RBF kernel with one length-scale for each column and without
output scale, a length-scale prior that grows with the number of columns, one inferred noise level, standardised
outcomes. It is trained on the canonical points of what was really evaluated.

Trials that diverged or were infeasible count as the worst value observed so far, recomputed at each fit; trials that
failed or were cancelled for reasons that have nothing to do with their configuration are not told.

The *outcome* decides what the process sees of a value ``y``, with ``m`` the median and ``b`` the best of the values, so
that a cliff or a deep valley is not what a stationary process spends its length-scales on:

    raw     ``y``
    soft    ``m - s log(1 + (m - y) / s)`` below ``m``, where ``s`` is ``b - m``, at least `SOFT_FLOOR` of the spread,
            and ``y`` from ``m`` on. Strictly monotone, slope 1 at ``m``: what is low stays low, but comes nearer
    clip    ``max(y, m)``: all that is low becomes flat ground, at the height of the median
    winsor  ``max(y, q - 2 (b - q))`` with ``q`` the median of the upper half

Hyper-parameters are fitted at certain numbers of observations only (`fitted_size`): up to `FITTED_EACH` with each new
one, from there on whenever there are a tenth more, always to those that ended first. In between the process is
conditioned on all of them with the hyper-parameters as they are. Beyond `FITTED_MOST` and `CONDITIONED_MOST` a process
of all observations would cost too much: `thinned` chooses those that it is fitted to and conditioned on. All of this
follows from the history alone.

Where ``clip`` or ``winsor`` would leave nothing of different values, ``raw`` is used. On a plateau beside a cliff both
lift the cliff's foot to nearly the height of the plateau; soft keeps it apart, and is the default.
``docs/design/bo_outcome.md`` has the measurements, which do not tell the scales apart on smooth functions.

References: C. Hvarfner, E. O. Hellsten and L. Nardi, "Vanilla Bayesian Optimization Performs Great in High Dimensions",
ICML 2024 (arXiv:2402.02229), for the prior; M. Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo
Bayesian Optimization", NeurIPS 2020 (arXiv:1910.06403).

torch, botorch and gpytorch are imported where they are used: importing this module is cheap.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.hyperparameters import Hyperparameters, Posterior
from hpo_cluster.optimizers.rows import Row, Rows
from hpo_cluster.space import Categorical, Space

if TYPE_CHECKING:
    import pandas as pd
    import torch

Outcome: TypeAlias = Literal["soft", "clip", "winsor", "raw"]

#: Least scale of the outcome `soft`, as a share of the spread of the targets: more than half of them may be the best.
SOFT_FLOOR = 1e-3

#: Greatest depth that `unscaled` climbs down, so that the target stays a number.
DEEPEST = 50.0

#: Observations up to which hyper-parameters are fitted with each new one.
FITTED_EACH = 60

#: Most observations that hyper-parameters are fitted to, and that the process is conditioned on.
FITTED_MOST, CONDITIONED_MOST = 400, 1000


class SurrogateError(Exception):
    """There is no model of these observations; the message says why."""


class Features:
    """The columns that the surrogate sees, each in [0, 1].

    A real parameter is its coordinate in the unit cube. An integer, an ordered choice or a choice of two is its
    coordinate stretched so that its first and last value are 0 and 1. An unordered choice of more is one column for
    each value, 1 for the one chosen (one-hot). The column of an inactive parameter is 0.5, and one-hot columns share
    1 equally, so that all its values are alike.

    Args:
        space: the space of the points.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names: list[str] = []  # of the columns
        self.start: list[int] = []  # first column of each parameter
        self.one_hot: list[bool] = []
        self._ends: list[tuple[float, float]] = []  # canonical coordinates of a parameter's first and last value
        for name, parameter in space:
            choices = parameter.choices if isinstance(parameter, Categorical) and not parameter.ordered else ()
            self.start.append(len(self.names))
            self.one_hot.append(len(choices) > 2)
            first, last = (parameter.encode(parameter.decode(u)) for u in (0.0, 1.0))
            self._ends.append((first, last) if last > first else (0.0, 1.0))
            self.names += [f"{name}={choice}" for choice in choices] if len(choices) > 2 else [name]

    @property
    def dim(self) -> int:
        """Number of columns."""
        return len(self.names)

    def encode(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Columns (``n x c``) of canonical points (``n x d``)."""
        out = np.zeros((len(points), self.dim))
        active = self.space.active(points)
        for axis, (start, (first, last)) in enumerate(zip(self.start, self._ends, strict=True)):
            if self.one_hot[axis]:
                count = self._count(axis)
                out[np.arange(len(points)), start + self._index(axis, points[:, axis])] = 1.0
                out[~active[:, axis], start : start + count] = 1 / count
            else:
                out[:, start] = np.where(active[:, axis], (points[:, axis] - first) / (last - first), 0.5)
        return out

    def decode(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Canonical points (``n x d``) of columns (``n x c``), those of discrete parameters rounded to a value."""
        out = np.zeros((len(columns), self.space.dim))
        for axis, (start, (first, last)) in enumerate(zip(self.start, self._ends, strict=True)):
            if self.one_hot[axis]:
                count = self._count(axis)
                out[:, axis] = (columns[:, start : start + count].argmax(axis=1) + 0.5) / count
            else:
                out[:, axis] = first + columns[:, start] * (last - first)
        return self.space.snap(out)

    def log_prior(self, columns: torch.Tensor) -> torch.Tensor:
        """Logarithm of the priors' density (``...``), up to a constant, at columns (``... x c``); it has a gradient.

        Between two values of a discrete parameter it is interpolated. Unordered choices of more than two, which have
        no values in between, are left out.
        """
        import torch

        total = torch.zeros(columns.shape[:-1], dtype=columns.dtype)
        for axis, (_, parameter) in enumerate(self.space):
            if parameter.prior is None or self.one_hot[axis]:
                continue
            column, (first, last) = columns[..., self.start[axis]], self._ends[axis]
            if isinstance(parameter, Categorical):
                logs = torch.log(torch.tensor(parameter.prior, dtype=columns.dtype))
                at = column * (len(logs) - 1)
                below = at.detach().floor().long().clamp(0, len(logs) - 2)
                total = total + torch.lerp(logs[below], logs[below + 1], at - below)
            else:
                mean, spread = parameter.prior_position
                total = total - 0.5 * ((first + column * (last - first) - mean) / spread) ** 2
        return total

    def _index(self, axis: int, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which choice coordinates (``n``) stand for."""
        count = self._count(axis)
        return np.minimum((u * count).astype(np.int64), count - 1)

    def _count(self, axis: int) -> int:
        """Number of columns of a parameter."""
        ends = [*self.start[1:], self.dim]
        return ends[axis] - self.start[axis]


def scaled(targets: NDArray[np.float64], outcome: Outcome) -> NDArray[np.float64]:
    """What the process sees of maximised targets (``n``), in their units: never of another order, see the module.

    Where nothing is left of different targets, they are returned as they are.
    """
    if outcome == "raw" or len(targets) == 0 or not np.ptp(targets) > 0:
        return targets
    best, median = targets.max(), np.median(targets)
    if outcome == "soft":
        scale = max(best - median, SOFT_FLOOR * np.ptp(targets))
        depth = np.maximum(median - targets, 0.0) / scale
        return np.where(targets < median, median - scale * np.log1p(depth), targets)
    if outcome == "winsor":
        upper = np.median(np.sort(targets)[len(targets) // 2 :])
        raised = np.maximum(targets, upper - 2 * (best - upper))
    else:
        raised = np.maximum(targets, median)
    return raised if np.ptp(raised) > 0 else targets


def unscaled(outcome_value: float, targets: NDArray[np.float64], outcome: Outcome) -> float:
    """The target that an outcome stands for: the inverse of `scaled` for ``soft``, the same for the other scales.

    Args:
        outcome_value: in the scale of the outcomes, anywhere.
        targets: the ones observed (``n``).
        outcome: the scale.
    """
    if outcome != "soft" or len(targets) == 0 or not np.ptp(targets) > 0:
        return outcome_value
    best, median = targets.max(), np.median(targets)
    scale = max(best - median, SOFT_FLOOR * np.ptp(targets))
    depth = min(max(median - outcome_value, 0.0) / scale, DEEPEST)
    return float(median - scale * np.expm1(depth)) if depth > 0 else outcome_value


@dataclass(frozen=True)
class Observations:
    """What the surrogate is trained on.

    Args:
        trials: numbers (``n``).
        points: canonical points (``n x d``, unit cube).
        targets: maximised (``n``), with the values given to trials that have none.
        measured: whether the target was measured (``n``).
    """

    trials: NDArray[np.int64]
    points: NDArray[np.float64]
    targets: NDArray[np.float64]
    measured: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Rows, first: int | None = None) -> Observations:
        """The rows that tell something, in trial order. Without one measured value there are none.

        Args:
            rows: the history.
            first: take only so many, those that ended first; what has no value is the worst among these.
        """
        if first is None:
            return cls.of_rows(rows.space, rows)
        told = [row for row in rows if row.observed or row.low]
        told = sorted(told, key=lambda row: (math.isnan(row.ended), row.ended, row.trial))[:first]
        return cls.of_rows(rows.space, sorted(told, key=lambda row: row.trial))

    @classmethod
    def of_rows(cls, space: Space, rows: Iterable[Row]) -> Observations:
        """The same for some rows, in their order."""
        rows = list(rows)
        worst = min((row.target for row in rows if row.observed), default=None)
        told = [row for row in rows if row.observed or row.low] if worst is not None else []
        return cls(
            trials=np.array([row.trial for row in told], dtype=np.int64),
            points=np.array([row.point for row in told], dtype=np.float64).reshape(-1, space.dim),
            targets=np.array([row.target if row.observed else worst for row in told], dtype=np.float64),
            measured=np.array([row.observed for row in told], dtype=np.bool_),
        )

    def outcomes(self, outcome: Outcome) -> NDArray[np.float64]:
        """The targets (``n``) as the process sees them."""
        return scaled(self.targets, outcome)

    def __len__(self) -> int:
        return len(self.trials)

    def chosen(self, indices: NDArray[np.int64]) -> Observations:
        """Those of certain indices (``k``)."""
        return Observations(self.trials[indices], self.points[indices], self.targets[indices], self.measured[indices])

    def digest(self) -> bytes:
        """Equal for equal points and targets in the same order."""
        return self.points.tobytes() + self.targets.tobytes()


def fitted_size(n: int) -> int:
    """With how many observations the hyper-parameters are fitted when there are `n`: at most `n`, never less before."""
    size = FITTED_EACH
    while (grown := -(-11 * size // 10)) <= n:
        size = grown
    return n if n <= FITTED_EACH else size


def thinned(observations: Observations, count: int) -> Observations:
    """At most `count` observations: the best half of that number, then each time the one farthest from those chosen.

    The distance is Euclidean in the unit cube, ties go to the earlier trial.
    """
    n = len(observations)
    if n <= count:
        return observations
    chosen = list(np.argsort(-observations.targets, kind="stable")[: count // 2])
    points = observations.points
    squares = (points * points).sum(axis=1)
    near = (squares[:, None] + squares[chosen] - 2 * points @ points[chosen].T).min(axis=1)
    near[chosen] = -1.0
    while len(chosen) < count:
        i = int(near.argmax())
        chosen.append(i)
        near = np.minimum(near, squares + squares[i] - 2 * points @ points[i])
        near[chosen] = -1.0
    return observations.chosen(np.array(sorted(chosen), dtype=np.int64))


@dataclass(frozen=True)
class Surrogate:
    """A fitted model.

    Args:
        features: its columns.
        observations: what it was trained on.
        outcomes: the targets as it saw them (``n``, original units).
        model: BoTorch's.
    """

    features: Features
    observations: Observations
    outcomes: NDArray[np.float64]
    model: Any

    def mean(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Posterior mean (``m``, units of the target) at canonical points (``m x d``)."""
        import torch

        with quiet_torch(0), torch.no_grad():
            mean = self.model.posterior(self.tensor(points)).mean.squeeze(-1)
        return np.asarray(mean.numpy(), dtype=np.float64)

    def believe(
        self, points: NDArray[np.float64], pending: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Posterior mean and standard deviation (``m`` each, units of the outcomes), the latter with pending trials.

        Where a trial runs is known, what it will tell is not: the mean stays, the variance falls by what an observation
        there will explain (Desautels, Krause and Burdick, JMLR 15, 2014, section 3).

        Args:
            points: canonical points (``m x d``).
            pending: those in flight (``p x d``, p may be 0).
        """
        import torch

        with quiet_torch(0), torch.no_grad():
            posterior = self.model.posterior(self.tensor(np.concatenate([points, pending])))
            mean = posterior.mean.squeeze(-1)[: len(points)].numpy()
            covariance = posterior.distribution.covariance_matrix.numpy()
        variance, count = covariance.diagonal()[: len(points)].copy(), len(points)
        if len(pending):
            noise = float(self.model.likelihood.noise.detach().reshape(-1)[0]) * float(self.outcomes.var(ddof=1))
            across = covariance[:count, count:]
            explained = np.linalg.solve(covariance[count:, count:] + noise * np.eye(len(pending)), across.T)
            variance -= (across * explained.T).sum(axis=1)
        return np.asarray(mean, dtype=np.float64), np.sqrt(np.maximum(variance, 0.0))

    def tensor(self, points: NDArray[np.float64]) -> torch.Tensor:
        """Columns (``m x c``, float64) of canonical points (``m x d``)."""
        import torch

        return torch.from_numpy(self.features.encode(points))

    @property
    def hyperparameters(self) -> Hyperparameters:
        """To condition a process on other observations with."""
        scales = self.model.covar_module.lengthscale.detach().reshape(-1).tolist()
        noise = float(self.model.likelihood.noise.detach().reshape(-1)[0])
        return Hyperparameters(tuple(scales), noise, float(self.model.mean_module.constant.detach()))

    def believing(self, points: NDArray[np.float64]) -> Surrogate:
        """The process with its own mean at `points` (``m x d``) as if it had been observed there (kriging believer).

        What is pending no longer attracts: the mean hardly changes and the variance falls.
        """
        trials = np.full(len(points), -1, dtype=np.int64)
        joined = Observations(
            np.concatenate([self.observations.trials, trials]),
            np.concatenate([self.observations.points, points]),
            np.concatenate([self.outcomes, self.mean(points)]),
            np.concatenate([self.observations.measured, np.zeros(len(points), dtype=np.bool_)]),
        )
        return conditioned(self.features, joined, "raw", self.hyperparameters)

    def describe(self) -> dict[str, Any]:
        """Length-scales by column and the noise's standard deviation in units of the target: plain data."""
        scales = self.model.covar_module.lengthscale.detach().reshape(-1).tolist()
        noise = float(self.model.likelihood.noise.detach().reshape(-1)[0]) ** 0.5
        spread = float(self.outcomes.std(ddof=1))
        return {
            "length_scales": {n: round(s, 6) for n, s in zip(self.features.names, scales, strict=True)},
            "noise": float(f"{noise * spread:.6g}"),
        }


@contextlib.contextmanager
def quiet_torch(seed: int) -> Iterator[None]:
    """torch with its own random state and one thread, without warnings; everything is put back afterwards."""
    import torch

    threads, state = torch.get_num_threads(), np.random.get_state()  # noqa: NPY002 - saved only to be put back
    # recorded, not only ignored: BoTorch switches its warnings on again where it raises them
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            np.random.set_state(state)  # noqa: NPY002


def fit(features: Features, observations: Observations, outcome: Outcome, seed: int) -> Surrogate:
    """Fit the process by maximum a posteriori.

    Args:
        features: the columns.
        observations: at least two of different outcome.
        outcome: what the process sees of a value.
        seed: of torch's generator meanwhile.

    Raises:
        SurrogateError: too few different values, or no fit is possible.
    """
    outcomes = observations.outcomes(outcome)
    if len(outcomes) < 2 or not np.ptp(outcomes) > 0:
        raise SurrogateError(f"{len(np.unique(outcomes))} distinct values observed, at least 2 are needed")
    import torch
    from botorch.exceptions.errors import BotorchError
    from botorch.models import SingleTaskGP

    with quiet_torch(seed):
        try:
            columns = features.encode(observations.points)
            model = SingleTaskGP(torch.from_numpy(columns), torch.from_numpy(outcomes).unsqueeze(-1))
            kernel, noise = model.covar_module, model.likelihood.noise_covar
            priors = [(float(p.loc), float(p.scale)) for p in (kernel.lengthscale_prior, noise.noise_prior)]
            lowest = [float(c.lower_bound) for c in (kernel.raw_lengthscale_constraint, noise.raw_noise_constraint)]
            scaled_outcomes = (outcomes - outcomes.mean()) / outcomes.std(ddof=1)
            found = Posterior(columns, scaled_outcomes, *priors).mode(*lowest)
            kernel.lengthscale = torch.tensor(found.length_scales, dtype=torch.float64)
            model.likelihood.noise = torch.tensor([found.noise], dtype=torch.float64)
            model.mean_module.initialize(constant=found.mean)
            model.eval()
        except (BotorchError, RuntimeError, ValueError, ArithmeticError) as error:
            raise SurrogateError(f"the fit failed: {type(error).__name__}: {error}") from error
    return Surrogate(features, observations, outcomes, model)


def conditioned(
    features: Features, observations: Observations, outcome: Outcome, hyperparameters: Hyperparameters
) -> Surrogate:
    """The process of `observations` with hyper-parameters that were fitted to others.

    Args:
        features: the columns.
        observations: at least two of different outcome.
        outcome: what the process sees of a value.
        hyperparameters: fitted with the same columns.

    Raises:
        SurrogateError: too few different values.
    """
    outcomes = observations.outcomes(outcome)
    if len(outcomes) < 2 or not np.ptp(outcomes) > 0:
        raise SurrogateError(f"{len(np.unique(outcomes))} distinct values observed, at least 2 are needed")
    import torch
    from botorch.models import SingleTaskGP

    with quiet_torch(0):
        x = torch.from_numpy(features.encode(observations.points))
        model = SingleTaskGP(x, torch.from_numpy(outcomes).unsqueeze(-1))
        model.covar_module.lengthscale = torch.tensor(hyperparameters.length_scales, dtype=torch.float64)
        model.likelihood.noise = torch.tensor([hyperparameters.noise], dtype=torch.float64)
        model.mean_module.constant = hyperparameters.mean
        model.eval()
    return Surrogate(features, observations, outcomes, model)


def model_of(features: Features, rows: Rows, outcome: Outcome, seed: int) -> Surrogate:
    """The process of a history: hyper-parameters of `fitted_size`, conditioned on what was observed since.

    A pure function of the history. It costs a fit only where `FittedModels` does not remember the last one.

    Raises:
        SurrogateError: too few different values, or no fit converged.
    """
    return FittedModels().model_of(features, rows, outcome, seed)


class FittedModels:
    """Remembers the last fit and the last model: caches, whose loss costs time and changes nothing."""

    def __init__(self) -> None:
        self._fit: tuple[bytes, Surrogate] | None = None
        self._model: tuple[bytes, Surrogate] | None = None

    def model_of(self, features: Features, rows: Rows, outcome: Outcome, seed: int) -> Surrogate:
        """See the function of that name."""
        every = Observations.of(rows)
        observations = thinned(every, CONDITIONED_MOST)
        digest = observations.digest()
        if self._model is None or self._model[0] != digest:
            size = fitted_size(len(every))
            first = thinned(Observations.of(rows, size), FITTED_MOST)
            known = first.digest()
            if self._fit is None or self._fit[0] != known:
                self._fit = known, fit(features, first, outcome, seed)
            fitted = self._fit[1]
            if known != digest:
                fitted = conditioned(features, observations, outcome, fitted.hyperparameters)
            self._model = digest, fitted
        return self._model[1]


def recommend(history: pd.DataFrame, space: Space, outcome: Outcome = "soft", seed: int = 0) -> int | None:
    """Number of the evaluated trial with the best posterior mean.

    With noisy values the highest one is partly luck; the mean borrows from the neighbours. Where no model can be fitted
    it is the trial of the highest target.

    Args:
        history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        space: the campaign's.
        outcome: what the process sees of a value.
        seed: of torch's generator meanwhile.

    Returns:
        A trial that completed, or None where there is none.
    """
    rows = Rows.read(space, history)
    best = rows.best
    if best is None:
        return None
    try:
        surrogate = model_of(Features(space), rows, outcome, seed)
    except SurrogateError:
        return best.trial
    observations = surrogate.observations
    means = np.where(observations.measured, surrogate.mean(observations.points), -np.inf)
    return int(observations.trials[int(means.argmax())])
