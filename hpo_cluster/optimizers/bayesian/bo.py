"""Bayesian optimization: a Gaussian process and the noisy expected improvement, without any barrier between trials.

After an initial design, each proposal maximises an acquisition function of a process fitted to what was observed.
Trials in flight take part in it (their outcomes are averaged over), so the next one can be proposed as soon as a worker
is free. ``acquisition: log_ei`` with one worker is the BO-GP of the study of LLM fine-tuning.

References: D. R. Jones, M. Schonlau and W. J. Welch, "Efficient Global Optimization of Expensive Black-Box Functions",
Journal of Global Optimization 13, 455-492, 1998; S. Ament et al., NeurIPS 2023 (arXiv:2310.20708), for LogEI and
qLogNEI; N. Srinivas, A. Krause, S. M. Kakade and M. Seeger, "Gaussian Process Optimization in the Bandit Setting", ICML
2010 (arXiv:0912.3995), for the bound; M. A. Gelbart, J. Snoek and R. P. Adams, "Bayesian Optimization with Unknown
Constraints", UAI 2014 (arXiv:1403.5607), for the weight by feasibility; C. Hvarfner, D. Stoll, A. Souza, M. Lindauer,
F. Hutter and L. Nardi, "piBO: Augmenting Acquisition Functions with User Beliefs for Bayesian Optimization", ICLR 2022
(arXiv:2204.11051), for the priors.

Symbols: ``x`` a point, ``n`` proposals since the initial design, ``pi`` the joint density of the priors.

The acquisition functions are those of `hpo_cluster.optimizers.bayesian.acquisition`:

    qlognei    log of the expected improvement over the best of the observed and pending points, all of them uncertain
    log_ei     the same over the best outcome observed, and over the pending points
    ucb        upper confidence bound, with the posterior mean as the outcome of pending points
    thompson   the highest point of one function drawn from the process; pending points are not used

Configurations that could not be evaluated because of what they are (state ``infeasible``: out of memory, refused) have
no value. Another process learns where they lie, and the acquisition is weighted by the probability of feasibility; ucb
and thompson, which are not logarithms, are lowered by its logarithm where it is below one half. Trials that diverged
are feasible, and count as the worst value so far.

With several objectives, qlognei is the expected gain of hypervolume and parego the improvement of a random weighting;
constraints on what is measured are kept by all (`hpo_cluster.optimizers.bayesian.acquisition_of_several`). Without
constraints, one of the proposals that are in flight together is then sought in the whole space, and the others near a
point of the front: the gain beyond the ends of a front has no bound, so that all would go to the edges of the space.
With several objectives or such constraints the initial design goes on until `initial` trials have ended; otherwise they
need only have begun.
In a campaign with rungs the process has the fidelity as one more column, and what is improved upon are its predictions
at the top: see `hpo_cluster.optimizers.bayesian.rungs`.

If the space has priors, their weight decays: what is maximised is the logarithm of the acquisition plus
``prior_weight / n * log pi(x)`` (piBO), and the initial design is denser where the priors are high.

Deviations from the papers: the process sees the outcomes of `outcome`, by default those below the median nearer to it;
a configuration that was evaluated or is in flight is never proposed again unless `replicates` allows it, so that the
best of the candidates that remain is taken; with more than `AVERAGED` pending points, the process fantasizes its
own mean at the `FANTASIZED` best of them (kriging believer), since averaging over all would cost too much.
``docs/design/surrogate.md`` has the measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Batch, Found, Points
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import OUTCOME, Outcome
from hpo_cluster.optimizers.bayesian.optimize_acquisition import Goal, box_around, search
from hpo_cluster.optimizers.bayesian.rungs import FittedHistory, RungFeatures
from hpo_cluster.optimizers.bayesian.several_objectives import FittedSeveral, SeveralModels
from hpo_cluster.optimizers.bayesian.surrogate import FittedFeasibility, Surrogate, SurrogateError
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.designs.sequence import Design, lhs_block, sobol_block
from hpo_cluster.space import Space
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

    from hpo_cluster.optimizers.bayesian.acquisition import Acquisition

#: Most pending points that are averaged over; if there are more, the process fantasizes its mean at them.
AVERAGED = 48

#: Most pending points at which the process fantasizes its mean: those where it is highest.
FANTASIZED = 128

#: Most objectives whose volume is computed; with more, each proposal weights them at random.
WEIGHTED = 4

#: Of the Monte Carlo samples, several objectives use one in `SHARE`, but not fewer than `LEAST_DRAWS`: each is a front.
SHARE, LEAST_DRAWS = 4, 16

#: Half the side of the box around a point of the front, as a share of each axis.
NEAR = 0.2

#: Acquisition functions that are not logarithms.
NO_LOGARITHMS = ("ucb", "thompson")

#: Number of the best observed points that are searched around.
AROUND = 5


class BOSettings(OptimizerSettings):
    """Settings of Bayesian optimization."""

    acquisition: Literal["qlognei", "log_ei", "ucb", "thompson", "parego"] = Field(
        default="qlognei",
        description="qlognei: noisy expected improvement; log_ei: expected improvement over the best value observed; "
        "ucb: upper confidence bound; thompson: the best point of one function drawn from the model. With several "
        "objectives, qlognei: expected gain of hypervolume; parego: improvement of a weighting drawn for each proposal",
    )
    beta: float = Field(default=4.0, ge=0, le=1e4, description="of ucb: square of the width, in standard deviations")
    initial: int = Field(default=10, ge=1, le=100_000, description="trials of the initial design before the model")
    initial_design: Literal["lhs", "sobol"] = Field(default="lhs", description="how the initial trials are spread")
    outcome: Outcome = Field(
        default=OUTCOME,
        description="what the model sees of values: soft compresses those below the median by a logarithm, ranked "
        "spreads them evenly over as much as the best lies above it, clip raises them to it, winsor raises what is far "
        "below the upper half, raw leaves them alone",
    )
    replicates: bool = Field(
        default=False, description="allow a configuration that was evaluated before to be proposed again"
    )
    prior_weight: float = Field(
        default=5.0, ge=0, description="weight of the space's priors, divided by the number of proposals; 0: none"
    )
    restarts: int = Field(default=4, ge=1, le=64, description="starting points of the acquisition's optimization")
    raw_samples: int = Field(default=512, ge=8, le=65536, description="points scored to choose the starts from")
    mc_samples: int = Field(default=128, ge=16, le=4096, description="Monte Carlo samples of the acquisition function")

    @property
    def several_faults(self) -> list[str]:
        """Why these settings allow one objective only; empty if they do not."""
        if self.acquisition in ("qlognei", "parego"):
            return []
        return [
            f"optimizer.acquisition={self.acquisition}: has one objective only, and objective.metrics names several; "
            "accepted: qlognei, parego"
        ]


class BO:
    """Proposes the best points of an acquisition function of a Gaussian process.

    Args:
        space: what to search.
        settings: acquisition, initial design, outcome.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: BOSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.features = Features(space)
        if settings.initial_design == "lhs":
            block = lhs_block(settings.initial, space.dim, seed)
        else:
            block = sobol_block(space.dim, seed)
        self._design = Design(space, block, seed)
        self._models = FittedHistory(self.features, settings.outcome)  # these four are caches
        self._several = FittedSeveral(self.features, settings.outcome)
        self._feasibility = FittedFeasibility(self.features)
        self._data: Dataset | None = None

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        observations = self._models.observations(data, infeasible=False)
        batch = Batch(data, n)
        decision: dict[str, Any] = {
            "optimizer": "bo",
            "observations": len(observations),
            "pending": len(batch.pending),
            "incumbent": data.incumbent,
        }
        # models of several outcomes that know a few values only mislead all that is in flight: see the measurements
        too_few = bool(data.objectives) and sum(row.state.ended for row in data) < self.settings.initial
        for trial in batch.trials:
            found: Found | None
            if too_few or batch.begun < self.settings.initial:
                found = self._design.next(batch.taken, trial, phase="initial")
            else:
                try:
                    surrogate: Surrogate | SeveralModels
                    if data.objectives:
                        surrogate = self._several.of(data)
                        decision["model"] = surrogate.describe()
                    else:
                        surrogate = self._models.model_of(data, observations)
                        decision["model"] = {"outcome": self.settings.outcome, **surrogate.describe()}
                        if len(surrogate.observations) < len(observations):
                            decision["conditioned_on"] = len(surrogate.observations)
                    feasibility = self._feasibility.of(data)
                    if feasibility is not None:
                        decision["infeasible"] = data.infeasible
                    found = self._modelled(trial, batch, surrogate, feasibility)
                except (SurrogateError, ArithmeticError) as error:
                    decision["fallback"] = str(error)
                    found = self._design.next(batch.taken, trial, phase="model", fallback=str(error))
            if found is None:
                break
            decision["phase"] = found.info["phase"]
            batch.add(found)
        return batch.ask(decision)

    def _modelled(
        self, trial: int, batch: Batch, surrogate: Surrogate | SeveralModels, feasibility: Acquisition | None
    ) -> Found | None:
        """Return the free canonical point of the highest acquisition value; None if none is free."""
        from hpo_cluster.optimizers.bayesian.acquisition import Sum, feasibility_penalty
        from hpo_cluster.optimizers.bayesian.gaussian_process import computing

        settings = self.settings
        seed = derive_seed(self.seed, "ask", trial)
        rng = np.random.default_rng(seed)
        features = self.features if isinstance(surrogate, SeveralModels) else surrogate.features
        low: Points | None = None
        high: Points | None = None
        with computing(seed):
            if isinstance(surrogate, SeveralModels):
                around = rng.permutation(surrogate.front)[:AROUND]
                unbounded = len(surrogate.objectives) > 1 and not surrogate.slacks
                if unbounded and trial % (len(batch.pending) + 1):
                    around = around[:1]
                    low, high = box_around(self.space, around[0], NEAR)
                acquisition = self._acquisition_of_several(surrogate, batch.pending, seed)
            else:
                best = np.argsort(-surrogate.observations.targets, kind="stable")[:AROUND]
                around = surrogate.observations.points[best, : self.space.dim]
                acquisition = self._acquisition(surrogate, batch.pending, seed)
            if feasibility is not None:
                penalised = settings.acquisition in NO_LOGARITHMS
                acquisition = Sum([acquisition, feasibility_penalty(feasibility) if penalised else feasibility])
            found = search(
                Goal(features, acquisition, batch.prior_weight(settings.prior_weight, settings.initial), low, high),
                around,
                set() if settings.replicates else batch.taken,
                settings.restarts,
                settings.raw_samples,
                rng,
            )
        return None if found is None else Found(found[0], {"phase": "model", "acquisition": float(f"{found[1]:.6g}")})

    def _acquisition(self, surrogate: Surrogate, pending: Points, seed: int, best: float | None = None) -> Acquisition:
        """Return the acquisition function, of the columns; log_ei improves on `best`, or on the highest outcome."""
        from hpo_cluster.optimizers.bayesian.acquisition import (
            drawn,
            fantasized,
            improvement,
            noisy_improvement,
            upper_bound,
        )

        process, features, settings = surrogate.process, surrogate.features, self.settings
        if settings.acquisition == "thompson":
            return drawn(process)
        process, columns = fantasized(process, features.encode(pending), AVERAGED, FANTASIZED)
        if settings.acquisition == "ucb":
            return upper_bound(process, columns, settings.beta)
        known = features.whole(process.inputs) if isinstance(features, RungFeatures) else None
        if settings.acquisition == "log_ei":
            highest = best if known is None else float(process.means(known).max())
            return improvement(process, columns, settings.mc_samples, seed, highest)
        return noisy_improvement(process, columns, settings.mc_samples, seed, known)

    def _acquisition_of_several(self, models: SeveralModels, pending: Points, seed: int) -> Acquisition:
        """Return the acquisition function of several objectives, or of one with constraints, of the columns.

        Until a trial satisfies the constraints, it is the probability that they hold.
        """
        from hpo_cluster.optimizers.bayesian.acquisition import Sum, feasibility_penalty
        from hpo_cluster.optimizers.bayesian.acquisition_of_several import (
            allowed_improvement,
            larger_front,
            satisfied,
            weighted,
        )

        processes, columns, settings = models.processes(), self.features.encode(pending), self.settings
        if len(columns) > AVERAGED:
            processes, columns = processes.fantasizing(columns[-FANTASIZED:]), columns[:0]
        if models.best is None and processes.slacks:
            return satisfied(processes.fantasizing(columns))
        draws = settings.mc_samples
        if len(models.objectives) > 1:
            many = len(models.objectives) > WEIGHTED or settings.acquisition == "parego"
            made = (weighted if many else larger_front)(processes, columns, max(draws // SHARE, LEAST_DRAWS), seed)
        elif settings.acquisition in ("qlognei", "parego"):
            made = allowed_improvement(processes, columns, draws, seed)
        else:
            made = self._acquisition(models.first, pending, seed, models.best)
        if not processes.slacks:
            return made
        likely = satisfied(processes)
        return Sum([made, feasibility_penalty(likely, power=1) if settings.acquisition in NO_LOGARITHMS else likely])
