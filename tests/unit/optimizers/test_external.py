"""Optimizers of other libraries: rebuilt from the history, in the order of events, by seed."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.driver.spec import choose_optimizer
from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Points
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.optimizers.external.base import External
from hpo_cluster.optimizers.registry import make_optimizer, make_settings
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Space

SPACE = Space({"x": Float(1e-3, 1.0, log=True), "n": Integer(1, 30), "c": Categorical(("a", "b", "d"))})


def absent(module: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


EVERY = [
    pytest.param("optuna", {"sampler": "tpe", "initial": 4}, marks=absent("optuna"), id="tpe"),
    pytest.param("optuna", {"sampler": "gp", "initial": 4}, marks=absent("optuna"), id="gp"),
    pytest.param("optuna", {"sampler": "cmaes", "initial": 2}, marks=[absent("optuna"), absent("cmaes")], id="cmaes"),
    pytest.param("optuna", {"sampler": "nsga2"}, marks=absent("optuna"), id="nsga2"),
    pytest.param("nevergrad", {"algorithm": "TwoPointsDE"}, marks=absent("nevergrad"), id="de"),
    pytest.param("nevergrad", {}, marks=absent("nevergrad"), id="cma"),
    pytest.param("nevergrad", {"algorithm": "OnePlusOne"}, marks=absent("nevergrad"), id="oneplusone"),
    pytest.param("nomad", {"initial": 4}, marks=absent("PyNomad"), id="nomad"),
]


def target(configuration: Configuration) -> float:
    u = SPACE.encode(configuration)
    return -float((u[0] - 0.3) ** 2 + (u[1] - 0.6) ** 2) - 0.3 * (configuration["c"] != "b")


def row(trial: int, configuration: Configuration, asked: float = math.nan) -> dict[str, Any]:
    state = {"trial": trial, "state": "running", "origin": "evaluated", "value": math.nan, "target": math.nan}
    return {**state, **configuration, "asked_seq": asked, "ended_seq": math.nan}


def campaign(name: str, settings: dict[str, Any], count: int, fresh: bool, workers: int = 3) -> list[dict[str, Any]]:
    """Trials end out of order; with `fresh`, every proposal is that of an optimizer made anew, as after a restart."""
    rng, rows, seq = np.random.default_rng(1), list[dict[str, Any]](), 0
    optimizer = make_optimizer(name, SPACE, 7, **settings)
    while len(rows) < count:
        running = [r for r in rows if r["state"] == "running"]
        seq += 1
        if len(running) < workers:
            made = make_optimizer(name, SPACE, 7, **settings) if fresh else optimizer
            (proposal,) = made.ask(pd.DataFrame(rows), 1).proposals
            rows.append(row(len(rows), dict(proposal.parameters), seq))
        else:
            ended = running[int(rng.integers(len(running)))]
            value = target({name: ended[name] for name in SPACE.names})
            ended |= {"state": "completed", "value": value, "target": value, "ended_seq": seq}
    return rows


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_a_restart_at_every_proposal_changes_nothing(name: str, settings: dict[str, Any]) -> None:
    count = 9 if settings.get("sampler") == "gp" else 16
    assert campaign(name, settings, count, fresh=True) == campaign(name, settings, count, fresh=False)


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_results_are_heard(name: str, settings: dict[str, Any]) -> None:
    """With the targets turned round, something else is proposed in the end."""
    if settings.get("algorithm") == "TwoPointsDE":
        pytest.skip("its first 30 points are random")
    rows = campaign(name, settings, 6 if settings.get("sampler") == "gp" else 24, fresh=False, workers=1)
    other = [r | {"target": -r["target"], "value": -r["value"]} for r in rows]
    asked = [make_optimizer(name, SPACE, 7, **settings).ask(pd.DataFrame(r), 4).proposals for r in (rows, other)]
    assert asked[0] != asked[1]


class Heard(External):
    """A library that writes down what it is told."""

    name, module = "heard", "math"

    def __init__(self) -> None:
        super().__init__(SPACE, OptimizerSettings(), 0)
        self.story: list[tuple[int, str]] = []

    def library(self, data: Dataset) -> Heard:
        self.story = []
        return self

    def begin(self, row: Row) -> None:
        self.story.append((row.trial, "begins"))

    def end(self, row: Row, target: float) -> None:
        self.story.append((row.trial, f"{target:g}"))

    def draw(self, trial: int, attempt: int) -> Points:
        return np.array([0.5, 0.5, 0.5])


def test_a_library_hears_the_events_in_their_order() -> None:
    at: Configuration = {"x": 0.1, "n": 3, "c": "a"}
    rows = [row(0, at, 1.0), row(1, at, 2.0), row(2, at, 4.0), row(3, at, 9.0)]
    rows[1] |= {"state": "completed", "value": 2.0, "target": 2.0, "ended_seq": 3.0}
    rows[0] |= {"state": "diverged", "ended_seq": 5.0}
    rows[2] |= {"state": "failed", "ended_seq": 6.0}
    heard = Heard()
    heard.ask(pd.DataFrame(rows).sample(frac=1.0, random_state=0), 1)
    begun = {trial: (trial, "begins") for trial in range(4)}
    ended = {0: (0, "2"), 1: (1, "2"), 2: (2, "nan")}  # what diverged counts as the worst
    assert heard.story == [begun[0], begun[1], ended[1], begun[2], ended[0], ended[2], begun[3]]
    # without sequence numbers, one after another
    heard.ask(pd.DataFrame(rows).drop(columns=["asked_seq", "ended_seq"]), 1)
    assert heard.story == [begun[0], ended[0], begun[1], ended[1], begun[2], ended[2], begun[3]]


@pytest.mark.parametrize("name", ["optuna", "nevergrad", "nomad"])
def test_a_library_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError) as error:
        make_optimizer(name, SPACE)
    assert f"pip install 'hpo_cluster[{name}]'" in str(error.value)


@absent("nevergrad")
@pytest.mark.parametrize(("algorithm", "said"), [("TwoPointDE", "TwoPointsDE"), ("Cobyla", "trials in flight")])
def test_algorithms_that_cannot_be_used_are_refused(algorithm: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_optimizer("nevergrad", SPACE, algorithm=algorithm)
    assert said in str(error.value)


@absent("PyNomad")
def test_nomad_does_not_depend_on_what_ran_before_in_the_process() -> None:
    first = make_optimizer("nomad", SPACE, 1).ask(pd.DataFrame(), 3)
    make_optimizer("nomad", SPACE, 2).ask(pd.DataFrame(), 2)
    assert make_optimizer("nomad", SPACE, 1).ask(pd.DataFrame(), 3) == first


@absent("nevergrad")
def test_the_budget_is_decided_with_the_campaign() -> None:
    settings = make_settings("nevergrad", {})
    assert choose_optimizer("nevergrad", settings, SPACE, 0, budget=40).identity()["budget"] == 40
    recorded = {"optimizer": {"name": "nevergrad", "budget": 40}}
    assert choose_optimizer("nevergrad", settings, SPACE, 0, budget=90, recorded=recorded).identity()["budget"] == 40
