"""Closed streams, lost terminals, rubbish in a campaign's own folder and rights that are missing harm nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import drivers
from support.waiting import wait

from hpo_cluster.cli.main import main
from hpo_cluster.record.status import campaign_status
from hpo_cluster.report import write_report

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
COMMAND = f"{sys.executable} -m hpo_cluster"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash; ``hpo-cluster`` is the command of this source tree. Python buffers its output."""
    line = line.replace("hpo-cluster", COMMAND)
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "c"
    assert drivers.run(directory, operation={"budget": 2, "workers": 2}) == 0
    return directory


@pytest.fixture
def campaign(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "c", symlinks=True)
    return tmp_path / "c"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("hpo-cluster status c --json | true; exit ${PIPESTATUS[0]}", 0),
        ("hpo-cluster nonsense 2>&1 | true; exit ${PIPESTATUS[0]}", 2),
        ("hpo-cluster status c > /dev/full", 1),
        ("hpo-cluster help > /dev/full", 1),
        ("hpo-cluster status nowhere 2> /dev/full", 2),
        ("hpo-cluster status c >&-", 0),
        ("hpo-cluster status nowhere 2>&-", 2),
        ("hpo-cluster status c <&- >&- 2>&-", 0),
    ],
)
def test_output_that_nobody_takes(line: str, status: int, campaign: Path) -> None:
    ended = shell(line, campaign.parent)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr
    if line.endswith("> /dev/full") and "2>" not in line:
        assert "standard output: No space left on device" in ended.stderr


RUN = "hpo-cluster run campaign=x campaigns_dir=. objective=synthetic optimizer=random budget=2 poll_s=0.1 grace_s=0.5"


@pytest.mark.parametrize("streams", [">&- 2>&-", "> /dev/full 2> /dev/full", "| true"])
def test_a_driver_goes_on_without_its_output(streams: str, tmp_path: Path) -> None:
    ended = shell(f"{RUN} {streams}", tmp_path)
    status = campaign_status(tmp_path / "x")
    assert status["state"] == "finished"
    assert status["counts"] == {"completed": 2}
    assert "Traceback" not in ended.stderr
    for line in (tmp_path / "x" / "events.jsonl").read_text().splitlines():
        json.loads(line)  # nothing that was printed has come in


def test_a_terminal_that_goes_away_leaves_the_jobs_running(tmp_path: Path) -> None:
    """A shell sends SIGHUP twice: that is not as Ctrl-C twice, which cancels the jobs."""
    line = f"{RUN} workers=1 objective.duration_s=20".replace("hpo-cluster", COMMAND)
    command = ["env", "--default-signal=HUP", *line.split()]  # tests in the background ignore it
    driver = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE)
    end = time.monotonic() + 60
    while time.monotonic() < end and (
        not (tmp_path / "x/campaign.yaml").exists() or not campaign_status(tmp_path / "x")["counts"].get("running")
    ):
        time.sleep(0.1)
    assert driver.stdout is not None
    driver.stdout.close()
    driver.send_signal(signal.SIGHUP)
    time.sleep(0.05)
    driver.send_signal(signal.SIGHUP)
    assert driver.wait(timeout=60) == 130
    status = campaign_status(tmp_path / "x")
    assert (status["state"], status["reason"], status["counts"]) == ("stopped", "ended by SIGHUP", {"running": 1})
    assert main(["cancel", str(tmp_path / "x"), "0"]) == 0


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


NOT_FILES: dict[str, Callable[[Path], Any]] = {
    "directory": replaced(lambda path: path.mkdir()),
    "pipe": replaced(os.mkfifo),
    "endless device": replaced(lambda path: path.symlink_to("/dev/zero")),
    "circular link": replaced(lambda path: path.symlink_to(path.name)),
    "dangling link": replaced(lambda path: path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("what", NOT_FILES)
def test_a_journal_that_is_no_file_is_told_and_repaired(
    what: str, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    NOT_FILES[what](campaign / "events.jsonl")
    for words in (["status"], ["why", "0"], ["tail", "0"], ["report"]):
        assert main([words[0], str(campaign), *words[1:]]) == 2
        assert f"hpo-cluster repair {campaign}" in capsys.readouterr().err
    assert main(["repair", str(campaign)]) == 0
    assert campaign_status(campaign)["in_flight"] == 2  # their results are taken in when the campaign goes on


STRANGE_EVENTS: dict[str, dict[str, Any]] = {
    "of a trial that is not there": {"event": "ended", "trial": 77, "state": "completed"},
    "of an attempt that is not there": {"event": "ended", "trial": 0, "attempt": 9, "state": "completed"},
    "in a state that is none": {"event": "ended", "trial": 0, "attempt": 0, "state": "splendid"},
    "without its fields": {"event": "asked"},
    "a start without settings": {"event": "started"},
    "a moment that is none": {"event": "stopped", "at": "yesterday"},
    "with rows that are none": {"event": "asked", "trials": [3]},
}


@pytest.mark.parametrize("what", STRANGE_EVENTS)
def test_an_event_that_does_not_fit_is_told_and_repaired(
    what: str, campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = campaign / "events.jsonl"
    last = json.loads(journal.read_text().splitlines()[-1])
    with journal.open("a") as stream:
        stream.write(json.dumps({**last, "seq": last["seq"] + 1, "reason": None, **STRANGE_EVENTS[what]}) + "\n")
    assert main(["status", str(campaign)]) == 2
    assert f"hpo-cluster repair {campaign}" in capsys.readouterr().err
    assert main(["repair", str(campaign)]) == 0
    assert campaign_status(campaign)["counts"] == {"completed": 2}


STRANGE_IDENTITIES: dict[str, bytes] = {
    "empty": b"",
    "binary": b"\xff\xfe\0\x80",
    "deeply nested": b"[" * 5000,
    "a list": b"- 1\n",
    "without sections": b"direction: maximize\n",
    "with sections of another kind": b"{space: [1], objective: 3, optimizer: x, direction: maximize}\n",
    "with a direction that is none": b"{space: {}, objective: {}, optimizer: {}, direction: up}\n",
}


@pytest.mark.parametrize("what", STRANGE_IDENTITIES)
def test_an_identity_that_was_damaged_is_told(what: str, campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (campaign / "campaign.yaml").write_bytes(STRANGE_IDENTITIES[what])
    for command in ("status", "report", "resume", "repair"):
        assert main([command, str(campaign)]) == 2
        assert "Put back what was written there" in capsys.readouterr().err


def test_a_standard_error_below_zero_is_none(campaign: Path) -> None:
    """Journals of earlier versions hold such numbers, and a report cannot draw them."""
    journal = campaign / "events.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    for event in events:
        if event["event"] == "ended":
            event["value_sem"] = -0.5
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    for path in campaign.glob("trials/*/a0/result.json"):
        result = json.loads(path.read_text())
        result["metrics"]["other"] = 1.0
        path.write_text(json.dumps({**result, "sems": {"value": -0.5, "other": -1, "third": "x"}}))
    assert campaign_status(campaign)["best"]["value_sem"] is None
    write_report(campaign)


#: Words before a command that take from root the right to read everything.
ORDINARY = "setpriv --bounding-set -dac_override,-dac_read_search --inh-caps -all " if os.geteuid() == 0 else ""
needs_setpriv = pytest.mark.skipif(bool(ORDINARY) and shutil.which("setpriv") is None, reason="root reads everything")


@needs_setpriv
def test_a_job_that_locks_its_own_folder_publishes_its_result_once_it_can(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text('chmod 000 x/trials/t0000/a0; echo "{\\"value\\": 1}" # $1\n')
    (tmp_path / "conf/space").mkdir(parents=True)
    (tmp_path / "conf/space/mine.yaml").write_text("x: {type: float, low: 0, high: 1}\n")
    command = "hpo-cluster run campaign=x campaigns_dir=. objective=command 'objective.command=\"bash job.sh {x}\"'"
    quick = "space=mine optimizer=random budget=2 workers=1 retries=0 poll_s=0.1"
    line, folder = f"{ORDINARY}{command} {quick}".replace("hpo-cluster", COMMAND), tmp_path / "x/trials/t0000/a0"
    with subprocess.Popen(["bash", "-c", line], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as driver:
        wait(lambda: folder.exists() and folder.stat().st_mode & 0o777 == 0, 60)
        time.sleep(2)  # the result is there by now, and cannot be published
        looked = shell(f"{ORDINARY}hpo-cluster why x 0", tmp_path)
        folder.chmod(0o700)
        assert driver.wait(60) == 0
    assert looked.returncode == 0, looked.stderr
    assert campaign_status(tmp_path / "x")["counts"] == {"completed": 2}


@needs_setpriv
@pytest.mark.parametrize(
    ("what", "command"),
    [("events.jsonl", "status c"), ("campaign.yaml", "resume c"), ("driver.lock", "repair c")],
)
def test_rights_that_are_missing_are_told_in_a_sentence(what: str, command: str, campaign: Path) -> None:
    (campaign / "report").mkdir(exist_ok=True)
    (campaign / what).chmod(0)
    ended = shell(f"{ORDINARY}hpo-cluster {command}", campaign.parent)
    (campaign / what).chmod(0o700)
    assert ended.returncode == 1
    assert f"c/{what}" in ended.stderr
    assert "Permission denied" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("driver.lock", ["repair", "c"]),
        ("driver.epochs", ["repair", "c"]),
        ("inbox", ["stop", "c"]),
        ("report", ["report", "c"]),
    ],
)
def test_what_is_in_the_way_is_told(
    name: str, words: list[str], campaign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = campaign / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    journal = campaign / "events.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))  # a finished one cannot be stopped
    monkeypatch.chdir(campaign.parent)
    assert main(words) in (1, 2)
    told = capsys.readouterr().err
    assert str(path.relative_to(campaign.parent)) in told
    assert "emove it" in told or "ove it away" in told or "Move away" in told


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DERIVED: dict[str, Callable[[Path], Any]] = {
    "a history that is a folder": lambda c: folder(c / "history.csv"),
    "an epoch that is none": lambda c: (c / "driver.lock").write_text('{"epoch": "abc"}'),
    "an endless epoch": lambda c: (c / "driver.lock").write_text('{"epoch": 1e400}'),
    "jobs as a list": lambda c: (c / "scheduler.json").write_text('{"jobs": [1], "silent_since": 3}'),
    "jobs of text": lambda c: (c / "scheduler.json").write_text('{"jobs": {"x": "y"}, "at": {}}'),
    "no jobs": lambda c: (c / "scheduler.json").write_text('{"jobs": null}'),
    "since no time": lambda c: (c / "scheduler.json").write_text('{"jobs": {"x": {"unknown_since": "once"}}}'),
}


@pytest.mark.parametrize("what", DERIVED)
def test_a_driver_goes_on_with_what_it_can_write_again(what: str, campaign: Path) -> None:
    DERIVED[what](campaign)
    assert drivers.run(campaign, operation={"budget": 3, "workers": 2}) == 0
    assert campaign_status(campaign)["counts"] == {"completed": 3}
