"""A regression on a campaign's history: from a configuration to its metrics, its seconds, and how it may fail.

Each metric has a forest of extremely randomised trees on the canonical point of a configuration in the unit cube, with
the activity of conditional parameters and the share of a whole evaluation next to it. Another forest predicts the
logarithm of the seconds, and a classifier the state in which a trial ends, if any trial of the history has failed.

The trees: P. Geurts, D. Ernst, L. Wehenkel, "Extremely randomized trees", Machine Learning 63, 2006. Forests as
surrogates of campaigns: K. Eggensperger et al., "Efficient benchmarking of hyperparameter optimizers via surrogates",
AAAI 2015.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.space import Configuration, Space, Value
from hpo_cluster.text import counted
from hpo_cluster.trial import DRIVER_KINDS, WITHOUT_VALUE, ErrorKind, Origin, State

if TYPE_CHECKING:
    from hpo_cluster.objectives.forest import Array

#: Evaluations that a history must have.
LEAST = 8
#: Parts of a cross-validation.
FOLDS = 5
#: Kinds of failures that say nothing of a configuration.
NOT_ITS_FAULT = DRIVER_KINDS - {ErrorKind.WALLTIME} | {ErrorKind.DISK, ErrorKind.INTERRUPTED}


@dataclass(frozen=True)
class Seen:
    """What a history says of one configuration, at a share of a whole evaluation.

    Args:
        parameters: the configuration.
        share: of a whole evaluation.
        metrics: what was measured, by name; empty if it failed.
        sems: standard errors that are known.
        seconds: of the evaluation, in one job; NaN below a share of 1, and if they are not known.
        state: how the trial ended.
    """

    parameters: Configuration
    share: float
    metrics: Mapping[str, float]
    sems: Mapping[str, float]
    seconds: float
    state: State


@dataclass(frozen=True, eq=False)
class Evaluations:
    """The finished evaluations of a campaign, up to one event of its journal.

    Args:
        campaign: name of the campaign.
        space: its search space.
        objective: its objective, as its identity records it.
        direction: of its objective.
        metric: name of its objective's value.
        until: number of the last event that was read.
        rows: what was seen.
        waits: seconds between the submission and the start of each attempt.
        start_s: seconds of an attempt that its job pays once, whatever share it evaluates; 0 if they are not known.
    """

    campaign: str
    space: Space
    objective: Mapping[str, Any]
    direction: str
    metric: str
    until: int
    rows: tuple[Seen, ...]
    waits: tuple[float, ...] = ()
    start_s: float = 0.0

    @property
    def whole(self) -> list[Seen]:
        """The whole evaluations that have ended with a value."""
        return [row for row in self.rows if row.share == 1 and row.metrics]

    @property
    def failed(self) -> list[Seen]:
        """The evaluations that have failed."""
        return [row for row in self.rows if row.state in WITHOUT_VALUE]

    @property
    def timed(self) -> list[Seen]:
        """The evaluations whose seconds are known."""
        return [row for row in self.rows if row.seconds > 0]

    @property
    def names(self) -> list[str]:
        """Names of the metrics of whole evaluations."""
        return sorted({name for row in self.whole for name in row.metrics})

    def sem(self, metric: str) -> float:
        """Return the median standard error of a metric of whole evaluations; 0 if it is not known."""
        known = [row.sems[metric] for row in self.whole if metric in row.sems]
        return float(statistics.median(known)) if known else 0.0

    @classmethod
    def read(cls, folder: Path, metric: str, until: int | None = None) -> Evaluations:
        """Read the evaluations of a campaign.

        Args:
            folder: of the campaign.
            metric: name of its objective's value.
            until: number of the last event to read; None: all.

        Raises:
            JournalError: if there is no campaign, or its journal cannot be read.
        """
        layout = CampaignLayout(folder)
        identity = identity_of_campaign(layout.identity)
        events = read_events(layout.events)[: None if until is None else until + 1]
        record = Record.of(events, layout.events)
        space = Space.from_json(identity["space"])
        rows, waits, start_s = list[Seen](), list[float](), _start_s(record)
        for trial in record.rows:
            if trial.origin in (Origin.EVALUATED, Origin.IMPORTED):
                rows += _seen(trial, metric, record, start_s)
                waits += _waits(trial)
        return cls(
            layout.dir.resolve().name,
            space,
            identity["objective"],
            identity["direction"],
            metric,
            record.seq,
            tuple(rows),
            tuple(waits),
            start_s,
        )


def _start_s(record: Record) -> float:
    """Return the seconds that a job takes before it evaluates: imports, loading, and what else is paid once.

    A line through the shares and seconds of the rungs that an attempt reported says it, and the median of all counts.
    """
    import numpy as np

    found, ladder = list[float](), record.ladder
    for trial in record.rows if ladder is not None else ():
        scores = {} if trial.climb is None else trial.climb.scores
        for attempt in trial.attempts:
            mine = {rung: each.seconds for rung, each in scores.items() if each.attempt == attempt.number}
            known = [(ladder.shares[rung], seconds) for rung, seconds in mine.items() if ladder and seconds is not None]
            if attempt.after is None and len(known) > 1:
                shares, seconds = zip(*known, strict=True)
                found.append(float(np.polyfit(shares, seconds, 1)[1]))
    return max(0.0, statistics.median(found)) if found else 0.0


def _seen(trial: TrialRecord, metric: str, record: Record, start_s: float) -> list[Seen]:
    """Return what is known of one trial; nothing if it has not ended, or not through its configuration."""
    rows = []
    scores = {} if trial.climb is None or record.ladder is None else trial.climb.scores
    for rung, score in scores.items():
        assert record.ladder is not None
        if rung < record.ladder.top and score.value is not None:
            values = {**score.metrics, metric: score.value}
            rows.append(Seen(trial.parameters, record.ladder.shares[rung], values, {}, math.nan, State.COMPLETED))
    if trial.state is State.COMPLETED and trial.value is not None:
        sems = {**trial.sems, **({} if trial.value_sem is None else {metric: trial.value_sem})}
        values = {**trial.metrics, metric: trial.value}
        rows.append(Seen(trial.parameters, 1.0, values, sems, _seconds(trial, start_s), State.COMPLETED))
    elif trial.state in WITHOUT_VALUE and (trial.error or {}).get("kind") not in NOT_ITS_FAULT:
        rows.append(Seen(trial.parameters, 1.0, {}, {}, _seconds(trial, start_s), trial.state))
    return rows


def _seconds(trial: TrialRecord, start_s: float) -> float:
    """Return the seconds that a trial's evaluation takes in a job of its own; NaN if they are not known.

    Attempts that were lost do not count.
    """
    if not trial.attempts:  # it was evaluated elsewhere
        return _between(trial.started_at, trial.ended_at)
    attempts = trial.attempts if trial.climb is not None else trial.attempts[-1:]
    spans = [_between(a.started_at, a.ended_at) - (start_s if a.after is None else 0.0) for a in attempts]
    known = [span for span in spans if not math.isnan(span)]
    return start_s + max(0.0, sum(known)) if known else math.nan


def _waits(trial: TrialRecord) -> list[float]:
    """Return the seconds that each job of a trial has waited to begin."""
    firsts = (a for a in trial.attempts if a.job is not None and a.after is None)
    spans = [_between(None if a.job is None else a.job.submitted_at, a.started_at) for a in firsts]
    return [max(0.0, span) for span in spans if not math.isnan(span)]


def _between(start: str | None, end: str | None) -> float:
    if not start or not end:
        return math.nan
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a configuration: metrics by name, seconds of a whole evaluation, chances of failed states.

    `seconds` is NaN if the history holds none.
    """

    metrics: Mapping[str, float]
    seconds: float
    failures: Mapping[State, float] = field(default_factory=dict)


class Regression:
    """The forests of a campaign's evaluations.

    Args:
        evaluations: what was seen.
        metrics: names of the metrics to predict.
    """

    def __init__(self, evaluations: Evaluations, metrics: Sequence[str]) -> None:
        from hpo_cluster.objectives.forest import Trees

        self.evaluations, self.space = evaluations, evaluations.space
        self._forests = {}
        for name in metrics:
            rows = [row for row in evaluations.rows if name in row.metrics]
            self._forests[name] = Trees(self._features(rows), _numbers(row.metrics[name] for row in rows))
        self._seconds = None
        if timed := evaluations.timed:
            self._seconds = Trees(self._features(timed), _numbers(math.log(row.seconds) for row in timed))
        self._states: Any = None
        if evaluations.failed:
            from sklearn.ensemble import ExtraTreesClassifier

            ended = [row for row in evaluations.rows if row.share == 1]
            states = [str(row.state) for row in ended]
            self._states = ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0, n_jobs=1)
            self._states.fit(self._features(ended), states)

    def predict(self, parameters: Mapping[str, Value], share: float = 1.0) -> Prediction:
        """Return what is predicted of a configuration at a share of a whole evaluation."""
        features = self._features([Seen(dict(parameters), share, {}, {}, math.nan, State.COMPLETED)])
        metrics = {name: float(forest.predict(features)[0]) for name, forest in self._forests.items()}
        seconds = math.nan if self._seconds is None else math.exp(float(self._seconds.predict(features)[0]))
        chances = {}
        if self._states is not None:
            features[:, -1] = 1.0
            found = zip(self._states.classes_, self._states.predict_proba(features)[0], strict=True)
            chances = {State(name): float(chance) for name, chance in found if State(name) in WITHOUT_VALUE}
        return Prediction(metrics, seconds, chances)

    def _features(self, rows: Sequence[Seen]) -> Array:
        return features_of(self.space, rows)


def features_of(space: Space, rows: Sequence[Seen]) -> Array:
    """Return what the trees split on: points of the unit cube, which parameters are active, the share."""
    import numpy as np

    points = np.array([space.encode(row.parameters) for row in rows], dtype=np.float64)
    active = space.active(points).astype(np.float64)
    conditional = [axis for axis, (_, parameter) in enumerate(space) if parameter.when]
    return np.column_stack([points, active[:, conditional], [row.share for row in rows]])


def _numbers(values: Any) -> Array:
    import numpy as np

    return np.array(list(values), dtype=np.float64)


@dataclass(frozen=True)
class Quality:
    """How well held-out whole evaluations of a history are predicted.

    Args:
        metric: the metric.
        evaluations: number of values.
        folds: number of parts, each predicted from the others.
        rmse: root mean square of the errors.
        spread: standard deviation of the values.
        spearman: rank correlation of predictions and values; NaN if all are equal.
        sem: median standard error of the values; 0 if it is not known.
        failures: number of evaluations that failed.
    """

    metric: str
    evaluations: int
    folds: int
    rmse: float
    spread: float
    spearman: float
    sem: float
    failures: int

    @property
    def sentence(self) -> str:
        """The figures in one sentence."""
        noise = f"their standard error is {self.sem:.3g}" if self.sem else "their noise is not known"
        order = "" if math.isnan(self.spearman) else f", Spearman's correlation {self.spearman:.2f}"
        failed = f"; {counted(self.failures, 'more evaluation')} failed" if self.failures else ""
        return (
            f"Cross-validated in {self.folds} parts on {self.evaluations} evaluations, the error (RMSE) of "
            f"{self.metric} is {self.rmse:.3g}{order}; the values spread by {self.spread:.3g}, {noise}{failed}"
        )


def cross_validation(evaluations: Evaluations, metric: str) -> Quality:
    """Return how well whole evaluations are predicted from the others, in `FOLDS` parts."""
    import numpy as np
    from scipy.stats import spearmanr

    whole = [row for row in evaluations.whole if metric in row.metrics]
    x, y = features_of(evaluations.space, whole), _numbers(row.metrics[metric] for row in whole)
    guess, folds = _held_out(x, y), min(FOLDS, len(y))
    order = float(spearmanr(y, guess)[0]) if np.ptp(y) > 0 and np.ptp(guess) > 0 else math.nan
    return Quality(
        metric,
        len(y),
        folds,
        float(np.sqrt(((guess - y) ** 2).mean())),
        float(y.std()),
        order,
        evaluations.sem(metric),
        len(evaluations.failed),
    )


def _held_out(x: Array, y: Array) -> Array:
    """Return a prediction of each value from the other parts of the data."""
    import numpy as np
    from sklearn.model_selection import KFold

    from hpo_cluster.objectives.forest import Trees

    guess = np.empty(len(y))
    for train, test in KFold(min(FOLDS, len(y)), shuffle=True, random_state=0).split(x):
        guess[test] = Trees(x[train], y[train]).predict(x[test])
    return guess


@functools.lru_cache(maxsize=8)
def spread_of_seconds(evaluations: Evaluations) -> float | None:
    """Return the error of predicted seconds of held-out evaluations, as a standard deviation of their logarithm.

    None if fewer than `LEAST` are known.
    """
    timed = evaluations.timed
    if len(timed) < LEAST:
        return None
    y = _numbers(math.log(row.seconds) for row in timed)
    return float((y - _held_out(features_of(evaluations.space, timed), y)).std())


@functools.lru_cache(maxsize=8)
def regression(folder: Path, metric: str, until: int | None, metrics: tuple[str, ...]) -> Regression:
    """Return the regression on a campaign's journal up to an event, made once.

    Raises:
        ConfigError: if the history has too few evaluations of a metric.
    """
    evaluations = Evaluations.read(folder, metric, until)
    for name in metrics:
        count = sum(name in row.metrics for row in evaluations.whole)
        if count < LEAST:
            raise ConfigError(
                [f"objective.campaign={folder}: has {counted(count, 'value')} of {name}, and {LEAST} are needed"]
            )
    return Regression(evaluations, metrics)
