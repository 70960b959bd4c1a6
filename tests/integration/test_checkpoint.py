"""A fine-tune that is signalled or killed goes on in its next attempt, and ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_bench import (
    PROGRAM,
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
from support import drivers

from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.objectives.lora import language_model, progress
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.status import campaign_status
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.report.trial import trial_story


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("checkpoint") / "data")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "a0"
    result = run_attempt(folder, objective(data, **TRAINING))
    assert (result["steps"], result["attempts"], result["resumed_at"]) == (15, 1, [])
    assert not (folder / "checkpoint").exists()
    return folder


def previous(*folders: Path) -> list[str]:
    return [str(folder) for folder in folders]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Does something, once, in a step of training (from the second: it hears of the one before), or in scoring (-1)."""
    job = load_program()
    pending: dict[int, Callable[[], None]] = {}
    progress = worker.Attempt.progress

    def spy(self: worker.Attempt, *, force: bool = False, **fields: Any) -> None:
        if "step" in fields:
            number = fields["step"] + 1 if "learning_rate" in fields else -1
            pending.pop(number, lambda: None)()
        progress(self, force=force, **fields)

    monkeypatch.setattr(worker.Attempt, "progress", spy)
    assert job is not None
    return pending.__setitem__


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def run_as_job(folder: Path) -> dict[str, Any]:
    """Run an attempt in this process under the signal handlers of a job."""
    status = worker.main(load_program().evaluate, [str(folder)])
    return read(folder / ("error.json" if status else "result.json"))


@pytest.mark.parametrize(("number", "steps"), [("SIGUSR2", (2, 7)), ("SIGTERM", (8, 15)), ("SIGUSR2", (-1,))])
def test_a_signalled_training_goes_on_and_ends_the_same(
    number: str, steps: tuple[int, ...], at_step: Any, whole: Path, data: Path, tmp_path: Path
) -> None:
    what = objective(data, **TRAINING)
    folders = [tmp_path / f"a{n}" for n in range(len(steps) + 1)]
    for n, step in enumerate(steps):
        at_step(step, send(signal.Signals[number]))
        error = run_as_job(write_attempt(folders[n], what, previous=previous(*folders[:n])))
        assert error["kind"] == "interrupted"
        assert number in error["message"]
        assert worker.checkpoint_step(worker.AttemptLayout(folders[n])) == (15 if step < 0 else step)
        kept = [path.name for folder in folders for path in folder.glob("checkpoint/*")]
        assert kept == [str(15 if step < 0 else step)], "only the last one, and nothing temporary"
    torch.rand(7)  # another process would have other generators
    result = run_as_job(write_attempt(folders[-1], what, previous=previous(*folders[:-1])))
    assert result["attempts"] == len(steps) + 1
    assert result["resumed_at"] == [15 if step < 0 else step for step in steps]
    same(folders[-1], whole)


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_shorter_curve(
    at_step: Any, whole: Path, data: Path, tmp_path: Path
) -> None:
    what = objective(data, **TRAINING)
    kept = interrupted(tmp_path / "a0", what, at_step, step=5)
    state = torch.load(kept / "state.pt", weights_only=True)
    assert "lr_decay_share" not in json.loads(state["mark"])["train"], "it did not exist, and has no effect here"
    state["counters"]["loss"] = state["counters"].pop("losses")[-1]  # all that was kept
    torch.save(state, kept / "state.pt")
    listed = {"step": 5, "files": {"state.pt": (kept / "state.pt").stat().st_size}}
    (kept / "checkpoint.json").write_text(json.dumps(listed))
    result = run_attempt(tmp_path / "a1", what, previous=previous(tmp_path / "a0"))
    expected = read(whole / "result.json")
    assert result["resumed_at"] == [5]
    assert result["curve"] == expected["curve"][4:]
    assert learned(result) == learned(expected)


def test_scoring_in_another_precision_leaves_the_adapter_for_the_next_attempt(
    at_step: Any, data: Path, tmp_path: Path
) -> None:
    what = objective(data, **{**TRAINING, "epochs": 1, "precision": "bf16-true"})
    what = what.model_copy(update={"score_precision": "float32"})
    run_attempt(tmp_path / "whole" / "a0", what)
    interrupted(tmp_path / "a0", what, at_step, step=-1)
    assert run_attempt(tmp_path / "a1", what, previous=previous(tmp_path / "a0"))["resumed_at"] == [7]
    same(tmp_path / "a1", tmp_path / "whole" / "a0")


def test_litgpts_draws_go_on_too(at_step: Any, data: Path, tmp_path: Path) -> None:
    what = objective(data, limit=2, **{**TRAINING, "dropout_draws": "litgpt", "epochs": 1})
    run_attempt(tmp_path / "whole" / "a0", what)
    interrupted(tmp_path / "a0", what, at_step)
    torch.rand(7)
    assert run_attempt(tmp_path / "a1", what, previous=previous(tmp_path / "a0"))["resumed_at"] == [5]
    same(tmp_path / "a1", tmp_path / "whole" / "a0")


def test_a_real_process_is_signalled_then_killed_without_warning(whole: Path, data: Path, tmp_path: Path) -> None:
    folders = [tmp_path / f"a{n}" for n in range(3)]
    for n, (number, interval) in enumerate(((signal.SIGUSR2, 0), (signal.SIGKILL, 1e-6))):
        what = objective(data, checkpoint_interval_s=interval, **TRAINING)
        folder = write_attempt(folders[n], what, previous=previous(*folders[:n]))
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, str(PROGRAM), str(folder)], stderr=log)
        seen = 0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            progress = worker.read_json(folder / "progress.json") or {}
            seen = worker.checkpoint_step(worker.AttemptLayout(folder))
            if progress.get("phase") == "train" and (number is signal.SIGUSR2 or seen > 0):
                process.send_signal(number)
                break
            time.sleep(0.001)
        status = process.wait(timeout=60)
        if number is signal.SIGUSR2:
            assert status == 1, (folder / "log").read_text()
            assert read(folder / "error.json")["kind"] == "interrupted"
        else:
            assert status == -signal.SIGKILL, (folder / "log").read_text()
            assert seen > 0
            assert not (folder / "error.json").exists()
    result = run_attempt(folders[2], objective(data, **TRAINING), previous=previous(*folders[:2]))
    assert 1 <= len(result["resumed_at"]) <= 2
    same(folders[2], whole)


def interrupted(folder: Path, what: LoraObjective, at_step: Any, step: int = 5, **params: Any) -> Path:
    """The checkpoint of an attempt that was signalled after a step."""
    at_step(step, send(signal.SIGTERM))
    assert run_as_job(write_attempt(folder, what, **params))["kind"] == "interrupted"
    return folder / "checkpoint" / str(step)


def test_a_checkpoint_of_another_configuration_is_not_used(
    at_step: Any, whole: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = objective(data, **{**TRAINING, "learning_rate": 1e-3})
    interrupted(tmp_path / "a0", other, at_step)
    interrupted(tmp_path / "a1", objective(data, **TRAINING), at_step, seed=3)
    more = write_data(tmp_path / "more", rows=60)
    interrupted(tmp_path / "a2", objective(more, **TRAINING), at_step)
    folders = [tmp_path / f"a{n}" for n in range(3)]
    result = run_attempt(tmp_path / "a3", objective(data, **TRAINING), previous=previous(*folders))
    assert result["resumed_at"] == []
    same(tmp_path / "a3", whole)
    for name in ("train.learning_rate", "seed", "data_files"):
        assert f"is of another configuration ({name}): not used" in caplog.text


@pytest.mark.parametrize("fault", ["cut", "no list", "other bytes", "empty folder"])
def test_a_torn_checkpoint_is_ignored_and_the_one_before_is_used(
    fault: str, at_step: Any, whole: Path, data: Path, tmp_path: Path
) -> None:
    what = objective(data, **TRAINING)
    good = interrupted(tmp_path / "a0", what, at_step, step=3)
    torn = tmp_path / "a1" / "checkpoint" / "9"
    shutil.copytree(good, torn)
    (torn / "checkpoint.json").write_text((good / "checkpoint.json").read_text().replace('"step": 3', '"step": 9'))
    state = torn / "state.pt"
    content = state.read_bytes()
    if fault == "cut":
        state.write_bytes(content[: len(content) // 2])
    elif fault == "no list":
        (torn / "checkpoint.json").unlink()
    elif fault == "other bytes":
        state.write_bytes(bytes(len(content)))
    else:
        shutil.rmtree(torn)
        torn.mkdir()
    result = run_attempt(tmp_path / "a2", what, previous=previous(tmp_path / "a0", tmp_path / "a1"))
    assert result["resumed_at"] == [3]
    same(tmp_path / "a2", whole)


def test_a_full_disk_does_not_end_the_training(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress, "write_checkpoint", fail)
    run_attempt(tmp_path / "a0", objective(data, checkpoint_interval_s=1e-6, **TRAINING))
    assert len(calls) > 15
    assert "checkpoint at step 3 not saved" in caplog.text
    same(tmp_path / "a0", whole)


def test_a_copy_run_by_hand_takes_and_removes_nothing(at_step: Any, data: Path, tmp_path: Path) -> None:
    what = objective(data, limit=2, **{**TRAINING, "epochs": 1})
    kept = interrupted(tmp_path / "a0", what, at_step)
    folder = write_attempt(tmp_path / "a1", what, previous=previous(tmp_path / "a0"))
    assert worker.main(load_program().evaluate, [str(folder), "--copy-to", str(tmp_path / "copy")]) == 0
    assert read(tmp_path / "copy" / "result.json")["resumed_at"] == []
    assert (kept / "state.pt").exists()


def test_the_classic_route_is_ended_at_once_with_its_training_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo_cluster.objectives.lora import tasks

    def slow(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR2)  # a warning: there may be time enough
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still there")

    monkeypatch.setattr(tasks, "score", slow)
    what = objective(data, **TRAINING).model_copy(update={"evaluation": "litgpt_cli"})
    error = run_as_job(write_attempt(tmp_path / "a0", what))
    assert (error["kind"], error["message"]) == ("interrupted", "SIGUSR2 asked to end during score")
    assert worker.checkpoint_step(worker.AttemptLayout(tmp_path / "a0")) == 15
    assert not list((tmp_path / "a0").glob(".litgpt*"))


# --- out of memory ---------------------------------------------------------------------------------------------------


def test_scoring_halves_its_batch_by_itself(
    whole: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_rows, sizes = language_model.score_rows, []

    def limited(model: Any, rows: Any, continuations: Any) -> Any:
        sizes.append(len(rows) * max(map(len, rows)))
        if sizes[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score_rows(model, rows, continuations)

    monkeypatch.setattr(language_model, "score_rows", limited)
    result = run_attempt(tmp_path / "a0", objective(data, **TRAINING))
    assert learned(result) == pytest.approx(learned(read(whole / "result.json")), abs=1e-6)
    refused = [number for number, size in enumerate(sizes) if size > 300]
    assert refused == [*range(len(refused))], "what has not fitted is not tried again"
    assert 1 < len(refused) < 5

    monkeypatch.setattr(language_model, "score_rows", lambda *_: limited(None, [[1] * 301], None))
    error = run_attempt(tmp_path / "a1", objective(data, **{**TRAINING, "max_steps": 1}))
    assert error["kind"] == "out_of_memory"


# --- what the driver makes of it -------------------------------------------------------------------------------------


def campaign(directory: Path, program: str, retries: int = 1) -> TrialRecord:
    """The only trial of a campaign over a Python program (``params``: its params.json; ``here``: its directory)."""
    path = directory.parent / "program.py"
    preamble = """
        import json, os, pathlib, sys
        here = pathlib.Path(os.environ["HPO_CLUSTER_ATTEMPT_DIR"])
        before = [p for p in os.environ["HPO_CLUSTER_PREVIOUS"].split(":") if p]
        params = json.loads((here / "params.json").read_text())
        def keep(step):
            (here / "checkpoint" / str(step)).mkdir(parents=True)
            (here / "checkpoint" / str(step) / "checkpoint.json").write_text(json.dumps({"step": step, "files": {}}))
        def end(**what):
            print(json.dumps(what))
            sys.exit("error" in what)
    """
    path.write_text(textwrap.dedent(preamble) + textwrap.dedent(program))
    made = drivers.spec(directory, {"operation": {"budget": 1, "retries": retries, "stop_after_failures": 0}})
    command = f"{sys.executable} {path} # {{x}} {{k}}"
    made = dataclasses.replace(made, objective=CommandObjective(command=command, cwd=str(directory.parent)))
    with Campaign(made) as opened:
        for _ in opened.drive():
            pass
    assert campaign_status(directory)["state"] == "finished"
    return Record.read(directory / "events.jsonl").trials[0]


def test_attempts_that_get_further_use_up_no_retry(tmp_path: Path) -> None:
    trial = campaign(
        tmp_path / "c",
        """
        assert [pathlib.Path(p).name for p in before] == [f"a{n}" for n in reversed(range(params["attempt"]))]
        if params["attempt"] < 4:
            keep(10 * (params["attempt"] + 1))
            end(error="interrupted", message="SIGUSR2")
        end(value=1)
        """,
        retries=0,
    )
    assert trial.state == "completed"
    assert [(a.error or {}).get("checkpoint_step") for a in trial.attempts] == [10, 20, 30, 40, None]


@pytest.mark.parametrize(
    ("curve", "drawn"),
    [
        ([{"step": 10 * n, "train_loss": 4.0 / n, "learning_rate": 0.1} for n in (1, 2, 4)], "█▃▁ 4 to 1 in 40 steps"),
        ([[1, 2.0], [2, 1.0]], None),  # a program's own, of another shape
        ("steep", None),
    ],
)
def test_the_story_of_a_trial_draws_its_curve(curve: Any, drawn: str | None, tmp_path: Path) -> None:
    campaign(tmp_path / "c", "end(value=1)")
    path = tmp_path / "c" / "trials" / "t0000" / "a0" / "result.json"
    path.write_text(json.dumps({**read(path), "curve": curve}))
    told = [line for line in trial_story(tmp_path / "c", 0) if line.startswith("  loss")]
    assert told == ([] if drawn is None else [f"  loss      {drawn}"])


def test_attempts_that_do_not_get_further_do(tmp_path: Path) -> None:
    trial = campaign(
        tmp_path / "c",
        """
        keep([10, 20, 20, 15, 30][params["attempt"]])
        end(error="interrupted", message="SIGUSR2")
        """,
    )
    assert trial.state == "failed"
    assert len(trial.attempts) == 4  # 10 and 20 are free, the second 20 is the one retry, 15 is one too many


def test_out_of_memory_halves_the_physical_batch_down_to_one(tmp_path: Path) -> None:
    trial = campaign(
        tmp_path / "c",
        """
        size = params["physical_batch_size"] or 6
        end(error="out_of_memory", message="2 GiB", physical_batch_size=size)
        """,
        retries=0,
    )
    assert trial.state == "infeasible"
    assert [(a.error or {}).get("smaller_batch") for a in trial.attempts] == [3, 1, None]


def test_a_program_that_does_not_mind_its_batch_ends_too(tmp_path: Path) -> None:
    trial = campaign(tmp_path / "c", 'end(error="out_of_memory", message="2 GiB", physical_batch_size=8)')
    assert trial.state == "infeasible"
    assert [(a.error or {}).get("smaller_batch") for a in trial.attempts] == [4, 2, 1, None]


def test_a_command_is_ended_by_sigterm_at_once_and_tried_again(tmp_path: Path) -> None:
    trial = campaign(
        tmp_path / "c",
        """
        import signal, time
        if not before:
            job = json.loads((here / "claim").read_text())["pid"]
            os.kill(job, signal.SIGUSR2)
            time.sleep(0.2)
            os.kill(job, signal.SIGTERM)
            time.sleep(60)
        end(value=2)
        """,
    )
    assert (trial.state, trial.value) == ("completed", 2)
    assert [(a.error or {}).get("kind") for a in trial.attempts] == ["interrupted", None]
    assert "asked to end during command" in (trial.attempts[0].error or {})["message"]
