"""Which trials go on after a rung: pure functions of the trials' values, so that a campaign can be replayed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hpo_cluster.fidelity import Fidelity, Ladder


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
    climbers = list(climbers)
    found = []
    for rung in reversed(range(ladder.top)):
        for first in sorted({climber.first for climber in climbers if climber.first <= rung}):
            found += _at(rung, [climber for climber in climbers if climber.first == first], fidelity)
    return found


def _at(rung: int, climbers: Sequence[Climber], fidelity: Fidelity) -> list[Promotion]:
    """Return the promotions from a rung, of trials that are compared with each other."""
    there = [(target, climber) for climber in climbers if (target := climber.at(rung)) is not None]
    there.sort(key=lambda pair: (-pair[0], pair[1].trial))
    if fidelity.rule == "asha":
        count = int(len(there) / fidelity.eta + 1e-9)
    elif fidelity.rule == "median":
        middle = statistics.median(target for target, _ in there) if there else math.inf
        count = sum(target >= middle for target, _ in there)
    else:
        count = len(there)
    return [
        Promotion(climber.trial, rung + 1, f"{place} of {len(there)} at rung {rung}")
        for place, (target, climber) in enumerate(there[:count], 1)
        if climber.goal == rung and target > -math.inf
    ]
