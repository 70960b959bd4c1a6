"""Drive whole campaigns on a simulated cluster and measure the cost of the driver.

Usage: ``python -m benchmarks.campaign.run [options]``. The journal, the attempts' directories, the history and the
optimizers are those of real campaigns; only the jobs are simulated (`benchmarks.campaign.cluster`), and time with them.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.campaign.cluster import MeasuredCluster
from benchmarks.optimizers.runner import THREADS
from hpo_cluster.cli.display import PlainDisplay
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.driver.spec import choose_optimizer, make_spec
from hpo_cluster.launchers.local import LocalSettings
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.objectives.synthetic import SyntheticObjective
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.optimizers.registry import make_optimizer, make_settings
from hpo_cluster.trial import Ask

if TYPE_CHECKING:
    import pandas as pd

OPTIMIZERS = ("random", "sobol", "soo", "direct_l")
#: Head of each column of the table, by the field of a `Measurement`.
COLUMNS = {
    "optimizer": "optimizer",
    "trials": "trials",
    "workers": "workers",
    "ask_s": "CPU s a proposal, of ask",
    "loop_s": "CPU s a trial, of the whole loop",
    "late_s": "the same, late",
    "idle_s": "CPU s of a pass over all jobs without news",
    "rss_gb": "peak RSS GB",
    "journal_mb": "journal MB",
    "resume_s": "resume s",
    "first_ask_s": "first ask after it s",
    "wall_s": "wall s",
}


@dataclass(frozen=True)
class Measurement:
    """The cost of a campaign. Seconds are CPU seconds of the driver alone, except for `resume_s` and `wall_s`.

    `late_s` is over the last tenth of the trials that end while there is still something to propose.
    """

    optimizer: str
    trials: int
    workers: int
    ask_s: float
    loop_s: float
    late_s: float
    idle_s: float
    rss_gb: float
    journal_mb: float
    resume_s: float
    first_ask_s: float
    wall_s: float


class Timed:
    """An optimizer whose CPU seconds and proposals are summed.

    Args:
        optimizer: the one that is measured.
        designed: number of first trials that are random, and not part of the sums.
    """

    def __init__(self, optimizer: Optimizer, designed: int = 0) -> None:
        self.space, self.optimizer, self.designed = optimizer.space, optimizer, designed
        self.cpu_s, self.proposals = 0.0, 0
        self._design = make_optimizer("random", optimizer.space, 0)

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """See `hpo_cluster.optimizers.base.Optimizer.ask`."""
        if len(history) < self.designed:
            return self._design.ask(history, min(n, self.designed - len(history)))
        began = time.process_time()
        try:
            ask = self.optimizer.ask(history, n)
        finally:
            self.cpu_s += time.process_time() - began
        self.proposals += len(ask.proposals)
        return ask


def open_campaign(
    directory: Path,
    optimizer: str,
    function: str,
    budget: int,
    workers: int,
    cluster: MeasuredCluster,
    designed: int = 0,
) -> tuple[Campaign, Timed]:
    """Return a campaign, new or resumed from its directory, and its optimizer; see `Timed`."""
    space = FUNCTIONS[function].space
    spec = make_spec(
        directory,
        space=space,
        objective=SyntheticObjective(function=function),
        optimizer=choose_optimizer(optimizer, make_settings(optimizer, {}), space, 0, budget=budget),
        seed=0,
        launcher=LocalSettings(gpus_per_trial=1),
        operation=Operation(budget=budget, workers=workers),
        storage_dir=directory,
        resolve=Path,
    )
    timed = Timed(spec.optimizer, designed)
    return Campaign(dataclasses.replace(spec, optimizer=timed, launcher=cluster)), timed


def measure(
    directory: Path, optimizer: str, arguments: argparse.Namespace, progress: Connection | None = None
) -> Measurement:
    """Drive one campaign to its end and open it again.

    Args:
        directory: directory of the campaign; it must not exist.
        optimizer: name in the registry.
        arguments: `function`, `trials`, `designed`, `workers` and `evaluation_s`.
        progress: receives the number of ended trials from time to time.
    """
    began = time.monotonic()
    cluster = MeasuredCluster(arguments.function, arguments.evaluation_s)
    display = PlainDisplay(lambda line: None)
    idle: list[float] = []
    last = max(1, arguments.trials - arguments.workers)  # after it the slots empty, and nothing is asked for
    marks = {max(0, last - arguments.trials // 10): 0.0, last: 0.0}  # trials done: seconds until then
    start, done, told = time.process_time(), 0, 0.0
    opened, timed = open_campaign(
        directory, optimizer, arguments.function, arguments.trials, arguments.workers, cluster, arguments.designed
    )

    def loop_s() -> float:
        return time.process_time() - start - cluster.cpu_s

    with opened as campaign:
        before, events = loop_s(), campaign.record.last
        for status in campaign.drive(wait=cluster.advance):
            display.update(status, campaign.record.trials)
            if campaign.record.last is events:
                idle.append(loop_s() - before)
            before, events = loop_s(), campaign.record.last
            marks |= {mark: loop_s() for mark in marks if done < mark <= status["done"]}
            done = status["done"]
            if progress is not None and time.monotonic() - told > 0.5:
                told = time.monotonic()
                progress.send(done)
        journal = campaign.opened.journal.path
    if done < arguments.trials:
        raise RuntimeError(f"{optimizer} ended after {done} of {arguments.trials} trials: {campaign.reason}")
    total_s, ask_s = loop_s(), timed.cpu_s / max(timed.proposals, 1)
    rss_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    wall_s = time.monotonic() - began

    began = time.monotonic()
    opened, timed = open_campaign(
        directory, optimizer, arguments.function, arguments.trials + 1, arguments.workers, cluster
    )
    with opened as campaign:
        campaign.history()
        resume_s = time.monotonic() - began
        campaign.tick()
    return Measurement(
        optimizer,
        done,
        arguments.workers,
        ask_s,
        total_s / done,
        (marks[last] - marks[min(marks)]) / (last - min(marks)),
        sorted(idle)[len(idle) // 2] if idle else float("nan"),
        rss_gb,
        journal.stat().st_size / 2**20,
        resume_s,
        timed.cpu_s,
        wall_s,
    )


def table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as a Markdown table."""
    rows = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    for measurement in measurements:
        cells = [getattr(measurement, name) for name in COLUMNS]
        rows.append([f"{cell:.3g}" if isinstance(cell, float) and cell < 100 else _whole(cell) for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _whole(cell: object) -> str:
    return f"{cell:.0f}" if isinstance(cell, float) else str(cell)


def _in_child(optimizer: str, arguments: argparse.Namespace, answer: Connection) -> None:
    """Measure in this fresh process, and send the measurement or the traceback."""
    try:
        with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="campaign-") as folder:
            profile = cProfile.Profile()
            if arguments.profile:
                profile.enable()
            found = measure(Path(folder) / optimizer, optimizer, arguments, answer)
            if arguments.profile:
                profile.disable()
                profile.dump_stats(arguments.profile)
        answer.send(found)
    except Exception:
        answer.send(traceback.format_exc())


def _measured(optimizer: str, arguments: argparse.Namespace, progress: Progress) -> Measurement | str:
    """Return the measurement made in a child process, or its traceback."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(optimizer, arguments, theirs), daemon=True)
    child.start()
    theirs.close()
    task = progress.add_task(optimizer, total=arguments.trials)
    try:
        while True:
            told: Measurement | str | int = mine.recv()
            if isinstance(told, Measurement):
                progress.update(task, completed=arguments.trials)
            if not isinstance(told, int):
                return told
            progress.update(task, completed=told)
    except EOFError:
        child.join()
        return f"its process ended with exit code {child.exitcode}"
    finally:
        child.join()


def main(argv: Sequence[str]) -> int:
    """Measure one optimizer after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign.run", description=__doc__)
    parser.add_argument("--optimizers", type=lambda text: text.split(","), default=list(OPTIMIZERS), help="a,b,c")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument(
        "--designed", type=int, default=0, help="first trials that are random, to see only what many trials cost"
    )
    parser.add_argument("--workers", type=int, default=1000, help="trials in flight")
    parser.add_argument("--function", choices=sorted(FUNCTIONS), default="cliff", help="what the jobs evaluate")
    parser.add_argument(
        "--evaluation-s", type=float, default=250.0, help="simulated seconds of an evaluation; a pass every 0.5"
    )
    parser.add_argument("--dir", type=Path, help="folder on the disk that campaigns shall be on; removed afterwards")
    parser.add_argument("--profile", type=Path, help="file for cProfile's statistics of the last optimizer")
    arguments = parser.parse_args(argv)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    found, failed = list[Measurement](), False
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), refresh_per_second=1) as progress:
        for optimizer in arguments.optimizers:
            answer = _measured(optimizer, arguments, progress)
            if isinstance(answer, Measurement):
                found.append(answer)
                progress.console.print(
                    table(found) if len(found) == 1 else table(found).splitlines()[-1], markup=False, soft_wrap=True
                )
            else:
                failed = True
                progress.console.print(f"{optimizer}: {answer}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
