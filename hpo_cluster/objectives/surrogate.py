"""A finished campaign as an objective: a regression on its history answers in place of a training.

What an evaluation gives depends on the trial's seed only (noise, and whether it fails), so that the same campaign gives
the same values again. The program is ``jobs/surrogate.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from hpo_cluster.errors import AttemptError, ConfigError, JournalError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.goals import GPU_SECONDS, Direction, Goals
from hpo_cluster.objectives.base import MetricByName, PathResolver
from hpo_cluster.objectives.regression import (
    LEAST,
    Evaluations,
    Prediction,
    Regression,
    cross_validation,
    regression,
    spread_of_seconds,
)
from hpo_cluster.objectives.synthetic import noise_of
from hpo_cluster.space import Space, Value
from hpo_cluster.text import counted, instead_of, listed
from hpo_cluster.trial import ErrorKind, State, derive_seed

#: The kind of error with which a job reports that it ends in a state.
KINDS = {
    State.DIVERGED: ErrorKind.DIVERGED,
    State.INFEASIBLE: ErrorKind.OUT_OF_MEMORY,
    State.FAILED: ErrorKind.BAD_RESULT,
}

#: Name of the metric that holds the seconds that an evaluation would take.
SECONDS = "seconds"


class SurrogateObjective(MetricByName):
    """The model of a finished campaign. What is not given is taken from the campaign when the new one begins."""

    PLACES = ("campaign",)
    FIDELITIES = ("share",)

    kind: Literal["surrogate"] = "surrogate"
    direction: Direction = Field("maximize", description="maximize or minimize; null: as the campaign")
    campaign: str = Field(min_length=1, description="folder of a finished campaign: campaigns/first")
    metric_name: str = Field(
        "value",
        alias="metric",
        min_length=1,
        description="metric to predict; null: what the campaign optimised",
    )
    until: int = Field(
        0, ge=0, description="number of the last event of its journal that is used; null: the last one that it has now"
    )
    noise: float = Field(
        0.0,
        ge=0,
        description="standard deviation of the noise of each value; null: the campaign's standard error",
    )
    wait_share: float = Field(
        0.0, ge=0, description="share of the predicted seconds that a job really waits; 0: it answers at once"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_the_campaign(cls, data: Any) -> Any:
        """Take over from the campaign what is not given."""
        if not isinstance(data, Mapping):
            return data
        data = {name: value for name, value in data.items() if value is not None}
        if not isinstance(data.get("campaign"), str) or not data["campaign"]:
            return data
        if all(name in data for name in ("direction", "metric", "until", "noise")):
            return data
        try:
            evaluations = _read(Path(data["campaign"]), data.get("until"))
            return _filled(data, evaluations)
        except JournalError as error:
            raise ValueError(f"objective.campaign={data['campaign']}: {error}") from error
        except ConfigError as error:
            raise ValueError(f"objective.campaign={data['campaign']}: {'; '.join(error.faults)}") from error

    @property
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""
        return f"like-{Path(self.campaign).name}"

    @property
    def program(self) -> str:
        """File name of the program in ``jobs/``."""
        return "surrogate.py"

    @property
    def _optimised(self) -> tuple[str, ...]:
        """Names of the metrics that are optimised or constrained."""
        return self.goals.names if self.goals else (self.metric_name,)

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """Return the ``settings`` of ``params.json``."""
        return super().job_settings(resolve) | {"campaign": str(Path(self.campaign).absolute())}

    @property
    def evaluations(self) -> Evaluations:
        """The evaluations that the model is fitted to."""
        return self.model.evaluations

    @functools.cached_property
    def model(self) -> Regression:
        """The model, which is fitted when it is first used."""
        predicted = tuple(name for name in self._optimised if name not in (GPU_SECONDS, SECONDS))
        own = _own_metric(Path(self.campaign))
        return regression(Path(self.campaign).absolute(), own, self.until, predicted)

    def own_space(self) -> Space | None:
        """Return the campaign's search space."""
        return self.evaluations.space

    def space_faults(self, space: Space) -> list[str]:
        """Return the faults of a space: it must lie in the campaign's, with the same parameters."""
        try:
            own = self.evaluations.space
        except (JournalError, ConfigError):
            return []  # `file_faults` says so
        campaign, faults = self.evaluations.campaign, []
        if missing := [name for name in own.names if name not in space.names]:
            faults.append(f"space: {campaign} has {listed(missing)} too; its own space:  space=own")
        if unknown := [name for name in space.names if name not in own.names]:
            accepted = ", ".join(own.names)
            faults.append(f"space: {campaign} has no {listed(unknown)}; its parameters are {accepted}")
        for name, parameter in space.parameters.items():
            if name not in own.names:
                continue
            if parameter.when != own.parameters[name].when:
                faults.append(f"space.{name}.when: must be as in {campaign}")
            for u in np.linspace(0, 1, 1 + min(int(parameter.cardinality or 2), 100)):
                try:
                    own.parameters[name].encode(parameter.decode(float(u)))
                except ValueError as error:
                    faults.append(f"space.{name}: {campaign} has not searched there: {error}")
                    break
        return faults

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return the fault if the campaign cannot be read."""
        try:
            self.model  # noqa: B018 - read and fitted
        except JournalError as error:
            return [f"objective.campaign={self.campaign}: {error}"]
        except ConfigError as error:
            return list(error.faults)
        return []

    def fidelity_faults(self, ladder: Ladder, space: Space | None = None) -> list[str]:
        """Return the fault if the campaign has not looked at evaluations early."""
        if faults := super().fidelity_faults(ladder, space):
            return faults
        try:
            if any(row.share < 1 for row in self.evaluations.rows):
                return []
        except (JournalError, ConfigError):
            return []  # `file_faults` says so
        campaign = self.evaluations.campaign
        return [f"fidelity={ladder.kind}: {campaign} had no rungs, so nothing is known of early values; accepted: off"]

    @property
    def notes(self) -> list[str]:
        """Sentences that say how well the model predicts."""
        names = [name for name in self._optimised if name != GPU_SECONDS]
        campaign = Path(self.campaign).name
        try:
            found = [cross_validation(self.evaluations, name) for name in names if name != SECONDS]
        except (JournalError, ConfigError):
            gone = f"which is no longer in {self.campaign}: how well it predicts is not known"
            return [f"Values are predictions of a regression on the campaign {campaign}, {gone}."]
        return [
            f"Values are predictions of a regression on the campaign {campaign}. {each.sentence}." for each in found
        ]

    @property
    def waits(self) -> tuple[float, ...]:
        """Seconds that the campaign's jobs have waited for their start."""
        return self.evaluations.waits

    @property
    def start_s(self) -> float:
        """Seconds of an evaluation that its job pays once; 0 if they are not known."""
        return self.evaluations.start_s

    @property
    def spread(self) -> float | None:
        """Standard deviation of the logarithm of the seconds, of held-out evaluations; None if it is not known."""
        return spread_of_seconds(self.evaluations)

    def seconds(self, parameters: Mapping[str, Value]) -> float | None:
        """Return the seconds that a whole evaluation would take; None if the campaign does not say."""
        found = self.model.predict(parameters).seconds
        return None if math.isnan(found) else found

    def measure(self, parameters: Mapping[str, Value], seed: int, attempt: int, share: float = 1.0) -> dict[str, Any]:
        """Return the result of an evaluation.

        Raises:
            AttemptError: if this trial fails.
        """
        found = self.model.predict(parameters, share)
        state = _failed(found, seed)
        if state is not None:
            raise AttemptError(KINDS[state], f"predicted: {found.failures[state]:.0%} of such trials are {state}")
        timed = {} if math.isnan(found.seconds) else {SECONDS: round(found.seconds * share, 3)}
        noisy = dict(found.metrics)
        for number, name in enumerate(noisy):
            noisy[name] += self.noise * noise_of(seed, *((name,) if number else ()))
        sems = {"sems": dict.fromkeys(noisy, self.noise)} if self.noise else {}
        return {"metrics": {**noisy, **timed}, **sems, **({GPU_SECONDS: timed[SECONDS]} if timed else {})}


def _failed(found: Prediction, seed: int) -> State | None:
    """Return the state in which a trial fails; None if it does not fail."""
    draw = derive_seed(seed, "failed") / 2**31
    for state, chance in found.failures.items():
        draw -= chance
        if draw < 0:
            return state
    return None


def _own_metric(folder: Path) -> str:
    """Return the name of the value of a campaign's objective."""
    from hpo_cluster.objectives.registry import parse_objective
    from hpo_cluster.record.identity import identity_of_campaign
    from hpo_cluster.record.layout import CampaignLayout

    recorded = identity_of_campaign(CampaignLayout(folder).identity)["objective"]
    try:
        return parse_objective(recorded).metric or "value"
    except ConfigError:  # of another version, or its files have moved
        return "value"


def _read(folder: Path, until: int | None) -> Evaluations:
    return Evaluations.read(folder, _own_metric(folder), until)


def _filled(data: dict[str, Any], evaluations: Evaluations) -> dict[str, Any]:
    """Return the settings with what the campaign says; raise ConfigError if it has too few evaluations."""
    goals = Goals.of(evaluations.objective)
    if goals is not None and goals.several and "metric" not in data and not data.get("metrics"):
        recorded = evaluations.objective
        data |= {
            "metrics": recorded["metrics"],
            "constraints": data.get("constraints") or recorded.get("constraints", ()),
        }
    if (count := len(evaluations.whole)) < LEAST:
        raise ConfigError([f"it has {counted(count, 'evaluation')} with a value, and {LEAST} are needed"])
    metric = data.get("metric", evaluations.metric)
    accepted = sorted({*evaluations.names, GPU_SECONDS})
    if metric not in accepted:
        raise ConfigError([f"it has no metric {metric}; {instead_of(metric, accepted)}"])
    same = metric == evaluations.metric
    if "direction" not in data and not same and metric != GPU_SECONDS and not data.get("metrics"):
        raise ConfigError([f"give objective.direction=maximize or minimize for the metric {metric}"])
    defaults = {
        "metric": metric,
        "direction": evaluations.direction if same else "minimize",
        "until": evaluations.until,
        "noise": evaluations.sem(metric),
    }
    return {**defaults, **data}
