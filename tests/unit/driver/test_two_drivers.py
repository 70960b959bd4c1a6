"""Two drivers of one campaign, on hosts between which no lock is passed on, in any order of what can happen to them."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hpo_cluster.errors import LockedError, LostCampaignError
from hpo_cluster.record.journal import Event, Journal, read_journal
from hpo_cluster.record.lock import DriverLock


class Driver:
    """What a driver does with lock and journal: it asks for a trial, then ends it, and so on."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder, self.host = folder, host
        self.lock: DriverLock | None = None
        self.journal: Journal | None = None
        self.asked = self.ended = 0
        self.kept: list[Event] = []  # what was appended while the campaign was this driver's

    def start(self) -> None:
        """Take the campaign over from whoever has not beaten for two minutes."""
        path = self.folder / "driver.lock"
        if self.lock is not None:
            return
        with contextlib.suppress(OSError, ValueError):
            old = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=300)).isoformat()
            path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat": old}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "gethostname", lambda: self.host)
            with contextlib.suppress(LockedError):
                self.lock = DriverLock(path, take_over=True)
        if self.lock is None:
            return
        self.journal = Journal(self.folder / "events.jsonl", self.lock.check)
        self.lock.advance(self.journal.epoch)
        self.journal.epoch = self.lock.epoch
        events = self.journal.take_events()
        self.asked = sum(event["event"] == "asked" for event in events)
        self.ended = sum(event["event"] == "ended" for event in events)

    def append(self, meanwhile: Iterator[None]) -> None:
        """Append one event; between the last look and the write this driver is stopped, while others act."""
        journal, lock = self.journal, self.lock
        if lock is None or journal is None:
            return
        look = journal._find_as_left

        def stopped() -> None:
            look()
            list(meanwhile)

        journal._find_as_left = stopped  # type: ignore[method-assign]
        kind = "ended" if self.asked > self.ended else "asked"
        trial = self.ended if kind == "ended" else self.asked
        try:
            event = journal.append(kind, trial=trial)
        except LostCampaignError:
            self.leave(dead=True)
            return
        finally:
            journal._find_as_left = look  # type: ignore[method-assign]
        self.asked += kind == "asked"
        self.ended += kind == "ended"
        if lock.holds():
            self.kept.append(event)

    def leave(self, *, dead: bool = False) -> None:
        """End, or die without letting go."""
        if self.lock is None or self.journal is None:
            return
        if dead:
            self.lock._stopping.set()
            self.lock._thread.join()
        else:
            self.lock.release()
        self.journal.close()
        self.lock = self.journal = None


def act(drivers: dict[str, Driver], step: Any) -> None:
    who, what, *inner = step
    driver = drivers[who]
    if what == "append":
        others = inner[0] if inner else ()
        driver.append(act(drivers, other) for other in others)
    elif what == "start":
        driver.start()
    else:
        driver.leave(dead=what == "die")


NAMES = ["a", "b"]
PLAIN = st.tuples(st.sampled_from(NAMES), st.sampled_from(["start", "append", "append", "append", "end", "die"]))
STOPPED = st.tuples(st.just("a"), st.just("append"), st.lists(PLAIN.filter(lambda step: step[0] == "b"), max_size=6))
STEPS = st.lists(st.one_of(PLAIN, PLAIN, STOPPED), max_size=30)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(steps=[("a", "start"), ("a", "append"), ("b", "start"), ("b", "append"), ("b", "end"), ("a", "append")])
@example(steps=[("a", "start"), ("a", "append", [("b", "start"), ("b", "append"), ("b", "append")]), ("b", "append")])
@example(steps=[("a", "start"), ("a", "append", [("b", "start")]), ("b", "append"), ("b", "die"), ("a", "start")])
@example(steps=[("a", "start"), ("a", "append", [("b", "start"), ("b", "end")]), ("b", "start"), ("b", "append")])
@given(steps=STEPS)
def test_the_journal_opens_and_no_trial_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[Any]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    folder = tmp_path / "c"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    drivers = {name: Driver(folder, name) for name in NAMES}
    events: list[Event] = []
    try:
        for step in steps:
            act(drivers, step)
            events = read_journal(folder / "events.jsonl").events  # it opens at any time
            assert [event["seq"] for event in events] == list(range(len(events)))
            asked = [event["trial"] for event in events if event["event"] == "asked"]
            ended = [event["trial"] for event in events if event["event"] == "ended"]
            assert asked == list(range(len(asked)))
            assert ended == list(range(len(ended)))
        for driver in drivers.values():
            assert [event for event in driver.kept if event not in events] == []
    finally:
        for driver in drivers.values():
            driver.leave(dead=True)
