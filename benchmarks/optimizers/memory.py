"""A campaign without jobs and files: its events in a record, and the history as the driver makes it."""

from __future__ import annotations

from hpo_cluster.record.campaign_state import asked_rows
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask


class MemoryCampaign(MemoryJournal):
    """A campaign over a space, whose value is maximised.

    Args:
        space: of the trials.
    """

    def __init__(self, space: Space) -> None:
        super().__init__(space.names, maximize=True)

    def take(self, ask: Ask) -> list[int]:
        """Add an answer of the optimizer to the record, and return the numbers of its proposals."""
        rows = asked_rows(ask, self.record.next_trial, 0)
        self.append("asked", trials=rows)
        return [row["trial"] for row in rows[len(ask.settled) :]]

    def complete(self, trial: int, value: float) -> None:
        """End a trial with a value."""
        self.append("ended", trial=trial, state="completed", value=value)
