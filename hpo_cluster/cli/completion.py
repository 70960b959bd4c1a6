"""The words that the TAB key offers: commands, options, groups, keys, campaigns. Imports no Hydra and no pydantic."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpo_cluster.cli.command_table import COMMANDS, INFO, OPEN_GROUPS, OPTIONS, SETTLED_KEYS, Command
from hpo_cluster.cli.config.groups import (
    GROUPS,
    conf_dir,
    config_names,
    key_lines,
    option_keys,
    options,
    search_dirs,
)

#: Options that are followed by a word, with their short forms.
VALUED = {
    spelling: name
    for name, (short, arguments) in OPTIONS.items()
    if "metavar" in arguments and "nargs" not in arguments
    for spelling in (name, *short)
}

#: The fields that an entry of the space may have (`space.NAME.FIELD`).
PARAMETER_FIELDS = ("low", "high", "log", "step", "type", "choices", "ordered", "when", "prior")

#: Values of keys that accept only a few.
VALUES = {
    "code": ("recorded", "current"),
    **dict.fromkeys(("baseline", "dry_run", "warm_start_other_objective", "warm_start_skip_bad"), ("true", "false")),
}

SCRIPTS = {
    "bash": r"""
_hpo_cluster() {
    local line="${COMP_LINE:0:COMP_POINT}" candidate
    local word="${line##*[[:space:]]}" head=""
    # bash treats what follows = or : as a word of its own
    [[ $COMP_WORDBREAKS == *=* ]] && head="${word%"${word##*[=:]}"}"
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("${candidate#"$head"}")
    done < <("$1" completion candidates "$line" 2>/dev/null)
}
complete -o nospace -F _hpo_cluster hpo-cluster
""",
    "zsh": r"""
_hpo_cluster() {
    local -a candidates
    candidates=("${(@f)$("$words[1]" completion candidates "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    candidates=(${candidates:#})
    compadd -Q -S '' -- "${candidates[@]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _hpo_cluster hpo-cluster
""",
    "fish": r"""
function __hpo_cluster
    set --local line (commandline --cut-at-cursor --current-process | string collect)
    string trim --right (hpo-cluster completion candidates "$line" 2>/dev/null)
end
complete --command hpo-cluster --no-files --arguments '(__hpo_cluster)'
""",
}


def candidates(line: str) -> list[str]:
    """Return the words that complete the last word of a command line; a complete one ends with a space."""
    words = line.split(" ")
    words = [word for word in words[:-1] if word] + words[-1:]
    word = words[-1]
    if len(words) < 3:
        return _matching(word, [f"{name} " for name in (*COMMANDS, "--help", "--version")])
    if words[1] in ("help", "--help", "-h"):
        return _matching(word, [f"{name} " for name in COMMANDS] if len(words) == 3 else [])
    command = COMMANDS.get(words[1])
    if command is None:
        return []
    config_dir = next((Path(b) for a, b in itertools.pairwise(words) if a in ("--config-dir", "-cd")), None)
    dirs = search_dirs(Path.cwd(), config_dir)
    if words[-2] in VALUED:
        return _matching(word, _values_of(VALUED[words[-2]], word, dirs))
    if words[-2] in ("--info", "-i") and not word.startswith("-"):
        return _matching(word, [f"{what} " for what in INFO])
    if word.startswith("-"):
        return _matching(word, [f"{option} " for option in (*command.options, "--help")])
    given = [other for other in words[2:-1] if not other.startswith("-") and "=" not in other]
    return _matching(word, _words(command, words[1], given, words[2:], word, dirs))


def _words(
    command: Command, name: str, given: Sequence[str], typed: Sequence[str], word: str, dirs: Sequence[Path]
) -> Iterable[str]:
    if name == "completion":
        return [f"{shell} " for shell in SCRIPTS]
    if name == "ls" and not given:
        return _folders(word)
    if command.takes_folder and not given:
        return _campaigns(word)
    if command.takes_folders:
        taken = [folder.rstrip("/") for folder in given]
        folders = [path for path in _campaigns(word) if path.rstrip(" /") not in taken]
        return [*folders, *(f"{key}=" for key in command.keys)]
    if command.takes_trials:
        return [f"{path.name} " for path in sorted((Path(given[0]) / "trials").glob("[tc][0-9]*"))]
    if name == "import" and not given and "=" not in word:
        return [*_paths(word), *_overrides(command, typed, word, dirs)]
    keys = [f"{key}=" for key in command.keys]
    return [*_overrides(command, typed, word, dirs), *keys] if command.takes_overrides else keys


def _matching(word: str, offered: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(candidate for candidate in offered if candidate.startswith(word)))


def _values_of(option: str, word: str, dirs: Sequence[Path]) -> list[str]:
    if option in ("--config-dir", "--like", "--to"):
        return _folders(word)
    if option == "--config-name":
        return [f"{name} " for name in config_names(dirs)]
    if option == "--package":
        return [f"{group} " for group in GROUPS if group != "experiment"]
    return ["job "]


def _folders(word: str) -> list[str]:
    """Return the folders that complete a path."""
    head, slash, tail = word.rpartition("/")
    shown = tail.startswith(".")
    found = (path for path in sorted(Path(f"{head}{slash}" or ".").expanduser().glob(f"{_literal(tail)}*")))
    return [f"{head}{slash}{path.name}/" for path in found if path.is_dir() and (shown or path.name[0] != ".")]


def _paths(word: str) -> list[str]:
    """Return the files and folders that complete a path."""
    head, slash, tail = word.rpartition("/")
    found = sorted(Path(f"{head}{slash}" or ".").expanduser().glob(f"{_literal(tail)}*"))
    files = [f"{head}{slash}{path.name} " for path in found if path.is_file() and path.name[0] != "."]
    return [*files, *_folders(word)]


def _literal(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _campaigns(word: str) -> list[str]:
    """Return the campaigns below the working directory, or below what is typed, and folders on the way to others."""
    near = [f"{path.parent} " for path in sorted(Path("campaigns").glob("*/campaign.yaml"))]
    folders = [
        f"{folder.rstrip('/')} " if (Path(folder).expanduser() / "campaign.yaml").is_file() else folder
        for folder in _folders(word)
    ]
    return near if not word and near else [*near, *folders]


def _overrides(command: Command, typed: Sequence[str], word: str, dirs: Sequence[Path]) -> list[str]:
    key, equals, value = word.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    key = key.lstrip("+~")
    if equals:
        earlier = value.rpartition(",")[0]
        before = f"{sign}{key}={earlier},".removesuffix(",") if not earlier else f"{sign}{key}={earlier},"
        offered = options(key, dirs) if key in GROUPS else VALUES.get(key, ())
        return [f"{before}{name}" for name in offered]
    if sign.startswith("~"):
        return [f"~space.{name} " for name in _section_keys("space", typed, dirs)]
    section, dot, rest = key.partition(".")
    if not dot:
        groups, sections = (OPEN_GROUPS, (*OPEN_GROUPS, "fidelity")) if command.goes_on else (GROUPS, GROUPS)
        top = [name for name, _, _ in key_lines(conf_dir() / "config.yaml")]
        top = [name for name in top if not (command.goes_on and name in SETTLED_KEYS)]
        below = [f"{sign}{section}." for section in sections if section != "experiment"]
        return [*(f"{sign}{name}=" for name in (*groups, *top)), *below]
    keys = _section_keys(section, typed, dirs)
    if section == "space" and "." in rest:
        return [f"{sign}space.{rest.partition('.')[0]}.{field}=" for field in PARAMETER_FIELDS]
    whole = [f"{sign}{section}.{name}=" for name in keys]
    return [*whole, *(f"{sign}space.{name}." for name in keys)] if section == "space" else whole


def _section_keys(section: str, typed: Sequence[str], dirs: Sequence[Path]) -> list[str]:
    """Return the keys of a section, with the option of the group that is chosen so far."""
    if section in ("failures", "notify"):
        text = (conf_dir() / "config.yaml").read_text(encoding="utf-8").partition(f"\n{section}:")[2]
        inside = itertools.takewhile(lambda line: line.startswith(" "), text.splitlines()[1:])
        return [match[1] for line in inside if (match := re.match(r"  (\w+):", line))]
    option = options(section, dirs).get(_chosen(section, typed, dirs)) if section in GROUPS else None
    keys = list(option_keys(option, dirs)) if option is not None else []
    chooses = "kind" if section in ("objective", "fidelity", "launcher", "tracking") else "name"  # typed as the group
    return [key for key in keys if key != chooses]


def _chosen(group: str, typed: Sequence[str], dirs: Sequence[Path]) -> str:
    """Return the option of a group that is chosen: typed, by a typed experiment, or by default."""
    choices = dict(word.split("=", 1) for word in typed if re.match(r"\w+=[\w.-]+$", word))
    if group in choices:
        return str(choices[group])
    experiment = options("experiment", dirs).get(choices.get("experiment", ""))
    files = [] if experiment is None else [experiment.path]
    for path in (*files, conf_dir() / "config.yaml"):
        found = re.search(rf"^  - (?:override /)?{group}: ([\w.-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1]
    return ""
