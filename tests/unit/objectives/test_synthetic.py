from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, SEVERAL
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.objectives.synthetic import SyntheticObjective, fails, moved, noise_of
from hpo_cluster.record.layout import resources_dir
from hpo_cluster.space import Float, Space

CENTRE = FUNCTIONS["himmelblau"].space.decode(np.array([0.5, 0.5]))


def evaluate(
    directory: Path, *, seed: int = 3, attempt: int = 0, status: int = 0, rungs: dict | None = None, **settings: object
) -> dict:
    objective = SyntheticObjective(**settings)
    directory.mkdir()
    fields = {"schema": 1, "trial": 0, "attempt": attempt, "seed": seed, "parameters": CENTRE}
    params = {**fields, "settings": objective.job_settings(Path), "rungs": rungs}
    (directory / "params.json").write_text(json.dumps(params))
    program = resources_dir() / "jobs" / "synthetic.py"
    done = subprocess.run([sys.executable, program, directory], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    return json.loads((directory / ("error.json" if status else "result.json")).read_text())


def test_the_value_is_the_functions(tmp_path: Path) -> None:
    result = evaluate(tmp_path / "a0")
    assert result["metrics"] == {"value": FUNCTIONS["himmelblau"].evaluate(CENTRE)}
    outcome = SyntheticObjective().outcome(result)
    assert outcome.value == result["metrics"]["value"]


def test_noise_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, retry = (evaluate(tmp_path / f"a{n}", attempt=n, noise=0.5) for n in (0, 1))
    assert first["metrics"] == retry["metrics"]
    assert first["metrics"]["value"] == pytest.approx(first["metrics"]["exact"] + 0.5 * noise_of(3))
    assert first["sems"] == {"value": 0.5}
    draws = [noise_of(seed) for seed in range(2000)]
    assert np.mean(draws) == pytest.approx(0, abs=0.07)
    assert np.std(draws) == pytest.approx(1, abs=0.07)


def test_injected_failures_are_repeatable_and_a_retry_may_succeed(tmp_path: Path) -> None:
    outcomes = [[fails(seed, attempt, 0.3) for attempt in range(3)] for seed in range(1000)]
    assert np.mean(outcomes) == pytest.approx(0.3, abs=0.04)
    seed = next(seed for seed, (first, second, _) in enumerate(outcomes) if first and not second)
    error = evaluate(tmp_path / "a0", seed=seed, failure_rate=0.3, status=1)
    assert (error["kind"], error["message"]) == ("code", "injected failure")
    assert "value" in evaluate(tmp_path / "a1", seed=seed, attempt=1, failure_rate=0.3)["metrics"]
    assert not any(fails(seed, 0, 0.0) for seed in range(100))
    assert all(fails(seed, 0, 1.0) for seed in range(100))


def test_it_takes_as_long_as_asked(tmp_path: Path) -> None:
    result = evaluate(tmp_path / "a0", duration_s=0.3)
    assert result["seconds"]["evaluate"] >= 0.3


def test_a_job_starts_without_the_heavy_packages(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    evaluate(tmp_path / "a0")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # 0.3 s is the aim; twice that leaves room for a slow machine and is far below what torch or pandas alone cost
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    program = str(resources_dir() / "jobs" / "synthetic.py")
    modules = subprocess.run([sys.executable, "-c", code, program], capture_output=True, text=True, check=True).stdout
    assert "hpo_cluster.objectives.worker" in modules.split()
    assert not {"torch", "pandas", "scipy", "matplotlib", "hydra"} & set(modules.split())


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_brings_its_space(name: str) -> None:
    objective = SyntheticObjective(function=name)
    assert objective.space_faults(objective.own_space()) == []
    assert objective.direction == FUNCTIONS[name].direction
    assert parse_objective(objective.model_dump(mode="json")) == objective


def test_faults() -> None:
    with pytest.raises(ConfigError, match="himmelblau"):
        parse_objective({"kind": "synthetic", "function": "himmelblaw"})
    with pytest.raises(ConfigError) as caught:
        parse_objective({"kind": "synthetic", "noise": -1, "failure_rate": 2, "duration_s": "x"})
    assert len(caught.value.faults) == 3
    faults = SyntheticObjective().space_faults(Space({"z": Float(0, 1)}))
    assert len(faults) == 3
    x, y = FUNCTIONS["himmelblau"].space.names
    narrower = Space({x: Float(0, 1), y: Float(0, 1)})
    assert SyntheticObjective().space_faults(narrower) == []
    wider = Space({x: Float(0, 1), y: Float(-50, 1)})
    assert SyntheticObjective().space_faults(wider) == [
        f"space.{y}: himmelblau is not defined there: -50.0 is outside -5 to 5"
    ]


def test_an_early_look_is_biased_and_a_late_one_less(tmp_path: Path) -> None:
    whole = FUNCTIONS["himmelblau"].evaluate(CENTRE)
    shares = [1 / 9, 1 / 3, 1.0]
    seen = []
    for goal, folder in enumerate("abc"):
        rungs = {"kind": "share", "shares": shares, "goal": goal, "first": 0, "linger_s": 0}
        result = evaluate(tmp_path / folder, rungs=rungs)
        assert result.get("rung", 2) == goal
        seen.append(abs(result["metrics"]["value"] - whole))
    assert seen[0] > seen[1] > seen[2] == 0
    several = {name: CENTRE.get(name, 0.5) for name in SEVERAL["zdt1"].space.names}
    assert moved(SEVERAL["zdt1"].space, several, 1.0) == several
