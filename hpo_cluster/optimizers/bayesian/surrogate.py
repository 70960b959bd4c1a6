"""The Gaussian process that stands for the objective: how it is fitted to a history, what it recommends.

A `Process` on the `Features` of the configurations and the outcomes of the `Observations`: what `bo` and the trees
share. ``docs/design/surrogate.md`` has the decisions and the measurements.

Hyperparameters are fitted at certain numbers of observations only (`fitted_size`): up to `FITTED_EACH` with each new
one, from there on whenever there are a tenth more, always to those that ended first. In between the process is
conditioned on all of them with the hyperparameters as they are. A process of very many observations would cost too
much: `thinned` chooses those that it is fitted to (`FITTED_MOST`) and conditioned on (`CONDITIONED_MOST` of those that
there were at the last fit, `SINCE_MOST` of the others). All of this follows from the history alone.

Configurations that were evaluated more than once enter with each of their values: the likelihood of the noise holds
what their differences say about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.bayesian.acquisition import LABELS, Conditioned, Feasibility
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.gaussian_process import Fitted, Kernel, Process
from hpo_cluster.optimizers.bayesian.observations import Observations, Outcome, fitted_size, thinned
from hpo_cluster.optimizers.dataset import Rows
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import State

if TYPE_CHECKING:
    import pandas as pd

#: The rougher of the two: ``docs/design/surrogate.md`` has the measurements.
KERNEL: Kernel = "matern"

#: Most observations that hyperparameters are fitted to, that the process is conditioned on of those there were then,
#: and of those since.
FITTED_MOST, CONDITIONED_MOST, SINCE_MOST = 300, 500, 150

#: Trials that feasibility is learned from at most: the last ones.
LABELLED = 400


class SurrogateError(Exception):
    """There is no model of these observations; the message says why."""


@dataclass(frozen=True)
class Surrogate:
    """A fitted model.

    Args:
        features: its columns.
        observations: what it was trained on.
        outcomes: the targets as it saw them (``n``, original units).
        process: of the columns.
    """

    features: Features
    observations: Observations
    outcomes: NDArray[np.float64]
    process: Process

    def mean(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Posterior mean (``m``, units of the outcomes) at canonical points (``m x d``)."""
        return self.process.location + self.process.spread * self.process.means(self.features.encode(points))

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
        given = Conditioned(self.process, self.features.encode(pending), self.process.noise)
        half = given.half(self.features.encode(points))
        deviation = np.sqrt(np.maximum(1.0 - (half * half).sum(axis=0), 0.0))
        return self.mean(points), self.process.spread * deviation

    def predict(self, configurations: Iterable[Configuration]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Posterior mean and standard deviation (``m`` each, units of the outcomes) of the noiseless target there."""
        space = self.features.space
        points = np.array([space.encode(configuration) for configuration in configurations])
        return self.believe(points.reshape(-1, space.dim), np.empty((0, space.dim)))

    def describe(self) -> dict[str, Any]:
        """Length-scales by column and the noise's standard deviation in units of the target: plain data."""
        scales = zip(self.features.names, self.process.scales.tolist(), strict=True)
        return {
            "length_scales": {name: round(scale, 6) for name, scale in scales},
            "noise": float(f"{self.process.noise**0.5 * self.process.spread:.6g}"),
        }


def fit(features: Features, observations: Observations, outcome: Outcome) -> Surrogate:
    """Fit the process by maximum a posteriori.

    Args:
        features: the columns.
        observations: at least two of different outcome.
        outcome: what the process sees of a value.

    Raises:
        SurrogateError: too few different values, or no fit is possible.
    """
    return _surrogate(features, observations, outcome, lambda x, y: Process.fitted(x, y, KERNEL))


def conditioned(fitted: Surrogate, observations: Observations, outcome: Outcome) -> Surrogate:
    """The process of other observations with the hyperparameters of a fitted one.

    Raises:
        SurrogateError: too few different values.
    """
    return _surrogate(fitted.features, observations, outcome, fitted.process.told)


def _surrogate(
    features: Features,
    observations: Observations,
    outcome: Outcome,
    make: Callable[[NDArray[np.float64], NDArray[np.float64]], Process],
) -> Surrogate:
    outcomes = observations.outcomes(outcome)
    if len(outcomes) < 2 or not np.ptp(outcomes) > 0:
        raise SurrogateError(f"{len(np.unique(outcomes))} distinct values observed, at least 2 are needed")
    try:
        process = make(features.encode(observations.points), outcomes)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise SurrogateError(f"the fit failed: {type(error).__name__}: {error}") from error
    return Surrogate(features, observations, outcomes, process)


class FittedModels:
    """The process of a history, with the last fit and the last model remembered.

    A pure function of the history: what is remembered is a cache, whose loss costs time and changes nothing.

    Args:
        features: the columns.
        outcome: what the process sees of a value.
    """

    def __init__(self, features: Features, outcome: Outcome) -> None:
        self.features, self.outcome = features, outcome
        self._fit: tuple[bytes, Surrogate, NDArray[np.int64]] | None = None
        self._model: tuple[bytes, Surrogate] | None = None

    def model_of(self, every: Observations) -> Surrogate:
        """Hyperparameters of `fitted_size` observations, conditioned on what was observed since.

        Args:
            every: what the history tells, in trial order.

        Raises:
            SurrogateError: too few different values, or no fit is possible.
        """
        if self._model is None or self._model[0] != every.digest():
            first = every.first(fitted_size(len(every)))
            if self._fit is None or self._fit[0] != first.digest():
                fitted = fit(self.features, thinned(first, FITTED_MOST), self.outcome)
                self._fit = first.digest(), fitted, thinned(first, CONDITIONED_MOST).trials
            _, fitted, kept = self._fit
            since = thinned(every.chosen(np.flatnonzero(~np.isin(every.trials, first.trials))), SINCE_MOST)
            chosen = np.isin(every.trials, np.concatenate([kept, since.trials]))
            if chosen.sum() > len(fitted.observations):
                fitted = conditioned(fitted, every.chosen(np.flatnonzero(chosen)), self.outcome)
            self._model = every.digest(), fitted
        return self._model[1]


class FittedFeasibility:
    """What a history says of where configurations can be evaluated, with the last fit remembered: a cache.

    Args:
        features: the columns.
    """

    def __init__(self, features: Features) -> None:
        self._features, self._fitted = features, Fitted(KERNEL, LABELS)

    def of(self, rows: Rows) -> Feasibility | None:
        """Its logarithm, of the columns; None while nothing was infeasible, or nothing else."""
        ended = [row for row in rows if row.observed or row.low][-LABELLED:]
        labels = np.array([-1.0 if row.state is State.INFEASIBLE else 1.0 for row in ended])
        if len(labels) == 0 or not np.ptp(labels) > 0:
            return None
        inputs = self._features.encode(np.array([row.point for row in ended]))
        return Feasibility(self._fitted.process("feasible", inputs, labels))


def surrogate_of(history: pd.DataFrame, space: Space, outcome: Outcome = "soft") -> Surrogate:
    """The model of a history, to look at and to ask what it expects elsewhere.

    It is fitted as that of `bo`, but infeasible trials count as the worst value here; `bo` learns of them apart.

    Args:
        history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        space: the campaign's.
        outcome: what the process sees of a value; with ``raw`` its predictions are in units of the target.

    Raises:
        SurrogateError: too few different values.
    """
    return _of_rows(Rows.read(space, history), outcome)


def _of_rows(rows: Rows, outcome: Outcome) -> Surrogate:
    return FittedModels(Features(rows.space), outcome).model_of(Observations.of(rows))


def recommend(history: pd.DataFrame, space: Space, outcome: Outcome = "soft") -> int | None:
    """Number of the evaluated trial with the best posterior mean.

    With noisy values the highest one is partly luck; the mean borrows from the neighbours. Where no model can be fitted
    it is the trial of the highest target.

    Args:
        history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        space: the campaign's.
        outcome: what the process sees of a value.

    Returns:
        A trial that completed, or None where there is none.
    """
    rows = Rows.read(space, history)
    best = rows.best
    if best is None:
        return None
    try:
        surrogate = _of_rows(rows, outcome)
    except SurrogateError:
        return best.trial
    observations = surrogate.observations
    means = np.where(observations.measured, surrogate.mean(observations.points), -np.inf)
    return int(observations.trials[int(means.argmax())])
