"""The rows of `hpo-cluster ls`: the same as the status says, only faster."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.journals import simulated_campaign
from support.simulated import TROUBLE
from support.spaces import SPACES

from hpo_cluster.record.journal import read_events
from hpo_cluster.record.overview import campaigns_in, overview
from hpo_cluster.record.status import campaign_status


def outcome(number: int, configuration: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return a value for most trials, and each kind of trouble for some."""
    if number % 4 == 3:
        return TROUBLE[number // 4 % len(TROUBLE)], None
    return "completed", float(number * 7 % 11)


def campaign(folder: Path, *, evaluations: int = 18, workers: int = 3) -> Path:
    return simulated_campaign(folder, "random", SPACES["real"], outcome, evaluations=evaluations, workers=workers)


def job(trial: int) -> dict[str, Any]:
    ref = {"backend": "local", "job_id": "1", "token": "", "submitted_at": "2026-11-01T00:00:00Z", "host": "h"}
    return {"event": "submitted", "trial": trial, "attempt": 0, "job": ref}


def compare(folder: Path) -> dict[str, Any]:
    """Return the row, after comparing it with the status."""
    row, status = overview(folder), campaign_status(folder)
    assert row["fault"] is None
    best = None if status["best"] is None else status["best"]["value"]
    assert (row["budget"], row["done"], row["best"]) == (status["budget"], status["done"], best)
    assert row["in_flight"] == status["in_flight"]
    assert row["running"] == sum(trial["state"] == "running" for trial in status["running"])
    assert row["completed"] == status["counts"].get("completed", 0)
    assert row["reason"] == status["reason"]
    return row


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_row_says_what_the_status_says_whenever_it_is_read(direction: str, tmp_path: Path) -> None:
    whole = campaign(tmp_path / "whole")
    identity = (whole / "campaign.yaml").read_text().replace("maximize", direction)
    events: list[dict[str, Any]] = []
    for event in read_events(whole / "events.jsonl"):
        events.append(event)
        if event["event"] == "intent" and event["trial"] % 2:
            events += [job(event["trial"])]
            if event["trial"] % 3:
                running = {"event": "running", "trial": event["trial"], "attempt": 0}
                failed = {"event": "attempt_failed", "trial": event["trial"], "attempt": 0, "error": {"kind": "node"}}
                again = {"event": "intent", "trial": event["trial"], "attempt": 0, "token": "", "code": ""}
                events += [running, *([failed, {**again, "attempt": 1}] if event["trial"] == 7 else [])]
        if event["event"] == "ended" and event["trial"] == 7:
            event["attempt"] = 1
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "campaign.yaml").write_text(identity)
    lines = []
    for number, event in enumerate(events):
        at = {"seq": number, "at": events[0]["at"], "epoch": 1, "event": event["event"]}
        lines.append(json.dumps({**at, **{key: value for key, value in event.items() if key not in at}}))
    for end in range(1, len(lines) + 1):
        (folder / "events.jsonl").write_text("\n".join(lines[:end]) + "\n" + lines[0][:20])
        row = compare(folder)
        assert row["state"] == ("finished" if end == len(lines) else "interrupted")
    assert row["best"] is not None


def test_a_journal_that_others_wrote_gives_the_same_row(tmp_path: Path) -> None:
    folder = campaign(tmp_path / "c")
    row = compare(folder)
    events = [dict(sorted(event.items())) for event in read_events(folder / "events.jsonl")]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert compare(folder) == row


def test_an_empty_campaign_has_a_row(tmp_path: Path) -> None:
    folder = campaign(tmp_path / "c", evaluations=1)
    (folder / "events.jsonl").unlink()
    row = compare(folder)
    assert (row["done"], row["best"], row["last_change"], row["state"]) == (0, None, None, "interrupted")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("campaign.yaml", "[", "cannot be read as YAML"),
        ("campaign.yaml", "space: {}\n", "is not what was written there"),
        ("events.jsonl", "{\n", "line 1: is not the next event"),
        ("events.jsonl", '{"seq": 0, "at": "x", "epoch": 0, "event": "asked"}\n', "does not fit together"),
        ("events.jsonl", None, "is not a file"),
        ("campaign.yaml", None, "is not a file"),
    ],
)
def test_an_unreadable_campaign_has_a_row_that_says_why(file: str, text: str | None, says: str, tmp_path: Path) -> None:
    folder = campaign(tmp_path / "c", evaluations=1)
    (folder / file).unlink()
    if text is None:
        (folder / file).mkdir()
    else:
        (folder / file).write_text(text)
    assert says in overview(folder)["fault"]


def test_campaigns_are_sorted_as_people_count(tmp_path: Path) -> None:
    for name in ("lhs-10", "lhs-9", "bo", "bo-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "campaign.yaml").touch()
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert [path.name for path in campaigns_in(tmp_path)] == ["bo", "bo-1", "lhs-9", "lhs-10"]
    assert campaigns_in(tmp_path / "bo") == [tmp_path / "bo"]


def test_hundreds_of_campaigns_are_listed_in_a_second_of_computing(tmp_path: Path) -> None:
    folder = campaign(tmp_path / "campaigns" / "c000", evaluations=50, workers=4)
    events = (folder / "events.jsonl").read_text()
    for number in range(1, 300):
        other = tmp_path / "campaigns" / f"c{number:03d}"
        other.mkdir()
        (other / "campaign.yaml").write_bytes((folder / "campaign.yaml").read_bytes())
        (other / "events.jsonl").write_text(events)
    code = (
        "import sys, time; from hpo_cluster.cli.main import main; main(['ls', 'campaigns', '--json']);"
        "print(time.process_time(), *(m for m in ('torch', 'pandas', 'hydra') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120
    )
    assert len(json.loads(done.stdout)) == 300
    seconds, *heavy = done.stderr.split()
    assert heavy == []
    assert float(seconds) < 2.0  # 0.9 s on one core of 2020; a loaded machine counts more
