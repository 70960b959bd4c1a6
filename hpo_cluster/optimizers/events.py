"""A history as the sequence of events that it is the result of, for optimizers whose state follows from their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

from hpo_cluster.optimizers.rows import Row, Rows


class Event(NamedTuple):
    """A trial was proposed, or it ended: with the state and target that `row` has now."""

    row: Row
    ended: bool

    @property
    def key(self) -> Hashable:
        """Equal for events that mean the same to an optimizer."""
        row = self.row
        return (row.trial, row.state, row.stated) if self.ended else (row.trial, row.origin, row.key)


def events_of(rows: Rows) -> list[Event]:
    """Events in their order; where a row does not say when it was proposed or ended, the order of the trials counts."""
    keyed = []
    for row in rows:
        asked = math.inf if math.isnan(row.asked) else row.asked
        ended = asked if math.isnan(row.ended) else row.ended
        keyed.append(((asked, row.trial, 0), Event(row, False)))
        if row.state.ended:
            keyed.append(((ended, row.trial, 1), Event(row, True)))
    keyed.sort(key=lambda entry: entry[0])
    return [event for _, event in keyed]


class Replayed(Protocol):
    """What events make: changed by each of them, and by nothing else."""

    def apply(self, event: Event) -> None:
        """Take one more event into account."""


S = TypeVar("S", bound=Replayed)


class Replay(Generic[S]):
    """The state that a history's events lead to.

    It goes on from where the last history ended where that is a part of the new one: a cache, whose loss costs time and
    changes nothing. The state is not to be changed by whoever gets it.

    Args:
        start: makes the state before the first event.
    """

    def __init__(self, start: Callable[[], S]) -> None:
        self._start = start
        self._state, self._seen = start(), list[Hashable]()

    def of(self, rows: Rows) -> S:
        """The state after the events of `rows`."""
        events = events_of(rows)
        keys = [event.key for event in events]
        if keys[: len(self._seen)] != self._seen:
            self._state, self._seen = self._start(), []
        for event in events[len(self._seen) :]:
            self._state.apply(event)
        self._seen = keys
        return self._state
