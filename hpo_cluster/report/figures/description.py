"""A figure as plain data, which `still` draws as PNG and PDF and `live` as a part of the HTML page.

A figure has panels, a panel has two axes and layers. So what a figure shows is computed once, in one place, whatever
draws it.

The colours are those of M. Okabe and K. Ito, which colour-blind readers can distinguish. Each style has a marker and a
dash of its own too, so that a figure can be read without colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hpo_cluster.trial import State

Numbers: TypeAlias = tuple[float, ...]

BLUE, VERMILION, GREY, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#555555", "#009E73", "#CC79A7", "#E69F00"

#: The colours on a dark page.
ON_DARK: Mapping[str, str] = {
    BLUE: "#56B4E9",
    VERMILION: "#FF8A4C",
    GREY: "#B0B0B0",
    GREEN: "#2FD6A4",
    PURPLE: "#E6A5C9",
    ORANGE: "#F0C75E",
}


#: Characters that have room below a small panel.
ROOM = 36
#: Numbers of markers in a layer above which they are smaller, and above which they have no white edges.
MANY, CROWDED = 200, 1000


@dataclass(frozen=True)
class Style:
    """The look of a layer.

    Args:
        colour: on a light page.
        marker: one of circle, x, square, plus, diamond, star, ring, triangle.
        dash: of lines and outlines: solid, dashed, dotted.
        width: of lines.
        size: of markers, in points.
    """

    colour: str
    marker: str = "circle"
    dash: str = "solid"
    width: float = 1.5
    size: float = 6.5


#: The styles by name.
STYLES: Mapping[str, Style] = {
    str(State.COMPLETED): Style(BLUE, "circle"),
    str(State.DIVERGED): Style(VERMILION, "x"),
    str(State.INFEASIBLE): Style(PURPLE, "square"),
    str(State.FAILED): Style(GREY, "plus", size=8),
    str(State.RUNNING): Style(ORANGE, "triangle"),
    str(State.PAUSED): Style(GREY, "circle", "dotted", size=4),
    str(State.CANCELLED): Style(GREY, "x", "dotted"),
    "best": Style(GREEN, "ring", width=2.2, size=11),
    "front": Style(GREEN, "diamond", width=1.5, size=8),
    "violates": Style(PURPLE, "x"),
    "baseline": Style(GREY, "star", "dashed", width=1.2, size=12),
    "model": Style(VERMILION, "circle", "dashed", width=1.8),
    "seen": Style(GREY, "circle", size=4.5),
    "low_rung": Style(GREY, "circle", "dotted", width=0.9, size=4),
    "top_rung": Style(BLUE, "circle", "solid", width=1.2, size=5),
    "inherited": Style(ORANGE, "diamond"),
    "approximated": Style(PURPLE, "triangle"),
    "imputed": Style(GREY, "x"),
}


def smaller(count: int) -> float:
    """Return by how much markers shrink if there are many."""
    return min(1.0, max(0.45, math.sqrt(MANY / max(count, 1))))


def have_edges(count: int) -> bool:
    """Return whether markers have white edges: those of very many hide one another, and what is dense looks pale."""
    return count <= CROWDED


@dataclass(frozen=True)
class Axis:
    """An axis.

    Args:
        label: its text.
        log: whether the scale is logarithmic.
        low: its lower end; both None: from the data.
        high: its upper end.
        ticks: positions and their labels; None: chosen by what draws it.
        integers: whether only whole numbers are labelled.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    ticks: tuple[tuple[float, str], ...] | None = None
    integers: bool = False

    @property
    def crowded(self) -> bool:
        """Whether the labels of ticks are too long to stand next to one another below a small panel."""
        labels = [label for _, label in self.ticks or ()]
        return not any("\n" in label for label in labels) and len(labels) * max(map(len, labels), default=0) > ROOM


@dataclass(frozen=True)
class Points:
    """A marker for each trial.

    Args:
        x: positions.
        y: positions.
        style: a key of `STYLES`.
        label: for the legend; empty: none.
        trials: numbers of the trials.
        x_sem: standard errors, drawn as bars; empty: none.
        y_sem: the same.
        numbered: where the numbers of the trials are written: the signs of the direction; None: nowhere.
    """

    x: Numbers
    y: Numbers
    style: str
    label: str
    trials: tuple[int, ...] = ()
    x_sem: Numbers = ()
    y_sem: Numbers = ()
    numbered: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A line through points, or steps that keep a value until the next one.

    Args:
        x: positions.
        y: positions.
        style: a key of `STYLES`.
        label: for the legend; empty: none.
        step: `after` keeps a value until the next position, `before` takes the next value at once; empty: straight.
        trial: whose line it is; None: of no single trial.
    """

    x: Numbers
    y: Numbers
    style: str
    label: str = ""
    step: str = ""
    trial: int | None = None


@dataclass(frozen=True)
class Lines:
    """A line for each of many trials, in one style.

    Args:
        xs: positions of each line.
        ys: the same.
        style: a key of `STYLES`.
        label: for the legend.
        trials: numbers of the trials.
        opacity: of each line, 0 to 1.
        dots: whether each point has a marker.
    """

    xs: tuple[Numbers, ...]
    ys: tuple[Numbers, ...]
    style: str
    label: str
    trials: tuple[int, ...]
    opacity: Numbers
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: Numbers
    low: Numbers
    high: Numbers
    style: str
    label: str


@dataclass(frozen=True)
class Strip:
    """A shaded strip across the panel, for trials without a value: heights on it are no values."""

    low: float
    high: float


@dataclass(frozen=True)
class Rule:
    """A horizontal line across the panel."""

    y: float
    style: str
    label: str


@dataclass(frozen=True)
class Bars:
    """Horizontal bars from 0, at the heights 0, 1, 2, …

    Args:
        values: their lengths.
        style: a key of `STYLES`.
        label: for the legend; empty: none.
        low: lower ends of the uncertainties; empty: none.
        high: upper ends.
    """

    values: Numbers
    style: str
    label: str = ""
    low: Numbers = ()
    high: Numbers = ()


@dataclass(frozen=True)
class Spans:
    """Bars in time, one for each attempt.

    Args:
        rows: heights.
        starts: left ends.
        ends: right ends.
        style: a key of `STYLES`.
        label: for the legend.
        trials: numbers of the trials.
    """

    rows: Numbers
    starts: Numbers
    ends: Numbers
    style: str
    label: str
    trials: tuple[int, ...]


@dataclass(frozen=True)
class Contours:
    """Areas of equal height, filled: the higher, the lighter.

    Args:
        x: positions of the columns.
        y: positions of the rows.
        z: heights, a row for each `y`; not all equal.
        levels: edges of the areas, in ascending order.
    """

    x: Numbers
    y: Numbers
    z: tuple[Numbers, ...]
    levels: Numbers


Labelled: TypeAlias = Points | Line | Lines | Band | Rule | Bars | Spans
Layer: TypeAlias = Labelled | Strip | Contours


@dataclass(frozen=True)
class Panel:
    """One pair of axes with what is drawn in it; `note` is a short text above it."""

    x: Axis
    y: Axis
    layers: Sequence[Layer]
    note: str = ""
    height: float = 4.2  # inches


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Args:
        title: its heading.
        reading: sentences that say how to read it.
        panels: from left to right and from top to bottom.
        columns: most panels next to one another.
        table: lines of Markdown to show below it.
    """

    title: str
    reading: str
    panels: Sequence[Panel]
    columns: int = 1
    table: tuple[str, ...] = ()
