"""What a command line says, by the table of commands: parsing it, and naming everything that is wrong with it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.cli.command_table import COMMANDS, INFO, NOT_OURS, OPTIONS
from hpo_cluster.cli.commands import terminal_width
from hpo_cluster.errors import ConfigError
from hpo_cluster.text import did_you_mean, instead_of, nearest

#: Fewest columns of the help, and most: those where the output is not a terminal.
NARROW, WIDTH = 60, 118


@dataclass
class Arguments:
    """A command with its options, and its other words in order: overrides, a folder, numbers of trials."""

    command: str
    words: list[str] = field(default_factory=list)
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    faults: list[str] = field(default_factory=list)

    def option(self, name: str) -> Any:
        """Return the value of an option; None or False if it was not given, or the command does not have it."""
        return getattr(self.options, name.lstrip("-").replace("-", "_"), None)

    @property
    def files(self) -> dict[str, Any]:
        """Where configuration files are searched, as `compose` takes it."""
        given = {"config_dir": self.option("--config-dir"), "config_name": self.option("--config-name")}
        return {key: Path(value) if key == "config_dir" else value for key, value in given.items() if value}

    def folder(self, *, later: bool = False) -> Path:
        """Return the campaign's folder, the first word. Raises ConfigError if it is missing, or anything is wrong.

        Args:
            later: whether the caller names the faults that are known already, with those that it finds in the campaign.
        """
        faults, command = list(self.faults), COMMANDS[self.command]
        if not self.words or "=" in self.words[0]:
            faults.append(f"{self.command} needs the campaign's folder, such as campaigns/first")
        elif not (Path(self.words[0]) / "campaign.yaml").is_file():
            nearby = campaigns_nearby(self.words[0])
            faults.append(f"{self.words[0]}: is not a campaign (it has no campaign.yaml){nearby}")
        elif later:
            return Path(self.words[0])
        if command.takes_trials:
            wrong = [word for word in self.words[1:] if trial_number(word) is None]
            faults += [f"{word!r}: is not the number of a trial" for word in wrong]
            if len(self.words) < 2:
                faults.append(f"{self.command} needs the number of a trial, such as 7")
        elif command.keys and not command.takes_overrides:
            wrong = [word for word in self.words[1:] if word.partition("=")[0] not in command.keys or "=" not in word]
            accepted = ", ".join(re.findall(r"\w+=[^]]+?(?=]|$| \[)", command.words))
            faults += [f"{word!r}: is not what {self.command} takes; accepted: {accepted}" for word in wrong]
        elif not command.takes_overrides:
            faults += [
                f"{word!r}: {did_you_mean(word, command.options)}{self.command} takes nothing but a folder"
                for word in self.words[1:]
            ]
        if faults:
            raise ConfigError(faults, f"hpo-cluster {self.command} --help")
        return Path(self.words[0])

    @property
    def given(self) -> dict[str, str]:
        """The command's own keys that were typed, with their texts."""
        keys = COMMANDS[self.command].keys
        return {key: text for key, sign, text in (word.partition("=") for word in self.words) if sign and key in keys}

    @property
    def others(self) -> list[str]:
        """The words that are not the command's own keys."""
        keys = COMMANDS[self.command].keys
        return [word for word in self.words if "=" not in word or word.partition("=")[0] not in keys]

    def trials(self) -> list[int]:
        """Return the numbers of the trials, which `folder` has checked."""
        return [number for word in self.words[1:] if (number := trial_number(word)) is not None]


def trial_number(word: str) -> int | None:
    """Return 7 for ``7``, ``t0007`` or ``t7``; -1 for ``baseline``, -2 for ``c0001``, -3 for ``c0002``; else None."""
    if word == "baseline":
        return -1
    if word[:1] == "c" and word[1:].isdecimal() and int(word[1:]):
        return -1 - int(word[1:])
    digits = word.removeprefix("t")
    return int(digits) if digits.isdecimal() else None


def help_width() -> int:
    """Return the columns of the help: those of the terminal, within limits."""
    return min(max(terminal_width() or WIDTH, NARROW), WIDTH)


def make_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and those of the commands by name."""
    top = argparse.ArgumentParser("hpo-cluster", add_help=False, allow_abbrev=False, exit_on_error=False)
    parsers = top.add_subparsers(dest="command")
    made = {}
    for name, command in COMMANDS.items():
        usage = f"hpo-cluster {name} {command.words}"
        made[name] = parser = parsers.add_parser(
            name,
            description=command.summary,
            usage=f"{usage} [options]" if command.options else usage,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=help_width()),
        )
        group = parser.add_argument_group("options")
        for option in (*command.options, "--help"):
            short, arguments = OPTIONS[option]
            group.add_argument(option, *short, **arguments)
    return top, made


def parse(words: list[str]) -> Arguments:
    """Return the arguments of a command line that begins with a command; options stand anywhere behind it."""
    command = words[0]
    if command not in COMMANDS:
        if "=" in command:
            fault = f"{command!r}: a command comes first; did you mean: hpo-cluster run {command}?"
        else:
            fault = f"{command!r}: is not a command; {instead_of(command, [*COMMANDS, 'help'])}"
        raise ConfigError([fault], "Commands and options: hpo-cluster --help")
    accepted = [*COMMANDS[command].options, "--help"]
    spellings = {spelling for option in accepted for spelling in (option, *OPTIONS[option][0])}
    # argparse would read -cn as "-c n" for a command that has only -c
    foreign = [word for word in words if re.match(r"-[a-z]{2}(=|$)", word) and word.partition("=")[0] not in spellings]
    arguments, rest = Arguments(command), [word for word in words if word not in foreign]
    parser = make_parser()[0]
    while True:
        try:
            arguments.options, others = parser.parse_known_args(rest)
            break
        except argparse.ArgumentError as error:  # an option without its value, or a switch with one
            name = (error.argument_name or "").partition("/")[0]
            at = next(i for i, word in enumerate(rest) if word.partition("=")[0] in (name, *OPTIONS[name][0]))
            wanted = OPTIONS[name][1].get("metavar", "")
            arguments.faults.append(f"{rest.pop(at)}: accepted: {name} {wanted}".rstrip())
    for word in [*others, *foreign]:
        flag = word.partition("=")[0]
        if not word.startswith("-"):
            arguments.words.append(word)
        elif told := next((told for names, told in NOT_OURS.items() if flag in names), None):
            arguments.faults.append(f"{word}: is an option of Hydra's that is not needed here; {told}")
        else:
            meant = "" if did_you_mean(flag, accepted) else _as_key(word, command)
            instead = f"did you mean {meant}?" if meant else instead_of(flag, accepted)
            arguments.faults.append(f"{word}: is not an option of {command}; {instead}")
    _check_own_keys(arguments)
    _check_values(arguments)
    return arguments


def _as_key(option: str, command: str) -> str:
    """Return the key that an option spells, as it is typed here: ``dry_run=true`` for ``--dryrun``; empty if none."""
    from hpo_cluster.cli.completion import VALUES

    if not COMMANDS[command].takes_overrides:
        return ""
    name, _, value = option.partition("=")
    key = nearest(name.lstrip("-").replace("-", "_"), _words_of_campaign())
    return f"{key}={value or ('true' if 'true' in VALUES.get(key, ()) else '...')}" if key else ""


def _check_own_keys(arguments: Arguments) -> None:
    """Take out the words that misspell a key of the command's own, and add a fault for each."""
    own = COMMANDS[arguments.command].keys
    for word in [word for word in arguments.words if "=" in word and own and not Path(word).exists()]:
        key = word.lstrip("+").partition("=")[0]
        if key in own or not re.fullmatch(r"[A-Za-z_][\w.]*", key) or not (close := did_you_mean(key, own)):
            continue
        if COMMANDS[arguments.command].takes_overrides and key.partition(".")[0] in _words_of_campaign():
            continue
        arguments.words.remove(word)
        arguments.faults.append(f"{key}: is not a key; {close.strip()}")


def _words_of_campaign() -> tuple[str, ...]:
    """Return the keys and the sections of a campaign's configuration."""
    from hpo_cluster.cli.config.groups import GROUPS
    from hpo_cluster.cli.config.schema import TOP_KEYS  # pydantic, which the TAB key need not import

    return (*TOP_KEYS, *GROUPS)


def _check_values(arguments: Arguments) -> None:
    """Add the faults of the options' values."""
    cfg, info = arguments.option("--cfg"), arguments.option("--info")
    if cfg not in (None, "job"):
        own = "; Hydra's own settings (folders, logs, launchers) are not used" if cfg in ("hydra", "all") else ""
        arguments.faults.append(f"--cfg {cfg}: accepted: --cfg job{own}")
    for option in ("--package", "--resolve"):
        if arguments.option(option) and not cfg:
            arguments.faults.append(f"{option}: goes with --cfg job")
    if info and "=" in info:  # --info budget=3
        arguments.words.append(info)
        arguments.options.info = "all"
    elif info and info not in INFO:
        own = "; Hydra's plugins are not used" if info.startswith("plugins") else ""
        arguments.faults.append(f"--info {info}: {instead_of(info, INFO)}{own}")


def short_path(path: Path) -> Path:
    """Return the path relative to the working directory if it lies in it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


#: Most campaigns or trials that a message names.
SHOWN = 8


def campaigns_nearby(word: str = "") -> str:
    """Return the campaigns below the working directory, for a message; first the one that a word may mean."""
    found = sorted(str(path.parent) for path in Path("campaigns").glob("*/campaign.yaml"))
    more = ", …" if len(found) > SHOWN else ""
    close = "" if Path(word).exists() else did_you_mean(word, found)
    return f"; {close}there are: {', '.join(found[:SHOWN])}{more}" if found else ""
