"""Model several objectives, and the constraints on what was measured, by a process for each.

Each objective has a process of its targets, like the one of a single objective: the same kernel, priors and schedule
of fits (`hpo_cluster.optimizers.bayesian.surrogate`). Each has a noise of its own, which the data decide, so that a
metric that is the same each time, such as a number of parameters, has next to none. Each constraint has a process of
its slack ``s``, seen as ``sign(s) log(1 + |s| / u)`` with ``u`` the median of ``|s|`` (the bilog of SCBO): what counts
is where the sign changes, not how far away the rest lies.

Trials that diverged count as the worst value of each objective, and are left out of the constraints.

Reference: D. Eriksson and M. Poloczek, "Scalable Constrained Bayesian Optimization", AISTATS 2021 (arXiv:2002.08526),
for the bilog.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.goals import reference_of, undominated
from hpo_cluster.optimizers.batch import Points
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import Observations, Outcome, fitted_size
from hpo_cluster.optimizers.bayesian.surrogate import FittedModels, Surrogate, SurrogateError
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.space import Space

if TYPE_CHECKING:
    from hpo_cluster.optimizers.bayesian.acquisition_of_several import Processes

#: What the processes of several objectives see of the targets: the hypervolume is counted in their own units.
TOGETHER: Outcome = "raw"


@dataclass(frozen=True)
class SeveralModels:
    """The models of a history.

    Args:
        features: their columns.
        outcome: what the processes of the objectives see of the targets.
        objectives: by name, without those that are the same everywhere.
        slacks: one for each constraint, without those that hold equally everywhere.
        reference: worst targets of interest of these objectives (``m``).
        front: canonical points of the trials that satisfy the constraints and that no other one dominates, the best by
            the first objective first; if none satisfies them, those of all (``k x d``).
        best: highest outcome of the first objective where the constraints hold (standardised); None if they never do.
    """

    features: Features
    outcome: Outcome
    objectives: Mapping[str, Surrogate]
    slacks: tuple[Surrogate, ...]
    reference: tuple[float, ...]
    front: Points
    best: float | None

    def processes(self) -> Processes:
        """Return what the acquisition functions take."""
        from hpo_cluster.optimizers.bayesian.acquisition_of_several import Processes

        return Processes(
            tuple(model.process for model in self.objectives.values()),
            tuple(model.process for model in self.slacks),
            np.array(self.reference),
            self.features.encode(self.first.observations.points),
        )

    @property
    def first(self) -> Surrogate:
        """The model of the first objective."""
        return next(iter(self.objectives.values()))

    def describe(self) -> dict[str, Any]:
        """Return the hyperparameters by objective, of the constraints in turn, and the reference (JSON)."""
        return {
            "outcome": self.outcome,
            "objectives": {name: model.describe() for name, model in self.objectives.items()},
            "constraints": [model.describe() for model in self.slacks],
            "reference": [float(f"{edge:.6g}") for edge in self.reference],
        }


class FittedSeveral:
    """Fits the models of a history, and keeps the last ones: a cache, whose loss costs time and changes nothing.

    Args:
        features: the columns.
        alone: what the process of a single objective sees of the targets.
    """

    def __init__(self, features: Features, alone: Outcome) -> None:
        self._features, self._alone = features, alone
        self._models: dict[tuple[str | int, Outcome], FittedModels] = {}

    def of(self, data: Dataset) -> SeveralModels:
        """Return the models of a history.

        Raises:
            SurrogateError: an outcome has too few different values, or no fit is possible.
        """
        every = Observations.of(data, infeasible=False)
        row_of = {row.trial: row for row in data}
        used = [row_of[trial] for trial in every.trials.tolist()]
        measured = [row for row in used if row.observed]
        targets = [_targets(used, j, worst) for j, worst in enumerate(data.worst_targets)]
        varying = [j for j, column in enumerate(targets) if np.ptp(column) > 0]
        if not varying:
            raise SurrogateError(f"{min(len(used), 1)} distinct values observed, at least 2 are needed")
        outcome = self._alone if len(varying) == 1 else TOGETHER
        objectives = [self._model(data.objectives[j], outcome, replace(every, targets=targets[j])) for j in varying]
        constraints = [_slacks(data.space, measured, j) for j in range(data.slacks.shape[1])]
        known = [(j, slack) for j, slack in enumerate(constraints) if len(slack) and np.ptp(slack.targets) > 0]
        found = [row for row in measured if row.feasible] or measured
        front = undominated(row.targets for row in found)
        reference = reference_of(data.references, [row.targets for row in measured])
        at: dict[Sequence[float], Points] = {row.targets: row.point for row in reversed(found)}
        outcomes = objectives[0].process.outcomes
        held = [i for i, trial in enumerate(objectives[0].observations.trials) if row_of[trial].feasible]
        return SeveralModels(
            self._features,
            outcome,
            {data.objectives[j]: model for j, model in zip(varying, objectives, strict=True)},
            tuple(self._model(j, "raw", slack) for j, slack in known),
            tuple(reference[j] for j in varying),
            np.array([at[targets] for targets in front]),
            float(outcomes[held].max()) if held else None,
        )

    def _model(self, name: str | int, outcome: Outcome, observations: Observations) -> Surrogate:
        models = self._models.setdefault((name, outcome), FittedModels(self._features, outcome))
        return models.model_of(observations)


def _targets(rows: Sequence[Row], index: int, worst: float) -> NDArray[np.float64]:
    """Return the targets (``n``) of an objective."""
    return np.array([row.targets[index] if row.observed else worst for row in rows])


def _slacks(space: Space, rows: Sequence[Row], index: int) -> Observations:
    """Return the slacks of a constraint as its process sees them; the unit is that of the last fit: it seldom changes.

    Args:
        space: of the rows.
        rows: those with values.
        index: of the constraint.
    """
    known = [row for row in rows if math.isfinite(row.slacks[index])]
    found = replace(Observations.of_rows(space, known), targets=np.array([row.slacks[index] for row in known]))
    unit = np.median(np.abs(found.first(fitted_size(len(known))).targets)) if known else 0.0
    return replace(found, targets=_bilog(found.targets / unit)) if unit > 0 else found


def _bilog(slacks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithms (``n``) of slacks, with their signs."""
    return np.sign(slacks) * np.log1p(np.abs(slacks))
