"""What all parameters have in common: the condition under which one is active, values, and bins of equal width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = float | int | str | bool

#: Active only where each of these parameters has the value, or one of the values, given.
Condition: TypeAlias = Mapping[str, Value | Sequence[Value]]


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """Base class of all parameters.

    Args:
        when: for each parent, the value or values with which this parameter is active; empty: always active.
    """

    when: Condition = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.when, Mapping):  # if not, `faults` says so
            object.__setattr__(self, "when", {parent: _several(values) for parent, values in self.when.items()})

    @property
    def conditions(self) -> Mapping[str, tuple[Value, ...]]:
        """For each parent, the values with which this parameter is active."""
        return self.when if isinstance(self.when, Mapping) else {}  # type: ignore[return-value]  # made so above

    @property
    def unordered(self) -> bool:
        """Whether the values have no order, so that none is nearer to one than to another."""
        return False

    def condition_faults(self) -> list[str]:
        """Return the fault of a condition that is not a mapping; empty if it is one."""
        if isinstance(self.when, Mapping):
            return []
        return [f"when={self.when!r}: must be a mapping from parameter to value, such as {{schedule: cosine}}"]


def _several(values: Value | Sequence[Value]) -> tuple[Value, ...]:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return tuple(values)
    return (values,)


def same(choice: Value, value: Value) -> bool:
    """Return whether two values are the same: 1 and 1.0 are, 1 and true are not."""
    return choice == value and isinstance(choice, bool) == isinstance(value, bool)


def as_number(value: Any) -> float:
    """Return a number of any type as a float. Raise ValueError for anything else, booleans included."""
    if not is_number(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number of Python or numpy, and not a boolean."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def bin_of(u: float, count: int) -> int:
    """Return which of `count` bins of equal width holds position `u` of the unit interval."""
    return min(int(min(max(u, 0.0), 1.0) * count), count - 1)
