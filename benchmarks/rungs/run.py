"""Make the runs of the comparison that are not cached yet.

Usage: ``python -m benchmarks.rungs.run [quick|full] [options]``. An interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.optimizers.run import THREADS
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


class Key(NamedTuple):
    """What identifies a run."""

    problem: str
    optimizer: str
    seed: int
    workers: int
    budget: float


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Return the last run of each key; a line cut off by an interruption is skipped."""
    found: dict[Key, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            found[Key(*(entry[name] for name in Key._fields))] = entry
        except (json.JSONDecodeError, KeyError):
            continue
    return found


def append(path: Path, key: Key, versions: Mapping[str, str], run: Run) -> None:
    """Append a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: [round(number, 6) for number in numbers] for name, numbers in asdict(run).items()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**key._asdict(), "versions": dict(versions), **rounded}) + "\n")


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


def main(argv: Sequence[str]) -> int:
    """Make the missing runs, seed by seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rungs.run", description=__doc__)
    parser.add_argument("setting", nargs="?", choices=["quick", "full"], default="quick")
    parser.add_argument("--optimizers", type=lambda text: text.split(";"), help="names, joined by semicolons")
    parser.add_argument("--problems", type=lambda text: text.split(","), help="names, joined by commas")
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], help="8,1,32")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... of every contestant")
    parser.add_argument("--budget", type=float, default=BUDGET, help="whole evaluations of a run")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    quick: dict[str, Any] = QUICK if arguments.setting == "quick" else {}
    names = arguments.optimizers or quick.get("optimizers", CONTESTANTS)
    for message in filter(None, map(contestants.missing, names)):
        print(message)
    names = [name for name in names if not contestants.missing(name)]
    seeds = arguments.seeds or quick.get("seeds", FULL_SEEDS)
    keys = [
        Key(where, name, seed, workers, arguments.budget)
        for workers in arguments.workers or (QUICK_WORKERS if quick else FULL_WORKERS)
        for seed in range(seeds)
        for where in arguments.problems or quick.get("problems", PROBLEMS)
        for name in names
    ]
    versions = {name: contestants.versions(name) for name in names}
    cached = read(arguments.results)
    missing = [key for key in keys if key not in cached or cached[key]["versions"] != versions[key.optimizer]]
    print(f"{len(keys)} runs, {len(keys) - len(missing)} of them cached in {arguments.results}")
    for number, key in enumerate(missing, 1):
        append(arguments.results, key, versions[key.optimizer], execute(key))
        print(f"{number}/{len(missing)} {key.optimizer} {key.problem} W={key.workers} seed {key.seed}", flush=True)
    return 0


if __name__ == "__main__":
    os.environ.update(dict.fromkeys(THREADS, "1"))
    sys.exit(main(sys.argv[1:]))
