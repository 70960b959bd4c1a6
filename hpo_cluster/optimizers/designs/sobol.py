"""Scrambled Sobol points: a low-discrepancy sequence that fills the cube evenly at every length.

Unlike a Latin hypercube it needs no size in advance; it is best balanced at powers of two. Of the history
it uses only the configurations that are taken, so any number of trials can run at once.

References: I. M. Sobol', "On the distribution of points in a cube and the approximate evaluation of integrals", USSR
Computational Mathematics and Mathematical Physics 7(4), 86-112, 1967. A. B. Owen, "Scrambling Sobol' and
Niederreiter-Xing Points", Journal of Complexity 14(4), 466-489, 1998. Direction numbers: S. Joe and F. Y. Kuo, SIAM
Journal on Scientific Computing 30(5), 2635-2654, 2008, as `scipy.stats.qmc.Sobol` has them.

Symbols: ``d`` parameters; ``x_i`` point i of the sequence, i = 0, 1, 2...

Deviations from the papers: the scrambling is SciPy's (a random linear matrix scramble with a random digital shift),
not Owen's nested one; points are decoded into the space, so that integers and choices are rounded to bins; a
configuration met before is passed over. The first point is not skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.designs.sequence import Design, sobol_block
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd


class SobolSettings(OptimizerSettings):
    """The Sobol sequence has no settings."""


class Sobol:
    """Proposes the points of one scrambled Sobol sequence.

    Args:
        space: what to search.
        settings: none so far.
        seed: of the campaign; it scrambles the sequence.
    """

    def __init__(self, space: Space, settings: SobolSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self._design = Design(space, sobol_block(space.dim, seed), seed)
        self._data: Dataset | None = None  # a cache

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        return self._design.ask(data, n, {"optimizer": "sobol"})
