"""Real and integer parameters: their range, scale, step and prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from hpo_cluster.space.conditional import Conditional, Value, as_number, bin_of, is_number

#: How far a value may be from a step, and ``high`` from the last one: a share of the step, for rounding errors.
OFF_STEP = 1e-6

#: Smallest step of real values, as a share of the largest number of the range: smaller steps drown in rounding errors.
LEAST_STEP = 1e-9

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
        return bin_of(u, _count(self))

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
            return self.value(bin_of(u, self.cardinality))
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


def _plain_number(number: Any, *, whole: bool) -> Any:
    """Return a number of any type as a float or as an int, if it is one; anything else as it is."""
    if not is_number(number) or (whole and not float(number).is_integer()):
        return number
    return int(number) if whole else float(number)


def _type_faults(parameter: Number) -> list[str]:
    """Return what is wrong with the types of a number's fields; empty if nothing is."""
    prior, found = parameter.prior, parameter.condition_faults()
    numbers: dict[str, Any] = {"low": parameter.low, "high": parameter.high}
    if parameter.step is not None:
        numbers["step"] = parameter.step
    if isinstance(parameter, Integer):
        for name, number in numbers.items():
            if is_number(number) and not isinstance(number, int):
                needed = "an integer step" if name == "step" else "integer ends"
                found.append(f"{name}={number!r}: an int needs {needed}; for other numbers: Float, or type: float")
    if not isinstance(parameter.log, bool):
        found.append(f"log={parameter.log!r}: must be true or false")
    if isinstance(prior, Prior):
        numbers |= {"prior.center": prior.center, "prior.spread": prior.spread}
    elif prior is not None:
        found.append(f"prior={prior!r}: a number's prior is Prior(center=VALUE, spread=SHARE OF THE RANGE)")
    return [*(f"{name}={n!r}: is not a number" for name, n in numbers.items() if not is_number(n)), *found]


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
