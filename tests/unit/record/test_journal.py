from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hpo_cluster.errors import JournalError, LostCampaignError
from hpo_cluster.record.journal import Journal, read_events, read_journal


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal.append("created", campaign="first")
        journal.append("asked", trials=[{"trial": 0, "parameters": {"lr": 0.1 + 0.2}}])
    events = list(read_events(path))
    assert [event["seq"] for event in events] == [0, 1]
    assert events[1]["trials"][0]["parameters"]["lr"] == 0.1 + 0.2  # exact: proposals depend on it


def test_reopening_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal.append("created")
    with Journal(path) as journal:
        assert [event["event"] for event in journal.take_events()] == ["created"]
        assert journal.take_events() == []  # handed out once
        assert journal.append("started")["seq"] == 1
        assert journal.count == 2


@pytest.mark.parametrize("torn", [b"{", b'{"seq": 2, "event": "asked"}', b"\xff\xfe"])
def test_a_torn_last_line_is_cut_on_opening_and_skipped_by_readers(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal.append("created")
        journal.append("started")
    with path.open("ab") as stream:
        stream.write(torn)
    assert len(list(read_events(path))) == 2
    with Journal(path) as journal:
        assert journal.torn == len(torn)
        journal.append("asked")
    assert [event["event"] for event in read_events(path)] == ["created", "started", "asked"]


@pytest.mark.parametrize("line", ["no json", '{"seq": 7, "event": "asked"}', '["seq"]', '{"seq": 1}'])
def test_a_bad_line_is_named_and_the_file_is_left_alone(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path) as journal:
        journal.append("created")
    path.write_text(path.read_text() + line + "\n")
    before = path.read_bytes()
    with pytest.raises(JournalError, match="line 2"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append("created")
    before = path.read_bytes()
    write = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:10])

    monkeypatch.setattr(os, "write", lambda fd, data: full(fd, data[:15]) if fd == journal._fd else write(fd, data))
    with pytest.raises(OSError, match="No space"):
        journal.append("asked", trials=[])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert journal.append("asked", trials=[])["seq"] == 1


def lines(path: Path, *events: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"at": "2026-11-27T12:00:00Z", **event}) + "\n" for event in events))
    return path


def line(seq: int, event: str, epoch: int | None = None, **fields: Any) -> dict[str, Any]:
    return {"seq": seq, "event": event, **({} if epoch is None else {"epoch": epoch}), **fields}


def test_lines_of_an_older_epoch_do_not_count_once_a_newer_one_has_written(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "events.jsonl",
        line(0, "created", 1),
        line(1, "started", 1),
        line(2, "started", 2),
        line(2, "asked", 1),  # it was stopped between its last check and its write
        line(3, "asked", 2),
        line(4, "started", 3),
        line(3, "intent", 1),
    )
    contents = read_journal(path)
    assert [(event["seq"], event["epoch"]) for event in contents.events] == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3)]
    assert (contents.left_out, contents.epoch) == (2, 3)


def test_a_line_that_the_newer_driver_had_not_read_does_not_count_either(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "events.jsonl",
        line(0, "created", 1),
        line(1, "asked", 1),  # written after the second driver had read the journal
        line(1, "started", 2),
        line(2, "asked", 2, trials=["its own"]),
    )
    contents = read_journal(path)
    assert [event["event"] for event in contents.events] == ["created", "started", "asked"]
    assert contents.events[2]["trials"] == ["its own"]
    assert contents.left_out == 1


def test_a_journal_that_two_drivers_have_broken_before_epochs_were_recorded_opens(tmp_path: Path) -> None:
    """The first was stopped at number 3; the second took over, ended, and the first went on with its own numbers."""
    before = [line(0, "created"), line(1, "started", pid=1), line(2, "asked")]
    second = [line(3, "started", pid=2), line(4, "ended"), line(5, "ended"), line(6, "stopped")]
    first = [line(3, "ended"), line(4, "asked"), line(5, "intent"), line(6, "submitted"), line(7, "running")]
    path = lines(tmp_path / "events.jsonl", *before, *second, *first, line(8, "stopped"))
    contents = read_journal(path)
    assert [event["event"] for event in contents.events] == [e["event"] for e in [*before, *second]]
    assert contents.left_out == 6
    with Journal(path) as journal:
        journal.epoch = 1
        assert journal.append("started")["seq"] == 7
    assert [event["seq"] for event in read_events(path)] == list(range(8))


@pytest.mark.parametrize(
    "bad",
    [
        [line(0, "created"), line(1, "asked"), line(1, "asked")],  # a copied line: nobody had started there
        [line(0, "created", 1), line(2, "started", 2)],  # a gap
        [line(0, "created", 1), line(1, "asked", 1), line(1, "asked", 1)],
        [line(0, "created", -1)],
        [{"seq": 0, "event": 5}],
        [{"seq": True, "event": "created"}],
        [{"seq": 0, "event": "created", "epoch": "new"}],
    ],
)
def test_other_disorder_is_a_fault_that_names_the_way_out(tmp_path: Path, bad: list[dict[str, Any]]) -> None:
    path = lines(tmp_path / "events.jsonl", *bad)
    with pytest.raises(JournalError, match=rf"line {len(bad)}.*hpo-cluster repair {tmp_path}"):
        read_journal(path)


def test_whoever_finds_that_somebody_else_has_written_ends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.epoch = 1
    journal.append("created")
    with path.open("a") as stream:
        stream.write(json.dumps(line(1, "started", 2)) + "\n")
    before = path.read_bytes()
    with pytest.raises(LostCampaignError, match="written to"):
        journal.append("asked")
    path.write_bytes(before[:10])
    with pytest.raises(LostCampaignError, match="cut"):
        journal.append("asked")
    path.unlink()
    with pytest.raises(LostCampaignError, match="gone"):
        journal.append("asked")
    path.write_bytes(before)
    with pytest.raises(LostCampaignError, match="replaced"):
        journal.append("asked")
    assert path.read_bytes() == before


def test_a_late_line_of_a_driver_that_lost_does_not_end_the_one_that_holds(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.epoch = 2
    journal.append("created")
    with path.open("a") as stream:
        stream.write(json.dumps(line(7, "asked", 1)) + "\n")
    journal.append("started")
    assert [event["event"] for event in read_events(path)] == ["created", "started"]
    assert journal.left_out == 1


def test_the_guard_is_asked_before_every_line(tmp_path: Path) -> None:
    def lost() -> None:
        raise LostCampaignError("lost")

    with Journal(tmp_path / "events.jsonl", guard=lost) as journal, pytest.raises(LostCampaignError):
        journal.append("created")
    assert (tmp_path / "events.jsonl").read_bytes() == b""


def test_a_failed_append_cuts_nothing_that_another_driver_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    lost = False

    def guard() -> None:
        if lost:
            raise LostCampaignError("lost")

    journal = Journal(path, guard)
    journal.append("created")
    fsync = os.fsync

    def overtaken(fd: int) -> None:
        nonlocal lost
        lost = True
        with path.open("a") as stream:
            stream.write(json.dumps(line(1, "started", 2)) + "\n")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", overtaken)
    with pytest.raises(OSError, match="Input/output"):
        journal.append("asked")
    monkeypatch.setattr(os, "fsync", fsync)
    assert [event["event"] for event in read_events(path)] == ["created", "started"]


def test_a_symbolic_link_is_refused_before_anything_is_cut(tmp_path: Path) -> None:
    lines(tmp_path / "elsewhere.jsonl", line(0, "created"))
    with (tmp_path / "elsewhere.jsonl").open("a") as stream:
        stream.write("torn")
    before = (tmp_path / "elsewhere.jsonl").read_bytes()
    (tmp_path / "events.jsonl").symlink_to("elsewhere.jsonl")
    with pytest.raises(JournalError, match="symbolic link"):
        Journal(tmp_path / "events.jsonl")
    assert (tmp_path / "elsewhere.jsonl").read_bytes() == before


def test_nan_cannot_get_in(tmp_path: Path) -> None:
    with Journal(tmp_path / "events.jsonl") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append("ended", value=float("nan"))


@pytest.mark.parametrize("line", [b'{"seq": 1, "at"', b"1, 2", b"\xff", b""])
def test_a_line_that_is_not_json_is_named_among_others(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    event = b'{"seq": 0, "at": "2026-01-01T00:00:00Z", "event": "created"}'
    path.write_bytes(b"\n".join([event, line, event]) + b"\n")
    with pytest.raises(JournalError, match="line 2: is not JSON"):
        read_journal(path)
