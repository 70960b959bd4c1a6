"""Search spaces: named parameters, and their mapping to the unit cube.

Every optimizer works in the unit cube ``[0, 1]^d`` (float64) and hands out *configurations*: plain dictionaries
from parameter name to a Python `float`, `int`, `str` or `bool`. `Space.decode` maps a point to a configuration and
`Space.encode` maps a configuration back to the canonical point that stands for it, so
``decode(encode(c)) == c`` always holds (for a real number up to rounding error), and the surrogate trains on the point
that was really evaluated. `hpo_cluster.space.parameters` has the parameters' own mapping.

The cube has an axis for each parameter that is searched, and a space iterates over these. A *fixed* parameter has one
value: it stands in every configuration in which it is active and has no axis, nor has a parameter that no
configuration holds because a fixed one keeps it inactive. Where nothing is left to search the first parameter has the
only axis, so that there is a cube, of one configuration.

A parameter may be *conditional*: active only where its parents have certain values. A configuration holds the active
parameters alone, and the canonical coordinate of an inactive one is 0.5. *Constraints* between the parameters
(`hpo_cluster.space.constraints`) say which configurations are allowed; a point of the cube may stand for one that is
not, so optimizers ask `Space.allows`. *Priors* do not change the mapping: `Space.warp` takes uniform points to such as
the priors make likely. *Starting points* are configurations to be evaluated first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.errors import ConfigError
from hpo_cluster.space.conditional import Value, same
from hpo_cluster.space.constraints import Constraint
from hpo_cluster.space.definition import (
    SPACE_KEYS,
    entry_fault,
    not_a_space,
    parameter_faults,
    parents_first,
    read_constraints,
    read_lists,
    unknown_parameter,
)
from hpo_cluster.space.parameters import Parameter, parameter_from_json, parameter_to_json

Configuration: TypeAlias = dict[str, Value]

#: Canonical coordinate of an inactive parameter.
INACTIVE = 0.5

#: Number of random configurations that show whether the constraints allow anything, and how many must be allowed.
PROBES, LEAST_ALLOWED = 10_000, 5

#: Largest number of combinations of parents' values for which the size of a conditional space is counted.
COUNTED = 10_000


class Space:
    """An ordered set of named parameters, the constraints between them, and where to start.

    Args:
        parameters: the parameters by name, in the order of the unit cube's axes.
        constraints: comparisons such as ``"a + b <= 1"``; see `hpo_cluster.space.constraints`. One that names an
            inactive parameter does not apply.
        start: configurations that are evaluated first, with any optimizer. They may be partial: a parameter that is
            left out takes the middle of its range, or of its prior.

    Raises:
        ConfigError: naming everything that is wrong: ranges, conditions on unknown parameters or in a circle,
            constraints that cannot be read or allow (almost) nothing, starting points that are not allowed.

    Example:
        >>> space = Space({"rank": Integer(2, 64), "rate": Float(0.0, 1.0)}, ["rank * rate <= 10"])
        >>> space.names
        ('rank', 'rate')
        >>> space.decode([0.0, 0.5])
        {'rank': 2, 'rate': 0.5}
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        constraints: Sequence[str] = (),
        start: Sequence[Mapping[str, Value]] = (),
    ) -> None:
        if not isinstance(parameters, Mapping):
            raise ConfigError([not_a_space(parameters)])
        texts, points, faults = read_lists({"constraints": constraints, "start": start})
        sound = {name: p for name, p in parameters.items() if isinstance(p, Parameter) and not p.faults()}
        parsed, unread = read_constraints(texts, sound, parameters)
        faults = [*parameter_faults(parameters, parameters), *faults, *unread]
        if faults:
            raise ConfigError(faults)
        self.parameters: dict[str, Parameter] = dict(parameters)
        self.constraints: tuple[Constraint, ...] = parsed
        self._order, _ = parents_first(parameters)
        self._conditions = {name: p.conditions for name, p in parameters.items() if p.when}
        self._axes = self._searched()
        if self.constraints and (fault := self._feasibility_fault()):
            faults.append(fault)
        self.start: tuple[Configuration, ...] = ()
        if not faults:
            self.start, faults = self._started(points)
        if faults:
            raise ConfigError(faults)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters, in the order in which they were given."""
        return tuple(self.parameters)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the parameters that are searched, in the order of the cube's axes."""
        return tuple(self._axes)

    @property
    def order(self) -> tuple[str, ...]:
        """Names in an order in which every parameter comes after those that its condition names."""
        return self._order

    @property
    def dim(self) -> int:
        """Number d of parameters that are searched, which is the number of the cube's axes."""
        return len(self._axes)

    @functools.cached_property
    def parents(self) -> frozenset[str]:
        """Parameters on which others depend."""
        return frozenset(parent for conditions in self._conditions.values() for parent in conditions)

    @functools.cached_property
    def size(self) -> float:
        """Number of distinct configurations; infinite with a real parameter.

        It is an upper bound if there are constraints, which are not taken into account, or if the parents of
        conditional parameters have more than `COUNTED` combinations of values.
        """
        if any(p.cardinality is None for _, p in self):
            return math.inf
        parents = [name for name in self.order if name in self.parents]
        counts = {name: (self._axes[name].cardinality or 0) if name in self._axes else 1 for name in self.names}
        if not parents or math.prod(counts[name] for name in parents) > COUNTED:
            return float(math.prod(counts.values()))
        others = [name for name in self.order if name not in self.parents]
        total = 0
        for configuration in self.combinations(parents):
            total += math.prod(counts[name] for name in others if self.is_active(name, configuration))
        return float(total)

    def __iter__(self) -> Iterator[tuple[str, Parameter]]:
        return iter(self._axes.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Space) or list(self.parameters.items()) != list(other.parameters.items()):
            return False
        return self.constraints == other.constraints and self.start == other.start

    def __repr__(self) -> str:
        more = f", constraints={[c.text for c in self.constraints]!r}" if self.constraints else ""
        more += f", start={list(self.start)!r}" if self.start else ""
        return f"Space({self.parameters!r}{more})"

    def is_active(self, name: str, configuration: Mapping[str, Value]) -> bool:
        """Return whether a parameter is active in a configuration, which needs to hold only its active parents."""
        return all(
            parent in configuration and any(same(value, configuration[parent]) for value in values)
            for parent, values in self._conditions.get(name, {}).items()
        )

    def _searched(self) -> dict[str, Parameter]:
        """Return the parameters that have an axis."""
        never = set[str]()  # kept inactive by fixed parameters
        for name in self._order:
            for parent, values in self._conditions.get(name, {}).items():
                held = self.parameters[parent]
                lacks = held.fixed and not any(same(value, held.decode(INACTIVE)) for value in values)
                if lacks or parent in never:
                    never.add(name)
        found = {name: p for name, p in self.parameters.items() if not p.fixed and name not in never}
        return found or {self._order[0]: self.parameters[self._order[0]]}

    def decode(self, point: Sequence[float] | NDArray[np.float64]) -> Configuration:
        """Return the configuration at a point of the unit cube (``d``): active parameters, in the order of `names`."""
        if len(point) != self.dim:
            raise ValueError(f"the point has {len(point)} coordinates, the space {self.dim}")
        if not self._conditions and self.dim == len(self.parameters):
            return {name: p.decode(float(u)) for (name, p), u in zip(self, point, strict=True)}
        at, found = dict(zip(self._axes, point, strict=True)), Configuration()
        for name in self._order:
            if self.is_active(name, found):
                found[name] = self.parameters[name].decode(float(at.get(name, INACTIVE)))
        return {name: found[name] for name in self.parameters if name in found}

    def encode(self, configuration: Mapping[str, Value]) -> NDArray[np.float64]:
        """Return the canonical point (``d``, unit cube, float64) of a configuration; inactive parameters are at 0.5.

        Raises:
            ConfigError: naming all missing, superfluous and out-of-range values. Constraints are not checked.
        """
        faults = self._value_faults(configuration)
        if faults:
            raise ConfigError(faults)
        return np.array(
            [p.encode(configuration[name]) if name in configuration else INACTIVE for name, p in self],
            dtype=np.float64,
        )

    def snap(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move each point (``n x d``) to the canonical point of its configuration."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, self.dim)
        out = np.clip(points, 0.0, 1.0)
        for axis, (_, parameter) in enumerate(self):
            if parameter.cardinality is not None:
                out[:, axis] = _canonical(parameter, points[:, axis])
        return np.where(self.active(out), out, INACTIVE) if self._conditions else out

    def active(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of the searched parameters are active at each point (``n x d``)."""
        if not self._conditions:
            return np.ones((len(points), self.dim), dtype=np.bool_)
        found = {name: np.ones(len(points), dtype=np.bool_) for name in self.names}
        axes = {name: axis for axis, name in enumerate(self._axes)}
        places = {n: _canonical(self.parameters[n], points[:, axes[n]]) for n in self.parents if n in axes}
        for name in self._order:
            for parent, values in self._conditions.get(name, {}).items():
                found[name] = found[name] & found[parent]
                if parent in axes and not self.parameters[parent].fixed:
                    wanted = [self.parameters[parent].encode(value) for value in values]
                    found[name] &= np.isin(places[parent], wanted)
        return np.stack([found[name] for name in axes], axis=1)

    def allows(self, configuration: Mapping[str, Value]) -> bool:
        """Return whether a configuration of the space satisfies all constraints that apply to it."""
        return all(constraint.holds(configuration) for constraint in self.constraints)

    def allowed(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points (``n x d``) stand for configurations that are allowed (``n``)."""
        if not self.constraints:
            return np.ones(len(points), dtype=np.bool_)
        return np.array([self.allows(self.decode(row)) for row in points], dtype=np.bool_)

    def warp(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (``n x d``) distributed as the priors, for uniform ones; without priors, the same points."""
        if not self.has_prior:
            return points
        out = np.array(points, dtype=np.float64)
        for axis, (_, parameter) in enumerate(self):
            if parameter.prior is not None:
                out[:, axis] = [parameter.warp(float(u)) for u in out[:, axis]]
        return out

    @functools.cached_property
    def has_prior(self) -> bool:
        """Whether any parameter has a prior."""
        return any(parameter.prior is not None for _, parameter in self)

    def log_prior(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the logarithm (``n``) of the priors' joint density at points (``n x d``), relative to uniform.

        Inactive parameters do not count.
        """
        total, active = np.zeros(len(points)), self.active(points)
        for axis, (_, parameter) in enumerate(self):
            if parameter.prior is not None:
                values = [parameter.log_prior(float(u)) for u in points[:, axis]]
                total += np.where(active[:, axis], values, 0.0)
        return total

    def check(self, configuration: Mapping[str, Value]) -> None:
        """Raise ConfigError naming all missing, unknown, inactive and out-of-range values and broken constraints."""
        faults = self._value_faults(configuration)
        if not faults:
            faults = [f"is not allowed: {c.text}" for c in self.constraints if not c.holds(configuration)]
        if faults:
            raise ConfigError(faults)

    def complete(self, partial: Mapping[str, Value]) -> Configuration:
        """Return a full configuration with the values of a partial one.

        A parameter that is left out takes the middle of its range or of its prior. If parameters in `partial` depend on
        it, it takes the first value with which they are active.
        """
        found = Configuration()
        for name in self._order:
            parameter = self.parameters[name]
            if name in partial:
                found[name] = partial[name]
            elif self.is_active(name, found):
                children = [p for child, p in self.parameters.items() if child in partial and name in p.when]
                wanted = [] if parameter.fixed else [child.conditions[name][0] for child in children]
                found[name] = wanted[0] if wanted else parameter.decode(parameter.warp(0.5))
        return {name: found[name] for name in self.parameters if name in found}

    def combinations(self, names: Sequence[str]) -> Iterator[Configuration]:
        """Yield every combination of the active values of discrete parameters; the last parameter changes fastest.

        Args:
            names: names of parameters, each after its parents, as in `order`. With all names, the combinations are
                configurations.

        Raises:
            ValueError: if an active parameter among them is real.
        """
        return self._extended({}, names)

    def _extended(self, found: Configuration, names: Sequence[str]) -> Iterator[Configuration]:
        if not names:
            yield found
            return
        name, rest = names[0], names[1:]
        if not self.is_active(name, found):
            yield from self._extended(found, rest)
            return
        parameter = self.parameters[name]
        if parameter.cardinality is None:
            raise ValueError(f"{name} is real: it has no list of values")
        for value in parameter.values:
            yield from self._extended({**found, name: value}, rest)

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain data, in the form of a file of ``conf/space/``, without unused fields."""
        out: dict[str, Any] = {name: parameter_to_json(parameter) for name, parameter in self.parameters.items()}
        if self.constraints:
            out["constraints"] = [constraint.text for constraint in self.constraints]
        if self.start:
            out["start"] = [dict(configuration) for configuration in self.start]
        return out

    @classmethod
    def of(cls, given: Space | Mapping[str, Any]) -> Space:
        """Return a space as it is, or the one that a mapping describes (`from_json`). Raises ConfigError."""
        return given if isinstance(given, Space) else cls.from_json(given)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Space:
        """Return a space from plain data, in the form of `to_json` or in a short form.

        A short form is ``{"lr": {"low": 1e-5, "high": 1e-1, "log": True}}``.

        Without a `type`, choices make a categorical, two integer ends an int, anything else a float; ``type: bool``
        is a categorical of False and True; ``{"ordered": [2, 4, 8]}`` is one of ordered choices. ``when`` and
        ``prior`` are next to the range or the choices. A bare number, text or boolean, ``{"batch_size": 16}``, is a
        fixed parameter. The keys ``constraints`` and ``start`` are not parameters. A parameter object stands for
        itself.

        Raises:
            ConfigError: naming every fault of every parameter.
        """
        if not isinstance(data, Mapping):
            raise ConfigError([not_a_space(data)])
        constraints, start, faults = read_lists(data)
        parameters: dict[str, Parameter] = {}
        names = [name for name in data if name not in SPACE_KEYS]
        for name in names:
            if fault := entry_fault(name, data[name]):
                faults.append(f"space.{name}={data[name]!r}: {fault}")
                continue
            try:
                entry = data[name] if isinstance(data[name], (Mapping, Parameter)) else {"choices": [data[name]]}
                parameters[name] = entry if isinstance(entry, Parameter) else parameter_from_json(entry)
            except (ValueError, TypeError) as error:
                faults.append(f"space.{name}: {error}")
        if faults:
            others = parameter_faults(parameters, names) if names else []
            raise ConfigError([*faults, *others, *read_constraints(constraints, parameters, names)[1]])
        return cls(parameters, constraints, start)

    def _value_faults(self, configuration: Mapping[str, Value]) -> list[str]:
        faults = [unknown_parameter(name, self.parameters) for name in configuration if name not in self.parameters]
        for name, parameter in self.parameters.items():
            active = self.is_active(name, configuration) if name in self._conditions else True
            if name not in configuration:
                faults += [f"{name}: has no value"] if active else []
            elif not active:
                faults.append(f"{name}: is active only when {_condition(parameter)}")
            else:
                try:
                    parameter.encode(configuration[name])
                except (ValueError, TypeError) as error:
                    faults.append(f"{name}: {error}")
        return faults

    def _started(self, start: Sequence[Mapping[str, Value]]) -> tuple[tuple[Configuration, ...], list[str]]:
        """Return the starting points as full configurations, and their faults."""
        found, faults = list[Configuration](), list[str]()
        for index, partial in enumerate(start):
            where = f"space.start[{index}]"
            unknown = [name for name in partial if name not in self.parameters]
            if unknown:
                faults += [f"{where}.{unknown_parameter(name, self.parameters)}" for name in unknown]
                continue
            whole = self.complete(partial)
            try:
                self.check(whole)
                found.append({name: _plain(self.parameters[name], value) for name, value in whole.items()})
            except ConfigError as error:
                added = ", ".join(f"{name}={value}" for name, value in whole.items() if name not in partial)
                hint = f" (with {added}, which it leaves open)" if added else ""
                for fault in error.faults:
                    name = fault.partition(":")[0]
                    named = name in self.parameters
                    faults.append(f"{where}.{fault}" if named else f"{where}: {fault}{hint}")
        return tuple(found), faults

    def _feasibility_fault(self) -> str | None:
        """Return a fault if the constraints leave (almost) nothing of the space; None if they leave enough."""
        rng = np.random.default_rng(0)
        good, held = 0, [0] * len(self.constraints)
        small = self.size <= PROBES
        drawn = np.empty((0, self.dim)) if small else self.warp(rng.random((PROBES, self.dim)))
        probes = 0
        for configuration in self.combinations(self._order) if small else map(self.decode, drawn):
            probes += 1
            holds = [constraint.holds(configuration) for constraint in self.constraints]
            held = [count + hold for count, hold in zip(held, holds, strict=True)]
            good += all(holds)
            if good == (1 if small else LEAST_ALLOWED):
                return None
        counts = dict(zip((constraint.text for constraint in self.constraints), held, strict=True))
        drawn_from = f"the {probes} configurations" if small else f"{probes} random configurations"
        found = f"only {good} of {drawn_from} satisfy all"
        if never := [text for text, count in counts.items() if not count]:
            found = f"none of {drawn_from} satisfies {' or '.join(never)}"
        elif len(counts) > 1:
            found += f" ({', '.join(f'{count} satisfy {text}' for text, count in counts.items())})"
        return (
            f"space.constraints: {found}; widen the ranges, or express one parameter by the others where an equality "
            "is meant"
        )


def _canonical(parameter: Parameter, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the canonical coordinates (``n``) of the values at these coordinates."""
    return np.array([parameter.encode(parameter.decode(u)) for u in coordinates.tolist()], dtype=np.float64)


def _plain(parameter: Parameter, value: Value) -> Value:
    """Return a value in the parameter's own type: 8 for 8.0 of an integer."""
    return float(value) if parameter.cardinality is None else parameter.decode(parameter.encode(value))


def _condition(parameter: Parameter) -> str:
    parts = [f"{parent} is {' or '.join(map(str, values))}" for parent, values in parameter.conditions.items()]
    return " and ".join(parts)
