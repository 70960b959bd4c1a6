"""Three fine-tunings in one process have exactly the results of three processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lora_bench import PROGRAM, adapter, learned, max_difference, write_attempt, write_data
from lora_bench import objective as village_objective

from hpo_cluster.objectives.lora import kept
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import Next, publish_next

#: One after another: other ranks, seeds and lengths, dropout, few-shot examples.
CONFIGURATIONS: list[dict[str, Any]] = [
    {"lora_rank": 4, "learning_rate": 4e-3, "lora_dropout": 0.1},
    {"lora_rank": 16, "learning_rate": 1e-3, "lora_dropout": 0.0, "weight_decay": 0.1},
    {"lora_rank": 2, "learning_rate": 8e-3, "lora_dropout": 0.2},
]
DIVERGES = {"lora_rank": 4, "learning_rate": 1e30}


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> LoraObjective:
    data = write_data(tmp_path_factory.mktemp("lora") / "data")
    settings = village_objective(data).model_dump()
    settings["tasks"]["num_fewshot"] = 2
    return LoraObjective.model_validate(settings)


def run(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], capture_output=True, text=True, timeout=300, check=False
    )
    assert (folder / "claim").exists(), done.stderr


def alone(folder: Path, objective: LoraObjective, configurations: list[dict[str, Any]]) -> list[Path]:
    folders = []
    for number, parameters in enumerate(configurations):
        folders.append(write_attempt(folder / f"a{number}", objective, seed=100 + number, parameters=parameters))
        run(folders[-1])
    return folders


def together(folder: Path, objective: LoraObjective, configurations: list[dict[str, Any]]) -> list[Path]:
    folders = []
    for number, parameters in enumerate(configurations):
        job = {"token": f"a{number}", "turn": number + 1, "trials_per_job": len(configurations), "linger_s": 60.0}
        made = write_attempt(folder / f"a{number}", objective, seed=100 + number, parameters=parameters, **job)
        folders.append(made)
    for before, after in itertools.pairwise(folders):
        publish_next(AttemptLayout(before), Next(after, after.name))
    run(folders[0])
    return folders


@pytest.fixture(scope="module")
def each_alone(objective: LoraObjective, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return alone(tmp_path_factory.mktemp("alone"), objective, CONFIGURATIONS)


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def same(one: Path, other: Path) -> None:
    """Both attempts have learned the same, to the last digit."""
    first, second = result(one), result(other)
    assert learned(first) == learned(second)
    names = ("sems", "steps", "examples", "tokens", "trainable_parameters", "seeds", "train")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert max_difference(adapter(one), adapter(other)) == 0
    kept = [json.loads((folder / "items.json").read_text()) for folder in (one, other)]
    assert kept[0]["tasks"] == kept[1]["tasks"]
    assert kept[0]["token"] == first["token"]


def test_three_in_one_process(objective: LoraObjective, each_alone: list[Path], tmp_path: Path) -> None:
    folders = together(tmp_path, objective, CONFIGURATIONS)
    for mine, reference in zip(folders, each_alone, strict=True):
        same(mine, reference)
    results = [result(folder) for folder in folders]
    assert len({each["pid"] for each in results}) == 1
    assert len({each["metrics"]["train_loss"] for each in results}) == 3
    assert results[1]["seconds"]["import"] < 0.5 < results[0]["seconds"]["import"]  # paid once


def test_the_second_of_three_diverges(objective: LoraObjective, each_alone: list[Path], tmp_path: Path) -> None:
    folders = together(tmp_path, objective, [CONFIGURATIONS[0], DIVERGES, CONFIGURATIONS[2]])
    assert json.loads((folders[1] / "error.json").read_text())["kind"] == "diverged"
    same(folders[0], each_alone[0])
    same(folders[2], each_alone[2])
    assert result(folders[2])["seconds"]["import"] > 0.5  # in a fresh interpreter
    assert result(folders[2])["pid"] == result(folders[0])["pid"]


def test_a_value_is_made_again_when_its_file_or_its_settings_have_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")
    made: list[str] = []

    def make() -> str:
        made.append(file.read_text())
        return made[-1]

    def once(*settings: Any) -> str:
        return kept._once("text", make, [file], *settings)

    with kept.keeping(on=True):
        assert [once(1), once(1)] == ["a", "a"]
    with kept.keeping(on=True):
        assert once(1) == "a"
        assert len(made) == 1
        once(2)
        assert len(made) == 2
        file.write_text("another")
        assert once(2) == "another"
    with kept.keeping(on=False):
        once(2)
        assert len(made) == 4  # an attempt that is the only one of its process keeps nothing
    with pytest.raises(RuntimeError, match="it fails"), kept.keeping(on=True):
        raise RuntimeError("it fails")
    with kept.keeping(on=True):
        once(2)
    assert len(made) == 5  # forgotten after an error
    kept._kept.forget()
