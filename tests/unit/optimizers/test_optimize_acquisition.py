"""The search of an acquisition function: it finds what is highest, in the space or in a box, among what is free."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.optimize_acquisition import Goal, box_around, search
from hpo_cluster.space import Categorical, Float, Integer, Space
from hpo_cluster.space.sampling import key_of

PLANE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})
MIXED = Space(
    {
        "n": Integer(1, 5000),
        "c": Categorical(("a", "b", "c")),
        "o": Categorical((2, 4, 8, 16), ordered=True),
        "x": Float(0.0, 1.0),
    }
)


class Bowl:
    """Highest at some columns."""

    def __init__(self, top: np.ndarray) -> None:
        self.top = torch.from_numpy(top)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return -((inputs[:, 0] - self.top) ** 2).sum(dim=1)


def found(goal: Goal, banned: set = set(), samples: int = 64) -> np.ndarray:  # noqa: B006 - never changed
    space = goal.features.space
    result = search(goal, np.full((1, space.dim), 0.5), banned, 2, samples, np.random.default_rng(0))
    assert result is not None
    point, value = result
    assert value == pytest.approx(float(goal.score(point[None])[0]))
    return point


def test_climbs_to_the_top() -> None:
    assert found(Goal(Features(PLANE), Bowl(np.array([0.123456, 0.9])))) == pytest.approx([0.123456, 0.9], abs=1e-5)


def test_stays_in_its_box() -> None:
    low, high = np.array([0.4, 0.4]), np.array([0.6, 0.6])
    goal = Goal(Features(PLANE), Bowl(np.array([0.1, 0.5])), low=low, high=high)
    assert found(goal) == pytest.approx([0.4, 0.5], abs=1e-5)


def test_finds_the_best_values_of_discrete_parameters() -> None:
    features = Features(MIXED)
    top = {"n": 3210, "c": "b", "o": 8, "x": 0.25}
    point = found(Goal(features, Bowl(features.encode(MIXED.encode(top)[None])[0])))
    configuration = MIXED.decode(point)
    assert (configuration["n"], configuration["c"], configuration["o"]) == (3210, "b", 8)
    assert configuration["x"] == pytest.approx(0.25, abs=1e-4)


def test_a_box_leaves_choices_free() -> None:
    features = Features(MIXED)
    centre = MIXED.encode({"n": 3000, "c": "a", "o": 4, "x": 0.5})
    low, high = centre - 0.05, centre + 0.05
    low[1], high[1] = 0.0, 1.0
    top = {"n": 4900, "c": "c", "o": 4, "x": 0.51}
    goal = Goal(features, Bowl(features.encode(MIXED.encode(top)[None])[0]), low=low, high=high)
    configuration = MIXED.decode(found(goal))
    assert configuration["c"] == "c"
    assert 3200 < int(configuration["n"]) <= 3251


def test_a_box_around_a_point_leaves_choices_and_neighbours_free() -> None:
    space = Space(
        {
            "c": Categorical(("a", "b", "c")),
            "o": Categorical((4, 8, 16), ordered=True),
            "n": Integer(1, 100),
            "x": Float(0.0, 1.0),
        }
    )
    centre = space.encode({"c": "a", "o": 8, "n": 50, "x": 0.1})
    low, high = box_around(space, centre, 0.2)
    assert (low[0], high[0]) == (0.0, 1.0)
    assert [space.decode(np.where([0, 1, 0, 0], corner, centre))["o"] for corner in (low, high)] == [4, 16]
    assert [space.decode(np.where([0, 0, 1, 0], corner, centre))["n"] for corner in (low, high)] == [30, 70]
    assert (low[3], high[3]) == (0.0, pytest.approx(0.3))


def test_what_is_taken_is_not_found_again() -> None:
    space = Space({"n": Integer(1, 9)})
    features = Features(space)
    goal = Goal(features, Bowl(features.encode(space.encode({"n": 5})[None])[0]))
    banned: set = set()
    order = []
    for _ in range(9):
        point = found(goal, banned)
        banned.add(key_of(space, point))
        order.append(int(space.decode(point)["n"]))
    assert order[0] == 5
    assert sorted(order) == list(range(1, 10))
    assert search(goal, np.full((1, 1), 0.5), banned, 2, 64, np.random.default_rng(0)) is None


def test_nothing_finite_is_an_error() -> None:
    goal = Goal(Features(PLANE), Bowl(np.array([np.nan, 0.5])))
    with pytest.raises(ArithmeticError, match="not finite"):
        found(goal)
