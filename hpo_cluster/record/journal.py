"""The append-only journal: one JSON object a line, each synced to disk before anything is done about it.

Every line has ``seq`` (0, 1, 2…), ``at`` (UTC), ``epoch`` (the number of its driver's start, see
`hpo_cluster.record.lock`) and ``event``. Only the holder of the campaign's lock appends. Readers need no lock: a last
line without its newline is being written, or was when the writer died.

A driver that was stopped while another one took over may write one line after it wakes, between its last check and the
write itself. Readers leave such lines out: a newer epoch says from which number on it goes on, and what older epochs
say from there on does not count.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from hpo_cluster.errors import JournalError, LostCampaignError
from hpo_cluster.record.clock import utc_now

log = logging.getLogger(__name__)

Event: TypeAlias = dict[str, Any]

_WAY_OUT = "Rebuild it from what is whole and from the jobs' files:"


@dataclass
class Contents:
    """The events of a journal file, and what its reader found besides them.

    Args:
        events: in order, numbered without a gap.
        left_out: number of lines by drivers that had lost the campaign when they wrote them.
        epoch: of the newest driver that wrote; 0 before epochs were recorded.
    """

    events: list[Event] = field(default_factory=list)
    left_out: int = 0
    epoch: int = 0
    _stale_seq: int | None = None  # the next number of a stale driver from before epochs were recorded

    def take(self, event: Event) -> bool:
        """Add the event of the next line, or leave it out. Returns False if it fits nowhere."""
        seq, epoch, count = int(event["seq"]), int(event.get("epoch", 0)), len(self.events)
        if epoch < self.epoch:
            self.left_out += 1
        elif epoch > self.epoch and seq <= count:
            self.left_out += count - seq  # written after the newer driver had read the file: it never knew of them
            del self.events[seq:]
            self.epoch = epoch
            self.events.append(event)
        elif epoch == 0 and self._is_stale(event):
            self.left_out += 1
            self._stale_seq = seq + 1
        elif epoch == self.epoch and seq == count:
            self.events.append(event)
        else:
            return False
        return True

    def _is_stale(self, event: Event) -> bool:
        """Return whether a line without an epoch comes from a driver that another one had taken over from.

        Such a driver goes on with its own numbers, from the one under which the other driver said ``started``. When
        the other one has stopped, the next line of its own kind can only be ``started``.
        """
        seq, count = int(event["seq"]), len(self.events)
        if seq == count:
            return seq == self._stale_seq and bool(self.events[-1]["event"] == "stopped")
        return seq == self._stale_seq or (seq < count and bool(self.events[seq]["event"] == "started"))


def read_journal(path: Path) -> Contents:
    """Read a journal file; a torn last line is left out, and an absent file is an empty one.

    Raises:
        JournalError: on a line that is not an event, or out of sequence.
    """
    contents = Contents()
    way_out = f"{_WAY_OUT}  hpo-cluster repair {path.parent}"
    for number, line in enumerate(whole_lines(path)):
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise JournalError(f"{path}, line {number + 1}: is not JSON ({error}). {way_out}") from error
        if not is_event(event) or not contents.take(event):
            expected = len(contents.events)
            raise JournalError(
                f"{path}, line {number + 1}: is not event number {expected}; was the file edited? {way_out}"
            )
    return contents


def read_events(path: Path) -> list[Event]:
    """Return the events of a journal file in order, as `read_journal` does."""
    return read_journal(path).events


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a journal file that end with a newline, none if there is no file."""
    data = read_data(path)
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]


def read_data(path: Path) -> bytes:
    """Return all that is in a journal file, nothing if there is no file.

    Raises:
        JournalError: if something else lies there: a folder, a pipe, a device, a link that leads nowhere.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe that nobody writes to would hold us up
    except FileNotFoundError:
        if not path.is_symlink():
            return b""
        fd = None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        fd = None
    if fd is None or not stat.S_ISREG(os.fstat(fd).st_mode):
        if fd is not None:
            os.close(fd)
        raise JournalError(f"{path}: is not a file, and a journal is one. {_WAY_OUT}  hpo-cluster repair {path.parent}")
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def is_event(data: Any) -> bool:
    """Return whether parsed JSON has what every event has."""
    if not isinstance(data, dict) or not isinstance(data.get("event"), str):
        return False
    numbers = (data.get("seq"), data.get("epoch", 0))
    return all(type(number) is int and number >= 0 for number in numbers)


class Journal:
    """The writer's end. Opening it cuts a torn last line, and says so.

    Args:
        path: of the file.
        guard: raises if this process may no longer write; called before each append.

    Attributes:
        count: number of events, those on disk at opening included.
        epoch: what lines are marked with; at opening that of the newest line.
        left_out: lines that do not count, see `Contents`.
        torn: bytes that were cut at opening.
    """

    def __init__(self, path: Path, guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self._guard = guard
        new = not path.exists()
        data = b"" if path.is_symlink() else read_data(path)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise JournalError(
                f"{path}: is a symbolic link, and a journal is appended to and cut in place. Nothing was changed. Put "
                f"a copy of the file in its place:  hpo-cluster repair {path.parent}"
            ) from error
        if new:
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        self._size = data.rfind(b"\n") + 1
        self.torn = len(data) - self._size
        try:
            contents = read_journal(path)
            if self.torn:
                log.warning("journal=%s torn_bytes=%d cut=yes", path, self.torn)
                os.ftruncate(self._fd, self._size)
                os.fsync(self._fd)
        except (JournalError, OSError):
            os.close(self._fd)
            raise
        self._at_opening = contents.events
        self.count, self.epoch, self.left_out = len(contents.events), contents.epoch, contents.left_out
        if self.left_out:
            log.warning("journal=%s lines_left_out=%d: their driver had lost the campaign", path, self.left_out)

    def take_events(self) -> list[Event]:
        """Return the events that were on disk at opening. They are handed out once, and not kept."""
        events, self._at_opening = self._at_opening, []
        return events

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and return it as a reader will see it. On an error of the disk nothing is left behind.

        Raises:
            LostCampaignError: if somebody else has written, or replaced the file.
        """
        marks = {"seq": self.count, "at": utc_now(), "epoch": self.epoch, "event": event}
        line = json.dumps({**marks, **fields}, allow_nan=False)
        data = line.encode() + b"\n"
        self._guard()
        self._find_as_left()
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
            os.fsync(self._fd)
        except OSError:
            self._take_back(written)
            raise
        self._size += len(data)
        read_back: Event = json.loads(line)
        self.count += 1
        return read_back

    def _find_as_left(self) -> None:
        """Make sure that the file ends where this writer's last line does, but for lines that do not count."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)  # opening it makes NFS forget what it remembers
        except FileNotFoundError:
            raise LostCampaignError(f"{self.path} is gone; its driver writes nothing more") from None
        try:
            there, ours = os.fstat(fd), os.fstat(self._fd)
            same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
            more = os.pread(fd, there.st_size - self._size, self._size) if there.st_size > self._size else b""
        finally:
            os.close(fd)
        if same and there.st_size >= self._size and self._are_stale(more):
            self._size = there.st_size
            return
        what = "was replaced" if not same else "was cut" if there.st_size < self._size else "was written to"
        raise LostCampaignError(
            f"{self.path} {what} by somebody else. This driver writes nothing more; jobs run on. To go on:  "
            f"hpo-cluster resume {self.path.parent}"
        )

    def _are_stale(self, data: bytes) -> bool:
        """Return whether all lines come from a driver that had lost the campaign; they do not count then."""
        if not data:
            return True
        try:
            events = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            return False
        stale = all(is_event(event) and event.get("epoch", 0) < self.epoch for event in events)
        if stale and data.endswith(b"\n"):
            self.left_out += len(events)
            log.warning("journal=%s lines_left_out=%d: their driver had lost the campaign", self.path, len(events))
            return True
        return False

    def _take_back(self, written: int) -> None:
        """Cut what a failed append has left, unless somebody else has written since."""
        try:
            self._guard()
        except (LostCampaignError, OSError):
            return
        if os.fstat(self._fd).st_size <= self._size + written:
            os.ftruncate(self._fd, self._size)

    def close(self) -> None:
        """Close the file; the journal cannot be appended to afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
