"""Evaluations that were made elsewhere become a campaign, or the beginning of one; all faults are named at once."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.overview import overview
from hpo_cluster.record.status import campaign_status
from hpo_cluster.report import write_report

SPACE = "space={lr: {low: 1e-4, high: 1.0, log: true}, layers: {low: 1, high: 8}, kind: {choices: [a, b]}}"
TABLE = """lr,layers,kind,acc,loss,remark
0.01,2,a,0.5,1.25,first
0.1,8,b,0.75,0.5,
1e-3,4,a,0.625,,last
"""
QUICK = ["optimizer=random", "poll_s=0.05", "grace_s=0.2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_becomes_a_campaign_that_everything_opens(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text(TABLE)
    assert main(["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]) == 0
    assert "columns that are not used: remark" in capsys.readouterr().out
    history = load_history("campaigns/c")
    assert history["value"].tolist() == [0.5, 0.75, 0.625]
    assert history["lr"].tolist() == [0.01, 0.1, 1e-3]
    assert history["layers"].tolist() == [2, 8, 4]
    assert history["metric.loss"].dropna().tolist() == [1.25, 0.5]
    assert set(history["state"]) == {"completed"}
    assert pd.read_csv("campaigns/c/history.csv")["value"].tolist() == [0.5, 0.75, 0.625]
    status = campaign_status(Path("campaigns/c"))
    assert (status["state"], status["done"], status["budget"]) == ("finished", 3, 3)
    assert status["best"]["trial"] == 1
    row = overview(Path("campaigns/c"))
    assert (row["state"], row["done"], row["best"], row["completed"]) == ("finished", 3, 0.75, 3)
    assert any(path.name == "report.md" for path in write_report(Path("campaigns/c")))
    assert main(["describe", "campaigns/c"]) == 0
    assert "Evaluations made elsewhere were imported: 3 of `mine.csv`; optimizer" in capsys.readouterr().out
    assert main(["verify", "campaigns/c"]) == 0
    assert "3 trials made elsewhere: taken as recorded" in capsys.readouterr().out


def test_such_a_campaign_says_that_it_cannot_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text(TABLE)
    assert main(["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]) == 0
    assert campaign_status("campaigns/c")["confirmation_cost"] is None
    assert main(["resume", "campaigns/c", "budget=9"]) == 2
    assert "cannot be evaluated here; to go on from these evaluations: hpo-cluster run" in capsys.readouterr().err
    assert main(["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]) == 2
    assert "campaigns/c is there already; give campaign=NEW_NAME" in capsys.readouterr().err


def test_every_fault_is_named_and_bad_rows_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text(TABLE + "7,2,a,1,1,\n0.1,2.5,c,1,1,\n0.1,,a,1,1,\n0.1,2,a,,1,\n0.1,2,a,high,1,\n")
    command = ["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]
    assert main(command) == 2
    error = capsys.readouterr().err
    for fault in (
        "row 4: lr: 7.0 is outside 0.0001 to 1",
        "row 5: layers: 2.5 ",
        "row 5: kind: 'c' ",
        "row 6: layers: has no value",
        "row 7: value: is missing",
        "row 8: metric.acc=high: is not a finite number",
        "warm_start_skip_bad=true",
    ):
        assert fault in error, fault
    assert not Path("campaigns").exists()
    assert main([*command, "warm_start_skip_bad=true"]) == 0
    assert "5 bad rows left out; the first: row 4: lr: 7.0 is outside" in capsys.readouterr().out
    assert len(load_history("campaigns/c")) == 3


def test_columns_with_other_names_are_mapped(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text(TABLE.replace("lr,layers", "rate,params_layers"))
    command = ["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]
    assert main(command) == 2
    assert "lr: is a parameter without a column; there are: rate, params_layers, kind" in capsys.readouterr().err
    assert main([*command, "warm_start_columns={rate: lrr, size: kind}"]) == 2
    error = capsys.readouterr().err
    assert "rate is to be lrr, which is not a parameter; did you mean lr?" in error
    assert "there is no size" in error
    assert main([*command, "warm_start_columns={rate: lr}"]) == 0
    assert load_history("campaigns/c")["lr"].tolist() == [0.01, 0.1, 1e-3]


@pytest.mark.parametrize("name", ["acc", "value", "metric.acc"])
def test_the_metric_s_column_may_have_another_name(name: str) -> None:
    Path("mine.csv").write_text(TABLE.replace("acc", "score", 1))
    columns = f"warm_start_columns={{score: {name}}}"
    assert main(["import", "mine.csv", SPACE, "objective.metric=acc", columns, "campaign=c"]) == 0
    assert load_history("campaigns/c")["value"].tolist() == [0.5, 0.75, 0.625]


def test_json_lines_may_nest_parameters_and_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"parameters": {"lr": 0.1, "layers": 2, "kind": "a"}, "value": 0.5, "metrics": {"loss": 1}},
        {"parameters": {"lr": 0.2, "layers": 2, "kind": "b"}, "state": "failed", "error": "code: no luck"},
        {"parameters": {"lr": 0.3, "layers": 2, "kind": "b"}, "state": "running"},
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["import", "mine.jsonl", SPACE, "campaign=c"]) == 0
    assert "1 row left out that had not ended" in capsys.readouterr().out
    history = load_history("campaigns/c")
    assert history["state"].tolist() == ["completed", "failed"]
    assert history["error"].tolist()[1] == "code: no luck"
    Path("mine.jsonl").write_text(json.dumps({"params": {"lr": 1, "layer": 2}, "value": 1}) + "\n{\n")
    assert main(["import", "mine.jsonl", SPACE, "campaign=d"]) == 2
    assert "mine.jsonl, line 2: is not JSON" in capsys.readouterr().err
    Path("mine.jsonl").write_text(json.dumps({"params": {"lr": 1, "layer": 2}, "value": 1}))
    assert main(["import", "mine.jsonl", SPACE, "campaign=d"]) == 2
    error = capsys.readouterr().err
    assert "layer: is not a parameter of the space; did you mean layers?" in error


LINE = {
    "timing": {"opening_time": "2025-01-17 11:39:09", "ending_time": "2025-01-17 12:22:53"},
    "solution": {"base_value": [19.1, 34.5, 0.25, -5.5, -3.0], "converted_values": [19, 34, 0.25, 3.1623e-6, 0.001]},
    "score": {
        "hellaswag": {"acc,none": 0.25, "acc_stderr,none": 0.004, "acc_norm,none": 0.3, "acc_norm_stderr,none": 0.005},
        "mmlu": {"acc,none": 0.23, "acc_stderr,none": 0.0035},
    },
    "info": {},
}


def test_the_published_lines_of_the_study_of_2025_are_read_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    bounds = {**LINE, "score": {"UCB": 0.37, "LCB": 0.16}, "timing": {"opening_time": "", "ending_time": ""}}
    Path("bamsoo.jsonl").write_text(f"{json.dumps(LINE)}\n{json.dumps(bounds)}\n")
    assert main(["import", "bamsoo.jsonl", "experiment=ola2025_bamsoo", "campaign=c"]) == 0
    assert "1 evaluation and 1 value that no job measured of bamsoo.jsonl" in capsys.readouterr().out
    history = load_history("campaigns/c")
    assert history["origin"].tolist() == ["evaluated", "approximated"]
    assert history["value"].tolist() == [0.25, 0.16]
    assert history["value_sem"].tolist()[0] == 0.004
    assert history["metric.mmlu/acc"].tolist()[0] == 0.23
    assert history["lora_rank"].tolist() == [19, 19]
    assert history["started_at"].tolist()[0] == "2025-01-17T11:39:09+00:00"
    assert history["ended_at"].tolist() == ["2025-01-17T12:22:53+00:00"] * 2
    assert yaml.safe_load(Path("campaigns/c/campaign.yaml").read_text())["optimizer"]["name"] == "bamsoo"


def foreign_study(place: str) -> optuna.Study:
    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
        layers = trial.suggest_int("layers", 2, 8, step=2)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.set_user_attr("seconds", 1.5)
        if trial.number == 2:
            raise ValueError
        return rate * layers + (kind == "a")

    study = optuna.create_study(study_name="theirs", storage=place, sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective, n_trials=5, catch=ValueError)
    return study


def test_an_optuna_study_becomes_a_campaign_with_its_own_space() -> None:
    study = foreign_study("sqlite:///theirs.db")
    assert main(["import", "theirs.db", "campaign=c"]) == 0
    history = load_history("campaigns/c")
    assert history["state"].tolist() == ["completed", "completed", "failed", "completed", "completed"]
    assert history["value"].dropna().tolist() == [t.value for t in study.trials if t.value is not None]
    assert history["rate"].tolist() == [t.params["rate"] for t in study.trials]
    assert history["metric.seconds"].dropna().tolist() == [1.5] * 5
    identity = yaml.safe_load(Path("campaigns/c/campaign.yaml").read_text())
    assert identity["direction"] == "minimize"
    assert identity["space"]["rate"] == {"type": "float", "low": 1e-4, "high": 1.0, "log": True}
    assert identity["space"]["layers"] == {"type": "int", "low": 2, "high": 8, "log": False, "step": 2}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["objective=synthetic", "objective.function=branin", "objective.failure_rate=0.3", "budget=8", "seed=4"]
        main(["run", *words, *QUICK, "retries=1", "retry_wait_s=0", "stop_after_failures=0", "campaign=c"])
    assert len(set(load_history(folder / "campaigns/c")["state"])) > 1
    return folder / "campaigns/c"


@pytest.mark.parametrize("to", ["csv", "parquet", "optuna"])
def test_an_export_that_is_imported_again_gives_the_same_history(to: str, original: Path) -> None:
    shutil.copytree(original, "campaigns/c")
    ends = {"csv": "h.csv", "parquet": "h.parquet", "optuna": "h.db"}
    assert main(["export", "campaigns/c", f"to={to}", f"path={ends[to]}"]) == 0
    like = [] if to == "optuna" else ["--like", "campaigns/c"]
    assert main(["import", ends[to], *like, "campaign=again"]) == 0
    order = ["asked_seq", "ended_seq"]  # places in the journal, which is another one
    then, now = load_history("campaigns/c").drop(columns=order), load_history("campaigns/again").drop(columns=order)
    pd.testing.assert_frame_equal(now, then, check_dtype=False, check_exact=True)
    assert main(["verify", "campaigns/again"]) == 0
    again = Path("campaigns/again")
    identities = [yaml.safe_load((folder / "campaign.yaml").read_text()) for folder in (original, again)]
    assert identities[0] == identities[1]


def test_a_campaign_of_ours_goes_on_after_its_import(original: Path) -> None:
    shutil.copytree(original, "campaigns/c")
    assert main(["export", "campaigns/c", "to=csv", "path=h.csv"]) == 0
    assert main(["import", "h.csv", "--like", "campaigns/c", "campaign=again"]) == 0
    assert main(["resume", "campaigns/again", "budget=10", "poll_s=0.05", "grace_s=0.2"]) == 0
    history = load_history("campaigns/again")
    assert len(history) == 10
    assert history["trial"].tolist() == list(range(10))


def test_a_campaign_begins_with_the_evaluations_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text("x1,x2,loss\n0.0,0.0,170.0\n3.0,2.0,5\n30,2,5\n")
    words = ["run", "objective=synthetic", "objective.function=himmelblau", *QUICK, "budget=1", "campaign=c"]
    files = ["warm_start=[mine.csv]", "warm_start_columns={loss: value}"]
    assert main([*words, *files]) == 2
    assert "warm_start: mine.csv, row 3: x1: 30.0 is outside" in capsys.readouterr().err.replace(f"{Path.cwd()}/", "")
    assert main([*words, *files, "warm_start_skip_bad=true"]) == 0
    assert "2 of 2 evaluations of mine.csv are taken over; 1 bad row left out" in capsys.readouterr().out
    history = load_history("campaigns/c")
    assert history["origin"].tolist() == ["imported", "imported", "evaluated"]
    assert history["value"].tolist()[:2] == [170.0, 5.0]
    source = yaml.safe_load(Path("campaigns/c/campaign.yaml").read_text())["warm_start"]
    assert [(entry["campaign"], entry["evaluations"]) for entry in source] == [("mine.csv", 2)]
    Path("mine.csv").unlink()
    assert main(["resume", "campaigns/c", "budget=2"]) == 0
    assert len(load_history("campaigns/c")) == 4


def test_a_column_that_is_missing_hides_no_fault_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text("lr,kind,remark\n0.1,a,\n7,a,\n0.1,c,\n")
    assert main(["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("4 faults:")  # and none for each row of what has no column
    for fault in (
        "layers: is a parameter without a column",
        "value or acc: is a metric without a column",
        "row 2: lr: 7.0 is outside 0.0001 to 1",
        "row 3: kind: 'c' ",
    ):
        assert fault in error, fault
    assert "warm_start_skip_bad" not in error  # it would not be enough


def test_a_missing_file_is_named_next_to_a_missing_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "none.csv", "campaign=c"]) == 2
    error = capsys.readouterr().err
    assert "none.csv: there is no such file" in error
    assert "space: objective=elsewhere has no space of its own" in error


@pytest.mark.parametrize("name", ["none.csv", "notes.txt"])
def test_a_file_that_cannot_be_read_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", name, SPACE, "campaign=c"]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert ("there is no such file" if name == "none.csv" else "accepted: a table (.csv") in error


@pytest.mark.parametrize("name", ["broken.db", "broken.log"])
def test_a_broken_optuna_storage_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_bytes(b"\xfe\xffno storage\n" * 100)
    assert main(["import", name, "campaign=c"]) == 2
    assert f"{name}: cannot be opened as an Optuna storage" in capsys.readouterr().err


def test_a_database_of_another_program_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect("other.db")) as database:
        database.execute("CREATE TABLE notes (text)")
    before = Path("other.db").read_bytes()
    assert main(["import", "other.db", "campaign=c"]) == 2
    assert "other.db: has no study" in capsys.readouterr().err
    assert Path("other.db").read_bytes() == before


def imported_events(folder: str) -> list[dict[str, Any]]:
    return read_events(Path(folder) / "events.jsonl")


def test_the_journal_holds_all_of_them_in_one_event(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.csv").write_text(TABLE)
    assert main(["import", "mine.csv", SPACE, "objective.metric=acc", "campaign=c"]) == 0
    events = imported_events("campaigns/c")
    assert [event["event"] for event in events] == ["created", "started", "stopped"]
    assert [row["info"] for row in events[0]["trials"]] == [{"made_elsewhere": "mine.csv"}] * 3


def test_confirmations_are_no_part_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["-3,completed,confirmation,0.5,0.2", "0,completed,evaluated,0.5,0.4", "1,completed,evaluated,0.7,0.3"]
    Path("t.csv").write_text("\n".join(["trial,state,origin,x,value", *rows]) + "\n")
    assert main(["import", "t.csv", "space={x: {low: 0.0, high: 1.0}}", "campaign=c"]) == 0
    out = capsys.readouterr().out
    assert "1 confirmation left out" in out
    assert "2 evaluations of t.csv" in out
    assert main(["status", "campaigns/c"]) == 0
    assert load_history("campaigns/c")["value"].tolist() == [0.4, 0.3]


def test_what_the_other_campaign_says_cannot_be_typed(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(original, "campaigns/c")
    assert main(["export", "campaigns/c", "to=csv", "path=h.csv"]) == 0
    assert main(["export", "campaigns/c", "to=optuna", "path=h.db"]) == 0
    capsys.readouterr()
    assert main(["import", "h.csv", "--like", "campaigns/c", "campaign=again", "seed=1"]) == 2
    error = capsys.readouterr().err
    assert "seed=1: is taken from campaigns/c; to choose it, say what was evaluated instead" in error
    assert "hpo-cluster import h.csv seed=1 'space={...}' objective.metric=NAME" in error
    assert error.endswith("Keys and options: hpo-cluster import --help\n")
    assert "hpo-cluster run" not in error
    assert main(["import", "h.db", "campaign=again", "seed=1"]) == 2
    error = capsys.readouterr().err
    assert "seed=1: is taken from the study; to choose it" in error
    assert "hpo-cluster import h.db seed=1 'space={...}' objective.metric=NAME" in error
    assert not Path("campaigns/again").exists()
