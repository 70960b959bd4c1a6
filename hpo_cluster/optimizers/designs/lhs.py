"""Latin hypercube sampling: a design that covers every parameter evenly, whatever the number of parameters.

A design of m points cuts each axis into m intervals of equal width and puts exactly one point into each. Of the
history it uses only the configurations that are taken, so any number of trials can run at once. The study of LLM
fine-tuning used it as its baseline.

Reference: M. D. McKay, R. J. Beckman and W. J. Conover, "A Comparison of Three Methods for Selecting Values of Input
Variables in the Analysis of Output from a Computer Code", Technometrics 21(2), 239-245, 1979.

Symbols: ``m`` points of the design (`points`); ``d`` parameters; ``pi_q`` random permutation of the intervals of
axis q; ``u`` uniform jitter in an interval: ``x_iq = (pi_q(i) + u_iq) / m``.

Deviations from the paper: past m points a further, independent design of m points follows; points are decoded into the
space, so that integers and choices are rounded to bins; a configuration met before is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.designs.sequence import Design, lhs_block
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd

#: Size of the design if neither the settings nor a budget say one.
DEFAULT_POINTS = 16


class LHSSettings(OptimizerSettings):
    """Settings of Latin hypercube sampling."""

    points: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description=f"points of one design; empty: the campaign's budget ({DEFAULT_POINTS} if it has none)",
    )
    optimization: Literal["none", "random-cd"] = Field(
        default="none", description="random-cd swaps coordinates to lower the centred discrepancy of the design"
    )


class LatinHypercube:
    """Proposes the points of Latin hypercubes, one hypercube after another.

    Args:
        space: what to search.
        settings: size of the design.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: LHSSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.points = settings.points or DEFAULT_POINTS
        self._design = Design(space, lhs_block(self.points, space.dim, seed, settings.optimization), seed)
        self._data: Dataset | None = None  # a cache

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        return self._design.ask(data, n, {"optimizer": "lhs", "points": self.points})
