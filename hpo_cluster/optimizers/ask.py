"""What the optimizers that propose point by point share: going through an ask, with what was proposed so far in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.dataset import Rows
from hpo_cluster.space.sampling import key_of
from hpo_cluster.trial import Ask, Proposal, State

Points: TypeAlias = NDArray[np.float64]

#: A canonical point (``d``) and how it was found.
Found: TypeAlias = tuple[Points, dict[str, Any]]

EMPTY: Mapping[str, Any] = {}


class Asking:
    """One ask under way.

    Args:
        rows: the history.

    Attributes:
        taken: keys of the configurations that need not be evaluated again.
        begun: number of trials that count: all but failed and cancelled ones.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.taken = rows.taken()
        self.begun = sum(row.state not in (State.FAILED, State.CANCELLED) for row in rows)
        self._pending = [row.point for row in rows.pending]

    @property
    def pending(self) -> Points:
        """Canonical points in flight (``p x d``), those proposed in this ask among them."""
        return np.array(self._pending, dtype=np.float64).reshape(-1, self.rows.space.dim)

    @property
    def incumbent(self) -> dict[str, Any] | None:
        """The best trial and its target: plain data, for the decision."""
        best = self.rows.best
        return None if best is None else {"trial": best.trial, "target": best.target}

    def decayed(self, weight: float, initial: int) -> float:
        """What is left of the weight of the space's priors after a design of `initial` trials (piBO); 0 without any."""
        return weight / (self.begun - initial + 1) if self.rows.space.has_prior else 0.0

    def answer(
        self,
        n: int,
        propose: Callable[[int], Found | None],
        decide: Callable[[], Mapping[str, Any]],
        unspent: Mapping[str, Any] = EMPTY,
    ) -> Ask:
        """At most `n` proposals and the decision, which says so where nothing was left to propose.

        Args:
            n: how many are wanted.
            propose: gives the point of a trial, None where nothing is left; it sees this object as it is by then.
            decide: gives the decision, once the proposals are made.
            unspent: what the decision has beside it while something is left.
        """
        space, made = self.rows.space, list[Proposal]()
        for trial in range(self.rows.next_trial, self.rows.next_trial + n):
            found = propose(trial)
            if found is None:
                return Ask(tuple(made), decision={**decide(), "exhausted": True})
            configuration = space.decode(found[0])
            point = space.encode(configuration)  # as the history will have it, to the last digit
            self.taken.add(key_of(space, point))
            self._pending.append(point)
            self.begun += 1
            made.append(Proposal(configuration, found[1]))
        return Ask(tuple(made), decision={**decide(), **unspent})
