"""DIRECT and DIRECT-L against a plain sequential program, and with many workers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from support import partition_references
from support.simulated import TROUBLE, Simulation, simulation, wavy
from support.spaces import SPACES

from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Float, Space

both = pytest.mark.parametrize("name", ["direct", "direct_l"])
every_space = pytest.mark.parametrize("space", [SPACES[key] for key in sorted(SPACES)], ids=sorted(SPACES))


@both
@every_space
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_worker_evaluates_what_the_sequential_program_does(name: str, space: Space, seed: int) -> None:
    mine = simulation(space, seed).run(make_optimizer(name, space), 60).evaluated
    theirs = partition_references.direct(space, wavy(space, seed), 60, name == "direct_l")
    assert mine == theirs
    assert len(theirs) == min(60, space.size)


@both
@every_space
@pytest.mark.parametrize(("workers", "trouble"), [(1, ()), (1, TROUBLE), (6, TROUBLE)])
def test_a_new_optimizer_gives_every_ask_again(name: str, space: Space, workers: int, trouble) -> None:
    run = simulation(space, 2, trouble).run(make_optimizer(name, space), 20, workers)
    assert len(run.asks) > 5
    for history, n, ask in run.asks:
        assert make_optimizer(name, space).ask(history, n) == ask


@both
@every_space
def test_rectangles_tile_the_space_and_nothing_is_evaluated_twice(name: str, space: Space) -> None:
    optimizer = make_optimizer(name, space)
    run = simulation(space, 5).run(optimizer, 80, workers=4)
    seen = [tuple(configuration.items()) for configuration in run.evaluated]
    assert len(set(seen)) == len(seen) == min(80, space.size)
    tree = optimizer.tree(run.history())
    nodes = tree.uncut()
    assert math.isclose(sum(tree.partition.volume(node.cell) for node in nodes), 1.0, abs_tol=1e-9)
    axes = tree.partition.axes
    ends = [[axis.ends(side) for axis, side in zip(axes, node.cell, strict=True)] for node in nodes]
    for point in np.random.default_rng(0).random((50, space.dim)):
        assert sum(all(a <= u < b for u, (a, b) in zip(point, sides, strict=True)) for sides in ends) == 1
    for node, sides in zip(nodes, ends, strict=True):
        assert all(a <= u < b for u, (a, b) in zip(node.u, sides, strict=True))
        assert space.decode(node.u) == node.evaluation.configuration


@both
def test_every_worker_is_busy_from_the_start(name: str) -> None:
    assert len(make_optimizer(name, SPACES["real"]).ask(pd.DataFrame(), 100).proposals) == 100


def test_a_division_is_as_in_the_paper() -> None:
    """The root: the centre, then a third to both sides of it along every axis."""
    space = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})
    asked = [tuple(c.values()) for c in simulation(space, 0).run(make_optimizer("direct", space), 5).evaluated]
    assert asked == [(0.5, 0.5), (1 / 6, 0.5), (5 / 6, 0.5), (0.5, 1 / 6), (0.5, 5 / 6)]


def test_it_agrees_with_scipy_s_on_what_is_good() -> None:
    """The same algorithm in another program, after as many evaluations (scipy completes its iterations)."""
    from scipy.optimize import direct

    function = FUNCTIONS["branin"]
    for name, biased in (("direct", False), ("direct_l", True)):
        bounds = [(p.low, p.high) for _, p in function.space]
        other = direct(function.function, bounds, maxfun=150, locally_biased=biased, vol_tol=0, len_tol=0)
        run = Simulation(function.space, lambda number, c: ("completed", -function.evaluate(c)))
        run.run(make_optimizer(name, function.space), other.nfev)
        best = run.history().target.max()
        assert abs(-best - function.optimum) <= 2 * abs(other.fun - function.optimum) + 1e-3
