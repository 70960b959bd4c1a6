"""Say what is wrong with a place where files are to be written, before anything is written there."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpo_cluster.errors import ConfigError
from hpo_cluster.record.files import FULL


@contextlib.contextmanager
def writing(label: str, folder: Path, instead: str) -> Iterator[None]:
    """Make a folder for files that the context writes, or say in one error why nothing can be written there.

    Args:
        label: the place as the user knows it: ``path=out/x.csv``.
        folder: the folder of the files; it is made with its parents if it does not exist.
        instead: what to type instead; a line.

    Raises:
        ConfigError: if the folder cannot be made, no file can be created in it, or the disk becomes full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError([f"{label}: {_reason(folder, error)}"], instead) from error
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ConfigError([f"{label}: {_reason(folder, error)}"], instead) from error


def _reason(folder: Path, error: OSError) -> str:
    """Return why nothing can be written in a folder, naming the first part of its path that is in the way."""
    path = folder.absolute()
    there = next(place for place in (path, *path.parents) if _is_something(place))
    if not there.is_dir():
        return f"{_as_typed(folder, there)} is a file, not a folder: move it away"
    what = "nothing can be written to" if there == path else "no folder can be made in"
    return f"{what} {_as_typed(folder, there)}: {error.strerror}"


def _is_something(place: Path) -> bool:
    try:
        return place.exists() or place.is_symlink()
    except OSError:  # below a file, or in a folder that may not be looked into
        return False


def _as_typed(folder: Path, place: Path) -> str:
    """Return a part of a folder's path, relative if the folder is."""
    cwd = Path.cwd()
    return str(place.relative_to(cwd)) if not folder.is_absolute() and place.is_relative_to(cwd) else str(place)
