"""Curves of single trials: values at the rungs, and the loss during training; and the depths of a tree."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures.description import Axis, Bars, Figure, Layer, Lines, Panel, Points
from hpo_cluster.report.figures.shared import DECADES, faint, numbers
from hpo_cluster.trial import Origin

#: Most curves drawn; of more, the last ones.
MOST_CURVES = 300
#: Most points of one curve of losses.
MOST_STEPS = 60


def rungs(campaign: Campaign) -> Figure | None:
    """Return the values of all trials at the rungs that they have reached: who was paused, and who went to the top."""
    if campaign.rungs is None or campaign.rungs.curves.empty:
        return None
    curves = campaign.rungs.curves.dropna(subset=["value"])
    shares = [float(row["fidelity"]) for row in campaign.rungs.table]
    best = None if campaign.ranked.empty else int(campaign.ranked.iloc[0]["trial"])
    found: dict[str, list[tuple[int, tuple[float, ...], tuple[float, ...]]]] = {}
    for trial, curve in list(curves.groupby("trial", sort=True))[-MOST_CURVES:]:
        whole = float(curve["fidelity"].iloc[-1]) == shares[-1]
        what = "best" if trial == best else "at the top" if whole else "paused or under way"
        found.setdefault(what, []).append((int(str(trial)), numbers(curve["fidelity"]), numbers(curve["value"])))
    layers: list[Layer] = []
    for what, style in (("paused or under way", "low_rung"), ("at the top", "top_rung"), ("best", "best")):
        if mine := found.get(what):
            trials, xs, ys = zip(*mine, strict=True)
            layers.append(Lines(xs, ys, style, what, trials, (0.8 * faint(len(xs)),) * len(xs), dots=True))
    values = numbers(curves["value"])
    log = not campaign.maximize and min(values) > 0 and max(values) > DECADES * min(values)
    ticks = tuple(zip(shares, (row["label"] for row in campaign.rungs.table), strict=True))
    axis = Axis(
        f"share of a whole evaluation ({campaign.rungs.kind})", True, shares[0] / 1.15, shares[-1] * 1.15, ticks
    )
    reading = (
        "Each line is one trial, which was scored early at the rungs. Most stop at a low rung; those that looked good "
        "there went on. Lines that cross often say that the low rungs mislead."
    )
    return Figure("Values at the rungs", reading, [Panel(axis, Axis(campaign.goal, log), layers)])


def losses(campaign: Campaign) -> Figure | None:
    """Return the training loss of each trial whose result holds its curve."""
    best = None if campaign.ranked.empty else int(campaign.ranked.iloc[0]["trial"])
    curves = {trial: points for trial, points in campaign.losses.items() if len(points) > 1}
    if not curves:
        return None
    shown = dict(list(curves.items())[-MOST_CURVES:]) | (
        {best: curves[best]} if best in curves and best is not None else {}
    )
    thin = {trial: points[:: math.ceil(len(points) / MOST_STEPS)] for trial, points in shown.items()}
    others = {trial: points for trial, points in thin.items() if trial != best}
    layers: list[Layer] = []
    for chosen, style, label in (
        (others, "top_rung", "trials"),
        ({best: thin[best]} if best in thin else {}, "best", "best"),
    ):
        if chosen:
            xs = tuple(tuple(x for x, _ in points) for points in chosen.values())
            ys = tuple(tuple(y for _, y in points) for points in chosen.values())
            opacity = (1.0 if label == "best" else 0.5 * faint(len(xs)),) * len(xs)
            layers.append(Lines(xs, ys, style, label, tuple(int(str(trial)) for trial in chosen), opacity))
    every = [y for points in thin.values() for _, y in points]
    log = min(every) > 0 and max(every) > 20 * min(every)
    reading = "The training loss of each trial, as its result holds it."
    panel = Panel(Axis("optimizer step"), Axis("training loss", log), layers)
    return Figure("Learning curves", reading, [panel])


#: Origins of the rows of a tree, with the style of their bars.
ORIGINS = {
    str(Origin.EVALUATED): "completed",
    str(Origin.INHERITED): "inherited",
    str(Origin.APPROXIMATED): "approximated",
    str(Origin.IMPUTED): "imputed",
}


def tree(campaign: Campaign) -> Figure | None:
    """Return the depths in the tree of cells at which an optimizer of partitions has evaluated."""
    rows = [
        (trial, int(depth))
        for trial in campaign.record.rows
        if isinstance(depth := trial.info.get("depth"), int) and str(trial.origin) in ORIGINS
    ]
    if not rows:
        return None
    layers: list[Layer] = []
    for origin, style in ORIGINS.items():
        mine = [(trial.number, depth) for trial, depth in rows if str(trial.origin) == origin and trial.error is None]
        layers += _at_depths(mine, style, origin)
    layers += _at_depths([(trial.number, depth) for trial, depth in rows if trial.error], "failed", "without a value")
    counts = Counter(depth for _, depth in rows)
    deepest = max(counts)
    ticks = tuple((float(depth), str(depth)) for depth in range(0, deepest + 1, max(1, deepest // 12)))
    depths = Axis("depth of the cell", low=-0.7, high=deepest + 0.7, ticks=ticks)
    number = Panel(
        Axis("rows at this depth", low=0, high=1.08 * max(counts.values())),
        depths,
        [Bars(numbers(counts[d] for d in range(deepest + 1)), "completed")],
    )
    reading = (
        "An optimizer of partitions cuts the space into cells, again and again; each marker is the centre of one cell. "
        "Many rows at small depths say that it looks everywhere, a deep column that it has settled on one place."
    )
    return Figure("Depths of the tree", reading, [Panel(Axis("trial", integers=True), depths, layers), number], 2)


def _at_depths(rows: list[tuple[int, int]], style: str, label: str) -> list[Layer]:
    if not rows:
        return []
    trials: Any = tuple(trial for trial, _ in rows)
    return [Points(numbers(trials), tuple(float(depth) for _, depth in rows), style, label, trials)]
