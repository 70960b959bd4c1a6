"""What the attempts of one process have in common, made once: tokenizers, tasks, tokenized data, the base weights.

A value is used again only if it was made from the same settings and from files that have not changed. Nobody changes
a kept value: the tasks, which lm-eval changes, are copied before each use. So an attempt has the results that it would
have alone. Nothing is kept in a process that evaluates a single attempt, nor after an error.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpo_cluster.objectives.lora.tokenizers import Tokenizers

if TYPE_CHECKING:
    from hpo_cluster.objectives.lora.objective import LoraObjective
    from hpo_cluster.objectives.lora.settings import DataSettings
    from hpo_cluster.objectives.lora.tokenized_data import Rows

T = TypeVar("T")


class _Kept:
    """The kept values by what they are, each with what it was made from."""

    def __init__(self) -> None:
        self.on = False
        self.values: dict[str, tuple[str, Any]] = {}
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def forget(self) -> None:
        self.values.clear()
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None


_kept = _Kept()


@contextlib.contextmanager
def keeping(on: bool) -> Iterator[None]:
    """Within the context, keep what is made, if `on`, for later attempts; forget it if the attempt fails."""
    if _kept.values:
        gc.collect()  # the model of the attempt before, which may be part of a cycle
    _kept.on = on
    try:
        yield
    except BaseException:
        _kept.forget()
        raise
    finally:
        _kept.on = False


def _once(what: str, make: Callable[[], T], files: Iterable[Path], *settings: Any) -> T:
    """Return the kept value of this name, or make it, if files or settings are others than when it was made."""
    if not _kept.on:
        return make()
    made_from = json.dumps([[_state(path) for path in sorted(files)], settings], default=str)
    kept = _kept.values.get(what)
    if kept is None or kept[0] != made_from:
        _kept.values.pop(what, None)  # before the new value is made: it may be large
        kept = _kept.values[what] = made_from, make()
    value: T = kept[1]
    return value


def _state(path: Path) -> list[Any]:
    """Return what changes when a file does."""
    status = path.stat()
    return [str(path), status.st_ino, status.st_size, status.st_mtime_ns]


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def tokenizers(checkpoint_dir: Path) -> Tokenizers:
    """Return the tokenizers of a checkpoint."""
    return _once("tokenizers", lambda: Tokenizers(checkpoint_dir), _files_in(checkpoint_dir))


def tasks(objective: LoraObjective, scratch: Path) -> dict[str, Any]:
    """Return the loaded tasks of an objective, for one use.

    Args:
        objective: the settings.
        scratch: folder of this attempt alone, for converted data.
    """
    from hpo_cluster.objectives.lora import checks

    if not _kept.on:
        return checks.load_tasks_of(objective, scratch)
    include_path = objective.tasks.include_path
    files = [] if include_path is None or not Path(include_path).is_dir() else _files_in(Path(include_path))

    def make() -> dict[str, Any]:
        _kept.folder = tempfile.TemporaryDirectory(prefix="hpo-cluster-", ignore_cleanup_errors=True)
        return checks.load_tasks_of(objective, Path(_kept.folder.name))

    return copy.deepcopy(_once("tasks", make, files, objective.tasks.model_dump(mode="json")))


def tokenized_data(data: DataSettings, of_model: Tokenizers, cache_dir: Path | None) -> tuple[Rows, Rows | None]:
    """Return the tokenized training and validation rows, as `tokenized_data.tokenized_data` does."""
    from hpo_cluster.objectives.lora import tokenized_data as made
    from hpo_cluster.objectives.lora.instruction_data import files_of

    files = [path for path in files_of(Path(data.path)) if path is not None]
    files += _files_in(of_model.checkpoint_dir)
    settings = data.model_dump(mode="json"), str(cache_dir)
    return _once("rows", lambda: made.tokenized_data(data, of_model, cache_dir), files, *settings)


def base_weights(path: Path) -> dict[str, Any]:
    """Return the weights in a checkpoint's file, in host memory; they are read from the file as they are used."""
    import torch

    return _once("weights", lambda: dict(torch.load(path, map_location="cpu", mmap=True, weights_only=True)), [path])
