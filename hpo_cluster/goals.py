"""Several objectives: the metrics that a campaign optimises at once, their directions, what must hold of others.

Their Pareto front holds the points that no other one dominates; the hypervolume is what they dominate. All points are
targets: larger is better in every coordinate. Reference for the volume: L. While, L. Bradstreet and L. Barone, "A Fast
Way of Calculating Exact Hypervolumes", IEEE Transactions on Evolutionary Computation 16(1), 2012 (WFG). It is exact for
any number of objectives, and the gain of one more point is a part of the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

Direction: TypeAlias = Literal["maximize", "minimize"]

#: Targets, one for each objective.
Point: TypeAlias = Sequence[float]

#: The metric that every objective has: the seconds of an evaluation times its GPUs (on a CPU: times one).
GPU_SECONDS = "gpu_seconds"


@dataclass(frozen=True)
class Goal:
    """A metric to optimise.

    Args:
        name: of the metric.
        direction: whether larger or smaller values are better; None: not known yet.
        reference: the worst value of interest, from which the hypervolume is counted; None: follows from the results.
    """

    name: str
    direction: Direction | None = None
    reference: float | None = None

    @property
    def sign(self) -> float:
        """The factor from a value to a target, which is always maximised: 1 or -1."""
        return -1.0 if self.direction == "minimize" else 1.0


@dataclass(frozen=True)
class Bound:
    """A constraint: the values of a metric that are acceptable, both ends included."""

    name: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ends(self) -> list[tuple[str, float]]:
        """The ends that are given, each after its words: ``[("at least", 3.0), ("at most", 5.0)]``."""
        ends = (("at least", self.at_least), ("at most", self.at_most))
        return [(words, end) for words, end in ends if end is not None]

    @property
    def text(self) -> str:
        """The acceptable values in words: ``at least 3, at most 5``."""
        return ", ".join(f"{words} {end:g}" for words, end in self.ends)

    def slack(self, value: float) -> float:
        """Return how far a value is inside the bound; negative if the constraint does not hold."""
        below = math.inf if self.at_most is None else self.at_most - value
        above = math.inf if self.at_least is None else value - self.at_least
        return min(below, above)


@dataclass(frozen=True)
class Goals:
    """The objectives of a campaign that has two or more of them, or one and constraints, and its constraints."""

    metrics: tuple[Goal, ...]
    constraints: tuple[Bound, ...] = ()

    @classmethod
    def of(cls, objective: Mapping[str, Any]) -> Goals | None:
        """Return the goals in an objective's settings (plain data); None if it optimises one metric unconstrained.

        Raises:
            TypeError: if they are not what a campaign records.
        """
        if not objective.get("metrics"):
            return None
        bounds = tuple(Bound(**entry) for entry in objective.get("constraints") or ())
        return cls(tuple(Goal(**entry) for entry in objective["metrics"]), bounds)

    @property
    def several(self) -> bool:
        """Whether there are two or more objectives."""
        return len(self.metrics) > 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The metrics that a result must hold: the objectives, then those of the constraints."""
        return tuple(
            dict.fromkeys([*(goal.name for goal in self.metrics), *(bound.name for bound in self.constraints)])
        )

    @property
    def references(self) -> tuple[float, ...]:
        """The worst target of interest of each objective; NaN where none was given."""
        return tuple(math.nan if goal.reference is None else goal.sign * goal.reference for goal in self.metrics)

    def targets(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return what is maximised, for each objective; NaN for a metric that is missing."""
        return tuple(goal.sign * metrics.get(goal.name, math.nan) for goal in self.metrics)

    def slacks(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return how far each constraint holds: negative if it does not, NaN if its metric is missing."""
        return tuple(bound.slack(metrics.get(bound.name, math.nan)) for bound in self.constraints)

    def feasible(self, metrics: Mapping[str, float]) -> bool:
        """Return whether all constraints hold."""
        return all(slack >= 0 for slack in self.slacks(metrics))


#: A reference that nobody gave lies this share of the range of a target beyond the worst one of the front.
MARGIN = 0.1


def dominates(a: Point, b: Point) -> bool:
    """Return whether `a` is at least as good as `b` in every coordinate, and better in one."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def undominated(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other one dominates, each once, the best in the first coordinate first."""
    front: list[Point] = []
    for point in sorted(set(map(tuple, points)), reverse=True):  # a point can only be dominated by an earlier one
        if not any(dominates(other, point) for other in front):
            front.append(point)
    return front


def hypervolume(front: Sequence[Point], reference: Point) -> float:
    """Return the volume between the reference and the points: of all that is worse than one of them."""
    return math.fsum(gain(point, front[:i], reference) for i, point in enumerate(front))


def gain(point: Point, front: Sequence[Point], reference: Point) -> float:
    """Return by how much one more point enlarges the volume; 0 if it is not better than the reference everywhere."""
    edges = [x - r for x, r in zip(point, reference, strict=True)]
    if min(edges) <= 0:
        return 0.0
    shared = undominated(tuple(map(min, point, other)) for other in front)
    return max(0.0, math.prod(edges) - hypervolume(shared, reference))


def reference_of(given: Point, points: Sequence[Point]) -> tuple[float, ...]:
    """Return the reference point; where `given` is NaN, a little worse than the worst of the front.

    The margin is a share of the range of all that was measured: early fronts are short, and with a reference next to
    them nothing would be gained beyond their ends. With a reference as bad as the worst that was measured, on the other
    hand, the ends would count more than all between them.

    Args:
        given: what the user said; NaN: nothing.
        points: everything that was measured, at least one point, whether or not it satisfies constraints: what does may
            lie in several pieces, of which only one has been found.
    """
    found = []
    front = undominated(points)
    for edge, column, part in zip(given, zip(*points, strict=True), zip(*front, strict=True), strict=True):
        margin = MARGIN * (max(column) - min(column)) or MARGIN * abs(min(column)) or MARGIN
        found.append(min(part) - margin if math.isnan(edge) else edge)
    return tuple(found)


def widest(points: Sequence[Point], reference: Point, count: int) -> list[int]:
    """Return the indices of some points that together dominate much, chosen one after another by their gain.

    Points that gain nothing come last, in their order.
    """
    left, found = list(range(len(points))), list[int]()
    while left and len(found) < count:
        best = max(left, key=lambda i: gain(points[i], [points[j] for j in found], reference))
        left.remove(best)
        found.append(best)
    return found
