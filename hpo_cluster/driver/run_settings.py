"""Settings of how a campaign is run: keys that may change from one start to the next, and are recorded with each."""

from __future__ import annotations

import datetime

from pydantic import Field

from hpo_cluster.driver.failures import Failures
from hpo_cluster.driver.notify import Notify
from hpo_cluster.settings import Settings


class Operation(Settings):
    """Budget, workers, retries, time limits and other settings of a start."""

    budget: int = Field(
        16,
        strict=True,
        ge=1,
        description="trials in all, including those of earlier starts; with rungs, in whole evaluations",
    )
    workers: int = Field(2, strict=True, ge=1, description="trials evaluated at the same time")
    max_in_flight: int | None = Field(
        None, strict=True, ge=1, description="largest number of jobs in the queue; null: as many as workers"
    )
    retries: int = Field(
        2, strict=True, ge=0, description="new attempts of a trial whose job failed for a reason that may pass"
    )
    retry_wait_s: float = Field(
        10.0, ge=0, description="seconds before the retry of a job that a machine lost; doubles with each loss"
    )
    stalled_after_s: float = Field(
        3600.0, gt=0, description="seconds after which a running job that has reported no progress is pointed out"
    )
    exclude_node_after: int = Field(
        2,
        strict=True,
        ge=0,
        description="lost attempts after which a node gets no more jobs; 0: never",
    )
    poll_s: float = Field(0.5, gt=0, description="seconds between two looks at the jobs' files")
    grace_s: float = Field(5.0, ge=0, description="seconds after a job's end in which its files may still appear")
    unknown_after_s: float = Field(
        900.0, ge=0, description="seconds after which a job that the scheduler says nothing about is pointed out"
    )
    stop_after_failures: int = Field(
        3,
        strict=True,
        ge=0,
        description="stop if the first trials of a start, this many, all fail in the same way; 0: never",
    )
    deadline: datetime.datetime | None = Field(
        None,
        description="nothing is submitted after it, and waiting jobs end: 2027-01-31T18:00 (or with +01:00)",
    )
    max_gpu_hours: float | None = Field(None, gt=0, description="GPU-hours after which nothing more is submitted")
    max_energy_kwh: float | None = Field(
        None, gt=0, description="kilowatt-hours, as ended jobs measured them, after which nothing more is submitted"
    )
    driver_memory_gb: float | None = Field(
        8.0, gt=0, description="memory that the driver may use on a cluster's frontend; null: no limit"
    )
    failures: Failures = Field(Failures(), description="what becomes of a trial, by the kind of its failure")
    notify: Notify = Field(Notify(), description="what is called when the campaign ends or stops")
    baseline: bool = Field(
        False, strict=True, description="whether the model before fine-tuning is evaluated too, outside the budget"
    )

    def used_up(self, now: datetime.datetime, gpu_hours: float, energy_kwh: float) -> str:
        """Return why nothing more may be submitted, apart from the budget; empty if jobs may be submitted."""
        if self.deadline is not None and now >= self.deadline.astimezone():
            return f"the deadline {self.deadline.isoformat()} has passed"
        if self.max_gpu_hours is not None and gpu_hours >= self.max_gpu_hours:
            return f"GPU-hours used: {gpu_hours:.2f}, of max_gpu_hours={self.max_gpu_hours:g}"
        if self.max_energy_kwh is not None and energy_kwh >= self.max_energy_kwh:
            return f"{energy_kwh:.3f} kWh are used, of max_energy_kwh={self.max_energy_kwh:g}"
        return ""

    @property
    def slots(self) -> int:
        """Largest number of trials in flight."""
        return self.max_in_flight or self.workers
