"""Optimizers whose state depends on the order of events and changes when they answer, as that of a tree does.

Such an optimizer is written as a `Search`: a program that decides what to evaluate next, and takes in the results. Its
state is not in the journal: it is found again by replaying the history (`hpo_cluster.optimizers.replay`) and taking the
same decisions. At each ask of the history the search says what it would evaluate; if that is what the history has, it
goes on from there. A row that it would not have asked for (imported, or asked for by another optimizer) is adopted:
whenever the search comes to that configuration it finds the value, and nothing is evaluated twice.

An ask of several trials is one event, since a search may settle cells between them. Answering changes the search, so it
goes on after its last answer only if the next event of the history is that answer; otherwise it starts again. So the
proposals never depend on earlier asks.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.dataset import Dataset, Moment, Row
from hpo_cluster.optimizers.replay import Replay
from hpo_cluster.space import Configuration, Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import Ask, Origin, Proposal, Settled, State

if TYPE_CHECKING:
    import pandas as pd


class Status(StrEnum):
    """What is known of a configuration."""

    IDLE = "idle"  # nothing, and nobody waits for it
    QUEUED = "queued"  # to be proposed
    PENDING = "pending"  # in flight
    MEASURED = "measured"  # it has a value
    LOW = "low"  # diverged or infeasible: counts as the lowest value measured
    LOST = "lost"  # failed whatever its configuration: nothing is known, and it is not tried again
    APPROXIMATED = "approximated"  # it has a bound instead of a value


@dataclass(eq=False, slots=True)
class Evaluation:
    """What is known of one configuration; cells with the same configuration share it.

    Args:
        key: its identity.
        configuration: plain values.
        point: its canonical point (``d``).
        info: how it was first found (JSON).
        status: what is known.
        value: maximised; None if nothing was measured or approximated.
        nodes: cells and local searches that wait for it, or have its value.
    """

    key: Key
    configuration: Configuration
    point: NDArray[np.float64]
    info: dict[str, Any]
    status: Status = Status.IDLE
    value: float | None = None
    nodes: list[Any] = field(default_factory=list)


class Search:
    """Base of the searches: a queue of configurations to evaluate, which a subclass fills in `grow`.

    Args:
        space: what to search.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.evaluations: dict[Key, Evaluation] = {}
        self.taken: set[Key] = set()  # keys of the evaluations that are not idle
        self.queue: deque[Evaluation] = deque()
        self.best: float | None = None  # highest and lowest value measured so far
        self.lowest: float | None = None
        self.issued = 0  # proposals so far

    # ------------------------------------------------------------------------------------- what a subclass implements

    def grow(self) -> bool:
        """Advance one step with an empty queue; return False if there is nothing to evaluate, for now or ever."""
        raise NotImplementedError

    def changed(self, evaluation: Evaluation) -> None:
        """Update the search after the status or value of a configuration has changed."""

    def describe(self) -> dict[str, Any]:
        """Return where the search stands (JSON)."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------- what a subclass uses

    def want(self, u: NDArray[np.float64], info: dict[str, Any]) -> Evaluation:
        """Return the evaluation at a point of the unit cube (``d``), and queue it if nothing is known of it."""
        configuration = self.space.decode(u)
        point = self.space.encode(configuration)
        evaluation = self._evaluation(key_of(self.space, point), configuration, point, info)
        self.taken.add(evaluation.key)
        if evaluation.status is Status.IDLE and not self.space.allows(configuration):
            evaluation.status = Status.LOW  # as infeasible, without an evaluation
        elif evaluation.status is Status.IDLE:
            evaluation.status = Status.QUEUED
            self.queue.append(evaluation)
        return evaluation

    def value_of(self, evaluation: Evaluation) -> float | None:
        """Return the value of an evaluation, the lowest one measured if it is low; None if nothing is known."""
        return self.lowest if evaluation.status is Status.LOW else evaluation.value

    def _evaluation(
        self, key: Key, configuration: Configuration, point: NDArray[np.float64], info: dict[str, Any]
    ) -> Evaluation:
        if key not in self.evaluations:
            self.evaluations[key] = Evaluation(key, configuration, point, info)
        return self.evaluations[key]

    # ------------------------------------------------------------------------------------------------- its proposals

    def head(self) -> Evaluation | None:
        """Return what is proposed next; None if there is nothing."""
        while True:
            while self.queue and self.queue[0].status is not Status.QUEUED:
                self.queue.popleft()  # adopted meanwhile
            if self.queue:
                return self.queue[0]
            if not self.grow():
                return None

    def issue(self, evaluation: Evaluation) -> None:
        """Record that an evaluation is in flight."""
        had = evaluation.value is not None
        evaluation.status, evaluation.value = Status.PENDING, None
        self.issued += 1
        if had:
            self.changed(evaluation)

    def ask(self, n: int) -> tuple[list[Proposal], list[Settled]]:
        """Return at most `n` proposals, in flight from now on, and the settled rows, which need no evaluation."""
        proposals: list[Proposal] = []
        while len(proposals) < n:
            evaluation = self.head()
            if evaluation is None:
                break
            self.issue(evaluation)
            proposals.append(Proposal(evaluation.configuration, evaluation.info))
        return proposals, []

    # ----------------------------------------------------------------------------------------- the events of a history

    def apply(self, moment: Moment) -> None:
        """Take one more moment into account."""
        if moment.asked:
            self.asked(moment.asked)
        for row in moment.ended:
            self.ended(row)

    def asked(self, rows: Sequence[Row]) -> None:
        """Apply the rows that one ask has added to the history."""
        for row in rows:
            evaluation = self.head() if row.origin is Origin.EVALUATED else None
            if evaluation is not None and evaluation.key == row.key:
                self.issue(evaluation)
            else:
                self.adopt(row)

    def adopt(self, row: Row) -> None:
        """Record a row that the search did not ask for: it is in flight, or has a bound."""
        evaluation = self._evaluation(row.key, row.configuration, row.point, {})
        self.taken.add(evaluation.key)
        if evaluation.status in (Status.IDLE, Status.QUEUED, Status.APPROXIMATED):
            approximated = row.origin is Origin.APPROXIMATED
            evaluation.status = Status.APPROXIMATED if approximated else Status.PENDING
            evaluation.value = row.target if approximated and math.isfinite(row.target) else None
            self.changed(evaluation)

    def ended(self, row: Row) -> None:
        """Record that a trial has ended."""
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
        elif row.state in (State.COMPLETED, State.PAUSED) and math.isfinite(row.target):
            evaluation.status, evaluation.value = Status.MEASURED, row.target
        else:
            evaluation.status = Status.LOST
        self.changed(evaluation)


S = TypeVar("S", bound=Search)


class SearchReplay(Replay[S]):
    """Replays a history into a search that answers."""

    answer: tuple[tuple[Key, Origin], ...] = ()  # what the search has answered and the history has not shown yet

    def ask(self, data: Dataset, n: int) -> tuple[S, list[Proposal], list[Settled]]:
        """Return the search after `data`, at most `n` proposals, and the settled rows, which need no evaluation."""
        search = self.of(data)
        self._kept = None
        proposals, settled = search.ask(n)
        if len(proposals) == n:  # otherwise the search has looked further than the journal will show
            rows = [(row.parameters, row.origin) for row in settled]
            rows += [(proposal.parameters, Origin.EVALUATED) for proposal in proposals]
            self.answer = tuple((key_of(data.space, data.space.encode(c)), origin) for c, origin in rows)
            self._kept = search, data
        return search, proposals, settled

    def _news(self, data: Dataset, earlier: Dataset) -> list[Moment] | None:
        """Return the moments after the answer; None if the history does not hold that answer."""
        answer, self.answer = self.answer, ()
        news = data.since(earlier)
        if news is None:
            return None
        for i, moment in enumerate(news):
            if not answer:
                break
            rows = tuple((row.key, row.origin) for row in moment.asked)
            if not rows or answer[: len(rows)] != rows:
                return None
            answer = answer[len(rows) :]
            news[i] = moment._replace(asked=())
        return None if answer else news


class SearchOptimizer(Generic[S]):
    """Base of the optimizers that are a `Search`.

    Args:
        space: what to search.
        settings: of the optimizer.
        seed: of the campaign.
    """

    name: ClassVar[str]

    def __init__(self, space: Space, settings: Any, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self._replay = SearchReplay(self.search)  # a cache, as the next one
        self._data: Dataset | None = None

    def search(self) -> S:
        """Return the search before the first event."""
        raise NotImplementedError

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        search, proposals, settled = self._replay.ask(data, n)
        settled = [dataclasses.replace(row, value=data.sign * (row.value or 0.0)) for row in settled]
        decision = {"optimizer": self.name, **search.describe()}
        if len(proposals) < n:
            decision["exhausted"] = True
        return Ask(tuple(proposals), tuple(settled), decision)

    def tree(self, history: pd.DataFrame) -> S:
        """Return the search as `history` leaves it, for drawing and analysis."""
        self._data = Dataset.read(self.space, history, self._data)
        return self._replay.of(self._data)
