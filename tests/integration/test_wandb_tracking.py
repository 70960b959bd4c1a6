"""Trials are logged to Weights & Biases: on disk without any account, and to a server; each run once, and whole."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.campaigns import make_campaign
from support.wandb_files import runs_in
from support.wandb_server import WandbServer, wandb_server

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.record.exchange import wandb_runs
from hpo_cluster.record.exchange.facts import Outline, TrialFacts
from hpo_cluster.record.exchange.wandb_runs import WandbError, WandbSettings, WandbTracker
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.space import Float, Space
from hpo_cluster.trial import State

pytest.importorskip("wandb", reason="wandb is not installed: pip install 'hpo_cluster[wandb]'")

RUN = ["run", "objective=synthetic", "objective.function=branin", "objective.failure_rate=0.3", "optimizer=random"]
RUN += ["seed=4", "retries=0", "stop_after_failures=0", "poll_s=0.05", "grace_s=0.2", "campaign=c", "tracking=wandb"]
KEY = "a" * 40  # what a key looks like


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and nothing known of any account."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name))
    wandb_runs.wandb_fault.cache_clear()
    return tmp_path


def files_of(folder: Path) -> dict[Path, int]:
    """Return when each run below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("wandb/offline-run-*/*.wandb")}


def test_trials_are_logged_offline_as_they_end_and_a_resumed_campaign_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RESUME", "must")  # of somebody's other runs
    monkeypatch.setenv("WANDB_RUN_ID", "other")
    assert main([*RUN, "budget=4", "tracking.project=mine", "tracking.close_s=120"]) == 0
    folder = Path("campaigns/c")
    first = files_of(folder)
    assert len(first) == 4
    assert main(["resume", "campaigns/c", "budget=6"]) == 0
    assert first.items() < files_of(folder).items()  # those of the first start are as they were
    runs, history = runs_in(folder), load_history(folder)
    assert sorted(runs) == [f"t{number:04d}" for number in history["trial"]]
    assert {run.project for run in runs.values()} == {"mine"}
    (group,) = {run.group for run in runs.values()}
    assert group.startswith("c-")
    states = set()
    for row in history.to_dict("records"):
        run, completed = runs[f"t{row['trial']:04d}"], row["state"] == "completed"
        states.add(row["state"])
        parameters = {name: value for name, value in run.config.items() if name != "hpo_cluster"}
        assert parameters == {name: row[name] for name in ("x1", "x2")}
        about = run.config["hpo_cluster"]
        assert (about["trial"], about["state"], about["campaign"]["name"]) == (run.name, row["state"], "c")
        assert about["campaign"]["optimizer"]["name"] == "random"
        assert (run.exit_code, run.tags, run.job_type) == (0 if completed else 1, [row["state"]], "evaluated")
        assert run.summary.get("value") == (row["value"] if completed else None)
        assert completed or run.notes == row["error"] != ""
    assert states > {"completed"}
    capsys.readouterr()
    assert main(["export", "campaigns/c", "to=wandb", "name=mine"]) == 0
    said = capsys.readouterr().out
    assert "6 trials, 0 of them new or changed; upload them with:  wandb sync campaigns/c/wandb" in said


def test_learning_curves_are_history_and_what_changed_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = {"state": "completed", "value": 0.5, "value_sem": 0.1, "metrics": {"acc": 0.5, "train_loss": 0.2}}
    lost = {"state": "failed", "error": {"kind": "code", "message": "no such thing"}}
    ends: list[dict[str, Any]] = [{"end": done}, {"end": lost}, {}]
    trials = [{"number": number, "parameters": {"lr": 0.1}, **end} for number, end in enumerate(ends)]
    objective = {"kind": "command", "direction": "maximize", "metric": "acc", "command": "x {lr}"}
    folder = make_campaign(Path("c"), objective, Space({"lr": Float(0.0, 1.0)}), trials, "maximize")
    losses = [{"step": 5, "train_loss": 2.0, "learning_rate": 0.1}, {"step": 10, "train_loss": 1.0, "val_loss": 1.5}]
    files = CampaignLayout(folder).attempt(0, 0)
    files.dir.mkdir(parents=True)
    for curve in (losses[:1], losses):
        files.result.write_text(json.dumps({"metrics": done["metrics"], "curve": curve}))
        assert main(["export", "c", "to=wandb", "path=out"]) == 0
    runs = runs_in(Path("out"))
    assert sorted(runs) == ["t0000", "t0001"]  # not the one that is still under way
    assert runs["t0000"].history == [
        {"_step": 5, "train_loss": 2.0, "learning_rate": 0.1},
        {"_step": 10, "train_loss": 1.0, "val_loss": 1.5},
    ]
    assert runs["t0000"].summary["train_loss"] == 0.2  # the metric, not the last point of the curve
    assert runs["t0000"].summary["value_sem"] == 0.1
    assert (runs["t0001"].exit_code, runs["t0001"].notes) == (1, "code: no such thing")


def test_a_run_that_was_cut_while_it_was_written_is_written_again(here: Path) -> None:
    words = ["export", "c", "to=wandb"]
    trial = {"number": 0, "parameters": {"lr": 0.1}, "end": {"state": "completed", "value": 0.5, "metrics": {}}}
    make_campaign(Path("c"), {"kind": "command", "direction": "maximize", "metric": "acc", "command": "x {lr}"},
                  Space({"lr": Float(0.0, 1.0)}), [trial], "maximize")  # fmt: skip
    os.environ["WANDB_MODE"] = "offline"
    assert main(words) == 0
    (cut,) = files_of(Path("c"))
    cut.write_bytes(cut.read_bytes()[:50])
    (cut.parent / wandb_runs.DIGEST).unlink()
    assert main(words) == 0
    assert runs_in(Path("c"))["t0000"].summary["value"] == 0.5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_away_holds_nobody_up_and_is_told_everything_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "hpo_cluster", *RUN, "budget=3", "tracking.close_s=2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    over = time.monotonic() + 20
    while (left := processes_in(Path.cwd())) and time.monotonic() < over:
        time.sleep(0.2)
    assert not left
    assert len(load_history("campaigns/c")) == 3
    log = "".join(path.read_text() for path in Path("campaigns/c/drivers").glob("*/driver.log"))
    assert "trials_not_logged=3: the next start logs them, or hpo-cluster export" in log
    with wandb_server(port) as server:
        assert main(["resume", "campaigns/c", "budget=4", "tracking.close_s=120"]) == 0
        history = load_history("campaigns/c")
        assert uploaded(server) == {row["trial"]: row["state"] == "completed" for row in history.to_dict("records")}
        assert set(server.uploads.values()) == {1}
        capsys.readouterr()
        assert main(["export", "campaigns/c", "to=wandb"]) == 0
        assert "4 trials, 0 of them new or changed\n" in capsys.readouterr().out
        assert set(server.uploads.values()) == {1}
        shutil.rmtree(next(iter(files_of(Path("campaigns/c")))).parent)  # as `wandb clean` does
        assert main(["export", "campaigns/c", "to=wandb"]) == 0
        assert "4 trials, 1 of them new or changed\n" in capsys.readouterr().out
        assert len(uploaded(server)) == 4  # in place of what was there


def uploaded(server: WandbServer) -> dict[int, bool]:
    """Return for each trial that a server holds whether its run has succeeded, and check that the run is whole."""
    found = {}
    for name, run in server.runs.items():
        (summary,) = run["wandb-summary.json"]
        good = run["exit_code"] == 0
        assert ("value" in json.loads(summary)) == good
        assert run["group"].startswith("c-")
        found[int(name.rpartition("-t")[2])] = good
    return found


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of the processes that work in a folder, except this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = (process / "cwd").resolve() == folder and int(process.name) != os.getpid()
            if inside and (command := (process / "cmdline").read_bytes()):
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_what_is_missing_is_said_before_anything_is_submitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(RUN) == 2
    error = capsys.readouterr().err
    assert "tracking=wandb: there is no API key for https://" in error
    assert "wandb login" in error
    assert "tracking.mode=offline" in error
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb_runs.wandb_fault.cache_clear()
    assert main(RUN) == 2
    assert "tracking=wandb: nothing is logged while WANDB_MODE=disabled" in capsys.readouterr().err
    assert main([*RUN, "tracking.uri=http://there", "tracking.experiment=a", "tracking.mode=on"]) == 2
    error = capsys.readouterr().err
    assert "tracking.mode='on': accepted: 'online' or 'offline'" in error
    assert "tracking.uri=http://there: belongs to tracking=mlflow or tracking=tensorboard" in error
    assert "tracking.experiment=a: belongs to tracking=mlflow" in error
    assert main([*RUN[:-1], "tracking=mlflow", "tracking.project=a"]) == 2
    assert "tracking.project=a: belongs to tracking=wandb" in capsys.readouterr().err
    assert not Path("campaigns").exists()


def test_a_folder_named_wandb_is_not_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wandb").mkdir()  # as wandb writes it where somebody starts it
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *(path for path in sys.path if "site-packages" not in path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert main([*RUN, "tracking.mode=offline"]) == 2
    assert "tracking=wandb: wandb is not installed; type: pip install 'hpo_cluster[wandb]'" in capsys.readouterr().err
    assert not Path("campaigns").exists()


def test_a_process_that_ends_is_an_error_and_not_a_wait(here: Path) -> None:
    tracker = WandbTracker(Outline("k", "c", here, {}, "v"), WandbSettings(None, None, "offline", here))
    tracker._process.kill()
    facts = TrialFacts(0, State.COMPLETED, "evaluated", {"x": 1.0}, 0.5)
    with pytest.raises(WandbError, match="its process ended unexpectedly"):
        tracker.log(facts)
