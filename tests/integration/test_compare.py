"""`hpo-cluster compare`: the files, the words and the faults; and a run of several campaigns ends in it."""

from __future__ import annotations

import csv
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.compared import LORA, campaign, several
from support.finished import campaign as finished
from support.waiting import wait

from hpo_cluster.cli.completion import candidates
from hpo_cluster.cli.main import main
from hpo_cluster.report.comparison import compare_campaigns
from hpo_cluster.report.comparison.write import write_comparison

FIGURES = ("best_by_evaluations", "best_by_gpu_hours", "best_by_hours", "critical_difference")


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three groups of six seeds, the first of them better than the others, with names that are no markup."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "campaigns"
    for seed in range(6):
        for name, value in (("good_$\\frac", 0.8), ("<script>|", 0.6), ("c&d", 0.6)):
            values = [0.1, value + 0.01 * seed * (-1 if name == "c&d" else 1), None]
            tests = [0.1, value - 0.1, 0.0]
            campaign(folder / f"{name[0]}-{seed}", values, optimizer=name, seed=seed, objective=LORA, tests=tests)
    return folder


def test_a_folder_of_campaigns(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "campaigns"]) == 0
    out = capsys.readouterr().out
    over, head, *rows = out.splitlines()
    assert over.split() == ["validation", "test", "to", "reach", "0.57"]
    assert head.split("  ")[0] == "group"
    assert all(over.index(role) == head.index(name) for role, name in (("validation", "val/acc"), ("test", "test/acc")))
    assert head.index("seeds", over.index("to reach")) == over.index("to reach")
    assert [row.split("  ")[0].strip() for row in rows[:3]] == ["<script>|", "c&d", "good_$\\frac"]
    assert "0.8250 ± 0.0076" in rows[2]
    assert "c&d and <script>|: " not in out
    assert "within the noise" in out
    assert "at least 7 seeds" in out
    assert "18 campaigns" in (three / "comparison" / "comparison.md").read_text()
    for name in FIGURES:
        assert (three / "comparison" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (three / "comparison" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    with (three / "comparison" / "campaigns.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == 18
    best = next(row for row in table if row["campaign"] == "g-3")
    assert [float(best[name]) for name in ("value", "metric.test/acc")] == pytest.approx([0.83, 0.7])
    assert (best["evaluations"], best["without_value"]) == ("3.0", "1")
    with (three / "comparison" / "table.csv").open() as stream:
        groups = {row["group"]: row for row in csv.DictReader(stream)}
    assert float(groups["c&d"]["value"]) == pytest.approx(0.575)
    assert float(groups["c&d"]["reach_evaluations"]) == 2
    before = sorted(path.name for path in (three / "comparison").iterdir())
    assert (
        main(["compare", *map(str, sorted(three.glob("*")))]) == 0
    )  # with the folder of the comparison, as a shell does
    assert sorted(path.name for path in (three / "comparison").iterdir()) == before


def test_text_is_never_markup(three: Path) -> None:
    assert main(["compare", "campaigns/*", "out=apart"]) == 0
    page = Path("apart/comparison.md").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;\\|" in page
    latex = Path("apart/table.tex").read_text()
    assert r"good\_\$\textbackslash{}frac & 6" in latex
    assert r"c\&d" in latex
    assert r"$\pm$" in latex
    assert not (three / "comparison").exists()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_takes_the_table(three: Path, tmp_path: Path) -> None:
    assert main(["compare", "campaigns", "out=apart"]) == 0
    document = r"\documentclass{article}\begin{document}\input{apart/table.tex}\end{document}"
    Path("all.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "all.tex"], capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-2000:]


def test_a_value_to_reach(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "campaigns", "reach=0.82"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].endswith("  to reach 0.82")
    assert rows[2].split()[-4:] == ["0/6", "–", "–", "–"]
    assert rows[4].split()[-5:] == ["4/6", "2", "0.0333", "2", "min"]


def test_figures_that_no_longer_apply_are_removed(three: Path) -> None:
    assert main(["compare", "campaigns"]) == 0
    assert main(["compare", "campaigns/g-0", "campaigns/g-1"]) == 0
    there = {path.name for path in (three / "comparison").iterdir()}
    assert "critical_difference.png" not in there
    assert "pairs.csv" not in there
    assert "best_by_evaluations.pdf" in there


def test_every_fault_is_named_before_anything_is_written(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (three.parent / "empty").mkdir()
    words = ["campaigns/c-0", "empty", "nowhere", "no*thing", "reach=high", "out=campaigns/c-1", "--fast", "budget=3"]
    assert main(["compare", *words]) == 2
    err = capsys.readouterr().err
    for fault in (
        "empty: is not a campaign, and holds none",
        "nowhere: is not a folder",
        "no*thing: no folder matches",
        "reach=high: is not a number",
        "out=campaigns/c-1: is a campaign",
        "--fast: is not an option of compare",
        "budget=3: is not a folder; accepted: reach=..., reference=..., out=...",
    ):
        assert fault in err
    assert main(["compare", "campaigns/c-0", "campaigns/../campaigns/c-0"]) == 2
    assert "needs two campaigns or more; given: campaigns/c-0" in capsys.readouterr().err
    assert main(["compare"]) == 2
    assert "compare needs the folders of campaigns" in capsys.readouterr().err
    assert not (three / "comparison").exists()


def test_campaigns_with_nothing_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    campaign(Path("a"), [None], optimizer="a")
    campaign(Path("b"), [], optimizer="b", budget=3)
    assert main(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "value: no campaign has a value." in out
    assert "note: b: not finished, 0 of 3 evaluations" in out
    assert not list(Path("comparison").glob("*.png"))


def test_the_tab_key(three: Path) -> None:
    assert candidates("hpo-cluster compare campaigns/c-")[0] == "campaigns/c-0 "
    offered = candidates("hpo-cluster compare campaigns/c-0 campaigns/c-")
    assert offered == [f"campaigns/c-{seed} " for seed in range(1, 6)]
    assert candidates("hpo-cluster compare campaigns/c-0 o") == ["out="]


def test_an_interrupted_run_says_how_it_goes_on_to_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slow = ["objective=synthetic", "objective.duration_s=30", "poll_s=0.1", "budget=1", "workers=1", "seed=0,1"]
    words = [sys.executable, "-m", "hpo_cluster", "run", "-m", *slow, "optimizer=random"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as driver:
        first = tmp_path / "campaigns" / "himmelblau-random-0"
        try:
            wait(
                lambda: (
                    "submitted" in (first / "events.jsonl").read_text() if (first / "events.jsonl").exists() else False
                ),
                60,
            )
            driver.send_signal(signal.SIGTERM)
            out, _ = driver.communicate(timeout=60)
        finally:
            driver.kill()
    assert driver.returncode == 130
    assert out.splitlines()[-1].startswith("Or type the same command again: it goes on with all 2 campaigns")
    assert main(["cancel", str(first), "0"]) == 0


def test_a_run_of_several_campaigns_ends_in_their_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["objective=synthetic", "poll_s=0.05", "budget=2", "workers=2"]
    assert main(["run", "-m", *quick, "optimizer=random,sobol", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    _, found, end = out.partition("comparison of the 4 campaigns")
    assert found
    assert [line.split()[:2] for line in end.splitlines()[3:5]] == [["random", "2"], ["sobol", "2"]]
    assert end.splitlines()[-1].startswith("written to campaigns/comparison: comparison.md")
    assert Path("campaigns/comparison/best_by_evaluations.png").is_file()
    assert main(["run", "-m", *quick, "optimizer=random", "objective.function=branin,ackley", "seed=2",
                 "campaign=f-${objective.function}"]) == 0  # fmt: skip
    end = capsys.readouterr().out.partition("comparison of the 2 campaigns")[2]
    assert "not compared:\n  objective.function differs" in end
    assert main(["run", "-m", *quick, "optimizer=random,sobol", "seed=9", "dry_run=true"]) == 0
    assert "comparison" not in capsys.readouterr().out


def test_campaigns_of_several_objectives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(5):
        for name, quality in (("a_$\\frac", 3.0), ("<script>|", 2.0), ("c", 1.0)):
            points = [(quality, 5.0 + 0.1 * seed), None, (quality + 1, 6.0)]
            several(Path("study") / f"{name[0]}-{seed}", points, optimizer=name, seed=seed)
        campaign(Path("one") / str(seed), [0.1], seed=seed)
    assert main(["compare", "one", "out=apart"]) == 0
    assert Path("apart/best_by_evaluations.png").is_file()
    capsys.readouterr()
    assert main(["compare", "study", "out=apart", "reach=0.9", "reference={cost: 8}"]) == 0
    out = capsys.readouterr().out
    assert "to reach 0.803 (90 % of the best)" in out.splitlines()[0]
    assert "The reference of cost was chosen for this comparison." in out
    assert "hypervolume: a_$\\frac has the best mean" in out
    written = {path.name for path in Path("apart").iterdir()}
    figures = {"hypervolume_by_evaluations", "hypervolume_by_gpu_hours", "hypervolume_by_hours", "fronts",
               "critical_difference"}  # fmt: skip
    tables = {"comparison.md", "table.csv", "table.tex", "campaigns.csv", "pairs.csv"}
    assert written == {f"{name}.{ending}" for name in figures for ending in ("png", "pdf")} | tables
    with Path("apart/campaigns.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["front"] for row in rows] == ["2.0"] * 15
    assert all(0 < float(row["hypervolume"]) <= 1 for row in rows)
    with Path("apart/pairs.csv").open() as stream:
        assert {row["metric"] for row in csv.DictReader(stream)} == {"hypervolume"}
    assert "Hypervolumes and sizes of the fronts" in Path("apart/table.tex").read_text()
    page = Path("apart/comparison.md").read_text()
    assert "![Fronts of the groups](fronts.png)" in page
    assert "a line is the edge of what more than half" in page
    assert "<script>" not in page

    assert main(["compare", "study/c-0", "one/0"]) == 2
    assert "objective cost differs, so that values cannot be compared" in capsys.readouterr().err
    for words, fault in (
        (["reach=7"], "reach=7: with several objectives it is a share of the best hypervolume"),
        (["reference={speed: 3}"], "reference: speed is not one of the objectives"),
        (["reference=8"], "reference=8: accepted: a number for each metric"),
        (["reference={cost: much}"], "reference={cost: much}: accepted: a number for each metric"),
    ):
        assert main(["compare", "study", "out=nowhere", *words]) == 2
        assert fault in capsys.readouterr().err
    assert main(["compare", "one", "out=nowhere", "reference={cost: 8}"]) == 2
    assert "these campaigns have one objective" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_a_run_of_campaigns_of_several_objectives_ends_in_their_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["objective=synthetic", "objective.function=zdt1", "poll_s=0.05", "budget=2", "workers=2"]
    assert main(["run", "-m", *quick, "optimizer=random,sobol", "seed=0,1"]) == 0
    end = capsys.readouterr().out.partition("comparison of the 4 campaigns")[2]
    assert "not compared" not in end
    assert "hypervolume: " in end
    assert Path("campaigns/comparison/fronts.png").is_file()


def test_how_far_a_regression_can_be_trusted_is_not_computed_for_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "campaigns" / "first")
    words = ["objective=surrogate", "objective.campaign=campaigns/first", "optimizer=random", "budget=3"]
    assert main(["simulate", *words, "campaign=plan", "simulate.repeats=2"]) == 0

    def fit(*given: object) -> None:
        raise AssertionError("a cross-validation")

    monkeypatch.setattr("hpo_cluster.objectives.surrogate.cross_validation", fit)
    assert main(["compare", "campaigns/simulated/plan"]) == 0
    with pytest.raises(AssertionError, match="a cross-validation"):
        main(["report", "campaigns/simulated/plan/plan-s0"])


def test_progress_is_told(three: Path) -> None:
    told: list[tuple[str, int, int]] = []
    folders = sorted(three.glob("*-*"))
    comparison = compare_campaigns(folders, progress=lambda *news: told.append(news))
    write_comparison(comparison, three, lambda *news: told.append(news))
    for what in ("campaigns", "recommendations"):
        assert [(done, total) for name, done, total in told if name == what] == [(n, 18) for n in range(19)]
    assert list(dict.fromkeys(name for name, _, _ in told)) == ["campaigns", "recommendations", "figures"]
    assert all(done <= total for _, done, total in told)


def test_a_folder_with_campaigns_in_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["objective=synthetic", "optimizer=random", "budget=4", "simulate.repeats=2", "simulate.duration_s=600"]
    assert main(["simulate", "-m", *words, "workers=1,4", "campaign=plan"]) == 0
    capsys.readouterr()
    assert main(["compare", "campaigns/simulated"]) == 0  # its only folder with campaigns is meant
    out = capsys.readouterr().out
    assert "written to campaigns/simulated/plan/comparison" in out
    assert "workers=4" in out
    assert main(["simulate", *words, "campaign=other"]) == 0
    capsys.readouterr()
    assert main(["compare", "campaigns/simulated"]) == 2
    err = capsys.readouterr().err
    folders = "hpo-cluster compare campaigns/simulated/other or hpo-cluster compare campaigns/simulated/plan"
    assert f"campaigns/simulated: holds campaigns in its folders alone; type  {folders}\n" in err
    assert "holds none" not in err
