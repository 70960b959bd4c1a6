"""Optimizers of other libraries behind our protocol: Optuna's samplers, Nevergrad's algorithms, and NOMAD.

Each `ask` rebuilds the library's state from the history: it tells the library what was asked and what ended, in the
order of these events (columns `asked_seq` and `ended_seq`; without them in the order of the trials), and then asks for
one more. So nothing of theirs is saved, and resuming, asynchronous workers and replay work as for our own optimizers.
Trials in flight are running ones for Optuna, and asked but not told ones for Nevergrad; NOMAD knows no such thing, and
goes on as if they had failed until their values are there. A trial that diverged or was infeasible counts as the worst
value observed so far; one that failed is not told.

The libraries see the unit cube: a coordinate for each parameter, or the index of the value where there are few.

References: T. Akiba, S. Sano, T. Yanase, T. Ohta and M. Koyama, "Optuna: A Next-generation Hyperparameter Optimization
Framework", KDD 2019; J. Bergstra, R. Bardenet, Y. Bengio and B. Kegl, "Algorithms for Hyper-Parameter Optimization",
NIPS 2011 (TPE); N. Hansen and A. Ostermeier, "Completely Derandomized Self-Adaptation in Evolution Strategies",
Evolutionary Computation 9(2), 2001 (CMA-ES); K. Deb, A. Pratap, S. Agarwal and T. Meyarivan, "A Fast and Elitist
Multiobjective Genetic Algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 6(2), 2002; J. Rapin and O.
Teytaud, "Nevergrad: A gradient-free optimization platform", 2018; C. Audet, S. Le Digabel, V. Rochon Montplaisir and C.
Tribes, "Algorithm 1027: NOMAD version 4: Nonlinear optimization with the MADS algorithm", ACM Transactions on
Mathematical Software 48(3), 2022.

Symbols: none; each library's own documentation has its algorithms.

Deviations from the papers: in the place of a configuration that is taken, or that the constraints do not allow, the
library is asked again, `ATTEMPTS` times, then a free one is drawn at random; inactive parameters stand in the middle of
their axes; of priors the libraries know nothing; Optuna's samplers get a seed of their own for each trial; NOMAD is run
anew for each proposal, its blackbox answering from the history until it wants a point that is not there.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib.util
import logging
import math
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.rows import Key, Row, Rows, free_point, key_of
from hpo_cluster.space import Categorical, Configuration, Integer, Space
from hpo_cluster.trial import Ask, Origin, Proposal, State, derive_seed

if TYPE_CHECKING:
    import pandas as pd

Point: TypeAlias = NDArray[np.float64]

#: Times that a library is asked again where its answer is taken, before a free configuration is drawn.
ATTEMPTS = 12

#: What NOMAD is told of a point without a value: worse than any.
UNKNOWN = b"1e20"

#: Finite spaces up to this size are drawn from at random: NOMAD goes round in them and does not end.
SMALL = 200

#: NOMAD's generator takes as many steps as its seed says before it begins: seeds are kept small.
SEEDS = 10_000


class OptunaSettings(OptimizerSettings):
    """Settings of Optuna's samplers."""

    sampler: Literal["tpe", "gp", "cmaes", "nsga2"] = Field(
        default="tpe", description="tpe: tree of Parzen estimators; gp: Gaussian process; cmaes; nsga2"
    )
    initial: int = Field(default=10, ge=1, le=100_000, description="random trials before tpe, gp or cmaes decide")


class NevergradSettings(OptimizerSettings):
    """Settings of Nevergrad."""

    algorithm: str = Field(
        default="CMA", description="a name of Nevergrad's registry: CMA, OnePlusOne, TwoPointsDE, PSO…"
    )
    budget: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="evaluations that the algorithm plans for; empty: the campaign's budget (100 where there is none)",
    )
    workers: int = Field(
        default=4,
        ge=2,
        le=100_000,
        description="parallel evaluations that the algorithm plans for; at least 2, since what is made for one at a "
        "time waits for ever where a trial fails",
    )


class NomadSettings(OptimizerSettings):
    """Settings of NOMAD."""

    initial: int = Field(default=10, ge=1, le=100_000, description="points of the Latin hypercube that it starts from")


class Event(NamedTuple):
    """A trial was asked for, or ended; `target` is NaN where it ended without saying anything."""

    asked: bool
    row: Row
    target: float


def events_of(rows: Rows, history: pd.DataFrame) -> list[Event]:
    """What happened, in order: by the sequence numbers where all are there, else one trial after another."""
    worst = min((row.target for row in rows if row.observed), default=math.nan)
    numbers = _sequence_numbers(history)
    events: list[tuple[float, int, int, Event]] = []
    for row in rows:
        asked, ended = numbers.get(row.trial, (math.nan, math.nan)) if numbers else (row.trial, row.trial + 0.5)
        events.append((asked, 0, row.trial, Event(True, row, math.nan)))
        if row.state.ended:
            target = row.target if row.observed else worst if row.low else math.nan
            events.append((ended, 1, row.trial, Event(False, row, target)))
    return [event for *_, event in sorted(events, key=lambda entry: entry[:3])]


def _sequence_numbers(history: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """Sequence numbers of each trial; empty where one that should be there is missing."""
    if not {"trial", "state", "asked_seq", "ended_seq"} <= set(history.columns):
        return {}
    numbers: dict[int, tuple[float, float]] = {}
    for trial, state, asked, ended in history[["trial", "state", "asked_seq", "ended_seq"]].itertuples(index=False):
        known = float(math.nan if asked is None else asked), float(math.nan if ended is None else ended)
        if int(trial) >= 0 and (math.isnan(known[0]) or (State(state).ended and math.isnan(known[1]))):
            return {}
        numbers[int(trial)] = known
    return numbers


class Library(Protocol):
    """The state of a library, rebuilt from events."""

    def begin(self, row: Row) -> None:
        """A trial of the history was asked for."""

    def end(self, row: Row, target: float) -> None:
        """It ended; NaN where its value says nothing."""

    def draw(self, trial: int, attempt: int) -> Point:
        """Where the library wants trial `trial` to be (``d``, unit cube)."""


class _External:
    """What the optimizers of other libraries share.

    Args:
        space: what to search.
        settings: of the optimizer.
        seed: of the campaign.

    Raises:
        ConfigError: the library is not installed.
    """

    name: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, space: Space, settings: Any, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        if importlib.util.find_spec(self.module) is None:
            fault = f"optimizer: {self.name} needs a library that is not installed"
            raise ConfigError([fault], hint=f"pip install 'hpo_cluster[{self.name}]'")

    def library(self) -> Library:
        """The library before anything happened."""
        raise NotImplementedError

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        rows = Rows.read(self.space, history)
        events, taken = events_of(rows, history), rows.taken()
        proposals: list[Proposal] = []
        decision: dict[str, Any] = {"optimizer": self.name, **self.settings.model_dump(mode="json")}
        for trial in range(rows.next_trial, rows.next_trial + n):
            with quiet(derive_seed(self.seed, self.name)):
                found = self._propose(trial, events, taken)
            if found is None:
                decision["exhausted"] = True
                break
            point, info = found
            proposals.append(Proposal(self.space.decode(point), info))
            row = pending_row(self.space, trial, proposals[-1].parameters)
            events.append(Event(True, row, math.nan))
            taken.add(key_of(self.space, row.point))
        return Ask(tuple(proposals), decision=decision)

    def _propose(self, trial: int, events: list[Event], taken: set[Key]) -> tuple[Point, dict[str, Any]] | None:
        """A free point (``d``) and how it was found."""
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        if len(taken) < self.space.size:
            library = self.library()
            for event in events:
                if event.asked:
                    library.begin(event.row)
                else:
                    library.end(event.row, event.target)
            for attempt in range(ATTEMPTS):
                try:
                    point = np.clip(library.draw(trial, attempt), 0.0, 1.0)
                except StopIteration:  # it has converged
                    break
                configuration = self.space.decode(point)
                new = key_of(self.space, self.space.encode(configuration)) not in taken
                if new and self.space.allows(configuration):
                    return point, {"redrawn": attempt} if attempt else {}
        free = free_point(self.space, taken, rng)
        return None if free is None else (free, {"fallback": "random"})


def pending_row(space: Space, trial: int, configuration: Configuration) -> Row:
    """The row that a proposal becomes."""
    return Row(trial, State.PROPOSED, Origin.EVALUATED, configuration, space.encode(configuration), math.nan)


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Global random generators seeded, then put back, torch's where it is loaded; no warnings, no messages."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved only to be put back
    disabled = logging.root.manager.disable
    torch = sys.modules.get("torch")
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(record=True))
        if torch is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
        logging.disable(logging.WARNING)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            logging.disable(disabled)
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002


# --- Optuna ------------------------------------------------------------------------------------------------------


class Optuna(_External):
    """A sampler of Optuna."""

    name = module = "optuna"

    def library(self) -> Library:
        """A study without trials."""
        return _Study(self.space, self.settings, self.seed)


class _Study:
    """An Optuna study.

    The state of CMA-ES and NSGA-II lies in attributes that a sampler gives to the trials it makes, so their trials are
    made again; TPE and the Gaussian process read parameters and values alone, which are handed to them.
    """

    def __init__(self, space: Space, settings: OptunaSettings, seed: int) -> None:
        if settings.sampler == "gp":
            import torch  # noqa: F401 - before the seeds are set, so that `quiet` knows of it
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.settings, self.seed = space, settings, seed
        self.distributions = {name: self._distribution(name) for name in space.names}
        self.study = optuna.create_study(direction="maximize", sampler=self._sampler(seed))
        self.remade = settings.sampler in ("cmaes", "nsga2")
        self.numbers: dict[int, int] = {}  # our trial -> theirs

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
        """Tell its value, or that it failed."""
        import optuna

        if math.isnan(target):
            self.study.tell(self.numbers[row.trial], state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(self.numbers[row.trial], target)

    def draw(self, trial: int, attempt: int) -> Point:
        """A new trial's point; the trial itself is thrown away."""
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

        if self.settings.sampler == "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=self.settings.initial, constant_liar=True)
        if self.settings.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=self.settings.initial)
        if self.settings.sampler == "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=self.settings.initial)
        return samplers.NSGAIISampler(seed=seed, population_size=20)

    def _distribution(self, name: str) -> Any:
        from optuna import distributions

        parameter = self.space.parameters[name]
        if isinstance(parameter, Categorical):
            last = len(parameter.choices) - 1
            if parameter.ordered:
                return distributions.IntDistribution(0, last)
            return distributions.CategoricalDistribution(list(range(last + 1)))
        if isinstance(parameter, Integer) and not parameter.log:
            return distributions.IntDistribution(parameter.low, parameter.high)
        return distributions.FloatDistribution(0.0, 1.0)

    def _parameters(self, point: Point) -> dict[str, Any]:
        """What the study calls a canonical point (``d``)."""
        out: dict[str, Any] = {}
        for (name, parameter), u in zip(self.space, point, strict=True):
            if isinstance(parameter, Categorical):
                out[name] = min(int(u * len(parameter.choices)), len(parameter.choices) - 1)
            elif isinstance(parameter, Integer) and not parameter.log:
                out[name] = parameter.decode(float(u))
            else:
                out[name] = float(u)
        return out

    def _point(self, parameters: dict[str, Any]) -> Point:
        point = []
        for name, parameter in self.space:
            value = parameters[name]
            if isinstance(parameter, Categorical):
                value = (value + 0.5) / len(parameter.choices)
            elif isinstance(parameter, Integer) and not parameter.log:
                value = parameter.encode(value)
            point.append(float(value))
        return np.array(point)


# --- Nevergrad ---------------------------------------------------------------------------------------------------


class Nevergrad(_External):
    """An algorithm of Nevergrad's registry."""

    name = module = "nevergrad"

    def __init__(self, space: Space, settings: NevergradSettings, seed: int) -> None:
        super().__init__(space, settings, seed)
        with quiet(0):
            import nevergrad

            known = sorted(nevergrad.optimizers.registry)
        if settings.algorithm not in known:
            close = difflib.get_close_matches(settings.algorithm, known, 3) or [
                "CMA",
                "OnePlusOne",
                "TwoPointsDE",
                "PSO",
            ]
            fault = f"optimizer.algorithm: {settings.algorithm!r} is no name of Nevergrad's {len(known)} algorithms"
            raise ConfigError([f"{fault}; some are: {', '.join(close)}"])
        if nevergrad.optimizers.registry[settings.algorithm].no_parallelization:
            fault = f"optimizer.algorithm: {settings.algorithm} cannot have several trials in flight, nor lose one"
            raise ConfigError([f"{fault}; CMA, TwoPointsDE and PSO can"])

    def library(self) -> Library:
        """An optimizer that knows nothing yet."""
        return _Told(self.space, self.settings, self.seed)

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        threads = threading.active_count()
        try:
            return super().ask(history, n)
        finally:
            if threading.active_count() > threads:
                gc.collect()  # some algorithms hold threads, which end with them and would keep Python from ending


class _Told:
    """An optimizer of Nevergrad on the unit cube; asking it again in the same order gives the same candidates."""

    def __init__(self, space: Space, settings: NevergradSettings, seed: int) -> None:
        import nevergrad

        self.space = space
        cube = nevergrad.p.Array(init=np.full(space.dim, 0.5)).set_bounds(0.0, 1.0)
        cube.random_state = np.random.RandomState(derive_seed(seed, "nevergrad"))
        make = nevergrad.optimizers.registry[settings.algorithm]
        self.optimizer = make(parametrization=cube, budget=settings.budget or 100, num_workers=settings.workers)
        self.candidates: dict[int, Any] = {}

    def begin(self, row: Row) -> None:
        """Ask again for the candidate; where the history has another configuration, that one takes its place."""
        candidate = self.optimizer.ask()
        if self.space.decode(np.clip(candidate.value, 0.0, 1.0)) != row.configuration:
            candidate = self.optimizer.parametrization.spawn_child(new_value=np.array(row.point))
        self.candidates[row.trial] = candidate

    def end(self, row: Row, target: float) -> None:
        """Tell the loss."""
        import nevergrad

        if not math.isnan(target):
            with contextlib.suppress(nevergrad.errors.TellNotAskedNotSupportedError):
                self.optimizer.tell(self.candidates[row.trial], -target)

    def draw(self, trial: int, attempt: int) -> Point:
        """The next candidate's point."""
        return np.asarray(self.optimizer.ask().value, dtype=np.float64)


# --- NOMAD -------------------------------------------------------------------------------------------------------


class Nomad(_External):
    """Mesh adaptive direct search."""

    name, module = "nomad", "PyNomad"

    def library(self) -> Library:
        """A search that has seen nothing."""
        return _Search(self.space, self.settings, self.seed)


class _Search:
    """What is known of the blackbox, by configuration; NOMAD itself is run when a point is wanted."""

    def __init__(self, space: Space, settings: NomadSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.values: dict[Key, float] = {}  # NaN: in flight, or failed

    def begin(self, row: Row) -> None:
        """In flight: as if it had failed."""
        self.values.setdefault(key_of(self.space, row.point), math.nan)

    def end(self, row: Row, target: float) -> None:
        """Its value is known from now on."""
        if not math.isnan(target):
            self.values[key_of(self.space, row.point)] = target

    def draw(self, trial: int, attempt: int) -> Point:
        """The first point that NOMAD wants to know and that is not known."""
        import PyNomad

        if attempt or self.space.size <= SMALL:
            raise StopIteration  # it gives a point that is free, or none
        wanted: list[Point] = []

        def blackbox(x: Any) -> int:
            x.setBBO(UNKNOWN)
            if wanted:
                return 1  # until its calls are used up: an evaluation that fails can keep it from ending
            point = np.clip([self._coordinate(i, x.get_coord(i)) for i in range(x.size())], 0.0, 1.0)
            configuration = self.space.decode(point)
            if not self.space.allows(configuration):
                return 1
            target = self.values.get(key_of(self.space, self.space.encode(configuration)))
            if target is None:
                wanted.append(point)
            elif not math.isnan(target):
                x.setBBO(f"{-target!r}".encode())
            return 1

        kinds = ["I" if self._indexed(i) else "R" for i in range(self.space.dim)]
        high = [float(self._last(i)) if self._indexed(i) else 1.0 for i in range(self.space.dim)]
        calls = len(self.values) + 1
        seed = derive_seed(self.seed, "nomad") % SEEDS
        for _ in range(4):  # values that round to one configuration, and what is not allowed, take calls too
            PyNomad.setSeed(seed + 1)  # SEED does nothing where it is what the process had before
            PyNomad.optimize(
                blackbox,
                [],
                [0.0] * self.space.dim,
                high,
                [
                    "BB_OUTPUT_TYPE OBJ",
                    f"BB_INPUT_TYPE ({' '.join(kinds)})",
                    f"MAX_BB_EVAL {calls}",
                    f"MAX_EVAL {10 * calls + 200}",  # with those from its cache, of which there is no end otherwise
                    f"LH_SEARCH {self.settings.initial} 0",
                    f"SEED {seed}",
                    "DISPLAY_DEGREE 0",
                ],
            )
            if wanted:
                return wanted[0]
            calls *= 2
        raise StopIteration

    def _indexed(self, axis: int) -> bool:
        """Whether NOMAD sees the index of a value instead of the coordinate."""
        return self.space.parameters[self.space.names[axis]].cardinality is not None

    def _last(self, axis: int) -> int:
        return (self.space.parameters[self.space.names[axis]].cardinality or 2) - 1

    def _coordinate(self, axis: int, x: float) -> float:
        """Coordinate in the unit cube of what NOMAD calls `x`."""
        parameter = self.space.parameters[self.space.names[axis]]
        if not self._indexed(axis):
            return float(x)
        index = int(min(max(round(x), 0), self._last(axis)))
        if isinstance(parameter, Categorical):
            return (index + 0.5) / len(parameter.choices)
        return float(parameter.encode(int(parameter.low) + index))
