"""What a terminal shows of a campaign again and again: its status, the speed of its jobs, and their learning curves."""

from __future__ import annotations

import datetime
import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.goals import Goals
from hpo_cluster.record.attempt_files import curve_losses
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import is_time
from hpo_cluster.record.files import Reread, read_json
from hpo_cluster.record.follow import FollowedJournal
from hpo_cluster.record.identity import SIMULATION, identity_of_campaign
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.lock import owner_lives, read_lock
from hpo_cluster.record.status import summarise
from hpo_cluster.record.trial_record import Place, TrialRecord
from hpo_cluster.trial import State

#: Number of trials that ended last of which a look has the curve.
NEWEST = 5
#: The speed of a job is measured over this many of its last reports.
REPORTS = 20
#: Maximum number of losses that are kept of a job which does not report its curve.
LOSSES = 200


@dataclass
class JobSeen:
    """What was seen of a running attempt until now.

    Attributes:
        phase: in which its last report was made.
        reports: time in seconds since 1970 and step of the last reports in this phase.
        losses: its learning curve: as the job reports it, or the losses of the reports that were seen.
    """

    phase: str | None = None
    reports: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=REPORTS))
    losses: list[float] = field(default_factory=list)

    def take(self, progress: Mapping[str, Any]) -> None:
        """Take in the content of a progress file."""
        at, step, loss, phase = (progress.get(name) for name in ("at", "step", "loss", "phase"))
        if not is_time(at) or type(step) is not int:
            return
        moment = datetime.datetime.fromisoformat(str(at)).timestamp()
        if phase != self.phase or (self.reports and step < self.reports[-1][1]):
            self.phase = phase if isinstance(phase, str) else None
            self.reports.clear()
        if self.reports and moment <= self.reports[-1][0]:
            return
        self.reports.append((moment, step))
        if reported := _losses(progress.get("curve")):
            self.losses = reported
        elif read := _losses([loss]):
            self.losses += read
            if len(self.losses) > LOSSES:
                self.losses = self.losses[::2]

    @property
    def steps_per_s(self) -> float | None:
        """The steps per second over the last reports; None before the second one."""
        if len(self.reports) < 2:
            return None
        (began, first), (ended, last) = self.reports[0], self.reports[-1]
        return (last - first) / (ended - began)


def _losses(values: Any) -> list[float]:
    """Return a list of losses; empty if it is not one."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return []
    return [float(value) for value in values if abs(value) < float("inf")]


@dataclass(frozen=True)
class Look:
    """One look at a campaign.

    Attributes:
        status: as `hpo_cluster.record.status.campaign_status` returns it.
        best: the best value after each completed trial, in the order of their ends.
        jobs: what was seen of each running attempt.
        newest: the trials that ended last, the newest first.
        curves: losses of their trainings, by trial; empty without a learning curve.
    """

    status: dict[str, Any]
    best: Sequence[float]
    jobs: Mapping[Place, JobSeen]
    newest: Sequence[TrialRecord]
    curves: Mapping[int, list[float]]


class WatchedCampaign:
    """A campaign that is looked at again and again; each look reads only the files that changed.

    Args:
        campaign_dir: the campaign's folder.

    Raises:
        JournalError: if there is no campaign.
    """

    def __init__(self, campaign_dir: Path) -> None:
        self._layout = CampaignLayout(campaign_dir)
        identity = identity_of_campaign(self._layout.identity)
        self._direction = identity["direction"]
        self._simulated = SIMULATION in identity
        self._goals = Goals.of(identity["objective"])
        self._journal = FollowedJournal(self._layout.events)
        self._read = Reread()
        self._jobs: dict[Place, JobSeen] = {}
        self._curves: dict[int, list[float]] = {}
        self._seen: tuple[Record | None, int] = (None, -1)
        self._best: list[float] = []
        self._newest: list[TrialRecord] = []

    def look(self) -> Look:
        """Read what changed since the last look.

        Raises:
            JournalError: if the journal is gone, or cannot be read.
            OSError: if the storage does not answer.
        """
        record = self._journal.look()
        owner = read_lock(self._layout.lock)
        alive = owner is not None and owner_lives(self._layout.lock, owner)
        status = summarise(
            record,
            self._layout,
            self._direction,
            goals=self._goals,
            driver_alive=alive,
            simulated=self._simulated,
            read=self._read,
        )
        if (record, record.seq) != self._seen:
            self._seen = record, record.seq
            self._best = best_so_far(record, maximize=self._direction == "maximize", goals=self._goals)
            self._newest = newest(record)
            self._curves = {trial.number: self._curve_of(trial) for trial in self._newest}
        self._jobs = {place: self._job(place) for place in _running(record)}
        return Look(status, self._best, self._jobs, self._newest, self._curves)

    def _job(self, place: Place) -> JobSeen:
        job = self._jobs.get(place) or JobSeen()
        job.take(self._read(self._layout.attempt(*place).progress) or {})
        return job

    def _curve_of(self, trial: TrialRecord) -> list[float]:
        if trial.number in self._curves:
            return self._curves[trial.number]
        result = read_json(self._layout.attempt(trial.number, trial.attempts[-1].number).result) or {}
        return [loss for _, loss in curve_losses(result)]


def _running(record: Record) -> list[Place]:
    """Return the attempts that run now."""
    members = ((trial, trial.attempt) for trial in record.in_flight if trial.state is State.RUNNING)
    return [(trial.number, attempt.number) for trial, attempt in members if attempt is not None]


def best_so_far(record: Record, *, maximize: bool, goals: Goals | None = None) -> list[float]:
    """Return the best value after each completed trial that satisfies the constraints, in the order of their ends."""
    within = (trial for trial in record.valued if goals is None or goals.feasible(trial.metrics))
    ended = sorted(within, key=lambda trial: trial.ended_seq or 0)
    return list(itertools.accumulate((trial.value or 0.0 for trial in ended), max if maximize else min))


def newest(record: Record) -> list[TrialRecord]:
    """Return the trials with a job that ended last, the newest first."""
    ended = (trial for trial in record.rows if trial.ended_seq is not None and trial.attempts)
    return heapq.nlargest(NEWEST, ended, key=lambda trial: trial.ended_seq or 0)
