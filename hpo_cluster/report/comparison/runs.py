"""One campaign of a comparison: what it recommends, and its best value after each evaluation, read from its journal."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.goals import Goals
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import moment
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.record.journal import Event, read_journal
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.report.data import Campaign, read_campaign
from hpo_cluster.space import Configuration
from hpo_cluster.trial import Origin, State

Array = NDArray[np.float64]

#: What a search costs, by the name of the column that counts it.
COSTS = ("evaluations", "equivalents", "gpu_hours", "hours")


@dataclass(frozen=True)
class Curve:
    """The best value of a campaign after each of its evaluations.

    Args:
        costs: by name of `COSTS`, what was spent until then.
        best: the best target until then (a larger one is better); -inf before the first value.
    """

    costs: Mapping[str, Array]
    best: Array

    def at(self, cost: str, places: Array) -> Array:
        """Return the best target when this much was spent: -inf before the first value, the last one after the end."""
        index = np.searchsorted(self.costs[cost], places, side="right")
        return np.concatenate([[-np.inf], self.best])[index]

    def reaches(self, cost: str, target: float) -> float:
        """Return what was spent when the best target reached this one; infinity if it never did."""
        reached = np.flatnonzero(self.best >= target)
        return float(self.costs[cost][reached[0]]) if len(reached) else math.inf

    def end(self, cost: str) -> float:
        """Return what was spent in all."""
        return float(self.costs[cost][-1]) if len(self.best) else 0.0


@dataclass(frozen=True)
class Run:
    """One campaign of a comparison.

    Args:
        dir: its folder, as it was given.
        campaign: its identity, trials, history and metrics.
        curve: its best value after each evaluation.
        measured: the metrics that each of these evaluations has measured; None for one without a value.
    """

    dir: Path
    campaign: Campaign
    curve: Curve
    measured: Sequence[Mapping[str, float] | None]

    @property
    def record(self) -> Record:
        """The campaign's trials."""
        return self.campaign.record

    @property
    def identity(self) -> dict[str, Any]:
        """What the campaign is, as ``campaign.yaml`` says."""
        return self.campaign.identity

    @property
    def seed(self) -> int:
        """The campaign's seed, by which campaigns are paired."""
        return int(self.identity.get("seed", 0))

    @property
    def sign(self) -> float:
        """What a value is multiplied by so that a larger one is better."""
        return 1.0 if self.campaign.maximize else -1.0

    @property
    def has_rungs(self) -> bool:
        """Whether evaluations may end early, at a rung."""
        return self.record.ladder is not None

    @cached_property
    def evaluated(self) -> list[tuple[Configuration, float | None]]:
        """The configurations that were evaluated with their values, in the order in which they were proposed."""
        return [(trial.parameters, trial.value) for trial in self.record.rows if _scored(trial)]

    @property
    def operation(self) -> dict[str, Any]:
        """How the campaign was last run: budget, workers and more."""
        return dict(self.record.starts[-1]["operation"]) if self.record.starts else {}

    @cached_property
    def recommended(self) -> int | None:
        """Number of the trial that the campaign recommends; None if none has a value that counts.

        It is the trial with the best posterior mean, and with few values the one with the best value.
        """
        ranked = self.campaign.ranked
        if ranked.empty or self.campaign.recommended is not None:
            return self.campaign.recommended
        return int(ranked.iloc[0]["trial"])

    @property
    def remark(self) -> str | None:
        """What a reader has to know of its score; None if it is an ordinary one."""
        if self.recommended is None:
            return "no trial has a value that counts"
        imported = self.record.trials[self.recommended].origin is Origin.IMPORTED
        return "recommends an evaluation that it imported" if imported else None

    def score(self, metric: str | None = None) -> float:
        """Return a metric of the recommended trial, or the value that is optimised; NaN if it was not measured."""
        return self._of_recommended("value" if metric is None else METRIC_PREFIX + metric)

    @property
    def score_sem(self) -> float:
        """The standard error of the recommended trial's value, as the objective reports it; NaN if it is unknown."""
        return self._of_recommended("value_sem")

    def _of_recommended(self, column: str) -> float:
        history = self.campaign.history
        if self.recommended is None or column not in history.columns:
            return math.nan
        return float(history.loc[history["trial"] == self.recommended, column].iloc[0])

    @property
    def unfinished(self) -> str | None:
        """How far the campaign is, if it may go on; None if it has ended."""
        budget, done = self.operation.get("budget"), self.record.spent
        if budget is None:
            return "it has not been started"
        ended = self.record.is_finished
        return None if done >= budget or ended else f"{done:.4g} of {budget:g} evaluations"

    @property
    def without_value(self) -> int:
        """Number of evaluations that ended without a value."""
        return sum(
            _scored(trial) and trial.state is not State.PAUSED and trial.value is None for trial in self.record.rows
        )


def read_run(folder: Path) -> Run:
    """Return a campaign for a comparison. Raise JournalError if it cannot be read."""
    campaign = read_campaign(folder)
    events = read_journal(campaign.layout.events).events
    return Run(folder, campaign, *_curve(events, campaign.goals, 1.0 if campaign.maximize else -1.0))


def _scored(trial: TrialRecord) -> bool:
    """Return whether a trial counts as an evaluation: it has ended, or was scored at a rung."""
    return trial.in_budget and trial.state.counts


def _curve(events: list[Event], goals: Goals | None, sign: float) -> tuple[Curve, list[Mapping[str, float] | None]]:
    """Return the best value after each evaluation, and what each has measured, by repeating what happened.

    Evaluations that were made elsewhere are all in the first event, each with its own times. `events` are known to fit
    together.
    """
    record, best = Record(), -math.inf
    scored: set[int] = set()
    first: datetime.datetime | None = None
    times: list[datetime.datetime] = []
    points: list[tuple[float, ...]] = []
    measured: list[Mapping[str, float] | None] = []
    for event in events:
        record.apply(event)
        elsewhere = event["event"] == "created"
        trials = record.rows if elsewhere else [record.trials[event["trial"]]] if "trial" in event else []
        for trial in trials:
            if not trial.in_budget:
                continue
            now = moment(trial.ended_at if elsewhere and trial.ended_at else event["at"])
            if first is None and (began := trial.submitted_at or trial.started_at):
                first = moment(began)
            if not _scored(trial):
                continue
            scored.add(trial.number)
            measured.append(None)
            if trial.state is State.COMPLETED and trial.value is not None:
                measured[-1] = trial.metrics
                good = goals is None or goals.feasible(trial.metrics)
                best = max(best, sign * trial.value) if good else best
            hours = (now - (first or now)).total_seconds() / 3600
            spent = len(scored) if elsewhere else record.spent
            times.append(now)
            points.append((len(scored), spent, max(hours, 0.0), best))
    evaluations, equivalents, waited, reached = np.array(points, dtype=np.float64).reshape(len(points), 4).T
    columns = (evaluations, equivalents, _gpu_hours_at(times, record), waited)
    costs = {name: np.maximum.accumulate(column) for name, column in zip(COSTS, columns, strict=True)}
    return Curve(costs, reached), measured


def _gpu_hours_at(times: list[datetime.datetime], record: Record) -> Array:
    """Return the GPU-hours that all attempts had used at each of some times, as is known afterwards.

    At a time, each attempt that had begun counts from its beginning, less what has passed since its end. These are
    sums over sorted times: to add up the attempts for each time would take as long as evaluations times workers.
    """
    began = [a for trial in record.rows for a in trial.attempts if a.gpus and a.occupied_since]
    edges = [(moment(a.occupied_since or ""), a.gpus) for a in began]
    edges += [(moment(a.ended_at), -a.gpus) for a in began if a.ended_at]
    edges.sort()
    if not times or not edges:
        return np.zeros(len(times))
    until, since = (np.array([(at - times[0]).total_seconds() for at in ats]) for ats in (times, [e[0] for e in edges]))
    gpus = np.array([count for _, count in edges], dtype=np.float64)
    counts, seconds = (np.concatenate([[0.0], np.cumsum(values)]) for values in (gpus, gpus * since))
    before = np.searchsorted(since, until, side="right")
    hours: Array = (counts[before] * until - seconds[before]) / 3600
    return hours
