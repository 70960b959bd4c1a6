"""What a program reports at a rung, how it waits for the word, and how its attempt ends."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait

from hpo_cluster.fidelity import geometric
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.climbing import at_each_rung
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.files import read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import Next, publish_next
from hpo_cluster.record.rung_files import publish_rung, publish_word, read_word, rung_file

ROOT = Path(__file__).resolve().parents[3]
SHARES = geometric(1 / 9, 3)


def make_attempt(folder: Path, goal: int = 0, first: int = 0, linger_s: float = 0.0, **params: Any) -> AttemptLayout:
    folder.mkdir(parents=True)
    rungs = {"kind": "share", "shares": SHARES, "goal": goal, "first": first, "linger_s": linger_s}
    common = {"schema": SCHEMA, "trial": 3, "attempt": 0, "token": "t", "seed": 0, "settings": {}, "parameters": {}}
    (folder / "params.json").write_text(json.dumps({**common, "rungs": rungs, **params}))
    return AttemptLayout(folder)


def read(path: Path) -> dict[str, Any]:
    document = read_json(path)
    assert document is not None, path
    return document


def shares_as_values(attempt: worker.Attempt) -> dict[str, Any]:
    attempt.phase("work")
    return at_each_rung(attempt, lambda share: {"metrics": {"value": share}, "sems": {"value": 0.5}})


def run(files: AttemptLayout, evaluate: Callable[[worker.Attempt], dict[str, Any]] = shares_as_values) -> int:
    return worker.main(evaluate, [str(files.dir)])


def answered(files: AttemptLayout, *words: bool) -> threading.Thread:
    """A thread that gives the words, each as soon as its rung is reported."""

    def answer() -> None:
        for rung, go_on in enumerate(words):
            wait(rung_file(files, rung).exists)
            publish_word(files, rung, go_on=go_on)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_without_rungs_nothing_is_new(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", rungs=None)
    assert run(files) == 0
    result = read(files.result)
    assert result["metrics"] == {"value": 1.0}
    assert not {"rung", "rungs"} & {*result}


def test_a_rung_is_published_whole_and_ends_the_attempt_if_nobody_says_a_word(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0")
    assert run(files) == 0
    rung = read(rung_file(files, 0))
    assert (rung["token"], rung["trial"], rung["attempt"], rung["rung"]) == ("t", 3, 0, 0)
    assert (rung["share"], rung["metrics"], rung["sems"]) == (SHARES[0], {"value": SHARES[0]}, {"value": 0.5})
    assert {"step", "seconds", "gpu_seconds", "at"} <= {*rung}
    assert read_word(files, 0) is False
    assert not publish_word(files, 0, go_on=True), "the driver sees that it is too late"
    result = read(files.result)
    assert (result["rung"], result["metrics"], result["token"]) == (0, {"value": SHARES[0]}, "t")
    assert not rung_file(files, 1).exists()


def test_it_climbs_as_long_as_it_may(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", linger_s=30)
    words = answered(files, True, False)
    assert run(files) == 0
    words.join()
    result = read(files.result)
    assert (result["rung"], result["metrics"]) == (1, {"value": SHARES[1]})
    metrics = [{"value": share} for share in SHARES[:2]]
    assert [each["metrics"] for each in result["rungs"]] == metrics
    assert result["seconds"]["wait"] > 0


def test_the_top_is_the_result_alone_and_removes_the_checkpoints(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", linger_s=30)
    words = answered(files, True, True)

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        (attempt.trial_checkpoint() / "state").touch()
        return shares_as_values(attempt)

    assert run(files, evaluate) == 0
    words.join()
    result = read(files.result)
    assert "rung" not in result
    assert result["metrics"] == {"value": 1.0}
    assert [each["rung"] for each in result["rungs"]] == [0, 1]
    assert not rung_file(files, 2).exists()
    assert not (tmp_path / "checkpoint").exists()


def test_rungs_below_the_goal_are_passed_and_known_from_earlier_attempts(tmp_path: Path) -> None:
    run(make_attempt(tmp_path / "a0", gpus=2))
    before = read(rung_file(AttemptLayout(tmp_path / "a0"), 0))
    earlier = {"previous": [str(tmp_path / "a0")], "gpus": 2}
    files = make_attempt(tmp_path / "a1", goal=1, **earlier)
    seen = []

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        assert attempt.climb is not None
        assert attempt.climb.report(0, {"value": math.nan}), "passed, so nothing is looked at"
        seen.append(attempt.gpu_seconds())
        return shares_as_values(attempt)

    assert run(files, evaluate) == 0
    assert not rung_file(files, 0).exists()
    assert rung_file(files, 1).exists()
    assert [each["metrics"]["value"] for each in read(files.result)["rungs"]] == [*SHARES[:2]]
    assert seen[0] == pytest.approx(before["gpu_seconds"], abs=0.05)


def test_a_trial_of_a_later_bracket_is_not_looked_at_before(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", goal=0, first=1)
    assert run(files) == 0
    assert (read(files.result)["rung"], rung_file(files, 0).exists()) == (1, False)


def test_the_baseline_has_no_rungs(tmp_path: Path) -> None:
    assert worker.Attempt(make_attempt(tmp_path / "a0", baseline=True).dir).climb is None


def test_the_time_of_waiting_costs_nothing(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", linger_s=0.4)
    assert run(files) == 0
    result = read(files.result)
    assert result["seconds"]["wait"] >= 0.4
    assert result["gpu_seconds"] < 0.3


def test_a_bad_score_is_an_error_and_no_rung(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0")

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        assert attempt.climb is not None
        attempt.climb.report(0, {"value": math.inf})
        raise AssertionError

    assert run(files, evaluate) == 1
    error = read(files.error)
    assert error["kind"] == "bad_result"
    assert error["message"].startswith("at rung 0: metrics.value")
    assert not rung_file(files, 0).exists()


def test_a_rung_waits_for_storage_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_attempt(tmp_path / "a0")
    refused: list[int] = []

    def publish(files: AttemptLayout, rung: int, document: dict[str, Any]) -> bool:
        if len(refused) < 2:
            refused.append(rung)
            raise OSError(errno.EROFS, "Read-only file system")
        return publish_rung(files, rung, document)

    monkeypatch.setattr("hpo_cluster.record.files.AGAIN_S", 0.01)
    monkeypatch.setattr("hpo_cluster.objectives.climbing.publish_rung", publish)
    assert run(files, shares_as_values) == 0
    assert refused == [0, 0]
    assert rung_file(files, 0).exists()


def test_checkpoints_stay_while_the_trial_may_come_back(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0")

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        (attempt.trial_checkpoint() / "state").touch()
        assert attempt.save_checkpoint(5, lambda folder: (folder / "state").touch())
        return shares_as_values(attempt)

    assert run(files, evaluate) == 0
    assert (files.checkpoint_dir / "5" / "state").exists()
    assert (tmp_path / "checkpoint" / "state").exists()


def test_a_checkpoint_does_not_make_a_folder_that_was_moved(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "c" / "a0")

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        (tmp_path / "c").rename(tmp_path / "moved")
        assert not attempt.save_checkpoint(5, lambda folder: (folder / "state").touch())
        assert not (tmp_path / "c").exists()
        (tmp_path / "moved").rename(tmp_path / "c")
        return shares_as_values(attempt)

    assert run(files, evaluate) == 0


def test_a_copy_run_by_hand_does_not_wait_and_keeps_to_its_folder(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", linger_s=600)
    (tmp_path / "checkpoint").mkdir()

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        (attempt.trial_checkpoint() / "state").touch()
        return shares_as_values(attempt)

    copy = tmp_path / "copy"
    assert worker.main(evaluate, [str(files.dir), "--copy-to", str(copy)]) == 0
    assert read(copy / "result.json")["rung"] == 0
    assert (copy / "checkpoint" / "state").exists()
    assert not list((tmp_path / "checkpoint").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_ends_the_waiting_and_the_attempt_at_its_rung(tmp_path: Path, number: signal.Signals) -> None:
    files = make_attempt(tmp_path / "a0", linger_s=600)

    def send() -> None:
        wait(lambda: (read_json(files.progress) or {}).get("phase") == "wait")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        assert run(files) == 0
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert read_word(files, 0) is False
    assert read(files.result)["rung"] == 0


def test_a_signalled_attempt_that_was_to_go_on_is_interrupted(tmp_path: Path) -> None:
    files = make_attempt(tmp_path / "a0", linger_s=600)
    publish_word(files, 0, go_on=True)

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        attempt.phase("work")
        os.kill(os.getpid(), signal.SIGUSR2)
        return shares_as_values(attempt)

    assert run(files, evaluate) == 1
    error = read(files.error)
    assert (error["kind"], "SIGUSR2" in error["message"]) == ("interrupted", True)
    assert read_word(files, 0), "what the driver said stays"


PROGRAM = """
import sys
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.climbing import at_each_rung
def evaluate(attempt):
    return at_each_rung(attempt, lambda share: {"metrics": {"value": share}})
sys.exit(worker.main(evaluate))
"""


@pytest.mark.parametrize("side_by_side", [False, True])
def test_the_place_of_an_attempt_that_ended_at_a_rung_is_free(tmp_path: Path, side_by_side: bool) -> None:
    first, second = (
        make_attempt(tmp_path / f"t{n}" / "a0", token=f"token{n}", turn=n + 1, trials_per_job=2) for n in (0, 1)
    )
    for files in (first, second):
        files.params.write_text(json.dumps({**read(files.params), "linger_s": 600}))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    runner = [str(ROOT / "jobs" / "side_by_side.py")] if side_by_side else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *runner, str(program), str(first.dir)], env=environment)
    wait(first.result.exists)
    assert publish_next(first, Next(second.dir, "token1"))
    assert process.wait(30) == 0
    assert [read(files.result)["rung"] for files in (first, second)] == [0, 0]
    pids = {read(files.claim)["pid"] for files in (first, second)}
    assert len(pids) == 1, "the same process"
