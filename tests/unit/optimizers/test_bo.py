"""Bayesian optimization learns, minds what is pending, stays in the space. Seeds are fixed: nothing here is luck."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import memory_edge

from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, TestFunction
from hpo_cluster.optimizers.bayesian import bo as bo_module
from hpo_cluster.optimizers.bayesian import observations as observations_module
from hpo_cluster.optimizers.bayesian import surrogate as surrogate_module
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.optimize_acquisition import parameter_neighbours
from hpo_cluster.optimizers.bayesian.surrogate import SurrogateError
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Prior, Space

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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("himmelblau", {}),
        ("branin", {"acquisition": "log_ei"}),
        ("himmelblau", {"acquisition": "ucb"}),
        ("branin", {"acquisition": "thompson"}),
    ],
)
def test_beats_random_search(name: str, settings: dict[str, Any]) -> None:
    function = FUNCTIONS[name]
    ours = [campaign(function, "bo", seed, 25, **settings)[-1] for seed in range(3)]
    theirs = [campaign(function, "random", seed, 25)[-1] for seed in range(3)]
    assert np.median(ours) < 0.5 * np.median(theirs)


def test_finds_the_optimum_beside_a_cliff() -> None:
    function = FUNCTIONS["cliff"]
    ours, theirs = ([campaign(function, name, s, 25)[-1] for s in range(3)] for name in ("bo", "random"))
    assert np.median(ours) < 0.5 * np.median(theirs)


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


def test_many_pending_trials_push_the_next_one_away_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bo_module, "AVERAGED", 0)
    test_pending_trials_push_the_next_one_away("qlognei")


def test_hyperparameters_stay_until_there_are_a_tenth_more_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are remembered or fitted again."""
    monkeypatch.setattr(observations_module, "FITTED_EACH", 10)
    rows = bowl(15)
    optimizer = make_optimizer("bo", SQUARE, initial=4)
    asks = [optimizer.ask(frame(SQUARE, rows[:n]), 1) for n in (10, 11, 12, 13, 14)]  # fitted with 10, 11, 13
    scales = [ask.decision["model"]["length_scales"] for ask in asks]
    assert scales[1] == scales[2] != scales[0]
    assert scales[3] != scales[2]
    assert asks[2] == make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, rows[:12]), 1)


def test_of_very_many_observations_some_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate_module, "FITTED_MOST", 10)
    monkeypatch.setattr(surrogate_module, "CONDITIONED_MOST", 12)
    ask = make_optimizer("bo", SQUARE, initial=4).ask(frame(SQUARE, bowl(15)), 1)
    assert ask.decision["observations"] == 15
    assert ask.decision["conditioned_on"] == 12


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

    monkeypatch.setattr(surrogate_module, "fit", broken)
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
        if best["target"] > -0.2:
            break
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


# ------------------------------------------------------------------------------ conditions, constraints, priors


def best_of(space: Space, score: Callable[[Any], float], count: int, **settings: Any) -> tuple[Configuration, float]:
    """The best configuration of a sequential campaign and its score; everything proposed is allowed, and only once."""
    optimizer, rows = make_optimizer("bo", space, 0, **settings), list[dict[str, Any]]()
    asked: list[Configuration] = []
    for trial in range(count):
        (proposal,) = optimizer.ask(frame(space, rows), 1).proposals
        space.check(proposal.parameters)
        assert proposal.parameters not in asked
        asked.append(dict(proposal.parameters))
        rows.append(told(trial, dict(proposal.parameters), score(proposal.parameters)))
    best = max(asked, key=score)
    return best, score(best)


def test_finds_an_optimum_on_the_edge_of_what_is_allowed() -> None:
    space = Space(SQUARE.parameters, ["x + y <= 1"])
    best, value = best_of(space, lambda c: -((c["x"] - 0.8) ** 2) - (c["y"] - 0.9) ** 2, 16, initial=6)
    assert value > -0.245 - 1e-3  # at (0.45, 0.55)
    assert best["x"] + best["y"] > 1 - 1e-2  # type: ignore[operator]


def test_finds_the_best_branch_and_its_best_values() -> None:
    space = Space(
        {
            "rate": Float(1e-4, 1.0, log=True, when={"kind": "b"}),
            "u": Float(0.0, 1.0, when={"kind": "a"}),
            "kind": Categorical(("a", "b", "c")),
            "n": Integer(1, 32, when={"kind": ("b", "c")}),
        }
    )

    def score(c: Any) -> float:
        if c["kind"] == "a":
            return -float((c["u"] - 0.3) ** 2)
        middle = 20 if c["kind"] == "b" else 5
        top = 1 - (math.log10(c["rate"]) + 2.7) ** 2 / 4 if c["kind"] == "b" else 0.5
        return top - ((c["n"] - middle) / 32) ** 2

    best, value = best_of(space, score, 22, initial=8)
    assert best["kind"] == "b"
    assert value > 0.99


def test_columns_of_inactive_parameters_are_all_alike() -> None:
    space = Space(
        {
            "use": Categorical((False, True)),
            "c": Categorical(("a", "b", "d", "e"), when={"use": True}),
            "n": Integer(1, 64, log=True, when={"use": True}),
        }
    )
    features = Features(space)
    off, on = space.encode({"use": False}), space.encode({"use": True, "c": "d", "n": 64})
    assert features.encode(np.array([off, on])) == pytest.approx(
        np.array([[0, 0.25, 0.25, 0.25, 0.25, 0.5], [1, 0, 0, 1, 0, 1]])
    )
    assert features.decode(features.encode(np.array([off, on]))) == pytest.approx(np.array([off, on]))


def test_the_prior_has_a_say_that_decays() -> None:
    believed = Space({name: Float(0.0, 1.0, prior=Prior(0.9, 0.1)) for name in "xy"})
    rows = bowl(14, centre=0.4)
    more = [*rows, *(row | {"trial": 14 + i} for i, row in enumerate(bowl(30, 0.4, seed=1)))]

    def distance(weight: float, history: list[dict[str, Any]]) -> float:
        optimizer = make_optimizer("bo", believed, 1, initial=8, prior_weight=weight)
        (proposal,) = optimizer.ask(frame(believed, history), 1).proposals
        return abs(float(proposal.parameters["x"]) - 0.4)

    away = [distance(200.0, rows), distance(0.0, rows), distance(200.0, more)]
    assert away[0] > 0.3
    assert away[1] < 0.15
    assert away[2] < away[0]


@pytest.mark.parametrize(("acquisition", "least"), [("qlognei", 1.9), ("ucb", 1.9), ("thompson", 1.5)])
def test_learns_where_configurations_are_infeasible(acquisition: str, least: float) -> None:
    """Memory runs out beyond a line that the values rise towards; what is infeasible tells nothing of the value."""
    rows, ask = memory_edge.search("bo", least, 3, acquisition=acquisition)
    assert ask.decision["infeasible"] == sum(r["state"] == "infeasible" for r in rows[:-1])
    assert ask.decision["observations"] == sum(r["state"] == "completed" for r in rows[:-1])
    found = [r["target"] for r in rows[memory_edge.RANDOM :] if r["state"] == "completed"]
    assert len(found) >= 3
    assert max(found) > least  # of 2, at (0, 1)
