"""Campaigns with rungs, whose jobs are `climbing_job.py`; drivers in processes of their own, which may be killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pydantic import Field

from hpo_cluster.driver import climbing
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.driver.spec import CampaignSpec, choose_optimizer, make_spec
from hpo_cluster.launchers import LocalSettings
from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.optimizers.registry import make_settings
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.space import Float, Space
from support import drivers, forks

JOB = Path(__file__).with_name("climbing_job.py")
SPACE = Space({"x": Float(0.0, 0.9)})
RUNGS = {"kind": "steps", "rungs": [1 / 9, 1 / 3, 1], "linger_s": 60}


class Climber(Objective):
    """An objective whose job climbs."""

    OPERATIONAL = ("settings",)

    kind: Literal["climber"] = "climber"
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        return "climber"

    @property
    def metric(self) -> None:
        return None

    @property
    def program(self) -> str:
        return str(JOB)

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        return dict(self.settings)


def spec(directory: Path, options: dict[str, Any]) -> CampaignSpec:
    quick = {"budget": 2, "workers": 2, "poll_s": 0.05, "grace_s": 0.5, "retry_wait_s": 0.0}
    operation = {**quick, **options.get("operation", {})}
    recorded = read_identity(CampaignLayout(directory).identity)
    settings = {"log": str(directory.parent / f"{directory.name}.log"), **options.get("job", {})}
    made = make_spec(
        directory,
        space=SPACE,
        objective=Climber(settings=settings),
        optimizer=choose_optimizer(
            "random", make_settings("random", {}), SPACE, 0, budget=operation["budget"], recorded=recorded
        ),
        seed=0,
        launcher=LocalSettings(poll_period_s=0.1),
        operation=Operation(**operation),
        storage_dir=directory.parent,
        resolve=Path,
        fidelity=Fidelity(**{**RUNGS, **options.get("fidelity", {})}),
    )
    made.launcher.trials_per_node = options.get("trials_per_node", 1)
    return made


def drive(directory: Path, until: Callable[[Campaign], bool] = lambda _: False, **options: Any) -> Record:
    """Drive a campaign in this process to its end, or until a condition holds; returns its record."""
    with Campaign(spec(directory, options)) as campaign:
        for _ in campaign.drive():
            if until(campaign):
                campaign.stop("enough")
        return campaign.record


def run(directory: Path, **options: Any) -> int:
    """Run a driver in a process of its own; returns its exit status (negative: the signal that ended it)."""
    return forks.run(__file__, directory, options, os.environ)


def lines(directory: Path, word: str) -> list[str]:
    """What the jobs noted: ``start TRIAL goal G from STEP`` and ``rung TRIAL RUNG``."""
    log = directory.parent / f"{directory.name}.log"
    return [line for line in log.read_text().splitlines() if line.startswith(word)] if log.exists() else []


def kill_before_word() -> None:
    """From now on, die before the first word that lets a trial go on, when its promotion is journaled."""

    def deadly(files: AttemptLayout, rung: int, *, go_on: bool) -> bool:
        if go_on:
            os.kill(os.getpid(), signal.SIGKILL)
        return publish(files, rung, go_on=go_on)

    publish = climbing.publish_word
    climbing.publish_word = deadly


def drive_and_die(directory: Path, options: dict[str, Any]) -> None:
    if options.get("kill_before_word"):
        kill_before_word()
    if "kill_at" in options:
        drivers.kill_around(options["kill_at"], options["when"])
    drive(directory, **options)


if __name__ == "__main__":
    forks.serve(drive_and_die)
