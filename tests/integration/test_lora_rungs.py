"""A fine-tune that is looked at early ends as if nobody had looked, in one job or in a job for each rung."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_bench import (
    BUNDLE,
    TRAINING,
    learned,
    load_program,
    objective,
    read,
    run_attempt,
    same,
    write_attempt,
    write_data,
)
from support.waiting import wait

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import progress, tasks
from hpo_cluster.objectives.lora.rungs import some_rows
from hpo_cluster.record.files import read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.rung_files import publish_word, rung_file

#: Of the 15 steps of `TRAINING`: 2, 5 and 15.
SHARES = [1 / 9, 1 / 3, 1.0]

#: A training whose copies are finished 1 and 2 steps after the rungs, and which ends with 6 such steps.
WSD = {**TRAINING, "lr_schedule": "wsd", "lr_decay_share": 0.4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rungs") / "data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt without rungs."""
    folder = tmp_path_factory.mktemp("whole") / "a0"
    run_attempt(folder, objective(data, **TRAINING))
    return folder


def rungs(goal: int = 0, kind: str = "steps", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "shares": SHARES, "goal": goal, "first": 0, "linger_s": 0, **more}


def climb(folder: Path, what: Any, *words: bool, **params: Any) -> dict[str, Any]:
    """Run an attempt whose words are said before they are asked for."""
    write_attempt(folder, what, **params)
    start = params["rungs"]["goal"]
    for rung, go_on in enumerate(words, start):
        publish_word(AttemptLayout(folder), rung, go_on=go_on)
    status = worker.main(load_program().evaluate, [str(folder)])
    return read(folder / ("error.json" if status else "result.json"))


@pytest.mark.parametrize("draws", ["step", "litgpt"])
def test_looking_does_not_change_the_training(
    draws: str, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = tasks.score

    def drawing(*arguments: Any) -> Any:
        torch.rand(3)  # as a task may do
        return score(*arguments)

    monkeypatch.setattr(tasks, "score", drawing)
    what = objective(data, **TRAINING, dropout_draws=draws)
    if draws == "litgpt":
        whole = tmp_path / "whole" / "a0"
        run_attempt(whole, what)
    result = climb(tmp_path / "a0", what, True, True, rungs=rungs())
    same(tmp_path / "a0", whole)
    assert "rung" not in result
    assert [(each["rung"], each["share"], each["step"]) for each in result["rungs"]] == [
        (0, SHARES[0], 2),
        (1, SHARES[1], 5),
    ]


def test_each_rung_in_a_job_of_its_own_gives_the_same(data: Path, whole: Path, tmp_path: Path) -> None:
    what = objective(data, **TRAINING)
    climb(tmp_path / "one" / "a0", what, True, True, rungs=rungs())
    folders = [tmp_path / "trial" / f"a{number}" for number in range(3)]
    for goal, folder in enumerate(folders):
        previous = [str(earlier) for earlier in folders[:goal]]
        result = climb(folder, what, rungs=rungs(goal), previous=previous)
        assert result.get("rung", 2) == goal
        assert result["resumed_at"] == [2, 5][:goal]
        if goal < 2:
            rung = read(rung_file(AttemptLayout(folder), goal))
            at_once = read(rung_file(AttemptLayout(tmp_path / "one" / "a0"), goal))
            assert learned(rung) == learned(at_once)
            assert learned(rung) == learned(result)
            assert {*rung["metrics"]} > {"village_val/acc", "train_loss", "gpu_seconds", "trainable_parameters"}
            assert not [name for name in rung["metrics"] if name.startswith(("village_test", "val_"))], (
                "at the top only"
            )
            assert (folder / "checkpoint" / str(rung["step"])).is_dir()
            assert not (folder / "adapter").exists(), "its weights are in the checkpoint"
            assert not (folder / "items.json").exists(), "at the top only"
    same(folders[2], whole)
    assert read(folders[2] / "items.json") == read(whole / "items.json")
    metrics = [each["metrics"]["village_val/acc"] for each in read(folders[2] / "result.json")["rungs"]]
    assert len(metrics) == 2


@pytest.fixture(scope="module")
def whole_wsd(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt without rungs whose learning rate is constant before it falls."""
    folder = tmp_path_factory.mktemp("whole_wsd") / "a0"
    run_attempt(folder, objective(data, **WSD))
    return folder


@pytest.mark.parametrize("draws", ["step", "litgpt"])
def test_copies_that_are_finished_at_rungs_do_not_change_the_training(
    draws: str, data: Path, whole_wsd: Path, tmp_path: Path
) -> None:
    what = objective(data, **WSD, dropout_draws=draws)
    if draws == "litgpt":
        whole_wsd = tmp_path / "whole" / "a0"
        run_attempt(whole_wsd, what)
    one = climb(tmp_path / "one" / "a0", what, True, True, rungs=rungs())
    same(tmp_path / "one" / "a0", whole_wsd)
    assert (one["train"]["lr_schedule"], one["train"]["lr_decay_share"]) == ("wsd", 0.4)
    folders = [tmp_path / "trial" / f"a{number}" for number in range(3)]
    for goal, folder in enumerate(folders):
        previous = [str(earlier) for earlier in folders[:goal]]
        result = climb(folder, what, rungs=rungs(goal), previous=previous)
        assert result["resumed_at"] == [2, 5][:goal]
        if goal < 2:
            rung, at_once = (read(rung_file(AttemptLayout(each), goal)) for each in (folder, tmp_path / "one" / "a0"))
            assert learned(rung) == learned(at_once)
            assert (rung["step"], result["steps"]) == ([2, 5][goal],) * 2
    same(folders[2], whole_wsd)


def test_a_rung_scores_a_finished_copy(data: Path, tmp_path: Path) -> None:
    """As if the training had ended 2 steps after step 5, its rate falling in them; in bfloat16, as merging rounds."""
    what = {**WSD, "precision": "bf16-true"}
    climb(tmp_path / "a0", objective(data, **what), rungs=rungs(1))
    short = run_attempt(tmp_path / "b0", objective(data, **what | {"max_steps": 7, "lr_decay_share": 2 / 7}))
    assert [point["learning_rate"] for point in short["curve"]][-3:] == pytest.approx([4e-3, 4e-3, 2e-3])
    rung = read(rung_file(AttemptLayout(tmp_path / "a0"), 1))
    ours = {name: learned(rung)[name] for name in ("village_val/acc", "merge_loss", "train_loss")}
    assert ours == {name: learned(short)[name] for name in ours}
    unfinished = run_attempt(tmp_path / "c0", objective(data, **what | {"max_steps": 5, "lr_schedule": "constant"}))
    assert learned(unfinished)["train_loss"] != ours["train_loss"]


def counted(result: dict[str, Any]) -> dict[str, float]:
    """The seconds of a result's phases that count as its cost."""
    return {phase: seconds for phase, seconds in result["seconds"].items() if phase not in worker.UNCOUNTED}


def test_what_a_copy_costs_is_counted(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load_program()
    decay = job.decay

    def slowly(*arguments: Any) -> None:
        time.sleep(2)
        decay(*arguments)

    monkeypatch.setattr(job, "decay", slowly)
    what = objective(data, limit=2, **WSD)
    first = climb(tmp_path / "a0", what, rungs=rungs(1))
    plain = climb(tmp_path / "b0", objective(data, limit=2, **TRAINING), rungs=rungs(1))
    rows = [read(tmp_path / name / "result.json")["phases"] for name in ("a0", "b0")]
    assert rows[0]["rung"]["tokens"] > rows[1]["rung"]["tokens"], "those of the copy too"
    assert rows[0]["train"]["tokens"] == rows[1]["train"]["tokens"]
    assert first["tokens"] == plain["tokens"]
    spent = counted(first)
    assert spent["rung"] >= 2
    assert read(rung_file(AttemptLayout(tmp_path / "a0"), 1))["gpu_seconds"] >= 2
    second = climb(tmp_path / "a1", what, rungs=rungs(2), previous=[str(tmp_path / "a0")])
    earlier_s = second["metrics"]["gpu_seconds"] - sum(counted(second).values())
    assert earlier_s == pytest.approx(first["metrics"]["train_s"] + spent["rung"], abs=0.5), "and counted once"


def test_a_signal_while_a_copy_is_finished_keeps_the_training(
    data: Path, whole_wsd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = worker.Attempt.progress
    pending = [6]

    def interrupting(self: worker.Attempt, *, force: bool = False, **fields: Any) -> None:
        if pending == [fields.get("step")]:
            pending.clear()
            os.kill(os.getpid(), signal.SIGUSR2)
        report(self, force=force, **fields)

    monkeypatch.setattr(worker.Attempt, "progress", interrupting)
    what = objective(data, **WSD)
    error = climb(tmp_path / "a0", what, rungs=rungs(1))
    assert (error["kind"], pending) == ("interrupted", [])
    assert worker.checkpoint_step(AttemptLayout(tmp_path / "a0")) == 5, "of the training, not of the copy"
    assert not rung_file(AttemptLayout(tmp_path / "a0"), 1).exists()
    result = climb(tmp_path / "a1", what, True, rungs=rungs(1), previous=[str(tmp_path / "a0")])
    assert result["resumed_at"] == [5]
    same(tmp_path / "a1", whole_wsd)


@pytest.mark.parametrize("kind", ["data", "items"])
def test_rungs_that_end_their_training_need_no_copy(kind: str, data: Path, whole_wsd: Path, tmp_path: Path) -> None:
    result = climb(tmp_path / "a0", objective(data, **WSD), True, True, rungs=rungs(kind=kind))
    same(tmp_path / "a0", whole_wsd)
    assert len(result["rungs"]) == 2


def test_a_rung_scores_what_a_training_that_ends_there_would(data: Path, tmp_path: Path) -> None:
    """In bfloat16, where merging rounds, and with a constant learning rate, so that the steps are the same."""
    constant = {**TRAINING, "lr_schedule": "constant", "lr_warmup_steps": 0, "precision": "bf16-true"}
    climb(tmp_path / "a0", objective(data, **constant), rungs=rungs(1))
    short = run_attempt(tmp_path / "b0", objective(data, **constant, max_steps=5))
    rung = read(rung_file(AttemptLayout(tmp_path / "a0"), 1))
    ours = {name: learned(rung)[name] for name in ("village_val/acc", "merge_loss", "train_loss")}
    assert ours == {name: learned(short)[name] for name in ours}
    assert rung["sems"]["village_val/acc"] == short["sems"]["village_val/acc"]


def test_the_model_is_as_it_was_after_scoring_in_another_precision(data: Path, tmp_path: Path) -> None:
    what = objective(data, limit=4, **{**TRAINING, "precision": "bf16-true"})
    what = what.model_copy(update={"score_precision": "float32"})
    run_attempt(tmp_path / "whole" / "a0", what)
    climb(tmp_path / "b" / "a0", what, True, True, rungs=rungs())
    same(tmp_path / "b" / "a0", tmp_path / "whole" / "a0")


def test_a_validation_loss_needs_no_task(data: Path, whole: Path, tmp_path: Path) -> None:
    what = objective(data, **TRAINING)
    what = what.model_copy(
        update={"direction": "minimize", "tasks": what.tasks.model_copy(update={"metric": "val_loss"})}
    )
    climb(tmp_path / "a0", what, True, True, rungs=rungs())
    rung = read(rung_file(AttemptLayout(tmp_path / "a0"), 0))
    assert "val_loss" in rung["metrics"]
    assert "village_val/acc" not in rung["metrics"]
    same(tmp_path / "a0", whole)


def test_a_signal_at_a_rung_keeps_the_training(data: Path, whole: Path, tmp_path: Path) -> None:
    """While the model is scored: the checkpoint is there. While it waits: the attempt ends at its rung."""
    what = objective(data, **TRAINING)
    folders = [tmp_path / f"a{number}" for number in range(3)]

    def send(phase: str, folder: Path) -> threading.Thread:
        def wait_and_send() -> None:
            wait(lambda: (read_json(folder / "progress.json") or {}).get("phase") == phase)
            os.kill(os.getpid(), signal.SIGUSR2)

        thread = threading.Thread(target=wait_and_send)
        thread.start()
        return thread

    sending = send("rung", folders[0])
    error = climb(folders[0], what, rungs=rungs(0, linger_s=60))
    sending.join()
    assert error.get("kind", "ended at its rung") in ("interrupted", "ended at its rung")
    assert worker.checkpoint_step(AttemptLayout(folders[0])) == 2
    sending = send("wait", folders[1])
    ended = climb(folders[1], what, rungs=rungs(0, linger_s=60), previous=[str(folders[0])])
    sending.join()
    assert (ended["rung"], ended["resumed_at"]) == (0, [2])
    climb(folders[2], what, rungs=rungs(2), previous=[str(folder) for folder in folders[:2]])
    same(folders[2], whole)


def test_without_a_checkpoint_a_paused_trial_starts_over(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    what = objective(data, **TRAINING)
    with monkeypatch.context() as patch:
        patch.setattr(progress, "write_checkpoint", fail)
        assert climb(tmp_path / "a0", what, rungs=rungs())["rung"] == 0
    assert "checkpoint at step 2 not saved" in caplog.text
    climb(tmp_path / "a1", what, rungs=rungs(2), previous=[str(tmp_path / "a0")])
    same(tmp_path / "a1", whole)


def test_items_score_more_of_one_whole_training(data: Path, whole: Path, tmp_path: Path) -> None:
    what = objective(data, **TRAINING)
    folders = [tmp_path / f"a{number}" for number in range(2)]
    first = climb(folders[0], what, True, False, rungs=rungs(kind="items"))
    assert (first["rung"], first["steps"]) == (1, 15)
    sems = [read(rung_file(AttemptLayout(folders[0]), rung))["sems"]["village_val/acc"] for rung in (0, 1)]
    assert sems[0] > sems[1] > read(whole / "result.json")["sems"]["village_val/acc"]
    climb(folders[1], what, rungs=rungs(2, kind="items"), previous=[str(folders[0])])
    assert read(folders[1] / "result.json")["resumed_at"] == [15]
    same(folders[1], whole)


def test_a_group_of_tasks_is_scored_on_a_part_of_each(data: Path, tmp_path: Path) -> None:
    shutil.copytree(BUNDLE / "tasks", tmp_path / "tasks")
    entry = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    (tmp_path / "tasks" / "both.yaml").write_text(f"group: both\ntask: [village_val, village_test]\n{entry}")
    what = objective(data, limit=18, **{**TRAINING, "max_steps": 2})
    changes = {"validation": "both", "test": (), "include_path": str(tmp_path / "tasks")}
    what = what.model_copy(update={"tasks": what.tasks.model_copy(update=changes)})
    result = climb(tmp_path / "a0", what, True, True, rungs=rungs(kind="items"))
    for rung, items in ((0, 2), (1, 6)):
        scores = read(rung_file(AttemptLayout(tmp_path / "a0"), rung))["metrics"]
        parts = [scores[f"{name}/acc"] for name in ("village_val", "village_test")]
        assert all((part * items).is_integer() for part in parts)
        assert scores["both/acc"] == pytest.approx(sum(parts) / 2)
    assert result["metrics"]["both/acc"] == run_attempt(tmp_path / "b0", what)["metrics"]["both/acc"]


def test_data_are_trainings_of_their_own_on_nested_rows(data: Path, whole: Path, tmp_path: Path) -> None:
    what = objective(data, **{**TRAINING, "global_batch_size": 4})
    run_attempt(tmp_path / "whole" / "a0", what)
    result = climb(tmp_path / "c" / "a0", what, True, True, rungs=rungs(kind="data"))
    same(tmp_path / "c" / "a0", tmp_path / "whole" / "a0")
    assert [each["step"] for each in result["rungs"]] == [4, 10]  # 7 and 20 of 58 rows, twice
    again = climb(tmp_path / "d" / "a0", what, rungs=rungs(1, kind="data"))
    assert learned(again)["village_val/acc"] == result["rungs"][1]["metrics"]["village_val/acc"]
    assert again["rung"] == 1
    assert not list((tmp_path / "d" / "a0").glob("checkpoint/*")), "the next rung begins from the beginning"


def test_shares_of_rows_are_nested() -> None:
    rows = list(range(100))
    parts = [set(some_rows(rows, share, seed=42)) for share in (1 / 9, 1 / 3, 1.0)]
    assert list(map(len, parts)) == [12, 34, 100]
    assert parts[0] < parts[1] < parts[2]
    assert parts[0] != set(range(12))
    assert parts[1] != set(some_rows(rows, 1 / 3, seed=43))


def test_the_baseline_is_not_looked_at_early(data: Path, tmp_path: Path) -> None:
    result = climb(tmp_path / "a0", objective(data, limit=2, **TRAINING), rungs=rungs(), baseline=True)
    assert not {"rung", "rungs"} & {*result}
    assert json.dumps(result["metrics"])
