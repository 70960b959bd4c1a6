"""Propose the configurations of ``space.start`` first, whichever the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Configuration
from hpo_cluster.space.sampling import key_of
from hpo_cluster.trial import Ask, Origin, Proposal, State

if TYPE_CHECKING:
    import pandas as pd


class Started:
    """Proposes the space's starting points, then what another optimizer proposes.

    A starting point that the history holds already, other than as a cancelled trial, is not proposed again. The other
    optimizer sees starting points as trials like any other.

    Args:
        optimizer: the one that goes on after the starting points.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.space, self.optimizer = optimizer.space, optimizer
        self._data: Dataset | None = None  # a cache

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        taken, left = data.taken(), list[Configuration]()
        for configuration in self.space.start:
            key = key_of(self.space, self.space.encode(configuration))
            if key not in taken:
                taken.add(key)
                left.append(configuration)
        if not left:
            return self.optimizer.ask(history, n)
        left = left[:n]
        proposals = tuple(Proposal(configuration, {"phase": "start"}) for configuration in left)
        if len(left) == n:
            return Ask(proposals, decision={"start": n})
        rest = self.optimizer.ask(_with_proposed(history, left, data.next_trial), n - len(left))
        if rest.settled:  # settled rows come before any proposal, so they wait for the next ask, which gives the same
            return Ask(proposals, decision={"start": len(left)})
        return Ask((*proposals, *rest.proposals), decision={**rest.decision, "start": len(left)})


def _with_proposed(history: pd.DataFrame, configurations: Sequence[Configuration], first: int) -> pd.DataFrame:
    """Return the history with these configurations as further trials, numbered from `first`."""
    import pandas as pd

    if len(history) and "trial" not in history.columns:
        history = history.assign(trial=range(len(history)))
    columns = [column for column in ("asked_seq", "ended_seq") if column in history.columns]
    seq = history[columns].max().max() if len(history) and columns else -1
    rows: list[dict[str, Any]] = [
        {"trial": number, "state": State.PROPOSED, "origin": Origin.EVALUATED, "asked_seq": seq + 1, **configuration}
        for number, configuration in enumerate(configurations, first)
    ]
    added = pd.DataFrame(rows, dtype=object)
    if len(history):
        return pd.concat([history.astype(object), added], ignore_index=True)
    return added.reindex(columns=list(dict.fromkeys([*history.columns, *added.columns])))  # they say what is optimised
