"""What lies in ``conf/``: the groups, their options and the comments that describe them. Knows no Hydra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    "launcher": "where the jobs run",
}


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
    """The configuration files of the package."""
    return layout.resources_dir() / "conf"


def search_dirs(cwd: Path, config_dir: Path | None = None) -> list[Path]:
    """Folders with configuration files: the package's, ``--config-dir``, ``./conf`` where there is one."""
    dirs = [conf_dir()]
    for candidate in (config_dir, cwd / "conf"):
        if candidate is not None and candidate.is_dir() and candidate.resolve() not in [d.resolve() for d in dirs]:
            dirs.append(candidate.absolute())
    return dirs


def options(group: str, dirs: Sequence[Path]) -> dict[str, Option]:
    """The options of a group by name; of two files of one name the first folder's counts, as for Hydra."""
    found: dict[str, Option] = {}
    for folder in dirs:
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, Option(group, path.stem, path))
    return found


def hidden(group: str, name: str, dirs: Sequence[Path]) -> Path | None:
    """A user's file that is not used because the package has another of that name; None where there is none."""
    paths = [folder / group / f"{name}.yaml" for folder in dirs]
    paths = [path for path in paths if path.is_file()]
    for path in paths[1:]:
        if path.read_bytes() != paths[0].read_bytes():
            return path
    return None


def key_comments(path: Path) -> dict[str, str]:
    """The comment behind each top-level key of a configuration file."""
    return {key: comment for key, _, comment in key_lines(path)}


def key_lines(path: Path) -> list[tuple[str, str, str]]:
    """Each top-level key of a configuration file that has a comment, its value as it is written, and the comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"(\w+):\s*(.*?)\s+#\s(.*)$", line) for line in lines)
    return [(match[1], match[2], match[3].strip()) for match in matches if match]
