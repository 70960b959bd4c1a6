"""The columns of a history that optimizers read: which there are, copies of them, and what is wrong with them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Parameter, Space, Value
from hpo_cluster.text import did_you_mean, few_of, instead_of
from hpo_cluster.trial import BASELINE, Origin, State

if TYPE_CHECKING:
    import pandas as pd

Columns: TypeAlias = Mapping[str, NDArray[Any]]

#: Columns of numbers; a missing one is NaN.
NUMBERS = ("value", "target", "asked_seq", "ended_seq")
#: The same with rungs, besides a column `LOOK` and a share for each rung below the top.
RUNG_NUMBERS = ("rung_value", "rung_target", "paused_seq", "paused_value")
LOOK = "value@"
#: Beginnings of the names of columns that are maximised.
TARGETS = ("target", "rung_target")
#: Columns of words, each with the word that a missing one stands for.
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
    """Return copies of the columns that rows are read from, in trial order, without baseline and confirmations.

    Raises ConfigError with `faults`, which are known already, and those of the history.
    """
    import pandas as pd

    found, hint = _missing_columns(space, history, several)
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
            if name in targets and (wrong := numbers.isna() & history[name].notna()).any():
                cells = history[name][wrong].tolist()
                found.append(f"history: {few_of(f'{name}={value!r}' for value in cells)}: is not a number")
                numbers = numbers.mask(wrong, 0.0)  # they are not missing
            columns[name] = np.array(numbers.to_numpy(dtype=np.float64, na_value=math.nan))
    for name, usual in WORDS.items():
        columns[name] = _cells(history[name]) if name in history.columns else np.full(count, usual, dtype=object)
    columns |= {name: _cells(history[name]) for name in space.names if name in history.columns}
    trials = columns["trial"]
    below = np.flatnonzero(trials < BASELINE).tolist()
    if unnumbered := [i for i in below if str(columns["origin"][i]) != Origin.CONFIRMATION]:
        some = few_of(f"trial {trials[i]}" for i in unnumbered)
        found.append(f"history: {some}: trials are numbered from 0; {BASELINE} is the baseline, outside the budget")
    if trials[0] < 0 or not (trials[1:] > trials[:-1]).all():
        order = np.argsort(trials, kind="stable")
        order = order[trials[order] >= 0]
        columns = {name: cells[order] for name, cells in columns.items()}
    own = [name for name in targets if name in history.columns and name != "rung_target"]
    found += [*_wrong_cells(columns, targets), *_without_value(columns, own, "state" in history.columns)]
    found += _missing_where_active(space, columns)
    if found:
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
        cells = [*map(str, columns[name].tolist())]
        for word in sorted({*cells} - {*known, "nan"}):
            having = [f"trial {trial}" for trial, cell in zip(trials, cells, strict=True) if cell == word]
            some = few_of(dict.fromkeys(having))
            faults.append(f"history: {name}={word!r} of {some}: is not known; {instead_of(word, known)}")
    return faults


def _without_value(columns: Columns, targets: Sequence[str], stated: bool) -> list[str]:
    """Return the faults of trials that are completed and lack a target; `stated`: whether the history has states."""
    valued = {State.COMPLETED} if "rung_value" in columns else {State.COMPLETED, State.PAUSED}
    measured, faults = {Origin.EVALUATED, Origin.IMPORTED}, list[str]()
    for name in targets:
        lacking = [
            columns["trial"][i]
            for i in np.flatnonzero(np.isnan(columns[name])).tolist()
            if word_in("state", columns["state"][i]) in valued and word_in("origin", columns["origin"][i]) in measured
        ]
        if lacking:
            how = "accepted: a finite number, or the state of a trial without a value: running, failed, diverged"
            why = "" if stated else "; without a column state, every trial is completed"
            some = few_of(f"trial {trial}" for trial in lacking)
            faults.append(f"history: {some}: completed without a {name}; {how}{why}")
    return faults


def word_in(name: str, cell: Any) -> str:
    """Return the word in a cell of a column of `WORDS`, or the one that a missing cell stands for."""
    return str(cell) if cell == cell else WORDS[name]


def _missing_where_active(space: Space, columns: Columns) -> list[str]:
    """Return which conditional parameters have no column, though a trial needs them."""
    faults, lacking = list[str](), [n for n, p in space.parameters.items() if p.conditions and n not in columns]
    if not lacking:
        return faults
    rows = [
        configuration_in(space, {n: columns[n][i] for n in space.names if n in columns}, strict=False)
        for i in range(len(columns["trial"]))
    ]
    for name in lacking:
        where = next((i for i, row in enumerate(rows) if space.is_active(name, row)), None)
        if where is not None:
            because = " and ".join(f"{parent}={rows[where][parent]}" for parent in space.parameters[name].conditions)
            faults.append(f"history: has no column {name}, but trial {columns['trial'][where]} has {because}")
    return faults


def configuration_in(space: Space, cells: Mapping[str, Any], *, strict: bool = True) -> Configuration:
    """Return the values of the active parameters in one row's cells; a parameter whose cell is missing is left out.

    Args:
        space: the space.
        cells: by column; NaN if missing.
        strict: whether text in place of a number is an error; if not, it is left out too.

    Raises:
        ConfigError: naming the text.
    """
    found = Configuration()
    for name in space.order:
        value = cells.get(name, math.nan)
        if value == value and space.is_active(name, found):
            try:
                found[name] = _plain(space.parameters[name], value)
            except ValueError:
                if strict:
                    raise ConfigError([f"{name}={value!r}: is not a number"]) from None
    return {name: found[name] for name in space.names if name in found}


def _plain(parameter: Parameter, value: Any) -> Value:
    """Return the Python value that a cell stands for (numpy scalars, and text if a CSV mixed types).

    Raises ValueError for text that is not a number.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(parameter, Categorical):
        same = [choice for choice in parameter.choices if choice == value and type(choice) is type(value)]
        texts = {str(value), str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)}
        alike = [choice for choice in parameter.choices if choice == value or str(choice) in texts]
        return (same or alike or [value])[0]
    if isinstance(value, str):
        value = float(value)
    if isinstance(parameter, Float) and parameter.step is not None:
        with contextlib.suppress(ValueError):
            return parameter.decode(parameter.encode(value))  # without rounding errors of whoever wrote it
    integer = isinstance(value, float) and isinstance(parameter, Integer) and value.is_integer()
    plain: Value = int(value) if integer else value
    return plain


def _cells(column: pd.Series) -> NDArray[Any]:
    """Return a copy of a column: numbers and bools as they are, anything else as objects, NaN if missing."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf":
        return np.array(column.to_numpy())
    return np.array(column.to_numpy(dtype=object, na_value=math.nan))


def differ(now: NDArray[Any], before: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where two columns of equal length differ; NaN equals NaN."""
    differ = np.asarray(now != before, dtype=np.bool_)
    return differ & ((now == now) | (before == before)).astype(np.bool_) if differ.any() else differ


def _missing_columns(space: Space, history: pd.DataFrame, several: Sequence[str]) -> tuple[list[str], str]:
    """Return the columns that rows are read from and that a frame made by hand lacks, and what to do about it."""
    known = {"trial", *NUMBERS, *WORDS, *several, *space.names}
    others = [name for name in map(str, history.columns) if name not in known]
    always = [name for name, parameter in space.parameters.items() if not parameter.conditions]
    faults = [
        f"history: has no column {name}, which is a parameter of the space; {did_you_mean(name, others)}".rstrip("; ")
        for name in always
        if name not in history.columns
    ]
    if slack := next((name for name in others if name.startswith("slack_")), ""):
        what = "is of a constraint, which needs its objective as a column target_NAME besides target"
        faults.append(f"history: {slack} {what}: history.assign(target_score=history.target)")
    if "target" in history.columns:
        return faults, ""
    states = _cells(history["state"]).tolist() if "state" in history.columns else [State.COMPLETED]
    if not any(cell != cell or cell in (State.COMPLETED, State.PAUSED) for cell in states):
        return faults, ""
    close = did_you_mean("target", others)
    has = "has a column value but" if "value" in history.columns else "has"
    what = "no column target, the value with the sign that makes more better"
    faults.append(f"history: {has} {what}; {close}".rstrip("; "))
    if first := next((name for name in several if name.startswith("target_")), ""):
        return faults, f"add it, that of the first objective: history.assign(target=history[{first!r}])"
    if "value" in history.columns or not close:
        score = "history.value" if "value" in history.columns else "SCORES"
        return faults, f"add it: history.assign(target={score}), or -{score}"
    return faults, f"rename it: history.rename(columns={{{close.split()[-1][:-1]!r}: 'target'}})"
