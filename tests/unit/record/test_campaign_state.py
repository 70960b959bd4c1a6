from __future__ import annotations

import datetime
import random
from collections import Counter
from typing import Any

import pytest
from pandas.testing import assert_frame_equal

from hpo_cluster.driver.failures import fruitless_kinds
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import HistoryTable, to_frame
from hpo_cluster.trial import Origin, State

AT = "2027-01-31T18:00:00Z"


class Log:
    """A journal in memory."""

    def __init__(self) -> None:
        self.record = Record()
        self.seq = 0

    def add(self, event: str, *, at: str = AT, **fields: Any) -> None:
        self.record.apply({"seq": self.seq, "at": at, "event": event, **fields})
        self.seq += 1

    def ask(self, *trials: int, origin: Origin = Origin.EVALUATED) -> None:
        rows = [{"trial": n, "parameters": {"x": 0.5}, "seed": n, "origin": origin} for n in trials]
        self.add("asked", trials=rows, decision={})

    def lose(self, trial: int, attempt: int, kind: str, node: str | None = None, **error: Any) -> None:
        self.add("intent", trial=trial, attempt=attempt, token=f"{trial}-{attempt}", code="c")
        error = {"kind": kind, "message": "", **error}
        self.add("attempt_failed", trial=trial, attempt=attempt, error=error, node=node)


def test_nodes_that_lose_attempts_are_named() -> None:
    log = Log()
    log.ask(0, 1, 2)
    log.lose(0, 0, "node", "n1")
    log.lose(1, 0, "disk", "n1")
    log.lose(2, 0, "node", "n2")
    log.lose(2, 1, "preempted", "n2")
    log.lose(2, 2, "code", "n3")
    log.lose(2, 3, "node")
    assert log.record.bad_nodes(2) == ("n1",)
    assert log.record.bad_nodes(1) == ("n1", "n2")
    assert log.record.bad_nodes(0) == ()


def test_gpu_hours_are_those_of_jobs_that_began() -> None:
    log = Log()
    log.ask(0, 1)
    job = {"backend": "slurm", "job_id": "1", "token": "0-0", "submitted_at": AT, "host": "h"}
    for trial in (0, 1):
        log.add("intent", trial=trial, attempt=0, token="t", code="c")
        log.add("submitted", trial=trial, attempt=0, job=job, gpus=4)
    log.add("running", trial=0, attempt=0, started_at=AT)
    half_past = datetime.datetime(2027, 1, 31, 18, 30, tzinfo=datetime.UTC)
    assert log.record.gpu_hours(half_past) == pytest.approx(2.0)
    assert log.record.gpu_hours(half_past, {0: "2027-01-31T18:06:00Z"}) == pytest.approx(0.4)  # no driver noted it
    assert log.record.gpu_hours(half_past, {0: "2027-01-31T19:00:00Z"}) == pytest.approx(2.0)
    log.add("ended", trial=0, attempt=0, state="completed", value=1.0, at="2027-01-31T18:15:00Z")
    assert log.record.gpu_hours(half_past) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["ended", "attempt_failed"])
@pytest.mark.parametrize(
    ("started", "said", "minutes"),
    [
        ("18:00", "18:10", 10),  # the driver was away until 18:30
        ("18:00", None, 30),  # it left no word, or its driver was of an earlier version
        ("18:00", "18:50", 30),  # the node's clock is ahead
        ("18:20", "18:10", 0),  # two nodes' clocks, or a program that makes times up
        ("18:40", "18:50", 0),
    ],
)
def test_a_job_dates_its_end_itself(kind: str, started: str, said: str | None, minutes: int) -> None:
    log = Log()
    log.ask(0)
    log.add("intent", trial=0, attempt=0, token="t", code="c")
    log.add("submitted", trial=0, attempt=0, job=JOB, gpus=2)
    log.add("running", trial=0, attempt=0, started_at=f"2027-01-31T{started}:00Z")
    end = {} if said is None else {"ended_at": f"2027-01-31T{said}:00+00:00"}
    what = {"state": "completed", "value": 1.0} if kind == "ended" else {"error": {"kind": "node", "message": ""}}
    log.add(kind, trial=0, attempt=0, at="2027-01-31T18:30:00Z", **what, **end)
    trial, later = log.record.trials[0], datetime.datetime(2027, 2, 1, tzinfo=datetime.UTC)
    assert trial.attempts[0].took_s == 60 * minutes
    assert log.record.gpu_hours(later) == pytest.approx(2 * minutes / 60)
    if kind == "ended":
        assert (trial.ended_at, log.record.mean_evaluation_s) == (trial.attempts[0].ended_at, 60 * minutes)


def test_a_reopened_trial_starts_its_retries_anew() -> None:
    log = Log()
    log.ask(0)
    log.lose(0, 0, "vanished")
    log.add("intent", trial=0, attempt=1, token="t", code="c")
    log.add("ended", trial=0, attempt=1, state="failed", error={"kind": "vanished", "message": ""})
    assert (log.record.spent, fruitless_kinds(log.record.trials[0])) == (1, ["vanished", "vanished"])
    log.add("reopened", trial=0)
    trial = log.record.trials[0]
    assert (trial.state, trial.attempt, trial.error, trial.ended_seq) == (State.PROPOSED, None, None, None)
    assert (log.record.spent, fruitless_kinds(trial)) == (0, [])


def test_only_evaluated_trials_spend_the_budget() -> None:
    log = Log()
    log.ask(-1, origin=Origin.BASELINE)
    log.ask(0, 1, 2)
    for trial, state in ((-1, "completed"), (0, "cancelled"), (1, "diverged"), (2, "completed")):
        log.add("ended", trial=trial, attempt=None, state=state, value=0.5 if state == "completed" else None)
    assert log.record.spent == 2
    best = log.record.best(maximize=True)
    assert best is not None
    assert best.number == 2


def wander(log: Log, rng: random.Random) -> None:
    """One more event that may follow."""
    record, chance = log.record, rng.random()
    at = f"2027-01-31T18:{log.seq // 60 % 60:02d}:{log.seq % 60:02d}Z"
    if chance < 0.3 or not record.trials:
        log.ask(record.next_trial, origin=rng.choice([Origin.EVALUATED, Origin.EVALUATED, Origin.INHERITED]))
        return
    if chance < 0.32 and -1 not in record.trials:
        log.ask(-1, origin=Origin.BASELINE)
        return
    over = [trial for trial in record.rows if trial.error and trial.state.ended]
    if chance < 0.37 and over:
        log.add("reopened", trial=rng.choice(over).number)
    if not record.in_flight:
        return
    trial = rng.choice(record.in_flight)
    number, attempt = trial.number, len(trial.attempts) - 1
    if trial.attempt is None:
        log.add("intent", trial=number, attempt=attempt + 1, token="t", code="c")
    elif trial.state is State.PROPOSED:
        job = {"backend": "slurm", "job_id": "1", "token": "t", "submitted_at": at, "host": "h"}
        log.add("submitted", trial=number, attempt=attempt, job=job, gpus=rng.choice([0, 2]))
    elif trial.state is State.SUBMITTED and chance < 0.8:
        log.add("running", trial=number, attempt=attempt, started_at=at, node=rng.choice("ab"))
    elif chance < 0.8:
        log.add("ended", trial=number, attempt=attempt, state="completed", value=rng.randint(0, 9), at=at, metrics={})
    elif chance < 0.9:
        error = {"kind": rng.choice(["node", "disk", "code"]), "message": ""}
        log.add("attempt_failed", trial=number, attempt=attempt, error=error, at=at)
    else:
        error = {"kind": "code", "message": ""}
        log.add("ended", trial=number, attempt=attempt, state=rng.choice(["failed", "cancelled"]), error=error, at=at)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_up_to_date_is_what_a_look_at_all_trials_finds(seed: int) -> None:
    log, rng = Log(), random.Random(seed)
    table = HistoryTable(log.record, ["x"], maximize=True)
    now = datetime.datetime(2027, 1, 31, 20, tzinfo=datetime.UTC)
    for _ in range(250):
        wander(log, rng)
        record, rows = log.record, list(log.record.trials.values())
        assert [trial.number for trial in record.rows] == sorted(record.trials)
        assert record.next_trial == max(record.trials, default=-1) + 1
        assert record.spent == sum(trial.in_budget and trial.state.counts for trial in rows)
        assert +record.counts == Counter(trial.state for trial in rows if trial.number != -1)
        in_flight = [trial.number for trial in rows if not trial.state.ended]
        assert [trial.number for trial in record.in_flight] == sorted(in_flight)
        assert [t.number for t in record.with_error] == sorted(t.number for t in rows if t.error)
        valued = [t for t in rows if t.in_budget and t.state is State.COMPLETED and t.value is not None]
        for sign, maximize in ((1, True), (-1, False)):
            best = max(valued, key=lambda t: (sign * (t.value or 0), -t.number), default=None)
            assert record.best(maximize=maximize) is best
        attempts = [attempt for trial in rows for attempt in trial.attempts]
        spans = [(a.gpus, a.started_at, a.ended_at) for a in attempts if a.gpus and a.started_at]
        hours = sum(
            gpus * ((moment(end) if end else now) - moment(start)).total_seconds() for gpus, start, end in spans
        )
        assert record.gpu_hours(now) == pytest.approx(hours / 3600)
        lost = Counter(a.node for a in attempts if a.error and a.node and a.error["kind"] in ("node", "disk"))
        assert record.bad_nodes(2) == tuple(sorted(node for node, count in lost.items() if count >= 2))
        times = [(t.started_at, t.ended_at) for t in valued if t.started_at and t.ended_at]
        mean = sum((moment(b) - moment(a)).total_seconds() for a, b in times) / len(times) if times else None
        assert record.mean_evaluation_s == (None if mean is None else pytest.approx(mean))
        assert_frame_equal(table.frame(), to_frame(record, ["x"], maximize=True))
    assert len(log.record.trials) > 30


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def test_a_history_that_goes_on_follows_a_baseline_and_new_metrics() -> None:
    log = Log()
    log.ask(0, 1)
    table = HistoryTable(log.record, ["x"], maximize=False)
    first = table.frame()
    assert "metric.loss" not in first
    log.add("intent", trial=1, attempt=0, token="t", code="c")
    log.add("ended", trial=1, attempt=0, state="completed", value=2.0, metrics={"loss": 2.0})
    log.ask(-1, origin=Origin.BASELINE)
    last = table.frame()
    assert list(last["trial"]) == [-1, 0, 1]
    assert last["metric.loss"].tolist()[2] == 2.0
    assert last["target"].tolist()[2] == -2.0
    assert list(first["trial"]) == [0, 1]  # frames that were handed out stay as they are
    assert first["value"].isna().all()


def test_energy_is_that_of_ended_attempts_without_imported_trials() -> None:
    log = Log()
    log.ask(0, 1)
    log.lose(0, 0, "walltime", energy_wh=250.0)
    assert log.record.energy_kwh == pytest.approx(0.25)
    log.add("intent", trial=0, attempt=1, token="0-1", code="c")
    log.add("ended", trial=0, attempt=1, state="completed", value=1.0, metrics={"energy_wh": 500.0})
    log.lose(1, 0, "code")  # nothing counted it
    log.add("intent", trial=1, attempt=1, token="1-1", code="c")
    error = {"kind": "diverged", "message": "", "energy_wh": 50.0}
    log.add("ended", trial=1, attempt=1, state="diverged", error=error)
    assert log.record.energy_kwh == pytest.approx(0.8)
    row = {"trial": 2, "parameters": {"x": 0.5}, "seed": 1, "origin": Origin.IMPORTED, "metrics": {"energy_wh": 9e9}}
    log.add("asked", trials=[row], decision={})
    assert log.record.energy_kwh == pytest.approx(0.8)


JOB = {"backend": "slurm", "job_id": "1", "token": "0-0", "submitted_at": AT, "host": "h"}


def started(log: Log, trials_per_job: int = 3) -> None:
    launcher = {"trials_per_job": trials_per_job, "linger_s": 60.0}
    log.add("started", operation={}, settings={"launcher": launcher}, code="c")


def test_jobs_that_may_evaluate_another_attempt_are_known() -> None:
    log = Log()
    started(log)
    log.ask(0, 1, 2)
    for trial in (0, 1):
        log.add("intent", trial=trial, attempt=0, token=f"{trial}-0", code="c")
        log.add("submitted", trial=trial, attempt=0, job={**JOB, "token": f"{trial}-0"})
        log.add("ended", trial=trial, attempt=0, state="completed", value=1.0, started_at=AT)
    assert [trial.number for trial, _ in log.record.left()] == [1, 0]  # the last to end first
    log.add("intent", trial=2, attempt=0, token="2-0", job_name="0-0", code="c", after=[0, 0], turn=2)
    assert [trial.number for trial, _ in log.record.left()] == [1]
    attempt = log.record.trials[2].attempts[0]
    assert (attempt.after, attempt.turn, attempt.job_name, attempt.idle_since) == ((0, 0), 2, "0-0", AT)


@pytest.mark.parametrize(("trials_per_job", "turn"), [(1, 1), (3, 3)])
def test_a_job_at_its_last_turn_gets_no_other_attempt(trials_per_job: int, turn: int) -> None:
    log = Log()
    started(log, trials_per_job)
    log.ask(0)
    log.add("intent", trial=0, attempt=0, token="0-0", code="c", turn=turn)
    log.add("submitted", trial=0, attempt=0, job=JOB)
    log.add("ended", trial=0, attempt=0, state="completed", value=1.0)
    assert not [*log.record.left()]


def test_a_second_intent_replaces_an_attempt_that_was_never_begun() -> None:
    log = Log()
    started(log)
    log.ask(0, 1)
    log.add("intent", trial=0, attempt=0, token="0-0", code="c")
    log.add("submitted", trial=0, attempt=0, job=JOB)
    log.add("ended", trial=0, attempt=0, state="completed", value=1.0)
    log.add("intent", trial=1, attempt=0, token="1-0", job_name="0-0", code="c", after=[0, 0], turn=2)
    log.add("submitted", trial=1, attempt=0, job=JOB)
    log.add("intent", trial=1, attempt=0, token="1-0-b", job_name="1-0-b", code="c")
    trial = log.record.trials[1]
    assert [(attempt.token, attempt.job, attempt.after, attempt.turn) for attempt in trial.attempts] == [
        ("1-0-b", None, None, 1)
    ]
    assert trial.state is State.PROPOSED


def test_gpu_hours_of_a_job_with_several_attempts_have_no_gaps() -> None:
    log = Log()
    started(log)
    log.ask(0, 1)
    for trial, hour, more in ((0, 18, {}), (1, 20, {"after": [0, 0], "turn": 2})):
        log.add("intent", trial=trial, attempt=0, token=f"{trial}-0", job_name="0-0", code="c", **more)
        log.add("submitted", trial=trial, attempt=0, job=JOB, gpus=2)
        log.add("running", trial=trial, attempt=0, started_at=f"2027-01-31T{hour}:30:00Z")
        log.add("ended", trial=trial, attempt=0, state="completed", value=1.0, at=f"2027-01-31T{hour + 1}:00:00Z")
    now = datetime.datetime(2027, 2, 1, tzinfo=datetime.UTC)
    assert log.record.gpu_hours(now) == 2 * 2.5  # from 18:30 to 21:00, with the wait from 19:00 to 20:30
    assert log.record.longest_evaluation_s == 1800


def test_the_rest_of_a_finished_campaign_does_not_count_as_run_time() -> None:
    log = Log()
    log.add("started", at="2027-01-31T18:00:00Z")
    log.add("stopped", at="2027-01-31T18:00:40Z", reason="stopped")
    log.add("started", at="2027-01-31T18:01:00Z")
    log.add("stopped", at="2027-01-31T18:02:00Z", reason="finished")
    log.add("asked", at="2027-01-31T18:12:00Z", trials=[], decision={})  # the confirmation of the best
    log.add("started", at="2027-01-31T18:12:01Z")
    log.add("stopped", at="2027-01-31T18:13:00Z", reason="finished")
    log.add("started", at="2027-01-31T18:14:00Z")  # a larger budget
    assert log.record.rested_s == 10 * 60 + 1 + 60
