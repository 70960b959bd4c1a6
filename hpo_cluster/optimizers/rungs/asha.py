"""ASHA: random search with rungs; many configurations begin, and the best of each rung go on.

Every proposal is an independent random point, drawn from the priors if the space has any. Who goes on is decided by the
campaign's rule (``fidelity.rule``), not here; ``fidelity.rule=asha`` is the paper's. No rung waits to be full, so that
any number of workers is busy at all times.

Reference: L. Li, K. Jamieson, A. Rostamizadeh, E. Gonina, J. Ben-tzur, M. Hardt, B. Recht and A. Talwalkar, "A System
for Massively Parallel Hyperparameter Tuning", MLSys 2020 (arXiv:1810.05934), algorithm 2.

Symbols: ``eta`` one in how many goes on, ``r`` the share of a rung.

Deviations from the paper: those of `hpo_cluster.optimizers.designs.random_search` and of the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_cluster.optimizers.designs.random_search import RandomSearch, RandomSettings
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd


class ASHASettings(RandomSettings):
    """ASHA has no settings of its own: rungs and rule are those of ``fidelity``."""


class ASHA(RandomSearch):
    """Proposes random points, all of which begin at the lowest rung."""

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        asked = super().ask(history, n)
        return Ask(asked.proposals, decision={**asked.decision, "optimizer": "asha"})
