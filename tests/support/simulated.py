"""A campaign without jobs: simulated workers, the journal's events in memory, any outcome for a trial."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.record.campaign_state import asked_rows
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import Ask, Origin

#: What a trial can end as beside completed.
TROUBLE = ("diverged", "failed", "infeasible", "cancelled")

#: State and value that a trial ends with.
Outcome = tuple[str, float | None]


class Simulation(MemoryJournal):
    """Drives an optimizer; `evaluated` and `asks` hold what was asked for, in order."""

    def __init__(self, space: Space, outcome: Callable[[int, Configuration], Outcome], seed: int = 0) -> None:
        super().__init__(space.names, maximize=True)
        self.space, self.outcome, self.now = space, outcome, 0.0
        self.rng = np.random.default_rng(seed)
        self.running: list[tuple[float, int]] = []
        self.evaluated: list[Configuration] = []
        self.asks: list[tuple[pd.DataFrame, int, Ask]] = []

    def run(self, optimizer: Optimizer, evaluations: int, workers: int = 1) -> Simulation:
        while True:
            free = min(workers - len(self.running), evaluations - len(self.evaluated))
            if free > 0:
                self.ask(optimizer, free)
            if not self.running:
                return self
            self.end_next()

    def ask(self, optimizer: Optimizer, n: int) -> None:
        history = self.history()
        ask = optimizer.ask(history, n)
        self.asks.append((history, n, ask))
        rows = asked_rows(ask, self.record.next_trial, 0)
        if rows:
            self.append("asked", trials=rows)
        for row in rows:
            if row["origin"] == Origin.EVALUATED:
                self.append("intent", trial=row["trial"], attempt=0, token="", code="")
                self.evaluated.append(row["parameters"])
                heapq.heappush(self.running, (self.now + self.rng.uniform(0.5, 1.5), row["trial"]))

    def end_next(self) -> None:
        self.now, number = heapq.heappop(self.running)
        state, value = self.outcome(number, self.record.trials[number].parameters)
        self.append("ended", trial=number, attempt=0, state=state, value=value, metrics={})


def wavy(space: Space, seed: int) -> Callable[[Configuration], float]:
    """A function with many optima, in any space."""
    rng = np.random.default_rng(seed)
    frequencies, phases = rng.normal(0, 4, (6, space.dim)), rng.uniform(0, 2 * math.pi, 6)
    return lambda configuration: float(np.cos(frequencies @ space.encode(configuration) + phases).sum())


def simulation(space: Space, seed: int, trouble: tuple[str, ...] = ()) -> Simulation:
    """A campaign with `wavy`; with `trouble`, every fourth trial ends in one of these states, in turn."""
    f = wavy(space, seed)

    def outcome(number: int, configuration: Configuration) -> Outcome:
        if trouble and number % 4 == 3:
            return trouble[number // 4 % len(trouble)], None
        return "completed", f(configuration)

    return Simulation(space, outcome, seed)
