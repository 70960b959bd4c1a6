"""Parameters of a search space, and their form as plain data (JSON): `Float`, `Integer` and `Categorical`.

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

from collections.abc import Mapping
from typing import Any, TypeAlias

from hpo_cluster.space.categorical import Categorical
from hpo_cluster.space.number import Float, Integer, Prior

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
