"""Trials are logged elsewhere as they end; a tracker that fails or hangs is in nobody's way, and is taken up later."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.driver import live_tracking
from hpo_cluster.record.exchange import trackers
from hpo_cluster.record.exchange.facts import TrialFacts
from hpo_cluster.record.journal import read_events

RUN = ["run", "objective=synthetic", "objective.function=branin", "objective.failure_rate=0.3", "optimizer=random"]
QUICK = ["budget=4", "seed=4", "retries=0", "stop_after_failures=0", "poll_s=0.05", "grace_s=0.2", "campaign=c"]
ON = ["tracking=mlflow", "tracking.close_s=20"]


class Shelf:
    """A tracker in memory that knows what it holds, as real ones do."""

    place = "memory"

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.held: dict[str, TrialFacts] = {}
        self.ended: list[bool] = []
        self.written = 0
        self.before = before

    def log(self, facts: TrialFacts) -> bool:
        self.before()
        if facts.label in self.held and self.held[facts.label].digest == facts.digest:
            return False
        self.held[facts.label] = facts
        self.written += 1
        return True

    def close(self, *, ended: bool) -> None:
        self.ended.append(ended)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "library_fault", lambda name: "")
    monkeypatch.setattr(live_tracking, "FIRST_WAIT_S", 0.05)
    yield
    for thread in threading.enumerate():
        assert thread.name != "tracking" or thread.daemon


def use(monkeypatch: pytest.MonkeyPatch, shelf: Shelf) -> Shelf:
    monkeypatch.setattr(live_tracking, "make_tracker", lambda tracking, outline: shelf)
    return shelf


def log_of_drivers() -> str:
    return "".join(path.read_text() for path in sorted(Path("campaigns/c/drivers").glob("*/driver.log")))


def agrees(shelf: Shelf) -> bool:
    history = load_history("campaigns/c").to_dict("records")
    held = {label: (str(facts.state), facts.value) for label, facts in shelf.held.items()}
    values = {row["trial"]: None if row["value"] != row["value"] else row["value"] for row in history}
    return held == {f"t{row['trial']:04d}": (row["state"], values[row["trial"]]) for row in history}


def test_each_trial_is_logged_once_and_another_start_logs_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = use(monkeypatch, Shelf())
    assert main([*RUN, *QUICK, *ON]) == 0
    assert agrees(shelf)
    assert {str(facts.state) for facts in shelf.held.values()} > {"completed"}
    assert (shelf.written, shelf.ended) == (4, [True])
    assert main(["resume", "campaigns/c", "budget=6"]) == 0
    assert agrees(shelf)
    assert (shelf.written, shelf.ended) == (6, [True, True])
    assert main(["resume", "campaigns/c", "budget=7", "tracking=off"]) == 0
    assert shelf.written == 6


def test_a_tracker_that_is_down_is_taken_up_by_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ConnectionError("the server is away")

    broken = use(monkeypatch, Shelf(fail))
    assert main([*RUN, *QUICK, *ON, "workers=1"]) == 0  # so that trial 0 is the first to end
    assert not broken.held
    assert len(load_history("campaigns/c")) == 4
    log = log_of_drivers()
    assert "tracking=mlflow trial=0 not logged: ConnectionError: the server is away" in log
    assert "trials_not_logged=4: the next start logs them, or hpo-cluster export" in log
    shelf = use(monkeypatch, Shelf())
    assert main(["resume", "campaigns/c", "budget=5"]) == 0
    assert agrees(shelf)


def test_a_start_logs_the_confirmations_that_nobody_has_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = use(monkeypatch, Shelf())
    assert main([*RUN, *QUICK]) == 0
    assert main(["confirm", "campaigns/c", "top=1", "replicates=1"]) == 0
    assert not shelf.held
    assert main(["resume", "campaigns/c", "budget=5", *ON]) == 0
    assert {"c0001", "t0000", "t0004"} <= set(shelf.held)


def test_a_tracker_that_comes_back_is_taken_up_while_the_driver_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter(range(3))

    def fail_at_first() -> None:
        if next(failures, None) is not None:
            raise TimeoutError

    shelf = use(monkeypatch, Shelf(fail_at_first))
    assert main([*RUN, *QUICK, *ON, "objective.duration_s=0.3"]) == 0
    assert agrees(shelf)
    assert log_of_drivers().count("not logged: TimeoutError") == 3


def test_a_tracker_that_hangs_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()
    use(monkeypatch, Shelf(lambda: over.wait(60) and None))
    assert main([*RUN, *QUICK, "tracking=mlflow", "tracking.close_s=0.5"]) == 0
    stopped = read_events(Path("campaigns/c/events.jsonl"))[-1]
    assert (stopped["event"], stopped["reason"]) == ("stopped", "finished")
    assert "trials_not_logged=4" in log_of_drivers()
    told = capsys.readouterr().out
    last = told.splitlines()[-1]
    assert last.startswith("not logged to mlflow: 4 trials. Log them with:  hpo-cluster export ")
    assert last.endswith("campaigns/c to=mlflow")
    over.set()
    end = time.monotonic() + 10
    while any(thread.name == "tracking" for thread in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(thread.name == "tracking" for thread in threading.enumerate())


def test_nothing_is_logged_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = use(monkeypatch, Shelf())
    assert main([*RUN, *QUICK]) == 0
    assert (shelf.held, shelf.ended) == ({}, [])
    assert "tracking" not in read_events(Path("campaigns/c/events.jsonl"))[1]["settings"]


def test_settings_are_checked_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = "mlflow: is not installed; type: pip install it"
    monkeypatch.setattr(trackers, "library_fault", lambda name: fault if name == "mlflow" else "")
    assert main([*RUN, *QUICK, "tracking=mlflow", "tracking.uri=https://me:secret@mlflow.org"]) == 2
    error = capsys.readouterr().err
    assert "tracking.uri: holds a password, which would be recorded" in error
    assert "secret" not in error
    assert main([*RUN, *QUICK, "tracking=mlflow"]) == 2
    assert "tracking=mlflow: is not installed; type: pip install it" in capsys.readouterr().err
    assert not Path("campaigns").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: pip install 'hpo_cluster[mlflow]'"
)
def test_what_mlflow_was_told_live_is_what_an_export_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, *QUICK, "tracking=mlflow", "tracking.uri=sqlite:///m.db", "tracking.close_s=120"]) == 0
    assert "not logged" not in log_of_drivers()
    capsys.readouterr()
    assert main(["export", "campaigns/c", "to=mlflow", "path=sqlite:///m.db"]) == 0
    assert "4 trials, 0 of them new or changed" in capsys.readouterr().out
