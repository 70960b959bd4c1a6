"""The best value so far against evaluations, time and GPU-hours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures.description import Axis, Figure, Layer, Line, Panel
from hpo_cluster.report.figures.shared import ValueAxis, baseline_rule, numbers, state_points, thinned, time_unit

READING = (
    "Each marker is one evaluation at the time when it ended, and the line is the best value until then. Markers on "
    "the grey strip have no value."
)


def best_by_evaluations(campaign: Campaign) -> Figure | None:
    """Return the value of each evaluation, in the order of their ends, and the best value so far."""
    ended = campaign.ended
    if ended.empty or campaign.several:
        return None
    x = numbers(range(1, len(ended) + 1))
    axis = Axis(
        "evaluations that have ended", low=0.5 - 0.02 * len(x), high=len(x) + 0.5 + 0.02 * len(x), integers=True
    )
    return Figure("Best so far against evaluations", READING, [_best(campaign, axis, x, ended)])


def best_by_time(campaign: Campaign) -> Figure | None:
    """Return the value of each evaluation at the time of its end, and the best value so far."""
    ended = campaign.ended
    times = pd.to_datetime(ended["ended_at"], utc=True, format="ISO8601")
    starts = pd.to_datetime(campaign.history["submitted_at"], utc=True, format="ISO8601").dropna()
    if ended.empty or times.isna().any() or campaign.several:
        return None
    elapsed = (times - min([*starts, times.min()])).dt.total_seconds().sort_values(kind="stable")
    ended = ended.loc[elapsed.index]  # a driver may notice the ends of two trials in the opposite order
    divisor, unit = time_unit(float(elapsed.max()))
    x = numbers(elapsed / divisor)
    span = max(x) or 1.0
    axis = Axis(f"time since the first submission ({unit})", low=-0.02 * span, high=1.03 * span)
    return Figure("Best so far against time", READING, [_best(campaign, axis, x, ended)])


def best_by_gpu_hours(campaign: Campaign) -> Figure | None:
    """Return the value of each evaluation against the GPU-hours of all that ended until then."""
    ended = campaign.ended
    hours = tuple(itertools.accumulate(campaign.record.gpu_hours_of(int(trial)) for trial in ended["trial"]))
    if ended.empty or campaign.several or hours[-1] <= 0:
        return None
    axis = Axis("GPU-hours of the evaluations that have ended", low=-0.02 * hours[-1], high=1.03 * hours[-1])
    panel = _best(campaign, axis, hours, ended)
    return Figure("Best so far against GPU-hours", READING, [panel])


def _best(campaign: Campaign, axis: Axis, x: Sequence[float], ended: pd.DataFrame) -> Panel:
    values = ValueAxis(campaign)
    layers: list[Layer] = [*values.layers, *baseline_rule(campaign)]
    measured = campaign.acceptable(ended)["value"].reindex(ended.index)
    if measured.notna().any():
        best = numbers((measured.cummax() if campaign.maximize else measured.cummin()).ffill())
        kept = [i for i in range(len(x)) if i in (0, len(x) - 1) or best[i] != best[i - 1]]
        steps = tuple(x[i] for i in kept), tuple(best[i] for i in kept)
        layers.append(Line(*steps, "best", "best so far", step="after"))
    drawn = thinned(campaign, ended)
    at = dict(zip(ended.index, x, strict=True))
    layers += state_points(values, [at[index] for index in drawn.index], drawn)
    note = "" if values.any else "no trial has a value"
    return Panel(axis, values.axis, layers, note)
