"""Optimizers with several objectives: what they read, what they propose, and which ones refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Bound, Goal, Goals
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.registry import OPTIMIZERS, constraint_faults, make_optimizer, make_settings, several_faults
from hpo_cluster.record.campaign_state import asked_rows
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.space import Float, Integer, Space

SPACE = Space({"x": Float(0.0, 1.0), "k": Integer(1, 8), "y": Float(0.0, 1.0)})
GOALS = Goals((Goal("a", "maximize"), Goal("b", "minimize")), (Bound("m", at_most=0.8),))
OPTUNA = [("optuna", {"sampler": sampler, "initial": 4}) for sampler in ("tpe", "nsga2", "gp")]
BO: list[tuple[str, dict[str, Any]]] = [
    ("bo", {"initial": 4, "restarts": 1, "raw_samples": 32, "mc_samples": 64, "acquisition": name})
    for name in ("qlognei", "parego")
]
DESIGNS = [
    (name, {}) for name, entry in OPTIMIZERS.items() if entry.several_objectives and name not in ("optuna", "bo")
]


def several() -> MemoryJournal:
    return MemoryJournal(SPACE.names, maximize=True, goals=GOALS)


def measured(parameters: Mapping[str, Any]) -> dict[str, float]:
    x, y, k = float(parameters["x"]), float(parameters["y"]), int(parameters["k"])
    return {"a": x + 0.1 * y, "b": x * x + k, "m": y}


def run(journal: MemoryJournal, optimizer: Optimizer, count: int, at_once: int = 1) -> list[Mapping[str, Any]]:
    """Ask and end trials; every fifth diverges."""
    made: list[Mapping[str, Any]] = []
    while len(made) < count:
        ask = optimizer.ask(journal.history(), at_once)
        rows = asked_rows(ask, journal.record.next_trial, 0)
        journal.append("asked", trials=rows)
        for row in rows:
            made.append(row["parameters"])
            ended: dict[str, Any] = {"state": "diverged"}
            if row["trial"] % 5 != 4:
                metrics = measured(row["parameters"])
                ended = {"state": "completed", "value": metrics["a"], "metrics": metrics, "sems": {"b": 0.0}}
            journal.append("ended", trial=row["trial"], attempt=None, **ended)
    return made


def test_a_dataset_has_the_targets_as_a_matrix() -> None:
    journal = several()
    made = run(journal, make_optimizer("sobol", SPACE), 6)
    data = Dataset.read(SPACE, journal.history())
    values = [measured(parameters) for parameters in made]
    done = [i != 4 for i in range(6)]
    assert data.objectives == ("a", "b")
    assert np.array_equal(data.targets[done], [[v["a"], -v["b"]] for v, ok in zip(values, done, strict=True) if ok])
    assert np.isnan(data.targets[4]).all()
    assert np.isnan(data.sems[:, 0]).all()
    assert (data.sems[done, 1] == 0).all()
    assert np.allclose(data.slacks[done, 0], [0.8 - v["m"] for v, ok in zip(values, done, strict=True) if ok])
    assert data.feasible.tolist() == [ok and v["m"] <= 0.8 for v, ok in zip(values, done, strict=True)]
    assert data.worst_targets == tuple(data.targets[done].min(axis=0))
    # whatever the frame goes through
    for frame in (journal.history().sample(frac=1.0, random_state=0), pd.read_csv(_csv(journal.history()))):
        assert np.array_equal(Dataset.read(SPACE, frame).targets, data.targets, equal_nan=True)
    again = Dataset.read(SPACE, journal.history(), data)
    assert all(now is before for now, before in zip(again.rows, data.rows, strict=True))


def _csv(frame: pd.DataFrame) -> Any:
    import io

    return io.StringIO(frame.to_csv(index=False))


def test_a_history_of_one_objective_has_no_matrix() -> None:
    journal = MemoryJournal(SPACE.names, maximize=True)
    run(journal, make_optimizer("sobol", SPACE), 3)
    data = Dataset.read(SPACE, journal.history())
    assert (data.objectives, data.targets.shape, data.slacks.shape, data.worst_targets) == ((), (3, 0), (3, 0), ())
    odd = Space({"target_x": Float(0.0, 1.0), "target_y": Float(0.0, 1.0)})  # parameters may have such names
    frame = pd.DataFrame({"target_x": [0.1], "target_y": [0.2], "target": [1.0], "value": [1.0]})
    assert Dataset.read(odd, frame).objectives == ()


def test_a_row_without_one_of_the_values_is_a_fault_if_it_is_completed() -> None:
    frame = pd.DataFrame({"x": [0.1, 0.2], "k": [1, 2], "y": [0.1, 0.2], "value": 1.0, "target": 1.0})
    frame["target_a"], frame["target_b"] = [1.0, 1.0], [math.nan, 2.0]
    with pytest.raises(ConfigError, match="trial 0: completed without a target_b"):
        Dataset.read(SPACE, frame)
    frame["state"] = ["diverged", "completed"]
    assert [row.observed for row in Dataset.read(SPACE, frame)] == [False, True]


@pytest.mark.parametrize(("name", "settings"), [*DESIGNS, *BO, *OPTUNA], ids=str)
def test_asks_are_pure_whatever_the_number_asked_at_once(name: str, settings: dict[str, Any]) -> None:
    pytest.importorskip("optuna")
    journal = several()
    run(journal, make_optimizer(name, SPACE, 1, **settings), 12)
    history = journal.history()
    three = make_optimizer(name, SPACE, 1, **settings).ask(history, 3)
    assert len(three.proposals) == 3
    again = make_optimizer(name, SPACE, 1, **settings).ask(history.sample(frac=1.0, random_state=1), 3)
    assert again.proposals == three.proposals
    optimizer, singles = make_optimizer(name, SPACE, 1, **settings), []
    for _ in range(3):
        ask = optimizer.ask(journal.history(), 1)
        journal.append("asked", trials=asked_rows(ask, journal.record.next_trial, 0))
        singles += ask.proposals
    assert tuple(singles) == three.proposals


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_optuna_searches_for_the_front_and_stays_within_the_constraints(sampler: str) -> None:
    pytest.importorskip("optuna")
    space = Space({name: Float(0.0, 1.0) for name in ("x", "y", "z")})
    goals = Goals((Goal("a", "minimize"), Goal("b", "minimize")), (Bound("m", at_most=0.5),))
    made: dict[str, list[float]] = {}
    for name, options in (("optuna", {"sampler": sampler}), ("random", {})):
        journal = MemoryJournal(space.names, maximize=False, goals=goals)
        optimizer = make_optimizer(name, space, 0, **options)
        for number in range(80):
            ask = optimizer.ask(journal.history(), 1)
            journal.append("asked", trials=asked_rows(ask, number, 0))
            p = {key: float(value) for key, value in ask.proposals[0].parameters.items()}
            metrics = {"a": p["x"] + p["y"] + p["z"], "b": 1 - p["x"] + p["y"] + p["z"], "m": p["y"]}
            ended = {"state": "completed", "value": metrics["a"], "metrics": metrics}
            journal.append("ended", trial=number, attempt=None, **ended)
        last = journal.history().tail(30)
        made[name] = [float((last["value_a"] + last["value_b"]).mean()), float(last["feasible"].eq(True).mean())]
    assert made["optuna"][0] < made["random"][0]
    assert made["optuna"][1] > made["random"][1]


def test_starting_points_come_first_with_several_objectives_too() -> None:
    pytest.importorskip("optuna")
    start = {"x": 0.25, "k": 3, "y": 0.5}
    space = Space({name: SPACE.parameters[name] for name in SPACE.names}, start=[start])
    history = several().history()
    made = make_optimizer("optuna", space, 0, sampler="nsga2").ask(history, 3).proposals
    assert made[0].parameters == start
    alone = make_optimizer("optuna", space, 0, sampler="nsga2")
    journal = several()
    journal.append("asked", trials=asked_rows(alone.ask(history, 1), 0, 0))
    assert alone.ask(journal.history(), 2).proposals == made[1:]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_of_one_objective_say_so(name: str) -> None:
    settings = make_settings(name, {})
    if OPTIMIZERS[name].several_objectives:
        assert several_faults(name, settings) == constraint_faults(name, settings) == []
        return
    accepted = "accepted: " + ", ".join(other for other, entry in OPTIMIZERS.items() if entry.several_objectives)
    assert "bo" in accepted
    assert several_faults(name, settings) == [
        f"optimizer={name}: has one objective only, and objective.metrics names several; {accepted}"
    ]
    assert constraint_faults(name, settings) == [f"optimizer={name}: cannot keep objective.constraints; {accepted}"]


def test_a_sampler_of_one_objective_says_so() -> None:
    settings = make_settings("optuna", {"sampler": "cmaes"})
    assert "accepted: nsga2, tpe, gp" in several_faults("optuna", settings)[0]
    assert "accepted: nsga2, tpe, gp" in constraint_faults("optuna", settings)[0]
