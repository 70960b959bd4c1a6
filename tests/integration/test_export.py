"""A campaign is handed on to other tools: tables, an Optuna storage, MLflow, TensorBoard; at any moment, and again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.record.exchange import libraries

SPACE = "space={x: {low: 1e-4, high: 1.0, log: true}, n: {low: 2, high: 8, step: 2}, kind: {choices: [a, b]}}"
PROGRAM = """
import json, sys
x, n, kind, share = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
if kind == "b" and n > 4:
    sys.exit("no such kind: <b>")
print(json.dumps({"acc": x * share + n, "size": n}))
"""


def run(*words: str, command: str = "{x} {n} {kind} {fidelity}") -> None:
    Path("train.py").write_text(PROGRAM)
    program = f"objective.command='{sys.executable} train.py {command}'"
    base = ["run", "objective=command", program, "objective.metric=acc", SPACE, "campaign=c"]
    assert main([*base, "poll_s=0.05", "grace_s=0.2", "retries=0", "stop_after_failures=0", *words]) == 0


def cut(folder: Path, share: float) -> None:
    """Make a campaign what it was when only the first part of its journal was written."""
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(lines[: max(3, int(len(lines) * share))]))


def study_in(place: str, name: str = "c") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=place)


def content(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.values, t.params, t.user_attrs, t.intermediate_values) for t in study.trials]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("budget=8", "seed=3", "optimizer=random")
    states = set(load_history(folder / "campaigns/c")["state"])
    assert {"completed", "failed"} <= states | {"failed" if "infeasible" in states else ""}
    return folder / "campaigns/c"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, campaign: Path) -> Path:
    """A folder with a copy of the campaign."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(campaign, tmp_path / "campaigns/c")
    return tmp_path


def test_tables_hold_the_history(here: Path) -> None:
    history = load_history("campaigns/c")
    assert main(["export", "campaigns/c", "to=csv", "path=out/h.csv"]) == 0
    assert main(["export", "campaigns/c", "to=parquet"]) == 0
    table = pd.read_csv("out/h.csv", float_precision="round_trip", dtype={"job": str})
    pd.testing.assert_frame_equal(table, history, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_parquet("campaigns/c/export/history.parquet"), history, check_dtype=False)


def test_an_optuna_study_holds_the_trials(here: Path) -> None:
    assert main(["export", "campaigns/c", "to=optuna"]) == 0
    study, history = study_in("sqlite:///campaigns/c/export/optuna.db"), load_history("campaigns/c")
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.metric_names == ["acc"]
    assert [trial.number for trial in study.trials] == history["trial"].tolist()
    for trial, row in zip(study.trials, history.to_dict("records"), strict=True):
        completed = row["state"] == "completed"
        assert trial.state == (optuna.trial.TrialState.COMPLETE if completed else optuna.trial.TrialState.FAIL)
        assert trial.params == {name: row[name] for name in ("x", "n", "kind")}
        assert trial.values == ([row["value"]] if completed else None)
        assert trial.user_attrs["state"] == row["state"]
        assert trial.user_attrs.get("metric.size") == (row["metric.size"] if completed else None)
        assert completed or "no such kind: <b>" in trial.user_attrs["error"]
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert trial.duration is not None
        assert 0 <= trial.duration.total_seconds() < 60
    distributions = study.trials[0].distributions
    assert distributions["x"] == optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
    assert distributions["n"] == optuna.distributions.IntDistribution(2, 8, step=2)
    assert distributions["kind"] == optuna.distributions.CategoricalDistribution(["a", "b"])


@pytest.mark.parametrize("place", ["study.db", "study.log"])
def test_exporting_a_running_campaign_again_and_again_doubles_nothing(place: str, here: Path, campaign: Path) -> None:
    url: Any = f"sqlite:///{place}"
    if place.endswith(".log"):
        url = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    seen = set()
    for share in (0.25, 0.5, 0.52, 0.54, 0.56, 0.75, 1.0, 1.0):
        shutil.copy(campaign / "events.jsonl", here / "campaigns/c/events.jsonl")
        cut(here / "campaigns/c", share)
        assert main(["export", "campaigns/c", "to=optuna", f"path={place}"]) == 0
        seen |= {trial.state.name for trial in study_in(url).trials}
    assert {"WAITING", "COMPLETE", "FAIL"} <= seen
    assert main(["export", "campaigns/c", "to=optuna", "path=fresh.db"]) == 0
    assert content(study_in(url)) == content(study_in("sqlite:///fresh.db"))


def test_a_trial_that_was_tried_again_is_exported_as_it_is_now(here: Path) -> None:
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db"]) == 0
    history = load_history("campaigns/c")
    number = int(history.loc[history["state"] != "completed", "trial"].iloc[0])
    assert main(["retry", "campaigns/c", str(number)]) == 0
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db"]) == 0
    study = study_in("sqlite:///s.db")
    assert len(study.trials) == len(history)
    assert study.trials[number].state == optuna.trial.TrialState.WAITING


def test_a_study_of_somebody_else_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = optuna.create_study(study_name="c", storage="sqlite:///s.db")
    other.add_trial(optuna.trial.create_trial(value=1.0))
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db"]) == 2
    assert "name=c: s.db holds another study of that name; give name=NEW_NAME" in capsys.readouterr().err
    assert len(study_in("sqlite:///s.db").trials) == 1
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db", "name=mine"]) == 0
    assert len(study_in("sqlite:///s.db", "mine").trials) == 8


@pytest.mark.parametrize("place", ["folder.db", "text.db", "nothing://there"])
def test_a_place_that_is_no_optuna_storage_is_one_sentence(
    place: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder.db").mkdir()
    Path("text.db").write_text("mine " * 500)
    assert main(["export", "campaigns/c", "to=optuna", f"path={place}"]) == 2
    assert f"{place}: cannot be opened as an Optuna storage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "place", "what"),
    [("mlflow", "runs.db", "give sqlite:///runs.db"), ("tensorboard", "http://there", "is not a folder")],
)
def test_a_place_that_the_tool_cannot_write_to_says_what_to_type(
    to: str, place: str, what: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "campaigns/c", f"to={to}", f"path={place}"]) == 2
    assert what in capsys.readouterr().err
    words = ["run", "objective=synthetic", f"tracking={to}", f"tracking.uri={place}", "campaign=other"]
    assert main(words) == 2
    assert what in capsys.readouterr().err
    assert not Path("campaigns/other").exists()
    assert not Path(place.partition("/")[0]).exists()


def test_rungs_are_intermediate_values_and_paused_trials_are_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("budget=3", "fidelity=share", "fidelity.rule=asha", "optimizer=asha", "space.kind.choices=[a]")
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db"]) == 0
    study, history = study_in("sqlite:///s.db"), load_history("campaigns/c")
    states = {"paused": "PRUNED", "completed": "COMPLETE"}
    assert [trial.state.name for trial in study.trials] == [states[state] for state in history["state"]]
    assert {"paused", "completed"} <= set(history["state"])
    for trial, row in zip(study.trials, history.to_dict("records"), strict=True):
        assert list(trial.intermediate_values) == list(range(int(row["rung"]) + 1))
        assert trial.intermediate_values[0] == row["value@1/9"]
        assert trial.value == row["rung_value"]


def test_several_objectives_and_constraints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bounds = "objective.constraints=[{name: size, at_most: 4}]"
    metrics = "objective.metrics=[{name: acc, direction: maximize}, {name: size, direction: minimize}]"
    run("budget=4", "optimizer=random", metrics, bounds, "space.kind.choices=[a]")
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db"]) == 0
    study, history = study_in("sqlite:///s.db"), load_history("campaigns/c")
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [t.values for t in study.trials] == history[["value_acc", "value_size"]].to_numpy().tolist()
    assert [t.constraints["size"] for t in study.trials] == [-slack for slack in history["slack_size"]]
    assert {t.number for t in study.best_trials} == set(history.loc[history["front"], "trial"])


def test_a_library_that_is_missing_is_named_with_the_command_to_type(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    for to in ("optuna", "mlflow", "tensorboard", "wandb"):
        assert main(["export", "campaigns/c", f"to={to}"]) == 2
        error = capsys.readouterr().err
        assert f"to={to}: {to} is not installed; type: pip install 'hpo_cluster[{to}]'" in error
        assert "Traceback" not in error
    assert not Path("campaigns/c/export").exists()


def test_faults_are_named_all_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "campaigns/nowhere", "to=cvs", "name=a", "y=1"]) == 2
    error = capsys.readouterr().err
    for fault in (
        "to=cvs: is not a format; did you mean csv?",
        "name: is",
        "'y=1': is not",
        "nowhere: is not a campaign",
    ):
        assert fault in error
    assert main(["export", "campaigns/c", "to=parquet", "path=h.csv"]) == 2
    assert "path=h.csv: the name of the file must end with .parquet" in capsys.readouterr().err


needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: pip install 'hpo_cluster[mlflow]'"
)


@needs_mlflow
def test_mlflow_has_a_run_for_each_trial_and_nothing_twice(here: Path, campaign: Path) -> None:
    for share in (0.4, 0.7, 1.0, 1.0):
        shutil.copy(campaign / "events.jsonl", here / "campaigns/c/events.jsonl")
        cut(here / "campaigns/c", share)
        assert main(["export", "campaigns/c", "to=mlflow", "path=sqlite:///m.db", "name=mine"]) == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri="sqlite:///m.db")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent, history = runs.pop("c"), load_history("campaigns/c")
    assert parent.data.params["optimizer.name"] == "random"
    assert sorted(runs) == [f"t{number:04d}" for number in history["trial"]]
    for row in history.to_dict("records"):
        run = runs[f"t{row['trial']:04d}"]
        completed = row["state"] == "completed"
        assert run.data.params == {name: str(row[name]) for name in ("x", "n", "kind")}
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["state"] == row["state"]
        assert run.info.status == ("FINISHED" if completed else "FAILED")
        assert run.data.metrics.get("value") == (row["value"] if completed else None)
        assert not completed or len(client.get_metric_history(run.info.run_id, "value")) == 1
        assert completed or "no such kind" in run.data.tags["error"]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_has_a_folder_for_each_trial(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        assert main(["export", "campaigns/c", "to=tensorboard", "path=tb"]) == 0
    for row in load_history("campaigns/c").to_dict("records"):
        seen = EventAccumulator(f"tb/t{row['trial']:04d}")
        seen.Reload()
        values = [event.value for event in seen.Scalars("hparam/value")] if row["state"] == "completed" else []
        assert values == ([pytest.approx(row["value"])] if row["state"] == "completed" else [])


def test_identity_and_campaign_are_attributes_of_the_study(here: Path) -> None:
    assert main(["export", "campaigns/c", "to=optuna", "path=s.db"]) == 0
    attributes = study_in("sqlite:///s.db").user_attrs
    assert attributes["campaign"] == "c"
    assert json.loads(attributes["hpo_cluster.identity"])["optimizer"]["name"] == "random"
