"""The comparison of learning-rate schedules at rungs: what is made of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.rungs import schedules
from benchmarks.village.evaluate import VALIDATION
from benchmarks.village.make import append

TOPS = np.linspace(0.3, 0.9, 12)


def row(trial: int, schedule: str, *accuracies: float, **decay: float) -> dict[str, Any]:
    """A row with these accuracies at the rungs; the last ones may be missing, as after a divergence."""
    looks = {rung: {f"{VALIDATION}/acc": value} for rung, value in zip(schedules.RUNGS, accuracies, strict=False)}
    looks["1/9"] |= decay
    return {"trial": trial, "schedule": schedule, "looks": looks, "train_s": 2.0}


def rows(trials: int) -> list[dict[str, Any]]:
    """The lowest rung of the first schedule turns the order round; that of the second one is right."""
    found = [row(t, "cosine", 1 - TOPS[t], TOPS[t], TOPS[t]) for t in range(trials)]
    return found + [row(t, "wsd", TOPS[t] / 2, TOPS[t], TOPS[t] + 0.01, decay_s=0.5) for t in range(trials)]


def test_what_is_said_of_the_schedules() -> None:
    told = "\n".join(schedules.measured([*rows(12), row(12, "cosine", 0.9, 0.9, 0.9)]))
    assert "12 configurations" in told, "one that has not been trained with both is left out"
    cosine, wsd = (line for line in told.splitlines() if line.startswith(("| `cosine`", "| `wsd`")))
    assert [cell.strip()[:5] for cell in cosine.split("|")[2:4]] == ["-1.00", "1.00 "]
    assert [cell.strip() for cell in cosine.split("|")[6:8]] == ["0%", "100%"]
    assert cosine.rstrip(" |").endswith("none")
    assert [cell.strip()[:5] for cell in wsd.split("|")[2:4]] == ["1.00 ", "1.00 "]
    assert [cell.strip() for cell in wsd.split("|")[6:8]] == ["100%", "100%"]
    assert "0.50 s (25%)" in wsd
    assert "Correlation of 1/9, `wsd` less `cosine`: +2.00" in told
    assert "`wsd` less `cosine`: +0.010" in told
    assert "better in 12, worse in 0 of 12" in told


def test_a_training_that_diverged_is_as_good_as_chance() -> None:
    values = schedules.scores([row(0, name, 0.8) for name in schedules.SCHEDULES], "wsd")
    assert {rung: value.tolist() for rung, value in values.items()} == {"1/9": [0.8], "1/3": [0.25], "1": [0.25]}


def test_only_what_is_missing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, path = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text(f"before\n{schedules.BEGIN}\nold\n{schedules.END}\nafter\n")
    for each in rows(12):
        append(path, each)
    monkeypatch.setattr(schedules, "PAGE", page)
    monkeypatch.delattr(schedules, "Evaluator")  # what trains
    assert schedules.main(["--configurations", "12", "--rows", str(path)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{schedules.BEGIN}\nThis part")
    assert text.endswith(f"\n{schedules.END}\nafter\n")
    assert "| `wsd` |" in text


def test_the_design_is_that_of_the_table() -> None:
    known = schedules.in_table()
    assert [known[trial]["parameters"] for trial in range(3)] == schedules.design(3)
