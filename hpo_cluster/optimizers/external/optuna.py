"""Optuna's samplers behind our protocol: TPE, a Gaussian process, CMA-ES, NSGA-II. Trials in flight are running ones.

References: T. Akiba, S. Sano, T. Yanase, T. Ohta and M. Koyama, "Optuna: A Next-generation Hyperparameter Optimization
Framework", KDD 2019; J. Bergstra, R. Bardenet, Y. Bengio and B. Kegl, "Algorithms for Hyper-Parameter Optimization",
NIPS 2011 (TPE); N. Hansen and A. Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies",
Evolutionary Computation 9(2), 2001 (CMA-ES); K. Deb, A. Pratap, S. Agarwal and T. Meyarivan, "A Fast and Elitist
Multiobjective Genetic Algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 6(2), 2002.

Symbols: see the documentation of the library, which describes the algorithms.

Deviations from the papers: those of `hpo_cluster.optimizers.external.base`; each trial has its own seed.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Points
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.optimizers.external.base import External, Library
from hpo_cluster.space import Categorical, Integer, Parameter, Space
from hpo_cluster.trial import derive_seed


class OptunaSettings(OptimizerSettings):
    """Settings of Optuna's samplers."""

    sampler: Literal["tpe", "gp", "cmaes", "nsga2"] = Field(
        default="tpe", description="tpe: tree of Parzen estimators; gp: Gaussian process; cmaes; nsga2"
    )
    initial: int = Field(default=10, ge=1, le=100_000, description="random trials before tpe, gp or cmaes decide")

    @property
    def several_faults(self) -> list[str]:
        """Why these settings allow one objective only; empty if they do not."""
        if self.sampler != "cmaes":
            return []
        return [
            "optimizer.sampler=cmaes: has one objective only, and objective.metrics names several; accepted: "
            "nsga2, tpe, gp"
        ]

    @property
    def constraint_faults(self) -> list[str]:
        """Why these settings allow no constraints; empty if they do."""
        kept = self.sampler != "cmaes"
        return [] if kept else ["optimizer.sampler=cmaes: cannot keep objective.constraints; accepted: nsga2, tpe, gp"]


class Optuna(External):
    """Proposes the points of a sampler of Optuna."""

    name = module = "optuna"

    def library(self, data: Dataset) -> Library:
        """Return a study without trials, of the objectives that the history has."""
        return _Study(self.space, self.settings, self.seed, data)


class _Study:
    """An Optuna study.

    CMA-ES and NSGA-II keep their state in attributes of the trials that they make, so these trials are made again. TPE
    and the Gaussian process read only parameters and values, so trials are added with them. With several objectives a
    trial that diverged or was infeasible has the worst value of each, and violates the constraints, if there are any.
    """

    def __init__(self, space: Space, settings: OptunaSettings, seed: int, data: Dataset) -> None:
        if settings.sampler == "gp":
            import torch  # noqa: F401 - before the seeds are set, so that `quiet` knows of it
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.settings, self.seed = space, settings, seed
        self.distributions = {name: self._distribution(name) for name in space.axes}
        self.several, self.constraints = len(data.objectives), data.slacks.shape[1]
        self.worst, self.violations = data.worst_targets, dict[int, list[float]]()
        directions = ["maximize"] * (self.several or 1)
        self.study = optuna.create_study(directions=directions, sampler=self._sampler(seed))
        self.remade = settings.sampler in ("cmaes", "nsga2")
        self.numbers: dict[int, int] = {}  # our trial -> number in the study

    def begin(self, row: Row) -> None:
        """Make the trial again, or add it as a running one."""
        import optuna

        if self.remade:
            asked = self._ask(row.trial, 0)
            if self.space.decode(self._point(asked.params)) != row.configuration:
                self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
                self.study.enqueue_trial(self._parameters(row.point))
                asked = self._ask(row.trial, 0)
            self.numbers[row.trial] = asked.number
            return
        running = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=self._parameters(row.point),
            distributions=self.distributions,
        )
        self.numbers[row.trial] = len(self.study.get_trials(deepcopy=False))
        self.study.add_trial(running)

    def end(self, row: Row, target: float) -> None:
        """Tell the study the value of the trial, or that it failed."""
        import optuna

        number = self.numbers[row.trial]
        if math.isnan(target):
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)
            return
        self.violations[number] = [-slack for slack in row.slacks] if row.observed else [1.0] * self.constraints
        targets = row.targets if row.observed else self.worst
        self.study.tell(number, targets if self.several else target)

    def draw(self, trial: int, attempt: int) -> Points:
        """Return the point of a new trial; the trial itself is thrown away."""
        import optuna

        asked = self._ask(trial, attempt)
        point = self._point(asked.params)
        self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        return point

    def _ask(self, trial: int, attempt: int) -> Any:
        self.study.sampler = self._sampler(derive_seed(self.seed, "ask", trial, attempt))
        return self.study.ask(self.distributions)

    def _sampler(self, seed: int) -> Any:
        from optuna import samplers

        initial = {"seed": seed, "n_startup_trials": self.settings.initial}
        bounds = {"constraints_func": self._violations} if self.constraints else {}
        if self.settings.sampler == "tpe":
            return samplers.TPESampler(**initial, constant_liar=True, **bounds)
        if self.settings.sampler == "gp":
            return samplers.GPSampler(**initial, **bounds)
        if self.settings.sampler == "cmaes":
            return samplers.CmaEsSampler(**initial)
        return samplers.NSGAIISampler(seed=seed, population_size=20, **bounds)

    def _violations(self, trial: Any) -> list[float]:
        """Return how far a trial of the study violates each constraint: above 0 if it does."""
        return self.violations.get(trial.number, [1.0] * self.constraints)

    def _distribution(self, name: str) -> Any:
        from optuna import distributions

        parameter = self.space.parameters[name]
        if isinstance(parameter, Categorical):
            last = len(parameter.choices) - 1
            if parameter.ordered:
                return distributions.IntDistribution(0, last)
            return distributions.CategoricalDistribution(list(range(last + 1)))
        if _stepped(parameter):
            return distributions.IntDistribution(0, (parameter.cardinality or 1) - 1)
        if isinstance(parameter, Integer) and not parameter.log:
            return distributions.IntDistribution(parameter.low, parameter.high)
        return distributions.FloatDistribution(0.0, 1.0)

    def _parameters(self, point: Points) -> dict[str, Any]:
        """Return the parameters of the study at a canonical point (``d``)."""
        out: dict[str, Any] = {}
        for (name, parameter), u in zip(self.space, point, strict=True):
            if isinstance(parameter, Categorical) or _stepped(parameter):
                out[name] = parameter.index(float(u))
            elif isinstance(parameter, Integer) and not parameter.log:
                out[name] = parameter.decode(float(u))
            else:
                out[name] = float(u)
        return out

    def _point(self, parameters: dict[str, Any]) -> Points:
        point = []
        for name, parameter in self.space:
            value = parameters[name]
            if isinstance(parameter, Categorical) or _stepped(parameter):
                value = parameter.encode(parameter.value(value))
            elif isinstance(parameter, Integer) and not parameter.log:
                value = parameter.encode(value)
            point.append(float(value))
        return np.array(point)


def _stepped(parameter: Parameter) -> bool:
    """Return whether the parameter is a number with a step, which the study sees as an index like an ordered choice."""
    return not isinstance(parameter, Categorical) and parameter.step is not None
