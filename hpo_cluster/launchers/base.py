"""The protocol of every launcher, the settings that all launchers share, and the description of a job to submit."""

from __future__ import annotations

import datetime
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, ValidationInfo, field_validator

from hpo_cluster.job import JobRef, JobStatus
from hpo_cluster.record.clock import now, utc_now
from hpo_cluster.settings import Settings
from hpo_cluster.window import ACCEPTED_MOMENT, LaunchHours, parse_moment, parse_window

#: Variable in the environment of every job, by which a launcher finds a job without having a handle on it.
TOKEN_VARIABLE = "HPO_CLUSTER_TOKEN"


class LauncherSettings(Settings):
    """Settings that every launcher accepts, with the same meaning everywhere."""

    kind: str
    gpus_per_trial: int = Field(0, ge=0, description="GPUs of one evaluation")
    cpus_per_trial: int = Field(1, ge=1, description="CPU cores of one evaluation")
    walltime_min: int = Field(1440, ge=1, description="minutes after which a job is ended")
    trials_per_job: int = Field(
        1, ge=1, description="evaluations one after another in one job, which pay for its start only once"
    )
    linger_s: float = Field(
        60.0, gt=0, description="seconds that a job waits for its next evaluation, if trials_per_job is more than 1"
    )
    not_before: datetime.datetime | None = Field(
        None,
        description="no job is submitted before this: 2027-01-31T19:00 (or with +01:00), or 19:00 for the next 19:00",
    )
    window: tuple[str, ...] = Field(
        (),
        description="hours in which jobs may run; each is submitted so that it ends inside: [19:00-08:45, Sat-Sun]",
    )
    setup: tuple[str, ...] = Field((), description="shell lines before the job's command (modules, environments)")
    setup_file: str | None = Field(
        None, description="file of shell lines that jobs run before setup; it is not copied, so it may hold secrets"
    )
    container: str | None = Field(
        None, description="command that runs the job in a container: singularity exec --nv image.sif (null: none)"
    )
    poll_period_s: float = Field(1.0, gt=0, description="seconds between two questions to the scheduler")

    def machine_faults(self) -> list[str]:
        """Return what this machine lacks for the jobs; empty if nothing, or if they run elsewhere."""
        return []

    @property
    def warning_s(self) -> int:
        """Seconds before its walltime at which a job is signalled."""
        return 0

    @property
    def early_s(self) -> int:
        """Seconds by which a job may be signalled earlier than `warning_s` says."""
        return 0

    @property
    def setup_lines(self) -> list[str]:
        """Shell lines that a job's script runs before its command."""
        if self.setup_file is None:
            return [*self.setup]
        return [f". {shlex.quote(str(Path(self.setup_file).expanduser().absolute()))}", *self.setup]

    @property
    def hours(self) -> LaunchHours:
        """Times at which jobs may be submitted."""
        window = parse_window(self.window) if self.window else None
        return LaunchHours(datetime.timedelta(minutes=self.walltime_min), self.not_before, window)

    @field_validator("not_before", mode="before")
    @classmethod
    def _one_moment(cls, value: Any) -> datetime.datetime | None:
        """Turn the value into a moment only once, so that a resumed campaign does not wait for the next 19:00."""
        if isinstance(value, datetime.datetime):
            return value if value.tzinfo is not None else value.astimezone()
        if isinstance(value, str):
            return parse_moment(value, now())
        if value is None:
            return None
        raise ValueError(f"is not a moment; accepted: {ACCEPTED_MOMENT}")

    @field_validator("window", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Accept one entry without a list around it, and null for no window."""
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("window")
    @classmethod
    def _has_room(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Refuse a window in which no job could end."""
        window = parse_window(entries)
        walltime_min = info.data.get("walltime_min")  # missing if walltime_min itself is wrong
        if entries and walltime_min is not None and not window.has_room_for(walltime_min):
            raise ValueError(
                f"no job could end inside it: launcher.walltime_min={walltime_min}, and its longest stretch has "
                f"{window.longest_min} minutes; accepted: launcher.walltime_min={window.longest_min} or less, or a "
                "longer window"
            )
        return entries

    @field_validator("container")
    @classmethod
    def _one_command(cls, container: str | None) -> str | None:
        """Refuse a container that is not one line of shell words with closed quotes: it precedes a command."""
        if container is not None and ("\n" in container or not shlex.split(container)):
            raise ValueError("must be one command on one line, such as: singularity exec --nv image.sif")
        return container


@dataclass(frozen=True)
class Submission:
    """One job to submit: a plain command on attempt directories, which may run on any node not in `exclude`."""

    token: str
    command: tuple[str, ...]
    attempt_dir: Path
    job_dir: Path
    exclude: tuple[str, ...] = ()  # nodes that have failed before
    trials: int = 1  # number evaluated side by side: the job gets this many times the resources of one trial

    def shell_line(self, environment: Mapping[str, str] | None = None, container: str | None = None) -> str:
        """Return the command as one shell line, with the token and `environment` in its environment.

        `container` is put in front of the line as it is, so that the variables are set inside the container.
        """
        variables = {TOKEN_VARIABLE: self.token, **(environment or {})}
        line = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *self.command])
        return f"{container} {line}" if container else line


class Launcher(Protocol):
    """A way to run jobs. A handle is a plain value: a job can be followed without anything kept in memory."""

    backend: str
    poll_period_s: float
    trials_per_node: int

    def script(self, submission: Submission) -> str:
        """Return the text of the script that `submit` would submit, without writing anything."""
        ...

    def command(self, submission: Submission) -> list[str]:
        """Return the command with which `submit` would submit the script, without writing anything."""
        ...

    def submit(self, submission: Submission) -> JobRef:
        """Submit one job. Make `job_dir` if needed, but no parent: a campaign that was moved is not made again.

        Raises:
            OSError: if the job's files cannot be written.
            SubmissionError: if the scheduler did not accept the job, or did not answer. The job may exist even so:
                look for its token before submitting again.
        """
        ...

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return the status of each job by its token; UNKNOWN if the scheduler did not answer."""
        ...

    def cancel(self, ref: JobRef) -> None:
        """End a pending or running job; do nothing if it has ended already."""
        ...

    def find(self, submission: Submission) -> JobRef | None:
        """Return the pending or running job that has this submission's token; None if there is no such job.

        Raises:
            SubmissionError: if the scheduler did not answer, so that nothing is known.
        """
        ...


def warning_s(delay_s: int, walltime_min: int) -> int:
    """Return how many seconds before its walltime a job is warned: `delay_s`, but at most a third of the walltime."""
    return min(delay_s, walltime_min * 60 // 3)


def make_ref(backend: str, job_id: str, token: str, **extra: Any) -> JobRef:
    """Return a handle on a job that is submitted now, from this host."""
    return JobRef(backend, job_id, token, utc_now(), socket.gethostname(), extra)
