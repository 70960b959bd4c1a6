from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hpo_cluster
from hpo_cluster.cli.main import main
from hpo_cluster.driver.check_proposals import replay
from hpo_cluster.driver.in_process import AllFailedError, optimize
from hpo_cluster.errors import ConfigError, HpoClusterError, IdentityError
from hpo_cluster.record import status
from hpo_cluster.record.history import HISTORY_COLUMNS, TAIL_COLUMNS
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.layout import PACKAGE_DIR

SPACE = {"x": {"low": -5.0, "high": 5.0}, "n": {"low": 1, "high": 4}}
X = {"name": "x", "direction": "minimize"}


def bowl(x: float, n: int) -> float:
    return (x - 1) ** 2 + (n - 2) ** 2


def test_in_this_process_to_the_best_trial() -> None:
    result = optimize(bowl, SPACE, optimizer="random", budget=20, direction="minimize")
    history = result.history
    assert len(history) == 20
    assert list(history["state"].unique()) == ["completed"]
    assert result.value == history["value"].min() == bowl(**result.parameters)
    assert result.trial == int(history["value"].idxmin())
    assert (history["target"] == -history["value"]).all()
    assert isinstance(result.parameters["n"], int)
    best = optimize(lambda x, n: -bowl(x, n), SPACE, optimizer="random", budget=20)
    assert best.value == -result.value


def test_a_function_with_rungs_is_called_whole_here() -> None:
    def partly(x: float, fidelity: float, checkpoint: Path) -> float:
        assert checkpoint.is_dir()
        return x * fidelity

    result = optimize(partly, {"x": {"low": 2.0, "high": 3.0}}, optimizer="random", budget=2)
    assert result.value == result.parameters["x"]


def test_steps_and_fixed_parameters_to_the_end_of_the_space(tmp_path: Path) -> None:
    """Values are written as a user writes them, in memory and in a file."""

    def loss(rate: float, batch: int, kind: str, scale: float) -> float:
        assert (kind, scale) == ("adamw", 0.1)
        return abs(rate - 0.15) + batch

    space = {
        "rate": {"low": 0.0, "high": 0.3, "step": 0.05},
        "batch": {"low": 8, "high": 24, "step": 8},
        "kind": "adamw",
        "scale": {"low": 0.1, "high": 0.1},
    }
    result = optimize(loss, space, optimizer="soo", budget=99, direction="minimize")
    assert len(result.history) == 7 * 3
    assert result.parameters == {"rate": 0.15, "batch": 8, "kind": "adamw", "scale": 0.1}
    result.history.to_csv(tmp_path / "history.csv", index=False)
    written = pd.read_csv(tmp_path / "history.csv", dtype=str)
    assert sorted(set(written["rate"])) == ["0.0", "0.05", "0.1", "0.15", "0.2", "0.25", "0.3"]
    assert set(written["kind"]) == {"adamw"}


def test_the_history_has_the_columns_of_a_campaign() -> None:
    result = optimize(lambda x, n: {"value": x, "value_sem": 0.1, "loss": n}, SPACE, optimizer="random", budget=3)
    expected = [*HISTORY_COLUMNS, "x", "n", "metric.loss", "metric.value", *TAIL_COLUMNS]
    assert list(result.history.columns) == expected
    assert list(result.history["value_sem"]) == [0.1] * 3
    assert list(result.history["metric.loss"]) == list(result.history["n"])


def test_bo_beats_random() -> None:
    guided = optimize(bowl, SPACE, optimizer="bo", budget=12, initial=5, direction="minimize")
    blind = optimize(bowl, SPACE, optimizer="random", budget=12, direction="minimize")
    assert guided.value < 0.1
    assert guided.value < blind.value


def test_a_design_without_a_size_has_that_of_the_budget() -> None:
    """One point in each of the 25 intervals."""
    x = optimize(bowl, SPACE, optimizer="lhs", budget=25).history["x"].to_numpy()
    assert sorted(np.floor((x + 5) / 10 * 25).astype(int)) == list(range(25))


def test_the_same_seed_gives_the_same_trials() -> None:
    runs = [optimize(bowl, SPACE, optimizer="random", budget=6, seed=seed).history["x"].tolist() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_trials_that_fail_are_kept_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    def fragile(x: float, n: int) -> float:
        if n == 1:
            raise ValueError("n must not be 1")
        if n == 2:
            return math.nan
        if n == 3:
            raise MemoryError
        return x

    with caplog.at_level(logging.WARNING):
        history = optimize(fragile, SPACE, optimizer="random", budget=24, failures={"code": "failed"}).history
    states = dict(zip(history["n"], history["state"], strict=True))
    assert states == {1: "failed", 2: "diverged", 3: "infeasible", 4: "completed"}
    assert (history["value"].notna() == (history["n"] == 4)).all()
    assert set(history.loc[history["n"] == 1, "error"]) == {"code: n must not be 1"}
    assert "error=code: n must not be 1" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_where_all_fail_the_first_traceback_is_raised(workers: int) -> None:
    def broken(x: float, n: int) -> float:
        return 1 / 0

    with pytest.raises(AllFailedError, match=r"none of 3 trials(.|\n)*return 1 / 0(.|\n)*ZeroDivisionError"):
        optimize(broken, SPACE, optimizer="random", budget=3, workers=workers)
    with pytest.raises(AllFailedError, match="metric 'value' is nan"):
        optimize(lambda x, n: math.nan, SPACE, optimizer="random", budget=2, workers=workers)
    assert not multiprocessing.active_children()


def test_a_function_that_returns_no_number_failed() -> None:
    with pytest.raises(AllFailedError, match="metric 'value': None is not a number") as caught:
        optimize(lambda x, n: None, SPACE, optimizer="random", budget=1)
    assert "Traceback" not in str(caught.value)  # no line of the function is at fault


def test_forked_workers_give_the_values_of_this_process() -> None:
    alone = optimize(bowl, SPACE, optimizer="lhs", budget=9).history
    pids = {os.getpid()}
    together = optimize(
        lambda x, n: {"value": bowl(x, n), "pid": os.getpid()}, SPACE, optimizer="lhs", budget=9, workers=3
    ).history
    for column in ("trial", "x", "n", "value", "seed"):
        assert together[column].tolist() == alone[column].tolist()
    assert not pids & set(together["metric.pid"])
    assert 1 <= together["metric.pid"].nunique() <= 3
    assert not multiprocessing.active_children()


def test_there_is_no_barrier() -> None:
    space = {"slow": {"choices": [False, True]}, "x": {"low": 0.0, "high": 1.0}}
    began = time.monotonic()

    def first_is_slow(slow: bool, x: float) -> dict[str, float]:
        start = time.monotonic() - began
        time.sleep(1.0 if slow else 0.02)
        return {"value": x, "start": start, "end": time.monotonic() - began}

    history = optimize(first_is_slow, space, optimizer="random", budget=12, workers=2, seed=3).history
    slow = history[history["slow"]]
    first = slow.iloc[0]
    meanwhile = history[
        (history["metric.start"] > first["metric.start"]) & (history["metric.start"] < first["metric.end"])
    ]
    assert len(meanwhile) >= 2


def test_a_worker_that_dies_takes_only_its_trial_with_it() -> None:
    def deadly(x: float, n: int) -> float:
        if n == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    history = optimize(deadly, SPACE, optimizer="random", budget=16, workers=2).history
    dead = history["n"] == 4
    assert 1 <= dead.sum() < 16
    assert set(history.loc[dead, "state"]) <= {"failed", "infeasible"}  # by whether another had completed before
    assert history.loc[dead, "error"].iloc[0] == "code: the process of the function ended with exit code -9"
    assert set(history.loc[~dead, "state"]) == {"completed"}


def test_forked_workers_draw_numbers_of_their_own_and_the_same_again() -> None:
    def noise(x: float, n: int) -> dict[str, float]:
        return {"value": random.random(), "normal": float(np.random.standard_normal())}  # noqa: NPY002

    runs = [optimize(noise, SPACE, optimizer="random", budget=6, workers=2).history for _ in range(2)]
    assert runs[0]["value"].nunique() == runs[0]["metric.normal"].nunique() == 6
    assert runs[0]["value"].tolist() == runs[1]["value"].tolist()


def test_bo_with_workers() -> None:
    result = optimize(bowl, SPACE, optimizer="bo", budget=10, initial=5, workers=2, direction="minimize")
    assert len(result.history) == 10
    assert result.history["ended_seq"].notna().all()


def test_a_finite_space_ends_when_it_is_exhausted() -> None:
    result = optimize(lambda n: n, {"n": {"low": 1, "high": 3}}, optimizer="grid", budget=30)
    assert sorted(result.history["n"]) == [1, 2, 3]


def test_all_faults_of_the_arguments_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        optimize(3, SPACE, budget=0, workers=0, direction="up")  # type: ignore[arg-type]
    assert len(caught.value.faults) == 4
    assert "budget=0: must be at least 1" in caught.value.faults
    assert "direction='up': accepted: 'maximize' or 'minimize'" in caught.value.faults
    with pytest.raises(ConfigError, match="unknown"):
        optimize(bowl, SPACE, optimizer="bayes", workers=2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"budget": 2.5}, "budget=2.5: must be an integer"),
        ({"budget": "3"}, "budget='3': must be an integer"),
        ({"workers": True}, "workers=True: must be an integer"),
        ({"timeout_s": "5"}, "timeout_s='5': must be a number"),
        ({"trial_timeout_s": math.nan}, "trial_timeout_s=nan: must be finite"),
        ({"seed": -1}, "seed=-1: must be an integer, at least 0"),
        ({"seed": "a"}, "seed='a': must be an integer, at least 0"),
        ({"optimizer": None}, "optimizer: None is unknown; accepted: random"),
        ({"campaign": 3}, "campaign=3: must be text"),
        ({"warm_start": "first", "campaign": "second"}, "warm_start='first': must be a list"),
        ({"failures": 3}, 'failures=3: accepted: "raise"'),
        ({"space": None}, "space=None: is not a space; accepted: a mapping"),
        ({"space": [hpo_cluster.Float(0, 1)]}, "is not a space; accepted: a mapping"),
        ({"worker": 2}, "  - worker: is not a setting of random; did you mean workers?"),
        ({"optimizer": "bo", "initail": 2}, "  - initail: is not a setting of bo; did you mean initial?"),
        (
            {"metrics": [{"name": "acc", "direction": "minimize"}]},
            "  - metrics=[acc]: several objectives are two or more; leave it out to optimise one with metric=acc",
        ),
        ({"metrics": "acc"}, "such as [accuracy, gpu_seconds]; to optimise one: metric"),
        ({"metrics": [X, "gpu_seconds"], "metric": "x"}, "metric='x': is one objective, and metrics names several"),
        ({"metrics": [X, "gpu_seconds"], "direction": "minimize"}, "direction='minimize': each of the metrics has"),
        ({"constraints": {"name": "n"}}, "  - constraints: must be a list, such as [{name: memory_gb, at_most: 40}]"),
        ({"optimizer": "soo", "constraints": [{"name": "n", "at_most": 1}]}, "soo: cannot keep constraints; accepted"),
        (
            {"optimizer": "soo", "metrics": ["gpu_seconds", X]},
            "optimizer=soo: has one objective only, and metrics names several; accepted: random",
        ),
    ],
)
def test_a_wrong_argument_is_named_as_it_was_given(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        optimize(bowl, **{"space": SPACE, "optimizer": "random", "budget": 2, **arguments})
    assert fault in str(error.value)
    assert len(error.value.faults) == 1


def test_arguments_optimizer_and_space_are_one_error() -> None:
    with pytest.raises(ConfigError) as error:
        optimize(3, {"x": 1.5, "y": {"low": 2, "high": 1}}, optimizer="rando", budget="2", seed=-1)  # type: ignore[arg-type]
    parts = ("budget='2'", "fn=3", "seed=-1", "'rando' is unknown; did you mean random?", "space.y: empty range")
    assert [part in fault for part, fault in zip(parts, error.value.faults, strict=True)] == [True] * 5


def test_numbers_of_numpy_are_numbers() -> None:
    result = optimize(bowl, SPACE, optimizer="random", budget=np.int64(2), workers=np.int32(1), seed=np.int64(0))  # type: ignore[arg-type]
    assert result.history["x"].tolist() == optimize(bowl, SPACE, optimizer="random", budget=2).history["x"].tolist()


def test_another_field_can_be_optimised_alone() -> None:
    def measured(x: float, n: int) -> dict[str, float]:
        return {"loss": bowl(x, n), "loss_sem": 0.5, "size": n}

    options: dict[str, Any] = {"optimizer": "random", "budget": 12, "direction": "minimize", "metric": "loss"}
    result = optimize(measured, SPACE, **options)
    assert result.value == result.history["metric.loss"].min() == bowl(**result.parameters)
    assert result.history["value_sem"].tolist() == [0.5] * 12
    bounded = optimize(measured, SPACE, constraints=[{"name": "size", "at_least": 4}], **options)
    assert bounded.parameters["n"] == 4
    assert bounded.value > result.value
    with pytest.raises(AllFailedError, match="metric 'lost': missing; got loss, loss_sem, size"):
        optimize(measured, SPACE, **{**options, "metric": "lost"})


@pytest.mark.parametrize("metrics", [[], [{"name": "value", "direction": "maximize"}, "gpu_seconds"]])
def test_what_is_outside_the_constraints_is_no_result(metrics: list[Any]) -> None:
    constraints = [{"name": "n", "at_most": -5}, {"name": "x", "at_least": -5}]
    with pytest.raises(AllFailedError, match="none of 4 completed trials satisfies the constraints") as error:
        optimize(
            lambda x, n: {"value": x, "n": n, "x": x},
            {**SPACE, "n": {"low": 2, "high": 4}},
            optimizer="grid",
            levels={"x": 2},
            budget=4,
            metrics=metrics,
            constraints=constraints,
        )
    history = error.value.history
    assert history["state"].tolist() == ["completed"] * 4
    closest = int(history["n"].idxmin())
    assert f"\n  n at most -5: {history['n'].min()}, of trial {closest} " in str(error.value)


def test_a_campaign_needs_a_function_that_can_be_imported() -> None:
    with pytest.raises(ConfigError, match="a lambda"):
        optimize(lambda x, n: x, SPACE, campaign="first")


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    code = """
import os, sys, time, pathlib
from hpo_cluster.driver.in_process import optimize
def fn(x):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(0.5)
    return x
optimize(fn, {"x": {"low": 0.0, "high": 1.0}}, optimizer="random", budget=1000, workers=2)
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_DIR.parent)}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment) as parent:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
    children = [Path("/proc") / file.name for file in tmp_path.iterdir()]
    assert len(children) == 2
    deadline = time.monotonic() + 10
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if _alive(child)]


def _alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_a_name_of_the_package() -> None:
    code = """
import hpo_cluster
result = hpo_cluster.optimize(lambda x: x, {"x": {"low": 0.0, "high": 1.0}}, optimizer="random", budget=2)
assert result.parameters["x"] == result.value == result.history["value"].max()
"""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_DIR.parent)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


MODULE = """
def bowl(x, n):
    return {"value": (x - 1) ** 2 + n, "twice": 2 * n}

def broken(x, n):
    raise ValueError("no such file")

def branch(kind, rate, bias, momentum=None, layers=0):
    assert (momentum is None) == (kind == "plain") and rate * (momentum or 0) <= 0.5
    return {"value": rate + (momentum or 0) + layers + bias}
"""

BRANCHES = {
    "rate": {"low": 0.0, "high": 1.0},
    "momentum": {"low": 0.0, "high": 1.0, "when": {"kind": "momentum"}},
    "kind": {"choices": ["plain", "momentum"]},
    "bias": {"type": "bool"},
    "layers": {"ordered": [1, 2, 4], "when": {"bias": True}},
    "constraints": ["rate * momentum <= 0.5"],
    "start": [{"rate": 0.25, "kind": "momentum"}, {"kind": "plain", "bias": False}],
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "bowl_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("bowl_module")
    sys.modules.pop("bowl_module")


def test_in_a_campaign_it_is_journaled_and_goes_on(module: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": "sobol", "workers": 2, "direction": "minimize", "campaign": "first"}
    first = optimize(module.bowl, SPACE, budget=3, **options)
    assert len(first.history) == 3
    again = optimize(module.bowl, SPACE, budget=5, **options)
    assert list(again.history.value[:3]) == list(first.history.value)
    assert again.value == again.history.value.min()
    assert again.parameters == {name: again.history[name][again.trial] for name in SPACE}
    assert "metric.twice" in again.history
    assert status.campaign_status(tmp_path / "campaigns" / "first")["state"] == "finished"
    twice = optimize(module.bowl, SPACE, metric="twice", **{**options, "budget": 2, "campaign": "twice"})
    assert twice.value == 2 * twice.history["n"].min()
    plain = optimize(module.bowl, SPACE, optimizer="sobol", budget=5, direction="minimize")
    assert list(plain.history.value) == list(again.history.value)  # the same trials, with or without jobs


def test_a_campaign_of_optimize_is_resumed_from_the_command_line(module: Any, tmp_path: Path) -> None:
    optimize(module.bowl, SPACE, optimizer="random", budget=1, campaign="first")
    assert main(["resume", "campaigns/first", "budget=2"]) == 0
    assert len(hpo_cluster.load_history("campaigns/first")) == 2


def test_a_conditional_space_goes_through_journal_resume_and_csv(module: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": "bo", "initial": 5, "campaign": "tree"}
    optimize(module.branch, BRANCHES, budget=6, **options)
    again = optimize(module.branch, BRANCHES, budget=8, **options)
    folder = tmp_path / "campaigns" / "tree"
    history = hpo_cluster.load_history(folder)
    assert len(history) == 8
    assert set(history["state"]) == {"completed"}
    assert history.loc[0, ["rate", "kind", "momentum"]].tolist() == [0.25, "momentum", 0.5]
    assert history.loc[1, ["rate", "kind", "bias"]].tolist() == [0.5, "plain", False]
    assert history["momentum"].isna().tolist() == (history["kind"] == "plain").tolist()
    assert history["layers"].isna().tolist() == [not bias for bias in history["bias"]]
    assert ("momentum" in again.parameters) == (again.parameters["kind"] == "momentum")

    space = hpo_cluster.Space.from_json(BRANCHES)
    optimizer = hpo_cluster.make_optimizer("bo", space, 0, initial=5)
    assert replay(list(read_events(folder / "events.jsonl")), optimizer, maximize=True) == []
    csv = pd.read_csv(folder / "history.csv", float_precision="round_trip")
    assert optimizer.ask(csv, 1) == optimizer.ask(history, 1)
    assert main(["resume", "campaigns/tree", "budget=9"]) == 0
    assert main(["report", "campaigns/tree"]) == 0
    with pytest.raises(IdentityError, match=r"constraints"):
        optimize(module.branch, {**BRANCHES, "constraints": ["rate * momentum <= 0.4"]}, budget=9, **options)


def test_a_campaign_that_only_fails_says_why(module: Any) -> None:
    with pytest.raises(AllFailedError, match="no such file") as error:
        optimize(module.broken, SPACE, optimizer="random", budget=9, campaign="bad")
    assert error.value.history["state"].tolist() == ["failed"] * 3
    assert len(hpo_cluster.load_history("campaigns/bad")) == 3  # it stopped early


def test_a_campaign_stays_in_its_folder() -> None:
    with pytest.raises(ConfigError, match="is not a name for a folder"):
        optimize(lambda x, n: x, SPACE, campaign="../elsewhere")


def edge(x: float, y: float) -> float:
    """Grows towards an edge behind which it fails."""
    if x > 0.5:
        raise RuntimeError("too much")
    return x - 0.1 * (y - 0.3) ** 2


@pytest.mark.parametrize("optimizer", ["bo", "turbo", "mosaic", "soo", "direct"])
def test_optimizers_learn_where_a_function_fails(optimizer: str) -> None:
    space = {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}
    told = optimize(edge, space, optimizer=optimizer, budget=40, seed=1)
    untold = optimize(edge, space, optimizer=optimizer, budget=40, seed=1, failures={"code": "failed"})
    assert told.value > 0.49
    assert told.value >= untold.value
    history = told.history
    first = history.index[history.state == "completed"][0]
    assert set(history.loc[first:, "state"]) == {"completed", "infeasible"}
    assert set(history.loc[: first - 1, "state"]) <= {"failed"}  # nothing has worked yet: it may be a mistake
    assert set(untold.history.state) == {"completed", "failed"}
    fails = [(run.history.x.tail(20) > 0.55).sum() for run in (told, untold)]
    assert fails[0] < max(1, fails[1])  # beyond the edge, not beside it


def test_the_first_exception_can_end_the_search() -> None:
    with pytest.raises(HpoClusterError, match=r"trial \d+ failed at(.|\n)*too much"):
        optimize(edge, {"x": {"low": 0.0, "high": 1.0}, "y": {"low": 0.0, "high": 1.0}}, failures="raise")


def sometimes_slow(x: float, n: int) -> float:
    time.sleep(30 if n == 2 else 0)
    return x


@pytest.mark.parametrize("workers", [1, 3])
def test_a_call_that_takes_too_long_is_ended_and_infeasible(workers: int) -> None:
    began = time.monotonic()
    history = optimize(
        sometimes_slow, SPACE, optimizer="random", budget=12, workers=workers, trial_timeout_s=0.5
    ).history
    assert time.monotonic() - began < 29
    slow = history["n"] == 2
    assert slow.any()
    assert set(history.loc[slow, "state"]) == {"infeasible"}
    assert set(history.loc[slow, "error"]) == {"walltime: the call was ended after trial_timeout_s=0.5"}
    assert set(history.loc[~slow, "state"]) == {"completed"}


def test_a_search_ends_with_its_time_and_keeps_what_it_has() -> None:
    def naps(x: float, n: int) -> float:
        time.sleep(0.05 if n < 4 else 30)
        return x

    began = time.monotonic()
    result = optimize(naps, SPACE, optimizer="random", budget=500, workers=2, timeout_s=1.5)
    assert time.monotonic() - began < 29
    assert 0 < (result.history.state == "completed").sum() < 500
    assert set(result.history.state) <= {"completed", "cancelled"}


def test_a_search_that_ends_before_its_evaluations_says_so() -> None:
    with pytest.raises(AllFailedError, match="ended before any of its evaluations did") as caught:
        optimize(lambda x, n: time.sleep(30), SPACE, optimizer="random", budget=2, workers=2, timeout_s=0.3)
    assert len(caught.value.history) == 2


def test_wrong_limits_are_faults() -> None:
    with pytest.raises(ConfigError) as caught:
        optimize(sometimes_slow, SPACE, trial_timeout_s=0, timeout_s=-1, failures={"code": "ignore", "kode": "failed"})
    assert len(caught.value.faults) == 4
    with pytest.raises(ConfigError, match=r"launcher\.walltime_min"):
        optimize(sometimes_slow, SPACE, campaign="c", timeout_s=5)
