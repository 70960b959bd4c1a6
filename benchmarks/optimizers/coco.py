"""COCO's noiseless test functions in five dimensions, from the package coco-experiment: suites bbob and bbob-mixint.

Both have the same 24 functions (separable, moderately and ill conditioned, multimodal with and without structure).
``bbob``: five real variables in ±5. ``mixint``: four integer variables with 2, 4, 8 and 16 values and a real one. The
first instance of each function takes part: its optimum and rotation are the same for all seeds and contestants. The
functions are minimised; their values are negated here.

References: N. Hansen et al., "COCO: A Platform for Comparing Continuous Optimizers in a Black-Box Setting",
Optimization Methods and Software 36, 2021; T. Tusar, D. Brockhoff and N. Hansen, "Mixed-Integer Benchmark Problems for
Single- and Bi-Objective Optimization", GECCO 2019.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.optimizers.problems import Problem
from hpo_cluster.space import Float, Integer, Parameter, Space, Value

FUNCTIONS, DIMENSION, INSTANCE = 24, 5, 1
#: Values of the integer variables of ``mixint``: 0, 1, ... below these numbers.
ARITIES = (2, 4, 8, 16)
#: By which COCO multiplies each function, and with it the least value, in ``bbob-mixint``; it has no call for them.
SCALES = (
    *(1, 1e-3, 0.1, 0.1, 1, 0.01, 1, 0.01, 0.01, 1e-3, 0.01, 1e-4),
    *(0.1, 1, 0.1, 1, 10, 1, 10, 0.1, 1, 1, 10, 0.1),
)
SUITES = {"bbob": "bbob", "mixint": "bbob-mixint"}
BBOB, MIXINT = (tuple(f"{suite}_f{number:02d}" for number in range(1, FUNCTIONS + 1)) for suite in SUITES)
MODULE = "cocoex"


def missing() -> str:
    """Return why the functions are not available on this machine; empty if they are."""
    if importlib.util.find_spec(MODULE):
        return ""
    return "coco-experiment is not installed (pip install '.[peers]')"


@functools.cache
def make(name: str) -> Problem:
    """Return the problem of that name."""
    import cocoex

    suite, number = name.split("_f")
    function = function_of(suite, int(number))
    least = cocoex.BareProblem("bbob", int(number), DIMENSION, INSTANCE).best_value()
    whole = ARITIES if suite == "mixint" else ()
    parameters: dict[str, Parameter] = {f"x{i}": Integer(0, arity - 1) for i, arity in enumerate(whole, 1)}
    parameters |= {f"x{i}": Float(-5.0, 5.0) for i in range(len(whole) + 1, DIMENSION + 1)}
    space = Space(parameters)

    def truth(configuration: Mapping[str, Value]) -> float:
        return -float(function(np.array([float(configuration[key]) for key in space.names])))

    return Problem(name, space, truth, -least * (SCALES[int(number) - 1] if suite == "mixint" else 1.0))


def function_of(suite: str, number: int) -> Any:
    """Return COCO's function, to be minimised: its suite (a key of `SUITES`) and its number from 1."""
    import cocoex

    suite_ = cocoex.Suite(SUITES[suite], f"instances:{INSTANCE}", f"dimensions:{DIMENSION}")
    return suite_.get_problem(number - 1)
