"""Commands from other terminals to a campaign: small files that the driver, or the next tick, reads and removes.

A command is journaled with its id before its file is removed. So it is carried out once, even if the driver dies
between the two.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from hpo_cluster.record.files import dumps, publish_once, read_json

Verb: TypeAlias = Literal["cancel", "promote", "retry", "stop"]
VERBS: tuple[Verb, ...] = get_args(Verb)


@dataclass(frozen=True)
class Command:
    """One command: what to do, and to which trial (None: to the whole campaign)."""

    id: str
    verb: Verb
    trial: int | None
    path: Path


def post(inbox_dir: Path, verb: Verb, trial: int | None = None) -> str:
    """Write a command into the inbox and return its id. Ids sort by the time of writing."""
    inbox_dir.mkdir(exist_ok=True)
    command_id = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}"
    publish_once(inbox_dir / f"{command_id}.json", dumps({"verb": verb, "trial": trial}))
    return command_id


def verb(word: str) -> Verb:
    """Return `word` as a verb; raise ValueError if it is not one."""
    for known in VERBS:
        if word == known:
            return known
    raise ValueError(f"{word!r} is not a command; accepted: {', '.join(VERBS)}")


def pending(inbox_dir: Path) -> list[Command]:
    """Return the waiting commands, oldest first. Files that are not commands are ignored."""
    commands = []
    for path in sorted(inbox_dir.glob("*.json")):
        data = read_json(path) or {}
        trial = data.get("trial")
        if data.get("verb") in VERBS and (trial is None or isinstance(trial, int)):
            commands.append(Command(path.stem, data["verb"], trial, path))
    return commands
