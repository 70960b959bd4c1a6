"""The current time, in the format of the campaign's files (ISO 8601, UTC)."""

from __future__ import annotations

import datetime


def now() -> datetime.datetime:
    """Return the current time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601 text with microseconds."""
    return now().isoformat().replace("+00:00", "Z")


def seconds_since(at: str) -> float:
    """Return the seconds that have passed since `at` (ISO 8601)."""
    return (now() - datetime.datetime.fromisoformat(at)).total_seconds()


def is_time(value: object) -> bool:
    """Return whether a value is a time in ISO 8601 with an offset from UTC, the format of our files."""
    try:
        return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False
