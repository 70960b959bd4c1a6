"""The simulated cluster of the product, which counts its own CPU seconds: they do not belong to the driver."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpo_cluster.job import JobRef, JobStatus
from hpo_cluster.launchers.base import Submission
from hpo_cluster.launchers.simulated import ClusterSettings, SimulatedCluster
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.record import clock
from hpo_cluster.record.clock import SimulatedClock
from hpo_cluster.record.files import without_sync

#: Spread of the logarithm of the seconds of an evaluation.
SPREAD = 0.05


class MeasuredCluster(SimulatedCluster):
    """A cluster with a node for each job.

    Attributes:
        cpu_s: CPU seconds of the simulated jobs and scheduler.

    Args:
        function: test function that the jobs evaluate.
        evaluation_s: simulated seconds of an evaluation, on average.
    """

    def __init__(self, function: str, evaluation_s: float) -> None:
        self.cpu_s = 0.0
        evaluate = FUNCTIONS[function].evaluate

        def result(params: Mapping[str, Any], share: float) -> Mapping[str, Any]:
            return {"metrics": {"value": evaluate(params["parameters"])}}

        settings = ClusterSettings(duration_s=evaluation_s, spread=SPREAD)
        super().__init__(settings, SimulatedClock(clock.now()), result)

    def submit(self, submission: Submission) -> JobRef:
        """Put the job into the queue."""
        with self._apart():
            return super().submit(submission)

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return what a scheduler would say of each job."""
        with self._apart():
            return super().poll(refs)

    def advance(self, seconds: float) -> None:
        """Move the simulated clock forward."""
        with self._apart():
            super().advance(seconds)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Count the CPU time of this thread inside the block for the simulation, not for the driver."""
        began = time.thread_time()
        try:
            with without_sync():
                yield
        finally:
            self.cpu_s += time.thread_time() - began
