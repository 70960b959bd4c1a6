"""A history as the sequence of events that it is the result of, for optimizers whose state follows from their order."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from hpo_cluster.optimizers.dataset import Row, Rows


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
    over = [row for row in rows if row.state.ended]
    own = [*rows, *over]
    ends = np.repeat([False, True], [len(own) - len(over), len(over)])
    asked, ended = np.array([(row.asked, row.ended) for row in own], dtype=np.float64).reshape(-1, 2).T
    when = np.where(ends & ~np.isnan(ended), ended, np.where(np.isnan(asked), np.inf, asked))
    trials = np.array([row.trial for row in own], dtype=np.int64)
    order = np.lexsort((ends, trials, when)).tolist()
    flags = ends.tolist()
    return [Event(own[i], flags[i]) for i in order]


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
        self._state, self._seen = start(), list[Event]()

    def of(self, rows: Rows) -> S:
        """The state after the events of `rows`."""
        events = events_of(rows)
        if len(events) < len(self._seen) or not all(map(_same, self._seen, events)):
            self._state, self._seen = self._start(), []
        for event in events[len(self._seen) :]:
            self._state.apply(event)
        self._seen = events
        return self._state


def _same(one: Event, other: Event) -> bool:
    """Whether two events mean the same; rows that did not change are the same objects mostly."""
    return one.ended == other.ended and (one.row is other.row or one.key == other.key)
