"""The evaluations of the village table against real attempts of a job, on the bundled model."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.village.evaluate import SHARES, Evaluator, configuration, rung_steps
from benchmarks.village.table import configurations, load, read_space, trials
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.files import dumps
from hpo_cluster.record.layout import resources_dir
from hpo_cluster.space import Configuration

EVERYWHERE = {f"lora_{name}": True for name in ("query", "key", "value", "projection", "mlp", "head")}
SMALL: Configuration = {
    **EVERYWHERE,
    "lora_rank": 4,
    "lora_alpha_rule": "free",
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "learning_rate": 0.003,
    "lr_schedule": "cosine",
    "lr_warmup_share": 0.1,
    "weight_decay": 0.01,
    "beta1": 0.9,
    "beta2": 0.99,
    "epsilon": 1e-8,
    "global_batch_size": 32,
    "precision": "32-true",
    "epochs": 1,
}
CASES: dict[str, Configuration] = {
    "float32": SMALL,
    "bfloat16": {**SMALL, "precision": "bf16-true", "lora_head": False, "lr_schedule": "linear"},
    "wsd": {**SMALL, "lr_schedule": "wsd"},
}


@pytest.fixture(scope="module")
def evaluator() -> Evaluator:
    return Evaluator()


@pytest.fixture(scope="module")
def measured(evaluator: Evaluator) -> Callable[[str], dict[str, Any]]:
    """The row of a case with seed 3, made once."""
    return functools.cache(lambda case: evaluator(CASES[case], seed=3))


def attempt(folder: Path, parameters: Configuration, seed: int) -> dict[str, Any]:
    """Return the result of a real attempt in a process of its own."""
    config = configuration()
    params = {"schema": SCHEMA, "seed": seed, "baseline": False, "parameters": parameters}
    params["settings"] = config.objective.job_settings(config.resolve)
    folder.mkdir()
    (folder / "params.json").write_text(dumps(params))
    program = resources_dir() / "jobs" / "lora.py"
    subprocess.run([sys.executable, program, folder], check=True, capture_output=True)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.parametrize("case", CASES)
def test_the_last_look_is_what_a_real_attempt_gives(
    case: str, measured: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    row = measured(case)
    result = attempt(tmp_path / "a0", CASES[case], seed=3)
    last = row["looks"]["1"]
    names = [f"{task}/{metric}" for task in ("village_val", "village_test") for metric in ("acc", "acc_norm")]
    for name in (*names, "val_loss"):
        assert last[name] == round(result["metrics"][name], 6), name
    assert last["train_loss"] == round(result["curve"][-1]["train_loss"], 6)  # the loss of the last step alone
    for name in ("steps", "examples", "tokens", "trainable_parameters"):
        assert row[name] == result[name]
    assert last["village_val/acc"] > 0.4  # it has learned something, so the comparison is of more than chance
    assert [look["step"] for look in row["looks"].values()] == [3, 10, 30]


def test_a_row_of_the_table_is_measured_again(evaluator: Evaluator) -> None:
    space, rows = read_space(), trials(load())
    rows = rows[(rows["precision"] == "32-true") & (rows["val_acc"] > 0.85)].nsmallest(1, "planned_steps")
    again = evaluator(configurations(rows, space)[0], seed=0)
    for share, suffix in (("1", ""), ("1/3", "@1/3"), ("1/9", "@1/9")):
        look = again["looks"][share]
        assert look["village_val/acc"] == pytest.approx(rows[f"val_acc{suffix}"].iloc[0], abs=0.02)
        assert look["val_loss"] == pytest.approx(rows[f"val_loss{suffix}"].iloc[0], abs=0.01)


@pytest.mark.parametrize("case", ["float32", "wsd"])
def test_looking_does_not_change_the_training(
    case: str, measured: Callable[[str], dict[str, Any]], evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = measured(case)
    assert ("decay_s" in seen["looks"]["1/3"]) == (case == "wsd")
    monkeypatch.setattr("benchmarks.village.evaluate.rung_steps", lambda steps: {"1": steps})
    unseen = evaluator(CASES[case], seed=3)
    assert list(unseen["looks"]) == ["1"]
    assert metrics(seen["looks"]["1"]) == metrics(unseen["looks"]["1"])


def metrics(look: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in look.items() if not name.endswith("_s")}


def test_a_shorter_training_ends_with_its_schedule(evaluator: Evaluator) -> None:
    constant: Configuration = {**SMALL, "lr_schedule": "constant", "lr_warmup_share": 0.0}
    looked_at, ended = evaluator(constant, seed=0), evaluator(constant, seed=0, share="1/3")
    assert list(ended["looks"]) == ["1/3"]
    assert (ended["steps"], ended["schedule_steps"]) == (10, 10)
    # where the schedule is constant, ending early and looking early are the same thing
    assert metrics(ended["looks"]["1/3"]) == metrics(looked_at["looks"]["1/3"])
    curved = evaluator(SMALL, seed=0, share="1/3")
    assert metrics(curved["looks"]["1/3"]) != metrics(ended["looks"]["1/3"])


def test_a_training_that_diverges_is_a_row_with_an_error(evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    summed_loss = evaluator.job.summed_loss

    def broken(run: Any, micro_batches: Any, weight: float, *, step: int | None) -> Any:
        return summed_loss(run, micro_batches, weight, step=step) * (float("nan") if step == 20 else 1.0)

    monkeypatch.setattr(evaluator.job, "summed_loss", broken)
    row = evaluator(SMALL, seed=0)
    assert row["error"]["kind"] == "diverged"
    assert "nan" in row["error"]["message"]
    assert list(row["looks"]) == ["1/9", "1/3"]
    assert row["steps"] < 30


def test_shares_of_few_steps() -> None:
    assert rung_steps(30) == {"1/9": 3, "1/3": 10, "1": 30}
    assert rung_steps(2) == {"1/9": 1, "1/3": 1, "1": 2}
    assert list(SHARES) == ["1/9", "1/3", "1"]
