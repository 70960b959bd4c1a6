"""The protocol of all objectives: which program a job runs, and how to read its result."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from hpo_cluster.fidelity import Kind, Ladder
from hpo_cluster.goals import GPU_SECONDS, Bound, Direction, Goal, Goals
from hpo_cluster.objectives.several import bound_faults, entry_of, goal_faults, key_faults
from hpo_cluster.settings import Settings
from hpo_cluster.space import Space, Value

#: Turns a path in a configuration (``bundle:…``, ``storage:…`` or a plain path) into an absolute path.
PathResolver = Callable[[str], Path]


def divided(settings: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split plain settings in two: the rest, and the values of the dotted `names`. Changes `settings` in place."""
    taken = {}
    for name in names:
        section, key = _place(settings, name)
        taken[name] = section.pop(key)
    return settings, taken


def joined(settings: dict[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values that `divided` took out back into `settings`, in place."""
    for name, value in taken.items():
        section, key = _place(settings, name)
        section[key] = value
    return settings


def without(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return plain settings without those of the dotted `names`, where it has them."""
    kept = copy.deepcopy(dict(settings))
    for name in names:
        section, _, key = name.rpartition(".")
        place = kept.get(section) if section else kept
        if isinstance(place, dict):
            place.pop(key, None)
    return kept


def _place(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Return the section that holds a dotted name, and the last part of the name: its key there."""
    *sections, key = name.split(".")
    for section in sections:
        settings = settings[section]
    return settings, key


@dataclass(frozen=True)
class Outcome:
    """The content of a result file: `value` as measured, its standard error (NaN if unknown), all metrics by name.

    With several objectives, `value` is the first one, and `sems` holds the standard errors that are known.
    """

    value: float
    value_sem: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)
    sems: Mapping[str, float] = field(default_factory=dict)

    @property
    def known_sem(self) -> float | None:
        """The standard error as a journal holds it: None if it is unknown."""
        return None if math.isnan(self.value_sem) else self.value_sem


class Objective(Settings, ABC):
    """Base class of objectives: settings, and what follows from them. It knows no optimizer and no scheduler."""

    #: Settings that do not affect results, so `resume` may change them. A dot separates section and key.
    OPERATIONAL: ClassVar[tuple[str, ...]] = ()

    #: Settings of earlier versions that did not affect results. Recorded values of them are ignored.
    FORMER: ClassVar[tuple[str, ...]] = ()

    #: Settings that say where the input files are. `resume` may change them after the files have moved.
    PLACES: ClassVar[tuple[str, ...]] = ()

    #: Metrics that have no noise: the same configuration always has the same value.
    EXACT: ClassVar[tuple[str, ...]] = ()

    #: Metrics that messages suggest, in addition to those of tasks.
    KNOWN: ClassVar[tuple[str, ...]] = (GPU_SECONDS,)

    #: The key that names what is optimised, if it can be chosen.
    METRIC_KEY: ClassVar[str] = ""

    #: Kinds of fidelity that its evaluations can be looked at early with.
    FIDELITIES: ClassVar[tuple[Kind, ...]] = ()

    kind: str
    direction: Direction = "maximize"
    metrics: tuple[Goal, ...] = Field(
        (),
        description="two or more metrics to optimise at once: names, or {name: ..., direction: maximize or minimize, "
        "reference: worst value of interest}; empty: one objective",
    )
    constraints: tuple[Bound, ...] = Field(
        (),
        description="what a result must satisfy: {name: METRIC, at_most: ...} or at_least",
    )

    @classmethod
    def full_name(cls, name: str, data: Mapping[str, Any]) -> str:
        """Return the name in a result of a metric as it is typed; `data` are the settings as typed."""
        return name

    @classmethod
    def known_direction(cls, name: str) -> Direction | None:
        """Return which values of a metric are better; None if its name does not say."""
        return "minimize" if name == GPU_SECONDS else None

    @field_validator("metrics", "constraints", mode="before")
    @classmethod
    def _listed(cls, entries: Any, info: ValidationInfo) -> Any:
        if isinstance(entries, (list, tuple)):
            return entries
        if info.field_name == "constraints":
            raise ValueError("must be a list, such as [{name: memory_gb, at_most: 40}]")
        one = f"; to optimise one: {cls.METRIC_KEY}" if cls.METRIC_KEY else ""
        raise ValueError(f"must be a list of two or more, such as [accuracy, gpu_seconds]{one}")

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, data: Any) -> Any:
        """Turn the names of several metrics into goals; the first one's direction is the objective's."""
        if not isinstance(data, dict):
            return data
        data, known, faults = dict(data), cls.known_direction, list[str]()
        for key, kind in (("metrics", Goal), ("constraints", Bound)):
            if isinstance(entries := data.get(key), (list, tuple)):
                data[key] = tuple(entry_of(entry, lambda name: cls.full_name(name, data)) for entry in entries)
                faults += key_faults(key, data[key], [each.name for each in fields(kind)])
        if faults:
            raise ValueError("\n".join(faults))
        if isinstance(goals := data.get("metrics"), tuple) and goals and all(isinstance(goal, dict) for goal in goals):
            data["metrics"] = tuple({**g, "direction": g.get("direction") or known(str(g.get("name")))} for g in goals)
            first = data["metrics"][0]["direction"]
            data["direction"] = first if first in get_args(Direction) else "maximize"
        return data

    @model_validator(mode="after")
    def _several_make_sense(self) -> Self:
        faults = [
            *goal_faults(self.metrics, self.KNOWN, constrained=bool(self.constraints), one=self.METRIC_KEY),
            *bound_faults(self.constraints),
        ]
        if faults:
            raise ValueError("\n".join(faults))
        if self.constraints and not self.metrics:  # settings cannot be changed, but this is still their making
            object.__setattr__(self, "metrics", (Goal(self.metric or "value", self.direction),))
        for goal in self.metrics:
            known = self.known_direction(goal.name)
            if known not in (None, goal.direction):
                better = "more" if known == "maximize" else "less"
                raise ValueError(f"objective.metrics: {better} {goal.name} is better; give direction: {known}, or none")
        return self

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what only several objectives and constraints have: one objective is written as it always was."""
        plain: dict[str, Any] = handler(self)
        return {key: value for key, value in plain.items() if key not in ("metrics", "constraints") or value}

    @property
    def goals(self) -> Goals | None:
        """The objectives and constraints; None if one metric is optimised without constraints."""
        return Goals(self.metrics, self.constraints) if self.metrics else None

    def identity(self) -> dict[str, Any]:
        """Return the settings that must stay the same throughout a campaign, as plain data."""
        return divided(self.model_dump(mode="json"), self.OPERATIONAL)[0]

    def operational(self) -> dict[str, Any]:
        """Return the settings that `resume` may change, by dotted name."""
        return divided(self.model_dump(mode="json"), (*self.OPERATIONAL, *self.PLACES))[1]

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""

    @property
    @abstractmethod
    def program(self) -> str:
        """File name of the program in ``jobs/``."""

    @property
    @abstractmethod
    def metric(self) -> str | None:
        """Name of the metric that is optimised; None means that it is called ``value``."""

    @abstractmethod
    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """Return the ``settings`` of ``params.json``: plain JSON, all paths absolute."""

    @property
    def has_baseline(self) -> bool:
        """Whether the objective can be evaluated before any tuning."""
        return False

    @property
    def not_of_baseline(self) -> tuple[str, ...]:
        """Names of the needed metrics that the baseline does not have."""
        return ()

    @property
    def test_tasks(self) -> tuple[str, ...] | None:
        """Names of the tasks whose metrics are only recorded; None if the objective does not set tasks apart."""
        return None

    @property
    def notes(self) -> list[str]:
        """Sentences about the values, told when a campaign starts and in its report; empty if none is needed."""
        return []

    def measure(self, parameters: Mapping[str, Value], seed: int, attempt: int, share: float = 1.0) -> dict[str, Any]:
        """Return the result that a job would publish, computed here and now; for objectives that need no job.

        Args:
            parameters: the configuration.
            seed: seed of the trial.
            attempt: number of the attempt.
            share: of a whole evaluation.

        Raises:
            AttemptError: if the attempt fails.
            NotImplementedError: if only a job can find out.
        """
        raise NotImplementedError

    def seconds(self, parameters: Mapping[str, Value]) -> float | None:
        """Return the seconds that a whole evaluation takes, if the objective knows without a job."""
        return None

    def own_space(self) -> Space | None:
        """Return the search space to use if the configuration names none; None if the objective has no default."""
        return None

    def gpu_faults(self, gpus: int) -> list[str]:
        """Return why one evaluation cannot use this number of GPUs; empty if it can."""
        return []

    def fidelity_faults(self, ladder: Ladder, space: Space | None = None) -> list[str]:
        """Return why evaluations cannot be looked at early on these rungs; empty if they can.

        Args:
            ladder: the rungs.
            space: the search space, if it is known.
        """
        if ladder.kind in self.FIDELITIES:
            return []
        accepted = ", ".join((*self.FIDELITIES, "off"))
        return [
            f"fidelity={ladder.kind}: objective={self.kind} cannot be looked at early this way; accepted: {accepted}"
        ]

    def name_faults(self, names: Sequence[str]) -> list[str]:
        """Return why parameters of these names are not what the objective needs; empty if they may be."""
        return []

    def space_faults(self, space: Space) -> list[str]:
        """Return why this objective cannot be optimised over `space`; empty if it can."""
        return self.name_faults(space.names)

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return which files the jobs need and lack, each with what to do about it; empty if all are present."""
        return []

    def reading_faults(self, resolve: PathResolver) -> list[str]:
        """Return the faults that a job would find at its start; empty if none, or if they cannot be found here."""
        return []

    def prepare(self, resolve: PathResolver, say: Callable[[str], object]) -> None:
        """Fetch what the jobs read and shared storage lacks; `say` is called with each line of progress."""
        say(f"objective={self.kind} needs nothing prepared")

    def outcome(self, result: Mapping[str, Any]) -> Outcome:
        """Read a valid ``result.json``.

        Raises:
            KeyError: with the names of the metrics that are needed and missing.
        """
        metrics = {str(name): float(value) for name, value in result["metrics"].items()}
        name = self.metric or "value"
        needed = self.goals.names if self.goals else (name,)
        if GPU_SECONDS in needed and GPU_SECONDS in result:
            metrics.setdefault(GPU_SECONDS, float(result[GPU_SECONDS]))
        if missing := [needed_name for needed_name in needed if needed_name not in metrics]:
            raise KeyError(*missing)
        sems = {key: float(sem) for key, sem in (result.get("sems") or {}).items() if sem is not None}
        several = {**sems, **dict.fromkeys(self.EXACT, 0.0)}
        several = {goal.name: several[goal.name] for goal in self.metrics if goal.name in several}
        return Outcome(metrics[name], sems.get(name, math.nan), metrics, several)


class MetricByName(Objective):
    """An objective whose setting ``metric`` names what is optimised.

    The field has another name in Python, because `Objective.metric` is a property.
    """

    METRIC_KEY = "objective.metric"

    model_config = ConfigDict(serialize_by_alias=True)

    if TYPE_CHECKING:
        metric_name: str

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised; the first one of several."""
        return self.metrics[0].name if self.metrics else self.metric_name

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """Return the ``settings`` of ``params.json``: plain JSON, all paths absolute."""
        return self.model_dump(mode="json")
