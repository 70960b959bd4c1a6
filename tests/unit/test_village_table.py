"""The table of real fine-tunings, its reader, its surrogate, and the plan by which it is made."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.optimizers import catalogue
from benchmarks.village import make, surrogate, table
from benchmarks.village.make import ROUNDS, SEEDS, Key, Plan, key_of
from hpo_cluster.cli.config.compose import compose
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.lora.settings import effective_train
from hpo_cluster.space import Space


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return table.load()


@pytest.fixture(scope="module")
def space() -> Space:
    return table.read_space()


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_configurations_are_of_the_space(frame: pd.DataFrame, space: Space) -> None:
    assert space == compose(["space=village_extended"]).space
    found = table.configurations(frame, space)
    assert all(space.allows(configuration) for configuration in found)
    for configuration in found:
        assert list(configuration) == [name for name in space.names if space.is_active(name, configuration)]
        for name, value in configuration.items():
            assert type(value) is type(space.parameters[name].decode(0.5)), name


def test_each_configuration_has_one_first_whole_training(frame: pd.DataFrame) -> None:
    first = table.trials(frame)
    assert len(first) >= 200
    assert not frame.duplicated(table.KEY).any()
    named = set(map(tuple, first[["origin", "trial"]].to_numpy().tolist()))
    assert set(map(tuple, frame[["origin", "trial"]].to_numpy().tolist())) == named
    design = first[first["origin"] == "sobol"]["trial"]
    assert sorted(design) == list(range(len(design)))  # no point of the sequence was left out


def test_other_seeds_and_shorter_schedules_are_of_the_same_configuration(frame: pd.DataFrame, space: Space) -> None:
    for _, part in frame.groupby(["origin", "trial"]):
        assert len(part[list(space.names)].drop_duplicates()) == 1
    assert set(frame["share"]) == {"1", "1/3", "1/9"}
    assert set(frame["seed"]) == {0, *SEEDS}


def test_measurements_are_possible_ones(frame: pd.DataFrame) -> None:
    whole = frame[frame["error"] == ""]
    for column, questions in (("val_acc", 640), ("test_acc", 320)):
        right = whole[column] * questions
        assert np.allclose(right, right.round(), atol=1e-3), column
        assert whole[column].between(0.15, 1.0).all()
    assert np.isfinite(whole["val_loss"]).all()
    assert set(frame["error"]) <= {"", "diverged"}
    assert frame[frame["error"] != ""]["val_acc"].isna().all()
    assert (frame["total_s"] >= frame["train_s"]).all()


def test_steps_follow_from_the_configuration(frame: pd.DataFrame) -> None:
    steps = 960 // frame["global_batch_size"] * frame["epochs"]
    for share, part in (("1", 1.0), ("1/3", 1 / 3), ("1/9", 1 / 9)):
        rows = frame["share"] == share
        assert (frame["planned_steps"][rows] == (steps[rows] * part).round()).all()
    first = table.trials(frame)
    ended = first[first["error"] == ""]
    assert (ended["steps"] == ended["planned_steps"]).all()
    for share, part in (("1/3", 1 / 3), ("1/9", 1 / 9)):
        assert (ended[f"step@{share}"] == (ended["planned_steps"] * part).round()).all()


def test_a_table_is_what_its_rows_say(frame: pd.DataFrame, space: Space, tmp_path: Path) -> None:
    rows = table.rows_of(frame, space)
    again = table.frame_of(rows, space.names)
    pd.testing.assert_frame_equal(again, frame)
    table.write(again, tmp_path / "table.csv.gz")
    assert (tmp_path / "table.csv.gz").read_bytes() == table.TABLE.read_bytes()


def test_the_table_is_small() -> None:
    assert table.TABLE.stat().st_size < 400_000


# --- the surrogate ---------------------------------------------------------------------------------------------------


def test_its_constants_belong_to_the_table() -> None:
    known = surrogate.constants()
    assert known["table"] == surrogate.digest()
    assert surrogate.village()(known["configuration"]) == pytest.approx(known["best"], abs=0.02)
    (chance, _), (between, wide), (good, narrow) = known["noise"]
    assert chance < between < good
    assert surrogate.noise_at(between) == wide
    assert narrow < surrogate.noise_at((between + good) / 2) < wide < 0.2
    assert surrogate.noise_at(1.0) == narrow


def test_alpha_is_that_of_the_job(frame: pd.DataFrame, space: Space) -> None:
    objective = compose(["space=village_extended"]).objective
    assert isinstance(objective, LoraObjective)
    for configuration in table.configurations(frame.head(40), space):
        assert surrogate.alpha_of(configuration) == effective_train(objective.train, configuration).alpha


def test_it_is_a_problem_of_the_comparison_of_optimizers(frame: pd.DataFrame, space: Space) -> None:
    problem = catalogue.problem("village")
    first = table.trials(frame)
    found = table.configurations(first, space)
    best, worst = int(first["val_acc"].argmax()), int(first["val_acc"].argmin())
    assert problem.truth(found[best]) > problem.truth(found[worst]) + 0.3
    observed, true = problem.observe(found[best], 0, 3)
    assert observed != true
    assert true <= problem.best


def test_a_training_that_diverged_counts_as_the_worst(frame: pd.DataFrame) -> None:
    rows = pd.DataFrame({"val_acc": [0.3, np.nan, 0.8], "val_loss": [1.0, np.nan, 0.9]})
    assert surrogate.targets(rows, "val_acc").tolist() == [0.3, 0.3, 0.8]
    assert surrogate.targets(rows, "val_loss").tolist() == [1.0, 1.0, 0.9]


def test_the_nearest_row() -> None:
    known = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert surrogate.nearest(known, np.array([3.0, 5.0]), np.array([[0.6, 0.5], [0.1, 0.2]])).tolist() == [5.0, 3.0]


# --- how it is made --------------------------------------------------------------------------------------------------


SMALL = (
    make.Round(4, {"bo": 1, "optuna": 2}, seeded=1, shorter=2),
    make.Round(6, {"bo": 2, "optuna": 2}, seeded=2, shorter=3),
)


def answer(task: make.Task) -> dict[str, Any]:
    """Return a row of a task: the lower the rate, the better; very high rates diverge."""
    rate = float(task.parameters["learning_rate"])
    row = {**task.key._asdict(), "parameters": task.parameters, "looks": {}}
    if rate > 0.05:
        return row | {"error": {"kind": "diverged", "message": "nan"}}
    return row | {"looks": {task.key.share: {"village_val/acc": 1 - rate}}}


def carried_out(plan: Plan, most: int = 10**6) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while len(rows) < most and (task := plan.next()):
        rows.append(json.loads(json.dumps(answer(task))))
        plan.add(rows[-1])
    return rows


def test_a_plan_that_is_interrupted_anywhere_goes_on_as_the_whole_one(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "ROUNDS", SMALL)
    whole = carried_out(Plan(space, []))
    keys = [key_of(row) for row in whole]
    assert len(set(keys)) == len(keys)
    assert [key.origin for key in keys[:7]] == ["sobol"] * 4 + ["bo", "optuna", "optuna"]
    assert [key.seed for key in keys[7:9]] == [1, 2]
    assert [key.share for key in keys[9:13]] == ["1/9", "1/3"] * 2
    assert len(keys) == 6 + 4 + 2 * 2 + 3 * 2
    for cut in (1, 5, 8, 12):
        begun = whole[:cut]
        assert begun + carried_out(Plan(space, begun)) == whole


def test_what_is_begun_is_not_begun_again(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "ROUNDS", SMALL)
    plan = Plan(space, [])
    first, second = plan.next(), plan.next()
    assert first is not None
    assert second is not None
    assert (first.key, second.key) == (Key("sobol", 0), Key("sobol", 1))


def test_good_and_bad_configurations_are_repeated(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "ROUNDS", (make.Round(30, {}, seeded=9, shorter=9),))
    rows = carried_out(Plan(space, []))
    values = {key_of(row): make.score_of(row) for row in rows}
    repeated = [values[key._replace(seed=0)] for key in values if key.seed == 1]
    bad = [value for value in repeated if value is None or value <= make.LEARNED]
    assert (len(repeated), len(bad)) == (9, 3)


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    make.append(path, {"origin": "sobol"})
    with path.open("a") as file:
        file.write('{"origin": "bo", "tri')
    assert make.read(path) == [{"origin": "sobol"}]
    make.append(path, {"origin": "turbo"})
    assert make.read(path) == [{"origin": "sobol"}, {"origin": "turbo"}]


def test_each_round_has_more_of_everything() -> None:
    for one, next_ in itertools.pairwise(ROUNDS):
        assert one.sobol < next_.sobol
        assert all(one.campaigns[name] < next_.campaigns[name] for name in next_.campaigns)
        assert one.seeded < next_.seeded <= next_.shorter
