"""Jobs on a Slurm cluster: submitit writes the script and says how to submit it, we call and follow.

What runs is a plain command: no pickle, no signal handler of submitit's in the job. Slurm's own requeue is off, since
two runs of one job would share an attempt; a lost attempt is followed by another one of ours. The job's name is the
attempt's token, so that a job is found again whatever became of the driver that submitted it.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hpo_cluster.errors import SubmissionError
from hpo_cluster.launchers.base import LauncherSettings, Submission, make_ref
from hpo_cluster.launchers.process import call
from hpo_cluster.trial import JobRef, JobState, JobStatus

SUBMIT_TIMEOUT_S = 60.0
POLL_TIMEOUT_S = 20.0

_PENDING = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT"}
_PAUSED = {"SUSPENDED", "STOPPED"}


class SlurmSettings(LauncherSettings):
    """A Slurm cluster, from its frontend."""

    kind: Literal["slurm"] = "slurm"
    gpus_per_trial: int = Field(1, ge=0, description="GPUs of one evaluation")
    cpus_per_trial: int = Field(8, ge=1, description="CPU cores of one evaluation")
    poll_period_s: float = Field(10.0, gt=0, description="seconds between two questions to the scheduler")
    mem_gb: float | None = Field(None, gt=0, description="host memory of one evaluation")
    partition: str | None = Field(None, description="partition (null: the cluster's default)")
    account: str | None = Field(None, description="account that is charged")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features the node must have")
    extra: dict[str, str | int | bool] = Field(
        default_factory=dict, description="native sbatch options, passed through: {nodelist: node01}"
    )


class SlurmLauncher:
    """Submits each attempt as one batch job."""

    backend = "slurm"

    def __init__(self, settings: SlurmSettings) -> None:
        self.settings = settings
        self.poll_period_s = settings.poll_period_s

    def script(self, submission: Submission) -> str:
        """The text of the submission script."""
        executor, command = self._executor(submission)
        return str(executor._make_submission_file_text(command, uid=submission.token))

    def _executor(self, submission: Submission) -> tuple[Any, str]:
        from submitit.slurm import slurm

        class PlainExecutor(slurm.SlurmExecutor):  # type: ignore[misc]
            """submitit's executor where `srun` need not be on the path to write a script."""

            @classmethod
            def affinity(cls) -> int:
                return 2

        settings = self.settings
        wanted: dict[str, Any] = {
            "job_name": submission.token,
            "time": settings.walltime_min,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": settings.cpus_per_trial,
            "gpus_per_node": settings.gpus_per_trial or None,
            "mem": None if settings.mem_gb is None else f"{int(settings.mem_gb * 1024)}MB",
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "setup": list(settings.setup) or None,
            "additional_parameters": {"no-requeue": True, **settings.extra},
        }
        executor = PlainExecutor(folder=submission.job_dir)
        # submitit's default wckey would be refused where the site tracks them
        executor.update_parameters(wckey=None, **{name: value for name, value in wanted.items() if value is not None})
        return executor, submission.shell_line({"OMP_NUM_THREADS": str(settings.cpus_per_trial)})

    def submit(self, submission: Submission) -> JobRef:
        """Write the script into the job's folder and hand it to sbatch."""
        executor, command = self._executor(submission)
        submission.job_dir.mkdir(parents=True, exist_ok=True)
        script: Path = submission.job_dir / "submission.sh"
        script.write_text(executor._make_submission_file_text(command, uid=submission.token))
        output = call(executor._make_submission_command(script), timeout_s=SUBMIT_TIMEOUT_S)
        match = re.search(r"\bjob (\d+)", output)
        if match is None:
            raise SubmissionError(f"sbatch answered {output.strip()!r}, with no job id in it")
        return make_ref(self.backend, match[1], submission.token)

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Status of each job by its token, from one squeue for all of them."""
        if not refs:
            return {}
        try:
            queue = self._queue()
        except SubmissionError:
            return {ref.token: JobStatus(JobState.UNKNOWN) for ref in refs}
        gone = ("", JobState.ENDED)
        return {ref.token: JobStatus(queue.get(ref.token, gone)[1]) for ref in refs}

    def _queue(self) -> dict[str, tuple[str, JobState]]:
        """Job id and state of this user's jobs by name."""
        command = ["squeue", "--noheader", f"--user={getpass.getuser()}", "--states=all", "--format=%i|%T|%j"]
        rows = [line.strip().split("|", 2) for line in call(command, timeout_s=POLL_TIMEOUT_S).splitlines()]
        return {name: (job_id, _state(state)) for job_id, state, name in (row for row in rows if len(row) == 3)}

    def cancel(self, ref: JobRef) -> None:
        """scancel the job, by id and name, so that a recycled id harms nobody."""
        call(["scancel", f"--name={ref.token}", ref.job_id], timeout_s=SUBMIT_TIMEOUT_S)

    def find(self, submission: Submission) -> JobRef | None:
        """The pending or running job that has the token for its name."""
        job_id, state = self._queue().get(submission.token, ("", JobState.ENDED))
        return None if state is JobState.ENDED else make_ref(self.backend, job_id, submission.token)


def _state(state: str) -> JobState:
    if state in _PENDING:
        return JobState.PENDING
    if state in _RUNNING:
        return JobState.RUNNING
    return JobState.PAUSED if state in _PAUSED else JobState.ENDED
