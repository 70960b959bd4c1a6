"""One row for each campaign of a folder, read fast: without pandas, and without what no row needs of the journals.

Campaigns with rungs or several objectives are read as a whole.

A journal line begins with its number, time, epoch and kind, as the driver writes them. Lines of kinds that no row needs
are never parsed. A line that begins otherwise is parsed as a whole, so that a journal that was written by other means
gives the same row.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.errors import JournalError
from hpo_cluster.goals import Goals
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import is_there, listing, refresh
from hpo_cluster.record.identity import SIMULATION, identity_of_campaign
from hpo_cluster.record.journal import Contents, Event, is_event, whole_lines
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.lock import owner_lives, read_lock
from hpo_cluster.text import command_line
from hpo_cluster.trial import BASELINE, Origin, State

#: The beginning of a line as the driver writes it.
_HEAD = re.compile(rb'\{"seq": (\d+), "at": "([^"]+)", "epoch": (\d+), "event": "(\w+)"(?:, "trial": (-?\d+))?')
#: Kinds of events that are parsed as a whole.
_NEEDED = frozenset({"created", "asked", "ended", "started", "stopped"})
#: Kinds of events after which a trial is not what it was before, beside the needed ones.
_MOVES = {"intent": State.PROPOSED, "submitted": State.SUBMITTED, "running": State.RUNNING}
_MOVES |= {"attempt_failed": State.PROPOSED, "reopened": State.PROPOSED}


@dataclass
class _Tally:
    """What a journal says of a campaign, as far as a row needs it."""

    maximize: bool
    budget: int = 0
    host: str | None = None
    last: str | None = None
    stopped: Event | None = None
    best: float | None = None
    states: dict[int, State] = field(default_factory=dict)  # of the trials that the budget counts, and the baseline

    def take(self, event: Event) -> None:
        """Count one event."""
        kind, trial = event["event"], event.get("trial")
        self.last = event["at"]
        if kind == "started":
            self.budget, self.host, self.stopped = event["operation"].get("budget", 0), event.get("host"), None
        elif kind == "stopped":
            self.stopped = event
        elif kind == "asked":
            for row in event["trials"]:
                if row["origin"] in (Origin.EVALUATED, Origin.BASELINE, Origin.CONFIRMATION):
                    self.states[row["trial"]] = State.PROPOSED
        elif kind == "created":
            for row in event.get("trials", ()):
                if "state" in row:
                    self.take({**row, "event": "ended", "at": event["at"]})
        elif kind == "ended":
            self.states[event["trial"]] = State(event["state"])
            value = event.get("value")
            if self.states[event["trial"]] is State.COMPLETED and event["trial"] > BASELINE and value is not None:
                better = self.best is None or (value > self.best if self.maximize else value < self.best)
                self.best = value if better else self.best
        elif kind in _MOVES and trial in self.states:
            self.states[int(trial)] = _MOVES[kind]

    @property
    def counts(self) -> Counter[State]:
        """Number of trials in each state, without the baseline and confirmations."""
        return Counter(state for number, state in self.states.items() if number > BASELINE)

    @property
    def in_flight(self) -> int:
        """Number of trials that have not ended, with the baseline."""
        return sum(not state.ended for state in self.states.values())


def campaigns_in(folder: Path) -> list[Path]:
    """Return the campaigns directly in a folder, or the folder if it is one; names are sorted as people count."""
    if _is_campaign(folder):
        return [folder]
    return _campaigns_among(folder, listing(folder))


def _campaigns_among(folder: Path, names: Iterable[str]) -> list[Path]:
    return [folder / name for name in sorted(names, key=_as_counted) if _is_campaign(folder / name)]


def folders_of_campaigns(folder: Path, deep: int = 2) -> dict[Path, list[Path]]:
    """Return the campaigns in the folders below a folder that are not campaigns, by folder; `deep` is how far below."""
    found: dict[Path, list[Path]] = {}
    for name in sorted(refresh(folder), key=_as_counted):
        below = folder / name
        if name.startswith(".") or below.is_symlink() or not os.path.isdir(below) or _is_campaign(below):  # noqa: PTH112 (no error)
            continue
        if inside := _campaigns_among(below, refresh(below)):
            found[below] = inside
        if deep > 1:
            found |= folders_of_campaigns(below, deep - 1)
    return found


def _as_counted(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names with the numbers in them as numbers: ``seed-2`` before ``seed-10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts if part]


def _is_campaign(folder: Path) -> bool:
    layout = CampaignLayout(folder)
    return is_there(layout.identity) or is_there(layout.events)


def overview(folder: Path) -> dict[str, Any]:
    """Return the row of a campaign as plain data (JSON); `fault` says why it cannot be read, and is None otherwise."""
    row: dict[str, Any] = {"campaign": folder.resolve().name, "dir": str(folder), "fault": None}
    try:
        return {**row, **_read(CampaignLayout(folder))}
    except (JournalError, OSError) as error:
        fault = str(error)
    except (LookupError, TypeError, ValueError, AttributeError):
        fault = f"{folder}/events.jsonl does not fit together; was it edited? {command_line('repair', folder)}"
    return {**row, "fault": fault}


def _read(layout: CampaignLayout) -> dict[str, Any]:
    identity = identity_of_campaign(layout.identity)
    goals, owner = Goals.of(identity["objective"]), read_lock(layout.lock)
    alive = owner is not None and owner_lives(layout.lock, owner)
    tally = _Tally(identity["direction"] == "maximize")
    for event in _events(layout.events):
        tally.take(event)
    counts = tally.counts
    done: float = sum(count for state, count in counts.items() if state.counts)
    in_flight = tally.in_flight
    running = sum(state is State.RUNNING for state in tally.states.values())
    record = Record.read(layout.events) if goals is not None or identity.get("fidelity") or tally.last is None else None
    if record is not None and record.ladder is not None:  # a paused trial has not ended, and is not under way
        done, in_flight = record.spent, len(record.in_flight)
        running = sum(trial.state is State.RUNNING for trial in record.in_flight)
    front = None if goals is None or record is None else record.front(goals)
    best = tally.best if front is None else front[0].value if front else None
    several = goals is not None and goals.several
    return {
        "optimizer": identity["optimizer"].get("name"),
        "objective": _objective(identity["objective"]),
        "simulated": SIMULATION in identity,
        "direction": identity["direction"],
        "state": _state(tally, in_flight, alive=alive),
        "reason": (tally.stopped or {}).get("reason"),
        "host": tally.host,
        "budget": tally.budget,
        "done": done,
        "completed": counts[State.COMPLETED],
        "in_flight": in_flight,
        "running": running,
        "best": None if several else best,
        "front": len(front or ()) if several else None,
        "last_change": tally.last,
    }


def _events(path: Path) -> Iterable[Event]:
    """Return the events of a journal in order, of those that a row does not need only the beginning."""
    contents = Contents()
    for number, line in enumerate(whole_lines(path)):
        head = _HEAD.match(line)
        event = None if head is None else _beginning(head)
        if event is None or event["event"] in _NEEDED or (event["event"] in _MOVES and "trial" not in event):
            event = _parsed(line)
        if not is_event(event) or not contents.take(event):
            raise JournalError(
                f"{path}, line {number + 1}: is not the next event; {command_line('repair', path.parent)}"
            )
    return contents.events


def _beginning(head: re.Match[bytes]) -> Event:
    event = {"seq": int(head[1]), "at": head[2].decode(), "epoch": int(head[3]), "event": head[4].decode()}
    return event if head[5] is None else {**event, "trial": int(head[5])}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _objective(settings: Mapping[str, Any]) -> str:
    """Return a short name of an objective: its kind, or the function that is evaluated."""
    named = settings.get("function") if settings.get("kind") in ("synthetic", "function") else None
    return str(named or settings.get("kind"))


def _state(tally: _Tally, in_flight: int, *, alive: bool) -> str:
    """Return ``running``, ``finished``, ``stopped`` (it says why) or ``interrupted`` (its driver died or was ended)."""
    reason = (tally.stopped or {}).get("reason")
    if alive:
        return "running"
    if reason == "finished" and not in_flight:
        return "finished"
    return "interrupted" if tally.stopped is None or reason == "interrupted" else "stopped"
