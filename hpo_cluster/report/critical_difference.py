"""Draw a critical-difference diagram: mean ranks on an axis, and a bar over those that cannot be told apart."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_cluster.report.figures.description import BLUE
from hpo_cluster.report.statistics import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Heights in inches: of what lies above the axis, of a bar and of a name.
HEAD, BAR, ROW = 0.85, 0.13, 0.25
#: Width of the axis in inches, and of the names on each of its sides.
AXIS, SIDE = 6.0, 2.2
OURS, OTHERS = BLUE, "#000000"


def draw(
    comparison: Comparison,
    path: Path,
    title: str,
    label: Callable[[str], str] = str,
    marked: Container[str] = (),
) -> None:
    """Write the diagram of a comparison as a PNG.

    Args:
        comparison: the mean ranks and cliques.
        path: of the picture.
        title: of the diagram.
        label: what to write for a name.
        marked: names in blue and bold.
    """
    diagram(comparison, title, label, marked).savefig(path, dpi=110)


def diagram(comparison: Comparison, title: str, label: Callable[[str], str], marked: Container[str]) -> Figure:
    """Return the diagram: the better half of the names on the left, the others on the right, a bar for each clique."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, ranks = comparison.names, comparison.mean_ranks
    left = (len(names) + 1) // 2
    below = 0.15 + BAR * len(comparison.cliques)
    height = HEAD + below + ROW * (left + 0.5)
    figure = Figure(figsize=(AXIS + 2 * SIDE, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    # inches from the upper left corner; rank 1 lies at the left end of the axis
    axes.set_xlim(0, AXIS + 2 * SIDE)
    axes.set_ylim(-height, 0)

    def at(rank: float) -> float:
        return SIDE + AXIS * (rank - 1) / (len(names) - 1)

    axes.text(0.15, -0.2, title, fontsize=12, va="center")
    axes.plot([at(1), at(len(names))], [-HEAD, -HEAD], color="black", linewidth=1.5, solid_capstyle="butt")
    for tick in range(1, len(names) + 1):
        axes.plot([at(tick)] * 2, [-HEAD, -HEAD + 0.1], color="black", linewidth=1)
        axes.text(at(tick), -HEAD + 0.15, str(tick), ha="center", va="bottom", fontsize=10)
    for i, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        on_left = i < left
        row = i if on_left else len(names) - 1 - i
        y = -HEAD - below - ROW * (row + 0.5)
        colour, weight = (OURS, "bold") if name in marked else (OTHERS, "normal")
        end = SIDE - 0.1 if on_left else SIDE + AXIS + 0.1
        axes.plot([at(rank), at(rank), end], [-HEAD, y, y], color=colour, linewidth=1, solid_joinstyle="miter")
        text = f"{label(name)}  {rank:.1f}" if on_left else f"{rank:.1f}  {label(name)}"
        x, side = (end - 0.06, "right") if on_left else (end + 0.06, "left")
        axes.text(x, y, text, ha=side, va="center", color=colour, weight=weight, fontsize=10)
    for i, clique in enumerate(comparison.cliques):
        first, last = (ranks[names.index(name)] for name in (clique[0], clique[-1]))
        y = -HEAD - 0.13 - BAR * i
        axes.plot([at(first) - 0.04, at(last) + 0.04], [y, y], color="black", linewidth=4, solid_capstyle="butt")
    return figure
