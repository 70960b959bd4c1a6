"""The contestants: optimizers of the registry with and without rungs, and other libraries with their own.

A contestant's name is ``optimizer[setting=value,...]`` for ours with whole evaluations, the same with ``+RULE`` for
ours with rungs and that rule (``bo+asha``, ``random+careful``), and ``peer:NAME`` for other libraries. ``bo+asha@1/3``
has its lowest rung at a third, where those of the others begin at a ninth.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.optimizers.contestants import parse
from benchmarks.optimizers.contestants import versions as versions_of_ours
from benchmarks.rungs.problems import LADDER, WHOLE
from benchmarks.rungs.simulate import Asked, Contestant
from hpo_cluster.fidelity import Ladder
from hpo_cluster.optimizers.registry import OPTIMIZERS, make_optimizer
from hpo_cluster.optimizers.rungs import rules
from hpo_cluster.optimizers.rungs.rules import Climber, promotions
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.space import Categorical, Configuration, Integer, Space

#: Samplers and pruners of Optuna that take part.
PEERS = {
    "peer:optuna-tpe": ("tpe", "none"),
    "peer:optuna-tpe-hyperband": ("tpe", "hyperband"),
    "peer:optuna-tpe-halving": ("tpe", "halving"),
    "peer:optuna-random-hyperband": ("random", "hyperband"),
    "peer:optuna-random-halving": ("random", "halving"),
}


class Ours:
    """An optimizer of the registry with a rule, asked with a history as in a campaign.

    Args:
        name: a contestant's name.
        space: of the problem.
        seed: of the campaign.
    """

    def __init__(self, name: str, space: Space, seed: int) -> None:
        optimizer, _, climb = name.partition("+")
        rule, _, low = climb.partition("@")
        self.space, key = space, parse(optimizer)
        self.optimizer = make_optimizer(key[0], space, seed, **key[1])
        self.fidelity = Fidelity(kind="steps", rule=rule, **({"low": low} if low else {})) if rule else Fidelity()
        self.ladder = self.fidelity.ladder or WHOLE
        self.configurations: list[Configuration] = []
        self.climbers: list[Climber] = []
        self.cells: list[dict[str, Any]] = []
        self._event = 0

    def _next(self) -> int:
        self._event += 1
        return self._event

    def history(self) -> pd.DataFrame:
        """Return the history as the driver makes it; the columns of rungs only with rungs."""
        names = ["trial", "state", "origin", "value", "target", "asked_seq", "ended_seq", *self.space.names]
        if self.ladder.top:
            names += ["rung", "fidelity", "goal", "rung_value", "rung_target", "paused_seq", "paused_value"]
            names += [f"value@{label}" for label in self.ladder.labels[:-1]]
        columns = {name: [row.get(name) for row in self.cells] for name in names}
        return pd.DataFrame(columns, columns=names)

    def ask(self, trial: int) -> Asked | None:
        """Return the proposal of the optimizer."""
        proposals = self.optimizer.ask(self.history(), 1).proposals
        if not proposals:
            return None
        configuration = dict(proposals[0].parameters)
        first = min(int(proposals[0].info.get("rung", 0)), self.ladder.top)
        self.configurations.append(configuration)
        self.climbers.append(Climber(trial, first, first, ()))
        nothing = dict.fromkeys(("value", "target", "ended_seq", "rung", "fidelity", "rung_value"), math.nan)
        nothing |= dict.fromkeys(("rung_target", "paused_seq", "paused_value"), math.nan)
        nothing |= {f"value@{label}": math.nan for label in self.ladder.labels[:-1]}
        words = {"trial": trial, "state": "running", "origin": "evaluated", "goal": first, "asked_seq": self._next()}
        self.cells.append({**nothing, **words, **configuration})
        return Asked(configuration, first)

    def reached(self, trial: int, rung: int, value: float) -> None:
        """Enter the value at a rung, or at the top."""
        before, row = self.climbers[trial], self.cells[trial]
        passed = (math.nan,) * (rung - len(before.targets))
        self.climbers[trial] = Climber(trial, before.first, rung, (*before.targets, *passed, value))
        row |= {"rung": rung, "fidelity": self.ladder.shares[rung], "rung_value": value, "rung_target": value}
        if rung == self.ladder.top:
            row |= {"value": value, "target": value, "state": "completed", "ended_seq": self._next()}
        else:
            row[f"value@{self.ladder.labels[rung]}"] = value

    def deserving(self) -> list[int]:
        """Return what the rule says."""
        if not self.ladder.top:
            return []
        return [promotion.trial for promotion in promotions(self.climbers, self.ladder, self.fidelity)]

    def goes_on(self, trial: int, rung: int) -> None:
        """Enter the new goal."""
        before = self.climbers[trial]
        self.climbers[trial] = Climber(trial, before.first, rung, before.targets)
        self.cells[trial] |= {"goal": rung, "state": "running", "ended_seq": math.nan}

    def paused(self, trial: int) -> None:
        """Enter the pause."""
        row = self.cells[trial]
        row |= {"state": "paused", "ended_seq": self._next()}
        if math.isnan(row["paused_seq"]):
            row |= {"paused_seq": row["ended_seq"], "paused_value": row["rung_value"]}


class OptunaPruned:
    """Optuna with a sampler and a pruner; what its pruner stops never comes back."""

    def __init__(self, space: Space, seed: int, sampler: str, pruner: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.ladder = WHOLE if pruner == "none" else LADDER
        most = round(1 / self.ladder.shares[0])
        pruners = {
            "none": optuna.pruners.NopPruner,
            "hyperband": lambda: optuna.pruners.HyperbandPruner(1, most, 3),
            "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(1, 3),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
            options: dict[str, Any] = {"constant_liar": True} if sampler == "tpe" else {}
            made = samplers[sampler](seed=seed, **options)
            self.study = optuna.create_study(
                direction="maximize", sampler=made, pruner=pruners[pruner](), study_name=f"study{seed}"
            )
        self.space, self.most = space, most
        self.trials: dict[int, Any] = {}
        self.going: list[int] = []
        self._pruned = optuna.trial.TrialState.PRUNED

    def ask(self, trial: int) -> Asked:
        """Return a new trial, with suggestions for all active parameters."""
        asked = self.trials[trial] = self.study.ask()
        found: Configuration = {}
        for name in self.space.order:
            p = self.space.parameters[name]
            if not self.space.is_active(name, found):
                continue
            if isinstance(p, Categorical):
                found[name] = asked.suggest_categorical(name, p.choices)
            elif isinstance(p, Integer):
                found[name] = asked.suggest_int(name, p.low, p.high, log=p.log, step=p.step or 1)
            else:
                found[name] = asked.suggest_float(name, p.low, p.high, log=p.log, step=p.step)
        return Asked({name: found[name] for name in self.space.names if name in found}, 0)

    def reached(self, trial: int, rung: int, value: float) -> None:
        """Report the value, and ask the pruner."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if rung == self.ladder.top:
                self.study.tell(self.trials[trial], value)
                return
            self.trials[trial].report(value, round(self.ladder.shares[rung] * self.most))
            if self.trials[trial].should_prune():
                self.study.tell(self.trials[trial], state=self._pruned)
            else:
                self.going.append(trial)

    def deserving(self) -> list[int]:
        """Return the trials that were not stopped."""
        return list(self.going)

    def goes_on(self, trial: int, rung: int) -> None:
        """Forget that the trial waits."""
        self.going.remove(trial)

    def paused(self, trial: int) -> None:
        """Nothing: the study knows."""


def missing(name: str) -> str:
    """Return why a contestant cannot take part; empty if it can."""
    if name.startswith("peer:"):
        if name not in PEERS:
            return f"{name}: is unknown; there are {', '.join(PEERS)}"
        absent = importlib.util.find_spec("optuna") is None
        return f"{name}: left out, optuna is not installed (pip install '.[peers]')" if absent else ""
    key = parse(name.partition("+")[0])[0]
    return "" if key in OPTIMIZERS else f"{name}: is unknown; there are {', '.join(OPTIMIZERS)}"


def make(name: str, space: Space, seed: int) -> tuple[Contestant, Ladder]:
    """Return the contestant of that name, and the rungs that it climbs."""
    if name.startswith("peer:"):
        peer = OptunaPruned(space, seed, *PEERS[name])
        return peer, peer.ladder
    ours = Ours(name, space, seed)
    return ours, ours.ladder


def versions(name: str) -> dict[str, str]:
    """Return what a run depends on besides its arguments."""
    if name.startswith("peer:"):
        return {"optuna": importlib.metadata.version("optuna")}
    optimizer, _, rule = name.partition("+")
    found = versions_of_ours(optimizer)
    if rule:
        found["rules"] = hashlib.sha256(Path(rules.__file__).read_bytes()).hexdigest()[:12]
    return found
