"""The bundled fine-tuning as a campaign on real schedulers, by the command line as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from clusters import Cluster

from hpo_cluster import load_history
from hpo_cluster.journal import read_events

MAIN = "import sys; from hpo_cluster.cli import main; sys.exit(main())"


@pytest.mark.only("slurm")
def test_twelve_fine_tunings(cluster: Cluster) -> None:
    folder = cluster.folder()
    settings = [f"launcher.{key}={value}" for key, value in cluster.settings().items() if key != "kind"]
    command = ["run", f"launcher={cluster.kind}", *settings, "campaign=real", f"campaigns_dir={folder}"]
    cluster.as_user(cluster.python, "-c", MAIN, *command, "budget=12", "workers=2", timeout=600)
    directory = Path(folder) / "real"
    history = load_history(directory)
    assert list(history.trial) == list(range(12))
    assert (history.state == "completed").all()
    assert (history.attempts == 1).all()
    assert history.value.between(0, 1).all()
    assert history.value.max() > history.value.min()
    assert history.job.nunique() == 12
    assert sum(event["event"] == "submitted" for event in read_events(directory / "events.jsonl")) == 12
