"""One loop for every optimizer: ask, evaluate for a simulated time, report, on any number of simulated workers.

Nothing waits for a round: a worker that is free gets the next proposal at once. A proposal takes no simulated time, so
the order of events depends on the durations alone, which belong to (problem, seed, trial) and not to the optimizer.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from hpo_cluster.space import Configuration
from hpo_cluster.trial import derive_seed

#: Half width of the interval around 1 that durations are drawn from.
VARIATION = 0.2

#: (trial, configuration) -> what the optimizer sees, the true value; both are maximised.
Evaluate = Callable[[int, Configuration], tuple[float, float]]


class Contestant(Protocol):
    """An optimizer in the comparison, made with (space, budget, workers, seed)."""

    def ask(self, trial: int) -> Configuration | None:
        """Return the configuration of the next trial; None if none is left."""

    def tell(self, trial: int, target: float) -> None:
        """Report that a trial ended with a value; larger is better."""


@dataclass(frozen=True)
class Run:
    """A run: its trials in the order in which they ended.

    Args:
        trials: their numbers, in the order of asking.
        times: simulated time of each end; one evaluation takes 1 on average.
        observed: what the optimizer saw.
        true: the noiseless values.
        cpu_s: CPU seconds of each ask, and of the report before it, in the order of asking.
    """

    trials: list[int]
    times: list[float]
    observed: list[float]
    true: list[float]
    cpu_s: list[float]


def duration(name: str, seed: int, trial: int) -> float:
    """Return the simulated duration of a trial: uniform in 1 ± `VARIATION`."""
    share = derive_seed("duration", name, seed, trial) / 2**31
    return 1 + VARIATION * (2 * share - 1)


def simulate(
    contestant: Contestant,
    evaluate: Evaluate,
    budget: int,
    workers: int,
    lasts: Callable[[int], float],
    clock: Callable[[], float] = time.process_time,
) -> Run:
    """Evaluate `budget` trials on `workers` simulated workers.

    Args:
        contestant: the optimizer.
        evaluate: gives values; it is called when a trial ends.
        budget: number of trials.
        workers: trials at once.
        lasts: trial -> its simulated duration.
        clock: CPU seconds of this process.
    """
    running: list[tuple[float, int, Configuration]] = []
    run = Run([], [], [], [], [])
    now, asked, told_s, exhausted = 0.0, 0, 0.0, False
    while True:
        while len(running) < workers and asked < budget and not exhausted:
            start = clock()
            configuration = contestant.ask(asked)
            run.cpu_s.append(clock() - start + told_s)
            told_s = 0.0
            if configuration is None:
                exhausted = not running  # None may mean "wait"
                break
            heapq.heappush(running, (now + lasts(asked), asked, configuration))
            asked += 1
        if not running:
            return run
        now, trial, configuration = heapq.heappop(running)
        observed, true = evaluate(trial, configuration)
        start = clock()
        contestant.tell(trial, observed)
        told_s += clock() - start
        run.trials.append(trial)
        run.times.append(now)
        run.observed.append(observed)
        run.true.append(true)
