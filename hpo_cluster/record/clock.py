"""Moments as the campaign's files hold them."""

from __future__ import annotations

import datetime


def now() -> datetime.datetime:
    """Return this moment, in UTC."""
    return datetime.datetime.now(datetime.UTC)


def utc_now() -> str:
    """Now, in UTC, ISO 8601 with microseconds."""
    return now().isoformat().replace("+00:00", "Z")


def seconds_since(at: str) -> float:
    """Seconds since a moment (ISO 8601)."""
    return (now() - datetime.datetime.fromisoformat(at)).total_seconds()


def is_time(value: object) -> bool:
    """Return whether a value is a time as we write it: ISO 8601 with its offset from UTC."""
    try:
        return isinstance(value, str) and datetime.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False
