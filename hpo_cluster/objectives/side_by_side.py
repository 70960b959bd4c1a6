"""Run several attempts in one job, each in its own process with its share of the job's GPUs.

If one process is killed, the others go on, and its error is written to its attempt directory at once, because the
scheduler sees the job as a whole only. SIGUSR2 and SIGTERM are passed on to all processes; a file ``cancel`` in an
attempt directory ends the process of that attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hpo_cluster.objectives.signals import handled
from hpo_cluster.record.attempt_files import CLAIMED_EXIT_STATUS, SCHEMA
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import dumps, publish_once, read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import END, publish_next, read_next
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)

POLL_S = 0.2
LOG_NAME = "side_by_side_log"


def share(lane: int, gpus: int, visible: str | None, lanes: int) -> str:
    """Return the ``CUDA_VISIBLE_DEVICES`` of process number `lane` of `lanes`, each with `gpus` GPUs.

    Args:
        lane: number of the process, from 0.
        gpus: GPUs of each process.
        visible: the job's own ``CUDA_VISIBLE_DEVICES``; None if the job has the whole node.
        lanes: number of processes.
    """
    devices = visible.split(",") if visible else [str(number) for number in range(gpus * lanes)]
    return ",".join(devices[lane * gpus : (lane + 1) * gpus])


def share_cores(
    lane: int, cores: set[int], lanes: int, on_node: int, siblings: Callable[[int], str] | None = None
) -> set[int]:
    """Return the cores to bind process number `lane` of `lanes` to; empty if it should not be bound.

    The threads of one physical core go to the same process if they divide evenly.

    Args:
        lane: number of the process, from 0.
        cores: cores that the job may use, by the numbers of their threads.
        lanes: number of processes.
        on_node: number of cores of the node. A job that may use all of them may share them with other jobs; the
            kernel then distributes processes better than a fixed binding.
        siblings: returns the threads of a core's physical core as text; None: ask Linux.
    """
    each = len(cores) // lanes
    if each == 0 or len(cores) >= on_node:
        return set()
    siblings = siblings or _siblings
    first = {core: min(_numbers(siblings(core)), default=core) for core in cores}
    return set(sorted(cores, key=lambda core: (first[core], core))[lane * each : (lane + 1) * each])


def _siblings(core: int) -> str:
    """Return the threads of a core's physical core as Linux lists them (``0,64`` or ``0-1``); empty if unknown."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return ""


def _numbers(listed: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", listed)]  # the ends of a range suffice for its minimum


class Lane:
    """The process of one attempt, and of those that it evaluates after it."""

    def __init__(self, program: Path, directory: Path, devices: str | None, cores: set[int]) -> None:
        self.files = AttemptLayout(directory)
        self.followed = False  # whether it has gone on with another attempt
        self.files.job_dir.mkdir(exist_ok=True)
        out, err = (self.files.job_dir / f"{LOG_NAME}.{end}" for end in ("out", "err"))
        environment = {**os.environ, **({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})}
        with out.open("ab") as out_stream, err.open("ab") as err_stream:
            self.process = subprocess.Popen(
                [sys.executable, str(program), str(directory)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out_stream,
                stderr=err_stream,
                start_new_session=True,  # so that a signal to the job's process group reaches it once, passed on by us
            )
        if cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.process.pid, cores)

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, number)

    def follow(self) -> None:
        """Look whether the process has gone on with another attempt, whose files count from then on."""
        decision = read_next(self.files) if self._has_ended() else None
        if decision is not None and decision.attempt_dir is not None:
            self.files, self.followed = AttemptLayout(decision.attempt_dir), True

    def _has_ended(self) -> bool:
        return self.files.result.exists() or self.files.error.exists()

    def report_silence(self) -> None:
        """Write the error of an attempt if its process has ended without publishing a result or an error.

        If the process has died while it waited for another attempt, publish that there is none; if the driver has named
        one by then, the error is that attempt's.
        """
        status = self.process.returncode
        if status in (0, CLAIMED_EXIT_STATUS):
            return
        if self._has_ended() and not publish_next(self.files, END):
            self.follow()
        claim = read_json(self.files.claim)
        if claim is None and self.followed:
            claim = read_json(self.files.params) or {}  # it holds the token
        elif claim is None or claim.get("pid") != self.process.pid:
            return
        if self._has_ended():
            return
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        document: dict[str, Any] = {
            "schema": SCHEMA,
            **{key: claim.get(key) for key in ("token", "job", "host", "node", "pid", "started_at")},
            "ended_at": utc_now(),
            "kind": str(ErrorKind.VANISHED),
            "message": f"its process {how} and left no result",
        }
        publish_once(self.files.error, dumps(document))


def run(program: Path, directories: Sequence[Path], gpus: int) -> int:
    """Run `program` on all attempt directories at once. Return 0 if all end with status 0, else 1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count, cores, on_node = len(directories), os.sched_getaffinity(0), os.cpu_count() or 1
    lanes = [
        Lane(
            program,
            directory,
            share(number, gpus, visible, count) if gpus else None,
            share_cores(number, cores, count, on_node),
        )
        for number, directory in enumerate(directories)
    ]
    ending: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        ending.append(number)
        for lane in lanes:
            lane.signal(number)

    with handled(pass_on):
        alive, cancelled = list(lanes), set[Lane]()
        while alive:
            time.sleep(POLL_S)
            for lane in alive:
                lane.follow()
                if lane not in cancelled and lane.files.cancel.exists():
                    cancelled.add(lane)
                    lane.signal(signal.SIGTERM)
            ended = [lane for lane in alive if lane.process.poll() is not None]
            for lane in ended:
                log.info("attempt=%s status=%d", lane.files.dir, lane.process.returncode)
                if lane not in cancelled and not ending:  # if the whole job is being ended, the scheduler knows why
                    lane.report_silence()
            alive = [lane for lane in alive if lane not in ended]
    return int(any(lane.process.returncode for lane in lanes))


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``jobs/side_by_side.py``: parse the command line and run the attempts."""
    parser = argparse.ArgumentParser(description="Evaluate several attempts of a campaign in one job.")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs of each attempt")
    parser.add_argument("program", type=Path, help="program in jobs/ that evaluates one attempt")
    parser.add_argument("attempt_dirs", type=Path, nargs="+", help="directories that contain params.json")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    return run(arguments.program, arguments.attempt_dirs, arguments.gpus)
