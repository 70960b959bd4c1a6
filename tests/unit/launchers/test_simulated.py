"""The simulated cluster alone: queue, places, loss, preemption, walltime, rungs, files."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo_cluster.errors import AttemptError
from hpo_cluster.job import EndReason, JobRef, JobState
from hpo_cluster.launchers.base import Submission
from hpo_cluster.launchers.simulated import ClusterSettings, SimulatedCluster
from hpo_cluster.record import clock
from hpo_cluster.record.clock import SimulatedClock
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.rung_files import publish_word

START = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


class Cluster(SimulatedCluster):
    """A cluster with a clock of its own and a folder for attempts."""

    def __init__(self, folder: Path, settings: dict[str, Any], **options: Any) -> None:
        self.folder, self.clock = folder, SimulatedClock(START)
        super().__init__(ClusterSettings(**settings), self.clock, options.pop("evaluate", evaluate), **options)

    def start(self, trial: int, attempt: int = 0, members: int = 1, **more: Any) -> JobRef:
        folders = []
        for number in range(trial, trial + members):
            folder = self.folder / f"t{number}" / f"a{attempt}"
            folder.mkdir(parents=True)
            fields = {"campaign": "c", "trial": number, "attempt": attempt, "token": f"{number}-{attempt}", "seed": 1}
            (folder / "params.json").write_text(
                json.dumps({**fields, "code": "c", "parameters": {"x": number}, **more})
            )
            folders.append(folder)
        line = ("python", "program.py", *map(str, folders))
        with clock.simulated(self.clock):
            return self.submit(Submission(f"{trial}-{attempt}", line, folders[0], folders[0], trials=members))

    def go(self, seconds: float) -> None:
        with clock.simulated(self.clock):
            self.advance(seconds)

    def read(self, trial: int, name: str, attempt: int = 0) -> dict[str, Any]:
        return json.loads((self.folder / f"t{trial}" / f"a{attempt}" / name).read_text())

    def has(self, trial: int, name: str, attempt: int = 0) -> bool:
        return (self.folder / f"t{trial}" / f"a{attempt}" / name).exists()

    def state(self, ref: JobRef) -> tuple[JobState, EndReason | None]:
        status = self.poll([ref])[ref.token]
        return status.state, status.reason


def evaluate(params: Mapping[str, Any], share: float) -> dict[str, Any]:
    if params["parameters"]["x"] == 13:
        raise AttemptError("diverged", "NaN")
    return {"metrics": {"value": share * params["parameters"]["x"]}}


def seconds_between(start: str, end: str) -> float:
    return (datetime.datetime.fromisoformat(end) - datetime.datetime.fromisoformat(start)).total_seconds()


def test_a_job_waits_for_a_place_and_publishes_its_files_at_their_times(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 100, "spread": 0, "waiting_s": 0, "places": 1})
    first, second = cluster.start(1), cluster.start(2)
    cluster.go(60)
    assert (cluster.state(first)[0], cluster.state(second)[0]) == (JobState.RUNNING, JobState.PENDING)
    assert cluster.has(1, "claim") > cluster.has(1, "result.json")
    assert not cluster.has(2, "claim")
    cluster.go(45)
    assert cluster.state(first) == (JobState.ENDED, EndReason.WELL)
    assert cluster.state(second)[0] is JobState.RUNNING
    result = cluster.read(1, "result.json")
    assert (result["metrics"], result["gpu_seconds"]) == ({"value": 1.0}, 100)
    assert (result["started_at"], result["ended_at"]) == ("2030-01-01T00:00:00.000000Z", "2030-01-01T00:01:40.000000Z")
    assert cluster.read(2, "claim")["started_at"] == result["ended_at"]
    assert cluster.next_at == START + datetime.timedelta(seconds=200)
    assert cluster.clock.at == START + datetime.timedelta(seconds=105)


def test_an_evaluation_that_fails_publishes_its_error(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 10})
    ref = cluster.start(13)
    cluster.go(20)
    assert cluster.state(ref) == (JobState.ENDED, EndReason.WELL)
    assert cluster.read(13, "error.json")["kind"] == "diverged"
    assert not cluster.has(13, "result.json")


def test_waits_and_seconds_have_the_distribution_that_was_asked_for(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 1000, "spread": 0.3, "waiting_s": 50})
    for trial in range(100, 500):
        cluster.start(trial)
    cluster.go(20_000)
    results = [cluster.read(trial, "result.json") for trial in range(100, 500)]
    took = [seconds_between(r["started_at"], r["ended_at"]) for r in results]
    waits = [seconds_between("2030-01-01T00:00:00Z", r["started_at"]) for r in results]
    assert np.mean(took) == pytest.approx(1000, rel=0.06)
    assert np.std(np.log(took)) == pytest.approx(0.3, rel=0.12)
    assert np.mean(waits) == pytest.approx(50, rel=0.15)
    assert np.median(waits) == pytest.approx(50 * math.log(2), rel=0.2)


def test_waits_are_drawn_from_those_that_were_seen(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 1}, waits=[2.0, 30.0])
    for trial in range(20, 60):
        cluster.start(trial)
    cluster.go(100)
    waits = {seconds_between("2030-01-01T00:00:00Z", cluster.read(t, "claim")["started_at"]) for t in range(20, 60)}
    assert waits == {2.0, 30.0}


def test_the_objectives_seconds_count_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    for settings, expected in (({"spread": 0}, 7.0), ({"spread": 0, "duration_s": 3}, 3.0)):
        cluster = Cluster(tmp_path / str(expected), settings, seconds=lambda parameters: 7.0 * parameters["x"])
        cluster.start(1)
        cluster.go(10)
        assert cluster.read(1, "result.json")["gpu_seconds"] == expected


def test_jobs_are_lost_with_their_nodes_at_the_rate_that_was_asked_for(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 100, "spread": 0, "failure_rate": 0.3})
    refs = [cluster.start(trial) for trial in range(100, 400)]
    cluster.go(101)
    reasons = [cluster.state(ref)[1] for ref in refs]
    assert reasons.count(EndReason.NODE) / 300 == pytest.approx(0.3, abs=0.07)
    assert reasons.count(EndReason.NODE) + reasons.count(EndReason.WELL) == 300
    assert [cluster.has(t, "result.json") for t in range(100, 400)] == [r is EndReason.WELL for r in reasons]


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_preempted_trial_goes_on_where_it_was_if_it_keeps_checkpoints(tmp_path: Path, checkpoints: bool) -> None:
    settings = {"duration_s": 3600, "spread": 0, "preemptions_per_hour": 1.0, "checkpoints": checkpoints}
    cluster = Cluster(tmp_path, settings)
    trial = next(t for t in range(1, 99) if t != 13 and cluster._uniform({"trial": t, "attempt": 0}, "preempted") > 0.6)
    ref = cluster.start(trial)
    cluster.go(3600 * 0.51)
    assert cluster.state(ref) == (JobState.ENDED, EndReason.PREEMPTED)
    attempt = next(a for a in range(1, 99) if cluster._uniform({"trial": trial, "attempt": a}, "preempted") < 0.3)
    cluster.start(trial, attempt)
    cluster.go(3700)
    lost_s = -math.log(cluster._uniform({"trial": trial, "attempt": 0}, "preempted")) * 3600
    took_s = cluster.read(trial, "result.json", attempt)["gpu_seconds"]
    assert took_s == pytest.approx(3600 - lost_s if checkpoints else 3600, abs=0.01)


def test_a_job_ends_at_its_walltime(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 100, "spread": 0}, walltime_s=60.0)
    ref = cluster.start(1)
    cluster.go(61)
    assert cluster.state(ref) == (JobState.ENDED, EndReason.WALLTIME)
    cluster.start(1, 1)
    cluster.go(61)
    assert cluster.read(1, "result.json", 1)["gpu_seconds"] == 40


def test_a_cancelled_job_leaves_its_place(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 100, "spread": 0, "places": 1})
    first, second = cluster.start(1), cluster.start(2)
    cluster.go(10)
    with clock.simulated(cluster.clock):
        cluster.cancel(first)
    cluster.go(101)
    assert cluster.state(first) == (JobState.ENDED, EndReason.CANCELLED)
    assert cluster.state(second) == (JobState.ENDED, EndReason.WELL)
    assert not cluster.has(1, "result.json")


def test_trials_that_share_a_job_end_it_together(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"spread": 0}, seconds=lambda p: 10.0 * p["x"], trials_per_node=2)
    ref = cluster.start(1, members=2)
    cluster.go(15)
    assert (cluster.has(1, "result.json"), cluster.has(2, "result.json")) == (True, False)
    assert cluster.state(ref)[0] is JobState.RUNNING
    cluster.go(10)
    assert cluster.state(ref) == (JobState.ENDED, EndReason.WELL)
    assert cluster.has(2, "result.json")


def test_each_job_starts_once(tmp_path: Path) -> None:
    rungs = {"kind": "share", "shares": [0.25, 1], "goal": 0, "first": 0, "linger_s": 1}
    cluster = Cluster(tmp_path, {"spread": 0}, seconds=lambda parameters: 110.0, start_s=10.0)
    cluster.start(1, rungs=rungs)
    cluster.start(2)
    cluster.go(34.9)
    assert not cluster.has(1, "rung-0.json")
    cluster.go(2)
    assert cluster.read(1, "rung-0.json")["gpu_seconds"] == 35
    cluster.go(2)  # nobody said anything: paused
    cluster.start(1, 1, rungs={**rungs, "goal": 1})
    cluster.start(3, turn=2)
    cluster.go(110)
    took_s = [cluster.read(trial, "result.json", attempt)["gpu_seconds"] for trial, attempt in ((1, 1), (2, 0), (3, 0))]
    assert took_s == [85, 110, 100]


def test_a_job_waits_at_a_rung_for_the_word(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, {"duration_s": 100, "spread": 0})
    rungs = {"kind": "share", "shares": [0.25, 0.5, 1], "goal": 0, "first": 0, "linger_s": 20}
    ref = cluster.start(4, rungs=rungs)
    cluster.go(25)
    assert cluster.read(4, "rung-0.json")["metrics"] == {"value": 1.0}
    assert cluster.is_listening
    files = AttemptLayout(tmp_path / "t4" / "a0")
    publish_word(files, 0, go_on=True)
    cluster.go(25)
    assert cluster.read(4, "rung-1.json")["metrics"] == {"value": 2.0}
    assert cluster.state(ref)[0] is JobState.RUNNING
    cluster.go(21)  # nobody says anything
    cluster.go(1)
    result = cluster.read(4, "result.json")
    assert (result["rung"], result["metrics"]) == (1, {"value": 2.0})
    assert not cluster.is_listening
    again = {**rungs, "goal": 2}
    cluster.start(4, 1, rungs=again)
    cluster.go(51)
    result = cluster.read(4, "result.json", 1)
    assert ("rung" in result, result["metrics"], result["gpu_seconds"]) == (False, {"value": 4.0}, 50)
