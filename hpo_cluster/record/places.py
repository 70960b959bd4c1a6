"""Where a campaign's files are after its project was renamed, or moved to another machine.

Absolute paths are recorded, and at each start the campaign's own folder too. A file that still exists at its recorded
path is used there. A file that does not, and whose path lay in the folder that moved together with the campaign, is
looked for in that folder's new place.
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
    """The campaign's folder at its last start (None if it is not known), and its folder now."""

    was: Path | None
    now: Path

    @property
    def roots(self) -> tuple[Path, Path] | None:
        """The outermost folder that moved, by its old and its new path; None if nothing moved."""
        if self.was is None or self.was.resolve() == self.now.resolve():
            return None
        old, new = self.was.parent, self.now.parent  # the campaign itself may have another name too
        while old.name and old.name == new.name:
            old, new = old.parent, new.parent
        return None if old == new else (old, new)

    def here(self, path: str) -> str:
        """Return the present path of what was at `path`."""
        if (roots := self.roots) is None or not Path(path).is_relative_to(roots[0]):
            return path
        with contextlib.suppress(OSError):  # not readable: somebody else's folder on another machine
            if Path(path).exists():
                return path
        return str(roots[1] / Path(path).relative_to(roots[0]))


def move_of(directory: Path, record: Record) -> Move:
    """Return how the campaign in `directory` has moved since its last start."""
    now = directory.absolute()
    last = record.starts[-1].get("dir") if record.starts else None
    return Move(Path(last) if last else next(_folders_of_jobs(record, now), None), now)


def _folders_of_jobs(record: Record, now: Path) -> Iterator[Path]:
    """Yield the campaign's folder by its jobs' records, newest first: earlier versions did not record it itself."""
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
    """Return an objective's identity in which each difference that is allowed has its recorded value.

    The result can be compared with the recorded identity: what still differs makes it another objective.

    Args:
        objective: the objective's identity now.
        recorded: the earlier identity.
        free: settings that may differ; earlier versions recorded some of them in the identity.
        places: settings that hold the path of a file or folder.
        same: (name, recorded value, present value) -> whether both values of a setting in `places` are the same place.
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
    """Return the value of a dotted name as a tuple of one; None if the name does not exist."""
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
