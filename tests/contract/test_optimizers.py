"""Every optimizer of the table keeps the contract."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from optimizer_contract import (
    FINITE,
    REAL,
    SPACES,
    Make,
    OptimizerContract,
    completed,
    configurations,
    frame,
    parameters,
    row,
)

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.registry import OPTIMIZERS, make_optimizer, make_settings
from hpo_cluster.space import Categorical, Float, Integer, Prior, Space

#: Settings that make a model-based optimizer quick, its model being asked after few trials.
QUICK: dict[str, dict[str, Any]] = {
    "bo": {"initial": 4, "restarts": 1, "raw_samples": 32, "mc_samples": 16},
    "turbo": {"initial": 4},
    "mosaic": {"initial": 4},
}

#: Optimizers that need a library of their own, and its module.
LIBRARIES = {"optuna": "optuna", "nevergrad": "nevergrad", "nomad": "PyNomad"}


def needs_library(name: str) -> Any:
    """A test parameter that is skipped where the optimizer's library is absent."""
    absent = name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name]) is None
    return pytest.param(name, marks=pytest.mark.skipif(absent, reason=f"{LIBRARIES.get(name)} is not installed"))


EVERY = [needs_library(name) for name in sorted(OPTIMIZERS)]

DESIGNS = ["random", "lhs", "sobol", "grid"]
SEEDLESS = {"soo", "bamsoo", "direct", "direct_l", "fda"}  # nothing is drawn at random


class TestEveryOptimizer(OptimizerContract):
    @pytest.fixture(params=EVERY)
    def make(self, request: pytest.FixtureRequest) -> Make:
        name = request.param
        return lambda space, seed=0: make_optimizer(name, space, seed, **QUICK.get(name, {}))


class TestTurboWithRegions(OptimizerContract):
    @pytest.fixture(params=["conditional", "real"])
    def space(self, request: pytest.FixtureRequest) -> Space:
        return SPACES[request.param]

    @pytest.fixture
    def make(self) -> Make:
        return lambda space, seed=0: make_optimizer("turbo", space, seed, initial=2, regions=3)


class TestBOWithLogEI(OptimizerContract):
    @pytest.fixture(params=["real"])
    def space(self, request: pytest.FixtureRequest) -> Space:
        return SPACES[request.param]

    @pytest.fixture
    def make(self) -> Make:
        return lambda space, seed=0: make_optimizer("bo", space, seed, acquisition="log_ei", **QUICK["bo"])


def test_the_table_holds_the_optimizers_of_this_version() -> None:
    assert {*DESIGNS, "bo", *SEEDLESS} <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_setting_is_described(name: str) -> None:
    fields = OPTIMIZERS[name].settings.model_fields
    assert [field for field, info in fields.items() if not info.description] == []
    assert make_settings(name, {}) == OPTIMIZERS[name].settings()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_module_names_its_source_and_what_it_changes(name: str) -> None:
    text = sys.modules[OPTIMIZERS[name].optimizer.__module__].__doc__ or ""
    assert "Reference" in text
    assert "Deviations from the paper" in text
    assert "Symbols" in text


def test_an_unknown_name_is_met_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer("sobo", REAL)
    assert "did you mean sobol?" in str(error.value)
    assert "random, lhs, sobol, grid, bo" in str(error.value)


def test_all_faults_of_the_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer("bo", REAL, initia=3, acquisition="ei", restarts=0)
    assert len(error.value.faults) == 3
    assert "did you mean initial?" in str(error.value)


def test_the_table_is_cheap_to_import() -> None:
    code = "import sys, hpo_cluster.optimizers.registry; print(sorted({'torch', 'scipy'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["random", "lhs", "sobol"])
def test_designs_do_not_read_results(name: str) -> None:
    rows = completed(REAL, 5)
    other = [row | {"value": -row["value"], "target": -row["target"]} for row in rows]
    optimizer = make_optimizer(name, REAL, seed=1)
    assert optimizer.ask(frame(REAL, rows), 3) == optimizer.ask(frame(REAL, other), 3)


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_decides(name: str) -> None:
    first, same, other = (configurations(make_optimizer(name, REAL, seed).ask(pd.DataFrame(), 3)) for seed in (1, 1, 2))
    assert first == same
    assert (first == other) is (name in SEEDLESS)


def test_lhs_fills_every_interval_of_every_axis_once() -> None:
    asked = make_optimizer("lhs", REAL, seed=3, points=12).ask(pd.DataFrame(), 24).proposals
    for block in (asked[:12], asked[12:]):
        for axis in range(2):
            points = [REAL.encode(proposal.parameters)[axis] for proposal in block]
            assert sorted(int(u * 12) for u in points) == list(range(12))


def test_lhs_can_be_optimised() -> None:
    asked = make_optimizer("lhs", REAL, seed=3, points=8, optimization="random-cd").ask(pd.DataFrame(), 8).proposals
    assert sorted(int(REAL.encode(p.parameters)[0] * 8) for p in asked) == list(range(8))


def test_sobol_is_balanced_at_powers_of_two() -> None:
    asked = make_optimizer("sobol", REAL, seed=3).ask(pd.DataFrame(), 128).proposals
    for axis in range(2):
        points = [REAL.encode(proposal.parameters)[axis] for proposal in asked]
        assert sorted(int(u * 128) for u in points) == list(range(128))


def test_imported_trials_take_nothing_from_a_design() -> None:
    alone = make_optimizer("lhs", REAL, points=4).ask(pd.DataFrame(), 4)
    imported = [row | {"origin": "imported"} for row in completed(REAL, 3)]
    beside = make_optimizer("lhs", REAL, points=4).ask(frame(REAL, imported), 4)
    assert configurations(beside) == configurations(alone)


def test_a_cancelled_point_of_a_design_comes_back() -> None:
    optimizer = make_optimizer("sobol", REAL)
    asked = configurations(optimizer.ask(pd.DataFrame(), 3))
    rows = [r | asked[i] for i, r in enumerate(completed(REAL, 3))]
    rows[1]["state"] = "cancelled"
    assert configurations(optimizer.ask(frame(REAL, rows), 1)) == [asked[1]]


def test_grid_walks_every_combination() -> None:
    space = Space({"x": Float(1.0, 100.0, log=True), "n": Integer(1, 9), "c": Categorical(("a", "b", "c", "d"))})
    asked = configurations(make_optimizer("grid", space, levels={"n": 2}, shuffle=False).ask(pd.DataFrame(), 99))
    assert len(asked) == 3 * 2 * 4
    assert [round(v, 9) for v in sorted({c["x"] for c in asked})] == [1.0, 10.0, 100.0]
    assert sorted({c["n"] for c in asked}) == [1, 9]
    assert asked[0] == {"x": 1.0, "n": 1, "c": "a"}
    assert asked[1]["c"] == "b"


def test_grid_tells_all_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer("grid", REAL, levels={"z": 2, "x": 0})
    assert len(error.value.faults) == 2
    with pytest.raises(ConfigError, match="at most"):
        make_optimizer("grid", REAL, levels=10_000)


def test_random_spreads_over_a_finite_space() -> None:
    asked = configurations(make_optimizer("random", FINITE, seed=5).ask(pd.DataFrame(), 6))
    assert len({tuple(c.values()) for c in asked}) == 6


def test_a_history_that_lacks_columns_is_refused() -> None:
    """Else its values would be passed over without a word."""
    name = REAL.names[0]
    history = frame(REAL, completed(REAL, 3)).drop(columns=["target", name])
    with pytest.raises(ConfigError) as caught:
        make_optimizer("bo", REAL).ask(history, 1)
    for fault, lacking in zip(caught.value.faults, (name, "target"), strict=True):
        assert f"no column {lacking}" in fault


def test_a_space_may_be_plain_data() -> None:
    asks = [make_optimizer("bo", space, seed=3).ask(pd.DataFrame(), 2) for space in (REAL, REAL.to_json())]
    assert asks[0] == asks[1]
    with pytest.raises(ConfigError, match="needs high"):
        make_optimizer("bo", {"x": {"low": 0.0}})


# ------------------------------------------------------------------------- starting points, priors, what is allowed


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("base", sorted(SPACES))
def test_starting_points_come_first_whatever_the_optimizer(name: str, base: str) -> None:
    space = SPACES[base]
    starts = [parameters(space, r) for r in completed(space, 2, seed=7)]
    started = Space(space.parameters, [c.text for c in space.constraints], [*starts, starts[0]])
    optimizer = make_optimizer(name, started, 3, **QUICK.get(name, {}))
    ask = optimizer.ask(pd.DataFrame(), 4)
    assert configurations(ask)[:2] == list(started.start[:2])
    assert [proposal.info.get("phase") for proposal in ask.proposals[:2]] == ["start", "start"]
    rows = list[dict[str, Any]]()
    for configuration in configurations(ask):  # asking n times for one is the same
        single = optimizer.ask(frame(started, rows), 1)
        assert configurations(single) == [configuration]
        rows.append(row(started, len(rows), configuration, "proposed"))
    rows[0]["state"] = "cancelled"
    assert configurations(optimizer.ask(frame(started, rows), 1)) == [started.start[0]]


@pytest.mark.parametrize("name", ["random", "lhs", "sobol"])
def test_designs_are_denser_where_the_prior_is_high(name: str) -> None:
    space = Space(
        {
            "x": Float(0.0, 1.0, prior=Prior(0.2, 0.05)),
            "c": Categorical(("a", "b"), prior=(1, 9)),
            "y": Float(0.0, 1.0),
        }
    )
    asked = configurations(make_optimizer(name, space, 1).ask(pd.DataFrame(), 64))
    assert sum(0.1 < float(c["x"]) < 0.3 for c in asked) >= 58
    assert sum(c["c"] == "b" for c in asked) >= 50
    assert 20 <= sum(float(c["y"]) < 0.5 for c in asked) <= 44


def test_grid_holds_what_is_allowed_once() -> None:
    space = Space(
        {"n": Integer(1, 4), "b": Categorical((False, True)), "m": Integer(1, 3, when={"b": True})},
        constraints=["n + m <= 5"],
    )
    asked = configurations(make_optimizer("grid", space, levels=4, shuffle=False).ask(pd.DataFrame(), 99))
    expected = [{"n": n, "b": False} for n in (1, 2, 3, 4)]
    expected += [{"n": n, "b": True, "m": m} for n in (1, 2, 3, 4) for m in (1, 2, 3) if n + m <= 5]
    assert sorted(asked, key=str) == sorted(expected, key=str)
    with pytest.raises(ConfigError, match="allow none of the grid's 9 points"):
        make_optimizer("grid", Space({"x": Float(0, 1), "y": Float(0, 1)}, ["0.6 < x < 0.9"]))


def test_a_design_goes_on_where_little_is_allowed() -> None:
    space = Space({"x": Float(0, 1), "y": Float(0, 1)}, ["x + y <= 0.05"])  # one point in 800
    for name in ("random", "lhs", "sobol"):
        asked = configurations(make_optimizer(name, space).ask(pd.DataFrame(), 5))
        assert len(asked) == 5
        assert all(space.allows(configuration) for configuration in asked)
