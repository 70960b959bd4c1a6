"""What every launcher must do, on jobs that are real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo_cluster.errors import SubmissionError
from hpo_cluster.launchers import LAUNCHERS, LocalSettings, SlurmSettings, make_launcher
from hpo_cluster.launchers.base import Launcher, Submission
from hpo_cluster.trial import JobRef, JobState


def submission(tmp_path: Path, code: str, token: str | None = None) -> Submission:
    attempt_dir = tmp_path / "t0000" / "a0"
    attempt_dir.mkdir(parents=True, exist_ok=True)
    token = token or f"hpo-test-{os.getpid()}-{time.monotonic_ns()}"
    return Submission(token, (sys.executable, "-c", code), attempt_dir, attempt_dir / "job")


def wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class LauncherContract:
    """Inherit, and give `launcher`."""

    @pytest.fixture
    def launcher(self) -> Launcher:
        raise NotImplementedError

    @pytest.fixture
    def sleeping(self, launcher: Launcher, tmp_path: Path) -> Iterator[tuple[Submission, JobRef]]:
        job = submission(tmp_path, "import time; print('awake', flush=True); time.sleep(60)")
        ref = launcher.submit(job)
        yield job, ref
        launcher.cancel(ref)
        wait(lambda: launcher.poll([ref])[ref.token].state is JobState.ENDED)

    def test_a_job_runs_ends_and_leaves_its_output(self, launcher: Launcher, tmp_path: Path) -> None:
        job = submission(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)")
        ref = launcher.submit(job)
        wait(lambda: launcher.poll([ref])[ref.token].state is JobState.ENDED)
        logs = "".join(path.read_text() for path in job.job_dir.glob("*log*"))
        assert "out" in logs
        assert "err" in logs

    def test_a_handle_survives_as_json(self, launcher: Launcher, sleeping: tuple[Submission, JobRef]) -> None:
        ref = JobRef(**json.loads(json.dumps(sleeping[1].__dict__)))
        assert launcher.poll([ref])[ref.token].state in (JobState.PENDING, JobState.RUNNING)

    def test_it_is_found_by_its_token_and_no_other_is(
        self, launcher: Launcher, sleeping: tuple[Submission, JobRef], tmp_path: Path
    ) -> None:
        job, ref = sleeping
        found = launcher.find(job)
        assert found is not None
        assert found.job_id == ref.job_id
        assert launcher.find(submission(tmp_path, "", token="hpo-nobody")) is None

    def test_cancel_ends_it_and_may_be_repeated(self, launcher: Launcher, tmp_path: Path) -> None:
        job = submission(tmp_path, "import time; time.sleep(60)")
        ref = launcher.submit(job)
        launcher.cancel(ref)
        wait(lambda: launcher.poll([ref])[ref.token].state is JobState.ENDED)
        launcher.cancel(ref)
        assert launcher.find(job) is None


class TestLocal(LauncherContract):
    @pytest.fixture
    def launcher(self) -> Launcher:
        return make_launcher(LocalSettings(cpus_per_trial=1))

    def test_a_job_survives_its_controller_and_is_still_followed(self, launcher: Launcher, tmp_path: Path) -> None:
        claim = "import json, os, sys, time; from pathlib import Path; from hpo_cluster import worker; "
        claim += (
            "who = worker.job_identity(); Path('claim.tmp').write_text(json.dumps({'token': sys.argv[1], **who})); "
        )
        claim += "os.rename('claim.tmp', 'claim'); time.sleep(60)"
        job = submission(tmp_path, "")
        command = (sys.executable, "-c", f"import os; os.chdir({str(job.attempt_dir)!r}); {claim}", job.token)
        job = Submission(job.token, command, job.attempt_dir, job.job_dir)
        ref = launcher.submit(job)
        wait((job.attempt_dir / "claim").exists)
        os.kill(int(ref.job_id), signal.SIGKILL)
        time.sleep(0.3)
        assert launcher.poll([ref])[ref.token].state is JobState.RUNNING
        launcher.cancel(ref)
        wait(lambda: launcher.poll([ref])[ref.token].state is JobState.ENDED)

    def test_a_recycled_pid_is_not_taken_for_the_job(self, launcher: Launcher, tmp_path: Path) -> None:
        ref = JobRef("local", str(os.getpid()), "t", "", os.uname().nodename, {"pid_started": "x", "attempt_dir": "/x"})
        assert launcher.poll([ref])["t"].state is JobState.ENDED
        launcher.cancel(ref)  # and nobody is harmed: this test goes on

    def test_another_hosts_job_is_unknown_not_ended(self, launcher: Launcher) -> None:
        ref = JobRef("local", "1", "t", "", "elsewhere", {})
        assert launcher.poll([ref])["t"].state is JobState.UNKNOWN

    def test_its_session_is_its_own_and_its_threads_are_capped(self, launcher: Launcher, tmp_path: Path) -> None:
        job = submission(tmp_path, "import os; print(os.getsid(0), os.environ['OMP_NUM_THREADS'])")
        ref = launcher.submit(job)
        wait(lambda: launcher.poll([ref])[ref.token].state is JobState.ENDED)
        session, threads = next(job.job_dir.glob("*.out")).read_text().split()
        assert int(session) != os.getsid(0)
        assert threads == "1"

    def test_devices_are_shared_out_and_given_back(self, tmp_path: Path) -> None:
        launcher = make_launcher(LocalSettings(gpus_per_trial=1, gpu_devices=(0, 3)))
        code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
        jobs = [submission(tmp_path / str(n), code) for n in range(3)]
        refs = [launcher.submit(job) for job in jobs[:2]]
        assert [ref.extra["devices"] for ref in refs] == [[0], [3]]
        with pytest.raises(SubmissionError, match="0 of 2 free") as refused:
            launcher.submit(jobs[2])
        assert refused.value.retriable
        launcher.cancel(refs[0])
        wait(lambda: launcher.poll(refs)[refs[0].token].state is JobState.ENDED)
        refs.append(launcher.submit(jobs[2]))
        assert refs[2].extra["devices"] == [0]
        for ref in refs:
            launcher.cancel(ref)

    def test_more_devices_than_there_are_is_final(self, tmp_path: Path) -> None:
        launcher = make_launcher(LocalSettings(gpus_per_trial=2, gpu_devices=(0,)))
        with pytest.raises(SubmissionError, match="has 1 GPUs") as refused:
            launcher.submit(submission(tmp_path, ""))
        assert not refused.value.retriable

    def test_set_up_lines_come_before_the_command(self, tmp_path: Path) -> None:
        launcher = make_launcher(LocalSettings(setup=("export A='b  c'",)))
        job = submission(tmp_path, "import os; print(os.environ['A'])")
        ref = launcher.submit(job)
        wait(lambda: launcher.poll([ref])[ref.token].state is JobState.ENDED)
        assert next(job.job_dir.glob("*.out")).read_text() == "b  c\n"


def test_the_slurm_script_says_what_was_asked_for(tmp_path: Path) -> None:
    from hpo_cluster.launchers.slurm import SlurmLauncher

    settings = SlurmSettings(
        partition="gpu", account="lab", qos="long", constraint="a100", mem_gb=32, walltime_min=90,
        setup=("module load cuda",), extra={"exclude": "node01,node02", "comment": "two words 'quoted'"},
    )  # fmt: skip
    job = submission(tmp_path / "a b", "print('hello')", token="hpo-x-t0000-a0-1")
    script = SlurmLauncher(settings).script(job)
    for line in (
        "--partition=gpu", "--account=lab", "--qos=long", "--constraint=a100", "--mem=32768MB", "--time=90",
        "--gpus-per-node=1", "--cpus-per-task=8", "--no-requeue", "--job-name=hpo-x-t0000-a0-1",
        "--exclude=node01,node02", "module load cuda", "HPO_CLUSTER_TOKEN=hpo-x-t0000-a0-1", "OMP_NUM_THREADS=8",
    ):  # fmt: skip
        assert line in script, line
    assert "wckey" not in script
    assert "submitit.core._submit" not in script
    assert ".pkl" not in script


def test_without_the_commands_of_slurm_submission_fails_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    launcher = make_launcher(SlurmSettings())
    with pytest.raises(SubmissionError, match="sbatch: command not found") as refused:
        launcher.submit(submission(tmp_path, ""))
    assert not refused.value.retriable
    ref = JobRef("slurm", "1", "t", "", "here")
    assert launcher.poll([ref])["t"].state is JobState.UNKNOWN


def test_every_launcher_is_known() -> None:
    assert set(LAUNCHERS) >= {"local", "slurm"}
