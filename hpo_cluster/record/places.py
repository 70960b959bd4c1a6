"""Where a campaign's files are after its project was renamed, or moved to another machine.

Paths are recorded in full, and so is the campaign's folder at each start. What is still where it was is used there.
What is gone, and lay in the folder that has moved together with the campaign, is looked for in the new one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.layout import CampaignLayout


@dataclass(frozen=True)
class Move:
    """Where a campaign's folder was at its last start (None if that is not known), and where it is now."""

    was: Path | None
    now: Path

    @property
    def roots(self) -> tuple[Path, Path] | None:
        """Return the outermost folder that moved, as it was called and as it is now; None if nothing moved."""
        if self.was is None or self.was.resolve() == self.now.resolve():
            return None
        old, new = self.was.parent, self.now.parent  # the campaign itself may have another name too
        while old.name and old.name == new.name:
            old, new = old.parent, new.parent
        return None if old == new else (old, new)

    def here(self, path: str) -> str:
        """Return where `path` is now."""
        if (roots := self.roots) is None or not Path(path).is_relative_to(roots[0]):
            return path
        with contextlib.suppress(OSError):  # a folder of somebody else's, on another machine
            if Path(path).exists():
                return path
        return str(roots[1] / Path(path).relative_to(roots[0]))


def move_of(directory: Path, record: Record) -> Move:
    """Return how the campaign in `directory` has moved since its last start."""
    now = directory.absolute()
    last = record.starts[-1].get("dir") if record.starts else None
    return Move(Path(last) if last else next(_folders_of_jobs(record, now), None), now)


def _folders_of_jobs(record: Record, now: Path) -> Iterator[Path]:
    """Yield the campaign's folder as its jobs had it, the newest first: earlier versions recorded no other."""
    for trial in reversed(record.rows):
        for attempt in reversed(trial.attempts):
            extra = {} if attempt.job is None else attempt.job.extra
            files = CampaignLayout(now).attempt(trial.number, attempt.number)
            for key, folder in (("attempt_dir", files.dir), ("job_dir", files.job_dir)):
                ending = folder.relative_to(now)
                if str(extra.get(key)).endswith(f"/{ending}"):
                    yield Path(str(extra[key]).removesuffix(f"/{ending}"))


def as_recorded(
    objective: Mapping[str, Any],
    recorded: Mapping[str, Any],
    free: Iterable[str],
    places: Iterable[str],
    same: Callable[[str, Any, Any], bool],
) -> dict[str, Any]:
    """Return an objective's identity with what makes it no other one as an earlier identity has it.

    Args:
        objective: its identity.
        recorded: the earlier identity.
        free: settings that may differ; earlier versions had some of them in the identity.
        places: settings that say where something is.
        same: whether the recorded value of one of these (name, recorded, now) is the same place.
    """
    made = copy.deepcopy(dict(objective))
    for name in free:
        if (old := _find(recorded, name)) is not None:
            _put(made, name, old[0])
    for name in places:
        old, new = _find(recorded, name), _find(made, name)
        if old is not None and new is not None and old != new and same(name, old[0], new[0]):
            _put(made, name, old[0])
    return made


def _find(settings: Any, name: str) -> tuple[Any] | None:
    """Return the value of a dotted name, in a tuple; None if there is none."""
    for part in name.split("."):
        if not isinstance(settings, Mapping) or part not in settings:
            return None
        settings = settings[part]
    return (settings,)


def _put(settings: dict[str, Any], name: str, value: Any) -> None:
    *sections, key = name.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[key] = value
