"""A campaign on a real cluster, and what must hold of it in the end."""

from __future__ import annotations

import collections
import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusters import Cluster, environment_of, kill, processes, wait

from hpo_cluster import load_history
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord


class CampaignOnACluster:
    """Starts drivers of one campaign; options are those of ``driver.py``."""

    def __init__(self, cluster: Cluster, **options: Any) -> None:
        self.cluster = cluster
        self.folder = cluster.folder()
        self.name = self.folder.name.replace("_", "-")
        self.directory = self.folder / self.name
        self.layout = CampaignLayout(self.directory)
        launcher = {**cluster.settings(), **options.pop("launcher", {})}
        operation = {"budget": 4, "workers": 4, **options.pop("operation", {})}
        self.options = {"launcher": launcher, "operation": operation, **options}
        self.drivers: list[subprocess.Popen[Any]] = []

    # ---------------------------------------------------------------------------------------------------- drivers

    def start(self, *, path: Path | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a driver; its output goes to a file of the folder."""
        program = self.cluster.checkout / "tests" / "cluster" / "driver.py"
        arguments = (self.directory, json.dumps({**self.options, **options}))
        with (self.folder / f"driver-{len(self.drivers)}.out").open("w") as out:
            driver = self.cluster.start_as_user(
                self.cluster.python, program, *arguments, path=path, stdout=out, stderr=subprocess.STDOUT
            )
        self.drivers.append(driver)
        return driver

    def run(self, *, seconds: float = 180, **options: Any) -> int:
        """A driver from its start to its end; returns its exit status."""
        return self.start(**options).wait(timeout=seconds)

    def finish(self, seconds: float = 180) -> None:
        """The driver that was started last ends well."""
        try:
            status = self.drivers[-1].wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not finished within {seconds:g} s\n{self.story()}") from None
        assert status == 0, self.story()

    def kill_driver(self) -> None:
        """SIGKILL the driver that was started last."""
        self.drivers[-1].send_signal(signal.SIGKILL)
        self.drivers[-1].wait()

    def open_gate(self) -> None:
        """Let attempts go on that wait for a file named ``gate`` where they run."""
        (self.folder / "gate").touch()

    def close(self) -> None:
        """End what is left of the campaign: drivers first, then what jobs left behind."""
        for driver in self.drivers:
            driver.kill()
            driver.wait()
        token = f"hpo-{self.name}-"
        kill(*(pid for pid in processes() if environment_of(pid).get("HPO_CLUSTER_TOKEN", "").startswith(token)))

    # ------------------------------------------------------------------------------------------------- what there is

    @property
    def trials(self) -> list[TrialRecord]:
        """The trials as journaled until now."""
        return Record(list(read_events(self.layout.events))).rows if self.layout.events.exists() else []

    def claim(self, trial: int = 0, attempt: int = 0, seconds: float = 60) -> dict[str, Any]:
        """Who runs an attempt, once its program has begun."""
        label = f"t{trial:04d}/a{attempt}"
        path = self.layout.attempt(trial, attempt).claim
        claim = self.wait(lambda: read_json(path), seconds, f"{label} to run")
        wait(lambda: label in self.evaluations(), 20, f"{label} to begin")
        return dict(claim)

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """The first true value of `condition`; after `seconds`, a failure with what there is to read by then."""
        try:
            return wait(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def job(self, trial: int = 0, attempt: int = 0, seconds: float = 60) -> str:
        """The scheduler's id of an attempt's job, once it is journaled."""

        def job_id() -> str | None:
            attempts = [t.attempts for t in self.trials if t.number == trial]
            there = attempts and len(attempts[0]) > attempt and attempts[0][attempt].job is not None
            return attempts[0][attempt].job_id if there else None

        return str(wait(job_id, seconds, f"the job of trial {trial}"))

    def evaluations(self) -> list[str]:
        """One entry, such as ``t0000/a0``, for each evaluation that began."""
        log = self.folder / "log"
        return log.read_text().split() if log.exists() else []

    def story(self) -> str:
        """What is to be read where a scenario went wrong."""
        texts = [path for path in sorted(self.folder.glob("driver-*.out")) if path.stat().st_size]
        texts += sorted(self.directory.glob("drivers/*/driver.log"))
        parts = [f"--- {path}\n{path.read_text()[-3000:]}" for path in texts]
        rows = [f"{t.number} {t.state} {[a.error for a in t.attempts]} {t.error}" for t in self.trials]
        return "\n".join([*parts, "--- trials", *rows, "--- evaluations", *self.evaluations()])

    # ------------------------------------------------------------------------------------------- what must hold of it

    def check(
        self,
        reference: list[dict[str, Any]],
        *,
        kinds: dict[int, list[str]] | None = None,
        states: dict[int, str] | None = None,
        lost_before_start: dict[int, int] | None = None,
    ) -> None:
        """The whole budget, the reference's parameters, right values; each attempt evaluated once.

        Args:
            reference: parameters of each trial, in trial order.
            kinds: of the failures of a trial's attempts, in order (``walltime|interrupted``: either); others have none.
            states: of trials that are not completed.
            lost_before_start: how many attempts of a trial never began.
        """
        kinds, states, unbegun = kinds or {}, states or {}, lost_before_start or {}
        story, trials = self.story(), self.trials
        assert [t.number for t in trials] == list(range(self.options["operation"]["budget"])), story
        assert [t.parameters for t in trials] == reference[: len(trials)], story
        assert {t.number: str(t.state) for t in trials} == {
            t.number: states.get(t.number, "completed") for t in trials
        }, story
        for trial in trials:
            completed = trial.state == "completed"
            failures = [str(a.error["kind"]) for a in trial.attempts if a.error]
            if not completed and trial.error and len(failures) < len(trial.attempts):
                failures.append(str(trial.error["kind"]))
            wanted = kinds.get(trial.number, [])
            assert len(failures) == len(wanted), story
            assert all(kind in either.split("|") for kind, either in zip(failures, wanted, strict=True)), story
            assert len(trial.attempts) == len(failures) + completed, story
            if completed:
                assert trial.value == float(f"{trial.parameters['x']}{trial.parameters['k']}"), story
        begun = collections.Counter(label.split("/")[0] for label in self.evaluations())
        expected = {t.number: len(t.attempts) - unbegun.get(t.number, 0) for t in trials}
        assert {int(re.sub(r"\D", "", label)): n for label, n in begun.items()} == expected, story
        assert len(set(self.evaluations())) == len(self.evaluations()), story
        assert list(load_history(self.directory).trial) == [t.number for t in trials]
