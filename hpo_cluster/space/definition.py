"""The definition of a space as it is given: reading it, and naming everything that is wrong with it at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_cluster.space.categorical import Categorical
from hpo_cluster.space.conditional import Value
from hpo_cluster.space.constraints import Constraint, ConstraintError, Kind, parse_constraint
from hpo_cluster.space.parameters import PARAMETER_FIELDS, Parameter
from hpo_cluster.text import instead_of

#: Columns of the history; a parameter cannot have one of these names.
RESERVED_NAMES = frozenset(
    {"trial", "state", "origin", "value", "value_sem", "target", "attempts", "job", "node", "submitted_at"}
    | {"started_at", "ended_at", "seed", "asked_seq", "ended_seq", "error"}
)

#: Keys of a space's JSON form that are not parameters.
SPACE_KEYS = ("constraints", "start")


def parameter_names(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters in a space's JSON form."""
    return [name for name in data if name not in SPACE_KEYS]


def read_lists(data: Mapping[str, Any]) -> tuple[list[str], list[Mapping[str, Value]], list[str]]:
    """Return the constraints and the starting points of a space's JSON form, and the faults of their form."""
    faults = []
    constraints = data.get("constraints") or []
    constraints = [constraints] if isinstance(constraints, str) else constraints
    if not isinstance(constraints, (list, tuple)) or not all(isinstance(text, str) for text in constraints):
        faults.append(f'space.constraints={constraints!r}: must be a list of comparisons, such as ["a + b <= 1"]')
        constraints = []
    start = data.get("start") or []
    start = [start] if isinstance(start, Mapping) and not _is_parameter(start) else start
    if not isinstance(start, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in start):
        faults.append(f"space.start={start!r}: must be a list of configurations; no parameter can have that name")
        start = []
    return list(constraints), list(start), faults


def _is_parameter(entry: Mapping[str, Any]) -> bool:
    return bool(entry) and set(entry) <= set(PARAMETER_FIELDS)


def not_a_space(given: Any) -> str:
    """Return the fault of a value that is not even a mapping."""
    accepted = "a mapping from names to parameters, such as {lr: {low: 1e-5, high: 1e-1, log: true}}"
    return f"space={given!r:.80}: is not a space; accepted: {accepted}"


def entry_fault(name: str, entry: Any) -> str:
    """Return why an entry of a space's JSON form is not a parameter; empty if it may be one.

    A bare value is a fixed parameter, but most likely a mistake if it has the name of a key that belongs elsewhere.
    """
    if isinstance(entry, (Mapping, Parameter)):
        return ""
    if isinstance(entry, (list, tuple)):
        values = ", ".join(map(str, entry))
        return f"is not a parameter; write {{choices: [{values}]}}, or {{ordered: [{values}]}} if neighbours are alike"
    if not isinstance(entry, (str, bool, int, float)):
        return "is not a parameter; accepted: a mapping such as {low: 1e-5, high: 1e-1, log: true}, or a fixed value"
    if name in PARAMETER_FIELDS:
        return f"{name} is a key of a parameter: indent it under one; to fix one of that name: {{choices: [VALUE]}}"
    if isinstance(entry, str) and (close := difflib.get_close_matches(name, SPACE_KEYS, n=1, cutoff=0.8)):
        return f"did you mean {close[0]}? To fix a parameter of that name: {{choices: [VALUE]}}"
    return ""


def parameter_faults(parameters: Mapping[str, Parameter], names: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return the faults of parameters and their conditions; `names` also holds parameters that could not be read."""
    faults = [] if names else ["the space has no parameter"]
    sound = set()
    strange = {name: entry for name, entry in parameters.items() if not isinstance(entry, Parameter)}
    accepted = "Float(0.0, 1.0), Integer(1, 8) or Categorical(['a', 'b']); plain data: Space.from_json"
    faults += [f"space.{name}={entry!r}: is not a parameter; accepted: {accepted}" for name, entry in strange.items()]
    parameters = {name: parameter for name, parameter in parameters.items() if name not in strange}
    for name, parameter in parameters.items():
        if not isinstance(name, str) or not name.isidentifier():
            faults.append(f"space.{name}: a parameter's name is letters, digits and underscores")
        if name in RESERVED_NAMES:
            faults.append(f"space.{name}: that name is a column of the history; choose another")
        if name in SPACE_KEYS:
            faults.append(f"space.{name}: that name is a key of the space; choose another")
        found = parameter.faults()
        faults += [f"space.{name}: {fault}" for fault in found]
        if not found:
            sound.add(name)
    for name, parameter in parameters.items():
        for parent, values in parameter.conditions.items():
            where = f"space.{name}.when"
            if parent not in names:
                faults.append(f"{where}.{unknown_parameter(parent, names)}")
            elif parent in sound:
                faults += [f"{where}.{parent}: {fault}" for fault in _parent_faults(parameters[parent], values)]
    _, circle = parents_first(parameters)
    if circle:
        faults.append(f"space: the conditions of {', '.join(circle)} go round in a circle")
    return faults


def _parent_faults(parent: Parameter, values: Sequence[Value]) -> list[str]:
    if parent.cardinality is None:
        return ["a condition needs a parent with single values: choices, booleans, integers or numbers with a step"]
    faults = [] if values else ["names no value"]
    for value in values if not parent.fixed else ():  # of a fixed one the values that it might have had are named
        try:
            exact = parent.decode(parent.encode(value))
            if exact != value:
                faults.append(f"{value!r} is not exactly a value of it; write {exact!r}")
        except (ValueError, TypeError) as error:
            faults.append(str(error))
    return faults


def parents_first(parameters: Mapping[str, Parameter]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names with parents before children, and the names whose conditions form a circle."""
    order: dict[str, None] = {}
    rest = list(parameters)
    while rest:
        ready = [n for n in rest if all(p in order or p not in parameters for p in parameters[n].conditions)]
        if not ready:
            break
        order[ready[0]] = None
        rest.remove(ready[0])
    return tuple(order), rest


def read_constraints(
    constraints: Sequence[str], parameters: Mapping[str, Parameter], names: Mapping[str, Any] | Sequence[str]
) -> tuple[tuple[Constraint, ...], list[str]]:
    """Return the constraints that could be read, and the faults of the others."""
    kinds: dict[str, Kind] = {n: _kind(parameters[n]) if n in parameters else "unknown" for n in names}
    choices = {n: p.choices for n, p in parameters.items() if kinds[n] == "text" and isinstance(p, Categorical)}
    found, faults = list[Constraint](), list[str]()
    for text in constraints:
        try:
            found.append(parse_constraint(text, kinds, choices))
        except ConstraintError as error:
            faults += [f"space.constraints, {text!r}: {fault}" for fault in error.faults]
    return tuple(found), faults


def _kind(parameter: Parameter) -> Kind:
    if not isinstance(parameter, Categorical):
        return "number"
    texts = [isinstance(choice, str) for choice in parameter.choices]
    if any(texts):
        return "text" if all(texts) else "mixed"
    return "bool" if all(isinstance(choice, bool) for choice in parameter.choices) else "number"


def unknown_parameter(name: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    """Return the fault of a name that is not one of `names`, with the name that may be meant."""
    return f"{name}: is not a parameter of the space; {instead_of(str(name), map(str, names))}"
