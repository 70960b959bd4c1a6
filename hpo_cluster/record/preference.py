"""The best trial for a preference: weights of metrics, and values that they may not exceed or fall below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Bound, Goals, dominates
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.text import counted, instead_of
from hpo_cluster.trial import State

#: The parts of a preference, as they are typed.
KEYS = ("weights", "at_most", "at_least")


@dataclass(frozen=True)
class Preference:
    """What makes a trial the best one: the largest weighted sum of metrics among the trials within the bounds.

    Args:
        weights: by metric; negative for a metric of which less is better. Without weights the (first) objective counts.
        at_most: largest acceptable value, by metric.
        at_least: smallest acceptable value, by metric.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The metrics that it names."""
        return [*self.weights, *self.at_most, *self.at_least]

    @property
    def bounds(self) -> list[Bound]:
        """The acceptable values."""
        return [
            *(Bound(name, at_most=value) for name, value in self.at_most.items()),
            *(Bound(name, at_least=value) for name, value in self.at_least.items()),
        ]


def read_preference(parts: Mapping[str, Any]) -> Preference:
    """Return the preference of plain data. Raises ConfigError naming every part that is not a mapping of numbers."""
    faults = []
    for key, value in parts.items():
        if key not in KEYS:
            faults.append(f"{key}: is not a key; {instead_of(key, KEYS)}")
        elif not isinstance(value, Mapping) or not value or not all(_is_finite(n) for n in value.values()):
            example = -0.01 if key == "weights" else 30
            faults.append(f"{key}={value!r}: give a number for each metric, such as {key}='{{gpu_seconds: {example}}}'")
    if faults:
        raise ConfigError(faults)
    return Preference(**{key: {str(name): float(n) for name, n in value.items()} for key, value in parts.items()})


def with_full_names(preference: Preference, names: Sequence[str]) -> Preference:
    """Return the preference with ``TASK/METRIC`` where only METRIC was typed and one of `names` ends with it."""
    short: dict[str, list[str]] = {}
    for name in names:
        short.setdefault(name.rpartition("/")[2], []).append(name)
    full = {key: names[0] for key, names in short.items() if len(names) == 1}
    parts = {key: {full.get(name, name): n for name, n in getattr(preference, key).items()} for key in KEYS}
    return Preference(**parts)


def preferred(record: Record, goals: Goals | None, direction: str, preference: Preference) -> TrialRecord:
    """Return the best trial for a preference; of equals one that no other of them dominates, and of these the first.

    Args:
        record: of the campaign.
        goals: its objectives, if there are several; trials that violate their constraints are left out.
        direction: of its objective, or of the first one.
        preference: what counts.

    Raises:
        ConfigError: a metric that no trial has, a weight against the direction of an objective, or no trial that is
            within the bounds.
    """
    completed = [t for t in record.rows if t.in_budget and t.state is State.COMPLETED and t.value is not None]
    if not completed:
        raise ConfigError(["no trial of the campaign has a value yet"])
    if faults := _faults(completed, goals, preference):
        raise ConfigError(faults)
    needed = [*preference.weights, *(bound.name for bound in preference.bounds)]
    measured = [t for t in completed if all(name in t.metrics for name in needed)]
    feasible = [t for t in measured if goals is None or goals.feasible(t.metrics)]
    within = [t for t in feasible if all(bound.slack(t.metrics[bound.name]) >= 0 for bound in preference.bounds)]
    if not within:
        raise ConfigError([f"none of {counted(len(completed), 'trial')} {_what_fails(feasible, goals, preference)}"])
    sign = 1.0 if direction == "maximize" else -1.0

    def worth(trial: TrialRecord) -> float:
        if not preference.weights:
            return sign * (trial.value or 0.0)
        return math.fsum(weight * trial.metrics[name] for name, weight in preference.weights.items())

    most = max(map(worth, within))
    equals = [trial for trial in within if worth(trial) == most]
    if goals is not None:
        points = [goals.targets(trial.metrics) for trial in equals]
        equals = [t for t, a in zip(equals, points, strict=True) if not any(dominates(b, a) for b in points)]
    return min(equals, key=lambda trial: trial.number)


def _faults(trials: Sequence[TrialRecord], goals: Goals | None, preference: Preference) -> list[str]:
    """Return the metrics that no trial has, and the weights that prefer what is worse."""
    there = sorted({name for trial in trials for name in trial.metrics})
    faults = [
        f"{key}: no trial has the metric {name}; {instead_of(name, there)}"
        for key in KEYS
        for name in getattr(preference, key)
        if name not in there
    ]
    for goal in goals.metrics if goals is not None else ():
        if goal.sign * preference.weights.get(goal.name, 0.0) < 0:
            wanted, right = ("minimised", "below") if goal.sign < 0 else ("maximised", "above")
            faults.append(f"weights: {goal.name} is to be {wanted}, so its weight is {right} 0")
    return faults


def _what_fails(feasible: Sequence[TrialRecord], goals: Goals | None, preference: Preference) -> str:
    """Return why no trial is acceptable, with the values that come closest."""
    if not feasible:
        return "satisfies the campaign's constraints" if goals is not None else "has all these metrics"
    seen = []
    for bound in preference.bounds:
        values = [trial.metrics[bound.name] for trial in feasible]
        seen.append(f"{bound.name} goes from {min(values):.4g} to {max(values):.4g}")
    return f"is within the bounds: {', '.join(seen)}"


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
