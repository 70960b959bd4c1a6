"""Who says why an attempt ended: itself first, the scheduler where all it knows is that it was asked to."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hpo_cluster.driver.failures import Failure, Failures, awaits_reason, decide, explained, rests_s
from hpo_cluster.job import EndReason, JobState, JobStatus
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.trial_record import AttemptRecord, TrialRecord
from hpo_cluster.trial import ErrorKind, Origin, State


def interrupted(seconds_ago: float) -> Failure:
    ended_at = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds_ago)
    return Failure("interrupted", "SIGTERM asked to end during train", {"ended_at": ended_at.isoformat(), "step": 7})


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (EndReason.PREEMPTED, "preempted"),
        (EndReason.WALLTIME, "walltime"),
        (EndReason.NODE, "node"),
        (EndReason.CANCELLED, "cancelled"),
        (EndReason.EXIT, "interrupted"),
        (EndReason.WELL, "interrupted"),
        (EndReason.FORGOTTEN, "interrupted"),
        (None, "interrupted"),
    ],
)
def test_the_scheduler_says_who_asked_an_attempt_to_end(reason: EndReason | None, kind: str) -> None:
    failure = explained(interrupted(1), JobStatus(JobState.ENDED, reason, "ITS WORDS"))
    assert failure.kind == kind
    assert failure.seen["step"] == 7
    assert ("ITS WORDS" in failure.message) == (kind != "interrupted")


def test_another_error_is_the_attempts_own_whatever_the_scheduler_says() -> None:
    failure = Failure("code", "KeyError", {})
    assert explained(failure, JobStatus(JobState.ENDED, EndReason.PREEMPTED)) is failure
    assert not awaits_reason(failure)


def test_the_reason_is_waited_for_but_not_for_ever() -> None:
    assert awaits_reason(interrupted(5))
    assert not awaits_reason(interrupted(300))
    assert not awaits_reason(interrupted(-3600))  # by a clock that was set back since


def test_a_clock_that_is_set_back_keeps_no_trial_waiting() -> None:
    trial = TrialRecord(0, {}, 0, Origin.EVALUATED, 0)
    trial.attempts.append(AttemptRecord(0, "t", "t", "c", error={"kind": "node"}))
    for ahead_s, rests in ((0, True), (3600, False)):
        ended_at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)
        trial.attempts[0].ended_at = ended_at.isoformat()
        assert (rests_s(trial, 60) > 0) is rests


@pytest.mark.parametrize(("turn", "state"), [(1, State.FAILED), (2, None)])
def test_a_walltime_that_other_attempts_of_the_job_have_used_is_not_too_short(
    tmp_path: Path, turn: int, state: State | None
) -> None:
    trial = TrialRecord(0, {}, 0, Origin.EVALUATED, 0)
    trial.attempts.append(AttemptRecord(0, "t", "t", "c", turn=turn))
    files = AttemptLayout(tmp_path)
    files.progress.write_text('{"phase": "load"}')
    failure = Failure(ErrorKind.WALLTIME, "its walltime was over")
    decision = decide(trial, failure, files, Failures(), 2, others_completed=True)
    assert decision.state is state
    assert ("Raise launcher.walltime_min" in decision.error["message"]) is (state is State.FAILED)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Failure("walltime", "job 3 ended (TIMEOUT)"), True),
        (Failure("interrupted", "SIGUSR2 asked to end during command"), True),
        (Failure("interrupted", "SIGTERM asked to end during command"), False),
        (Failure("vanished", "job 3 ended"), False),
    ],
)
@pytest.mark.parametrize(("retries", "ends"), [(0, True), (1, False)])
def test_a_trial_that_fails_for_want_of_time_says_which_setting(
    tmp_path: Path, failure: Failure, told: bool, retries: int, ends: bool
) -> None:
    trial = TrialRecord(0, {}, 0, Origin.EVALUATED, 0)
    trial.attempts.append(AttemptRecord(0, "t", "t", "c"))
    decision = decide(trial, failure, AttemptLayout(tmp_path), Failures(), retries, others_completed=True)
    assert decision.state is (State.FAILED if ends else None)
    assert ("Raise launcher.walltime_min" in decision.error["message"]) is (told and ends)
