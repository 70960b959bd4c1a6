"""What the benchmarks of optimizers share: their options, and the runs that are not cached yet, on all cores.

A run is stored as soon as it has ended, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.optimizers import cache
from benchmarks.optimizers.cache import Key
from hpo_cluster.record.processes import end_with_parent

#: Read when a process of the pool starts: one thread for each.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def options(program: str, description: str | None, results: Path, workers: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have; each adds its ``--problems`` and ``--budget``.

    Args:
        program: the module.
        description: what it does.
        results: file of the runs, unless the command line says otherwise.
        workers: example of numbers of workers.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("setting", nargs="?", choices=["quick", "full"], default="quick")
    parser.add_argument("--optimizers", type=lambda text: text.split(";"), help="names, joined by semicolons")
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], help=workers)
    parser.add_argument("--seeds", type=int, help="seeds 0, 1, ... of every optimizer")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--any-version", action="store_true", help="keep runs of other versions of code and libraries")
    return parser


def make_missing(
    keys: Sequence[Key],
    execute: Callable[[Key], Any],
    versions_of: Callable[[str], Mapping[str, str]],
    arguments: argparse.Namespace,
) -> int:
    """Make the runs that are not cached; return the exit status: 1 if one failed, 130 if interrupted.

    Args:
        keys: the wanted runs, in the order in which they begin.
        execute: makes a run (a dataclass), in another process.
        versions_of: an optimizer's name -> what its runs depend on.
        arguments: as `options` parses them.
    """
    versions = {name: versions_of(name) for name in {key.optimizer for key in keys}}
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


def _start() -> None:
    """Prepare a process of the pool: it computes with one thread, and ends with its parent."""
    import threadpoolctl

    end_with_parent()
    threadpoolctl.threadpool_limits(1)
