"""When jobs may be submitted. Clocks are those of Paris, where they change on 28 March and 31 October 2027."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hpo_cluster.launchers import LocalSettings, SlurmSettings
from hpo_cluster.record import clock
from hpo_cluster.window import DAYS, LaunchHours, Window, parse_moment, parse_window

PARIS = ZoneInfo("Europe/Paris")
NIGHTS = parse_window(("19:00-08:45",))
CHARTER = parse_window(("19:00-08:45", "Sat-Sun"))


def paris(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=PARIS)


def start(window: Window, now: str, **walltime: int) -> str:
    """The next start as clocks in Paris show it."""
    at = window.next_start(paris(now), timedelta(**walltime), PARIS)
    return f"{at.astimezone(PARIS):%a %d %H:%M}"


# ------------------------------------------------------------------------------------------------------- the notation


@pytest.mark.parametrize(
    ("entries", "stretches"),
    [
        (("Mon 08:00-09:30",), ((480, 90),)),
        (("mon 8:00 - 9:30",), ((480, 90),)),
        (("Sat-Sun",), ((5 * 1440, 2 * 1440),)),
        (("Sat",), ((5 * 1440, 1440),)),
        (("Sun 23:00-01:00",), ((6 * 1440 + 23 * 60, 120),)),  # into the next week
        (("Fri-Mon 00:00-24:00",), ((4 * 1440, 4 * 1440),)),  # days across the week's end
        (("Mon 00:00-12:00", "Mon 12:00-14:00"), ((0, 840),)),  # touching
        (("Mon 10:00-12:00", "Mon 11:00-14:00"), ((600, 240),)),  # overlapping
        (("Sun 20:00-24:00", "Mon 00:00-06:00"), ((6 * 1440 + 20 * 60, 600),)),  # touching at the week's end
        (("Mon 18:00-24:00", "Tue 00:00-02:00"), ((18 * 60, 480),)),  # touching at midnight
        (("00:00-24:00",), ((0, 10080),)),
        (("00:00-12:00", "12:00-00:00"), ((0, 10080),)),
        (("Mon-Sun",), ((0, 10080),)),
        (("19:00-18:59",), tuple(((19 * 60 + day * 1440) % 10080, 1439) for day in range(7))),
    ],
)
def test_stretches_of_the_week(entries: tuple[str, ...], stretches: tuple[tuple[int, int], ...]) -> None:
    assert sorted(parse_window(entries).stretches) == sorted(stretches)


def test_every_night_and_the_weekend() -> None:
    """The nights that touch the weekend are one stretch with it, from Friday evening to Monday morning."""
    friday = 4 * 1440 + 19 * 60
    assert sorted(CHARTER.stretches) == [*((day * 1440 + 19 * 60, 825) for day in range(4)), (friday, 3705)]
    assert parse_window(("Mon-Fri 19:00-08:45", "Sat-Sun")) != CHARTER  # Sunday night is not one of them
    assert CHARTER.longest_min == 3705


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("08:00-08:00", "'08:00-08:00' has no length"),
        ("00:00-00:00", "a whole day is 00:00-24:00"),
        ("Mon 24:00-24:00", "begins at 24:00"),
        ("24:00-08:00", "begins at 24:00: write 00:00"),
        ("Mon-Fry 19:00-08:45", "'Mon-Fry 19:00-08:45' cannot be read"),
        ("19-8", "cannot be read"),
        ("Mon19:00-20:00", "cannot be read"),
        ("19:00", "cannot be read"),
        ("19:60-20:00", "'19:60' is not a time of day"),
        ("19:00-24:01", "'24:01' is not a time of day"),
        ("Mon,Tue", "cannot be read"),
        ("", "'' cannot be read"),
        ("  ", "cannot be read"),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_what_is_accepted(entry: str, said: str) -> None:
    with pytest.raises(ValueError, match="accepted: 19:00-08:45, Mon-Fri 19:00-08:45, Sat-Sun") as error:
        parse_window(("Sat-Sun", entry))
    assert said in str(error.value)


def test_all_wrong_entries_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"'Moon' cannot be read; '08:00-08:00' has no length"):
        parse_window(("Moon", "19:00-20:00", "08:00-08:00"))


# ----------------------------------------------------------------------------------------------------------- the rule


def test_a_job_is_submitted_where_it_ends_inside_the_window() -> None:
    assert start(NIGHTS, "2027-01-12T12:00", hours=2) == "Tue 12 19:00"
    assert start(NIGHTS, "2027-01-12T19:00", hours=2) == "Tue 12 19:00"
    assert start(NIGHTS, "2027-01-13T03:10", hours=2) == "Wed 13 03:10"
    assert start(NIGHTS, "2027-01-13T06:45", hours=2) == "Wed 13 06:45"  # to the minute
    assert start(NIGHTS, "2027-01-13T06:45:01", hours=2) == "Wed 13 19:00"
    assert start(NIGHTS, "2027-01-13T08:44", hours=2) == "Wed 13 19:00"


def test_across_the_weekend_and_the_end_of_the_week() -> None:
    assert start(CHARTER, "2027-01-15T12:00", hours=48) == "Fri 15 19:00"
    assert start(CHARTER, "2027-01-16T08:00", hours=48) == "Sat 16 08:00"
    assert start(CHARTER, "2027-01-18T01:00", hours=7) == "Mon 18 01:00"  # the stretch began on Friday
    assert start(CHARTER, "2027-01-16T09:00", hours=48) == "Fri 22 19:00"


def test_a_walltime_as_long_as_a_stretch_may_be_late_by_some_minutes() -> None:
    assert start(NIGHTS, "2027-01-12T12:00", minutes=825) == "Tue 12 19:00"
    assert start(NIGHTS, "2027-01-12T19:05", minutes=825) == "Tue 12 19:05"
    assert start(NIGHTS, "2027-01-12T19:05:01", minutes=825) == "Wed 13 19:00"
    assert start(NIGHTS, "2027-01-12T19:10", minutes=815) == "Tue 12 19:10"  # one that has room may not be late
    assert start(NIGHTS, "2027-01-12T19:11", minutes=815) == "Wed 13 19:00"
    brief = parse_window(("Tue 19:00-19:10",))
    assert start(brief, "2027-01-12T19:01", minutes=10) == "Tue 12 19:01"
    assert start(brief, "2027-01-12T19:02", minutes=10) == "Tue 19 19:00"


@pytest.mark.parametrize("entries", [("00:00-24:00",), ("19:00-08:45", "08:45-19:00"), ("Mon-Fri", "Sat-Sun")])
def test_a_window_that_never_closes_takes_any_walltime(entries: tuple[str, ...]) -> None:
    assert start(parse_window(entries), "2027-01-12T12:34", days=30) == "Tue 12 12:34"
    assert LocalSettings(window=entries, walltime_min=60 * 24 * 30).hours.reason_to_wait(clock.now()) == ""


def test_where_the_clocks_change_a_night_is_an_hour_shorter_or_longer() -> None:
    assert start(NIGHTS, "2027-03-27T20:00", hours=12) == "Sun 28 19:00"  # 11 h 45 min are left of that night
    assert start(NIGHTS, "2027-03-27T12:00", minutes=825) == "Sun 28 19:00"  # the night has 12 h 45 min
    assert start(NIGHTS, "2027-03-27T12:00", minutes=765) == "Sat 27 19:00"
    assert start(NIGHTS, "2027-10-30T20:00", hours=13) == "Sat 30 20:00"  # the night has 14 h 45 min
    assert start(NIGHTS, "2027-10-30T20:46", hours=13) == "Sun 31 19:00"
    sundays = parse_window(("Sun 00:00-06:00",))
    assert start(sundays, "2027-03-27T12:00", hours=6) == "Sun 04 00:00"  # only five hours on the 28th


def test_the_clocks_are_this_machines_if_no_zone_is_given(local_time: None) -> None:
    now = datetime(2027, 3, 27, 19, 0, tzinfo=UTC)  # 20:00 in Paris
    assert NIGHTS.next_start(now, timedelta(hours=12)) == paris("2027-03-28T19:00")
    assert NIGHTS.next_start(now, timedelta(hours=11)) == now


@pytest.fixture
def local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# ------------------------------------------------------------------------------------- the rule against looking it up

BEGINNINGS = {"spring": datetime(2027, 3, 15, tzinfo=UTC), "autumn": datetime(2027, 10, 18, tzinfo=UTC)}
MINUTES = 5 * 10080


@functools.cache
def shown(season: str) -> list[tuple[int, int]]:
    """Day of the week and minute of the day that clocks in Paris show, for each minute of five weeks."""
    local = (BEGINNINGS[season] + timedelta(minutes=n) for n in range(MINUTES))
    clocks = (at.astimezone(PARIS) for at in local)
    return [(at.weekday(), 60 * at.hour + at.minute) for at in clocks]


def is_open(entry: tuple[int, int, int, int], day: int, minute: int) -> bool:
    """Whether clocks that show this are in the stretches of (first day, last day, opens, shuts)."""
    first, last, opens, shuts = entry
    days = {(first + n) % 7 for n in range((last - first) % 7 + 1)}
    if opens < shuts:
        return day in days and opens <= minute < shuts
    return (day in days and minute >= opens) or ((day - 1) % 7 in days and minute < shuts)


def text(entry: tuple[int, int, int, int]) -> str:
    first, last, opens, shuts = entry
    return f"{DAYS[first]}-{DAYS[last]} {opens // 60:02}:{opens % 60:02}-{shuts // 60:02}:{shuts % 60:02}"


# no edge between 02:00 and 03:00, which clocks skip or show twice
EDGES = st.integers(0, 1439).filter(lambda minute: not 120 <= minute < 180)
ENTRIES = st.tuples(st.integers(0, 6), st.integers(0, 6), EDGES, EDGES | st.just(1440)).filter(lambda e: e[2] != e[3])


@settings(max_examples=60, deadline=None)
@given(
    season=st.sampled_from(sorted(BEGINNINGS)),
    entries=st.lists(ENTRIES, min_size=1, max_size=3),
    now=st.integers(8 * 1440, 15 * 1440),
    share=st.floats(0, 1),
)
def test_the_next_start_is_the_first_minute_from_which_all_minutes_of_a_job_are_open(
    season: str, entries: list[tuple[int, int, int, int]], now: int, share: float
) -> None:
    window = parse_window(tuple(map(text, entries)))
    walltime = max(1, round(share * window.longest_min))
    table = {key: any(is_open(entry, *key) for entry in entries) for key in set(shown(season))}
    stretches, at = [], 0
    for is_in, minutes in groupby(table[key] for key in shown(season)):
        length = len(list(minutes))
        if is_in:
            stretches.append((at, at + length))
        at += length
    latest = ((o, max(s - walltime, o + min(5, (s - o) / 10))) for o, s in stretches if walltime <= s - o)
    expected = next(max(now, opens) for opens, late in latest if now <= late)
    assume(expected + walltime < MINUTES)
    begin = BEGINNINGS[season]
    found = window.next_start(begin + timedelta(minutes=now), timedelta(minutes=walltime), PARIS)
    assert found == begin + timedelta(minutes=expected)


# ------------------------------------------------------------------------------------------------------------ moments


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2027-01-31T19:00", "2027-01-31T19:00:00+01:00"),
        ("2027-07-31 19:00", "2027-07-31T19:00:00+02:00"),  # in summer time
        ("2027-01-31", "2027-01-31T00:00:00+01:00"),
        ("2027-01-31T19:00Z", "2027-01-31T19:00:00+00:00"),
        ("2027-01-31T19:00-05:00", "2027-01-31T19:00:00-05:00"),
        ("19:00", "2027-03-27T19:00:00+01:00"),
        ("9:00", "2027-03-28T09:00:00+02:00"),  # tomorrow, after the clocks have changed
        ("12:00", "2027-03-28T12:00:00+02:00"),  # not now
        ("12:00:01", "2027-03-27T12:00:01+01:00"),
        ("13:00+02:00", "2027-03-28T13:00:00+02:00"),
    ],
)
def test_a_moment_is_a_date_and_time_or_the_next_time_of_day(typed: str, meant: str) -> None:
    assert parse_moment(typed, paris("2027-03-27T12:00"), PARIS).isoformat() == meant


@pytest.mark.parametrize("typed", ["", "soon", "24:30", "19", "19:0", "2027-13-01", "25:00", "1:2:3"])
def test_what_is_no_moment_is_refused(typed: str) -> None:
    with pytest.raises(ValueError, match=r"is not a moment; accepted: a date and time"):
        parse_moment(typed, paris("2027-03-27T12:00"), PARIS)


# ------------------------------------------------------------------------------------------------------------ notices


@pytest.mark.parametrize(
    ("not_before", "window", "now", "notice"),
    [
        (None, None, "2027-01-12T12:00", ""),
        (None, NIGHTS, "2027-01-12T21:00", ""),
        (None, NIGHTS, "2027-01-12T12:00", "before Tue 19:00: launcher.window"),
        (None, NIGHTS, "2027-01-12T08:00", "before Tue 19:00: launcher.window closes before a job of"),
        ("2027-01-12T13:00", None, "2027-01-12T12:00", "before Tue 13:00: launcher.not_before"),
        ("2027-01-12T13:00", None, "2027-01-12T13:00", ""),
        ("2027-01-12T13:00", NIGHTS, "2027-01-12T12:00", "before Tue 19:00: launcher.window"),
        ("2027-01-12T22:00", NIGHTS, "2027-01-12T12:00", "before Tue 22:00: launcher.not_before"),
        ("2027-01-13T08:00", NIGHTS, "2027-01-12T20:00", "before Wed 19:00: launcher.window closes before a job of"),
        ("2027-02-12T22:00", NIGHTS, "2027-01-12T12:00", "before Fri 2027-02-12 22:00: launcher.not_before"),
    ],
)
def test_a_notice_says_when_and_which_setting(
    not_before: str | None, window: Window | None, now: str, notice: str
) -> None:
    moment = paris(not_before) if not_before else None
    hours = LaunchHours(timedelta(hours=2), moment, window)
    said = hours.reason_to_wait(paris(now), PARIS)
    assert said.startswith(f"no job is submitted {notice}" if notice else "")
    assert bool(said) == bool(notice)
    later = hours.next_start(paris(now), PARIS)
    assert hours.reason_to_wait(later, PARIS) == ""


# ----------------------------------------------------------------------------------------------------------- settings


def test_settings_are_recorded_as_moments_and_texts() -> None:
    made = SlurmSettings(not_before="2027-01-31T19:00+01:00", window="19:00-08:45", walltime_min=120)
    recorded = made.model_dump(mode="json")
    assert recorded["not_before"] == "2027-01-31T19:00:00+01:00"
    assert recorded["window"] == ["19:00-08:45"]
    assert SlurmSettings(**recorded) == made
    assert LaunchHours.recorded(recorded) == made.hours
    assert LaunchHours.recorded({}) == LaunchHours()  # of a campaign of an earlier version
    assert SlurmSettings(window=None, not_before=None).hours.window is None


def test_a_time_of_day_is_one_moment_ever_after() -> None:
    """Where the campaign goes on the next day it does not wait for the next evening."""
    recorded = SlurmSettings(not_before="19:00").model_dump(mode="json")
    assert datetime.fromisoformat(recorded["not_before"]) > clock.now()
    assert LaunchHours.recorded(recorded).reason_to_wait(clock.now() + timedelta(days=1)) == ""


@pytest.mark.parametrize("walltime_min", [826, 1440])
def test_a_walltime_longer_than_any_stretch_is_a_fault_that_names_both(walltime_min: int) -> None:
    with pytest.raises(ValidationError) as error:
        LocalSettings(window="19:00-08:45", walltime_min=walltime_min)
    assert f"launcher.walltime_min={walltime_min}, and its longest stretch has 825 minutes" in str(error.value)
    assert LocalSettings(window="19:00-08:45", walltime_min=825).hours.walltime == timedelta(minutes=825)
