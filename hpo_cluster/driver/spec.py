"""The specification of a campaign: what it is, how it is run now, and the objects that run it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.launchers import make_launcher
from hpo_cluster.launchers.base import Launcher, LauncherSettings
from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.registry import make_optimizer, make_settings
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.places import Move, as_recorded, move_of
from hpo_cluster.record.warm_start import WarmStart, read_warm_start, recorded_warm_start
from hpo_cluster.space import Space
from hpo_cluster.window import LaunchHours


@dataclass(frozen=True)
class CampaignSpec:
    """A campaign to open, with its objective, optimizer and launcher."""

    dir: Path
    identity: Mapping[str, Any]
    seed: int
    space: Space
    objective: Objective
    optimizer: Optimizer
    launcher: Launcher
    operation: Operation
    resolve: PathResolver
    hours: LaunchHours = field(default_factory=LaunchHours)  # when jobs may be submitted
    settings: Mapping[str, Any] = field(default_factory=dict)  # recorded with the start, in addition to the operation
    overrides: tuple[str, ...] = ()
    code: Literal["recorded", "current"] = "recorded"
    take_over: bool = False
    warm_start: WarmStart = field(default_factory=WarmStart)  # earlier evaluations, with which a new campaign begins
    tick: bool = False  # one short pass, which leaves no trace if nothing happens

    @property
    def gpus_per_trial(self) -> int:
        """Number of GPUs of one evaluation."""
        return int((self.settings.get("launcher") or {}).get("gpus_per_trial", 0))


def identity_of(
    space: Space, objective: Objective, optimizer: str, settings: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return what defines a campaign, as plain data: written once into ``campaign.yaml``, compared at each start."""
    return {
        "space": space.to_json(),
        "objective": objective.identity(),
        "optimizer": {"name": optimizer, **settings},
        "direction": objective.direction,
        "seed": seed,
    }


def _objective_as(
    mine: Mapping[str, Any],
    recorded: Mapping[str, Any],
    objective: Objective,
    directory: Path,
    *,
    anywhere: bool = False,
) -> dict[str, Any]:
    """Return an objective's identity as the campaign in `directory` recorded it, if the two differ only in places.

    Without `anywhere`, another place counts as the same if the campaign moved there together with its project, or if
    the last start was configured with that place.
    """

    @functools.cache
    def read() -> tuple[Move, Mapping[str, Any]]:
        record = Record.read(CampaignLayout(directory).events)
        settings = record.starts[-1].get("settings", {}) if record.starts else {}
        return move_of(directory, record), settings.get("objective") or {}

    def same(name: str, old: Any, new: Any) -> bool:
        if anywhere:
            return True
        move, last = read()
        return new in (last.get(name), *(move.here(place) for place in (old, last.get(name)) if place))

    return as_recorded(mine, recorded, objective.OPERATIONAL, objective.PLACES, same)


def decided(name: str, settings: Mapping[str, Any], budget: int, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the optimizer's settings with a value for those that are null, the same for the whole campaign.

    Args:
        name: name of the optimizer.
        settings: settings as configured.
        budget: budget of this start, which sets the size of a new campaign's design if that is null.
        recorded: identity of the campaign, which holds the values already; None if the campaign is new.
    """
    new = {"points": budget, "budget": budget}
    choices: dict[str, Any] = new if recorded is None else dict(recorded.get("optimizer") or {})
    if recorded is not None and choices.pop("name", None) != name:
        return dict(settings)
    return {key: choices.get(key) if value is None else value for key, value in settings.items()}


def make_spec(
    directory: Path,
    *,
    space: Space,
    objective: Objective,
    optimizer: str,
    optimizer_settings: Mapping[str, Any],
    seed: int,
    launcher: LauncherSettings,
    operation: Operation,
    storage_dir: Path,
    resolve: PathResolver,
    warm_start: Sequence[Path] | None = None,
    warm_start_other_objective: bool = False,
    other_places: bool = False,
    **options: Any,
) -> CampaignSpec:
    """Return the spec of a campaign in `directory`, whether the campaign exists already or not.

    Args:
        directory: folder of the campaign.
        space: space to search.
        objective: objective to optimise.
        optimizer: name of the optimizer.
        optimizer_settings: settings of the optimizer.
        seed: seed of the campaign.
        launcher: settings of the launcher that runs the jobs.
        operation: settings of how the campaign is run now.
        storage_dir: shared folder of models and data.
        resolve: function that turns a configured path into an absolute one.
        warm_start: folders of earlier campaigns with whose evaluations this one begins; None: those that an existing
            campaign recorded.
        warm_start_other_objective: whether the earlier campaigns may have another objective.
        other_places: whether the objective's files may be in any other place than an existing campaign recorded.
        options: other fields of the spec.

    Raises:
        ConfigError: if the optimizer's settings are wrong, if the optimizer cannot search this space, or if an earlier
            campaign does not fit; names all reasons against the warm start.
    """
    typed = make_settings(optimizer, optimizer_settings).model_dump(mode="json")
    recorded = read_identity(CampaignLayout(directory).identity)
    settings = decided(optimizer, typed, operation.budget, recorded)
    identity = identity_of(space, objective, optimizer, settings, seed)
    if warm_start is None:
        begins_with = recorded_warm_start(recorded)
    else:
        begins_with = read_warm_start(
            warm_start,
            directory,
            space,
            identity,
            recorded,
            other_objective=warm_start_other_objective,
            objective_as=lambda folder, earlier: _objective_as(identity["objective"], earlier, objective, folder),
        )
    if recorded is not None:
        anywhere = other_places
        known = recorded.get("objective") or {}
        identity["objective"] = _objective_as(identity["objective"], known, objective, directory, anywhere=anywhere)
    return CampaignSpec(
        dir=directory,
        identity={**identity, **begins_with.identity},
        seed=seed,
        space=space,
        objective=objective,
        optimizer=make_optimizer(optimizer, space, seed, **settings),
        launcher=make_launcher(launcher),
        operation=operation,
        resolve=resolve,
        hours=launcher.hours,
        warm_start=begins_with,
        settings={
            "storage_dir": str(storage_dir),
            "launcher": launcher.model_dump(mode="json"),
            "objective": objective.operational(),
        },
        **options,
    )
