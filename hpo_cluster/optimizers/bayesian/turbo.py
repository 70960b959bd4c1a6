"""Trust-region Bayesian optimization without a barrier: local processes, Thompson sampling, one region or several.

Each region has a process of its own, fitted to the region's observations, and a box around the best of them. The box
grows after successes and shrinks after failures; a region whose box has become tiny starts again elsewhere. A proposal
is the best candidate of one joint draw of the process: as many workers as there are get different ones.

Reference: D. Eriksson, M. Pearce, J. R. Gardner, R. Turner and M. Poloczek, "Scalable Global Optimization via Local
Bayesian Optimization", NeurIPS 2019 (arXiv:1910.01739), section 2.

Symbols: ``L`` side of a region's box before it is stretched, ``l_i`` length-scales, ``d`` dimensions.

    sides      ``L l_i / (prod_j l_j)^(1/d)``, cut at the ends of the unit cube
    success    a value better than the region's best by `GAIN` of its magnitude; `SUCCESSES` in a row double L
    failure    any other; ``max(4, d)`` in a row halve L
    restart    L below `SHORTEST`: the region forgets its observations and begins with a design of `initial` points

Deviations from the paper: trials end one by one, so each completion counts for itself instead of each batch, and a
failure counts only where its trial was proposed since L last changed: what was proposed for a larger box says nothing
about the smaller one. With several regions the best draw of all wins, as in the paper, but which region a trial belongs
to follows from its place, for the history does not hold the draws: a region whose design is not complete takes it, else
the region whose best point is nearest in units of its L. The process is fitted to the `MOST` observations of the region
that are nearest to its best one. Integers and choices are rounded, and the draw is taken at the rounded points;
unordered choices keep the box's values or take any other at random. Trials that diverged or were infeasible count as
the worst value of the region. Imported trials take the place of design points.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.ask import Asking, Found, Points
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.gaussian_process import Fitted
from hpo_cluster.optimizers.bayesian.observations import Observations, Outcome
from hpo_cluster.optimizers.dataset import Memory, Row, Rows
from hpo_cluster.optimizers.designs.sequence import Design, lhs_block
from hpo_cluster.optimizers.replay import Event, Replay
from hpo_cluster.space import Categorical, Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: L at the start, at most, and where a region starts again.
START, LONGEST, SHORTEST = 0.8, 1.6, 0.5**7

#: Share of the magnitude of the best value that makes a success, and successes in a row that double L.
GAIN, SUCCESSES = 1e-3, 3

#: Observations that a region's process is fitted to at most.
MOST = 200

#: Candidates of a draw for each dimension, at most `CANDIDATES`.
CANDIDATES_EACH, CANDIDATES = 100, 500


class TurboSettings(OptimizerSettings):
    """Settings of `turbo`."""

    regions: int = Field(default=1, ge=1, le=64, description="trust regions that are searched side by side")
    initial: int = Field(default=10, ge=2, le=10_000, description="trials of a region's design, before its model")
    outcome: Outcome = Field(
        default="raw",
        description="what the model sees of values: raw, or drawn in below the median as in bo (soft, clip, winsor)",
    )


@dataclass
class Region:
    """What the events have made of a region.

    Args:
        life: how often it has started again.
        length: L.
        asked: trials proposed in this life.
        best: the best row of this life.
        told: rows of this life that say something, in the order in which they ended.
    """

    life: int = 0
    length: float = START
    asked: int = 0
    best: Row | None = None
    told: list[Row] = field(default_factory=list)
    successes: int = 0
    failures: int = 0
    since: int = 0  # events before L last changed

    def restart(self) -> None:
        """Begin another life."""
        self.__init__(life=self.life + 1)  # type: ignore[misc]


class Regions:
    """The state of all regions, as a history's events make it.

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

    def apply(self, event: Event) -> None:
        """Take one more event into account."""
        self.events += 1
        if not event.ended:
            self.ask(event.row.trial, event.row.point)
        elif event.row.trial in self.owner:
            index, life, asked = self.owner[event.row.trial]
            if self.regions[index].life == life:
                self._tell(self.regions[index], event.row, asked)

    def ask(self, trial: int, point: Points) -> None:
        """A trial is proposed: it belongs to the region that it follows from its place."""
        index = self.designing()
        if index is None:
            index = self.nearest(point)
        region = self.regions[index]
        region.asked += 1
        self.owner[trial] = index, region.life, self.events

    def designing(self) -> int | None:
        """The first region whose design is not complete."""
        return next((i for i, region in enumerate(self.regions) if region.asked < self.initial), None)

    def nearest(self, point: Points) -> int:
        """The region whose best point is nearest (maximum norm) in units of its L; the first while there is none."""
        far = [
            np.inf if region.best is None else float(np.abs(point - region.best.point).max()) / region.length
            for region in self.regions
        ]
        return int(np.argmin(far))

    def _tell(self, region: Region, row: Row, asked: int) -> None:
        if not (row.observed or row.low):
            region.asked -= 1
            return
        region.told.append(row)
        best = region.best
        better = row.observed and (best is None or row.target > best.target)
        success = better and best is not None and row.target > best.target + GAIN * abs(best.target)
        if better:
            region.best = row
        if len(region.told) <= self.initial or best is None:
            return
        if success:
            region.successes, region.failures = region.successes + 1, 0
        elif asked > region.since:
            region.successes, region.failures = 0, region.failures + 1
        if region.successes >= SUCCESSES:
            self._resize(region, min(2 * region.length, LONGEST))
        elif region.failures >= self.patience:
            self._resize(region, region.length / 2)

    def _resize(self, region: Region, length: float) -> None:
        region.length, region.successes, region.failures, region.since = length, 0, 0, self.events
        if length < SHORTEST:
            region.restart()


class Turbo:
    """Trust regions with Thompson sampling.

    Args:
        space: what to search.
        settings: number of regions, size of their designs.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: TurboSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.features = Features(space)
        self._design = Design(space, lhs_block(settings.initial, space.dim, seed), seed)
        self._replay = Replay(lambda: Regions(settings.regions, settings.initial, space.dim))  # the three are caches
        self._fitted = Fitted("matern")
        self._memory: Memory = {}

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        asking = Asking(Rows.read(self.space, history, self._memory))
        state = self._replay.of(asking.rows)
        if n > 1:
            state = copy.deepcopy(state)

        def propose(trial: int) -> Found | None:
            found = self._propose(trial, state, asking.taken)
            if found is not None and n > 1:
                state.ask(trial, found[0])
            return found

        return asking.answer(n, propose, lambda: self._decision(state))

    def _decision(self, state: Regions) -> dict[str, Any]:
        regions = [
            {
                "life": region.life,
                "length": region.length,
                "observations": len(region.told),
                "best": None if region.best is None else region.best.trial,
            }
            for region in state.regions
        ]
        return {"optimizer": "turbo", "regions": regions}

    def _propose(self, trial: int, state: Regions, taken: set[Key]) -> Found | None:
        """Canonical point of a trial and how it was found."""
        index = state.designing()
        if index is not None:
            return self._design.proposed(taken, trial, {"phase": "initial", "region": index})
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        drawn: list[tuple[float, int, Points]] = []
        for index, region in enumerate(state.regions):
            for value, point in self._draw(index, region, rng):
                if key_of(self.space, point) not in taken:
                    drawn.append((value, index, point))
                    break
        if not drawn:
            return self._design.proposed(taken, trial, {"phase": "no model"})
        _, index, point = max(drawn, key=lambda entry: entry[:2])
        return point, {"phase": "model", "region": index, "length": state.regions[index].length}

    def _draw(self, index: int, region: Region, rng: np.random.Generator) -> list[tuple[float, Points]]:
        """Candidates of a region with their values in one joint draw, units of the target, best first."""
        if region.best is None:
            return []
        told = Observations.of_rows(self.space, region.told)
        if len(told) > MOST:
            told = told.chosen(np.argsort(np.abs(told.points - region.best.point).max(axis=1), kind="stable")[:MOST])
        outcomes = told.outcomes(self.settings.outcome)
        if len(outcomes) < 2 or not np.ptp(outcomes) > 0:
            return []
        process = self._fitted.process(index, self.features.encode(told.points), outcomes)
        candidates = self._candidates(region.best.point, region.length, process.scales, rng)
        if len(candidates) == 0:
            return []
        values = process.sample(self.features.encode(candidates), rng.standard_normal((len(candidates), 1)))[:, 0]
        order = np.argsort(-values, kind="stable")
        return [(float(process.location + process.spread * values[i]), candidates[i]) for i in order]

    def _candidates(self, centre: Points, length: float, scales: Points, rng: np.random.Generator) -> Points:
        """Allowed canonical points (``m x d``) in the box; each has some coordinates moved, all up to d = 20."""
        dim = self.space.dim
        count = min(CANDIDATES, CANDIDATES_EACH * dim)
        sides = box_sides(self.features, length, scales)
        low, high = np.clip(centre - sides / 2, 0.0, 1.0), np.clip(centre + sides / 2, 0.0, 1.0)
        cube = rng.random((count, dim))
        moved = rng.random((count, dim)) < min(1.0, 20.0 / dim)
        moved[np.arange(count), rng.integers(dim, size=count)] = True
        points = low + cube * (high - low)
        for axis, (_, parameter) in enumerate(self.space):
            if isinstance(parameter, Categorical) and not parameter.ordered:
                points[:, axis] = np.where(cube[:, axis] < min(length, 1.0), rng.random(count), centre[axis])
        points = self.space.snap(np.where(moved, points, centre))
        return points[self.space.allowed(points)] if self.space.constraints else points


def box_sides(features: Features, length: float, scales: Points | Sequence[float]) -> Points:
    """Sides (``d``) of a box of volume ``length^d`` as the length-scales (``c``) stretch it; choices count as 1."""
    own = np.array([1.0 if hot else scales[start] for start, hot in zip(features.start, features.one_hot, strict=True)])
    return np.asarray(length * own / np.exp(np.log(own).mean()), dtype=np.float64)
