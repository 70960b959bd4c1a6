from __future__ import annotations

import datetime
from typing import Any

import pytest

from hpo_cluster.record import Record
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
    log.add("ended", trial=0, attempt=0, state="completed", value=1.0, at="2027-01-31T18:15:00Z")
    assert log.record.gpu_hours(half_past) == pytest.approx(1.0)


def test_a_reopened_trial_starts_its_retries_anew() -> None:
    log = Log()
    log.ask(0)
    log.lose(0, 0, "vanished")
    log.add("intent", trial=0, attempt=1, token="t", code="c")
    log.add("ended", trial=0, attempt=1, state="failed", error={"kind": "vanished", "message": ""})
    assert (log.record.spent, log.record.trials[0].lost_kinds) == (1, ["vanished", "vanished"])
    log.add("reopened", trial=0)
    trial = log.record.trials[0]
    assert (trial.state, trial.attempt, trial.error, trial.ended_seq) == (State.PROPOSED, None, None, None)
    assert (log.record.spent, trial.lost_kinds) == (0, [])


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
