"""Fit the Gaussian process that models the objective to a history, and recommend a trial with it.

It is a process (BoTorch's ``SingleTaskGP``) of the `Features` of the configurations and the outcomes of the
`Observations`, which `bo` and the trees share. ``docs/design/surrogate.md`` has the decisions and the measurements.

Hyperparameters are fitted at certain numbers of observations only (`fitted_size`): with each new one up to
`FITTED_EACH`, then whenever there are a tenth more, always to those that ended first. In between the process is
conditioned on all of them with the same hyperparameters. A process of very many observations would cost too much:
`thinned` chooses those that it is fitted to (`FITTED_MOST`) and conditioned on (`CONDITIONED_MOST` of those of the last
fit, `SINCE_MOST` of the others). All of this follows from the history alone.

Configurations that were evaluated more than once enter with each of their values, from which the noise is inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import OUTCOME, Observations, Outcome, fitted_size, thinned
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import State

if TYPE_CHECKING:
    import pandas as pd

    from hpo_cluster.optimizers.bayesian.acquisition import Acquisition
    from hpo_cluster.optimizers.bayesian.gaussian_process import LowerBounds, Process

#: Most observations that hyperparameters are fitted to, and that the process is conditioned on: of those of the last
#: fit, and of those since.
FITTED_MOST, CONDITIONED_MOST, SINCE_MOST = 300, 500, 150

#: Feasibility is learned from this many trials at most: the last ones.
LABELLED = 400


class SurrogateError(Exception):
    """These observations have no model; the message says why."""


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
        """Return the posterior mean (``m``, units of the outcomes) at canonical points (``m x d``)."""
        return self.process.location + self.process.spread * self.process.means(self.features.encode(points))

    def posterior(
        self, points: NDArray[np.float64], pending: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return posterior mean and standard deviation (``m`` each, units of the outcomes), given pending trials.

        The place of a pending trial is known, its value is not: the mean stays, and the variance falls by what an
        observation there will explain (Desautels, Krause and Burdick, JMLR 15, 2014, section 3).

        Args:
            points: canonical points (``m x d``).
            pending: canonical points in flight (``p x d``, p may be 0).
        """
        process = self.process.fantasizing(self.features.encode(pending))
        mean, variance = process.posterior(self.features.encode(points))
        return process.location + process.spread * mean, process.spread * np.sqrt(variance)

    def predict(self, configurations: Iterable[Configuration]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return posterior mean and standard deviation (``m`` each, units of the outcomes) of the noiseless target."""
        space = self.features.space
        points = np.array([space.encode(configuration) for configuration in configurations])
        return self.posterior(points.reshape(-1, space.dim), np.empty((0, space.dim)))

    def describe(self) -> dict[str, Any]:
        """Return the length-scales by column and the standard deviation of the noise in units of the target (JSON)."""
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
    from hpo_cluster.optimizers.bayesian.gaussian_process import Process

    return _surrogate(features, observations, outcome, Process.fitted)


def conditioned(fitted: Surrogate, observations: Observations, outcome: Outcome) -> Surrogate:
    """Return the process of other observations with the hyperparameters of a fitted one.

    Raises:
        SurrogateError: too few different values.
    """
    return _surrogate(fitted.features, observations, outcome, fitted.process.conditioned_on)


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
    except (ValueError, ArithmeticError) as error:
        raise SurrogateError(f"the fit failed: {type(error).__name__}: {error}") from error
    return Surrogate(features, observations, outcomes, process)


class Fitted:
    """Remembers the processes used last: a cache, whose loss costs time and changes nothing.

    Args:
        most: number of processes that are remembered.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._kept: dict[tuple[object, bytes], Process] = {}  # the one used last is at the end

    def process(
        self,
        name: object,
        inputs: NDArray[np.float64],
        outcomes: NDArray[np.float64],
        least: LowerBounds | None = None,
        units: NDArray[np.float64] | None = None,
    ) -> Process:
        """Return the process of these arguments, fitted only if it is not remembered; see `Process.fitted`."""
        from hpo_cluster.optimizers.bayesian.gaussian_process import LEAST, Process

        key = name, inputs.tobytes() + outcomes.tobytes() + (b"" if units is None else units.tobytes())
        found = self._kept.pop(key, None) or Process.fitted(inputs, outcomes, least or LEAST, units)
        self._kept[key] = found
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return found


class FittedModels:
    """Fits the process of a history, and keeps the last fit and the last model.

    The model is a pure function of the history: what is kept is a cache, whose loss costs time and changes nothing.

    Args:
        features: the columns.
        outcome: what the process sees of a value.
    """

    def __init__(self, features: Features, outcome: Outcome) -> None:
        self.features, self.outcome = features, outcome
        self._fit: tuple[bytes, Surrogate, NDArray[np.int64]] | None = None
        self._model: tuple[bytes, Surrogate] | None = None

    def model_of(self, every: Observations) -> Surrogate:
        """Fit the hyperparameters to `fitted_size` observations, and condition on what was observed since.

        Args:
            every: the observations of the history, in trial order.

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
    """Learns from a history where configurations can be evaluated, and keeps the last fit: a cache.

    Args:
        features: the columns.
    """

    def __init__(self, features: Features) -> None:
        self._features, self._fitted = features, Fitted()

    def of(self, data: Dataset) -> Acquisition | None:
        """Return the logarithm of the probability of feasibility; None if no trial was infeasible, or every one was."""
        ended = [row for row in data if row.observed or row.low][-LABELLED:]
        labels = np.array([-1.0 if row.state is State.INFEASIBLE else 1.0 for row in ended])
        if len(labels) == 0 or not np.ptp(labels) > 0:
            return None
        from hpo_cluster.optimizers.bayesian.acquisition import LABELS, feasibility

        inputs = self._features.encode(np.array([row.point for row in ended]))
        return feasibility(self._fitted.process("feasible", inputs, labels, LABELS))


def surrogate_of(history: pd.DataFrame, space: Space, outcome: Outcome = OUTCOME) -> Surrogate:
    """Return the model of a history, to look at and to predict with.

    It is fitted like that of `bo`, but infeasible trials count as the worst value here; `bo` has another model of them.

    Args:
        history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        space: the campaign's.
        outcome: what the process sees of a value; with ``raw`` its predictions are in units of the target.

    Raises:
        SurrogateError: too few different values.
    """
    return _model_of(Dataset.read(space, history), outcome)


def _model_of(data: Dataset, outcome: Outcome) -> Surrogate:
    from hpo_cluster.optimizers.bayesian.rungs import FittedHistory

    models = FittedHistory(Features(data.space), outcome)
    return models.model_of(data, models.observations(data, infeasible=True))


def recommend(history: pd.DataFrame, space: Space, outcome: Outcome = OUTCOME) -> int | None:
    """Return the number of the evaluated trial with the best posterior mean, of those that satisfy the constraints.

    With noisy values the highest one is partly luck; the mean borrows from the neighbours. If no model can be fitted,
    return the trial of the highest target.

    Args:
        history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        space: the campaign's.
        outcome: what the process sees of a value.

    Returns:
        The trial, or None if none has completed and satisfies the constraints.
    """
    try:
        return next(iter(by_posterior_mean(history, space, outcome)), None)
    except SurrogateError:
        best = Dataset.read(space, history).best
        return None if best is None else best.trial


def by_posterior_mean(history: pd.DataFrame, space: Space, outcome: Outcome = OUTCOME) -> list[int]:
    """Return the numbers of the evaluated trials that satisfy the constraints, by posterior mean, the best first.

    Args:
        history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        space: the campaign's.
        outcome: what the process sees of a value.

    Raises:
        SurrogateError: too few different values.
    """
    data = Dataset.read(space, history)
    if data.best is None:
        return []
    surrogate = _model_of(data, outcome)
    observations = surrogate.observations
    wanted = [row.trial for row in data if row.feasible and row.whole]
    allowed = observations.measured & np.isin(observations.trials, wanted)
    means = np.where(allowed, surrogate.mean(observations.points[:, : space.dim]), -np.inf)
    order = np.argsort(-means, kind="stable")[: int(allowed.sum())]
    return [int(trial) for trial in observations.trials[order]]
