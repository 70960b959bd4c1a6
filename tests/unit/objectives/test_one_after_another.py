"""A program that goes on with another attempt, and the file that decides it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.waiting import wait

from hpo_cluster.objectives import one_after_another
from hpo_cluster.objectives.one_after_another import next_attempt
from hpo_cluster.record.attempt_files import SCHEMA, log_tail
from hpo_cluster.record.files import read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import END, Next, job_goes_on, publish_next, read_next

ROOT = Path(__file__).resolve().parents[3]

#: Says how many attempts this process has evaluated, and does what its parameter says.
PROGRAM = """
import sys, time
from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker

count = 0

def evaluate(attempt):
    global count
    count += 1
    print("number", count, flush=True)
    what = attempt.parameters["what"]
    if what == "fails":
        raise ValueError("it is broken")
    if what in ("node", "disk"):
        raise AttemptError(what, "its machine is at fault")
    if what == "waits":
        attempt.looks = True
        while not attempt.interrupted:
            time.sleep(0.02)
        raise attempt.interruption()
    return {"metrics": {"value": float(count)}}

sys.exit(worker.main(evaluate))
"""


def make_attempt(folder: Path, number: int, what: str = "", turns: int = 3, linger_s: float = 600.0) -> AttemptLayout:
    files = AttemptLayout(folder / "trials" / f"t{number:04d}" / "a0")
    files.dir.mkdir(parents=True)
    common = {"schema": SCHEMA, "token": f"token{number}", "seed": 0, "settings": {}, "parameters": {"what": what}}
    job = {"turn": number + 1, "trials_per_job": turns, "linger_s": linger_s}
    files.params.write_text(json.dumps({**common, **job}))
    return files


def start(files: AttemptLayout) -> subprocess.Popen[str]:
    program = files.dir.parents[2] / "program.py"
    program.write_text(PROGRAM)
    command = ["env", "--default-signal=INT", sys.executable, str(program), str(files.dir)]  # ignored in the background
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def offer(before: AttemptLayout, following: AttemptLayout, number: int) -> None:
    assert publish_next(before, Next(following.dir, f"token{number}"))


def test_it_goes_on_in_the_same_process_and_begins_again_after_a_failure(tmp_path: Path) -> None:
    attempts = [make_attempt(tmp_path, n, what, turns=4) for n, what in enumerate(["", "", "fails", ""])]
    process = start(attempts[0])
    for number in (1, 2, 3):
        wait(lambda number=number: job_goes_on(attempts[number - 1]))
        offer(attempts[number - 1], attempts[number], number)
    assert process.wait(30) == 0  # the last turn does not wait
    metrics = [(read_json(files.result) or {}).get("metrics") for files in attempts]
    assert metrics == [{"value": 1.0}, {"value": 2.0}, None, {"value": 1.0}]  # fresh after the failure
    claims = [read_json(files.claim) or {} for files in attempts]
    assert {(claim["pid"], claim["pid_started"]) for claim in claims} == {
        (process.pid, claims[0]["pid_started"])
    }  # the same process for the system, so that the launcher sees the job alive
    tails = [log_tail(files) for files in attempts[1:]]
    assert ["it is broken" in tail for tail in tails] == [False, True, False]
    out = [next(files.job_dir.glob("*_log.out")).read_text() for files in attempts[1:]]
    said = "after another attempt in the same job"
    assert out == [f"{f.dir}: {said}\nnumber {n}\n" for f, n in zip(attempts[1:], (2, 3, 1), strict=True)]


def test_nobody_names_another_attempt(tmp_path: Path) -> None:
    files = make_attempt(tmp_path, 0, linger_s=0.5)
    process = start(files)
    assert process.wait(30) == 0
    assert read_next(files) == END
    assert not publish_next(files, Next(tmp_path, "t"))  # the driver sees that it is too late


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_ends_a_program_that_waits(tmp_path: Path, number: int) -> None:
    files = make_attempt(tmp_path, 0)
    process = start(files)
    wait(files.result.exists)
    if number == signal.SIGINT:  # the others may arrive at once, before it waits
        time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(30) == 0
    assert read_next(files) == END
    assert not files.error.exists()


def test_an_attempt_that_is_signalled_is_the_last_one(tmp_path: Path) -> None:
    files = make_attempt(tmp_path, 0, "waits")
    process = start(files)
    wait(files.claim.exists)
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 1
    assert (read_json(files.error) or {})["kind"] == "interrupted"
    assert not job_goes_on(files)
    assert not files.next.exists()


@pytest.mark.parametrize("kind", ["node", "disk"])
def test_a_machine_at_fault_gets_no_other_attempt(tmp_path: Path, kind: str) -> None:
    files = make_attempt(tmp_path, 0, kind)
    assert start(files).wait(30) == 1
    assert not job_goes_on(files)


def test_an_attempt_that_was_taken_back_is_left_alone(tmp_path: Path) -> None:
    first, second = make_attempt(tmp_path, 0), make_attempt(tmp_path, 1)
    publish_next(first, Next(second.dir, "an earlier token"))
    assert start(first).wait(30) == 0
    assert not second.claim.exists()


def test_told_to_end_before_it_has_ended(tmp_path: Path) -> None:
    files = make_attempt(tmp_path, 0)
    publish_next(files, END)
    assert start(files).wait(30) == 0
    assert files.result.exists()


def test_parameters_of_an_earlier_version_have_one_turn(tmp_path: Path) -> None:
    files = make_attempt(tmp_path, 0)
    params = read_json(files.params) or {}
    files.params.write_text(json.dumps({k: v for k, v in params.items() if k not in ("turn", "trials_per_job")}))
    assert start(files).wait(30) == 0
    assert not files.next.exists()


def test_a_copy_of_an_attempt_does_not_wait(tmp_path: Path) -> None:
    files = make_attempt(tmp_path, 0)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(files.dir), "--copy-to", str(tmp_path / "copy")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=30, check=False)
    assert done.returncode == 0
    assert (tmp_path / "copy" / "result.json").exists()


def test_driver_and_job_decide_at_once_and_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many times, both at the same moment: whoever wins, the job does what the file says."""
    monkeypatch.setattr(one_after_another, "FIRST_LOOK_S", 0.001)
    winners = set()
    for number in range(50):
        folder = tmp_path / str(number)
        first, second = make_attempt(folder, 0), make_attempt(folder, 1)
        begin, driver_won = threading.Barrier(2), list[bool]()

        def drive(first=first, second=second, begin=begin, driver_won=driver_won) -> None:  # type: ignore[no-untyped-def]
            begin.wait()
            driver_won.append(publish_next(first, Next(second.dir, "token1")))

        driver = threading.Thread(target=drive)
        driver.start()
        begin.wait()
        goes_on = next_attempt(first, 0.0, [])
        driver.join()
        assert goes_on == (second.dir if driver_won == [True] else None)
        assert read_next(first) == (Next(second.dir, "token1") if driver_won == [True] else END)
        winners.add(driver_won[0])
    assert winners  # which of them wins is up to the machine


def test_a_decision_that_cannot_be_read_ends_the_job(tmp_path: Path) -> None:
    files = make_attempt(tmp_path, 0)
    assert read_next(files) is None
    files.next.write_text('{"attempt_dir": 7}')
    assert read_next(files) == END
