"""The driver dies with SIGKILL at every event of its journal, and nothing is lost or done twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support import drivers
from support.waiting import wait

from hpo_cluster.cli.display import progress_line
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.status import campaign_status

#: created, started, asked, and intent, submitted, running, ended for each of 4 trials, asked again in between, stopped.
EVENTS = 22


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    directory = tmp_path_factory.mktemp("reference") / "c"
    assert drivers.run(directory) == 0
    trials = drivers.trials(directory)
    assert len(trials) == 4
    assert all(state == "completed" for *_, state in trials)
    return trials


def check(directory: Path, reference: list[tuple[object, ...]]) -> None:
    assert drivers.trials(directory) == reference
    assert sorted(drivers.evaluations(directory)) == sorted(str(t[1]["x"]) for t in reference)  # type: ignore[index]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kill_at", range(EVENTS))
def test_killed_at_an_event_and_resumed(
    tmp_path: Path, kill_at: int, when: str, reference: list[tuple[object, ...]]
) -> None:
    directory = tmp_path / "c"
    assert drivers.run(directory, kill_at=kill_at, when=when) in (-9, 0)
    seen = len(list(read_events(directory / "events.jsonl")))
    assert seen == kill_at + (when == "after") or seen < EVENTS  # it died where it was told to, or had finished before
    assert drivers.run(directory) == 0
    check(directory, reference)
    attempts = [len(trial.attempts) for trial in Record.read(directory / "events.jsonl").rows]
    assert attempts == [1, 1, 1, 1]  # adopted or submitted late, never given up


#: created, started, asked, 4 intents, 4 submitted, 4 running, 4 ended, stopped
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kill_at", [3, 4, 5, 6, 7, 9, 12, 16])
def test_killed_with_several_trials_in_each_job(
    tmp_path: Path, kill_at: int, when: str, reference: list[tuple[object, ...]]
) -> None:
    directory = tmp_path / "c"
    options = {"trials_per_node": 2, "operation": {"workers": 4}}
    assert drivers.run(directory, **options, kill_at=kill_at, when=when) in (-9, 0)
    assert drivers.run(directory, **options) == 0
    check(directory, reference)
    trials = Record.read(directory / "events.jsonl").rows
    assert [len(trial.attempts) for trial in trials] == [1, 1, 1, 1]


def test_the_time_without_a_driver_is_not_a_trials(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    assert drivers.run(directory, kill_at=7, when="after") == -9  # two jobs are submitted
    folders = [directory / "trials" / label / "a0" for label in ("t0000", "t0001")]
    wait(lambda: all((folder / "result.json").exists() for folder in folders))
    time.sleep(2)
    status = campaign_status(directory)  # without a driver
    assert [row["state"] for row in status["running"]] == ["ended", "ended"]
    assert all((row["elapsed_s"] or 0.0) < 1.9 for row in status["running"])
    assert all(row["scheduler"] is None for row in status["running"])  # what it said before is no longer so
    assert "0 running · 2 ended, to be collected" in progress_line(status)
    kept = (folders[0] / "result.json").rename(folders[0] / "kept")
    assert [row["state"] for row in campaign_status(directory)["running"]] == ["gone", "ended"]
    kept.rename(folders[0] / "result.json")
    assert drivers.run(directory) == 0
    record = Record.read(directory / "events.jsonl")
    assert max(attempt.took_s for trial in record.rows for attempt in trial.attempts) < 2.5
    assert min(attempt.took_s for trial in record.rows for attempt in trial.attempts) >= 0.1


def test_killed_again_and_again(tmp_path: Path, reference: list[tuple[object, ...]]) -> None:
    directory = tmp_path / "c"
    for _ in range(60):
        seen = len(list(read_events(directory / "events.jsonl")))
        if drivers.run(directory, kill_at=seen + 2, when="after") == 0:
            break
    else:
        pytest.fail("the campaign never ended")
    check(directory, reference)


def test_a_torn_last_line_is_cut_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "c"
    drivers.run(directory, kill_at=5, when="before")
    text = (directory / "events.jsonl").read_text()
    assert not text.endswith("\n")
    assert len(list(read_events(directory / "events.jsonl"))) == 5  # readers leave it out
    assert drivers.run(directory) == 0
    logs = sorted((directory / "drivers").glob("*/driver.log"))
    assert "torn_bytes" in logs[-1].read_text()


@pytest.mark.parametrize("optimizer", ["lhs", "grid"])
def test_designs_resume_to_the_same_trials(tmp_path: Path, optimizer: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert drivers.run(whole, optimizer=optimizer) == 0
    drivers.run(cut, optimizer=optimizer, kill_at=9, when="after")
    drivers.run(cut, optimizer=optimizer, kill_at=14, when="before")
    assert drivers.run(cut, optimizer=optimizer) == 0
    assert drivers.trials(cut) == drivers.trials(whole)


def test_bo_with_one_worker_resumes_to_the_same_trials(tmp_path: Path) -> None:
    options = {"optimizer": "bo", "optimizer_settings": {"initial": 3}, "operation": {"budget": 5, "workers": 1}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert drivers.run(whole, **options) == 0
    assert drivers.run(cut, **options, kill_at=17, when="after") == -9
    assert drivers.run(cut, **options, kill_at=21, when="before") == -9
    assert drivers.run(cut, **options) == 0
    assert drivers.trials(cut) == drivers.trials(whole)
