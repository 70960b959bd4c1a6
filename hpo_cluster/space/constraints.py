"""Constraints between parameters: comparisons of arithmetic expressions, read with `ast` and never evaluated as Python.

    lora_alpha <= 2 * lora_rank
    1 <= use_query + use_key + use_value <= 2
    optimizer == "adam" or momentum < 0.5

Accepted are numbers, texts in quotes, names of parameters, ``+ - * / // % **``, ``min max abs sqrt log log2``, the
comparisons (chained ones too), ``and or not`` and parentheses. A boolean counts as 0 or 1. A text can only be compared
with a text, by ``==`` and ``!=``. ``<=``, ``>=`` and ``==`` forgive a relative rounding error of 1e-9.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from hpo_cluster.text import instead_of

Kind: TypeAlias = Literal["number", "bool", "text", "mixed", "unknown"]
_Compute: TypeAlias = Callable[[Mapping[str, Any]], Any]

#: Largest length of an expression, in characters: a longer one is most likely a mistake.
MAX_LENGTH = 1000

SLACK = 1e-9


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= SLACK * max(abs(a), abs(b))


def _remainder(a: float, b: float) -> float:
    return float(operator.mod(a, b))


_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _remainder,
    ast.Pow: math.pow,  # of a negative number to a fraction an error, not a complex number
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.LtE: lambda a, b: a <= b or _close(a, b),
    ast.GtE: lambda a, b: a >= b or _close(a, b),
    ast.Eq: _close,
    ast.NotEq: lambda a, b: not _close(a, b),
}
_FUNCTIONS: dict[str, tuple[Callable[..., float], bool]] = {  # and whether it takes several arguments
    "min": (min, True),
    "max": (max, True),
    "abs": (abs, False),
    "sqrt": (math.sqrt, False),
    "log": (math.log, False),
    "log2": (math.log2, False),
}
ACCEPTED = f"numbers, texts, parameters, + - * / // % **, {' '.join(_FUNCTIONS)}, comparisons, and, or, not"


@dataclass(frozen=True)
class Constraint:
    """A comparison that a configuration has to satisfy.

    Args:
        text: the expression as it was written.
        names: the parameters in it, in the order of their first use.
    """

    text: str
    names: tuple[str, ...]
    _compute: _Compute = field(repr=False, compare=False)

    def holds(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether a configuration satisfies the constraint.

        A constraint with an inactive parameter does not apply, and so holds. A constraint that cannot be computed
        (division by zero, logarithm of a negative number) does not hold.
        """
        if any(name not in configuration for name in self.names):
            return True
        try:
            return bool(self._compute(configuration))
        except (ArithmeticError, ValueError):
            return False


def parse_constraint(text: str, kinds: Mapping[str, Kind], choices: Mapping[str, Sequence[Any]]) -> Constraint:
    """Read one constraint.

    Args:
        text: the expression.
        kinds: kind of the values of each parameter.
        choices: choices of the parameters whose values are texts.

    Raises:
        ConstraintError: with every fault of the expression.
    """
    if len(text) > MAX_LENGTH:
        raise ConstraintError([f"is longer than {MAX_LENGTH} characters"])
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise ConstraintError([f"cannot be read ({reason}); accepted: {ACCEPTED}"]) from None
    reader = _Reader(text.strip(), kinds, choices)
    compute, kind = reader.read(tree.body)
    if not reader.faults and kind not in ("bool", "unknown"):
        reader.faults.append("is not a comparison; write one such as a + b <= 1")
    if not reader.faults and not reader.names:
        reader.faults.append("names no parameter")
    if reader.faults:
        raise ConstraintError(list(dict.fromkeys(reader.faults)))
    return Constraint(text, tuple(reader.names), compute)


class ConstraintError(Exception):
    """An expression is not a valid constraint; `faults` names every reason."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = list(faults)


class _Reader:
    """A reader of an expression's tree, which makes a function for each node and finds the kind of its value."""

    def __init__(self, text: str, kinds: Mapping[str, Kind], choices: Mapping[str, Sequence[Any]]) -> None:
        self.text, self.kinds, self.choices = text, kinds, choices
        self.names: dict[str, None] = {}
        self.faults: list[str] = []

    def read(self, node: ast.expr) -> tuple[_Compute, Kind]:
        """Return a function that computes a node, and its kind: unknown after a fault, which then causes no others."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return self._constant(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                inner = self._numbers(operand)
                return ((lambda c: -inner(c)) if isinstance(op, ast.USub) else inner), "number"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                truth = self._truth(operand)
                return (lambda c: not truth(c)), "bool"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                compute, a, b = _ARITHMETIC[type(op)], self._numbers(left), self._numbers(right)
                return (lambda c: compute(a(c), b(c))), "number"
            case ast.BoolOp(op=op, values=values):
                parts = [self._truth(value) for value in values]
                every = isinstance(op, ast.And)
                return (lambda c: (all if every else any)(part(c) for part in parts)), "bool"
            case ast.Compare(left=left, ops=ops, comparators=comparators) if all(type(o) in _COMPARISONS for o in ops):
                return self._comparison([left, *comparators], ops)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return self._call(name, args)
            case _:
                self.faults.append(f"{self._source(node)!r} is not accepted here; accepted: {ACCEPTED}")
                return _nothing, "unknown"

    def _constant(self, value: float | str | bool) -> tuple[_Compute, Kind]:
        if isinstance(value, str):
            return (lambda c: value), "text"
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        return (lambda c: number), "bool" if isinstance(value, bool) else "number"

    def _name(self, name: str) -> tuple[_Compute, Kind]:
        if name not in self.kinds:
            truth = name in ("true", "false")
            hint = f"did you mean {name.title()}?" if truth else instead_of(name, self.kinds)
            self.faults.append(f"{name!r} is not a parameter; {hint}")
            return _nothing, "unknown"
        self.names[name] = None
        kind = self.kinds[name]
        if kind == "mixed":
            self.faults.append(f"{name} has texts and numbers for choices: no constraint can compare them")
            return _nothing, "unknown"
        if kind == "text":
            return (lambda c: c[name]), kind
        return (lambda c: float(c[name])), kind

    def _call(self, name: str, args: Sequence[ast.expr]) -> tuple[_Compute, Kind]:
        function, several = _FUNCTIONS[name]
        if len(args) < 2 if several else len(args) != 1:
            self.faults.append(f"{name} takes {'two arguments or more' if several else 'one argument'}")
            return _nothing, "unknown"
        parts = [self._numbers(arg) for arg in args]
        return (lambda c: function(*(part(c) for part in parts))), "number"

    def _comparison(self, nodes: Sequence[ast.expr], ops: Sequence[ast.cmpop]) -> tuple[_Compute, Kind]:
        parts = [self.read(node) for node in nodes]
        tests = []
        for op, left, right, (a, one), (b, other) in zip(ops, nodes, nodes[1:], parts, parts[1:], strict=False):
            texts = "text" in (one, other)
            if texts:
                self._of_texts(op, left, right, one, other)
            equal = isinstance(op, ast.Eq)
            test = (lambda a, b, equal=equal: (a == b) is equal) if texts else _COMPARISONS[type(op)]
            tests.append((a, b, test))
        return (lambda c: all(test(a(c), b(c)) for a, b, test in tests)), "bool"

    def _of_texts(self, op: ast.cmpop, left: ast.expr, right: ast.expr, one: Kind, other: Kind) -> None:
        if "unknown" in (one, other):
            return
        if one != other or not isinstance(op, (ast.Eq, ast.NotEq)):
            source = f"{self._source(left)} and {self._source(right)}"
            self.faults.append(f"{source}: a text can only be compared with a text, by == and !=")
            return
        for name, text in ((left, right), (right, left)):
            if isinstance(name, ast.Name) and isinstance(text, ast.Constant) and name.id in self.choices:
                accepted = self.choices[name.id]
                if text.value not in accepted:
                    listed = ", ".join(accepted)
                    self.faults.append(f"{text.value!r} is not a choice of {name.id}; accepted: {listed}")

    def _numbers(self, node: ast.expr) -> _Compute:
        compute, kind = self.read(node)
        if kind == "text":
            self.faults.append(f"{self._source(node)} is a text: arithmetic needs numbers")
        return compute

    def _truth(self, node: ast.expr) -> _Compute:
        compute, kind = self.read(node)
        if kind not in ("bool", "unknown"):
            self.faults.append(f"{self._source(node)} is neither a comparison nor a boolean parameter")
        return compute

    def _source(self, node: ast.expr) -> str:
        return ast.get_source_segment(self.text, node) or ast.unparse(node)


def _nothing(_: Mapping[str, Any]) -> float:
    return math.nan
