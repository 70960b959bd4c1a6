"""A check that every proposal of a campaign follows from the journal's events before it.

An ask is a function of the history, the seed and the optimizer's settings. So each ``asked`` event can be derived again
from the events before it, on the same machine with the same versions of the libraries, no matter how many drivers,
workers and interruptions the campaign had. With other versions the models may be others: `other_versions` says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpo_cluster.goals import Goals
from hpo_cluster.objectives.worker import package_versions
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


def other_versions(events: Sequence[Event]) -> dict[str, list[str]]:
    """Return the packages of which a driver of the campaign had another version than there is now, with its versions.

    A package that was not there, or was not recorded then, has the version ``none``. Proposals that differ may be due
    to them: a campaign that goes on with another version goes on with the models of that version.

    Args:
        events: all events of the journal.
    """
    now = package_versions()
    had = [event["versions"] for event in events if event["event"] == "started"]
    others = {
        name: sorted({str(versions.get(name, "none")) for versions in had} - {now.get(name, "none")})
        for name in sorted(set(now).union(*had))
    }
    return {name: versions for name, versions in others.items() if versions}
