"""How well the values at a rung agree with those above it.

The correlation of normal scores over the trials that have got to both rungs, put right for their having been chosen by
the value at the lower one (Thorndike's formula), with a few trials that agree counted in
(``hpo_cluster/optimizers/rungs/rules.py`` says why).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

#: Correlation from which two rungs count as agreeing, and the trials that are taken to have shown it before any did.
ENOUGH, PRIOR_TRIALS = 0.7, 5

#: Fewest trials whose values are correlated, and the largest correlation that they can show.
FEWEST, CERTAIN = 4, 0.99


def agreement(targets: Array, rung: int) -> float | None:
    """Return the smallest correlation of a rung with one above it; None if too few trials have climbed.

    Args:
        targets: values of the trials that have reached the rung (``n x rungs``); minus infinity where there is none.
        rung: number of the rung.
    """
    here, found = _scores(targets[:, rung]), []
    for above in range(rung + 1, targets.shape[1]):
        climbed = targets[:, above] > -math.inf
        if climbed.sum() >= FEWEST:
            found.append(_shrunk(here[climbed], _scores(targets[climbed, above]), float(here.std())))
    return min(found, default=None)


def _shrunk(here: Array, above: Array, spread: float) -> float:
    """Return the correlation of scores at two rungs, over all trials and with the `PRIOR_TRIALS` counted in.

    Args:
        here: scores at the rung, of the trials that climbed.
        above: their scores above.
        spread: standard deviation of the scores at the rung over all trials.
    """
    if not (np.ptp(here) > 0 and np.ptp(above) > 0):
        return ENOUGH
    seen = float(np.corrcoef(here, above)[0, 1])
    wider = max(spread / float(here.std()), 1.0)
    seen *= wider / math.sqrt(1 + seen * seen * (wider * wider - 1))
    known = len(here) - 3  # the weight of a correlation's Fisher transform
    total = PRIOR_TRIALS * math.atanh(ENOUGH) + known * math.atanh(min(max(seen, -CERTAIN), CERTAIN))
    return math.tanh(total / (PRIOR_TRIALS + known))


def _scores(values: Array) -> Array:
    """Return the normal scores of values: quantiles of the normal distribution by their ranks, the same for equals."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / len(values)
    return np.array([NormalDist().inv_cdf(share) for share in shares.tolist()])[places]
