"""Which trials go on after a rung: pure functions of the trials' values, so that a campaign can be replayed.

    asha     the best ``1 / eta`` of those that have reached the rung so far (Li et al.); no rung waits to be full
    careful  the same, but more of them where the rung has been found to say little about those above it; and the best
             one always, so that the first results at the top come early
    median   those that are not below the median of the rung
    all      everybody: rungs are only recorded

The default is careful, since a low rung may mislead: many trainings that are best in the end are not ahead after a
tenth of the steps. For each rung it measures how well the values there and at the rungs above agree, by the
correlation ``r`` of their normal scores over the trials that have got there. These were chosen by their values at the
rung, which makes the correlation smaller than it is over all trials; Thorndike's formula puts that right. Few trials
say little, so `PRIOR_TRIALS` trials that agree as `ENOUGH` are counted in. With the smallest of the correlations the
share that goes on is ``eta ** -x``, ``x = 1 - (1 - r / ENOUGH)^2`` with ``r`` between 0 and `ENOUGH`: one in ``eta``
while the rungs agree, hardly more while they agree in part, and everybody where they have nothing to do with each
other or the order is turned round. So what misleading rungs cost is what was spent until they were found out.
``docs/benchmarks/rungs.md`` has the measurements.

Reference: L. Li, K. Jamieson, A. Rostamizadeh, E. Gonina, J. Ben-tzur, M. Hardt, B. Recht and A. Talwalkar, "A System
for Massively Parallel Hyperparameter Tuning", MLSys 2020 (arXiv:1810.05934), algorithm 2; R. L. Thorndike, "Personnel
Selection", 1949, case 2, for the correction.

Deviations from the paper: trials with another first rung (brackets of Hyperband) are compared among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.fidelity import ENOUGH, Ladder, agreement
from hpo_cluster.optimizers.rungs.settings import Fidelity

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Climber:
    """A trial, as the rules see it.

    Args:
        trial: its number.
        first: lowest rung at which it may be paused; trials with the same one are compared with each other.
        goal: rung up to which it may climb now.
        targets: by rung reached, the value there, to be maximised; NaN where it was passed without being scored, and at
            the rung at which it failed. Its length minus one is the rung reached.
    """

    trial: int
    first: int
    goal: int
    targets: tuple[float, ...]

    def at(self, rung: int) -> float | None:
        """Return the target at a rung; minus infinity if it failed there; None if it has not got there."""
        if rung >= len(self.targets):
            return None
        return -math.inf if math.isnan(self.targets[rung]) else self.targets[rung]


@dataclass(frozen=True)
class Promotion:
    """A trial that goes on to a rung, and why."""

    trial: int
    rung: int
    why: str


def promotions(climbers: Iterable[Climber], ladder: Ladder, fidelity: Fidelity) -> list[Promotion]:
    """Return the trials that deserve to go on now, those at the highest rung first, the best of a rung first.

    Only trials whose goal is reached are returned, so a trial that goes on already is not returned again.

    Args:
        climbers: all trials, those that failed or were whole included.
        ladder: the rungs.
        fidelity: the rule, and its `eta`.
    """
    groups: dict[int, list[Climber]] = {}
    for climber in climbers:
        groups.setdefault(climber.first, []).append(climber)
    compared = {first: _Compared.of(group, ladder) for first, group in sorted(groups.items())}
    return [
        promotion
        for rung in reversed(range(ladder.top))
        for first, group in compared.items()
        if first <= rung
        for promotion in group.promoted(rung, fidelity)
    ]


@dataclass(frozen=True)
class _Compared:
    """Trials that are compared with each other, in the order of their numbers.

    Args:
        trials: their numbers (``n``).
        goals: rungs up to which they may climb (``n``).
        reached: highest rungs that they reached, -1 before the first (``n``).
        targets: values at the rungs (``n x rungs``); minus infinity where a trial failed or was not scored, and above
            the rung reached.
    """

    trials: NDArray[np.int64]
    goals: NDArray[np.int64]
    reached: NDArray[np.int64]
    targets: Array

    @classmethod
    def of(cls, climbers: list[Climber], ladder: Ladder) -> _Compared:
        """Return the trials as arrays."""
        climbers.sort(key=lambda climber: climber.trial)
        nothing = (-math.inf,) * (ladder.top + 1)
        rows = [climber.targets + nothing[len(climber.targets) :] for climber in climbers]
        targets = np.array(rows, dtype=np.float64)
        return cls(
            np.array([climber.trial for climber in climbers], dtype=np.int64),
            np.array([climber.goal for climber in climbers], dtype=np.int64),
            np.array([len(climber.targets) - 1 for climber in climbers], dtype=np.int64),
            np.where(np.isnan(targets), -math.inf, targets),
        )

    def promoted(self, rung: int, fidelity: Fidelity) -> list[Promotion]:
        """Return the promotions from a rung."""
        there = np.flatnonzero(self.reached >= rung)
        values = self.targets[there, rung]
        if not ((self.goals[there] == rung) & (values > -math.inf)).any():
            return []
        count, why = self._count(rung, values, fidelity)
        best = there[np.argsort(-values, kind="stable")[:count]]
        return [
            Promotion(int(self.trials[i]), rung + 1, f"{place} of {len(there)} at rung {rung}{why}")
            for place, i in enumerate(best.tolist(), 1)
            if self.goals[i] == rung and self.targets[i, rung] > -math.inf
        ]

    def _count(self, rung: int, values: Array, fidelity: Fidelity) -> tuple[int, str]:
        """Return how many of those at a rung go on, and what was found besides."""
        if fidelity.rule == "all":
            return len(values), ""
        if fidelity.rule == "median":
            return int((values >= _median(values)).sum()), ""
        if fidelity.rule == "asha":
            return int(len(values) / fidelity.eta + TINY), ""
        found = self.agreement(rung)
        share = fidelity.eta ** ((1 - max(found, 0.0) / ENOUGH) ** 2 - 1)
        why = "" if found >= ENOUGH else f", which says little (correlation {found:.2f}): {share:.0%} go on"
        return max(int(len(values) * share + TINY), 1), why

    def agreement(self, rung: int) -> float:
        """Return the smallest correlation of a rung with one above it, as far as it is known."""
        found = agreement(self.targets[self.reached >= rung], rung)
        return ENOUGH if found is None else min(found, ENOUGH)


#: Rounding of a share of the trials.
TINY = 1e-9


def _median(values: Array) -> float:
    """Return the median of values of which some may be minus infinity."""
    ordered, half = np.sort(values), len(values) // 2
    if len(values) % 2:
        return float(ordered[half])
    return float(ordered[half - 1 : half + 1].mean())
