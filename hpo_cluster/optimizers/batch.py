"""The proposals of one ask, made one after another; each counts as pending for those that follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.space.sampling import key_of
from hpo_cluster.trial import Ask, Origin, Proposal, State

Points: TypeAlias = NDArray[np.float64]


class Found(NamedTuple):
    """A point to propose (``d``, unit cube), and how it was found (JSON)."""

    point: Points
    info: Mapping[str, Any]


class Batch:
    """The proposals of one ask so far.

    Args:
        data: the history.
        n: number of proposals wanted.

    Attributes:
        trials: numbers of the trials that the proposals become.
        rows: a row in flight for each proposal so far.
        taken: keys of the configurations that need not be evaluated again, including those of the proposals.
    """

    def __init__(self, data: Dataset, n: int) -> None:
        self.data = data
        self.trials = range(data.next_trial, data.next_trial + n)
        self.rows: list[Row] = []
        self.taken = data.taken()
        self._proposals: list[Proposal] = []
        self._pending = [row.point for row in data.pending]

    @property
    def pending(self) -> Points:
        """The canonical points in flight (``p x d``), including those proposed in this ask."""
        return np.array(self._pending, dtype=np.float64).reshape(-1, self.data.space.dim)

    @property
    def begun(self) -> int:
        """The number of trials that count towards an initial design, including those proposed in this ask."""
        return self.data.begun + len(self.rows)

    def prior_weight(self, weight: float, initial: int) -> float:
        """Return the weight of the space's priors after a design of `initial` trials (piBO); 0 if there are none."""
        return weight / (self.begun - initial + 1) if self.data.space.has_prior else 0.0

    def add(self, found: Found) -> None:
        """Propose a point: the next trial."""
        space, trial = self.data.space, self.trials[len(self.rows)]
        configuration = space.decode(found.point)
        point = space.encode(configuration)  # as the history will have it, to the last digit
        key = key_of(space, point)
        row = Row(trial, State.PROPOSED, Origin.EVALUATED, configuration, point, math.nan, math.nan, math.nan, key)
        self.rows.append(row)
        self.taken.add(key)
        self._pending.append(point)
        self._proposals.append(Proposal(configuration, found.info))

    def ask(self, decision: Mapping[str, Any]) -> Ask:
        """Return the answer, which says that the space is exhausted if there are fewer proposals than wanted."""
        exhausted = {"exhausted": True} if len(self.rows) < len(self.trials) else {}
        return Ask(tuple(self._proposals), decision={**decision, **exhausted})
