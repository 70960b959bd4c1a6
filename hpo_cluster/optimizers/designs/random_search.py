"""Random search: every proposal is an independent uniform point of the unit cube.

This is the baseline that every other optimizer has to beat. Of the history it uses only the number of the next
trial and the configurations that are taken, so any number of trials can run at once.

Reference: J. Bergstra and Y. Bengio, "Random Search for Hyper-Parameter Optimization", Journal of Machine Learning
Research 13, 281-305, 2012.

Symbols: ``d`` number of parameters; ``t`` number of the trial; ``u_t`` point of the unit cube.

Deviations from the paper: a configuration that was drawn before is drawn again while others remain, which happens in
finite spaces only; when none remain the optimizer is exhausted. A configuration that the constraints do not allow is
drawn again; if the space has priors, points are drawn from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Batch, Found
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import free_point
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd


class RandomSettings(OptimizerSettings):
    """Random search has no settings."""


class RandomSearch:
    """Proposes uniform and independent points.

    Args:
        space: what to search.
        settings: none so far.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: RandomSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self._data: Dataset | None = None  # a cache

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        batch = Batch(data, n)
        for trial in batch.trials:
            rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
            point = free_point(self.space, batch.taken, rng)
            if point is None:
                break
            batch.add(Found(point, {}))
        return batch.ask({"optimizer": "random"})
