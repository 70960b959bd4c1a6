"""Find where an acquisition function is highest among the configurations of a space.

Samples of the whole space and near the best points, gradient steps of BoTorch from the best of them (all in one
evaluation), a local search over integers and choices, and the gradient again. Integers and choices are relaxed for the
gradient steps, then rounded. Conditional parameters: gradient steps move the active ones alone, and the local search
changes the parents. Constraints: samples are drawn until enough are allowed; gradient steps that lead out of what is
allowed are taken back along their line to its edge, from where, if they bound a real parameter, a random local search
goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.batch import Points
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.space import Parameter, Space
from hpo_cluster.space.sampling import Key, free_point, key_of, remaining_points

if TYPE_CHECKING:
    from hpo_cluster.optimizers.bayesian.acquisition import Acquisition

#: Canonical points (``m x d``) to values (``m``).
Score: TypeAlias = Callable[[Points], NDArray[np.float64]]

#: Finite spaces with at most this many free configurations are not searched: every configuration is scored.
ENUMERATED = 2000

#: Blocks of samples drawn at most until enough of them are allowed.
MOST_BLOCKS = 32

#: Standard deviations, as shares of an axis, of the rounds of the random search for what constraints allow.
STEPS = (0.1, 0.03, 0.01, 0.003)

#: Steps to other values that the local search tries along an integer axis, in both directions.
STRIDES = (1, 2, 4, 8)

#: Most steps of the local search over discrete parameters.
ROUNDS = 6


@dataclass(frozen=True)
class Goal:
    """What is maximised, and where.

    Args:
        features: of the space.
        acquisition: of the columns.
        prior_weight: of the logarithm of the priors' density, which is added.
        low: corner of the box that is searched (``d``); None: the whole space.
        high: the opposite corner.
    """

    features: Features
    acquisition: Acquisition
    prior_weight: float = 0.0
    low: Points | None = None
    high: Points | None = None

    @property
    def box(self) -> tuple[Points, Points]:
        """Both corners."""
        dim = self.features.space.dim
        return (np.zeros(dim) if self.low is None else self.low), (np.ones(dim) if self.high is None else self.high)

    def score(self, points: Points) -> NDArray[np.float64]:
        """Return the values (``m``) at canonical points (``m x d``)."""
        from hpo_cluster.optimizers.bayesian.acquisition import values_of

        values = values_of(self.acquisition, self.features.encode(points))
        return values + self.prior_weight * self.features.space.log_prior(points) if self.prior_weight > 0 else values


def box_around(space: Space, centre: Points, half: float) -> tuple[Points, Points]:
    """Return two opposite corners (``d`` each) of a box around a canonical point (``d``), within the unit cube.

    Args:
        space: an unordered choice has its whole axis, and another discrete parameter at least the next values.
        centre: the point.
        half: half the side, as a share of each axis.
    """
    halves = np.full(space.dim, half)
    for axis, (_, parameter) in enumerate(space):
        if parameter.unordered:
            halves[axis] = 1.0
        elif parameter.cardinality is not None:
            halves[axis] = max(half, 1 / parameter.cardinality)
    return np.clip(centre - halves, 0.0, 1.0), np.clip(centre + halves, 0.0, 1.0)


def search(
    goal: Goal, best: Points, banned: set[Key], restarts: int, raw_samples: int, rng: np.random.Generator
) -> tuple[Points, float] | None:
    """Return the free canonical point (``d``) of the highest value found, and the value; None if none is free.

    Args:
        goal: what is maximised.
        best: observed points that are searched around (``k x d``), at least one.
        banned: configurations that may not be proposed.
        restarts: starting points of the gradient search.
        raw_samples: points scored to choose them from.
        rng: of the samples.

    Raises:
        ArithmeticError: there is no finite value anywhere.
    """
    space = goal.features.space
    if space.size - len(banned) <= ENUMERATED:
        found = _Scored(goal, remaining_points(space, banned))
    else:
        found = _climb(goal, best, restarts, raw_samples, rng)
    found = found.chosen(_free(space, found.points, banned))
    if len(found.points) == 0:
        rest = free_point(space, banned, rng)
        if rest is None:
            return None
        found = _Scored(goal, rest[None])
    if not np.isfinite(found.values).any():
        raise ArithmeticError("the acquisition is not finite at any candidate")
    i = int(np.nanargmax(np.where(np.isfinite(found.values), found.values, -np.inf)))
    return found.points[i], float(found.values[i])


class _Scored:
    """Canonical points (``m x d``), each scored once, and their values (``m``).

    Args:
        goal: which scores.
        points: ``m x d``; those that are not allowed are left out.
    """

    def __init__(self, goal: Goal, points: Points) -> None:
        space = goal.features.space
        self.goal = goal
        self.points = points[space.allowed(points)] if len(points) else points
        self.values = goal.score(self.points)

    def add(self, points: Points) -> None:
        """Score more points."""
        more = _Scored(self.goal, points)
        self.points = np.concatenate([self.points, more.points])
        self.values = np.concatenate([self.values, more.values])

    def chosen(self, indices: NDArray[np.int64]) -> _Scored:
        """Return those at some indices (``k``)."""
        found = copy(self)
        found.points, found.values = self.points[indices], self.values[indices]
        return found


def _climb(goal: Goal, best: Points, restarts: int, raw_samples: int, rng: np.random.Generator) -> _Scored:
    """Return scored candidates: samples, and the ends of searches from the best of them."""
    space = goal.features.space
    samples = np.concatenate([_spread(goal, raw_samples, rng), _around(goal, best, raw_samples // 4, rng)])
    found = _Scored(goal, space.snap(samples))
    if not np.isfinite(found.values).any():
        return found
    widths = np.maximum(goal.box[1] - goal.box[0], 1e-12)
    reached = _ascend(goal, found.points[_diverse(found.points / widths, found.values, restarts)], relax=True)
    found.add(reached)
    if any(parameter.cardinality is not None for _, parameter in space):
        reached = _improve(goal, reached)
        found.add(reached)
        if any(parameter.cardinality is None for _, parameter in space):
            reached = _ascend(goal, reached, relax=False)
            found.add(reached)
    bounded = {name for constraint in space.constraints for name in constraint.names}
    if any(parameter.cardinality is None for name, parameter in space if name in bounded):
        found.add(_wander(goal, reached, rng))
    return found


def _spread(goal: Goal, raw_samples: int, rng: np.random.Generator) -> Points:
    """Draw points (``m x d``) all over the box; in a whole space with priors every other one follows the priors.

    If not all are allowed, draw more blocks until `raw_samples` are, at most `MOST_BLOCKS`.
    """
    from scipy.stats import qmc

    space, (low, high) = goal.features.space, goal.box
    engine = qmc.Sobol(space.dim, rng=rng)
    blocks, wanted = list[Points](), raw_samples
    for _ in range(MOST_BLOCKS if space.constraints else 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # any number of points is good here
            points = np.asarray(engine.random(raw_samples), dtype=np.float64)
        points = low + (high - low) * points
        if goal.low is None:
            points[::2] = space.warp(points[::2])
        blocks.append(points[space.allowed(points)])
        wanted -= len(blocks[-1])
        if wanted <= 0:
            break
    return np.concatenate(blocks)


def _around(goal: Goal, best: Points, count: int, rng: np.random.Generator) -> Points:
    """Draw points (``count x d``) in the box near the best ones: each with some coordinates moved a little or more."""
    low, high = goal.box
    centres = best[np.arange(count) % len(best)]
    dim = centres.shape[1]
    moved = rng.random(centres.shape) < max(0.3, min(1.0, 3 / dim))
    step = rng.normal(size=centres.shape) * np.where(rng.random((count, 1)) < 0.5, 0.02, 0.15) * (high - low)
    return np.clip(centres + np.where(moved, step, 0.0), low, high)


def _diverse(points: Points, values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return indices of high values that lie apart: the best ones at least 0.1 on some axis from those before them."""
    order = [int(i) for i in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]
    chosen: list[int] = []
    for i in order:
        if len(chosen) == count:
            break
        if all(np.abs(points[i] - points[j]).max() >= 0.1 for j in chosen):
            chosen.append(i)
    chosen += [i for i in order[:count] if i not in chosen][: count - len(chosen)]
    return np.array(chosen, dtype=np.int64)


def _ascend(goal: Goal, starts: Points, *, relax: bool) -> Points:
    """Return canonical points (``k x d``) after gradient steps on the columns from each start.

    One-hot columns and those of inactive parameters and of parents stay as they are; those of integers and ordered
    choices move with `relax`, and are rounded then. A point that is not allowed is moved back towards its start.
    """
    from hpo_cluster.optimizers.bayesian.acquisition import climbed, guided

    features, space = goal.features, goal.features.space
    free = np.zeros((len(starts), features.dim), dtype=bool)
    active, parents = space.active(starts), space.parents
    for axis, ((name, parameter), start, one_hot) in enumerate(
        zip(space, features.start, features.one_hot, strict=True)
    ):
        if parameter.cardinality is None or (relax and not one_hot and name not in parents):
            free[:, start] = active[:, axis]
    acquisition = guided(goal.acquisition, features, goal.prior_weight) if goal.prior_weight > 0 else goal.acquisition
    ends, bounds = features.encode(starts), features.bounds(*goal.box)
    for moving in np.unique(free, axis=0):  # more than one in a conditional space alone
        alike = (free == moving).all(axis=1)
        if moving.any():
            ends[alike] = climbed(acquisition, ends[alike], moving, *bounds)
    return _drawn_back(space, starts, features.decode(ends))


def _drawn_back(space: Space, starts: Points, ends: Points) -> Points:
    """Return canonical points (``k x d``): each allowed end, or the last allowed point on the way to it."""
    out = ends.copy()
    for i in np.flatnonzero(~space.allowed(ends)):
        out[i], low, high = starts[i], 0.0, 1.0
        for _ in range(20):
            share = (low + high) / 2
            point = space.snap((starts[i] + share * (ends[i] - starts[i]))[None])
            if space.allowed(point)[0]:
                out[i], low = point[0], share
            else:
                high = share
    return out


def _wander(goal: Goal, starts: Points, rng: np.random.Generator) -> Points:
    """Return canonical points (``k x d``) after ever smaller random steps from each start to better allowed points."""
    space, score, (low, high) = goal.features.space, goal.score, goal.box
    current, values = starts.copy(), score(starts)
    for step in STEPS:
        for i in range(len(current)):
            count = min(8 * space.dim, 64)
            moved = rng.random((count, space.dim)) < max(0.3, 2 / space.dim)
            steps = np.where(moved, rng.normal(size=(count, space.dim)) * step * (high - low), 0.0)
            points = space.snap(np.clip(current[i] + steps, low, high))
            points = points[space.allowed(points)]
            if len(points) == 0:
                continue
            scores = np.nan_to_num(score(points), nan=-np.inf)
            if scores.max() > values[i]:
                current[i], values[i] = points[int(scores.argmax())], scores.max()
    return current


def _improve(goal: Goal, starts: Points) -> Points:
    """Return canonical points (``k x d``) after a steepest local search over the values of discrete parameters."""
    score = goal.score
    current, values = starts.copy(), score(starts)
    active = list(range(len(current)))
    for _ in range(ROUNDS):
        moves = {i: _neighbours(goal, current[i]) for i in active}
        if not any(len(m) for m in moves.values()):
            break
        scores = np.split(score(np.concatenate(list(moves.values()))), np.cumsum([len(m) for m in moves.values()])[:-1])
        active = []
        for (i, neighbours), neighbour_values in zip(moves.items(), scores, strict=True):
            if len(neighbours) == 0:
                continue
            best = int(np.argmax(np.nan_to_num(neighbour_values, nan=-np.inf)))
            if neighbour_values[best] > values[i] + 1e-9:
                current[i], values[i] = neighbours[best], neighbour_values[best]
                active.append(i)
        if not active:
            break
    return current


def _neighbours(goal: Goal, point: Points) -> Points:
    """Return the allowed canonical points (``m x d``) in the box that differ from `point` in one discrete parameter.

    Parameters that become active by this take the middle of their range.
    """
    space, (low, high) = goal.features.space, goal.box
    out = []
    active, parents = space.active(point[None])[0], space.parents
    for axis, (name, parameter) in enumerate(space):
        if parameter.cardinality is None or not active[axis]:
            continue
        for u in parameter_neighbours(parameter, float(point[axis])):
            if not low[axis] <= u <= high[axis]:
                continue
            neighbour = point.copy()
            neighbour[axis] = u
            out.append(space.snap(neighbour[None])[0] if name in parents else neighbour)
    found = np.array(out, dtype=np.float64).reshape(-1, len(point))
    return found[space.allowed(found)]


def parameter_neighbours(parameter: Parameter, u: float) -> list[float]:
    """Return canonical coordinates near `u`: all other values of an unordered choice, else `STRIDES` to both sides."""
    here, count = parameter.index(u), parameter.cardinality or 0
    indices = [index for index in range(count) if index != here] if parameter.unordered else _strides(here, count - 1)
    return [parameter.encode(parameter.value(index)) for index in indices]


def _strides(here: int, last: int) -> list[int]:
    indices = {here + sign * stride for stride in (*STRIDES, max(1, last // 6)) for sign in (-1, 1)}
    return sorted(index for index in indices if 0 <= index <= last)


def _free(space: Space, points: Points, banned: set[Key]) -> NDArray[np.int64]:
    """Return the indices of the points whose configuration is free, each configuration once, in order."""
    seen, kept = set(banned), list[int]()
    for i, point in enumerate(points):
        key = key_of(space, point)
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return np.array(kept, dtype=np.int64)
