"""Hundreds of trials on a Slurm of many nodes, while jobs and drivers are killed: is anything lost, and how busy is it?

    python soak.py --trials 500 --workers 16 --seconds 2 6 --kill-jobs 0.03 --kill-drivers 10

`tests/cluster/soak` starts the cluster, runs this and stops it. Prints what it measured, as a table; ends with status 1
where a result is missing, or an evaluation was made twice for nothing.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import random
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from clusters import Slurm, kill
from on_a_cluster import CampaignOnACluster

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.journal import Event, read_events

QUERIES = ("squeue", "sacct", "sbatch")


def count_queries(folder: Path) -> Path:
    """A folder with the scheduler's commands, each of which notes that it was called."""
    path = folder / "bin"
    path.mkdir()
    for name in QUERIES:
        (path / name).write_text(f'#!/bin/sh\necho {name} >> {folder}/queries\nexec /usr/bin/{name} "$@"\n')
        (path / name).chmod(0o755)
    return path


def drive(one: CampaignOnACluster, path: Path, options: argparse.Namespace) -> int:
    """Drive the campaign to its end, killing jobs and drivers on the way. Returns how many jobs were killed."""
    chance = random.Random(0)
    doomed = set(chance.sample(range(options.trials), round(options.kill_jobs * options.trials)))
    step = options.trials // (options.kill_drivers + 1)
    kill_driver_at = [step * (n + 1) for n in range(options.kill_drivers)]
    killed = 0
    one.start(path=path)
    print(f"{options.trials} trials, {options.workers} at a time", flush=True)
    while one.drivers[-1].poll() is None:
        ended = sum(trial.state.ended for trial in one.trials)
        for trial in sorted(doomed):
            claim = read_json(one.layout.attempt(trial, 0).claim)
            if claim is not None:
                doomed.remove(trial)
                if not one.layout.attempt(trial, 0).result.exists():
                    kill(claim["pid"])
                    killed += 1
        if kill_driver_at and ended >= kill_driver_at[0]:
            kill_driver_at.pop(0)
            one.kill_driver()
            one.start(path=path)
        print(f"\r{ended} ended, {killed} jobs and {len(one.drivers) - 1} drivers killed ", end="", flush=True)
        time.sleep(0.5)
    print()
    return killed


def seconds(at: str) -> float:
    """A moment in seconds."""
    return datetime.datetime.fromisoformat(at).timestamp()


def latencies(events: list[Event], ends: list[float]) -> list[float]:
    """Seconds from each end of a job to the submission that follows it, while there was one to follow."""
    submitted = collections.deque(sorted(seconds(e["at"]) for e in events if e["event"] == "submitted"))
    found = []
    for end in sorted(ends):
        while submitted and submitted[0] < end:
            submitted.popleft()
        if submitted:
            found.append(submitted.popleft() - end)
    return found


def busy_share(spans: list[tuple[float, float]], workers: int) -> float:
    """Share of the slots' time that evaluations took, from when all slots were first taken to the last start."""
    begins = sorted(begin for begin, _ in spans)
    window = begins[workers - 1], begins[-1]
    inside = [max(0.0, min(end, window[1]) - max(begin, window[0])) for begin, end in spans]
    return sum(inside) / (workers * (window[1] - window[0]))


def measure(one: CampaignOnACluster, options: argparse.Namespace, killed: int) -> tuple[dict[str, Any], list[str]]:
    """What the campaign's journal tells: figures, and faults."""
    events = list(read_events(one.layout.events))
    trials = Record(events).rows
    last = [(trial, trial.attempts[-1]) for trial in trials]
    ran = [(seconds(a.started_at), seconds(t.ended_at)) for t, a in last if a.started_at and t.ended_at]
    waits = latencies(events, [end for _, end in ran])
    queries = collections.Counter((one.folder / "queries").read_text().split())
    wall_s = seconds(events[-1]["at"]) - seconds(events[0]["at"])
    failures = [a.error for t in trials for a in t.attempts if a.error]
    figures = {
        "trials completed": sum(t.state == "completed" for t in trials),
        "evaluations begun": len(one.evaluations()),
        "jobs killed": killed,
        "drivers killed": len(one.drivers) - 1,
        "wall time": f"{wall_s:.0f} s",
        "scheduler's commands": ", ".join(f"{queries[name]} {name}" for name in QUERIES),
        "questions in a minute": f"{60 * (queries['squeue'] + queries['sacct']) / wall_s:.1f}",
        "from a job's end to the next submission": f"median {statistics.median(waits):.2f} s, "
        f"p95 {statistics.quantiles(waits, n=20)[-1]:.2f} s",
        "busy share of the slots": f"{100 * busy_share(ran, options.workers):.1f} %",
    }
    faults = []
    if [t.number for t in trials if t.state == "completed"] != list(range(options.trials)):
        faults.append(f"not all completed: {collections.Counter(str(t.state) for t in trials)}")
    twice = [label for label, n in collections.Counter(one.evaluations()).items() if n > 1]
    if twice:
        faults.append(f"evaluated twice: {twice}")
    if len(one.evaluations()) != options.trials + killed or len(failures) != killed:
        kinds = collections.Counter(str(error["kind"]) for error in failures)
        faults.append(f"{killed} jobs killed, {len(failures)} attempts failed: {kinds}")
    faults += [f"trial {t.number}: {t.value}" for t in trials
               if t.value != float(f"{t.parameters['x']}{t.parameters['k']}")]  # fmt: skip
    return figures, faults


def main() -> int:
    """Run one soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--queued", type=int, default=0, help="jobs in the queue beside those that run")
    parser.add_argument("--seconds", type=int, nargs=2, default=(2, 6), metavar=("LOW", "HIGH"))
    parser.add_argument("--kill-jobs", type=float, default=0.03, metavar="SHARE")
    parser.add_argument("--kill-drivers", type=int, default=10, metavar="N")
    parser.add_argument("--poll-period", type=float, default=5.0, metavar="SECONDS", help="between two squeues")
    options = parser.parse_args()
    low, high = options.seconds
    one = CampaignOnACluster(
        Slurm(),
        step=f"sleep $(({low} + {{k}} * {high - low} / 8))",
        operation={
            "budget": options.trials,
            "workers": options.workers,
            "max_in_flight": options.workers + options.queued,
            "poll_s": 0.5,
            "grace_s": 5,
        },
        # a job has a node for itself where some are to wait for one
        launcher={"poll_period_s": options.poll_period, **({"cpus_per_trial": 16} if options.queued else {})},
    )
    try:
        killed = drive(one, count_queries(one.folder), options)
        figures, faults = measure(one, options, killed)
    finally:
        one.close()
    width = max(map(len, figures))
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in figures.items()))
    print(*(re.sub(r"\s+", " ", fault)[:500] for fault in faults), sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
