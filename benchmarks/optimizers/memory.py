"""A campaign without jobs and files: a record that events go into, and the history as the driver makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_cluster.history import HistoryTable
from hpo_cluster.record import Record, asked_rows
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd


class MemoryCampaign:
    """A campaign of a space, whose value is maximised.

    Args:
        space: of the trials.
    """

    def __init__(self, space: Space) -> None:
        self.record = Record()
        self._table = HistoryTable(self.record, space.names, maximize=True)
        self._seq = 0

    def history(self) -> pd.DataFrame:
        """What an optimizer is asked with."""
        return self._table.frame()

    def take(self, ask: Ask) -> list[int]:
        """An answer goes into the record; the numbers of its proposals."""
        rows = asked_rows(ask, self.record.next_trial, 0)
        self._append("asked", trials=rows)
        return [row["trial"] for row in rows[len(ask.settled) :]]

    def complete(self, trial: int, value: float) -> None:
        """A trial ends with a value."""
        self._append("ended", trial=trial, state="completed", value=value)

    def _append(self, event: str, **fields: object) -> None:
        self.record.apply({"seq": self._seq, "at": "", "event": event, **fields})
        self._seq += 1
