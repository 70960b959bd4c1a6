"""Other libraries, each through its own interface and, if it has them, with its own kinds of parameters.

NOMAD has no interface that can be asked; it takes part as the registry's `nomad`.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.optimizers.simulate import Contestant
from hpo_cluster.space import Categorical, Configuration, Integer, Space


@dataclass(frozen=True)
class Peer:
    """A library.

    Args:
        make: of (space, budget, workers, seed).
        module: what must be importable.
        libraries: distributions whose versions belong to a run.
        slow: whether a suggestion takes a tenth of a second or more.
        install: what pip installs it with.
    """

    make: Callable[[Space, int, int, int], Contestant]
    module: str
    libraries: tuple[str, ...]
    slow: bool = False
    install: str = "'.[peers]'"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class OptunaPeer:
    """Optuna with a sampler."""

    def __init__(self, space: Space, seed: int, sampler: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _quiet():
            samplers = {"tpe": optuna.samplers.TPESampler, "gp": optuna.samplers.GPSampler}
            self.study = optuna.create_study(
                direction="maximize", sampler=samplers[sampler](seed=seed, n_startup_trials=10)
            )
        self.space, self.trials = space, dict[int, Any]()

    def ask(self, trial: int) -> Configuration | None:
        """Return a new trial, with suggestions for all its parameters."""
        with _quiet():
            self.trials[trial] = asked = self.study.ask()
            out: Configuration = {}
            for name, p in self.space:
                if isinstance(p, Categorical):
                    out[name] = asked.suggest_categorical(name, p.choices)
                elif isinstance(p, Integer):
                    out[name] = asked.suggest_int(name, p.low, p.high, log=p.log)
                else:
                    out[name] = asked.suggest_float(name, p.low, p.high, log=p.log)
            return out

    def tell(self, trial: int, target: float) -> None:
        """Report the value to the study."""
        with _quiet():
            self.study.tell(self.trials.pop(trial), target)


class AxPeer:
    """Ax's client: its default generation strategy; with several workers its design goes on until results are there."""

    def __init__(self, space: Space, workers: int, seed: int) -> None:
        from ax.api.client import Client
        from ax.api.configs import ChoiceParameterConfig, RangeParameterConfig

        logging.disable(logging.WARNING)  # it sets the levels of its loggers again and again
        parameters: list[Any] = []
        for name, p in space:
            if isinstance(p, Categorical):
                kind = "str" if isinstance(p.choices[0], str) else "float"
                parameters.append(ChoiceParameterConfig(name=name, values=list(p.choices), parameter_type=kind))
                continue
            kind = "int" if isinstance(p, Integer) else "float"
            scaling = "log" if p.log else "linear"
            parameters.append(
                RangeParameterConfig(name=name, bounds=(p.low, p.high), parameter_type=kind, scaling=scaling)
            )
        with _quiet():
            self.client = Client(random_seed=seed)
            self.client.configure_experiment(parameters=parameters)
            self.client.configure_optimization(objective="target")
            self.client.configure_generation_strategy(
                initialization_budget=10,
                initialization_random_seed=seed,
                allow_exceeding_initialization_budget=workers > 1,
                simplify_parameter_changes=False,
            )
        self.indices: dict[int, int] = {}

    def ask(self, trial: int) -> Configuration | None:
        """Return one trial."""
        with _quiet():
            trials = self.client.get_next_trials(max_trials=1)
        if not trials:
            return None
        ((index, configuration),) = trials.items()
        self.indices[trial] = index
        return dict(configuration)

    def tell(self, trial: int, target: float) -> None:
        """Complete the trial."""
        with _quiet():
            self.client.complete_trial(self.indices.pop(trial), raw_data={"target": target})


class SmacPeer:
    """SMAC: a random forest, or a Gaussian process (the facade "black box"), and expected improvement.

    The model is trained again for each suggestion; SMAC's facade for hyperparameters would do so after eight.
    """

    def __init__(self, space: Space, budget: int, workers: int, seed: int, facade: str) -> None:
        import tempfile
        from pathlib import Path

        import ConfigSpace
        import smac

        logging.getLogger("smac").setLevel(logging.ERROR)
        config_space = ConfigSpace.ConfigurationSpace(seed=seed)
        for name, p in space:
            if isinstance(p, Categorical):
                config_space.add(ConfigSpace.Categorical(name, list(p.choices), ordered=p.ordered))
            elif isinstance(p, Integer):
                config_space.add(ConfigSpace.Integer(name, (p.low, p.high), log=p.log))
            else:
                config_space.add(ConfigSpace.Float(name, (p.low, p.high), log=p.log))
        self.space, self.trials = space, dict[int, Any]()
        self.folder = tempfile.TemporaryDirectory(prefix="smac-")  # it goes when this contestant does
        kind = getattr(smac, facade)
        with _quiet():
            scenario = smac.Scenario(
                config_space,
                deterministic=True,
                n_trials=budget + workers,
                seed=seed,
                output_directory=Path(self.folder.name),
            )
            self.smac = kind(
                scenario,
                lambda config, seed=0: 0.0,
                initial_design=kind.get_initial_design(scenario, n_configs=10),
                config_selector=kind.get_config_selector(scenario, retrain_after=1),
                overwrite=True,
                logging_level=False,
            )

    def ask(self, trial: int) -> Configuration | None:
        """Return one configuration. SMAC knows of those in flight and proposes none of them again."""
        with _quiet():
            self.trials[trial] = info = self.smac.ask()
        return {name: _plain(info.config[name], p) for name, p in self.space}

    def tell(self, trial: int, target: float) -> None:
        """Report the value; the cost is its negative."""
        from smac.runhistory.dataclasses import TrialValue

        with _quiet():
            self.smac.tell(self.trials.pop(trial), TrialValue(cost=-target), save=False)


class HeboPeer:
    """HEBO: a Gaussian process on warped outcomes, and a front of three acquisition functions to draw from.

    It does not know of trials in flight: with several workers each suggestion is made without them.
    """

    def __init__(self, space: Space, seed: int) -> None:
        import pymoo.optimize
        import torch
        from hebo.acq_optimizers import evolution_optimizer
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        # HEBO draws from the global generators. It does not hand a seed on to pymoo, which has its own since 0.6.1.
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        evolution_optimizer.minimize = lambda *args, **kwargs: pymoo.optimize.minimize(
            *args,
            seed=np.random.randint(2**31 - 1),  # noqa: NPY002
            **kwargs,
        )
        with _quiet():
            design_space = DesignSpace().parse([_hebo_parameter(name, p) for name, p in space])
            self.hebo = HEBO(design_space, rand_sample=10, scramble_seed=seed)
        self.space, self.suggested = space, dict[int, Any]()

    def ask(self, trial: int) -> Configuration | None:
        """Return one suggestion."""
        with _quiet():
            self.suggested[trial] = frame = self.hebo.suggest(n_suggestions=1)
        row = frame.iloc[0]
        return {name: _plain(row[name], p) for name, p in self.space}

    def tell(self, trial: int, target: float) -> None:
        """Report the value; what HEBO minimises is its negative."""
        with _quiet():
            self.hebo.observe(self.suggested.pop(trial), np.array([[-target]]))


def _hebo_parameter(name: str, p: Any) -> dict[str, Any]:
    """Return a parameter as HEBO wants it."""
    if isinstance(p, Categorical):
        return {"name": name, "type": "cat", "categories": list(p.choices)}
    kind = {(False, False): "num", (False, True): "pow", (True, False): "int", (True, True): "pow_int"}
    return {"name": name, "type": kind[isinstance(p, Integer), p.log], "lb": p.low, "ub": p.high}


class NevergradPeer:
    """Nevergrad with parameters of its own kinds."""

    def __init__(self, space: Space, budget: int, workers: int, seed: int, algorithm: str) -> None:
        import nevergrad

        kinds: dict[str, Any] = {}
        for name, p in space:
            if isinstance(p, Categorical):
                kinds[name] = nevergrad.p.Choice(list(p.choices))
            elif p.log:
                kinds[name] = nevergrad.p.Log(lower=p.low, upper=p.high)
            else:
                kinds[name] = nevergrad.p.Scalar(lower=p.low, upper=p.high)
            if isinstance(p, Integer):
                kinds[name].set_integer_casting()
        parametrization = nevergrad.p.Dict(**kinds)
        parametrization.random_state = np.random.RandomState(seed)
        with _quiet():
            make = nevergrad.optimizers.registry[algorithm]
            self.optimizer = make(parametrization=parametrization, budget=budget, num_workers=workers)
        self.space, self.candidates = space, dict[int, Any]()

    def ask(self, trial: int) -> Configuration | None:
        """Return one candidate."""
        with _quiet():
            self.candidates[trial] = candidate = self.optimizer.ask()
        return {name: _plain(candidate.value[name], p) for name, p in self.space}

    def tell(self, trial: int, target: float) -> None:
        """Report the value; the loss is its negative."""
        with _quiet():
            self.optimizer.tell(self.candidates.pop(trial), -target)


class CmaPeer:
    """CMA-ES (pycma) on the unit cube, from its middle with step 0.25; a generation's values are reported together."""

    def __init__(self, space: Space, seed: int) -> None:
        import cma

        options = {"bounds": [0, 1], "seed": seed + 1, "verbose": -9}
        with _quiet():
            self.strategy = cma.CMAEvolutionStrategy([0.5] * space.dim, 0.25, options)
        self.space, self.asked, self.told = space, dict[int, Any](), list[tuple[Any, float]]()

    def ask(self, trial: int) -> Configuration | None:
        """Return one sample of the generation."""
        with _quiet():
            self.asked[trial] = self.strategy.ask(1)[0]
        return self.space.decode(np.asarray(self.asked[trial]))

    def tell(self, trial: int, target: float) -> None:
        """Report the values of a generation once it is complete."""
        self.told.append((self.asked.pop(trial), -target))
        if len(self.told) == self.strategy.popsize:
            with _quiet():
                self.strategy.tell(*map(list, zip(*self.told, strict=True)))
            self.told = []


def _plain(value: Any, parameter: Any) -> Any:
    """Return a library's scalar as a plain Python value, clipped to the range."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(parameter, Categorical):
        return value
    value = min(max(value, parameter.low), parameter.high)
    return int(value) if isinstance(parameter, Integer) else float(value)


SMAC = ("smac", "ConfigSpace", "scikit-learn")
PEERS: dict[str, Peer] = {
    "optuna-tpe": Peer(lambda s, b, w, seed: OptunaPeer(s, seed, "tpe"), "optuna", ("optuna",)),
    "optuna-gp": Peer(lambda s, b, w, seed: OptunaPeer(s, seed, "gp"), "optuna", ("optuna", "torch"), slow=True),
    "ax": Peer(lambda s, b, w, seed: AxPeer(s, w, seed), "ax", ("ax-platform", "botorch", "torch"), slow=True),
    "smac": Peer(
        lambda s, b, w, seed: SmacPeer(s, b, w, seed, "HyperparameterOptimizationFacade"), "smac", SMAC, slow=True
    ),
    "smac-bb": Peer(lambda s, b, w, seed: SmacPeer(s, b, w, seed, "BlackBoxFacade"), "smac", SMAC, slow=True),
    "hebo": Peer(
        lambda s, b, w, seed: HeboPeer(s, seed),
        "hebo",
        ("HEBO", "pymoo", "torch"),
        slow=True,
        install="disjoint-set pymoo, then pip install --no-deps HEBO",
    ),
    "nevergrad-ngopt": Peer(lambda s, b, w, seed: NevergradPeer(s, b, w, seed, "NGOpt"), "nevergrad", ("nevergrad",)),
    "nevergrad-de": Peer(
        lambda s, b, w, seed: NevergradPeer(s, b, w, seed, "TwoPointsDE"), "nevergrad", ("nevergrad",)
    ),
    "cma": Peer(lambda s, b, w, seed: CmaPeer(s, seed), "cma", ("cma",)),
}
