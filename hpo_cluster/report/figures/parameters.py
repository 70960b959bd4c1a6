"""Parameters: the score by each of them, their course over the campaign, and all of them as parallel coordinates."""

from __future__ import annotations

import math

import numpy as np

from hpo_cluster.report.data import Campaign, shorten
from hpo_cluster.report.figures.description import Axis, Figure, Layer, Line, Lines, Panel, Points
from hpo_cluster.report.figures.shared import (
    JITTER,
    MOST_SMALL,
    ValueAxis,
    baseline_rule,
    faint,
    numbers,
    parameter_axis,
    parameter_positions,
    state_points,
    thinned,
)
from hpo_cluster.space import Categorical

#: Most lines of the parallel coordinates, and most characters that have room next to one another below them.
MOST_LINES, MOST_LEVEL = 400, 84


def columns_for(panels: int) -> int:
    """Return how many panels stand next to one another."""
    return {1: 1, 2: 2, 4: 2}.get(panels, 3)


def score_by_parameter(campaign: Campaign) -> Figure | None:
    """Return the value against each parameter, as small multiples."""
    if campaign.ended.empty:
        return None
    values = ValueAxis(campaign, campaign.metric)
    drawn, panels = thinned(campaign, campaign.ended, MOST_SMALL), []
    for name, parameter in campaign.space:
        ended = drawn[drawn[name].notna()]  # where the parameter is active
        x = parameter_positions(parameter, list(ended[name]))
        layers = [*values.layers, *baseline_rule(campaign), *state_points(values, x, ended)]
        layers += _marks(campaign, dict(zip(ended["trial"], x, strict=True)), None)
        panels.append(Panel(parameter_axis(name, parameter), values.axis, layers, height=2.7))
    marked = "the diamonds are the Pareto front" if campaign.several else "the ring is the best one"
    reading = (
        f"Each marker is one evaluation, at its value of the parameter; {marked}. A slope that all "
        "markers share says that the parameter matters by itself; a cloud says that others decide, or luck."
    )
    return Figure("Score by each parameter", reading, panels, columns_for(len(panels)))


def _marks(campaign: Campaign, x: dict[int, float], y: dict[int, float] | None) -> list[Layer]:
    """Return the marks of the best trial, or of the Pareto front; empty if none of them is drawn."""
    best = campaign.front if campaign.several else campaign.ranked.head(1)
    best = best[best["trial"].isin(list(x))]
    if best.empty:
        return []
    trials = tuple(int(trial) for trial in best["trial"])
    heights = numbers(best["value"]) if y is None else tuple(y[trial] for trial in trials)
    style, label = ("front", "Pareto front") if campaign.several else ("best", "best")
    return [Points(tuple(x[trial] for trial in trials), heights, style, label, trials)]


def parameters_over_time(campaign: Campaign) -> Figure | None:
    """Return each parameter against the number of the trial: where the optimizer has looked, and when."""
    if len(campaign.ended) < 2:
        return None
    drawn, panels = thinned(campaign, campaign.ended, MOST_SMALL), []
    last = int(campaign.ended["trial"].max())
    axis = Axis("trial", low=-0.5 - 0.02 * last, high=last + 0.5 + 0.02 * last, integers=True)
    jitter = JITTER if len(drawn) < len(campaign.ended) else 0.0  # so many markers on one line hide one another
    for name, parameter in campaign.space:
        ended = drawn[drawn[name].notna()]
        y = parameter_positions(parameter, list(ended[name]), jitter)
        trials, states = [int(trial) for trial in ended["trial"]], list(ended["state"])
        layers: list[Layer] = []
        for state in dict.fromkeys(states):
            mine = [i for i, other in enumerate(states) if other == state]
            chosen = tuple(trials[i] for i in mine)
            layers.append(Points(numbers(chosen), tuple(y[i] for i in mine), str(state), str(state), chosen))
        at = dict(zip(trials, numbers(trials), strict=True))
        layers += _marks(campaign, at, dict(zip(trials, y, strict=True)))
        panels.append(Panel(axis, parameter_axis(name, parameter), layers, height=2.7))
    reading = (
        "The values that the optimizer tried, in the order of the trials. Markers that draw together say that it has "
        "found a region; some that stay apart say that it still explores."
    )
    return Figure("Parameters over the campaign", reading, panels, columns_for(len(panels)))


def parallel_coordinates(campaign: Campaign) -> Figure | None:
    """Return a line for each trial through its parameters and its value."""
    ranked = campaign.ranked
    if len(ranked) < 2 or campaign.space.dim < 2 or campaign.several:
        return None
    ranked = ranked.head(MOST_LINES)
    names = [*campaign.space.names, None]
    heights = [_shares(campaign, name, list(ranked[name])) for name in campaign.space.names]
    values = numbers(ranked["value"])
    low, high = min(values), max(values)
    heights.append([(value - low) / (high - low) if high > low else 0.5 for value in values])
    table = np.array(heights).T
    lines = [_without_gaps(row) for row in table]
    trials = tuple(int(trial) for trial in ranked["trial"])
    strength = np.linspace(0.85, 0.12, len(lines)) * faint(len(lines))
    layers: list[Layer] = [
        Lines(
            tuple(x for x, _ in reversed(lines)),
            tuple(y for _, y in reversed(lines)),
            "completed",
            "trials: the better, the stronger",
            tuple(reversed(trials)),
            numbers(strength[::-1]),
        ),
        Line(*lines[0], "best", f"best: trial {trials[0]}", trial=trials[0]),
    ]
    labels = [shorten(campaign.metric if name is None else name, 18) for name in names]
    ends = [f"{low:.3g} … {high:.3g}" if name is None else _ends(campaign, name) for name in names]
    level = sum(max(map(len, both)) + 1 for both in zip(labels, ends, strict=True)) <= MOST_LEVEL
    between = "\n" if level else "  "  # labels of one line stand at an angle
    ticks = [(float(place), between.join(both)) for place, both in enumerate(zip(labels, ends, strict=True))]
    for place in range(len(names)):
        layers.append(Line((place, place), (0.0, 1.0), "low_rung"))
    axis = Axis("", low=-0.3, high=len(names) - 0.7, ticks=tuple(ticks))
    top = "its highest" if campaign.maximize else "its lowest"
    more = "" if len(campaign.ranked) <= MOST_LINES else f" The {MOST_LINES} best are drawn."
    reading = (
        "Each line is one trial; it crosses each upright line at the trial's value, the least at the bottom and the "
        f"greatest at the top. The last one is {campaign.metric}, which is best at {top}.{more}"
    )
    panel = Panel(axis, Axis("share of the range", low=-0.03, high=1.03), layers)
    return Figure("Parallel coordinates", reading, [panel])


def _shares(campaign: Campaign, name: str, values: list[object]) -> list[float]:
    """Return the positions of values in their parameter's range, on its scale; NaN where it is inactive."""
    parameter = campaign.space.parameters[name]
    missing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in values]
    if isinstance(parameter, Categorical):
        last = max(len(parameter.choices) - 1, 1)
        at = {choice: i / last for i, choice in enumerate(parameter.choices)}
        return [math.nan if gone else at[value] for value, gone in zip(values, missing, strict=True)]  # type: ignore[index]
    scale = math.log if parameter.log else float
    low, high = scale(parameter.low), scale(parameter.high)  # the unit cube has integers in the middles of their cells
    return [
        math.nan if gone else (scale(value) - low) / ((high - low) or 1.0)  # type: ignore[arg-type]
        for value, gone in zip(values, missing, strict=True)
    ]


def _without_gaps(row: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    known = np.flatnonzero(np.isfinite(row))
    return numbers(known), numbers(row[known])


def _ends(campaign: Campaign, name: str) -> str:
    parameter = campaign.space.parameters[name]
    if isinstance(parameter, Categorical):
        return f"{shorten(parameter.choices[0], 8)} … {shorten(parameter.choices[-1], 8)}"
    return f"{parameter.low:.3g} … {parameter.high:.3g}"
