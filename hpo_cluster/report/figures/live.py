"""Draw figures with Bokeh, as parts of an HTML page that needs no network: what is under the pointer says its trial.

The page's script (``report/html/page.js``) defines ``reportTip(trial)``, the text for the pointer, and
``reportShow(trial)``, which opens a trial's details. It changes the colours on a dark page too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from bokeh.document import Document
from bokeh.embed import components
from bokeh.models import (
    BoxAnnotation,
    ColumnDataSource,
    CustomJS,
    CustomJSHover,
    FixedTicker,
    HoverTool,
    PlainText,
    Range1d,
    Span,
    TapTool,
    WheelZoomTool,
    Whisker,
)
from bokeh.palettes import Cividis256, linear_palette
from bokeh.plotting import figure as new_plot
from bokeh.resources import Resources

from hpo_cluster.report.figures.description import (
    STYLES,
    Axis,
    Band,
    Bars,
    Contours,
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

#: Pixels for an inch of a panel's height.
PIXELS = 78
MARKERS = {
    "circle": "circle",
    "x": "x",
    "square": "square",
    "plus": "cross",
    "diamond": "diamond",
    "star": "star",
    "ring": "circle",
    "triangle": "triangle",
}
PATTERNS = {"x": "diagonal_cross", "plus": "cross", "square": "dot", "triangle": "right_diagonal_line"}
FONT = "13px"


def scripts() -> str:
    """Return Bokeh's own script, to be put into the page."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def draw(panels: Sequence[Panel]) -> tuple[str, tuple[str, ...]]:
    """Return the script that draws panels, and the elements that they are drawn into."""
    plots, document = [_plot(panel) for panel in panels], Document()
    with document.models.freeze():  # it would collect the models of all plots again for each of them
        for plot in plots:
            document.add_root(plot)
    script, elements = components(plots, wrap_script=False)
    return script, tuple(elements)


def _plot(panel: Panel) -> Any:
    plot = new_plot(
        sizing_mode="stretch_width",
        height=round(panel.height * PIXELS),
        min_width=240,
        tools="pan,box_zoom,reset,save",
        toolbar_location="above",
        x_axis_type="log" if panel.x.log else "linear",
        y_axis_type="log" if panel.y.log else "linear",
        title=panel.note or None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        lod_threshold=None,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.add_tools(WheelZoomTool(zoom_on_axis=True, modifiers={"ctrl": True}))  # so that the page scrolls over figures
    if plot.title is not None:
        plot.title.text_font_style, plot.title.text_font_size, plot.title.align = "normal", FONT, "right"
    found = [mark for layer in panel.layers for mark in _layer(layer, plot)]
    trials = [mark for mark in found if "trial" in mark.data_source.data]
    for mark in trials:
        mark.nonselection_glyph = mark.selection_glyph = None  # a click changes nothing in the figure
    if trials:
        tip = '<div style="white-space: pre-line; max-width: 26em; color: #111">@trial{custom}</div>'
        formatter = CustomJSHover(code="return window.reportTip(value)")
        plot.add_tools(
            HoverTool(renderers=trials, tooltips=tip, formatters={"@trial": formatter}, point_policy="follow_mouse")
        )
        show = "const i = cb_data.source.selected.indices[0]; window.reportShow(cb_data.source.data.trial[i])"
        plot.add_tools(TapTool(renderers=trials, callback=CustomJS(code=show)))
    _set_axis(plot.xaxis[0], panel.x)
    _set_axis(plot.yaxis[0], panel.y)
    if panel.x.crowded:
        plot.xaxis[0].major_label_orientation = math.pi / 6
    if panel.x.low is not None:
        plot.x_range = Range1d(panel.x.low, panel.x.high)
    if panel.y.low is not None:
        plot.y_range = Range1d(panel.y.low, panel.y.high)
    plot.grid.grid_line_alpha = 0.5
    return plot


def _set_axis(side: Any, axis: Axis) -> None:
    side.axis_label = PlainText(text=axis.label) if axis.label else None  # $$…$$ would be a formula
    side.axis_label_text_font_style, side.axis_label_text_font_size = "normal", FONT
    side.major_label_text_font_size = "12px"
    side.minor_tick_line_color = None
    if axis.ticks is not None:
        side.ticker = FixedTicker(ticks=[at for at, _ in axis.ticks])
        side.major_label_overrides = {at: PlainText(text=label) for at, label in axis.ticks}
    elif axis.integers and not axis.log:
        side.ticker.min_interval = 1


def _source(trials: Sequence[int], **columns: Any) -> ColumnDataSource:
    return ColumnDataSource({**columns, **({"trial": list(trials)} if trials else {})})


@singledispatch
def _layer(layer: object, plot: Any) -> list[Any]:
    """Draw a layer, and return what can be pointed at."""
    raise TypeError(type(layer))


@_layer.register
def _points(layer: Points, plot: Any) -> list[Any]:
    look = STYLES[layer.style]
    source = _source(layer.trials, x=list(layer.x), y=list(layer.y))
    for dimension, base, sems in (("width", layer.y, layer.x_sem), ("height", layer.x, layer.y_sem)):
        if not any(sems):
            continue
        middle = layer.x if dimension == "width" else layer.y
        ends = {
            "base": list(base),
            "lower": [at - sem for at, sem in zip(middle, sems, strict=True)],
            "upper": [at + sem for at, sem in zip(middle, sems, strict=True)],
        }
        bars = {"line_color": look.colour, "line_alpha": 0.45, "upper_head": None, "lower_head": None}
        whisker = Whisker(
            source=ColumnDataSource(ends), base="base", lower="lower", upper="upper", dimension=dimension, **bars
        )
        plot.add_layout(whisker)
    hollow = look.marker == "ring"
    stroked = look.marker in ("ring", "x", "plus")
    mark = plot.scatter(
        "x",
        "y",
        source=source,
        marker=MARKERS[look.marker],
        size=1.35 * look.size * smaller(len(layer.x)),
        fill_color=None if hollow else look.colour,
        line_color="#ffffff" if have_edges(len(layer.x)) and not stroked else look.colour,
        line_width=look.width if stroked else 0.5,
        fill_alpha=0.8,
    )
    if layer.numbered is not None:
        plot.text(
            "x",
            "y",
            text="trial",
            source=source,
            x_offset=7 if layer.numbered[0] > 0 else -7,
            text_font_size="11px",
            y_offset=-5 if layer.numbered[1] > 0 else 17,
            text_align="left" if layer.numbered[0] > 0 else "right",
            text_color=look.colour,
        )
    return [mark]


def _stroke(style: str) -> dict[str, Any]:
    look = STYLES[style]
    return {"line_color": look.colour, "line_dash": look.dash, "line_width": look.width}


@_layer.register
def _line(layer: Line, plot: Any) -> list[Any]:
    if layer.step:
        mode = {"after": "after", "before": "before"}[layer.step]
        plot.step(list(layer.x), list(layer.y), mode=mode, **_stroke(layer.style))
        return []
    if layer.trial is None:
        plot.line(list(layer.x), list(layer.y), **_stroke(layer.style))
        return []
    source = _source((layer.trial,), xs=[list(layer.x)], ys=[list(layer.y)])
    return [plot.multi_line("xs", "ys", source=source, **_stroke(layer.style))]


@_layer.register
def _lines(layer: Lines, plot: Any) -> list[Any]:
    look = STYLES[layer.style]
    columns = {"xs": [list(x) for x in layer.xs], "ys": [list(y) for y in layer.ys], "alpha": list(layer.opacity)}
    source = _source(layer.trials, **columns)
    mark = plot.multi_line("xs", "ys", source=source, line_alpha="alpha", **_stroke(layer.style))
    if layer.dots:
        x, y = (tuple(value for one in many for value in one) for many in (layer.xs, layer.ys))
        plot.scatter(x, y, marker="circle", size=look.size, fill_color=look.colour, line_color=None)
    return [mark]


@_layer.register
def _band(layer: Band, plot: Any) -> list[Any]:
    colour = STYLES[layer.style].colour
    plot.varea(list(layer.x), list(layer.low), list(layer.high), fill_color=colour, fill_alpha=0.2)
    return []


@_layer.register
def _contours(layer: Contours, plot: Any) -> list[Any]:
    colours = linear_palette(Cividis256, len(layer.levels) - 1)
    areas = plot.contour(
        list(layer.x),
        list(layer.y),
        [list(row) for row in layer.z],
        list(layer.levels),
        fill_color=colours,
        line_color="#ffffff",
        line_width=0.4,
    )
    bar = areas.construct_color_bar(width=10, title=None, background_fill_color=None, major_label_text_font_size="11px")
    plot.add_layout(bar, "right")
    return []


@_layer.register
def _strip(layer: Strip, plot: Any) -> list[Any]:
    plot.add_layout(
        BoxAnnotation(bottom=layer.low, top=layer.high, fill_color="#888888", fill_alpha=0.18, line_color=None)
    )
    return []


@_layer.register
def _rule(layer: Rule, plot: Any) -> list[Any]:
    plot.add_layout(Span(location=layer.y, dimension="width", **_stroke(layer.style)))
    return []


@_layer.register
def _bars(layer: Bars, plot: Any) -> list[Any]:
    colour, rows = STYLES[layer.style].colour, list(range(len(layer.values)))
    plot.hbar(y=rows, right=list(layer.values), height=0.62, fill_color=colour, fill_alpha=0.75, line_color=None)
    if layer.low:
        plot.segment(list(layer.low), rows, list(layer.high), rows, line_color=STYLES["failed"].colour, line_width=2)
    return []


@_layer.register
def _spans(layer: Spans, plot: Any) -> list[Any]:
    look = STYLES[layer.style]
    columns = {"row": list(layer.rows), "start": list(layer.starts), "end": list(layer.ends)}
    hatch = {} if layer.style == "completed" else {"hatch_pattern": PATTERNS.get(look.marker), "hatch_alpha": 0.6}
    return [
        plot.hbar(
            y="row",
            left="start",
            right="end",
            height=0.7,
            source=_source(layer.trials, **columns),
            fill_color=look.colour,
            fill_alpha=0.8,
            line_color=look.colour,
            **hatch,
        )
    ]
