"""A driver that loses its campaign while it does not run: to a driver of another host, or with the folder itself."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import drivers

from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.errors import LostCampaignError
from hpo_cluster.launchers import LAUNCHERS, make_launcher
from hpo_cluster.launchers.base import Submission
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.journal import read_journal
from hpo_cluster.record.status import campaign_status

#: Of another host, to which the file system does not pass locks on.
ELSEWHERE = "import fcntl, socket; socket.gethostname = lambda: 'elsewhere'; fcntl.flock = lambda fd, how: None\n"


def until(holds: Callable[[], object], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def ended(directory: Path) -> int:
    return Record.read(directory / "events.jsonl").spent


def last_log(directory: Path) -> str:
    return sorted((directory / "drivers").glob("*/driver.log"))[0].read_text()


def stop(driver: subprocess.Popen[bytes], directory: Path) -> None:
    """Stop it, as a suspended frontend does, and let more than two minutes pass."""
    driver.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, driver.pid, os.WSTOPPED | os.WNOWAIT)
    lock = directory / "driver.lock"
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=125)
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "heartbeat": old.isoformat()}))


@pytest.mark.parametrize("second", ["ends", "dies"])
def test_a_driver_that_was_stopped_while_another_one_did_its_work(tmp_path: Path, second: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(ELSEWHERE)
    directory = tmp_path / "c"
    options = {"operation": {"budget": 8}, "sleep": 0.3}
    first = drivers.start(directory, **options)
    try:
        until(lambda: (directory / "events.jsonl").exists() and ended(directory) >= 2)
        stop(first, directory)
        environment = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
        soon = Record.read(directory / "events.jsonl").seq + 6  # an event of this driver, while there is work left
        kill = {"kill_at": soon, "when": "after"} if second == "dies" else {}
        code = drivers.run(directory, **options, **kill, take_over=True, environment=environment)
        assert code == (-9 if second == "dies" else 0)
        before = (directory / "events.jsonl").read_bytes()
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=60) == 1
    finally:
        first.kill()
    lines = read_journal(directory / "events.jsonl")
    assert (directory / "events.jsonl").read_bytes() == before or lines.left_out == 1
    assert "no longer belongs to this driver" in last_log(directory)
    if second == "dies":
        assert drivers.run(directory, **options, take_over=True, environment=environment) == 0
    status = campaign_status(directory)
    assert (status["state"], status["counts"]) == ("finished", {"completed": 8})
    assert len(drivers.evaluations(directory)) == len(set(drivers.evaluations(directory))) == 8


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_folder_that_goes_away_is_not_made_again(tmp_path: Path, how: str) -> None:
    directory, moved = tmp_path / "c", tmp_path / "moved"
    driver = drivers.start(directory, operation={"budget": 1000}, sleep=0.2)
    try:
        until(lambda: (directory / "events.jsonl").exists() and ended(directory) >= 2)
        directory.rename(moved)
        if how == "deleted":
            shutil.rmtree(moved, ignore_errors=True)
        assert driver.wait(timeout=60) == 1
    finally:
        driver.kill()
    time.sleep(1.0)  # in which its last jobs end
    assert not directory.exists()
    if how == "moved":
        assert "no longer belongs to this driver" in last_log(moved)
        assert drivers.run(moved, operation={"budget": 6}) == 0
        assert campaign_status(moved)["counts"]["completed"] >= 6


@pytest.mark.parametrize("backend", ["local", "slurm", "oar"])
def test_a_folder_that_goes_away_in_the_moment_of_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    directory, moved = tmp_path / "c", tmp_path / "moved"
    launcher = make_launcher(LAUNCHERS[backend][0](gpus_per_trial=0))
    submit = launcher.submit

    def submit_late(submission: Submission) -> Any:
        directory.rename(moved)
        return submit(submission)

    monkeypatch.setattr(launcher, "submit", submit_late)
    made = dataclasses.replace(drivers.spec(directory, {}), launcher=launcher)
    with pytest.raises(LostCampaignError, match="was moved or deleted"), Campaign(made) as campaign:
        for _ in campaign.drive():
            pass
    assert not directory.exists()
    assert drivers.run(moved) == 0
    assert campaign_status(moved)["counts"] == {"completed": 4}
