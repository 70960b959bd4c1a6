"""A check that every proposal of a campaign follows from the journal's events before it.

An ask is a function of the history, the seed and the optimizer's settings. So each ``asked`` event can be derived again
from the events before it, on the same machine with the same versions of the libraries, no matter how many drivers,
workers and interruptions the campaign had.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpo_cluster.goals import Goals
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import to_frame
from hpo_cluster.record.journal import Event
from hpo_cluster.space import Configuration
from hpo_cluster.trial import Origin


def replay(
    events: Sequence[Event], optimizer: Optimizer, *, maximize: bool, goals: Goals | None = None
) -> list[tuple[int, Configuration, Configuration]]:
    """Return the proposals that differ from what the optimizer proposes now, as (trial, journaled, derived).

    Args:
        events: all events of the journal.
        optimizer: optimizer with the campaign's space, settings and seed.
        maximize: whether the campaign maximises.
        goals: its objectives, if there are several.
    """
    record = Record()
    rows = []
    for event in events:
        journaled = [row for row in event.get("trials", ()) if row["origin"] == Origin.EVALUATED]
        if event["event"] == "asked" and journaled:
            history = to_frame(record, optimizer.space.names, maximize=maximize, goals=goals)
            derived = optimizer.ask(history, len(journaled)).proposals
            for row, proposal in zip(journaled, derived, strict=False):
                if row["parameters"] != proposal.parameters:
                    rows.append((row["trial"], row["parameters"], proposal.parameters))
            rows += [(row["trial"], row["parameters"], {}) for row in journaled[len(derived) :]]
        record.apply(event)
    return rows
