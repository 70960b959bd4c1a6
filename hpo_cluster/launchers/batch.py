"""What following jobs of a batch scheduler takes, whichever it is.

A job is known by its name, which is the attempt's token: ids are recycled. One question a cycle lists the user's jobs;
one more asks what became of those that are no longer listed. Each has a time limit, and its own back-off.
"""

from __future__ import annotations

import abc
import datetime
import os
import pwd
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import LauncherSettings, Submission, make_ref
from hpo_cluster.launchers.commands import Backoff, CommandError

#: Seconds in which a job that was never listed is taken for one that is about to be.
FRESH_S = 15.0
#: Seconds in which the records of a job that ended badly may be behind what is listed.
LAG_S = 10.0
#: What a listed job is worth when two have one name: the one that lives, then the handle's own.
_WORTH = {JobState.RUNNING: 4, JobState.PAUSED: 3, JobState.PENDING: 2, JobState.UNKNOWN: 1, JobState.ENDED: 0}

#: A table of a scheduler's states: what each means to us.
StateTable = Mapping[str, tuple[JobState, EndReason | None]]


@dataclass(frozen=True)
class Listed:
    """A job as a scheduler lists it. `settled`: that it has ended is known, and why too."""

    job_id: str
    status: JobStatus
    settled: bool = True


class SchedulerSettings(LauncherSettings):
    """What both batch schedulers accept."""

    walltime_min: int = Field(120, ge=1, description="minutes after which a job is ended")
    poll_period_s: float = Field(10.0, gt=0, description="seconds between two questions to the scheduler")
    trials_per_node: int = Field(
        1, ge=1, description="evaluations side by side in one job on one node, where a site gives out whole nodes only"
    )
    checkpoint_delay_s: int = Field(
        90, ge=0, description="seconds before the walltime at which a job gets SIGUSR2, to save where it is (0: never)"
    )


class SchedulerLauncher(abc.ABC):
    """Follows jobs through two questions that a scheduler's launcher answers."""

    backend: str
    #: Whether a scheduler may run without the records that `_ended` asks for.
    records_are_optional = False

    def __init__(self, settings: SchedulerSettings) -> None:
        self.poll_period_s, self.trials_per_node = settings.poll_period_s, settings.trials_per_node
        self._listing, self._records = Backoff(), Backoff()
        self._seen: set[str] = set()  # tokens that were listed once
        self._settled: dict[str, JobStatus] = {}  # what the records said of jobs that ended
        self._unsettled: dict[str, float] = {}  # tokens whose records are behind, since when

    @abc.abstractmethod
    def _list(self) -> dict[str, list[Listed]]:
        """This user's jobs by name: one question."""

    @abc.abstractmethod
    def _ended(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """What the records say of jobs that are no longer listed, by token: one question."""

    def job_name(self, token: str) -> str:
        """The name that a job with that token has."""
        return token

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Status of each job by its token: one question for all of them, and one for those no longer listed."""
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
        told, trouble = self._told([ref for ref in refs if not _settled(found[ref.token])])
        return {ref.token: self._status(ref, found[ref.token], told.get(ref.token), trouble) for ref in refs}

    def _unrecorded(self, ref: JobRef, job: Listed) -> JobStatus:
        """The status of a job that is listed as ended and whose records are not to be had."""
        return job.status

    def _told(self, refs: Sequence[JobRef]) -> tuple[dict[str, JobStatus], str]:
        """What the records say of those jobs; and why they do not, where they were not to be had."""
        unasked = [ref for ref in refs if ref.token not in self._settled]
        told: dict[str, JobStatus] = {}
        trouble = ""
        if unasked:
            try:
                told = self._records.ask(lambda: self._ended(unasked))
            except SubmissionError as error:
                trouble = str(error)
        self._settled.update({token: status for token, status in told.items() if status.state is JobState.ENDED})
        return {**told, **self._settled}, trouble

    def _status(self, ref: JobRef, job: Listed | None, told: JobStatus | None, trouble: str) -> JobStatus:
        if _settled(job):
            assert job is not None
            return job.status
        if told is not None and (told.state is JobState.ENDED or not self.records_are_optional):
            return told
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
        """The pending or running job that has the token for its name."""
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
    """Of jobs with one name (a submission that was repeated), the one that says most of the attempt."""
    return max(jobs, key=lambda job: (_WORTH[job.status.state], job.job_id == job_id), default=None)


def _is_fresh(ref: JobRef) -> bool:
    """Whether it was submitted just now, on clocks that may differ a little."""
    try:
        submitted = datetime.datetime.fromisoformat(ref.submitted_at)
        return abs((datetime.datetime.now(datetime.UTC) - submitted).total_seconds()) < FRESH_S
    except (ValueError, TypeError):
        return False


def user_name() -> str:
    """Who submits: by user id, since the environment may say something else."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@dataclass(frozen=True)
class Refusal:
    """A message of a scheduler's submission command and what it means.

    Args:
        pattern: regular expression, of any case.
        retriable: whether the same request may be accepted later.
        remedy: what to do.
    """

    pattern: str
    retriable: bool
    remedy: str


def refusal(error: CommandError, table: Sequence[Refusal], noise: str = r"(?!)") -> SubmissionError:
    """A refused submission in words: what the scheduler said, and what to do; what `noise` matches is left out."""
    lines = [line.strip() for line in error.output.splitlines()]
    said = "; ".join(line for line in lines if line and not re.search(noise, line))[:400] or "no message"
    message = f"{error.program} failed with status {error.status}: {said}"
    for entry in table:
        if re.search(entry.pattern, error.output, re.IGNORECASE):
            return SubmissionError(f"{message}. {entry.remedy}".rstrip(". "), retriable=entry.retriable)
    return SubmissionError(message)
