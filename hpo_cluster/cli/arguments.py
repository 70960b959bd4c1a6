"""Words of a command line: flags, overrides, folders and numbers of trials."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hpo_cluster.cli.help import FLAGS
from hpo_cluster.errors import ConfigError

if TYPE_CHECKING:
    pass

T = TypeVar("T")


@dataclass
class Arguments:
    """A command with its words: flags apart, everything else in order."""

    command: str
    words: list[str] = field(default_factory=list)  # what is no flag: overrides, a folder
    flags: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def config_dir(self) -> Path | None:
        """Where the user keeps configuration files of their own."""
        return Path(self.flags["--config-dir"]) if "--config-dir" in self.flags else None

    def folder(self) -> Path:
        """The campaign's folder, the first word. Raises ConfigError where there is none."""
        faults = list(self.faults)
        if not self.words or "=" in self.words[0]:
            faults.append(f"{self.command} needs the campaign's folder, such as campaigns/first")
        elif not (Path(self.words[0]) / "campaign.yaml").is_file():
            faults.append(f"{self.words[0]}: is no campaign (it has no campaign.yaml){campaigns_nearby()}")
        extra = self.words[1:] if self.command in ("status", "report", "stop", "repair") else []
        faults += [f"{word!r}: {self.command} takes nothing but a folder" for word in extra]
        if self.command in ("why", "tail", "cancel", "retry", "export-adapter"):
            faults += [f"{word!r}: is no number of a trial" for word in self.words[1:] if trial_number(word) is None]
            if len(self.words) < 2:
                faults.append(f"{self.command} needs the number of a trial, such as 7")
        if faults:
            raise ConfigError(faults, f"hpo-cluster {self.command} --help")
        return Path(self.words[0])

    def trials(self) -> list[int]:
        """The trials that are meant, once `folder` has found no fault."""
        return [number for word in self.words[1:] if (number := trial_number(word)) is not None]


def trial_number(word: str) -> int | None:
    """7 of ``7``, ``t0007`` or ``t7``; -1 of ``baseline``."""
    if word == "baseline":
        return -1
    digits = word.removeprefix("t")
    return int(digits) if digits.isdecimal() else None


def parse(command: str, words: list[str]) -> Arguments:
    """Flags wherever they stand, everything else in order."""
    arguments = Arguments(command)
    short = {"-m": "--multirun", "-h": "--help"}
    accepted = [flag for flag, (_, commands, _) in FLAGS.items() if command in commands]
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            arguments.words.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = short.get(flag, flag)
        if flag not in accepted:
            close = difflib.get_close_matches(flag, accepted, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            arguments.faults.append(f"{word}: is no option of {command}; {meant}accepted: {', '.join(accepted)}")
            continue
        if wanted := FLAGS[flag][0]:
            value = value if equals else (queue.pop(0) if queue else "")
            if not value or (flag == "--cfg" and value != "job"):
                arguments.faults.append(f"{flag} {value}".strip() + f": accepted: {flag} {wanted}")
        arguments.flags[flag] = value
    return arguments


def collecting(arguments: Arguments, compose: Callable[[], T]) -> T:
    """What `compose` returns; the faults of the flags are named along with its own."""
    try:
        result = compose()
    except ConfigError as error:
        raise ConfigError([*arguments.faults, *error.faults], error.hint) from None
    if arguments.faults:
        raise ConfigError(arguments.faults, f"hpo-cluster {arguments.command} --help")
    return result


def short_path(path: Path) -> Path:
    """Relative to the working directory where it lies in it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def campaigns_nearby() -> str:
    """The campaigns below the working directory, for a message."""
    found = sorted(path.parent for path in Path("campaigns").glob("*/campaign.yaml"))
    return f"; there are: {', '.join(map(str, found[:8]))}" if found else ""
