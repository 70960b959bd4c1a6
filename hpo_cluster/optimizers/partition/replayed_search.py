"""From a history to the state of a search that depends on the order of events, as trees do.

Such an optimizer is a `Search`: a program that decides what to evaluate next, and is told what became of it. Its state
is no part of the journal: it is found again by going through the events of the history in their order (columns
``asked_seq`` and ``ended_seq``) and taking the same decisions. At each ``asked`` the search says what it would
evaluate; where that is what the history has, it goes on from there. A row that it would not have asked for (imported,
or asked for by another optimizer) is taken as known: whenever the search comes to that configuration it finds the
value, and nothing is evaluated twice.

Without these columns trials are taken to have been asked for and to have ended one after another, by their numbers.

`Retrace` keeps the search of the last history and feeds it what has been added since; anything else than an addition
makes it start again, so that the answer never depends on what was asked before. What was added is found by comparing
columns whole, and only those rows are read: with 10 000 trials an ask takes 3 to 4 ms, most of it the frame's.

`hpo_cluster.optimizers.replay` goes through a history too, for optimizers whose state is changed by events alone, one
trial at a time. A search differs in both: answering changes it, so that its next events must be those that it has
answered, and an ask of several trials is one event, since a search may settle cells between them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.dataset import TOLD, Row, Rows
from hpo_cluster.space import Configuration, Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import Ask, Origin, Proposal, Settled, State

if TYPE_CHECKING:
    import pandas as pd


#: States of trials whose end is still to come.
IN_FLIGHT = [str(state) for state in State if not state.ended]


class Status(StrEnum):
    """What is known of a configuration."""

    IDLE = "idle"  # nothing, and nobody waits for it
    QUEUED = "queued"  # to be proposed
    PENDING = "pending"  # in flight
    MEASURED = "measured"  # it has a value
    LOW = "low"  # diverged or infeasible: counts as the lowest value told
    LOST = "lost"  # failed for reasons of its own: nothing is known, and it is not tried again
    APPROXIMATED = "approximated"  # a bound was put in the place of a value


@dataclass(eq=False, slots=True)
class Evaluation:
    """One configuration; cells with the same one share it.

    Args:
        key: its identity.
        configuration: plain values.
        point: its canonical point (``d``).
        info: how it was first found (JSON).
        status: what is known.
        value: maximised; None where nothing was measured or approximated.
        nodes: what waits for it, or has its value.
    """

    key: Key
    configuration: Configuration
    point: NDArray[np.float64]
    info: dict[str, Any]
    status: Status = Status.IDLE
    value: float | None = None
    nodes: list[Any] = field(default_factory=list)


class Search:
    """Base of the programs: a queue of configurations to evaluate, which a subclass fills with `grow`.

    Args:
        space: what to search.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.evaluations: dict[Key, Evaluation] = {}
        self.taken: set[Key] = set()  # of those that are not idle
        self.queue: deque[Evaluation] = deque()
        self.best: float | None = None  # highest and lowest value measured so far
        self.lowest: float | None = None
        self.issued = 0  # proposals so far

    # ------------------------------------------------------------------------------------------ what a subclass says

    def grow(self) -> bool:
        """Advance one step with an empty queue; False where nothing is left to evaluate, ever or for the time being."""
        raise NotImplementedError

    def changed(self, evaluation: Evaluation) -> None:
        """The status or value of a configuration is another now."""

    def describe(self) -> dict[str, Any]:
        """Where the search stands (JSON)."""
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------- the search's tools

    def want(self, u: NDArray[np.float64], info: dict[str, Any]) -> Evaluation:
        """The evaluation at a point of the unit cube (``d``), put into the queue where nothing is known of it."""
        configuration = self.space.decode(u)
        point = self.space.encode(configuration)
        evaluation = self._evaluation(key_of(self.space, point), configuration, point, info)
        self.taken.add(evaluation.key)
        if evaluation.status is Status.IDLE and not self.space.allows(configuration):
            evaluation.status = Status.LOW  # a constraint says so: as low as what cannot be evaluated, at no cost
        elif evaluation.status is Status.IDLE:
            evaluation.status = Status.QUEUED
            self.queue.append(evaluation)
        return evaluation

    def told(self, evaluation: Evaluation) -> float | None:
        """The value of an evaluation, the lowest one told for a low one; None where nothing is known."""
        return self.lowest if evaluation.status is Status.LOW else evaluation.value

    def _evaluation(
        self, key: Key, configuration: Configuration, point: NDArray[np.float64], info: dict[str, Any]
    ) -> Evaluation:
        if key not in self.evaluations:
            self.evaluations[key] = Evaluation(key, configuration, point, info)
        return self.evaluations[key]

    # ------------------------------------------------------------------------------------------------ what it is asked

    def head(self) -> Evaluation | None:
        """What is proposed next; None where there is nothing."""
        while True:
            while self.queue and self.queue[0].status is not Status.QUEUED:
                self.queue.popleft()  # somebody else asked for it meanwhile
            if self.queue:
                return self.queue[0]
            if not self.grow():
                return None

    def issue(self, evaluation: Evaluation) -> None:
        """The evaluation is under way."""
        had = evaluation.value is not None
        evaluation.status, evaluation.value = Status.PENDING, None
        self.issued += 1
        if had:
            self.changed(evaluation)

    def ask(self, n: int) -> tuple[list[Proposal], list[Settled]]:
        """At most `n` proposals, under way from now on, and what needs no evaluation."""
        proposals: list[Proposal] = []
        while len(proposals) < n:
            evaluation = self.head()
            if evaluation is None:
                break
            self.issue(evaluation)
            proposals.append(Proposal(evaluation.configuration, evaluation.info))
        return proposals, []

    # ------------------------------------------------------------------------------------------------- what it is told

    def asked(self, rows: Sequence[Row]) -> None:
        """Rows that one ask has added to the history."""
        for row in rows:
            evaluation = self.head() if row.origin is Origin.EVALUATED else None
            if evaluation is not None and evaluation.key == row.key:
                self.issue(evaluation)
            else:
                self.adopt(row)

    def adopt(self, row: Row) -> None:
        """Take a row that the search did not ask for as under way, or as what it is."""
        evaluation = self._evaluation(row.key, row.configuration, row.point, {})
        self.taken.add(evaluation.key)
        if evaluation.status in (Status.IDLE, Status.QUEUED, Status.APPROXIMATED):
            approximated = row.origin is Origin.APPROXIMATED
            evaluation.status = Status.APPROXIMATED if approximated else Status.PENDING
            evaluation.value = row.target if approximated and math.isfinite(row.target) else None
            self.changed(evaluation)

    def ended(self, row: Row) -> None:
        """A trial is over."""
        evaluation = self.evaluations[row.key]
        if row.observed:
            self.best = row.target if self.best is None else max(self.best, row.target)
            self.lowest = row.target if self.lowest is None else min(self.lowest, row.target)
        if evaluation.status is not Status.PENDING or row.origin is Origin.APPROXIMATED:
            return  # a configuration that was evaluated before: its first value stands
        if row.state is State.CANCELLED:
            evaluation.status = Status.QUEUED if evaluation.nodes else Status.IDLE
            if evaluation.nodes:
                self.queue.appendleft(evaluation)
            else:
                self.taken.remove(evaluation.key)
        elif row.low:
            evaluation.status = Status.LOW
        elif row.state is State.COMPLETED and math.isfinite(row.target):
            evaluation.status, evaluation.value = Status.MEASURED, row.target
        else:
            evaluation.status = Status.LOST
        self.changed(evaluation)


S = TypeVar("S", bound=Search)


class Retrace(Generic[S]):
    """The search of a history.

    Args:
        space: the campaign's.
        start: makes a search that has seen nothing.
    """

    def __init__(self, space: Space, start: Callable[[], S]) -> None:
        self.space, self._start = space, start
        self._search: S | None = None  # a cache, with what it has seen; losing it changes nothing
        self._table: _Table | None = None
        self._said: list[tuple[Key, Origin]] = []  # what the search has answered since

    def ask(self, history: pd.DataFrame, n: int, name: str) -> Ask:
        """The answer of the optimizer `name`; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        search = self.at(history)
        proposals, settled = search.ask(n)
        decision = {"optimizer": name, **search.describe()}
        self._said = [(self._key(row.parameters), row.origin) for row in settled]
        self._said += [(self._key(proposal.parameters), Origin.EVALUATED) for proposal in proposals]
        if len(proposals) < n:  # it looked further than the journal will show
            self._search = None
            decision["exhausted"] = True
        return Ask(tuple(proposals), tuple(settled), decision)

    def _key(self, configuration: Configuration) -> Key:
        return key_of(self.space, self.space.encode(configuration))

    def at(self, history: pd.DataFrame) -> S:
        """The search after every event of `history`."""
        table = _Table(self.space, in_order(history))
        if self._search is not None and self._table is not None:
            news = table.since(self._table)
            if news is not None and self._follow(self._search, table.events(*news)):
                self._table = table
                return self._search
        self._search, self._table, self._said = self._start(), table, []
        everything = range(table.count)
        self._follow(self._search, table.events(everything, everything))
        return self._search

    def _follow(self, search: S, events: Iterable[tuple[bool, list[Row]]]) -> bool:
        """Tell a search the events; False where they do not go on from what it has answered last."""
        for is_ask, rows in events:
            if self._said:
                told = [(row.key, row.origin) for row in rows]
                if not is_ask or self._said[: len(told)] != told:
                    return False
                self._said = self._said[len(told) :]
            elif is_ask:
                search.asked(rows)
            else:
                for row in rows:
                    search.ended(row)
        return not self._said


def in_order(history: pd.DataFrame) -> pd.DataFrame:
    """A history in trial order, without the baseline."""
    if "trial" not in history.columns:
        return history.assign(trial=range(len(history)))
    numbers = history["trial"].to_numpy(dtype=np.int64)
    if len(numbers) == 0 or (numbers[0] >= 0 and (numbers[1:] > numbers[:-1]).all()):
        return history
    order = np.argsort(numbers, kind="stable")
    return history.iloc[order[numbers[order] >= 0]].reset_index(drop=True)


class _Table:
    """Copies of the columns that events are read from, for comparison with those of the next history.

    Every ask looks at every row, so columns are compared whole, and only what is new is read row by row.

    Args:
        space: the campaign's.
        history: `in_order`.
    """

    def __init__(self, space: Space, history: pd.DataFrame) -> None:
        self.space, self.count = space, len(history)
        names = [name for name in ("trial", "value", *TOLD, *space.names) if name in history.columns]
        self.columns = {name: _cells(history[name]) for name in names}
        self.trials = self.columns["trial"]
        self.over = np.full(self.count, True)
        if "state" in history.columns:
            self.over = ~history["state"].isin(IN_FLIGHT).to_numpy(dtype=bool)
        self.asked = self._numbers("asked_seq")
        ended = self._numbers("ended_seq")
        self.timed = bool(np.isfinite(self.asked).all())
        if not self.timed:
            self.asked = 2 * np.arange(self.count, dtype=np.float64)
            ended = self.asked + 1
        self.ended = np.where(self.over, np.where(np.isfinite(ended), ended, self.asked), -1.0)
        self.last = max(self.asked.max(), self.ended.max()) if self.count else -1.0

    def _numbers(self, name: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where there are none."""
        if name not in self.columns:
            return np.full(self.count, math.nan)
        cells = self.columns[name]
        if not isinstance(cells, np.ndarray):
            cells = cells.to_numpy(dtype=np.float64, na_value=math.nan)
        return np.asarray(cells, dtype=np.float64)

    def since(self, old: _Table) -> tuple[list[int], list[int]] | None:
        """Rows that were asked for and rows that ended since `old`; None where this history is not `old` continued."""
        if not self._continues(old):
            return None
        asked = list(range(old.count, self.count))
        ended = [*np.flatnonzero(self.over[: old.count] & ~old.over).tolist(), *asked]
        moments = [*self.asked[asked].tolist(), *self.ended[[i for i in ended if self.over[i]]].tolist()]
        return (asked, ended) if min(moments, default=math.inf) > old.last else None

    def _continues(self, old: _Table) -> bool:
        """Whether the first rows are those of `old`, and what had ended there is as it was."""
        count, over = old.count, old.over
        if count > self.count or self.timed != old.timed or self.columns.keys() != old.columns.keys():
            return False
        fixed = ("trial", "origin", *self.space.names)
        return (
            all(_equal(self.columns[name][:count], old.columns[name]) for name in fixed if name in self.columns)
            and np.array_equal(self.asked[:count], old.asked)
            and np.array_equal(self.ended[:count][over], old.ended[over])
            and np.array_equal(self._numbers("target")[:count][over], old._numbers("target")[over], equal_nan=True)
            and not (over & self._other_states(old)).any()
        )

    def _other_states(self, old: _Table) -> NDArray[np.bool_]:
        """Which rows of `old` have another state here."""
        import pandas as pd

        if "state" not in self.columns:
            return np.zeros(old.count, dtype=np.bool_)
        here, there = pd.Series(self.columns["state"][: old.count]), pd.Series(old.columns["state"])
        return (here != there).to_numpy(dtype=np.bool_, na_value=True)

    def events(self, asked: Sequence[int], ended: Sequence[int]) -> Iterator[tuple[bool, list[Row]]]:
        """The events of some rows, in order: whether it is an ask, and the rows of the space that it added or ended.

        Args:
            asked: positions of the rows whose asks are wanted.
            ended: positions of the rows whose ends are wanted, where they have ended.
        """
        import pandas as pd

        moments = [(float(self.asked[i]), 0, i) for i in asked]
        moments += [(float(self.ended[i]), 1, i) for i in ended if self.over[i]]
        moments.sort()
        indices = sorted({i for *_, i in moments})
        news = pd.DataFrame({name: cells[indices] for name, cells in self.columns.items()})
        rows = {row.trial: row for row in Rows.read(self.space, news)}
        for (_, kind), group in groupby(moments, key=lambda moment: moment[:2]):
            here = [rows[int(self.trials[i])] for *_, i in group if int(self.trials[i]) in rows]
            if here:
                yield kind == 0, here


def _cells(column: pd.Series) -> Any:
    """A copy of a column: an array of numpy for numbers and bools, one of pandas for anything else."""
    return np.array(column.to_numpy()) if column.dtype.kind in "biuf" else column.array.copy()


def _equal(a: Any, b: Any) -> bool:
    """Whether `_cells` hold the same; an integer may have become a float of the same value."""
    if not isinstance(a, np.ndarray):
        return bool(a.equals(b))
    alike = isinstance(b, np.ndarray) and (a.dtype == np.bool_) == (b.dtype == np.bool_)
    return alike and np.array_equal(a, b, equal_nan=True)
