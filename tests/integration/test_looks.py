"""Test scores are shown with a note on how often they were looked at; views that show none do not count."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.compared import LORA, campaign

from hpo_cluster.cli.main import main
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.looks import read_looks

VALUES, SCORES = [0.5, 0.7, 0.6], [0.4, 0.6, 0.5]


def write(folder: Path, count: int = 3, seed: int = 0) -> Path:
    return campaign(folder, VALUES[:count], tests=SCORES[:count], objective=LORA, seed=seed)


def looks(folder: Path) -> list[int]:
    return [look.evaluations for look in read_looks(CampaignLayout(folder))]


def test_the_report_says_it(tmp_path: Path) -> None:
    folder, page = write(tmp_path / "c", 2), tmp_path / "c" / "report"
    journal = (folder / "events.jsonl").read_bytes()
    for _ in range(2):
        assert main(["report", str(folder)]) == 0
        assert looks(folder) == [2]
        for name in ("report.md", "report.html"):
            assert "Test scores looked at once, after 2 evaluations" in (page / name).read_text()
    assert (folder / "events.jsonl").read_bytes() == journal
    (folder / "events.jsonl").write_bytes((write(tmp_path / "longer") / "events.jsonl").read_bytes())
    assert main(["report", str(folder)]) == 0
    assert "Test scores looked at 2 times, after 2 to 3 evaluations" in (page / "report.md").read_text()


def test_without_test_scores_nothing_is_counted_or_said(tmp_path: Path) -> None:
    folder = campaign(tmp_path / "c", VALUES, objective=LORA)
    assert main(["report", str(folder)]) == 0
    assert not (folder / "test_looks.jsonl").exists()
    assert "looked at" not in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize("command", ["status", "describe", "why", "watch", "ls"])
def test_views_without_test_scores_do_not_count(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "c")
    assert main([command, str(tmp_path if command == "ls" else folder), *(["1"] if command == "why" else [])]) == 0
    out = capsys.readouterr().out
    assert "0.7" in out, "the validation score"
    assert "test/acc" not in out
    assert not (folder / "test_looks.jsonl").exists()


def test_a_comparison_counts_and_names_those_looked_at_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write(tmp_path / "once"), write(tmp_path / "twice", seed=1)]
    (folders[1] / "test_looks.jsonl").write_text('{"at": "2026-01-01T00:00:00+00:00", "evaluations": 1}\n')
    assert main(["compare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"{folders[1]}: test scores looked at 2 times, after 1 to 3 evaluations" in out
    assert f"{folders[0]}: test scores" not in out
    assert [looks(folder) for folder in folders] == [[3], [1, 3]]


def test_the_best_by_a_test_score_is_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "c", 2)
    assert main(["best", str(folder), "at_least={val/acc: 0.1}"]) == 0
    assert main(["best", str(folder), "weights={acc: 1}"]) == 0  # of the task that is optimised
    assert main(["best", str(folder), "weights={test/ac: 1}"]) == 2
    assert not (folder / "test_looks.jsonl").exists()
    capsys.readouterr()
    assert main(["best", str(folder), "weights={test/acc: 1}"]) == 0
    out = capsys.readouterr().out
    assert "test/acc 0.6" in out
    assert "test scores looked at once, after 2 evaluations: choose by validation" in out
    (folder / "events.jsonl").write_bytes((write(tmp_path / "longer") / "events.jsonl").read_bytes())
    assert main(["best", str(folder), "at_least={test/acc: 0.9}"]) == 2
    assert "test/acc goes from 0.4 to 0.6" in capsys.readouterr().err
    assert looks(folder) == [2, 3]
    assert main(["best", str(folder), "at_most={test/acc: 0.9}", "--json"]) == 0
    assert looks(folder) == [2, 3]
