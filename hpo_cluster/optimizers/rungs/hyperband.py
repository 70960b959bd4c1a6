"""Hyperband: random points in brackets, which differ in the rung at which a trial may first be stopped.

In bracket 0 trials are looked at from the lowest rung on, in the next one from the second rung on, and so on; those of
the last one are whole. So it is no disaster if the low rungs mislead. All brackets spend about the same: one whose
first rung has the share ``r`` and that has ``k`` rungs gets trials in proportion to ``1 / (r k)``. The trials of a
bracket are compared with each other only, by the campaign's rule (``fidelity.rule``).

Reference: L. Li, K. Jamieson, G. DeSalvo, A. Rostamizadeh and A. Talwalkar, "Hyperband: A Novel Bandit-Based Approach
to Hyperparameter Optimization", Journal of Machine Learning Research 18, 2018 (arXiv:1603.06560).

Symbols: ``r`` the share of a bracket's first rung, ``k`` the number of its rungs.

Deviations from the paper: brackets are not run one after another; trials are dealt out to all of them by their numbers,
and no rung waits to be full. With shares ``eta`` times apart the proportions are the paper's without its rounding. A
history without rungs, as that of a campaign's first trials may be, counts as one rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hpo_cluster.optimizers.designs.random_search import RandomSearch, RandomSettings
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd


class HyperbandSettings(RandomSettings):
    """Hyperband has no settings of its own: rungs and rule are those of ``fidelity``."""


class Hyperband(RandomSearch):
    """Proposes random points, each with the first rung of its bracket."""

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        asked = super().ask(history, n)
        data = self._data
        assert data is not None  # the base class has read it
        proposals = tuple(
            replace(proposal, info={**proposal.info, "rung": first_rung(trial, data.shares)})
            for trial, proposal in enumerate(asked.proposals, data.next_trial)
        )
        return Ask(proposals, decision={**asked.decision, "optimizer": "hyperband"})


def first_rung(trial: int, shares: Sequence[float]) -> int:
    """Return the first rung of a trial, so that in any stretch of trials the brackets have about their proportions.

    Args:
        trial: its number.
        shares: of the rungs below the top.
    """
    every = (*shares, 1.0)
    weights = [1 / (share * (len(every) - rung)) for rung, share in enumerate(every)]
    place = _evenly_spread(trial) * sum(weights)
    for rung, weight in enumerate(weights):
        place -= weight
        if place < 0:
            return rung
    return len(shares)


def _evenly_spread(number: int) -> float:
    """Return the van der Corput sequence: 0, 1/2, 1/4, 3/4, 1/8, ... the bits of a number after the point, reversed."""
    out, part = 0.0, 0.5
    while number:
        out += part * (number & 1)
        number, part = number >> 1, part / 2
    return out
