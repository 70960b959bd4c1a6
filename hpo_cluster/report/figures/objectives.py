"""Several objectives: the Pareto front and the hypervolume; one objective: the other metrics against it."""

from __future__ import annotations

import itertools
import math

import pandas as pd

from hpo_cluster.goals import Goal
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures.description import Axis, Figure, Layer, Line, Panel, Points
from hpo_cluster.report.figures.shared import DECADES, numbers, thinned, with_margins
from hpo_cluster.text import counted

#: Fewest pairs of values whose correlation is given.
FEWEST_PAIRS = 3


def front(campaign: Campaign) -> Figure | None:
    """Return the Pareto front of several objectives: a panel for each pair of them."""
    ended = campaign.ended
    if campaign.goals is None or not campaign.several or ended["value"].isna().all():
        return None
    pairs = list(itertools.combinations(campaign.goals.metrics, 2))
    panels = [_pair(campaign, ended, first, second) for first, second in pairs]
    reading = (
        "Each marker is one evaluation. No other trial is as good as one of the front in every metric and better in "
        "one; the numbers are those of the trials on the front."
    )
    return Figure("All trials and the front", reading, panels, min(3, len(pairs)))


def _pair(campaign: Campaign, ended: pd.DataFrame, first: Goal, second: Goal) -> Panel:
    """Return two of the objectives against each other."""
    x, y = f"value_{first.name}", f"value_{second.name}"
    done = ended[ended[[x, y]].notna().all(axis=1)]
    best = campaign.front.sort_values(x, kind="stable")
    others = thinned(campaign, done[~done["front"] & done["feasible"].eq(True)])
    layers: list[Layer] = [
        *_points(others, x, y, "completed", "dominated"),
        *_points(thinned(campaign, done[done["feasible"].eq(False)]), x, y, "violates", "violates a constraint"),
    ]
    if campaign.goals is not None and len(campaign.goals.metrics) == 2:  # with more, the front is no line in a panel
        step = "after" if first.direction == "minimize" else "before"
        layers.append(Line(numbers(best[x]), numbers(best[y]), "front", step=step))
    layers += _points(best, x, y, "front", "Pareto front", (first.sign, second.sign))
    baseline = campaign.baseline
    if baseline is not None:
        layers += _points(baseline.to_frame().T, x, y, "baseline", "baseline")
    shown = done if baseline is None else pd.concat([done, baseline.to_frame().T]).dropna(subset=[x, y])
    return Panel(_axis(first, shown[x].astype(float)), _axis(second, shown[y].astype(float)), layers)


def _points(
    frame: pd.DataFrame, x: str, y: str, style: str, label: str, numbered: tuple[float, float] | None = None
) -> list[Layer]:
    frame = frame[frame[[x, y]].notna().all(axis=1)]
    if frame.empty:
        return []
    trials = tuple(int(trial) for trial in frame["trial"])
    return [Points(numbers(frame[x]), numbers(frame[y]), style, label, trials, numbered=numbered)]


def _axis(goal: Goal, values: pd.Series) -> Axis:
    log = not values.empty and bool(values.min() > 0 and values.max() > DECADES * values.min())
    better = "higher" if goal.direction == "maximize" else "lower"
    return Axis(f"{goal.name} ({better} is better)", log, *with_margins(numbers(values), log=log))


def hypervolume(campaign: Campaign) -> Figure | None:
    """Return the volume that the front dominates against evaluations and, if known, GPU-hours."""
    ended = campaign.ended
    if campaign.goals is None or not campaign.several or ended["value"].isna().all():
        return None
    volumes, reference = campaign.hypervolumes
    hours = tuple(itertools.accumulate(campaign.record.gpu_hours_of(int(trial)) for trial in ended["trial"]))
    axes = [(numbers(range(1, len(ended) + 1)), Axis("evaluations that have ended", integers=True))]
    if hours[-1] > 0:
        axes.append((hours, Axis("GPU-hours of these evaluations")))
    top = max(volumes) or 1.0
    height = Axis("hypervolume", low=0, high=1.04 * top)
    panels = [Panel(axis, height, [Line(x, numbers(volumes), "best", step="after")]) for x, axis in axes]
    at = ", ".join(f"{goal.name} {edge:.4g}" for goal, edge in zip(campaign.goals.metrics, reference, strict=False))
    reading = f"The volume between the front and the reference point ({at or 'none yet'}). It only grows."
    return Figure("Hypervolume", reading, panels, len(panels))


def validation_test(campaign: Campaign) -> Figure | None:
    """Return each test metric against the optimised metric, with standard errors."""
    ranked = campaign.ranked
    names = [name for name in campaign.others if ranked[METRIC_PREFIX + name].notna().any()]
    if not names:
        return None
    panels = [_against(campaign, ranked, name) for name in names]
    bars = " The bars are one standard error." if any(campaign.sems.values()) else ""
    reading = (
        "Each marker is one trial. Pearson's correlation says how close the markers lie to a straight line, Spearman's "
        f"how well both metrics agree on the order of the trials.{bars}"
    )
    title = "Validation against test" if campaign.others_are_tests else "Other metrics"
    return Figure(title, reading, panels, min(2, len(panels)))


def _against(campaign: Campaign, ranked: pd.DataFrame, name: str) -> Panel:
    column = METRIC_PREFIX + name
    best = (campaign.front if campaign.several else campaign.ranked).head(1)
    drawn = thinned(campaign, ranked)
    others = drawn[~drawn["trial"].isin(best["trial"])]
    within = campaign.acceptable(others)
    layers = [
        *_measured(campaign, within, name, "completed", "trials"),
        *_measured(campaign, others.drop(within.index), name, "violates", "violates a constraint"),
        *_measured(campaign, best, name, "front", f"best by {campaign.metric}"),
    ]
    if campaign.baseline is not None:
        layers += _measured(campaign, campaign.baseline.to_frame().T, name, "baseline", "baseline")
    validation, test = ("validation: ", "test: ") if campaign.others_are_tests else ("", "")
    return Panel(
        Axis(validation + campaign.metric), Axis(test + name), layers, correlations(ranked["value"], ranked[column])
    )


def correlations(first: pd.Series, second: pd.Series) -> str:
    """Return Pearson's and Spearman's correlation of two columns as text; empty if they are not defined."""
    pairs = pd.DataFrame({"first": first.astype(float), "second": second.astype(float)}).dropna()
    if len(pairs) < FEWEST_PAIRS or not (pairs.nunique() > 1).all():
        return ""
    pearson, spearman = (float(frame.corr().to_numpy()[0, 1]) for frame in (pairs, pairs.rank()))
    return f"Pearson {pearson:.2f}, Spearman {spearman:.2f} over {counted(len(pairs), 'trial')}"


def _measured(campaign: Campaign, frame: pd.DataFrame, name: str, style: str, label: str) -> list[Layer]:
    frame = frame[frame[["value", METRIC_PREFIX + name]].notna().all(axis=1)]
    if frame.empty:
        return []
    trials = tuple(int(trial) for trial in frame["trial"])
    x_sem = tuple(sem if math.isfinite(sem) else 0.0 for sem in numbers(frame["value_sem"].astype(float)))
    y_sem = tuple(campaign.sems.get(trial, {}).get(name, 0.0) for trial in trials)
    if not any(x_sem) and not any(y_sem):
        x_sem = y_sem = ()
    places = numbers(frame["value"]), numbers(frame[METRIC_PREFIX + name])
    return [Points(*places, style, label, trials, x_sem, y_sem)]
