"""Cells of a partition of the unit cube, and how they are cut: what the optimizers that divide the space share.

A *cell* is one side for each parameter, and a side is two integers, so that centres, widths and comparisons are exact
and two ways to the same cell lead to the same numbers:

    real          (level, index): from index / K^level to (index + 1) / K^level of the axis
    finite        (first, last + 1): this range of the parameter's values, in their order

A real side is cut into K equal parts, until it is narrower than `resolution`. A finite side from lo to hi is cut so
that the value at coordinate c goes to part floor(K (c - lo) / (hi - lo)), without parts that have no value; an
unordered choice is cut into all its values at once. A side of one value is never cut.

A side of a parameter that is inactive everywhere in its cell is never cut either, since the parts would hold the same
configurations, and its width is 0.

The *centre* of a real side is its middle. That of a finite side is the value nearest to its middle, the lower of two.
The *width* of a side is its share of the axis if real, and for a finite one the distance from its first to its last
value over that of the axis, so 0 for one value and (values - 1) / (range) for integers on a linear scale.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.space import Space, Value
from hpo_cluster.space.sampling import axis_values

Side: TypeAlias = tuple[int, int]
Cell: TypeAlias = tuple[Side, ...]

#: Coordinates nearer to one another than this count as equal.
CLOSE = 1e-9


class Axis(Protocol):
    """How the sides of one parameter are cut."""

    whole: Side

    def ends(self, side: Side) -> tuple[float, float]:
        """Return where a side begins and ends in the unit interval."""
        ...

    def width(self, side: Side) -> float:
        """Return the width, for comparison with the other sides of a cell; see the module."""
        ...

    def centre(self, side: Side) -> float:
        """Return the coordinate of the centre in the unit interval."""
        ...

    def cut(self, side: Side) -> tuple[Side, ...]:
        """Return the parts in order, at least two; none if the side is never cut."""
        ...


class RealAxis:
    """Cuts the sides of a real parameter.

    Args:
        sections: parts of a cut, K.
        resolution: narrower sides are never cut.
    """

    whole: Side = (0, 0)

    def __init__(self, sections: int, resolution: float) -> None:
        self.sections, self.resolution = sections, resolution

    def ends(self, side: Side) -> tuple[float, float]:
        """Return where a side begins and ends in the unit interval."""
        level, index = side
        parts = self.sections**level
        return index / parts, (index + 1) / parts

    def width(self, side: Side) -> float:
        """Return the side's share of the axis."""
        return float(1 / self.sections ** side[0])

    def centre(self, side: Side) -> float:
        """Return the middle; the middle part of an odd number of parts has exactly the same."""
        level, index = side
        return float((2 * index + 1) / (2 * self.sections**level))

    def cut(self, side: Side) -> tuple[Side, ...]:
        """Return K equal parts, or none."""
        level, index = side
        if self.width(side) < self.resolution:
            return ()
        return tuple((level + 1, self.sections * index + part) for part in range(self.sections))


class FiniteAxis:
    """Cuts the sides of a parameter with finitely many values.

    Args:
        coordinates: canonical coordinates of the values, increasing.
        sections: parts of a cut at most, K; None: each value is a part.
    """

    def __init__(self, coordinates: list[float], sections: int | None) -> None:
        self.coordinates, self.sections = coordinates, sections
        self.edges = [0.0, *((a + b) / 2 for a, b in pairwise(coordinates)), 1.0]
        self.whole: Side = (0, len(coordinates))
        self._span = coordinates[-1] - coordinates[0]

    def ends(self, side: Side) -> tuple[float, float]:
        """Return where a side begins and ends in the unit interval."""
        return self.edges[side[0]], self.edges[side[1]]

    def width(self, side: Side) -> float:
        """Return the distance from the first value to the last, as a share of the axis's."""
        first, end = side
        return (self.coordinates[end - 1] - self.coordinates[first]) / self._span if end - first > 1 else 0.0

    def centre(self, side: Side) -> float:
        """Return the coordinate of the value nearest to the middle, the lower of two."""
        low, high = self.ends(side)
        middle = (low + high) / 2
        at = bisect_left(self.coordinates, middle - CLOSE, *side)
        if at == side[1]:
            return self.coordinates[at - 1]
        if at > side[0] and middle - self.coordinates[at - 1] <= self.coordinates[at] - middle + CLOSE:
            return self.coordinates[at - 1]
        return self.coordinates[at]

    def cut(self, side: Side) -> tuple[Side, ...]:
        """Return the parts that hold a value, or none."""
        first, end = side
        if end - first < 2:
            return ()
        if self.sections is None:
            return tuple((value, value + 1) for value in range(first, end))
        low, high = self.ends(side)
        cuts = (low + (high - low) * part / self.sections for part in range(1, self.sections))
        starts = [first, *(bisect_left(self.coordinates, cut - CLOSE, first, end) for cut in cuts), end]
        return tuple((a, b) for a, b in pairwise(starts) if a < b)


def at_value(space: Space, name: str, value: Value) -> int:
    """Return the index of a value among those of a finite parameter."""
    return int(np.argmin(np.abs(axis_values(space, name) - space.parameters[name].encode(value))))


def _needed(space: Space, name: str) -> list[tuple[int, list[int]]]:
    """Return for each parent of a parameter its axis and the indices of the values that make the parameter active.

    A fixed parent has no axis: its value is the one needed, and it is active wherever its own parents allow it.
    """
    found: list[tuple[int, list[int]]] = []
    for parent, values in space.parameters[name].conditions.items():
        if space.parameters[parent].fixed:
            found += _needed(space, parent)
        else:
            found.append((space.axes.index(parent), [at_value(space, parent, value) for value in values]))
    return found


class Partition:
    """Cuts the cells of a space.

    Args:
        space: the space.
        sections: parts of a cut, K.
        resolution: real sides narrower than this share of their axis are never cut.
    """

    def __init__(self, space: Space, sections: int, resolution: float) -> None:
        self.axes: list[Axis] = []
        self._parameters = [parameter for _, parameter in space]
        for name, parameter in space:
            if parameter.cardinality is None:
                self.axes.append(RealAxis(sections, resolution))
            else:
                coordinates = [float(u) for u in axis_values(space, name)]
                self.axes.append(FiniteAxis(coordinates, None if parameter.unordered else sections))
        self.whole: Cell = tuple(axis.whole for axis in self.axes)
        self._needed = [_needed(space, name) for name in space.axes]
        self._always = not any(self._needed)

    def centre(self, cell: Cell) -> NDArray[np.float64]:
        """Return the centre, a point of the unit cube (``d``)."""
        return np.array([axis.centre(side) for axis, side in zip(self.axes, cell, strict=True)], dtype=np.float64)

    def widths(self, cell: Cell) -> list[float]:
        """Return the width of each side (``d``)."""
        if self._always:
            return [axis.width(side) for axis, side in zip(self.axes, cell, strict=True)]
        return [self.axes[i].width(cell[i]) if self._active(cell, i) else 0.0 for i in range(len(cell))]

    def longest(self, cell: Cell) -> list[int]:
        """Return the axes of the greatest width among those that can be cut, in order; none if none can."""
        able = [i for i, axis in enumerate(self.axes) if axis.cut(cell[i]) and self._active(cell, i)]
        widths = {i: self.axes[i].width(cell[i]) for i in able}
        return [i for i in able if widths[i] == max(widths.values())]

    def _active(self, cell: Cell, axis: int) -> bool:
        """Return whether a parameter is active anywhere in a cell."""
        return all(
            self._active(cell, parent) and any(cell[parent][0] <= value < cell[parent][1] for value in values)
            for parent, values in self._needed[axis]
        )

    def cut(self, cell: Cell, axis: int) -> list[Cell]:
        """Return the cells that a cut across an axis makes, in order."""
        return [(*cell[:axis], side, *cell[axis + 1 :]) for side in self.axes[axis].cut(cell[axis])]

    def values(self, cell: Cell) -> list[tuple[Value, Value]]:
        """Return the ends of each real side, and the first and last value of each other side (``d``)."""
        found = list[tuple[Value, Value]]()
        for parameter, axis, side in zip(self._parameters, self.axes, cell, strict=True):
            if parameter.cardinality is None:
                low, high = axis.ends(side)
                found.append((parameter.decode(low), parameter.decode(high)))
            else:
                found.append((parameter.values[side[0]], parameter.values[side[1] - 1]))
        return found

    def volume(self, cell: Cell) -> float:
        """Return a cell's share of the unit cube."""
        ends = [axis.ends(side) for axis, side in zip(self.axes, cell, strict=True)]
        return float(np.prod([high - low for low, high in ends]))
