"""The protocol of every optimizer, and the base of their settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from hpo_cluster.settings import Settings
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd


class OptimizerSettings(Settings):
    """Base of the typed settings of an optimizer: unknown keys are faults, values cannot be changed."""

    @property
    def several_faults(self) -> list[str]:
        """Why these settings allow one objective only, if the optimizer can have several; empty if they do not."""
        return []

    @property
    def constraint_faults(self) -> list[str]:
        """Why these settings allow no constraints on what is measured, if the optimizer can have them; empty if not."""
        return []


@runtime_checkable
class Optimizer(Protocol):
    """Decides what to evaluate next.

    Made with (space, settings, seed). `ask` is a pure function of the history and of these three: no clock, file,
    environment or global takes part, and nothing is kept between calls except caches whose loss changes nothing.
    """

    space: Space

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals.

        No proposal means "wait" while trials are in flight and "exhausted" when none are. Asking for n at once and
        asking n times for one, each with the earlier ones pending, give the same proposals.

        Args:
            history: rows in trial order with at least the columns of `hpo_cluster.record.history.HISTORY_COLUMNS` and
                one for each parameter; `target` is maximised.
            n: number of proposals wanted, at least 1.
        """
        ...
