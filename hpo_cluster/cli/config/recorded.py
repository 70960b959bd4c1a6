"""The configuration of a campaign that exists: what is recorded, with operational keys changed by overrides."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.cli.arguments import short_path
from hpo_cluster.cli.command_table import OPEN_GROUPS
from hpo_cluster.cli.config.compose import Composition, plain, section_of, text_of
from hpo_cluster.cli.config.groups import GROUPS
from hpo_cluster.cli.config.schema import NESTED, OPERATIONAL, PATH_KEYS, TOP_KEYS, Config
from hpo_cluster.cli.config.with_hydra import searching, store_recorded
from hpo_cluster.driver.spec import OPERATIONAL_FIDELITY
from hpo_cluster.objectives.base import joined, without
from hpo_cluster.objectives.registry import OBJECTIVES
from hpo_cluster.record.warm_start import IDENTITY_KEY
from hpo_cluster.text import command_line, instead_of, some_of


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
    instead: Callable[[str], str] | None = None,
    faults: Sequence[str] = (),
) -> Config:
    """Return the configuration of a campaign that exists, with operational keys changed.

    Args:
        identity: as in ``campaign.yaml``.
        operation: as its last start recorded it.
        overrides: of operational keys only: ``budget=60 workers=8 launcher=slurm``.
        campaign_dir: the campaign's folder.
        cwd: what relative paths are relative to.
        config_dir: one more folder with configuration files.
        check_files: whether model, data and tasks must exist.
        here: returns the present place of a recorded path.
        instead: returns what to say of an override that would change the identity; None: to run another campaign.
        faults: faults that are known already.

    Raises:
        ConfigError: with all faults; an override of an identity key is one.
    """
    composition = _Recorded(cwd, config_dir, faults=faults)
    with searching(composition.dirs):
        raw = composition.resume(identity, operation, overrides, campaign_dir, here, instead)
    return composition.build(raw, check_files)


class _Recorded(Composition):
    """A composition that begins with what is recorded."""

    def resume(
        self,
        identity: Mapping[str, Any],
        operation: Mapping[str, Any],
        overrides: Sequence[str],
        campaign_dir: Path,
        here: Callable[[str], str],
        instead: Callable[[str], str] | None,
    ) -> dict[str, Any]:
        """Return the composed data of a campaign that exists."""
        campaign_dir = (self.cwd / campaign_dir).absolute()
        cls = OBJECTIVES[str(identity["objective"].get("kind"))]
        theirs = [
            name if name.partition(".")[0] in NESTED else f"objective.{name}"
            for name in (*cls.OPERATIONAL, *cls.PLACES)
        ]
        if identity.get("fidelity"):
            theirs += [f"fidelity.{name}" for name in OPERATIONAL_FIDELITY]
        accepted = [*OPEN_GROUPS, *OPERATIONAL, "code", "dry_run", *theirs]
        allowed = []
        for override in self.overrides(overrides):
            text, top = text_of(override), section_of(override)
            if top in ("campaign", "campaigns_dir"):
                self.faults.append(f"{text}: the folder {campaign_dir} says which campaign is meant")
            elif top in accepted or override.key_or_group in accepted:
                allowed.append(override)
            elif top in GROUPS or top in TOP_KEYS:
                # another optimizer goes on from what this one has found
                more = [f"warm_start=[{short_path(campaign_dir)}]"] if top == "optimizer" else []
                other = command_line("run", "...", text, "campaign=NEW_NAME", *more)
                # those of the same section first
                alike = sorted(accepted, key=lambda key: key.partition(".")[0] != top)
                what = f"cannot change; accepted: {some_of(alike)}; for another campaign: {other}"
                what = instead(text) if instead else f"belongs to the campaign's identity and {what}"
                self.faults.append(f"{text}: {what}")
            else:
                key = override.key_or_group
                self.faults.append(f"{key}: is not a key; {instead_of(key, accepted)}")
        choices, values = self.choices(allowed)
        raw = _recorded(identity, operation, campaign_dir, here)
        self.known_command = (raw.get("notify") or {}).get("command")
        for group in {*OPEN_GROUPS} & {*choices}:
            del raw[group]
        self.name = store_recorded(raw, choices)
        raw, unresolved = plain(self.apply([], values))
        self.faults += unresolved
        return raw


def _recorded(
    identity: Mapping[str, Any], operation: Mapping[str, Any], campaign_dir: Path, here: Callable[[str], str]
) -> dict[str, Any]:
    """Return identity and operation of a campaign in the shape of ``conf/config.yaml``, with paths as they are now."""
    objective = joined(copy.deepcopy(dict(identity["objective"])), operation.get("objective") or {})
    objective = without(objective, OBJECTIVES[str(objective.get("kind"))].FORMER)
    sections = {name: objective.pop(name) for name in NESTED if name in objective}
    kept = {key: value for key, value in operation.items() if key in (*OPERATIONAL, *OPEN_GROUPS)}
    raw = copy.deepcopy(
        {
            "launcher": {"kind": "local"},
            "tracking": {"kind": "off"},
            **kept,
            **sections,
            "campaign": campaign_dir.name,
            "campaigns_dir": str(campaign_dir.parent),
            "warm_start": None if identity.get(IDENTITY_KEY) else [],
            "seed": identity["seed"],
            "space": identity["space"],
            "objective": objective,
            "optimizer": identity["optimizer"],
            "fidelity": {**(operation.get("fidelity") or {}), **(identity.get("fidelity") or {"kind": "off"})},
        }
    )
    for section, key in (*PATH_KEYS, (None, "storage_dir")):
        place = raw if section is None else raw.get(section)
        if isinstance(place, dict) and isinstance(path := place.get(key), str):
            place[key] = here(path)
    return raw
