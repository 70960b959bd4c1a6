"""A history as optimizers see it, whatever the frame went through."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.optimizers.dataset import Rows
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Prior, Space
from hpo_cluster.space.sampling import free_point, key_of, remaining_points

SPACE = Space(
    {
        "version": Categorical(("1", "2", "10"), when={"on": True}),
        "size": Categorical((4, 8, 16), ordered=True, when={"on": True}),
        "fast": Categorical((False, True), when={"on": True}),
        "count": Integer(1, 9, when={"on": True}),
        "on": Categorical((False, True)),
        "rate": Float(0.0, 1.0),
    }
)
TOLD: list[Configuration] = [
    {"on": False, "rate": 0.1},
    {"version": "10", "size": 8, "fast": True, "count": 3, "on": True, "rate": 0.2},
    {"version": "1", "size": 16, "fast": False, "count": 9, "on": True, "rate": 0.3},
]


@pytest.mark.parametrize("rows", [TOLD, TOLD[1:], TOLD[:1]], ids=["some inactive", "none inactive", "all inactive"])
def test_inactive_cells_come_back_from_memory_and_from_csv(rows: list[Configuration], tmp_path: Path) -> None:
    frame = pd.DataFrame([{"trial": i, "target": 1.0, **row} for i, row in enumerate(rows)])
    frame = frame.reindex(columns=["trial", "target", *SPACE.names])
    frame.to_csv(tmp_path / "history.csv", index=False)
    for history in (frame, pd.read_csv(tmp_path / "history.csv")):
        read = Rows.read(SPACE, history)
        assert [row.configuration for row in read] == rows
        assert [[type(v) for v in row.configuration.values()] for row in read] == [
            [type(v) for v in row.values()] for row in rows
        ]
        assert read.outside == 0


def test_a_value_of_an_inactive_parameter_is_not_read_and_a_missing_one_puts_the_row_outside() -> None:
    more = {**TOLD[0], "count": 77, "version": "x"}
    less = {**TOLD[1], "count": math.nan}
    read = Rows.read(SPACE, pd.DataFrame([more, less]).assign(target=1.0))
    assert [row.configuration for row in read] == [TOLD[0]]
    assert read.outside == 1


def test_what_remains_of_a_finite_space_is_allowed_and_there_once() -> None:
    space = Space(
        {"n": Integer(1, 4), "b": Categorical((False, True)), "m": Integer(1, 3, when={"b": True})}, ["n + m <= 5"]
    )
    points = remaining_points(space, set())
    assert len(points) == 4 + 9
    assert len({key_of(space, point) for point in points}) == 13
    assert space.allowed(points).all()
    taken = {key_of(space, point) for point in points[1:]}
    last = free_point(space, taken, np.random.default_rng(0))
    assert last is not None
    assert last.tolist() == points[0].tolist()
    assert free_point(space, {key_of(space, point) for point in points}, np.random.default_rng(0)) is None


def test_random_points_follow_the_priors() -> None:
    space = Space({"x": Float(0.0, 1.0, prior=Prior(0.8, 0.05)), "y": Float(0.0, 1.0)}, ["x + y <= 1.5"])
    rng = np.random.default_rng(0)
    drawn = np.array([free_point(space, set(), rng) for _ in range(50)])
    assert ((drawn[:, 0] > 0.6) & (drawn[:, 0] < 1.0)).all()
    assert drawn.sum(axis=1).max() <= 1.5


def test_rows_that_are_left_out_are_told() -> None:
    space = Space({"x": Float(0.0, 1.0)})
    history = pd.DataFrame({"x": [0.5, 7.0, 0.25], "value": [1.0, 2.0, 3.0], "target": [1.0, 2.0, 3.0]})
    with pytest.warns(UserWarning, match=r"1 rows of the history .* left out: trial 1 \(x: .*7"):
        rows = Rows.read(space, history)
    assert [row.trial for row in rows] == [0, 2]
    assert rows.outside == 1
