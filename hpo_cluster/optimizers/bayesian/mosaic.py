"""Mosaic: a global process and local ones in cells that shrink with the density of what was evaluated.

Partition trees keep hundreds of workers busy and descend fast into a basin, but spend many evaluations; Bayesian
optimization spends few, but one process of thousands of observations is slow and blind to fine scales. Here a proposal
comes from one of two arms. The global arm maximises the noisy expected improvement of a process of the whole space. The
local arm does so inside a cell, with a process of the observations next to it. A cell is what a partition would leave
of the space around a good point once each of its parts may hold no more than ``k`` observations: the cube around the
point that holds its ``k`` nearest. So cells have every size, a cell that is searched shrinks by being searched, and one
whose best point moves into the open grows. With many workers several cells are
searched side by side. Which arm the next trial is from is drawn in proportion to how often each has improved the best
value of late.

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
    share          ``s_L / (s_L + s_G)``, with ``s`` the share of an arm's trials that ended with a new best value, old
                   ones being forgotten (`MEMORY` for each completion), within `SHARES`

What differs inside a cell by noise alone (`NOISY`, `DROWNED`) is not searched: the global arm takes that trial.

With `WIDE` trials in flight the models of one trial see the values in one scale, those of the next in another
(``outcome: varied``): which scale is best differs from one landscape to the next, and so many proposals that rest on
one view of it are alike. Infeasible configurations and priors have their say in both arms as in `bo`.

Deviations from the paper: there is none that it follows. Trials that diverged count as the worst value so far. Of more
than `AVERAGED` pending points, the process believes its own mean at the `BELIEVED` best or nearest ones instead of
averaging over their outcomes. Integers and choices are rounded before they are scored; unordered choices are never cut
by a cell. ``docs/design/hybrid.md`` has what was tried beside this, and the figures.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.ask import Asking, Found, Points
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.bayesian.acquisition import (
    Acquisition,
    Feasibility,
    NoisyImprovement,
    Scaled,
    Sum,
    believed,
)
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.gaussian_process import Fitted, Process
from hpo_cluster.optimizers.bayesian.observations import VARIED, Observations, Outcome
from hpo_cluster.optimizers.bayesian.optimize_acquisition import ENUMERATED, Goal, search
from hpo_cluster.optimizers.bayesian.surrogate import FittedFeasibility, FittedModels, SurrogateError
from hpo_cluster.optimizers.bayesian.turbo import box_sides
from hpo_cluster.optimizers.dataset import Memory, Rows
from hpo_cluster.optimizers.designs.sequence import Design, lhs_block
from hpo_cluster.optimizers.replay import Event, Replay
from hpo_cluster.space import Categorical, Space
from hpo_cluster.trial import Ask, Origin, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: Observations in a cell for each dimension.
CAPACITY = 2

#: Observations that a local process is fitted to at most.
LOCAL_MOST = 100

#: Most cells that are searched side by side, their likelihoods and how far apart they lie.
CENTRES, FADING, CLEARING = 16, 0.7, 1.5

#: A cell is not worth a search where the noise is more than this share of the variance next to it, and the means inside
#: it differ by less than so many of its standard deviations.
NOISY, DROWNED = 1e-3, 3.0

#: Shortest side of a cell.
SHORTEST = 1e-6

#: Bounds of the share of local proposals, and what is left of the memory of the arms' successes after a completion.
SHARES, MEMORY = (0.15, 0.85), 0.97

#: Trials in flight from which on the outcomes are varied.
WIDE = 16

#: Pending points that are averaged over at most; of more, how many are believed.
AVERAGED, BELIEVED = 32, 96

#: Monte Carlo draws of the acquisition function, samples and starting points of its search, and the best points that it
#: looks around.
DRAWS, SAMPLES, RESTARTS, BEST = 64, 256, 3, 5


class MosaicSettings(OptimizerSettings):
    """Settings of `mosaic`."""

    initial: int = Field(default=10, ge=2, le=100_000, description="trials of the initial design before the models")
    outcome: Literal["varied", "soft", "clip", "winsor", "raw"] = Field(
        default="varied",
        description="what the models see of values, as in bo; varied: soft, and in turn with winsor and clip where "
        f"{WIDE} or more trials are in flight",
    )
    prior_weight: float = Field(
        default=5.0, ge=0, description="say of the space's priors, divided by the number of proposals; 0: none"
    )
    local: float | None = Field(
        default=None, ge=0, le=1, description="share of the proposals inside cells; null: as the results decide"
    )


class Credit:
    """Which arm each trial is from, and how often either has improved the best value of late.

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
        """Probability of the local arm."""
        if self.settings.local is not None:
            return self.settings.local
        rates = [success / end for success, end in zip(self.successes, self.ends, strict=True)]
        return min(max(rates[1] / (rates[0] + rates[1]), SHARES[0]), SHARES[1])

    def is_local(self, trial: int) -> bool:
        """Whether the local arm proposes that trial now."""
        return derive_seed(self.seed, "arm", trial) / 2**31 < self.share

    def apply(self, event: Event) -> None:
        """Take one more event into account."""
        row = event.row
        if not event.ended:
            self.asked += 1
            if self.asked > self.settings.initial and row.origin is Origin.EVALUATED:
                self.local[row.trial] = self.is_local(row.trial)
            return
        arm = self.local.pop(row.trial, None)
        if arm is not None and (row.observed or row.low):
            self.successes = [1.0 + MEMORY * (success - 1.0) for success in self.successes]
            self.ends = [2.0 + MEMORY * (end - 2.0) for end in self.ends]
            self.ends[arm] += 1.0
            self.successes[arm] += row.observed and row.target > self.best
        if row.observed:
            self.best = max(self.best, row.target)


class Mosaic:
    """A global process and local ones in cells.

    Args:
        space: what to search.
        settings: initial design, outcome, share of local proposals.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: MosaicSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.features = Features(space)
        parameters = [parameter for _, parameter in space]
        self._unordered = np.array([isinstance(p, Categorical) and not p.ordered for p in parameters])
        self._step = np.array([1.0 / p.cardinality if p.cardinality else 0.0 for p in parameters])
        self._design = Design(space, lhs_block(settings.initial, space.dim, seed), seed)
        self._replay = Replay(lambda: Credit(settings, seed))  # a cache, and so are those below
        self._fitted = Fitted("matern")
        self._outcomes = VARIED if settings.outcome == "varied" else (settings.outcome,)
        self._models = {outcome: FittedModels(self.features, outcome) for outcome in self._outcomes}
        self._feasibility = FittedFeasibility(self.features)
        self._memory: Memory = {}

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        asking = Asking(Rows.read(self.space, history, self._memory))
        observations = Observations.of(asking.rows, infeasible=False)
        feasibility = self._feasibility.of(asking.rows)
        credit = self._replay.of(asking.rows)
        decision: dict[str, Any] = {
            "optimizer": "mosaic",
            "observations": len(observations),
            "pending": len(asking.pending),
            "incumbent": asking.incumbent,
            "local_share": round(credit.share, 6),
        }
        if feasibility is not None:
            decision["infeasible"] = asking.rows.infeasible

        def propose(trial: int) -> Found | None:
            if asking.begun < self.settings.initial or len(observations) < 2 or not np.ptp(observations.targets) > 0:
                return self._design.proposed(asking.taken, trial, {"phase": "initial"})
            try:
                return self._modelled(trial, credit.is_local(trial), asking, observations, feasibility)
            except (SurrogateError, ArithmeticError) as error:
                return self._design.proposed(asking.taken, trial, {"phase": "model", "fallback": str(error)})

        return asking.answer(n, propose, lambda: decision)

    def _modelled(
        self, trial: int, local: bool, asking: Asking, observations: Observations, feasibility: Feasibility | None
    ) -> Found | None:
        """The free canonical point of the highest acquisition value that an arm finds, and how it was found."""
        seed = derive_seed(self.seed, "ask", trial)
        outcome = self._outcomes[trial % len(self._outcomes) if len(asking.pending) >= WIDE else 0]
        rng = np.random.default_rng(seed)
        info: dict[str, Any] = {"arm": "global", "outcome": outcome}
        goal, near = None, observations
        if local and self.space.size - len(asking.taken) > ENUMERATED:
            goal, near, side = self._cell(observations, asking.pending, outcome, rng, seed) or (None, observations, 0.0)
            if goal is not None:
                info |= {"arm": "local", "side": float(f"{side:.4g}")}
        if goal is None:
            process = self._models[outcome].model_of(observations).process
            goal = Goal(self.features, self._improvement(process, self.features.encode(asking.pending), seed))
        if feasibility is not None:
            goal = replace(goal, acquisition=Sum([goal.acquisition, feasibility]))
        goal = replace(goal, prior_weight=asking.decayed(self.settings.prior_weight, self.settings.initial))
        best = near.points[np.argsort(-near.targets, kind="stable")[:BEST]]
        found = search(goal, best, asking.taken, RESTARTS, SAMPLES, rng)
        return None if found is None else (found[0], info)

    def _cell(
        self, observations: Observations, pending: Points, outcome: Outcome, rng: np.random.Generator, seed: int
    ) -> tuple[Goal, Observations, float] | None:
        """What is maximised in a cell around one of the centres, the cell's observations and its side.

        None where a process cannot tell anything there: its observations are all alike, or differ by noise alone.
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
        process = self._fitted.process(outcome, self.features.encode(near.points) / units, outcomes)
        sides = np.maximum(box_sides(self.features, side, np.clip(process.scales, 0.05, 20.0)), 3.0 * self._step)
        sides = np.where(self._unordered, 2.0, np.clip(sides, side / 3, np.maximum(3 * side, 3.0 * self._step)))
        inside = near.points[(np.abs(near.points - centre) <= sides / 2).all(axis=1)]
        if len(inside):
            means = process.posterior(self.features.encode(inside) / units)[0]
            if process.noise > NOISY and np.ptp(means) < DROWNED * math.sqrt(process.noise):
                return None
            centre = inside[int(means.argmax())]
        low, high = np.clip(centre - sides / 2, 0.0, 1.0), np.clip(centre + sides / 2, 0.0, 1.0)
        if len(pending):
            away = (np.abs(pending - centre) / sides).max(axis=1)
            nearest = np.argsort(away, kind="stable")[:BELIEVED]
            pending = pending[nearest[away[nearest] < 1.0]]
        acquisition = self._improvement(process, self.features.encode(pending) / units, seed)
        return Goal(self.features, Scaled(acquisition, units), low=low, high=high), near, side

    def _improvement(self, process: Process, pending: Points, seed: int) -> Acquisition:
        """The acquisition function of an arm; `pending` are its inputs (``p x c``)."""
        return NoisyImprovement(*believed(process, pending, AVERAGED, BELIEVED), DRAWS, seed)

    def _centre(self, observations: Observations, capacity: int, most: int, rng: np.random.Generator) -> Points:
        """One of the centres (``d``)."""
        points, widths, centres = observations.points, list[float](), list[Points]()
        for i in np.argsort(-observations.targets, kind="stable")[:200]:
            if all(self._distances(points[i][None], c)[0] >= width for c, width in zip(centres, widths, strict=True)):
                far = self._distances(points, points[i])
                centres.append(points[i])
                widths.append(
                    CLEARING * float(np.partition(far, min(capacity, len(far) - 1))[min(capacity, len(far) - 1)])
                )
            if len(centres) == min(most, CENTRES):
                break
        likely = FADING ** np.arange(len(centres))
        return centres[int(rng.choice(len(centres), p=likely / likely.sum()))]

    def _distances(self, points: Points, centre: Points) -> Points:
        """Maximum norm (``n``) of the way from `centre`, unordered choices left out."""
        return np.asarray(np.where(self._unordered, 0.0, np.abs(points - centre)).max(axis=1), dtype=np.float64)
