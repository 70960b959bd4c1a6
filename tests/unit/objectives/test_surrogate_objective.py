from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.finished import SPACE, START_S, campaign, score

from hpo_cluster.cli.main import main
from hpo_cluster.errors import AttemptError, ConfigError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.objectives.regression import LEAST, Evaluations, cross_validation
from hpo_cluster.objectives.surrogate import SurrogateObjective
from hpo_cluster.record.layout import resources_dir
from hpo_cluster.space import Float, Space
from hpo_cluster.trial import State, derive_seed


def test_what_is_not_given_is_the_campaigns(tmp_path: Path) -> None:
    objective = SurrogateObjective(campaign=str(campaign(tmp_path / "first")))
    assert (objective.metric, objective.direction, objective.noise) == ("acc", "maximize", 0.01)
    assert objective.own_space() == SPACE
    assert parse_objective(objective.identity()) == objective


def test_held_out_values_are_predicted_with_conditional_parameters(tmp_path: Path) -> None:
    objective = SurrogateObjective(campaign=str(campaign(tmp_path / "first", 120)), noise=0)
    rng = np.random.default_rng(1)
    held_out = [SPACE.decode(rng.random(3)) for _ in range(50)]
    found = [objective.measure(parameters, 0, 0)["metrics"] for parameters in held_out]
    true = [score(parameters) for parameters in held_out]
    assert np.corrcoef([each["acc"] for each in found], true)[0, 1] > 0.9
    deep = [p.get("depth", 0) for p in held_out]
    assert np.corrcoef([each["seconds"] for each in found], deep)[0, 1] > 0.9
    quality = cross_validation(objective.evaluations, "acc")
    assert 0.02 < quality.rmse < quality.spread / 2
    assert quality.spearman > 0.9
    assert (quality.evaluations, quality.sem) == (120, 0.01)
    assert f"{quality.rmse:.3g}" in objective.notes[0]


def test_a_history_of_chance_predicts_nothing_and_says_so(tmp_path: Path) -> None:
    folder = campaign(tmp_path / "first", 60)
    rng, lines = np.random.default_rng(5), []
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "ended":
            event["value"] = event["metrics"]["acc"] = float(rng.standard_normal())
        lines.append(json.dumps(event))
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    quality = cross_validation(Evaluations.read(folder, "acc"), "acc")
    assert quality.rmse > 0.85 * quality.spread
    assert abs(quality.spearman) < 0.4


def test_noise_and_failures_follow_from_the_seed(tmp_path: Path) -> None:
    calm = SurrogateObjective(campaign=str(campaign(tmp_path / "calm")), noise=0.5)
    objective = SurrogateObjective(campaign=str(campaign(tmp_path / "first", 120, fails_above=1e-2)), noise=0.5)
    good, bad = {"rate": 1e-4, "kind": "plain"}, {"rate": 9e-2, "kind": "plain"}
    first, again, other = (calm.measure(good, seed, 0)["metrics"]["acc"] for seed in (3, 3, 4))
    assert first == again != other
    values = [calm.measure(good, seed, 0)["metrics"]["acc"] for seed in range(300)]
    assert np.std(values) == pytest.approx(0.5, rel=0.2)
    chance = objective.model.predict(bad).failures[State.DIVERGED]
    assert chance > 0.8
    failing = [seed for seed in range(50) if derive_seed(seed, "failed") / 2**31 < chance]
    assert len(failing) > 35
    for seed in failing:
        with pytest.raises(AttemptError, match="diverged") as caught:
            objective.measure(bad, seed, 0)
        assert caught.value.kind == "diverged"


def test_seconds_of_evaluations_that_were_made_elsewhere_are_known(tmp_path: Path) -> None:
    rows = [f"{i / 10},{i},2026-01-01T00:00:00,2026-01-01T00:{10 + i}:00" for i in range(LEAST)]
    (tmp_path / "theirs.csv").write_text("\n".join(["x,value,started_at,ended_at", *rows]) + "\n")
    space, place = "space={x: {low: 0.0, high: 1.0}}", f"campaigns_dir={tmp_path}"
    assert main(["import", str(tmp_path / "theirs.csv"), "campaign=c", space, place]) == 0
    objective = SurrogateObjective(campaign=str(tmp_path / "c"))
    assert [row.seconds for row in objective.evaluations.whole] == [60.0 * (10 + i) for i in range(LEAST)]
    assert 600 <= (objective.seconds({"x": 0.5}) or 0) <= 1080


def test_a_later_evaluation_of_the_campaign_changes_nothing(tmp_path: Path) -> None:
    before = SurrogateObjective(campaign=str(campaign(tmp_path / "first", 30)))
    longer = campaign(tmp_path / "longer", 60)
    (tmp_path / "first" / "events.jsonl").write_text((longer / "events.jsonl").read_text())
    same = SurrogateObjective(campaign=before.campaign, until=before.until)
    assert len(same.evaluations.whole) == 30
    assert len(SurrogateObjective(campaign=before.campaign).evaluations.whole) == 60


def test_rungs_are_predicted_if_the_campaign_had_them(tmp_path: Path) -> None:
    plain, climbed = (
        campaign(tmp_path / "plain"),
        campaign(tmp_path / "climbed", ladder=Ladder("steps", (0.25, 0.5, 1))),
    )
    ladder = Ladder("share", (0.25, 1.0))
    assert "had no rungs" in SurrogateObjective(campaign=str(plain)).fidelity_faults(ladder)[0]
    objective = SurrogateObjective(campaign=str(climbed), noise=0)
    assert objective.fidelity_faults(ladder) == []
    assert objective.start_s == pytest.approx(START_S)
    without = SurrogateObjective(campaign=str(plain)).evaluations
    assert without.start_s == 0
    assert [row.seconds for row in objective.evaluations.timed] == pytest.approx([row.seconds for row in without.timed])
    assert "cannot be looked at" in objective.fidelity_faults(Ladder("steps", (0.25, 1)))[0]
    peak = {"rate": 1e-3, "kind": "plain"}
    early, whole = (objective.measure(peak, 0, 0, share) for share in (0.25, 1.0))
    assert early["metrics"]["acc"] < 0.5 * whole["metrics"]["acc"]
    assert early["metrics"]["seconds"] == pytest.approx(whole["metrics"]["seconds"] / 4, rel=0.01)


def test_faults_name_what_is_accepted(tmp_path: Path) -> None:
    few, none = campaign(tmp_path / "few", LEAST - 1), campaign(tmp_path / "empty", 0)
    for settings, words in (
        ({"campaign": str(tmp_path / "none")}, "is not a campaign"),
        ({"campaign": str(few)}, f"{LEAST} are needed"),
        ({"campaign": str(none)}, f"it has 0 evaluations with a value, and {LEAST} are needed"),
        ({"campaign": str(campaign(tmp_path / "first")), "metric": "siz"}, "did you mean size"),
        ({"campaign": str(tmp_path / "first"), "metric": "size"}, "objective.direction"),
        ({}, "campaign"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            parse_objective({"kind": "surrogate", **settings})
        assert len(caught.value.faults) == 1


def test_a_space_must_lie_in_the_campaigns(tmp_path: Path) -> None:
    objective = SurrogateObjective(campaign=str(campaign(tmp_path / "first")))
    assert objective.space_faults(SPACE) == []
    smaller = {**SPACE.parameters, "rate": Float(1e-4, 1e-2, log=True)}
    assert objective.space_faults(Space(smaller)) == []
    larger = {**SPACE.parameters, "rate": Float(1e-6, 1e-2, log=True), "more": Float(0.0, 1.0)}
    faults = objective.space_faults(Space(larger))
    assert faults[0] == "space: first has no more; its parameters are rate, kind, depth"
    assert "has not searched there" in faults[1]
    (fault,) = objective.space_faults(Space({"kind": SPACE.parameters["kind"]}))
    assert fault == "space: first has rate and depth too; its own space:  space=own"


def test_the_job_gives_the_same_as_the_model(tmp_path: Path) -> None:
    objective = SurrogateObjective(campaign=str(campaign(tmp_path / "first")))
    parameters = {"rate": 1e-3, "kind": "deep", "depth": 4}
    folder = tmp_path / "a0"
    folder.mkdir()
    fields = {"schema": 1, "trial": 0, "attempt": 0, "seed": 3, "parameters": parameters}
    (folder / "params.json").write_text(json.dumps({**fields, "settings": objective.job_settings(Path), "rungs": None}))
    program = resources_dir() / "jobs" / "surrogate.py"
    subprocess.run([sys.executable, program, folder], check=True, capture_output=True, timeout=120)
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"] == objective.measure(parameters, 3, 0)["metrics"]
    assert result["gpu_seconds"] == result["metrics"]["seconds"]
    assert objective.outcome(result).known_sem == 0.01


def test_a_campaign_that_is_gone_can_still_be_described(tmp_path: Path) -> None:
    folder = campaign(tmp_path / "first")
    identity = SurrogateObjective(campaign=str(folder)).identity()
    folder.rename(tmp_path / "elsewhere")
    objective = parse_objective(identity)
    assert "no longer in" in objective.notes[0]
    assert "is not a campaign" in objective.file_faults(Path)[0]
