"""The columns of real numbers that a model sees of a configuration."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.space import Categorical, Space

#: Scale of the logarithm of a length-scale in its prior, which is a log-normal distribution (see `gaussian_process`).
SCALE_SPREAD = math.sqrt(3)


def scale_location(columns: int) -> float:
    """Return the location of the logarithm of a length-scale in the prior of a process of that many columns."""
    return math.sqrt(2) + 0.5 * math.log(columns)


def likeliest_scale(columns: int) -> float:
    """Return the mode of the prior of a length-scale in a process of that many columns."""
    return math.exp(scale_location(columns) - SCALE_SPREAD**2)


class Features:
    """The columns that the surrogate sees, each in [0, 1].

    A real parameter is its coordinate in the unit cube. An integer, a number with a step, an ordered choice or a choice
    of two is its coordinate stretched so that its first and last value are 0 and 1. An unordered choice of more is one
    column for each value, 1 for the one chosen (one-hot). The column of an inactive parameter is 0.5, and one-hot
    columns share 1 equally, so that all its values are alike.

    Args:
        space: the space of the points.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.names: list[str] = []  # of the columns
        self.start: list[int] = []  # first column of each parameter
        self.one_hot: list[bool] = []
        self.ends: list[tuple[float, float]] = []  # canonical coordinates of a parameter's first and last value
        for name, parameter in space:
            choices = parameter.choices if isinstance(parameter, Categorical) and not parameter.ordered else ()
            self.start.append(len(self.names))
            self.one_hot.append(len(choices) > 2)
            first, last = (parameter.encode(parameter.decode(u)) for u in (0.0, 1.0))
            self.ends.append((first, last) if last > first else (0.0, 1.0))
            self.names += [f"{name}={choice}" for choice in choices] if len(choices) > 2 else [name]

    @property
    def dim(self) -> int:
        """Number of columns."""
        return len(self.names)

    def encode(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the columns (``n x c``) of canonical points (``n x d``)."""
        out = np.zeros((len(points), self.dim))
        active = self.space.active(points)
        for axis, (start, (first, last)) in enumerate(zip(self.start, self.ends, strict=True)):
            if self.one_hot[axis]:
                count = self._count(axis)
                out[np.arange(len(points)), start + self._index(axis, points[:, axis])] = 1.0
                out[~active[:, axis], start : start + count] = 1 / count
            else:
                out[:, start] = np.where(active[:, axis], (points[:, axis] - first) / (last - first), 0.5)
        return out

    def decode(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return canonical points (``n x d``) of columns (``n x c``); discrete parameters are rounded to a value."""
        out = np.zeros((len(columns), self.space.dim))
        for axis, (start, (first, last)) in enumerate(zip(self.start, self.ends, strict=True)):
            if self.one_hot[axis]:
                count = self._count(axis)
                out[:, axis] = (columns[:, start : start + count].argmax(axis=1) + 0.5) / count
            else:
                out[:, axis] = first + columns[:, start] * (last - first)
        return self.space.snap(out)

    def units(self, side: float) -> NDArray[np.float64]:
        """Return the units of the columns (``c``) for a small box: `side`, and 1 for one-hot columns."""
        return np.where(np.repeat(self.one_hot, [self._count(axis) for axis in range(self.space.dim)]), 1.0, side)

    def bounds(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return least and greatest columns (``c`` each) of a box between two points (``d`` each); one-hot: 0, 1."""
        least, greatest = np.zeros(self.dim), np.ones(self.dim)
        for axis, (start, (first, last)) in enumerate(zip(self.start, self.ends, strict=True)):
            if not self.one_hot[axis]:
                ends = (low[axis] - first) / (last - first), (high[axis] - first) / (last - first)
                least[start], greatest[start] = np.clip(ends, 0.0, 1.0)
        return least, greatest

    def _index(self, axis: int, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the index of the choice that each coordinate (``n``) stands for."""
        count = self._count(axis)
        return np.minimum((u * count).astype(np.int64), count - 1)

    def _count(self, axis: int) -> int:
        """Return the number of columns of a parameter."""
        ends = [*self.start[1:], self.dim]
        return ends[axis] - self.start[axis]
