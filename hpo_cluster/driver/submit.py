"""Submission of trials: the files written for an attempt, the trials that share a job, the time of a submission.

A job holds one attempt, or several side by side (`Launcher.trials_per_node`) if a site gives out only whole nodes.
Each attempt has its own token, which is written in its files. The name of a job is the token of its first attempt.

A job may go on with another attempt when one has ended (``launcher.trials_per_job``). A trial that needs a job gets
a place in a job that waits (`FreePlaces`), or else a job of its own. If the job that was to evaluate an attempt has
ended, a second intent gives the attempt a new token and a job of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.driver.background import Background
from hpo_cluster.driver.failures import rests_s
from hpo_cluster.driver.free_places import FreePlaces
from hpo_cluster.driver.intents import intend, note_job
from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import JobRef
from hpo_cluster.launchers.base import Submission, make_ref
from hpo_cluster.launchers.commands import Backoff
from hpo_cluster.record import clock
from hpo_cluster.record.attempt_files import SCHEMA, document_of
from hpo_cluster.record.files import IN_THE_WAY, PASSING, dumps, replace_text
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.next_attempt import END, Next, publish_next, read_next
from hpo_cluster.record.trial_record import Member, TrialRecord
from hpo_cluster.trial import BASELINE, Origin, State

log = logging.getLogger(__name__)


class Submitter:
    """Submission and cancellation of the jobs of a campaign.

    Args:
        campaign: the campaign whose trials are submitted.
        in_background: runs calls that may have to wait for the scheduler.
        places: places in running jobs that are free.

    Attributes:
        refused: why the scheduler did not accept the last job; empty if it did.
        hopeless: why the last job can never be submitted; empty if it can.
        stopped: whether nothing more is submitted, not even what `submit` has begun with.
        shut: why the launch hours allowed no job when `is_shut` was last called; empty if they allowed any.
    """

    def __init__(self, campaign: OpenCampaign, in_background: Background, places: FreePlaces) -> None:
        self._campaign, self._in_background, self._places = campaign, in_background, places
        self.refused = self.hopeless = self.shut = ""
        self.stopped = False
        self._submissions = Backoff()
        #: Names of jobs that an earlier driver may have submitted: look for them before submitting.
        self._unsure = {
            trial.attempt.job_name
            for trial in campaign.record.in_flight
            if trial.attempt is not None and trial.attempt.job is None and trial.attempt.after is None
        }
        self._not_found: set[str] = set()  # names in `_unsure` for which no job was found while `shut`

    @property
    def _jobs_at_most(self) -> int:
        spec = self._campaign.spec
        return max(1, spec.operation.slots // spec.launcher.trials_per_node)

    @property
    def _jobs(self) -> set[str]:
        """The names of the jobs that evaluate trials now, or wait to."""
        return {attempt.job_name for _, attempt in self._campaign.with_job()}

    def is_shut(self) -> bool:
        """Return whether no job may be submitted just now, because of `launcher.not_before` or `launcher.window`."""
        reason = self._campaign.spec.hours.reason_to_wait(clock.now())
        if reason != self.shut:
            log.info("submissions=%s %s", "held" if reason else "open", reason)
            self.shut = reason
        if reason:
            self.refused = ""  # the refused job is not submitted again before the launch hours allow it
        return bool(reason)

    def free_slots(self) -> int:
        """Return how many more trials could be submitted at once.

        The places of a job are free again when all its trials have ended, or when the job waits for other ones.
        """
        waiting = len(self._campaign.record.in_flight) - len(self._campaign.with_job())
        jobs = self._jobs
        places = sum(attempt.job_name in jobs for _, attempt in self._places.free())  # in jobs that run others
        return (self._jobs_at_most - len(jobs)) * self._campaign.spec.launcher.trials_per_node + places - waiting

    def submit(self) -> None:
        """Submit jobs for the trials that have none; if the scheduler does not accept one, wait and try again.

        Jobs that an earlier driver may have submitted are looked for even while no job may be submitted.
        """
        try:
            self._fill_places()
        except SubmissionError as error:
            self.hopeless = f"a trial cannot be given to its job: {error}"
            return
        if self._submissions.lasts:
            return
        for group in self._waiting():
            if self.stopped:
                return
            trials = [trial for trial in group if not trial.state.ended]  # some may have ended in the meantime
            if not trials:
                continue
            known = trials[0].attempt is not None and trials[0].attempt.job_name in self._unsure
            if self.is_shut() and (not known or trials[0].attempts[-1].job_name in self._not_found):
                continue
            if not known and len(self._jobs) >= self._jobs_at_most:
                return
            with self._campaign.holding(trials):
                try:
                    self._submissions.ask(functools.partial(self._submit_job, trials))
                    self.refused = ""
                except SubmissionError as error:
                    if not error.retriable:
                        self.refused = ""
                        self.hopeless = f"the job of trial {trials[0].number} cannot be submitted: {error}"
                        return
                    self.refused = str(error)
                    wait_s = self._submissions.wait_s
                    log.warning("trial=%d not submitted, again in %.0f s: %s", trials[0].number, wait_s, error)
                    return

    def _fill_places(self) -> None:
        """Give trials without a job to the jobs that wait for another attempt."""
        campaign = self._campaign
        for trial in campaign.record.in_flight:
            if trial.attempt is not None and trial.attempt.job is None and trial.attempt.after is not None:
                self._offer(trial)  # an earlier driver was about to
        if self.is_shut():
            return
        fresh, places = self._fresh(), self._places.free()
        for trial in fresh:
            jobs = self._jobs
            full = len(jobs) >= self._jobs_at_most
            place = next((place for place in places if not full or place[1].job_name in jobs), None)
            if place is None or self.stopped:
                return
            places.remove(place)
            intend(campaign, trial, job_name=place[1].job_name, after=place)
            self._offer(trial)

    def _offer(self, trial: TrialRecord) -> None:
        """Give an attempt to the running job for which it is intended; if that job ends, intend a job of its own."""
        campaign, attempt = self._campaign, trial.attempts[-1]
        assert attempt.after is not None
        before = campaign.record.member(attempt.after)[1]
        place = campaign.layout.attempt(*attempt.after)
        decision = read_next(place)
        if decision is None and not self.is_shut():
            self._write_params([(trial, attempt)])
            folder = campaign.layout.attempt(trial.number, attempt.number).dir.resolve()
            try:
                publish_next(place, Next(folder, attempt.token))
                decision = read_next(place)
            except FileNotFoundError:  # somebody removed the folder
                decision = END
        if decision is not None and decision.token == attempt.token and before.job is not None:
            self._note([(trial, attempt)], before.job, adopted=False)
            self.refused = ""
        elif decision is not None:
            intend(campaign, trial)

    def _fresh(self) -> list[TrialRecord]:
        """Return the trials whose next attempt may begin and is not yet intended."""
        wait_s = self._campaign.spec.operation.retry_wait_s
        return [t for t in self._campaign.record.in_flight if t.attempt is None and rests_s(t, wait_s) <= 0]

    def _waiting(self) -> list[list[TrialRecord]]:
        """Return the trials without a job, in groups that share a job."""
        begun: dict[str, list[TrialRecord]] = {}
        for trial in self._campaign.record.in_flight:
            if trial.attempt is not None and trial.attempt.job is None and trial.attempt.after is None:
                begun.setdefault(trial.attempt.job_name, []).append(trial)
        fresh, size = self._fresh(), self._campaign.spec.launcher.trials_per_node
        return [*begun.values(), *(fresh[i : i + size] for i in range(0, len(fresh), size))]

    def _submit_job(self, trials: Sequence[TrialRecord]) -> None:
        """Journal the intent, write the attempts' files and submit one job; adopt the job if it exists already."""
        campaign = self._campaign
        spec, layout = campaign.spec, campaign.layout
        job_name: str | None = None
        for trial in trials:
            if trial.attempt is None:
                job_name = intend(campaign, trial, job_name=job_name)
        members = [(trial, trial.attempts[-1]) for trial in trials]
        exclude = campaign.record.bad_nodes(spec.operation.exclude_node_after)
        submission = make_submission(spec, layout, members, exclude)
        if submission.token in self._unsure:
            siblings = (attempt.job for _, attempt in campaign.with_job() if attempt.job_name == submission.token)
            job = next(siblings, None) or self._in_background(lambda: spec.launcher.find(submission))
            job = job or claimed_job(spec, layout, members)
            if job is not None:
                self._note(members, job, adopted=True)
                return
            if self.is_shut():
                self._not_found.add(submission.token)
                return
        self._write_params(members)
        self._unsure.add(submission.token)
        with self._writing():
            job = self._in_background(lambda: spec.launcher.submit(submission))
        self._note(members, job, adopted=False)

    def _write_params(self, members: Sequence[Member]) -> None:
        """Write what the attempts' jobs read."""
        campaign = self._campaign
        campaign.lock.check()  # without the lock, no journal would know of what is written and submitted from here on
        with self._writing():
            for member in members:
                write_params(campaign.spec, campaign.layout, member)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Write an attempt's files in this context. Raise SubmissionError if they cannot be written there.

        Trouble of the storage, which may pass, and a campaign that was moved are errors of their own.
        """
        try:
            yield
        except OSError as error:
            if error.errno in PASSING:
                raise
            self._campaign.lock.check()  # if the whole folder is gone, nothing is in the way
            blocked = error.errno in IN_THE_WAY
            what = f"{error.filename}: {error.strerror}" + ("; remove what is in the way" if blocked else "")
            raise SubmissionError(what, retriable=not blocked) from error

    def _note(self, members: Sequence[Member], job: JobRef, *, adopted: bool) -> None:
        note_job(self._campaign, members, job, adopted=adopted)
        self._unsure.discard(job.token)

    def cancel(self, trials: Sequence[TrialRecord]) -> None:
        """Cancel these trials: their jobs, or only their part of a job that they share with other trials."""
        campaign = self._campaign
        campaign.lock.check()
        numbers = {trial.number for trial in trials}
        shared = {attempt.job_name for trial, attempt in campaign.with_job() if trial.number not in numbers}
        jobs: dict[str, JobRef] = {}
        for trial in trials:
            attempt = trial.attempt
            if attempt is not None and attempt.job is not None and attempt.job_name not in shared:
                jobs[attempt.job_name] = attempt.job
            elif attempt is not None:
                campaign.layout.make_attempt(trial.number, attempt.number).cancel.touch()
        with campaign.holding(trials):
            for job in jobs.values():
                campaign.lock.check()
                try:
                    self._in_background(functools.partial(campaign.spec.launcher.cancel, job))
                except SubmissionError as error:
                    log.warning("job=%s not cancelled: %s", job.job_id, error)
        for trial in trials:
            number = None if trial.attempt is None else trial.attempt.number
            campaign.append("ended", trial=trial.number, attempt=number, state=State.CANCELLED)


def command(spec: CampaignSpec, layout: CampaignLayout, code: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the command of a job: a program in the campaign's copy of the code, with the attempts' directories."""
    programs = (layout.code_dir / code / "jobs").resolve()
    program, directories = str(programs / spec.objective.program), [str(folder.resolve()) for folder in folders]
    if len(folders) == 1:
        return (sys.executable, program, *directories)
    runner = (str(programs / "side_by_side.py"), "--gpus", str(spec.gpus_per_trial))
    return (sys.executable, *runner, program, *directories)


def make_submission(
    spec: CampaignSpec, layout: CampaignLayout, members: Sequence[Member], exclude: tuple[str, ...]
) -> Submission:
    """Return the job of these attempts in the form that a launcher accepts."""
    folders = [layout.attempt(trial.number, attempt.number) for trial, attempt in members]
    first = members[0][1]
    line = command(spec, layout, first.code, [files.dir for files in folders])
    home = folders[0]
    return Submission(first.job_name, line, home.dir.resolve(), home.job_dir.resolve(), exclude, len(members))


def write_params(spec: CampaignSpec, layout: CampaignLayout, member: Member) -> None:
    """Write ``params.json``, which a job reads in its attempt's directory."""
    trial, attempt = member
    files = layout.make_attempt(trial.number, attempt.number)
    params = {
        "schema": SCHEMA,
        "campaign": layout.dir.name,
        "trial": trial.number,
        "attempt": attempt.number,
        "token": attempt.token,
        "code": attempt.code,
        "seed": trial.seed,
        "baseline": trial.number == BASELINE,
        "previous": [str(layout.attempt(trial.number, n).dir.resolve()) for n in range(attempt.number)],
        "physical_batch_size": trial.physical_batch_size,
        "gpus": spec.gpus_per_trial,
        "job_name": attempt.job_name,
        "after": attempt.after,
        "turn": attempt.turn,
        "trials_per_job": spec.launcher_settings.trials_per_job,
        "linger_s": spec.launcher_settings.linger_s,
        **({"confirmation": trial.info} if trial.origin is Origin.CONFIRMATION else {}),
        **_rungs(spec, trial),
        "parameters": trial.parameters,
        "settings": spec.objective.job_settings(spec.resolve),
    }
    replace_text(files.params, dumps(params))


def _rungs(spec: CampaignSpec, trial: TrialRecord) -> dict[str, Any]:
    """Return what a job must know of its rungs; nothing without any."""
    ladder, climb = spec.fidelity.ladder, trial.climb
    if ladder is None or climb is None:
        return {}
    goals = {"goal": climb.goal, "first": climb.first, "linger_s": spec.fidelity.linger_s}
    return {"rungs": {"kind": ladder.kind, "shares": list(ladder.shares), **goals}}


def claimed_job(spec: CampaignSpec, layout: CampaignLayout, members: Sequence[Member]) -> JobRef | None:
    """Return the job that claimed or ended one of the attempts, read from its files: a scheduler may have forgotten."""
    for trial, attempt in members:
        files = layout.attempt(trial.number, attempt.number)
        documents = (document_of(path, attempt.token) for path in (files.claim, files.result, files.error))
        claim = next((document for document in documents if document is not None), None)
        if claim is not None and claim.get("job") and claim.get("host"):
            extra = {"pid_started": claim.get("pid_started"), "attempt_dir": str(files.dir.resolve())}
            ref = make_ref(spec.launcher.backend, str(claim["job"]), attempt.job_name, **extra)
            return dataclasses.replace(ref, host=str(claim["host"]))
    return None
