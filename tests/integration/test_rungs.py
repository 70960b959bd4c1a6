"""Campaigns with rungs: real jobs climb, wait for the word, end and go on in other jobs, and drivers and jobs die."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import climbing
from support.waiting import wait

from hpo_cluster import load_curves, load_history, optimize
from hpo_cluster.cli.display import running_line, status_lines
from hpo_cluster.cli.main import main
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.check_proposals import replay
from hpo_cluster.errors import ConfigError
from hpo_cluster.record import inbox
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.climb import rung_table
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.repair import repair
from hpo_cluster.record.status import campaign_status
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.report import write_report
from hpo_cluster.report.trial import trial_story
from hpo_cluster.trial import Ask, Proposal, State


def record_of(directory: Path) -> Record:
    return Record.read(directory / "events.jsonl")


def check_climbs(record: Record) -> None:
    """Every trial has scored what its job reports, climbed no further than its goal, and is over."""
    for trial in record.rows:
        assert trial.climb is not None
        assert trial.state in (State.PAUSED, State.COMPLETED)
        assert (trial.state is State.COMPLETED) == (trial.climb.reached == 2)
        for rung, score in trial.climb.scores.items():
            assert score.value == trial.parameters["x"] + rung  # type: ignore[operator]
            assert score.value_sem == 0.1
            assert (score.step, score.seconds) == ((rung + 1, 0.75) if rung < 2 else (None, None))
        assert len(trial.climb.scores) == trial.climb.reached + 1


def test_trials_climb_in_lingering_jobs_and_the_budget_counts_shares(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    record = climbing.drive(directory, operation={"budget": 3, "workers": 1})
    check_climbs(record)
    assert 2.5 < record.spent <= 3 + 1e-6
    assert record.next_trial > 6  # more than three whole evaluations would allow
    table = rung_table(record, maximize=True)
    assert table[0]["reached"] == record.next_trial
    assert [row["reached"] for row in table] == sorted((row["reached"] for row in table), reverse=True)
    assert table[2]["reached"] >= 1
    best = record.best(maximize=True)
    assert best is not None
    assert best.state is State.COMPLETED
    for trial in record.rows:  # a new job begins where the last one ended, or the trial was new
        starts = [line.split() for line in climbing.lines(directory, f"start {trial.number} ")]
        assert len(starts) == len(trial.attempts)
        assert all(int(words[-1]) == int(words[3]) for words in starts[1:])  # goal and step of the checkpoint
    identity = json.loads(json.dumps(climbing.read_identity(directory / "campaign.yaml")))
    assert identity["fidelity"] == {"kind": "steps", "rungs": [1 / 9, 1 / 3, 1]}


def test_a_word_in_time_costs_no_start(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    record = climbing.drive(directory, operation={"budget": 2, "workers": 2}, fidelity={"rule": "all"})
    check_climbs(record)
    assert [len(trial.attempts) for trial in record.rows] == [1, 1]
    assert record.spent == 2
    assert len(climbing.lines(directory, "start")) == 2
    events = list(read_events(directory / "events.jsonl"))
    climb = [(event["event"], event["rung"]) for event in events if event.get("trial") == 0 and "rung" in event]
    assert climb == [("rung", 0), ("promoted", 1), ("rung", 1), ("promoted", 2)]


def test_no_word_in_time_and_promoted_in_another_job(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 2, "workers": 1}, "job": {"sleep_s": 0.3}}
    started = lambda c: any(a.started_at for t in c.record.rows for a in t.attempts)  # noqa: E731
    climbing.drive(directory, started, **options, fidelity={"linger_s": 0})  # the driver leaves, the job gives up
    wait(lambda: list(directory.glob("trials/t0000/a0/result.json")))
    assert record_of(directory).trials[0].state is not State.PAUSED
    record = climbing.drive(directory, **options, fidelity={"rule": "all"})
    check_climbs(record)
    assert [len(trial.attempts) for trial in record.rows] == [2, 1]
    assert climbing.lines(directory, "start 0") == ["start 0 goal 0 from 0", "start 0 goal 1 from 1"]


class Slow:
    """An optimizer that works, once the first trial runs, until that trial has gone on from its first rung.

    What it proposes depends on the number of rungs that it knows.
    """

    def __init__(self, directory: Path, *, waits: bool = True) -> None:
        self.space, self._word, self._waits = climbing.SPACE, directory / "trials/t0000/a0/word-0.json", waits

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        if self._waits and len(history) == 1:
            if history["state"].iloc[0] != State.RUNNING or history["rung"].notna().any():
                return Ask()
            wait(self._word.exists)
        return Ask((Proposal({"x": 0.1 * len(history) + 0.2 * int(history["rung"].notna().sum())}),))


def test_a_job_does_not_wait_for_the_optimizer(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 2, "workers": 2}, "fidelity": {"rule": "all"}, "job": {"sleep_s": 1.0}}
    made = dataclasses.replace(climbing.spec(directory, options), optimizer=Slow(directory))
    with Campaign(made) as campaign:
        for _ in campaign.drive():
            pass
    check_climbs(campaign.record)
    assert [len(trial.attempts) for trial in campaign.record.rows] == [1, 1]
    events = list(read_events(directory / "events.jsonl"))
    last = [event for event in events if event["event"] == "asked"][-1]
    assert [e["event"] for e in events[last["known"] + 1 : last["seq"]]] == ["rung", "promoted"]
    assert replay(events, Slow(directory, waits=False), maximize=True) == []
    del last["known"]
    assert [each.trial for each in replay(events, Slow(directory, waits=False), maximize=True)] == [1]


def test_a_driver_killed_between_decision_and_word(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 1, "workers": 1}, "fidelity": {"rule": "all"}}
    assert climbing.run(directory, **options, kill_before_word=True) == -9
    trial = record_of(directory).trials[0]
    assert trial.climb is not None
    assert (trial.climb.goal, trial.climb.reached) == (1, 0)
    assert not list(directory.glob("trials/*/*/word-0.json"))
    record = climbing.drive(directory, **options)
    check_climbs(record)
    assert [len(trial.attempts) for trial in record.rows] == [1]  # the job still waited


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_driver_killed_at_every_event_of_a_climb(tmp_path: Path, when: str) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 1, "workers": 1}}
    whole = climbing.drive(tmp_path / "whole", **options)
    for _ in range(60):
        seen = len(list(read_events(directory / "events.jsonl")))
        if climbing.run(directory, **options, kill_at=seen + 2, when=when) == 0:
            break
    else:
        pytest.fail("the campaign never ended")
    record = record_of(directory)
    check_climbs(record)
    assert [(t.number, t.parameters, t.value, t.state) for t in record.rows] == [
        (t.number, t.parameters, t.value, t.state) for t in whole.rows
    ]
    assert record.spent == whole.spent
    reports = climbing.lines(directory, "rung")
    assert len(reports) == len(set(reports))  # no rung was reached twice


def test_a_job_killed_at_a_rung(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 1, "workers": 1, "retries": 0}, "job": {"die_at": 1}}
    record = climbing.drive(directory, **options, fidelity={"rule": "all"})
    check_climbs(record)
    assert record.counts[State.COMPLETED] == 1
    assert climbing.lines(directory, "start") == ["start 0 goal 0 from 0", "start 0 goal 2 from 2"]


def test_trials_side_by_side_in_one_job_climb_each_on_its_own(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    record = climbing.drive(directory, operation={"budget": 3, "workers": 2}, trials_per_node=2)
    check_climbs(record)
    assert 2.5 < record.spent <= 3 + 1e-6
    attempts = [attempt for trial in record.rows for attempt in trial.attempts]
    assert all(attempt.error is None for attempt in attempts)
    in_job = Counter(attempt.job_name for attempt in attempts)
    assert max(in_job.values()) == 2
    assert len(in_job) < 0.7 * len(attempts)
    assert len(climbing.lines(directory, "start")) == len(attempts)


def test_one_of_two_side_by_side_dies_at_its_rung(tmp_path: Path) -> None:
    """Its trial goes on in another job, from its checkpoint, and the other one goes on as if nothing had happened."""
    directory = tmp_path / "c"
    options = {"operation": {"budget": 2, "workers": 2}, "fidelity": {"rule": "all"}, "job": {"die_at": 1}}
    record = climbing.drive(directory, trials_per_node=2, **options)
    check_climbs(record)
    assert [[a.error and a.error["kind"] for a in trial.attempts] for trial in record.rows] == [["vanished", None]] * 2
    assert {line.split()[-1] for line in climbing.lines(directory, "start") if "goal 2" in line} == {"2"}


def test_a_larger_budget_and_a_smaller_eta_take_up_paused_trials(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    first = climbing.drive(directory, operation={"budget": 2, "workers": 2}, fidelity={"eta": 9, "rule": "asha"})
    assert first.counts[State.PAUSED] >= 4
    kept = {path.parents[2].name for path in directory.glob("trials/*/*/checkpoint/*")}
    assert kept == {f"t{trial.number:04d}" for trial in first.rows if trial.state is State.PAUSED}
    larger = {"operation": {"budget": 3, "workers": 2}, "fidelity": {"eta": 2}}
    with Campaign(climbing.spec(directory, larger)) as campaign:
        going_on, cost = campaign.climbing.going_on()
        campaign.stop("enough")
    assert 0 < cost <= 3 - first.committed + 1e-6
    again = climbing.drive(directory, **larger)
    check_climbs(again)
    asked = [event["trial"] if event["event"] == "promoted" else "new" for event in _after(directory, first.seq)]
    assert asked[:2] == [promotion.trial for promotion in going_on[:2]]  # who is next depends on how these two end
    assert again.spent > 2.5
    old = [again.trials[trial.number] for trial in first.rows if trial.state is State.PAUSED]
    assert any(len(trial.attempts) > 1 for trial in old)
    assert len({start["settings"]["fidelity"]["eta"] for start in again.starts}) == 2


def _after(directory: Path, seq: int) -> list[Any]:
    """Return the decisions of the driver that the journal holds after an event: what was proposed, and promoted."""
    events = read_events(directory / "events.jsonl")
    return [event for event in events if event["seq"] > seq and event["event"] in ("asked", "promoted")]


def test_a_larger_budget_says_who_goes_on_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["objective=synthetic", "optimizer=random", "fidelity=share", "fidelity.rungs=[1/4,1]"]
    overrides += ["fidelity.rule=asha", "fidelity.eta=9", "poll_s=0.1", "budget=2", "campaign=c"]
    assert main(["run", *overrides]) == 0
    assert "go on before" not in capsys.readouterr().out
    assert record_of(Path("campaigns/c")).counts[State.PAUSED]
    larger = ["resume", "campaigns/c", "budget=3", "fidelity.eta=2"]
    assert main([*larger, "dry_run=true"]) == 0
    assert "paused trials that deserve it by then go on before new ones are tried" in capsys.readouterr().out
    assert main(larger) == 0
    said = capsys.readouterr().out
    assert "paused trial goes on before new configurations are tried" in said
    assert "(fidelity.rule=asha), and the budget has room for it now (0.75 of the 1 whole evaluation left)" in said
    (number,) = re.findall(r"\n  t(\d+) goes on to rung 1: \d of \d at rung 0\n", said)
    assert f"trial=t{number} state=completed" in said
    goes_on = {"trial": int(number), "step": None, "loss": None, "elapsed_s": None, "job": None, "attempt": 1}
    assert running_line({**goes_on, "goal": 1, "taken_up": "2 of 4 at rung 0"}).endswith(
        "to rung 1, paused before: 2 of 4 at rung 0  attempt 1"
    )


def test_promoted_by_hand(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 2, "workers": 1}, "fidelity": {"rule": "asha"}}
    first = climbing.drive(directory, lambda c: bool(c.record.counts[State.PAUSED]), **options)
    (paused,) = [trial.number for trial in first.rows if trial.state is State.PAUSED]
    inbox.post(directory / "inbox", "promote", paused)
    record = climbing.drive(directory, **options)
    trial = record.trials[paused]
    assert trial.climb is not None
    assert (trial.state, trial.climb.why, sorted(trial.climb.scores)) == (State.COMPLETED, "by hand", [0, 2])
    assert climbing.lines(directory, f"start {paused}")[1:] == [f"start {paused} goal 2 from 1"]


def test_a_lost_journal_is_rebuilt_from_the_reports_of_rungs(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    options = {"operation": {"budget": 1, "workers": 1}, "fidelity": {"rule": "all"}}
    first = climbing.drive(directory, **options)
    later = {"operation": {"budget": 2, "workers": 2}, "fidelity": {"eta": 3}}
    second = climbing.drive(tmp_path / "d", **later)
    for campaign, record, again in ((directory, first, options), (tmp_path / "d", second, later)):
        (campaign / "events.jsonl").write_text("")
        found = repair(campaign)
        assert sorted(found.rebuilt) == [trial.number for trial in record.rows]
        rebuilt = climbing.drive(campaign, **again)
        assert [_climb(trial) for trial in rebuilt.rows] == [_climb(trial) for trial in record.rows]
        assert rebuilt.spent == record.spent


def _climb(trial: TrialRecord) -> tuple[object, ...]:
    assert trial.climb is not None
    return trial.state, trial.climb.goal, {rung: score.value for rung, score in trial.climb.scores.items()}


def test_status_why_and_report_show_the_rungs(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    climbing.drive(directory, operation={"budget": 2, "workers": 2}, fidelity={"rule": "asha"})
    status = campaign_status(directory)
    assert status["done"] == record_of(directory).spent
    assert status["fidelity"]["checkpoint_bytes"] > 0
    assert status["fidelity"]["saved"] > 2
    text = "\n".join(status_lines(status))
    assert "whole evaluations" in text
    assert "promoted" in text
    assert "saved" in text
    paused = next(trial.number for trial in record_of(directory).rows if trial.state is State.PAUSED)
    story = "\n".join(trial_story(directory, paused))
    assert "rung 0: " in story
    assert "  paused at rung " in story
    assert "  reached rung 2 of 2 (" in "\n".join(trial_story(directory, status["best"]["trial"]))
    files = {path.name for path in write_report(directory)}
    assert "curves.png" in files
    page = (directory / "report" / "report.md").read_text()
    assert "## Rungs" in page
    assert "| 0 | 1/9 |" in page
    curves = load_curves(directory)
    assert set(curves["rung"]) == {0, 1, 2}
    history = load_history(directory)
    assert (history["value"].notna() == (history["rung"] == 2)).all()


def test_kept_checkpoints_are_none_if_so_wished(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    record = climbing.drive(directory, operation={"budget": 1, "workers": 1}, fidelity={"keep": "none"})
    check_climbs(record)
    assert not list(directory.glob("trials/*/*/checkpoint"))


@pytest.mark.parametrize(
    ("fidelity", "fault"),
    [
        ("share", "fidelity: is only for campaigns; give campaign=NAME"),
        ("best", "fidelity.kind='best'"),
        ({"kind": "share", "eta": 1}, "fidelity.eta=1: must be above 1"),
        ({"kind": "share", "rungs": ["1/3", "1/9", 1]}, "  - fidelity.rungs: give two or more shares"),
    ],
)
def test_faults_of_rungs_in_python(fidelity: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        optimize(lambda x: x, climbing.SPACE, fidelity=fidelity)


def test_the_command_line_promotes_a_paused_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("campaigns/c")
    overrides = ["objective=synthetic", "fidelity=share", "fidelity.rule=asha", "optimizer=random"]
    overrides += ["budget=2", "workers=1", "poll_s=0.1"]
    assert main(["run", *overrides, "campaign=c", "dry_run=true"]) == 0
    assert "looked at after 1/9, 1/3 of a whole evaluation" in capsys.readouterr().out
    assert main(["run", *overrides, "campaign=c"]) == 0
    assert "whole evaluations" in capsys.readouterr().out
    record = record_of(directory)
    numbers = {state: [t.number for t in record.rows if t.state is state] for state in (State.PAUSED, State.COMPLETED)}
    paused, completed = numbers[State.PAUSED][0], numbers[State.COMPLETED][0]
    assert main(["promote", str(directory), str(completed)]) != 0
    assert "only one that is paused at a rung can be promoted" in capsys.readouterr().err
    assert main(["retry", str(directory), str(paused)]) != 0
    assert f"hpo-cluster promote {directory} {paused}" in capsys.readouterr().err
    assert main(["promote", str(directory), str(paused)]) == 0
    assert f"t{paused:04} will climb to the top" in capsys.readouterr().out
    assert main(["status", str(directory)]) == 0
    said = capsys.readouterr().out
    assert "stopped (waits to be resumed)" in said
    assert f"go on with:  hpo-cluster resume {directory}" in said
    assert main(["resume", str(directory), "fidelity.eta=4"]) == 0
    again = record_of(directory)
    assert again.trials[paused].state is State.COMPLETED
    assert len(again.rows) == len(record.rows)
    assert again.starts[-1]["settings"]["fidelity"]["eta"] == 4
