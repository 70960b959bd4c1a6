"""Several attempts in one job: each with its own process, its own files, its own end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import drivers
from support.waiting import wait

from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.objectives.side_by_side import share
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import END, Next, publish_next, read_next

ROOT = Path(__file__).resolve().parents[2]

#: Evaluates an attempt for as many seconds as its parameter says, and tells what it saw.
PROGRAM = """
import os, sys, time
from hpo_cluster.objectives import worker

def evaluate(attempt):
    attempt.looks = True
    end = time.monotonic() + attempt.parameters["seconds"]
    while time.monotonic() < end:
        if attempt.interrupted:
            raise attempt.interruption()
        time.sleep(0.05)
    return {"metrics": {"value": 1.0}, "devices": os.environ.get("CUDA_VISIBLE_DEVICES")}

sys.exit(worker.main(evaluate))
"""


class Job:
    """A job with one attempt for each duration."""

    def __init__(self, folder: Path, *seconds: float, gpus: int = 0, **environment: str) -> None:
        (folder / "program.py").write_text(PROGRAM)
        self.attempts = [AttemptLayout(folder / f"t{number}") for number in range(len(seconds))]
        for files, duration in zip(self.attempts, seconds, strict=True):
            files.dir.mkdir()
            params = {"schema": SCHEMA, "token": files.dir.name, "seed": 0, "settings": {}}
            files.params.write_text(json.dumps({**params, "parameters": {"seconds": duration}}))
        command = [sys.executable, ROOT / "jobs" / "side_by_side.py", "--gpus", str(gpus), folder / "program.py"]
        self.command = [*map(str, command), *(str(files.dir) for files in self.attempts)]
        self.process = self.start(**environment)

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the job, or another one like it."""
        clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        return subprocess.Popen(self.command, env={**clean, "PYTHONPATH": str(ROOT), **environment})

    def claims(self) -> list[dict[str, Any]]:
        """Who runs each attempt, once all have begun."""
        return [wait(lambda path=files.claim: read_json(path)) for files in self.attempts]

    def ended(self) -> list[str]:
        """How each attempt ended: ``result``, or the kind of its error."""
        self.process.wait(timeout=60)
        errors = [read_json(files.error) for files in self.attempts]
        return [
            "result" if files.result.exists() else str((error or {}).get("kind"))
            for files, error in zip(self.attempts, errors, strict=True)
        ]


def test_each_has_its_share_of_the_gpus(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 0, gpus=2)
    assert job.ended() == ["result", "result"]
    assert job.process.returncode == 0
    assert [(read_json(files.result) or {})["devices"] for files in job.attempts] == ["0,1", "2,3"]
    assert share(1, 1, "4,7", 2) == "7"  # what the scheduler gave
    assert share(1, 2, "GPU-a,GPU-b,GPU-c,GPU-d", 2) == "GPU-c,GPU-d"


def test_none_takes_the_gpus_of_another_if_the_job_got_too_few(tmp_path: Path) -> None:
    job = Job(tmp_path, 0, 0, gpus=2, CUDA_VISIBLE_DEVICES="4,7")
    assert job.ended() == ["result", "result"]
    assert [(read_json(files.result) or {})["devices"] for files in job.attempts] == ["4,7", ""]


def test_one_that_is_killed_is_reported_at_once_and_takes_no_other_with_it(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000, 6)
    os.kill(job.claims()[0]["pid"], signal.SIGKILL)
    error = wait(lambda: read_json(job.attempts[0].error))
    assert (error["kind"], error["token"]) == ("vanished", "t0")
    assert "SIGKILL" in error["message"]
    assert not job.attempts[1].result.exists()
    assert job.ended() == ["vanished", "result"]


def more_turns(files: AttemptLayout) -> None:
    """Let the job of an attempt, which has not begun to read its parameters, go on with other attempts."""
    params = read_json(files.params) or {}
    files.params.write_text(json.dumps({**params, "turn": 1, "trials_per_job": 3, "linger_s": 600.0}))


class JobWithTurns(Job):
    """A job whose first attempt may be followed by another one."""

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        more_turns(self.attempts[0])
        return super().start(**environment)


def given_another(job: JobWithTurns, folder: Path) -> AttemptLayout:
    """Another attempt, which lasts, for the place of the first one."""
    files = AttemptLayout(folder / "later")
    files.dir.mkdir()
    params = {"schema": SCHEMA, "token": "later", "seed": 0, "settings": {}, "turn": 2}
    files.params.write_text(json.dumps({**params, "parameters": {"seconds": 1000}}))
    publish_next(job.attempts[0], Next(files.dir, "later"))
    return files


def test_one_that_waits_is_killed_and_no_attempt_is_given_to_it(tmp_path: Path) -> None:
    job = JobWithTurns(tmp_path, 0, 1000)
    wait(job.attempts[0].result.exists)
    os.kill(job.claims()[0]["pid"], signal.SIGKILL)
    assert wait(lambda: read_next(job.attempts[0])) == END
    job.process.send_signal(signal.SIGTERM)
    assert job.ended() == ["result", "interrupted"]


def test_one_that_is_killed_with_its_second_attempt_is_reported_there(tmp_path: Path) -> None:
    job = JobWithTurns(tmp_path, 0, 1000)
    wait(job.attempts[0].result.exists)
    later = given_another(job, tmp_path)
    pid = wait(lambda: read_json(later.claim))["pid"]
    assert pid == job.claims()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    error = wait(lambda: read_json(later.error))
    assert (error["kind"], error["token"]) == ("vanished", "later")
    job.process.send_signal(signal.SIGTERM)
    assert job.ended() == ["result", "interrupted"]


def test_one_dies_before_it_begins_the_attempt_that_it_was_given(tmp_path: Path) -> None:
    job = JobWithTurns(tmp_path, 0, 1000)
    wait(job.attempts[0].result.exists)
    os.kill(job.claims()[0]["pid"], signal.SIGSTOP)
    time.sleep(0.2)
    later = given_another(job, tmp_path)
    os.kill(job.claims()[0]["pid"], signal.SIGKILL)
    error = wait(lambda: read_json(later.error))
    assert (error["kind"], error["token"]) == ("vanished", "later")
    job.process.send_signal(signal.SIGTERM)
    assert job.ended() == ["result", "interrupted"]


def test_the_second_attempt_of_one_is_cancelled_by_a_file(tmp_path: Path) -> None:
    job = JobWithTurns(tmp_path, 0, 3)
    wait(job.attempts[0].result.exists)
    later = given_another(job, tmp_path)
    wait(lambda: read_json(later.claim))
    later.cancel.touch()
    assert wait(lambda: read_json(later.error))["kind"] == "interrupted"
    assert job.ended() == ["result", "result"]


def test_one_is_cancelled_by_a_file(tmp_path: Path) -> None:
    job = Job(tmp_path, 1000, 4)
    job.claims()
    job.attempts[0].cancel.touch()
    assert job.ended() == ["interrupted", "result"]


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_reaches_all(tmp_path: Path, number: int) -> None:
    job = Job(tmp_path, 1000, 1000)
    job.claims()
    time.sleep(0.5)  # a program is told to look once it has begun
    job.process.send_signal(number)
    assert job.ended() == ["interrupted", "interrupted"]


def test_attempts_that_another_job_has_claimed_are_left_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, 5, 5)
    claims = job.claims()
    second = job.start()
    second.wait(timeout=30)
    assert job.claims() == claims
    assert not any(files.error.exists() or files.result.exists() for files in job.attempts)
    assert job.ended() == ["result", "result"]


def campaign(directory: Path, **operation: Any) -> Campaign:
    options = {"trials_per_node": 2, "sleep": 0.3, "operation": {"workers": 4, "budget": 7, **operation}}
    return Campaign(drivers.spec(directory, options))


def jobs(record: Record) -> Counter[str]:
    """Number of attempts of each job."""
    return Counter(attempt.job_name for trial in record.rows for attempt in trial.attempts)


def test_a_campaign_fills_its_jobs(tmp_path: Path) -> None:
    with campaign(tmp_path / "c") as opened:
        for _ in opened.drive():
            running = {a.job_name for t in opened.record.in_flight for a in t.attempts if a.job and not a.over}
            assert len(running) <= 2
        assert sorted(jobs(opened.record).values()) == [1, 2, 2, 2]  # the last has what the budget leaves
        assert all(trial.state == "completed" for trial in opened.record.rows)
    assert len(drivers.evaluations(tmp_path / "c")) == 7


def test_a_trial_is_cancelled_and_the_one_beside_it_goes_on(tmp_path: Path) -> None:
    options = {"trials_per_node": 2, "sleep": 5, "operation": {"workers": 2, "budget": 2}}
    with Campaign(drivers.spec(tmp_path / "c", options)) as campaign:
        for _ in campaign.drive():
            first = campaign.record.trials[0]
            if first.state == "running" and campaign.record.trials[1].state == "running":
                campaign.submitter.cancel([first])
                campaign.stop("enough")
        other = campaign.record.trials[1]
        pid = (read_json(campaign.opened.layout.attempt(0, 0).claim) or {})["pid"]
        wait(lambda: not Path(f"/proc/{pid}").exists())
        wait(lambda: campaign.opened.layout.attempt(1, 0).result.exists())
        campaign.collect()
        assert (str(first.state), str(other.state)) == ("cancelled", "completed")
