"""What ends a campaign besides its budget, and what it would do first."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support import drivers

from hpo_cluster.cli.main import main
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.job import JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import Submission, make_ref
from hpo_cluster.launchers.local import LocalLauncher, LocalSettings
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.status import campaign_status

DIR = Path("campaigns/c")
QUICK = ["objective=synthetic", "optimizer=random", "campaign=c", "poll_s=0.1", "grace_s=0.5"]
NOW = datetime.datetime(2027, 1, 31, 18, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_dry_run_prints_scripts_and_proposals_and_creates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launcher=slurm", "launcher.partition=gpu", "'launcher.extra={comment: \"two words\"}'", "workers=2"]
    assert main(["run", *QUICK, *[word.strip("'") for word in words], "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert out.count("#SBATCH --partition=gpu") == 2
    assert out.count("$ sbatch ") == 2
    assert "#SBATCH --comment='two words'" in out
    assert "t0000  x1=" in out
    assert list(Path.cwd().iterdir()) == []
    assert main(["run", *QUICK, "workers=2", "budget=2"]) == 0
    first = Record.read(DIR / "events.jsonl").trials[0].parameters
    assert f"x1={first['x1']:.4g}" in out  # it does propose what it said
    before = sorted(DIR.rglob("*"))
    assert main(["resume", str(DIR), "budget=3", "dry_run=true"]) == 0
    assert "t0002" in capsys.readouterr().out
    assert sorted(DIR.rglob("*")) == before


def test_a_dry_run_shows_the_whole_submission_command_of_oar(capsys: pytest.CaptureFixture[str]) -> None:
    """Queue, properties, resources and types are nowhere in the script."""
    words = ["launcher=oar", "launcher.queue=default", "launcher.types=[besteffort]", "workers=1", "dry_run=true"]
    assert main(["run", *QUICK, *words]) == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("$ oarsub "))
    said = shlex.split(command)[2:]
    wanted = {"-l": "nodes=1/gpu=1,walltime=2:00:00", "-q": "default", "-p": "gpu_count > 0", "-t": "besteffort"}
    assert {option: said[said.index(option) + 1] for option in wanted} == wanted


def test_after_the_deadline_nothing_is_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK, "deadline=2020-01-01T00:00"]) == 1
    assert "the deadline 2020-01-01T00:00:00 has passed" in capsys.readouterr().out
    assert Record.read(DIR / "events.jsonl").trials == {}
    assert main(["resume", str(DIR), "deadline=null", "budget=1"]) == 0


def test_gpus_that_this_machine_lacks_are_said_before_anything_is_created(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK, "launcher.gpus_per_trial=3", "launcher.gpu_devices=[0,1]"]) == 2
    assert "launcher.gpus_per_trial=3, but this machine has 2 GPUs\nNothing was created" in capsys.readouterr().err
    assert not DIR.parent.exists()


def test_what_runs_at_the_limit_is_waited_for_and_taken_in() -> None:
    words = ["launcher.gpus_per_trial=1", "launcher.gpu_devices=[0,1]", "objective.duration_s=1", "workers=2"]
    assert main(["run", *QUICK, *words, "budget=8", "max_gpu_hours=0.0001"]) == 1
    status = campaign_status(DIR)
    assert status["counts"] == {"completed": 2}
    assert status["gpu_hours"] == pytest.approx(2 / 3600, rel=0.9)
    assert "max_gpu_hours" in status["reason"]


def test_limits() -> None:
    assert Operation().used_up(NOW, 1e9, 1e9) == ""
    assert Operation(deadline=NOW).used_up(NOW, 0.0, 0.0)
    assert not Operation(deadline=NOW + datetime.timedelta(minutes=1)).used_up(NOW, 0.0, 0.0)
    assert Operation(max_gpu_hours=2.0).used_up(NOW, 2.0, 0.0)
    assert not Operation(max_gpu_hours=2.0).used_up(NOW, 1.9, 1e9)
    assert "0.500 kWh are used, of max_energy_kwh=0.5" in Operation(max_energy_kwh=0.5).used_up(NOW, 0.0, 0.5)
    assert not Operation(max_energy_kwh=0.5).used_up(NOW, 1e9, 0.49)


def test_the_energy_that_jobs_report_is_summed_and_ends_a_campaign() -> None:
    Path("out.json").write_text('{"value": 1, "energy_wh": 400}')
    command = "objective.command='cat out.json # {x}'"
    space = "space={x: {type: float, low: 0, high: 1}}"
    words = ["objective=command", command, space, "optimizer=random", "campaign=c", "poll_s=0.1", "grace_s=0.5"]
    assert main(["run", *words, "workers=1", "budget=8", "max_energy_kwh=1"]) == 1
    status = campaign_status(DIR)
    assert status["counts"] == {"completed": 3}
    assert status["energy_kwh"] == pytest.approx(1.2)
    assert "max_energy_kwh" in status["reason"]


def test_the_status_shows_what_the_scheduler_says() -> None:
    assert main(["run", *QUICK, "budget=1", "objective.duration_s=1.5", "launcher.poll_period_s=0.1"]) == 0
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


class Queue(LocalLauncher):
    """A cluster whose queue is as long as the test wants: jobs wait, and one of them begins."""

    def __init__(self) -> None:
        super().__init__(LocalSettings(poll_period_s=0.3))
        self.running: set[str] = set()
        self.cancelled: set[str] = set()

    def submit(self, submission: Submission) -> JobRef:
        return make_ref(self.backend, "1", submission.token, attempt_dir=str(submission.attempt_dir))

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        states = {ref.token: JobState.RUNNING if ref.token in self.running else JobState.PENDING for ref in refs}
        return {token: JobStatus(state) for token, state in states.items()}

    def cancel(self, ref: JobRef) -> None:
        self.cancelled.add(ref.token)


def queued(tmp_path: Path, **operation: Any) -> tuple[Campaign, Queue]:
    launcher = Queue()
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 50, "workers": 50, **operation}})
    return Campaign(dataclasses.replace(made, launcher=launcher)), launcher


def test_folders_of_jobs_that_wait_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is a call to the file server: 200 waiting jobs cost 364 of them a second."""
    looked: list[str] = []
    monkeypatch.setattr("hpo_cluster.driver.collect.refresh", lambda path: looked.append(path.parent.name) or [])
    campaign, launcher = queued(tmp_path)
    with campaign:
        campaign.tick()
        launcher.running.add(campaign.record.trials[7].attempts[0].token)
        campaign.collector.watch._due_at = 0.0
        campaign.collect()
        looked.clear()
        for _ in range(5):
            campaign.collector.read_files()
        assert looked == ["t0007"] * 5
        campaign.collector.watch._answered_at -= 10.0  # the scheduler hangs: jobs may begin and end meanwhile
        looked.clear()
        campaign.collector.read_files()
        assert len(looked) == 50


def test_jobs_that_wait_at_the_deadline_are_cancelled_and_what_runs_goes_on(tmp_path: Path) -> None:
    campaign, launcher = queued(tmp_path, budget=4, workers=4)
    with campaign:
        campaign.tick()
        first = campaign.record.trials[0]
        launcher.running.add(first.attempts[0].token)
        campaign.collector.watch._due_at = 0.0
        campaign.collect()
        operation = campaign.spec.operation.model_copy(update={"deadline": NOW.replace(year=2020)})
        campaign.opened.spec = dataclasses.replace(campaign.spec, operation=operation)
        campaign.tick()
        states = {number: str(trial.state) for number, trial in campaign.record.trials.items()}
        assert states == {0: "submitted", 1: "cancelled", 2: "cancelled", 3: "cancelled"}
        assert len(launcher.cancelled) == 3
        assert campaign.record.spent == 0


def test_a_walltime_shorter_than_the_start_is_told_after_the_first_attempt(tmp_path: Path) -> None:
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 1, "retries": 2}})
    say = """echo '{{"phase": "load"}}' > $HPO_CLUSTER_ATTEMPT_DIR/progress.json; sleep 60 # {x} {k}"""
    launcher = LocalLauncher(LocalSettings.model_construct(walltime_min=0.1, poll_period_s=0.1))
    objective = CommandObjective(command=say, cwd=str(tmp_path))
    with Campaign(dataclasses.replace(made, objective=objective, launcher=launcher)) as campaign:
        for _ in campaign.drive():
            pass
    trial = Record.read(tmp_path / "c" / "events.jsonl").trials[0]
    assert (str(trial.state), len(trial.attempts)) == ("failed", 1)
    assert trial.error is not None
    assert trial.error["kind"] == "walltime"
    assert "Raise launcher.walltime_min" in trial.error["message"]
