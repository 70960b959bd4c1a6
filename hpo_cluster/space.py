"""Search spaces: named parameters, their scales, and their mapping to the unit cube.

Every optimizer works in the unit cube ``[0, 1]^d`` (float64) and hands out *configurations*: plain dictionaries
from parameter name to a Python `float`, `int`, `str` or `bool`. `Space.decode` maps a point to a configuration and
`Space.encode` maps a configuration back to the canonical point that stands for it, so
``decode(encode(c)) == c`` always holds (for a real number up to rounding error), and the surrogate trains on the point
that was really evaluated.

An integer parameter with n values divides its axis into n bins of equal width (on its scale) and is *rounded* to the
value of its bin, never truncated; the canonical point is the middle of the bin. A categorical parameter does the same
with its choices in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.errors import ConfigError

Value: TypeAlias = float | int | str | bool
Configuration: TypeAlias = dict[str, Value]

#: Columns of the history; a parameter cannot have one of these names.
RESERVED_NAMES = frozenset(
    {"trial", "state", "origin", "value", "value_sem", "target", "attempts", "job", "node", "submitted_at"}
    | {"started_at", "ended_at", "seed", "asked_seq", "ended_seq", "error"}
)


@dataclass(frozen=True)
class Float:
    """A real parameter in ``[low, high]``, uniform on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    @property
    def cardinality(self) -> int | None:
        """Number of distinct values; None when there is no end of them."""
        return None

    def faults(self) -> list[str]:
        """What is wrong with the range; empty when nothing is."""
        return _range_faults(self.low, self.high, self.log)

    def decode(self, u: float) -> float:
        """Value at position `u` of the unit interval."""
        if u <= 0.0 or u >= 1.0:
            return float(self.low if u <= 0.0 else self.high)
        if not self.log:
            return float(min(max(self.low + u * (self.high - self.low), self.low), self.high))
        value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return float(min(max(value, self.low), self.high))

    def encode(self, value: Value) -> float:
        """Position of `value` in the unit interval. Raises ValueError outside the range."""
        number = _number(value)
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        if not self.low - slack <= number <= self.high + slack:
            raise ValueError(f"{value!r} is outside {self.low:g} to {self.high:g}")
        number = min(max(number, self.low), self.high)
        if not self.log:
            return (number - self.low) / (self.high - self.low)
        return (math.log(number) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))


@dataclass(frozen=True)
class Integer:
    """An integer parameter in ``low..high``, both ends included, on a linear or a logarithmic scale."""

    low: int
    high: int
    log: bool = False

    @property
    def cardinality(self) -> int:
        """Number of distinct values."""
        return self.high - self.low + 1

    def faults(self) -> list[str]:
        """What is wrong with the range; empty when nothing is."""
        return _range_faults(self.low, self.high, self.log)

    def _ends(self) -> tuple[float, float]:
        low, high = self.low - 0.5, self.high + 0.5
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def decode(self, u: float) -> int:
        """The integer whose bin holds position `u` of the unit interval."""
        low, high = self._ends()
        x = low + min(max(u, 0.0), 1.0) * (high - low)
        return int(min(max(math.floor((math.exp(x) if self.log else x) + 0.5), self.low), self.high))

    def encode(self, value: Value) -> float:
        """Middle of the bin of `value` in the unit interval. Raises ValueError where it is no integer of the range."""
        number = _number(value)
        if number != round(number) or not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is no integer from {self.low} to {self.high}")
        low, high = self._ends()
        left, right = number - 0.5, number + 0.5
        if self.log:
            left, right = math.log(left), math.log(right)
        return ((left + right) / 2 - low) / (high - low)


@dataclass(frozen=True)
class Categorical:
    """One of several choices. `ordered` says that neighbours in the list are alike (powers of two, sizes)."""

    choices: tuple[Value, ...]
    ordered: bool = False

    @property
    def cardinality(self) -> int:
        """Number of choices."""
        return len(self.choices)

    def faults(self) -> list[str]:
        """What is wrong with the choices; empty when nothing is."""
        if len(self.choices) < 2:
            return [f"needs at least two choices, has {len(self.choices)}"]
        if len({(type(choice), choice) for choice in self.choices}) < len(self.choices):
            return [f"has a choice twice: {list(self.choices)}"]
        return []

    def decode(self, u: float) -> Value:
        """The choice whose bin holds position `u` of the unit interval."""
        return self.choices[min(int(min(max(u, 0.0), 1.0) * len(self.choices)), len(self.choices) - 1)]

    def encode(self, value: Value) -> float:
        """Middle of the bin of `value` in the unit interval. Raises ValueError where it is none of the choices."""
        for index, choice in enumerate(self.choices):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return (index + 0.5) / len(self.choices)
        raise ValueError(f"{value!r} is none of {list(self.choices)}")


Parameter: TypeAlias = Float | Integer | Categorical


class Space:
    """An ordered set of named parameters.

    Args:
        parameters: parameter of each name, in the order of the unit cube's axes.

    Raises:
        ConfigError: naming every parameter that is wrong.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        faults = [] if parameters else ["the space has no parameter"]
        for name, parameter in parameters.items():
            if not name.isidentifier():
                faults.append(f"space.{name}: a parameter's name is letters, digits and underscores")
            if name in RESERVED_NAMES:
                faults.append(f"space.{name}: that name is a column of the history; choose another")
            faults += [f"space.{name}: {fault}" for fault in parameter.faults()]
        if faults:
            raise ConfigError(faults)
        self.parameters: dict[str, Parameter] = dict(parameters)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the axes."""
        return tuple(self.parameters)

    @property
    def dim(self) -> int:
        """Number of parameters, d."""
        return len(self.parameters)

    @property
    def size(self) -> float:
        """Number of distinct configurations; infinite with a real parameter."""
        cardinalities = [p.cardinality for p in self.parameters.values()]
        return math.inf if None in cardinalities else float(math.prod(c for c in cardinalities if c is not None))

    def __iter__(self) -> Iterator[tuple[str, Parameter]]:
        return iter(self.parameters.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Space({self.parameters!r})"

    def decode(self, point: Sequence[float] | NDArray[np.float64]) -> Configuration:
        """The configuration at a point of the unit cube (``d``)."""
        if len(point) != self.dim:
            raise ValueError(f"the point has {len(point)} coordinates, the space {self.dim}")
        return {name: p.decode(float(u)) for (name, p), u in zip(self, point, strict=True)}

    def encode(self, configuration: Mapping[str, Value]) -> NDArray[np.float64]:
        """The canonical point (``d``, unit cube, float64) of a configuration. Raises ConfigError with all faults."""
        self.check(configuration)
        return np.array([p.encode(configuration[name]) for name, p in self], dtype=np.float64)

    def snap(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move each point (``n x d``) to the canonical point of its configuration."""
        return np.array([self.encode(self.decode(row)) for row in points], dtype=np.float64).reshape(-1, self.dim)

    def check(self, configuration: Mapping[str, Value]) -> None:
        """Raise ConfigError naming every missing, unknown or out-of-range value of a configuration."""
        faults = [f"{name}: is no parameter of the space" for name in configuration if name not in self.parameters]
        for name, parameter in self:
            if name not in configuration:
                faults.append(f"{name}: has no value")
                continue
            try:
                parameter.encode(configuration[name])
            except (ValueError, TypeError) as error:
                faults.append(f"{name}: {error}")
        if faults:
            raise ConfigError(faults)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The space as plain data, in the form of a file of ``conf/space/``."""
        out: dict[str, dict[str, Any]] = {}
        for name, p in self:
            if isinstance(p, Categorical):
                out[name] = {"type": "categorical", "choices": list(p.choices), "ordered": p.ordered}
            else:
                kind = "float" if isinstance(p, Float) else "int"
                out[name] = {"type": kind, "low": p.low, "high": p.high, "log": p.log}
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, Any]]) -> Space:
        """Inverse of `to_json`; a short form is accepted too: ``{"lr": {"low": 1e-5, "high": 1e-1, "log": True}}``.

        Without a `type`, choices make a categorical, two integer ends an int, anything else a float; ``type: bool``
        is a categorical of False and True.

        Raises:
            ConfigError: with every fault of every parameter.
        """
        parameters: dict[str, Parameter] = {}
        faults: list[str] = []
        for name, entry in data.items():
            try:
                parameters[name] = _parameter(entry)
            except (ValueError, TypeError) as error:
                faults.append(f"space.{name}: {error}")
        if faults:
            try:
                cls(parameters)
            except ConfigError as error:
                faults += error.faults if parameters else []
            raise ConfigError(faults)
        return cls(parameters)


def _parameter(entry: Mapping[str, Any]) -> Parameter:
    fields = dict(entry)
    low, high = fields.get("low"), fields.get("high")
    kind = fields.pop("type", None)
    if kind is None:
        integers = all(isinstance(end, int) and not isinstance(end, bool) for end in (low, high))
        kind = "categorical" if "choices" in fields else "int" if integers else "float"
    accepted = {"float": {"low", "high", "log"}, "int": {"low", "high", "log"}, "bool": set[str]()}
    accepted["categorical"] = {"choices", "ordered"}
    if kind not in accepted:
        raise ValueError(f"type {kind!r} is unknown; accepted: {', '.join(accepted)}")
    if unknown := sorted(set(fields) - accepted[kind]):
        raise ValueError(f"{', '.join(unknown)}: unknown for type {kind}; accepted: {sorted(accepted[kind])}")
    if kind == "bool":
        return Categorical((False, True))
    if kind == "categorical":
        if not isinstance(fields.get("choices"), (list, tuple)):
            raise ValueError("choices must be a list")
        return Categorical(tuple(fields["choices"]), bool(fields.get("ordered", False)))
    if missing := [end for end in ("low", "high") if fields.get(end) is None]:
        raise ValueError(f"needs {' and '.join(missing)}")
    log = fields.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log={log!r} must be true or false")
    ends = _number(low), _number(high)
    if kind == "float":
        return Float(*ends, log)
    if any(end != round(end) for end in ends):
        raise ValueError(f"an int needs integer ends, not {low!r} and {high!r}")
    return Integer(int(ends[0]), int(ends[1]), log)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _range_faults(low: float, high: float, log: bool) -> list[str]:
    if not (math.isfinite(low) and math.isfinite(high)):
        return [f"the ends must be finite, not {low:g} and {high:g}"]
    faults = []
    if low >= high:
        faults.append(f"empty range: low {low:g} must be below high {high:g}")
    if log and low <= 0:
        faults.append(f"a log scale needs low above 0, not {low:g}")
    return faults
