from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hpo_cluster.errors import JournalError
from hpo_cluster.journal import Journal, read_events


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


def test_nan_cannot_get_in(tmp_path: Path) -> None:
    with Journal(tmp_path / "events.jsonl") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append("ended", value=float("nan"))
