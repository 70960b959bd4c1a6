"""A launcher whose jobs are not processes: their files are published when they end on a simulated clock."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.optimizers.simulate import duration
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import Submission, make_ref
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.record.attempt_files import SCHEMA, job_identity
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import dumps, read_json
from hpo_cluster.record.layout import AttemptLayout


class SimulatedCluster:
    """A cluster with a node for each job. A job writes its claim at its submission and its result at its end.

    Attributes:
        cpu_s: CPU seconds of the simulated jobs and scheduler, which do not belong to the driver.

    Args:
        function: test function that the jobs evaluate.
        evaluation_s: simulated seconds of an evaluation, on average.
    """

    backend = "simulated"
    poll_period_s = 1.0
    trials_per_node = 1

    def __init__(self, function: str, evaluation_s: float) -> None:
        self.cpu_s = 0.0
        self._function, self._evaluation_s = FUNCTIONS[function], evaluation_s
        self._now_s = 0.0
        self._running: list[tuple[float, int, Path, dict[str, Any]]] = []  # a heap: end, trial, folder, claim
        self._tokens: set[str] = set()
        self._job = {**job_identity(), "node": "simulated"}

    def script(self, submission: Submission) -> str:
        """Return an empty script: jobs are not processes."""
        return ""

    def command(self, submission: Submission) -> list[str]:
        """Return an empty command."""
        return []

    def submit(self, submission: Submission) -> JobRef:
        """Start the job at once, and return it."""
        with self._apart():
            params = read_json(submission.attempt_dir / "params.json")
            assert params is not None
            claim = {**self._job, "token": submission.token, "job": str(params["trial"]), "started_at": utc_now()}
            files = AttemptLayout(submission.attempt_dir)
            publish(files.claim, claim)
            publish(files.progress, {"phase": "train", "at": claim["started_at"], "step": 0, "total": 1, "loss": None})
            end_s = self._now_s + self._evaluation_s * duration(self._function.name, 0, params["trial"])
            heapq.heappush(self._running, (end_s, params["trial"], submission.attempt_dir, {**params, **claim}))
            self._tokens.add(submission.token)
            return make_ref(self.backend, claim["job"], submission.token)

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return the states that a scheduler would report."""
        running, ended = JobStatus(JobState.RUNNING, detail="RUNNING"), JobStatus(JobState.ENDED, EndReason.WELL)
        with self._apart():
            return {ref.token: running if ref.token in self._tokens else ended for ref in refs}

    def cancel(self, ref: JobRef) -> None:
        """End the job without a result."""
        self._tokens.discard(ref.token)

    def find(self, submission: Submission) -> JobRef | None:
        """Return None: a submission never stops halfway here."""
        return None

    def advance(self, seconds: float) -> None:
        """Advance the simulated clock, and publish the results of the jobs that end meanwhile."""
        with self._apart():
            self._now_s += seconds
            while self._running and self._running[0][0] <= self._now_s:
                _, _, folder, known = heapq.heappop(self._running)
                if known["token"] in self._tokens:
                    self._tokens.remove(known["token"])
                    value = self._function.evaluate(known["parameters"])
                    names = ("campaign", "trial", "attempt", "token", "code", "started_at", "seed", *self._job)
                    result = {"schema": SCHEMA, **{name: known[name] for name in names}, "ended_at": utc_now()}
                    publish(AttemptLayout(folder).result, {**result, "metrics": {"value": value}})

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Count the CPU time of this thread inside the block for the simulation, not for the driver."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.cpu_s += time.thread_time() - began


def publish(path: Path, document: dict[str, Any]) -> None:
    """Write a file whole, as a job does, without syncing it to disk."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(dumps(document), encoding="utf-8")
    temporary.replace(path)
