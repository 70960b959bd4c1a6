"""Measure the cost of an `ask` with a long history: CPU milliseconds, one thread.

Usage: ``python tools/measure_asks.py [NAME ...] [--rows 10000] [--pending 0 1000] [--space real mixed]``, where a name
is ``optimizer`` or ``optimizer[setting=value,...]``; without names it measures the optimizers that divide the space.
*next* is an ask for one trial after one more has ended, the median of many; *cold* is the first ask of a new optimizer,
which rebuilds its state from the whole history.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.optimizers.contestants import parse
from benchmarks.optimizers.memory import MemoryCampaign
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Categorical, Float, Integer, Space

NAMES = ("soo", "soo[preset=reference]", "soo[preset=greedy]", "direct", "direct_l", "fda")
HARTMANN = FUNCTIONS["hartmann6"]
SPACES = {
    "real": HARTMANN.space,
    "mixed": Space(
        {
            "learning_rate": Float(1e-6, 1e-1, log=True),
            "dropout": Float(0.0, 0.5),
            "rank": Integer(2, 256, log=True),
            "bits": Categorical((4, 8, 16), ordered=True),
            "scheme": Categorical(("linear", "cosine", "constant")),
            "warmup": Float(0.0, 0.2, when={"scheme": ["linear", "cosine"]}),
        },
        ["dropout + warmup <= 0.6"],
    ),
}
#: Number of asks until the history has its full length, and number of asks that are timed.
STEPS, TIMED = 100, 50


class Campaign(MemoryCampaign):
    """Trials that one optimizer has proposed; they end in the order in which they were proposed."""

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self.space, self.running = space, deque[int]()

    def ask(self, optimizer: Optimizer, n: int) -> float:
        """Ask for `n` trials, take the answer, and return how long the ask took (CPU seconds)."""
        history = self.history()
        start = time.process_time()
        ask = optimizer.ask(history, n)
        took = time.process_time() - start
        self.running += self.take(ask)
        return took

    def end(self, count: int) -> None:
        """Complete the `count` trials that have run for the longest time."""
        for _ in range(count):
            number = self.running.popleft()
            self.complete(number, -HARTMANN.function(self.space.encode(self.record.trials[number].parameters)))


def measure(name: str, space: Space, rows: int, pending: int) -> tuple[float, float]:
    """Return the milliseconds of the next ask and of a first one, with `rows` trials, `pending` of them in flight."""
    key, settings = parse(name)
    optimizer, campaign = make_optimizer(key, space, **settings), Campaign(space)
    step = max(rows // STEPS, 1)
    while len(campaign.record.trials) < rows:
        campaign.ask(optimizer, step)
        campaign.end(max(len(campaign.running) - pending, 0))
    following = []
    for _ in range(TIMED):
        campaign.end(1 if campaign.running else 0)
        following.append(campaign.ask(optimizer, 1))
        campaign.end(max(len(campaign.running) - pending, 0))
    cold = campaign.ask(make_optimizer(key, space, **settings), 1)
    return 1e3 * statistics.median(following), 1e3 * cold


def main(argv: list[str]) -> int:
    """Measure what the command line names, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--pending", type=int, nargs="+", default=[0, 1000])
    parser.add_argument("--space", nargs="+", choices=SPACES, default=list(SPACES))
    arguments = parser.parse_args(argv)
    print(f"{'optimizer':24}{'space':8}{'rows':>8}{'pending':>9}{'next ms':>9}{'cold ms':>9}")
    for name in arguments.names:
        for space in arguments.space:
            for pending in arguments.pending:
                following, cold = measure(name, SPACES[space], arguments.rows, pending)
                print(f"{name:24}{space:8}{arguments.rows:8}{pending:9}{following:9.2f}{cold:9.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
