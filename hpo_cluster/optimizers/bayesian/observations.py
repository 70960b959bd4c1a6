"""Choose what a model is trained on: which trials, what it sees of their values, and which ones if they are many.

Trials that diverged count as the worst value observed so far, computed again each time, and so do infeasible ones
unless they are left out. Trials that failed or were cancelled are left out: the reasons have nothing to do with their
configuration.

The *outcome* decides what a model sees of a value ``y``, with ``m`` the median and ``b`` the best of the values, so
that a stationary process does not spend its length-scales on a cliff or a deep valley:

    raw     ``y``
    ranked  ``y`` from ``m`` on; the values below ``m``, in their order, are spread evenly over a stretch as long as
            ``b - m`` (equal values stay equal). So the foot of a cliff lies as far below ``m`` as the best lies above
    soft    ``y`` from ``m`` on, ``m - s log(1 + (m - y) / s)`` below, where ``s`` is ``b - m``, at least `SOFT_FLOOR`
            of the spread. Slope 1 at ``m``: what is low stays low, but comes nearer
    clip    ``max(y, m)``: all that is low becomes flat ground, at the height of the median
    winsor  ``max(y, q - 2 (b - q))`` with ``q`` the median of the upper half

If ``clip`` or ``winsor`` would make all values equal, ``raw`` is used. On a plateau next to a cliff both lift the foot
of the cliff to nearly the height of the plateau; ranked keeps it lower. But once most trials are on a noisy plateau,
ranked spreads their noise over half of the range. Soft does not, since its slope is never above 1: it is the default.
``docs/design/surrogate.md`` has the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.space import Space
from hpo_cluster.trial import State

Outcome: TypeAlias = Literal["soft", "ranked", "clip", "winsor", "raw"]

#: The outcome of `bo`, of recommendations and of the models that are shown, unless another is asked for.
OUTCOME: Outcome = "soft"

#: Outcomes that proposals use in turn if they are to see the values in different ways, the best one first.
VARIED: tuple[Outcome, ...] = ("soft", "winsor", "clip")

#: Least scale of the outcome `soft`, as a share of the spread of the targets: more than half of them may be the best.
SOFT_FLOOR = 1e-3

#: Greatest depth that `unscaled` takes into account, so that the target stays finite.
DEEPEST = 50.0

#: Number of observations up to which hyperparameters are fitted again with each new one.
FITTED_EACH = 60


def scaled(targets: NDArray[np.float64], outcome: Outcome) -> NDArray[np.float64]:
    """Return what the process sees of maximised targets (``n``), in their units and in the same order; see the module.

    If the outcome would make all targets equal, return them as they are.
    """
    if outcome == "raw" or len(targets) == 0 or not np.ptp(targets) > 0:
        return targets
    best, median = targets.max(), np.median(targets)
    if outcome == "ranked":
        return _ranked(targets)
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
    """Return the target of an outcome: the inverse of `scaled` for ``soft`` and ``ranked``, else the outcome itself.

    Between two values of ``ranked`` it is interpolated; below the lowest it is the lowest target.

    Args:
        outcome_value: any number in the scale of the outcomes.
        targets: the observed ones (``n``).
        outcome: the scale.
    """
    if outcome not in ("soft", "ranked") or len(targets) == 0 or not np.ptp(targets) > 0:
        return outcome_value
    if outcome == "ranked":
        order = np.argsort(targets, kind="stable")
        known = np.interp(outcome_value, _ranked(targets)[order], targets[order])
        return outcome_value if outcome_value >= np.median(targets) else float(known)
    median, scale = np.median(targets), _soft_scale(targets)
    depth = min(max(median - outcome_value, 0.0) / scale, DEEPEST)
    return float(median - scale * np.expm1(depth)) if depth > 0 else outcome_value


def _ranked(targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outcomes ``ranked`` (``n``) of targets that are not all equal."""
    median = np.median(targets)
    low = targets < median
    _, place, counts = np.unique(targets[low], return_inverse=True, return_counts=True)
    shares = (np.cumsum(counts) - counts / 2) / max(low.sum(), 1)
    depth = targets.max() - median or np.ptp(targets)
    seen = targets.astype(np.float64)
    seen[low] = median - depth * (1 - shares[place])
    return seen


def _soft_scale(targets: NDArray[np.float64]) -> float:
    """Return ``s`` of the outcome ``soft``."""
    return float(max(targets.max() - np.median(targets), SOFT_FLOOR * np.ptp(targets)))


@dataclass(frozen=True)
class Observations:
    """The trials that a surrogate is trained on, made from a `Dataset`.

    Args:
        trials: numbers (``n``).
        points: canonical points (``n x d``, unit cube).
        targets: maximised (``n``), with the worst one for trials without a value.
        measured: whether the target was measured (``n``).
        ended: when each ended (``n``): any increasing numbers, NaN where it is not known.
    """

    trials: NDArray[np.int64]
    points: NDArray[np.float64]
    targets: NDArray[np.float64]
    measured: NDArray[np.bool_]
    ended: NDArray[np.float64]

    @classmethod
    def of(cls, data: Dataset, *, infeasible: bool = True) -> Observations:
        """Return the observations of a history, in trial order; empty if no value was measured.

        Args:
            data: the history.
            infeasible: whether infeasible trials count as the worst value; they are left out otherwise.
        """
        return cls.of_rows(data.space, [row for row in data if infeasible or row.state is not State.INFEASIBLE])

    @classmethod
    def of_rows(cls, space: Space, rows: Iterable[Row]) -> Observations:
        """Return the observations of some rows, in the order of the rows."""
        used = [row for row in rows if row.observed or row.low]
        worst = min((row.target for row in used if row.observed), default=None)
        used = [] if worst is None else used
        return cls(
            trials=np.array([row.trial for row in used], dtype=np.int64),
            points=np.array([row.point for row in used], dtype=np.float64).reshape(-1, space.dim),
            targets=np.array([row.target if row.observed else worst for row in used], dtype=np.float64),
            measured=np.array([row.observed for row in used], dtype=np.bool_),
            ended=np.array([row.ended for row in used], dtype=np.float64),
        )

    def first(self, count: int) -> Observations:
        """Return the `count` observations that ended first, in trial order; a missing value is the worst of theirs."""
        found = self.chosen(np.sort(np.lexsort((self.trials, self.ended))[:count]))
        if not found.measured.any():
            return found.chosen(np.empty(0, dtype=np.int64))
        worst = found.targets[found.measured].min()
        return replace(found, targets=np.where(found.measured, found.targets, worst))

    def outcomes(self, outcome: Outcome) -> NDArray[np.float64]:
        """Return the targets (``n``) as the process sees them."""
        return scaled(self.targets, outcome)

    def __len__(self) -> int:
        return len(self.trials)

    def chosen(self, indices: NDArray[np.int64]) -> Observations:
        """Return the observations at some indices (``k``)."""
        return Observations(
            self.trials[indices],
            self.points[indices],
            self.targets[indices],
            self.measured[indices],
            self.ended[indices],
        )

    def digest(self) -> bytes:
        """Return bytes that are equal for the same trials with equal points and targets."""
        return self.trials.tobytes() + self.points.tobytes() + self.targets.tobytes()


def fitted_size(n: int) -> int:
    """Return how many of `n` observations the hyperparameters are fitted to; it never falls as `n` grows."""
    size = FITTED_EACH
    while (grown := -(-11 * size // 10)) <= n:
        size = grown
    return n if n <= FITTED_EACH else size


def thinned(observations: Observations, count: int) -> Observations:
    """Return at most `count` observations: the best ``count // 2``, then repeatedly the one farthest from those chosen.

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
