"""A campaign's journal, followed from another terminal: each look reads only the lines that were added since."""

from __future__ import annotations

import os
from pathlib import Path

from hpo_cluster.errors import JournalError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.journal import Contents, opened


class FollowedJournal:
    """A journal that is read again and again while a driver writes to it.

    Args:
        path: path of the file.

    Attributes:
        record: the campaign's state at the last look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = (0, 0)
        self._begin()

    def _begin(self) -> None:
        self.record = Record()
        self._contents = Contents()
        self._offset = 0

    def look(self) -> Record:
        """Read the lines that were added since the last look, and return the record.

        A file that was replaced or cut is read again from its beginning.

        Raises:
            JournalError: if the file is gone, or cannot be read.
        """
        stream = opened(self._path)
        if stream is None:
            raise JournalError(f"{self._path} is gone; was the campaign moved or removed?")
        with stream:
            status = os.fstat(stream.fileno())
            if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
                self._begin()
                self._file = status.st_dev, status.st_ino
            stream.seek(self._offset)
            data = stream.read()
        self._take(data[: data.rfind(b"\n") + 1])
        return self.record

    def _take(self, data: bytes) -> None:
        """Take in whole lines. Lines of a new driver may say that earlier ones do not count."""
        before, left_out = len(self._contents.events), self._contents.left_out
        self._contents.take_lines(data.split(b"\n")[:-1], self._path)
        if self._contents.left_out != left_out:
            self.record, before = Record(), 0
        self.record.extend(self._contents.events[before:], self._path)
        self.record.left_out = self._contents.left_out
        self._offset += len(data)
