"""Whether a running job has time for one more evaluation."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from hpo_cluster.driver.free_places import has_time
from hpo_cluster.launchers import LocalSettings, SlurmSettings
from hpo_cluster.launchers.base import LauncherSettings
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import Record

BEGAN = datetime.datetime(2027, 1, 31, 18, 0, tzinfo=datetime.UTC)


def text(minutes: float) -> str:
    return (BEGAN + datetime.timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def record(settings: LauncherSettings, *ends: float) -> Record:
    """Attempts of one job that ended so many minutes after its beginning, one after another."""
    launcher = settings.model_dump(mode="json")
    record, seq = Record(), 0

    def add(event: str, minutes: float = 0.0, **fields: Any) -> None:
        nonlocal seq
        record.apply({"seq": seq, "at": text(minutes), "event": event, **fields})
        seq += 1

    add("started", operation={}, settings={"launcher": launcher}, code="c")
    job = {"backend": "slurm", "job_id": "1", "token": "t", "submitted_at": text(-60), "host": "h"}
    for number, (begin, end) in enumerate(zip((0.0, *ends), ends, strict=False)):
        row = {"trial": number, "parameters": {}, "seed": 0, "origin": "evaluated"}
        add("asked", trials=[row], decision={})
        after = {"after": [number - 1, 0], "turn": number + 1} if number else {}
        add("intent", trial=number, attempt=0, token=f"t{number}", job_name="t", code="c", **after)
        add("submitted", trial=number, attempt=0, job=job)
        add("ended", end, trial=number, attempt=0, state="completed", value=0.0, started_at=text(begin))
    return record


@pytest.mark.parametrize(
    ("ends", "walltime_min", "fits"),
    [
        ((30.0,), 120, True),
        ((30.0, 60.0), 120, True),
        ((30.0, 60.0, 86.0), 120, False),  # 30 more minutes, a tenth of that and a minute, and 90 s for the warning
        ((30.0, 60.0, 82.0), 120, True),
        ((55.0, 60.0), 120, False),  # the longest counts
        ((50.0,), 120, True),
        ((59.0,), 120, False),
    ],
)
def test_the_longest_evaluation_until_now_must_fit(
    ends: tuple[float, ...], walltime_min: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SlurmSettings(walltime_min=walltime_min, trials_per_job=9)
    monkeypatch.setattr(clock, "now", lambda: BEGAN + datetime.timedelta(minutes=ends[-1]))
    made = record(settings, *ends)
    last = made.trials[len(ends) - 1].attempts[0]
    assert has_time(made, last, settings) is fits


def test_every_launcher_knows_when_it_signals_a_job() -> None:
    assert SlurmSettings(walltime_min=120).warning_s == 90
    assert SlurmSettings(walltime_min=120, checkpoint_delay_s=0).warning_s == 0
    assert SlurmSettings(walltime_min=1).warning_s == 20
    assert LocalSettings(walltime_min=60).warning_s == 30
