"""Test functions with known optima, each with its search space: for tests, demonstrations and benchmarks.

All are minimised, as in the literature. They need numpy only, so that a job that evaluates one starts at once.

References: M. Molga and C. Smutnicki, "Test functions for optimization needs", 2005; L. C. W. Dixon and G. P. Szegö,
"Towards Global Optimisation 2", 1978 (Branin, Hartmann); D. M. Himmelblau, "Applied Nonlinear Programming", 1972; E.
Zitzler, K. Deb and L. Thiele, "Comparison of Multiobjective Evolutionary Algorithms: Empirical Results", Evolutionary
Computation 8(2), 2000 (ZDT1); K. Deb et al., "Scalable Test Problems for Evolutionary Multiobjective Optimization",
2005 (DTLZ2); T. T. Binh and U. Korn, "MOBES: A Multiobjective Evolution Strategy for Constrained Optimization
Problems", 1997 (BNH).
`cliff` is our own model of fine-tuning: a long slope up to a plateau, the best learning rate near its edge, and the
accuracy of guessing beyond the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.goals import Bound
from hpo_cluster.space import Configuration, Float, Integer, Parameter, Space, Value


@dataclass(frozen=True)
class TestFunction:
    """A function to minimise, with its domain and its known optimum.

    Args:
        name: key of the function in `FUNCTIONS`.
        space: domain of the function.
        function: maps a point (``d``, in the parameters' own units and in the order of the space) to its value.
        optimum: lowest value.
        at: a configuration with that value, to the precision given in the literature.
    """

    __test__ = False  # pytest would collect it as a class of tests, because of its name

    name: str
    space: Space
    function: Callable[[NDArray[np.float64]], float]
    optimum: float
    at: Configuration

    direction = "minimize"

    def evaluate(self, configuration: Mapping[str, Value]) -> float:
        """Return the value at a configuration. Raises ConfigError if the configuration lies outside the space."""
        self.space.check(configuration)
        return float(self.function(np.array([configuration[name] for name in self.space.names], dtype=np.float64)))


def himmelblau(x: NDArray[np.float64]) -> float:
    """Return the Himmelblau function at ``x`` (2): four minima of value 0, one of them at (3, 2)."""
    return float((x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2)


def branin(x: NDArray[np.float64]) -> float:
    """Return the Branin function at ``x`` (2): three minima of value 0.397887."""
    b, c = 5.1 / (4 * math.pi**2), 5 / math.pi
    return float((x[1] - b * x[0] ** 2 + c * x[0] - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x[0]) + 10)


_HARTMANN_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(x: NDArray[np.float64]) -> float:
    """Return the Hartmann function at ``x`` (6, in the unit cube): six minima, the lowest is -3.32237."""
    return float(-_HARTMANN_ALPHA @ np.exp(-(_HARTMANN_A * (x - _HARTMANN_P) ** 2).sum(axis=1)))


def ackley(x: NDArray[np.float64]) -> float:
    """Return the Ackley function at ``x`` (any length): many ripples over one funnel, minimum 0 at the origin."""
    root = math.sqrt(float(np.mean(x**2)))
    return float(-20 * math.exp(-0.2 * root) - math.exp(float(np.mean(np.cos(2 * math.pi * x)))) + 20 + math.e)


#: Minimum of the shifted Ackley functions: away from the centre of the domain, which many designs evaluate.
ACKLEY_SHIFT = (7.3, -11.9, 4.1, -16.4, 13.7)


def ackley_shifted(x: NDArray[np.float64]) -> float:
    """Return `ackley` with its minimum moved to `ACKLEY_SHIFT`, at ``x`` (5)."""
    return ackley(x - np.array(ACKLEY_SHIFT))


def ackley_mixed(x: NDArray[np.float64]) -> float:
    """Return `ackley_shifted` with its minimum at integers in the first two variables, which are integers."""
    return ackley(x - np.array([7.0, -12.0, *ACKLEY_SHIFT[2:]]))


def rosenbrock(x: NDArray[np.float64]) -> float:
    """Return the Rosenbrock function at ``x`` (length 2 or more): a curved valley, minimum 0 at (1, ..., 1)."""
    return float(np.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def levy(x: NDArray[np.float64]) -> float:
    """Return the Levy function at ``x`` (any length): ripples over a bowl, minimum 0 at (1, ..., 1)."""
    w = 1 + (x - 1) / 4
    inner = (w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2)
    last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return float(math.sin(math.pi * w[0]) ** 2 + inner.sum() + last)


#: `cliff`: error rate of guessing, lowest error rate, log10 of the best effective learning rate and of the edge.
CLIFF_CHANCE, CLIFF_BEST, CLIFF_OPTIMUM, CLIFF_EDGE = 0.75, 0.2, -2.7, -2.45


def cliff(x: NDArray[np.float64]) -> float:
    """Return an error rate that behaves like one of fine-tuning: its minimum, 0.2, is close to the edge of a cliff.

    The effective learning rate is ``s = log10(learning_rate) + log10(alpha / rank) / 2``. Far below the optimum the
    error is that of guessing, 0.75; it falls to a plateau and a shallow optimum. A quarter of a decade above the
    optimum is the edge; beyond it (40 % of the space) the error is 0.75 again. Dropout increases the error a little;
    weight decay has no effect.

    Args:
        x: rank, alpha, dropout, learning rate, weight decay (``5``).
    """
    rank, alpha, dropout, learning_rate, _ = x
    s = math.log10(learning_rate) + 0.5 * math.log10(alpha / rank)
    if s > CLIFF_EDGE:
        return CLIFF_CHANCE
    t = s - CLIFF_OPTIMUM
    learned = 0.85 / (1 + (t / 2.5) ** 4) + 0.15 * math.exp(-((t / 0.5) ** 2))
    return float(CLIFF_CHANCE - (CLIFF_CHANCE - CLIFF_BEST) * learned * (1 - 0.1 * dropout))


def _cube(dim: int, low: float, high: float) -> Space:
    return Space({f"x{i + 1}": Float(low, high) for i in range(dim)})


def _at(space: Space, *values: Value) -> Configuration:
    return dict(zip(space.names, values, strict=True))


def _make() -> dict[str, TestFunction]:
    plane, box = _cube(2, -5.0, 5.0), Space({"x1": Float(-5.0, 10.0), "x2": Float(0.0, 15.0)})
    unit6, wide5 = _cube(6, 0.0, 1.0), _cube(5, -32.768, 32.768)
    whole: dict[str, Parameter] = {f"x{i}": Integer(-32, 32) for i in (1, 2)}
    mixed = Space(whole | {f"x{i}": Float(-32.768, 32.768) for i in (3, 4, 5)})
    valley, bowl = _cube(5, -5.0, 10.0), _cube(5, -10.0, 10.0)
    lora = Space(
        {
            "rank": Integer(2, 64),
            "alpha": Integer(1, 64),
            "dropout": Float(0.0, 0.5),
            "learning_rate": Float(1e-6, 1.0, log=True),
            "weight_decay": Float(1e-5, 1e-1, log=True),
        }
    )
    best6 = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
    functions = [
        TestFunction("himmelblau", plane, himmelblau, 0.0, _at(plane, 3.0, 2.0)),
        TestFunction("branin", box, branin, 0.39788735772973816, _at(box, math.pi, 2.275)),
        TestFunction("hartmann6", unit6, hartmann6, -3.322368011391339, _at(unit6, *best6)),
        TestFunction("ackley", wide5, ackley, 0.0, _at(wide5, *[0.0] * 5)),
        TestFunction("ackley_shifted", wide5, ackley_shifted, 0.0, _at(wide5, *ACKLEY_SHIFT)),
        TestFunction("ackley_mixed", mixed, ackley_mixed, 0.0, _at(mixed, 7, -12, *ACKLEY_SHIFT[2:])),
        TestFunction("rosenbrock", valley, rosenbrock, 0.0, _at(valley, *[1.0] * 5)),
        TestFunction("levy", bowl, levy, 0.0, _at(bowl, *[1.0] * 5)),
        TestFunction("cliff", lora, cliff, CLIFF_BEST, _at(lora, 16, 16, 0.0, 10**CLIFF_OPTIMUM, 1e-3)),
    ]
    return {function.name: function for function in functions}


FUNCTIONS: dict[str, TestFunction] = _make()


@dataclass(frozen=True)
class SeveralFunctions:
    """Functions to minimise at once, with their domain and constraints on further functions.

    Args:
        name: key in `SEVERAL`.
        space: domain of the functions.
        functions: maps a point (``d``) to the values.
        metrics: names of the values that are minimised, in the order in which `functions` returns them.
        constraints: bounds of the values that follow.
    """

    name: str
    space: Space
    functions: Callable[[NDArray[np.float64]], tuple[float, ...]]
    metrics: tuple[str, ...]
    constraints: tuple[Bound, ...] = ()

    def evaluate(self, configuration: Mapping[str, Value]) -> dict[str, float]:
        """Return the values by name. Raises ConfigError if the configuration lies outside the space."""
        self.space.check(configuration)
        point = np.array([configuration[name] for name in self.space.names], dtype=np.float64)
        names = (*self.metrics, *(bound.name for bound in self.constraints))
        return {name: float(value) for name, value in zip(names, self.functions(point), strict=True)}


def zdt1(x: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the two functions of ZDT1 at ``x`` (length 2 or more): the front is ``f2 = 1 - sqrt(f1)``."""
    g = 1 + 9 * float(np.mean(x[1:]))
    return float(x[0]), g * (1 - math.sqrt(x[0] / g))


def dtlz2(x: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the three functions of DTLZ2 at ``x`` (length 3 or more): the front is an eighth of the unit sphere."""
    radius = 1 + float(np.sum((x[2:] - 0.5) ** 2))
    a, b = x[0] * math.pi / 2, x[1] * math.pi / 2
    return (
        radius * math.cos(a) * math.cos(b),
        radius * math.cos(a) * math.sin(b),
        radius * math.sin(a),
    )


def bnh(x: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the two functions and the two constrained ones of BNH at ``x`` (2)."""
    return (
        float(4 * x[0] ** 2 + 4 * x[1] ** 2),
        float((x[0] - 5) ** 2 + (x[1] - 5) ** 2),
        float((x[0] - 5) ** 2 + x[1] ** 2),
        float((x[0] - 8) ** 2 + (x[1] + 3) ** 2),
    )


def _make_several() -> dict[str, SeveralFunctions]:
    box = Space({"x1": Float(0.0, 5.0), "x2": Float(0.0, 3.0)})
    bounds = (Bound("g1", at_most=25.0), Bound("g2", at_least=7.7))
    functions = [
        SeveralFunctions("zdt1", _cube(4, 0.0, 1.0), zdt1, ("f1", "f2")),
        SeveralFunctions("dtlz2", _cube(5, 0.0, 1.0), dtlz2, ("f1", "f2", "f3")),
        SeveralFunctions("bnh", box, bnh, ("f1", "f2"), bounds),
    ]
    return {several.name: several for several in functions}


SEVERAL: dict[str, SeveralFunctions] = _make_several()
