"""Jobs on a Slurm cluster: submitit writes the text of the script, this launcher calls sbatch and follows the job.

The job runs a plain command, without a pickle or submitit's signal handler. Slurm's own requeue is off, because two
runs of one job would share an attempt; the driver itself submits another attempt after a lost one. The job's name is
the attempt's token, so that a job can be found even if the driver that submitted it has died.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import Submission
from hpo_cluster.launchers.batch import Listed, Refusal, SchedulerLauncher, SchedulerSettings, StateTable, refusal
from hpo_cluster.launchers.commands import CommandError, call
from hpo_cluster.launchers.submitit_inside import slurm_script
from hpo_cluster.record.files import matching, read_bytes

SUBMIT_TIMEOUT_S = 60.0
LIST_TIMEOUT_S = 20.0
RECORDS_TIMEOUT_S = 10.0

#: Every state that squeue and sacct can report. Jobs are submitted with --no-requeue, so a job that was preempted, or
#: whose node failed, has ended.
STATES: StateTable = {
    "PENDING": (JobState.PENDING, None),
    "CONFIGURING": (JobState.PENDING, None),
    "POWER_UP_NODE": (JobState.PENDING, None),
    "REQUEUED": (JobState.PENDING, None),
    "REQUEUE_FED": (JobState.PENDING, None),
    "REQUEUE_HOLD": (JobState.PENDING, None),
    "RESV_DEL_HOLD": (JobState.PENDING, None),
    "SPECIAL_EXIT": (JobState.PENDING, None),
    "RUNNING": (JobState.RUNNING, None),
    "COMPLETING": (JobState.RUNNING, None),
    "RESIZING": (JobState.RUNNING, None),
    "SIGNALING": (JobState.RUNNING, None),
    "STAGE_OUT": (JobState.RUNNING, None),
    "SUSPENDED": (JobState.PAUSED, None),
    "STOPPED": (JobState.PAUSED, None),
    "COMPLETED": (JobState.ENDED, EndReason.WELL),
    "FAILED": (JobState.ENDED, EndReason.EXIT),
    "TIMEOUT": (JobState.ENDED, EndReason.WALLTIME),
    "DEADLINE": (JobState.ENDED, EndReason.WALLTIME),
    "CANCELLED": (JobState.ENDED, EndReason.CANCELLED),
    "PREEMPTED": (JobState.ENDED, EndReason.PREEMPTED),
    "NODE_FAIL": (JobState.ENDED, EndReason.NODE),
    "BOOT_FAIL": (JobState.ENDED, EndReason.NODE),
    "OUT_OF_MEMORY": (JobState.ENDED, EndReason.OUT_OF_MEMORY),
    # steps of a job's life that say nothing of whether it is over
    "LAUNCH_FAILED": (JobState.UNKNOWN, None),
    "RECONFIG_FAIL": (JobState.UNKNOWN, None),
    "UPDATE_DB": (JobState.UNKNOWN, None),
    "REVOKED": (JobState.UNKNOWN, None),  # another cluster of the federation runs it
}

#: Exit codes of a FAILED job that its program did not cause. 105:0: the step was not launched. SIGUSR2 (12, 140): the
#: launcher's warning before the walltime, which the program did not handle. SIGKILL (9:0) is not listed: it has many
#: senders and does not show that the node failed.
EXIT_CODES = {
    "105:0": EndReason.NODE,
    "12:0": EndReason.WALLTIME,
    "140:0": EndReason.WALLTIME,
    "0:12": EndReason.WALLTIME,
}
#: Messages of srun, in the log of a FAILED job, about a program that it could not start.
NODE_WORDS = re.compile(
    r"srun: error: (Unable to create step for job .*(gres|Communication|Zero Bytes|Socket timed out)"
    r"|Task launch for .* failed on node|Unable to confirm allocation|.*Communication connection failure)"
    r"|\*\*\* REASON: ReqNodeNotAvail|slurmstepd.*: error: .*(Unable to create TMPDIR|couldn't chdir)",
)

#: Messages with which sbatch refuses a job: the first that matches counts.
REFUSALS = (
    Refusal(r"Max\w*Submit|submit(ted)? job limit|too many jobs", True, "The site limits how many jobs may wait."),
    Refusal(r"Unable to contact slurm controller|timed out|Connection refused|try again|temporarily", True, ""),
    Refusal(r"Required partition not available|Requested nodes are busy|not responding", True, ""),
    Refusal(r"invalid partition|Requested nodes not in this partition", False, "Set launcher.partition (see sinfo)."),
    Refusal(r"group not permitted to use this partition", False, "Set another launcher.partition or launcher.account."),
    Refusal(r"invalid account", False, "Set launcher.account (see sacctmgr show associations user=$USER)."),
    Refusal(r"invalid qos", False, "Set launcher.qos (see sacctmgr show qos)."),
    Refusal(r"invalid feature", False, "Set launcher.constraint (see sinfo -o '%f')."),
    Refusal(r"time limit is invalid|invalid --time|MaxWall", False, "Lower launcher.walltime_min."),
    Refusal(r"gres\) specification", False, "The GPUs asked for do not exist; set launcher.gpus_per_trial or extra."),
    Refusal(
        r"node configuration is not available|partition configuration not available|More processors requested|"
        r"Node count specification|Memory required by task|PerJobLimit|PerJob\b|MaxCpuPer|MaxGRESPer|MaxTRESPer",
        False,
        "No node can give that: lower launcher.gpus_per_trial, cpus_per_trial or mem_gb, or change the partition.",
    ),
    Refusal(
        r"unrecognized option|invalid option|invalid (\S+ )?(argument|node name|license|wckey|dependency|nice|numeric)|"
        r"Invalid --|requested reservation|reservation is invalid",
        False,
        "sbatch does not accept one of the options; see launcher.extra.",
    ),
    Refusal(r"Access/permission denied|invalid user id|user .* not found", False, "Ask the site for access."),
)

_AGAIN = "Resume with {}; then end the job (scancel), and it is submitted again"
#: Reasons for which a job waits until somebody does something, and what: the first that matches counts.
STUCK = (
    (r"PartitionTimeLimit|MaxWall", _AGAIN.format("a lower launcher.walltime_min")),
    (r"Grp\w*(?<!Run)Minutes", _AGAIN.format("another launcher.account: the hours of this one are used up")),
    (r"PerJob|PerNode|PartitionNodeLimit", _AGAIN.format("fewer launcher.gpus_per_trial, cpus_per_trial or mem_gb")),
    (r"AccountNotAllowed|InvalidAccount", _AGAIN.format("another launcher.account")),
    (r"QOSNotAllowed|InvalidQOS", _AGAIN.format("another launcher.qos")),
    (r"BadConstraints", _AGAIN.format("other launcher.constraint, partition or extra: no node has all of it")),
    (r"DependencyNeverSatisfied", _AGAIN.format("other launcher.extra")),
    (r"JobHeld", "It is held; let it go on:  scontrol release JOB"),
)

#: Options that would submit one attempt twice, or hide the job from the launcher.
_OURS = ("job-name", "requeue", "array", "wrap", "output", "error", "parsable", "test-only")

#: Variables in a user's environment that change what the commands do or print.
_MEDDLING = re.compile(
    r"(SQUEUE|SACCT|SCANCEL|SRUN)_|SLURM_(?!CONF$|CLUSTERS$|JWT$)"
    r"|SBATCH_(JOB_NAME|OUTPUT|ERROR|REQUEUE|NO_REQUEUE|ARRAY|SIGNAL|TIMELIMIT|WAIT)"
)
#: Variables that sbatch prefers to an option of the script, for options with another name than their variable.
_VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "gpus-per-node": ("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET", "GRES"),
}


#: From Slurm 22.05 on, srun does not inherit the job's number of cores: without this a trial would get only one core.
_CORES_FOR_SRUN = 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'


class SlurmSettings(SchedulerSettings):
    """Settings of jobs on a Slurm cluster, submitted from its frontend."""

    kind: Literal["slurm"] = "slurm"
    gpus_per_trial: int = Field(1, ge=0, description="GPUs of one evaluation")
    cpus_per_trial: int = Field(8, ge=1, description="CPU cores of one evaluation")
    mem_gb: float | None = Field(None, gt=0, description="host memory of one evaluation")
    partition: str | None = Field(None, description="partition (null: the cluster's default)")
    account: str | None = Field(None, description="account that is charged")
    qos: str | None = Field(None, description="quality of service")
    constraint: str | None = Field(None, description="features the node must have")
    extra: dict[str, str | int | bool] = Field(
        default_factory=dict, description="native sbatch options, passed through: {nodelist: node01}"
    )

    @property
    def early_s(self) -> int:
        """Seconds by which Slurm may send the signal of ``--signal`` too early (sbatch's manual page)."""
        return 60

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        """Refuse options on which a job's identity or its files depend: the launcher sets them."""
        for name, value in extra.items():
            if name.replace("_", "-") in _OURS:
                raise ValueError(f"{name} is set by the launcher; remove it")
            if "\n" in str(value):
                raise ValueError(f"{name} must be one line")
        return extra


class SlurmLauncher(SchedulerLauncher):
    """Launcher that submits jobs with sbatch and follows them with squeue and sacct."""

    backend = "slurm"
    records_are_optional = True  # many clusters run without accounting

    def __init__(self, settings: SlurmSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def script(self, submission: Submission) -> str:
        """Return the text of the submission script."""
        settings = self.settings
        parameters = {
            "job_name": submission.token,
            "time": settings.walltime_min,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": submission.trials * settings.cpus_per_trial,
            "gpus_per_node": submission.trials * settings.gpus_per_trial or None,
            "mem": None if settings.mem_gb is None else f"{int(submission.trials * settings.mem_gb * 1024)}MB",
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "exclude": ",".join(submission.exclude) or None,
            "setup": [_CORES_FOR_SRUN, *settings.setup_lines],
            "signal_delay_s": settings.warning_s,
            "additional_parameters": {"no-requeue": True, **_flags(settings.extra)},
        }
        line = submission.shell_line({"OMP_NUM_THREADS": str(settings.cpus_per_trial)}, settings.container)
        text = slurm_script(submission.job_dir, line, submission.token, parameters)
        if settings.checkpoint_delay_s or "signal" in settings.extra:
            return text
        return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#SBATCH --signal="))

    def command(self, submission: Submission) -> list[str]:
        """Return the submission command; the options are in the script."""
        return ["sbatch", str(submission.job_dir / "submission.sh")]

    def submit(self, submission: Submission) -> JobRef:
        """Write the script to the job's folder and submit it with sbatch."""
        text = self.script(submission)
        submission.job_dir.mkdir(exist_ok=True)
        (submission.job_dir / "submission.sh").write_text(text)
        try:
            output = _slurm(self.command(submission), overridden(text), timeout_s=SUBMIT_TIMEOUT_S)
        except CommandError as error:
            raise refusal(error, REFUSALS) from error
        match = re.search(r"\bjob (\d+)", output)
        if match is None:
            raise SubmissionError(f"sbatch answered {output.strip()!r}, with no job id in it")
        return self._ref(match[1], submission)

    def _list(self) -> dict[str, list[Listed]]:
        command = ["squeue", "--noheader", f"--user={os.getuid()}", "--states=all", "--format=%i|%T|%j|%N|%r"]
        jobs: dict[str, list[Listed]] = {}
        for line in _slurm(command, timeout_s=LIST_TIMEOUT_S).splitlines():
            fields = line.strip().split("|")
            if len(fields) >= 3:
                job_id, state, name, node, reason = [*fields, "", ""][:5]
                status = job_status(state, detail=reason, node=node)
                jobs.setdefault(name, []).append(Listed(job_id, status, settled=state != "FAILED"))
        return jobs

    def _unrecorded(self, ref: JobRef, job: Listed) -> JobStatus:
        return job_status(job.status.detail, node=job.status.node or "", log=_log_end(ref))

    def _ended(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        ours = {(ref.job_id, self.job_name(ref.token)): ref for ref in refs if ref.job_id.isdigit()}
        if not ours:
            return {}
        command = ["sacct", "-X", "-n", "-P", "--duplicates", f"--jobs={','.join(job_id for job_id, _ in ours)}"]
        command += ["--format=JobIDRaw,JobName,State,ExitCode,NodeList,Submit"]
        recorded: dict[str, JobStatus] = {}
        for line in _slurm(command, timeout_s=RECORDS_TIMEOUT_S).splitlines():
            fields = line.strip().split("|")
            ref = ours.get((fields[0], fields[1])) if len(fields) == 6 else None  # a recycled id has another name
            if ref is not None:
                recorded[ref.token] = job_status(fields[2], exit_code=fields[3], node=fields[4], log=_log_end(ref))
        return recorded

    def cancel(self, ref: JobRef) -> None:
        """Cancel by name: an id may have been recycled, and a job that was submitted twice is cancelled twice."""
        try:
            _slurm(["scancel", f"--user={os.getuid()}", f"--name={ref.token}"], timeout_s=SUBMIT_TIMEOUT_S)
        except CommandError as error:
            if not re.search(r"invalid job id|already complet|already finished", error.output, re.IGNORECASE):
                raise


def overridden(script: str) -> set[str]:
    """Return the environment variables that sbatch would prefer to the options that the script sets."""
    names: set[str] = set()
    for option in re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE):
        names.update(f"SBATCH_{name}" for name in (option.upper().replace("-", "_"), *_VARIABLES.get(option, ())))
    return names


def _slurm(command: Sequence[str], without: Collection[str] = (), *, timeout_s: float) -> str:
    kept = (name for name in os.environ if not _MEDDLING.match(name) and name not in without)
    environment = {name: os.environ[name] for name in kept}
    return call(command, timeout_s=timeout_s, env=environment)


def _flags(extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    """Return options with the names that submitit writes, without those that are false."""
    return {name.replace("_", "-"): value for name, value in extra.items() if value is not False}


def _log_end(ref: JobRef) -> str:
    """Return the last 4000 bytes that the job wrote to standard error."""
    folder = ref.extra.get("job_dir") or Path(ref.extra.get("attempt_dir") or "/nowhere") / "job"
    logs = matching(Path(folder), f"{ref.job_id}_*.err")
    return "\n".join(read_bytes(path, -4000).decode(errors="replace") for path in logs)


def job_status(state: str, *, exit_code: str = "", detail: str = "", node: str = "", log: str = "") -> JobStatus:
    """Return the status of a job from the state that squeue or sacct prints, such as ``CANCELLED by 0``."""
    word = state.split()[0].rstrip("+") if state.split() else ""
    ours, reason = STATES.get(word, (JobState.UNKNOWN, None))
    if word == "FAILED":
        reason = EXIT_CODES.get(exit_code, EndReason.NODE if NODE_WORDS.search(log) else EndReason.EXIT)
    said = " ".join(part for part in (state, exit_code, "" if detail == "None" else detail) if part)
    waits = ours is JobState.PENDING
    remedy = next((what for pattern, what in STUCK if waits and re.search(pattern, detail)), "")
    return JobStatus(ours, reason, said, None if node in ("", "None assigned", "(null)") else node, remedy)
