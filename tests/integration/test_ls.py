"""`hpo-cluster ls`: every campaign of a folder has its row, whatever has become of it."""

from __future__ import annotations

import datetime
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import wait

from hpo_cluster.cli.commands.overview import table_lines
from hpo_cluster.cli.completion import candidates
from hpo_cluster.cli.main import main
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.overview import campaigns_in, overview
from hpo_cluster.trial import State

SLOW = ["objective=synthetic", "objective.duration_s=30", "optimizer=random", "poll_s=0.1", "budget=2", "workers=1"]


def run_on_a_terminal(words: list[str], columns: int) -> str:
    """Return what a command prints on a terminal of that width."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns)}
    subprocess.run([sys.executable, "-m", "hpo_cluster", *words], stdout=slave, env=environment, check=True, timeout=60)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 65536):
            seen += part
    except OSError:  # the other side is closed
        pass
    os.close(master)
    return seen.decode().replace("\r\n", "\n")


def test_campaigns_in_all_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["run", "objective=synthetic", "optimizer=random", "poll_s=0.1", "budget=1"]
    assert main([*quick, "campaign=done"]) == 0
    assert main([*quick, "campaign=two", "objective.function=zdt1"]) == 0
    broken = Path("campaigns/a-campaign-with-a-name-that-is-longer-than-most-1")
    broken.mkdir()
    (broken / "campaign.yaml").write_text("[")
    driver = subprocess.Popen(
        [sys.executable, "-m", "hpo_cluster", "run", *SLOW, "campaign=now"], stdout=subprocess.DEVNULL
    )
    try:
        wait(lambda: Path("campaigns/now").exists() and overview(Path("campaigns/now")).get("running") == 1, 60)
        capsys.readouterr()
        assert main(["ls", "--json"]) == 0
        rows = {row["campaign"]: row for row in json.loads(capsys.readouterr().out)}
        assert {name: row.get("state") for name, row in rows.items()} == {
            broken.name: None,
            "done": "finished",
            "now": "running",
            "two": "finished",
        }
        text = run_on_a_terminal(["ls"], 80)
        assert max(map(len, text.splitlines())) <= 80
        assert "running on" in text
        assert "0/2 +1" in text
        assert "front 1" in text
        assert "cannot be read: campaigns/a-c" in text
        assert main(["ls", "campaigns/done"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
    finally:
        driver.send_signal(signal.SIGINT)
        driver.wait(timeout=30)
        main(["cancel", "campaigns/now", "0"])
    row = overview(Path("campaigns/now"))
    assert (row["state"], row["in_flight"]) == ("stopped", 0) or row["state"] == "interrupted"
    now = clock.now() + datetime.timedelta(days=3)
    lines = table_lines([overview(folder) for folder in campaigns_in(Path("campaigns"))], 80, now)
    assert [line.endswith("3 d") for line in lines] == [False, False, True, True, True]
    long = {**overview(Path("campaigns/done")), "state": "stopped", "reason": f"{'no such program ' * 20}\nmore"}
    assert max(map(len, table_lines([long], None, now))) < 160


def test_a_campaign_whose_last_trial_is_paused_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rungs = ["optimizer=asha", "fidelity=share", "fidelity.rungs=[1/5,1]", "fidelity.rule=asha", "workers=1"]
    assert main(["run", "objective=synthetic", *rungs, "poll_s=0.1", "budget=2", "campaign=c"]) == 0
    row, record = overview(Path("campaigns/c")), Record.read(Path("campaigns/c/events.jsonl"))
    assert record.counts[State.PAUSED] > 0
    assert (row["state"], row["in_flight"], row["running"]) == ("finished", 0, 0)
    assert row["done"] == record.spent
    assert row["completed"] == record.counts[State.COMPLETED]
    capsys.readouterr()
    assert main(["ls"]) == 0
    assert f"{record.spent:.4g}/2 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["ls"], "campaigns: is not a folder"),
        (["ls", "nowhere"], "nowhere: is not a folder"),
        (["ls", ".", "budget=3"], "'budget=3': ls takes one folder"),
        (["ls", "--all"], "--all: is not an option of ls"),
    ],
)
def test_what_cannot_be_listed(
    words: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert fault in capsys.readouterr().err


def test_a_folder_without_campaigns_and_the_tab_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    assert main(["ls", "studies"]) == 0
    assert capsys.readouterr().out == "studies holds no campaign\n"
    assert candidates("hpo-cluster ls st") == ["studies/"]
    assert candidates("hpo-cluster ls studies/ ") == []
    assert candidates("hpo-cluster ls --j") == ["--json "]
