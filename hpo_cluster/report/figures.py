"""The figures of a report: each function returns a PNG, or None if there is nothing to draw.

Only evaluated trials are drawn, not the values that an optimizer inherited, approximated or imputed. A trial without a
value (diverged, failed) is drawn on a strip along the lower edge of the axes. The colours are those of M. Okabe and
K. Ito, which colour-blind readers can distinguish, and each state also has its own marker.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hpo_cluster.goals import Goal
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.report.data import Campaign, shorten
from hpo_cluster.space import Categorical, Integer
from hpo_cluster.trial import State

if TYPE_CHECKING:
    import pandas as pd

BLUE, VERMILION, GREY, GREEN, PURPLE = "#0072B2", "#D55E00", "#555555", "#009E73", "#CC79A7"
#: Colour and marker of the states that are drawn.
STATE_STYLE = {
    State.COMPLETED: (BLUE, "o"),
    State.DIVERGED: (VERMILION, "x"),
    State.INFEASIBLE: (PURPLE, "s"),
    State.FAILED: (GREY, "+"),
}
#: Height of the strip for trials without a value, as a share of the axes' height.
STRIP = 0.035
#: Smallest width of a figure, in inches: its title and legend need that much.
MIN_WIDTH = 6.4
#: Width and height that the number of a trial needs next to its point, as shares of the axes.
LABEL = (0.05, 0.04)


def draw_best_by_evaluations(campaign: Campaign) -> bytes | None:
    """Draw the value of each evaluation, in the order of their ends, and the best value so far."""
    ended = campaign.ended
    if ended.empty or campaign.several:
        return None
    x = list(range(1, len(ended) + 1))
    figure, axes = _figure(7.2, 4.2)
    _draw_best(campaign, axes, x, ended)
    axes.set_xlabel("evaluations that have ended")
    axes.set_xlim(0.5 - 0.02 * len(x), len(x) + 0.5 + 0.02 * len(x))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_title(f"{campaign.title}: best so far against evaluations", loc="left")
    return _png(figure)


def draw_best_by_time(campaign: Campaign) -> bytes | None:
    """Draw the value of each evaluation at the time of its end, and the best value so far."""
    import pandas as pd

    ended = campaign.ended
    times = pd.to_datetime(ended["ended_at"], utc=True, format="ISO8601")
    starts = pd.to_datetime(campaign.history["submitted_at"], utc=True, format="ISO8601").dropna()
    if ended.empty or times.isna().any() or campaign.several:
        return None
    elapsed = (times - min([*starts, times.min()])).dt.total_seconds().sort_values(kind="stable")
    ended = ended.loc[elapsed.index]  # a driver may notice the ends of two trials in the opposite order
    divisor, unit = _time_unit(float(elapsed.max()))
    x = [second / divisor for second in elapsed]
    figure, axes = _figure(7.2, 4.2)
    _draw_best(campaign, axes, x, ended)
    axes.set_xlabel(f"time since the first submission ({unit})")
    span = max(x) or 1.0
    axes.set_xlim(-0.02 * span, 1.03 * span)
    axes.set_title(f"{campaign.title}: best so far against time", loc="left")
    return _png(figure)


def _draw_best(campaign: Campaign, axes: Any, x: Sequence[float], ended: pd.DataFrame) -> None:
    values = campaign.acceptable(ended)["value"].reindex(ended.index)
    if values.notna().any():
        best = (values.cummax() if campaign.maximize else values.cummin()).ffill()
        axes.step(x, best, where="post", color=GREEN, linewidth=2, label="best so far", zorder=2)
    _draw_states(axes, x, ended)
    _draw_baseline(campaign, axes)
    axes.set_ylabel(campaign.goal)
    _scale_values(axes, campaign)
    _legend(axes)


def draw_front(campaign: Campaign) -> bytes | None:
    """Draw the Pareto front of several objectives: a panel for each pair, with the numbers of the front's trials."""
    ended = campaign.ended
    if campaign.goals is None or not campaign.several or ended["value"].isna().all():
        return None
    pairs = list(itertools.combinations(campaign.goals.metrics, 2))
    columns = 1 if len(pairs) == 1 else min(3, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure, grid = _figures(rows, columns, 4.6 * columns + 1.6, 4.2 * rows + 0.7)
    for axes, (first, second) in zip(grid.flat, pairs, strict=False):
        _draw_pair(campaign, axes, ended, first, second)
    for axes in list(grid.flat)[len(pairs) :]:
        axes.set_axis_off()
    figure.suptitle(f"{campaign.title}: Pareto front", x=0.01, ha="left")
    handles, labels = next(iter(grid.flat)).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _png(figure)


def _draw_pair(campaign: Campaign, axes: Any, ended: pd.DataFrame, first: Goal, second: Goal) -> None:
    """Draw two of the objectives against each other."""
    x, y = f"value_{first.name}", f"value_{second.name}"
    done = ended[ended[[x, y]].notna().all(axis=1)]
    bad, front = done[done["feasible"].eq(False)], campaign.front.sort_values(x, kind="stable")
    others = done[~done["front"] & done["feasible"].eq(True)]
    filled = {"edgecolors": "white", "linewidths": 0.6, "s": 42}
    axes.scatter(others[x], others[y], color=BLUE, marker="o", label="dominated", zorder=2, **filled)
    if not bad.empty:
        axes.scatter(bad[x], bad[y], color=PURPLE, marker="x", s=42, label="violates a constraint", zorder=2)
    if campaign.goals is not None and len(campaign.goals.metrics) == 2:  # with more, the front is no line in a panel
        where = "post" if first.direction == "minimize" else "pre"
        axes.step(front[x], front[y], where=where, color=GREEN, linewidth=1.4, zorder=3)
    axes.scatter(front[x], front[y], color=GREEN, marker="D", label="Pareto front", zorder=4, **filled)
    baseline = campaign.baseline
    if baseline is not None and math.isfinite(float(baseline[x])) and math.isfinite(float(baseline[y])):
        axes.scatter([baseline[x]], [baseline[y]], color=VERMILION, marker="*", s=120, label="baseline", zorder=4)
    sides = ((first, x, axes.xaxis, axes.set_xscale), (second, y, axes.yaxis, axes.set_yscale))
    for goal, column, axis, scale in sides:
        values = [float(value) for value in done[column]]
        if values and min(values) > 0 and max(values) > 1000 * min(values):
            scale("log")
        axis.set_label_text(f"{goal.name} ({'higher' if goal.direction == 'maximize' else 'lower'} is better)")
    _label_trials(axes, front, first, second)


def _label_trials(axes: Any, front: pd.DataFrame, first: Goal, second: Goal) -> None:
    """Write the numbers of trials next to their points: beyond the front, or behind it if there is no room."""
    placed: list[tuple[float, float]] = []
    style = {"textcoords": "offset points", "fontsize": 8, "color": GREY, "zorder": 5}
    for trial, *at in front[["trial", f"value_{first.name}", f"value_{second.name}"]].itertuples(index=False):
        x, y = axes.transAxes.inverted().transform(axes.transData.transform(at))
        for side in (1, -1):
            right, up = side * first.sign > 0, side * second.sign > 0
            middle = x + (1 if right else -1) * LABEL[0] / 2, y + (1 if up else -1) * LABEL[1] / 2
            if all(abs(middle[0] - u) > LABEL[0] or abs(middle[1] - v) > LABEL[1] for u, v in placed):
                placed.append(middle)
                offset, align = (5 if right else -5, 4 if up else -10), "left" if right else "right"
                axes.annotate(str(int(trial)), at, offset, ha=align, **style)
                break


def draw_hypervolume(campaign: Campaign) -> bytes | None:
    """Draw the volume that the front dominates against evaluations and, if known, GPU-hours."""
    ended = campaign.ended
    if campaign.goals is None or not campaign.several or ended["value"].isna().all():
        return None
    volumes, reference = campaign.hypervolumes()
    hours = list(itertools.accumulate(campaign.gpu_hours.get(int(trial), 0.0) for trial in ended["trial"]))
    figure, grid = _figures(1, 1 + (hours[-1] > 0), 7.2 + 3.6 * (hours[-1] > 0), 4.2)
    panels = [
        (list(range(1, len(ended) + 1)), "evaluations that have ended"),
        (hours, "GPU-hours of these evaluations"),
    ]
    for axes, (x, label) in zip(grid.flat, panels, strict=False):
        axes.step(x, volumes, where="post", color=GREEN, linewidth=2)
        axes.set_xlabel(label)
        axes.set_ylim(bottom=0)
    grid[0, 0].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    grid[0, 0].set_ylabel("hypervolume")
    at = ", ".join(f"{goal.name} {edge:.4g}" for goal, edge in zip(campaign.goals.metrics, reference, strict=False))
    figure.suptitle(f"{campaign.title}: hypervolume, counted from {at}", x=0.01, ha="left", fontsize=11)
    return _png(figure)


def draw_curves(campaign: Campaign) -> bytes | None:
    """Draw the values of all trials at the rungs that they have reached: who was paused, and who went to the top."""
    if campaign.rungs is None or campaign.rungs.curves.empty:
        return None
    curves = campaign.rungs.curves.dropna(subset=["value"])
    shares = [float(row["fidelity"]) for row in campaign.rungs.table]
    best = None if campaign.ranked.empty else int(campaign.ranked.iloc[0]["trial"])
    figure, axes = _figure(7.2, 4.2)
    drawn: set[str] = set()
    for trial, curve in curves.groupby("trial", sort=True):
        whole = float(curve["fidelity"].iloc[-1]) == shares[-1]
        what, colour, width = ("at the top", BLUE, 1.2) if whole else ("paused or under way", GREY, 0.7)
        if trial == best:
            what, colour, width = "best", GREEN, 2.2
        label = None if what in drawn else what
        drawn.add(what)
        style = {"color": colour, "linewidth": width, "alpha": 1.0 if whole else 0.55, "zorder": 2 + width}
        axes.plot(curve["fidelity"], curve["value"], marker="o" if whole else ".", markersize=4, label=label, **style)
    axes.set_xscale("log")
    if not campaign.maximize and curves["value"].min() > 0 and curves["value"].max() > 100 * curves["value"].min():
        axes.set_yscale("log")
    axes.set_xticks(shares, [row["label"] for row in campaign.rungs.table])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"share of a whole evaluation ({campaign.rungs.kind})")
    axes.set_ylabel(campaign.goal)
    axes.set_title(f"{campaign.title}: values at the rungs", loc="left")
    _legend(axes)
    return _png(figure)


def draw_parameters(campaign: Campaign) -> bytes | None:
    """Draw the value against each parameter, as small multiples."""
    ended = campaign.ended
    if ended.empty:
        return None
    columns = {1: 1, 2: 2, 4: 2}.get(campaign.space.dim, 3)
    rows = math.ceil(campaign.space.dim / columns)
    figure, grid = _figures(rows, columns, 3.3 * columns + 0.6, 2.7 * rows + 1.0)
    cells = list(grid.flat)
    ranked = campaign.ranked
    for index, (name, parameter) in enumerate(campaign.space):
        axes = cells[index]
        ended = campaign.ended[campaign.ended[name].notna()]  # where the parameter is active
        if isinstance(parameter, Categorical):
            positions = {choice: i for i, choice in enumerate(parameter.choices)}
            spread = 0.3 if len(ended) > 1 else 0.0
            jitter = [spread * ((i * 0.618034) % 1 - 0.5) for i in range(len(ended))]
            x = [positions[choice] + shift for choice, shift in zip(ended[name], jitter, strict=True)]
            axes.set_xticks(list(positions.values()), [shorten(choice) for choice in positions])
            axes.set_xlim(-0.5, len(positions) - 0.5)
        else:
            x = [float(value) for value in ended[name]]
            if parameter.log:
                axes.set_xscale("log")
                low, high = math.log(parameter.low), math.log(parameter.high)
                margin = 0.04 * (high - low) or 0.1
                axes.set_xlim(math.exp(low - margin), math.exp(high + margin))
                if isinstance(parameter, Integer):
                    _label_integers(axes, parameter)
            else:
                margin = 0.04 * (parameter.high - parameter.low) or 0.1
                axes.set_xlim(parameter.low - margin, parameter.high + margin)
        _draw_states(axes, x, ended)
        if not ranked.empty and ranked.iloc[0]["trial"] in set(ended["trial"]):
            place = list(ended["trial"]).index(ranked.iloc[0]["trial"])
            ring = {"facecolors": "none", "edgecolors": GREEN, "linewidths": 2, "s": 110}
            axes.scatter([x[place]], [ranked.iloc[0]["value"]], label="best", zorder=5, **ring)
        _draw_baseline(campaign, axes)
        axes.set_xlabel(name)
        _scale_values(axes, campaign)
    for axes in cells[campaign.space.dim :]:
        axes.set_axis_off()
    for row in range(rows):
        grid[row, 0].set_ylabel(campaign.metric)
    figure.suptitle(f"{campaign.title}: score by each parameter", x=0.01, ha="left")
    found: dict[str, Any] = {}  # of all cells: an inactive parameter lacks some labels
    for axes in cells:
        found |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=len(found), frameon=False)
    return _png(figure)


def _label_integers(axes: Any, parameter: Integer) -> None:
    """Label a log axis with powers of two (of ten over a wide range) in plain digits."""
    base = 2 if parameter.high < 100 * parameter.low else 10
    powers = [base**n for n in range(64) if parameter.low <= base**n <= parameter.high]
    axes.set_xticks(powers, [str(power) for power in powers])
    axes.set_xticks([], minor=True)


def draw_others(campaign: Campaign) -> bytes | None:
    """Draw each test metric against the optimised metric, with standard errors; the baseline has its own marker."""
    frame = campaign.ranked
    names = [name for name in campaign.others if frame[METRIC_PREFIX + name].notna().any()]
    if not names:
        return None
    bars = " (bars: one standard error)" if any(campaign.sems.values()) else ""
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = _figures(rows, columns, 4.4 * columns + 0.6, 3.9 * rows + 0.7)
    for axes, name in zip(grid.flat, names, strict=False):
        best = [True] + [False] * (len(frame) - 1)
        _draw_pairs(campaign, axes, frame[[not b for b in best]], name, BLUE, "o", "trials" + bars)
        _draw_pairs(campaign, axes, frame[best], name, GREEN, "D", f"best by {campaign.metric}")
        if campaign.baseline is not None:
            _draw_pairs(campaign, axes, campaign.baseline.to_frame().T, name, VERMILION, "*", "baseline")
        test = "test: " if campaign.others_are_tests else ""
        axes.set_xlabel(("validation: " if campaign.others_are_tests else "") + campaign.metric)
        axes.set_ylabel(test + name)
        pairs = frame[["value", METRIC_PREFIX + name]].dropna()
        if len(pairs) >= 3 and (pairs.nunique() > 1).all():
            rho = pairs.rank().corr().to_numpy()[0, 1]
            axes.set_title(
                f"Spearman correlation {rho:.2f} over {len(pairs)} trials", loc="right", fontsize=9, color=GREY
            )
    for axes in list(grid.flat)[len(names) :]:
        axes.set_axis_off()
    what = "validation against test" if campaign.others_are_tests else f"{campaign.metric} against other metrics"
    figure.suptitle(f"{campaign.title}: {what}", x=0.01, ha="left")
    handles, labels = next(iter(grid.flat)).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _png(figure)


def _draw_pairs(
    campaign: Campaign, axes: Any, frame: pd.DataFrame, name: str, colour: str, marker: str, label: str
) -> None:
    from matplotlib.colors import to_rgb

    if frame.empty:
        return
    x = [float(value) for value in frame["value"]]
    y = [float(value) for value in frame[METRIC_PREFIX + name]]
    x_sem = [float(sem) if math.isfinite(sem) else 0.0 for sem in frame["value_sem"].astype(float)]
    y_sem = [campaign.sems.get(int(trial), {}).get(name, 0.0) for trial in frame["trial"]]
    size = {"o": 6, "D": 7, "*": 13}[marker]
    pale = tuple(0.55 + 0.45 * channel for channel in to_rgb(colour))
    style = {"ecolor": pale, "elinewidth": 0.9, "capsize": 0, "markeredgecolor": "white", "markeredgewidth": 0.6}
    axes.errorbar(x, y, y_sem, x_sem, fmt=marker, color=colour, markersize=size, label=label, **style)


def _draw_states(axes: Any, x: Sequence[float], ended: pd.DataFrame) -> None:
    """Draw a marker for each trial: at its value, or on the strip at the lower edge if it has no value."""
    values = [float(value) for value in ended["value"].astype(float)]
    states = list(ended["state"])
    for state, (colour, marker) in STATE_STYLE.items():
        mine = [i for i, name in enumerate(states) if name == state]
        chosen = [i for i in mine if math.isfinite(values[i])]
        absent = [i for i in mine if not math.isfinite(values[i])]
        filled = {"edgecolors": "white", "linewidths": 0.6} if marker in "os" else {"linewidths": 1.6}
        style = {"color": colour, "marker": marker, "s": 42, **filled}
        if chosen:
            y = [values[i] for i in chosen]
            axes.scatter([x[i] for i in chosen], y, label=str(state), zorder=3, **style)
        if absent:
            where = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
            label = None if chosen else f"{state} (no value)"
            axes.scatter([x[i] for i in absent], [STRIP] * len(absent), label=label, **where, **style)


def _draw_baseline(campaign: Campaign, axes: Any) -> None:
    if campaign.baseline is not None:
        axes.axhline(
            float(campaign.baseline["value"]), color=GREY, linestyle="--", linewidth=1.2, label="baseline", zorder=1
        )


def _scale_values(axes: Any, campaign: Campaign) -> None:
    """Use a log scale if values to minimise span decades, and make room at the bottom for the strip."""
    from matplotlib.patches import Rectangle

    values = [float(value) for value in campaign.ended["value"].dropna()]
    if not values:
        axes.text(0.5, 0.5, "no trial has a value", transform=axes.transAxes, ha="center", color=GREY)
        if campaign.baseline is None:
            axes.set_yticks([])
        return
    if not campaign.maximize and min(values) > 0 and max(values) > 1000 * min(values):
        axes.set_yscale("log")
    if campaign.ended["value"].isna().any():
        low, high = axes.get_ylim()
        if axes.get_yscale() == "log":
            axes.set_ylim(low * (low / high) ** 0.1, high)
        else:
            axes.set_ylim(low - 0.1 * (high - low), high)
        # a band behind the strip, across the axes' width: positions on it are not values of the scale
        axes.add_patch(Rectangle((0, 0), 1, 2 * STRIP, facecolor="#EFEFEF", zorder=0.8, transform=axes.transAxes))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, grid = _figures(1, 1, width, height)
    return figure, grid[0, 0]


def _figures(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Return a figure and its axes (``rows x columns``), without pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(width, MIN_WIDTH), height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.grid(visible=True, color="#E5E5E5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.4)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": "hpo_cluster"})
    return stream.getvalue()


def _time_unit(seconds: float) -> tuple[float, str]:
    for limit, divisor, unit in ((300, 1, "s"), (3 * 3600, 60, "min"), (4 * 86400, 3600, "h")):
        if seconds < limit:
            return float(divisor), unit
    return 86400.0, "days"


class Figure(NamedTuple):
    """A figure of the report: the name of its file, its title, and the function that draws it."""

    stem: str
    title: Callable[[Campaign], str]
    draw: Callable[[Campaign], bytes | None]


#: The figures of the report, in their order on the page. A figure for which there is nothing to draw is left out.
FIGURES = (
    Figure("front", lambda _: "All trials and the front", draw_front),
    Figure("hypervolume", lambda _: "Hypervolume", draw_hypervolume),
    Figure("best_by_evaluations", lambda _: "Best so far against evaluations", draw_best_by_evaluations),
    Figure("best_by_time", lambda _: "Best so far against time", draw_best_by_time),
    Figure("curves", lambda _: "Values at the rungs", draw_curves),
    Figure("parameters", lambda _: "Score by each parameter", draw_parameters),
    Figure(
        "validation_test",
        lambda campaign: "Validation against test" if campaign.others_are_tests else "Other metrics",
        draw_others,
    ),
)
