"""The Pareto front: the points that no other one dominates, and the volume that they dominate.

All points are targets: larger is better in every coordinate. Reference for the volume: L. While, L. Bradstreet and L.
Barone, "A Fast Way of Calculating Exact Hypervolumes", IEEE Transactions on Evolutionary Computation 16(1), 2012 (WFG).
It is exact for any number of objectives, and the gain of one more point is a part of the algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Point: TypeAlias = Sequence[float]

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
