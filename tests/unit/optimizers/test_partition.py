"""What every optimizer that divides the space keeps to, in spaces drawn at random: SOO, DIRECT, DIRECT-L and FDA."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import partition_references
from support.simulated import TROUBLE, simulation, wavy
from support.spaces import SPACES, spaces

from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.partition.cells import Partition
from hpo_cluster.optimizers.partition.soo import PRESETS
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Configuration, Space

some = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 99)
soo = st.fixed_dictionaries({"preset": st.sampled_from(sorted(PRESETS)), "sections": st.sampled_from([2, 3, 5])})
methods = st.one_of(
    st.tuples(st.just("soo"), soo),
    st.tuples(st.sampled_from(["direct", "direct_l"]), st.just({})),
    st.tuples(st.just("fda"), st.fixed_dictionaries({"levels": st.integers(1, 2), "points": st.sampled_from([1, 3])})),
)
Method = tuple[str, dict]


def reference(method: Method, space: Space, seed: int, n: int) -> list[Configuration]:
    name, chosen = method
    f = wavy(space, seed)
    if name == "soo":
        rules = PRESETS[chosen["preset"]]
        return partition_references.soo(space, f, n, chosen["sections"], rules.eligibility, rules.strict, rules.h_max)
    if name == "fda":
        return partition_references.fda(space, f, n, **chosen)
    return partition_references.direct(space, f, n, name == "direct_l")


def made(method: Method, space: Space) -> Optimizer:
    return make_optimizer(method[0], space, seed=1, **method[1])


@some
@given(spaces(), methods, seeds)
def test_one_worker_evaluates_what_the_sequential_program_does(space: Space, method: Method, seed: int) -> None:
    theirs = reference(method, space, seed, 20)
    mine = simulation(space, seed).run(made(method, space), 20).evaluated
    assert mine[: len(theirs)] == theirs
    if method[0] != "fda":  # which draws what is left
        assert len(mine) == len(theirs)


@some
@given(spaces(), methods, seeds, st.integers(1, 6), st.sampled_from([(), TROUBLE]))
def test_whatever_happens(space: Space, method: Method, seed: int, workers: int, trouble: tuple[str, ...]) -> None:
    """Allowed configurations, none twice, the same from a new optimizer, and cells that tile the space."""
    optimizer = made(method, space)
    run = simulation(space, seed, trouble).run(optimizer, 24, workers)
    assert all(space.allows(configuration) for configuration in run.evaluated)
    lost = {tuple(t.parameters.items()) for t in run.record.rows if t.state == "cancelled"}
    kept = [c for c in (tuple(configuration.items()) for configuration in run.evaluated) if c not in lost]
    assert len(set(kept)) == len(kept)
    for history, n, ask in run.asks[:: max(len(run.asks) // 6, 1)]:
        assert made(method, space).ask(history, n) == ask
    if method[0] == "fda":
        return
    tree = made(method, space).tree(run.history())
    cells = [node.cell for node in tree.uncut()]
    assert math.isclose(sum(map(tree.partition.volume, cells)), 1.0, abs_tol=1e-9)
    ends = [[axis.ends(side) for axis, side in zip(tree.partition.axes, cell, strict=True)] for cell in cells]
    for point in np.random.default_rng(seed).random((20, space.dim)):
        assert sum(all(a <= u < b for u, (a, b) in zip(point, sides, strict=True)) for sides in ends) == 1


@some
@given(spaces(), methods.filter(lambda method: method[0] != "fda"), seeds)
def test_the_table_of_cells_is_the_space(space: Space, method: Method, seed: int) -> None:
    """Any values lie in one row, and what stands for a measured cell has its value."""
    run = simulation(space, seed).run(made(method, space), 20, workers=3)
    table = made(method, space).tree(run.history()).cells()
    assert math.isclose(table.volume.sum(), 1.0, abs_tol=1e-9)
    for point in np.random.default_rng(seed).random((20, space.dim)):
        found = np.ones(len(table), dtype=bool)
        for (name, parameter), u in zip(space, point, strict=True):
            low, value, high = table[f"{name}.low"], parameter.decode(u), table[f"{name}.high"]
            if parameter.cardinality is None:
                found &= (low <= value) & (value < high)
            else:
                place = list(parameter.values).index
                found &= (low.map(place) <= place(value)) & (place(value) <= high.map(place))
        assert found.sum() == 1
    f = wavy(space, seed)
    measured = table[table.status == "measured"]
    assert len(measured)
    for row in measured.to_dict("records"):
        configuration = {name: row[name] for name in space.names if row[name] is not None and row[name] == row[name]}
        assert row["target"] == f(configuration)


@given(st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_what_was_asked_before_is_a_cache_alone(data: st.DataObject) -> None:
    """An optimizer that is given histories in any order, and altered ones, answers as a new one does."""
    space, method = SPACES[data.draw(st.sampled_from(sorted(SPACES)))], data.draw(methods)
    run = simulation(space, 1, TROUBLE).run(made(method, space), 16, workers=3)
    optimizer, column = made(method, space), space.names[0]
    for _ in range(6):
        history, n, _ = data.draw(st.sampled_from(run.asks[2:]))
        history = history.copy()
        over = history.index[history.ended_seq.notna()]
        change = data.draw(st.sampled_from(["none", "value", "state", "reopened", "parameter", "shuffled", "objects"]))
        if change in ("value", "state", "reopened", "parameter") and len(over):
            at = data.draw(st.sampled_from(list(over)))
            if change == "value" and history.loc[at, "state"] == "completed":
                history.loc[at, ["value", "target"]] += 3.0
            elif change == "state":
                history.loc[at, "state"], history.loc[at, ["value", "target"]] = "failed", math.nan
            elif change == "reopened":
                history.loc[at, "state"] = "running"
                history.loc[at, ["value", "target", "ended_seq"]] = math.nan
            elif change == "parameter":
                history.loc[at, column] = history[column].iloc[0]
        elif change == "shuffled":
            history = history.sample(frac=1, random_state=0)
        elif change == "objects":
            history = history.astype(object)
        assert optimizer.ask(history, n) == made(method, space).ask(history, n)


def test_a_frame_that_its_owner_changes_is_read_again() -> None:
    run = simulation(SPACES["real"], 0).run(make_optimizer("soo", SPACES["real"]), 12)
    history, optimizer = run.history(), make_optimizer("soo", SPACES["real"], preset="greedy")
    optimizer.tree(history)
    history.loc[3, ["value", "target"]] = 100.0
    again = make_optimizer("soo", SPACES["real"], preset="greedy")
    assert optimizer.ask(history, 4) == again.ask(history, 4)


def test_a_parameter_is_not_cut_where_it_is_inactive() -> None:
    partition = Partition(SPACES["conditional"], 3, 1e-4)
    warmup, scheme, adapter, rank = range(4)
    assert partition.longest(partition.whole) == [warmup, scheme, adapter, rank]
    constant, linear, _ = partition.cut(partition.whole, scheme)
    assert partition.longest(constant) == [adapter, rank]
    assert partition.widths(constant)[warmup] == 0.0
    assert warmup in partition.longest(linear)
    without = partition.cut(constant, adapter)[0]
    assert partition.longest(without) == []


@pytest.mark.parametrize("method", [("soo", {}), ("direct", {}), ("direct_l", {}), ("fda", {})], ids=lambda m: m[0])
def test_a_space_whose_middle_is_forbidden_is_searched(method: Method) -> None:
    space = Space(dict(SPACES["real"].parameters), ["x >= 2", "z <= 0.3"])
    run = simulation(space, 0).run(made(method, space), 30, workers=4)
    assert len(run.evaluated) == 30
    assert all(space.allows(configuration) for configuration in run.evaluated)
