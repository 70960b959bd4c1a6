"""Jobs on an OAR cluster (Grid'5000): this launcher writes the script, calls oarsub and follows the job.

OAR's own resubmission is never used: the driver itself submits another attempt after a lost one. The job's name is the
attempt's token, so that a job can be found even if the driver that submitted it has died. A job starts with an empty
environment, in the directory that ``$PWD`` named when it was submitted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import Submission
from hpo_cluster.launchers.batch import (
    Listed,
    Refusal,
    SchedulerLauncher,
    SchedulerSettings,
    StateTable,
    refusal,
    user_name,
)
from hpo_cluster.launchers.commands import CommandError, call

SUBMIT_TIMEOUT_S = 60.0
LIST_TIMEOUT_S = 20.0
RECORDS_TIMEOUT_S = 20.0
NAME_LIMIT = 100  # characters of a job's name in OAR's database

#: Every state of a job in OAR's database. Why a job ended follows from its exit code (Terminated) or events (Error).
STATES: StateTable = {
    "Waiting": (JobState.PENDING, None),
    "Hold": (JobState.PENDING, None),
    "toLaunch": (JobState.PENDING, None),
    "toAckReservation": (JobState.PENDING, None),
    "Launching": (JobState.PENDING, None),
    "Running": (JobState.RUNNING, None),
    "Finishing": (JobState.RUNNING, None),
    "toError": (JobState.RUNNING, None),  # OAR is ending it; its processes may still run
    "Suspended": (JobState.PAUSED, None),
    "Resuming": (JobState.PAUSED, None),
    "Terminated": (JobState.ENDED, EndReason.WELL),
    "Error": (JobState.ENDED, EndReason.EXIT),
}

#: Why a job ended in Error, by its events: the first of these that the job has counts.
EVENTS: Mapping[str, EndReason] = {
    "BESTEFFORT_KILL": EndReason.PREEMPTED,
    # the end of the job was never acknowledged, or its node was lost
    "EXTERMINATE_JOB": EndReason.NODE,
    "PING_CHECKER_NODE_SUSPECTED": EndReason.NODE,
    "PING_CHECKER_NODE_SUSPECTED_END_JOB": EndReason.NODE,
    "WALLTIME": EndReason.WALLTIME,
    # the job could not be started
    "BAD_HASHTABLE_DUMP": EndReason.NODE,
    "CANNOT_CREATE_TMP_DIRECTORY": EndReason.NODE,
    "CANNOT_WRITE_NODE_FILE": EndReason.NODE,
    "CANNOT_WRITE_PID_FILE": EndReason.NODE,
    "CPUSET_ERROR": EndReason.NODE,
    "EXIT_VALUE_OAREXEC": EndReason.NODE,
    "LAUNCHING_OAREXEC_TIMEOUT": EndReason.NODE,
    "OUTPUT_FILES": EndReason.NODE,
    "PROLOGUE_ERROR": EndReason.NODE,
    "RESERVATION_NO_NODE": EndReason.NODE,
    "RESUME_ERROR": EndReason.NODE,
    "SERVER_PROLOGUE_ERROR": EndReason.NODE,
    "SERVER_PROLOGUE_EXIT_CODE_ERROR": EndReason.NODE,
    "SERVER_PROLOGUE_TIMEOUT": EndReason.NODE,
    "SSH_TRANSFER_TIMEOUT": EndReason.NODE,
    "SUSPEND_ERROR": EndReason.NODE,
    "USER_SHELL": EndReason.NODE,
    "WORKING_DIRECTORY": EndReason.NODE,
    "FRAG_JOB_REQUEST": EndReason.CANCELLED,
    # the program had ended, and the steps after it failed
    "CPUSET_CLEAN_ERROR": EndReason.NODE,
    "EPILOGUE_ERROR": EndReason.NODE,
    "FORCE_TERMINATE_FINISHING_JOB": EndReason.NODE,
    "SERVER_EPILOGUE_EXIT_CODE_ERROR": EndReason.NODE,
    "SERVER_EPILOGUE_TIMEOUT": EndReason.NODE,
}

#: What OAR says of a job that waits for its turn.
USUAL = re.compile(r"(R=\S*( \(Karma=[\d.]+,quota_ok\))?)?")

#: Messages with which oarsub refuses a job: the first that matches counts.
REFUSALS = (
    Refusal(r"could not connect|connection refused|server closed|database|too many (jobs|connections)|quota", True, ""),
    Refusal(r"queue \S+ does not exist", False, "Set launcher.queue (see oarstat --help or the site's pages)."),
    Refusal(r"unknown job type", False, "Set launcher.types."),
    Refusal(
        r"not enough resources",
        False,
        "No node can give that: change launcher.properties, gpus_per_trial or cpus_per_trial (see oarnodes).",
    ),
    Refusal(r"Bad resource request|column .* does not exist", False, "Set launcher.properties (see oarnodes)."),
    Refusal(r"bad character", False, "Choose another name, campaigns_dir or launcher.extra."),
    Refusal(r"Cannot recognize", False, "Set launcher.resources."),
    Refusal(r"Unknown option|requires an argument|Option \S+ is ambiguous", False, "See launcher.extra."),
    Refusal(r"root and oar users are not allowed", False, "Run the driver as an ordinary user."),
    Refusal(r"\[ADMISSION RULE\].*(not allowed|error|denied|forbidden|unknown|must )", False, "A rule of the site."),
)
_NOISE = r"^\[ADMISSION RULE\] (Set default|Modify resource)|^OAR_JOB_ID=|^\[ERROR\] Oarsub failed|^$"

#: Options that would submit one attempt twice, or hide the job from the launcher.
_FILES = ("n", "name", "array", "array-param-file", "resubmit", "S", "scanscript", "O", "stdout", "E", "stderr", "I")
_MODES = ("interactive", "C", "connect", "d", "directory", "J", "json", "X", "xml", "Y", "yaml", "D", "dumper")


#: Property of hosts with GPUs: for `gpu=1` alone, OAR may give a host without GPUs, where jobs would run on its cores.
HAS_GPUS = "gpu_count > 0"


class OarSettings(SchedulerSettings):
    """Settings of jobs on an OAR cluster, submitted from its frontend."""

    kind: Literal["oar"] = "oar"
    gpus_per_trial: int = Field(1, ge=0, description="GPUs of one evaluation")
    cpus_per_trial: int = Field(
        8, ge=1, description="threads of one evaluation, and its cores if it has no GPU (OAR ties cores to GPUs)"
    )
    queue: str | None = Field(None, description="queue (null: the cluster's default)")
    properties: str | None = Field(
        None, description="condition on resources, in SQL: cluster='chuc' (null: none; with GPUs, gpu_count > 0)"
    )
    resources: str | None = Field(
        None, description="native resource request without walltime: host=1/gpu=1 (null: from GPUs and CPUs)"
    )
    types: tuple[str, ...] = Field((), description="types of job: besteffort, exotic, ...")
    project: str | None = Field(None, description="project that is charged")
    extra: dict[str, str | int | bool | list[str]] = Field(
        default_factory=dict, description="native oarsub options, passed through: {notify: mail:me@lab.org}"
    )

    @field_validator("types")
    @classmethod
    def _no_resubmission(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse jobs that OAR may run again: two runs of one job would share an attempt."""
        if "idempotent" in types:
            raise ValueError("idempotent lets OAR run a job twice; remove it: lost attempts are repeated without it")
        return types

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, str | int | bool | list[str]]) -> dict[str, str | int | bool | list[str]]:
        """Refuse options on which a job's identity or its files depend: the launcher sets them."""
        for name, value in extra.items():
            if name in (*_FILES, *_MODES):
                raise ValueError(f"{name} is set by the launcher; remove it")
            if name in ("t", "type") and "idempotent" in (value if isinstance(value, list) else [value]):
                raise ValueError("idempotent lets OAR run a job twice; remove it")
        return extra


class OarLauncher(SchedulerLauncher):
    """Launcher that submits jobs with oarsub and follows them with oarstat."""

    backend = "oar"

    def __init__(self, settings: OarSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def job_name(self, token: str) -> str:
        """Return the token; a long token is cut and ends in a hash, which keeps it unique."""
        if len(token) <= NAME_LIMIT:
            return token
        return f"{token[: NAME_LIMIT - 17]}-{hashlib.sha256(token.encode()).hexdigest()[:16]}"

    def script(self, submission: Submission) -> str:
        """Return the text of the job's script."""
        settings = self.settings
        line = submission.shell_line({"OMP_NUM_THREADS": str(settings.cpus_per_trial)}, settings.container)
        gpus = submission.trials * settings.gpus_per_trial
        own_gpus = [_OWN_GPUS.format(wanted=gpus)] if gpus else []
        return "\n".join(["#!/bin/bash", *own_gpus, *settings.setup_lines, f"exec {line}", ""])

    def command(self, submission: Submission) -> list[str]:
        """Return the submission command."""
        settings = self.settings
        hours, minutes = divmod(settings.walltime_min, 60)
        cores, gpus = submission.trials * settings.cpus_per_trial, submission.trials * settings.gpus_per_trial
        resources = settings.resources or (f"nodes=1/gpu={gpus}" if gpus else f"nodes=1/core={cores}")
        script = submission.job_dir / "job.sh"
        command = ["oarsub", "-n", self.job_name(submission.token)]
        # relative to the launching directory, $PWD: oarsub accepts no quotes in these names
        command += ["-O", "%jobid%_0_log.out", "-E", "%jobid%_0_log.err"]
        command += ["-l", f"{resources},walltime={hours}:{minutes:02d}:00"]
        wanted = settings.properties
        if wanted is None and gpus:
            wanted = HAS_GPUS
        conditions = [f"({wanted})"] if wanted and submission.exclude else []
        conditions += [f"network_address <> '{node}'" for node in submission.exclude]
        properties = " AND ".join(conditions) or wanted
        for option, value in (("-q", settings.queue), ("-p", properties), ("--project", settings.project)):
            command += [option, value] if value else []
        for kind in settings.types:
            command += ["-t", kind]
        if delay_s := settings.warning_s:
            command += ["--checkpoint", str(delay_s), "--signal", str(int(signal.SIGUSR2))]
        return [*command, *_options(settings.extra), shlex.join(["/bin/bash", str(script)])]

    def submit(self, submission: Submission) -> JobRef:
        """Write the script to the job's folder and submit it with oarsub."""
        if re.search(r"[^\w ./+,:=@~-]", str(submission.job_dir)):
            message = f"{submission.job_dir}: OAR cannot start a job in a directory with such characters in its path; "
            raise SubmissionError(f"{message}use letters, digits, blanks and ._-+,:=@~", retriable=False)
        submission.job_dir.mkdir(exist_ok=True)
        (submission.job_dir / "job.sh").write_text(self.script(submission))
        environment = {**os.environ, "PWD": str(submission.job_dir)}
        try:
            output = call(self.command(submission), timeout_s=SUBMIT_TIMEOUT_S, env=environment, cwd=submission.job_dir)
        except CommandError as error:
            raise refusal(error, REFUSALS, _NOISE) from error
        match = re.search(r"^OAR_JOB_ID=(\d+)", output, re.MULTILINE)
        if match is None:
            raise SubmissionError(f"oarsub answered {output.strip()[-300:]!r}, with no job id in it")
        return self._ref(match[1], submission)

    def _list(self) -> dict[str, list[Listed]]:
        jobs: dict[str, list[Listed]] = {}
        for job_id, job in _oarstat("-J", "-u", user_name(), timeout_s=LIST_TIMEOUT_S).items():
            jobs.setdefault(str(job.get("name")), []).append(Listed(job_id, job_status(job), settled=False))
        return jobs

    def _ended(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        asked = [part for ref in refs if ref.job_id.isdigit() for part in ("-j", ref.job_id)]
        jobs = _oarstat("-f", "-J", *asked, timeout_s=RECORDS_TIMEOUT_S) if asked else {}
        named = [ref for ref in refs if jobs.get(ref.job_id, {}).get("name") == self.job_name(ref.token)]
        return {ref.token: job_status(jobs[ref.job_id]) for ref in named}

    def cancel(self, ref: JobRef) -> None:
        """Delete every pending or running job with this name: by its id alone, another user's job might be hit."""
        jobs = _oarstat("-J", "-u", user_name(), timeout_s=LIST_TIMEOUT_S)
        mine = [job_id for job_id, job in jobs.items() if job.get("name") == self.job_name(ref.token)]
        if mine:
            call(["oardel", *mine], timeout_s=SUBMIT_TIMEOUT_S)


#: Shell lines that restrict a job to the GPUs that OAR gave it, for sites that do not hide the GPUs of other jobs.
_OWN_GPUS = """\
if [ -z "${{CUDA_VISIBLE_DEVICES:-}}" ] && [ "$(nvidia-smi -L 2>/dev/null | wc -l)" -gt {wanted} ]; then
  own=$(sed -n "s/.*gpudevice = '\\([0-9][0-9]*\\)'.*/\\1/p" "$OAR_RESOURCE_PROPERTIES_FILE" | sort -un | paste -sd,)
  if [ -n "$own" ]; then export CUDA_VISIBLE_DEVICES="$own"; fi
fi"""


def _options(extra: Mapping[str, str | int | bool | list[str]]) -> list[str]:
    """Return native options as arguments: one dash for a letter, one option for each list entry, none for false."""
    arguments: list[str] = []
    for name, value in extra.items():
        option = f"-{name}" if len(name) == 1 else f"--{name}"
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                arguments.append(option)
            elif one is not False:
                arguments += [option, str(one)]
    return arguments


def _oarstat(*arguments: str, timeout_s: float) -> dict[str, dict[str, Any]]:
    """Return the jobs that oarstat lists, by id. oarstat prints nothing if there are none."""
    output = call(["oarstat", *arguments], timeout_s=timeout_s).strip()
    if not output:
        return {}
    try:
        jobs = json.loads(output)
    except ValueError as error:
        raise SubmissionError(f"oarstat answered {output[:200]!r}, which is not JSON") from error
    if not isinstance(jobs, dict):
        raise SubmissionError(f"oarstat answered {output[:200]!r}, which holds no jobs")
    return {str(job_id): job for job_id, job in jobs.items() if isinstance(job, dict)}


def job_status(job: Mapping[str, Any]) -> JobStatus:
    """Return the status of a job from oarstat's description of it."""
    word = str(job.get("state", "")).strip()
    ours, reason = STATES.get(word, (JobState.UNKNOWN, None))
    nodes = job.get("assigned_network_address") or []
    events = {str(event.get("type")): event for event in job.get("events") or [] if isinstance(event, dict)}
    said = [word]
    message = str(job.get("message") or "")
    if ours is JobState.PENDING and not USUAL.fullmatch(message):
        said.append(message)  # why it does not start: a quota, no node that is up
    if ours is JobState.ENDED:
        reason, words = exit_reason(job.get("exit_code"))
        why = next((event for event in EVENTS if event in events), None) if word == "Error" else None
        if why is not None:
            reason = EVENTS[why]
        elif reason is not EndReason.WELL and "CHECKPOINT" in events:  # the warning ended the job
            why = "CHECKPOINT"
            evicted = "metasched" in str(events[why].get("description"))  # sarko warns of the walltime
            reason = EndReason.PREEMPTED if evicted else EndReason.WALLTIME
        said += [part for part in (words, why) if part]
    return JobStatus(ours, reason, " ".join(said), str(nodes[0]) if nodes else None)


def exit_reason(status: Any) -> tuple[EndReason | None, str]:
    """Return why a job ended, from its wait status (768: exit status 3; 9: SIGKILL), and that status in words."""
    if not isinstance(status, int):
        return None, ""
    code = status >> 8
    number = status & 0x7F or (code - 128 if code > 128 else 0)  # a shell reports 128 + signal for its child
    if number == signal.SIGUSR2:  # the launcher's warning before the walltime, which the program did not handle
        return EndReason.WALLTIME, "ended by SIGUSR2"
    if number:
        return EndReason.EXIT, f"ended by signal {number}"
    return (EndReason.EXIT if code else EndReason.WELL), f"exit status {code}"
