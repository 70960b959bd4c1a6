"""The append-only journal: one JSON object a line, each synced to disk before anything is done about it.

Every line has ``seq`` (0, 1, 2…), ``at`` (UTC) and ``event``. Only the holder of the campaign's lock appends. Readers
need no lock: a last line without its newline is one that is being written, or was when the writer died.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from hpo_cluster.clock import utc_now
from hpo_cluster.errors import JournalError

log = logging.getLogger(__name__)

Event: TypeAlias = dict[str, Any]


def read_events(path: Path) -> Iterator[Event]:
    """The events in order; a torn last line is left out.

    Raises:
        JournalError: on a line that is no event, or out of sequence.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    whole = data[: data.rfind(b"\n") + 1]
    for number, line in enumerate(whole.splitlines()):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise JournalError(f"{path}, line {number + 1}: is no JSON ({error})") from error
        if not isinstance(event, dict) or event.get("seq") != number or "event" not in event:
            raise JournalError(f"{path}, line {number + 1}: is no event number {number}; was the file edited?")
        yield event


class Journal:
    """The writer's end. Opening it cuts a torn last line, and says so.

    Attributes:
        count: number of events, those on disk at opening included.
        torn: bytes that were cut at opening.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if new:
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        data = path.read_bytes()
        self._size = data.rfind(b"\n") + 1
        self.torn = len(data) - self._size
        if self.torn:
            log.warning("journal=%s torn_bytes=%d cut=yes", path, self.torn)
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        try:
            self._at_opening: list[Event] = list(read_events(path))
        except JournalError:
            os.close(self._fd)
            raise
        self.count = len(self._at_opening)

    def take_events(self) -> list[Event]:
        """The events that were on disk at opening. They are handed out once, and not kept."""
        events, self._at_opening = self._at_opening, []
        return events

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event and return it as a reader will see it. On an error of the disk nothing is left behind."""
        line = json.dumps({"seq": self.count, "at": utc_now(), "event": event, **fields}, allow_nan=False)
        data = line.encode() + b"\n"
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        read_back: Event = json.loads(line)
        self.count += 1
        return read_back

    def close(self) -> None:
        """Close the file; the journal cannot be appended to afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
