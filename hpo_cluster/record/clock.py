"""The current time, in the format of the campaign's files (ISO 8601, UTC).

A simulation replaces the clock of this process by one that moves only when it is told to (`simulated`).
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Iterator


class SimulatedClock:
    """A clock that moves only when it is told to.

    Attributes:
        at: the time that it shows.
    """

    def __init__(self, start: datetime.datetime) -> None:
        self.at = start.astimezone(datetime.UTC)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self.at += datetime.timedelta(seconds=seconds)


#: The clock of this process; None: the real one.
_simulated: SimulatedClock | None = None


@contextlib.contextmanager
def simulated(clock: SimulatedClock) -> Iterator[None]:
    """Let `clock` be the clock of this process while the context lasts."""
    global _simulated
    before, _simulated = _simulated, clock
    try:
        yield
    finally:
        _simulated = before


def is_simulated() -> bool:
    """Return whether the clock of this process is simulated."""
    return _simulated is not None


def now() -> datetime.datetime:
    """Return the current time in UTC."""
    return datetime.datetime.now(datetime.UTC) if _simulated is None else _simulated.at


def monotonic() -> float:
    """Return seconds that only ever grow, for the measurement of spans."""
    return time.monotonic() if _simulated is None else _simulated.at.timestamp()


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601 text with microseconds."""
    return now().isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment(at: str) -> datetime.datetime:
    """Return the time that a text (ISO 8601) names."""
    return datetime.datetime.fromisoformat(at)


def seconds_between(start: str | None, end: str | None) -> float:
    """Return the seconds between two times (ISO 8601); 0 if one of them is not known."""
    return (moment(end) - moment(start)).total_seconds() if start and end else 0.0


def seconds_since(at: str) -> float:
    """Return the seconds that have passed since `at` (ISO 8601)."""
    return (now() - moment(at)).total_seconds()


def seconds_from(at: str) -> float:
    """Return how many seconds lie between `at` (ISO 8601) and now, which comes before it if a clock was set back.

    For a wait that ends some time after `at`, and must not last as long as the clock was set back.
    """
    return abs(seconds_since(at))


def is_time(value: object) -> bool:
    """Return whether a value is a time in ISO 8601 with an offset from UTC, the format of our files."""
    try:
        return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False
