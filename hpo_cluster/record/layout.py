"""Every path of a campaign directory and of the installed package, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hpo_cluster.trial import trial_label

CAMPAIGN_NAME_RULE = "letters, digits, dots, dashes and underscores"
_NAME = re.compile(r"[A-Za-z0-9._-]+")

PACKAGE_DIR = Path(__file__).resolve().parents[1]


def resources_dir() -> Path:
    """The folder that holds ``conf/``, ``jobs/`` and ``bundle/``: the checkout, or the copy packed into the wheel."""
    packed = PACKAGE_DIR / "_resources"
    return packed if packed.is_dir() else PACKAGE_DIR.parent


def is_campaign_name(name: str) -> bool:
    """Whether `name` can be a campaign's folder: letters, digits, dots, dashes, underscores, and no way out of it."""
    return bool(_NAME.fullmatch(name)) and bool(name.strip("."))


@dataclass(frozen=True)
class AttemptLayout:
    """Files of one attempt: the driver writes `params`, the job everything else."""

    dir: Path

    @property
    def params(self) -> Path:
        """What to evaluate: written by the driver before the job is submitted."""
        return self.dir / "params.json"

    @property
    def claim(self) -> Path:
        """Created exclusively by the first job that works here."""
        return self.dir / "claim"

    @property
    def result(self) -> Path:
        """Published whole by the job that succeeded."""
        return self.dir / "result.json"

    @property
    def error(self) -> Path:
        """Published whole by the job that failed."""
        return self.dir / "error.json"

    @cached_property
    def progress(self) -> Path:
        """Step, loss and phase, rewritten while the job runs: its heartbeat."""
        return self.dir / "progress.json"

    @property
    def adapter_dir(self) -> Path:
        """The fine-tuned LoRA weights."""
        return self.dir / "adapter"

    @property
    def checkpoint_dir(self) -> Path:
        """Where an interrupted training stood: one folder, named by its step. Removed once there is a result."""
        return self.dir / "checkpoint"

    @property
    def cancel(self) -> Path:
        """Says that the attempt is not wanted any more, where its job cannot be cancelled for it."""
        return self.dir / "cancel"

    @property
    def job_dir(self) -> Path:
        """Submission script, standard output and standard error."""
        return self.dir / "job"


@dataclass(frozen=True)
class CampaignLayout:
    """Files of one campaign."""

    dir: Path

    @property
    def identity(self) -> Path:
        """What the campaign is: written once."""
        return self.dir / "campaign.yaml"

    @property
    def events(self) -> Path:
        """The journal."""
        return self.dir / "events.jsonl"

    @property
    def lock(self) -> Path:
        """Who drives the campaign."""
        return self.dir / "driver.lock"

    @property
    def inbox_dir(self) -> Path:
        """Commands from other terminals."""
        return self.dir / "inbox"

    @property
    def scheduler(self) -> Path:
        """What the scheduler last said of each job; derived."""
        return self.dir / "scheduler.json"

    @property
    def history(self) -> Path:
        """The journal as a table; derived."""
        return self.dir / "history.csv"

    @property
    def report_dir(self) -> Path:
        """Plots; derived."""
        return self.dir / "report"

    @property
    def code_dir(self) -> Path:
        """Copies of the code that the jobs run, by hash."""
        return self.dir / "code"

    @property
    def drivers_dir(self) -> Path:
        """One folder for each start of a driver."""
        return self.dir / "drivers"

    @cached_property
    def trials_dir(self) -> Path:
        """One folder for each trial."""
        return self.dir / "trials"

    def attempt(self, trial: int, attempt: int) -> AttemptLayout:
        """Files of an attempt of a trial."""
        known = self._attempts.get((trial, attempt))
        if known is None:
            known = AttemptLayout(self.trials_dir / f"{trial_label(trial)}/a{attempt}")
            self._attempts[trial, attempt] = known
        return known

    @cached_property
    def _attempts(self) -> dict[tuple[int, int], AttemptLayout]:
        """Those made before: a driver looks at the same ones twice a second."""
        return {}
