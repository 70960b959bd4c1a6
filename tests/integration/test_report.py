from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.campaigns import make_campaign, stamp

from hpo_cluster.errors import JournalError
from hpo_cluster.objectives.synthetic import SyntheticObjective
from hpo_cluster.report import read_campaign, write_report
from hpo_cluster.report.figures import FIGURES, objectives, progress
from hpo_cluster.report.figures.description import Line, Points
from hpo_cluster.space import Categorical, Float, Integer, Space

LORA_SPACE = Space(
    {
        "lora_rank": Integer(2, 64),
        "learning_rate": Float(1e-6, 1e-1, log=True),
        "lora_dropout": Float(0, 0.5),
        "precision": Categorical(("32-true", "bf16-true")),
    }
)
LORA = {
    "kind": "lora",
    "model": {"name": "m", "checkpoint_dir": "bundle:m"},
    "data": {"name": "d", "path": "bundle:d"},
    "tasks": {"name": "t", "validation": "village_val", "test": ["village_test", "other_test"], "datasets": []},
    "train": {},
}


def lora_trials(n: int) -> list[Mapping[str, Any]]:
    rng = np.random.default_rng(0)
    trials: list[Mapping[str, Any]] = []
    base = {"village_val/acc": 0.27, "village_test/acc": 0.24, "other_test/acc": 0.26, "village_val/loss": 3.0}
    sems = {"village_val/acc": 0.03, "village_test/acc": 0.035, "other_test/acc": 0.03}
    end = {"state": "completed", "value": 0.27, "value_sem": 0.03, "metrics": base, "sems": sems}
    trials.append({"number": -1, "parameters": {}, "end": end})
    for number in range(n):
        parameters = LORA_SPACE.decode(rng.random(4))
        score = 0.25 + 0.7 * math.exp(-(((math.log10(float(parameters["learning_rate"])) + 2.7) / 0.8) ** 2))
        score = round(score + 0.02 * float(rng.standard_normal()), 4)
        metrics = {"village_val/acc": score, "village_test/acc": 0.9 * score, "other_test/acc": 0.3 + 0.1 * score}
        end = {"state": "completed", "value": score, "value_sem": 0.03, "metrics": metrics, "sems": sems}
        if number % 7 == 3:
            end = {"state": "diverged", "error": {"kind": "diverged", "message": "loss is nan at step 12"}}
        if number % 11 == 5:
            end = {"state": "failed", "error": {"kind": "code", "message": "no luck\nat all | really"}}
        trials.append({"number": number, "parameters": parameters, "end": end})
    trials.append({"number": n, "parameters": LORA_SPACE.decode(rng.random(4))})  # in flight
    return trials


def synthetic(directory: Path, ends: list[Mapping[str, Any]]) -> Path:
    objective = SyntheticObjective()
    space = objective.own_space()
    rng = np.random.default_rng(1)
    trials = [{"number": i, "parameters": space.decode(rng.random(2)), "end": end} for i, end in enumerate(ends)]
    return make_campaign(directory, objective.model_dump(mode="json"), space, trials, "minimize")


def completed(value: float) -> dict[str, Any]:
    return {"state": "completed", "value": value, "metrics": {"value": value}}


def failed() -> dict[str, Any]:
    return {"state": "failed", "error": {"kind": "code", "message": "injected failure"}}


def size(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_report_of_a_fine_tuning_campaign(tmp_path: Path) -> None:
    directory = make_campaign(tmp_path / "first", LORA, LORA_SPACE, lora_trials(24), "maximize")
    files = write_report(directory)
    stems = [
        *("best_by_evaluations", "best_by_time", "parameters", "parameters_over_time", "parallel_coordinates"),
        *("importance", "slices", "contours", "validation_test", "failures"),
    ]
    pictures = [f"{stem}{suffix}" for stem in stems for suffix in (".png", ".pdf")]
    assert [file.name for file in files] == ["report.html", "report.md", *pictures]
    assert all(min(size(file)) > 300 for file in files if file.suffix == ".png")
    assert all(file.read_bytes().startswith(b"%PDF") for file in files if file.suffix == ".pdf")
    assert sorted(file.name for file in (directory / "report").iterdir()) == sorted(file.name for file in files)
    page = files[1].read_text()
    assert str(tmp_path) not in page
    assert "19 completed, 3 diverged, 2 failed" in page
    assert "Baseline: 0.27 ± 0.03 (`village_test/acc` 0.24, `other_test/acc` 0.26)" in page
    assert "By posterior mean" in page
    assert "| 3 | diverged | loss is nan at step 12 | 3, 10, 17 |" in page
    for stem in stems:
        assert f"]({stem}.png)" in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and "±" in line]
    assert len(rows) == 10
    values = [float(row.split("|")[2].split("±")[0]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_what_is_read(tmp_path: Path) -> None:
    campaign = read_campaign(make_campaign(tmp_path / "first", LORA, LORA_SPACE, lora_trials(24), "maximize"))
    assert campaign.others == ("village_test/acc", "other_test/acc")
    assert len(campaign.ended) == 24
    assert campaign.ranked["value"].is_monotonic_decreasing
    assert campaign.sems[-1]["village_test/acc"] == 0.035
    assert campaign.baseline is not None
    assert campaign.baseline["value"] == 0.27


def test_the_best_so_far_never_gets_worse_nor_goes_back_in_time(tmp_path: Path) -> None:
    ends = [completed(9.0), failed(), completed(7.0), completed(8.0), failed()]
    for end, minute in zip(ends, (4, 3, 9, 6, 12), strict=True):  # journaled in another order than they ended
        end["ended_at"] = stamp(minute)
    campaign = read_campaign(synthetic(tmp_path / "c", ends))
    by_time, by_evaluations = progress.best_by_time(campaign), progress.best_by_evaluations(campaign)
    assert by_time is not None
    assert by_evaluations is not None
    lines = [next(x for x in figure.panels[0].layers if isinstance(x, Line)) for figure in (by_time, by_evaluations)]
    assert lines[0].x == pytest.approx([2, 3, 5, 8, 11])
    assert math.isnan(lines[0].y[0])
    assert lines[0].y[1:] == (9, 8, 7, 7)
    assert (lines[1].x, lines[1].y) == ((1, 3, 5), (9, 7, 7))  # where it changes, and the ends
    marks = [layer for layer in by_time.panels[0].layers if isinstance(layer, Points)]
    assert {layer.label: layer.trials for layer in marks} == {"completed": (0, 3, 2), "failed (no value)": (1, 4)}


def test_validation_against_test_says_how_well_they_agree(tmp_path: Path) -> None:
    figure = objectives.validation_test(
        read_campaign(make_campaign(tmp_path / "first", LORA, LORA_SPACE, lora_trials(24), "maximize"))
    )
    assert figure is not None
    assert [panel.note for panel in figure.panels] == ["Pearson 1.00, Spearman 1.00 over 19 trials"] * 2


def test_minimisation_with_one_metric(tmp_path: Path) -> None:
    values = [180.0, 90.0, 400.0, 12.0, 0.02, 33.0]
    files = write_report(synthetic(tmp_path / "himmelblau", [completed(value) for value in values]))
    stems = ["best_by_evaluations", "best_by_time", "parameters", "parameters_over_time", "parallel_coordinates"]
    stems += ["importance", "slices", "contours"]
    assert [file.stem for file in files if file.suffix != ".pdf"] == ["report", "report", *stems]
    page = files[1].read_text()
    assert "By measured value: trial 4, 0.02, with" in page
    assert "minimised" in page


@pytest.mark.parametrize(
    ("ends", "figures", "says"),
    [
        ([], 0, "No trial has a value yet."),
        ([completed(3.0)], 3, "By measured value: trial 0, 3, with"),
        ([failed(), failed()], 5, "No trial ended with a value."),
        ([failed(), completed(3.0)], 5, "| 1 | code | injected failure | 0 |"),
    ],
)
def test_few_and_failed_trials(tmp_path: Path, ends: list[Mapping[str, Any]], figures: int, says: str) -> None:
    files = write_report(synthetic(tmp_path / "small", ends))
    assert len(files) == 2 + 2 * figures
    assert says in files[1].read_text()
    assert "<h1>Campaign small</h1>" in files[0].read_text()


def test_figures_of_an_earlier_report_that_no_longer_hold_are_removed(tmp_path: Path) -> None:
    directory = synthetic(tmp_path / "empty", [])
    (directory / "report").mkdir()
    (directory / "report" / "parameters.png").write_text("old")
    (directory / "report" / "mine.png").write_text("the user's")
    write_report(directory)
    found = sorted(file.name for file in (directory / "report").iterdir())
    assert found == ["mine.png", "report.html", "report.md"]


def test_no_campaign_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="is not a campaign"):
        write_report(tmp_path)


def test_the_progress_of_a_report_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write_report(synthetic(tmp_path / "c", [completed(0.5), completed(0.7)]), lambda *news: told.append(news))
    assert list(dict.fromkeys(what for what, _, _ in told)) == ["figures", "page", "pictures"]
    figures = [(done, total) for what, done, total in told if what == "figures"]
    assert figures == [(number, len(FIGURES)) for number in range(1, len(FIGURES) + 1)]


def test_three_objectives_have_a_panel_for_each_pair_and_the_volume_two_axes(tmp_path: Path) -> None:
    goals = [("a", "maximize", 0.0), ("b", "minimize", 5.3), ("c", "minimize", 10.0)]
    objective = {
        "kind": "command",
        "command": "echo {x}",
        "metrics": [dict(zip(("name", "direction", "reference"), goal, strict=True)) for goal in goals],
        "constraints": [{"name": "m", "at_most": 5.0, "at_least": None}],
    }
    values = [(1, 3, 5, 1), (2, 4, 6, 1), (2, 3, 7, 9), (0.5, 5, 9, 1), None, (3, 2, 4, 5)]
    trials: list[Mapping[str, Any]] = []
    for number, value in enumerate(values):
        end: dict[str, Any] = {"state": "infeasible", "error": {"kind": "out_of_memory", "message": "too large"}}
        if value is not None:
            metrics = dict(zip("abcm", map(float, value), strict=True))
            end = {"state": "completed", "value": metrics["a"], "metrics": metrics}
        trials.append({"number": number, "parameters": {"x": number / 10}, "gpus": 4, "end": end})
    folder = make_campaign(tmp_path / "c", objective, Space({"x": Float(0.0, 1.0)}), trials, "maximize")
    campaign = read_campaign(folder)
    assert list(campaign.front["trial"]) == [5]
    volumes, reference = campaign.hypervolumes
    worst_b = 5.3
    assert reference == pytest.approx((0.0, worst_b, 10.0))
    first, second = 1 * (worst_b - 3) * 5, 2 * (worst_b - 4) * 4
    both = first + second - 1 * (worst_b - 4) * 4
    assert volumes == pytest.approx([first, both, both, both, both, 3 * (worst_b - 2) * 6])  # trial 2 violates a bound
    assert all(campaign.record.gpu_hours_of(trial) > 0 for trial in range(6))
    drawn = {path.name: size(path) for path in write_report(folder) if path.suffix == ".png"}
    assert {"front.png", "hypervolume.png"} <= drawn.keys()
    assert drawn["front.png"][0] > 3 * 500  # three panels
    page = (folder / "report" / "report.md").read_text()
    assert "1 of 6 trials violate them" in page
    assert "1 trials" not in page
