"""Turn overrides into a checked `Config`: Hydra applies them, `validate.build` names every fault, nothing is created.

Hydra stops at the first fault. So faults that would stop it are found before (syntax, options of groups, parameters of
the space), every value is set whether or not its key exists (``++``), and the composed result is validated as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpo_cluster.cli.config.groups import GROUPS, PRIMARY, config_names, hidden, options, search_dirs
from hpo_cluster.cli.config.schema import (
    DISCRIMINATORS,
    HINT,
    NESTED,
    Config,
    section_class,
)
from hpo_cluster.cli.config.validate import brings_space, build, known
from hpo_cluster.cli.config.with_hydra import (
    ERRORS,
    compose_files,
    parse_override,
    reason_of,
    searching,
    store_space,
)
from hpo_cluster.driver.notify_command import command_faults
from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.base import Objective
from hpo_cluster.record.identity import flatten
from hpo_cluster.space import PARAMETER_FIELDS, SPACE_KEYS, parameter_names
from hpo_cluster.text import did_you_mean, instead_of

#: What is accepted as a value with `${`.
LITERAL = r"accepted: ${KEY} of the configuration, ${oc.env:VARIABLE} of the shell; \${ is the text itself"

#: What OmegaConf says of a mapping where a list is expected, and of a list where a mapping is.
LIST_AND_MAPPING = "Cannot merge DictConfig with ListConfig"

_SHELL = re.compile(r"(?<!\\)\$\{\{")
_KEY = re.compile(r"(?:\+\+?|~)?([A-Za-z_][\w./@-]*)(?:=|$)")


def compose(
    overrides: Sequence[str],
    *,
    cwd: Path | None = None,
    config_dir: Path | None = None,
    config_name: str = PRIMARY,
    check_files: bool = True,
    faults: Sequence[str] = (),
) -> Config:
    """Return the configuration that ``hpo-cluster run`` was asked for.

    Args:
        overrides: as typed: ``optimizer=lhs``, ``space.learning_rate.high=1e-2``.
        cwd: what relative paths are relative to; its ``conf/`` is searched too. The working directory by default.
        config_dir: one more folder with configuration files.
        config_name: the file to begin with.
        check_files: whether model, data and tasks must exist.
        faults: faults that are known already.

    Raises:
        ConfigError: with all faults.
    """
    composition = Composition(cwd, config_dir, config_name, faults)
    with searching(composition.dirs):
        raw = composition.run(overrides)
    return composition.build(raw, check_files)


def parsed(text: str, faults: list[str]) -> Override | None:
    """Return one override, parsed with Hydra's grammar; add a fault and return None if it is not accepted."""
    match = _KEY.match(text)
    if match is None or ("=" not in text and not text.startswith("~")):
        faults.append(f"{text!r}: is not an override; accepted: KEY=VALUE, such as budget=30")
        return None
    key = match[1]
    try:
        override = parse_override(text)
    except ERRORS as error:
        reason = reason_of(error)
        value = text.partition("=")[2]
        how = "put quotes around a value with spaces, commas or brackets"
        if value and not set("\"'[]") & set(value) and value[0] not in "{(":  # a text whose quotes the shell has taken
            how = f"a text needs quotes inside those of the shell:  '{match[0]}\"{value}\"'"
        faults.append(f"{text!r}: cannot be read ({reason}); {how}")
        return None
    if override.is_hydra_override():
        faults.append(
            f"{key}: is not a key of a campaign: Hydra's folders, logs, launchers and sweepers are not used; accepted: "
            "campaigns_dir=DIR, launcher=NAME, -m, --config-dir DIR"
        )
        return None
    if override.package is not None:
        faults.append(f"{text!r}: packages (@) are not accepted; write {key.partition('@')[0]}=VALUE")
        return None
    return override


class Composition:
    """One composition, which collects faults and goes on with everything that can still be checked."""

    def __init__(
        self, cwd: Path | None, config_dir: Path | None, config_name: str = PRIMARY, faults: Sequence[str] = ()
    ) -> None:
        self.cwd = cwd = (cwd or Path.cwd()).absolute()
        self.name = config_name.removesuffix(".yaml")
        self.faults, self.broken = list(faults), set[str]()
        self.known_command: str | None = None  # of `notify`, as recorded: it may call what only the frontend has
        self.dirs = search_dirs(cwd, None if config_dir is None else cwd / config_dir)
        if config_dir is not None and not (cwd / config_dir).is_dir():
            self.faults.append(f"--config-dir {config_dir}: is not a directory")
        elif config_dir is not None and (other := hidden(f"{PRIMARY}.yaml", [self.dirs[0], cwd / config_dir])):
            self.faults.append(
                f"{other}: has the name of the package's own; rename it, begin it with  defaults: [{PRIMARY}, _self_]  "
                "and give  --config-name NAME"
            )
        if not any((folder / f"{self.name}.yaml").is_file() for folder in self.dirs):
            names = config_names(self.dirs)
            self.faults.append(
                f"--config-name {config_name}: there is no such file; {instead_of(self.name, names)}, "
                f"from {', '.join(map(str, self.dirs))}"
            )
            self.name = PRIMARY

    def build(self, raw: Mapping[str, Any], check_files: bool) -> Config:
        """Return the checked configuration of the composed data."""
        notify = raw.get("notify")
        command = notify.get("command") if isinstance(notify, Mapping) else None
        if check_files and isinstance(command, str) and command != self.known_command:
            self.faults += command_faults(command)
        return build(raw, cwd=self.cwd, check_files=check_files, broken=self.broken, faults=self.faults)

    def run(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the composed data of a new campaign."""
        typed = self.overrides(overrides)
        choices, values = self.choices(typed)
        lines = [f"{group}='{name}'" for group, name in choices.items()]
        others = [value for value in values if section_of(value) != "space"]
        composed = self.apply(lines, others)
        raw, unresolved = plain(composed)
        self._unused(raw, {section_of(override) for override in typed})
        if (raw.get("objective") or {}).get("kind") == "function":
            self.faults.append(
                "objective.kind='function': a configuration names no Python function; accepted: objective=command "
                "'objective.command=\"python ...\"', or hpo_cluster.optimize(fn, ...) in Python"
            )
            self.broken.add("objective")
        whole = any(value.key_or_group == "space" for value in values)
        if (own := None if whole else self._own_space(raw)) is not None:
            lines.append(store_space(own))
        in_space = self._in_space(own or raw.get("space") or {}, values)
        if own is not None or in_space:
            raw, unresolved = plain(self.apply(lines, [*others, *in_space]))
        self.faults += unresolved
        raw.pop("experiment", None)
        return raw

    def overrides(self, overrides: Sequence[str]) -> list[Override]:
        """Return the overrides that can be read and are accepted here."""
        accepted = []
        for text in overrides:
            override = parsed(text, self.faults)
            if override is None:
                continue
            section, _, key = override.key_or_group.partition(".")
            if override.is_sweep_override():
                self.faults.append(
                    f"{text}: lists several values; run -m starts a campaign for each; a text needs quotes"
                )
                self.broken.add(section)
                continue
            value = None if override.is_delete() else override.value()
            if DISCRIMINATORS.get(section) in (key, *(value if isinstance(value, dict) and not key else ())):
                self.faults.append(f"{text}: choose with {section}=NAME (the key only repeats it)")
                continue
            accepted.append(override)
        return accepted

    def choices(self, parsed: Sequence[Override]) -> tuple[dict[str, str], list[Override]]:
        """Return the choices of groups that exist, and the overrides of values."""
        choices: dict[str, str] = {}
        values = []
        for override in parsed:
            text, group = text_of(override), override.key_or_group
            value = None if override.is_delete() else override.value()
            if group not in GROUPS or isinstance(value, dict):
                if group == "space":  # a space that is written out replaces the chosen one
                    choices["space"] = "own"
                values.append(override)
            elif override.is_delete():
                self.faults.append(f"{text}: a group cannot be removed; give {group}=NAME")
            elif group in choices:
                self.faults.append(f"{text}: {group} is chosen twice, {group}={choices[group]} before")
            elif (group, value) != ("experiment", None):
                self._choose(group, str(value), text, choices)
        return choices, [value for value in values if self._can_be_removed(value)]

    def _choose(self, group: str, name: str, text: str, choices: dict[str, str]) -> None:
        accepted = options(group, self.dirs)
        if name in accepted:
            choices[group] = name
            if other := hidden(f"{group}/{name}.yaml", self.dirs):
                self.faults.append(f"{text}: {other} has the name of an option of the package; rename it")
            return
        also = f"; or a file conf/{group}/{name}.yaml, --config-dir DIR" if re.fullmatch(r"[\w.-]+", name) else ""
        self.faults.append(f"{group}={name}: is not an option of {group}; {instead_of(name, accepted)}{also}")
        self.broken.add(group)

    def _can_be_removed(self, override: Override) -> bool:
        section, *rest = override.key_or_group.split(".")
        if not override.is_delete() or len(rest) > 1 or (section == "space" and rest):
            return True
        self.faults.append(
            f"{text_of(override)}: cannot be removed; only a parameter can (~space.NAME), or an entry of a mapping "
            "(~launcher.extra.NAME)"
        )
        return False

    def apply(self, lines: Sequence[str], values: Sequence[Override]) -> DictConfig:
        """Return Hydra's composition of the files with these choices and values.

        Hydra stops at the first value that it cannot apply; each value is then tried alone, to name all that fail.
        """
        values = [value for value in values if section_of(value) not in self.broken]
        try:
            return compose_files(self.name, [*lines, *map(_line, values)])
        except ERRORS as error:
            wrong = []
            for value in values:
                if problem := self._problem([*lines, _line(value)]):
                    wrong.append(value)
                    what = f"cannot be applied: {problem}" + (f"; {LITERAL}" if "${" in text_of(value) else "")
                    if problem == LIST_AND_MAPPING:
                        given_list = isinstance(value.value(), list)
                        what = "must be a " + ("mapping, like {NAME: VALUE}" if given_list else "list, like [A, B]")
                    self.faults.append(f"{text_of(value)}: {what}")
            if wrong and not self._problem(lines):
                return self.apply(lines, [value for value in values if value not in wrong])
            what = (
                "the configuration files cannot be composed"
                if not values
                else "these choices and values cannot be composed"
            )
            raise ConfigError([*self.faults, f"{what}: {reason_of(error)}"], HINT) from error

    def _problem(self, lines: Sequence[str]) -> str:
        try:
            compose_files(self.name, lines)
        except ERRORS as error:
            return reason_of(error)
        return ""

    def _own_space(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the objective's own space as plain data, if none is configured and the objective has no faults."""
        cls = section_class("objective", raw)
        if raw.get("space") or cls is None or not issubclass(cls, Objective) or not brings_space(cls):
            return None
        try:
            space = cls.model_validate(known(raw["objective"])).own_space()
        except ValueError:
            self.broken.add("space")  # `validate.build` names the objective's faults
            return None
        return None if space is None else dict(space.to_json())

    def _unused(self, raw: Mapping[str, Any], typed: set[str]) -> None:
        """Add a fault for each section that was typed and that the objective does not read."""
        cls = section_class("objective", raw)
        if cls is None or "objective" in self.broken:
            return
        for name in NESTED:
            if name in typed and name not in cls.model_fields:
                kind = raw["objective"]["kind"]
                self.faults.append(f"{name}: objective={kind} does not use it; leave it out, or objective=lora")

    def _in_space(self, space: Mapping[str, Any], values: Sequence[Override]) -> list[Override]:
        """Return the overrides of the space whose parameters exist or are added; add a fault for each other one."""
        entries = dict(space)
        accepted = []
        for override in values if "space" not in self.broken else ():
            section, *rest = override.key_or_group.split(".")
            if section != "space":
                continue
            value = None if override.is_delete() else override.value()
            if not rest:
                entries = dict(value) if isinstance(value, dict) else {}
            elif override.is_add() or override.is_force_add():
                entries.setdefault(rest[0], {})
            elif not self._is_in_space(override, rest, value, entries):
                continue
            accepted.append(override)
        return accepted

    def _is_in_space(self, override: Override, rest: Sequence[str], value: Any, entries: Mapping[str, Any]) -> bool:
        key, names = override.key_or_group, parameter_names(entries)
        if len(rest) == 1 and rest[0] in names and isinstance(value, list):
            listed = ", ".join(map(str, value))
            self.faults.append(
                f"{key}=[{listed}]: is not a parameter; write {{choices: [{listed}]}}, or {{choices: [{listed}], "
                "ordered: true} if neighbours are alike"
            )
            return False
        if (len(rest) == 1 and rest[0] in (*names, *SPACE_KEYS)) or (
            len(rest) > 1 and rest[0] in names and rest[1] in PARAMETER_FIELDS
        ):
            return True
        known = [f"space.{name}" for name in (*names, *SPACE_KEYS)]
        for name in names:
            fields = entries[name] if isinstance(entries[name], Mapping) else ()
            known += [f"space.{name}.{field}" for field in fields]
        if len(rest) == 1 and isinstance(value, (Mapping, str, bool, int, float)) and not did_you_mean(key, known):
            self.faults.append(f"{key}: is not a parameter of the space; to add it: '+{text_of(override)}'")
        else:
            self.faults.append(f"{key}: is not a key; {instead_of(key, known)}")
        return False


def text_of(override: Override) -> str:
    """Return the override as it was typed."""
    return str(override.input_line)


def section_of(override: Override) -> str:
    """Return the first part of the override's key."""
    return override.key_or_group.partition(".")[0]


def _line(override: Override) -> str:
    """Return the override as Hydra applies it: it sets the value whether or not its key exists.

    ``${{`` does not begin an interpolation: it is how a command writes the shell's own ``${``.
    """
    text = text_of(override)
    return text if override.is_delete() else "++" + _SHELL.sub(r"\\${{", text.lstrip("+"))


def plain(composed: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Return the data with its interpolations resolved, and a fault for each that cannot be."""
    OmegaConf.set_struct(composed, False)
    faults = []
    written = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(written, dict)
    known = list(flatten({str(key): value for key, value in written.items()}))
    for node, key, path, text, reason in list(_unresolved(composed, written, "")):
        missing = re.search(r"key '([\w.]+)' not found", reason)
        close = did_you_mean(missing[1], known) if missing else ""
        faults.append(f"{path}={text}: {reason}; {close}{LITERAL}")
        node[key] = "???"
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, faults


def _unresolved(node: Any, written: Any, prefix: str) -> Iterator[tuple[Any, Any, str, str, str]]:
    """Yield every value that cannot be resolved: its container, key, dotted key, text, and why."""
    for key, text in list(written.items() if isinstance(written, dict) else enumerate(written)):
        path = f"{prefix}{key}"
        if isinstance(text, (dict, list)):
            yield from _unresolved(node[key], text, f"{path}.")
        elif isinstance(text, str) and "${" in text:
            try:
                node[key]
            except (OmegaConfBaseException, RecursionError) as error:
                yield node, key, path, text, reason_of(error)
