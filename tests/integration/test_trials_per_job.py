"""Several trials one after another in one job: drivers, jobs and attempts die, and nothing is lost or done twice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import drivers
from support.waiting import wait

from hpo_cluster.driver import submit
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.record.attempt_files import log_tail
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.inbox import post
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.record.next_attempt import END, Next, read_next
from hpo_cluster.trial import State

#: Longer than any test: a job that waits so long shows that nobody told it to end.
FOR_EVER = 600.0


def options(trials_per_job: int = 3, linger_s: float = FOR_EVER, **more: Any) -> dict[str, Any]:
    local = {"trials_per_job": trials_per_job, "linger_s": linger_s}
    operation = {"workers": 1, "budget": 4, **more.pop("operation", {})}
    return {"local": local, "operation": operation, **more}


def campaign(directory: Path, **more: Any) -> Campaign:
    return Campaign(drivers.spec(directory, options(**more)))


def drive(opened: Campaign, each_cycle: Callable[[Campaign], object] = lambda _: None, seconds: float = 90) -> None:
    """Drive a campaign to its end, and fail if that takes too long."""
    end = time.monotonic() + seconds
    for _ in opened.drive():
        assert time.monotonic() < end, [(t.number, str(t.state), t.attempts) for t in opened.record.rows]
        each_cycle(opened)


def record_of(directory: Path) -> Record:
    return Record.read(directory / "events.jsonl")


def claim(directory: Path, trial: int, attempt: int = 0) -> dict[str, Any]:
    path = CampaignLayout(directory).attempt(trial, attempt).claim
    return dict(wait(lambda: read_json(path)))


def pids(directory: Path) -> set[int]:
    """The processes that evaluated anything."""
    return {int((read_json(path) or {})["pid"]) for path in directory.glob("trials/*/a*/claim")}


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def check(directory: Path, budget: int) -> Record:
    """Every trial is completed by one attempt, which was evaluated once, and every job has a name of its own."""
    record = record_of(directory)
    assert [(t.number, str(t.state), len(t.attempts)) for t in record.rows] == [
        (number, "completed", 1) for number in range(budget)
    ]
    assert sorted(drivers.evaluations(directory)) == sorted(str(trial.parameters["x"]) for trial in record.rows)
    ids: dict[str, set[str]] = {}
    for trial in record.rows:
        attempt = trial.attempts[0]
        claimed = read_json(CampaignLayout(directory).attempt(trial.number, 0).claim) or {}
        assert claimed["token"] == attempt.token
        ids.setdefault(attempt.job_name, set()).add(str(claimed["job"]))
    assert all(len(them) == 1 for them in ids.values()), ids
    assert len({job for them in ids.values() for job in them}) == len(ids)
    return record


def test_six_trials_take_two_or_three_jobs(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    made = options(operation={"budget": 6, "workers": 2}, sleep=0.3)
    assert drivers.run(directory, **made) == 0
    ended = time.monotonic()
    record = check(directory, 6)
    turns = Counter(attempt.job_name for trial in record.rows for attempt in trial.attempts)
    assert len(turns) in (2, 3)
    assert max(turns.values()) == 3
    for trial in record.rows:  # each attempt has a log of its own
        assert log_tail(CampaignLayout(directory).attempt(trial.number, 0))
        out = next((directory / "trials" / f"t{trial.number:04d}" / "a0" / "job").glob("*_log.out"))
        assert out.read_text().splitlines()[-1] == f'{{"value": {trial.parameters["x"]}{trial.parameters["k"]}}}'
    wait(lambda: not any(map(lives, pids(directory))))  # no job waits for an attempt that will not come
    assert time.monotonic() - ended < 20


#: With one worker: created, started, and for each of four trials asked, intent, submitted, running, ended; stopped.
SECOND_AND_THIRD = range(7, 17)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kill_at", SECOND_AND_THIRD)
def test_the_driver_is_killed_at_an_event_and_resumed(tmp_path: Path, kill_at: int, when: str) -> None:
    directory = tmp_path / "c"
    assert drivers.run(directory, **options(4), kill_at=kill_at, when=when) == -9
    assert len(list(read_events(directory / "events.jsonl"))) == kill_at + (when == "after")
    assert drivers.run(directory, **options(4)) == 0
    record = check(directory, 4)
    assert len({trial.attempts[0].job_name for trial in record.rows}) == 1  # the next driver found the job that waited


def test_the_driver_is_killed_when_it_has_named_the_next_attempt(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    assert drivers.run(directory, **options(4), kill_when_named=2) == -9
    last = list(read_events(directory / "events.jsonl"))[-1]
    assert (last["event"], last["trial"], last["after"], last["turn"]) == ("intent", 2, [1, 0], 3)
    assert drivers.run(directory, **options(4)) == 0
    record = check(directory, 4)
    assert len({trial.attempts[0].job_name for trial in record.rows}) == 1


def test_the_driver_dies_after_the_intent_and_the_job_gives_up(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    quick = options(4, linger_s=3.0)
    assert drivers.run(directory, **quick, kill_at=8, when="after") == -9
    files = CampaignLayout(directory).attempt(0, 0)
    assert wait(lambda: read_next(files)) == END
    assert drivers.run(directory, **quick) == 0
    record = check(directory, 4)
    assert record.trials[1].attempts[0].after is None
    assert record.trials[1].attempts[0].job_name != record.trials[0].attempts[0].job_name
    intents = [e for e in read_events(directory / "events.jsonl") if e["event"] == "intent" and e["trial"] == 1]
    assert [intent["attempt"] for intent in intents] == [0, 0]
    assert len({intent["token"] for intent in intents}) == 2


def end_job(directory: Path, trial: int) -> None:
    """Kill the job of a trial's first attempt, its controller first."""
    job = record_of(directory).trials[trial].attempts[0].job
    assert job is not None
    for pid in (int(job.job_id), int(claim(directory, trial)["pid"])):
        os.kill(pid, signal.SIGKILL)
        wait(lambda pid=pid: not lives(pid))


def test_a_job_dies_just_when_it_is_given_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "c"
    publish, killed = submit.publish_next, list[int]()

    def deadly(*arguments: Any) -> bool:
        if not killed:
            killed.append(1)
            end_job(directory, 0)
        return publish(*arguments)

    monkeypatch.setattr(submit, "publish_next", deadly)
    with campaign(directory, operation={"budget": 2, "retries": 0}) as opened:
        drive(opened)
    record = check(directory, 2)  # it is not blamed: no retry was allowed
    assert record.trials[1].attempts[0].error is None
    assert record.trials[1].attempts[0].turn == 1


def test_a_job_gives_up_just_before_it_is_given_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "c"
    publish = submit.publish_next

    def too_late(files: AttemptLayout, decision: Next) -> bool:
        assert publish(files, END)
        return publish(files, decision)

    monkeypatch.setattr(submit, "publish_next", too_late)
    with campaign(directory, operation={"budget": 3, "retries": 0}) as opened:
        drive(opened)
    check(directory, 3)
    assert len(pids(directory)) == 3


def interrupted_while_a_job_runs(directory: Path, **more: Any) -> None:
    """Drive until the first trial runs, leave as Ctrl-C does, and wait until its job has published its result."""

    def leave(opened: Campaign) -> None:
        if opened.record.trials[0].state is State.RUNNING:
            opened.stop("interrupted")

    with campaign(directory, sleep=1.5, **more) as opened:
        drive(opened, leave)
    assert record_of(directory).trials[0].state is State.RUNNING
    wait(CampaignLayout(directory).attempt(0, 0).result.exists)


def test_a_job_dies_while_it_waits(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    interrupted_while_a_job_runs(directory)
    end_job(directory, 0)
    with campaign(directory, operation={"budget": 2, "retries": 0}) as opened:
        drive(opened)
    record = check(directory, 2)
    assert record.trials[1].attempts[0].job_name != record.trials[0].attempts[0].job_name


def test_a_resumed_campaign_uses_the_job_that_waits(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    interrupted_while_a_job_runs(directory)
    with campaign(directory, operation={"budget": 3}) as opened:
        drive(opened)
    check(directory, 3)
    assert len(pids(directory)) == 1


def test_other_settings_take_another_job(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    interrupted_while_a_job_runs(directory)
    with campaign(directory, trials_per_job=2, operation={"budget": 2}) as opened:
        drive(opened)
    check(directory, 2)
    assert len(pids(directory)) == 2
    wait(lambda: not any(map(lives, pids(directory))))


def test_a_job_ends_by_itself_when_nobody_comes(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    interrupted_while_a_job_runs(directory, linger_s=1.0)
    pid = claim(directory, 0)["pid"]
    wait(lambda: not lives(pid), 15)
    assert read_next(CampaignLayout(directory).attempt(0, 0)) == END


def test_a_signal_ends_a_job_that_waits_with_status_0(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    interrupted_while_a_job_runs(directory)
    pid = claim(directory, 0)["pid"]
    os.kill(pid, signal.SIGTERM)
    wait(lambda: not lives(pid), 15)
    assert read_next(CampaignLayout(directory).attempt(0, 0)) == END
    assert "failed" not in log_tail(CampaignLayout(directory).attempt(0, 0))


def test_a_job_dies_with_its_second_attempt(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    killed = list[int]()

    def kill(opened: Campaign) -> None:
        second = opened.record.trials.get(1)
        if second is not None and second.state is State.RUNNING and not killed:
            killed.append(int(claim(directory, 1)["pid"]))
            os.kill(killed[0], signal.SIGKILL)

    with campaign(directory, sleep=1.0, operation={"budget": 3}) as opened:
        drive(opened, kill)
    record = record_of(directory)
    first, second, third = record.rows
    assert [str(trial.state) for trial in record.rows] == ["completed"] * 3
    assert killed == [claim(directory, 0)["pid"]]
    assert [attempt.error and attempt.error["kind"] for attempt in second.attempts] == ["vanished", None]
    assert [len(first.attempts), len(third.attempts)] == [1, 1]
    assert second.attempts[1].job_name != second.attempts[0].job_name


#: What the second trial does, and no other.
FAILS = '0.1; case "$HPO_CLUSTER_ATTEMPT_DIR" in */t0001/*) echo it is broken >&2; exit 7;; esac'


def test_an_attempt_fails_in_the_middle(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    with campaign(directory, sleep=FAILS, operation={"budget": 3, "failures": {"code": "failed"}}) as opened:
        drive(opened)
    record = record_of(directory)
    assert [str(trial.state) for trial in record.rows] == ["completed", "failed", "completed"]
    assert len({attempt.job_name for trial in record.rows for attempt in trial.attempts}) == 1
    assert len(pids(directory)) == 1  # the program began again in the same job
    tails = [log_tail(CampaignLayout(directory).attempt(number, 0)) for number in range(3)]
    assert ["it is broken" in tail for tail in tails] == [False, True, False]
    claims = [claim(directory, number)["started_at"] for number in range(3)]
    assert claims == sorted(claims)


def test_a_stopped_campaign_leaves_no_job_that_waits(tmp_path: Path) -> None:
    directory = tmp_path / "c"

    def stop(opened: Campaign) -> None:
        if opened.record.trials[0].state is State.RUNNING:
            post(opened.opened.layout.inbox_dir, "stop")

    with campaign(directory, sleep=2) as opened:
        drive(opened, stop)
    pid = claim(directory, 0)["pid"]
    assert read_next(CampaignLayout(directory).attempt(0, 0)) == END  # told before it has ended
    wait(CampaignLayout(directory).attempt(0, 0).result.exists)
    wait(lambda: not lives(pid), 15)


def test_a_cancelled_campaign_leaves_no_job(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    with campaign(directory, sleep=1, operation={"workers": 2}) as opened:
        drive(opened, lambda c: c.stop("cancelled") if c.record.spent else None)
        opened.cancel_jobs()
    wait(lambda: not any(map(lives, pids(directory))), 15)


def test_places_side_by_side_are_filled_one_by_one(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    made = options(2, operation={"workers": 2, "budget": 4}, trials_per_node=2, sleep=0.3)
    assert drivers.run(directory, **made) == 0
    record = record_of(directory)
    assert [str(trial.state) for trial in record.rows] == ["completed"] * 4
    assert len(drivers.evaluations(directory)) == 4
    assert len({trial.attempts[0].job_name for trial in record.rows}) == 1
    assert len(pids(directory)) == 2  # two processes with two attempts each
    assert Counter(trial.attempts[0].turn for trial in record.rows) == {1: 2, 2: 2}
    wait(lambda: not any(map(lives, pids(directory))), 15)


def test_a_job_without_time_for_another_evaluation_ends(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    with campaign(directory, sleep=1, operation={"budget": 2}) as opened:
        opened.record.longest_evaluation_s = 1e6  # as if an evaluation had taken so long
        drive(opened)
    check(directory, 2)
    assert len(pids(directory)) == 2


def test_gpu_hours_count_the_wait_between_two_attempts(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    interrupted_while_a_job_runs(directory)
    time.sleep(1)
    with campaign(directory, operation={"budget": 2}) as opened:
        drive(opened)
    events = list(read_events(directory / "events.jsonl"))
    for event in events:
        event.update({"gpus": 2} if event["event"] == "submitted" else {})
    record = Record(events)
    first, second = (record.trials[number].attempts[0] for number in (0, 1))
    assert first.ended_at is not None
    assert second.occupied_since == first.ended_at
    assert second.started_at is not None
    assert second.started_at > first.ended_at
