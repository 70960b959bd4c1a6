"""What the Gaussian process sees of a campaign with rungs: a row for each rung at which a trial was scored.

The process has one more column, the fidelity: 1 at the top, and less below, evenly in the logarithm of the share. Its
unit is such that before any trial has climbed, the lowest rung and the top are thought to correlate by about 0.8
(`SPAN`). The process learns from those that climb how much a value at a low rung says, and its predictions are those at
the top. So a configuration that was paused takes part with what it showed, and not as a bad one.

The values at a rung are first moved and stretched to the range of those at the top, since a training that goes on gets
better nearly everywhere: from each rung to the next by the mean and the standard deviation of the trials that were
scored at both (linear equating), or by the median of their differences if they are few.

Reference: A. Klein, S. Falkner, S. Bartels, P. Hennig and F. Hutter, "Fast Bayesian Optimization of Machine Learning
Hyperparameters on Large Datasets", AISTATS 2017 (arXiv:1605.07079), for one process over configuration and fidelity.

Deviations from the paper: the kernel of the fidelity is like that of the other columns, and the acquisition does not
choose the fidelity: proposals begin at the lowest rung, and the rule of `hpo_cluster.optimizers.rungs.rules` decides
who goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.bayesian.encoding import Features, likeliest_scale
from hpo_cluster.optimizers.bayesian.observations import Observations, Outcome
from hpo_cluster.optimizers.bayesian.surrogate import FittedModels, Surrogate
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.space import Space
from hpo_cluster.trial import State

#: Distance of the lowest rung from the top, in units of the likeliest length-scale before anything is known.
SPAN = 0.55

#: Trials scored at two rungs from which values are stretched and not only moved, and by how much at most.
STRETCHED, MOST_STRETCH = 6, 5.0


class RungFeatures(Features):
    """The columns of a configuration, and the fidelity.

    Points may have one coordinate more than the space (``d + 1``): the fidelity. Without it, they are at the top.

    Args:
        space: of the points.
        shares: of the rungs below the top.
    """

    def __init__(self, space: Space, shares: Sequence[float]) -> None:
        super().__init__(space)
        self.columns = len(self.names)  # those of the configuration
        self.names.append("fidelity")
        span = SPAN * likeliest_scale(len(self.names))
        self.places = tuple(1 - span * math.log(share) / math.log(shares[0]) for share in (*shares, 1.0))

    def encode(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the columns (``n x c``) of canonical points (``n x d``, or ``n x (d + 1)`` with the fidelity)."""
        dim = self.space.dim
        out = super().encode(points[:, :dim])
        out[:, self.columns] = points[:, dim] if points.shape[1] > dim else 1.0
        return out

    def bounds(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        """Return least and greatest columns (``c`` each) of a box between two points (``d`` each), at the top."""
        least, greatest = super().bounds(low, high)
        least[self.columns] = 1.0
        return least, greatest

    def whole(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the columns of the same configurations at the top, each once."""
        inputs = inputs.copy()
        inputs[:, self.columns] = 1.0
        return np.unique(inputs, axis=0)


def rung_observations(data: Dataset, places: Sequence[float], *, infeasible: bool = False) -> Observations:
    """Return the observations of a history with rungs: a row for each rung at which a trial was scored.

    Their points have the fidelity as their last coordinate, and their targets are in the range of those at the top.
    Trials that diverged count as the worst value at the top.

    Args:
        data: the history.
        places: of the rungs, as the fidelity is written.
        infeasible: whether infeasible trials count as the worst value too; they are left out otherwise.
    """
    rows = [row for row in data if row.state not in (State.FAILED, State.CANCELLED)]
    rows = [row for row in rows if infeasible or row.state is not State.INFEASIBLE]
    seen = np.array([_seen(row, len(data.shares)) for row in rows], dtype=np.float64)
    seen = equated(seen.reshape(len(rows), len(data.shares) + 1))
    measured = np.isfinite(seen)
    worst = seen[measured].min() if measured.any() else math.nan
    found = list[tuple[int, NDArray[np.float64], float, bool, float]]()
    for row, values, there in zip(rows, seen, measured, strict=True):
        last = int(np.flatnonzero(there)[-1]) if there.any() else -1
        for rung in np.flatnonzero(there).tolist():
            ended = row.ended if rung == last and row.state.ended else row.asked
            found.append((row.trial, np.append(row.point, places[rung]), values[rung], True, ended))
        if row.low and not math.isnan(worst):
            found.append((row.trial, np.append(row.point, 1.0), worst, False, row.ended))
    trials, points, targets, known, ends = zip(*found, strict=True) if found else ((), (), (), (), ())
    return Observations(
        trials=np.array(trials, dtype=np.int64),
        points=np.array(points, dtype=np.float64).reshape(-1, data.space.dim + 1),
        targets=np.array(targets, dtype=np.float64),
        measured=np.array(known, dtype=np.bool_),
        ended=np.array(ends, dtype=np.float64),
    )


def equated(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values at the rungs (``n x rungs``, NaN where a trial was not scored) in the range of the top.

    From each rung to the next, beginning with the one below the top, so that a value at the lowest rung is moved by all
    steps above it.
    """
    out = seen.copy()
    for rung in reversed(range(seen.shape[1] - 1)):
        both = np.isfinite(seen[:, rung]) & np.isfinite(out[:, rung + 1])
        here, above = seen[both, rung], out[both, rung + 1]
        if len(here) == 0:
            continue
        if len(here) < STRETCHED or not (np.ptp(here) > 0 and np.ptp(above) > 0):
            out[:, rung] = seen[:, rung] + float(np.median(above - here))
            continue
        stretch = float(np.clip(above.std() / here.std(), 1 / MOST_STRETCH, MOST_STRETCH))
        out[:, rung] = above.mean() + stretch * (seen[:, rung] - here.mean())
    return out


def _seen(row: Row, below: int) -> list[float]:
    """Return the targets of a row at the rungs, the top included; NaN where it was not scored."""
    looks = row.looks or (math.nan,) * below
    return [*looks, row.target if row.whole else math.nan]


class FittedHistory:
    """Fits the process of a history, with the fidelity if there are rungs; what it keeps is a cache.

    Args:
        features: the columns without rungs.
        outcome: what the process sees of a value.
    """

    def __init__(self, features: Features, outcome: Outcome) -> None:
        self._plain = FittedModels(features, outcome)
        self._rungs: FittedModels | None = None

    def observations(self, data: Dataset, *, infeasible: bool) -> Observations:
        """Return what the process of a history sees; see `Observations.of`."""
        if not data.shares:
            return Observations.of(data, infeasible=infeasible)
        return rung_observations(data, RungFeatures(data.space, data.shares).places, infeasible=infeasible)

    def model_of(self, data: Dataset, observations: Observations) -> Surrogate:
        """Return the model of the observations; see `FittedModels.model_of`."""
        return (self._with_rungs(data) if data.shares else self._plain).model_of(observations)

    def _with_rungs(self, data: Dataset) -> FittedModels:
        """Return the models for the rungs of a history."""
        features = RungFeatures(data.space, data.shares)
        kept = self._rungs
        if kept is None or not isinstance(kept.features, RungFeatures) or kept.features.places != features.places:
            self._rungs = kept = FittedModels(features, self._plain.outcome)
        return kept
