"""A frame of `hpo-cluster watch` fits every terminal, and keeps what matters most."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.journals import BEGAN, write_campaign

from hpo_cluster.cli.commands.watch import is_over
from hpo_cluster.cli.frame import PLAIN_BLOCKS, frame, job_lines, speed
from hpo_cluster.record.watched import JobSeen, Look, WatchedCampaign
from hpo_cluster.space import Float, Space


def campaign(folder: Path, ended: int, running: int = 0, waiting: int = 0) -> Path:
    """Write a campaign whose driver is dead, with some trials in each state; every tenth has failed."""
    events: list[dict[str, Any]] = []

    def append(event: str, **fields: Any) -> None:
        events.append({"seq": len(events), "at": BEGAN.isoformat(), "epoch": 1, "event": event, **fields})

    append("created", schema=1, campaign=folder.name, code="")
    append("started", host="front", pid=1, operation={"budget": 20_000}, settings={}, code="", versions={})
    for number in range(ended + running + waiting):
        row = {"trial": number, "parameters": {"x": number / 1e5}, "seed": 1, "origin": "evaluated", "info": {}}
        append("asked", trials=[row], decision={})
        append("intent", trial=number, attempt=0, token=f"k{number}", job_name="n", code="")
        job = {"backend": "slurm", "job_id": str(number), "token": f"k{number}", "host": "front"}
        append("submitted", trial=number, attempt=0, job={**job, "submitted_at": BEGAN.isoformat()}, gpus=1)
        if number < ended + running:
            append("running", trial=number, attempt=0, node="gpu-with-a-long-name", started_at=BEGAN.isoformat())
        if number < ended and number % 10 == 3:
            error = {"kind": "code", "message": "ValueError: \x1b[31m<script>\nmore"}
            append("ended", trial=number, attempt=0, state="failed", error=error)
        elif number < ended:
            append("ended", trial=number, attempt=0, state="completed", value=float(number), metrics={})
    write_campaign(folder, events, Space({"x": Float(0.0, 1.0)}), {"name": "random"})
    return folder


def look_at(folder: Path) -> Look:
    return WatchedCampaign(folder).look()


@pytest.mark.parametrize("sizes", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (30, 3, 2), (40, 256, 100)])
def test_a_frame_fits_every_terminal(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    look = look_at(campaign(tmp_path / "first", *sizes))
    whole = [line.text for line in frame(look)]
    for width in (20, 40, 80, 200):
        for height in range(1, 50):
            lines = [line.text for line in frame(look, width, height)]
            assert min(height, len(whole)) <= len(lines) <= height
            assert max(map(len, lines)) <= width
            assert lines[0].startswith("first: stopped")
            assert height < 2 or lines[1].startswith("[---")
    assert not any("\x1b" in text or "\n" in text for text in whole)


def test_what_matters_most_stays_on_a_low_terminal(tmp_path: Path) -> None:
    lines = [line.text for line in frame(look_at(campaign(tmp_path / "first", 40, 256, 100)), 80, 12)]
    text = "\n".join(lines)
    for part in (
        "no driver is at work",
        "best       39",
        "t0040  running",
        "and 254 more running",
        "t0033  code: ValueError: \\x1b[31m<script>",
        "queue      100 wait",
        "t0039  completed",
    ):
        assert part in text, text
    assert len(lines) == 12


def test_curves_fill_the_line_and_yield_to_a_narrow_terminal() -> None:
    row = {"trial": 7, "state": "running", "attempt": 1, "node": "gpu3", "phase": "train", "step": 40, "total": 240}
    row |= {"loss": 1.23456, "elapsed_s": 65.0, "silent_s": 1.0}
    job = JobSeen(losses=[float(60 - step) for step in range(60)])
    job.reports.extend([(0.0, 10), (4.0, 40)])
    wide = job_lines([row], {(7, 1): job}, 100)[0].text
    assert wide.startswith("  t0007 a1  train  40/240  loss 1.235  7.5/s  1 min 05 s  ██")
    assert wide.endswith("▁  gpu3")
    narrow = job_lines([row], {(7, 1): job}, 70)[0].text
    assert "█" in narrow
    assert len(narrow.partition("  gpu3")[0]) <= 70
    assert "█" not in job_lines([row], {(7, 1): job}, 50)[0].text
    assert "#" in job_lines([row], {(7, 1): job}, 100, PLAIN_BLOCKS)[0].text
    silent = job_lines([{**row, "silent_s": 300.0}], {(7, 1): job}, 100)[0].text
    assert "silent 5 min 00 s" in silent


def test_speeds() -> None:
    assert [speed(value) for value in (123.4, 1.0, 0.25, 0.0)] == ["123/s", "1/s", "4 s each", "0/s"]


def test_a_view_ends_when_nothing_more_will_change(tmp_path: Path) -> None:
    assert is_over(look_at(campaign(tmp_path / "left", 3)))
    assert not is_over(look_at(campaign(tmp_path / "jobs", 3, 1))), "its job may still report"


def test_ten_thousand_trials_are_no_burden(tmp_path: Path) -> None:
    watched = WatchedCampaign(campaign(tmp_path / "long", 10_000, 200, 20))
    began = time.process_time()
    watched.look()
    first = time.process_time() - began
    began = time.process_time()
    for _ in range(10):
        assert len(frame(watched.look(), 80, 24)) == 24
    assert (time.process_time() - began) / 10 < first / 3  # what has not changed is not read again
