"""A campaign on a simulated cluster: the driver, its journal and its optimizer are real, jobs and time are not."""

from __future__ import annotations

import dataclasses
import datetime
import math
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.launchers.base import LauncherSettings
from hpo_cluster.launchers.simulated import ClusterSettings, SimulatedCluster
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.surrogate import SurrogateObjective
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.record import clock
from hpo_cluster.record.clock import SimulatedClock
from hpo_cluster.record.files import without_sync
from hpo_cluster.record.identity import SIMULATION
from hpo_cluster.trial import Ask
from hpo_cluster.window import ACCEPTED_MOMENT, parse_moment

if TYPE_CHECKING:
    import pandas as pd

#: Seconds between two looks while no job may be submitted.
SHUT_S = 60.0


class SimulationSettings(ClusterSettings):
    """Settings of simulated campaigns: the cluster, when they begin, and how often each is repeated."""

    repeats: int = Field(10, strict=True, ge=1, description="campaigns of each combination; each has the next seed")
    proposal_scale: float = Field(
        1.0,
        ge=0,
        description="seconds that a proposal takes for each CPU second that it takes here; 0: proposals take no time, "
        "and every repetition is the same to the microsecond",
    )
    start: datetime.datetime | None = Field(
        None, description="when the campaigns begin: 2027-01-31T19:00, or 19:00 for the next 19:00; null: now"
    )

    @field_validator("start", mode="before")
    @classmethod
    def _one_moment(cls, value: Any) -> Any:
        """Turn a text into a moment."""
        if isinstance(value, str):
            return parse_moment(value, clock.now())
        if value is None or isinstance(value, datetime.datetime):
            return value
        raise ValueError(f"is not a moment; accepted: {ACCEPTED_MOMENT}")

    def identity(self) -> dict[str, Any]:
        """Return what defines a simulated campaign, as plain data; its start and the repeats do not."""
        return self.model_dump(mode="json", exclude={"repeats", "start"})


def simulation_faults(objective: Objective, launcher: LauncherSettings, *, baseline: bool) -> list[str]:
    """Return why a campaign cannot be simulated; empty if it can."""
    faults = []
    if type(objective).measure is Objective.measure:
        faults.append(
            f"objective={objective.kind}: only a job can evaluate it; accepted: objective=synthetic, or a finished "
            "campaign of it: objective=surrogate objective.campaign=campaigns/NAME"
        )
    if baseline:
        faults.append("baseline=True: there is no model to evaluate; accepted: false")
    return faults


def simulate(spec: CampaignSpec, settings: SimulationSettings) -> Iterator[dict[str, Any]]:
    """Drive a campaign to its end on a simulated cluster; yield its status each cycle.

    Args:
        spec: of the campaign as it would be run; its launcher is replaced.
        settings: of the simulation.
    """
    now = SimulatedClock(settings.start or clock.now())
    with clock.simulated(now), without_sync(), Campaign(_simulated(spec, settings, now)) as campaign:
        cluster = campaign.spec.launcher
        assert isinstance(cluster, SimulatedCluster)
        yield from campaign.drive(lambda seconds: cluster.advance(_until(campaign, cluster, now, seconds)))


def _simulated(spec: CampaignSpec, settings: SimulationSettings, now: SimulatedClock) -> CampaignSpec:
    """Return the spec with a simulated launcher, and an optimizer whose proposals take simulated time."""
    objective = spec.objective
    model = objective if isinstance(objective, SurrogateObjective) else None

    def evaluate(params: Mapping[str, Any], share: float) -> Mapping[str, Any]:
        return objective.measure(params["parameters"], params["seed"], params["attempt"], share)

    cluster = SimulatedCluster(
        settings,
        now,
        evaluate,
        seconds=objective.seconds,
        waits=() if model is None else model.waits,
        spread=None if model is None else model.spread,
        start_s=0.0 if model is None else model.start_s,
        walltime_s=60.0 * spec.launcher_settings.walltime_min,
        trials_per_node=spec.launcher.trials_per_node,
        poll_period_s=spec.launcher.poll_period_s,
        seed=spec.seed,
    )
    return dataclasses.replace(
        spec,
        launcher=cluster,
        optimizer=_Timed(spec.optimizer, now, settings.proposal_scale),
        identity={**spec.identity, SIMULATION: settings.identity()},
        operation=spec.operation.model_copy(update={"driver_memory_gb": None}),
        code="none",
    )


class _Timed:
    """An optimizer whose proposals take time on the simulated clock."""

    def __init__(self, optimizer: Optimizer, now: SimulatedClock, scale: float) -> None:
        self.space, self._optimizer, self._now, self._scale = optimizer.space, optimizer, now, scale

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """See `hpo_cluster.optimizers.base.Optimizer.ask`."""
        began = time.process_time()
        ask = self._optimizer.ask(history, n)
        self._now.advance(self._scale * (time.process_time() - began))
        return ask


def _until(campaign: Campaign, cluster: SimulatedCluster, now: SimulatedClock, seconds: float) -> float:
    """Return for how long the driver would find nothing new: a multiple of its `seconds` between two looks."""
    jobs = [trial.attempt.job_name if trial.attempt is not None else "" for trial in campaign.record.in_flight]
    if cluster.is_listening or not all(map(cluster.is_alive, jobs)):
        return seconds
    if campaign.submitter.shut and not jobs:
        return max(seconds, SHUT_S)
    moments = [cluster.next_at, campaign.spec.operation.deadline]
    ahead = [(at - now.at).total_seconds() for at in moments if at is not None and at > now.at]
    return seconds * max(1, math.ceil(min(ahead, default=0.0) / seconds))
