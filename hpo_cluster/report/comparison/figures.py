"""The figures of a comparison, as PNG and PDF: best so far with bands over seeds, and the diagram of mean ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.report.comparison import Comparison, Group
from hpo_cluster.report.comparison.fronts import draw_fronts, fronts_in_words
from hpo_cluster.report.comparison.style import COLOURS, MARKERS, MARKS, QUARTILES_FROM, STYLES, band
from hpo_cluster.report.critical_difference import diagram
from hpo_cluster.report.data import shorten
from hpo_cluster.report.figures.shared import time_unit
from hpo_cluster.report.figures.still import saved
from hpo_cluster.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 400
#: The first values of a search are left out of a picture in which they would take more than this many times the height
#: of all others; and the share of a search that is its beginning.
HIDDEN, EARLY = 3.0, 0.2
#: Characters of a name in a legend next to the axes; longer ones would leave no room for these, and stand below.
BESIDE = 26
AXES = {
    "evaluations": "evaluations",
    "equivalents": "whole evaluations that were spent",
    "gpu_hours": "GPU-hours",
    "hours": "time since the first submission",
}


def draw_best(comparison: Comparison, cost: str) -> Figure | None:
    """Draw the best value so far, or the hypervolume, of each group against a cost; None if there is no value yet."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    runs = comparison.runs
    end = max(run.curve.end(cost) for run in runs)
    if comparison.reach is None or end <= 0:
        return None
    unit_s, unit = time_unit(3600 * end) if cost == "hours" else (3600.0, "")
    divisor = unit_s / 3600
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    everything, later = [], []
    for number, group in enumerate(comparison.groups):
        places, values = _draw_group(axes, group, cost, number, divisor, discrete=cost == "evaluations")
        everything.append(values.ravel())
        later.append(values[1:, places >= EARLY * end].ravel())  # a band may begin outside of the picture
    if comparison.reach_given:
        axes.axhline(comparison.reach, color="#555555", linewidth=0.8, linestyle=(0, (1, 2)))
    compared = comparison.metrics[0]
    _scale(axes, _finite(everything), _finite(later), maximize=bool(compared.maximize))
    if cost == "evaluations":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(AXES[cost] + (f" ({unit})" if unit else ""))
    direction = "higher" if compared.maximize else "lower"
    name = shorten(compared.shown, 40)
    axes.set_ylabel(f"{name if comparison.several else f'best {name} so far'}\n({direction} is better)")
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
    if longest <= BESIDE:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.4)
    else:
        figure.set_figheight(3.8 + 0.22 * len(comparison.groups))
        figure.legend(frameon=False, loc="outside lower left")
    return figure


def _draw_group(
    axes: Any, group: Group, cost: str, number: int, divisor: float, *, discrete: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the median and the band of a group; return their places and values: worse end, median, better end."""
    ends = [run.curve.end(cost) for run in group.runs]
    places = np.unique(np.concatenate([run.curve.costs[cost] for run in group.runs]))
    if not len(places):
        return places, np.empty((3, 0))
    if len(places) > POINTS and not discrete:
        places = np.unique(np.append(np.linspace(places[0], places[-1], POINTS), ends))
    if discrete:  # half an evaluation more, so that what the last one has brought is seen
        places, ends = np.append(places, places[-1] + 0.5), [end + 0.5 for end in ends]
    best = np.array([run.curve.at(cost, places) for run in group.runs])
    low, middle, high = band(best)
    sign, x = group.runs[0].sign, places / divisor
    colour = COLOURS[number % len(COLOURS)]
    seeds = f" ({counted(len(group.runs), 'seed')})"
    axes.fill_between(x, sign * low, sign * high, step="post", color=colour, alpha=0.15, linewidth=0, zorder=2)
    label = shorten(group.name, 36) + seeds
    common = places <= min(ends)
    style = {"where": "post", "color": colour, "zorder": 3}
    if common.any():
        own = x[common][:-1] if discrete and len(x) == common.sum() else x[common]  # no mark at half an evaluation
        places = np.linspace(own[0], own[-1], MARKS) + 0.04 * number * (own[-1] - own[0]) / MARKS
        marked = np.unique(np.searchsorted(own, places, side="right") - 1).tolist()
        marks = {"marker": MARKERS[number % len(MARKERS)], "markevery": marked, "markersize": 4.5}
        line = {"linestyle": STYLES[number % len(STYLES)], "linewidth": 1.8, "label": label}
        axes.step(x[common], sign * middle[common], **style, **line, **marks)
    if not common.all():  # campaigns that ended earlier keep their best value
        rest = ~common
        rest[max(int(common.sum()) - 1, 0)] = True
        line = {"linestyle": (0, (1, 1.5)), "linewidth": 1.2, "label": None if common.any() else label}
        axes.step(x[rest], sign * middle[rest], **style, **line)
    return divisor * x, sign * np.stack([low, middle, high])


def _finite(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    values = np.concatenate(parts)
    return values[np.isfinite(values)]


def _scale(axes: Any, values: NDArray[np.float64], later: NDArray[np.float64], *, maximize: bool) -> None:
    """Use a log scale for what is minimised over decades; else leave out early values that hide the later ones.

    The numbers of the log scale are plain: names of groups are no formulas here.
    """
    from matplotlib.ticker import FuncFormatter

    if not maximize and len(values) and values.min() > 0 and values.max() > 100 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif len(later) and np.ptp(values) > HIDDEN * np.ptp(later) > 0:
        margin = 0.05 * np.ptp(later)
        axes.set_ylim(later.min() - margin, later.max() + margin)


def draw_ranks(comparison: Comparison) -> Figure | None:
    """Draw the critical-difference diagram; None with too few groups or seeds."""
    ranking = comparison.ranking
    if ranking is None:
        return None
    metric = shorten(comparison.metrics[0].shown, 40)
    title = f"Mean ranks by {metric} over {counted(ranking.problems, 'seed')}"
    return diagram(ranking, title, lambda name: shorten(name, 20), ())


def as_files(figure: Figure) -> dict[str, bytes]:
    """Return a figure as PNG and PDF, by the end of the file's name."""
    png, pdf = saved(figure, dpi=200)
    return {"png": png, "pdf": pdf}


def band_in_words(comparison: Comparison) -> str:
    """Return what the lines and bands of the figures mean."""
    sizes = {len(group.runs) >= QUARTILES_FROM for group in comparison.groups}
    bands = [
        *(["the middle half of the seeds"] if True in sizes else []),
        *([f"all seeds, where there are fewer than {QUARTILES_FROM}"] if False in sizes else []),
    ]
    kept = "hypervolume" if comparison.several else "best value"
    return (
        f"Lines are medians over seeds, bands hold {' or '.join(bands)}. A line is dotted where some of its campaigns "
        f"have ended: these keep their {kept}. Values of the first fifth are left out where they would hide the others."
        + (f" {fronts_in_words(comparison)}" if comparison.several else "")
    )


def titles(comparison: Comparison) -> dict[str, str]:
    """Return the titles of the figures, by the names of their files without ending."""
    stem, what = ("hypervolume_by", "Hypervolume") if comparison.several else ("best_by", "Best so far")
    found = {f"{stem}_{cost}": f"{what} against {AXES[cost]}" for cost in comparison.costs}
    found |= {"fronts": "Fronts of the groups"} if comparison.several else {}
    return {**found, "critical_difference": "Mean ranks over seeds; a bar joins groups that cannot be told apart"}


def draw(comparison: Comparison, stem: str) -> Figure | None:
    """Draw the figure of this name; None if there is nothing to draw."""
    if stem == "critical_difference":
        return draw_ranks(comparison)
    if stem == "fronts":
        return draw_fronts(comparison)
    return draw_best(comparison, stem.partition("_by_")[2])


__all__ = ["as_files", "band", "band_in_words", "draw", "titles"]
