"""Make the runs of the comparison that are not cached yet.

Usage: ``python -m benchmarks.rungs.run [quick|full] [options]``. An interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.runner import make_missing, options
from benchmarks.optimizers.simulate import duration
from benchmarks.rungs import contestants
from benchmarks.rungs.problems import CORRELATIONS, RungProblem, curves, village
from benchmarks.rungs.simulate import Run, simulate
from hpo_cluster.trial import derive_seed

#: Where the runs lie, unless the command line says otherwise. Not in version control.
RESULTS = Path(__file__).parent / "results" / "runs.jsonl"

PROBLEMS = ("village", *CORRELATIONS)
WITHOUT = ("random", "bo", "peer:optuna-tpe")
CONTESTANTS = (
    *WITHOUT,
    *("asha+asha", "asha+careful", "hyperband+careful", "bohb+careful", "bo+asha", "bo+careful"),
    *(name for name in contestants.PEERS if name not in WITHOUT),
)
#: Whole evaluations of a run: those with rungs are looked at after fewer too.
BUDGET = 50
QUICK = {"problems": ("village", "curves60"), "optimizers": ("random", "asha+careful", "bohb+careful"), "seeds": 3}
QUICK_WORKERS, FULL_WORKERS, FULL_SEEDS = (8,), (8, 1, 32), 20


def problem(name: str) -> RungProblem:
    """Return the problem of that name."""
    return village() if name == "village" else curves(name)


def execute(key: Key) -> Run:
    """Make one run in this process."""
    known = problem(key.problem)
    # equal for every contestant, so that the comparison is paired: noise and durations, and the seed of designs
    contestant, ladder = contestants.make(key.optimizer, known.space, derive_seed("rungs", key.problem, key.seed))

    def observe(trial: int, configuration: Any) -> tuple[tuple[float, ...], float]:
        values, true = known.observe(configuration, key.seed, trial)
        return values[-len(ladder.shares) :], true

    return simulate(
        contestant, observe, ladder, key.budget, key.workers, lambda trial: duration(key.problem, key.seed, trial)
    )


def plan(arguments: argparse.Namespace) -> tuple[list[Key], list[str]]:
    """Return the wanted runs, seed by seed, and what was left out."""
    quick: dict[str, Any] = QUICK if arguments.setting == "quick" else {}
    names = arguments.optimizers or quick.get("optimizers", CONTESTANTS)
    keys = [
        Key(where, name, seed, workers, arguments.budget)
        for workers in arguments.workers or (QUICK_WORKERS if quick else FULL_WORKERS)
        for seed in range(arguments.seeds or quick.get("seeds", FULL_SEEDS))
        for where in arguments.problems or quick.get("problems", PROBLEMS)
        for name in names
        if not contestants.missing(name)
    ]
    return keys, [message for message in map(contestants.missing, names) if message]


def main(argv: Sequence[str]) -> int:
    """Make the missing runs."""
    parser = options("benchmarks.rungs.run", __doc__, RESULTS, "8,1,32")
    parser.add_argument("--problems", type=lambda text: text.split(","), help="names, joined by commas")
    parser.add_argument("--budget", type=float, default=BUDGET, help="whole evaluations of a run")
    arguments = parser.parse_args(argv)
    keys, messages = plan(arguments)
    for message in messages:
        print(message)
    return make_missing(keys, execute, contestants.versions, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
