"""The protocol of all objectives: which program a job runs, and how to read its result."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hpo_cluster.settings import Settings
from hpo_cluster.space import Space

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
    """The content of a result file: `value` as measured, its standard error (NaN if unknown), all metrics by name."""

    value: float
    value_sem: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Settings, ABC):
    """Base class of objectives: settings, and what follows from them. It knows no optimizer and no scheduler."""

    #: Settings that do not affect results, so `resume` may change them. A dot separates section and key.
    OPERATIONAL: ClassVar[tuple[str, ...]] = ()

    #: Settings of earlier versions that did not affect results. Recorded values of them are ignored.
    FORMER: ClassVar[tuple[str, ...]] = ()

    #: Settings that say where the input files are. `resume` may change them after the files have moved.
    PLACES: ClassVar[tuple[str, ...]] = ()

    kind: str
    direction: Literal["maximize", "minimize"] = "maximize"

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
    def test_tasks(self) -> tuple[str, ...] | None:
        """Names of the tasks whose metrics are only recorded; None if the objective does not set tasks apart."""
        return None

    def own_space(self) -> Space | None:
        """Return the search space to use if the configuration names none; None if the objective has no default."""
        return None

    def gpu_faults(self, gpus: int) -> list[str]:
        """Return why one evaluation cannot use this number of GPUs; empty if it can."""
        return []

    def space_faults(self, space: Space) -> list[str]:
        """Return why this objective cannot be optimised over `space`; empty if it can."""
        return []

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
            KeyError: if it lacks the optimised metric.
        """
        metrics = {str(name): float(value) for name, value in result["metrics"].items()}
        name = self.metric or "value"
        sem = (result.get("sems") or {}).get(name)
        return Outcome(metrics[name], math.nan if sem is None else float(sem), metrics)
