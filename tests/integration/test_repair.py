"""A journal that was cut or damaged is rebuilt, and the campaign goes on without evaluating anything again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import drivers

from hpo_cluster.cli.main import main
from hpo_cluster.errors import JournalError, LockedError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import load_history
from hpo_cluster.record.journal import read_journal
from hpo_cluster.record.lock import DriverLock
from hpo_cluster.record.overview import overview
from hpo_cluster.record.repair import repair
from hpo_cluster.record.status import campaign_status


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of six trials that are all evaluated."""
    directory = tmp_path_factory.mktemp("finished") / "c"
    assert drivers.run(directory, operation={"budget": 6}, sleep=0.0) == 0
    return directory


@pytest.fixture
def campaign(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "c")
    shutil.copy(finished.with_name("c.log"), tmp_path / "c.log")
    return tmp_path / "c"


def garbled(lines: list[bytes], *numbers: int) -> list[bytes]:
    return [b"\xff\x00garbage" if number in numbers else line for number, line in enumerate(lines)]


def of_kind(lines: list[bytes], kind: str) -> list[int]:
    return [number for number, line in enumerate(lines) if json.loads(line)["event"] == kind]


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "one line in the middle": lambda lines: garbled(lines, 12),
    "a line is missing": lambda lines: lines[:9] + lines[10:],
    "cut after the tenth line": lambda lines: [*lines[:10], b'{"seq": 10, "at"', b"more"],
    "the first half": lambda lines: [b"\0" * 4096, *lines[len(lines) // 2 :]],
    "every asked": lambda lines: garbled(lines, *of_kind(lines, "asked")),
    "every intent": lambda lines: garbled(lines, *of_kind(lines, "intent")),
    "every ended": lambda lines: garbled(lines, *of_kind(lines, "ended")),
    "created and started": lambda lines: garbled(lines, 0, 1),
    "all of it": lambda lines: [],
    "a piece twice": lambda lines: lines[:15] + lines[10:],
    "random bytes": lambda lines: [b"\x80\x81", b"[]", b"7", b'{"seq": 3}'],
}


#: Number of events before the first lost one.
SOUND = {"one line in the middle": 12, "a line is missing": 9, "cut after the tenth line": 10, "the first half": 0}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_left_and_the_files_give_the_whole_campaign_again(campaign: Path, damage: str) -> None:
    events = campaign / "events.jsonl"
    before = drivers.trials(campaign)
    events.write_bytes(b"\n".join([*DAMAGES[damage](events.read_bytes().splitlines()), b""]))
    damaged = events.read_bytes()
    with pytest.raises(JournalError, match="hpo-cluster repair"):
        drivers.open_once(campaign)
    done = repair(campaign)
    assert done.damaged is not None
    assert done.damaged.read_bytes() == damaged
    assert done.gaps == []
    if damage in SOUND:
        assert read_journal(events).events[-1]["sound"] == SOUND[damage]
    assert drivers.run(campaign, operation={"budget": 6}, sleep=0.0) == 0
    assert drivers.trials(campaign) == before
    assert len(drivers.evaluations(campaign)) == 6
    assert campaign_status(campaign)["counts"] == {"completed": 6}
    assert len(load_history(campaign)) == 6
    assert repair(campaign).damaged is None  # whole again


def test_an_emptied_journal_is_told_everywhere(campaign: Path) -> None:
    (campaign / "events.jsonl").write_bytes(b"")
    for look in (campaign_status, drivers.open_once):
        with pytest.raises(JournalError, match=r"is empty, but there are attempts in .* hpo-cluster repair"):
            look(campaign)
    assert "hpo-cluster repair" in overview(campaign)["fault"]


def test_trials_without_a_trace_leave_a_gap_and_the_optimizers_go_on(campaign: Path) -> None:
    for number in (2, 5):
        shutil.rmtree(campaign / "trials" / f"t{number:04d}")
    (campaign / "events.jsonl").write_bytes(b"")
    assert repair(campaign).gaps == [2]
    assert drivers.run(campaign, operation={"budget": 6}, sleep=0.0) == 0
    assert [number for number, *_ in drivers.trials(campaign)] == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize("optimizer", ["bo", "soo", "direct", "turbo", "mosaic", "sobol", "grid", "bamsoo", "fda"])
def test_every_optimizer_goes_on_after_a_repair(tmp_path: Path, optimizer: str) -> None:
    directory = tmp_path / "c"
    options: dict[str, Any] = {"optimizer": optimizer, "sleep": 0.0, "operation": {"budget": 4}}
    if optimizer in ("bo", "turbo", "mosaic"):
        options["optimizer_settings"] = {"initial": 3}  # so that a model proposes
    assert drivers.run(directory, **options) == 0
    lines = (directory / "events.jsonl").read_bytes().splitlines()
    (directory / "events.jsonl").write_bytes(b"\n".join([*garbled(lines, *of_kind(lines, "asked")), b""]))
    repair(directory)
    options["operation"]["budget"] = 6
    assert drivers.run(directory, **options) == 0
    assert campaign_status(directory)["done"] == 6


def test_a_failed_first_attempt_is_remembered(campaign: Path) -> None:
    first = campaign / "trials" / "t0003" / "a0"
    shutil.copytree(first, first.with_name("a1"))
    second = json.loads((first.with_name("a1") / "params.json").read_text())
    (first.with_name("a1") / "params.json").write_text(json.dumps({**second, "attempt": 1, "token": "another"}))
    result = json.loads((first / "result.json").read_text())
    (first.with_name("a1") / "result.json").write_text(json.dumps({**result, "token": "another"}))
    (first / "result.json").unlink()
    error = {"token": result["token"], "kind": "node", "message": "it failed"}
    (first / "error.json").write_text(json.dumps(error))
    (campaign / "events.jsonl").unlink()
    repair(campaign)
    assert drivers.run(campaign, operation={"budget": 6}, sleep=0.0) == 0
    trial = Record.read(campaign / "events.jsonl").trials[3]
    assert [attempt.error and attempt.error["kind"] for attempt in trial.attempts] == ["node", None]
    assert (trial.state, trial.value) == ("completed", result["metrics"]["value"])


def test_a_link_is_replaced_by_the_file(campaign: Path, tmp_path: Path) -> None:
    (campaign / "events.jsonl").rename(tmp_path / "elsewhere")
    (campaign / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    repair(campaign)
    assert not (campaign / "events.jsonl").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert len(read_journal(campaign / "events.jsonl").events) == len(before.splitlines()) + 1


def test_a_campaign_that_is_driven_is_left_alone(campaign: Path) -> None:
    (campaign / "events.jsonl").write_bytes(b"garbage\n")
    lock = DriverLock(campaign / "driver.lock")
    with pytest.raises(LockedError):
        repair(campaign)
    lock.release()
    assert list(campaign.glob("events.jsonl*")) == [campaign / "events.jsonl"]
    assert (campaign / "events.jsonl").read_bytes() == b"garbage\n"


def test_the_command_says_what_it_found_and_what_to_type(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", str(campaign)]) == 0
    assert capsys.readouterr().out == "the journal is whole: nothing was changed\n"
    (campaign / "events.jsonl").write_bytes(b"garbage\n")
    assert main(["status", str(campaign)]) == 2
    assert f"hpo-cluster repair {campaign}" in capsys.readouterr().err
    assert main(["repair", str(campaign)]) == 0
    said = capsys.readouterr().out
    assert "lines that could not be used: 1" in said
    assert "results are taken in when the campaign goes on: t0000, t0001, t0002, t0003, t0004, t0005" in said
    assert f"hpo-cluster resume {campaign} budget=... workers=... launcher=..." in said
    assert main(["repair", str(campaign.parent / "nothing")]) == 2


@pytest.fixture(scope="module")
def shared_jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two jobs, each of which evaluates three trials one after another."""
    directory = tmp_path_factory.mktemp("shared") / "c"
    assert drivers.run(directory, **SHARED_JOBS) == 0
    return directory


SHARED_JOBS: dict[str, Any] = {
    "operation": {"budget": 6, "workers": 1},
    "sleep": 0.0,
    "local": {"trials_per_job": 3, "linger_s": 300.0},
}


@pytest.mark.parametrize("damage", ["every intent", "the first half", "cut after the tenth line", "every ended"])
def test_a_campaign_whose_jobs_evaluate_several_trials(shared_jobs: Path, tmp_path: Path, damage: str) -> None:
    directory = tmp_path / "c"
    shutil.copytree(shared_jobs, directory)
    shutil.copy(shared_jobs.with_name("c.log"), tmp_path / "c.log")
    before, events = drivers.trials(directory), directory / "events.jsonl"
    events.write_bytes(b"\n".join([*DAMAGES[damage](events.read_bytes().splitlines()), b""]))
    repair(directory)
    assert drivers.run(directory, **SHARED_JOBS) == 0
    assert drivers.trials(directory) == before
    assert len(drivers.evaluations(directory)) == 6  # nothing is evaluated again
