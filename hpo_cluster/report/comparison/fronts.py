"""The figure of the fronts of groups: with two objectives what half of the seeds attain, with more all best points.

With two objectives each campaign attains everything that its front dominates. The line of a group is the edge of what
more than half of its campaigns attain: the median attainment surface. Reference: V. Grunert da Fonseca, C. M. Fonseca
and A. O. Hall, "Inferential Performance Assessment of Stochastic Optimisers and the Attainment Function", Evolutionary
Multi-Criterion Optimization (EMO), Springer, 2001.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.goals import Goal, Point, gain, undominated
from hpo_cluster.report.comparison import Comparison, Group
from hpo_cluster.report.comparison.several import Box, FrontRun
from hpo_cluster.report.comparison.style import COLOURS, MARKERS, QUARTILES_FROM, STYLES
from hpo_cluster.report.data import shorten
from hpo_cluster.report.figures.description import GREY
from hpo_cluster.report.figures.shared import with_margins
from hpo_cluster.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

#: Largest number of markers on a line.
MARKS = 8
#: Columns of panels with three objectives or more.
COLUMNS = 3


def draw_fronts(comparison: Comparison) -> Figure | None:
    """Draw the fronts of each group in the box; None if no campaign has a point in it."""
    from matplotlib.figure import Figure

    box = comparison.box
    if box is None:
        return None
    pairs = list(itertools.combinations(range(len(box.reference)), 2))
    columns = min(COLUMNS, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    size = (6.4, 5.2) if len(pairs) == 1 else (3.4 * columns, 3.1 * rows + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (i, j) in zip(cells, pairs, strict=False):
        _prepare(axes, box, i, j)
        for number, group in enumerate(comparison.groups):
            draw = _draw_attained if len(pairs) == 1 else _draw_points
            draw(axes, box, group, number, (i, j))
        if len(pairs) == 1:
            _draw_union(axes, box, comparison)
        at = [box.goals.metrics[k].sign * box.reference[k] for k in (i, j)]
        label = "reference point"
        axes.plot(*at, "+", color=GREY, markersize=9, markeredgewidth=1.6, linestyle="none", label=label, zorder=5)
    for axes in cells[len(pairs) :]:
        axes.set_axis_off()
    handles, labels = cells[0].get_legend_handles_labels()
    columns = min(2 if len(pairs) == 1 else 4, len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)
    return figure


def fronts_in_words(comparison: Comparison) -> str:
    """Return what the figure of the fronts shows."""
    if len(comparison.first.campaign.goals.metrics) > 2:  # type: ignore[union-attr]
        return (
            "The markers in the figure of the fronts are the points of a group that no other one of the group "
            "dominates, by each two objectives."
        )
    return (
        "In the figure of the fronts, a line is the edge of what more than half of the campaigns of a group dominate, "
        "and a band reaches over the seeds as in the other figures; the grey line is the front of all campaigns "
        "together. What is worse than the reference point is left out."
    )


def attained(front: Sequence[Point], thresholds: Array) -> Array:
    """Return the best second target among points whose first one is at least each threshold; -inf without any."""
    points = np.array(front, dtype=np.float64).reshape(-1, 2)
    reached = points[:, 0] >= thresholds[:, None]
    best: Array = np.where(reached, points[:, 1], -np.inf).max(axis=1, initial=-np.inf)
    return best


def surfaces(fronts: Sequence[Sequence[Point]], reference: Point) -> tuple[Array, Array, Array, Array]:
    """Return the attainment surfaces of a group as thresholds and lower end, median and upper end of the band.

    Args:
        fronts: of the campaigns: pairs of targets, all better than the reference.
        reference: where the lines begin and end.
    """
    thresholds = np.unique([reference[0], *(point[0] for front in fronts for point in front)])
    levels = np.sort([attained(front, thresholds) for front in fronts], axis=0)
    levels = np.maximum(levels, reference[1])
    last = len(fronts) - 1
    low = int(0.25 * last) if len(fronts) >= QUARTILES_FROM else 0
    return thresholds, levels[low], levels[last // 2], levels[last - low]


def _prepare(axes: Any, box: Box, i: int, j: int) -> None:
    """Set the axes of two objectives, so that the box fills them; a hypervolume is an area only on linear ones."""
    for set_limits, side, k in ((axes.set_xlim, axes.xaxis, i), (axes.set_ylim, axes.yaxis, j)):
        goal = box.goals.metrics[k]
        set_limits(*with_margins((goal.sign * box.reference[k], goal.sign * box.best[k]), log=False))
        side.set_label_text(f"{shorten(goal.name, 30)}\n({_better(goal)} is better)")
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _better(goal: Goal) -> str:
    return "lower" if goal.direction == "minimize" else "higher"


def _held(box: Box, group: Group) -> list[list[Point]]:
    """Return the points of each front that lie in the box."""
    fronts = [run.front for run in group.runs if isinstance(run, FrontRun)]
    return [[point for point in front if gain(point, (), box.reference)] for front in fronts]


def _label(group: Group) -> str:
    return f"{shorten(group.name, 36)} ({counted(len(group.runs), 'seed')})"


def _draw_attained(axes: Any, box: Box, group: Group, number: int, _: tuple[int, int]) -> None:
    """Draw the median attainment surface of a group and its band."""
    fronts = _held(box, group)
    if not any(fronts):
        return
    x_sign, y_sign = (goal.sign for goal in box.goals.metrics)
    thresholds, low, middle, high = surfaces(fronts, box.reference)
    colour = COLOURS[number % len(COLOURS)]
    x = x_sign * thresholds
    axes.fill_between(x, y_sign * low, y_sign * high, step="pre", color=colour, alpha=0.15, linewidth=0, zorder=2)
    there = np.flatnonzero(middle > box.reference[1])
    if not len(there):  # half of the campaigns have no point in the box
        return
    end = int(there[-1]) + 1
    corners = np.flatnonzero(np.diff(middle[:end], append=-np.inf))
    line = {"linestyle": STYLES[number % len(STYLES)], "linewidth": 1.8, "color": colour, "zorder": 3}
    marks = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4.5}
    marks["markevery"] = corners[:: math.ceil(len(corners) / MARKS)].tolist()
    x, y = np.append(x[:end], x[end - 1]), y_sign * np.append(middle[:end], box.reference[1])
    axes.step(x, y, where="pre", label=_label(group), **line, **marks)


def _draw_union(axes: Any, box: Box, comparison: Comparison) -> None:
    """Draw the front of all campaigns together."""
    points = [point for group in comparison.groups for front in _held(box, group) for point in front]
    x_sign, y_sign = (goal.sign for goal in box.goals.metrics)
    thresholds, _, level, _ = surfaces([points], box.reference)
    x, y = np.append(thresholds, thresholds[-1]), np.append(level, box.reference[1])
    style = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (1, 1)), "zorder": 4}
    axes.step(x_sign * x, y_sign * y, where="pre", label="front of all campaigns", **style)


def _draw_points(axes: Any, box: Box, group: Group, number: int, pair: tuple[int, int]) -> None:
    """Draw the points of a group that no other one of it dominates, by two of the objectives."""
    points = undominated(point for front in _held(box, group) for point in front)
    x, y = ([box.goals.metrics[k].sign * point[k] for point in points] for k in pair)
    look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
    axes.plot(x, y, linestyle="none", alpha=0.8, markeredgecolor="white", label=_label(group), zorder=3, **look)
