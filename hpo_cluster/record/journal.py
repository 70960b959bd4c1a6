"""The append-only journal: one JSON object on each line, synced to disk before anything follows from it.

Every line has ``seq`` (0, 1, 2…), ``at`` (UTC), ``epoch`` (the number of its driver's start, see
`hpo_cluster.record.lock`) and ``event``. Only the holder of the campaign's lock appends. Readers need no lock: a last
line without its newline is being written, or its writer died while writing it.

A driver that was suspended while another one took over may write one line after it wakes, between its last check and
the write. Readers leave such stale lines out: the first line of a newer epoch says at which number that epoch begins,
and lines of older epochs from this number on do not count.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeAlias

from hpo_cluster.errors import JournalError, LostCampaignError
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import sync
from hpo_cluster.text import command_line

log = logging.getLogger(__name__)

Event: TypeAlias = dict[str, Any]

_WAY_OUT = "Rebuild it from its valid lines and the jobs' files:"


@dataclass
class Contents:
    """The events of a journal file, and what else its reader found.

    Args:
        events: the events in order, numbered without a gap.
        left_out: number of stale lines, whose drivers had lost the campaign when they wrote them.
        epoch: epoch of the newest driver that wrote; 0 before epochs were recorded.
        lines: number of lines read.
    """

    events: list[Event] = field(default_factory=list)
    left_out: int = 0
    epoch: int = 0
    lines: int = 0
    _stale_seq: int | None = None  # the next number of a stale driver from before epochs were recorded

    def take_lines(self, lines: Sequence[bytes], path: Path) -> None:
        """Add the events of the next lines of the file `path`.

        Raises:
            JournalError: if a line is not an event, or its number is out of sequence.
        """
        way_out = f"{_WAY_OUT}  {command_line('repair', path.parent)}"
        for event in _parsed(lines):
            self.lines += 1
            if isinstance(event, Exception):
                raise JournalError(f"{path}, line {self.lines}: is not JSON ({event}). {way_out}") from event
            if not is_event(event) or not self.take(event):
                raise JournalError(
                    f"{path}, line {self.lines}: is not event number {len(self.events)}; was the file edited? {way_out}"
                )

    def take(self, event: Event) -> bool:
        """Add the event of the next line, or leave it out if it is stale; return False if its number does not fit."""
        seq, epoch, count = int(event["seq"]), int(event.get("epoch", 0)), len(self.events)
        if epoch < self.epoch:
            self.left_out += 1
        elif epoch > self.epoch and seq <= count:
            self.left_out += count - seq  # written after the newer driver had read the file
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
        """Return whether a line without an epoch comes from a driver that had already lost the campaign.

        Such a driver continues its own numbers, which begin at the number of the other driver's ``started``. After the
        other driver's ``stopped``, the next line that counts can only be ``started``.
        """
        seq, count = int(event["seq"]), len(self.events)
        if seq == count:
            return seq == self._stale_seq and bool(self.events[-1]["event"] == "stopped")
        return seq == self._stale_seq or (seq < count and bool(self.events[seq]["event"] == "started"))


def _parsed(lines: Sequence[bytes]) -> Iterable[Any]:
    """Return what lines hold, an exception for one that is not JSON.

    All of them are parsed at once, which takes half the time; one by one only if that fails.
    """
    try:
        found = json.loads(b"[%s]" % b",".join(lines))
    except (ValueError, RecursionError):
        found = []
    return found if len(found) == len(lines) else map(_parsed_line, lines)


def _parsed_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return error


def read_journal(path: Path) -> Contents:
    """Read a journal file. An incomplete last line is left out; a file that does not exist counts as empty.

    Raises:
        JournalError: if a line is not an event, or its number is out of sequence.
    """
    contents = Contents()
    contents.take_lines(whole_lines(path), path)
    return contents


def read_events(path: Path) -> list[Event]:
    """Return the events of a journal file in order, as `read_journal` does."""
    return read_journal(path).events


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a journal file that end with a newline; an empty list if the file does not exist."""
    data = read_data(path)
    return data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]


def read_data(path: Path) -> bytes:
    """Return the content of a journal file; empty if it does not exist.

    Raises:
        JournalError: if the path is not a file: a folder, a pipe, a device, or a link to nothing.
    """
    stream = opened(path)
    if stream is None:
        return b""
    with stream:
        return stream.read()


def opened(path: Path) -> BinaryIO | None:
    """Return a journal file, opened for reading; None if it does not exist.

    Raises:
        JournalError: if the path is not a file: a folder, a pipe, a device, or a link to nothing.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe without a writer must not block
    except FileNotFoundError:
        if not path.is_symlink():
            return None
        fd = None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        fd = None
    if fd is None or not stat.S_ISREG(os.fstat(fd).st_mode):
        if fd is not None:
            os.close(fd)
        raise JournalError(
            f"{path}: is not a file, as a journal must be. {_WAY_OUT}  {command_line('repair', path.parent)}"
        )
    return os.fdopen(fd, "rb")


def is_event(data: Any) -> bool:
    """Return whether parsed JSON has the fields that every event has."""
    if not isinstance(data, dict) or not isinstance(data.get("event"), str):
        return False
    numbers = (data.get("seq"), data.get("epoch", 0))
    return all(type(number) is int and number >= 0 for number in numbers)


class Journal:
    """The journal, opened for writing. Opening it cuts an incomplete last line and logs a warning.

    Args:
        path: path of the file.
        guard: raises if this process may no longer write; called before each append.

    Attributes:
        count: number of events, including those on disk at opening.
        epoch: epoch that each new line is marked with; at opening, that of the newest line.
        left_out: number of stale lines, see `Contents`.
        torn: number of bytes that were cut at opening.
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
                f"a copy of the file in its place:  {command_line('repair', path.parent)}"
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
        """Return the events that were on disk at opening, and forget them."""
        events, self._at_opening = self._at_opening, []
        return events

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and return it as a reader will see it. If the disk fails, the file is left unchanged.

        Raises:
            LostCampaignError: if somebody else has written to the file or replaced it.
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
            sync(self._fd)
        except OSError:
            self._take_back(written)
            raise
        self._size += len(data)
        read_back: Event = json.loads(line)
        self.count += 1
        return read_back

    def _find_as_left(self) -> None:
        """Make sure that nothing but stale lines was added after this writer's last line."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)  # opening it makes NFS drop its cache
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
            f"{command_line('resume', self.path.parent)}"
        )

    def _are_stale(self, data: bytes) -> bool:
        """Return whether all lines are stale: written by drivers that had lost the campaign."""
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
        """Cut what a failed append has written, unless somebody else has written since."""
        try:
            self._guard()
        except (LostCampaignError, OSError):
            return
        if os.fstat(self._fd).st_size <= self._size + written:
            os.ftruncate(self._fd, self._size)

    def close(self) -> None:
        """Close the file; nothing can be appended afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
