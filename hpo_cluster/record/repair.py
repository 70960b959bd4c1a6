"""Repair of a journal that was cut or damaged, from its valid lines and the files in the attempts' folders.

What a lost line held, and where it is found again:

| lost | found in |
|---|---|
| ``created``, ``started`` | the folder's name and an attempt's ``params.json``; settings from the next command |
| ``asked``, ``intent`` | ``params.json``: parameters, seed, token, code |
| ``submitted``, ``running``, ``ended`` | claim, result and error files, which the next driver collects |
| ``rung``, ``promoted``, ``paused`` | reports of rungs, which the next driver collects; the goals in ``params.json`` |
| ``asked`` of a trial without an attempt | nowhere: its number stays empty, and the optimizer proposes another trial |
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.errors import JournalError
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.confirmation import OF, REPLICATE
from hpo_cluster.record.files import listing, read_json, replace_text
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.journal import Event, is_event, read_data
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.record.lock import DriverLock
from hpo_cluster.record.trial_record import TrialRecord, may_be_retried
from hpo_cluster.trial import BASELINE, ErrorKind, Origin, State, trial_label


@dataclass
class Repair:
    """The outcome of a repair.

    Args:
        damaged: path of the old, damaged journal; None if the journal was valid and was not changed.
        lost_lines: number of lines that could not be read or did not fit.
        rebuilt: trials that were restored from their attempts' folders alone.
        gaps: numbers of trials of which nothing was found.
        waiting: trials whose results the next driver collects.
        has_start: whether the settings of a start are still recorded.
    """

    damaged: Path | None = None
    lost_lines: int = 0
    rebuilt: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    has_start: bool = True


def repair(campaign_dir: Path) -> Repair:
    """Rebuild the journal of a campaign, and keep the old file next to it.

    Raises:
        JournalError: if the folder does not hold a campaign.
        LockedError: if a driver is running.
    """
    layout = CampaignLayout(campaign_dir)
    identity = identity_of_campaign(layout.identity)
    lock = DriverLock(layout.lock)
    try:
        if _is_whole(layout):
            return Repair()
        events, lost = _readable(_data(layout.events))
        rebuilding = _Rebuilding(layout, identity.get("fidelity"))
        for event in events:
            rebuilding.take(event)
        rebuilding.add_what_only_files_know()
        lock.advance(max((event.get("epoch", 0) for event in events), default=0))
        lost += rebuilding.dropped
        damaged = layout.events.with_name(
            f"{layout.events.name}.damaged-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S}"
        )
        pairs = zip(events, rebuilding.events, strict=False)
        sound = next((number for number, (old, new) in enumerate(pairs) if {**new, **old} != new), len(events))
        told: dict[str, Any] = {
            "damaged": damaged.name,
            "lost_lines": lost,
            "rebuilt": sorted(rebuilding.rebuilt),
            "sound": sound,
        }
        rebuilding.add("repaired", epoch=lock.epoch, **told)
        _replace(layout.events, damaged, rebuilding.events)
        record = rebuilding.record
    finally:
        lock.release()
    numbers = {trial.number for trial in record.rows if trial.number > BASELINE}
    first = min((number for number in numbers if record.trials[number].origin is Origin.IMPORTED), default=0)
    return Repair(
        damaged=damaged,
        lost_lines=lost,
        rebuilt=sorted(rebuilding.rebuilt),
        gaps=sorted(set(range(first, max(numbers, default=-1) + 1)) - numbers),
        waiting=[trial.number for trial in record.in_flight if _has_result(layout, trial)],
        has_start=bool(record.starts),
    )


def _is_whole(layout: CampaignLayout) -> bool:
    if layout.events.is_symlink():
        return False
    try:
        Record.read(layout.events)
    except JournalError:
        return False
    return True


def _data(path: Path) -> bytes:
    """Return the content of the old journal; empty if it is not a file."""
    try:
        return read_data(path)
    except JournalError:
        return b""


def _readable(data: bytes) -> tuple[list[Event], int]:
    """Return the events in order, each once, and the number of lines that are not events."""
    kept: list[Event] = []
    lost = newest = 0
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not is_event(event):
            lost += bool(line.strip(b"\0 "))
            continue
        epoch = event.get("epoch", 0)
        if epoch > newest:  # lines of older drivers after the newer one had read the journal are stale
            newest = epoch
            kept = [earlier for earlier in kept if earlier["seq"] < event["seq"]]
        if epoch == newest and (not kept or event["seq"] > kept[-1]["seq"]):
            kept.append(event)
    return kept, lost


class _Rebuilding:
    """The new journal: each event is preceded by the events that it needs."""

    def __init__(self, layout: CampaignLayout, fidelity: Any = None) -> None:
        self._fidelity = {} if fidelity is None else {"fidelity": fidelity}
        self.events: list[Event] = []
        self.record = Record()
        self.rebuilt: set[int] = set()
        self.dropped = 0
        self._layout = layout
        self._attempts = _attempts_on_disk(layout)

    def add(self, event: str, *, at: str | None = None, epoch: int | None = None, **fields: Any) -> None:
        """Append one event with the next number."""
        last = self.events[-1] if self.events else {"at": utc_now(), "epoch": 0}
        marks = {"at": at or last["at"], "epoch": last.get("epoch", 0) if epoch is None else epoch}
        made = {"seq": len(self.events), **marks, "event": event, **fields}
        self.record.apply_read(made)
        self.events.append(made)

    def take(self, event: Event) -> None:
        """Append an event of the old journal, and before it, from files, the lost events that it refers to."""
        fields = {key: value for key, value in event.items() if key not in ("seq", "event")}
        kind = event["event"]
        if kind != "created" and self.record.created is None:
            self._create()
        try:
            if kind == "created" and self.record.created is not None:
                return
            if kind == "asked":
                known = self.record.trials
                fields["trials"] = [row for row in event["trials"] if row["trial"] not in known]
                if not fields["trials"] and event["trials"]:
                    return
            elif kind == "intent":
                if not self._has_trial(event["trial"]) or not self._has_attempts(event["trial"], event["attempt"]):
                    raise KeyError(event["trial"])
                trial = self.record.trials[event["trial"]]
                replaces = trial.attempt is not None and trial.attempt.number == event["attempt"]
                if len(trial.attempts) > event["attempt"] and not (replaces and trial.attempts[-1].after):
                    return
                if not self._knows(fields.get("after")):
                    fields = {key: value for key, value in fields.items() if key not in ("after", "turn")}
            elif "trial" in event and kind != "commanded":
                attempt = event.get("attempt")
                if not self._has_trial(event["trial"]):
                    raise KeyError(event["trial"])
                if attempt is not None and not self._has_attempts(event["trial"], attempt + 1):
                    raise KeyError(attempt)
            self.add(kind, **fields)
        except (KeyError, IndexError, TypeError, ValueError):
            self.dropped += 1

    def add_what_only_files_know(self) -> None:
        """Append the trials and attempts that are on disk and not in the old journal."""
        if self.record.created is None:
            self._create()
        for number, attempts in sorted(self._attempts.items()):
            if not self._has_trial(number):
                continue
            trial = self.record.trials[number]
            if len(trial.attempts) <= max(attempts) and may_be_retried(trial):
                self.add("reopened", trial=number)
            if not trial.state.ended or trial.state is State.PAUSED:
                self._has_attempts(number, max(attempts) + 1)

    def _create(self) -> None:
        params = next((params for attempts in self._attempts.values() for params in attempts.values()), {})
        name = self._layout.dir.resolve().name
        self.add("created", schema=SCHEMA, campaign=name, code=params.get("code"), **self._fidelity)

    def _has_trial(self, number: int) -> bool:
        """Return whether the trial is known; if only files know it, append its ``asked`` event first."""
        if number in self.record.trials:
            return True
        params = next(iter(self._attempts.get(number, {}).values()), None)
        if params is None:
            return False
        confirms = _confirms(params)
        origin = (
            Origin.BASELINE if number == BASELINE else Origin.EVALUATED if number > BASELINE else Origin.CONFIRMATION
        )
        if (origin is Origin.CONFIRMATION) != (confirms is not None):
            return False
        row = {
            "trial": number,
            "seed": params["seed"],
            "origin": origin,
            "parameters": params["parameters"],
            "info": confirms or ({"rung": rungs["first"]} if (rungs := _rungs(params)) else {}),
        }
        self.add("asked", trials=[row], decision={})
        self.rebuilt.add(number)
        return True

    def _has_attempts(self, number: int, count: int) -> bool:
        """Return whether the first `count` attempts are known; append the ``intent`` of those that only files know."""
        trial = self.record.trials[number]
        while len(trial.attempts) < count:
            attempt = len(trial.attempts)
            params = self._attempts.get(number, {}).get(attempt)
            if params is None:
                return False
            if trial.attempt is not None:
                self._give_up(trial)
            goal = (_rungs(params) or {}).get("goal", 0)
            if trial.climb is not None and trial.climb.goal < goal:
                self.add("promoted", trial=number, rung=goal, why="as its next attempt says")
            token = params["token"]
            name = params.get("job_name") or token
            self.add("intent", trial=number, attempt=attempt, token=token, job_name=name, code=params["code"])
        return True

    def _knows(self, after: Any) -> bool:
        """Return whether the attempt after which a job goes on is known, or could be added from its files."""
        if after is None:
            return True
        trial, attempt = after
        return self._has_trial(trial) and self._has_attempts(trial, attempt + 1)

    def _give_up(self, trial: TrialRecord) -> None:
        """End the trial's last attempt, at the rung or with the error in its files, so that the next one can begin."""
        last = trial.attempts[-1].number
        result = read_json(self._layout.attempt(trial.number, last).result) or {}
        if trial.climb is not None and type(rung := result.get("rung")) is int and 0 <= rung < trial.climb.top:
            self.add("paused", trial=trial.number, attempt=last, rung=rung)
            return
        error = read_json(self._layout.attempt(trial.number, last).error) or {}
        kind, message = error.get("kind") or ErrorKind.VANISHED, error.get("message") or "its record was lost"
        self.add("attempt_failed", trial=trial.number, attempt=last, error={"kind": str(kind), "message": str(message)})


def _confirms(params: dict[str, Any]) -> dict[str, int] | None:
    """Return which trial an attempt confirms and in which replicate, by its ``params.json``; None if it does not."""
    found = params.get("confirmation")
    if not isinstance(found, dict) or not all(type(found.get(name)) is int for name in (OF, REPLICATE)):
        return None
    return {name: found[name] for name in (OF, REPLICATE)}


def _rungs(params: dict[str, Any]) -> dict[str, int] | None:
    """Return first rung and goal of an attempt, by its ``params.json``; None if it has none."""
    rungs = params.get("rungs")
    if not isinstance(rungs, dict) or not all(type(rungs.get(name)) is int for name in ("first", "goal")):
        return None
    return {name: rungs[name] for name in ("first", "goal")}


def _attempts_on_disk(layout: CampaignLayout) -> dict[int, dict[int, dict[str, Any]]]:
    """Return the ``params.json`` of each attempt on disk, by trial and attempt."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for folder in sorted(layout.trials_dir.glob("*/a*")):
        params = read_json(AttemptLayout(folder).params) or {}
        trial, attempt = params.get("trial"), params.get("attempt")
        sound = isinstance(params.get("parameters"), dict) and isinstance(params.get("token"), str)
        if not (sound and type(trial) is int and type(attempt) is int and type(params.get("seed")) is int):
            continue
        if folder.name == f"a{attempt}" and folder.parent.name == trial_label(trial):
            found.setdefault(trial, {})[attempt] = params
    return {number: dict(sorted(attempts.items())) for number, attempts in found.items()}


def _has_result(layout: CampaignLayout, trial: TrialRecord) -> bool:
    names: set[str] = set()
    for attempt in trial.attempts:
        if attempt.rung is not None:
            continue
        with contextlib.suppress(OSError):
            names.update(listing(layout.attempt(trial.number, attempt.number).dir))
    return trial.state is not State.CANCELLED and "result.json" in names


def _replace(path: Path, damaged: Path, events: list[Event]) -> None:
    """Replace the old journal by the new one, whole or not at all, and keep the old one as `damaged`."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.rename(damaged)
    elif path.exists():
        os.link(path, damaged)  # from here on a journal exists under this name, even if this process dies
    replace_text(path, "".join(json.dumps(event, allow_nan=False) + "\n" for event in events))
