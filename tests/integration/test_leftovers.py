"""Whatever lies in an attempt's folder harms neither the driver nor the person who looks."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import drivers

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import READ_AT_MOST, read_bytes, read_json
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.status import campaign_status
from hpo_cluster.report import write_report


def to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circular(path: Path) -> None:
    path.symlink_to(path.name)


def huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(20 * 2**30)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def not_utf8(path: Path) -> None:
    path.write_bytes(b'{"metrics": {"value": 1, "\xff": 2}}')


RUBBISH: dict[str, Callable[[Path], None]] = {
    "directory": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "circular link": circular,
    "link to an endless device": to_zero,
    "pipe": lambda path: os.mkfifo(path),
    "huge": huge,
    "deeply nested": deep,
    "other encoding": not_utf8,
    "empty": lambda path: path.touch(),
    "no object": lambda path: path.write_text("[1, 2]"),
}
NAMES = ["claim", "result.json", "error.json", "progress.json", "cancel", "checkpoint", "job/errors", "job/1_0_log.err"]


@pytest.mark.parametrize("what", RUBBISH)
def test_a_file_that_is_not_one_is_read_as_nothing(what: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    RUBBISH[what](path)
    assert read_json(path) is None
    assert len(read_bytes(path)) <= READ_AT_MOST


def watched(directory: Path) -> None:
    """Look at a campaign in every way there is."""
    status = campaign_status(directory)
    json.dumps(status, allow_nan=False)
    assert main(["status", str(directory)]) == 0
    for trial in Record.read(directory / "events.jsonl").trials:
        assert main(["why", str(directory), str(trial)]) == 0
    load_history(directory)


@pytest.mark.parametrize("name", NAMES)
def test_a_driver_goes_on_beside_rubbish(name: str, tmp_path: Path) -> None:
    """It lies in the folders of trials before their jobs have ended; the last trial is evaluated all the same."""
    directory, trials = tmp_path / "c", len(RUBBISH) + 1
    options = {"budget": trials, "workers": trials, "retries": 0, "stop_after_failures": 0}
    with Campaign(drivers.spec(directory, {"operation": options})) as campaign:
        campaign.propose()
        for number, what in enumerate(RUBBISH):
            files = campaign.opened.layout.attempt(number, 0)
            files.job_dir.mkdir(parents=True)
            RUBBISH[what](files.dir / name)
        for _ in campaign.drive():
            pass
    assert Record.read(directory / "events.jsonl").trials[len(RUBBISH)].state == "completed"
    counts = campaign_status(directory)["counts"]
    assert sum(counts.values()) == trials + counts.get("cancelled", 0)
    watched(directory)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = [
    "metrics", "sems", "kind", "message", "started_at", "ended_at", "node", "job", "host", "physical_batch_size",
    "phase", "step", "total", "loss", "seconds", "pid", "token",
]  # fmt: skip
DOCUMENTS = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(claim=DOCUMENTS, result=DOCUMENTS, error=DOCUMENTS, progress=DOCUMENTS)
def test_any_json_in_the_files_of_a_job_is_taken_in(
    tmp_path: Path, claim: Any, result: Any, error: Any, progress: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "c"
    shutil.rmtree(directory, ignore_errors=True)
    made = drivers.spec(directory, {"operation": {"budget": 2, "workers": 2, "retries": 0}})
    with Campaign(made) as campaign:
        campaign.propose()
        for number in (0, 1):
            trial = campaign.record.trials[number]
            token = f"t{number}"
            campaign.append("intent", trial=number, attempt=0, token=token, job_name=token, code="x")
            job = {
                "backend": "local",
                "job_id": "1",
                "token": token,
                "submitted_at": "2026-01-01T00:00:00Z",
                "host": "x",
            }
            campaign.append("submitted", trial=number, attempt=0, job={**job, "submitted_at": "2026-01-01T00:00:00Z"})
            files = CampaignLayout(directory).attempt(number, 0)
            files.dir.mkdir(parents=True)
            sound = {"token": token, "metrics": {"value": 1.5}}
            documents = {
                files.claim: {"token": token, **claim},
                files.progress: progress,
                files.result: sound if number else {"token": token, **result},
                files.error: {"token": token, **error},
            }
            for path, document in documents.items():
                path.write_text(json.dumps(document))
            assert trial.attempt is not None
        campaign.collect()
        campaign.collect()
        assert campaign.record.trials[1].value == 1.5
        json.dumps(campaign.status(), allow_nan=False)
    watched(directory)
    capsys.readouterr()


SAYS = {"kind": "code", "message": "m"}
ODD: dict[str, dict[str, str]] = {
    "half a character": {"error": json.dumps({**SAYS, "message": "\ud800 x"})},
    "carriage return": {"error": json.dumps({**SAYS, "message": "a\rb"})},
    "endless message": {"error": json.dumps({**SAYS, "message": "x\n" * 1_000_000})},
    "progress that is no number": {"claim": json.dumps({"job": "1", "host": "x"}), "progress": '{"loss": NaN}'},
    **{f"kind {name}": {"error": json.dumps({**SAYS, "kind": name})} for name in ("action", "__class__", "verdict")},
}


@pytest.mark.parametrize("what", ODD)
def test_odd_words_of_a_job_are_taken_in(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "c"
    made = drivers.spec(directory, {"operation": {"budget": 1, "workers": 1, "retries": 0}})
    with Campaign(made) as campaign:
        campaign.propose()
        campaign.append("intent", trial=0, attempt=0, token="t", job_name="t", code="x")
        job = {"backend": "local", "job_id": "1", "token": "t", "host": "x", "extra": {"attempt_dir": "/x"}}
        campaign.append("submitted", trial=0, attempt=0, job={**job, "submitted_at": "2026-01-01T00:00:00Z"})
        files = campaign.opened.layout.attempt(0, 0)
        files.dir.mkdir(parents=True)
        for name, text in ODD[what].items():
            path = files.dir / (name if name == "claim" else f"{name}.json")
            path.write_text(json.dumps({"token": "t"})[:-1] + ", " + text[1:])
        campaign.collect()
        json.dumps(campaign.status(), allow_nan=False)
    watched(directory)
    write_report(directory)
    assert len(pd.read_csv(directory / "history.csv")) == 1
    assert (directory / "events.jsonl").stat().st_size < 100_000
    capsys.readouterr()


NASTY = "\x1b]0;owned\x07 \x1b[31m<script>alert(1)</script> ![x](http://evil) a|b $x_$ \u202e"


def test_what_a_job_says_does_nothing_where_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "c"
    made = drivers.spec(directory, {"operation": {"budget": 2, "workers": 1}})
    (tmp_path / "said.json").write_text(json.dumps({"error": "bad_data", "message": NASTY}))
    objective = CommandObjective(command="cat said.json; echo; cat said.json >&2 # {x} {k}", cwd=str(tmp_path))
    with Campaign(dataclasses.replace(made, objective=objective)) as campaign:
        for _ in campaign.drive():
            pass
    capsys.readouterr()
    for command in (["status", str(directory)], ["why", str(directory), "0"], ["tail", str(directory), "0"]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "\u202e" not in said
        assert "owned" in said
    html, markdown = (path.read_text() for path in write_report(directory)[:2])
    assert "<script>" not in markdown
    assert "![x]" not in markdown
    assert "&lt;script&gt;" in markdown
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html
    assert "evil" in html
    assert 'src="http://evil' not in html
    frame = load_history(directory)
    assert NASTY in frame.error.iloc[0]  # the record keeps what was said
