"""Mosaic: which arm a trial is from follows from the events; cells shrink where results are dense; it finds optima."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import memory_edge

from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.optimizers.bayesian import acquisition
from hpo_cluster.optimizers.bayesian.mosaic import SHARES, WIDE, Credit, Mosaic, MosaicSettings
from hpo_cluster.optimizers.bayesian.observations import VARIED
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.optimizers.replay import Replay
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Prior, Space

SQUARE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})


def told(trial: int, c: Configuration, target: float = math.nan, state: str = "completed") -> dict[str, Any]:
    return {"trial": trial, "state": state, "origin": "evaluated", "target": target, **c}


def bowl(points: np.ndarray, centre: float = 0.6) -> pd.DataFrame:
    targets = -((points - centre) ** 2).sum(axis=1)
    rows = [
        told(i, {"x": float(p[0]), "y": float(p[1])}, float(t))
        for i, (p, t) in enumerate(zip(points, targets, strict=True))
    ]
    return pd.DataFrame(rows)


def credit(frame: pd.DataFrame, **settings: Any) -> Credit:
    return Replay(lambda: Credit(MosaicSettings(initial=2, **settings), 0)).of(Dataset.read(SQUARE, frame))


def test_the_share_follows_the_arm_that_improves() -> None:
    """Trials of one arm improve, those of the other do not: which trial is of which follows from the credit itself."""
    for wanted in (True, False):
        frame, best = bowl(np.random.default_rng(0).random((2, 2))), 0.0
        rows = frame.to_dict("records")
        for trial in range(2, 60):
            local = credit(pd.DataFrame(rows)).is_local(trial)
            best += 1.0
            target = best if local == wanted else -best
            rows.append(told(trial, {"x": trial / 100, "y": 0.5}, target))
        share = credit(pd.DataFrame(rows)).share
        assert share > 0.75 if wanted else share < 0.25
        assert SHARES[0] <= share <= SHARES[1]


def test_the_share_may_be_set() -> None:
    points = np.random.default_rng(0).random((20, 2))
    for share, arm in ((0.0, "global"), (1.0, "local")):
        ask = make_optimizer("mosaic", SQUARE, initial=4, local=share).ask(bowl(points), 4)
        assert [p.info["arm"] for p in ask.proposals] == [arm] * 4


def test_a_cell_shrinks_where_results_are_dense() -> None:
    rng = np.random.default_rng(1)
    spread = rng.random((12, 2))
    dense = np.concatenate([spread, 0.6 + 0.02 * (rng.random((12, 2)) - 0.5)])
    sides = []
    for points in (spread, dense):
        ask = make_optimizer("mosaic", SQUARE, initial=4, local=1.0).ask(bowl(points), 1)
        sides.append(ask.proposals[0].info["side"])
    assert sides[0] > 0.2
    assert sides[1] < 0.04


def test_with_many_pending_several_cells_are_searched() -> None:
    """Two tops of nearly equal height."""
    rng = np.random.default_rng(2)
    points = np.concatenate([c + 0.04 * rng.normal(size=(20, 2)) for c in (0.25, 0.75)] + [rng.random((20, 2))])
    points = np.clip(points, 0, 1)
    heights = [-min(((p - 0.25) ** 2).sum(), ((p - 0.75) ** 2).sum() + 0.0005) for p in points]
    rows = [
        told(i, {"x": float(p[0]), "y": float(p[1])}, float(h))
        for i, (p, h) in enumerate(zip(points, heights, strict=True))
    ]
    flying = [
        told(60 + i, {"x": float(u), "y": float(v)}, state="running") for i, (u, v) in enumerate(rng.random((64, 2)))
    ]
    optimizer = make_optimizer("mosaic", SQUARE, initial=4, local=1.0)
    many = [SQUARE.encode(p.parameters) for p in optimizer.ask(pd.DataFrame(rows + flying), 20).proposals]
    assert sum(np.abs(p - 0.25).max() < 0.15 for p in many) >= 3
    assert sum(np.abs(p - 0.75).max() < 0.15 for p in many) >= 3


@pytest.mark.parametrize("name", ["hartmann6", "himmelblau"])
def test_is_much_better_than_random_search(name: str) -> None:
    function = FUNCTIONS[name]
    asked = make_optimizer("random", function.space, 0).ask(pd.DataFrame(), 60)
    random = min(function.evaluate(proposal.parameters) for proposal in asked.proposals) - function.optimum
    optimizer, rows, regret = make_optimizer("mosaic", function.space, 0), list[dict[str, Any]](), math.inf
    while regret >= 0.3 * random and len(rows) < 60:
        c = dict(optimizer.ask(pd.DataFrame(rows), 1).proposals[0].parameters)
        rows.append(told(len(rows), c, -function.evaluate(c)))
        regret = -max(row["target"] for row in rows) - function.optimum
    assert regret < 0.3 * random


def test_integers_and_choices_are_searched_as_what_they_are() -> None:
    space = Space({"n": Integer(1, 200), "c": Categorical(("a", "b", "c")), "x": Float(0.0, 1.0), "z": Float(0.0, 1.0)})

    def target(c: Configuration) -> float:
        return -abs(int(c["n"]) - 70) / 50 - (c["c"] != "b") - (float(c["x"]) - 0.3) ** 2

    optimizer, rows = make_optimizer("mosaic", space, 0), list[dict[str, Any]]()
    for trial in range(40):
        (proposal,) = optimizer.ask(pd.DataFrame(rows), 1).proposals
        rows.append(told(trial, dict(proposal.parameters), target(proposal.parameters)))
        best = max(rows, key=lambda row: row["target"])
        if best["target"] > -0.1:
            break
    assert best["c"] == "b"
    assert best["target"] > -0.1


def test_losing_the_caches_changes_nothing() -> None:
    points = np.random.default_rng(5).random((30, 2))
    optimizer = make_optimizer("mosaic", SQUARE, initial=4)
    assert isinstance(optimizer, Mosaic)
    for n in (10, 20, 29):
        optimizer.ask(bowl(points[:n]), 1)
    assert optimizer.ask(bowl(points), 3) == make_optimizer("mosaic", SQUARE, initial=4).ask(bowl(points), 3)


def test_falls_back_to_the_design_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition, "noisy_improvement", lambda *_: lambda inputs: inputs[:, 0, 0] * math.nan)
    points = np.random.default_rng(0).random((20, 2))
    for local in (0.0, 1.0):
        (proposal,) = make_optimizer("mosaic", SQUARE, initial=4, local=local).ask(bowl(points), 1).proposals
        assert proposal.info["fallback"] == "the acquisition is not finite at any candidate"
        assert proposal.info["point"] == 0  # the first of the design that was not evaluated


def test_what_differs_by_noise_alone_is_not_searched() -> None:
    """The same dense cell, once on a slope and once on a flat top with noise; the rest of the space is alike."""
    rng = np.random.default_rng(4)
    points = np.concatenate([rng.random((30, 2)), 0.6 + 0.05 * (rng.random((30, 2)) - 0.5)])
    noise = 0.01 * rng.normal(size=len(points))
    for steepness, arm in ((40.0, "local"), (0.0, "global")):
        near = np.abs(points - 0.6).max(axis=1) < 0.03
        heights = (
            np.where(near, 1.0 + steepness * (points[:, 0] - 0.6), 1.0 - ((points - 0.6) ** 2).sum(axis=1)) + noise
        )
        rows = [
            told(i, {"x": float(p[0]), "y": float(p[1])}, float(h))
            for i, (p, h) in enumerate(zip(points, heights, strict=True))
        ]
        asked = make_optimizer("mosaic", SQUARE, initial=4, local=1.0).ask(pd.DataFrame(rows), 1)
        assert asked.proposals[0].info["arm"] == arm


def test_with_many_pending_the_scales_of_the_values_are_taken_in_turn() -> None:
    points = np.random.default_rng(0).random((20, 2))
    asked = {
        outcome: [
            p.info["outcome"]
            for p in make_optimizer("mosaic", SQUARE, initial=4, outcome=outcome).ask(bowl(points), WIDE + 6).proposals
        ]
        for outcome in ("varied", "raw")
    }
    assert asked["varied"][:WIDE] == ["soft"] * WIDE
    assert set(asked["varied"][WIDE:]) == set(VARIED)
    assert asked["raw"] == ["raw"] * (WIDE + 6)


@pytest.mark.parametrize(("local", "least"), [(0.0, 1.9), (1.0, 1.4)])
def test_learns_where_configurations_are_infeasible(local: float, least: float) -> None:
    """Memory runs out beyond a line that the values rise towards; a cell moves along it, the global arm jumps."""
    rows, ask = memory_edge.search("mosaic", least, 4, local=local)
    assert ask.decision["infeasible"] == sum(r["state"] == "infeasible" for r in rows[:-1])
    found = [r["target"] for r in rows[memory_edge.RANDOM :] if r["state"] == "completed"]
    assert len(found) >= 4
    assert max(found) > least  # of 2, at (0, 1)


@pytest.mark.parametrize("local", [0.0, 1.0])
def test_priors_have_a_say_that_decays(local: float) -> None:
    """The bowl is at 0.6, the prior says 0.9."""
    believed = Space({name: Float(0.0, 1.0, prior=Prior(0.9, 0.05)) for name in "xy"})
    history = bowl(np.random.default_rng(0).random((16, 2)))

    def beyond(weight: float) -> float:
        optimizer = make_optimizer("mosaic", believed, initial=8, prior_weight=weight, local=local)
        (proposal,) = optimizer.ask(history, 1).proposals
        return float(proposal.parameters["x"])

    assert beyond(1000.0) > beyond(0.0) + 0.05
