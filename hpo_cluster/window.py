"""The times at which jobs may be submitted: after a given moment, and inside a weekly window that a job ends within.

A window consists of stretches of the week, such as every night. They are given in the local time of this machine, and
durations are elapsed time: in a night when the clocks change, the same stretch is an hour longer or shorter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Any

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_MIN = 24 * 60
WEEK_MIN = 7 * DAY_MIN

#: A job as long as its stretch would have to be submitted at the very moment the stretch opens. It may be late by this
#: much, or by a tenth of the stretch if that is less.
LATE_AT_MOST = timedelta(minutes=5)
#: Weeks to search for a stretch. A job that does not fit in the week in which the clocks change fits a week later.
HORIZON_WEEKS = 5

ACCEPTED = "19:00-08:45, Mon-Fri 19:00-08:45, Sat-Sun, or a list of such: [19:00-08:45, Sat-Sun]"
ACCEPTED_MOMENT = "a date and time 2027-01-31T19:00 (or with +01:00), or a time of day 19:00 (in a file: '19:00')"

_DAY = "|".join(DAYS)
_ENTRY = re.compile(
    rf"\s*(?:(?P<first>{_DAY})(?:\s*-\s*(?P<last>{_DAY}))?)?"
    r"(?:(?:^|\s)\s*(?P<opens>\d{1,2}:\d{2})\s*-\s*(?P<shuts>\d{1,2}:\d{2}))?\s*",
    re.IGNORECASE,
)
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}(:\d{2})?(Z|[+-]\d{2}:?\d{2})?")


@dataclass(frozen=True)
class Window:
    """Stretches of every week in which jobs may run.

    Args:
        stretches: pairs of start (minutes since Monday 00:00) and length (minutes); no two overlap or touch.
    """

    stretches: tuple[tuple[int, int], ...]

    @property
    def is_always_open(self) -> bool:
        """Whether the window never closes."""
        return self.longest_min >= WEEK_MIN

    @property
    def longest_min(self) -> int:
        """Length of the longest stretch, in minutes."""
        return max(length for _, length in self.stretches)

    def has_room_for(self, walltime_min: int) -> bool:
        """Return whether a job with this walltime fits into one of the stretches."""
        return self.is_always_open or walltime_min <= self.longest_min

    def next_start(self, now: datetime, walltime: timedelta, zone: tzinfo | None = None) -> datetime:
        """Return the earliest moment, from `now` on, at which a job may be submitted.

        Args:
            now: current time, with its UTC offset.
            walltime: walltime of the job, which must fit into a stretch.
            zone: time zone of the window; None: the zone of this machine.
        """
        if self.is_always_open:
            return now
        starts = []
        for opens, shuts in self._stretches_around(now, zone):
            latest = max(shuts - walltime, opens + min(LATE_AT_MOST, (shuts - opens) / 10))
            if walltime <= shuts - opens and now <= latest:
                starts.append(max(now, opens))
        assert starts, "the settings were checked: a job fits into one of the stretches"
        return min(starts)

    def _stretches_around(self, now: datetime, zone: tzinfo | None) -> Iterator[tuple[datetime, datetime]]:
        """Yield the start and end of each stretch in the last week, this week and the following ones."""
        today = now.astimezone(zone).date()
        monday = datetime.combine(today - timedelta(days=today.weekday()), time())
        for week in range(-1, HORIZON_WEEKS):
            for start_min, length_min in self.stretches:
                opens = monday + timedelta(weeks=week, minutes=start_min)
                yield _moment(opens, zone), _moment(opens + timedelta(minutes=length_min), zone)


@functools.lru_cache(maxsize=64)
def parse_window(entries: tuple[str, ...]) -> Window:
    """Return the window that the entries describe, each ``[DAY[-DAY]] [HH:MM-HH:MM]``; stretches that touch are merged.

    Raises:
        ValueError: naming every entry that is wrong, and why.
    """
    week = bytearray(WEEK_MIN)
    faults = []
    for entry in entries:
        try:
            for start, length in _entry(entry):
                for minute in range(start, start + length):
                    week[minute % WEEK_MIN] = 1
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join([*faults, f"accepted: {ACCEPTED}"]))
    return Window(tuple(_runs(week)))


def _entry(text: str) -> list[tuple[int, int]]:
    """Return the start and length, in minutes of the week, of the stretch on each day of an entry."""
    match = _ENTRY.fullmatch(text)
    if match is None or not text.strip():
        raise ValueError(f"{text!r} cannot be read")
    opens, shuts = _minutes(match["opens"] or "00:00"), _minutes(match["shuts"] or "24:00")
    if opens >= DAY_MIN:
        raise ValueError(f"{text!r} begins at 24:00: write 00:00")
    if opens == shuts:
        raise ValueError(f"{text!r} has no length: a whole day is 00:00-24:00")
    length = shuts - opens if shuts > opens else shuts + DAY_MIN - opens
    return [(day * DAY_MIN + opens, length) for day in _days(match["first"], match["last"])]


def _days(first: str | None, last: str | None) -> list[int]:
    """Return the numbers of the days from `first` to `last`, wrapping around at the end of the week."""
    if first is None:
        return list(range(7))
    begin = DAYS.index(first.capitalize())
    end = DAYS.index((last or first).capitalize())
    return [(begin + n) % 7 for n in range((end - begin) % 7 + 1)]


def _minutes(text: str) -> int:
    """Return the minutes since midnight of a time of day."""
    hour, minute = (int(part) for part in text.split(":"))
    if minute > 59 or 60 * hour + minute > DAY_MIN:
        raise ValueError(f"{text!r} is not a time of day")
    return 60 * hour + minute


def _runs(week: bytearray) -> list[tuple[int, int]]:
    """Return the start and length of each run of ones, with the end of the week joined to its beginning."""
    shut = week.find(0)
    if shut < 0:
        return [(0, WEEK_MIN)]
    turned = bytes(week[shut:] + week[:shut])
    return [((run.start() + shut) % WEEK_MIN, len(run.group())) for run in re.finditer(b"\x01+", turned)]


def _moment(local: datetime, zone: tzinfo | None) -> datetime:
    """Return the moment at which clocks in `zone` (None: the zone of this machine) show `local`."""
    return (local if zone is None else local.replace(tzinfo=zone)).astimezone(UTC)


def parse_moment(text: str, now: datetime, zone: tzinfo | None = None) -> datetime:
    """Return the moment that a text names: a date and time, or the next occurrence of a time of day.

    Args:
        text: ``2027-01-31T19:00`` or ``19:00``, each with a UTC offset or in the time of `zone`.
        now: current time, with its UTC offset.
        zone: time zone of a text without an offset; None: the zone of this machine.

    Raises:
        ValueError: if the text is not a moment.
    """
    try:
        if not _TIME_OF_DAY.fullmatch(text):
            named = datetime.fromisoformat(text)
            return named if named.tzinfo is not None else _moment(named, zone).astimezone(zone)
        clock = time.fromisoformat(text if text[2] == ":" else f"0{text}")
    except (ValueError, OverflowError):
        raise ValueError(f"is not a moment; accepted: {ACCEPTED_MOMENT}") from None
    theirs = clock.tzinfo or zone
    today = now.astimezone(theirs).date()
    days = (datetime.combine(today + timedelta(days=n), clock.replace(tzinfo=None)) for n in range(3))
    return next(at for day in days if (at := _moment(day, theirs)) > now).astimezone(theirs)


@dataclass(frozen=True)
class LaunchHours:
    """The times at which a campaign's jobs may be submitted.

    Args:
        walltime: walltime of each job.
        not_before: moment before which no job is submitted, with its UTC offset.
        window: window inside which each job must end.
    """

    walltime: timedelta = timedelta()
    not_before: datetime | None = None
    window: Window | None = None

    @classmethod
    def recorded(cls, launcher: Mapping[str, Any]) -> LaunchHours:
        """Return the hours of a launcher's settings as the journal recorded them; earlier versions recorded none."""
        not_before, entries = launcher.get("not_before"), launcher.get("window")
        return cls(
            timedelta(minutes=launcher.get("walltime_min") or 0),
            datetime.fromisoformat(not_before) if not_before else None,
            parse_window(tuple(entries)) if entries else None,
        )

    def next_start(self, now: datetime, zone: tzinfo | None = None) -> datetime:
        """Return the earliest moment, from `now` on, at which a job may be submitted."""
        earliest = self._earliest(now)
        return earliest if self.window is None else self.window.next_start(earliest, self.walltime, zone)

    def _earliest(self, now: datetime) -> datetime:
        return now if self.not_before is None else max(now, self.not_before)

    def reason_to_wait(self, now: datetime, zone: tzinfo | None = None) -> str:
        """Return a notice that says why no job is submitted now; empty if jobs may be submitted."""
        start = self.next_start(now, zone)
        if start <= now:
            return ""
        earliest = self._earliest(now)
        notice = f"no job is submitted before {_spoken(start, now, zone)}"
        if start == self.not_before:
            return f"{notice}: launcher.not_before"
        if self.window is not None and self.window.next_start(earliest, timedelta(), zone) <= earliest:
            return f"{notice}: launcher.window closes before a job of launcher.walltime_min would end"
        return f"{notice}: launcher.window"


def _spoken(at: datetime, now: datetime, zone: tzinfo | None) -> str:
    """Return ``Mon 19:00``, with the date if it is a week away or more."""
    local = at.astimezone(zone)
    date = f" {local:%Y-%m-%d}" if at - now > timedelta(days=6) else ""
    return f"{DAYS[local.weekday()]}{date} {local:%H:%M}"
