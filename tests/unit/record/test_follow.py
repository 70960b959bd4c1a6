"""A journal that is followed gives the record that reading it as a whole gives, however it grew in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.journals import simulated_campaign

from hpo_cluster.errors import JournalError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.follow import FollowedJournal
from hpo_cluster.record.journal import Journal
from hpo_cluster.record.watched import JobSeen, WatchedCampaign
from hpo_cluster.space import Float, Space

SPACE = Space({"x": Float(0.0, 1.0)})
START: dict[str, Any] = {"host": "a", "pid": 1, "operation": {"budget": 4}, "settings": {}, "code": "", "versions": {}}


def seen(record: Record) -> tuple[object, ...]:
    trials = [(trial.number, trial.state, trial.value) for trial in record.rows]
    return trials, record.seq, record.spent, record.left_out, record.counts


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    return simulated_campaign(
        tmp_path / "c", "random", SPACE, lambda n, _: ("completed", float(n)), evaluations=6, workers=2
    )


def test_a_journal_that_grows_in_pieces(campaign: Path, tmp_path: Path) -> None:
    data = (campaign / "events.jsonl").read_bytes()
    path = tmp_path / "grows.jsonl"
    path.write_bytes(b"")
    followed, first = FollowedJournal(path), None
    for end in range(0, len(data) + 97, 97):
        path.open("ab").write(data[max(0, end - 97) : end])
        record = followed.look()
        assert seen(record) == seen(Record.read(path))
        first = first or record
    assert record is first
    assert record.spent == 6


def test_only_what_was_added_is_read(campaign: Path) -> None:
    path = campaign / "events.jsonl"
    followed = FollowedJournal(path)
    followed.look()
    data = path.read_bytes()
    with path.open("r+b") as stream:  # what was read is not read again
        stream.write(b"#")
    with path.open("ab") as stream:
        stream.write(
            json.dumps(
                {"seq": data.count(b"\n"), "at": "2026-11-02T10:00:00Z", "event": "started", "epoch": 2, **START}
            ).encode()
        )
        assert followed.look().seq == data.count(b"\n") - 1, "a line without its end is not read yet"
        stream.write(b"\n")
    assert followed.look().starts[-1]["host"] == "a"


def test_a_journal_that_was_replaced_is_read_again(campaign: Path) -> None:
    path = campaign / "events.jsonl"
    followed = FollowedJournal(path)
    assert followed.look().spent == 6
    shorter = path.read_bytes().splitlines(keepends=True)[:6]
    path.rename(path.with_suffix(".damaged"))
    path.write_bytes(b"".join(shorter))
    assert seen(followed.look()) == seen(Record.read(path))
    path.write_bytes(b"".join(shorter[:4]))
    assert seen(followed.look()) == seen(Record.read(path))
    path.unlink()
    with pytest.raises(JournalError, match="is gone"):
        followed.look()


def test_lines_of_a_driver_that_had_lost_the_campaign_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    row = {"trial": 0, "parameters": {"x": 0.5}, "seed": 1, "origin": "evaluated"}
    with Journal(path) as journal:
        journal.epoch = 1
        journal.append("created", schema=1, campaign="c", code="")
        journal.append("started", **START)
    followed = FollowedJournal(path)
    followed.look()
    lines = [
        {"seq": 2, "at": "2026-11-02T10:00:00Z", "epoch": 1, "event": "asked", "trials": [row], "decision": {}},
        {"seq": 2, "at": "2026-11-02T10:00:00Z", "epoch": 2, "event": "started", **START},
    ]
    for line, trials in zip(lines, (1, 0), strict=True):
        with path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        record = followed.look()
        assert len(record.trials) == trials
        assert seen(record) == seen(Record.read(path))
    assert record.left_out == 1


def report(second: int, step: Any, loss: Any = None, phase: str = "train", **more: Any) -> dict[str, Any]:
    return {"at": f"2026-11-02T10:00:{second:02d}Z", "step": step, "loss": loss, "phase": phase, **more}


def test_speed_and_curve_of_a_job() -> None:
    job = JobSeen()
    job.take({})
    assert job.steps_per_s is None
    job.take(report(0, 10, 2.0))
    job.take(report(0, 10, 2.0))  # nothing new
    assert job.steps_per_s is None
    assert job.losses == [2.0]
    job.take(report(4, 30, 1.0))
    assert job.steps_per_s == 5.0
    assert job.losses == [2.0, 1.0]
    job.take(report(5, 35, 0.5, curve=[3.0, 2.0, 1.0, 0.5]))
    assert job.losses == [3.0, 2.0, 1.0, 0.5]
    job.take(report(6, 1, phase="score"))
    assert job.steps_per_s is None, "steps of another kind"
    assert job.losses == [3.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize(
    "wrong",
    [
        report(1, "7"),
        report(1, True),
        {"at": "now", "step": 1},
        report(1, 7, "x", curve=[1, None]),
        report(1, 7, curve="x"),
    ],
)
def test_a_report_that_a_job_got_wrong_harms_nothing(wrong: dict[str, Any]) -> None:
    job = JobSeen()
    job.take(wrong)
    job.take(report(2, 9, 1.0))
    assert job.losses == [1.0]


def test_a_job_without_a_curve_of_its_own_keeps_its_memory_small() -> None:
    job = JobSeen()
    for second in range(2000):
        job.take({"at": f"2026-11-02T10:{second // 60:02d}:{second % 60:02d}Z", "step": second, "loss": float(second)})
    assert len(job.losses) <= 200
    assert job.losses[0] == 0.0
    assert job.losses == sorted(job.losses)


def test_the_trials_that_ended_last_and_their_curves(campaign: Path) -> None:
    record = Record.read(campaign / "events.jsonl")
    last = max(record.rows, key=lambda trial: trial.ended_seq or 0)
    folder = campaign / "trials" / f"t{last.number:04d}" / "a0"
    folder.mkdir(parents=True)
    points = [{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": 1.0}, {"step": 3}, 7]
    (folder / "result.json").write_text(json.dumps({"curve": points}))
    look = WatchedCampaign(campaign).look()
    assert len(look.newest) == 5
    assert look.newest[0].number == last.number
    assert look.curves[last.number] == [2.0, 1.0]
    assert look.best == sorted(look.best)
    assert (look.best[-1], len(look.best)) == (5.0, 6)
