"""Commands from other terminals, and ticks in place of a driver, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo_cluster.cli.main import main
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.inbox import pending, post
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.status import campaign_status

DIR = Path("campaigns/c")
SLOW = ["objective=synthetic", "objective.duration_s=30", "optimizer=random", "campaign=c", "poll_s=0.1", "grace_s=0.5"]
QUICK = ["objective=synthetic", "optimizer=random", "campaign=c", "poll_s=0.1", "grace_s=0.5"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "hpo_cluster", "run", *words], stdout=subprocess.DEVNULL)


def wait(condition: Callable[[], bool], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def states() -> dict[int, str]:
    return {t.number: str(t.state) for t in Record.read(DIR / "events.jsonl").rows}


def running(*trials: int) -> Callable[[], bool]:
    return lambda: all(states().get(trial) == "running" for trial in trials)


def alive(trial: int) -> bool:
    claim = read_json(DIR / "trials" / f"t{trial:04d}" / "a0" / "claim") or {}
    return Path(f"/proc/{claim['pid']}").exists()


def test_cancel_and_stop_reach_a_living_driver(capsys: pytest.CaptureFixture[str]) -> None:
    driver = start(*SLOW, "budget=3", "workers=2")
    wait(running(0, 1))
    assert main(["cancel", str(DIR), "1"]) == 0
    assert "sent to the driver" in capsys.readouterr().out
    wait(lambda: states().get(1) == "cancelled" and states().get(2) == "running")  # its place is taken
    wait(lambda: not alive(1))
    capsys.readouterr()
    assert main(["stop", str(DIR)]) == 0
    assert "stop: sent to the driver, which submits nothing more and ends; jobs run on" in capsys.readouterr().out
    assert driver.wait(timeout=30) == 0  # nothing was wrong
    assert states() == {0: "running", 1: "cancelled", 2: "running"}  # jobs run on
    assert main(["cancel", str(DIR), "0", "t2"]) == 0  # and with no driver it is done at once
    assert set(states().values()) == {"cancelled"}
    wait(lambda: not alive(0) and not alive(2))


def test_retry_gives_a_failed_trial_another_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"test -e {tmp_path}/mended && echo '{{{{\"value\": 1}}}}' # {{x}}"
    words = ["objective=command", f'objective.command="{command.replace(chr(34), chr(92) + chr(34))}"', "campaign=c"]
    words += ["space={x: {low: 0.0, high: 1.0}}", "optimizer=random", "budget=2", "workers=1", "poll_s=0.1"]
    assert main(["run", *words]) == 1
    assert states() == {0: "failed", 1: "failed"}
    ways = f"more:  hpo-cluster why {DIR} 1    once its cause is gone:  hpo-cluster retry {DIR} 0 1"
    assert ways in capsys.readouterr().out
    assert main(["status", str(DIR)]) == 0
    assert ways in capsys.readouterr().out
    (tmp_path / "mended").touch()
    assert main(["retry", str(DIR), "0"]) == 0
    assert states() == {0: "proposed", 1: "failed"}
    assert main(["resume", str(DIR)]) == 0
    assert states() == {0: "completed", 1: "failed"}
    trial = Record.read(DIR / "events.jsonl").trials[0]
    assert [attempt.error is None for attempt in trial.attempts] == [False, True]
    assert pending(DIR / "inbox") == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["cancel", str(DIR), "9"], "no such trial; it has trials 0 to 0"),
        (["cancel", str(DIR), "0"], "only a trial under way"),
        (["retry", str(DIR), "0"], "only one that ended without a value"),
        (["retry", str(DIR), "first"], "'first': is not the number of a trial"),
        (["why", str(DIR)], "needs the number of a trial"),
        (["tail", "nowhere", "0"], "is not a campaign"),
    ],
)
def test_a_command_that_cannot_be_is_told_at_once(
    words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *QUICK, "budget=1"]) == 0
    assert main(words) == 2
    assert fault in capsys.readouterr().err


def test_a_command_is_carried_out_once_whoever_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run", *QUICK, "budget=1", "objective.failure_rate=1", "retries=0"]) == 1
    post(DIR / "inbox", "retry", 0)
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)  # it dies before the file is removed
    main(["tick", str(DIR)])
    monkeypatch.setattr(Path, "unlink", unlink)
    main(["tick", str(DIR)])
    events = [event["event"] for event in read_events(DIR / "events.jsonl")]
    assert events.count("reopened") == 1
    assert pending(DIR / "inbox") == []


def test_ticks_do_what_a_driver_does(capsys: pytest.CaptureFixture[str]) -> None:
    driver = start(*QUICK, "budget=4", "workers=2", "objective.duration_s=0.5")
    wait(lambda: 0 in states() if DIR.exists() and (DIR / "events.jsonl").exists() else False)
    driver.kill()
    driver.wait()
    for _ in range(40):
        assert main(["tick", str(DIR)]) == 0
        if campaign_status(DIR)["state"] == "finished":
            break
        time.sleep(0.4)
    assert states() == dict.fromkeys(range(4), "completed")
    assert all(len(trial.attempts) == 1 for trial in Record.read(DIR / "events.jsonl").rows)
    before = (DIR / "events.jsonl").read_bytes()
    assert main(["tick", str(DIR)]) == 0
    assert (DIR / "events.jsonl").read_bytes() == before  # nothing to do, nothing written
    assert main(["resume", str(DIR), "budget=5"]) == 0  # ticks and drivers mix
    assert len(states()) == 5
    assert "state=completed" in capsys.readouterr().out


def test_a_tick_beside_a_living_driver_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    driver = start(*SLOW, "budget=2", "workers=2")
    wait(running(0, 1))
    before = (DIR / "events.jsonl").read_bytes()
    assert main(["tick", str(DIR)]) == 0
    assert f"process {driver.pid}" in capsys.readouterr().out
    assert (DIR / "events.jsonl").read_bytes() == before
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=30) == 130
    assert main(["cancel", str(DIR), "0", "1"]) == 0


def test_why_tells_the_story_and_tail_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["objective=command", 'objective.command="echo working on {x}; exit 3"', "campaign=c", "poll_s=0.1"]
    main(["run", *words, "space={x: {low: 0.0, high: 1.0}}", "optimizer=random", "budget=1"])
    capsys.readouterr()
    assert main(["why", str(DIR), "0"]) == 0
    story = capsys.readouterr().out
    for part in ("t0000: failed", "x = ", "attempt 0: job", "failed    code: ", "working on", str(os.uname().nodename)):
        assert part in story
    assert main(["tail", str(DIR), "t0000"]) == 0
    assert "working on" in capsys.readouterr().out


def test_why_shows_what_the_program_wrote_without_what_the_job_says(capsys: pytest.CaptureFixture[str]) -> None:
    program = """echo working on {x}; echo careful >&2; echo '{{\\"value\\": NaN}}'"""
    words = ["objective=command", f'objective.command="{program}"', "campaign=c", "poll_s=0.1"]
    main(["run", *words, "space={x: {low: 0.0, high: 1.0}}", "optimizer=random", "budget=1"])
    capsys.readouterr()
    assert main(["why", str(DIR), "0"]) == 0
    out, errors = [part.splitlines()[1:] for part in capsys.readouterr().out.split("the end of ")[1:]]
    assert [line.rpartition(" ")[0] for line in out] == ["  | working on", '  | {"value":']
    assert errors == ["  | careful"]


def test_tail_ends_if_nobody_will_give_the_trial_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", *QUICK, "budget=1", "objective.failure_rate=1", "retries=0"])
    assert main(["retry", str(DIR), "0"]) == 0
    capsys.readouterr()
    assert main(["tail", str(DIR), "0"]) == 0
    assert f"t0000 is proposed; no driver runs. Go on with:  hpo-cluster resume {DIR}" in capsys.readouterr().out


def test_a_stop_lasts_over_ticks_until_somebody_resumes() -> None:
    assert main(["run", *QUICK, "budget=1"]) == 0
    more = ["budget=3", "workers=1"]
    assert main(["tick", str(DIR), *more]) == 0  # begins the second one
    assert main(["stop", str(DIR)]) == 0
    assert main(["tick", str(DIR), *more]) == 0
    assert len(states()) == 2
    assert main(["resume", str(DIR), *more]) == 0
    assert len(states()) == 3


def test_the_driver_outlives_a_file_that_is_no_command() -> None:
    assert main(["run", *QUICK, "budget=1"]) == 0
    (DIR / "inbox").mkdir(exist_ok=True)
    (DIR / "inbox" / "x.json").write_text('{"verb": "explode"}')
    (DIR / "inbox" / "y.json").write_text("{")
    assert main(["resume", str(DIR), "budget=2"]) == 0
    assert len(states()) == 2
