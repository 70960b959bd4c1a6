"""The benchmark of the job: its smallest model, on both routes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.job import kernels, members, run
from benchmarks.job.cases import SHAPES, TEMPLATE_TOKENS, build, village
from benchmarks.job.routes import Measurement


def test_both_routes_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["tiny", "--repetitions", "1", "--rows", "32", "--documents", "3", "--dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("cpu ratio 0.")
    assert lines[-2].startswith("wall ratio ")
    table = {line.split("|")[1].strip(): line.split("|")[2:5] for line in lines if line.startswith("| ")}
    for route in ("ours", "theirs"):
        assert [float(cell) > 0 for cell in table[route] if "." in cell]
    parts = [line.split("|")[2].strip() for line in lines if line.startswith(("| ours", "| theirs"))]
    assert {"import", "train", "score", "finetune_lora", "evaluate"} <= {*parts}
    throughput = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| CPU")]
    assert [row[1] for row in throughput] == ["train", "score"]
    assert all(float(row[2]) > 0 for row in throughput)  # tokens/s
    assert float(throughput[1][3]) > 0  # requests/s
    assert list(tmp_path.iterdir()) == []


def test_kernels_of_a_step(tmp_path: Path) -> None:
    counted = kernels.kernels_a_step(build("tiny", tmp_path / "case", rows=64, documents=1), tmp_path / "runs")
    assert counted > 50


def test_members_together_learn_what_they_learn_alone() -> None:
    group = members.Group.of(village(), 3, 2)
    together, alone = members.Together(group), [members.Alone(group, number) for number in range(4)]
    before = members.difference(together, alone)
    for step in range(3):
        members.train([together, *alone], step)
    assert before == 0
    assert members.difference(together, alone) < 1e-5
    changed = [float(matrix.detach().abs().max()) for name, matrix in together.adapter.items() if "lora_B" in name]
    assert min(changed) > 0.01, "B begins with zero"


def test_synthetic_texts_have_the_lengths_that_are_asked_for(tmp_path: Path) -> None:
    case = build("tiny", tmp_path / "case", rows=300, documents=1)
    rows = json.loads((case.data_dir / "train.json").read_text())
    lengths = [len((row["instruction"] + " " + row["output"]).split()) for row in rows]
    assert statistics.median(lengths) == pytest.approx(SHAPES["tiny"].row_tokens - TEMPLATE_TOKENS, rel=0.2)


def test_ratios_pair_neighbouring_runs() -> None:
    found = [
        Measurement(route, cpu_s, 2 * cpu_s, 1.0, {}, {"t/acc": 0.5 if route == "ours" else 0.25})
        for route, cpu_s in (("ours", 1.0), ("theirs", 4.0), ("ours", 3.0), ("theirs", 4.0))
    ]
    assert run.ratios(found, "cpu_s") == [0.25, 0.75]
    assert run.spread(run.ratios(found, "cpu_s")) == "0.50 (0.25 to 0.75)"
    assert [*run.score_differences(found)] == ["t/acc: ours 0.5000, theirs 0.2500"]
