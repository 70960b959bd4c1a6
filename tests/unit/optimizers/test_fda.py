"""FDA against a plain recursive program, and with many workers."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from support import partition_references
from support.simulated import TROUBLE, Simulation, simulation, wavy
from support.spaces import SPACES

from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Float, Space

SQUARE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})
every_space = pytest.mark.parametrize("space", [SPACES[key] for key in sorted(SPACES)], ids=sorted(SPACES))


@every_space
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("points", [1, 3])
def test_one_worker_evaluates_what_the_recursive_program_does(space: Space, levels: int, points: int) -> None:
    mine = simulation(space, levels).run(make_optimizer("fda", space, levels=levels, points=points), 70).evaluated
    theirs = partition_references.fda(space, wavy(space, levels), 70, levels, points)
    assert len(theirs) == 70 or space.size < math.inf
    assert mine[: len(theirs)] == theirs
    assert len(mine) == min(70, space.size)  # what is left of a finite space is drawn


@every_space
@pytest.mark.parametrize(("workers", "trouble"), [(1, ()), (1, TROUBLE), (6, TROUBLE)])
@pytest.mark.parametrize("score", ["best", "slope"])
def test_a_new_optimizer_gives_every_ask_again(space: Space, workers: int, trouble, score: str) -> None:
    run = simulation(space, 2, trouble).run(make_optimizer("fda", space, score=score), 24, workers)
    assert len(run.asks) > 5
    seen = [tuple(configuration.items()) for configuration in run.evaluated]
    cancelled = [t for t in run.record.rows if t.state == "cancelled"]
    assert len(set(seen)) >= len(seen) - len(cancelled)
    for history, n, ask in run.asks:
        assert make_optimizer("fda", space, score=score).ask(history, n) == ask


def test_spheres_lie_in_their_sphere_and_touch_its_end() -> None:
    optimizer = make_optimizer("fda", SQUARE)
    run = simulation(SQUARE, 0).run(optimizer, 30)
    spheres = optimizer.tree(run.history()).spheres
    assert len(spheres) > 5
    for sphere in spheres[1:]:
        distance = math.dist(sphere.centre, sphere.parent.centre)
        assert distance + sphere.radius == pytest.approx(sphere.parent.radius)
        assert sphere.radius == pytest.approx(sphere.parent.radius / (1 + math.sqrt(2)))


def test_the_local_search_finds_a_bottom() -> None:
    run = Simulation(SQUARE, lambda number, c: ("completed", -((c["x"] - 0.3) ** 2) - (c["y"] - 0.8) ** 2))
    run.run(make_optimizer("fda", SQUARE), 60)
    assert run.history().target.max() > -1e-4


def test_every_worker_is_busy_from_the_start() -> None:
    assert len(make_optimizer("fda", SPACES["real"]).ask(pd.DataFrame(), 60).proposals) == 60
