"""The benchmark of the driver: its simulated cluster under a real campaign."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from benchmarks.campaign.cluster import MeasuredCluster
from benchmarks.campaign.run import COLUMNS, Measurement, main, measure, open_campaign, table
from hpo_cluster import load_history
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS


def test_jobs_end_when_their_time_has_come(tmp_path: Path) -> None:
    cluster = MeasuredCluster("branin", 10.0)
    opened, timed = open_campaign(tmp_path / "c", "random", "branin", 6, 3, cluster)
    with opened as campaign:
        campaign.tick()
        assert len(campaign.record.in_flight) == 3
        cluster.advance(7.9)  # durations are near 10
        campaign.tick()
        assert campaign.record.spent == 0
        cluster.advance(4.2)
        campaign.tick()
        assert campaign.record.spent == 3
        assert [trial.number for trial in campaign.record.in_flight] == [3, 4, 5]
    history = load_history(tmp_path / "c").head(3)
    for row in history.to_dict("records"):
        assert row["value"] == FUNCTIONS["branin"].evaluate({name: row[name] for name in ("x1", "x2")})
    assert timed.cpu_s > 0
    assert cluster.cpu_s > 0


@pytest.mark.parametrize("optimizer", ["sobol", "soo"])
def test_a_campaign_is_measured_to_its_end(tmp_path: Path, optimizer: str) -> None:
    arguments = argparse.Namespace(function="cliff", trials=40, designed=0, workers=8, evaluation_s=4.0)
    found = measure(tmp_path / "c", optimizer, arguments)
    assert (found.optimizer, found.trials, found.workers) == (optimizer, 40, 8)
    measured = {name: value for name, value in dataclasses.asdict(found).items() if isinstance(value, float)}
    assert all(value > 0 for value in measured.values())
    assert found.ask_s < found.loop_s
    history = load_history(tmp_path / "c")
    assert (history["state"] == "completed").sum() == 40
    assert (history["state"] == "submitted").sum() == 1  # what it was opened once more for
    lines = table([found]).splitlines()
    assert [line.count("|") for line in lines] == [len(COLUMNS) + 1] * 3


def test_first_trials_can_be_random_and_are_not_measured(tmp_path: Path) -> None:
    points = {}
    for optimizer, designed in (("random", 0), ("sobol", 0), ("sobol", 4)):
        cluster = MeasuredCluster("branin", 10.0)
        directory = tmp_path / f"{optimizer}{designed}"
        opened, timed = open_campaign(directory, optimizer, "branin", 8, 3, cluster, designed)
        with opened as campaign:
            for _ in campaign.drive(wait=cluster.advance):
                pass
        assert timed.proposals == 8 - designed
        points[optimizer, designed] = load_history(directory)["x1"].tolist()
    assert points["sobol", 4][:4] == points["random", 0][:4]
    assert set(points["sobol", 4][4:]) <= set(points["sobol", 0])


def test_every_field_has_a_column() -> None:
    assert list(COLUMNS) == [field.name for field in dataclasses.fields(Measurement)]


def test_an_optimizer_that_cannot_go_on_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--optimizers", "nosuch", "--trials", "4", "--workers", "2", "--dir", str(tmp_path)]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "nosuch" in out
    assert "is unknown" in out
    assert list(tmp_path.iterdir()) == []
