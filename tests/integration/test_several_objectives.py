"""Campaigns with several objectives on real processes: interrupted, resumed, looked at, and continued by others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from hpo_cluster import load_history, optimize
from hpo_cluster.cli.main import main
from hpo_cluster.driver.check_proposals import replay
from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.overview import overview
from hpo_cluster.record.status import campaign_status
from hpo_cluster.report.facts import facts_of
from hpo_cluster.space import Space

DIR = Path("campaigns/c")
#: A program with two objectives and a constrained metric: cost rises with x, and so does quality; y wastes memory.
PROGRAM = """
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--y", type=float)
args = parser.parse_args()
with open("calls", "a") as calls:
    calls.write(f"{args.x}\\n")
if args.y > 0.9:
    print(json.dumps({"error": "out_of_memory", "message": "y is too large"}))
else:
    output = {"quality": args.x * (2 - args.x) - args.y / 2, "quality_sem": 0.01, "cost": args.x, "memory": 10 * args.y}
    print(json.dumps(output))
"""
QUICK = ["poll_s=0.1", "grace_s=0.5", "workers=2", "campaign=c"]
COMMAND = [
    "objective=command",
    f'objective.command="{sys.executable} program.py --x={{x}} --y={{y}}"',
    "space={x: {low: 0.0, high: 1.0}, y: {low: 0.0, high: 1.0}}",
    *QUICK,
]
METRICS = [
    "objective.metrics=[{name: quality, direction: maximize}, {name: cost, direction: minimize, reference: 1.5}]",
    "objective.constraints=[{name: memory, at_most: 6}]",
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)


def ended() -> int:
    journal = DIR / "events.jsonl"
    return sum(event["event"] == "ended" for event in read_events(journal)) if journal.exists() else 0


def test_a_campaign_is_killed_resumed_and_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    words = ["run", *COMMAND, *METRICS, "optimizer=optuna", "optimizer.sampler=nsga2", "budget=14"]
    driver = subprocess.Popen([sys.executable, "-m", "hpo_cluster", *words], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 90
    while ended() < 4:
        assert time.monotonic() < end, "waited in vain"
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert main(["resume", str(DIR)]) == 0
    assert "trials that no other one dominates (maximize quality, minimize cost)" in capsys.readouterr().out

    history = load_history(DIR)
    assert len(history) == len(Path("calls").read_text().splitlines()) == 14  # nothing was evaluated twice
    states = history["state"].value_counts().to_dict()
    assert states["infeasible"] > 0
    assert states["infeasible"] + states["completed"] == 14
    done = history[history["state"] == "completed"]
    assert np.allclose(done["value_quality"], done["x"] * (2 - done["x"]) - done["y"] / 2)
    assert (done["value"] == done["value_quality"]).all()
    assert (done["target_cost"] == -done["value_cost"]).all()
    assert (done["value_sem_quality"] == 0.01).all()
    assert done["value_sem_cost"].isna().all()
    assert (done["feasible"] == (done["metric.memory"] <= 6)).all()
    assert not history[history["state"] == "infeasible"]["front"].any()
    good = done[done["feasible"].astype(bool)]
    for _, row in good.iterrows():
        better = (good["value_quality"] >= row["value_quality"]) & (good["value_cost"] <= row["value_cost"])
        strictly = (good["value_quality"] > row["value_quality"]) | (good["value_cost"] < row["value_cost"])
        assert row["front"] != (better & strictly).any()
    assert list(pd.read_csv(DIR / "history.csv").columns) == list(history.columns)

    identity = yaml.safe_load((DIR / "campaign.yaml").read_text())
    optimizer = make_optimizer("optuna", Space.from_json(identity["space"]), 0, sampler="nsga2")
    goals = Goals.of(identity["objective"])
    assert replay(read_events(DIR / "events.jsonl"), optimizer, maximize=True, goals=goals) == []

    status = campaign_status(DIR)
    assert {trial["trial"] for trial in status["front"]} == set(history[history["front"]]["trial"])
    assert status["best"] == status["front"][0]
    assert status["objectives"] == {"quality": "maximize", "cost": "minimize"}
    assert main(["status", str(DIR)]) == 0
    assert f"front {len(status['front'])}" in capsys.readouterr().out
    assert main(["best", str(DIR), "weights={cost: -1}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trial"] == int(good.loc[good["value_cost"].idxmin(), "trial"])
    limit = float(good["value_cost"].median())
    assert main(["best", str(DIR), f"at_most={{cost: {limit}}}"]) == 0
    best = good[good["value_cost"] <= limit]["value_quality"].idxmax()
    assert capsys.readouterr().out.startswith(f"t{int(good.loc[best, 'trial']):04d}  quality ")
    assert main(["best", str(DIR), "at_most={cots: 3}"]) == 2
    assert "did you mean cost?" in capsys.readouterr().err

    violating = done[~done["feasible"].astype(bool)]
    assert len(violating)
    assert main(["why", str(DIR), str(violating["trial"].iloc[0])]) == 0
    story = capsys.readouterr().out
    assert "\n  quality " in story
    assert "violates a constraint: memory " in story

    assert main(["report", str(DIR)]) == 0
    written = {path.name for path in (DIR / "report").iterdir()}
    assert {"report.md", "front.png", "hypervolume.png"} <= written
    assert "best_by_evaluations.png" not in written
    page = (DIR / "report" / "report.md").read_text()
    assert "Constraints: `memory` at most 6" in page
    assert "`quality` (maximised), `cost` (minimised)" in page
    assert "cost 1.5" in page  # the reference point that was given
    assert all(f"\n| {trial['trial']} | " in page for trial in status["front"])

    assert main(["confirm", str(DIR), "top=2", "replicates=1"]) == 0
    assert capsys.readouterr().out.count("  on the front\n") == 2  # the program has no noise
    again = campaign_status(DIR)
    assert {row["trial"] for row in again["confirmed_front"]} <= {trial["trial"] for trial in again["front"]}
    assert all(row["metrics"]["cost"]["mean"] == row["metrics"]["cost"]["first"] for row in again["confirmed_front"])
    assert main(["report", str(DIR)]) == 0
    assert "| quality | " in (DIR / "report" / "report.md").read_text()
    capsys.readouterr()
    assert main(["describe", str(DIR)]) == 0
    paragraph = capsys.readouterr().out
    for row in again["confirmed_front"]:
        means = [f"`{name}` {row['metrics'][name]['mean']:.6g}" for name in ("quality", "cost")]
        assert f"Trial {row['trial']} has the means {' and '.join(means)} (1 seed)." in paragraph
    assert "By these means 2 of 2 confirmed trials remain on the front." in paragraph


BO = ["optimizer=bo", "optimizer.initial=4", "optimizer.restarts=1", "optimizer.raw_samples=32"]
CONSTRAINED = [
    "objective.metric=quality",
    "objective.constraints=[{name: memory, at_most: 4}, {name: cost, at_most: 0.5}]",
]


@pytest.mark.parametrize("goals", [METRICS, CONSTRAINED], ids=["several", "constrained"])
def test_bo_resumes_with_the_same_proposals(goals: list[str]) -> None:
    words = ["run", *COMMAND, *goals, *BO]
    assert main([*words, "budget=6"]) == 0
    assert main(["resume", str(DIR), "budget=8"]) == 0
    history = load_history(DIR)
    assert len(history) == 8
    identity = yaml.safe_load((DIR / "campaign.yaml").read_text())
    settings = {word.removeprefix("optimizer.").split("=")[0]: int(word.split("=")[1]) for word in BO[1:]}
    optimizer = make_optimizer("bo", Space.from_json(identity["space"]), 0, **settings)
    read = Goals.of(identity["objective"])
    assert replay(read_events(DIR / "events.jsonl"), optimizer, maximize=True, goals=read) == []
    decisions = [event["decision"] for event in read_events(DIR / "events.jsonl") if event["event"] == "asked"]
    assert len(decisions[-1]["model"]["objectives"]) == (2 if goals is METRICS else 1)


def test_one_objective_with_constraints(capsys: pytest.CaptureFixture[str]) -> None:
    """The trial of the best value violates them: the best one is another, for every command."""
    words = ["run", *COMMAND, *CONSTRAINED, "optimizer=sobol", "budget=10"]
    assert main(words) == 0
    told = capsys.readouterr().out
    history = load_history(DIR)
    done = history[history["state"] == "completed"]
    within = done[(done["metric.memory"] <= 4) & (done["metric.cost"] <= 0.5)]
    best = within.loc[within["value"].idxmax()]
    assert done["value"].max() > best["value"]
    assert history[history["front"]]["trial"].tolist() == [best["trial"]]
    status = campaign_status(DIR)
    assert status["best"]["trial"] == best["trial"]
    assert status["constraints"]["memory"] == {"at_most": 4, "at_least": None}
    assert not {"front", "objectives"} & status.keys()
    assert f"best       t{int(best['trial']):04d}" in told
    assert (overview(DIR)["best"], overview(DIR)["front"]) == (best["value"], None)
    assert facts_of(DIR)["best"]["trial"] == best["trial"]
    assert main(["best", str(DIR)]) == 0
    assert capsys.readouterr().out.startswith(f"t{int(best['trial']):04d}  quality ")
    assert main(["report", str(DIR)]) == 0
    page = (DIR / "report" / "report.md").read_text()
    assert "Constraints: `memory` at most 4, `cost` at most 0.5" in page
    assert f"By measured value: trial {int(best['trial'])}" in page
    written = {path.name for path in (DIR / "report").iterdir()}
    assert "best_by_evaluations.png" in written
    assert "front.png" not in written
    assert main(words) == 0  # the same words describe the same campaign
    assert main(["run", *COMMAND, *CONSTRAINED, "optimizer=turbo", "campaign=d"]) == 2
    assert "optimizer=turbo: cannot keep objective.constraints; accepted: random" in capsys.readouterr().err


def test_constraints_that_no_trial_satisfies_are_said_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    one = "objective.metrics=[{name: quality, direction: maximize}]"
    bounds = "objective.constraints=[{name: memory, at_most: -1}]"
    assert main(["run", *COMMAND, one, bounds, "optimizer=random", "budget=2"]) == 1
    told = capsys.readouterr().out
    assert main(["status", str(DIR)]) == 0
    shown = capsys.readouterr().out
    for text in (told, shown):
        assert "best       none: none satisfies the constraints" in text
    assert main(["describe", str(DIR)]) == 0
    described = capsys.readouterr().out
    assert "No trial satisfied the constraints." in described
    assert main(["ls"]) == 0
    assert "Pareto" not in described
    assert "front" not in capsys.readouterr().out
    assert (overview(DIR)["best"], overview(DIR)["front"]) == (None, None)


def test_a_result_without_one_of_the_metrics_is_a_clear_fault(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = "objective.metrics=[{name: quality, direction: maximize}, {name: speed, direction: maximize}]"
    assert main(["run", *COMMAND, metrics, "optimizer=random", "budget=8", "seed=1"]) == 1
    told = capsys.readouterr().out
    assert "bad_result: metric 'speed': missing; got quality, quality_sem, cost, memory" in told
    assert "none: no trial was completed" in told
    assert load_history(DIR)["value"].isna().all()
    assert main(["best", str(DIR)]) == 2
    assert "no trial of the campaign has a value yet" in capsys.readouterr().err
    assert main(["report", str(DIR)]) == 0


def test_faults_are_named_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = "objective.metrics=[{name: quality, direction: maximize}, gpu_seconds]"
    assert main(["run", *COMMAND, metrics, "optimizer=turbo"]) == 2
    assert "optimizer=turbo: has one objective only" in capsys.readouterr().err
    assert main(["run", *COMMAND, metrics, "optimizer=random", "+space.value_quality={low: 0, high: 1}"]) == 2
    assert "space.value_quality: that name is a column of the history" in capsys.readouterr().err
    assert not Path("campaigns").exists()


def test_a_campaign_of_one_objective_leaves_no_trace_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "objective=synthetic", "optimizer=random", "budget=1", *QUICK]
    assert main(run) == 0
    identity = yaml.safe_load((DIR / "campaign.yaml").read_text())
    assert list(identity["objective"]) == ["kind", "direction", "function", "noise", "duration_s", "failure_rate"]
    event = next(event for event in read_events(DIR / "events.jsonl") if event["event"] == "ended")
    assert not {"sems", "objectives"} & event.keys()
    assert event["metrics"].keys() == {"value"}
    params = json.loads((DIR / "trials" / "t0000" / "a0" / "params.json").read_text())
    assert not {"metrics", "constraints"} & params["settings"].keys()
    assert not [
        name for name in load_history(DIR).columns if name.startswith(("value_x", "target_", "slack_", "front"))
    ]
    assert not {"front", "objectives"} & campaign_status(DIR).keys()
    assert main(["best", str(DIR)]) == 0
    assert "t0000" in capsys.readouterr().out


def test_evaluations_for_one_objective_begin_a_campaign_with_several(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["run", *COMMAND, "objective.metric=cost", "objective.direction=minimize", "optimizer=sobol", "budget=5"]
    assert main([*one, "campaign=one"]) == 0
    words = ["run", *COMMAND, *METRICS, "optimizer=sobol", "budget=2", "warm_start=campaigns/one"]
    assert main(words) == 2
    assert "objective metric" in capsys.readouterr().err
    assert main([*words, "warm_start_other_objective=true"]) == 0
    history, earlier = load_history(DIR), load_history("campaigns/one")
    imported = history[history["origin"] == "imported"]
    done = earlier[earlier["state"] == "completed"]
    assert imported["value_cost"].tolist() == done["value"].tolist()
    assert imported["value"].tolist() == imported["value_quality"].tolist() == done["metric.quality"].tolist()
    assert not imported["front"].any()  # the front is of this campaign's own trials


def several(x: float) -> dict[str, float]:
    return {"up": x, "down": x * x, "memory": 10 * x}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_is_optimised_for_several_objectives(workers: int) -> None:
    result = optimize(
        several,
        {"x": {"low": 0.0, "high": 1.0}},
        optimizer="sobol",
        budget=8,
        workers=workers,
        metrics=[{"name": "up", "direction": "maximize"}, {"name": "down", "direction": "minimize"}, "gpu_seconds"],
        constraints=[{"name": "memory", "at_most": 5}],
    )
    history = result.history
    assert (history["feasible"] == (history["x"] <= 0.5)).all()
    assert result.front["trial"].tolist() == history[history["feasible"]]["trial"].tolist()  # a trade-off everywhere
    assert result.value == history[history["feasible"]]["x"].max()
    assert (history["value_gpu_seconds"] > 0).all()


def test_a_function_with_wrong_objectives_is_refused() -> None:
    space: dict[str, Any] = {"x": {"low": 0.0, "high": 1.0}}
    with pytest.raises(ConfigError, match="optimizer=soo: has one objective only"):
        optimize(several, space, optimizer="soo", metrics=[{"name": "up", "direction": "maximize"}, "gpu_seconds"])
    with pytest.raises(ConfigError, match="nothing says whether more or less up is better"):
        optimize(several, space, optimizer="sobol", metrics=["up", "gpu_seconds"])


def test_accuracy_against_cost_of_a_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run",
        "objective.metrics=[acc, gpu_seconds, trainable_parameters]",
        "objective.constraints=[{name: peak_memory_gb, at_most: 100}]",
        "space={lora_rank: {low: 1, high: 16, log: true}, max_steps: {low: 1, high: 4}}",
        "optimizer=sobol",
        "tasks.limit=8",
        "train.validation_batches=0",
        "budget=3",
        *QUICK,
    ]
    assert main(words) == 0
    assert "maximize village_val/acc, minimize gpu_seconds, minimize trainable_parameters" in capsys.readouterr().out
    history = load_history(DIR)
    assert history["state"].tolist() == ["completed"] * 3
    assert (history["value"] == history["metric.village_val/acc"]).all()
    assert (history["value_sem_trainable_parameters"] == 0).all()  # no noise
    assert (history["value_sem_village_val/acc"] > 0).all()
    assert history["value_sem_gpu_seconds"].isna().all()
    for trial in range(3):
        result = json.loads((DIR / "trials" / f"t{trial:04d}" / "a0" / "result.json").read_text())
        phases = sum(seconds for phase, seconds in result["seconds"].items() if phase != "import")
        assert result["metrics"]["gpu_seconds"] == pytest.approx(phases, abs=0.1)
        assert result["gpu_seconds"] >= result["metrics"]["gpu_seconds"]
    rank = history["lora_rank"].astype(float)
    assert history["target_trainable_parameters"].rank().tolist() == (-rank).rank().tolist()
