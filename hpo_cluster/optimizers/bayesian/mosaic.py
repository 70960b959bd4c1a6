"""Mosaic: a global process and local ones in cells that shrink with the density of what was evaluated.

Partition trees keep hundreds of workers busy and descend fast into a basin, but spend many evaluations; Bayesian
optimization spends few, but one process of thousands of observations is slow and blind to fine scales. Here a proposal
comes from one of two arms. The global arm maximises the noisy expected improvement of a process of the whole space. The
local arm does so inside a cell, with a process of the observations next to it. A cell is what a partition would leave
of the space around a good point if each part may hold at most ``k`` observations: the cube around the point that holds
its ``k`` nearest. So cells have every size, a cell shrinks by being searched, and one whose best point moves into the
open grows. With many workers several cells are searched side by side. Which arm the next trial is from is drawn in
proportion to how often each has improved the best value recently.

References: R. Munos, "Optimistic Optimization of a Deterministic Function without the Knowledge of its Smoothness",
NeurIPS 2011, for cells that are divided by where was evaluated; D. Eriksson et al., "Scalable Global Optimization via
Local Bayesian Optimization", NeurIPS 2019 (arXiv:1910.01739), for processes in boxes stretched by their length-scales;
A. Pétrowski, "A clearing procedure as a niching method for genetic algorithms", IEEE ICEC 1996, for the choice of
centres; S. Ament et al., NeurIPS 2023 (arXiv:2310.20708), for the acquisition.

Symbols: ``d`` dimensions, ``x`` canonical point, ``P`` pending points, ``k`` capacity of a cell (`CAPACITY` d).

    cell of c      sides ``L l_i / (prod_j l_j)^(1/d)``, with ``L/2`` the distance (maximum norm) from c to its k-th
                   nearest observation and ``l`` the length-scales of its process; around the highest posterior mean
                   inside it
    centres        the best observation, then each time the best that lies in no cell (`CLEARING` times as wide) of a
                   centre chosen before; ``1 + |P| / 16`` of them, at most `CENTRES`; the next is `FADING` times as
                   likely as the one before
    share          ``s_L / (s_L + s_G)``, with ``s`` the share of an arm's trials that ended with a new best value, in
                   which old trials count less (`MEMORY` for each completion), within `SHARES`

A cell whose values differ by noise only (`NOISY`, `DROWNED`) is not searched: the global arm takes that trial.

With `WIDE` trials in flight the models of one trial see the values in one scale, those of the next in another
(``outcome: varied``): which scale is best differs from one landscape to the next, and proposals that all use one scale
are alike. Both arms use infeasible configurations and priors as `bo` does.

Deviations from the paper: it follows no single paper. Trials that diverged count as the worst value so far. With more
than `AVERAGED` pending points, the process fantasizes its own mean at the `FANTASIZED` best or nearest ones instead of
averaging over their outcomes. Integers and choices are rounded before they are scored; unordered choices are never cut
by a cell. ``docs/design/hybrid.md`` has the alternatives that were tried, and the figures.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Batch, Found, Points
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import VARIED, Observations, Outcome
from hpo_cluster.optimizers.bayesian.optimize_acquisition import ENUMERATED, Goal, search
from hpo_cluster.optimizers.bayesian.surrogate import Fitted, FittedFeasibility, FittedModels, SurrogateError
from hpo_cluster.optimizers.bayesian.turbo import box_sides
from hpo_cluster.optimizers.dataset import Dataset, Moment, Row
from hpo_cluster.optimizers.designs.sequence import Design, lhs_block
from hpo_cluster.optimizers.replay import Replay
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask, Origin, derive_seed

if TYPE_CHECKING:
    import pandas as pd

    from hpo_cluster.optimizers.bayesian.acquisition import Acquisition
    from hpo_cluster.optimizers.bayesian.gaussian_process import Process

#: Observations in a cell for each dimension.
CAPACITY = 2

#: Most observations that a local process is fitted to.
LOCAL_MOST = 100

#: Most cells that are searched side by side, the likelihood of each relative to the one before, and how far apart
#: their centres lie.
CENTRES, FADING, CLEARING = 16, 0.7, 1.5

#: Best observations among which the centres are chosen.
ELIGIBLE = 200

#: A cell is not searched if the noise is more than `NOISY` of the variance around it, and the means inside it differ by
#: less than `DROWNED` standard deviations of the noise.
NOISY, DROWNED = 1e-3, 3.0

#: Shortest side of a cell.
SHORTEST = 1e-6

#: Bounds of the share of local proposals, and the factor of the arms' past successes at each completion.
SHARES, MEMORY = (0.15, 0.85), 0.97

#: Least number of trials in flight with which the outcomes are varied.
WIDE = 16

#: Most pending points that are averaged over; if there are more, the number of those at which the process fantasizes.
AVERAGED, FANTASIZED = 32, 96

#: Monte Carlo draws of the acquisition function, samples and starting points of its search, and the number of the best
#: points that it searches around.
DRAWS, SAMPLES, RESTARTS, BEST = 256, 256, 3, 5


class MosaicSettings(OptimizerSettings):
    """Settings of `mosaic`."""

    initial: int = Field(default=10, ge=2, le=100_000, description="trials of the initial design before the models")
    outcome: Literal["varied", "ranked", "soft", "clip", "winsor", "raw"] = Field(
        default="varied",
        description="what the models see of values, as in bo; varied: soft, and in turn with winsor and clip where "
        f"{WIDE} or more trials are in flight",
    )
    prior_weight: float = Field(
        default=5.0, ge=0, description="weight of the space's priors, divided by the number of proposals; 0: none"
    )
    local: float | None = Field(
        default=None, ge=0, le=1, description="share of the proposals inside cells; null: as the results decide"
    )


class Credit:
    """Says which arm each trial is from, and how often each arm has improved the best value recently.

    Args:
        settings: of the optimizer.
        seed: of the campaign.
    """

    def __init__(self, settings: MosaicSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.asked = 0
        self.best = -math.inf
        self.local: dict[int, bool] = {}  # of the trials in flight
        self.successes, self.ends = [1.0, 1.0], [2.0, 2.0]  # of the global arm and of the local one

    @property
    def share(self) -> float:
        """The probability of the local arm."""
        if self.settings.local is not None:
            return self.settings.local
        rates = [success / end for success, end in zip(self.successes, self.ends, strict=True)]
        return min(max(rates[1] / (rates[0] + rates[1]), SHARES[0]), SHARES[1])

    def is_local(self, trial: int) -> bool:
        """Return whether the local arm would propose that trial now."""
        return derive_seed(self.seed, "arm", trial) / 2**31 < self.share

    def apply(self, moment: Moment) -> None:
        """Take one more moment into account."""
        for row, ended in moment.by_trial():
            if ended:
                self._end(row)
                continue
            self.asked += 1
            if self.asked > self.settings.initial and row.origin is Origin.EVALUATED:
                self.local[row.trial] = self.is_local(row.trial)

    def _end(self, row: Row) -> None:
        arm = self.local.pop(row.trial, None)
        if arm is not None and (row.observed or row.low):
            self.successes = [1.0 + MEMORY * (success - 1.0) for success in self.successes]
            self.ends = [2.0 + MEMORY * (end - 2.0) for end in self.ends]
            self.ends[arm] += 1.0
            self.successes[arm] += row.observed and row.target > self.best
        if row.observed:
            self.best = max(self.best, row.target)


class Mosaic:
    """Proposes the best points of the acquisition functions of a global process and of local ones in cells.

    Args:
        space: what to search.
        settings: initial design, outcome, share of local proposals.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: MosaicSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.features = Features(space)
        parameters = [parameter for _, parameter in space]
        self._unordered = np.array([parameter.unordered for parameter in parameters])
        self._step = np.array([1.0 / p.cardinality if p.cardinality else 0.0 for p in parameters])
        self._design = Design(space, lhs_block(settings.initial, space.dim, seed), seed)
        self._outcomes = VARIED if settings.outcome == "varied" else (settings.outcome,)
        self._replay = Replay(lambda: Credit(settings, seed))  # a cache, like those below
        self._fitted = Fitted(CENTRES * len(VARIED))
        self._models = {outcome: FittedModels(self.features, outcome) for outcome in self._outcomes}
        self._feasibility = FittedFeasibility(self.features)
        self._data: Dataset | None = None

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        observations = Observations.of(data, infeasible=False)
        feasibility = self._feasibility.of(data)
        credit = self._replay.of(data)
        batch = Batch(data, n)
        decision: dict[str, Any] = {
            "optimizer": "mosaic",
            "observations": len(observations),
            "pending": len(batch.pending),
            "incumbent": data.incumbent,
            "local_share": round(credit.share, 6),
        }
        if feasibility is not None:
            decision["infeasible"] = data.infeasible
        alike = len(observations) < 2 or not np.ptp(observations.targets) > 0
        for trial in batch.trials:
            found: Found | None
            if alike or batch.begun < self.settings.initial:
                found = self._design.next(batch.taken, trial, phase="initial")
            else:
                try:
                    found = self._modelled(trial, credit.is_local(trial), batch, observations, feasibility)
                except (SurrogateError, ArithmeticError) as error:
                    found = self._design.next(batch.taken, trial, phase="model", fallback=str(error))
            if found is None:
                break
            batch.add(found)
        return batch.ask(decision)

    def _modelled(
        self, trial: int, local: bool, batch: Batch, observations: Observations, feasibility: Acquisition | None
    ) -> Found | None:
        """Return the free canonical point of the highest acquisition value that an arm finds; None if none is free."""
        from hpo_cluster.optimizers.bayesian.gaussian_process import computing

        seed = derive_seed(self.seed, "ask", trial)
        outcome = self._outcomes[trial % len(self._outcomes) if len(batch.pending) >= WIDE else 0]
        rng = np.random.default_rng(seed)
        info: dict[str, Any] = {"arm": "global", "outcome": outcome}
        with computing(seed):
            goal, near = None, observations
            if local and self.space.size - len(batch.taken) > ENUMERATED:
                goal, near, side = self._cell(observations, batch.pending, outcome, rng, seed) or (None, near, 0.0)
                if goal is not None:
                    info |= {"arm": "local", "side": float(f"{side:.4g}")}
            if goal is None:
                process = self._models[outcome].model_of(observations).process
                goal = Goal(self.features, self._improvement(process, self.features.encode(batch.pending), seed))
            weight = batch.prior_weight(self.settings.prior_weight, self.settings.initial)
            goal = replace(goal, acquisition=self._weighted(goal.acquisition, feasibility), prior_weight=weight)
            best = near.points[np.argsort(-near.targets, kind="stable")[:BEST]]
            found = search(goal, best, batch.taken, RESTARTS, SAMPLES, rng)
        return None if found is None else Found(found[0], info)

    def _weighted(self, acquisition: Acquisition, feasibility: Acquisition | None) -> Acquisition:
        """Return an acquisition function weighted by the probability of feasibility."""
        from hpo_cluster.optimizers.bayesian.acquisition import Sum

        return acquisition if feasibility is None else Sum([acquisition, feasibility])

    def _cell(
        self, observations: Observations, pending: Points, outcome: Outcome, rng: np.random.Generator, seed: int
    ) -> tuple[Goal, Observations, float] | None:
        """Return what is maximised in a cell around one of the centres, the observations of the cell and its side.

        None if a process is of no use there: the observations are all alike, or differ by noise only.
        """
        capacity = CAPACITY * self.space.dim
        centre = self._centre(observations, capacity, 1 + len(pending) // 16, rng)
        far = self._distances(observations.points, centre)
        order = np.argsort(far, kind="stable")
        side = float(np.clip(2 * far[order[min(capacity, len(order) - 1)]], SHORTEST, 1.0))
        near = observations.chosen(np.sort(order[:LOCAL_MOST]))
        outcomes = near.outcomes(outcome)
        if not np.ptp(outcomes) > 0:
            return None
        units = self.features.units(side)
        process = self._fitted.process(outcome, self.features.encode(near.points), outcomes, units=units)
        sides = np.maximum(box_sides(self.features, side, np.clip(process.scales, 0.05, 20.0)), 3.0 * self._step)
        sides = np.where(self._unordered, 2.0, np.clip(sides, side / 3, np.maximum(3 * side, 3.0 * self._step)))
        inside = near.points[(np.abs(near.points - centre) <= sides / 2).all(axis=1)]
        if len(inside):
            means = process.means(self.features.encode(inside))
            if process.noise > NOISY and np.ptp(means) < DROWNED * math.sqrt(process.noise):
                return None
            centre = inside[int(means.argmax())]
        low, high = np.clip(centre - sides / 2, 0.0, 1.0), np.clip(centre + sides / 2, 0.0, 1.0)
        if len(pending):
            away = (np.abs(pending - centre) / sides).max(axis=1)
            nearest = np.argsort(away, kind="stable")[:FANTASIZED]
            pending = pending[nearest[away[nearest] < 1.0]]
        acquisition = self._improvement(process, self.features.encode(pending), seed)
        return Goal(self.features, acquisition, low=low, high=high), near, side

    def _improvement(self, process: Process, pending: Points, seed: int) -> Acquisition:
        """Return the acquisition function of an arm; `pending` are its inputs (``p x c``)."""
        from hpo_cluster.optimizers.bayesian.acquisition import fantasized, noisy_improvement

        return noisy_improvement(*fantasized(process, pending, AVERAGED, FANTASIZED), DRAWS, seed)

    def _centre(self, observations: Observations, capacity: int, most: int, rng: np.random.Generator) -> Points:
        """Draw one of the centres (``d``)."""
        points, widths, centres = observations.points, list[float](), list[Points]()
        last = min(capacity, len(points) - 1)
        for i in np.argsort(-observations.targets, kind="stable")[:ELIGIBLE]:
            if all(self._distances(points[i][None], c)[0] >= width for c, width in zip(centres, widths, strict=True)):
                far = self._distances(points, points[i])
                centres.append(points[i])
                widths.append(CLEARING * float(np.partition(far, last)[last]))
            if len(centres) == min(most, CENTRES):
                break
        likely = FADING ** np.arange(len(centres))
        return centres[int(rng.choice(len(centres), p=likely / likely.sum()))]

    def _distances(self, points: Points, centre: Points) -> Points:
        """Return the distances (``n``, maximum norm) from `centre`, without unordered choices."""
        return np.asarray(np.where(self._unordered, 0.0, np.abs(points - centre)).max(axis=1), dtype=np.float64)
