"""How a campaign is run: the keys that may change from one start to the next, and are recorded with each."""

from __future__ import annotations

import datetime

from pydantic import Field

from hpo_cluster.driver.failures import Failures
from hpo_cluster.settings import Settings


class Operation(Settings):
    """Budget, workers, retries and times."""

    budget: int = Field(16, strict=True, ge=1, description="trials in all, those of an earlier start included")
    workers: int = Field(2, strict=True, ge=1, description="trials evaluated at the same time")
    max_in_flight: int | None = Field(
        None, strict=True, ge=1, description="jobs in the queue at most; null: as many as workers"
    )
    retries: int = Field(
        2, strict=True, ge=0, description="new attempts of a trial whose job was lost to trouble that passes"
    )
    retry_wait_s: float = Field(
        10.0, ge=0, description="seconds before a job that a machine lost is tried again; doubles with each loss"
    )
    stalled_after_s: float = Field(
        3600.0, gt=0, description="seconds after which you are told of a running job that has reported no progress"
    )
    exclude_node_after: int = Field(
        2,
        strict=True,
        ge=0,
        description="attempts that a node may lose before no more are sent to it; 0: any number",
    )
    poll_s: float = Field(0.5, gt=0, description="seconds between two looks at the jobs' files")
    grace_s: float = Field(5.0, ge=0, description="seconds that a job's files may come after its end")
    unknown_after_s: float = Field(
        900.0, ge=0, description="seconds after which you are told of a job that the scheduler says nothing about"
    )
    stop_after_failures: int = Field(
        3,
        strict=True,
        ge=0,
        description="stop when the first so many trials of a start fail alike and none succeeds; 0: never",
    )
    deadline: datetime.datetime | None = Field(
        None,
        description="nothing begins after it, and waiting jobs end: 2027-01-31T18:00 (or with +01:00)",
    )
    max_gpu_hours: float | None = Field(None, gt=0, description="nothing is submitted once so many are used")
    driver_memory_gb: float | None = Field(
        8.0, gt=0, description="memory that the driver may take on a cluster's frontend; null: any"
    )
    failures: Failures = Field(Failures(), description="what becomes of a trial, by the kind of its failure")
    baseline: bool = Field(
        False, strict=True, description="whether the model before fine-tuning is evaluated too, outside the budget"
    )

    def used_up(self, now: datetime.datetime, gpu_hours: float) -> str:
        """Why nothing more may be submitted, besides the budget; empty where it may."""
        if self.deadline is not None and now >= self.deadline.astimezone():
            return f"the deadline {self.deadline.isoformat()} has passed"
        if self.max_gpu_hours is not None and gpu_hours >= self.max_gpu_hours:
            return f"{gpu_hours:.2f} GPU-hours are used, of max_gpu_hours={self.max_gpu_hours:g}"
        return ""

    @property
    def slots(self) -> int:
        """Trials in flight at most."""
        return self.max_in_flight or self.workers
