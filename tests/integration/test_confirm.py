"""`hpo-cluster confirm`: a driver that is killed loses nothing and repeats nothing, and the campaign is what it was."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import drivers
from support.journals import simulated_campaign
from support.simulated import Outcome

from hpo_cluster.cli.completion import candidates
from hpo_cluster.cli.main import main
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import load_history
from hpo_cluster.record.overview import overview
from hpo_cluster.record.status import campaign_status
from hpo_cluster.report import read_campaign
from hpo_cluster.space import Float, Space
from hpo_cluster.trial import State, trial_label

TWICE = {"confirm": {"top": 2, "replicates": 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished campaign of bo, on its own."""
    directory = tmp_path_factory.mktemp("finished") / "c"
    assert drivers.run(directory, sleep=0, optimizer="bo", optimizer_settings={"initial": 2}) == 0
    return directory


@pytest.fixture
def campaign(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "c")
    shutil.copy(finished.with_name("c.log"), tmp_path / "c.log")
    return tmp_path / "c"


def of_bo(directory: Path, **options: object) -> int:
    return drivers.run(directory, sleep=0, optimizer="bo", optimizer_settings={"initial": 2}, **options)


def confirmed(directory: Path) -> list[tuple[object, ...]]:
    trials = Record.read(directory / "events.jsonl").confirmations
    return [(t.number, t.parameters, t.value, t.seed, str(t.state), t.info) for t in trials]


@pytest.mark.parametrize("later", [1, 4, 7, 11])
def test_a_driver_that_is_killed_goes_on(campaign: Path, later: int) -> None:
    begun = len((campaign / "events.jsonl").read_text().splitlines())
    before = campaign_status(campaign)
    assert before["confirmation"] is None
    assert before["confirmation_cost"]["evaluations"] == 9
    evaluations = Counter(drivers.evaluations(campaign))
    assert of_bo(campaign, **TWICE, kill_at=begun + later, when="after") == -9
    assert of_bo(campaign, **TWICE) == 0
    found = campaign_status(campaign)
    assert found["confirmation"]["done"] == found["confirmation"]["wanted"] == 4
    assert found["state"] == "finished"
    again = Counter(drivers.evaluations(campaign)) - evaluations
    assert sorted(again.values()) == [2, 2], "two configurations, twice each"
    for name in ("best", "done", "counts", "budget"):
        assert found[name] == before[name]


def test_more_replicates_add_the_missing_ones_and_the_campaign_is_what_it_was(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain" / "c"
    shutil.copytree(campaign, plain)
    assert of_bo(campaign, **TWICE) == 0
    first, events = confirmed(campaign), len((campaign / "events.jsonl").read_text().splitlines())
    assert of_bo(campaign, **TWICE) == 0
    assert confirmed(campaign) == first
    assert len((campaign / "events.jsonl").read_text().splitlines()) == events + 2, "a start and an end, no more"
    assert of_bo(campaign, confirm={"top": 2, "replicates": 3}) == 0
    assert confirmed(campaign)[:4] == first
    assert len(confirmed(campaign)) == 6

    # it goes on as it would have without a confirmation
    for directory in (campaign, plain):
        assert of_bo(directory, operation={"budget": 6}) == 0
    assert [row for row in drivers.trials(campaign) if row[0] >= 0] == drivers.trials(plain)
    row = overview(campaign)
    assert (row["done"], row["best"]) == (6, campaign_status(campaign)["best"]["value"])
    main(["verify", str(campaign)])
    out = capsys.readouterr().out
    assert "ok     12 seeds of trials follow" in out
    assert "ok     6 proposals derived again" in out
    history = load_history(campaign)
    assert history["trial"].tolist() == [-7, -6, -5, -4, -3, -2, 0, 1, 2, 3, 4, 5]
    assert (history["origin"] == "confirmation").sum() == 6


def test_a_campaign_with_confirmations_can_be_repaired(campaign: Path) -> None:
    assert of_bo(campaign, **TWICE) == 0
    before = confirmed(campaign)
    path = campaign / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"confirmation"' in line)
    path.write_text("".join(lines[:at]) + "damaged\n")
    assert main(["repair", str(campaign)]) == 0
    assert of_bo(campaign, **TWICE) == 0
    assert sorted(confirmed(campaign), key=str) == sorted(before, key=str)


def test_an_unfinished_campaign_proposes_nothing_for_a_confirmation(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    assert drivers.run(directory, sleep=0, operation={"budget": 2}) == 0
    assert drivers.run(directory, sleep=0, operation={"budget": 8}, confirm={"top": 1, "replicates": 2}) == 0
    status = campaign_status(directory)
    assert (status["state"], status["reason"], status["done"], status["budget"]) == ("stopped", "confirmed", 2, 8)
    assert status["confirmation"]["done"] == 2


def test_a_confirmation_that_leaves_budget_does_not_say_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "objective=synthetic", "optimizer=random", "poll_s=0.1", "campaign=x", "budget=2"]) == 0
    capsys.readouterr()
    assert main(["confirm", "campaigns/x", "top=1", "replicates=1", "budget=4"]) == 0
    out = capsys.readouterr().out
    assert "x: stopped (confirmed)" in out
    assert "hpo-cluster resume campaigns/x" in out


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["objective=synthetic", "objective.noise=1", "optimizer=random", "poll_s=0.1", "campaign=x"]
    assert main(["run", *quick, "budget=3"]) == 0
    assert main(["status", "campaigns/x"]) == 0
    out = capsys.readouterr().out
    assert "confirm    9 evaluations with new seeds" in out
    assert "hpo-cluster confirm" in out
    assert main(["confirm", "campaigns/x", "top=0", "trials=[a]", "replicates=x"]) == 2
    message = capsys.readouterr().err
    assert "4 faults" in message
    for text in ("top=0: accepted", "replicates=x: accepted", "trials=[a]: accepted", "give one of the two"):
        assert text in message
    assert main(["confirm", "campaigns/x", "trials=7", "replicats=2"]) == 2
    message = capsys.readouterr().err
    assert "t0007: only a trial" in message
    assert "replicats: is not a key" in message
    assert main(["confirm", "campaigns/x", "replicate=7"]) == 2
    assert "[replicates=...]" in capsys.readouterr().err
    assert main(["confirm", "campaigns/x", "top=1", "dry_run=true"]) == 0
    assert "3 evaluations missing; nothing was added" in capsys.readouterr().out
    assert main(["confirm", "campaigns/x", "top=2", "replicates=2", "workers=4"]) == 0
    out = capsys.readouterr().out
    assert "confirmed  4 of 4 evaluations with new seeds, outside the budget" in out
    assert "behind the best" in out
    record = Record.read(Path("campaigns/x/events.jsonl"))
    assert {trial.state for trial in record.confirmations} == {State.COMPLETED}
    assert record.starts[-1]["operation"]["workers"] == 4
    assert main(["report", "campaigns/x"]) == 0
    assert "## Confirmed with new seeds" in Path("campaigns/x/report/report.md").read_text()
    assert "Trials: 3 completed.\n" in Path("campaigns/x/report/report.md").read_text()
    assert main(["verify", "campaigns/x"]) == 0
    assert main(["describe", "campaigns/x"]) == 0
    best = campaign_status("campaigns/x")["confirmation"]["trials"][0]
    described = capsys.readouterr().out
    assert "evaluated again with new seeds (4 of 4 evaluations outside the budget)" in described
    assert f"{best['mean']:.4g}"[:4] in described
    assert main(["why", "campaigns/x", "c0001"]) == 0
    assert "origin confirmation" in capsys.readouterr().out
    assert "c0001 " in candidates("hpo-cluster why campaigns/x c")
    assert {"top=", "replicates="} <= set(candidates("hpo-cluster confirm campaigns/x "))


def test_rungs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = """objective.command='echo "{{\\"value\\": {x}, \\"share\\": {fidelity}}}"'"""
    space, fidelity = "space={x: {low: 0.0, high: 1.0}}", ["fidelity=share", "optimizer=asha", "budget=3"]
    assert main(["run", "objective=command", command, space, *fidelity, "poll_s=0.1", "campaign=r"]) == 0
    assert main(["confirm", "campaigns/r", "top=1", "replicates=2"]) == 0
    record = Record.read(Path("campaigns/r/events.jsonl"))
    assert [trial.metrics["share"] for trial in record.confirmations] == [1.0, 1.0], "a whole evaluation each"
    assert main(["verify", "campaigns/r"]) == 0


def lucky(folder: Path, trials: int) -> int:
    """Write a campaign of noisy values with a bowl at x1 = 2, and one lucky value far from it; return its trial."""
    space = Space({"x1": Float(-5.0, 5.0), "x2": Float(-5.0, 5.0)})
    objective = {"kind": "synthetic", "function": "himmelblau", "direction": "maximize", "noise": 0.1}
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.5, trials)

    def outcome(number: int, parameters: Mapping[str, Any]) -> Outcome:
        if number == 1:
            return "completed", 3.0
        return "completed", float(noise[number] - (parameters["x1"] - 2) ** 2 / 4)

    simulated_campaign(folder, "sobol", space, outcome, evaluations=trials, objective=objective)
    return 1


def dry(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> list[str]:
    """Return the labels of the trials that would be confirmed."""
    capsys.readouterr()
    assert main(["confirm", str(folder), "dry_run=true", *words]) == 0
    return capsys.readouterr().out.partition(":")[0].split(", ")


def test_the_best_are_those_that_the_campaign_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    winner = trial_label(lucky(tmp_path / "c", 32))
    status = campaign_status(tmp_path / "c")
    assert trial_label(status["best"]["trial"]) == winner
    recommended = read_campaign(tmp_path / "c").recommended
    assert recommended is not None
    assert recommended != status["best"]["trial"]
    labels = dry(capsys, tmp_path / "c", "top=3")
    assert labels[0] == trial_label(recommended)
    assert winner not in labels
    assert dry(capsys, tmp_path / "c", "trials=[1,0]") == [winner, "t0000"]
    assert len(dry(capsys, tmp_path / "c", "top=99")) == 32


def test_few_values_are_ranked_as_they_were_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    winner = trial_label(lucky(tmp_path / "c", 3))
    assert dry(capsys, tmp_path / "c", "top=1") == [winner]
