"""The protocol of every launcher, and what they share."""

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

#: In the environment of every job: lets a launcher find a job that it no longer has a handle on.
TOKEN_VARIABLE = "HPO_CLUSTER_TOKEN"


class LauncherSettings(Settings):
    """What every launcher accepts. Names mean the same everywhere."""

    kind: str
    gpus_per_trial: int = Field(0, ge=0, description="GPUs of one evaluation")
    cpus_per_trial: int = Field(1, ge=1, description="CPU cores of one evaluation")
    walltime_min: int = Field(1440, ge=1, description="minutes after which a job is ended")
    not_before: datetime.datetime | None = Field(
        None,
        description="no job is submitted before it: 2027-01-31T19:00 (or with +01:00), or 19:00 for the next 19:00",
    )
    window: tuple[str, ...] = Field(
        (),
        description="when jobs may run: each is submitted so that it ends inside it: [19:00-08:45, Sat-Sun]",
    )
    setup: tuple[str, ...] = Field((), description="shell lines before the job's command (modules, environments)")
    setup_file: str | None = Field(
        None, description="file of shell lines that jobs read before these; it is not copied: a place for secrets"
    )
    container: str | None = Field(
        None, description="command that runs another in a container: singularity exec --nv image.sif (null: none)"
    )
    poll_period_s: float = Field(1.0, gt=0, description="seconds between two questions to the scheduler")

    @property
    def setup_lines(self) -> list[str]:
        """Return what a job's script runs before its command."""
        if self.setup_file is None:
            return [*self.setup]
        return [f". {shlex.quote(str(Path(self.setup_file).expanduser().absolute()))}", *self.setup]

    @property
    def hours(self) -> LaunchHours:
        """Return when jobs may be submitted."""
        window = parse_window(self.window) if self.window else None
        return LaunchHours(datetime.timedelta(minutes=self.walltime_min), self.not_before, window)

    @field_validator("not_before", mode="before")
    @classmethod
    def _one_moment(cls, value: Any) -> datetime.datetime | None:
        """Turn what was typed into a moment once, so that a campaign that goes on does not wait again."""
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
        """Accept one entry without its list, and null for none."""
        return (value,) if isinstance(value, str) else () if value is None else value

    @field_validator("window")
    @classmethod
    def _has_room(cls, entries: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Refuse a window in which no job could end."""
        window = parse_window(entries)
        walltime_min = info.data.get("walltime_min")  # missing if that is wrong itself
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
        """A prefix of a shell command: one line, its quotes closed."""
        if container is not None and ("\n" in container or not shlex.split(container)):
            raise ValueError("must be one command on one line, such as: singularity exec --nv image.sif")
        return container


@dataclass(frozen=True)
class Submission:
    """One job to submit: a plain command on attempt directories, anywhere but on the nodes in `exclude`."""

    token: str
    command: tuple[str, ...]
    attempt_dir: Path
    job_dir: Path
    exclude: tuple[str, ...] = ()  # nodes that have failed before, not to be used
    trials: int = 1  # evaluated side by side by the command: the job gets so many times what one takes

    def shell_line(self, environment: Mapping[str, str] | None = None, container: str | None = None) -> str:
        """The command as one line for a shell, with the token (and `environment`) in its environment.

        `container` comes before all of it, as it was written: what is set is set inside.
        """
        variables = {TOKEN_VARIABLE: self.token, **(environment or {})}
        line = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *self.command])
        return f"{container} {line}" if container else line


class Launcher(Protocol):
    """Runs jobs somewhere. Handles are values: nothing a launcher keeps in memory is needed to follow a job."""

    backend: str
    poll_period_s: float
    trials_per_node: int

    def script(self, submission: Submission) -> str:
        """The text of the script that `submit` would hand over. Writes nothing."""
        ...

    def command(self, submission: Submission) -> list[str]:
        """Return the command that `submit` would run on that script. Writes nothing."""
        ...

    def submit(self, submission: Submission) -> JobRef:
        """Submit one job.

        Raises:
            SubmissionError: where the scheduler did not accept it, or did not answer; the job may exist all the same,
                so look for its token before submitting again.
        """
        ...

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Status of each job by its token; UNKNOWN where the scheduler did not answer."""
        ...

    def cancel(self, ref: JobRef) -> None:
        """End a job, pending or running. No error where it has ended already."""
        ...

    def find(self, submission: Submission) -> JobRef | None:
        """The job with that submission's token that is pending or running, None where there is none.

        Raises:
            SubmissionError: where the scheduler did not answer, and so nothing is known.
        """
        ...


def warning_s(delay_s: int, walltime_min: int) -> int:
    """Seconds before its walltime that a job is warned: `delay_s`, but a third of the walltime at most."""
    return min(delay_s, walltime_min * 60 // 3)


def make_ref(backend: str, job_id: str, token: str, **extra: Any) -> JobRef:
    """A handle on a job submitted now, from this host."""
    return JobRef(backend, job_id, token, utc_now(), socket.gethostname(), extra)
