"""`bo` with several objectives, and with constraints on what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo_cluster.goals import Bound, Goal, Goals, hypervolume, undominated
from hpo_cluster.objectives.benchmark_functions import zdt1
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.bayesian.bo import NEAR
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.registry import make_optimizer, make_settings, several_faults
from hpo_cluster.record.campaign_state import asked_rows
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Space

CUBE = Space({name: Float(0.0, 1.0) for name in ("x", "y", "z")})
TWO = Goals((Goal("a", "minimize"), Goal("b", "minimize")))
#: Settings with which a proposal takes a fifth of the time.
QUICK: dict[str, Any] = {"initial": 5, "restarts": 1, "raw_samples": 64, "mc_samples": 64}

Measure = Callable[[Configuration], Mapping[str, float]]


def two_of_zdt1(configuration: Configuration) -> dict[str, float]:
    a, b = zdt1(np.array([configuration[name] for name in CUBE.names], dtype=np.float64))
    return {"a": a, "b": b}


def run(optimizer: Optimizer, goals: Goals, measure: Measure, count: int, pending: int = 0) -> MemoryJournal:
    """Ask for trials one by one and end each; the last ones stay in flight."""
    journal = MemoryJournal(optimizer.space.names, maximize=goals.metrics[0].direction == "maximize", goals=goals)
    for number in range(count + pending):
        ask = optimizer.ask(journal.history(), 1)
        journal.append("asked", trials=asked_rows(ask, number, 0))
        if number < count:
            metrics = dict(measure(dict(ask.proposals[0].parameters)))
            value = metrics[goals.metrics[0].name]
            journal.append("ended", trial=number, attempt=None, state="completed", value=value, metrics=metrics)
    return journal


def volume(journal: MemoryJournal, reference: tuple[float, float]) -> float:
    frame = journal.history()
    frame = frame[frame["feasible"].eq(True)]
    return hypervolume(undominated(zip(frame["target_a"], frame["target_b"], strict=True)), reference)


def edges_of_a_circle(configuration: Configuration) -> dict[str, float]:
    """DTLZ2 of two objectives: whatever the others are, one of them is 0 where x is 0 or 1."""
    radius, angle = 1 + 4 * sum((float(configuration[n]) - 0.5) ** 2 for n in ("y", "z")), float(configuration["x"])
    return {"a": radius * math.cos(angle * math.pi / 2), "b": radius * math.sin(angle * math.pi / 2)}


def distances_from_the_front(goals: Goals) -> list[float]:
    """Return how far, on an axis, trials 8 to 11 are from the nearest point of the front, with 0 to 3 in flight."""
    bo = make_optimizer("bo", CUBE, 0, **QUICK)
    history = run(bo, goals, edges_of_a_circle, 8).history()
    front = [CUBE.encode(history.loc[trial, list(CUBE.names)].to_dict()) for trial in history.index[history["front"]]]
    points = [CUBE.encode(dict(proposal.parameters)) for proposal in bo.ask(history, 4).proposals]
    return [min(float(np.abs(point - other).max()) for other in front) for point in points]


def test_of_the_proposals_in_flight_together_one_may_lie_anywhere() -> None:
    first, *others = distances_from_the_front(TWO)
    assert first > NEAR
    assert max(others) <= NEAR + 1e-9


def test_with_constraints_all_proposals_may_lie_anywhere() -> None:
    found = distances_from_the_front(Goals(TWO.metrics, (Bound("a", at_most=1.5),)))
    assert max(found[1:]) > NEAR + 0.1


def test_the_front_is_far_larger_than_that_of_random_search() -> None:
    found = [
        volume(run(optimizer, TWO, two_of_zdt1, 18), (-1.1, -1.1))
        for optimizer in (make_optimizer("bo", CUBE, 0, **QUICK), make_optimizer("random", CUBE, 0))
    ]
    assert found[0] > 0.6  # of 0.877
    assert found[0] > found[1] + 0.3


@pytest.mark.parametrize("count", [1, 2])
def test_constraints_are_kept(count: int) -> None:
    """The unconstrained optimum violates them; most proposals do not, and some lie near the edge."""
    goals = Goals(TWO.metrics[:count], (Bound("m", at_least=1.0), Bound("n", at_most=0.8)))

    def measure(c: Configuration) -> dict[str, float]:
        x, y, z = (float(c[name]) for name in CUBE.names)
        return {"a": x + y + 0.1 * z, "b": 1 - x + y + 0.1 * z, "m": x + 2 * y, "n": z + 0.1 * y}

    journal = run(make_optimizer("bo", CUBE, 0, **QUICK), goals, measure, 15)
    last = journal.history().tail(8)
    assert last["feasible"].eq(True).mean() >= 0.5
    assert last["slack_m"].abs().min() < 0.1
    if count == 1:  # the best is y = 0.5 with x = 0, or any x on the edge: a = (1 + x) / 2
        assert journal.history().query("feasible == True")["value_a"].min() < 0.6


@pytest.mark.parametrize("acquisition", ["log_ei", "ucb", "thompson", "parego"])
def test_every_acquisition_keeps_the_constraints_of_one_objective(acquisition: str) -> None:
    goals = Goals((Goal("a", "maximize"),), (Bound("m", at_most=0.5),))

    def measure(c: Configuration) -> dict[str, float]:
        return {"a": float(c["x"]) - (float(c["y"]) - 0.3) ** 2, "m": float(c["x"])}

    journal = run(make_optimizer("bo", CUBE, 0, acquisition=acquisition, **QUICK), goals, measure, 11)
    last = journal.history().tail(6)
    assert last["feasible"].eq(True).mean() >= 0.5
    assert last["x"].max() > 0.4
    assert last["x"].min() < 0.55


def test_without_any_feasible_trial_it_looks_for_one() -> None:
    goals = Goals(TWO.metrics, (Bound("m", at_most=-1.0),))

    def measure(c: Configuration) -> dict[str, float]:
        return {**two_of_zdt1(c), "m": 4 * sum((float(u) - 0.9) ** 2 for u in c.values()) - 1.02}

    journal = run(make_optimizer("bo", CUBE, 0, **QUICK), goals, measure, 12)
    assert not journal.history()["feasible"][:5].any()
    assert journal.history()["feasible"].any()


def test_nothing_is_compiled_into_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is killed while BoTorch compiles would leave a lock that the next one waits for without end."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    run(make_optimizer("bo", CUBE, 0, **QUICK), TWO, two_of_zdt1, 8)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_without_noise_is_given_next_to_none() -> None:
    space = Space({"rank": Integer(1, 64), "x": Float(0.0, 1.0), "kind": Categorical(("a", "b", "c"))})
    goals = Goals((Goal("acc", "maximize"), Goal("size", "minimize")))
    rng = np.random.default_rng(0)

    def measure(c: Configuration) -> dict[str, float]:
        return {"acc": float(c["x"]) + float(c["rank"]) / 64 + 0.1 * rng.normal(), "size": 2048.0 * float(c["rank"])}

    journal = run(make_optimizer("random", space, 0), goals, measure, 30)
    models = make_optimizer("bo", space, 0, **QUICK).ask(journal.history(), 1).decision["model"]["objectives"]
    assert models["size"]["noise"] < 0.05 * 2048  # of a twentieth of a rank
    assert 0.05 < models["acc"]["noise"] < 0.2


@pytest.mark.parametrize("ended", [4, 5])
def test_the_initial_design_goes_on_until_its_trials_have_ended(ended: int) -> None:
    journal = run(make_optimizer("bo", CUBE, 0, **QUICK), TWO, two_of_zdt1, ended, pending=3)
    phases = [p.info["phase"] for p in make_optimizer("bo", CUBE, 0, **QUICK).ask(journal.history(), 2).proposals]
    assert phases == ["initial" if ended < QUICK["initial"] else "model"] * 2


def test_trials_in_flight_change_the_proposal() -> None:
    journal = run(make_optimizer("bo", CUBE, 0, **QUICK), TWO, two_of_zdt1, 6)
    frame = journal.history()
    first = make_optimizer("bo", CUBE, 0, **QUICK).ask(frame, 3).proposals
    points = np.array([list(proposal.parameters.values()) for proposal in first], dtype=np.float64)
    apart = np.abs(points[:, None] - points[None]).max(axis=2)[np.triu_indices(3, 1)]
    assert (apart > 0.01).all()


def test_a_given_reference_counts_and_is_read_from_the_history() -> None:
    """Beyond a reference of a short part of the front nothing is gained, so that proposals stay in it."""
    near = Goals((Goal("a", "minimize", reference=0.3), Goal("b", "minimize")))
    journal = run(make_optimizer("bo", CUBE, 0, **QUICK), near, two_of_zdt1, 11)
    assert Dataset.read(CUBE, journal.history()).references[0] == -0.3
    assert math.isnan(Dataset.read(CUBE, journal.history()).references[1])
    assert journal.history().tail(5)["value_a"].max() < 0.4
    decision = make_optimizer("bo", CUBE, 0, **QUICK).ask(journal.history(), 1).decision
    assert decision["model"]["reference"][0] == -0.3


def test_failed_trials_and_constants_are_understood() -> None:
    goals = Goals((Goal("a", "minimize"), Goal("b", "minimize"), Goal("c", "minimize")), (Bound("m", at_most=1),))
    journal = MemoryJournal(CUBE.names, maximize=False, goals=goals)
    ask = make_optimizer("sobol", CUBE).ask(journal.history(), 12)
    journal.append("asked", trials=asked_rows(ask, 0, 0))
    for number, proposal in enumerate(ask.proposals):
        metrics = {**two_of_zdt1(dict(proposal.parameters)), "c": 3.0, "m": 0.0}
        ended: dict[str, Any] = {"state": "completed", "value": metrics["a"], "metrics": metrics}
        if number in (3, 7):
            ended = {"state": "diverged" if number == 3 else "infeasible"}
        journal.append("ended", trial=number, attempt=None, **ended)
    decision = make_optimizer("bo", CUBE, 0, **QUICK).ask(journal.history(), 1).decision
    assert "fallback" not in decision
    assert list(decision["model"]["objectives"]) == ["a", "b"]  # c is the same everywhere, and so is the constraint
    assert decision["model"]["constraints"] == []
    assert decision["observations"] == 11
    assert decision["infeasible"] == 1


def test_many_objectives_are_weighted() -> None:
    goals = Goals(tuple(Goal(f"f{i}", "minimize") for i in range(5)))

    def measure(c: Configuration) -> dict[str, float]:
        x, y, z = (float(c[name]) for name in CUBE.names)
        return {f"f{i}": (x - i / 4) ** 2 + (y - 0.5) ** 2 + z for i in range(5)}

    journal = run(make_optimizer("bo", CUBE, 0, **QUICK), goals, measure, 12)
    last = journal.history().tail(6)
    assert last["z"].mean() < 0.2
    assert (last["y"] - 0.5).abs().mean() < 0.25
    assert last["x"].max() - last["x"].min() > 0.2


def test_acquisitions_of_one_objective_are_refused() -> None:
    for name in ("log_ei", "ucb", "thompson"):
        faults = several_faults("bo", make_settings("bo", {"acquisition": name}))
        assert faults == [
            f"optimizer.acquisition={name}: has one objective only, and objective.metrics names several; "
            "accepted: qlognei, parego"
        ]
    assert several_faults("bo", make_settings("bo", {"acquisition": "parego"})) == []
