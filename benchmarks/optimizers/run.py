"""Make the runs of a benchmark that are not cached yet.

Usage: ``python -m benchmarks.optimizers.run [quick|full] [options]``. An interrupted one goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.optimizers import cache, catalogue, contestants
from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.peers import PEERS
from benchmarks.optimizers.simulate import Run, duration, simulate
from hpo_cluster.record.processes import end_with_parent
from hpo_cluster.trial import derive_seed

#: Read when a process of the pool starts: one thread for each.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

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
        key.optimizer, problem.space, key.budget, key.workers, derive_seed("campaign", key.problem, key.seed)
    )
    return simulate(
        contestant,
        lambda trial, configuration: problem.observe(configuration, key.seed, trial),
        key.budget,
        key.workers,
        lambda trial: duration(key.problem, key.seed, trial),
    )


def _start() -> None:
    """Prepare a process of the pool: it computes with one thread, and ends with its parent."""
    import threadpoolctl

    end_with_parent()
    threadpoolctl.threadpool_limits(1)


def main(argv: Sequence[str]) -> int:
    """Make the missing runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers.run", description=__doc__)
    parser.add_argument("setting", nargs="?", choices=["quick", "full"], default="quick")
    parser.add_argument("--optimizers", type=lambda text: text.split(";"), help="names, joined by semicolons")
    parser.add_argument("--problems", type=_problems, help=f"names or groups ({', '.join(catalogue.GROUPS)}), a,b,c")
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], help="1,4,8,16,32")
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... of every optimizer")
    parser.add_argument("--budget", type=int, help="evaluations of a run")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=cache.RESULTS)
    parser.add_argument("--any-version", action="store_true", help="keep runs of other versions of code and libraries")
    arguments = parser.parse_args(argv)

    keys, messages = plan(arguments)
    for message in messages:
        print(message)
    versions = {name: contestants.versions(name) for name in {key.optimizer for key in keys}}
    done = cache.done(arguments.results, None if arguments.any_version else versions)
    missing = [key for key in keys if key not in done]
    print(f"{len(keys)} runs, {len(keys) - len(missing)} of them cached in {arguments.results}")
    os.environ.update(dict.fromkeys(THREADS, "1"))
    failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=1) as progress,
        ProcessPoolExecutor(arguments.processes, mp_context=context, initializer=_start) as pool,
    ):
        task = progress.add_task("runs", total=len(missing))
        futures = {pool.submit(execute, key): key for key in missing}
        try:
            for future in as_completed(futures):
                key = futures[future]
                progress.update(task, advance=1, description=f"{key.optimizer} {key.problem}")
                if error := future.exception():
                    failed += 1
                    trace = "".join(traceback.format_exception(error)).strip().splitlines()
                    progress.console.print(f"{key}: {trace[-1]}")
                else:
                    cache.append(arguments.results, key, versions[key.optimizer], future.result())
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("interrupted: the same command goes on")
            return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
