from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.function import FunctionObjective
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.record.layout import resources_dir

USER_MODULE = """
import math
def score(x, y):
    return x + y
def more(x, y):
    return {"value": x, "value_sem": 0.5, "y": y, "who": __name__}
def broken(x, y):
    raise ValueError(f"no luck with {x}")
def lost(x, y):
    return math.nan
def partly(x, y, *, fidelity, checkpoint):
    (checkpoint / "state").touch()
    return x * fidelity
def mine(x, y, fidelity=0.5, checkpoint="resnet.pt"):
    return x * fidelity if checkpoint == "resnet.pt" else -1
class Model:
    @staticmethod
    def fit(x, y):
        return x * y
"""


class Thing:
    def method(self) -> float:
        return 1.0


def evaluate(tmp_path: Path, name: str, *, status: int = 0, **params: object) -> dict:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    (tmp_path / "pkg" / "sub" / "command.py").write_text(USER_MODULE)
    objective = FunctionObjective(function=f"pkg.sub.command:{name}", search_path=str(tmp_path))
    assert objective.file_faults(Path) == []
    fields = {"schema": 1, "attempt": 0, "seed": 1, "parameters": {"x": 2.0, "y": 3}, **params}
    (tmp_path / "params.json").write_text(json.dumps({**fields, "settings": objective.job_settings(Path)}))
    program = resources_dir() / "jobs" / "function.py"
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return json.loads((tmp_path / ("error.json" if status else "result.json")).read_text())


@pytest.mark.parametrize(("name", "value"), [("score", 5.0), ("Model.fit", 6.0)])
def test_a_number_is_the_value(tmp_path: Path, name: str, value: float) -> None:
    assert evaluate(tmp_path, name)["metrics"] == {"value": value}


def test_a_dictionary_gives_metrics_and_standard_errors(tmp_path: Path) -> None:
    result = evaluate(tmp_path, "more")
    assert (result["metrics"], result["sems"]) == ({"value": 2.0, "y": 3.0}, {"value": 0.5})
    assert result["output"] == {"who": "pkg.sub.command"}


def test_an_exception_is_kept_with_its_traceback(tmp_path: Path) -> None:
    error = evaluate(tmp_path, "broken", status=1)
    assert (error["kind"], error["message"]) == ("code", "no luck with 2.0")
    assert "raise ValueError" in error["traceback"]


def test_nan_is_divergence(tmp_path: Path) -> None:
    assert evaluate(tmp_path, "lost", status=1)["kind"] == "diverged"


def test_of_an_importable_function() -> None:
    objective = FunctionObjective.of(json.dumps, direction="minimize")
    assert objective.function == "json:dumps"
    assert (Path(str(objective.search_path)) / "json" / "__init__.py").exists()
    assert parse_objective(objective.model_dump(mode="json")) == objective
    assert objective.label == "dumps"


def test_functions_that_a_job_cannot_import_are_refused() -> None:
    def local() -> float:
        return 1.0

    started = eval("lambda: 1", {"__name__": "__main__"})
    replaced = functools.wraps(math.sin)(lambda x: x)
    for fn, words in [
        (lambda: 1.0, "a lambda"),
        (local, "inside another function"),
        (started, "__main__"),
        (Thing().method, "bound method"),
        (functools.partial(local), "has no name"),
        (replaced, "another object"),
    ]:
        with pytest.raises(ConfigError, match=words):
            FunctionObjective.of(fn)


def test_a_module_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    (fault,) = FunctionObjective(function="nowhere:f", search_path=str(tmp_path)).file_faults(Path)
    assert "no module 'nowhere'" in fault
    with pytest.raises(ConfigError, match=r"objective\.function='no colon'"):
        parse_objective({"kind": "function", "function": "no colon"})


RUNGS = {"kind": "share", "shares": [0.25, 1.0], "goal": 0, "first": 0, "linger_s": 0}


def test_a_function_is_called_with_the_share_of_its_rung(tmp_path: Path) -> None:
    result = evaluate(tmp_path / "a0", "partly", rungs=RUNGS)
    assert (result["rung"], result["metrics"]) == (0, {"value": 0.5})
    assert (tmp_path / "checkpoint" / "state").exists()


def test_without_rungs_only_arguments_without_defaults_are_given(tmp_path: Path) -> None:
    assert evaluate(tmp_path / "a0", "partly")["metrics"] == {"value": 2.0}
    assert not (tmp_path / "checkpoint").exists()
    assert evaluate(tmp_path / "b0", "mine")["metrics"] == {"value": 1.0}


def test_a_function_that_would_do_the_same_at_each_rung_is_an_error(tmp_path: Path) -> None:
    error = evaluate(tmp_path / "a0", "score", status=1, rungs=RUNGS)
    assert error["kind"] == "bad_config"
    assert "give it an argument fidelity" in error["message"]
