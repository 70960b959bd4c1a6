"""The paths of a campaign directory and of the installed package, all in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hpo_cluster.trial import trial_label

CAMPAIGN_NAME_RULE = "letters a to z, digits, dots, dashes and underscores"
_NAME = re.compile(r"[A-Za-z0-9._-]+")

PACKAGE_DIR = Path(__file__).resolve().parents[1]


def resources_dir() -> Path:
    """Return the folder with ``conf/``, ``jobs/`` and ``bundle/``: the checkout, or the copy in the wheel."""
    packed = PACKAGE_DIR / "_resources"
    return packed if packed.is_dir() else PACKAGE_DIR.parent


def is_campaign_name(name: str) -> bool:
    """Return whether `name` can be a campaign's folder: letters, digits, dots, dashes, underscores; not only dots."""
    return bool(_NAME.fullmatch(name)) and bool(name.strip("."))


def in_campaign_name(text: str) -> str:
    """Return `text` with a dash in place of what a campaign's name cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


@dataclass(frozen=True)
class AttemptLayout:
    """The files of one attempt. The driver writes `params` and `cancel`, driver or job `next`, the job the others."""

    dir: Path

    @property
    def params(self) -> Path:
        """What to evaluate; written by the driver before it submits the job."""
        return self.dir / "params.json"

    @property
    def claim(self) -> Path:
        """The file that the first job of this attempt creates exclusively, so that a second job ends at once."""
        return self.dir / "claim"

    @property
    def result(self) -> Path:
        """The result of a job that succeeded; published whole."""
        return self.dir / "result.json"

    @property
    def items(self) -> Path:
        """What each item of its tasks scored; written whole, before the result, by evaluations that have items."""
        return self.dir / "items.json"

    @property
    def error(self) -> Path:
        """The error of a job that failed; published whole."""
        return self.dir / "error.json"

    @cached_property
    def progress(self) -> Path:
        """Step, loss and phase of the running job, rewritten all the time: the job's heartbeat."""
        return self.dir / "progress.json"

    @property
    def adapter_dir(self) -> Path:
        """The fine-tuned LoRA weights."""
        return self.dir / "adapter"

    @property
    def checkpoint_dir(self) -> Path:
        """Checkpoints of the training, one folder for each, named by its step; removed once the evaluation is whole."""
        return self.dir / "checkpoint"

    @property
    def trial_checkpoint_dir(self) -> Path:
        """The folder that all attempts of a trial share, for programs that keep checkpoints of their own."""
        return self.dir.parent / "checkpoint"

    @property
    def cancel(self) -> Path:
        """A file that asks the attempt to end, for an attempt that shares its job with others."""
        return self.dir / "cancel"

    @property
    def next(self) -> Path:
        """What the job does after this attempt; published once, by the driver or by the job."""
        return self.dir / "next.json"

    @property
    def job_dir(self) -> Path:
        """The folder with submission script, standard output and standard error."""
        return self.dir / "job"


@dataclass(frozen=True)
class CampaignLayout:
    """The files of one campaign."""

    dir: Path

    @property
    def identity(self) -> Path:
        """The campaign's identity; written once."""
        return self.dir / "campaign.yaml"

    @property
    def events(self) -> Path:
        """The journal."""
        return self.dir / "events.jsonl"

    @property
    def lock(self) -> Path:
        """The lock of the campaign's driver: who it is, and its heartbeat."""
        return self.dir / "driver.lock"

    @property
    def inbox_dir(self) -> Path:
        """The folder of commands from other terminals."""
        return self.dir / "inbox"

    @property
    def scheduler(self) -> Path:
        """What the scheduler last said about each job; derived."""
        return self.dir / "scheduler.json"

    @property
    def history(self) -> Path:
        """The journal as a table; derived."""
        return self.dir / "history.csv"

    @property
    def test_looks(self) -> Path:
        """The looks at test scores; written by the commands that show them."""
        return self.dir / "test_looks.jsonl"

    @property
    def report_dir(self) -> Path:
        """The folder of plots; derived."""
        return self.dir / "report"

    @property
    def code_dir(self) -> Path:
        """Copies of the code that the jobs run, by hash."""
        return self.dir / "code"

    @property
    def drivers_dir(self) -> Path:
        """The folder with one folder for each start of a driver."""
        return self.dir / "drivers"

    @cached_property
    def trials_dir(self) -> Path:
        """The folder with one folder for each trial."""
        return self.dir / "trials"

    def attempt(self, trial: int, attempt: int) -> AttemptLayout:
        """Return the files of an attempt of a trial."""
        known = self._attempts.get((trial, attempt))
        if known is None:
            known = AttemptLayout(self.trials_dir / f"{trial_label(trial)}/a{attempt}")
            self._attempts[trial, attempt] = known
        return known

    def make_attempt(self, trial: int, attempt: int) -> AttemptLayout:
        """Make the folder of an attempt of a trial, and return its files.

        Raises:
            FileNotFoundError: if the campaign's folder is gone: one that was moved is not made again.
        """
        files = self.attempt(trial, attempt)
        for folder in (self.trials_dir, files.dir.parent, files.dir):
            folder.mkdir(exist_ok=True)
        return files

    @cached_property
    def _attempts(self) -> dict[tuple[int, int], AttemptLayout]:
        """The layouts that `attempt` has returned, kept because a driver asks for the same ones twice a second."""
        return {}
