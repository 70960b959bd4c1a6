"""Fidelity: how much of an evaluation is done before it is decided whether it goes on, and the rungs in between.

Also how well the values at a rung agree with those above it: whether an early look can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.float64]

Kind: TypeAlias = Literal["off", "steps", "data", "items", "share"]

#: Kinds of which each rung is a run of its own; of the others, a rung is a point of one run.
SEPARATE_RUNS: tuple[Kind, ...] = ("data",)


def as_share(value: Any) -> Any:
    """Return a share written as ``1/9`` as a number; anything else unchanged."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            return value
    return value


def share_label(share: float) -> str:
    """Return a share as people write it: ``1/9``, ``1``, ``0.123``."""
    fraction = Fraction(share).limit_denominator(1000)
    return str(fraction) if math.isclose(float(fraction), share, rel_tol=1e-9) else f"{share:g}"


@dataclass(frozen=True)
class Ladder:
    """The rungs of an evaluation.

    Args:
        kind: what a share is a share of.
        shares: of a whole evaluation, in increasing order; the last one is 1.
    """

    kind: Kind
    shares: tuple[float, ...]

    @property
    def top(self) -> int:
        """Number of the last rung, at which the evaluation is whole."""
        return len(self.shares) - 1

    @property
    def labels(self) -> tuple[str, ...]:
        """The shares as people write them."""
        return tuple(map(share_label, self.shares))

    def cost(self, rung: int) -> float:
        """Return what climbing to a rung costs, from the beginning, in whole evaluations; 0 for rung -1."""
        if rung < 0:
            return 0.0
        return sum(self.shares[: rung + 1]) if self.kind in SEPARATE_RUNS else self.shares[rung]

    def to_json(self) -> dict[str, Any]:
        """Return the ladder as plain data, for a campaign's identity."""
        return {"kind": self.kind, "rungs": list(self.shares)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> Ladder | None:
        """Return the ladder that `to_json` described; None for a campaign without rungs."""
        return None if not data else cls(data["kind"], tuple(map(float, data["rungs"])))


def geometric(low: float, eta: float) -> tuple[float, ...]:
    """Return shares from `low` to 1, each `eta` times the one below; the last step may be smaller or larger.

    A rung nearer to the top than the square root of `eta`, such as 8/9, is left out: it would be scored for nothing.
    """
    shares, share = [low], low * eta
    while share * math.sqrt(eta) < 1:
        shares.append(share)
        share *= eta
    return (*shares, 1.0)


#: Correlation from which two rungs count as agreeing, and the trials that are taken to have shown it before any did.
ENOUGH, PRIOR_TRIALS = 0.7, 3

#: Fewest trials whose values are correlated, and the largest correlation that they can show.
FEWEST, CERTAIN = 4, 0.99


def agreement(targets: Array, rung: int) -> float | None:
    """Return how well a rung agrees with those above it; None if too few trials have climbed.

    That is the smallest correlation with one of them: of normal scores over the trials that have got to both rungs, put
    right for their having been chosen by the value at the lower one (Thorndike's formula), with a few trials that agree
    counted in (`hpo_cluster.optimizers.rungs.rules` says why).

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
    import numpy as np

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
    import numpy as np

    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / len(values)
    return np.array([NormalDist().inv_cdf(share) for share in shares.tolist()])[places]
