"""The protocol of every objective: what to run in the job, and what its result means."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hpo_cluster.settings import Settings
from hpo_cluster.space import Space

#: Turns a path of a configuration (``bundle:…``, ``storage:…`` or a plain one) into an absolute path.
PathResolver = Callable[[str], Path]


def divided(settings: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain settings without those of the dotted `names`, and these by name."""
    taken = {}
    for name in names:
        section, key = _place(settings, name)
        taken[name] = section.pop(key)
    return settings, taken


def joined(settings: dict[str, Any], taken: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `divided`."""
    for name, value in taken.items():
        section, key = _place(settings, name)
        section[key] = value
    return settings


def _place(settings: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The section that a dotted name leads into, and its key there."""
    *sections, key = name.split(".")
    for section in sections:
        settings = settings[section]
    return settings, key


@dataclass(frozen=True)
class Outcome:
    """What a result file means: `value` in the user's direction, its standard error, and every metric by name."""

    value: float
    value_sem: float = math.nan
    metrics: Mapping[str, float] = field(default_factory=dict)


class Objective(Settings, ABC):
    """An objective is its settings and what they mean. It knows nothing of optimizers or schedulers."""

    #: Settings that change no result, and so may change in the life of a campaign; a dot leads into a section.
    OPERATIONAL: ClassVar[tuple[str, ...]] = ()

    #: Settings that say where the files are that the objective is made of: `resume` may name another place.
    PLACES: ClassVar[tuple[str, ...]] = ()

    kind: str
    direction: Literal["maximize", "minimize"] = "maximize"

    def identity(self) -> dict[str, Any]:
        """The settings that make the objective what it is, as plain data."""
        return divided(self.model_dump(mode="json"), self.OPERATIONAL)[0]

    def operational(self) -> dict[str, Any]:
        """Return the settings that `resume` may change, by their dotted names."""
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
        """Name of the metric that is optimised; None where the result itself names it."""

    @abstractmethod
    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """The ``settings`` of ``params.json``: plain JSON, every path absolute."""

    @property
    def has_baseline(self) -> bool:
        """Whether there is something to evaluate before any tuning."""
        return False

    @property
    def gpus_at_most(self) -> int | None:
        """How many GPUs one evaluation can use; None: any number."""
        return None

    def own_space(self) -> Space | None:
        """The search space the objective brings, where the configuration names none."""
        return None

    def space_faults(self, space: Space) -> list[str]:
        """Why this objective cannot be optimised over `space`; empty when it can."""
        return []

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Which files the jobs would miss, each with what to do about it; empty when all are there."""
        return []

    def reading_faults(self, resolve: PathResolver) -> list[str]:
        """What a job would find wrong before it starts its work; empty if nothing, or if it cannot be known here."""
        return []

    def outcome(self, result: Mapping[str, Any]) -> Outcome:
        """Read a valid ``result.json``.

        Raises:
            KeyError: when the optimised metric is not in it.
        """
        metrics = {str(name): float(value) for name, value in result["metrics"].items()}
        name = self.metric or "value"
        sem = (result.get("sems") or {}).get(name)
        return Outcome(metrics[name], math.nan if sem is None else float(sem), metrics)
