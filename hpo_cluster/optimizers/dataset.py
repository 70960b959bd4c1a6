"""The history of a campaign as optimizers use it: points of the unit cube, targets, states, the order of events.

Every `ask` begins with one `Dataset.read`, and no optimizer reads the frame elsewhere. So all of them agree on which
rows have a value, which configurations are taken, what is in flight and what number the next trial has, whatever the
frame went through (shuffled, read back from CSV, made by hand, empty).

A dataset keeps copies of the columns that it was read from. The next reading compares them with the new frame, column
by column, and reads only the rows that have changed: with 10 000 rows it takes a few milliseconds. The dataset of the
last ask is a cache, and losing it changes nothing.

With rungs (`hpo_cluster.fidelity`) a history says what was seen at each. Optimizers that know nothing of them see a
paused trial as one that has ended, and its value at the rung reached as its target. In the order of events it ends when
it is first paused, with the value that it had then, whatever becomes of it: what was decided upon it stands. So a
replayed search keeps the first value, and an optimizer that reads the rows sees the last one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.errors import ConfigError
from hpo_cluster.fidelity import as_share
from hpo_cluster.optimizers.columns import (
    LOOK,
    Columns,
    columns_of_goals,
    columns_of_looks,
    configuration_in,
    differ,
    read_columns,
    reference_of,
    sign_of,
    word_in,
)
from hpo_cluster.space import Configuration, Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.text import counted, few_of
from hpo_cluster.trial import Origin, State

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """One trial whose configuration lies in the space.

    Args:
        trial: its number.
        state: where it stands.
        origin: where its value comes from.
        configuration: plain Python values.
        point: canonical point (``d``, unit cube).
        target: maximised; NaN if the trial has none.
        asked: journal sequence number of the event that proposed it; NaN if the history does not say.
        ended: journal sequence number of the event that ended it; NaN before, or if the history does not say.
        key: identity of the configuration.
        targets: with several objectives or constraints, what is maximised for each objective; empty otherwise.
        sems: their standard errors: 0 without noise, NaN if unknown.
        slacks: how far each constraint holds; negative if it does not.
        looks: with rungs, the target at each rung below the top; NaN if the trial was not scored there.
        paused: journal sequence number of the event that first paused the trial; NaN if none did.
        paused_target: the target that it had then.
    """

    trial: int
    state: State
    origin: Origin
    configuration: Configuration
    point: NDArray[np.float64]
    target: float
    asked: float
    ended: float
    key: Key
    targets: tuple[float, ...] = ()
    sems: tuple[float, ...] = ()
    slacks: tuple[float, ...] = ()
    looks: tuple[float, ...] = ()
    paused: float = math.nan
    paused_target: float = math.nan

    @cached_property
    def observed(self) -> bool:
        """Whether a value was measured: the trial is completed or paused, and was evaluated here or imported."""
        return (
            self.state in (State.COMPLETED, State.PAUSED)
            and math.isfinite(self.target)
            and all(map(math.isfinite, self.targets))
            and self.origin in (Origin.EVALUATED, Origin.IMPORTED)
        )

    @cached_property
    def feasible(self) -> bool:
        """Whether a value was measured, and all constraints hold."""
        return self.observed and all(slack >= 0 for slack in self.slacks)

    @cached_property
    def whole(self) -> bool:
        """Whether a value was measured by a whole evaluation: not at a rung where the trial is paused."""
        return self.observed and self.state is State.COMPLETED

    @cached_property
    def first_end(self) -> Row:
        """The row when the trial first ended: as it was first paused, if it ever was; otherwise as it is."""
        if math.isnan(self.paused):
            return self
        return replace(self, state=State.PAUSED, target=self.paused_target, ended=self.paused)

    @cached_property
    def low(self) -> bool:
        """Whether the trial ended without a value because of its configuration: diverged or infeasible."""
        return self.state in (State.DIVERGED, State.INFEASIBLE)

    @cached_property
    def pending(self) -> bool:
        """Whether a result is still to come."""
        return not self.state.ended


class Moment(NamedTuple):
    """What one event of the journal did: rows that it proposed, rows that it ended, each in trial order.

    A row whose value needs no job (inherited, approximated, imported) is proposed and ended by the same event.
    """

    at: float
    asked: tuple[Row, ...]
    ended: tuple[Row, ...]

    def by_trial(self) -> Iterator[tuple[Row, bool]]:
        """Yield each row, in trial order, with whether it ended; a row that does both comes twice in succession."""
        both = [(row.trial, False, row) for row in self.asked] + [(row.trial, True, row) for row in self.ended]
        for _, ended, row in sorted(both, key=lambda entry: entry[:2]):
            yield row, ended


class Dataset:
    """A history in trial order. Make one with `read`.

    Args:
        space: the space that the rows are read in.
        columns: copies of what was read, in trial order.
        found: a row for each cell of the columns; None if the configuration is not in the space.

    Attributes:
        rows: those whose configuration lies in the space.
        next_trial: number of the trial that the next proposal becomes.
        outside: number of rows left out because their configuration is not in the space (imported ones may not be).
        objectives: names of the metrics that are optimised, if there are several, or constraints; empty otherwise.
        references: the worst target of interest of each of them; NaN where none was given.
        shares: with rungs, those below the top, as shares of a whole evaluation; empty without.
    """

    def __init__(
        self, space: Space, columns: Columns, found: Sequence[Row | None], several: Sequence[str] = ()
    ) -> None:
        self.space, self._columns, self._found = space, columns, found
        self.objectives = tuple(name.removeprefix("target_") for name in several if name.startswith("target_"))
        self.references = tuple(reference_of(columns, name) for name in self.objectives)
        self.shares = tuple(float(as_share(name.removeprefix(LOOK))) for name in several if name.startswith(LOOK))
        self.rows = tuple([row for row in found if row is not None])
        self.outside = len(found) - len(self.rows)
        self.next_trial = int(columns["trial"][-1]) + 1 if found else 0
        #: Whether the history says when each trial was proposed. If not, the order of the trials counts.
        self._timed = not found or bool(np.isfinite(columns["asked_seq"]).all())

    @classmethod
    def read(cls, space: Space, history: pd.DataFrame, previous: Dataset | None = None, n: int = 1) -> Dataset:
        """Read a history, whatever the order of its rows; the baseline (trial -1) is left out.

        Args:
            space: the campaign's.
            history: as `hpo_cluster.optimizers.base.Optimizer.ask` takes it.
            previous: an earlier reading in the same space; its unchanged rows are used again.
            n: number of proposals wanted, which is checked with the history.

        Raises:
            TypeError: the history is not a DataFrame.
            ConfigError: with every fault: `n` is not a whole number above 0; a completed trial has no target; a
                parameter has no column; a trial has several rows, or a number that is not whole or below 0; a target
                is infinite or no number; a state or an origin does not exist.
        """
        if not hasattr(history, "columns"):
            raise TypeError(
                f"history={history!r:.60}: is not a DataFrame of trials, one each row; without trials:  pd.DataFrame()"
            )
        several = [*columns_of_goals(space, history), *columns_of_looks(space, history)]
        whole = isinstance(n, Integral) and not isinstance(n, bool) and n > 0
        faults = [] if whole else [f"n={n!r}: is the number of proposals wanted; accepted: a whole number, 1 or more"]
        if history.empty:
            if faults:
                raise ConfigError(faults)
            return cls(space, {}, (), several)
        columns = read_columns(space, history, several, faults)
        count = len(columns["trial"])
        found, changed = list[Row | None]([None] * count), np.ones(count, dtype=np.bool_)
        if previous is not None and previous._continued_by(space, columns):
            both = min(count, len(previous._found))
            found[:both] = previous._found[:both]
            pairs = [(cells[:both], previous._columns[name][:both]) for name, cells in columns.items()]
            changed[:both] = np.logical_or.reduce([differ(now, before) for now, before in pairs])
        indices = np.flatnonzero(changed)
        cells = {name: column[indices].tolist() for name, column in columns.items()}
        sign = sign_of(columns)
        left_out = list[str]()
        for i, index in enumerate(indices.tolist()):
            row = {name: column[i] for name, column in cells.items()}
            try:
                found[index] = _row(space, row, several, sign)
            except ConfigError as error:
                found[index] = None
                if row["origin"] != Origin.IMPORTED:
                    left_out.append(f"trial {row['trial']} ({'; '.join(error.faults)})")
        if left_out:
            one, many = "is not a configuration of the space and is", "are not configurations of the space and are"
            what = one if len(left_out) == 1 else many
            rows = f"{counted(len(left_out), 'row')} of the history"
            warnings.warn(f"{rows} {what} left out: {few_of(left_out)}", stacklevel=2)
        return cls(space, columns, found, several)

    def _continued_by(self, space: Space, columns: Columns) -> bool:
        """Return whether the rows of other columns that are equal to these mean the same."""
        alike = self.space is space and self._columns.keys() == columns.keys()
        return alike and (not self.shares or sign_of(self._columns) == sign_of(columns))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def pending(self) -> list[Row]:
        """The rows in flight."""
        return [row for row in self.rows if row.pending]

    @property
    def best(self) -> Row | None:
        """The wholly evaluated row of the highest target where the constraints hold (the first of them), or None."""
        return max((row for row in self.rows if row.feasible and row.whole), key=lambda row: row.target, default=None)

    @property
    def incumbent(self) -> dict[str, Any] | None:
        """The best trial and its target as plain data, for a decision."""
        best = self.best
        return None if best is None else {"trial": best.trial, "target": best.target}

    @property
    def worst(self) -> float:
        """The lowest target observed, which diverged and infeasible trials count as; NaN if there is none."""
        return min((row.target for row in self.rows if row.observed), default=math.nan)

    @property
    def worst_targets(self) -> tuple[float, ...]:
        """The lowest target observed of each of several objectives; empty before the first observation."""
        return tuple(map(min, zip(*(row.targets for row in self.rows if row.observed), strict=True)))

    @cached_property
    def targets(self) -> NDArray[np.float64]:
        """The targets of several objectives (``n x m``, a row for each of `rows`; NaN without a value)."""
        return self._matrix([row.targets for row in self.rows])

    @cached_property
    def sems(self) -> NDArray[np.float64]:
        """The standard errors of the targets (``n x m``): 0 for a metric without noise, NaN if it is not known."""
        return self._matrix([row.sems for row in self.rows])

    @cached_property
    def slacks(self) -> NDArray[np.float64]:
        """How far each of the constraints holds (``n x c``): negative if it does not, NaN without a value."""
        return self._matrix([row.slacks for row in self.rows])

    @property
    def feasible(self) -> NDArray[np.bool_]:
        """Whether a value was observed and all constraints hold (``n``)."""
        return np.array([row.feasible for row in self.rows], dtype=np.bool_)

    @staticmethod
    def _matrix(rows: Sequence[tuple[float, ...]]) -> NDArray[np.float64]:
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1 if rows else 0)

    @property
    def infeasible(self) -> int:
        """The number of trials whose configuration could not be evaluated."""
        return sum(row.state is State.INFEASIBLE for row in self.rows)

    @cached_property
    def begun(self) -> int:
        """The number of trials that count towards an initial design: all but failed and cancelled ones."""
        return sum(row.state not in (State.FAILED, State.CANCELLED) for row in self.rows)

    @property
    def sign(self) -> float:
        """The factor from a target to a value in the user's direction: 1 or -1."""
        return sign_of(self._columns) if self._found else 1.0

    def taken(self) -> set[Key]:
        """Return the keys of the configurations that need not be evaluated again: all but those of cancelled trials."""
        return {row.key for row in self.rows if row.state is not State.CANCELLED}

    # ------------------------------------------------------------------------------------------- the order of events

    def moments(self) -> list[Moment]:
        """Return everything that happened, in order.

        If some rows lack ``asked_seq``, trials are taken to have been proposed and to have ended one after another, by
        their numbers.
        """
        return self._moments(self.rows, [end for row in self.rows if (end := row.first_end).state.ended])

    def since(self, earlier: Dataset) -> list[Moment] | None:
        """Return what happened after `earlier`; None if this history is not `earlier` continued."""
        count = len(earlier.rows)
        if len(self.rows) < count or self._timed != earlier._timed:
            return None
        asked, ended = self.rows[count:], list[Row]()
        for before, now in zip(earlier.rows, self.rows, strict=False):
            if before is now:
                continue
            if self._proposal(before) != self._proposal(now):
                return None
            first, end = before.first_end, now.first_end
            if not first.state.ended:
                ended += [end] if end.state.ended else []
            elif self._end(first) != self._end(end):
                return None
        moments = self._moments(asked, [*ended, *(end for row in asked if (end := row.first_end).state.ended)])
        return moments if not moments or moments[0].at > earlier._last else None

    def _moments(self, asked: Iterable[Row], ended: Iterable[Row]) -> list[Moment]:
        found: dict[float, tuple[list[Row], list[Row]]] = {}
        for row in asked:
            found.setdefault(self._asked_at(row), ([], []))[0].append(row)
        for row in ended:
            found.setdefault(self._ended_at(row), ([], []))[1].append(row)
        return [Moment(at, *map(tuple, found[at])) for at in sorted(found)]

    def _asked_at(self, row: Row) -> float:
        return row.asked if self._timed else 2.0 * row.trial

    def _ended_at(self, row: Row) -> float:
        if not self._timed:
            return 2.0 * row.trial + 1.0
        return row.ended if math.isfinite(row.ended) else row.asked

    @cached_property
    def _last(self) -> float:
        """The place of the last event in the order of events."""
        if not self.rows:
            return -math.inf
        if self._timed:
            names = [name for name in ("asked_seq", "ended_seq", "paused_seq") if name in self._columns]
            return float(np.fmax.reduce([self._columns[name] for name in names]).max())
        last = self.rows[-1]
        return self._ended_at(last) if last.first_end.state.ended else self._asked_at(last)

    def _proposal(self, row: Row) -> tuple[Any, ...]:
        """Return what the proposal of a row was; equal for rows that mean the same."""
        return row.trial, row.origin, row.configuration, self._asked_at(row)

    def _end(self, row: Row) -> tuple[Any, ...]:
        """Return how a row ended; equal for rows that mean the same."""
        return row.state, None if math.isnan(row.target) else row.target, self._ended_at(row)


def _row(space: Space, cells: Mapping[str, Any], several: Sequence[str], sign: float) -> Row:
    """Read one row. Raises ConfigError if its configuration is not in the space."""
    configuration = configuration_in(space, cells)
    point = space.encode(configuration)
    state, origin = word_in("state", cells["state"]), word_in("origin", cells["origin"])
    return Row(
        trial=cells["trial"],
        state=State(state),
        origin=Origin(origin),
        configuration=configuration,
        point=point,
        target=sign * cells["rung_value"] if state == State.PAUSED and "rung_value" in cells else cells["target"],
        asked=cells["asked_seq"],
        ended=cells["ended_seq"],
        key=key_of(space, point),
        targets=tuple(cells[name] for name in several if name.startswith("target_")),
        sems=tuple(cells[name] for name in several if name.startswith("value_sem_")),
        slacks=tuple(cells[name] for name in several if name.startswith("slack_")),
        looks=tuple(sign * cells[name] for name in several if name.startswith(LOOK)),
        paused=cells.get("paused_seq", math.nan),
        paused_target=sign * cells.get("paused_value", math.nan),
    )
