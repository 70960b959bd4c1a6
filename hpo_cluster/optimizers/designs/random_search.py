"""Random search: every proposal is an independent uniform point of the unit cube.

The baseline that every other optimizer has to beat. It reads nothing from the history but the number of the next trial
and the configurations that are taken, so any number of trials can run at once.

Reference: J. Bergstra and Y. Bengio, "Random Search for Hyper-Parameter Optimization", Journal of Machine Learning
Research 13, 281-305, 2012.

Symbols: ``d`` number of parameters; ``t`` number of the trial; ``u_t`` point of the unit cube.

Deviations from the paper: a configuration that was drawn before is drawn again while others remain, which happens in
finite spaces only; when none remain the optimizer is exhausted. A configuration that the constraints do not allow is
drawn again; where the space has priors, points are drawn from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.dataset import Memory, Rows
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import free_point, key_of
from hpo_cluster.trial import Ask, Proposal, derive_seed

if TYPE_CHECKING:
    import pandas as pd


class RandomSettings(OptimizerSettings):
    """Random search has no settings."""


class RandomSearch:
    """Uniform and independent points.

    Args:
        space: what to search.
        settings: none so far.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: RandomSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self._memory: Memory = {}  # a cache

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        rows = Rows.read(self.space, history, self._memory)
        taken = rows.taken()
        proposals: list[Proposal] = []
        for trial in range(rows.next_trial, rows.next_trial + n):
            rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
            point = free_point(self.space, taken, rng)
            if point is None:
                return Ask(tuple(proposals), decision={"optimizer": "random", "exhausted": True})
            taken.add(key_of(self.space, point))
            proposals.append(Proposal(self.space.decode(point)))
        return Ask(tuple(proposals), decision={"optimizer": "random"})
