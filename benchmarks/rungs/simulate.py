"""Climb rungs on simulated workers, as a campaign does: no rung waits to be full, paused trials may come back.

A worker whose trial reaches a rung goes on with it at once if the contestant says so. A free worker takes up the paused
trial that deserves it most, at the highest rung, and a new configuration if there is none. The time from one rung to
the next is in proportion to the shares, and depends on (problem, seed, trial) besides.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hpo_cluster.fidelity import Ladder
from hpo_cluster.space import Configuration

#: Slack of comparisons of what was spent.
TINY = 1e-9


class Asked(NamedTuple):
    """A new trial: its configuration, and the lowest rung at which it may be paused."""

    configuration: Configuration
    first: int


class Contestant(Protocol):
    """An optimizer in the comparison."""

    def ask(self, trial: int) -> Asked | None:
        """Return a new trial; None if there is none for now."""

    def reached(self, trial: int, rung: int, value: float) -> None:
        """Report that a trial has reached its goal, with the values seen there; larger is better."""

    def deserving(self) -> list[int]:
        """Return the trials at their goals that should go on by one rung, in order."""

    def goes_on(self, trial: int, rung: int) -> None:
        """Report that a trial goes on to a rung."""

    def paused(self, trial: int) -> None:
        """Report that a trial has left its worker at a rung."""


@dataclass(frozen=True)
class Run:
    """What was completed at the top, in order.

    Args:
        spent: whole evaluations spent until then, those of all trials.
        times: simulated time; a whole evaluation takes 1 on average.
        observed: what the optimizer saw.
        true: the noiseless values.
        reached: by rung, number of trials that reached it.
        cpu_s: CPU seconds of each ask.
    """

    spent: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    reached: list[int] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def simulate(
    contestant: Contestant,
    observe: Callable[[int, Configuration], tuple[tuple[float, ...], float]],
    ladder: Ladder,
    budget: float,
    workers: int,
    lasts: Callable[[int], float],
    clock: Callable[[], float] = time.process_time,
) -> Run:
    """Spend a budget of whole evaluations on `workers` simulated workers.

    Args:
        contestant: the optimizer.
        observe: trial, configuration -> the values seen at the rungs of the ladder, and the true one at the top.
        ladder: the rungs.
        budget: whole evaluations.
        workers: trials at once.
        lasts: trial -> simulated duration of a whole evaluation.
        clock: CPU seconds of this process.
    """
    run = Run(reached=[0] * (ladder.top + 1))
    running: list[tuple[float, int, int]] = []  # end, trial, rung
    seen: dict[int, tuple[tuple[float, ...], float]] = {}
    now, spent, committed, exhausted = 0.0, 0.0, 0.0, False

    def start(trial: int, below: int, rung: int) -> bool:
        nonlocal committed
        cost = ladder.cost(rung) - ladder.cost(below)
        if committed + cost > budget + TINY:
            return False
        committed += cost
        heapq.heappush(running, (now + cost * lasts(trial), trial, rung))
        return True

    def climb(trial: int, rung: int) -> bool:
        if not start(trial, rung, rung + 1):
            return False
        contestant.goes_on(trial, rung + 1)
        return True

    paused: dict[int, int] = {}
    while True:
        if len(running) < workers:
            for trial in contestant.deserving():
                if len(running) < workers and climb(trial, paused[trial]):
                    del paused[trial]
        while len(running) < workers and not exhausted and committed + ladder.shares[0] <= budget + TINY:
            began = clock()
            asked = contestant.ask(len(seen))
            run.cpu_s.append(clock() - began)
            if asked is None:
                exhausted = not running  # None may mean "wait"
                break
            trial = len(seen)
            first = asked.first if committed + ladder.cost(asked.first) <= budget + TINY else 0
            seen[trial] = observe(trial, asked.configuration)
            start(trial, -1, first)
        if not running:
            return run
        now, trial, rung = heapq.heappop(running)
        values, true = seen[trial]
        run.reached[rung] += 1
        spent = committed - sum((end - now) / lasts(other) for end, other, _ in running)
        contestant.reached(trial, rung, values[rung])
        if rung == ladder.top:
            run.spent.append(spent)
            run.times.append(now)
            run.observed.append(values[rung])
            run.true.append(true)
        elif not (trial in contestant.deserving() and climb(trial, rung)):
            paused[trial] = rung
            contestant.paused(trial)
