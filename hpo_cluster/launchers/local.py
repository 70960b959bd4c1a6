"""Jobs as processes of this machine, run by the controller of submitit's local executor.

submitit's controller runs the command, writes its output to files and enforces the walltime. The command is a plain
one, without a pickle, and runs in its own session, so that Ctrl-C in the driver's terminal does not reach it. A job
outlives its driver and is identified by pid *and* start time, because pids are recycled.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import TOKEN_VARIABLE, LauncherSettings, Submission, make_ref, warning_s
from hpo_cluster.launchers.commands import call
from hpo_cluster.launchers.submitit_inside import start_local_controller
from hpo_cluster.record.files import matching, read_json, written_at
from hpo_cluster.record.processes import is_alive, process_start
from hpo_cluster.text import counted

#: Seconds before the walltime at which submitit's controller sends SIGUSR2.
SIGNAL_DELAY_S = 30

#: Seconds after which processes are looked at again for a job that was not found among them.
LOADING_S = 0.2


class LocalSettings(LauncherSettings):
    """Settings of jobs that are processes of this machine."""

    kind: Literal["local"] = "local"
    gpu_devices: tuple[int, ...] | None = Field(None, description="GPUs to use; null: all that nvidia-smi lists")

    @property
    def devices(self) -> tuple[int, ...]:
        """The GPUs that jobs may use."""
        return self.gpu_devices if self.gpu_devices is not None else _gpus_of_this_machine()

    def machine_faults(self) -> list[str]:
        """Return the fault if one evaluation needs more GPUs than there are."""
        return too_few(self.gpus_per_trial, self.devices) if self.gpus_per_trial else []

    @property
    def warning_s(self) -> int:
        """Seconds before its walltime at which a job is signalled."""
        return int(warning_s(SIGNAL_DELAY_S, self.walltime_min))


class LocalLauncher:
    """Launcher that runs each job as a process of this machine."""

    backend = "local"
    trials_per_node = 1  # sharing a job would gain nothing: each trial can have its own process

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        self.poll_period_s = settings.poll_period_s
        self._children: list[subprocess.Popen[bytes]] = []
        self._alive: list[JobRef] = []  # jobs last seen alive, whose GPUs are taken
        self._seen_alive_at: dict[str, float] = {}  # by token

    def script(self, submission: Submission) -> str:
        """Return the text of the script that the job runs."""
        line = submission.shell_line(container=self.settings.container)
        return "\n".join(["#!/bin/bash", *self.settings.setup_lines, f"exec {line}", ""])

    def command(self, submission: Submission) -> list[str]:
        """Return the command that the job's controller runs."""
        return ["bash", str(submission.job_dir / "job.sh")]

    def submit(self, submission: Submission) -> JobRef:
        """Start the job's process, which is running when this returns."""
        devices = self._free_devices()
        try:
            submission.job_dir.mkdir(exist_ok=True)
            process = self._start_controller(submission, devices)
        except OSError as error:
            raise SubmissionError(f"the job's process did not start: {error}") from error
        self._children.append(process)
        self._alive.append(self._ref(process.pid, submission, devices))
        return self._alive[-1]

    def _ref(self, pid: int, submission: Submission, devices: list[int]) -> JobRef:
        attempt_dir = str(submission.attempt_dir)
        extra = {"pid_started": process_start(pid), "attempt_dir": attempt_dir, "devices": devices}
        return make_ref(self.backend, str(pid), submission.token, **extra)

    def _start_controller(self, submission: Submission, devices: list[int]) -> subprocess.Popen[bytes]:
        """Write the job's script and start the controller that runs it."""
        script = submission.job_dir / "job.sh"
        script.write_text(self.script(submission))
        environment = {
            **os.environ,
            TOKEN_VARIABLE: submission.token,
            "OMP_NUM_THREADS": str(self.settings.cpus_per_trial),
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)),
        }
        command = self.command(submission)
        return start_local_controller(
            submission.job_dir, command, environment, walltime_s=self._walltime_s, warning_s=self.settings.warning_s
        )

    def _free_devices(self) -> list[int]:
        wanted = self.settings.gpus_per_trial
        if wanted == 0:
            return []
        listed = self.settings.devices
        self._reap()
        self._alive = [ref for ref in self._alive if self._state(ref) is JobState.RUNNING]  # since the last poll
        taken = {device for ref in self._alive for device in ref.extra.get("devices") or ()}
        free = [device for device in listed if device not in taken]
        if faults := too_few(wanted, listed):
            raise SubmissionError(faults[0], retriable=False)
        if len(free) < wanted:
            raise SubmissionError(f"a trial needs {counted(wanted, 'GPU')}; free are {len(free)} of {len(listed)}")
        return free[:wanted]

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return the status of each job by its token."""
        self._reap()
        states = {ref.token: self._state(ref) for ref in refs}
        self._alive = [ref for ref in refs if states[ref.token] is JobState.RUNNING]
        asked = {ref.token: self._seen_alive_at[ref.token] for ref in refs if ref.token in self._seen_alive_at}
        self._seen_alive_at = {**asked, **{ref.token: time.time() for ref in self._alive}}
        return {ref.token: self._status(ref, states[ref.token]) for ref in refs}

    def _reap(self) -> None:
        """Forget the children that have ended."""
        self._children = [child for child in self._children if child.poll() is None]

    def _status(self, ref: JobRef, state: JobState) -> JobStatus:
        if state is not JobState.ENDED or self._ran_s(ref) < self._walltime_s - self.settings.warning_s:
            return JobStatus(state, detail=str(state))
        return JobStatus(state, EndReason.WALLTIME, f"ended after launcher.walltime_min={self.settings.walltime_min}")

    @property
    def _walltime_s(self) -> int:
        return int(60 * self.settings.walltime_min)

    def _ran_s(self, ref: JobRef) -> float:
        """Return the least time that an ended job has run: until it was last seen, or last wrote to its log."""
        began = datetime.datetime.fromisoformat(ref.submitted_at).timestamp()
        logs = matching(Path(ref.extra["attempt_dir"]) / "job", "*_log.*")
        return max([self._seen_alive_at.get(ref.token, began), *map(written_at, logs)]) - began

    def _state(self, ref: JobRef) -> JobState:
        if ref.host != socket.gethostname():
            return JobState.UNKNOWN
        alive = is_alive(int(ref.job_id), ref.extra.get("pid_started")) or self._worker_alive(ref)
        return JobState.RUNNING if alive else JobState.ENDED

    @staticmethod
    def _worker_alive(ref: JobRef) -> bool:
        """Return whether the job itself still runs although its controller is dead."""
        claim = read_json(Path(ref.extra["attempt_dir"]) / "claim") or {}
        mine = claim.get("token") == ref.token and claim.get("host") == socket.gethostname()
        return mine and is_alive(claim.get("pid"), claim.get("pid_started"))

    def cancel(self, ref: JobRef) -> None:
        """Terminate every process of the job."""
        if self._state(ref) is JobState.RUNNING:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(ref.job_id), signal.SIGTERM)

    def find(self, submission: Submission) -> JobRef | None:
        """Return the job whose processes have the token in their environment; the group's leader is the controller."""
        needle = f"{TOKEN_VARIABLE}={submission.token}".encode()
        for pause in (LOADING_S, 0.0):  # a program that is just being loaded has an empty environment
            for pid in sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
                with contextlib.suppress(OSError):
                    if needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                        return self._ref(os.getpgid(pid), submission, [])  # the lowest: children may form new groups
            time.sleep(pause)
        return None


def too_few(wanted: int, listed: Sequence[int]) -> list[str]:
    """Return the fault if one evaluation needs more GPUs than these."""
    if len(listed) >= wanted:
        return []
    return [f"launcher.gpus_per_trial={wanted}, but this machine has {counted(len(listed), 'GPU')}"]


def _gpus_of_this_machine() -> tuple[int, ...]:
    try:
        lines = call(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], timeout_s=20).split()
    except SubmissionError:
        return ()
    return tuple(int(line) for line in lines)
