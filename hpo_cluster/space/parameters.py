"""Parameters of a search space: their ranges and scales, when they are active, and their priors.

Each maps its values to positions ``u`` of the unit interval and back. An integer parameter with n values divides the
interval into n bins of equal width (on its scale) and is *rounded* to the value of its bin, never truncated; the
canonical position is the middle of the bin. A categorical parameter does the same with its choices in the order given,
a number with a ``step`` with its values ``low``, ``low + step``, … ``high``.

A parameter with one value (one choice, or ``low`` equal to ``high``) is *fixed*: part of every configuration, never
searched.

A *prior* says where good values are expected. For a number it is a normal distribution around ``center``, cut off
at the ends of the range, whose standard deviation ``spread`` is a share of the range on the parameter's scale; of a
choice it is one weight for each. `warp` takes a uniform position to one distributed as the prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = float | int | str | bool
#: How far a value may be from a step, and ``high`` from the last one: a share of the step, for rounding errors.
OFF_STEP = 1e-6

#: Smallest step of real values, as a share of the largest number of the range: smaller steps drown in rounding errors.
LEAST_STEP = 1e-9

#: Active only where each of these parameters has the value, or one of the values, given.
Condition: TypeAlias = Mapping[str, Value | Sequence[Value]]

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Prior:
    """A normal distribution that says where good values of a number are expected.

    Args:
        center: the most likely value, in the parameter's own units.
        spread: standard deviation as a share of the range, on the parameter's scale: 0.1 is rather sure, 0.3 vague.

    Example:
        >>> rate = Float(1e-5, 1e-1, log=True, prior=Prior(center=1e-3, spread=0.2))
        >>> rate.faults()
        []
    """

    center: float
    spread: float


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


@dataclass(frozen=True)
class Number(Conditional):
    """Base class of real and integer parameters.

    Args:
        low: the least value.
        high: the greatest value; equal to `low` for a fixed parameter. With a step it is one of the values.
        log: whether the scale is logarithmic.
        prior: where good values are expected.
        step: the values are `low`, ``low + step``, … `high`; None: every number (real) or every integer.
    """

    low: float
    high: float
    log: bool = False
    prior: Prior | None = field(default=None, kw_only=True)
    step: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high", "step"):
            object.__setattr__(self, name, _plain_number(getattr(self, name), whole=isinstance(self, Integer)))

    @property
    def cardinality(self) -> int | None:
        """Number of distinct values; None for a real parameter without a step, which has infinitely many."""
        raise NotImplementedError

    @property
    def fixed(self) -> bool:
        """Whether there is only one value."""
        return self.low == self.high

    def decode(self, u: float) -> Value:
        """Return the value at position `u` of the unit interval."""
        raise NotImplementedError

    def encode(self, value: Value) -> float:
        """Return the position of `value` in the unit interval. Raise ValueError if it is outside the range."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """Return the faults of the range and the prior; empty if there are none."""
        if found := _type_faults(self):
            return found
        found = [*_range_faults(self.low, self.high, self.log), *_step_faults(self)]
        if isinstance(self, Integer) and max(abs(self.low), abs(self.high)) > 2**53:
            found.append(f"{self.low} to {self.high}: whole numbers beyond 2^53 cannot be distinguished")
        if self.prior is None or found:
            return found
        if not self.low <= self.prior.center <= self.high:
            found.append(f"prior.center={self.prior.center:g}: is outside {self.low:g} to {self.high:g}")
        if not (math.isfinite(self.prior.spread) and self.prior.spread > 0):
            found.append(f"prior.spread={self.prior.spread:g}: must be above 0, a share of the range such as 0.2")
        return found

    def warp(self, u: float) -> float:
        """Return a position distributed as the prior, for a uniform position `u`."""
        if self.prior is None:
            return u
        mean, spread = self.prior_position
        low, high = _NORMAL.cdf(-mean / spread), _NORMAL.cdf((1 - mean) / spread)
        share = min(max(low + u * (high - low), 1e-16), 1 - 1e-16)
        return min(max(mean + spread * _NORMAL.inv_cdf(share), 0.0), 1.0)

    def log_prior(self, u: float) -> float:
        """Return the logarithm of the prior's density at a position, relative to a uniform density."""
        if self.prior is None:
            return 0.0
        mean, spread = self.prior_position
        inside = _NORMAL.cdf((1 - mean) / spread) - _NORMAL.cdf(-mean / spread)
        return -0.5 * ((u - mean) / spread) ** 2 - math.log(spread * math.sqrt(2 * math.pi) * inside)

    @property
    def prior_position(self) -> tuple[float, float]:
        """Mean and standard deviation of the prior in the unit interval, before it is cut off at the ends."""
        assert self.prior is not None
        return _position(self, self.prior.center), self.prior.spread

    def _steps(self) -> int:
        """Return the number of values of a number with a step, or of a fixed one."""
        return 1 if self.step is None or self.fixed else round((self.high - self.low) / self.step) + 1

    def _nearest_step(self, number: float) -> int:
        """Return the index of a value among the steps. Raise ValueError if it is not one of the steps."""
        place = 0 if self.step is None or not math.isfinite(number) else round((number - self.low) / self.step)
        slack = OFF_STEP * (self.step or abs(self.low))
        off = abs(number - self.low - place * (self.step or 0))
        if not (0 <= place < self._steps() and off <= slack):  # NaN is never within it
            raise ValueError(f"{_text(number)} is not one of {_listed(self)}")
        return place


@dataclass(frozen=True)
class Float(Number):
    """A real parameter in ``[low, high]``, uniform on a linear or a logarithmic scale, or in steps.

    Example:
        >>> Float(0.0, 0.3, step=0.05).values
        [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
        >>> round(Float(1e-5, 1e-1, log=True).decode(0.5), 6)  # the middle of a logarithmic scale
        0.001
    """

    @property
    def cardinality(self) -> int | None:
        """Number of distinct values; None if there are infinitely many."""
        return self._steps() if self.step is not None or self.fixed else None

    @property
    def values(self) -> Sequence[float]:
        """All values, in order. Raises ValueError if there are infinitely many."""
        return [self.value(index) for index in range(_count(self))]

    def value(self, index: int) -> float:
        """Return the value with this index, without rounding noise: 0.15, not 0.15000000000000002."""
        if index == 0 or self.step is None:
            return float(self.low)
        digits = 14 - math.floor(math.log10(max(abs(self.low), abs(self.high))))  # 15 significant ones in all
        return round(float(self.low) + index * float(self.step), digits) + 0.0  # no -0.0

    def index(self, u: float) -> int:
        """Return the index of the value at position `u` of the unit interval."""
        return _bin(u, _count(self))

    def decode(self, u: float) -> float:
        """Return the value at position `u` of the unit interval."""
        if self.cardinality is not None:
            return self.value(self.index(u))
        if u <= 0.0 or u >= 1.0:
            return float(self.low if u <= 0.0 else self.high)
        if not self.log:
            return float(min(max(self.low + u * (self.high - self.low), self.low), self.high))
        value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return float(min(max(value, self.low), self.high))

    def encode(self, value: Value) -> float:
        """Return the position of `value` in the unit interval. Raise ValueError if it is outside the range."""
        number = as_number(value)
        if self.cardinality is not None:
            return (self._nearest_step(number) + 0.5) / self.cardinality
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        if not self.low - slack <= number <= self.high + slack:
            raise ValueError(f"{value!r} is outside {self.low:g} to {self.high:g}")
        number = min(max(number, self.low), self.high)
        if not self.log:
            return (number - self.low) / (self.high - self.low)
        return (math.log(number) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))


@dataclass(frozen=True)
class Integer(Number):
    """An integer parameter in ``low..high``, both ends included, on a linear or a logarithmic scale, or in steps.

    Example:
        >>> Integer(8, 64, step=8).cardinality
        8
        >>> Integer(1, 4).decode(0.999)
        4
    """

    low: int
    high: int
    step: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step == 1:  # what integers have anyway
            object.__setattr__(self, "step", None)

    @property
    def cardinality(self) -> int:
        """Number of distinct values."""
        return (self.high - self.low) // (self.step or 1) + 1

    @property
    def values(self) -> Sequence[int]:
        """All values, in order."""
        return range(self.low, self.high + 1, self.step or 1)

    def value(self, index: int) -> int:
        """Return the value with this index."""
        return self.low + index * (self.step or 1)

    def index(self, u: float) -> int:
        """Return the index of the value at position `u` of the unit interval."""
        return (self.decode(u) - self.low) // (self.step or 1)

    def _ends(self) -> tuple[float, float]:
        low, high = self.low - 0.5, self.high + 0.5
        return (math.log(low), math.log(high)) if self.log else (low, high)

    def decode(self, u: float) -> int:
        """Return the integer whose bin holds position `u` of the unit interval."""
        if self.step is not None:
            return self.value(_bin(u, self.cardinality))
        low, high = self._ends()
        x = low + min(max(u, 0.0), 1.0) * (high - low)
        return int(min(max(math.floor((math.exp(x) if self.log else x) + 0.5), self.low), self.high))

    def encode(self, value: Value) -> float:
        """Return the middle of the bin of `value`. Raise ValueError if it is not an integer of the range."""
        number = as_number(value)
        if number != round(number) or not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is not an integer from {self.low} to {self.high}")
        if self.step is not None:
            return (self._nearest_step(number) + 0.5) / self.cardinality
        low, high = self._ends()
        left, right = number - 0.5, number + 0.5
        if self.log:
            left, right = math.log(left), math.log(right)
        return ((left + right) / 2 - low) / (high - low)


@dataclass(frozen=True)
class Categorical(Conditional):
    """A parameter with several choices.

    Args:
        choices: the values; one alone makes a fixed parameter.
        ordered: whether neighbours in the list are similar, as powers of two are.
        prior: one weight above zero for each choice; only their ratios count.

    Example:
        >>> Categorical(("linear", "cosine")).decode(0.7)
        'cosine'
        >>> Categorical((4, 8, 16), ordered=True).cardinality
        3
    """

    choices: tuple[Value, ...]
    ordered: bool = False
    prior: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("choices", "prior"):
            if isinstance(entries := getattr(self, name), Sequence) and not isinstance(entries, str):
                object.__setattr__(self, name, tuple(entries))

    @property
    def cardinality(self) -> int:
        """Number of choices."""
        return len(self.choices)

    @property
    def values(self) -> Sequence[Value]:
        """All values, in order."""
        return self.choices

    @property
    def fixed(self) -> bool:
        """Whether there is only one value."""
        return len(self.choices) == 1

    def value(self, index: int) -> Value:
        """Return the choice with this index."""
        return self.choices[index]

    def faults(self) -> list[str]:
        """Return the faults of the choices and the prior; empty if there are none."""
        if found := _type_faults(self):
            return found
        if not self.choices:
            return ["needs at least one choice, has none"]
        if faults := [fault for choice in self.choices if (fault := _choice_fault(choice))]:
            return list(dict.fromkeys(faults))
        booleans = [choice for choice in self.choices if isinstance(choice, bool)]
        if booleans and len(booleans) < len(self.choices):
            seen = ", ".join("true" if choice else "false" for choice in booleans)
            return [
                f"choices {list(self.choices)}: {seen} stands among other values; YAML reads on, off, yes and no as "
                "booleans unless they are quoted: ['on', 'off']"
            ]
        seen_as: dict[Value, Value] = {}
        for choice in self.choices:
            looks = {str(choice), choice}  # 1 and 1.0 are equal, and have one hash
            if other := [seen_as[look] for look in looks if look in seen_as]:
                return [f"has a choice twice: {other[0]!r} and {choice!r} cannot be distinguished in a table"]
            seen_as.update(dict.fromkeys(looks, choice))
        if self.prior is not None:
            if len(self.prior) != len(self.choices):
                return [f"prior has {len(self.prior)} weights for {len(self.choices)} choices"]
            if not all(math.isfinite(weight) and weight > 0 for weight in self.prior):
                return [f"prior={list(self.prior)}: weights must be above 0; leave out a choice that is never wanted"]
        return []

    def decode(self, u: float) -> Value:
        """Return the choice whose bin holds position `u` of the unit interval."""
        return self.choices[self.index(u)]

    def encode(self, value: Value) -> float:
        """Return the middle of the bin of `value`. Raise ValueError if it is not one of the choices."""
        for index, choice in enumerate(self.choices):
            if same(choice, value):
                return (index + 0.5) / len(self.choices)
        raise ValueError(f"{value!r} is not one of {list(self.choices)}")

    def warp(self, u: float) -> float:
        """Return a position distributed as the prior, for a uniform position `u`."""
        if self.prior is None:
            return u
        shares = np.cumsum(self.prior) / sum(self.prior)
        index = int(np.searchsorted(shares, u, side="right"))
        return (min(index, len(self.choices) - 1) + 0.5) / len(self.choices)

    def log_prior(self, u: float) -> float:
        """Return the logarithm of the prior's density at a position, relative to a uniform density."""
        if self.prior is None:
            return 0.0
        return math.log(self.prior[self.index(u)] * len(self.choices) / sum(self.prior))

    def index(self, u: float) -> int:
        """Return the index of the choice at position `u` of the unit interval."""
        return _bin(u, len(self.choices))


Parameter: TypeAlias = Float | Integer | Categorical

_FIELDS = {
    "float": {"low", "high", "log", "step", "prior", "when"},
    "int": {"low", "high", "log", "step", "prior", "when"},
    "bool": {"prior", "when"},
    "categorical": {"choices", "ordered", "prior", "when"},
}
#: Every key of a parameter.
PARAMETER_FIELDS = ("type", "low", "high", "log", "step", "choices", "ordered", "prior", "when")


def parameter_from_json(entry: Mapping[str, Any]) -> Parameter:
    """Return a parameter from plain data, in full or in a short form; see `hpo_cluster.space.Space.from_json`.

    Raises:
        ValueError: if the data does not describe a parameter.
    """
    fields = dict(entry)
    if isinstance(fields.get("ordered"), (list, tuple)) and "choices" not in fields:
        fields |= {"choices": fields["ordered"], "ordered": True}
    low, high, step = (fields.get(name) for name in ("low", "high", "step"))
    kind = fields.pop("type", None)
    if kind is None and not fields.keys() & {"low", "high", "choices"}:
        has = f"has only {', '.join(map(str, fields))}" if fields else "is empty"
        raise ValueError(f"{has}; a parameter has low and high, choices, ordered (values in their order) or type: bool")
    if kind is None:
        given = (low, high) if step is None else (low, high, step)
        integers = all(isinstance(number, int) and not isinstance(number, bool) for number in given)
        kind = "categorical" if "choices" in fields else "int" if integers else "float"
    if kind not in _FIELDS:
        raise ValueError(f"type {kind!r} is unknown; accepted: {', '.join(_FIELDS)}")
    if unknown := sorted(set(fields) - _FIELDS[kind]):
        raise ValueError(f"{', '.join(unknown)}: unknown for type {kind}; accepted: {sorted(_FIELDS[kind])}")
    when = fields.get("when") or {}
    if kind == "bool":
        return Categorical((False, True), when=when, prior=fields.get("prior"))
    if kind == "categorical":
        ordered = bool(fields.get("ordered", False))
        return Categorical(fields.get("choices"), ordered, when=when, prior=fields.get("prior"))  # type: ignore[arg-type]
    if missing := [end for end in ("low", "high") if fields.get(end) is None]:
        raise ValueError(f"needs {' and '.join(missing)}")
    number: Any = Float if kind == "float" else Integer
    made: Parameter = number(
        low, high, fields.get("log", False), when=when, prior=_normal(fields.get("prior")), step=step
    )
    return made


def parameter_to_json(parameter: Parameter) -> dict[str, Any]:
    """Return a parameter as plain data for `parameter_from_json`, without unused fields."""
    out: dict[str, Any]
    if isinstance(parameter, Categorical):
        out = {"type": "categorical", "choices": list(parameter.choices), "ordered": parameter.ordered}
        if parameter.prior is not None:
            out["prior"] = list(parameter.prior)
    else:
        kind = "float" if isinstance(parameter, Float) else "int"
        out = {"type": kind, "low": parameter.low, "high": parameter.high, "log": parameter.log}
        if parameter.step is not None:
            out["step"] = parameter.step
        if parameter.prior is not None:
            out["prior"] = {"center": parameter.prior.center, "spread": parameter.prior.spread}
    if parameter.when:
        out["when"] = {parent: list(values) for parent, values in parameter.conditions.items()}
    return out


def _normal(prior: Any) -> Prior | None:
    if prior is None:
        return None
    if not isinstance(prior, Mapping) or set(prior) != {"center", "spread"}:
        raise ValueError(f"prior={prior!r}: a number's prior is {{center: VALUE, spread: SHARE OF THE RANGE}}")
    return Prior(prior["center"], prior["spread"])


def as_number(value: Any) -> float:
    """Return a number of any type as a float. Raise ValueError for anything else, booleans included."""
    if not _is_number(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _plain_number(number: Any, *, whole: bool) -> Any:
    """Return a number of any type as a float or as an int, if it is one; anything else as it is."""
    if not _is_number(number) or (whole and not float(number).is_integer()):
        return number
    return int(number) if whole else float(number)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _type_faults(parameter: Number | Categorical) -> list[str]:
    """Return what is wrong with the types of a parameter's fields; empty if nothing is."""
    when, prior = parameter.when, parameter.prior
    found = list[str]()
    if not isinstance(when, Mapping):
        found.append(f"when={when!r}: must be a mapping from parameter to value, such as {{schedule: cosine}}")
    if isinstance(parameter, Categorical):
        if not isinstance(parameter.choices, tuple):
            found.append(f"choices={parameter.choices!r}: must be a list, such as ['adamw', 'sgd']")
        if not isinstance(parameter.ordered, bool):
            found.append(f"ordered={parameter.ordered!r}: must be true or false; the choices are one list")
        if prior is not None and not (isinstance(prior, tuple) and all(map(_is_number, prior))):
            found.append(f"prior={prior!r}: a choice's prior is a list of weights, one number for each choice")
        return found
    numbers: dict[str, Any] = {"low": parameter.low, "high": parameter.high}
    if parameter.step is not None:
        numbers["step"] = parameter.step
    if isinstance(parameter, Integer):
        for name, number in numbers.items():
            if _is_number(number) and not isinstance(number, int):
                needed = "an integer step" if name == "step" else "integer ends"
                found.append(f"{name}={number!r}: an int needs {needed}; for other numbers: Float, or type: float")
    if not isinstance(parameter.log, bool):
        found.append(f"log={parameter.log!r}: must be true or false")
    if isinstance(prior, Prior):
        numbers |= {"prior.center": prior.center, "prior.spread": prior.spread}
    elif prior is not None:
        found.append(f"prior={prior!r}: a number's prior is Prior(center=VALUE, spread=SHARE OF THE RANGE)")
    return [*(f"{name}={n!r}: is not a number" for name, n in numbers.items() if not _is_number(n)), *found]


def _choice_fault(choice: Any) -> str:
    """Return why a value cannot be a choice; empty if it can."""
    if choice is None:
        return "choices: null would mean that the parameter is not active; write it as a text: 'none' (in quotes)"
    if isinstance(choice, (list, tuple, dict, set)):
        name = "-".join(map(str, choice))
        return f"choices: {choice!r} is a {type(choice).__name__}; name it by a text, such as '{name}', and look it up"
    if not isinstance(choice, (str, bool, int, float, np.integer, np.floating)):
        return f"choices: {choice!r} is a {type(choice).__name__}; accepted: texts, numbers, true and false"
    if isinstance(choice, (float, np.floating)) and not math.isfinite(choice):
        return f"choices: {choice!r} is not a finite number; accepted: texts, finite numbers, true and false"
    if choice == "":
        return "choices: '' would mean that the parameter is not active; write it as a text: 'none'"
    return ""


def same(choice: Value, value: Value) -> bool:
    """Return whether two values are the same: 1 and 1.0 are, 1 and true are not."""
    return choice == value and isinstance(choice, bool) == isinstance(value, bool)


def _several(values: Value | Sequence[Value]) -> tuple[Value, ...]:
    if isinstance(values, Sequence) and not isinstance(values, str):
        return tuple(values)
    return (values,)


def _position(parameter: Number, value: float) -> float:
    """Return the position of any number of the range, integer or not."""
    low, high = float(parameter.low), float(parameter.high)
    if parameter.fixed:
        return 0.5
    if parameter.step is not None:
        low, high = low - parameter.step / 2, high + parameter.step / 2
    elif isinstance(parameter, Integer):
        low, high = low - 0.5, high + 0.5
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _range_faults(low: float, high: float, log: bool) -> list[str]:
    if not (math.isfinite(low) and math.isfinite(high)):
        return [f"the ends must be finite, not {low:g} and {high:g}"]
    if not math.isfinite(high - low):
        return [f"the range from {low:g} to {high:g} is wider than a number can say; use a log scale or another unit"]
    faults = []
    if low > high:
        faults.append(f"empty range: low {low:g} must not be above high {high:g}")
    if log and low <= 0:
        faults.append(f"a log scale needs low above 0, not {low:g}")
    return faults


def _step_faults(parameter: Number) -> list[str]:
    """Return the faults of a number's step; empty if there are none, or if the range itself is wrong."""
    low, high, step = parameter.low, parameter.high, parameter.step
    if step is None:
        return []
    if not (math.isfinite(step) and step > 0):
        return [f"step={_text(step)}: must be above 0, such as {'8' if isinstance(parameter, Integer) else '0.05'}"]
    if parameter.log:
        values = "{ordered: [8, 16, 32, 64]}"
        return [f"step and log do not go together; leave one out, or list the values in their order: {values}"]
    if not (math.isfinite(high - low) and low < high):
        return []
    if step < LEAST_STEP * max(abs(low), abs(high), high - low):
        return [f"step={_text(step)}: is too small to tell its values apart; leave it out"]
    whole = math.floor((high - low) / step)
    if min((high - low) / step - whole, whole + 1 - (high - low) / step) <= OFF_STEP:
        return []
    highs = [low + places * step for places in (whole, whole + 1) if places > 0]
    reached = f"high {_text(high)} is not reached from low {_text(low)} in steps of {_text(step)}"
    return [f"{reached}; the nearest that can be: high {' or '.join(map(_text, highs))}"]


def _bin(u: float, count: int) -> int:
    """Return which of `count` bins of equal width holds position `u` of the unit interval."""
    return min(int(min(max(u, 0.0), 1.0) * count), count - 1)


def _count(parameter: Float) -> int:
    if parameter.cardinality is None:
        raise ValueError("a real parameter without a step has no list of values")
    return parameter.cardinality


def _listed(parameter: Number) -> str:
    """Return the values of a number with a step, or of a fixed one, as a short text."""
    if parameter.fixed or parameter.step is None:
        return f"[{_text(parameter.low)}]"
    first, second = _text(parameter.low), _text(parameter.low + parameter.step)
    return f"[{first}, {second}, … {_text(parameter.high)}] (step {_text(parameter.step)})"


def _text(number: float) -> str:
    """Return a number as it would be written, without rounding noise."""
    return f"{number:.15g}"
