"""What a Gaussian process of all values of a campaign expects of its trials at the top, for the rule ``model``.

It is the process of `hpo_cluster.optimizers.bayesian.rungs`, whatever the optimizer: a row for each rung at which a
trial was scored, and the fidelity as a column. So a trial is judged by its own values and by those of its neighbours,
as far as both have been found to say something about the top, and a lucky value counts for less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import OUTCOME
from hpo_cluster.optimizers.bayesian.rungs import FittedHistory
from hpo_cluster.optimizers.bayesian.surrogate import SurrogateError
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Space

if TYPE_CHECKING:
    import pandas as pd


class Expectation:
    """The model of a campaign's history; what it keeps is a cache, whose loss costs time and changes nothing.

    Args:
        space: the campaign's.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._models = FittedHistory(Features(space), OUTCOME)
        self._data: Dataset | None = None

    def of(self, history: pd.DataFrame) -> dict[int, float]:
        """Return the posterior mean at the top, by trial; empty as long as no model can be fitted.

        Args:
            history: of a campaign with rungs, as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
        """
        data = self._data = Dataset.read(self._space, history, self._data)
        try:
            model = self._models.model_of(data, self._models.observations(data, infeasible=False))
        except (SurrogateError, ArithmeticError):
            return {}
        rows = list(data)
        means = model.mean(np.array([row.point for row in rows]))
        return {row.trial: mean for row, mean in zip(rows, means.tolist(), strict=True)}
