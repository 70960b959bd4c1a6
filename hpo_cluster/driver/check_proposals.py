"""A check that every proposal of a campaign follows from the journal's events before it.

An ask is a function of the history, the seed and the optimizer's settings. So each ``asked`` event can be derived again
from the events before it, on the same machine with the same versions of the libraries, no matter how many drivers,
workers and interruptions the campaign had. With other versions the models may be others.

If rungs were read while the optimizer worked, ``known`` is the number of the last event that it had seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hpo_cluster.goals import Goals
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import HistoryTable
from hpo_cluster.record.journal import Event
from hpo_cluster.trial import Origin

#: Origins of the rows that an optimizer settles itself, without a job.
SETTLED = (Origin.INHERITED, Origin.APPROXIMATED, Origin.IMPUTED)

#: Largest difference of two numbers that counts as rounding, as a share of them.
ROUNDING = 1e-9


class Difference(NamedTuple):
    """A trial, what the journal says of it, and what is derived now; empty if nothing is."""

    trial: int
    recorded: Mapping[str, Any]
    derived: Mapping[str, Any]

    @property
    def is_rounding(self) -> bool:
        """Whether the two differ in the last digits of numbers alone."""
        same_names = self.recorded.keys() == self.derived.keys()
        return same_names and all(_almost(value, self.derived[name]) for name, value in self.recorded.items())


class Derived(NamedTuple):
    """An ``asked`` event: its number in the journal, the trials that were derived again, and which of them differ."""

    seq: int
    trials: tuple[int, ...]
    differences: tuple[Difference, ...]


def derive(
    events: Sequence[Event], optimizer: Optimizer, *, maximize: bool, goals: Goals | None = None
) -> Iterator[Derived]:
    """Yield each answer of the optimizer in the journal, compared with what it answers now.

    Args:
        events: all events of the journal.
        optimizer: optimizer with the campaign's space, settings and seed.
        maximize: whether the campaign maximises.
        goals: its objectives, if there are several.
    """
    record = Record()
    table = HistoryTable(record, optimizer.space.names, maximize=maximize, goals=goals)
    answers = deque(event for event in events if event["event"] == "asked")
    for event in events:
        while answers and answers[0].get("known", answers[0]["seq"] - 1) < event["seq"]:
            answer = answers.popleft()
            proposed = [row for row in answer["trials"] if row["origin"] == Origin.EVALUATED]
            settled = [row for row in answer["trials"] if row["origin"] in SETTLED]
            # an optimizer that had no other configuration was asked for more than it proposed
            wanted = len(proposed) + bool((answer.get("decision") or {}).get("exhausted"))
            if wanted and (proposed or settled):
                yield _compared(answer["seq"], proposed, settled, optimizer, table, wanted)
        record.apply(event)


def _compared(
    seq: int,
    proposed: Sequence[Mapping[str, Any]],
    settled: Sequence[Mapping[str, Any]],
    optimizer: Optimizer,
    table: HistoryTable,
    wanted: int,
) -> Derived:
    answer = optimizer.ask(table.frame(), wanted)
    now = [dict(proposal.parameters) for proposal in answer.proposals]
    now += [{}] * (len(proposed) - len(now))
    pairs = [Difference(row["trial"], row["parameters"], derived) for row, derived in zip(proposed, now, strict=False)]
    for row, made in zip(settled, answer.settled, strict=False):
        recorded = {**row["parameters"], "origin": row["origin"], "value": row.get("value")}
        derived = {**made.parameters, "origin": str(made.origin), "value": made.value}
        pairs.append(Difference(row["trial"], recorded, derived))
    different = tuple(pair for pair in pairs if pair.recorded != pair.derived)
    return Derived(seq, tuple(pair.trial for pair in pairs), different)


def replay(
    events: Sequence[Event], optimizer: Optimizer, *, maximize: bool, goals: Goals | None = None
) -> list[Difference]:
    """Return the trials that differ from what the optimizer proposes now; the arguments are those of `derive`."""
    answers = derive(events, optimizer, maximize=maximize, goals=goals)
    return [difference for answer in answers for difference in answer.differences]


def _almost(recorded: Any, derived: Any) -> bool:
    if isinstance(recorded, float) and isinstance(derived, float):
        return math.isclose(recorded, derived, rel_tol=ROUNDING)
    return bool(recorded == derived)
