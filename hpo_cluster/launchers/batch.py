"""Launchers of batch schedulers: the part that Slurm and OAR share, above all how jobs are followed.

A job is identified by its name, which is the attempt's token, because ids are recycled. In each cycle one question
lists the user's jobs, and a second one asks for the records of those that are no longer listed. Each question has a
time limit and its own back-off.
"""

from __future__ import annotations

import abc
import os
import pwd
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import LauncherSettings, Submission, make_ref, warning_s
from hpo_cluster.launchers.commands import Backoff, CommandError
from hpo_cluster.record.clock import seconds_from

#: Seconds after its submission in which a job that was never listed counts as pending.
FRESH_S = 15.0
#: Seconds by which the records of a job that failed may lag behind the list.
LAG_S = 10.0
#: Order of preference among listed jobs with the same name: a living job first. Between equals, the handle's own job.
_PREFERENCE = {JobState.RUNNING: 4, JobState.PAUSED: 3, JobState.PENDING: 2, JobState.UNKNOWN: 1, JobState.ENDED: 0}

#: State and end reason for each word with which a scheduler names a state.
StateTable = Mapping[str, tuple[JobState, EndReason | None]]


@dataclass(frozen=True)
class Listed:
    """A job as a scheduler lists it. `settled`: the list alone says whether and why the job ended."""

    job_id: str
    status: JobStatus
    settled: bool = True


class SchedulerSettings(LauncherSettings):
    """Settings that all batch schedulers accept."""

    walltime_min: int = Field(120, ge=1, description="minutes after which a job is ended")
    poll_period_s: float = Field(10.0, gt=0, description="seconds between two questions to the scheduler")
    trials_per_node: int = Field(
        1, ge=1, description="evaluations side by side in one job on one node, if a site gives out only whole nodes"
    )
    checkpoint_delay_s: int = Field(
        90, ge=0, description="seconds before the walltime at which a job gets SIGUSR2, to save a checkpoint (0: never)"
    )

    @property
    def warning_s(self) -> int:
        """Seconds before its walltime at which a job is signalled."""
        return warning_s(self.checkpoint_delay_s, self.walltime_min)


class SchedulerLauncher(abc.ABC):
    """Base class of launchers that follow jobs with two questions to a scheduler: `_list` and `_ended`."""

    backend: str
    #: Whether the scheduler may run without the records that `_ended` asks for.
    records_are_optional = False

    def __init__(self, settings: SchedulerSettings) -> None:
        self.poll_period_s, self.trials_per_node = settings.poll_period_s, settings.trials_per_node
        self._listing, self._records = Backoff(), Backoff()
        self._seen: set[str] = set()  # tokens of jobs that have been listed
        self._settled: dict[str, JobStatus] = {}  # recorded status of jobs that ended, by token
        self._unsettled: dict[str, float] = {}  # since when the records of a job lag behind, by token

    @abc.abstractmethod
    def _list(self) -> dict[str, list[Listed]]:
        """Return this user's jobs by name, with one question to the scheduler."""

    @abc.abstractmethod
    def _ended(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return the recorded status of jobs that are no longer listed, by token, with one question."""

    def job_name(self, token: str) -> str:
        """Return the name of the job with this token."""
        return token

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return the status of each job by its token: one question for all jobs, one for those no longer listed."""
        if not refs:
            return {}
        tokens = {ref.token for ref in refs}
        self._seen &= tokens
        self._unsettled = {token: since for token, since in self._unsettled.items() if token in tokens}
        self._settled = {token: status for token, status in self._settled.items() if token in tokens}
        try:
            listed = self._listing.ask(self._list)
        except SubmissionError as error:
            return {ref.token: JobStatus(JobState.UNKNOWN, detail=str(error)) for ref in refs}
        found = {ref.token: _best(listed.get(self.job_name(ref.token), ()), ref.job_id) for ref in refs}
        self._seen |= {token for token, job in found.items() if job is not None}
        recorded, trouble = self._recorded([ref for ref in refs if not _settled(found[ref.token])])
        return {ref.token: self._status(ref, found[ref.token], recorded.get(ref.token), trouble) for ref in refs}

    def _unrecorded(self, ref: JobRef, job: Listed) -> JobStatus:
        """Return the status of a job that is listed as ended and whose records cannot be read."""
        return job.status

    def _recorded(self, refs: Sequence[JobRef]) -> tuple[dict[str, JobStatus], str]:
        """Return the recorded status of these jobs by token, and why the records could not be read (or nothing)."""
        unasked = [ref for ref in refs if ref.token not in self._settled]
        recorded: dict[str, JobStatus] = {}
        trouble = ""
        if unasked:
            try:
                recorded = self._records.ask(lambda: self._ended(unasked))
            except SubmissionError as error:
                trouble = str(error)
        self._settled.update({token: status for token, status in recorded.items() if status.state is JobState.ENDED})
        return {**recorded, **self._settled}, trouble

    def _status(self, ref: JobRef, job: Listed | None, recorded: JobStatus | None, trouble: str) -> JobStatus:
        if _settled(job):
            assert job is not None
            return job.status
        if recorded is not None and (recorded.state is JobState.ENDED or not self.records_are_optional):
            return recorded
        if job is not None:
            since = self._unsettled.setdefault(ref.token, time.monotonic())
            if not trouble and time.monotonic() - since < LAG_S:
                return JobStatus(JobState.RUNNING, detail=f"{job.status.detail}, being recorded", node=job.status.node)
            return self._unrecorded(ref, job)
        if ref.token not in self._seen and _is_fresh(ref):
            return JobStatus(JobState.PENDING, detail="submitted, not yet listed")
        if trouble and not self.records_are_optional:
            return JobStatus(JobState.UNKNOWN, detail=trouble)
        return JobStatus(JobState.ENDED, EndReason.FORGOTTEN, trouble or "the scheduler does not know it")

    def find(self, submission: Submission) -> JobRef | None:
        """Return the pending or running job whose name is the token; None if there is no such job."""
        jobs = self._listing.ask(self._list).get(self.job_name(submission.token), ())
        job = _best(jobs, "")
        if job is None or job.status.state is JobState.ENDED:
            return None
        return self._ref(job.job_id, submission)

    def _ref(self, job_id: str, submission: Submission) -> JobRef:
        return make_ref(self.backend, job_id, submission.token, job_dir=str(submission.job_dir))


def _settled(job: Listed | None) -> bool:
    return job is not None and (job.status.state is not JobState.ENDED or job.settled)


def _best(jobs: Iterable[Listed], job_id: str) -> Listed | None:
    """Return the preferred one of several jobs with the same name, which exist if one was submitted twice."""
    return max(jobs, key=lambda job: (_PREFERENCE[job.status.state], job.job_id == job_id), default=None)


def _is_fresh(ref: JobRef) -> bool:
    """Return whether a job was submitted just now, allowing for clocks that differ a little."""
    try:
        return seconds_from(ref.submitted_at) < FRESH_S
    except (ValueError, TypeError):
        return False


def user_name() -> str:
    """Return the name of the user who submits, from the user id: the environment may hold another name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@dataclass(frozen=True)
class Refusal:
    """A message with which a submission command refuses a job, and what it means.

    Args:
        pattern: regular expression for the message; case is ignored.
        retriable: whether the same request may be accepted later.
        remedy: what the user can do.
    """

    pattern: str
    retriable: bool
    remedy: str


def refusal(error: CommandError, table: Sequence[Refusal], noise: str = r"(?!)") -> SubmissionError:
    """Return the error for a refused submission: the scheduler's message, and the remedy of the first match in `table`.

    Lines of the message that match `noise` are left out.
    """
    lines = [line.strip() for line in error.output.splitlines()]
    said = "; ".join(line for line in lines if line and not re.search(noise, line))[:400] or "no message"
    message = f"{error.program} failed with status {error.status}: {said}"
    for entry in table:
        if re.search(entry.pattern, error.output, re.IGNORECASE):
            return SubmissionError(f"{message}. {entry.remedy}".rstrip(". "), retriable=entry.retriable)
    return SubmissionError(message)
