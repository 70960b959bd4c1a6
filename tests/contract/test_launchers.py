"""What every launcher must do, on jobs that are real processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers import LAUNCHERS, LocalSettings, OarSettings, SlurmSettings, make_launcher
from hpo_cluster.launchers.base import Launcher, Submission


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
        claim = "import json, os, sys, time; from pathlib import Path; "
        claim += (
            "from hpo_cluster.record.attempt_files import job_identity; "
            "who = job_identity(); Path('claim.tmp').write_text(json.dumps({'token': sys.argv[1], **who})); "
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
        ref = JobRef(
            "local",
            str(os.getpid()),
            "t",
            "2026-01-01T00:00:00Z",
            os.uname().nodename,
            {"pid_started": "x", "attempt_dir": "/x"},
        )
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
        with pytest.raises(SubmissionError, match="free are 0 of 2") as refused:
            launcher.submit(jobs[2])
        assert refused.value.retriable
        launcher.cancel(refs[0])
        wait(lambda: launcher.poll(refs)[refs[0].token].state is JobState.ENDED)
        refs.append(launcher.submit(jobs[2]))
        assert refs[2].extra["devices"] == [0]
        for ref in refs:
            launcher.cancel(ref)

    def test_devices_are_free_again_without_a_poll(self, tmp_path: Path) -> None:
        """A driver does not ask about a job whose result it has read, and asks nothing if no other job is there."""
        launcher = make_launcher(LocalSettings(gpus_per_trial=1, gpu_devices=(0,)))
        refs = [launcher.submit(submission(tmp_path / "0", "pass"))]

        def is_taken() -> bool:
            with contextlib.suppress(SubmissionError):
                refs.append(launcher.submit(submission(tmp_path / "1", "pass")))
            return len(refs) == 2

        wait(is_taken)
        assert refs[1].extra["devices"] == [0]

    def test_more_devices_than_there_are_is_final(self, tmp_path: Path) -> None:
        launcher = make_launcher(LocalSettings(gpus_per_trial=2, gpu_devices=(0,)))
        with pytest.raises(SubmissionError, match=r"has 1 GPU$") as refused:
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


@pytest.mark.parametrize(("delay", "line"), [(90, "#SBATCH --signal=USR2@90"), (600, "USR2@600"), (0, None)])
def test_a_slurm_job_is_warned_of_its_walltime(tmp_path: Path, delay: int, line: str | None) -> None:
    from hpo_cluster.launchers.slurm import SlurmLauncher

    script = SlurmLauncher(SlurmSettings(checkpoint_delay_s=delay)).script(submission(tmp_path, ""))
    assert (line in script) if line else ("--signal" not in script)


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


def test_the_oar_command_and_script_say_what_was_asked_for(tmp_path: Path) -> None:
    from hpo_cluster.launchers.oar import OarLauncher

    settings = OarSettings(
        queue="testing", project="lab", types=("besteffort", "exotic"), walltime_min=90, gpus_per_trial=2,
        properties="cluster='chuc' AND gpu_count > 2", setup=("export A='x  y'",), checkpoint_delay_s=60,
        extra={"notify": "mail:a b@c", "hold": True, "k": False, "a": ["1", "2"]},
    )  # fmt: skip
    job = submission(tmp_path / "a b", "print('hello')", token="hpo-x-t0000-a0-1")
    launcher = OarLauncher(settings)
    assert launcher.command(job) == [
        "oarsub", "-n", "hpo-x-t0000-a0-1", "-O", "%jobid%_0_log.out", "-E", "%jobid%_0_log.err",
        "-l", "nodes=1/gpu=2,walltime=1:30:00", "-q", "testing", "-p", "cluster='chuc' AND gpu_count > 2",
        "--project", "lab", "-t", "besteffort", "-t", "exotic", "--checkpoint", "60", "--signal", "12",
        "--notify", "mail:a b@c", "--hold", "-a", "1", "-a", "2", f"/bin/bash '{job.job_dir}/job.sh'",
    ]  # fmt: skip
    script = launcher.script(job)
    assert script.splitlines()[-2:] == [
        "export A='x  y'",
        "exec env HPO_CLUSTER_TOKEN=hpo-x-t0000-a0-1 OMP_NUM_THREADS=8 "
        + shlex.join([sys.executable, "-c", "print('hello')"]),
    ]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    cores = OarLauncher(OarSettings(gpus_per_trial=0, cpus_per_trial=2)).command(job)
    assert "nodes=1/core=2,walltime=2:00:00" in cores


@pytest.mark.parametrize("wanted", [1, 2])
def test_an_oar_job_keeps_to_its_own_gpus(tmp_path: Path, wanted: int) -> None:
    from hpo_cluster.launchers.oar import OarLauncher

    job = submission(tmp_path, "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))")
    (tmp_path / "job.sh").write_text(OarLauncher(OarSettings(gpus_per_trial=wanted)).script(job))
    (tmp_path / "resources").write_text(
        " core = '1' , gpudevice = '3' , cpu = '1'\n gpudevice = '3'\ngpudevice = '2'\n"
    )
    commands(tmp_path, **{"nvidia-smi": "echo GPU 0; echo GPU 1"})
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment["OAR_RESOURCE_PROPERTIES_FILE"] = str(tmp_path / "resources")
    line = ["bash", str(tmp_path / "job.sh")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == {1: "2,3", 2: "None"}[wanted]  # two seen, two wanted: the site hides the others


def commands(tmp_path: Path, **scripts: str) -> Path:
    """Stand-ins for a scheduler's commands, each noting its arguments in ``calls``; returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        log = shlex.quote(str(tmp_path / "calls"))
        (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\n{script}\n')
        (folder / name).chmod(0o755)
    return folder


def calls(tmp_path: Path, name: str) -> list[str]:
    log = tmp_path / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if line.split()[0] == name]


OLD = "2026-01-01T00:00:00Z"


def old_ref(backend: str, job_id: str, token: str, **extra: str) -> JobRef:
    return JobRef(backend, job_id, token, OLD, "here", extra)


class TestSlurmFollowed:
    """Recorded answers of Slurm 22.05."""

    @pytest.fixture
    def launcher(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        return make_launcher(SlurmSettings())

    def ask(self, launcher: Launcher, *refs: JobRef) -> list[tuple[str, str | None]]:
        states = launcher.poll(refs)
        return [(str(states[ref.token].state), states[ref.token].reason) for ref in refs]

    def test_one_question_for_all_and_one_for_those_that_left(self, launcher: Launcher, tmp_path: Path) -> None:
        queue = "3|COMPLETED|t3|node01|None\n4|RUNNING|t4|node02|None\n8|PENDING|t8||Resources\n9|FROZEN|t9||"
        records = "1|t1|FAILED|3:0|node01|x\n2|t2|CANCELLED by 0|0:0|None assigned|x\n5|else|COMPLETED|0:0|n|x\n"
        records += "6|t6|PENDING|0:0|None assigned|x\n7|t7|NODE_FAIL|0:0|node07|x\n"
        commands(tmp_path, squeue=f"echo '{queue}'", sacct=f"echo '{records}'")
        refs = [old_ref("slurm", str(n), f"t{n}") for n in range(1, 10)]
        assert self.ask(launcher, *refs) == [
            ("ended", EndReason.EXIT),
            ("ended", EndReason.CANCELLED),
            ("ended", EndReason.WELL),
            ("running", None),
            ("ended", EndReason.FORGOTTEN),  # the id was given to another job
            ("ended", EndReason.FORGOTTEN),  # waits in the accounting, and the controller has lost it
            ("ended", EndReason.NODE),
            ("pending", None),
            ("unknown", None),  # a word that nobody knows ends nothing
        ]
        (squeue,), (sacct,) = calls(tmp_path, "squeue"), calls(tmp_path, "sacct")
        assert f"--user={os.getuid()}" in squeue
        assert "--jobs=1,2,5,6,7" in sacct
        launcher.poll(refs)
        assert "--jobs=5,6" in calls(tmp_path, "sacct")[1]  # what is known is not asked for again

    def test_without_accounting_a_job_that_left_is_forgotten(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, squeue="true", sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
        ref = old_ref("slurm", "1", "t1")
        for _ in range(3):
            assert self.ask(launcher, ref) == [("ended", EndReason.FORGOTTEN)]
        assert len(calls(tmp_path, "sacct")) == 1  # and it is not hammered

    def test_accounting_that_hangs_holds_nobody_up(
        self, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hpo_cluster.launchers.slurm.RECORDS_TIMEOUT_S", 0.2)
        (tmp_path / "job").mkdir()
        (tmp_path / "job" / "2_0_log.err").write_text("srun: error: Task launch for StepId=65.0 failed on node n1\n")
        commands(tmp_path, squeue="echo '2|FAILED|t2|node01|NonZeroExitCode'", sacct="exec sleep 30")
        began = time.monotonic()
        refs = old_ref("slurm", "1", "t1"), old_ref("slurm", "2", "t2", job_dir=str(tmp_path / "job"))
        assert self.ask(launcher, *refs) == [("ended", EndReason.FORGOTTEN), ("ended", EndReason.NODE)]
        assert time.monotonic() - began < 10

    def test_a_failure_waits_for_its_exit_code(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, squeue="echo '2|FAILED|t2|node01|NonZeroExitCode'", sacct="echo '2|t2|RUNNING|0:0|node01|x'")
        ref = old_ref("slurm", "2", "t2")
        assert self.ask(launcher, ref) == [("running", None)]
        commands(tmp_path, sacct="echo '2|t2|FAILED|105:0|node01|x'")
        assert self.ask(launcher, ref) == [("ended", EndReason.NODE)]

    def test_a_new_job_is_not_taken_for_one_that_left(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, sbatch="echo Submitted batch job 7", squeue="true", sacct="true")
        ref = launcher.submit(submission(tmp_path, ""))
        assert self.ask(launcher, ref) == [("pending", None)]
        commands(tmp_path, squeue=f"echo '7|RUNNING|{ref.token}|n|None'")
        assert self.ask(launcher, ref) == [("running", None)]
        commands(tmp_path, squeue="true")
        assert self.ask(launcher, ref) == [("ended", EndReason.FORGOTTEN)]

    def test_of_two_jobs_with_one_name_the_living_one_counts(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, squeue="printf '6|FAILED|t|n|BadConstraints\n7|RUNNING|t|n|None\n8|PENDING|t|n|None\n'")
        assert self.ask(launcher, old_ref("slurm", "6", "t")) == [("running", None)]
        found = launcher.find(submission(tmp_path, "", token="t"))
        assert found is not None
        assert found.job_id == "7"

    def test_a_controller_that_does_not_answer_is_left_alone(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, squeue="echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
        ref = old_ref("slurm", "1", "t1")
        for _ in range(5):
            assert self.ask(launcher, ref) == [("unknown", None)]
        with pytest.raises(SubmissionError, match="asked again in"):
            launcher.find(submission(tmp_path, "", token="t1"))
        assert len(calls(tmp_path, "squeue")) == 1

    @pytest.mark.parametrize(
        ("said", "retriable", "remedy"),
        [
            ("invalid partition specified: x\nBatch job submission failed: Invalid partition name specified",
             False, "launcher.partition"),
            ("Batch job submission failed: Invalid account or account/partition combination specified",
             False, "launcher.account"),
            ("Batch job submission failed: Invalid qos specification", False, "launcher.qos"),
            ("Batch job submission failed: Invalid feature specification", False, "launcher.constraint"),
            ("Invalid generic resource (gres) specification", False, "gpus_per_trial"),
            ("Batch job submission failed: Requested node configuration is not available", False, "mem_gb"),
            ("unrecognized option '--nosuch'", False, "launcher.extra"),
            ("QOSMaxWallDurationPerJobLimit\nBatch job submission failed: Job violates accounting/QOS policy",
             False, "walltime_min"),
            ("AssocMaxSubmitJobLimit\nBatch job submission failed: Job violates accounting/QOS policy", True, "limits"),
            ("QOSMaxSubmitJobPerUserLimit\nBatch job submission failed: Job violates accounting/QOS policy", True, ""),
            ("Batch job submission failed: Unable to contact slurm controller (connect failure)", True, ""),
            ("Batch job submission failed: Socket timed out on send/recv operation", True, ""),
            ("something nobody has seen", True, ""),
        ],
    )  # fmt: skip
    def test_refused_for_good_or_for_now(
        self, launcher: Launcher, tmp_path: Path, said: str, retriable: bool, remedy: str
    ) -> None:
        commands(tmp_path, sbatch=f"printf '%b' {shlex.quote(said)} >&2; exit 1")
        with pytest.raises(SubmissionError) as refused:
            launcher.submit(submission(tmp_path, ""))
        assert refused.value.retriable is retriable
        assert remedy in str(refused.value)
        assert said.splitlines()[0] in str(refused.value)

    def test_a_users_variables_do_not_meddle(
        self, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("SQUEUE_PARTITION", "SLURM_MEM_PER_CPU", "SBATCH_JOB_NAME", "SLURM_CONF"):
            monkeypatch.setenv(name, "x")
        commands(tmp_path, squeue=f"env > {tmp_path}/env")
        launcher.poll([old_ref("slurm", "1", "t1")])
        seen = (tmp_path / "env").read_text()
        assert "SLURM_CONF=x" in seen
        assert not any(name in seen for name in ("SQUEUE_", "SLURM_MEM", "SBATCH_"))

    @pytest.mark.usefixtures("launcher")
    def test_a_users_variables_count_where_the_launcher_sets_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """sbatch prefers SBATCH_* to the options of a script."""
        launcher = make_launcher(SlurmSettings(partition="gpu", mem_gb=4, extra={"reservation": "mine"}))
        dropped = ("PARTITION", "MEM_PER_CPU", "MEM_PER_NODE", "TIMELIMIT", "GPUS", "GRES", "RESERVATION", "WAIT")
        for name in (*dropped, "ACCOUNT", "QOS", "CONSTRAINT"):
            monkeypatch.setenv(f"SBATCH_{name}", "x")
        commands(tmp_path, sbatch=f"env > {tmp_path}/env; echo Submitted batch job 1")
        launcher.submit(submission(tmp_path, ""))
        seen = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
        assert {name for name in seen if name.startswith("SBATCH_")} == {
            "SBATCH_ACCOUNT",
            "SBATCH_QOS",
            "SBATCH_CONSTRAINT",
        }

    def test_cancelling_what_has_ended_is_no_error(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, scancel="echo 'scancel: error: Kill job error on job id 1: Invalid job id' >&2; exit 1")
        launcher.cancel(old_ref("slurm", "1", "t1"))
        commands(tmp_path, scancel="echo 'Unable to contact slurm controller' >&2; exit 8")
        with pytest.raises(SubmissionError):
            launcher.cancel(old_ref("slurm", "1", "t1"))


class TestOarFollowed:
    """Recorded answers of OAR 2.5.9."""

    @pytest.fixture
    def launcher(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        return make_launcher(OarSettings())

    @staticmethod
    def oarstat(tmp_path: Path, live: dict[str, object], full: dict[str, object]) -> None:
        (tmp_path / "live").write_text(json.dumps(live) if live else "")
        (tmp_path / "full").write_text(json.dumps(full) if full else "")
        commands(tmp_path, oarstat=f'case "$1" in -f) cat {tmp_path}/full;; *) cat {tmp_path}/live;; esac')

    def test_one_question_for_all_and_one_for_those_that_left(self, launcher: Launcher, tmp_path: Path) -> None:
        running = {"state": "Running", "name": "t1", "assigned_network_address": ["chuc-1"]}
        full = {
            "2": {"state": "Terminated", "name": "t2", "exit_code": 768, "events": []},
            "3": {"state": "Error", "name": "t3", "exit_code": None, "events": [{"type": "FRAG_JOB_REQUEST"}]},
            "4": {"state": "Terminated", "name": "another's", "exit_code": 0},
        }
        self.oarstat(tmp_path, {"1": running, "9": {"state": "Hold", "name": "t9"}}, full)
        refs = [old_ref("oar", str(n), f"t{n}") for n in (1, 2, 3, 4, 9)]
        states = launcher.poll(refs)
        assert states["t1"] == JobStatus(JobState.RUNNING, None, "Running", "chuc-1")
        assert states["t2"] == JobStatus(JobState.ENDED, EndReason.EXIT, "Terminated exit status 3")
        assert states["t3"] == JobStatus(JobState.ENDED, EndReason.CANCELLED, "Error FRAG_JOB_REQUEST")
        assert states["t4"].reason is EndReason.FORGOTTEN
        assert states["t9"].state is JobState.PENDING
        assert len(calls(tmp_path, "oarstat")) == 2
        assert calls(tmp_path, "oarstat")[1].endswith("-f -J -j 2 -j 3 -j 4")

    def test_a_database_that_does_not_answer_ends_nothing(self, launcher: Launcher, tmp_path: Path) -> None:
        ref = old_ref("oar", "1", "t1")
        commands(tmp_path, oarstat='case "$1" in -f) exit 25;; esac')
        assert launcher.poll([ref])["t1"].state is JobState.UNKNOWN
        commands(tmp_path, oarstat="echo 'not json'")
        assert launcher.poll([ref])["t1"].state is JobState.UNKNOWN
        before = len(calls(tmp_path, "oarstat"))
        assert launcher.poll([ref])["t1"].state is JobState.UNKNOWN
        assert len(calls(tmp_path, "oarstat")) == before

    def test_a_long_name_is_cut_and_found(self, launcher: Launcher, tmp_path: Path) -> None:
        commands(tmp_path, oarsub='pwd; echo "$PWD"; echo OAR_JOB_ID=7')
        job = submission(tmp_path, "", token=f"hpo-{'x' * 120}-1")
        assert launcher.submit(job).job_id == "7"
        name = calls(tmp_path, "oarsub")[0].split()[2]
        assert len(name) == 100
        self.oarstat(tmp_path, {"7": {"state": "Waiting", "name": name}}, {})
        found = launcher.find(job)
        assert found is not None
        assert (found.job_id, found.token) == ("7", job.token)
        assert launcher.find(submission(tmp_path, "", token=f"hpo-{'x' * 120}-2")) is None
        commands(tmp_path, oardel="true")
        launcher.cancel(found)
        assert calls(tmp_path, "oardel") == ["oardel 7"]

    def test_a_quote_in_the_directory_is_refused_before_a_node_suffers(
        self, launcher: Launcher, tmp_path: Path
    ) -> None:
        commands(tmp_path, oarsub="echo OAR_JOB_ID=7")
        with pytest.raises(SubmissionError, match="with such characters") as refused:
            launcher.submit(submission(tmp_path / "it's", ""))
        assert not refused.value.retriable
        assert not calls(tmp_path, "oarsub")

    @pytest.mark.parametrize(
        ("said", "retriable"),
        [
            ("[ADMISSION RULE] Set default walltime to 7200.\nThere are not enough resources for your request\n"
             "OAR_JOB_ID=-5\n[ERROR] Oarsub failed, please verify your request syntax.", False),
            ("Bad resource request (ERROR:  column \"nosuch\" does not exist", False),
            ("ERROR : The queue nosuch does not exist", False),
            ("[ADMISSION RULE] Error: unknown job type: nosuch", False),
            ("[ADMISSION RULE] root and oar users are not allowed to submit jobs.", False),
            ("Unknown option: nosuch", False),
            ("DBI connect failed: could not connect to server: Connection refused", True),
        ],
    )  # fmt: skip
    def test_refused_for_good_or_for_now(self, launcher: Launcher, tmp_path: Path, said: str, retriable: bool) -> None:
        commands(tmp_path, oarsub=f"printf '%s' {shlex.quote(said)}; exit 8")
        with pytest.raises(SubmissionError) as refused:
            launcher.submit(submission(tmp_path, ""))
        assert refused.value.retriable is retriable
        assert "Set default" not in str(refused.value)


@pytest.mark.parametrize("settings", [LocalSettings(container="env IN=box"), SlurmSettings(container="env IN=box")])
def test_a_container_command_comes_before_the_jobs(settings: LocalSettings | SlurmSettings, tmp_path: Path) -> None:
    job = submission(tmp_path, "", token="t")
    assert job.shell_line(container=settings.container).startswith("env IN=box env HPO_CLUSTER_TOKEN=t ")


@pytest.mark.parametrize(
    "bad", [{"container": "a\nb"}, {"container": " "}, {"container": "a 'b"}, {"extra": {"requeue": True}}]
)
def test_settings_that_cannot_be_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"extra|container"):
        SlurmSettings(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"types": ("idempotent",)}, {"extra": {"t": "idempotent"}}, {"extra": {"name": "x"}}])
def test_oar_never_runs_a_job_twice(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"idempotent|is set by the launcher"):
        OarSettings(**bad)  # type: ignore[arg-type]


def test_every_launcher_is_known() -> None:
    assert set(LAUNCHERS) >= {"local", "slurm", "oar"}


def test_nodes_that_failed_are_left_out(tmp_path: Path) -> None:
    from hpo_cluster.launchers.oar import OarLauncher, OarSettings
    from hpo_cluster.launchers.slurm import SlurmLauncher

    job = dataclasses.replace(submission(tmp_path, ""), exclude=("node01", "node02"))
    assert "#SBATCH --exclude=node01,node02" in SlurmLauncher(SlurmSettings()).script(job)
    asked = OarLauncher(OarSettings(properties="cluster='chuc'")).command(job)
    condition = "(cluster='chuc') AND network_address <> 'node01' AND network_address <> 'node02'"
    assert asked[asked.index("-p") + 1] == condition
    assert "-p" not in OarLauncher(OarSettings(gpus_per_trial=0)).command(submission(tmp_path, ""))
