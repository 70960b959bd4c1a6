"""What other tools are told of a campaign and of each of its trials, in one form for all of them."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo_cluster.goals import Goals
from hpo_cluster.record.attempt_files import curve_series
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import moment
from hpo_cluster.record.files import read_json
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.space import Configuration
from hpo_cluster.trial import State, trial_label

#: What the training loss along a learning curve is called.
TRAIN_LOSS = "train_loss"
#: What the values at the rungs are called.
RUNG_VALUE = "rung_value"
DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Outline:
    """A campaign without its trials.

    Args:
        key: text that only this campaign has, wherever its folder is.
        name: name of the campaign.
        dir: folder of the campaign.
        identity: content of ``campaign.yaml``.
        metric: name of the metric that is optimised; the first one of several.
    """

    key: str
    name: str
    dir: Path
    identity: Mapping[str, Any]
    metric: str

    @property
    def maximize(self) -> bool:
        """Whether larger values are better."""
        return bool(self.identity["direction"] == "maximize")

    @cached_property
    def goals(self) -> Goals | None:
        """The objectives and constraints; None if there is one objective without constraints."""
        return Goals.of(self.identity["objective"])


def outline_of(layout: CampaignLayout, identity: Mapping[str, Any], record: Record, metric: str | None) -> Outline:
    """Return the outline of a campaign that has been read."""
    created = record.created or {}
    name = layout.dir.resolve().name
    born = [created.get("at"), created.get("campaign", name), identity.get("seed")]
    return Outline(_digest(born), name, layout.dir, identity, metric or "value")


def read_outline(campaign_dir: Path, metric: str | None) -> tuple[Outline, Record]:
    """Return outline and record of a campaign. Raise JournalError if there is none, or it cannot be read."""
    layout = CampaignLayout(campaign_dir)
    identity = identity_of_campaign(layout.identity)
    record = Record.read(layout.events)
    return outline_of(layout, identity, record, metric), record


@dataclass(frozen=True)
class TrialFacts:
    """One trial as other tools are told of it.

    Args:
        number: of the trial; -1 is the baseline.
        state: of the trial.
        origin: source of its value.
        parameters: its active parameters.
        value: what was measured; None if nothing was.
        value_sem: its standard error.
        metrics: all metrics by name.
        series: by name, steps with what was measured at them: values at the rungs, losses of the training and so on.
        notes: further fields as text: node, job, error and so on.
        submitted_at: time of its first submission.
        started_at: time at which its first attempt began.
        ended_at: time of its end.
    """

    number: int
    state: State
    origin: str
    parameters: Configuration
    value: float | None = None
    value_sem: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    submitted_at: datetime.datetime | None = None
    started_at: datetime.datetime | None = None
    ended_at: datetime.datetime | None = None

    @property
    def label(self) -> str:
        """Name of the trial, such as ``t0007``."""
        return trial_label(self.number)

    @property
    def measured(self) -> dict[str, float]:
        """All metrics by name, with the value that is optimised as ``value``."""
        return {**self.metrics, **({} if self.value is None else {"value": self.value})}

    @property
    def begin(self) -> datetime.datetime | None:
        """The time from which on the trial was worked at, as far as it is known."""
        return self.started_at or self.submitted_at or self.ended_at

    @cached_property
    def digest(self) -> str:
        """A text that differs if anything else does."""
        return _digest({name: getattr(self, name) for name in self.__dataclass_fields__})


def trial_facts(outline: Outline, record: Record, trial: TrialRecord) -> TrialFacts:
    """Return the facts of a trial; the learning curve is read from the file of its result."""
    last = trial.attempts[-1] if trial.attempts else None
    notes = {
        "attempts": trial.began or None,
        "job": last.job_id if last else None,
        "node": last.node if last else None,
        "seed": trial.seed,
        "submitted_at": trial.submitted_at,
        "started_at": trial.started_at,
        "ended_at": trial.ended_at,
        "error": f"{trial.error['kind']}: {trial.error['message']}" if trial.error else None,
    }
    metrics = {**trial.metrics, **({} if trial.value_sem is None else {"value_sem": trial.value_sem})}
    return TrialFacts(
        number=trial.number,
        state=trial.state,
        origin=str(trial.origin),
        parameters=dict(trial.parameters),
        value=trial.value,
        value_sem=trial.value_sem,
        metrics={**metrics, **{f"{name}.sem": sem for name, sem in trial.sems.items()}},
        series=_series(outline, record, trial),
        notes={name: str(note) for name, note in notes.items() if note is not None},
        submitted_at=_moment(trial.submitted_at),
        started_at=_moment(trial.started_at),
        ended_at=_moment(trial.ended_at),
    )


def _series(outline: Outline, record: Record, trial: TrialRecord) -> dict[str, tuple[tuple[int, float], ...]]:
    found = {}
    if trial.climb is not None and record.ladder is not None:
        steps = {rung: rung if score.step is None else score.step for rung, score in trial.climb.scores.items()}
        if len(set(steps.values())) < len(steps):
            steps = {rung: rung for rung in steps}
        scores = sorted(trial.climb.scores.items())
        found[RUNG_VALUE] = tuple((steps[rung], score.value) for rung, score in scores if score.value is not None)
    if trial.attempts and trial.state is State.COMPLETED:
        files = CampaignLayout(outline.dir).attempt(trial.number, trial.attempts[-1].number)
        for name, points in curve_series(read_json(files.result) or {}).items():
            found[name] = tuple((int(step), number) for step, number in points)
    return {name: points for name, points in found.items() if points}


def _moment(text: str | None) -> datetime.datetime | None:
    return None if text is None else moment(text)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:DIGEST_LENGTH]
