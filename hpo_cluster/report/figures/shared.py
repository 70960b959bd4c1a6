"""What several figures need: the axis of values, the trials in their states, units of time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpo_cluster.report.data import DRAWN, Campaign, shorten
from hpo_cluster.report.figures.description import Axis, Layer, Numbers, Points, Rule, Strip
from hpo_cluster.space import Categorical, Integer, Parameter

if TYPE_CHECKING:
    import pandas as pd

#: Most trials drawn in one panel, and in one of many small panels: half of them the best, the others evenly spaced.
MOST_POINTS, MOST_SMALL = 1500, 600
#: Height of the strip for trials without a value, and of the margins, as shares of the span of the values.
STRIP, MARGIN = 0.12, 0.08
#: Share of their size by which values differ that are equal but for rounding; an axis over it would be all digits.
ROUNDING = 1e-6
#: Largest value over the smallest from which on values to minimise have a logarithmic axis.
DECADES = 1000
#: Number of lines in a panel above which they are fainter.
MANY_LINES = 40
#: Share of the distance between two choices over which trials are spread.
JITTER = 0.3


def numbers(values: Iterable[Any]) -> Numbers:
    """Return values as plain numbers."""
    return tuple(float(value) for value in values)


def thinned(campaign: Campaign, frame: pd.DataFrame, most: int = MOST_POINTS) -> pd.DataFrame:
    """Return at most `most` rows, in their order: half of them the best, the others evenly spaced."""
    if len(frame) <= most:
        return frame
    best = frame["value"].rank(ascending=not campaign.maximize, method="first") <= most // 2
    spaced = np.zeros(len(frame), dtype=bool)
    others = np.flatnonzero(~best.to_numpy())
    spaced[others[np.linspace(0, len(others) - 1, most - int(best.sum())).astype(int)]] = True
    return frame[best.to_numpy() | spaced]


def faint(lines: int) -> float:
    """Return by how much lines fade if there are many, which cover one another."""
    return min(1.0, math.sqrt(MANY_LINES / max(lines, 1)))


class ValueAxis:
    """The axis of the optimised values, with a strip below them if some trials have no value.

    Args:
        campaign: whose values.
    """

    def __init__(self, campaign: Campaign, label: str | None = None) -> None:
        ended = campaign.ended
        values = numbers(ended["value"].dropna())
        baseline = campaign.baseline
        every = [*values, *([float(baseline["value"])] if baseline is not None else [])]
        self.any = bool(values)
        label = campaign.goal if label is None else label
        if not values:
            self.axis, self.strip = Axis(label, low=0, high=1, ticks=()), 0.5
            self.layers: tuple[Layer, ...] = ()
            return
        log = not campaign.maximize and min(every) > 0 and max(values) > DECADES * min(values)
        low, high = (math.log(min(every)), math.log(max(every))) if log else (min(every), max(every))
        span = span_of(low, high)
        bottom, top = low - MARGIN * span, high + MARGIN * span
        self.layers = ()
        self.strip = math.nan
        if ended["value"].isna().any():
            edge = bottom
            bottom = edge - STRIP * span
            self.layers = (Strip(*((math.exp(bottom), math.exp(edge)) if log else (bottom, edge))),)
            self.strip = math.exp((bottom + edge) / 2) if log else (bottom + edge) / 2
        self.axis = Axis(label, log, *((math.exp(bottom), math.exp(top)) if log else (bottom, top)))


def span_of(low: float, high: float) -> float:
    """Return the span of which an axis has its margins: that of the values, or their size if they are all equal."""
    size = max(abs(low), abs(high))
    return high - low if high - low > ROUNDING * size else size or 1.0


def with_margins(values: Sequence[float], *, log: bool) -> tuple[float | None, float | None]:
    """Return the ends of an axis that leaves room around the values; None without values."""
    if not values:
        return None, None
    low, high = (math.log(min(values)), math.log(max(values))) if log else (min(values), max(values))
    margin = MARGIN * span_of(low, high)
    return (math.exp(low - margin), math.exp(high + margin)) if log else (low - margin, high + margin)


def state_points(values: ValueAxis, x: Sequence[float], ended: pd.DataFrame) -> list[Layer]:
    """Return a marker for each trial: at its value, or on the strip if it has none."""
    y = numbers(ended["value"].astype(float))
    states, trials = list(ended["state"]), [int(trial) for trial in ended["trial"]]
    layers: list[Layer] = []
    for state in map(str, DRAWN):
        for with_value in (True, False):
            mine = [i for i, name in enumerate(states) if name == state and math.isfinite(y[i]) == with_value]
            if mine:
                heights = tuple(y[i] if with_value else values.strip for i in mine)
                label = state if with_value else f"{state} (no value)"
                chosen = tuple(trials[i] for i in mine)
                layers.append(Points(tuple(x[i] for i in mine), heights, state, label, chosen))
    return layers


def baseline_rule(campaign: Campaign) -> list[Layer]:
    """Return the line of the baseline; empty without one."""
    baseline = campaign.baseline
    return [] if baseline is None else [Rule(float(baseline["value"]), "baseline", "baseline")]


def parameter_axis(name: str, parameter: Parameter) -> Axis:
    """Return the axis of a parameter; choices lie at 0, 1, 2, …"""
    label = shorten(name, 40)
    if isinstance(parameter, Categorical):
        ticks = tuple((float(i), shorten(choice)) for i, choice in enumerate(parameter.choices))
        return Axis(label, low=-0.5, high=len(ticks) - 0.5, ticks=ticks)
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        margin = MARGIN * math.log(high / low) or 0.1
        powers = _powers(parameter) if isinstance(parameter, Integer) else None
        return Axis(label, True, low * math.exp(-margin), high * math.exp(margin), powers)
    margin = MARGIN * (high - low) or 0.1
    return Axis(label, False, low - margin, high + margin, integers=isinstance(parameter, Integer))


def _powers(parameter: Integer) -> tuple[tuple[float, str], ...]:
    """Return ticks of a logarithmic axis of integers: powers of two, of ten over a wide range."""
    base = 2 if parameter.high < 100 * parameter.low else 10
    powers = [base**n for n in range(64) if parameter.low <= base**n <= parameter.high]
    return tuple((float(power), str(power)) for power in powers)


def parameter_positions(parameter: Parameter, values: Sequence[object], jitter: float = JITTER) -> Numbers:
    """Return where values lie on the axis of their parameter; those of choices are spread a little."""
    if isinstance(parameter, Categorical):
        at = {choice: i for i, choice in enumerate(parameter.choices)}
        spread = jitter if len(values) > 1 else 0.0
        return tuple(at[value] + spread * ((i * 0.618034) % 1 - 0.5) for i, value in enumerate(values))  # type: ignore[index]
    return tuple(float(value) for value in values)  # type: ignore[arg-type]


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the seconds of a unit of time that suits a span, and its name."""
    for limit, divisor, unit in ((300, 1, "s"), (3 * 3600, 60, "min"), (4 * 86400, 3600, "h")):
        if seconds < limit:
            return float(divisor), unit
    return 86400.0, "days"
