"""The typed configuration of a campaign, into which every command line is turned.

`hpo_cluster.cli.config.compose` makes plain data of Hydra overrides, `hpo_cluster.cli.config.validate` a `Config` of
plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field

from hpo_cluster.cli.config.groups import GROUPS
from hpo_cluster.driver.failures import Failures
from hpo_cluster.driver.notify import Notify
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.driver.spec import WHOLE, ChosenOptimizer, identity_of
from hpo_cluster.launchers import LAUNCHERS
from hpo_cluster.launchers.base import LauncherSettings
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.registry import OBJECTIVES
from hpo_cluster.optimizers.registry import OPTIMIZERS
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record import layout
from hpo_cluster.record.exchange.trackers import OFF, Tracking
from hpo_cluster.settings import Settings
from hpo_cluster.space import Space

HINT = "Keys and options: hpo-cluster run --help"

#: Sections of their own on the command line, fields of the objective (if it has them) in the campaign.
NESTED = ("model", "data", "tasks", "train")

#: By section, the key that says which class the section has; users choose it with ``section=NAME``.
DISCRIMINATORS = {"optimizer": "name", "objective": "kind", "fidelity": "kind", "launcher": "kind", "tracking": "kind"}

#: Relative paths in these keys are relative to the directory where the command is typed.
PATH_KEYS = (
    ("model", "checkpoint_dir"),
    ("data", "path"),
    ("tasks", "include_path"),
    ("objective", "cwd"),
    ("objective", "campaign"),
    ("objective", "search_path"),
    ("launcher", "setup_file"),
    ("tracking", "dir"),
)


class CampaignSettings(Settings):
    """The keys of ``config.yaml`` that belong neither to a group nor to the operation."""

    campaign: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="name of the campaign and of its folder; null: objective, optimizer and seed joined",
    )
    campaigns_dir: Path = Field(Path("campaigns"), description="folder of all campaigns")
    storage_dir: Path = Field(Path("storage"), description="shared folder of models and data: `storage:` in a path")
    seed: int = Field(0, strict=True, ge=0, description="everything random follows from it")
    warm_start: tuple[Path, ...] | None = Field(
        (),
        description="folders of earlier campaigns whose finished evaluations this one begins with, outside its budget, "
        "or files: [campaigns/first, results.csv]; null: those that it started with",
    )
    warm_start_other_objective: bool = Field(
        False, strict=True, description="whether `warm_start` takes evaluations of an objective with other settings"
    )
    warm_start_columns: dict[str, str] = Field(
        {}, description="of files in `warm_start`: by column, the parameter that it is, or value: {lr: learning_rate}"
    )
    warm_start_skip_bad: bool = Field(
        False, strict=True, description="whether rows of files in `warm_start` that have faults are left out"
    )
    dry_run: bool = Field(
        False, strict=True, description="print the first proposals and the submission scripts; create nothing"
    )
    code: Literal["recorded", "current"] = Field(
        "recorded", description="code that the jobs run: the campaign's own copy, or this version from now on"
    )


#: Keys that may change when a campaign is resumed, in addition to `launcher`.
OPERATIONAL = (*Operation.model_fields, "storage_dir")

#: The top-level keys that belong to no group.
TOP_KEYS = (*Operation.model_fields, *CampaignSettings.model_fields)


@dataclass(frozen=True)
class Config:
    """A campaign as configured: typed, checked, with absolute directories."""

    campaign: str
    settings: CampaignSettings
    operation: Operation
    space: Space
    optimizer: ChosenOptimizer
    objective: Objective
    launcher: LauncherSettings
    fidelity: Fidelity = WHOLE
    tracking: Tracking = OFF

    @property
    def campaign_dir(self) -> Path:
        """The campaign's folder."""
        return self.settings.campaigns_dir / self.campaign

    def resolve(self, path: str) -> Path:
        """Return the absolute path of a configured one: ``bundle:…``, ``storage:…`` or plain."""
        return resolve(path, self.settings.storage_dir)

    def identity(self) -> dict[str, Any]:
        """Return what the campaign is, as plain data: written once, and compared at each start."""
        return identity_of(self.space, self.objective, self.optimizer, self.settings.seed, self.fidelity)


def to_plain(config: Config) -> dict[str, Any]:
    """Return the configuration in the shape of ``conf/config.yaml`` and its groups, as it is typed."""
    plain = {**config.settings.model_dump(mode="json"), **config.operation.model_dump(mode="json")}
    identity = config.identity()
    objective = config.objective.model_dump(mode="json")
    sections = {key: objective.pop(key) for key in NESTED if key in objective}
    plain |= {"campaign": config.campaign, "space": identity["space"], "optimizer": identity["optimizer"]}
    fidelity = config.fidelity.model_dump(mode="json", include={"kind"} if config.fidelity.ladder is None else None)
    plain |= {"objective": objective, **sections, "fidelity": fidelity}
    off = config.tracking.kind == "off"
    plain |= {"tracking": config.tracking.model_dump(mode="json", include={"kind"} if off else None)}
    return {**plain, "launcher": config.launcher.model_dump(mode="json")}


def to_yaml(plain: Any) -> str:
    """Return plain data as YAML."""
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def resolve(path: str, storage_dir: Path) -> Path:
    """Return the absolute path that a configured one stands for."""
    prefix, separator, rest = path.partition(":")
    if separator and prefix == "bundle":
        return layout.resources_dir() / "bundle" / rest
    if separator and prefix == "storage":
        return storage_dir / rest
    return Path(path).expanduser().absolute()


def section_class(section: str, raw: Mapping[str, Any]) -> type[BaseModel] | None:
    """Return the class that types a section of `raw`; None for the space, and if the section names no class."""
    chosen = raw.get(section)
    name = str(chosen.get(DISCRIMINATORS.get(section))) if isinstance(chosen, Mapping) else ""
    if section == "optimizer":
        return OPTIMIZERS[name].settings if name in OPTIMIZERS else None
    if section == "objective":
        return OBJECTIVES.get(name)
    if section == "fidelity":
        return Fidelity
    if section == "tracking":
        return Tracking
    if section == "launcher":
        return LAUNCHERS[name][0] if name in LAUNCHERS else None
    if section in NESTED:
        annotation = OBJECTIVES["lora"].model_fields[section].annotation
        return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return None


def field_names(cls: type[BaseModel]) -> list[str]:
    """Return the keys of a class as they are typed, without those that are sections of their own."""
    names = [field.alias or name for name, field in cls.model_fields.items() if name not in NESTED]
    return [name for name in names if name != "kind"]


def known_keys(raw: Mapping[str, Any]) -> list[str]:
    """Return every key that can be typed with the choices in `raw`, except those of the space."""
    keys = [*TOP_KEYS, *GROUPS, *(f"failures.{kind}" for kind in Failures.model_fields)]
    keys += [f"notify.{name}" for name in Notify.model_fields]
    for section in ("optimizer", "objective", *NESTED, "fidelity", "launcher", "tracking"):
        if (cls := section_class(section, raw)) is not None:
            keys += [f"{section}.{name}" for name in field_names(cls)]
    return keys
