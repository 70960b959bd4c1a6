"""BOHB: Hyperband whose points are drawn where the good trials lie, by densities as in TPE.

Of the highest rung at which enough trials were scored, the best `GOOD` share and the others each give a density: a sum
of kernels, one for each trial. Candidates are drawn from that of the good ones, with wider kernels, and the one is
proposed at which the ratio of the densities is highest. A third of the proposals are random, and so are all before
enough trials were scored. Brackets are those of `hpo_cluster.optimizers.rungs.hyperband`.

Reference: S. Falkner, A. Klein and F. Hutter, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale", ICML
2018 (arXiv:1807.01774); P. Mallik et al., "PriorBand: Practical Hyperparameter Optimization in the Age of Deep
Learning", NeurIPS 2023 (arXiv:2306.12370), for the idea that the random third follows the priors.

Symbols: ``l`` and ``g`` the densities of the good and the other trials, ``d`` number of parameters.

Deviations from the papers: kernels are products over the parameters of Gaussians cut off at the ends, and of the weight
``1 - w`` on the same choice and ``w`` on the others; the width is Scott's by the spread of the trials, at least
`LEAST_WIDTH`. A parameter that is not active counts as uniform. If the space has priors, the logarithm of their density
times a weight that decays with the number of trials (piBO) is added to that of the ratio, and what is random follows
them. Trials that diverged are among the worst, and trials in flight count with the others, so that many workers do not
ask for the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Batch, Found, Points
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.optimizers.rungs.hyperband import first_rung
from hpo_cluster.space import Parameter, Space
from hpo_cluster.space.sampling import free_point, key_of
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: Share of the trials that are the good ones; how much wider the kernels are that candidates are drawn from; the least
#: width of a kernel, and the trials of each kind that the papers ask for beyond the number of parameters.
GOOD, WIDER, LEAST_WIDTH, MORE = 0.15, 3.0, 0.03, 1


class BOHBSettings(OptimizerSettings):
    """Settings of BOHB."""

    random: float = Field(default=1 / 3, ge=0, le=1, description="share of the proposals that are random")
    candidates: int = Field(default=64, ge=1, le=4096, description="points drawn, of which the best is proposed")
    fewest: int | None = Field(
        default=None, ge=2, description="trials at a rung before it has a model; empty: parameters + 3, at most 12"
    )
    prior_weight: float = Field(
        default=5.0, ge=0, description="weight of the space's priors, divided by the number of proposals; 0: none"
    )


class BOHB:
    """Proposes points at which good trials are denser than others, each with the first rung of its bracket.

    Args:
        space: what to search.
        settings: share of random proposals, candidates.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: BOHBSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.fewest = settings.fewest or min(space.dim + 3, 12)
        self._data: Dataset | None = None  # a cache

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        rung, scored = self._scored(data)
        batch = Batch(data, n)
        for trial in batch.trials:
            rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
            point, phase = None, "random"
            if scored and rng.random() >= self.settings.random:
                point, phase = self._modelled(scored, batch, rng), "model"
            if point is None:
                point, phase = free_point(self.space, batch.taken, rng), "random"
            if point is None:
                break
            batch.add(Found(point, {"phase": phase, "rung": first_rung(trial, data.shares)}))
        return batch.ask({"optimizer": "bohb", "model_rung": rung, "observations": len(scored)})

    def _scored(self, data: Dataset) -> tuple[int | None, list[tuple[float, Row]]]:
        """Return the highest rung at which enough trials were scored, and those trials with their targets, best first.

        Trials that diverged come last. None, and no trial, if there are not enough anywhere.
        """
        low = [(-math.inf, row) for row in data if row.low]
        for rung in reversed(range(len(data.shares) + 1)):
            found = [(target, row) for row in data if (target := target_at(row, rung, len(data.shares))) is not None]
            if len(found) >= self.fewest:
                return rung, sorted([*found, *low], key=lambda pair: (-pair[0], pair[1].trial))
        return None, []

    def _modelled(self, scored: list[tuple[float, Row]], batch: Batch, rng: np.random.Generator) -> Points | None:
        """Return the free canonical point of the highest ratio of densities; None if no candidate is free."""
        space = self.space
        count = max(math.ceil(GOOD * len(scored)), min(space.dim + MORE, len(scored) // 2))
        points = np.array([row.point for _, row in scored])
        good = Density(space, points[:count])
        bad = Density(space, np.concatenate([points[count:], batch.pending]))
        candidates = good.draw(self.settings.candidates, rng)
        candidates = candidates[space.allowed(candidates)]
        free = [i for i, point in enumerate(candidates) if key_of(space, point) not in batch.taken]
        if not free:
            return None
        candidates = candidates[free]
        scores = good.log(candidates) - bad.log(candidates)
        weight = batch.prior_weight(self.settings.prior_weight, 0)
        if weight > 0:
            scores = scores + weight * space.log_prior(candidates)
        return np.asarray(candidates[int(scores.argmax())], dtype=np.float64)


def target_at(row: Row, rung: int, top: int) -> float | None:
    """Return the target of a trial at a rung; None if it was not scored there."""
    if rung == top:
        return row.target if row.whole else None
    target = row.looks[rung] if row.looks else math.nan
    return target if math.isfinite(target) else None


class Density:
    """A sum of kernels at canonical points.

    Args:
        space: of the points.
        points: ``n x d``, at least one.
    """

    def __init__(self, space: Space, points: Points) -> None:
        self.space, self.points, self.active = space, points, space.active(points)
        scott = len(points) ** (-1 / (space.dim + 4))
        self.widths = [self._width(axis, scott) for axis in range(space.dim)]
        self._choices = [_choices(parameter) for _, parameter in space]

    def _width(self, axis: int, scott: float) -> float:
        values = self.points[self.active[:, axis], axis]
        return max(scott * float(values.std()) if len(values) > 1 else 0.0, LEAST_WIDTH)

    def log(self, at: Points) -> NDArray[np.float64]:
        """Return the logarithm of the density (``m``) at canonical points (``m x d``)."""
        logs = np.zeros((len(at), len(self.points)))
        active = self.space.active(at)
        for axis, (width, count) in enumerate(zip(self.widths, self._choices, strict=True)):
            away = at[:, None, axis] - self.points[None, :, axis]
            if count:
                other = _other(width, count)
                found = np.where(np.abs(away) < 0.5 / count, math.log(1 - other), math.log(other / (count - 1)))
            else:
                inside = _within(self.points[:, axis], width)
                found = -0.5 * (away / width) ** 2 - math.log(width * math.sqrt(2 * math.pi)) - np.log(inside)
            logs += np.where(active[:, None, axis] & self.active[None, :, axis], found, 0.0)
        most = logs.max(axis=1, keepdims=True)
        return np.asarray((most + np.log(np.exp(logs - most).mean(axis=1, keepdims=True)))[:, 0], dtype=np.float64)

    def draw(self, count: int, rng: np.random.Generator) -> Points:
        """Draw canonical points (``count x d``) with kernels that are `WIDER`."""
        centres = rng.integers(len(self.points), size=count)
        out = self.space.warp(rng.random((count, self.space.dim)))  # of parameters that the centre does not have
        for axis, (width, choices) in enumerate(zip(self.widths, self._choices, strict=True)):
            here, has = self.points[centres, axis], self.active[centres, axis]
            if choices:
                moved = (rng.integers(choices, size=count) + 0.5) / choices
                new = np.where(rng.random(count) < WIDER * _other(width, choices), moved, here)
            else:
                new = _reflected(here + WIDER * width * rng.standard_normal(count))
            out[:, axis] = np.where(has, new, out[:, axis])
        return self.space.snap(out)


def _choices(parameter: Parameter) -> int:
    """Return the number of choices of an unordered parameter; 0 for one whose values are in order."""
    count = parameter.cardinality or 0
    return count if parameter.unordered and count > 1 else 0


def _other(width: float, count: int) -> float:
    """Return the weight of all other choices."""
    return min(width, 0.5 * (count - 1) / count)


def _within(centres: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Return how much of a Gaussian at each centre lies in the unit interval."""
    erf = np.array([math.erf(x) for x in np.concatenate([1 - centres, centres]) / (width * math.sqrt(2))])
    upper, lower = np.split(erf, 2)
    return np.asarray((upper + lower) / 2, dtype=np.float64)


def _reflected(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values folded back into the unit interval at its ends."""
    folded = np.abs(values) % 2
    return np.asarray(np.where(folded > 1, 2 - folded, folded), dtype=np.float64)
