"""The command that tells when a campaign ends or stops: what it is told, and that it is never in the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import drivers
from support.waiting import wait

from hpo_cluster.cli.main import main
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.notify import Notify, call, facts_of
from hpo_cluster.driver.notify_command import command_faults
from hpo_cluster.record.status import campaign_status

TELL = "echo {message} >> told; printenv HPO_CLUSTER_EVENT HPO_CLUSTER_REASON >> told; printenv > environment"


def spec(tmp_path: Path, command: str, timeout_s: float = 5.0, **options: Any) -> Any:
    notify = {"command": f"cd {tmp_path}; {command}", "timeout_s": timeout_s}
    operation = {"budget": 2, "notify": notify, **options.pop("operation", {})}
    return drivers.spec(tmp_path / "c", {"sleep": 0, "operation": operation, **options})


def drive(made: Any) -> Campaign:
    with Campaign(made) as campaign:
        for _ in campaign.drive():
            pass
    return campaign


def log_of(campaign: Campaign) -> str:
    return campaign.opened.log_path.read_text()


def test_the_end_of_a_campaign_is_told_with_its_facts(tmp_path: Path) -> None:
    campaign = drive(spec(tmp_path, TELL))
    best = campaign.record.best(maximize=True)
    assert best is not None
    told = (tmp_path / "told").read_text().splitlines()
    value = f"{best.value:.6g}"
    assert told == [
        f"Campaign c has finished: 2 of 2 done, best {value} (t{best.number:04d}).", "finished", "finished"
    ]  # fmt: skip
    environment = dict(
        line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line
    )
    facts = json.loads(environment["HPO_CLUSTER_JSON"])
    assert facts["text"] == told[0]
    assert (facts["dir"], facts["best"], facts["done"], facts["budget"]) == (str(tmp_path / "c"), value, "2", "2")
    assert environment["HPO_CLUSTER_BEST_TRIAL"] == f"t{best.number:04d}"
    assert "notify.command: done" in log_of(campaign)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    campaign = drive(spec(tmp_path, "echo dialling; sleep 300 & echo $! > pid; wait", timeout_s=1.0))
    assert time.monotonic() - began < 60
    pid = int((tmp_path / "pid").read_text())
    wait(lambda: not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text())
    assert "ended after notify.timeout_s=1; it printed: dialling" in log_of(campaign)
    assert campaign_status(tmp_path / "c")["state"] == "finished"


@pytest.mark.parametrize(
    ("command", "logged"),
    [
        ("echo no such host >&2; exit 3", "notify.command: exit status 3; it printed: no such host"),
        ("no-such-program-at-all", "exit status 127"),
    ],
)
def test_a_command_that_fails_is_logged_and_no_more(tmp_path: Path, command: str, logged: str) -> None:
    campaign = drive(spec(tmp_path, command))
    assert logged in log_of(campaign)
    assert campaign_status(tmp_path / "c")["state"] == "finished"


def test_a_driver_that_ends_by_a_fault_is_told(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the disk"), Campaign(spec(tmp_path, TELL)):
        raise RuntimeError("the disk; $(touch harm)\nand more")
    told = (tmp_path / "told").read_text().splitlines()
    assert told[0].startswith("The driver of campaign c has failed: RuntimeError: the disk; $(touch harm). 0 of 2 done")
    assert told[0].endswith(f"Go on with: hpo-cluster resume {tmp_path / 'c'}")
    assert told[1:] == ["failed", "RuntimeError: the disk; $(touch harm)"]
    assert not (tmp_path / "harm").exists()


def test_ticks_tell_the_end_once_and_no_pause(tmp_path: Path) -> None:
    import dataclasses

    made = dataclasses.replace(spec(tmp_path, TELL), tick=True)
    for _ in range(200):
        with Campaign(made) as campaign:
            campaign.tick()
        if campaign_status(tmp_path / "c")["state"] == "finished":
            break
        assert not (tmp_path / "told").exists()
        time.sleep(0.2)
    for _ in range(2):
        with Campaign(made) as campaign:
            campaign.tick()
    assert (tmp_path / "told").read_text().splitlines()[1:] == ["finished", "finished"]


def run(tmp_path: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hpo_cluster", "run", "optimizer=random", "poll_s=0.1", "workers=1", "campaign=c"]
    notify = f"notify.command=cd {tmp_path}; {TELL}".replace("'", "")
    return subprocess.Popen(
        [*command, f"{notify.partition('=')[0]}='{notify.partition('=')[2]}'", *words], cwd=tmp_path
    )


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGTERM, "ended by SIGTERM"), (signal.SIGINT, None), (signal.SIGUSR1, None)]
)
def test_what_the_user_did_is_no_news(tmp_path: Path, number: signal.Signals, told: str | None) -> None:
    driver = run(tmp_path, "objective=synthetic", "objective.duration_s=20", "budget=1")
    wait(lambda: (tmp_path / "campaigns/c/trials/t0000/a0/claim").exists(), 60)
    driver.send_signal(number)
    assert driver.wait(timeout=60) == 130
    seen = (tmp_path / "told").read_text().splitlines()[1:] if (tmp_path / "told").exists() else None
    assert seen == (None if told is None else ["stopped", told])
    assert main(["cancel", str(tmp_path / "campaigns/c"), "0"]) == 0


def test_a_campaign_that_stops_because_all_fails_is_told(tmp_path: Path) -> None:
    driver = run(
        tmp_path, "objective=command", "objective.command='exit {x}'", "space={x: {low: 1, high: 5, type: int}}",
        "retries=0", "stop_after_failures=1", "budget=3",
    )  # fmt: skip
    assert driver.wait(timeout=120) == 1
    message, event, reason = (tmp_path / "told").read_text().splitlines()
    assert event == "stopped"
    assert reason in message
    assert "no value yet" in message


def test_what_is_told_is_data_for_the_shell(tmp_path: Path) -> None:
    status = {
        "campaign": "it's $(touch harm) `touch harm`",
        "dir": str(tmp_path),
        "driver": None,
        "done": 1,
        "budget": 2,
    }
    status |= {"counts": {}, "best": None}
    facts = facts_of("stopped", "a\0b\x1b[31m\nc" + "d" * 10_000_000, status)
    call(
        Notify(command=f"cd {tmp_path}; echo {{message}} > told; printf %s ${{{{HPO_CLUSTER_REASON}}}} > reason"),
        facts,
        tmp_path / "log",
    )
    assert (
        (tmp_path / "told")
        .read_text()
        .startswith("Campaign it's $(touch harm) `touch harm` has stopped: a\\x00b\\x1b[31m")
    )
    assert (tmp_path / "reason").read_text().startswith("a\\x00b")
    assert not (tmp_path / "harm").exists()
    assert os.listdir(tmp_path).count("told") == 1  # noqa: PTH208


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("notify.command='mail {nobody}'", "{nobody} is not known; accepted: {message}; double the braces"),
        ("notify.command='echo ${{A}} }'", "double the braces meant for the shell: {{ and }}"),
        ("notify.command='mail {message} \\'me'", "notify.command: bash cannot read it: unexpected EOF"),
        ("notify.command='  '", "notify.command: is empty"),
        ("notify.command='\"\" {message}'", "notify.command: '' is not a program here"),
        ("notify.command='no-such-mailer {message}'", "notify.command: no-such-mailer is not a program here"),
        (
            "notify.command='echo {message} | A=1 no-such-mailer'",
            "notify.command: no-such-mailer is not a program here",
        ),
        ("notify.command='./tell.sh {message}'", "notify.command: ./tell.sh is not a program here"),
        ("notify.timeout_s=3600", "notify.timeout_s=3600: must be at most 60"),
        ("notify.comand=x", "did you mean notify.command?"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "objective=synthetic", setting]) == 2
    assert fault in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_fault_of_a_command_comes_with_those_of_other_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "objective=synthetic", "budget=-1", "notify.command='no-such-mailer | no-such-filter'"]) == 2
    err = capsys.readouterr().err
    assert "3 faults" in err
    for fault in ("budget=-1", "no-such-mailer is not", "no-such-filter is not"):
        assert fault in err


@pytest.mark.parametrize(
    "command",
    [
        "echo {message} | tee -a told >/dev/null 2>&1 || true",
        "A=1 printenv A; exit 3",
        "if true; then echo {message}; fi",
        "tell() {{ no-such-program; }}; tell",
        'curl_like=$(no-such-program); [ -n "$curl_like" ]',
        "cd /tmp; ./not-here-yet {message}",
        'for word in {message}; do echo "$word"; done',
        "$MAILER {message}",
        "echo \"it's\" {message} # don't",
    ],
)
def test_commands_that_bash_can_run_are_accepted(command: str) -> None:
    assert command_faults(command) == []


def test_a_recorded_command_need_not_exist_where_the_campaign_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tell = tmp_path / "tell"
    tell.write_text("#!/bin/sh\n")
    tell.chmod(0o755)
    words = ["objective=synthetic", "optimizer=random", "poll_s=0.05", "budget=1", "campaign=c"]
    assert main(["run", *words, f"notify.command={tell}"]) == 0
    tell.unlink()
    assert main(["resume", "campaigns/c", "notify.command=no-such-mailer"]) == 2
    assert "no-such-mailer is not a program here" in capsys.readouterr().err
    assert main(["resume", "campaigns/c", "budget=2"]) == 0


@pytest.mark.parametrize(("scheduler", "accepts"), [("slurm", True), ("slurm", False), ("oar", True), ("oar", False)])
def test_a_driver_job_tells_nobody_when_the_next_one_follows(scheduler: str, accepts: bool, tmp_path: Path) -> None:
    root, bin_dir = Path(__file__).resolve().parents[2], tmp_path / "bin"
    bin_dir.mkdir()
    programs = {"hpo-cluster": f'exec "{sys.executable}" -m hpo_cluster "$@"', "scontrol": "echo '   Command=/my/job'"}
    submits = f'echo "$0 $*" >> {tmp_path}/submitted; exit {0 if accepts else 1}'
    for name, line in {**programs, "sbatch": submits, "oarsub": submits}.items():
        (bin_dir / name).write_text(f"#!/bin/bash\n{line}\n")
        (bin_dir / name).chmod(0o755)
    first = run(tmp_path, "objective=synthetic", "objective.duration_s=60", "budget=1")
    wait(lambda: (tmp_path / "campaigns/c/trials/t0000/a0/claim").exists(), 60)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    script = tmp_path / "jobs" / f"driver.{scheduler}"  # next to no environment of its own
    script.parent.mkdir()
    script.write_bytes((root / "jobs" / script.name).read_bytes())
    variables = {
        "SLURM_JOB_ID": "7",
        "OAR_JOB_ID": "7",
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
    }
    job = subprocess.Popen(["bash", str(script), "campaigns/c"], cwd=tmp_path, env={**os.environ, **variables})
    events = tmp_path / "campaigns/c/events.jsonl"
    wait(lambda: events.read_text().count('"event": "started"') == 2, 60)
    job.send_signal(signal.SIGUSR1 if scheduler == "slurm" else signal.SIGTERM)  # as its submission asked for
    assert job.wait(timeout=60) == 130
    submitted = (tmp_path / "submitted").read_text()
    assert ("--dependency=afterany:7 /my/job campaigns/c" if scheduler == "slurm" else "-a 7 -S") in submitted
    reason = json.loads(events.read_text().splitlines()[-1])["reason"]
    assert reason == ("handed over to the next driver job" if accepts else "ended by SIGTERM")
    assert (tmp_path / "told").exists() is not accepts
    assert main(["cancel", str(tmp_path / "campaigns/c"), "0"]) == 0
