"""What ends a campaign besides its budget, and what it would do first."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from pathlib import Path

import pytest
from support import drivers

from hpo_cluster import cli
from hpo_cluster.campaign import Campaign
from hpo_cluster.launchers.local import LocalLauncher, LocalSettings
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.operation import Operation
from hpo_cluster.record import Record
from hpo_cluster.status import campaign_status

DIR = Path("campaigns/c")
QUICK = ["objective=synthetic", "optimizer=random", "campaign=c", "poll_s=0.1", "grace_s=0.5"]
NOW = datetime.datetime(2027, 1, 31, 18, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_prints_scripts_and_proposals_and_creates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launcher=slurm", "launcher.partition=gpu", "'launcher.extra={comment: \"two words\"}'", "workers=2"]
    assert cli.main(["run", *QUICK, *[word.strip("'") for word in words], "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert out.count("#SBATCH --partition=gpu") == 2
    assert out.count("$ sbatch ") == 2
    assert "#SBATCH --comment='two words'" in out
    assert "t0000  x1=" in out
    assert list(Path.cwd().iterdir()) == []
    assert cli.main(["run", *QUICK, "workers=2", "budget=2"]) == 0
    first = Record.read(DIR / "events.jsonl").trials[0].parameters
    assert f"x1={first['x1']:.4g}" in out  # it does propose what it said
    before = sorted(DIR.rglob("*"))
    assert cli.main(["resume", str(DIR), "budget=3", "dry_run=true"]) == 0
    assert "t0002" in capsys.readouterr().out
    assert sorted(DIR.rglob("*")) == before


def test_a_dry_run_shows_the_whole_submission_command_of_oar(capsys: pytest.CaptureFixture[str]) -> None:
    """Queue, properties, resources and types are nowhere in the script."""
    words = ["launcher=oar", "launcher.queue=default", "launcher.types=[besteffort]", "workers=1", "dry_run=true"]
    assert cli.main(["run", *QUICK, *words]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("$ oarsub "))
    said = shlex.split(command)[2:]
    wanted = {"-l": "nodes=1/gpu=1,walltime=2:00:00", "-q": "default", "-p": "gpu_count > 0", "-t": "besteffort"}
    assert {option: said[said.index(option) + 1] for option in wanted} == wanted


def test_after_the_deadline_nothing_is_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *QUICK, "deadline=2020-01-01T00:00"]) == 1
    assert "the deadline 2020-01-01T00:00:00 has passed" in capsys.readouterr().out
    assert Record.read(DIR / "events.jsonl").trials == {}
    assert cli.main(["resume", str(DIR), "deadline=null", "budget=1"]) == 0


def test_what_runs_at_the_limit_is_waited_for_and_taken_in() -> None:
    words = ["launcher.gpus_per_trial=1", "launcher.gpu_devices=[0,1]", "objective.duration_s=1", "workers=2"]
    assert cli.main(["run", *QUICK, *words, "budget=8", "max_gpu_hours=0.0001"]) == 1
    status = campaign_status(DIR)
    assert status["counts"] == {"completed": 2}
    assert status["gpu_hours"] == pytest.approx(2 / 3600, rel=0.9)
    assert "max_gpu_hours" in status["reason"]


def test_limits() -> None:
    assert Operation().used_up(NOW, 1e9) == ""
    assert Operation(deadline=NOW).used_up(NOW, 0.0)
    assert not Operation(deadline=NOW + datetime.timedelta(minutes=1)).used_up(NOW, 0.0)
    assert Operation(max_gpu_hours=2.0).used_up(NOW, 2.0)
    assert not Operation(max_gpu_hours=2.0).used_up(NOW, 1.9)


def test_the_status_shows_what_the_scheduler_says() -> None:
    assert cli.main(["run", *QUICK, "budget=1", "objective.duration_s=1.5", "launcher.poll_period_s=0.1"]) == 0
    status = campaign_status(DIR)
    assert status["scheduler"]["at"]
    assert status["scheduler"]["silent_since"] is None


@pytest.mark.parametrize("command", ["sleep 60", "trap '' INT TERM USR2; sleep 60 & wait; sleep 60"])
def test_a_local_job_whose_time_is_over_is_tried_again_and_then_failed(tmp_path: Path, command: str) -> None:
    """submitit's controller sends SIGINT, and SIGKILL a second later."""
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1, "retries": 1}})
    objective = CommandObjective(command=f"{command} # {{x}} {{k}}", cwd=str(tmp_path))
    launcher = LocalLauncher(LocalSettings.model_construct(walltime_min=0.05, poll_period_s=0.1))
    with Campaign(dataclasses.replace(made, objective=objective, launcher=launcher)) as campaign:
        for _ in campaign.drive():
            pass
    trial = Record.read(tmp_path / "c" / "events.jsonl").trials[0]
    assert [attempt.error and attempt.error["kind"] for attempt in trial.attempts] == ["walltime", "walltime"]
