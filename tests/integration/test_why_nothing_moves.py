"""`status` says why nothing moves, from another terminal too."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import os
import re
import signal
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import drivers

from hpo_cluster.cli.main import main
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import JobRef, JobState, JobStatus
from hpo_cluster.launchers import make_launcher
from hpo_cluster.launchers.base import Submission
from hpo_cluster.launchers.local import LocalLauncher, LocalSettings
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.status import EXHAUSTED, campaign_status


class Refusing(LocalLauncher):
    """Takes no job before `opens`."""

    opens = False

    def submit(self, submission: Submission) -> Any:
        if not self.opens:
            raise SubmissionError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        return super().submit(submission)


def test_a_refused_submission_is_told_until_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo_cluster.launchers.commands.FIRST_BACKOFF_S", 0.1)
    launcher = Refusing(LocalSettings(poll_period_s=0.1))
    made = dataclasses.replace(drivers.spec(tmp_path / "c", {}), launcher=launcher)
    told: list[str] = []
    with Campaign(made) as campaign:
        for cycle, status in enumerate(campaign.drive()):
            assert status["notices"] == campaign_status(tmp_path / "c")["notices"]  # another terminal sees the same
            told += status["notices"]
            launcher.opens = cycle > 3
    assert "the driver waits: the scheduler did not take a job" in told[0]
    assert "QOSMaxSubmitJobPerUserLimit" in told[0]
    assert campaign_status(tmp_path / "c")["notices"] == []


def test_a_driver_that_is_stopped_is_told_with_how_to_wake_it(tmp_path: Path) -> None:
    driver = drivers.start(tmp_path / "c", operation={"budget": 100}, sleep=0.3)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "c" / "events.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        driver.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, driver.pid, os.WSTOPPED | os.WNOWAIT)
        notices = campaign_status(tmp_path / "c")["notices"]
        assert any(f"kill -CONT {driver.pid}" in notice for notice in notices)
    finally:
        driver.kill()
        driver.wait()


def test_a_driver_of_another_host_that_is_not_heard_of_is_told(tmp_path: Path) -> None:
    assert drivers.run(tmp_path / "c", sleep=0.0) == 0
    old = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=10)).isoformat()
    (tmp_path / "c" / "driver.lock").write_text(json.dumps({"host": "elsewhere", "pid": 7, "heartbeat": old}))
    (notice,) = campaign_status(tmp_path / "c")["notices"]
    assert "elsewhere (process 7) has given no sign of life for 10 min" in notice
    assert "--take-over" in notice


def test_a_space_that_is_exhausted_is_told_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["objective=command", "objective.command='echo {{\\\"value\\\": {a}}}'", "space={a: {choices: [1, 2, 3]}}"]
    assert main(["run", *words, "optimizer=random", "budget=20", "campaign=c", "poll_s=0.1"]) == 0
    assert EXHAUSTED in capsys.readouterr().out
    status = campaign_status(Path("campaigns/c"))
    assert (status["state"], status["exhausted"], status["done"]) == ("finished", True, 3)
    assert main(["status", "campaigns/c"]) == 0
    assert EXHAUSTED in capsys.readouterr().out


class Holding(LocalLauncher):
    """Says that jobs wait for what nobody can give."""

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        status = JobStatus(JobState.PENDING, detail="PENDING PartitionTimeLimit", remedy="Ask for less")
        return dict.fromkeys((ref.token for ref in refs), status)


def test_jobs_that_wait_for_ever_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 2, "workers": 2}})
    told: list[str] = []
    with Campaign(dataclasses.replace(made, launcher=Holding(LocalSettings(poll_period_s=0.1)))) as campaign:
        for status in campaign.drive():
            told += [notice for notice in status["notices"] if "2 jobs" in notice]
            if told or not status["running"]:
                campaign.stop("seen")
    jobs = [str(row["job"]) for row in campaign_status(tmp_path / "c")["running"]]
    assert told == [f"2 jobs ({', '.join(jobs)}) will not start as submitted: PENDING PartitionTimeLimit. Ask for less"]
    assert main(["why", str(tmp_path / "c"), "0"]) == 0
    assert re.search(
        r"waits     PENDING PartitionTimeLimit, as the scheduler said at .*Z\. Ask for less", capsys.readouterr().out
    )


def test_a_refusal_for_good_is_not_told_as_one_that_is_tried_again(tmp_path: Path) -> None:
    launcher = make_launcher(LocalSettings(gpus_per_trial=2, gpu_devices=(0,)))
    made = dataclasses.replace(drivers.spec(tmp_path / "c", {}), launcher=launcher)
    with Campaign(made) as campaign:
        told = [notice for status in campaign.drive() for notice in status["notices"]]
    assert told == []
    assert "cannot be submitted: launcher.gpus_per_trial=2" in campaign_status(tmp_path / "c")["reason"]


def test_a_job_that_has_long_said_nothing_is_told(tmp_path: Path) -> None:
    made = drivers.spec(tmp_path / "c", {"sleep": 3, "operation": {"budget": 1, "stalled_after_s": 0.5}})
    with Campaign(made) as campaign:
        told = [notice for status in campaign.drive() for notice in status["notices"]]
    assert any("t0000: its job" in notice and "no progress" in notice for notice in told)


def test_a_trial_that_a_machine_lost_rests_before_it_is_tried_again(tmp_path: Path) -> None:
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1, "retries": 2, "retry_wait_s": 1.0}})
    launcher = LocalLauncher(LocalSettings(poll_period_s=0.1, setup=("exit 1",)))
    with Campaign(dataclasses.replace(made, launcher=launcher)) as campaign:
        for _ in campaign.drive():
            pass
    attempts = Record.read(tmp_path / "c" / "events.jsonl").trials[0].attempts
    times = [
        (datetime.datetime.fromisoformat(a.job.submitted_at), datetime.datetime.fromisoformat(a.ended_at or ""))
        for a in attempts
        if a.job is not None
    ]
    rests = [(after[0] - before[1]).total_seconds() for before, after in itertools.pairwise(times)]
    assert len(rests) == 2
    assert rests[0] >= 1.0
    assert rests[1] >= 2.0


def test_a_trial_that_somebody_wants_tried_again_does_not_rest(tmp_path: Path) -> None:
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1, "retries": 0, "retry_wait_s": 600.0}})
    failing = LocalLauncher(LocalSettings(poll_period_s=0.1, setup=("exit 1",)))
    with Campaign(dataclasses.replace(made, launcher=failing)) as campaign:
        for _ in campaign.drive():
            pass
    with Campaign(made) as campaign:
        campaign.append("reopened", trial=0)
        campaign.tick()
        assert len(campaign.record.trials[0].attempts) == 2
        for _ in campaign.drive():
            pass
    assert campaign_status(tmp_path / "c")["counts"] == {"completed": 1}


def test_a_campaign_is_its_owners_alone_and_secrets_come_from_a_file(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.sh"
    secrets.write_text("export KEY=averyprivatekey\n")
    command = "echo '{{\"value\": '${{#KEY}}'}}' # {x} {k}"
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1}})
    objective = made.objective.model_copy(update={"command": command})
    launcher = LocalLauncher(LocalSettings(poll_period_s=0.1, setup_file=str(secrets)))
    with Campaign(dataclasses.replace(made, launcher=launcher, objective=objective)) as campaign:
        for _ in campaign.drive():
            pass
    assert campaign_status(tmp_path / "c")["best"]["value"] == len("averyprivatekey")
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    everything = [path.read_bytes() for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert not any(b"averyprivatekey" in data for data in everything)
