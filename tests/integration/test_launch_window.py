"""Campaigns that wait: `launcher.not_before` and `launcher.window`."""

from __future__ import annotations

import dataclasses
import datetime
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import drivers

from hpo_cluster.cli.main import main
from hpo_cluster.driver.campaign import IDLE_S, Campaign
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.job import JobRef
from hpo_cluster.launchers.base import Submission
from hpo_cluster.launchers.local import LocalLauncher, LocalSettings
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.status import campaign_status
from hpo_cluster.window import LaunchHours

WORDS = ["objective=synthetic", "optimizer=random", "campaign=c", "poll_s=0.1", "grace_s=0.5", "budget=2"]
NIGHTS = ["launcher.walltime_min=30", "launcher.window=19:00-08:45"]
DIR = Path("campaigns/c")
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def zone(evening: datetime.datetime) -> str:
    """A time zone in which it is 19:00 at that moment."""
    seconds = 3600 * evening.hour + 60 * evening.minute + evening.second
    ahead_s = (19 * 3600 - seconds + 43200) % 86400 - 43200
    hours, rest = divmod(abs(ahead_s), 3600)
    return f"XXX{'-' if ahead_s > 0 else '+'}{hours:02}:{rest // 60:02}:{rest % 60:02}"


def start(words: list[str], evening: datetime.datetime) -> subprocess.Popen[str]:
    """A driver whose clocks show 19:00 at that moment."""
    command = [sys.executable, "-m", "hpo_cluster", *words]
    return subprocess.Popen(
        command, env={**os.environ, "TZ": zone(evening)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_notice() -> list[str]:
    """What another terminal is told, as soon as the driver waits."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if (DIR / "campaign.yaml").exists() and (notices := campaign_status(DIR)["notices"]):
            return list(notices)
        time.sleep(0.05)
    raise AssertionError("nobody was told")


def test_a_campaign_waits_for_its_window_and_runs_in_it() -> None:
    evening = clock.now().replace(microsecond=0) + datetime.timedelta(seconds=12)
    driver = start(["run", *WORDS, *NIGHTS], evening)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    lines = output.splitlines()
    told = [n for n, line in enumerate(lines) if "no job is submitted before" in line]
    assert len(told) == 1, output
    assert " 19:00: launcher.window" in lines[told[0]]
    assert told[0] < min(n for n, line in enumerate(lines) if line.startswith("trial=")), output
    record = Record.read(DIR / "events.jsonl")
    jobs = [attempt.job for trial in record.rows for attempt in trial.attempts]
    assert len(jobs) == 2
    assert all(job is not None and datetime.datetime.fromisoformat(job.submitted_at) >= evening for job in jobs)
    assert campaign_status(DIR)["notices"] == []


def test_while_it_waits_it_tells_every_terminal_takes_commands_and_ends_at_ctrl_c() -> None:
    driver = start(["run", *WORDS, *NIGHTS], clock.now() + 2 * HOUR)
    try:
        (notice,) = wait_for_notice()
        assert notice.startswith("no job is submitted before ")
        assert notice.endswith(": launcher.window")
        driver.send_signal(signal.SIGINT)
        began = time.monotonic()
        output, _ = driver.communicate(timeout=30)
        assert time.monotonic() - began < IDLE_S + 10.0
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 130
    assert "interrupted: 0 of 2 done" in output
    assert Record.read(DIR / "events.jsonl").trials == {}
    assert campaign_status(DIR)["notices"] == []  # nobody would submit anything
    assert main(["resume", str(DIR), "launcher.window=null"]) == 0  # it may change
    assert Record.read(DIR / "events.jsonl").spent == 2


def test_a_moment_that_has_passed_does_not_come_again(capsys: pytest.CaptureFixture[str]) -> None:
    soon = (clock.now() + datetime.timedelta(seconds=8)).astimezone()
    assert main(["run", *WORDS, f"launcher.not_before={soon:%Y-%m-%dT%H:%M:%S}"]) == 0
    assert ": launcher.not_before" in capsys.readouterr().out
    (first, *_) = Record.read(DIR / "events.jsonl").rows
    job = first.attempts[0].job
    assert job is not None
    assert datetime.datetime.fromisoformat(job.submitted_at) >= soon.replace(microsecond=0)
    assert main(["resume", str(DIR), "budget=3"]) == 0
    assert "launcher.not_before" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launcher.window=19:00-08:45"], "launcher.walltime_min=1440, and its longest stretch has 825 minutes"),
        (["launcher.window=08:00-08:00"], "launcher.window='08:00-08:00': '08:00-08:00' has no length"),
        (["launcher.window=[Sat-Sun,Moon]"], "'Moon' cannot be read; accepted: 19:00-08:45"),
        (["launcher.window=[7]"], "launcher.window.0=7: must be text"),
        (["launcher.not_before=soon"], "launcher.not_before='soon': is not a moment; accepted: a date and time"),
        (["launcher.not_before=1140"], "launcher.not_before=1140: is not a moment"),  # 19:00 in a YAML file
        (["launcher.walltime_min=0", "launcher.window=Moon"], "'Moon' cannot be read"),
        (["launcher.walltime_min=0", "launcher.window=Moon"], "launcher.walltime_min=0: must be at least 1"),
    ],
)
def test_a_window_that_cannot_be_is_refused_before_anything_is_written(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *WORDS, *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", ["local", "slurm", "slurm_a100", "oar", "oar_chuc", "oar_besteffort"])
def test_every_launcher_has_a_window(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    later = (clock.now() + 3 * HOUR).astimezone()
    words = [
        f"launcher={launcher}",
        *NIGHTS,
        f"launcher.not_before={later:%Y-%m-%dT%H:%M}",
        "workers=1",
        "dry_run=true",
    ]
    assert main(["run", *WORDS, *words]) == 0
    assert "no job is submitted before" in capsys.readouterr().out


def waiting(made: CampaignSpec, hours: LaunchHours) -> CampaignSpec:
    return dataclasses.replace(made, hours=hours)


SHUT = LaunchHours(not_before=clock.now() + 24 * HOUR)


class Finding(LocalLauncher):
    """Counts how often it is asked for a job."""

    asked = 0

    def find(self, submission: Submission) -> JobRef | None:
        self.asked += 1
        return super().find(submission)


def test_an_attempt_that_is_made_again_waits_too(tmp_path: Path) -> None:
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1, "retries": 3}})
    failing = LocalLauncher(LocalSettings(poll_period_s=0.1, setup=("exit 1",)))
    with Campaign(dataclasses.replace(made, launcher=failing)) as campaign:
        campaign.tick()
        campaign.opened.spec = waiting(campaign.spec, SHUT)
        trial = campaign.record.trials[0]
        end = time.monotonic() + 60
        while trial.attempts[0].error is None and time.monotonic() < end:
            campaign.tick()
            time.sleep(0.05)
        for _ in range(5):
            campaign.tick()
        assert len(trial.attempts) == 1
        campaign.opened.spec = waiting(made, LaunchHours())
        campaign.tick()
        assert len(trial.attempts) == 2
        for _ in campaign.drive():
            pass
    assert campaign_status(tmp_path / "c")["counts"] == {"completed": 1}


def test_a_job_whose_driver_died_is_adopted_while_nothing_is_submitted(tmp_path: Path) -> None:
    drivers.run(tmp_path / "c", operation={"budget": 1}, sleep=2, kill_at=4, when="before")
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1}})
    with Campaign(waiting(made, SHUT)) as campaign:
        campaign.tick()
        assert campaign.record.trials[0].attempts[0].job is not None
        for _ in campaign.drive():
            pass
    assert len(drivers.evaluations(tmp_path / "c")) == 1
    assert campaign_status(tmp_path / "c")["counts"] == {"completed": 1}


def test_a_job_that_was_never_submitted_is_looked_for_once_and_waits(tmp_path: Path) -> None:
    drivers.run(tmp_path / "c", operation={"budget": 1}, kill_at=3, when="after")
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1}})
    launcher = Finding(LocalSettings(poll_period_s=0.1))
    with Campaign(waiting(dataclasses.replace(made, launcher=launcher), SHUT)) as campaign:
        for _ in range(5):
            campaign.tick()
        assert campaign.record.trials[0].attempts[0].job is None
        assert launcher.asked == 1
        campaign.opened.spec = waiting(campaign.spec, LaunchHours())
        for _ in campaign.drive():
            pass
    assert launcher.asked == 2  # somebody may have submitted it meanwhile
    assert len(drivers.evaluations(tmp_path / "c")) == 1


def test_the_driver_is_idle_while_it_waits_and_ends_at_its_deadline(tmp_path: Path) -> None:
    soon = clock.now() + datetime.timedelta(seconds=2)
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 4, "deadline": soon}})
    pauses: list[float] = []

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    with Campaign(waiting(made, SHUT)) as campaign:
        for _ in campaign.drive(wait):
            pass
        assert "deadline" in campaign.reason
        assert campaign.record.trials == {}
    assert pauses
    assert set(pauses) == {IDLE_S}


def test_between_ticks_the_status_says_it_and_ticks_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    later = (clock.now() + 3 * HOUR).astimezone()
    assert main(["run", *WORDS, "budget=1"]) == 0
    words = ["budget=2", f"launcher.not_before={later:%Y-%m-%dT%H:%M}"]
    assert main(["tick", str(DIR), *words]) == 0
    (notice,) = campaign_status(DIR)["notices"]
    assert notice.endswith(": launcher.not_before")
    capsys.readouterr()
    assert main(["tick", str(DIR)]) == 0
    assert capsys.readouterr().out == ""  # cron would send it by mail each time
    assert Record.read(DIR / "events.jsonl").spent == 1
    assert main(["stop", str(DIR)]) == 0
    assert not any("no job is submitted" in notice for notice in campaign_status(DIR)["notices"])
