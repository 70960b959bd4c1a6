"""What a model is trained on: which trials tell something, what it sees of their values, and which of many it takes.

Trials that diverged count as the worst value observed so far, recomputed each time, and so do infeasible ones unless
they are left out; trials that failed or were cancelled for reasons that have nothing to do with their configuration are
not told.

The *outcome* decides what a model sees of a value ``y``, with ``m`` the median and ``b`` the best of the values, so
that a cliff or a deep valley is not what a stationary process spends its length-scales on:

    raw     ``y``
    soft    ``m - s log(1 + (m - y) / s)`` below ``m``, where ``s`` is ``b - m``, at least `SOFT_FLOOR` of the spread,
            and ``y`` from ``m`` on. Strictly monotone, slope 1 at ``m``: what is low stays low, but comes nearer
    clip    ``max(y, m)``: all that is low becomes flat ground, at the height of the median
    winsor  ``max(y, q - 2 (b - q))`` with ``q`` the median of the upper half

Where ``clip`` or ``winsor`` would leave nothing of different values, ``raw`` is used. On a plateau beside a cliff both
lift the cliff's foot to nearly the height of the plateau; soft keeps it apart, and is the default.
``docs/design/decisions.md`` has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.dataset import Row, Rows
from hpo_cluster.space import Space
from hpo_cluster.trial import State

Outcome: TypeAlias = Literal["soft", "clip", "winsor", "raw"]

#: Scales that are taken in turn where proposals are to rest on different views of the values, the best one first.
VARIED: tuple[Outcome, ...] = ("soft", "winsor", "clip")

#: Least scale of the outcome `soft`, as a share of the spread of the targets: more than half of them may be the best.
SOFT_FLOOR = 1e-3

#: Greatest depth that `unscaled` climbs down, so that the target stays a number.
DEEPEST = 50.0

#: Observations up to which hyperparameters are fitted with each new one.
FITTED_EACH = 60


def scaled(targets: NDArray[np.float64], outcome: Outcome) -> NDArray[np.float64]:
    """What the process sees of maximised targets (``n``), in their units: never of another order, see the module.

    Where nothing is left of different targets, they are returned as they are.
    """
    if outcome == "raw" or len(targets) == 0 or not np.ptp(targets) > 0:
        return targets
    best, median = targets.max(), np.median(targets)
    if outcome == "soft":
        scale = _soft_scale(targets)
        depth = np.maximum(median - targets, 0.0) / scale
        return np.where(targets < median, median - scale * np.log1p(depth), targets)
    if outcome == "winsor":
        upper = np.median(np.sort(targets)[len(targets) // 2 :])
        raised = np.maximum(targets, upper - 2 * (best - upper))
    else:
        raised = np.maximum(targets, median)
    return raised if np.ptp(raised) > 0 else targets


def unscaled(outcome_value: float, targets: NDArray[np.float64], outcome: Outcome) -> float:
    """The target that an outcome stands for: the inverse of `scaled` for ``soft``, the same for the other scales.

    Args:
        outcome_value: in the scale of the outcomes, anywhere.
        targets: the ones observed (``n``).
        outcome: the scale.
    """
    if outcome != "soft" or len(targets) == 0 or not np.ptp(targets) > 0:
        return outcome_value
    median, scale = np.median(targets), _soft_scale(targets)
    depth = min(max(median - outcome_value, 0.0) / scale, DEEPEST)
    return float(median - scale * np.expm1(depth)) if depth > 0 else outcome_value


def _soft_scale(targets: NDArray[np.float64]) -> float:
    """s of the outcome ``soft``."""
    return float(max(targets.max() - np.median(targets), SOFT_FLOOR * np.ptp(targets)))


@dataclass(frozen=True)
class Observations:
    """What the surrogate is trained on.

    Args:
        trials: numbers (``n``).
        points: canonical points (``n x d``, unit cube).
        targets: maximised (``n``), with the values given to trials that have none.
        measured: whether the target was measured (``n``).
        ended: when each ended (``n``): any numbers that grow, NaN where it is not known.
    """

    trials: NDArray[np.int64]
    points: NDArray[np.float64]
    targets: NDArray[np.float64]
    measured: NDArray[np.bool_]
    ended: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Rows, *, infeasible: bool = True) -> Observations:
        """The rows that tell something, in trial order. Without one measured value there are none.

        Args:
            rows: the history.
            infeasible: whether infeasible trials count as the worst value; they are left out otherwise.
        """
        told = [row for row in rows if row.observed or (row.low and (infeasible or row.state is State.DIVERGED))]
        return cls.of_rows(rows.space, told)

    @classmethod
    def of_rows(cls, space: Space, rows: Iterable[Row]) -> Observations:
        """Those of some rows, in their order."""
        rows = list(rows)
        worst = min((row.target for row in rows if row.observed), default=None)
        told = [row for row in rows if row.observed or row.low] if worst is not None else []
        return cls(
            trials=np.array([row.trial for row in told], dtype=np.int64),
            points=np.array([row.point for row in told], dtype=np.float64).reshape(-1, space.dim),
            targets=np.array([row.target if row.observed else worst for row in told], dtype=np.float64),
            measured=np.array([row.observed for row in told], dtype=np.bool_),
            ended=np.array([row.ended for row in told], dtype=np.float64),
        )

    def first(self, count: int) -> Observations:
        """The `count` that ended first, in trial order; what has no value is the worst among these."""
        found = self.chosen(np.sort(np.lexsort((self.trials, self.ended))[:count]))
        if not found.measured.any():
            return found.chosen(np.empty(0, dtype=np.int64))
        worst = found.targets[found.measured].min()
        return replace(found, targets=np.where(found.measured, found.targets, worst))

    def outcomes(self, outcome: Outcome) -> NDArray[np.float64]:
        """The targets (``n``) as the process sees them."""
        return scaled(self.targets, outcome)

    def __len__(self) -> int:
        return len(self.trials)

    def chosen(self, indices: NDArray[np.int64]) -> Observations:
        """Those of certain indices (``k``)."""
        return Observations(
            self.trials[indices],
            self.points[indices],
            self.targets[indices],
            self.measured[indices],
            self.ended[indices],
        )

    def digest(self) -> bytes:
        """Equal for the same trials with equal points and targets."""
        return self.trials.tobytes() + self.points.tobytes() + self.targets.tobytes()


def fitted_size(n: int) -> int:
    """With how many observations the hyperparameters are fitted when there are `n`: at most `n`, never less before."""
    size = FITTED_EACH
    while (grown := -(-11 * size // 10)) <= n:
        size = grown
    return n if n <= FITTED_EACH else size


def thinned(observations: Observations, count: int) -> Observations:
    """At most `count` observations: the best half of that number, then each time the one farthest from those chosen.

    The distance is Euclidean in the unit cube, ties go to the earlier trial.
    """
    n = len(observations)
    if n <= count:
        return observations
    chosen = list(np.argsort(-observations.targets, kind="stable")[: count // 2])
    points = observations.points
    squares = (points * points).sum(axis=1)
    near = (squares[:, None] + squares[chosen] - 2 * points @ points[chosen].T).min(axis=1)
    near[chosen] = -1.0
    while len(chosen) < count:
        i = int(near.argmax())
        chosen.append(i)
        near = np.minimum(near, squares + squares[i] - 2 * points @ points[i])
        near[chosen] = -1.0
    return observations.chosen(np.array(sorted(chosen), dtype=np.int64))
