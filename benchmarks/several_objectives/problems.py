"""The problems: known fronts with and without constraints, and accuracy against seconds of real fine-tunings.

References: E. Zitzler, K. Deb and L. Thiele, "Comparison of Multiobjective Evolutionary Algorithms: Empirical Results",
Evolutionary Computation 8(2), 2000 (ZDT1); K. Deb, L. Thiele, M. Laumanns and E. Zitzler, "Scalable Test Problems for
Evolutionary Multiobjective Optimization", 2005 (DTLZ2); H. Jain and K. Deb, "An Evolutionary Many-Objective
Optimization Algorithm Using Reference-Point Based Nondominated Sorting Approach, Part II", IEEE Transactions on
Evolutionary Computation 18(4), 2014 (C2-DTLZ2).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.goals import Bound, Goal, Goals, hypervolume, undominated
from hpo_cluster.objectives.benchmark_functions import SEVERAL
from hpo_cluster.objectives.benchmark_functions import zdt1 as zdt1_of
from hpo_cluster.space import Configuration, Float, Space, Value
from hpo_cluster.trial import derive_seed

Metrics = Mapping[str, float]
Array = NDArray[np.float64]

#: Radius of the feasible balls of C2-DTLZ2.
RADIUS = 0.2

#: Points of a known front that its volume is computed from.
FINE = 4000

#: `village`: worst accuracy and seconds of interest; the least seconds and the highest accuracy of its regressions.
VILLAGE_WORST, VILLAGE_BEST = (0.25, 10.0), (0.9247, 0.7)


@dataclass(frozen=True)
class Problem:
    """A problem of two objectives.

    Args:
        name: its key.
        space: where it is defined.
        goals: what is optimised, with reference points that the measure of the benchmark uses and contestants do not
            see, and the constraints.
        truth: noiseless metrics of a configuration.
        most: the hypervolume of the best front, or of the box between the reference and the best values.
        noise: standard deviations by metric, at the true metrics; None: without noise.
    """

    name: str
    space: Space
    goals: Goals
    truth: Callable[[Configuration], Metrics]
    most: float
    noise: Callable[[Metrics], Metrics] | None = None

    @property
    def open_goals(self) -> Goals:
        """The goals as contestants know them: without reference points."""
        return Goals(tuple(Goal(goal.name, goal.direction) for goal in self.goals.metrics), self.goals.constraints)

    def observe(self, configuration: Configuration, seed: int, trial: int) -> tuple[Metrics, Metrics]:
        """Return what the optimizer sees, and the true metrics. The noise depends on (problem, seed, trial)."""
        true = self.truth(configuration)
        if self.noise is None:
            return true, true
        rng = np.random.default_rng(derive_seed("noise", self.name, seed, trial))
        spread = self.noise(true)
        return {
            name: value + spread.get(name, 0.0) * float(rng.standard_normal()) for name, value in true.items()
        }, true


class Volume:
    """The share of the best hypervolume that the trials of a run dominate, by the true values of their observed front.

    Args:
        problem: what was evaluated.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._true: dict[tuple[float, ...], tuple[float, ...]] = {}  # observed targets of the front -> true ones

    def add(self, observed: Metrics, true: Metrics) -> float:
        """Take in a trial and return the share."""
        goals = self._problem.goals
        if goals.feasible(observed):
            self._true.setdefault(goals.targets(observed), goals.targets(true))
            front = undominated(self._true)
            self._true = {tuple(point): self._true[tuple(point)] for point in front}
        held = undominated(self._true.values())
        return hypervolume(held, goals.references) / self._problem.most


def dtlz2(x: Array) -> tuple[float, float]:
    """Return the two functions of DTLZ2 at ``x`` (length 2 or more): the front is a quarter of the unit circle."""
    radius, angle = 1 + float(np.sum((x[1:] - 0.5) ** 2)), float(x[0]) * math.pi / 2
    return radius * math.cos(angle), radius * math.sin(angle)


def c2(first: float, second: float) -> float:
    """Return the constraint of C2-DTLZ2, at most 0: the distance to the nearest of three balls on the circle."""
    middle = 1 / math.sqrt(2)
    squares = [(first - a) ** 2 + (second - b) ** 2 for a, b in ((1.0, 0.0), (0.0, 1.0), (middle, middle))]
    return min(squares) - RADIUS**2


def volume_of(front: Array, reference: tuple[float, float]) -> float:
    """Return the volume (minimisation) of a front of two objectives (``n x 2``)."""
    held = front[(front < reference).all(axis=1)]
    held = held[np.argsort(held[:, 0], kind="stable")]
    lowest = np.minimum.accumulate(held[:, 1])
    edges = np.append(held[1:, 0], reference[0])
    return float(((edges - held[:, 0]) * (reference[1] - lowest)).sum())


def _minimised(name: str, reference: tuple[float, float]) -> Goals:
    goals = tuple(Goal(f"f{i}", "minimize", edge) for i, edge in enumerate(reference, 1))
    return Goals(
        goals, (Bound("c", at_most=0.0),) if name == "c2dtlz2" else SEVERAL["bnh"].constraints * (name == "bnh")
    )


def _cube(dim: int) -> Space:
    return Space({f"x{i}": Float(0.0, 1.0) for i in range(1, dim + 1)})


def _point(configuration: Mapping[str, Value]) -> Array:
    return np.array(list(configuration.values()), dtype=np.float64)


def _named(values: tuple[float, ...]) -> dict[str, float]:
    return {f"f{i}": value for i, value in enumerate(values, 1)}


def zdt1() -> Problem:
    """Return ZDT1 in 6 dimensions: the front is ``f2 = 1 - sqrt(f1)``, far below what random points reach."""
    most = 1.1 * 1.1 - 1 / 3
    return Problem("zdt1", _cube(6), _minimised("zdt1", (1.1, 1.1)), lambda c: _named(zdt1_of(_point(c))), most)


def plain_dtlz2() -> Problem:
    """Return DTLZ2 of two objectives in 6 dimensions."""
    most = 1.1 * 1.1 - math.pi / 4
    return Problem("dtlz2", _cube(6), _minimised("dtlz2", (1.1, 1.1)), lambda c: _named(dtlz2(_point(c))), most)


def c2dtlz2() -> Problem:
    """Return C2-DTLZ2 of two objectives in 4 dimensions: three pieces of the circle are allowed."""
    angles = np.linspace(0, math.pi / 2, FINE)
    front = np.array([(math.cos(a), math.sin(a)) for a in angles if c2(math.cos(a), math.sin(a)) <= 0])

    def truth(configuration: Configuration) -> Metrics:
        values = dtlz2(_point(configuration))
        return {**_named(values), "c": c2(*values)}

    reference = (1.1, 1.1)
    return Problem("c2dtlz2", _cube(4), _minimised("c2dtlz2", reference), truth, volume_of(front, reference))


def bnh() -> Problem:
    """Return BNH: a front in two pieces, ``x1 = x2`` up to 3 and ``x2 = 3`` after, with two mild constraints."""
    known, reference = SEVERAL["bnh"], (140.0, 50.0)
    along = np.linspace(0, 5, FINE)
    front = np.array([known.functions(np.array([x, min(x, 3.0)])) for x in along])
    held = front[(front[:, 2] <= 25.0) & (front[:, 3] >= 7.7)][:, :2]
    return Problem("bnh", known.space, _minimised("bnh", reference), known.evaluate, volume_of(held, reference))


def village() -> Problem:
    """Return validation accuracy against seconds: regressions on fine-tunings of the bundled model."""
    from benchmarks.village import surrogate
    from benchmarks.village.table import read_space

    worst, best = VILLAGE_WORST, VILLAGE_BEST
    goals = Goals((Goal("acc", "maximize", worst[0]), Goal("seconds", "minimize", worst[1])))
    most = (best[0] - worst[0]) * (worst[1] - best[1])

    def truth(configuration: Configuration) -> Metrics:
        return {"acc": surrogate.village()(configuration), "seconds": _seconds()(configuration)}

    return Problem("village", read_space(), goals, truth, most, lambda true: {"acc": surrogate.noise_at(true["acc"])})


@functools.cache
def _seconds() -> Callable[[Configuration], float]:
    from benchmarks.village.surrogate import Surrogate
    from benchmarks.village.table import load

    return Surrogate.fit(load(), "total_s")


#: Every problem by name, and how it is made.
PROBLEMS: Mapping[str, Callable[[], Problem]] = {
    "zdt1": zdt1,
    "dtlz2": plain_dtlz2,
    "c2dtlz2": c2dtlz2,
    "bnh": bnh,
    "village": village,
}


def missing(name: str) -> str:
    """Return why a problem cannot be made here; empty if it can."""
    if name not in PROBLEMS:
        return f"{name}: there is no such problem; there are {', '.join(PROBLEMS)}"
    absent = name == "village" and importlib.util.find_spec("sklearn") is None
    return "village: left out, scikit-learn is not installed (pip install '.[peers]')" if absent else ""
