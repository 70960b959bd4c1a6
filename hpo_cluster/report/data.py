"""The data of a report: the history, and what is needed to interpret it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals, dominates, gain, reference_of, undominated
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.record.attempt_files import curve_losses, is_finite_number
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.climb import rung_table, saved
from hpo_cluster.record.curves import curves_of
from hpo_cluster.record.files import read_json
from hpo_cluster.record.history import METRIC_PREFIX, to_frame
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.item_pairs import confirmation_on_items
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.space import Space
from hpo_cluster.text import cut, test_metrics
from hpo_cluster.trial import BASELINE, WITHOUT_VALUE, Origin, State

if TYPE_CHECKING:
    import pandas as pd

    from hpo_cluster.optimizers.bayesian.surrogate import Surrogate

log = logging.getLogger(__name__)

#: States that are drawn.
DRAWN = (State.COMPLETED, *WITHOUT_VALUE)
MAX_OTHER_METRICS = 4
#: Values needed before a model, or the recommendation by it, says more than the values themselves.
MIN_FOR_MODEL = 4


@dataclass(frozen=True)
class Rungs:
    """What became of the trials of a campaign with rungs.

    Args:
        kind: what a rung is a share of.
        table: a row for each rung, as `rung_table` returns it.
        curves: one row for each trial and rung, as `load_curves` returns it.
        trials: number of trials that were proposed.
        spent: whole evaluations that they have taken.
        saved: whole evaluations that rungs have saved.
        gpu_hours: GPU-hours of all trials; 0 without a GPU.
    """

    kind: str
    table: list[dict[str, Any]]
    curves: pd.DataFrame
    trials: int
    spent: float
    saved: float
    gpu_hours: float


@dataclass(frozen=True)
class Campaign:
    """Data from which the page and the figures of a report are made."""

    layout: CampaignLayout
    name: str
    identity: dict[str, Any]
    space: Space
    metric: str
    maximize: bool
    others: tuple[str, ...]  # metrics to compare with the optimised one
    others_are_tests: bool
    record: Record
    history: pd.DataFrame
    objective: Objective | None = None  # None if another version has written it
    goals: Goals | None = None  # the objectives and constraints, if there are several objectives or any constraints
    rungs: Rungs | None = None  # with rungs
    confirmation: dict[str, Any] | None = None  # what confirmations have found, if there are any
    tests: tuple[str, ...] = ()  # names of the tasks that were only recorded

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know of the values; a regression is cross-validated for it, which takes seconds."""
        return [] if self.objective is None else self.objective.notes

    @cached_property
    def results(self) -> dict[int, dict[str, Any]]:
        """The results that can be read, by trial."""
        return dict(_results(self.layout, self.record))

    @cached_property
    def sems(self) -> dict[int, dict[str, float]]:
        """The standard errors that the results report, by trial and metric."""
        return {trial: _sems(result) for trial, result in self.results.items()}

    @property
    def losses(self) -> dict[int, list[tuple[float, float]]]:
        """The steps of the optimizer and the training losses, by trial."""
        return {trial: curve_losses(result) for trial, result in self.results.items()}

    @property
    def several(self) -> bool:
        """Whether there are several objectives."""
        return self.goals is not None and self.goals.several

    def acceptable(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the rows that satisfy the constraints; all of them if there are none."""
        return frame if self.goals is None else frame[frame["feasible"].eq(True)]

    @cached_property
    def ended(self) -> pd.DataFrame:
        """Evaluated trials that have ended, in the order of their ends."""
        frame = self.history
        drawn = frame["state"].isin([str(state) for state in DRAWN]) & (frame["origin"] == str(Origin.EVALUATED))
        return frame[drawn].sort_values("ended_seq", kind="stable")

    @cached_property
    def ranked(self) -> pd.DataFrame:
        """Evaluated trials with a value, the best first; with one objective those that satisfy the constraints."""
        frame = self.ended[self.ended["value"].notna()]
        frame = frame if self.several else self.acceptable(frame)
        return frame.sort_values(["value", "trial"], ascending=[not self.maximize, True], kind="stable")

    @property
    def imported(self) -> pd.DataFrame:
        """Evaluations of earlier campaigns that this one began with, the best first."""
        frame = self.history[self.history["origin"] == str(Origin.IMPORTED)]
        return frame.sort_values(["value", "trial"], ascending=[not self.maximize, True], kind="stable")

    @property
    def baseline(self) -> pd.Series | None:
        """The model before fine-tuning; None if it was not scored."""
        rows = self.history[(self.history["trial"] == BASELINE) & self.history["value"].notna()]
        return None if rows.empty else rows.iloc[0]

    @cached_property
    def recommended(self) -> int | None:
        """The trial with the best posterior mean, evaluated here or imported; None if there are too few values."""
        if len(self.ranked) < MIN_FOR_MODEL or self.several:
            return None
        from hpo_cluster.optimizers.bayesian.surrogate import recommend

        return self.ranking[0] if self.ranking else recommend(self.history, self.space)

    @cached_property
    def ranking(self) -> list[int]:
        """The trials by posterior mean, as `recommended` ranks them, the best first; empty without a model."""
        if len(self.ranked) < MIN_FOR_MODEL or self.several:
            return []
        from hpo_cluster.optimizers.bayesian.surrogate import SurrogateError, by_posterior_mean

        try:
            return by_posterior_mean(self.history, self.space)
        except SurrogateError as error:
            log.info("campaign=%s ranking=by_value reason=%s", self.layout.dir, error)
            return []

    @cached_property
    def model(self) -> Surrogate | None:
        """The model of the values as measured; None if there are too few, or several objectives."""
        if len(self.ranked) < MIN_FOR_MODEL or self.several:
            return None
        from hpo_cluster.optimizers.bayesian.surrogate import SurrogateError, surrogate_of

        try:
            return surrogate_of(self.history, self.space, "raw")
        except SurrogateError as error:
            log.info("campaign=%s model=none reason=%s", self.layout.dir, error)
            return None

    @property
    def front(self) -> pd.DataFrame:
        """The Pareto front of several objectives, the best by the first one first."""
        frame = self.history[self.history["front"]]
        return frame.sort_values(["target", "trial"], ascending=[False, True], kind="stable")

    @cached_property
    def hypervolumes(self) -> tuple[list[float], tuple[float, ...]]:
        """The volume that the front dominates after each of `ended`, and the reference point (values)."""
        assert self.goals is not None
        columns = [f"target_{goal.name}" for goal in self.goals.metrics]
        ended = self.ended
        points = [tuple(map(float, row)) for row in ended[columns].itertuples(index=False)]
        known = ended[columns].notna().all(axis=1)
        measured = [point for point, ok in zip(points, known, strict=True) if ok]
        good = [bool(ok) for ok in ended["feasible"].eq(True) & known]
        if not any(good):
            return [0.0] * len(points), ()
        reference = reference_of(self.goals.references, measured)
        front: list[Sequence[float]] = []
        volume, volumes = 0.0, []
        for point, ok in zip(points, good, strict=True):
            if ok and not any(point == other or dominates(other, point) for other in front):
                volume += gain(point, front, reference)
                front = undominated([*front, point])
            volumes.append(volume)
        return volumes, tuple(goal.sign * edge for goal, edge in zip(self.goals.metrics, reference, strict=True))

    @property
    def title(self) -> str:
        """The name, short enough for the head of a figure."""
        return shorten(self.name, 36)

    @property
    def goal(self) -> str:
        """The optimised metric and its direction, in words."""
        return f"{self.metric} ({'higher' if self.maximize else 'lower'} is better)"


def read_campaign(campaign_dir: Path) -> Campaign:
    """Return the data of a campaign's report. Raise JournalError if the folder does not hold a campaign."""
    layout = CampaignLayout(campaign_dir)
    identity = identity_of_campaign(layout.identity)
    try:
        objective: Objective | None = parse_objective(identity["objective"])
    except ConfigError as error:  # perhaps written by another version: the history can be drawn even so
        log.warning("campaign=%s objective=unreadable reason=%s", layout.dir, error)
        objective = None
    goals = Goals.of(identity["objective"])
    metric = goals.metrics[0].name if goals else (objective.metric if objective else None) or "value"
    direction = identity.get("direction") or (objective.direction if objective else "maximize")
    space, record = Space.from_json(identity["space"]), Record.read(layout.events)
    history = to_frame(record, space.names, maximize=direction == "maximize", goals=goals)
    columns = map(str, history.columns)
    known = [column.removeprefix(METRIC_PREFIX) for column in columns if column.startswith(METRIC_PREFIX)]
    tests = objective.test_tasks if objective else None
    others = known if tests is None else test_metrics(metric, tests, known)
    optimised = [goal.name for goal in goals.metrics] if goals else [metric]
    chosen = [name for name in others if name in known and name not in optimised]
    return Campaign(
        layout=layout,
        name=layout.dir.resolve().name,
        identity=identity,
        space=space,
        metric=metric,
        maximize=direction == "maximize",
        others=tuple(chosen[:MAX_OTHER_METRICS] if tests is None else chosen),
        others_are_tests=tests is not None,
        record=record,
        history=history,
        objective=objective,
        goals=goals,
        rungs=_rungs(record, maximize=direction == "maximize"),
        confirmation=confirmation_on_items(record, layout, maximize=direction == "maximize"),
        tests=tests or (),
    )


def _rungs(record: Record, *, maximize: bool) -> Rungs | None:
    if record.ladder is None:
        return None
    return Rungs(
        kind=record.ladder.kind,
        table=rung_table(record, maximize=maximize),
        curves=curves_of(record),
        trials=sum(trial.climb is not None for trial in record.rows),
        spent=record.spent,
        saved=saved(record),
        gpu_hours=sum(record.gpu_hours_of(trial.number) for trial in record.rows),
    )


def _results(layout: CampaignLayout, record: Record) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the result of each trial of which it can be read."""
    for trial in record.rows:
        for attempt in reversed(trial.attempts):
            if trial.value is not None and attempt.over and attempt.error is None:
                result = read_json(layout.attempt(trial.number, attempt.number).result)
                if result is not None:
                    yield trial.number, result
                break


def _sems(result: Mapping[str, Any]) -> dict[str, float]:
    sems = result.get("sems")
    if not isinstance(sems, dict):
        return {}
    return {name: float(sem) for name, sem in sems.items() if is_finite_number(sem) and sem >= 0}


def shorten(choice: Any, length: int = 12) -> str:
    """Return the text of `choice`, cut to `length` characters."""
    return cut(str(choice), length)
