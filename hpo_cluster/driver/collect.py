"""Collection of results: the files that jobs have published, and the reason why other jobs ended without any."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hpo_cluster.driver.background import Background
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
from hpo_cluster.record.attempt_files import document_of, valid_result
from hpo_cluster.record.campaign_state import AttemptRecord, TrialRecord
from hpo_cluster.record.files import refresh
from hpo_cluster.text import did_you_mean
from hpo_cluster.trial import ErrorKind, State

log = logging.getLogger(__name__)

#: Files which show that an attempt has ended, and files which show that it has begun or ended.
ENDING = frozenset({"result.json", "error.json"})
BEGINNING = ENDING | {"claim"}


class Collector:
    """Reader of the files of the trials in flight, which also asks the scheduler about their jobs.

    Args:
        campaign: the campaign whose trials are collected.
    """

    def __init__(self, campaign: OpenCampaign) -> None:
        self._campaign = campaign
        spec, operation = campaign.spec, campaign.spec.operation
        self.watch = JobWatch(
            campaign.layout, spec.launcher.poll_period_s, operation.grace_s, operation.unknown_after_s
        )
        self.places = FreePlaces(campaign, self.watch)
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
        """Read the files that attempts have published."""
        campaign = self._campaign
        for trial in campaign.record.in_flight:
            if trial.number not in campaign.held and trial.attempts and not self.is_pending(trial):
                there = refresh(campaign.layout.attempt(trial.number, trial.attempts[-1].number).dir)
                awaited = ENDING if trial.state is State.RUNNING else BEGINNING
                if len(trial.attempts) > 1 or not awaited.isdisjoint(there):
                    self._read_trial(trial)

    def is_pending(self, trial: TrialRecord) -> bool:
        """Return whether a trial's only job waits in the queue.

        The folders of such trials are not read: looking into hundreds of empty folders loads a file server.
        """
        first = trial.attempts[0]
        return len(trial.attempts) == 1 and trial.state is State.SUBMITTED and self.watch.is_pending(first.job_name)

    def _read_trial(self, trial: TrialRecord) -> None:
        layout = self._campaign.layout
        for attempt in trial.attempts:  # an attempt that counted as lost may have finished all the same
            result = valid_result(layout.attempt(trial.number, attempt.number), attempt.token)
            if result is not None:
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
            claim = document_of(files.claim, current.token)
            if claim is not None:
                self._campaign.append("running", trial=trial.number, attempt=current.number, **_whereabouts(claim))

    def _take_result(self, trial: TrialRecord, attempt: AttemptRecord, result: dict[str, Any]) -> None:
        try:
            outcome = self._campaign.spec.objective.outcome(result)
        except KeyError as error:
            there, names = sorted(result["metrics"]), list(map(str, error.args))
            missing, close = ", ".join(map(repr, names)), "".join(did_you_mean(name, there) for name in names)
            message = f"the result has no metric {missing}; {close}it has {', '.join(there)}"
            self._take_failure(trial, attempt, Failure(ErrorKind.BAD_RESULT, message, result))
            return
        if attempt.job is None and attempt.after is not None:  # the driver died when it had given it to a running job
            before = self._campaign.record.member(attempt.after)[1]
            if before.job is not None:
                note_job(self._campaign, [(trial, attempt)], before.job, adopted=True)
        self._campaign.append(
            "ended",
            trial=trial.number,
            attempt=attempt.number,
            state=State.COMPLETED,
            value=outcome.value,
            value_sem=None if outcome.value_sem != outcome.value_sem else outcome.value_sem,
            metrics=dict(outcome.metrics),
            **({"sems": dict(outcome.sems)} if outcome.sems else {}),
            ended_at=result.get("ended_at"),
            **_whereabouts(result),
        )

    def _take_failure(self, trial: TrialRecord, attempt: AttemptRecord, failure: Failure) -> None:
        campaign = self._campaign
        decision = decide(
            trial,
            failure,
            campaign.layout.attempt(trial.number, attempt.number),
            campaign.spec.operation.failures,
            campaign.spec.operation.retries,
            others_completed=campaign.record.counts[State.COMPLETED] > 0,
        )
        fields = {"trial": trial.number, "attempt": attempt.number, "error": decision.error}
        if decision.state is None:
            campaign.append("attempt_failed", **fields, **_whereabouts(failure.seen))
            return
        ended_at = {"ended_at": failure.seen["ended_at"]} if "ended_at" in failure.seen else {}
        campaign.append("ended", **fields, state=decision.state, **ended_at, **_whereabouts(failure.seen))

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
        if not limit or self._some_completed:
            return ""
        starts = [start for start in record.starts if not start.get("tick")] or record.starts
        began = starts[-1]["seq"] if starts else 0
        ended = [trial for trial in record.rows if trial.in_budget and (trial.ended_seq or -1) > began]
        ended.sort(key=lambda trial: trial.ended_seq or 0)
        self._some_completed = any(trial.state is State.COMPLETED for trial in ended)
        return all_fail_alike(ended, limit)


def _whereabouts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job, its node and its start time, as a claim, a result or an error file holds them."""
    names = {"job": "job_id", "node": "node", "started_at": "started_at"}
    return {ours: document[theirs] for theirs, ours in names.items() if document.get(theirs) is not None}
