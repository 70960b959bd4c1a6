"""A submission that outlives its driver and acts after the next driver has looked: claimed once, evaluated once.

The scheduler here is a stand-in whose only purpose is to be late; real schedulers are met in the cluster tests.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from support import drivers

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json


def wait_for(path: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not appear"
        time.sleep(0.02)


def test_a_late_submission_finds_its_attempt_claimed(tmp_path: Path) -> None:
    root = tmp_path / "late"
    root.mkdir()
    commands = Path(drivers.__file__).parent / "late_slurm"
    environment = {"LATE_SLURM": str(root), "PATH": f"{commands}:{os.environ['PATH']}"}
    options = {"launcher": "slurm", "operation": {"budget": 1, "workers": 1}, "environment": environment}
    directory = tmp_path / "c"

    first = drivers.start(directory, **options)
    wait_for(root / "job-1")  # sbatch has been called, and has not answered
    first.kill()
    first.wait()

    second = drivers.start(directory, **options)
    wait_for(root / "job-2")  # the new driver looked, found nothing, and submitted again
    looks = (root / "looks").read_text().count("x")
    assert looks >= 1
    (root / "go").touch()  # now both submissions act
    assert second.wait(timeout=60) == 0

    written = [root / f"log-{n}" for n in (1, 2)]
    for log in written:
        wait_for(log)  # the first submission may act later than the second
    end = time.monotonic() + 20
    while list(root.glob("queued-*")) and time.monotonic() < end:
        time.sleep(0.05)
    logs = [log.read_text() for log in written]
    assert sum("already claimed" in log for log in logs) == 1
    assert len(drivers.evaluations(directory)) == 1
    trial = Record.read(directory / "events.jsonl").rows[0]
    assert [len(trial.attempts), str(trial.state)] == [1, "completed"]
    claim = read_json(directory / "trials" / "t0000" / "a0" / "claim") or {}
    assert claim["job"] in ("1", "2")
