"""Campaigns on real schedulers by the command line, as a user types it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from clusters import Cluster, kill, wait

from hpo_cluster import load_history
from hpo_cluster.driver.notify import HANDED_OVER
from hpo_cluster.record.journal import read_events

MAIN = "import sys; from hpo_cluster.cli.main import main; sys.exit(main())"


def command(cluster: Cluster, directory: Path) -> list[str | Path]:
    """The command line that runs a campaign in that directory."""
    settings = [f"launcher.{key}={value}" for key, value in cluster.settings().items() if key != "kind"]
    campaign = [f"campaign={directory.name}", f"campaigns_dir={directory.parent}"]
    return [cluster.python, "-c", MAIN, "run", f"launcher={cluster.kind}", *settings, *campaign]


def test_six_fine_tunings(cluster: Cluster) -> None:
    directory = cluster.folder() / "real"
    cluster.as_user(*command(cluster, directory), "budget=6", "workers=2", timeout=900)
    history = load_history(directory)
    assert list(history.trial) == list(range(6))
    assert (history.state == "completed").all()
    assert (history.attempts == 1).all()
    assert history.value.between(0, 1).all()
    assert history.value.max() > history.value.min()
    assert history.job.nunique() == 6
    assert sum(event["event"] == "submitted" for event in read_events(directory / "events.jsonl")) == 6


def test_drivers_that_are_jobs_follow_each_other(cluster: Cluster) -> None:
    folder = cluster.folder()
    directory, gate = folder / "driven", folder / "gate"

    def events(kind: str) -> list[dict[str, Any]]:
        path = directory / "events.jsonl"
        return [event for event in read_events(path) if event["event"] == kind] if path.exists() else []

    def driver(number: int) -> dict[str, Any]:
        return dict(wait(lambda: events("started")[number - 1 :], 90, f"driver {number}")[0])

    study = ["objective=synthetic", "optimizer=random", "budget=4", "workers=2"]
    closed = f'launcher.setup=["until test -e {gate}; do sleep 0.2; done"]'  # no trial ends before the gate opens
    by_hand = cluster.start_as_user(*command(cluster, directory), *study, closed, stdout=subprocess.DEVNULL)
    wait(lambda: len(events("submitted")) == 2, 60, "the first two jobs")
    by_hand.terminate()
    by_hand.wait(timeout=60)

    job = cluster.submit_driver(directory)
    driver(2)
    cluster.warn(job)
    followed = driver(3)  # submitted by the job that was warned
    assert [event["reason"] for event in events("stopped")] == ["ended by SIGTERM", HANDED_OVER]
    kill(followed["pid"])
    wait(lambda: not cluster.jobs("hpo-driver"), 60, "the end of the killed driver's job")
    cancelled = cluster.submit_driver(directory)
    driver(4)
    cluster.cancel(cancelled)
    wait(lambda: not cluster.jobs("hpo-driver"), 60, "the end of the cancelled driver's job, which nothing follows")
    cluster.submit_driver(directory)
    driver(5)
    gate.touch()
    wait(lambda: events("stopped")[-1]["reason"] == "finished", 120, "the end of the campaign")
    history = load_history(directory)
    assert list(history.state) == ["completed"] * 4
    assert (history.attempts == 1).all()
    assert len(events("submitted")) == 4
