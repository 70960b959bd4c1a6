"""A campaign's history as an optimizer sees it: points of the unit cube, targets, and what is in flight.

Every optimizer starts its `ask` here, so that all of them agree on which rows tell something, which configurations are
taken and what number the next trial has, whatever the frame went through (shuffled, read back from CSV, empty).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Space, Value
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import Origin, State

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """One trial that lies in the space.

    Args:
        trial: its number.
        state: where it stands.
        origin: where its value comes from.
        configuration: plain Python values.
        point: canonical point (``d``, unit cube).
        target: maximised; NaN where there is none.
        asked: journal sequence number of the event that proposed it; NaN where the history does not say.
        ended: that of the event that ended it; NaN before its end, or where the history does not say.
        key: identity of the configuration.
    """

    trial: int
    state: State
    origin: Origin
    configuration: Configuration
    point: NDArray[np.float64]
    target: float
    asked: float = math.nan
    ended: float = math.nan
    key: Key = ()

    @cached_property
    def observed(self) -> bool:
        """Whether a value was measured: a completed trial, evaluated here or imported."""
        return (
            self.state is State.COMPLETED
            and math.isfinite(self.target)
            and self.origin in (Origin.EVALUATED, Origin.IMPORTED)
        )

    @cached_property
    def stated(self) -> float | None:
        """The target; None where there is none."""
        return None if math.isnan(self.target) else self.target

    @cached_property
    def low(self) -> bool:
        """Whether the trial ended without a value because of its configuration: diverged or infeasible."""
        return self.state in (State.DIVERGED, State.INFEASIBLE)

    @property
    def pending(self) -> bool:
        """Whether a result is still to come."""
        return not self.state.ended


#: Rows read before: trial -> the cells that tell of it, and the row.
Memory: TypeAlias = dict[int, tuple[tuple[Any, ...], Row]]

#: Columns that a row is read from, beside the parameters.
TOLD = ("state", "origin", "target", "asked_seq", "ended_seq")


@dataclass(frozen=True)
class Rows:
    """The history in trial order.

    Args:
        space: the space that the rows are read in.
        rows: those whose configuration lies in the space.
        next_trial: number of the trial that the next proposal becomes.
        outside: number of rows left out because their configuration is not one of the space (imported ones can be).
    """

    space: Space
    rows: tuple[Row, ...]
    next_trial: int
    outside: int

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @classmethod
    def read(cls, space: Space, history: pd.DataFrame, memory: Memory | None = None) -> Rows:
        """Read a history, whatever the order of its rows; the baseline (trial -1) is left out.

        Args:
            space: the campaign's.
            history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
            memory: rows read before with the same space, so that only what has changed is read: a cache.

        Raises:
            ConfigError: there are values but no targets, so that nobody can tell what is better; or a parameter has no
                column.
        """
        if history.empty:
            return cls(space, (), 0, 0)
        if "trial" not in history.columns:  # a frame made by hand: its rows are the trials, in their order
            history = history.assign(trial=range(len(history)))
        _check_columns(space, history)
        read = [name for name in ("trial", *TOLD, *space.names) if name in history.columns]
        columns = {name: history[name].tolist() for name in read}
        trials = [int(number) for number in columns["trial"]]
        told = [[None if cell != cell else cell for cell in columns[name]] for name in read[1:]]
        told_of = list(zip(*told, strict=True)) if told else [()] * len(trials)
        rows: list[Row] = []
        left_out: list[str] = []
        outside, last = 0, -1
        for i in sorted(range(len(trials)), key=trials.__getitem__):
            trial, cells = trials[i], told_of[i]
            if trial < 0:
                continue
            last = max(last, trial)
            if memory is not None and trial in memory and memory[trial][0] == cells:
                rows.append(memory[trial][1])
                continue
            try:
                configuration = _configuration(space, columns, i)
                point = space.encode(configuration)
            except (KeyError, ConfigError) as error:
                outside += 1
                if _enum(columns, "origin", i, Origin.EVALUATED) != Origin.IMPORTED:
                    left_out.append(f"trial {trial} ({'; '.join(getattr(error, 'faults', [str(error)]))})")
                continue
            state = State(_enum(columns, "state", i, State.COMPLETED))
            origin = Origin(_enum(columns, "origin", i, Origin.EVALUATED))
            target, asked, ended = (_number(columns, name, i) for name in ("target", "asked_seq", "ended_seq"))
            key = key_of(space, point)
            rows.append(Row(trial, state, origin, configuration, point, target, asked, ended, key))
            if memory is not None:
                memory[trial] = cells, rows[-1]
        if left_out:
            more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
            said = (
                f"rows of the history are not configurations of the space and are left out: {', '.join(left_out[:3])}"
            )
            warnings.warn(f"{len(left_out)} {said}{more}", stacklevel=2)
        return cls(space, tuple(rows), last + 1, outside)

    @property
    def pending(self) -> list[Row]:
        """Rows in flight."""
        return [row for row in self.rows if row.pending]

    @property
    def best(self) -> Row | None:
        """The observed row of the highest target (the first of them), or None."""
        observed = [row for row in self.rows if row.observed]
        return max(observed, key=lambda row: row.target) if observed else None

    @property
    def infeasible(self) -> int:
        """Number of trials whose configuration could not be evaluated."""
        return sum(row.state is State.INFEASIBLE for row in self.rows)

    def taken(self) -> set[Key]:
        """Keys of the configurations that need not be evaluated again: all but those of cancelled trials."""
        return {row.key for row in self.rows if row.state is not State.CANCELLED}


def _check_columns(space: Space, history: pd.DataFrame) -> None:
    """Raise ConfigError where a frame made by hand lacks what its rows are read from."""
    always = [name for name, parameter in space.parameters.items() if not parameter.conditions]
    missing = [name for name in always if name not in history.columns]
    faults = [f"history: has no column {name}, which is a parameter of the space" for name in missing]
    hint = ""
    if "value" in history.columns and "target" not in history.columns:
        faults.append(
            "history: has a column value but no column target, the value with the sign that makes more better"
        )
        hint = "add it: history.assign(target=history.value), or -history.value"
    if faults:
        raise ConfigError(faults, hint)


def _configuration(space: Space, columns: dict[str, list[Any]], i: int) -> Configuration:
    """The active parameters of a row, in the order of the space. Raises KeyError where one has no column."""
    found = Configuration()
    for name in space.order:
        if space.is_active(name, found):
            found[name] = _plain(space, name, columns[name][i])
    return {name: found[name] for name in space.names if name in found}


def _plain(space: Space, name: str, value: Any) -> Value:
    """A cell of a frame as the Python value it stands for (numpy scalars, and text where a CSV mixed types)."""
    if isinstance(value, np.generic):
        value = value.item()
    parameter = space.parameters[name]
    if isinstance(parameter, Categorical):
        same = [choice for choice in parameter.choices if choice == value and type(choice) is type(value)]
        texts = {str(value), str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)}
        alike = [choice for choice in parameter.choices if choice == value or str(choice) in texts]
        return (same or alike or [value])[0]
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise KeyError(name) from None
    if isinstance(parameter, Float) and parameter.step is not None:
        with contextlib.suppress(ValueError):
            return parameter.decode(parameter.encode(value))  # without the noise that others may have left in it
    integer = isinstance(value, float) and isinstance(parameter, Integer) and value.is_integer()
    plain: Value = int(value) if integer else value
    return plain


def _enum(columns: dict[str, list[Any]], name: str, i: int, default: str) -> str:
    value = columns[name][i] if name in columns else default
    return str(value) if isinstance(value, str) else default


def _number(columns: dict[str, list[Any]], name: str, i: int) -> float:
    value = columns[name][i] if name in columns else None
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan
