"""The contents of ``conf/``: the groups, their options and the comments that describe them. Imports no Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_cluster.record import layout

#: Every group, in the order of the help.
GROUPS = {
    "experiment": "several choices and keys under one name",
    "space": "what is tuned, and where",
    "optimizer": "how the next trial is chosen",
    "objective": "what one trial evaluates",
    "model": "the base model (objective=lora)",
    "data": "the training data (objective=lora)",
    "tasks": "the lm-eval tasks (objective=lora)",
    "train": "the fixed training settings (objective=lora)",
    "fidelity": "how much of an evaluation is done before it is decided whether it goes on",
    "launcher": "where the jobs run",
    "tracking": "where trials are logged as they end, in addition to the campaign's folder",
}

#: The file that a configuration begins with, unless ``--config-name`` names another.
PRIMARY = "config"


@dataclass(frozen=True)
class Option:
    """One file of a group: what a user types after ``group=``."""

    group: str
    name: str
    path: Path

    @property
    def description(self) -> str:
        """The first comment of the file."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if line.startswith("#") and not re.match(r"#\s*@", line):
                return line.lstrip("# ").strip()
            if line.strip() and not line.startswith("#"):
                break
        return ""


def conf_dir() -> Path:
    """Return the folder of the package's configuration files."""
    return layout.resources_dir() / "conf"


def search_dirs(cwd: Path, config_dir: Path | None = None) -> list[Path]:
    """Return the folders with configuration files: the package's, ``--config-dir``, and ``./conf`` if it exists."""
    dirs = [conf_dir()]
    for candidate in (config_dir, cwd / "conf"):
        if candidate is not None and candidate.is_dir() and candidate.resolve() not in [d.resolve() for d in dirs]:
            dirs.append(candidate.absolute())
    return dirs


def options(group: str, dirs: Sequence[Path]) -> dict[str, Option]:
    """Return the options of a group by name; of two files of one name the first folder's counts, as for Hydra."""
    found: dict[str, Option] = {}
    for folder in dirs:
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, Option(group, path.stem, path))
    return found


def config_names(dirs: Sequence[Path]) -> list[str]:
    """Return the files that ``--config-name`` can name."""
    return list(dict.fromkeys(path.stem for folder in dirs for path in sorted(folder.glob("*.yaml"))))


def hidden(file: str, dirs: Sequence[Path]) -> Path | None:
    """Return a user's file that is not used because a folder before it has one of that name, such as ``space/a.yaml``.

    None if there is none, or if the two hold the same.
    """
    paths = [path for folder in dirs if (path := folder / file).is_file()]
    return next((path for path in paths[1:] if path.read_bytes() != paths[0].read_bytes()), None)


def lineage(option: Option, dirs: Sequence[Path]) -> list[Option]:
    """Return the options of the group that a file builds on (its ``defaults``), farthest first, and itself last."""
    import yaml

    content: Any = yaml.safe_load(option.path.read_text(encoding="utf-8")) or {}
    names = [entry for entry in content.get("defaults") or [] if isinstance(entry, str) and entry != "_self_"]
    there = options(option.group, dirs)
    parents = [there[name] for name in names if name in there and name != option.name]
    return [*(ancestor for parent in parents for ancestor in lineage(parent, dirs)), option]


def option_keys(option: Option, dirs: Sequence[Path]) -> dict[str, str]:
    """Return the keys of an option and of those that it builds on, each with its comment."""
    comments: dict[str, str] = {}
    for ancestor in lineage(option, dirs):
        comments |= key_comments(ancestor.path)
    return comments


def key_comments(path: Path) -> dict[str, str]:
    """Return the comment behind each top-level key of a configuration file."""
    return {key: comment for key, _, comment in key_lines(path)}


def key_lines(path: Path) -> list[tuple[str, str, str]]:
    """Return each top-level key of a configuration file that has a comment, its value as written, and the comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"(\w+):\s*(.*?)\s+#\s(.*)$", line) for line in lines)
    return [(match[1], match[2], match[3].strip()) for match in matches if match]
