"""Collection of results: the files that jobs have published, and the reason why other jobs ended without any.

The reports of rungs are read too, and answered at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hpo_cluster.driver.background import Background
from hpo_cluster.driver.climbing import Climbing
from hpo_cluster.driver.failures import (
    Failure,
    all_fail_alike,
    awaits_reason,
    decide,
    explained,
    reported_failure,
    silent_failure,
)
from hpo_cluster.driver.free_places import FreePlaces
from hpo_cluster.driver.intents import intend, note_job
from hpo_cluster.driver.job_watch import JobWatch
from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.job import JobState, JobStatus
from hpo_cluster.objectives.base import Outcome
from hpo_cluster.record.attempt_files import document_of, is_finite_number, result_faults, valid_result
from hpo_cluster.record.files import refresh
from hpo_cluster.record.rung_files import rung_file, rung_name
from hpo_cluster.record.trial_record import ENERGY, AttemptRecord, Place, TrialRecord
from hpo_cluster.text import did_you_mean, some_of
from hpo_cluster.trial import ErrorKind, State

log = logging.getLogger(__name__)

#: Files which show that an attempt has ended, and files which show that it has begun or ended.
ENDING = frozenset({"result.json", "error.json"})
BEGINNING = ENDING | {"claim"}


class Collector:
    """Reader of the files of the trials in flight, which also asks the scheduler about their jobs.

    Args:
        campaign: the campaign whose trials are collected.

    Attributes:
        climbing: decides at rungs.
    """

    def __init__(self, campaign: OpenCampaign) -> None:
        self._campaign = campaign
        spec, operation = campaign.spec, campaign.spec.operation
        self.watch = JobWatch(
            campaign.layout, spec.launcher.poll_period_s, operation.grace_s, operation.unknown_after_s
        )
        self.places = FreePlaces(campaign, self.watch)
        self.climbing = Climbing(campaign)
        self._rungs_read: set[Place] = set()  # attempts that are over and whose rungs are all known
        #: Results are read while a slow scheduler has not answered yet.
        self.in_background = Background(self.read_files, operation.poll_s)
        self._some_completed = False

    def collect(self) -> str:
        """Read all new results and failures. Return why the campaign should stop; empty if it should go on."""
        self.read_files()
        if self.watch.due():
            self._poll_jobs()
        return self._all_fail()

    def read_files(self) -> None:
        """Read the files that attempts have published, and answer those that wait at a rung."""
        campaign = self._campaign
        for trial in campaign.record.in_flight:
            if trial.number not in campaign.held and trial.attempts and not self.is_pending(trial):
                there = refresh(campaign.layout.attempt(trial.number, trial.attempts[-1].number).dir)
                awaited = ENDING if trial.state is State.RUNNING else BEGINNING
                if len(trial.attempts) > 1 or not awaited.isdisjoint(there) or self._has_new_rung(trial, there):
                    self._read_trial(trial)
        self.climbing.answer()

    def read_rungs(self) -> None:
        """Read the rungs that jobs have reported, and answer those that wait there; results stay where they are.

        This may be done while the optimizer works on what was known before: nothing ends, and nothing is taken up.
        """
        campaign = self._campaign
        for trial in campaign.record.in_flight:
            if trial.number not in campaign.held and trial.attempts and not self.is_pending(trial):
                there = refresh(campaign.layout.attempt(trial.number, trial.attempts[-1].number).dir)
                if self._has_new_rung(trial, there):
                    self._read_rungs(trial)
        self.climbing.answer()

    def is_pending(self, trial: TrialRecord) -> bool:
        """Return whether a trial's only job waits in the queue.

        The folders of such trials are not read: looking into hundreds of empty folders loads a file server.
        """
        first = trial.attempts[0]
        return len(trial.attempts) == 1 and trial.state is State.SUBMITTED and self.watch.is_pending(first.job_name)

    def _read_trial(self, trial: TrialRecord) -> None:
        layout = self._campaign.layout
        if trial.climb is not None:
            self._read_rungs(trial)
        for attempt in trial.attempts:  # an attempt that counted as lost may have finished all the same
            if attempt.rung is not None:
                continue
            result = valid_result(layout.attempt(trial.number, attempt.number), attempt.token)
            if result is not None and not (attempt.over and _rung_of(trial, result) is not None):
                self._take_result(trial, attempt, result)
                return
        current = trial.attempt
        if current is None or current.job is None:
            return
        files = layout.attempt(trial.number, current.number)
        failure = reported_failure(files, current.token)
        if failure is not None and awaits_reason(failure):
            return  # the scheduler may say who asked it to end, once the job is over
        if failure is not None:
            self._take_failure(trial, current, failure)
        elif trial.state is State.SUBMITTED:
            self._note_claim(trial, current)

    def _note_claim(self, trial: TrialRecord, attempt: AttemptRecord) -> None:
        """Journal that an attempt runs, if its job has claimed it."""
        claim = document_of(self._campaign.layout.attempt(trial.number, attempt.number).claim, attempt.token)
        if claim is not None:
            self._campaign.append("running", trial=trial.number, attempt=attempt.number, **_whereabouts(claim))

    def _has_new_rung(self, trial: TrialRecord, there: list[str]) -> bool:
        """Return whether the names in an attempt's folder show a rung that is not journaled yet."""
        if trial.climb is None:
            return False
        known = trial.climb.scores
        return any(rung_name(rung) in there for rung in range(trial.climb.top) if rung not in known)

    def _read_rungs(self, trial: TrialRecord) -> None:
        """Journal the rungs that a trial's attempts have reported."""
        assert trial.climb is not None
        for attempt in trial.attempts:
            place = trial.number, attempt.number
            if place in self._rungs_read:
                continue
            files = self._campaign.layout.attempt(*place)
            there = refresh(files.dir)
            if attempt.job is None and not attempt.over and ENDING.isdisjoint(there):
                continue  # its job is still to be adopted
            for rung in range(trial.climb.top):
                path = rung_file(files, rung)
                if rung in trial.climb.scores or path.name not in there:
                    continue
                document = document_of(path, attempt.token) or {}
                try:
                    if faults := result_faults(document):
                        raise KeyError(*faults)
                    outcome = self._campaign.spec.objective.outcome(document)
                except KeyError as error:  # the attempt will end with the same metrics, and fail then
                    log.warning("file=%s not used: %s", path, ", ".join(map(str, error.args)))
                    continue
                if trial.state is State.SUBMITTED and not attempt.over:
                    self._note_claim(trial, attempt)
                self._note_rung(trial, attempt, rung, document, outcome)
            if attempt.over:
                self._rungs_read.add(place)

    def _note_rung(
        self, trial: TrialRecord, attempt: AttemptRecord, rung: int, document: Mapping[str, Any], outcome: Outcome
    ) -> None:
        """Journal what a trial has scored at a rung."""
        step, seconds = document.get("step"), document.get("seconds")
        if isinstance(seconds, Mapping):  # of each phase, as in a result
            seconds = sum(part for part in seconds.values() if is_finite_number(part))
        self._campaign.append(
            "rung",
            trial=trial.number,
            attempt=attempt.number,
            rung=rung,
            value=outcome.value,
            value_sem=outcome.known_sem,
            metrics=dict(outcome.metrics),
            step=step if type(step) is int else None,
            seconds=round(seconds, 3) if seconds is not None and is_finite_number(seconds) else None,
        )

    def _take_result(self, trial: TrialRecord, attempt: AttemptRecord, result: dict[str, Any]) -> None:
        rung = _rung_of(trial, result)
        try:
            outcome = self._campaign.spec.objective.outcome(result)
        except KeyError as error:
            there, names = sorted(result["metrics"]), list(map(str, error.args))
            missing, close = ", ".join(map(repr, names)), "".join(did_you_mean(name, there) for name in names)
            message = f"the result has no metric {missing}; {close}it has {some_of(there)}"
            self._take_failure(trial, attempt, Failure(ErrorKind.BAD_RESULT, message, result))
            return
        if rung is not None and rung < attempt.goal:
            message = f"the attempt ended at rung {rung}, below its goal, rung {attempt.goal}"
            self._take_failure(trial, attempt, Failure(ErrorKind.BAD_RESULT, message, result))
            return
        if attempt.job is None and attempt.after is not None:  # the driver died when it had given it to a running job
            before = self._campaign.record.member(attempt.after)[1]
            if before.job is not None:
                note_job(self._campaign, [(trial, attempt)], before.job, adopted=True)
        if rung is not None:
            self._pause(trial, attempt, rung, result, outcome)
            return
        self._campaign.append(
            "ended",
            trial=trial.number,
            attempt=attempt.number,
            state=State.COMPLETED,
            value=outcome.value,
            value_sem=outcome.known_sem,
            metrics=dict(outcome.metrics),
            **({"sems": dict(outcome.sems)} if outcome.sems else {}),
            **_whereabouts(result),
        )
        self.climbing.tidy(trial)

    def _pause(
        self, trial: TrialRecord, attempt: AttemptRecord, rung: int, result: Mapping[str, Any], outcome: Outcome
    ) -> None:
        """Journal that an attempt has ended at a rung."""
        if trial.climb is not None and rung not in trial.climb.scores:
            self._note_rung(trial, attempt, rung, result, outcome)
        energy_wh = outcome.metrics.get(ENERGY)
        self._campaign.append(
            "paused",
            trial=trial.number,
            attempt=attempt.number,
            rung=rung,
            **({} if energy_wh is None else {ENERGY: energy_wh}),
            **_whereabouts(result),
        )
        self.climbing.tidy(trial)

    def _take_failure(self, trial: TrialRecord, attempt: AttemptRecord, failure: Failure) -> None:
        campaign = self._campaign
        decision = decide(
            trial,
            failure,
            campaign.layout.attempt(trial.number, attempt.number),
            campaign.spec.operation.failures,
            campaign.spec.operation.retries,
            others_completed=campaign.record.counts[State.COMPLETED] > 0 or campaign.record.any_scored,
        )
        fields = {"trial": trial.number, "attempt": attempt.number, "error": decision.error}
        if decision.state is None or (trial.climb is not None and trial.climb.is_resting):  # at its goal: paused
            campaign.append("attempt_failed", **fields, **_whereabouts(failure.seen))
            self.climbing.tidy(trial)
            return
        campaign.append("ended", **fields, state=decision.state, **_whereabouts(failure.seen))
        self.climbing.tidy(trial)

    def _poll_jobs(self) -> None:
        """Ask the scheduler about the jobs in flight, and find out why those that ended have left no result."""
        campaign = self._campaign
        jobs = {attempt.job_name: attempt.job for _, attempt in campaign.with_job() if attempt.job is not None}
        jobs |= self.places.jobs()
        if not jobs:
            return
        answer = self.in_background(lambda: campaign.spec.launcher.poll(list(jobs.values())))
        states = {name: answer.get(name, JobStatus(JobState.UNKNOWN)) for name in jobs}
        campaign.lock.check()
        self.watch.take(states)
        for trial, attempt in campaign.with_job():
            status = states.get(attempt.job_name)
            if status is None or status.state is not JobState.ENDED:
                continue
            self._read_trial(trial)
            if trial.state.ended or trial.attempt is not attempt:
                continue
            files = campaign.layout.attempt(trial.number, attempt.number)
            failure = reported_failure(files, attempt.token)
            if failure is not None:
                failure = explained(failure, status)
            elif self.watch.is_lost(attempt.job_name) and attempt.after is not None and trial.state is State.SUBMITTED:
                log.info("trial=%d its job had ended before it began: it gets another one", trial.number)
                intend(campaign, trial)
            elif self.watch.is_lost(attempt.job_name):
                failure = silent_failure(files, attempt.job_id, status)
            if failure is not None:
                self._take_failure(trial, attempt, failure)

    def _all_fail(self) -> str:
        """Return why the campaign should stop, if all trials of this start failed in the same way; empty if not."""
        record = self._campaign.record
        limit = self._campaign.spec.operation.stop_after_failures
        if not limit or self._some_completed or record.any_scored:
            return ""
        starts = [start for start in record.starts if not start.get("tick")] or record.starts
        began = starts[-1]["seq"] if starts else 0
        ended = [trial for trial in record.rows if trial.in_budget and (trial.ended_seq or -1) > began]
        ended.sort(key=lambda trial: trial.ended_seq or 0)
        self._some_completed = any(trial.state is State.COMPLETED for trial in ended)
        return all_fail_alike(ended, limit)


def _rung_of(trial: TrialRecord, result: Mapping[str, Any]) -> int | None:
    """Return the rung below the top at which an attempt has ended; None if it has evaluated the trial to the end."""
    rung = result.get("rung")
    return rung if trial.climb is not None and type(rung) is int and 0 <= rung < trial.climb.top else None


def _whereabouts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job, its node and its times, as a claim, a result or an error file holds them."""
    names = {"job": "job_id", "node": "node", "started_at": "started_at", "ended_at": "ended_at"}
    return {ours: document[theirs] for theirs, ours in names.items() if document.get(theirs) is not None}
