"""Campaigns of several objectives in a comparison: what the front of each dominates of one box that all of them share.

The box lies between the reference point and the best value of each metric in any campaign. The hypervolume of a
campaign is the share of the box that its front dominates, so it has no unit, and is 1 only for one point that is the
best in every metric. The shares of campaigns can be compared because the box is the same for all of them: a reference
point that each campaign derives from its own results would favour those with bad ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals, Point, dominates, gain, reference_of
from hpo_cluster.report.comparison.runs import Curve, Run
from hpo_cluster.text import counted, instead_of, listed

#: What is compared, and the name of the number of points of the front.
HYPERVOLUME, FRONT = "hypervolume", "front"
#: Where the reference of a metric comes from, and what is said of it.
SOURCES = {
    "chosen": "was chosen for this comparison",
    "given": "is the one that all campaigns were given",
    "derived": (
        "follows from the results, since the campaigns were not all given the same: for each of them, a tenth of the "
        "range of its values beyond the worst value of its front (of trials that satisfy the constraints); the worst "
        "of these counts"
    ),
}


@dataclass(frozen=True)
class Box:
    """The part of the space of metrics in which hypervolumes are measured.

    Args:
        goals: the objectives and constraints, in the order of the first campaign.
        reference: the worst target of interest, for each objective.
        best: the best target that any campaign has measured in the box, for each objective.
        source: for each objective, where its reference comes from, one of `SOURCES`.
    """

    goals: Goals
    reference: tuple[float, ...]
    best: tuple[float, ...]
    source: tuple[str, ...]

    @property
    def volume(self) -> float:
        """The volume of the box in the units of the metrics."""
        return math.prod(best - edge for best, edge in zip(self.best, self.reference, strict=True))

    @property
    def words(self) -> list[str]:
        """What the hypervolume is counted from, and how that was chosen."""
        lines = [
            f"Hypervolume is the share that the front of a campaign dominates of one box: from the reference point "
            f"({self._values(self.reference)}) to the best value of each metric in any campaign "
            f"({self._values(self.best)}). The whole box has a volume of {self.volume:.4g} in the units of the "
            "metrics. The front is that of the values as they were measured."
        ]
        for source, why in SOURCES.items():
            names = [goal.name for goal, mine in zip(self.goals.metrics, self.source, strict=True) if mine == source]
            lines += [f"The reference of {listed(names)} {why}."] if names else []
        return lines

    def _values(self, targets: Sequence[float]) -> str:
        pairs = zip(self.goals.metrics, targets, strict=True)
        return ", ".join(f"{goal.name} {goal.sign * target:.5g}" for goal, target in pairs)


@dataclass(frozen=True)
class FrontRun(Run):
    """One campaign of several objectives; its curve is that of the hypervolume.

    Args:
        front: the targets of its points that no other one dominates, each once.
    """

    front: tuple[Point, ...]

    @property
    def sign(self) -> float:
        """What a hypervolume is multiplied by so that a larger one is better."""
        return 1.0

    def score(self, metric: str | None = None) -> float:
        """Return the hypervolume in the end, or the number of points of the front; NaN if nothing was evaluated."""
        if not self.measured:
            return math.nan
        return float(len(self.front)) if metric == FRONT else float(self.curve.best[-1])

    @property
    def remark(self) -> str | None:
        """What a reader has to know of its hypervolume; None if it is an ordinary one."""
        if not self.measured:
            return "no evaluation has ended"
        if not self.front:
            return "no trial has values that satisfy the constraints: its hypervolume is 0"
        if not self.score():
            return "no trial is better than the reference point in every metric: its hypervolume is 0"
        count = len(self.campaign.imported)
        return f"its front is without the {counted(count, 'evaluation')} that it imported" if count else None


def in_one_box(runs: Sequence[Run], chosen: Mapping[str, float]) -> tuple[list[Run], Box | None]:
    """Return campaigns of the same objectives with their hypervolumes, and the box in which these are measured.

    The box is None, and every hypervolume 0, if no campaign has a point that satisfies the constraints and is better
    than the reference point.

    Args:
        runs: the campaigns.
        chosen: references in place of those that were given or follow from the results, by metric.

    Raises:
        ConfigError: if `chosen` names what is no objective.
    """
    goals = runs[0].campaign.goals
    assert goals is not None
    box = _box(runs, goals, _full_names(chosen, goals))
    return [_measured_in(box, run, goals) for run in runs], box


def shared_references(runs: Sequence[Run], goals: Goals) -> tuple[float, ...]:
    """Return the reference (a target) of each objective that all campaigns were given; NaN if it is not the same."""
    given = [{goal.name: goal.reference for goal in run.campaign.goals.metrics} for run in runs if run.campaign.goals]
    found = []
    for goal in goals.metrics:
        edges = {each[goal.name] for each in given}
        edge = edges.pop()
        found.append(math.nan if edges or edge is None else goal.sign * edge)
    return tuple(found)


def _full_names(chosen: Mapping[str, float], goals: Goals) -> dict[str, float]:
    """Return references by the full names of their metrics, of which the last part is enough if one has it."""
    names = [goal.name for goal in goals.metrics]
    found, faults = {}, []
    for name, edge in chosen.items():
        meant = [full for full in names if name in (full, full.rpartition("/")[2])]
        if len(meant) == 1:
            found[meant[0]] = edge
        else:
            faults.append(f"reference: {name} is not one of the objectives; {instead_of(name, names)}")
    if faults:
        raise ConfigError(faults, "hpo-cluster compare --help")
    return found


def _box(runs: Sequence[Run], goals: Goals, chosen: Mapping[str, float]) -> Box | None:
    """Return the box of these campaigns; None if no point lies in it."""
    measured = [[metrics for metrics in run.measured if metrics is not None] for run in runs]
    acceptable = [[goals.targets(metrics) for metrics in mine if goals.feasible(metrics)] for mine in measured]
    if not any(acceptable):
        return None
    known, source = list(shared_references(runs, goals)), []
    for i, goal in enumerate(goals.metrics):
        source.append("chosen" if goal.name in chosen else "given" if math.isfinite(known[i]) else "derived")
        known[i] = goal.sign * chosen.get(goal.name, goal.sign * known[i])
    derived = [reference_of(known, points) for points in acceptable if points]
    reference = tuple(map(min, zip(*derived, strict=True)))  # so that the front of every campaign lies in the box
    held = [point for points in acceptable for point in points if gain(point, (), reference)]
    if not held:
        return None
    return Box(goals, reference, tuple(map(max, zip(*held, strict=True))), tuple(source))


def _measured_in(box: Box | None, run: Run, goals: Goals) -> FrontRun:
    """Return a campaign with its hypervolume after each evaluation."""
    volume, volumes = 0.0, []
    front: list[Point] = []
    for metrics in run.measured:
        if metrics is not None and goals.feasible(metrics):
            point = goals.targets(metrics)
            if not any(point == other or dominates(other, point) for other in front):
                volume += 0.0 if box is None else gain(point, front, box.reference) / box.volume
                front = [*(other for other in front if not dominates(point, other)), point]
        volumes.append(volume)
    curve = Curve(run.curve.costs, np.array(volumes, dtype=np.float64))
    return FrontRun(run.dir, run.campaign, curve, run.measured, tuple(front))
