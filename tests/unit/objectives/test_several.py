"""What users type for several objectives, on every kind of objective, and what jobs answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import Bound, Goal, Goals
from hpo_cluster.objectives.black_box import needed_metrics, read_output
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.objectives.function import FunctionObjective
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.objectives.synthetic import SyntheticObjective
from hpo_cluster.trial import ErrorKind

LORA: dict[str, Any] = {
    "kind": "lora",
    "model": {"name": "m", "checkpoint_dir": "bundle:m"},
    "data": {"name": "d", "path": "bundle:d"},
    "tasks": {"name": "t", "validation": "val", "test": ["test"]},
    "train": {},
}
UP, DOWN = {"name": "up", "direction": "maximize"}, {"name": "down", "direction": "minimize"}


def lora(**settings: Any) -> LoraObjective:
    return LoraObjective.model_validate({**LORA, **settings})


def command(**settings: Any) -> CommandObjective:
    return CommandObjective(command="echo {x}", **settings)


def result(metrics: Mapping[str, float], **more: Any) -> dict[str, Any]:
    return {"metrics": dict(metrics), **more}


def test_one_objective_is_written_as_ever() -> None:
    for objective in (command(), lora(), SyntheticObjective(), FunctionObjective(function="m:f")):
        assert objective.goals is None
        for written in (objective.identity(), objective.model_dump(mode="json")):
            assert not {"metrics", "constraints"} & written.keys()
        outcome = objective.outcome(result({objective.metric or "value": 1.0}, gpu_seconds=3.0))
        assert (outcome.value, outcome.metrics, outcome.sems) == (1.0, {objective.metric: 1.0}, {})


def test_names_get_their_directions_and_the_names_of_results() -> None:
    made = lora(metrics=["acc", "gpu_seconds", "val_loss"], constraints=[{"name": "peak_memory_gb", "at_most": 40}])
    assert [(goal.name, goal.direction) for goal in made.metrics] == [
        ("val/acc", "maximize"),
        ("gpu_seconds", "minimize"),
        ("val_loss", "minimize"),
    ]
    assert (made.metric, made.direction) == ("val/acc", "maximize")
    assert parse_objective(made.identity()) == made  # what a campaign records means the same
    assert lora(metrics=["val_loss", "acc"]).direction == "minimize"
    assert command(metrics=[UP, "gpu_seconds"]).metrics[1].direction == "minimize"
    assert "metrics" in made.job_settings(Path)


def test_a_test_function_may_bring_its_objectives_and_constraints() -> None:
    made = SyntheticObjective(function="bnh")
    assert [goal.name for goal in made.metrics] == ["f1", "f2"]
    assert [(bound.name, bound.at_most, bound.at_least) for bound in made.constraints] == [
        ("g1", 25.0, None),
        ("g2", None, 7.7),
    ]
    assert SyntheticObjective(function="bnh", metrics=["f1", "gpu_seconds"]).metrics[1].name == "gpu_seconds"


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        (
            {"metrics": [UP]},
            [
                "objective.metrics=[up]: several objectives are two or more; leave it out to optimise one with "
                "objective.metric=up"
            ],
        ),
        ({"metrics": [UP, UP, DOWN]}, ["objective.metrics: up is named twice"]),
        (
            {"metrics": ["gpu_secnds", DOWN]},
            ["gpu_secnds is better; did you mean gpu_seconds? give {name: gpu_secnds, direction: maximize}"],
        ),
        ({"metrics": [UP, {**DOWN, "referenc": 1}]}, ["referenc is not a key of an entry; did you mean reference?"]),
        ({"metrics": [UP, {**DOWN, "reference": math.inf}]}, ["the reference of down must be finite"]),
        (
            {"metrics": [UP, DOWN], "constraints": [{"name": "m"}, {"name": "n", "at_least": 2, "at_most": 1}]},
            ["m needs a number: at_most: 40, or at_least", "no n is at least 2 and at most 1"],
        ),
        (
            {"metrics": [UP, DOWN], "constraints": [{"name": "m", "at_most": 1}, {"name": "m", "at_least": 0}]},
            ["objective.constraints: m is named twice"],
        ),
        ({"metrics": [UP, {**DOWN, "direction": "up"}]}, ["maximize"]),
        ({"metrics": [UP, {"direction": "minimize"}]}, ["name"]),
        ({"metrics": "up,down"}, ["must be a list of two or more, such as [accuracy, gpu_seconds]"]),
        ({"constraints": {"name": "m", "at_most": 1}}, ["must be a list, such as [{name: memory_gb, at_most: 40}]"]),
        ({"metrics": [UP, {"name": "gpu_seconds", "direction": "maximize"}]}, ["less gpu_seconds is better"]),
    ],
)
def test_what_cannot_be_several_objectives(settings: dict[str, Any], faults: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        command(**settings)
    for fault in faults:
        assert fault in str(raised.value)


def test_one_objective_with_constraints_is_written_out() -> None:
    bound = {"name": "peak_memory_gb", "at_most": 40}
    made = command(constraints=[bound], direction="minimize")
    assert made.metrics == (Goal("value", "minimize"),)
    assert made.goals == Goals((Goal("value", "minimize"),), (Bound("peak_memory_gb", at_most=40),))
    assert command(metrics=[UP], constraints=[bound]).metric == "up"
    tuned = lora(constraints=[bound])
    assert (tuned.metric, tuned.direction, tuned.metrics) == ("val/acc", "maximize", (Goal("val/acc", "maximize"),))
    assert [wanted.key for wanted in tuned.wanted] == ["tasks.metric=acc", "objective.constraints: peak_memory_gb"]
    for objective in (made, tuned):  # a recorded campaign reads the same
        again = type(objective).model_validate(objective.model_dump(mode="json"))
        assert again.identity() == objective.identity()
    outcome = made.outcome(result({"value": 1.0, "peak_memory_gb": 30.0}))
    assert outcome.value == 1.0
    with pytest.raises(KeyError, match="peak_memory_gb"):
        made.outcome(result({"value": 1.0}))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"metrics": ["acc", "test/acc"]}, "objective.metrics: test/acc: test is a test task: it is only recorded"),
        (
            {"metrics": ["acc", "train_s"], "constraints": [{"name": "test/acc", "at_least": 0.5}]},
            "objective.constraints: test/acc: test is a test task",
        ),
        ({"metrics": [{"name": "acc", "direction": "minimize"}, "train_s"]}, "more val/acc is better"),
        ({"metrics": ["acc", "val_loss"], "train": {"validation_batches": 0}}, "val_loss: train.validation_batches=0"),
    ],
)
def test_what_cannot_be_objectives_of_a_fine_tuning(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        lora(**settings)


def test_an_outcome_has_every_metric_or_names_those_that_are_missing() -> None:
    made = command(metrics=[UP, "gpu_seconds"], constraints=[{"name": "memory", "at_most": 1}])
    outcome = made.outcome(result({"up": 0.5, "memory": 2.0}, sems={"up": 0.1}, gpu_seconds=7.0))
    assert (outcome.value, outcome.value_sem, outcome.sems) == (0.5, 0.1, {"up": 0.1})
    assert outcome.metrics == {"up": 0.5, "memory": 2.0, "gpu_seconds": 7.0}
    with pytest.raises(KeyError) as raised:
        made.outcome(result({"other": 1.0}))
    assert raised.value.args == ("up", "gpu_seconds", "memory")


def test_a_metric_without_noise_has_a_standard_error_of_zero_and_no_other_one_gets_it() -> None:
    made = lora(metrics=["acc", "trainable_parameters", "gpu_seconds"])
    metrics = {"val/acc": 0.5, "trainable_parameters": 100.0, "gpu_seconds": 3.0}
    assert made.outcome(result(metrics, sems={"val/acc": 0.02})).sems == {"val/acc": 0.02, "trainable_parameters": 0.0}


def test_a_black_box_reports_all_that_is_needed() -> None:
    settings = command(metrics=[UP, DOWN, "gpu_seconds"], constraints=[{"name": "m", "at_most": 1}]).model_dump()
    assert needed_metrics(settings) == ("up", "down", "m")
    assert needed_metrics(command().model_dump()) == ("value",)
    assert read_output({"up": 1, "down": 2, "down_sem": 0.5, "m": 3}, "up", "down", "m") == {
        "metrics": {"up": 1.0, "down": 2.0, "m": 3.0},
        "sems": {"down": 0.5},
    }
    with pytest.raises(AttemptError, match="metric 'down': missing; got up; metric 'm': missing") as missing:
        read_output({"up": 1.0}, "up", "down", "m")
    assert missing.value.kind == ErrorKind.BAD_RESULT
    with pytest.raises(AttemptError, match="metric 'down' is nan") as diverged:
        read_output({"up": 1.0, "down": math.nan}, "up", "down")
    assert diverged.value.kind == ErrorKind.DIVERGED
    with pytest.raises(AttemptError, match="metric 'up' is nan") as diverged:  # and measured nothing else
        read_output({"up": math.nan}, "down", "up")
    assert diverged.value.kind == ErrorKind.DIVERGED
