"""Log a campaign to MLflow: a run for each trial, with parameters, metrics and tags, below the run of the campaign."""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.record.exchange.facts import Outline, TrialFacts
from hpo_cluster.record.identity import flatten
from hpo_cluster.trial import State

#: The experiment, if none is named.
EXPERIMENT = "hpo_cluster"
#: Tags by which the runs of a campaign are found again.
CAMPAIGN, KIND, TRIAL, DIGEST = (f"hpo_cluster.{name}" for name in ("campaign", "kind", "trial", "digest"))
PARENT = "mlflow.parentRunId"
#: What MLflow accepts at most: parameters and metrics in one request, characters of a value, runs of one answer.
PARAMS, METRICS, CHARACTERS, RUNS = 100, 500, 500, 1000
#: Environment variables, unless the user has set them: no telemetry; an answer is not waited for until all eternity.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
STATUS = {
    State.COMPLETED: "FINISHED",
    State.CANCELLED: "KILLED",
    State.RUNNING: "RUNNING",
    State.PROPOSED: "SCHEDULED",
    State.SUBMITTED: "SCHEDULED",
    State.PAUSED: "SCHEDULED",
}
#: Characters that MLflow does not accept in the name of a metric or parameter.
_FOREIGN = re.compile(r"[^\w\-. :/]")


class MlflowTracker:
    """The runs of one campaign.

    Args:
        outline: the campaign.
        uri: tracking URI; None: that of the environment, or a database ``mlflow.db`` in the working directory.
        experiment: name of the experiment; None: ``hpo_cluster``.
    """

    def __init__(self, outline: Outline, uri: str | None, experiment: str | None) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # tables are created, it says
            logging.getLogger(name).setLevel(logging.ERROR)
        self.place = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"
        self.client: Any = MlflowClient(tracking_uri=self.place)
        name = experiment or EXPERIMENT
        known = self.client.get_experiment_by_name(name)
        self.experiment = known.experiment_id if known is not None else self.client.create_experiment(name)
        self.outline = outline
        self.parent = self._parent()
        self.children = {run.data.tags.get(TRIAL): run for run in self._runs("trial")}

    def _runs(self, kind: str) -> list[Any]:
        """Return the campaign's runs of a kind."""
        wanted, found, token = f"tags.`{CAMPAIGN}` = '{self.outline.key}' and tags.`{KIND}` = '{kind}'", [], None
        while True:
            page = self.client.search_runs([self.experiment], wanted, max_results=RUNS, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _parent(self) -> str:
        """Return the run of the campaign; it is made if there is none."""
        if runs := self._runs("campaign"):
            run_id: str = runs[0].info.run_id
            if runs[0].info.status != "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {CAMPAIGN: self.outline.key, KIND: "campaign"}
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=self.outline.name).info.run_id
        self._log_params(run_id, flatten(self.outline.identity))
        return run_id

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        made = [Param(accepted(name), str(value)[:CHARACTERS]) for name, value in params.items()]
        for part in _parts(made, PARAMS):
            self.client.log_batch(run_id, params=part)

    def log(self, facts: TrialFacts) -> bool:
        """Log a trial, or change what was logged of it; return False if nothing had to be changed."""
        run = self.children.get(facts.label)
        if run is not None and run.data.tags.get(DIGEST) == facts.digest:
            return False
        if run is None:
            tags = {PARENT: self.parent, CAMPAIGN: self.outline.key, KIND: "trial", TRIAL: facts.label}
            began = _ms(facts.begin)
            run = self.client.create_run(self.experiment, start_time=began, tags=tags, run_name=facts.label)
        run_id = run.info.run_id
        self._log_params(run_id, facts.parameters)
        self._log_metrics(run_id, facts)
        for name, text in {"state": str(facts.state), "origin": facts.origin, **facts.notes}.items():
            if run.data.tags.get(name) != text[:CHARACTERS]:
                self.client.set_tag(run_id, name, text[:CHARACTERS])
        if facts.state.ended and facts.state is not State.PAUSED:
            self.client.set_terminated(run_id, STATUS.get(facts.state, "FAILED"), end_time=_ms(facts.ended_at))
        else:
            self.client.update_run(run_id, status=STATUS[facts.state])
        self.client.set_tag(run_id, DIGEST, facts.digest)  # the last step: until then the trial is logged again
        self.children[facts.label] = self.client.get_run(run_id)
        return True

    def _log_metrics(self, run_id: str, facts: TrialFacts) -> None:
        """Log values and series; the time of each depends on the trial alone, so that nothing is there twice."""
        from mlflow.entities import Metric

        whole = facts.measured
        made = [Metric(accepted(name), float(value), _ms(facts.ended_at) or 0, 0) for name, value in whole.items()]
        for name, points in facts.series.items():
            named = f"curve.{name}" if name in whole else name
            made += [Metric(accepted(named), value, _ms(facts.begin) or 0, step) for step, value in points]
        for part in _parts(made, METRICS):
            self.client.log_batch(run_id, metrics=part)

    def close(self, *, ended: bool) -> None:
        """End the campaign's run if the campaign has ended."""
        if ended:
            self.client.set_terminated(self.parent, "FINISHED")


def accepted(name: str) -> str:
    """Return a name of a metric or parameter with the characters that MLflow accepts."""
    return _FOREIGN.sub("_", name)


def _parts(items: Sequence[Any], size: int) -> list[list[Any]]:
    numbers = itertools.groupby(enumerate(items), key=lambda pair: pair[0] // size)
    return [[item for _, item in group] for _, group in numbers]


def _ms(moment: datetime.datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)
