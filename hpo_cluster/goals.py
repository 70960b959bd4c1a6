"""Several objectives: the metrics that a campaign optimises at once, their directions, and what must hold of others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

Direction: TypeAlias = Literal["maximize", "minimize"]

#: The metric that every objective has: the seconds of an evaluation times its GPUs (on a CPU: times one).
GPU_SECONDS = "gpu_seconds"


@dataclass(frozen=True)
class Goal:
    """A metric to optimise.

    Args:
        name: of the metric.
        direction: whether larger or smaller values are better; None: not known yet.
        reference: the worst value of interest, from which the hypervolume is counted; None: follows from the results.
    """

    name: str
    direction: Direction | None = None
    reference: float | None = None

    @property
    def sign(self) -> float:
        """The factor from a value to a target, which is always maximised: 1 or -1."""
        return -1.0 if self.direction == "minimize" else 1.0


@dataclass(frozen=True)
class Bound:
    """A constraint: the values of a metric that are acceptable, both ends included."""

    name: str
    at_most: float | None = None
    at_least: float | None = None

    def slack(self, value: float) -> float:
        """Return how far a value is inside the bound; negative if the constraint does not hold."""
        below = math.inf if self.at_most is None else self.at_most - value
        above = math.inf if self.at_least is None else value - self.at_least
        return min(below, above)


@dataclass(frozen=True)
class Goals:
    """The objectives of a campaign that has two or more of them, or one and constraints, and its constraints."""

    metrics: tuple[Goal, ...]
    constraints: tuple[Bound, ...] = ()

    @classmethod
    def of(cls, objective: Mapping[str, Any]) -> Goals | None:
        """Return the goals in an objective's settings (plain data); None if it optimises one metric unconstrained.

        Raises:
            TypeError: if they are not what a campaign records.
        """
        if not objective.get("metrics"):
            return None
        bounds = tuple(Bound(**entry) for entry in objective.get("constraints") or ())
        return cls(tuple(Goal(**entry) for entry in objective["metrics"]), bounds)

    @property
    def several(self) -> bool:
        """Whether there are two or more objectives."""
        return len(self.metrics) > 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The metrics that a result must hold: the objectives, then those of the constraints."""
        return tuple(
            dict.fromkeys([*(goal.name for goal in self.metrics), *(bound.name for bound in self.constraints)])
        )

    @property
    def references(self) -> tuple[float, ...]:
        """The worst target of interest of each objective; NaN where none was given."""
        return tuple(math.nan if goal.reference is None else goal.sign * goal.reference for goal in self.metrics)

    def targets(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return what is maximised, for each objective; NaN for a metric that is missing."""
        return tuple(goal.sign * metrics.get(goal.name, math.nan) for goal in self.metrics)

    def slacks(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Return how far each constraint holds: negative if it does not, NaN if its metric is missing."""
        return tuple(bound.slack(metrics.get(bound.name, math.nan)) for bound in self.constraints)

    def feasible(self, metrics: Mapping[str, float]) -> bool:
        """Return whether all constraints hold."""
        return all(slack >= 0 for slack in self.slacks(metrics))
