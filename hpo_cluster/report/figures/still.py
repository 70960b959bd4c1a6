"""Draw a figure with matplotlib, as PNG for screens and as PDF for papers."""

from __future__ import annotations

import functools
import io
import logging
import math
import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import singledispatch
from typing import Any

from hpo_cluster.report.figures.description import (
    GREY,
    STYLES,
    Axis,
    Band,
    Bars,
    Contours,
    Figure,
    Line,
    Lines,
    Panel,
    Points,
    Rule,
    Spans,
    Strip,
    have_edges,
    smaller,
)

log = logging.getLogger(__name__)

#: Smallest width of a figure, in inches: its title and legend need that much.
MIN_WIDTH = 6.4
#: Widths of a panel that stands alone, next to one other, and next to two others.
WIDTHS = {1: 7.2, 2: 4.6, 3: 3.6}
#: Width and height that the number of a trial needs next to its point, as shares of the axes.
LABEL = (0.05, 0.04)
#: Ratio of the ends of a logarithmic axis up to which 2 and 5 are labelled too.
FEW_DECADES = 30
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MARKERS: Mapping[str, str] = {
    "circle": "o",
    "x": "x",
    "square": "s",
    "plus": "+",
    "diamond": "D",
    "star": "*",
    "ring": "o",
    "triangle": "^",
}


def draw(figure: Figure, heading: str) -> tuple[bytes, bytes]:
    """Return a figure as PNG and as PDF.

    Args:
        figure: what to draw.
        heading: what stands before the figure's title, such as the campaign's name.
    """
    with plain_text():
        return saved(_drawn(figure, heading))


def plain_text() -> AbstractContextManager[None]:
    """Return a context in which figures show names and choices as they are: they may hold dollar signs."""
    from matplotlib import rc_context

    return rc_context({"text.parse_math": False, "pdf.fonttype": 42})


def saved(drawn: Any, dpi: float | None = None) -> tuple[bytes, bytes]:
    """Return a figure of matplotlib as PNG and as PDF; `dpi` in place of its own."""
    png, pdf = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings(record=True, action="always") as found:
        drawn.savefig(png, format="png", dpi=dpi or "figure", metadata={"Software": "hpo_cluster"})
        drawn.set_layout_engine("none")  # it is laid out
        drawn.savefig(pdf, format="pdf", dpi=dpi or "figure", metadata={"Creator": "hpo_cluster", "CreationDate": None})
    glyphs = [(warning, re.match(r"Glyph (\d+) .*missing", str(warning.message))) for warning in found]
    for missing in sorted({chr(int(glyph[1])) for _, glyph in glyphs if glyph}):
        _tell_missing(missing)
    for warning in [warning for warning, glyph in glyphs if not glyph]:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return png.getvalue(), pdf.getvalue()


@functools.cache
def _tell_missing(character: str) -> None:
    """Say once that a character of a name or a choice cannot be drawn."""
    log.warning("figures (PNG, PDF) show a box for %s, which their font lacks; an HTML page shows it", character)


def _drawn(figure: Figure, heading: str) -> Any:
    """Return the figure, made without pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    columns = min(figure.columns, len(figure.panels))
    rows = math.ceil(len(figure.panels) / columns)
    height = sum(max(p.height for p in figure.panels[row * columns : (row + 1) * columns]) for row in range(rows))
    width = max(WIDTHS[columns] * columns, MIN_WIDTH)
    drawn = Canvas(figsize=(width, height + 0.5), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    cells = list(drawn.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(cells, figure.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in cells[len(figure.panels) :]:
        axes.set_axis_off()
    drawn.suptitle(f"{heading}: {figure.title}", x=0.01, ha="left", fontsize=11)
    found: dict[str, Any] = {}
    for axes in cells:
        found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if found:
        ncols = min(len(found), 4 if columns == 1 else 6)
        drawn.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=ncols, frameon=False, fontsize=9
        )
    return drawn


def _draw_panel(axes: Any, panel: Panel) -> None:
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for axis, side, set_scale, set_ends in (
        (panel.x, axes.xaxis, axes.set_xscale, axes.set_xlim),
        (panel.y, axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        if axis.log:
            set_scale("log")
        if axis.low is not None:
            set_ends(axis.low, axis.high)
        side.set_label_text(axis.label)
    if panel.note:
        axes.set_title(panel.note, loc="right", fontsize=9, color=GREY)
    for height, layer in enumerate(panel.layers):
        _layer(layer, axes, 2 + height)
    _set_ticks(axes.xaxis, panel.x)
    _set_ticks(axes.yaxis, panel.y)


def _set_ticks(side: Any, axis: Axis) -> None:
    if axis.ticks is not None:
        small = max((len(label) for _, label in axis.ticks), default=0) > 12
        side.set_ticks([at for at, _ in axis.ticks], [label for _, label in axis.ticks], fontsize=8 if small else 9)
        side.set_ticks([], minor=True)
        if axis.crowded and side.axis_name == "x":
            side.set_tick_params(labelrotation=30)
            for label in side.get_majorticklabels():
                label.set(ha="right", rotation_mode="anchor")
    elif axis.log:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        low, high = side.get_view_interval()
        wide = high > FEW_DECADES * low
        side.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        side.set_major_formatter(FuncFormatter(lambda value, _: power(value) if wide else f"{value:g}"))
        side.set_minor_formatter(NullFormatter())
    elif axis.integers:
        from matplotlib.ticker import MaxNLocator

        side.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if axis.ticks is None and not axis.log:
        side.get_major_formatter().set_useOffset(False)  # a number that is to be added to all labels is overlooked


def power(value: float) -> str:
    """Return a power of ten as text, without a formula."""
    exponent = str(round(math.log10(value)))
    return f"10{exponent.translate(SUPERSCRIPTS)}"


def _marker(style: str) -> dict[str, Any]:
    """Return the properties of a marker, for `plot`."""
    look = STYLES[style]
    made: dict[str, Any] = {"marker": MARKERS[look.marker], "markersize": look.size, "color": look.colour}
    if look.marker == "ring":
        return made | {"markerfacecolor": "none", "markeredgewidth": look.width}
    if look.marker in ("x", "plus"):
        return made | {"markeredgewidth": 1.6}
    return made | {"markeredgecolor": "white", "markeredgewidth": 0.6}


def _stroke(style: str) -> dict[str, Any]:
    look = STYLES[style]
    return {"color": look.colour, "linestyle": look.dash, "linewidth": look.width}


@singledispatch
def _layer(layer: object, axes: Any, order: float) -> None:
    raise TypeError(type(layer))


@_layer.register
def _points(layer: Points, axes: Any, order: float) -> None:
    from matplotlib.colors import to_rgb

    marker = _marker(layer.style)
    marker["markersize"] *= smaller(len(layer.x))
    if "markeredgecolor" in marker and not have_edges(len(layer.x)):
        marker["markeredgewidth"] = 0.0
    if layer.x_sem or layer.y_sem:
        pale = tuple(0.55 + 0.45 * channel for channel in to_rgb(STYLES[layer.style].colour))
        bars = {"fmt": "none", "ecolor": pale, "elinewidth": 0.9, "zorder": order}
        axes.errorbar(layer.x, layer.y, layer.y_sem or None, layer.x_sem or None, **bars)
    axes.plot(layer.x, layer.y, linestyle="none", label=layer.label or None, zorder=order, **marker)
    if layer.numbered is not None:
        _number(axes, layer, layer.numbered)


def _number(axes: Any, layer: Points, toward: tuple[float, float]) -> None:
    """Write the numbers of trials next to their points: in the direction given, or opposite if there is no room."""
    placed: list[tuple[float, float]] = []
    style = {"textcoords": "offset points", "fontsize": 8, "color": GREY, "zorder": 50}
    for trial, *at in zip(layer.trials, layer.x, layer.y, strict=True):
        x, y = axes.transAxes.inverted().transform(axes.transData.transform(at))
        for side in (1, -1):
            right, up = side * toward[0] > 0, side * toward[1] > 0
            middle = x + (1 if right else -1) * LABEL[0] / 2, y + (1 if up else -1) * LABEL[1] / 2
            if all(abs(middle[0] - u) > LABEL[0] or abs(middle[1] - v) > LABEL[1] for u, v in placed):
                placed.append(middle)
                offset, align = (5 if right else -5, 4 if up else -10), "left" if right else "right"
                axes.annotate(str(trial), at, offset, ha=align, **style)
                break


@_layer.register
def _line(layer: Line, axes: Any, order: float) -> None:
    drawstyle = {"after": "steps-post", "before": "steps-pre", "": "default"}[layer.step]
    label = layer.label or None
    axes.plot(layer.x, layer.y, drawstyle=drawstyle, label=label, zorder=order, **_stroke(layer.style))


@_layer.register
def _lines(layer: Lines, axes: Any, order: float) -> None:
    marker = _marker(layer.style) if layer.dots else {}
    for number, (x, y, opacity) in enumerate(zip(layer.xs, layer.ys, layer.opacity, strict=True)):
        label = layer.label if number == len(layer.xs) - 1 else None
        axes.plot(x, y, label=label, zorder=order, alpha=opacity, **{**marker, **_stroke(layer.style)})


@_layer.register
def _band(layer: Band, axes: Any, order: float) -> None:
    colour = STYLES[layer.style].colour
    axes.fill_between(
        layer.x, layer.low, layer.high, color=colour, alpha=0.18, linewidth=0, label=layer.label, zorder=order
    )


@_layer.register
def _contours(layer: Contours, axes: Any, order: float) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    areas = axes.contourf(layer.x, layer.y, layer.z, levels=layer.levels, cmap="cividis", zorder=order)
    axes.contour(layer.x, layer.y, layer.z, levels=layer.levels, colors="white", linewidths=0.4, zorder=order)
    bar = axes.figure.colorbar(areas, ax=axes, ticks=MaxNLocator(6), format=ScalarFormatter(useOffset=False))
    bar.minorticks_off()


@_layer.register
def _strip(layer: Strip, axes: Any, order: float) -> None:
    axes.axhspan(layer.low, layer.high, facecolor="#EFEFEF", zorder=0.8)


@_layer.register
def _rule(layer: Rule, axes: Any, order: float) -> None:
    axes.axhline(layer.y, label=layer.label, zorder=order, **_stroke(layer.style))


@_layer.register
def _bars(layer: Bars, axes: Any, order: float) -> None:
    colour, rows = STYLES[layer.style].colour, range(len(layer.values))
    axes.barh(rows, layer.values, height=0.62, color=colour, alpha=0.75, label=layer.label or None, zorder=order)
    if layer.low:
        axes.hlines(rows, layer.low, layer.high, color="black", linewidth=1.4, zorder=order + 0.5)


@_layer.register
def _spans(layer: Spans, axes: Any, order: float) -> None:
    look = STYLES[layer.style]
    widths = [end - start for start, end in zip(layer.starts, layer.ends, strict=True)]
    hatch = (
        None
        if layer.style == "completed"
        else {"x": "xx", "plus": "++", "square": "..", "triangle": "//"}.get(look.marker)
    )
    axes.barh(
        layer.rows,
        widths,
        left=layer.starts,
        height=0.7,
        color=look.colour,
        edgecolor="white",
        linewidth=0.5,
        hatch=hatch,
        label=layer.label,
        zorder=order,
    )
