"""The identity of a campaign (``campaign.yaml``), and the comparison of two identities."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpo_cluster.errors import IdentityError, JournalError
from hpo_cluster.goals import Goals
from hpo_cluster.record.files import publish_once
from hpo_cluster.text import command_line

ABSENT = "(absent)"

#: The part of an identity that only a simulated campaign has.
SIMULATION = "simulation"
#: What readers must know of such a campaign.
SIMULATED = "The campaign was simulated: its jobs, nodes, times and failures are not real."

#: Characters of a file up to which libyaml reads it. It is nine times as fast; nothing limits its depth but the stack.
FAST_UP_TO = 8000

#: The parts of an identity that are mappings.
SECTIONS = ("space", "objective", "optimizer")
WAY_OUT = (
    "Put back what was written there when the campaign began; or remove the file and type the command that began the "
    "campaign (hpo-cluster run campaign=NAME ...), which writes it again"
)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted names."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out.update(flatten(value, f"{name}."))
        else:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def differences(recorded: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the fields that differ, as (dotted name, recorded value, new value)."""
    old, now = flatten(recorded), flatten(new)
    names = [*old, *(name for name in now if name not in old)]
    rows = [(name, old.get(name, ABSENT), now.get(name, ABSENT)) for name in names]
    return [(name, a, b) for name, a, b in rows if a != b or isinstance(a, bool) != isinstance(b, bool)]


def difference_table(campaign_dir: Path, rows: list[tuple[str, Any, Any]]) -> str:
    """Return the message for a campaign that exists with another identity: the fields, and what to type next."""
    cells = [("field", "recorded", "now"), *((name, str(a), str(b)) for name, a, b in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(
        [
            f"{campaign_dir} exists and was made with other settings:",
            *(line.rstrip() for line in lines),
            f"To go on with the recorded ones:  {command_line('resume', campaign_dir)}",
            "To start another campaign:        add campaign=NEW_NAME to the command",
        ]
    )


def read_identity(path: Path) -> dict[str, Any] | None:
    """Return the identity in ``campaign.yaml``; None if the file does not exist."""
    try:
        if path.exists() and not path.is_file():
            raise JournalError(f"{path}: is not a file. {WAY_OUT}")
        text = path.read_text(encoding="utf-8")
        fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # absent where PyYAML was built without libyaml
        data = yaml.load(text, Loader=fast if len(text) <= FAST_UP_TO else yaml.SafeLoader)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise JournalError(f"{path}: cannot be read as YAML: {error}. {WAY_OUT}") from error
    faults = [] if isinstance(data, dict) else ["it is not a mapping"]
    if not faults:
        faults += [f"{name} is not a mapping" for name in SECTIONS if not isinstance(data.get(name), Mapping)]
        if data.get("direction") not in ("maximize", "minimize"):
            faults.append(f"direction is {data.get('direction')!r:.80}; accepted: maximize, minimize")
    if not faults:
        try:
            Goals.of(data["objective"])
        except TypeError as error:
            faults.append(f"objective.metrics or objective.constraints: {error}")
    if faults:
        raise JournalError(f"{path}: is not what was written there: {'; '.join(faults)}. {WAY_OUT}")
    identity: dict[str, Any] = data
    return identity


def identity_of_campaign(path: Path) -> dict[str, Any]:
    """Return the identity in ``campaign.yaml``; raise JournalError if there is no campaign."""
    identity = read_identity(path)
    if identity is None:
        raise JournalError(f"{path.parent} is not a campaign: it has no {path.name}")
    return identity


def settle_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Write ``campaign.yaml`` if it does not exist; raise IdentityError if it exists and differs."""
    text = yaml.safe_dump(dict(identity), sort_keys=False, allow_unicode=True)
    if publish_once(path, "# What this campaign is. Written once; never edit it.\n" + text):
        return
    recorded = read_identity(path) or {}
    if rows := differences(recorded, yaml.safe_load(text)):
        raise IdentityError(difference_table(path.parent, rows))
