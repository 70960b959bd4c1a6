"""Make a `Config` of plain data, and name every fault at once: the key as typed, the value seen, what is accepted."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hpo_cluster.cli.config.groups import GROUPS
from hpo_cluster.cli.config.schema import (
    DISCRIMINATORS,
    HINT,
    NESTED,
    PATH_KEYS,
    TOP_KEYS,
    CampaignSettings,
    Config,
    known_keys,
    resolve,
    section_class,
)
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.driver.spec import (
    WHOLE,
    ChosenOptimizer,
    choose_optimizer,
    rung_faults,
    several_objectives_faults,
)
from hpo_cluster.errors import ConfigError
from hpo_cluster.launchers import LAUNCHERS
from hpo_cluster.launchers.base import LauncherSettings
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.registry import OBJECTIVES
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.registry import OPTIMIZERS, constraint_faults, several_faults
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record.exchange.trackers import OFF, Tracking
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import CAMPAIGN_NAME_RULE, CampaignLayout, in_campaign_name, is_campaign_name
from hpo_cluster.settings import Fault, faults_of
from hpo_cluster.space import SPACE_KEYS, Space
from hpo_cluster.text import did_you_mean, instead_of, some_of

M = TypeVar("M", bound=BaseModel)

#: A space written on the command line.
INLINE = "{lr: {low: 1e-5, high: 1e-1, log: true}}"

#: Beginnings of messages about a whole section that name their keys themselves, one in each line.
WITH_KEY = tuple(f"{section}." for section in (*NESTED, *DISCRIMINATORS))

_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\b[A-Z0-9_]*(TOKEN|SECRET|PASSWORD|API_KEY)=[\"']?[^\s\"'$]")


def build(
    raw: Mapping[str, Any],
    *,
    cwd: Path,
    check_files: bool = True,
    broken: Iterable[str] = (),
    faults: Sequence[str] = (),
) -> Config:
    """Return the configuration of plain data in the shape of ``conf/config.yaml``.

    Args:
        raw: top-level keys and sections; a section ``space`` that is empty stands for the objective's own.
        cwd: what relative paths are relative to.
        check_files: whether the files that the jobs need must exist.
        broken: sections whose faults are known already; no further faults are named for them.
        faults: faults that are known already.

    Raises:
        ConfigError: with `faults` and every fault found here.
    """
    return _Builder(raw, cwd, set(broken), list(faults)).build(check_files)


class _Builder:
    """One pass over the plain data. A part is checked if the parts that it needs have no faults."""

    def __init__(self, raw: Mapping[str, Any], cwd: Path, broken: set[str], faults: list[str]) -> None:
        self.raw = {key: dict(value) if isinstance(value, Mapping) else value for key, value in raw.items()}
        self.cwd, self.broken, self.faults = cwd, broken, faults
        self.hint = HINT
        for section in (*NESTED, *DISCRIMINATORS):
            value = self.raw.get(section) or {}
            self.raw[section] = value if isinstance(value, dict) else {}
            if not isinstance(value, dict):
                self.broken.add(section)
                self.faults.append(
                    f"{section}={value!r}: is not a mapping; an option is chosen with override /{section}: NAME"
                )
        self.known = known_keys(self.raw)

    def build(self, check_files: bool) -> Config:
        for section, key in PATH_KEYS:
            if isinstance(self.raw.get(section), dict) and isinstance(self.raw[section].get(key), str):
                self.raw[section][key] = self._absolute(self.raw[section][key])
        self._secrets()
        for key in [key for key in self.raw if key not in (*TOP_KEYS, *GROUPS)]:
            self.faults.append(f"{key}: is not a key; {self._instead(key)}")
        settings, operation = self._settings(), self._validated(Operation, self._top(Operation), "")
        objective = self._objective()
        space = self._space(objective)
        launcher, fidelity, tracking = self._section("launcher"), self._fidelity(), self._section("tracking")
        typed = self._section("optimizer")
        if objective is not None and space is not None:
            self.faults += objective.space_faults(space)
            if isinstance(typed, OptimizerSettings):
                self.faults += several_objectives_faults(
                    objective.goals, space, str(self.raw["optimizer"].get("name")), typed
                )
        elif objective is not None and "space" not in self.broken and isinstance(self.raw.get("space"), Mapping):
            self.faults += objective.name_faults([name for name in self.raw["space"] if name not in SPACE_KEYS])
        if objective is None and isinstance(typed, OptimizerSettings):
            self.faults += self._goals_without_objective(str(self.raw["optimizer"].get("name")), typed)
        self._joint_faults(objective, operation, launcher)
        if isinstance(typed, OptimizerSettings):
            optimizer_name = str(self.raw["optimizer"].get("name"))
            self.faults += rung_faults(fidelity, objective, space, optimizer_name, operation)
        if objective is not None and settings is not None and check_files:
            found = objective.file_faults(lambda path: resolve(path, settings.storage_dir))
            self.faults += [fault for fault in found if fault.partition(".")[0] not in self.broken]
        tracking = tracking if isinstance(tracking, Tracking) else OFF
        self.faults += tracking.faults if check_files else []
        name, optimizer = str(self.raw["optimizer"].get("name")), None
        if settings is not None:
            label = in_campaign_name(objective.label) if objective is not None else ""
            campaign = settings.campaign or f"{label}-{name}-{settings.seed}"
            if isinstance(typed, OptimizerSettings) and space is not None and operation is not None:
                folder = CampaignLayout(settings.campaigns_dir / campaign)
                optimizer = self._optimizer(name, typed, space, settings.seed, operation.budget, folder)
            if not self.faults and objective and space and isinstance(launcher, LauncherSettings):
                assert operation is not None
                assert optimizer is not None
                return Config(campaign, settings, operation, space, optimizer, objective, launcher, fidelity, tracking)
        raise ConfigError(list(dict.fromkeys(self.faults)), self.hint)

    def _goals_without_objective(self, optimizer: str, settings: OptimizerSettings) -> list[str]:
        """Return why the optimizer cannot keep several metrics or constraints, of which some are wrong."""
        given = self.raw.get("objective") or {}
        if len(list_of(given.get("metrics"))) > 1:
            return several_faults(optimizer, settings)
        return constraint_faults(optimizer, settings) if list_of(given.get("constraints")) else []

    def _joint_faults(self, objective: Objective | None, operation: Operation | None, launcher: Any) -> None:
        """Add the faults of combinations of parts."""
        if objective is not None and operation is not None and operation.baseline and not objective.has_baseline:
            self.faults.append(f"baseline=True: objective={objective.kind} has no baseline; accepted: false")
        if objective is not None and operation is not None and operation.baseline:
            self.faults += [
                f"baseline=True: a model before fine-tuning has no {name}; accepted: false"
                for name in objective.not_of_baseline
            ]
        if objective is not None and isinstance(launcher, LauncherSettings):
            self.faults += objective.gpu_faults(launcher.gpus_per_trial)
        per_node = getattr(launcher, "trials_per_node", 1)
        if operation is not None and operation.slots < per_node:
            self.faults.append(
                f"workers={operation.slots}: launcher.trials_per_node={per_node} needs at least as many, best "
                "a multiple of it"
            )

    def _absolute(self, path: str) -> str:
        if path == "???" or path.startswith(("bundle:", "storage:")):
            return path
        return str((self.cwd / Path(path).expanduser()).absolute())

    def _secrets(self) -> None:
        for key, value in _leaves(self.raw):
            if isinstance(value, str) and _SECRET.search(value):
                self.faults.append(
                    f"{key}: holds what looks like a token or password, which would be recorded; export it in the "
                    "shell, or in a file that the jobs read: launcher.setup_file=FILE"
                )

    def _validated(self, cls: type[M], data: Mapping[str, Any], section: str) -> M | None:
        """Return the settings of `data` without the faulty ones, so that the others can be checked further."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            found = faults_of(error, cls)
            self.faults += self._sentences(found, cls, section)
            rest = copy.deepcopy(dict(data))
            dropped = {_drop(rest, fault.loc) for fault in found} - {""}
            try:
                return cls.model_validate(rest)
            except ValidationError as error:
                for line in self._sentences((f for f in faults_of(error, cls) if not f.loc), cls, section):
                    if not any(re.search(rf"\b{re.escape(word)}\b", line) for word in dropped):
                        self.faults.append(line)  # it does not follow from what was left out
                return None

    def _sentences(self, faults: Iterable[Fault], cls: type[BaseModel], section: str) -> list[str]:
        """Return a sentence for each fault: the key as it is typed, the value seen, what is accepted."""
        found = []
        for fault in faults:
            if not fault.loc and fault.message.startswith(WITH_KEY):
                found += fault.message.splitlines()
                continue
            nested = section == "objective" and fault.loc and fault.loc[0] in NESTED
            if section and not nested:
                fault = replace(fault, loc=(section, *fault.loc))
            if fault.loc and fault.loc[0] in self.broken:
                continue
            if fault.kind == "missing":
                found.append(f"{fault}; give {fault.key}=...")
            elif fault.kind == "extra_forbidden":
                found.append(f"{fault.key}: is not a key; {self._instead(fault.key)}")
            else:
                found.append(str(fault))
        return found

    def _instead(self, key: str) -> str:
        """Return what to type in place of a key that does not exist."""
        if close := did_you_mean(key, self.known).strip():
            return close
        section, dot, _ = key.partition(".")
        siblings = [other for other in self.known if other.startswith(f"{section}.")] if dot else []
        if dot and not siblings and section in self.raw:
            return f"{section} has no settings"
        return f"accepted: {some_of(siblings)}" if siblings else "accepted: see hpo-cluster run --help"

    def _top(self, cls: type[BaseModel]) -> dict[str, Any]:
        return {key: value for key, value in known(self.raw).items() if key in cls.model_fields}

    def _settings(self) -> CampaignSettings | None:
        values = self._top(CampaignSettings)
        for key in ("campaigns_dir", "storage_dir"):
            folder = values.get(key, str(CampaignSettings.model_fields[key].default))
            if isinstance(folder, str):
                values[key] = Path(self._absolute(folder))
        if isinstance(earlier := values.get("warm_start"), str):
            values["warm_start"] = earlier = [earlier]
        if isinstance(earlier, list):
            folders = (self._absolute(folder) if isinstance(folder, str) else folder for folder in earlier)
            values["warm_start"] = tuple(Path(folder) if isinstance(folder, str) else folder for folder in folders)
        name = values.get("campaign")
        if isinstance(name, str) and not is_campaign_name(name):
            self.faults.append(f"campaign={name!r}: is not a name for a folder; accepted: {CAMPAIGN_NAME_RULE}")
            values["campaign"] = None
        return self._validated(CampaignSettings, values, "")

    def _objective(self) -> Objective | None:
        cls = section_class("objective", self.raw)
        if cls is None:
            if "objective" not in self.broken:
                kind = (self.raw.get("objective") or {}).get("kind")
                self.faults.append(f"objective.kind={kind!r}: {instead_of(str(kind), OBJECTIVES)}")
            return None
        data = known(self.raw.get("objective") or {})
        nested = [name for name in NESTED if name in cls.model_fields]
        data |= {name: known(self.raw.get(name) or {}) for name in nested}
        made = self._validated(cls, data, "objective")
        return made if isinstance(made, Objective) and "objective" not in self.broken else None

    def _space(self, objective: Objective | None) -> Space | None:
        if "space" in self.broken:
            return None
        entries = self.raw.get("space") or {}
        if not isinstance(entries, Mapping):
            self.faults.append(f"space={entries!r}: is not a space; accepted: a name, or {INLINE}")
            return None
        if not entries:
            own = objective.own_space() if objective is not None else None
            cls = section_class("objective", self.raw)
            if cls is not None and not (issubclass(cls, Objective) and brings_space(cls)):
                kind = self.raw["objective"]["kind"]
                self.faults.append(
                    f"space: objective={kind} has no space of its own; give space=NAME (a file "
                    f"conf/space/NAME.yaml), or 'space={INLINE}'"
                )
            return own
        try:
            return Space.from_json(entries)
        except ConfigError as error:
            self.faults += error.faults
            return None

    def _section(self, section: str) -> BaseModel | None:
        if section in self.broken:
            return None
        cls = section_class(section, self.raw)
        if cls is None:
            accepted = {"optimizer": OPTIMIZERS, "launcher": LAUNCHERS}[section]
            key = DISCRIMINATORS[section]
            value = (self.raw.get(section) or {}).get(key)
            self.faults.append(f"{section}.{key}={value!r}: {instead_of(str(value), accepted)}")
            return None
        data = known(self.raw[section])
        if section == "optimizer":
            data.pop("name")
        return self._validated(cls, data, section)

    def _fidelity(self) -> Fidelity:
        """Return how early evaluations are looked at."""
        given = self.raw["fidelity"]
        if given.get("kind", "off") == "off" and (extra := sorted(set(known(given)) - {"kind"})):
            self.faults.append(
                f"{', '.join(f'fidelity.{key}' for key in extra)}: fidelity=off has no rungs; add fidelity=steps, "
                "data, items or share"
            )
            return WHOLE
        made = self._section("fidelity")
        return made if isinstance(made, Fidelity) else WHOLE

    def _optimizer(
        self, name: str, settings: OptimizerSettings, space: Space, seed: int, budget: int, folder: CampaignLayout
    ) -> ChosenOptimizer | None:
        try:
            recorded = read_identity(folder.identity)
            return choose_optimizer(name, settings, space, seed, budget=budget, recorded=recorded)
        except ConfigError as error:
            self.faults += error.faults
            self.hint = error.hint or self.hint
            return None


def brings_space(cls: type[Objective]) -> bool:
    """Return whether objectives of this class have a search space of their own."""
    return cls.own_space is not Objective.own_space


def known(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that have a value; ``???`` marks those that have none."""
    return {key: value for key, value in section.items() if value != "???"}


def list_of(entries: Any) -> Sequence[Any]:
    """Return entries; none if they are not a list."""
    return entries if isinstance(entries, (list, tuple)) else ()


def _drop(data: Any, loc: Sequence[str]) -> str:
    """Remove the value at `loc`, or the first part of the path that is neither mapping nor entry of a list.

    Returns:
        the word by which messages call what was removed: its key, or the name of the entry that it was in.
    """
    if not loc:
        return ""  # several values that do not fit together: no single one is wrong
    if len(loc) == 3 and loc[1].isdecimal() and isinstance(data, dict):
        section, place, key = loc
        entries = list(list_of(data.get(section)))
        entry = entries[int(place)] if int(place) < len(entries) else None
        if isinstance(entry, dict) and "name" in entry:
            entries[int(place)] = {name: value for name, value in entry.items() if name != key}
            data[section] = entries
            return str(entry["name"])
    for part in loc[:-1]:
        if not isinstance(data, dict) or not isinstance(data.get(part), dict):
            loc = loc[: loc.index(part) + 1]
            break
        data = data[part]
    if isinstance(data, dict) and isinstance(data.get(loc[-1]), dict):
        data[loc[-1]] = {}  # a section as a whole: its defaults take its place
    elif isinstance(data, dict):
        data.pop(loc[-1], None)
    return loc[-1]


def _leaves(data: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(data, Mapping):
        items: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, (list, tuple)):
        items = enumerate(data)
    else:
        yield prefix, data
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
