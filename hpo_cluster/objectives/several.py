"""What users type for several objectives, as plain data, and what can be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from hpo_cluster.goals import Bound, Goal
from hpo_cluster.text import did_you_mean, instead_of


def entry_of(entry: Any, full_name: Callable[[str], str]) -> Any:
    """Return a goal or a bound as plain data with the full name of its metric; anything else as it is."""
    if isinstance(entry, str):
        return {"name": full_name(entry)}
    plain = asdict(entry) if isinstance(entry, (Goal, Bound)) else entry
    if isinstance(plain, dict) and isinstance(plain.get("name"), str):
        return {**plain, "name": full_name(plain["name"])}
    return plain


def key_faults(section: str, entries: Sequence[Any], accepted: Sequence[str]) -> list[str]:
    """Return the keys of entries (plain data) that do not exist."""
    unknown = [key for entry in entries if isinstance(entry, dict) for key in entry if key not in accepted]
    return [f"objective.{section}: {key} is not a key of an entry; {instead_of(str(key), accepted)}" for key in unknown]


def goal_faults(goals: Sequence[Goal], known: Sequence[str], *, constrained: bool, one: str) -> list[str]:
    """Return why these cannot be optimised at once; empty if they can, or if there are none.

    One alone is accepted if there are constraints. `one` is the key that names a single objective; empty: none does.
    """
    names = [goal.name for goal in goals]
    faults = [f"objective.metrics: {name} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if len(goals) == 1 and not constrained:
        how = f" with {one}={names[0].rpartition('/')[2]}" if one else ""
        faults.append(
            f"objective.metrics=[{names[0]}]: several objectives are two or more; leave it out to optimise one{how}"
        )
    for goal in goals:
        if goal.direction is None:
            faults.append(
                f"objective.metrics: nothing says whether more or less {goal.name} is better; "
                f"{did_you_mean(goal.name.rpartition('/')[2], known)}give {{name: {goal.name}, "
                "direction: maximize}, or minimize"
            )
        if goal.reference is not None and not math.isfinite(goal.reference):
            faults.append(f"objective.metrics: the reference of {goal.name} must be finite")
    return faults


def bound_faults(bounds: Sequence[Bound]) -> list[str]:
    """Return what is wrong with constraints; empty if nothing is."""
    names = [bound.name for bound in bounds]
    faults = [f"objective.constraints: {name} is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    for bound in bounds:
        ends = [end for _, end in bound.ends]
        if not ends or not all(map(math.isfinite, ends)):
            faults.append(f"objective.constraints: {bound.name} needs a number: at_most: 40, or at_least")
        elif ends != sorted(ends):
            faults.append(f"objective.constraints: no {bound.name} is at least {ends[0]:g} and at most {ends[1]:g}")
    return faults
