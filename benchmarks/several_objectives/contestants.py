"""The contestants: optimizers of the registry, and Optuna's samplers by their own interface.

A contestant's name is ``optimizer`` or ``optimizer[setting=value,...]`` for ours, and ``peer:optuna-SAMPLER``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from typing import Any

from benchmarks.optimizers import contestants as of_one
from benchmarks.several_objectives.problems import Metrics, Problem
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.campaign_state import asked_rows
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.space import Categorical, Configuration, Integer

NAMES = ("bo", "random", "peer:optuna-nsga2", "peer:optuna-tpe", "peer:optuna-gp")

#: Generations of NSGA-II: Optuna's 50 would be one generation, that is random search, in 50 evaluations.
POPULATION = 20


class Ours:
    """An optimizer of the registry, asked with a history as in a campaign.

    Args:
        name: of the contestant.
        problem: to optimise.
        seed: of the campaign.
    """

    def __init__(self, name: str, problem: Problem, seed: int) -> None:
        key, settings = of_one.parse(name)
        goals = problem.open_goals
        self._first = goals.metrics[0]
        maximize = self._first.direction == "maximize"
        self._journal = MemoryJournal(problem.space.names, maximize=maximize, goals=goals)
        self._optimizer = make_optimizer(key, problem.space, seed, **settings)

    def ask(self, trial: int) -> Configuration | None:
        """Return the proposal of the optimizer."""
        ask = self._optimizer.ask(self._journal.history(), 1)
        self._journal.append("asked", trials=asked_rows(ask, trial, 0))
        return dict(ask.proposals[0].parameters) if ask.proposals else None

    def tell(self, trial: int, metrics: Metrics) -> None:
        """Complete the row of the trial."""
        value = metrics[self._first.name]
        self._journal.append("ended", trial=trial, state="completed", value=value, metrics=dict(metrics))


class OptunaPeer:
    """Optuna with a sampler.

    Args:
        sampler: ``nsga2``, ``tpe`` or ``gp``.
        problem: to optimise.
        seed: of the sampler.
    """

    def __init__(self, sampler: str, problem: Problem, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._goals = problem.space, problem.open_goals
        options: dict[str, Any] = {"seed": seed}
        if self._goals.constraints:
            options["constraints_func"] = lambda trial: trial.user_attrs["violations"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental
            made = {
                "nsga2": lambda: optuna.samplers.NSGAIISampler(population_size=POPULATION, **options),
                "tpe": lambda: optuna.samplers.TPESampler(n_startup_trials=10, constant_liar=True, **options),
                "gp": lambda: optuna.samplers.GPSampler(n_startup_trials=10, **options),
            }[sampler]()
        self._study = optuna.create_study(directions=[goal.direction for goal in self._goals.metrics], sampler=made)
        self._trials = dict[int, Any]()

    def ask(self, trial: int) -> Configuration | None:
        """Return a new trial, with suggestions for all its active parameters."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trials[trial] = asked = self._study.ask()
            out: Configuration = {}
            for name in self._space.order:
                parameter = self._space.parameters[name]
                if not self._space.is_active(name, out):
                    continue
                if isinstance(parameter, Categorical):
                    out[name] = asked.suggest_categorical(name, parameter.choices)
                elif isinstance(parameter, Integer):
                    step = 1 if parameter.log else int(parameter.step or 1)
                    out[name] = asked.suggest_int(name, parameter.low, parameter.high, step=step, log=parameter.log)
                else:
                    width = None if parameter.log else parameter.step
                    out[name] = asked.suggest_float(name, parameter.low, parameter.high, step=width, log=parameter.log)
            return out

    def tell(self, trial: int, metrics: Metrics) -> None:
        """Report the values to the study."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = self._trials.pop(trial)
            asked.set_user_attr("violations", [-slack for slack in self._goals.slacks(metrics)])
            self._study.tell(asked, [metrics[goal.name] for goal in self._goals.metrics])


def missing(name: str) -> str:
    """Return why a contestant cannot take part here; empty if it can."""
    if not name.startswith("peer:"):
        return of_one.missing(name)
    if name not in NAMES:
        return f"{name}: is unknown; there are {', '.join(NAMES)}"
    absent = importlib.util.find_spec("optuna") is None
    return f"{name}: left out, optuna is not installed (pip install '.[peers]')" if absent else ""


def make(name: str, problem: Problem, seed: int) -> Ours | OptunaPeer:
    """Return the contestant of that name."""
    if name.startswith("peer:optuna-"):
        return OptunaPeer(name.removeprefix("peer:optuna-"), problem, seed)
    return Ours(name, problem, seed)


def versions(name: str) -> dict[str, str]:
    """Return what a run depends on besides its arguments."""
    if not name.startswith("peer:"):
        return of_one.versions(name)
    return {library: importlib.metadata.version(library) for library in ("optuna", "torch")}
