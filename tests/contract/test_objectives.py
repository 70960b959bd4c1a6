"""What every objective must do, walked over the table of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.errors import ConfigError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.registry import OBJECTIVES, parse_objective
from hpo_cluster.record.layout import resources_dir
from hpo_cluster.space import Float, Space

MADE: dict[str, dict[str, Any]] = {
    "lora": compose([], check_files=False).identity()["objective"],
    "command": {"kind": "command", "command": "python train.py {x}"},
    "function": {"kind": "function", "function": "math:sqrt"},
    "synthetic": {"kind": "synthetic", "function": "branin"},
    "surrogate": {"kind": "surrogate", "campaign": "/absolute/c", "metric": "acc", "until": 9, "noise": 0.1}
    | {"direction": "maximize"},
    "elsewhere": {"kind": "elsewhere", "metric": "accuracy"},
}


def test_every_objective_is_walked() -> None:
    assert set(MADE) == set(OBJECTIVES)
    assert len(MADE) >= 4


@pytest.fixture(params=MADE, name="objective")
def each(request: pytest.FixtureRequest) -> Objective:
    return parse_objective(MADE[request.param])


def resolve(path: str) -> Path:
    return Path("/absolute") / path.rpartition(":")[2]


def test_its_program_is_there_and_starts_with_its_own_copy_of_the_package(objective: Objective) -> None:
    program = resources_dir() / "jobs" / objective.program
    assert program.is_file()
    assert "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))" in program.read_text()


def test_it_comes_back_from_its_identity(objective: Objective) -> None:
    plain = json.loads(json.dumps(objective.model_dump(mode="json")))
    assert parse_objective(plain) == objective


def test_job_settings_are_plain_and_absolute(objective: Objective) -> None:
    settings = objective.job_settings(resolve)
    assert json.loads(json.dumps(settings)) == settings
    assert not any(text in json.dumps(settings) for text in ("bundle:", "storage:"))


def test_it_has_a_short_label_and_a_direction(objective: Objective) -> None:
    assert objective.label
    assert "/" not in objective.label
    assert objective.direction in ("maximize", "minimize")


def test_an_outcome_holds_value_error_and_metrics(objective: Objective) -> None:
    name = objective.metric or "value"
    outcome = objective.outcome({"metrics": {name: 0.5, "other": 1}, "sems": {name: 0.1}})
    assert (outcome.value, outcome.value_sem, outcome.metrics) == (0.5, 0.1, {name: 0.5, "other": 1.0})
    assert math.isnan(objective.outcome({"metrics": {name: 0.5}}).value_sem)
    with pytest.raises(KeyError):
        objective.outcome({"metrics": {"something_else": 1.0}})


@pytest.mark.parametrize("kind", ["lora", "command", "synthetic"])  # a function takes any keyword
def test_a_space_that_is_not_its_own_is_a_fault(kind: str) -> None:
    assert parse_objective(MADE[kind]).space_faults(Space({"no_such_parameter": Float(0.0, 1.0)}))


def test_an_unknown_setting_is_a_fault(objective: Objective) -> None:
    with pytest.raises(ConfigError, match="colour"):
        parse_objective({**objective.model_dump(mode="json"), "colour": "red"})


def test_it_says_which_rungs_it_can_have(objective: Objective) -> None:
    assert bool(objective.FIDELITIES) == (objective.kind != "elsewhere")  # which never evaluates anything
    for kind in ("steps", "data", "items", "share"):
        faults = objective.fidelity_faults(Ladder(kind, (0.5, 1.0)))
        if kind not in objective.FIDELITIES:
            accepted = f"accepted: {', '.join([*objective.FIDELITIES, 'off'])}"
            assert faults == [
                f"fidelity={kind}: objective={objective.kind} cannot be looked at early this way; {accepted}"
            ]
        elif objective.kind != "command":  # that of `MADE` does not use the share
            assert faults == []
