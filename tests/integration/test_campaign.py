"""Whole campaigns on real processes: what drivers, jobs and people do to them."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import drivers

from hpo_cluster import load_history
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.check_proposals import replay
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.errors import IdentityError, LockedError
from hpo_cluster.job import JobRef
from hpo_cluster.launchers import commands
from hpo_cluster.launchers.base import Submission
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record import inbox
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.status import campaign_status
from hpo_cluster.trial import Ask


def spec(directory: Path, command: str | None = None, **options: Any) -> CampaignSpec:
    made = drivers.spec(directory, options)
    if command is None:
        return made
    return dataclasses.replace(made, objective=CommandObjective(command=command, cwd=str(directory.parent)))


def drive(made: CampaignSpec, meanwhile: Callable[[Campaign], None] = lambda campaign: None) -> dict[str, Any]:
    with Campaign(made) as campaign:
        for _ in campaign.drive():
            meanwhile(campaign)
    return campaign_status(made.dir)


def test_a_campaign_ends_with_a_whole_history(tmp_path: Path) -> None:
    status = drive(spec(tmp_path / "c", operation={"budget": 5}))
    assert (status["state"], status["done"], status["counts"]) == ("finished", 5, {"completed": 5})
    history = load_history(tmp_path / "c")
    assert list(history.trial) == [0, 1, 2, 3, 4]
    assert history.value.notna().all()
    assert (history.attempts == 1).all()
    for column in ("job", "node", "submitted_at", "started_at", "ended_at", "seed", "asked_seq", "ended_seq"):
        assert history[column].notna().all(), column
    assert (history.submitted_at <= history.ended_at).all()
    written = pd.read_csv(tmp_path / "c" / "history.csv", dtype={"job": str})
    assert list(written.columns) == list(history.columns)
    assert np.array_equal(written.value, history.value)  # exactly: floats survive the file
    assert status["best"]["value"] == history.value.max()


def test_raising_the_budget_and_the_workers_goes_on(tmp_path: Path) -> None:
    drive(spec(tmp_path / "c", operation={"budget": 2, "workers": 1}))
    first = drivers.trials(tmp_path / "c")
    status = drive(spec(tmp_path / "c", operation={"budget": 5, "workers": 3}))
    assert status["done"] == 5
    assert drivers.trials(tmp_path / "c")[:2] == first
    starts = [
        event["operation"] for event in read_events(tmp_path / "c" / "events.jsonl") if event["event"] == "started"
    ]
    assert [(start["budget"], start["workers"]) for start in starts] == [(2, 1), (5, 3)]


def test_a_finished_campaign_started_again_does_nothing(tmp_path: Path) -> None:
    drive(spec(tmp_path / "c"))
    before = drivers.trials(tmp_path / "c")
    drive(spec(tmp_path / "c"))
    assert drivers.trials(tmp_path / "c") == before


def test_another_identity_stops_with_a_table_and_changes_nothing(tmp_path: Path) -> None:
    drive(spec(tmp_path / "c", operation={"budget": 1}))
    events = (tmp_path / "c" / "events.jsonl").read_bytes()
    with pytest.raises(IdentityError) as caught:
        Campaign(spec(tmp_path / "c", seed=5, optimizer="sobol"))
    text = str(caught.value)
    for part in ("optimizer.name", "random", "sobol", "seed", "resume", "campaign=NEW_NAME"):
        assert part in text
    assert (tmp_path / "c" / "events.jsonl").read_bytes() == events


def test_a_second_driver_is_refused_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    refusals: list[str] = []

    def intrude(campaign: Campaign) -> None:
        if not refusals:
            with pytest.raises(LockedError) as caught:
                Campaign(spec(tmp_path / "c"))
            refusals.append(str(caught.value))

    status = drive(spec(tmp_path / "c"), intrude)
    assert status["done"] == 4
    assert f"process {os.getpid()}" in refusals[0]
    assert os.uname().nodename in refusals[0]


def kill_first_job(campaign: Campaign) -> None:
    """SIGKILL every process of the first job that runs, once."""
    claim = read_json(campaign.opened.layout.attempt(0, 0).claim)
    if claim is not None and not getattr(campaign, "killed", False):
        os.killpg(os.getpgid(claim["pid"]), signal.SIGKILL)
        campaign.killed = True  # type: ignore[attr-defined]


def test_a_job_killed_without_a_word_is_tried_again_with_its_seed(tmp_path: Path) -> None:
    status = drive(spec(tmp_path / "c", sleep=1, operation={"budget": 2}), kill_first_job)
    assert status["counts"] == {"completed": 2}
    trial = Record.read(tmp_path / "c" / "events.jsonl").trials[0]
    assert [a.error["kind"] if a.error else None for a in trial.attempts] == ["vanished", None]
    params = [read_json(tmp_path / "c" / "trials" / "t0000" / f"a{n}" / "params.json") or {} for n in (0, 1)]
    assert params[0]["seed"] == params[1]["seed"] == trial.seed
    assert params[0]["parameters"] == params[1]["parameters"]
    assert load_history(tmp_path / "c").attempts[0] == 2


def test_retries_have_an_end(tmp_path: Path) -> None:
    command = "kill -9 -$(ps -o pgid= $$ | tr -d ' ') # {x} {k}"
    status = drive(spec(tmp_path / "c", command, operation={"budget": 1, "retries": 1}))
    assert status["counts"] == {"failed": 1}
    assert status["errors"][0]["kind"] == "vanished"
    assert len(Record.read(tmp_path / "c" / "events.jsonl").trials[0].attempts) == 2


@pytest.mark.parametrize(
    ("output", "state"),
    [('{{"value": NaN}}', "diverged"), ('{{"error": "out_of_memory"}}', "infeasible"), ("no json", "failed")],
)
def test_each_kind_of_failure_has_its_state(tmp_path: Path, output: str, state: str) -> None:
    operation = {"budget": 2, "stop_after_failures": 0}
    status = drive(spec(tmp_path / "c", f"echo '{output}' # {{x}} {{k}}", operation=operation))
    assert status["counts"] == {state: 2}  # they count: the budget is spent
    assert load_history(tmp_path / "c").value.isna().all()


def test_failures_alike_stop_the_campaign_early(tmp_path: Path) -> None:
    status = drive(spec(tmp_path / "c", "nosuchprogram # {x}{k}", operation={"budget": 50, "workers": 1}))
    assert status["done"] == 3
    assert status["state"] == "stopped"
    assert "trials failed alike" in status["reason"]


def publish(campaign: Campaign, text: str) -> None:
    """Put something that is no result of that attempt where the result of trial 0 belongs, before its job does."""
    files = campaign.opened.layout.attempt(0, 0)
    if files.dir.exists() and not files.result.exists() and not campaign.record.trials[0].state.ended:
        files.result.write_text(text)


@pytest.mark.parametrize("text", ["", "{", '{"metrics": {}}', '{"metrics": {"value": null}}', "[]"])
def test_a_broken_result_file_fails_its_trial_alone(tmp_path: Path, text: str) -> None:
    status = drive(spec(tmp_path / "c", sleep=0.5, operation={"budget": 3}), lambda c: publish(c, text))
    assert status["counts"] == {"failed": 1, "completed": 2}
    assert status["errors"][0]["kind"] == "bad_result"


def test_somebody_elses_result_is_not_taken(tmp_path: Path) -> None:
    foreign = json.dumps({"token": "hpo-other", "metrics": {"value": 1e9}})
    operation = {"budget": 2, "retries": 1}
    status = drive(spec(tmp_path / "c", sleep=0.3, operation=operation), lambda c: publish(c, foreign))
    assert status["best"]["value"] < 1e9
    assert status["counts"] == {"completed": 2}  # its own job could not publish; a new attempt did


def test_stopping_leaves_jobs_running_and_a_later_start_adopts_them(tmp_path: Path) -> None:
    def stop(campaign: Campaign) -> None:
        if all(campaign.opened.layout.attempt(number, 0).claim.exists() for number in (0, 1)):
            campaign.stop("interrupted")

    status = drive(spec(tmp_path / "c", sleep=2), stop)
    assert status["state"] == "stopped"
    assert status["in_flight"] == 2
    assert drive(spec(tmp_path / "c"))["counts"] == {"completed": 4}
    assert len(drivers.evaluations(tmp_path / "c")) == 4


@pytest.mark.parametrize("how", ["signal", "in the other thread", "other terminal"])
def test_what_the_optimizer_answers_after_a_stop_is_dropped(tmp_path: Path, how: str) -> None:
    whole = spec(tmp_path / "whole", operation={"budget": 3, "workers": 1})
    drive(whole)
    made, answered = spec(tmp_path / "c", operation={"budget": 3, "workers": 1}), []
    ask = made.optimizer.ask

    class Slow:
        def ask(self, history: pd.DataFrame, n: int) -> Ask:
            if len(history) == 2:
                if how == "other terminal":
                    inbox.post(campaign.opened.layout.inbox_dir, "stop", None)
                else:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.1)
                answered.append(n)
            return ask(history, n)

        __getattr__ = made.optimizer.__getattribute__

    with Campaign(dataclasses.replace(made, optimizer=Slow())) as campaign:  # type: ignore[arg-type]
        before = signal.signal(signal.SIGTERM, lambda number, frame: campaign.stop("ended by SIGTERM"))
        if how == "in the other thread":  # as with rungs
            campaign._ask = lambda n: campaign._asking(lambda: campaign.spec.optimizer.ask(campaign.history(), n))  # type: ignore[method-assign]
        try:
            for _ in campaign.drive():
                pass
        finally:
            signal.signal(signal.SIGTERM, before)
        assert len(answered) == (how == "other terminal")  # a signal does not even wait for the answer
    record = Record.read(tmp_path / "c" / "events.jsonl")
    assert sorted(record.trials) == [0, 1]
    assert record.stopped
    assert record.stopped["reason"] == campaign.reason != ""
    drive(made)
    assert drivers.trials(tmp_path / "c") == drivers.trials(tmp_path / "whole")
    assert replay(list(read_events(tmp_path / "c" / "events.jsonl")), made.optimizer, maximize=True) == []


def test_jobs_that_would_be_submitted_after_a_stop_wait_for_the_next_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = spec(tmp_path / "c", operation={"budget": 3, "workers": 3})
    submit = made.launcher.submit

    def stopping(submission: Submission) -> JobRef:
        campaign.stop("interrupted")
        return submit(submission)

    monkeypatch.setattr(made.launcher, "submit", stopping)
    with Campaign(made) as campaign:
        for _ in campaign.drive():
            pass
    record = Record.read(tmp_path / "c" / "events.jsonl")
    assert [len(trial.attempts) for trial in record.rows] == [1, 0, 0]
    monkeypatch.undo()
    assert drive(made)["counts"] == {"completed": 3}
    assert len(drivers.evaluations(tmp_path / "c")) == 3


def test_cancelling_ends_jobs_and_spends_nothing(tmp_path: Path) -> None:
    with Campaign(spec(tmp_path / "c", sleep=30)) as campaign:
        for _ in campaign.drive():
            if all(campaign.opened.layout.attempt(number, 0).claim.exists() for number in (0, 1)):
                campaign.stop("cancelled")
        began = time.monotonic()
        campaign.cancel_jobs()
    status = campaign_status(tmp_path / "c")
    assert status["counts"] == {"cancelled": 2}
    assert status["done"] == 0
    assert time.monotonic() - began < 10
    claims = [read_json(tmp_path / "c" / "trials" / f"t000{n}" / "a0" / "claim") or {} for n in (0, 1)]
    time.sleep(1.5)
    assert not any(Path(f"/proc/{claim['pid']}").exists() for claim in claims)
    assert drive(spec(tmp_path / "c"))["done"] == 4


def test_an_exhausted_grid_ends_before_the_budget(tmp_path: Path) -> None:
    made = spec(tmp_path / "c", optimizer="grid", optimizer_settings={"levels": 2}, operation={"budget": 50})
    status = drive(made)
    assert (status["state"], status["counts"]) == ("finished", {"completed": 4})


def test_bo_with_three_workers_follows_from_its_journal(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": "bo", "optimizer_settings": {"initial": 3}}
    made = spec(tmp_path / "c", operation={"budget": 8, "workers": 3}, **options)
    drive(made, lambda c: c.stop("interrupted") if c.record.spent == 4 else None)
    drive(made)
    events = list(read_events(tmp_path / "c" / "events.jsonl"))
    derived = make_optimizer("bo", drivers.SPACE, 0, initial=3)
    assert replay(events, derived, maximize=True) == []
    other = make_optimizer("bo", drivers.SPACE, 1, initial=3)
    assert len(replay(events, other, maximize=True)) >= 3  # the check can fail


@pytest.mark.parametrize("call", ["write", "replace", "mkdir"])
def test_a_full_disk_is_waited_out_wherever_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Any file that the driver writes may meet it: the journal, params.json, history.csv."""
    monkeypatch.setattr(commands, "FIRST_BACKOFF_S", 0.2)
    made = spec(tmp_path / "c", operation={"budget": 6})
    real, driver = getattr(os, call), os.getpid()
    seen: list[str] = []
    full = False

    def failing(*args: Any, **options: Any) -> Any:
        if full and os.getpid() == driver:
            raise OSError(errno.ENOSPC, "No space left on device", str(made.dir))
        return real(*args, **options)

    monkeypatch.setattr(os, call, failing)
    with Campaign(made) as campaign:
        for cycle, status in enumerate(campaign.drive()):
            seen += [notice for notice in status["notices"] if "No space left" in notice]
            full = 3 <= cycle < 20 or (cycle >= 20 and not seen and cycle < 400)
    status = campaign_status(made.dir)
    assert seen
    assert status["notices"] == []
    assert (status["state"], status["counts"]) == ("finished", {"completed": 6})
    assert len(drivers.evaluations(tmp_path / "c")) == 6  # nothing that had run was run again


def test_what_is_in_the_way_of_an_attempt_ends_the_campaign_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "c" / "trials").mkdir(parents=True)
    (tmp_path / "c" / "trials" / "t0001").write_text("not a folder")
    status = drive(spec(tmp_path / "c"))
    assert "trials/t0001" in status["reason"]
    assert "remove what is in the way" in status["reason"]


def test_jobs_run_the_campaigns_own_copy_of_the_code(tmp_path: Path) -> None:
    drive(spec(tmp_path / "c", operation={"budget": 1}))
    record = Record.read(tmp_path / "c" / "events.jsonl")
    code = record.code
    assert (tmp_path / "c" / "code" / str(code) / "jobs" / "command.py").is_file()
    assert str(tmp_path / "c" / "code" / str(code)) in next((tmp_path / "c" / "trials").rglob("job.sh")).read_text()
    result = read_json(tmp_path / "c" / "trials" / "t0000" / "a0" / "result.json") or {}
    assert result["code"] == code


def test_no_secret_of_the_environment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_averyprivatetoken1234567890"
    monkeypatch.setenv("HF_TOKEN", secret)
    made = spec(tmp_path / "c", "echo $HF_TOKEN >&2; false # {x} {k}", operation={"budget": 1})
    made = dataclasses.replace(made, overrides=(f"launcher.setup=[export HF_TOKEN={secret}]",))
    assert drive(made)["errors"][0]["kind"] == "code"
    ours = [path for path in (tmp_path / "c").rglob("*") if path.is_file() and path.parent.name != "job"]
    assert len(ours) > 8
    assert [path.name for path in ours if secret.encode() in path.read_bytes()] == []
