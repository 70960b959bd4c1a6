"""The specification of a campaign: what it is, how it is run now, and the objects that run it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.goals import Goals
from hpo_cluster.launchers import make_launcher
from hpo_cluster.launchers.base import Launcher, LauncherSettings
from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.optimizers.base import Optimizer, OptimizerSettings
from hpo_cluster.optimizers.registry import OPTIMIZERS, build_optimizer, constraint_faults, several_faults
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.exchange.trackers import OFF, Tracking
from hpo_cluster.record.history import rung_columns, several_columns
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.places import Move, as_recorded, move_of
from hpo_cluster.record.warm_start import WarmStart, read_warm_start, recorded_warm_start
from hpo_cluster.space import Space
from hpo_cluster.window import LaunchHours

#: Every evaluation is whole.
WHOLE = Fidelity()


@dataclass(frozen=True)
class ChosenOptimizer:
    """An optimizer, with its name and the settings with which it was made."""

    name: str
    settings: OptimizerSettings
    made: Optimizer

    def identity(self) -> dict[str, Any]:
        """Return the optimizer's name and settings as plain data."""
        return {"name": self.name, **self.settings.model_dump(mode="json")}


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
    launcher_settings: LauncherSettings
    operation: Operation
    storage_dir: Path
    resolve: PathResolver
    fidelity: Fidelity = WHOLE
    hours: LaunchHours = field(default_factory=LaunchHours)  # when jobs may be submitted
    overrides: tuple[str, ...] = ()
    code: Literal["recorded", "current", "none"] = "recorded"  # none: no job runs any
    take_over: bool = False
    warm_start: WarmStart = field(default_factory=WarmStart)  # earlier evaluations, with which a new campaign begins
    tracking: Tracking = OFF  # where trials are logged as they end
    tick: bool = False  # one short pass, which leaves no trace if nothing happens

    @property
    def gpus_per_trial(self) -> int:
        """Number of GPUs of one evaluation."""
        return self.launcher_settings.gpus_per_trial

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that each start records in addition to the operation, as plain data."""
        fidelity = self.fidelity.model_dump(mode="json", include=set(OPERATIONAL_FIDELITY))
        return {
            **({} if self.fidelity.ladder is None else {"fidelity": fidelity}),
            "storage_dir": str(self.storage_dir),
            "launcher": self.launcher_settings.model_dump(mode="json"),
            "objective": self.objective.operational(),
            **({} if self.tracking == OFF else {"tracking": self.tracking.model_dump(mode="json")}),
        }


#: Settings of the fidelity that may change when a campaign is resumed.
OPERATIONAL_FIDELITY = ("eta", "rule", "linger_s", "keep")


def identity_of(
    space: Space, objective: Objective, optimizer: ChosenOptimizer, seed: int, fidelity: Fidelity = WHOLE
) -> dict[str, Any]:
    """Return what defines a campaign, as plain data: written once into ``campaign.yaml``, compared at each start."""
    return {
        **fidelity.identity(),
        "space": space.to_json(),
        "objective": objective.identity(),
        "optimizer": optimizer.identity(),
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

    free = (*objective.OPERATIONAL, *objective.FORMER)
    return as_recorded(mine, recorded, free, objective.PLACES, same)


def choose_optimizer(
    name: str,
    settings: OptimizerSettings,
    space: Space,
    seed: int,
    *,
    budget: int,
    recorded: Mapping[str, Any] | None = None,
) -> ChosenOptimizer:
    """Return the optimizer of a campaign; settings that are null get a value that stays for the whole campaign.

    Args:
        name: name of the optimizer.
        settings: settings as configured.
        space: space to search.
        seed: seed of the campaign.
        budget: budget of this start, which sets the size of a new campaign's design if that is null.
        recorded: identity of the campaign, which holds the values already; None if the campaign is new.

    Raises:
        ConfigError: naming every reason why the optimizer cannot search this space with these settings.
    """
    choices = {"points": budget, "budget": budget} if recorded is None else recorded.get("optimizer") or {}
    if recorded is None or choices.get("name") == name:
        still_open = [key for key in type(settings).model_fields if getattr(settings, key) is None]
        settings = settings.model_copy(update={key: choices[key] for key in still_open if key in choices})
    return ChosenOptimizer(name, settings, build_optimizer(name, space, settings, seed))


def several_objectives_faults(
    goals: Goals | None, space: Space, optimizer: str, settings: OptimizerSettings
) -> list[str]:
    """Return why several objectives, or constraints, do not go with this space or this optimizer.

    Empty if they do, or if there is only one objective without constraints.
    """
    if goals is None:
        return []
    columns = several_columns(goals)
    faults = [
        f"space.{name}: that name is a column of the history of these objectives; choose another"
        for name in space.names
        if name in columns
    ]
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        faults.append(f"objective.metrics: their names give the history the same column twice: {', '.join(twice)}")
    if goals.several:
        faults += several_faults(optimizer, settings)
    elif goals.constraints:
        faults += constraint_faults(optimizer, settings)
    return faults


def rung_faults(
    fidelity: Fidelity, objective: Objective | None, space: Space | None, optimizer: str, operation: Operation | None
) -> list[str]:
    """Return why rungs do not go with the other parts of a campaign, as far as those have no faults of their own."""
    ladder = fidelity.ladder
    if ladder is None:
        fault = f"optimizer={optimizer}: decides at rungs, and fidelity=off has none; add fidelity=steps"
        return [fault] if OPTIMIZERS[optimizer].needs_fidelity else []
    faults = []
    if objective is not None and objective.goals is not None:
        faults.append(
            f"fidelity={fidelity.kind}: rungs are for one objective without constraints; accepted: fidelity=off, "
            "or one objective.metric and no objective.constraints"
        )
    elif objective is not None:
        faults += objective.fidelity_faults(ladder, space)
    if space is not None:
        taken = [name for name in space.names if name in rung_columns(ladder)]
        faults += [f"space.{name}: that name is a column of the history with rungs; choose another" for name in taken]
    whole = ladder.cost(ladder.top)
    if operation is not None and operation.budget < whole:
        faults.append(
            f"budget={operation.budget}: with fidelity={fidelity.kind}, one trial takes {whole:.3g} whole evaluations "
            f"up to the top; accepted: at least {math.ceil(whole)}"
        )
    return faults


def make_spec(
    directory: Path,
    *,
    space: Space,
    objective: Objective,
    optimizer: ChosenOptimizer,
    seed: int,
    launcher: LauncherSettings,
    operation: Operation,
    storage_dir: Path,
    resolve: PathResolver,
    fidelity: Fidelity = WHOLE,
    warm_start: Sequence[Path] | None = None,
    warm_start_other_objective: bool = False,
    warm_start_columns: Mapping[str, str] | None = None,
    warm_start_skip_bad: bool = False,
    other_places: bool = False,
    **options: Any,
) -> CampaignSpec:
    """Return the spec of a campaign in `directory`, whether the campaign exists already or not.

    Args:
        directory: folder of the campaign.
        space: space to search.
        objective: objective to optimise.
        optimizer: optimizer that makes the proposals.
        seed: seed of the campaign.
        launcher: settings of the launcher that runs the jobs.
        operation: settings of how the campaign is run now.
        storage_dir: shared folder of models and data.
        resolve: function that turns a configured path into an absolute one.
        fidelity: the rungs of an evaluation, and who goes on.
        warm_start: folders of earlier campaigns, or files, with whose evaluations this one begins; None: those that
            an existing campaign recorded.
        warm_start_other_objective: whether the earlier campaigns may have another objective.
        warm_start_columns: of the files: by column, the parameter or other column that it is.
        warm_start_skip_bad: whether rows of the files that have faults are left out.
        other_places: whether the objective's files may be in any other place than an existing campaign recorded.
        options: other fields of the spec.

    Raises:
        ConfigError: naming every reason against the warm start.
    """
    recorded = read_identity(CampaignLayout(directory).identity)
    identity = identity_of(space, objective, optimizer, seed, fidelity)
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
            metric=objective.metric or "value",
            columns=warm_start_columns,
            skip_bad=warm_start_skip_bad,
        )
    if recorded is not None:
        known = recorded.get("objective") or {}
        identity["objective"] = _objective_as(identity["objective"], known, objective, directory, anywhere=other_places)
    return CampaignSpec(
        dir=directory,
        identity={**identity, **begins_with.identity},
        seed=seed,
        space=space,
        objective=objective,
        optimizer=optimizer.made,
        launcher=make_launcher(launcher),
        launcher_settings=launcher,
        operation=operation,
        storage_dir=storage_dir,
        resolve=resolve,
        fidelity=fidelity,
        hours=launcher.hours,
        warm_start=begins_with,
        **options,
    )
