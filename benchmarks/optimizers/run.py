"""Make the runs of a benchmark that are not cached yet.

Usage: ``python -m benchmarks.optimizers.run [quick|full] [options]``. An interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.optimizers import cache, catalogue, contestants
from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.peers import PEERS
from benchmarks.optimizers.runner import make_missing, options
from benchmarks.optimizers.simulate import Run, duration, simulate
from hpo_cluster.trial import derive_seed

#: Evaluations of a run with that many workers.
BUDGETS = {1: 50, 4: 64, 8: 64, 16: 64, 32: 128, 256: 4096}

#: quick: some five minutes on two cores. `slow` contestants get fewer seeds there.
QUICK_PROBLEMS = ("branin", "hartmann6", "levy5", "ackley5mix", "cliff", "island")
QUICK_SEEDS, FULL_SEEDS, SLOW_SEEDS = 3, 10, 3
QUICK_OPTIMIZERS = ("random", "sobol", "bo", "peer:optuna-tpe", "peer:nevergrad-ngopt", "nomad")


def plan(arguments: argparse.Namespace) -> tuple[list[Key], list[str]]:
    """Return the wanted runs, cheap optimizers first and seed by seed, and what was left out."""
    quick = arguments.setting == "quick"
    wanted = arguments.problems or catalogue.names(QUICK_PROBLEMS if quick else catalogue.FULL)
    absent = catalogue.left_out(wanted)
    wanted = [name for name in wanted if name not in absent]
    names = arguments.optimizers or [n for n in contestants.names() if not quick or n in QUICK_OPTIMIZERS]
    messages = [message for message in map(contestants.missing, names) if message]
    messages += catalogue.messages(absent)
    names = [name for name in names if not contestants.missing(name)]
    seeds = arguments.seeds or (QUICK_SEEDS if quick else FULL_SEEDS)
    keys = []
    for workers in arguments.workers or ([1] if quick else [1, 4, 8, 16, 32]):
        for name in names:
            slow = name.startswith("peer:") and PEERS[name.removeprefix("peer:")].slow
            count = min(seeds, SLOW_SEEDS) if slow and not arguments.seeds else seeds
            budget = arguments.budget or BUDGETS.get(workers, 4 * workers)
            keys += [Key(p, name, seed, workers, budget) for seed in range(count) for p in wanted]
    return sorted(keys, key=lambda key: (key.workers, key.seed)), messages


def _problems(text: str) -> list[str]:
    """Return the names of problems that the command line asks for."""
    try:
        return catalogue.names(text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def execute(key: Key) -> Run:
    """Make one run in this process."""
    problem = catalogue.problem(key.problem)
    # equal for every optimizer, so that the comparison is paired: noise and durations, and the seed of designs
    contestant = contestants.make(
        key.optimizer, problem.space, int(key.budget), key.workers, derive_seed("campaign", key.problem, key.seed)
    )
    return simulate(
        contestant,
        lambda trial, configuration: problem.observe(configuration, key.seed, trial),
        int(key.budget),
        key.workers,
        lambda trial: duration(key.problem, key.seed, trial),
    )


def main(argv: Sequence[str]) -> int:
    """Make the missing runs."""
    parser = options("benchmarks.optimizers.run", __doc__, cache.RESULTS, "1,4,8,16,32")
    parser.add_argument("--problems", type=_problems, help=f"names or groups ({', '.join(catalogue.GROUPS)}), a,b,c")
    parser.add_argument("--budget", type=int, help="evaluations of a run")
    arguments = parser.parse_args(argv)
    keys, messages = plan(arguments)
    for message in messages:
        print(message)
    return make_missing(keys, execute, contestants.versions, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
