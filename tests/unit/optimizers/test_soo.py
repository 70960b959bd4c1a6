from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from support import partition_references
from support.simulated import TROUBLE, Simulation, simulation, wavy
from support.spaces import SPACES

from hpo_cluster.optimizers import dataset
from hpo_cluster.optimizers.partition.cells import Partition
from hpo_cluster.optimizers.partition.soo import PRESETS, SOOTree
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Categorical, Float, Integer, Space

every_space = pytest.mark.parametrize("name", sorted(SPACES))
every_preset = pytest.mark.parametrize("preset", sorted(PRESETS))
sections = pytest.mark.parametrize("K", [2, 3, 5])


@every_space
@every_preset
@sections
def test_one_worker_evaluates_what_the_sequential_program_does(name: str, preset: str, K: int) -> None:
    seed = K
    space, rules = SPACES[name], PRESETS[preset]
    optimizer = make_optimizer("soo", space, preset=preset, sections=K)
    mine = simulation(SPACES[name], seed).run(optimizer, 50).evaluated
    theirs = partition_references.soo(space, wavy(space, seed), 50, K, rules.eligibility, rules.strict, rules.h_max)
    assert len(theirs) == min(50, space.size)
    assert mine == theirs


@pytest.mark.parametrize("h_max", [1, 3])
def test_where_no_leaf_may_be_opened_the_shallowest_is(h_max: int) -> None:
    space = SPACES["real"]
    mine = simulation(SPACES["real"], 0).run(make_optimizer("soo", space, preset="greedy", h_max=h_max), 60).evaluated
    assert mine == partition_references.soo(space, wavy(space, 0), 60, 3, "dynamic", False, h_max)


@every_space
@every_preset
@sections
@pytest.mark.parametrize("workers", [7])
def test_cells_tile_the_space_and_nothing_is_evaluated_twice(name: str, preset: str, K: int, workers: int) -> None:
    space = SPACES[name]
    optimizer = make_optimizer("soo", space, preset=preset, sections=K)
    run = simulation(SPACES[name], 3).run(optimizer, 40, workers)
    seen = [tuple(configuration.items()) for configuration in run.evaluated]
    assert len(set(seen)) == len(seen) == min(40, space.size)
    tree = optimizer.tree(run.history())
    cells, stack = [], [tree.root]
    while stack:
        node = stack.pop()
        stack += node.children
        if not node.children:
            cells.append(node.cell)
        elif len(node.children) < 2:
            raise AssertionError("a cut makes at least two cells")
    assert math.isclose(sum(tree.partition.volume(cell) for cell in cells), 1.0, abs_tol=1e-9)
    axes = tree.partition.axes
    for point in np.random.default_rng(0).random((50, space.dim)):
        ends = [[axis.ends(side) for axis, side in zip(axes, cell, strict=True)] for cell in cells]
        inside = [all(a <= u < b for u, (a, b) in zip(point, sides, strict=True)) for sides in ends]
        assert sum(inside) == 1


@every_space
@every_preset
@pytest.mark.parametrize(("workers", "trouble"), [(1, ()), (1, TROUBLE), (5, TROUBLE)])
def test_a_new_optimizer_gives_every_ask_again(name: str, preset: str, workers: int, trouble: tuple[str, ...]) -> None:
    space = SPACES[name]
    run = simulation(SPACES[name], 2, trouble).run(make_optimizer("soo", space, preset=preset), 20, workers)
    assert len(run.asks) > 5
    for history, n, ask in run.asks:
        assert make_optimizer("soo", space, preset=preset).ask(history, n) == ask


@every_preset
@pytest.mark.parametrize("K", [2, 3])
def test_every_worker_is_busy_from_the_start(preset: str, K: int) -> None:
    optimizer = make_optimizer("soo", SPACES["real"], preset=preset, sections=K)
    assert len(optimizer.ask(pd.DataFrame(), 200).proposals) == 200


def test_a_cancelled_trial_is_proposed_again_first() -> None:
    run = simulation(SPACES["real"], 0)
    optimizer = make_optimizer("soo", SPACES["real"], preset="greedy")
    run.run(optimizer, 4)
    run.ask(optimizer, 2)
    _, number = run.running.pop()
    run.append("ended", trial=number, attempt=0, state="cancelled")
    again = optimizer.ask(run.history(), 1).proposals[0].parameters
    assert again == run.record.trials[number].parameters


def test_a_diverged_leaf_is_opened_after_every_measured_one() -> None:
    space = Space({"x": Float(0.0, 1.0)})
    run = Simulation(space, lambda number, c: ("completed", 1.0) if c["x"] < 0.6 else ("diverged", None))
    optimizer = make_optimizer("soo", space, preset="paper")
    run.run(optimizer, 3)
    low = next(node for node in optimizer.tree(run.history()).root.children if node.evaluation.value is None)
    assert optimizer.tree(run.history()).leaves.value(low) == 1.0  # the lowest value told
    run.run(optimizer, 8)
    left, middle, right = optimizer.tree(run.history()).root.children
    assert right.evaluation is low.evaluation
    assert left.children[0].serial < middle.children[0].serial < right.children[0].serial


def test_imported_values_are_used_and_not_evaluated() -> None:
    space = SPACES["real"]
    alone = simulation(SPACES["real"], 0).run(make_optimizer("soo", space, preset="greedy"), 12)
    f = wavy(space, 0)
    run = simulation(SPACES["real"], 0)
    rows = [
        {"trial": i, "seed": 0, "origin": "imported", "parameters": c, "value": f(c)}
        for i, c in enumerate(alone.evaluated[:5])
    ]
    run.append("asked", trials=rows)
    optimizer = make_optimizer("soo", space, preset="greedy")
    run.run(optimizer, 7)
    assert run.evaluated == alone.evaluated[5:]
    for history, n, ask in run.asks:
        assert make_optimizer("soo", space, preset="greedy").ask(history, n) == ask


def test_the_study_s_learning_rates_are_both_evaluated() -> None:
    """Far apart on a logarithmic axis, close to one another and to the centre as plain numbers."""
    space = Space({"learning_rate": Float(1e-10, 1e-1, log=True)})
    run = Simulation(space, lambda number, c: ("completed", math.log10(c["learning_rate"])))
    run.run(make_optimizer("soo", space), 3)
    exponents = [math.log10(c["learning_rate"]) for c in run.evaluated]
    assert exponents == pytest.approx([-5.5, -8.5, -2.5])


def test_finite_sides_are_cut_between_values_and_never_below_one() -> None:
    partition = Partition(Space({"rank": Integer(2, 64), "bits": Categorical((4, 8, 16, 32), ordered=True)}), 3, 1e-4)
    rank, bits = partition.axes
    assert [end - first for first, end in rank.cut(rank.whole)] == [21, 21, 21]
    assert [end - first for first, end in bits.cut(bits.whole)] == [1, 2, 1]
    assert bits.centre((0, 4)) == pytest.approx(0.375)  # the lower of the two in the middle
    assert rank.cut((5, 7)) == ((5, 6), (6, 7))
    assert rank.cut((5, 6)) == ()


def test_an_ask_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer, run = make_optimizer("soo", SPACES["real"], preset="greedy"), simulation(SPACES["real"], 0)
    run.run(optimizer, 300, workers=4)
    read, replayed = list[int](), list[int]()
    original = dataset._row
    monkeypatch.setattr(
        dataset, "_row", lambda space, cells, *more: read.append(cells["trial"]) or original(space, cells, *more)
    )
    apply = SOOTree.apply
    monkeypatch.setattr(SOOTree, "apply", lambda tree, moment: replayed.append(1) or apply(tree, moment))
    run.run(optimizer, 320, workers=4)
    assert 20 <= len(read) <= 3 * 20  # a trial is read when it is proposed, when it runs and when it ends
    assert 20 <= len(replayed) <= 3 * 20
