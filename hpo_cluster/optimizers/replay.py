"""The state that a history leads to, for optimizers whose state follows from the order of events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from hpo_cluster.optimizers.dataset import Dataset, Moment


class Replayed(Protocol):
    """A state that is changed by moments, one after another."""

    def apply(self, moment: Moment) -> None:
        """Take one more moment into account."""


S = TypeVar("S", bound=Replayed)


class Replay(Generic[S]):
    """Replays a history, from where the last one ended if that is the beginning of the new one.

    The state is kept as a cache: losing it costs time and changes nothing. Callers must not change the state.

    Args:
        start: makes the state before the first moment.
    """

    def __init__(self, start: Callable[[], S]) -> None:
        self._start = start
        self._kept: tuple[S, Dataset] | None = None

    def of(self, data: Dataset) -> S:
        """Return the state after everything in `data`."""
        kept, self._kept = self._kept, None  # not kept if a moment fails
        news = None if kept is None else self._news(data, kept[1])
        if kept is None or news is None:
            state, news = self._start(), data.moments()
        else:
            state = kept[0]
        for moment in news:
            state.apply(moment)
        self._kept = state, data
        return state

    def _news(self, data: Dataset, earlier: Dataset) -> list[Moment] | None:
        """Return the moments since `earlier`; None if the replay has to begin again."""
        return data.since(earlier)
