"""Bayesian optimization learns, minds what is pending, stays in the space. Seeds are fixed: nothing here is luck."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.objectives.functions import FUNCTIONS, TestFunction
from hpo_cluster.optimizers import bo as bo_module
from hpo_cluster.optimizers.bo import parameter_neighbours
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Space
from hpo_cluster.surrogate import SurrogateError

SQUARE = Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)})


def frame(space: Space, rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["trial", "state", "origin", "value", "target", *space.names])


def told(
    trial: int, configuration: Configuration, target: float = math.nan, state: str = "completed"
) -> dict[str, Any]:
    return {"trial": trial, "state": state, "origin": "evaluated", "value": target, "target": target, **configuration}


def campaign(function: TestFunction, name: str, seed: int, count: int, **settings: Any) -> list[float]:
    """Simple regret after each trial of a sequential campaign."""
    optimizer, rows = make_optimizer(name, function.space, seed, **settings), list[dict[str, Any]]()
    for trial in range(count):
        (proposal,) = optimizer.ask(frame(function.space, rows), 1).proposals
        rows.append(told(trial, dict(proposal.parameters), -function.evaluate(proposal.parameters)))
    return [-best - function.optimum for best in np.maximum.accumulate([row["target"] for row in rows])]


def bowl(count: int, centre: float = 0.6, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a smooth target on `SQUARE`, its top at (centre, centre)."""
    rng, rows = np.random.default_rng(seed), []
    for trial in range(count):
        x, y = (float(u) for u in rng.random(2))
        rows.append(told(trial, {"x": x, "y": y}, -((x - centre) ** 2) - (y - centre) ** 2))
    return rows


@pytest.mark.parametrize(("name", "settings"), [("himmelblau", {}), ("branin", {"acquisition": "log_ei"})])
def test_beats_random_search(name: str, settings: dict[str, Any]) -> None:
    function = FUNCTIONS[name]
    ours = [campaign(function, "bo", seed, 25, **settings)[-1] for seed in range(3)]
    theirs = [campaign(function, "random", seed, 25)[-1] for seed in range(3)]
    assert np.median(ours) < 0.5 * np.median(theirs)


def test_finds_the_optimum_beside_a_cliff() -> None:
    function = FUNCTIONS["cliff"]
    assert campaign(function, "bo", 0, 25)[-1] < 0.5 * np.median(
        [campaign(function, "random", s, 25)[-1] for s in range(5)]
    )


def test_starts_with_its_design() -> None:
    for design in ("lhs", "sobol"):
        settings = {"points": 6} if design == "lhs" else {}
        ask = make_optimizer("bo", SQUARE, 4, initial=6, initial_design=design).ask(pd.DataFrame(), 6)
        same = make_optimizer(design, SQUARE, 4, **settings).ask(pd.DataFrame(), 6)
        assert [p.parameters for p in ask.proposals] == [p.parameters for p in same.proposals]
        assert ask.decision["phase"] == "initial"


def test_says_how_it_decided() -> None:
    rows = [*bowl(12), told(12, {"x": 0.1, "y": 0.9}, state="running")]
    ask = make_optimizer("bo", SQUARE).ask(frame(SQUARE, rows), 1)
    best = max(rows[:12], key=lambda row: row["target"])
    assert ask.decision["phase"] == "model"
    assert ask.decision["observations"] == 12
    assert ask.decision["pending"] == 1
    assert ask.decision["incumbent"] == {"trial": best["trial"], "target": best["target"]}
    assert set(ask.decision["model"]["length_scales"]) == {"x", "y"}
    assert math.isfinite(ask.proposals[0].info["acquisition"])


@pytest.mark.parametrize("acquisition", ["qlognei", "log_ei"])
def test_pending_trials_push_the_next_one_away(acquisition: str) -> None:
    """Much further than a trial that was cancelled, whose configuration only may not come again."""
    rows = bowl(14)

    def ask(*more: dict[str, Any]) -> dict[str, Any]:
        optimizer = make_optimizer("bo", SQUARE, initial=4, acquisition=acquisition)
        return dict(optimizer.ask(frame(SQUARE, [*rows, *more]), 1).proposals[0].parameters)

    place = ask()
    pending, cancelled = (
        np.abs(SQUARE.encode(ask(told(14, place, state=state))) - SQUARE.encode(place)).max()
        for state in ("running", "cancelled")
    )
    assert pending > 0.01
    assert pending > 5 * cancelled


def test_failed_trials_are_not_told_but_diverged_ones_are() -> None:
    rows = bowl(14)
    top = {"x": 0.61, "y": 0.6}
    plain = make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, rows), 1)
    failed = make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, [*rows, told(14, top, state="failed")]), 1)
    diverged = make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, [*rows, told(14, top, state="diverged")]), 1)
    assert failed.decision["observations"] == plain.decision["observations"] == 14
    assert failed.decision["model"] == plain.decision["model"]
    assert diverged.decision["observations"] == 15
    assert diverged.decision["model"] != plain.decision["model"]


def test_stays_away_from_where_training_diverges() -> None:
    """Everything beyond x = 0.5 diverges; the rest gets better towards it."""
    rng = np.random.default_rng(0)
    rows = []
    for trial in range(16):
        x, y = (float(u) for u in rng.random(2))
        rows.append(told(trial, {"x": x, "y": y}, *((math.nan, "diverged") if x > 0.5 else (x, "completed"))))
    optimizer = make_optimizer("bo", SQUARE, initial=4)
    for _ in range(4):
        (proposal,) = optimizer.ask(frame(SQUARE, rows), 1).proposals
        x = float(proposal.parameters["x"])
        rows.append(
            told(len(rows), dict(proposal.parameters), *((math.nan, "diverged") if x > 0.5 else (x, "completed")))
        )
    assert max(row["x"] for row in rows[16:]) < 0.75
    assert max(row["target"] for row in rows[16:]) > 0.03 + max(r["x"] for r in rows[:16] if r["state"] == "completed")


def test_falls_back_to_the_design_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = [told(i, {"x": i / 9, "y": 0.5}, state="diverged") for i in range(6)]
    ask = make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, nothing), 2)
    assert len(ask.proposals) == 2
    assert "distinct values" in ask.decision["fallback"]

    def broken(*_: object) -> None:
        raise SurrogateError("the fit failed: as it does")

    monkeypatch.setattr(bo_module, "fit", broken)
    ask = make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, bowl(8)), 1)
    assert ask.decision["fallback"] == "the fit failed: as it does"
    assert ask.proposals[0].info["point"] == 0  # the first of the design that was not evaluated


def test_integers_and_choices_are_searched_as_what_they_are() -> None:
    space = Space(
        {
            "n": Integer(1, 200),
            "c": Categorical(("a", "b", "c")),
            "o": Categorical((1, 2, 4, 8), ordered=True),
            "x": Float(0.0, 1.0),
        }
    )

    def target(c: Configuration) -> float:
        return -abs(int(c["n"]) - 70) / 50 - (c["c"] != "b") - abs(int(c["o"]) - 4) / 4 - (float(c["x"]) - 0.3) ** 2

    optimizer, rows = make_optimizer("bo", space, 0, restarts=2, raw_samples=128), list[dict[str, Any]]()
    for trial in range(26):
        (proposal,) = optimizer.ask(frame(space, rows), 1).proposals
        rows.append(told(trial, dict(proposal.parameters), target(proposal.parameters)))
    best = max(rows, key=lambda row: row["target"])
    assert (best["c"], best["o"]) == ("b", 4)
    assert best["target"] > -0.2


def test_a_huge_integer_costs_nothing() -> None:
    space = Space({"n": Integer(1, 10**9, log=True), "x": Float(0.0, 1.0)})
    rng = np.random.default_rng(0)
    rows = [told(i, c, float(c["x"])) for i, c in enumerate(space.decode(rng.random(2)) for _ in range(6))]
    assert len(make_optimizer("bo", space, initial=4).ask(frame(space, rows), 1).proposals) == 1


def test_replicates_may_be_allowed() -> None:
    space = Space({"n": Integer(1, 3)})
    rows = [told(i, {"n": i + 1}, float(i)) for i in range(3)]
    assert not make_optimizer("bo", space, initial=2).ask(frame(space, rows), 1).proposals
    assert make_optimizer("bo", space, initial=2, replicates=True).ask(frame(space, rows), 1).proposals


def test_neighbours() -> None:
    assert [Integer(1, 4).decode(u) for u in parameter_neighbours(Integer(1, 4), 0.1)] == [2, 3]
    nominal, ordered = Categorical(("a", "b", "c")), Categorical((1, 2, 4, 8, 16), ordered=True)
    assert [nominal.decode(u) for u in parameter_neighbours(nominal, 0.5)] == ["a", "c"]
    assert [ordered.decode(u) for u in parameter_neighbours(ordered, 0.5)] == [1, 2, 8, 16]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_functions_have_their_optimum_where_they_say(function: TestFunction) -> None:
    assert function.evaluate(function.at) == pytest.approx(function.optimum, abs=1e-6)
    rng = np.random.default_rng(0)
    values = [function.evaluate(function.space.decode(rng.random(function.space.dim))) for _ in range(300)]
    assert min(values) >= function.optimum
