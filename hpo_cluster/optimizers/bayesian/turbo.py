"""Trust-region Bayesian optimization without a barrier: local processes, Thompson sampling, one region or several.

Each region has its own process, fitted to the observations of the region, and a box around the best of them. The box
grows after successes and shrinks after failures; a region whose box has become tiny starts again elsewhere. A proposal
is the best candidate of one joint draw of the process, so that any number of workers get different ones.

Reference: D. Eriksson, M. Pearce, J. R. Gardner, R. Turner and M. Poloczek, "Scalable Global Optimization via Local
Bayesian Optimization", NeurIPS 2019 (arXiv:1910.01739), section 2.

Symbols: ``L`` side of a region's box before it is stretched, ``l_i`` length-scales, ``d`` dimensions.

    sides      ``L l_i / (prod_j l_j)^(1/d)``, cut at the ends of the unit cube
    success    a value better than the region's best by `GAIN` of its magnitude; `SUCCESSES` in a row double L
    failure    any other; ``max(4, d)`` in a row halve L
    restart    L below `SHORTEST`: the region forgets its observations and begins with a design of `initial` points

Deviations from the paper: trials end one by one, so each completion counts by itself instead of each batch, and a
failure counts only if its trial was proposed since L last changed: a trial for a larger box says nothing about the
smaller one. With several regions the best draw of all wins, as in the paper, but which region a trial belongs to
follows from its point, since the history does not hold the draws: a region whose design is not complete takes it,
otherwise the region whose best point is nearest in units of its L. The process is fitted to the `MOST` observations of
the region that are nearest to its best one. Integers and choices are rounded, and the draw is taken at the rounded
points; unordered choices keep the value of the best point or take any value at random. Trials that diverged or were
infeasible count as the worst value of the region. Imported trials take the place of design points.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Batch, Found, Points
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import Observations, Outcome
from hpo_cluster.optimizers.bayesian.surrogate import Fitted
from hpo_cluster.optimizers.dataset import Dataset, Moment, Row
from hpo_cluster.optimizers.designs.sequence import Design, lhs_block
from hpo_cluster.optimizers.replay import Replay
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: L at the start, its upper bound, and the length below which a region starts again.
START, LONGEST, SHORTEST = 0.8, 1.6, 0.5**7

#: Least gain of a success as a share of the magnitude of the best value, and successes in a row that double L.
GAIN, SUCCESSES = 1e-3, 3

#: Largest number of observations that the process of a region is fitted to.
MOST = 200

#: Candidates of a draw for each dimension, and at most in all.
CANDIDATES_EACH, CANDIDATES = 100, 500


class TurboSettings(OptimizerSettings):
    """Settings of `turbo`."""

    regions: int = Field(default=1, ge=1, le=64, description="trust regions that are searched side by side")
    initial: int = Field(default=10, ge=2, le=10_000, description="trials of a region's design, before its model")
    outcome: Outcome = Field(
        default="raw",
        description="what the model sees of values: raw, or as in bo (ranked, soft, clip, winsor)",
    )


@dataclass
class Region:
    """A trust region.

    Args:
        life: how often it has started again.
        length: L.
        asked: trials proposed in this life.
        best: the best row of this life.
        rows: rows of this life that have a value, diverged or were infeasible, in the order in which they ended.
        since: number of events before L last changed.
    """

    life: int = 0
    length: float = START
    asked: int = 0
    best: Row | None = None
    rows: list[Row] = field(default_factory=list)
    successes: int = 0
    failures: int = 0
    since: int = 0


class Regions:
    """All regions, as the events of a history make them.

    Args:
        count: number of regions.
        initial: size of a design.
        dim: of the space.
    """

    def __init__(self, count: int, initial: int, dim: int) -> None:
        self.regions = [Region() for _ in range(count)]
        self.initial, self.patience = initial, max(4, dim)
        self.owner: dict[int, tuple[int, int, int]] = {}  # trial -> region, its life, events before it was proposed
        self.events = 0

    def apply(self, moment: Moment) -> None:
        """Take one more moment into account."""
        for row, ended in moment.by_trial():
            self.events += 1
            if ended:
                self._end(row)
            else:
                self.propose(row.trial, row.point)

    def propose(self, trial: int, point: Points) -> None:
        """Give a proposed trial to the region that its point belongs to."""
        index = self.designing()
        if index is None:
            index = self.nearest(point)
        region = self.regions[index]
        region.asked += 1
        self.owner[trial] = index, region.life, self.events

    def designing(self) -> int | None:
        """Return the first region whose design is not complete."""
        return next((i for i, region in enumerate(self.regions) if region.asked < self.initial), None)

    def nearest(self, point: Points) -> int:
        """Return the region whose best point is nearest (maximum norm) in units of its L; the first if none has one."""
        far = [
            np.inf if region.best is None else float(np.abs(point - region.best.point).max()) / region.length
            for region in self.regions
        ]
        return int(np.argmin(far))

    def _end(self, row: Row) -> None:
        if row.trial not in self.owner:
            return
        index, life, asked = self.owner[row.trial]
        region = self.regions[index]
        if region.life != life:
            return
        if not (row.observed or row.low):
            region.asked -= 1
            return
        region.rows.append(row)
        best = region.best
        better = row.observed and (best is None or row.target > best.target)
        success = better and best is not None and row.target > best.target + GAIN * abs(best.target)
        if better:
            region.best = row
        if len(region.rows) <= self.initial or best is None:
            return
        if success:
            region.successes, region.failures = region.successes + 1, 0
        elif asked > region.since:
            region.successes, region.failures = 0, region.failures + 1
        if region.successes >= SUCCESSES:
            self._resize(index, min(2 * region.length, LONGEST))
        elif region.failures >= self.patience:
            self._resize(index, region.length / 2)

    def _resize(self, index: int, length: float) -> None:
        region = self.regions[index]
        region.length, region.successes, region.failures, region.since = length, 0, 0, self.events
        if length < SHORTEST:
            self.regions[index] = Region(life=region.life + 1)


class Turbo:
    """Proposes the best points of functions drawn from the processes of trust regions.

    Args:
        space: what to search.
        settings: number of regions, size of their designs.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: TurboSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.features = Features(space)
        self._design = Design(space, lhs_block(settings.initial, space.dim, seed), seed)
        self._replay = Replay(lambda: Regions(settings.regions, settings.initial, space.dim))  # these three are caches
        self._fitted = Fitted(settings.regions)
        self._data: Dataset | None = None

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        batch = Batch(data, n)
        state = self._replay.of(data)
        if n > 1:
            state = copy.deepcopy(state)
        for trial in batch.trials:
            found = self._propose(trial, state, batch.taken)
            if found is None:
                break
            batch.add(found)
            if n > 1:
                state.propose(trial, found.point)
        return batch.ask(self._decision(state))

    def _decision(self, state: Regions) -> dict[str, Any]:
        regions = [
            {
                "life": region.life,
                "length": region.length,
                "observations": len(region.rows),
                "best": None if region.best is None else region.best.trial,
            }
            for region in state.regions
        ]
        return {"optimizer": "turbo", "regions": regions}

    def _propose(self, trial: int, state: Regions, taken: set[Key]) -> Found | None:
        """Return the canonical point of a trial; None if nothing is left to propose."""
        index = state.designing()
        if index is not None:
            return self._design.next(taken, trial, phase="initial", region=index)
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        drawn: list[tuple[float, int, Points]] = []
        for index, region in enumerate(state.regions):
            for value, point in self._draw(index, region, rng):
                if key_of(self.space, point) not in taken:
                    drawn.append((value, index, point))
                    break
        if not drawn:
            return self._design.next(taken, trial, phase="no model")
        _, index, point = max(drawn, key=lambda entry: entry[:2])
        return Found(point, {"phase": "model", "region": index, "length": state.regions[index].length})

    def _draw(self, index: int, region: Region, rng: np.random.Generator) -> list[tuple[float, Points]]:
        """Return candidates of a region with their values in one joint draw, in units of the target, best first."""
        if region.best is None:
            return []
        near = Observations.of_rows(self.space, region.rows)
        if len(near) > MOST:
            near = near.chosen(np.argsort(np.abs(near.points - region.best.point).max(axis=1), kind="stable")[:MOST])
        outcomes = near.outcomes(self.settings.outcome)
        if len(outcomes) < 2 or not np.ptp(outcomes) > 0:
            return []
        try:
            process = self._fitted.process(index, self.features.encode(near.points), outcomes)
            candidates = self._candidates(region.best.point, region.length, process.scales, rng)
            if len(candidates) == 0:
                return []
            values = process.sample(self.features.encode(candidates), rng.standard_normal((len(candidates), 1)))[:, 0]
        except ArithmeticError:
            return []
        order = np.argsort(-values, kind="stable")
        return [(float(process.location + process.spread * values[i]), candidates[i]) for i in order]

    def _candidates(self, centre: Points, length: float, scales: Points, rng: np.random.Generator) -> Points:
        """Draw allowed canonical points (``m x d``) in the box; some coordinates of the centre move, all if d <= 20."""
        dim = self.space.dim
        count = min(CANDIDATES, CANDIDATES_EACH * dim)
        sides = box_sides(self.features, length, scales)
        low, high = np.clip(centre - sides / 2, 0.0, 1.0), np.clip(centre + sides / 2, 0.0, 1.0)
        cube = rng.random((count, dim))
        moved = rng.random((count, dim)) < min(1.0, 20.0 / dim)
        moved[np.arange(count), rng.integers(dim, size=count)] = True
        points = low + cube * (high - low)
        for axis, (_, parameter) in enumerate(self.space):
            if parameter.unordered:
                points[:, axis] = np.where(cube[:, axis] < min(length, 1.0), rng.random(count), centre[axis])
        points = self.space.snap(np.where(moved, points, centre))
        return points[self.space.allowed(points)] if self.space.constraints else points


def box_sides(features: Features, length: float, scales: Points) -> Points:
    """Return the sides (``d``) of a box of volume ``length^d``, in proportion to length-scales (``c``), choices 1."""
    own = np.array([1.0 if hot else scales[start] for start, hot in zip(features.start, features.one_hot, strict=True)])
    return np.asarray(length * own / np.exp(np.log(own).mean()), dtype=np.float64)
