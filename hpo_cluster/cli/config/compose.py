"""From Hydra's override grammar to a checked `Config`, with every fault named at once and nothing created.

Parse each override, check the group choices against ``conf/``, compose once, put the values in their places, and hand
the plain data to `hpo_cluster.cli.config.validate.build`. `@hydra.main` is not used: it stops at the first fault and
makes directories before it knows that the configuration is sound.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hpo_cluster.cli.config.groups import GROUPS, conf_dir, hidden, options, search_dirs
from hpo_cluster.cli.config.schema import (
    DISCRIMINATORS,
    HINT,
    NESTED,
    OPERATIONAL,
    PATH_KEYS,
    CampaignSettings,
    Config,
    field_names,
    meant,
    section_class,
)
from hpo_cluster.cli.config.validate import brings_space, build, known
from hpo_cluster.driver.failures import Failures
from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives import OBJECTIVES
from hpo_cluster.objectives.base import Objective, joined
from hpo_cluster.objectives.lora.settings import OF_TRAINING
from hpo_cluster.record.warm_start import IDENTITY_KEY
from hpo_cluster.space import PARAMETER_FIELDS, SPACE_KEYS, parameter_names

_KEY = re.compile(r"(?:\+\+?|~)?([A-Za-z_][\w.@-]*)(?:=|$)")


@dataclass(frozen=True)
class _Item:
    """One override: its key in parts, what is to be done with the value, and the text as it was typed."""

    key: str
    value: Any
    text: str
    add: bool = False
    delete: bool = False

    @property
    def parts(self) -> list[str]:
        return self.key.split(".")


def compose(
    overrides: Sequence[str],
    *,
    cwd: Path | None = None,
    config_dir: Path | None = None,
    check_files: bool = True,
) -> Config:
    """The configuration that ``hpo-cluster run`` was asked for.

    Args:
        overrides: as typed: ``optimizer=lhs``, ``space.learning_rate.high=1e-2``.
        cwd: what relative paths are relative to; its ``conf/`` is searched too. The working directory by default.
        config_dir: one more folder with groups of configuration files.
        check_files: whether model, data and tasks must be there.

    Raises:
        ConfigError: with all faults.
    """
    cwd = (cwd or Path.cwd()).absolute()
    return _Composition(cwd, config_dir).run(overrides, check_files)


def compose_all(
    combinations: Sequence[Sequence[str]],
    *,
    cwd: Path | None = None,
    config_dir: Path | None = None,
    check_files: bool = True,
) -> list[Config]:
    """The configurations of several campaigns, all checked before the first starts.

    Raises:
        ConfigError: with all faults of all combinations, each once; two campaigns in one folder are one.
    """
    configs: list[Config] = []
    found: dict[str, list[str]] = {}
    hint = HINT
    for combination in combinations:
        try:
            configs.append(compose(combination, cwd=cwd, config_dir=config_dir, check_files=check_files))
        except ConfigError as error:
            hint = error.hint or hint
            for fault in error.faults:
                found.setdefault(fault, []).append(" ".join(combination))
    faults = [fault if len(who) == len(combinations) else f"[{who[0]}] {fault}" for fault, who in found.items()]
    folders: dict[Path, int] = {}
    for config in configs:
        folders[config.campaign_dir] = folders.get(config.campaign_dir, 0) + 1
    for folder, count in folders.items():
        if count > 1:
            faults.append(f"campaign={folder.name}: {count} combinations would share {folder}; leave campaign= out")
    if faults:
        raise ConfigError(faults, hint)
    return configs


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """All combinations of overrides that list several values (``a=1,2``, ``a=range(3)``): one list a campaign.

    Raises:
        ConfigError: with every override that is malformed.
    """
    faults: list[str] = []
    axes: list[list[str]] = []
    for text in overrides:
        override = _parse(text, faults)
        if override is not None and override.is_sweep_override():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([text])
    if faults:
        raise ConfigError(faults, HINT)
    return [list(combination) for combination in itertools.product(*axes)]


def compose_resume(
    identity: Mapping[str, Any],
    operation: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    campaign_dir: Path,
    cwd: Path | None = None,
    config_dir: Path | None = None,
    check_files: bool = True,
    here: Callable[[str], str] = str,
) -> Config:
    """The configuration of a campaign that exists, with operational keys changed.

    Args:
        identity: as in ``campaign.yaml``.
        operation: as its last start recorded it.
        overrides: of operational keys only: ``budget=60 workers=8 launcher=slurm``.
        campaign_dir: the campaign's folder.
        cwd: what relative paths are relative to.
        config_dir: one more folder with configuration files.
        check_files: whether model, data and tasks must be there.
        here: gives the present place of a recorded path.

    Raises:
        ConfigError: with all faults; an override of an identity key is one.
    """
    cwd = (cwd or Path.cwd()).absolute()
    return _Composition(cwd, config_dir).resume(identity, operation, overrides, campaign_dir, check_files, here)


def _parse(text: str, faults: list[str]) -> Override | None:
    """One override by Hydra's grammar; None, and a fault, where it is none."""
    match = _KEY.match(text)
    if match is None or ("=" not in text and not text.startswith("~")):
        faults.append(f"{text!r}: is no override; accepted: KEY=VALUE, such as budget=30")
        return None
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        faults.append(f"{text!r}: cannot be read ({reason}); put quotes around a value with spaces, commas or brackets")
        return None
    if override.package is not None:
        faults.append(f"{text!r}: packages (@) are not accepted; write {match[1].partition('@')[0]}=VALUE")
        return None
    return override


class _Composition:
    """One composition: faults pile up while everything that can still be checked is."""

    def __init__(self, cwd: Path, config_dir: Path | None) -> None:
        self.cwd, self.faults, self.broken = cwd, list[str](), set[str]()
        if config_dir is not None and not (cwd / config_dir).is_dir():
            self.faults.append(f"--config-dir {config_dir}: is no directory")
        self.dirs = search_dirs(cwd, None if config_dir is None else cwd / config_dir)

    def run(self, overrides: Sequence[str], check_files: bool) -> Config:
        items = self._items(overrides)
        choices, values = self._choices(items)
        raw = self._load(choices)
        chosen = {item.parts[0] for item in items}
        for item in values:
            if item.parts[0] != "space":
                self._put(raw, item)
        self._unused(raw, chosen)
        if (raw.get("objective") or {}).get("kind") == "function":
            self.faults.append(
                "objective.kind='function': a configuration names no Python function; accepted: objective=command "
                "'objective.command=\"python ...\"', or hpo_cluster.optimize(fn, ...) in Python"
            )
            self.broken.add("objective")
        metric = (raw.get("tasks") or {}).get("metric")
        if raw.get("baseline") is True and "tasks" not in self.broken and metric in OF_TRAINING:
            self.faults.append(f"baseline=True: a model before fine-tuning has no {metric}; accepted: false")
        raw["space"] = self._own_space(raw) or raw.get("space") or {}
        for item in values:
            if item.parts[0] == "space":
                self._put(raw, item)
        return build(raw, cwd=self.cwd, check_files=check_files, broken=self.broken, faults=self.faults)

    def resume(
        self,
        identity: Mapping[str, Any],
        operation: Mapping[str, Any],
        overrides: Sequence[str],
        campaign_dir: Path,
        check_files: bool,
        here: Callable[[str], str],
    ) -> Config:
        campaign_dir = (self.cwd / campaign_dir).absolute()
        raw = _recorded(identity, operation, campaign_dir, here)
        cls = OBJECTIVES[str(identity["objective"].get("kind"))]
        theirs = [
            name if name.partition(".")[0] in NESTED else f"objective.{name}"
            for name in (*cls.OPERATIONAL, *cls.PLACES)
        ]
        accepted = [*OPERATIONAL, "code", "dry_run", "launcher", *theirs]
        items = []
        for item in self._items(overrides):
            top = item.parts[0]
            if top in ("campaign", "campaigns_dir"):
                self.faults.append(f"{item.text}: the folder {campaign_dir} says which campaign is meant")
            elif top in accepted or ".".join(item.parts) in accepted:
                items.append(item)
            elif top in GROUPS or top in CampaignSettings.model_fields:
                self.faults.append(
                    f"{item.text}: belongs to the campaign's identity and cannot change; accepted: "
                    f"{', '.join(accepted)}; for another campaign: hpo-cluster run {item.text} campaign=NEW_NAME"
                )
            else:
                self._unknown(item, accepted)
        choices, values = self._choices(items)
        if choices and "launcher" not in self.broken:
            raw["launcher"] = self._load(choices).get("launcher")
        for item in values:
            self._put(raw, item)
        return build(raw, cwd=self.cwd, check_files=check_files, broken=self.broken, faults=self.faults)

    def _items(self, overrides: Sequence[str]) -> list[_Item]:
        items = []
        for text in overrides:
            override = _parse(text, self.faults)
            if override is None:
                continue
            if override.is_sweep_override():
                self.faults.append(f"{text}: lists several values; add -m for one campaign each, or quotes for a text")
                self.broken.add(override.key_or_group.partition(".")[0])
                continue
            add, delete = override.is_add() or override.is_force_add(), override.is_delete()
            value = None if delete else override.value()
            items.append(_Item(override.key_or_group, value, text, add, delete))
        return items

    def _choices(self, items: Sequence[_Item]) -> tuple[dict[str, str], list[_Item]]:
        """Group choices that exist, and the other overrides."""
        choices: dict[str, str] = {}
        values = []
        for item in items:
            group = item.key
            if group not in GROUPS:
                values.append(item)
                continue
            if item.delete:
                self.faults.append(f"{item.text}: a group cannot be removed; give {group}=NAME")
                continue
            if group in choices:
                self.faults.append(f"{item.text}: {group} is chosen twice, {group}={choices[group]} before")
                continue
            if group == "space" and isinstance(item.value, Mapping):
                choices[group] = "own"
                values.append(_Item("space", item.value, item.text))
                continue
            if group == "experiment" and item.value is None:
                continue
            accepted = options(group, self.dirs)
            name = str(item.value)
            if name in accepted:
                choices[group] = name
                if other := hidden(group, name, self.dirs):
                    self.faults.append(f"{item.text}: {other} has the name of an option of the package; rename it")
            else:
                close = meant(name, accepted)
                also = f"a file conf/{group}/{name}.yaml, --config-dir DIR" if re.fullmatch(r"[\w.-]+", name) else ""
                self.faults.append(
                    f"{group}={name}: is no option of {group}; {close}{' ' if close else ''}"
                    f"accepted: {', '.join(accepted)}{'; or ' if also else ''}{also}"
                )
                self.broken.add(group)
        return choices, values

    def _load(self, choices: Mapping[str, str]) -> dict[str, Any]:
        """Plain data of ``config.yaml`` with these choices."""
        overrides = [f"{group}='{name}'" for group, name in choices.items()]
        if extra := self.dirs[1:]:
            quoted = ", ".join("'file://" + str(path).replace("'", r"\'") + "'" for path in extra)
            overrides.append(f"hydra.searchpath=[{quoted}]")
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                composed = hydra_compose("config", overrides)
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError([*self.faults, f"the configuration files do not compose: {reason}"], HINT) from error
        assert isinstance(plain, dict)
        data = {str(key): value for key, value in plain.items()}
        accepted = [*CampaignSettings.model_fields, *GROUPS]
        for key in [key for key in data if key not in accepted]:
            close = meant(key, accepted)
            self.faults.append(f"{key}: a configuration file sets it, but it is no key; {close or HINT}")
            del data[key]
        data.pop("experiment", None)
        return data

    def _own_space(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """The objective's own space as plain data, where none is configured and the objective is sound."""
        cls = section_class("objective", raw)
        if raw.get("space") or cls is None or not issubclass(cls, Objective) or not brings_space(cls):
            return None
        try:
            space = cls.model_validate(known(raw["objective"])).own_space()
        except ValueError:
            self.broken.add("space")  # what the objective lacks is said where it is built
            return None
        return None if space is None else dict(space.to_json())

    def _unused(self, raw: Mapping[str, Any], chosen: set[str]) -> None:
        """Faults for sections that were typed and that the objective does not read."""
        cls = section_class("objective", raw)
        if cls is None or "objective" in self.broken:
            return
        for name in NESTED:
            if name in chosen and name not in cls.model_fields:
                kind = raw["objective"]["kind"]
                self.faults.append(f"{name}: objective={kind} does not use it; leave it out, or objective=lora")

    def _put(self, raw: dict[str, Any], item: _Item) -> None:
        """Put one value in its place, or say why there is none."""
        section = item.parts[0]
        if section in self.broken:
            return
        if not self._is_known(raw, item):
            return
        if item.delete:
            raw["space"].pop(item.parts[1], None)
            return
        place = raw
        for part in item.parts[:-1]:
            inner = place.get(part)
            place[part] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[part]
        last = item.parts[-1]
        old = place.get(last)
        if item.key == "space":
            raw["space"] = copy.deepcopy(item.value)
        elif isinstance(old, Mapping) and isinstance(item.value, Mapping):
            place[last] = {**old, **item.value}
        else:
            place[last] = item.value

    def _is_known(self, raw: Mapping[str, Any], item: _Item) -> bool:
        section, rest = item.parts[0], item.parts[1:]
        if item.delete and (section != "space" or len(rest) != 1 or rest[0] not in (raw.get("space") or {})):
            self.faults.append(f"{item.text}: only a parameter can be removed: ~space.NAME")
            return False
        if section == "space" and not rest:
            return True
        accepted = _known_keys(raw)
        if rest and rest[0] == DISCRIMINATORS.get(section):
            self.faults.append(f"{item.text}: choose with {section}=NAME (the key only repeats it)")
            return False
        if section == "space":
            space = raw.get("space") or {}
            whole = len(rest) == 1 and (item.add or rest[0] in space or rest[0] in SPACE_KEYS)
            if whole or (len(rest) == 2 and rest[0] in parameter_names(space) and rest[1] in PARAMETER_FIELDS):
                return True
            addable = isinstance(item.value, (Mapping, str, bool, int, float))
            if len(rest) == 1 and addable and not meant(item.key, accepted):
                self.faults.append(f"{item.key}: is no parameter of the space; to add it: '+{item.text}'")
                return False
            accepted += [f"space.{key}" for key in SPACE_KEYS]
        elif item.key in accepted or (len(rest) > 1 and f"{section}.{rest[0]}" in _open_keys(raw)):
            return True
        self._unknown(item, accepted)
        return False

    def _unknown(self, item: _Item, accepted: Sequence[str]) -> None:
        section = item.parts[0]
        close = meant(item.key, accepted)
        siblings = [key for key in accepted if key.startswith(f"{section}.")] if section in GROUPS else []
        if not close and siblings:
            close = f"accepted: {', '.join(siblings)}"
        self.faults.append(f"{item.key}: is no key; {close or 'accepted: see hpo-cluster run --help'}")


def _recorded(
    identity: Mapping[str, Any], operation: Mapping[str, Any], campaign_dir: Path, here: Callable[[str], str]
) -> dict[str, Any]:
    """Identity and operation of a campaign in the shape of ``conf/config.yaml``, with paths as they are now."""
    objective = joined(copy.deepcopy(dict(identity["objective"])), operation.get("objective") or {})
    sections = {name: objective.pop(name) for name in NESTED if name in objective}
    kept = {key: value for key, value in operation.items() if key in (*OPERATIONAL, "launcher")}
    raw = copy.deepcopy(
        {
            "launcher": {"kind": "local"},
            **kept,
            **sections,
            "campaign": campaign_dir.name,
            "campaigns_dir": str(campaign_dir.parent),
            "warm_start": None if identity.get(IDENTITY_KEY) else [],
            "seed": identity["seed"],
            "space": identity["space"],
            "objective": objective,
            "optimizer": identity["optimizer"],
        }
    )
    for section, key in (*PATH_KEYS, (None, "storage_dir")):
        place = raw if section is None else raw.get(section)
        if isinstance(place, dict) and isinstance(path := place.get(key), str):
            place[key] = here(path)
    return raw


def _known_keys(raw: Mapping[str, Any]) -> list[str]:
    """Every key that can be typed with the present choices."""
    keys = [*CampaignSettings.model_fields, *GROUPS, *(f"failures.{kind}" for kind in Failures.model_fields)]
    for name, entry in (raw.get("space") or {}).items():
        fields = entry if isinstance(entry, Mapping) else ()
        keys += [f"space.{name}", *(f"space.{name}.{field}" for field in fields)]
    for section in ("optimizer", "objective", *NESTED, "launcher"):
        if (cls := section_class(section, raw)) is not None:
            keys += [f"{section}.{name}" for name in field_names(cls)]
    return keys


def _open_keys(raw: Mapping[str, Any]) -> list[str]:
    """Keys whose value is a mapping with keys of the user's own."""
    keys = []
    for section in ("optimizer", "launcher"):
        if (cls := section_class(section, raw)) is not None:
            fields = cls.model_fields.items()
            keys += [f"{section}.{name}" for name, field in fields if "dict" in str(field.annotation)]
    return keys
