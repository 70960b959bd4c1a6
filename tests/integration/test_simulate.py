"""Campaigns on a simulated cluster: driver, journal, optimizers and command line are real."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from support.finished import campaign

from hpo_cluster import load_history
from hpo_cluster.cli.command_table import SIMULATION_KEYS
from hpo_cluster.cli.completion import candidates
from hpo_cluster.cli.config.compose import compose
from hpo_cluster.cli.config.spec import campaign_spec
from hpo_cluster.cli.main import main
from hpo_cluster.driver.simulate import SimulationSettings, simulate
from hpo_cluster.errors import HpoClusterError
from hpo_cluster.launchers import simulated
from hpo_cluster.objectives.regression import cross_validation
from hpo_cluster.objectives.surrogate import SurrogateObjective
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.report.simulation import Run, run_of

EXACT = {"proposal_scale": 0, "spread": 0}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def played(name: str, *words: str, **settings: object) -> Run:
    chosen = [] if any(word.startswith("optimizer=") for word in words) else ["optimizer=random"]
    spec = campaign_spec(compose(["objective=synthetic", *chosen, f"campaign={name}", *words]))
    for _ in simulate(spec, SimulationSettings(**{**EXACT, **settings})):
        pass
    return run_of(spec.dir)


def test_the_wall_time_follows_from_workers_and_seconds() -> None:
    for workers in (1, 4, 8):
        run = played(f"w{workers}", "budget=24", f"workers={workers}", duration_s=3600)
        assert run.wall_s == pytest.approx(24 / workers * 3600, rel=0.01)
        assert run.hours == pytest.approx(24, rel=0.01)
        assert 0.99 < run.busy <= 1
        assert run.ended == 24
    history = load_history("campaigns/w8")
    assert (history["state"] == "completed").all()
    began = datetime.datetime.fromisoformat(history["started_at"].min())
    assert abs(began - clock.now()) < datetime.timedelta(minutes=5)
    assert datetime.datetime.fromisoformat(history["ended_at"].max()) > clock.now() + datetime.timedelta(hours=2)


def test_waits_make_workers_idle() -> None:
    run = played("c", "budget=200", "workers=4", duration_s=600, waiting_s=600)
    assert run.busy == pytest.approx(0.5, abs=0.06)
    limited = played("l", "budget=40", "workers=8", duration_s=600, places=2)
    assert limited.wall_s == pytest.approx(20 * 600, rel=0.01)


def test_proposals_are_those_of_a_real_campaign() -> None:
    played("simulated", "budget=6", "workers=2", "optimizer=lhs", duration_s=10)
    assert main(["run", "objective=synthetic", "optimizer=lhs", "campaign=real", "budget=6", "poll_s=0.1"]) == 0
    columns = ["x1", "x2", "value", "seed"]
    simulated, real = (load_history(f"campaigns/{name}")[columns] for name in ("simulated", "real"))
    assert simulated.equals(real)


def test_the_same_simulation_gives_the_same_journal() -> None:
    def events(name: str) -> list[object]:
        played(name, "budget=12", "workers=3", failure_rate=0.3, preemptions_per_hour=2, start="2031-01-01T00:00")
        lines = Path(f"campaigns/{name}/events.jsonl").read_text().splitlines()
        kept = ("seq", "at", "event", "trial", "attempt", "value", "state", "node")
        return [{key: event.get(key) for key in kept} for event in map(json.loads, lines)]

    assert events("a") == events("b")


def test_lost_and_preempted_trials_are_tried_again_by_the_real_driver() -> None:
    words = ("budget=40", "workers=8", "retries=5", "exclude_node_after=0")
    calm = played("calm", *words, duration_s=3600)
    lossy = played("lossy", *words, duration_s=3600, failure_rate=0.2)
    record = Record.read(Path("campaigns/lossy/events.jsonl"))
    kinds = [a.error["kind"] for trial in record.rows for a in trial.attempts if a.error]
    assert set(kinds) == {"node"}
    assert lossy.lost == len(kinds) >= 4
    assert calm.lost == 0
    assert lossy.ended == 40
    assert lossy.hours > calm.hours + 1
    kept = played("kept", *words, duration_s=3600, preemptions_per_hour=1.0)
    gone = played("gone", *words, duration_s=3600, preemptions_per_hour=1.0, checkpoints=False)
    assert gone.lost > kept.lost > 20
    assert kept.hours == pytest.approx(40, rel=0.02)
    assert gone.hours > 50
    assert kept.failed == gone.failed == 0


def test_rungs_cost_less(capsys: pytest.CaptureFixture[str]) -> None:
    whole = played("whole", "budget=27", "workers=4", duration_s=900)
    rungs = ("fidelity=share", "optimizer=asha", "budget=9", "workers=4")
    climbed = played("climbed", *rungs, duration_s=900)
    history = load_history("campaigns/climbed")
    assert set(history["state"]) == {"completed", "paused"}
    assert history["rung"].max() == 2
    assert (climbed.failed, climbed.lost) == (0, 0)
    assert climbed.paused == (history["state"] == "paused").sum()
    assert climbed.hours == pytest.approx(9 * 0.25, rel=0.1)
    assert len(history) > 12
    assert climbed.hours < whole.hours / 2


def test_jobs_that_go_on_wait_once() -> None:
    words = ("budget=24", "workers=2")
    alone = played("alone", *words, duration_s=600, waiting_s=300)
    shared = played("shared", *words, "launcher.trials_per_job=6", duration_s=600, waiting_s=300)
    history = load_history("campaigns/shared")
    assert history["job"].nunique() == 4
    assert (history["state"] == "completed").all()
    assert shared.hours == pytest.approx(alone.hours, rel=0.01)
    assert shared.busy > alone.busy + 0.15
    side_by_side = ("launcher=slurm", "launcher.gpus_per_trial=0", "launcher.trials_per_node=2")
    played("both", *words, *side_by_side, "launcher.trials_per_job=6", duration_s=600, waiting_s=300)
    history = load_history("campaigns/both")
    assert history["job"].nunique() == 2
    assert (history["state"] == "completed").all()


def test_jobs_that_go_on_end_when_nothing_is_left_or_their_time_is_over() -> None:
    words = ("budget=5", "workers=2", "launcher.trials_per_job=9", "launcher.walltime_min=60")
    run = played("short", *words, duration_s=1200)
    history = load_history("campaigns/short")
    assert (history["attempts"] == 1).all()  # none was lost at its walltime: two fit into a job
    assert history["job"].nunique() == 3
    assert run.wall_s == pytest.approx(3600, rel=0.01)


def test_rungs_in_jobs_that_go_on() -> None:
    words = ("fidelity=share", "optimizer=asha", "budget=9", "workers=2")
    alone = played("alone", *words, duration_s=900, waiting_s=300)
    shared = played("shared", *words, "launcher.trials_per_job=50", duration_s=900, waiting_s=300)
    record = Record.read(Path("campaigns/shared/events.jsonl"))
    assert len({a.job_id for trial in record.rows for a in trial.attempts}) == 2
    assert (shared.failed, shared.lost) == (0, 0)
    assert shared.wall_s < alone.wall_s - 1800


def test_launch_hours_and_walltime_hold_on_the_simulated_clock() -> None:
    words = ("budget=4", "workers=2", "launcher.window=[19:00-07:00]", "launcher.walltime_min=120")
    start = datetime.datetime.now().astimezone().replace(month=6, day=15, hour=12, minute=0, second=0, microsecond=0)
    run = played("night", *words, duration_s=3600, start=start)
    assert 7 * 3600 <= run.wall_s - 2 * 3600 <= 7 * 3600 + 300
    long = played("long", "budget=2", "launcher.walltime_min=60", duration_s=5400)
    assert (long.lost, long.failed) == (2, 0)  # each once, and goes on from its checkpoint
    assert long.hours == pytest.approx(3.0, rel=0.01)


def test_a_command_compares_workers_and_leaves_campaigns_that_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "-m", "objective=synthetic", "optimizer=random", "campaign=plan", "budget=16", "workers=1,4"]
    assert main([*words, "simulate.repeats=3", "simulate.duration_s=600"]) == 0
    out = capsys.readouterr().out
    assert "workers=1" in out
    assert "2.7 h" in out
    folder = Path("campaigns/simulated/plan")
    assert out.rstrip().endswith(f"hpo-cluster compare {folder}")
    rows = list(csv.DictReader((folder / "simulation.csv").open()))
    assert [row["group"] for row in rows] == ["workers=1"] * 3 + ["workers=4"] * 3
    walls = {
        label: np.mean([float(r["wall_s"]) for r in rows if r["group"] == label])
        for label in ("workers=1", "workers=4")
    }
    assert walls["workers=1"] == pytest.approx(4 * walls["workers=4"], rel=0.15)
    values = {label: [r["value"] for r in rows if r["group"] == label] for label in walls}
    assert len(set(values["workers=1"])) == 3  # a seed each
    assert values["workers=1"] == values["workers=4"]  # random proposals do not depend on the workers
    assert (folder / "simulation.png").stat().st_size > 10_000
    assert main(["status", str(folder / "workers-4-s1")]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert "hpo-cluster confirm" not in shown  # which is refused
    assert main(["describe", str(folder / "workers-4-s1")]) == 0
    assert "The campaign was simulated" in capsys.readouterr().out
    assert main(["report", str(folder / "workers-4-s1")]) == 0
    assert main(["ls", str(folder)]) == 0
    assert main(["resume", str(folder / "workers-4-s1"), "budget=20"]) == 2
    assert "simulated campaign" in capsys.readouterr().err
    assert main([*words, "simulate.repeats=1"]) == 0  # in place of the earlier ones
    assert sorted(path.parent.name for path in folder.glob("*/campaign.yaml")) == ["workers-1-s0", "workers-4-s0"]


def test_every_fault_is_named_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "optimizer=nosuch", "objective=synthetic", "simulate.repeat=3", "simulate.failure_rate=2"]
    assert main(words) == 2
    err = capsys.readouterr().err
    for part in ("optimizer=nosuch", "did you mean simulate.repeats", "simulate.failure_rate=2: must be at most 1"):
        assert part in err
    assert "hpo-cluster simulate --help" in err
    assert main(["simulate", "baseline=true"]) == 2
    err = capsys.readouterr().err
    for part in ("objective=lora: only a job can", "baseline=True"):
        assert part in err
    assert not Path("campaigns").exists()


def test_a_simulation_that_would_not_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "MOST_ATTEMPTS", 30)
    with pytest.raises(HpoClusterError, match="never came to its end"):
        played("endless", "budget=1", duration_s=36_000, preemptions_per_hour=2, checkpoints=False)


def test_a_finished_campaign_is_simulated_with_its_own_seconds_and_waits(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(Path("campaigns/first"), 60)
    words = ["simulate", "objective=surrogate", "objective.campaign=campaigns/first", "optimizer=random", "budget=20"]
    assert main([*words, "workers=1", "simulate.repeats=2", "campaign=plan"]) == 0
    out = capsys.readouterr().out
    quality = cross_validation(SurrogateObjective(campaign="campaigns/first").evaluations, "acc")
    said = f"of acc is {quality.rmse:.3g}"
    assert said in out
    folder = Path("campaigns/simulated/plan/plan-s0")
    history = load_history(folder)
    seconds = history["metric.seconds"]
    assert 10 <= seconds.min() < seconds.max() <= 50  # of the campaign's
    run = run_of(folder)
    assert run.wall_s == pytest.approx(seconds.sum() + 20 * 3, rel=0.1)  # each has waited for 3 seconds
    assert main(["describe", str(folder)]) == 0
    assert said in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert said in (folder / "report" / "report.md").read_text()


def test_help_and_the_tab_key_know_its_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(SIMULATION_KEYS) == set(SimulationSettings.model_fields)
    assert "simulate.failure_rate=" in candidates("hpo-cluster simulate optimizer=bo simulate.f")
    assert main(["simulate", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"simulate.{key}=" in out for key in SIMULATION_KEYS)


def test_what_is_not_simulated_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    precious = Path("campaigns/simulated/plan/precious")
    precious.mkdir(parents=True)
    words = ["simulate", "objective=synthetic", "optimizer=random", "campaign=plan", "budget=2", "simulate.repeats=1"]
    assert main(words) == 2
    assert "holds something else" in capsys.readouterr().err
    assert precious.is_dir()


def test_every_view_says_that_a_campaign_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "objective=synthetic", "optimizer=random", "budget=2", "campaign=c", "simulate.repeats=2"]
    assert main(words) == 0
    assert main(["run", *words[1:4], "campaign=real", "poll_s=0.05"]) == 0
    simulated, real = "campaigns/simulated/c/c-s0", "campaigns/real"
    capsys.readouterr()
    for view in ("status", "watch"):
        assert main([view, simulated]) == 0
        assert "(simulated cluster and clock)" in capsys.readouterr().out.splitlines()[0]
        assert main([view, real]) == 0
        assert "simulated" not in capsys.readouterr().out
    assert main(["status", simulated, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["simulated"] is True
    for folder, times in ((simulated, 1), (real, 0)):
        assert main(["report", folder]) == 0
        for page in ("report.md", "report.html"):
            text = Path(folder, "report", page).read_text(encoding="utf-8")
            assert text.count("The campaign was simulated: its jobs, nodes, times") == times
    capsys.readouterr()
    assert main(["ls"]) == 0
    out = capsys.readouterr().out
    assert "simulated" not in out.partition("more campaigns")[0]
    assert "more campaigns:  hpo-cluster ls campaigns/simulated/c" in out
    for folder, names in (("campaigns/simulated", ["c/c-s0", "c/c-s1"]), ("campaigns/simulated/c", ["c-s0", "c-s1"])):
        assert main(["ls", folder]) == 0
        rows = capsys.readouterr().out.splitlines()[1:]
        assert [row.split()[0] for row in rows] == names
        assert all("finished, simulated" in row for row in rows)


def test_nobody_is_told_to_resume_what_was_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    played("c", "budget=8", "workers=2", "retries=0", "stop_after_failures=2", failure_rate=1.0)
    for view in ("status", "watch"):
        assert main([view, "campaigns/c"]) == 0
        out = capsys.readouterr().out
        assert "simulated" in out
        assert "hpo-cluster resume" not in out
