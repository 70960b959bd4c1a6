"""Runs on disk: one JSON line each, appended when a run ends, so that an interrupted benchmark goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

#: Where the runs lie, unless the command line says otherwise. Not in version control.
RESULTS = Path(__file__).parent / "results" / "runs.jsonl"


class Key(NamedTuple):
    """What identifies a run."""

    problem: str
    optimizer: str
    seed: int
    workers: int
    budget: float


class Timed(Protocol):
    """A run of any benchmark: a dataclass of lists of numbers, some of which are times."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def times(self) -> list[float]:
        """Simulated times."""

    @property
    def cpu_s(self) -> list[float]:
        """CPU seconds."""


def append(path: Path, key: Key, versions: Mapping[str, str], run: Timed) -> None:
    """Append a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = asdict(run) | {
        "times": [round(t, 6) for t in run.times],
        "cpu_s": [round(t, 5) for t in run.cpu_s],
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**key._asdict(), "versions": dict(versions), **rounded}) + "\n")


def read(path: Path) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Return the runs of all complete lines, oldest first; a line cut off by an interruption is skipped."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            yield Key(*(entry[name] for name in Key._fields)), entry
        except (json.JSONDecodeError, KeyError):
            continue


def done(path: Path, versions: Mapping[str, Mapping[str, str]] | None) -> set[Key]:
    """Return the keys of runs that need not be repeated: those of the same versions, or all if `versions` is None."""
    return {key for key, entry in read(path) if versions is None or entry["versions"] == versions.get(key.optimizer)}


def latest(path: Path) -> dict[Key, dict[str, Any]]:
    """Return the last run of each key."""
    return dict(read(path))
