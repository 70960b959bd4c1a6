"""All problems in groups: how each is made, and why some are missing on a machine.

A problem is made when it is asked for, because a table takes some tenths of a second to read.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.optimizers import coco, tables
from benchmarks.optimizers.problems import DATA_VARIABLE, LORA, VILLAGE, Problem, surrogate_problems, synthetic, village


@dataclass(frozen=True)
class Group:
    """Problems of one kind.

    Args:
        names: of the problems.
        make: the problem of a name.
        missing: why the problem of a name cannot be made on this machine; empty if it can.
    """

    names: tuple[str, ...]
    make: Callable[[str], Problem]
    missing: Callable[[str], str]


def _data(name: str) -> Problem:
    return village(name) if name in VILLAGE else surrogate_problems(Path(os.environ[DATA_VARIABLE]))[name]


def _data_missing(name: str) -> str:
    if name in VILLAGE:
        installed = importlib.util.find_spec("sklearn")
        return "" if installed else "scikit-learn is not installed (pip install '.[peers]')"
    return "" if os.environ.get(DATA_VARIABLE) else f"{DATA_VARIABLE} does not name a folder with their data"


GROUPS = {
    "classic": Group(tuple(synthetic()), lambda name: synthetic()[name], lambda name: ""),
    "data": Group((*VILLAGE, *LORA), _data, _data_missing),
    "tables": Group(tables.NAMES, tables.make, lambda name: tables.missing()),
    "bbob": Group(coco.BBOB, coco.make, lambda name: coco.missing()),
    "mixint": Group(coco.MIXINT, coco.make, lambda name: coco.missing()),
}
#: Of which a full benchmark consists unless the command line names others.
FULL = ("classic", "data", "tables")

_GROUP_OF = {name: group for group in GROUPS.values() for name in group.names}


def names(words: Iterable[str]) -> list[str]:
    """Return the names of problems that some names and groups stand for. Raise ValueError if one is unknown."""
    found: dict[str, None] = {}
    unknown = []
    for word in words:
        if word in GROUPS:
            found |= dict.fromkeys(GROUPS[word].names)
        elif word in _GROUP_OF:
            found[word] = None
        else:
            unknown.append(word)
    if unknown:
        accepted = "; ".join(f"{key} ({', '.join(group.names)})" for key, group in GROUPS.items())
        raise ValueError(f"there is no problem or group {', '.join(unknown)}; there are {accepted}")
    return list(found)


def left_out(wanted: Iterable[str]) -> dict[str, str]:
    """Return why problems cannot be made on this machine, by name; those that can are not in it."""
    return {name: reason for name in wanted if (reason := _GROUP_OF[name].missing(name))}


def messages(absent: dict[str, str]) -> list[str]:
    """Return one line for each reason, with the problems that it leaves out."""
    reasons = dict.fromkeys(absent.values())
    return [f"{', '.join(n for n, why in absent.items() if why == reason)}: left out, {reason}" for reason in reasons]


def problem(name: str) -> Problem:
    """Return the problem of that name."""
    return _GROUP_OF[name].make(name)
