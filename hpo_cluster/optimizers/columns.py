"""The columns of a history that optimizers read: which there are, copies of them, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Space
from hpo_cluster.text import few_of, instead_of
from hpo_cluster.trial import Origin, State

if TYPE_CHECKING:
    import pandas as pd

Columns: TypeAlias = Mapping[str, NDArray[Any]]

#: Columns of numbers, with NaN for a missing one, and columns of words, with the word for a missing one.
NUMBERS = ("value", "target", "asked_seq", "ended_seq")
#: The same with rungs, besides a column `LOOK` and a share for each rung below the top.
RUNG_NUMBERS = ("rung_value", "rung_target", "paused_seq", "paused_value")
LOOK = "value@"
#: Beginnings of the names of columns that are maximised.
TARGETS = ("target", "rung_target")
WORDS: Mapping[str, str] = {"state": State.COMPLETED, "origin": Origin.EVALUATED}


def columns_of_goals(space: Space, history: pd.DataFrame) -> list[str]:
    """Return the columns of objectives and constraints, in their order; none with one objective and no constraint."""
    names = [name for name in map(str, history.columns) if name not in space.parameters]
    targets = [name for name in names if name.startswith("target_")]
    if len(targets) < 2 and not (targets and any(name.startswith("slack_") for name in names)):
        return []
    sems = [f"value_sem_{name.removeprefix('target_')}" for name in targets]
    return [*targets, *sems, *(name for name in names if name.startswith(("slack_", "reference_")))]


def reference_of(columns: Columns, objective: str) -> float:
    """Return the worst target of interest of an objective; NaN if none was given."""
    cells = columns.get(f"reference_{objective}", np.empty(0))
    known = cells[np.isfinite(cells)]
    return float(known[0]) if len(known) else math.nan


def columns_of_looks(space: Space, history: pd.DataFrame) -> list[str]:
    """Return the columns of what was seen at the rungs below the top, from the lowest on; none without rungs."""
    if "rung_value" not in history.columns or "rung_value" in space.parameters:
        return []
    return [name for name in map(str, history.columns) if name.startswith(LOOK) and name not in space.parameters]


def sign_of(columns: Columns) -> float:
    """Return the factor from a target to a value in the user's direction: 1 or -1."""
    pairs = [("value", "target"), ("rung_value", "rung_target")]
    both = [(columns[value], columns[target]) for value, target in pairs if target in columns]
    return -1.0 if any(((values == -targets) & (values != 0)).any() for values, targets in both) else 1.0


def read_columns(
    space: Space, history: pd.DataFrame, several: Sequence[str], faults: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Return copies of the columns that rows are read from, in trial order and without the baseline.

    Raises ConfigError with `faults`, which are known already, and those of the history.
    """
    import pandas as pd

    found, hint = _missing_columns(space, history)
    found = [*faults, *found]
    count = len(history)
    columns: dict[str, NDArray[Any]] = {"trial": np.arange(count)}  # a frame made by hand: its rows are the trials
    if "trial" in history.columns:
        numbers = pd.to_numeric(history["trial"], errors="coerce").to_numpy(dtype=np.float64, na_value=math.nan)
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers))
        if wrong := history["trial"][~whole].tolist():
            found.append(f"history: {few_of(f'trial={value!r}' for value in wrong)}: is not a whole number")
        columns["trial"] = np.where(whole, numbers, -1).astype(np.int64)
    rungs = RUNG_NUMBERS if any(name.startswith(LOOK) for name in several) else ()
    names = (*NUMBERS, *several, *rungs)
    targets = [name for name in names if name.startswith(TARGETS)]
    for name in names:
        columns[name] = np.full(count, math.nan)
        if name in history.columns:
            numbers = pd.to_numeric(history[name], errors="coerce")
            if name in targets and (wrong := history[name][numbers.isna() & history[name].notna()].tolist()):
                found.append(f"history: {few_of(f'{name}={value!r}' for value in wrong)}: is not a number")
            columns[name] = np.array(numbers.to_numpy(dtype=np.float64, na_value=math.nan))
    for name, usual in WORDS.items():
        columns[name] = _cells(history[name]) if name in history.columns else np.full(count, usual, dtype=object)
    columns |= {name: _cells(history[name]) for name in space.names if name in history.columns}
    trials = columns["trial"]
    if trials[0] < 0 or not (trials[1:] > trials[:-1]).all():
        order = np.argsort(trials, kind="stable")
        order = order[trials[order] >= 0]
        columns = {name: cells[order] for name, cells in columns.items()}
    if found := [*found, *_wrong_cells(columns, targets)]:
        raise ConfigError(found, hint)
    return columns


def _wrong_cells(columns: Columns, targets: Sequence[str]) -> list[str]:
    """Return the faults of cells that an optimizer would misread, each with the trials that have it."""
    trials, faults = columns["trial"], list[str]()
    if twice := sorted({*trials[1:][trials[1:] == trials[:-1]].tolist()}):
        faults.append(f"history: several rows of {few_of(f'trial {number}' for number in twice)}; a trial has one")
    for name in targets:
        if where := np.flatnonzero(np.isinf(columns[name])).tolist():
            some = few_of(f"{name}={columns[name][i]} of trial {trials[i]}" for i in where)
            how = "accepted: a finite number, or NaN with the state diverged or failed for a trial without a value"
            faults.append(f"history: {some}: is not finite; {how}")
    for name, words in (("state", State), ("origin", Origin)):
        known = [str(word) for word in words]
        wrong = {cell for cell in columns[name] if isinstance(cell, str)} - {*known}
        faults += [f"history: {name}={word!r}: is not known; {instead_of(word, known)}" for word in sorted(wrong)]
    return faults


def _cells(column: pd.Series) -> NDArray[Any]:
    """Return a copy of a column: numbers and bools as they are, anything else as objects, NaN if missing."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return np.array(column.to_numpy())
    return np.array(column.to_numpy(dtype=object, na_value=math.nan))


def differ(now: NDArray[Any], before: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two columns of equal length differ; NaN equals NaN."""
    differ = np.asarray(now != before, dtype=np.bool_)
    return differ & ((now == now) | (before == before)).astype(np.bool_) if differ.any() else differ


def _missing_columns(space: Space, history: pd.DataFrame) -> tuple[list[str], str]:
    """Return the columns that rows are read from and that a frame made by hand lacks, and what to do about it."""
    always = [name for name, parameter in space.parameters.items() if not parameter.conditions]
    missing = [name for name in always if name not in history.columns]
    faults = [f"history: has no column {name}, which is a parameter of the space" for name in missing]
    if "value" not in history.columns or "target" in history.columns:
        return faults, ""
    faults.append("history: has a column value but no column target, the value with the sign that makes more better")
    return faults, "add it: history.assign(target=history.value), or -history.value"
