"""A scheduler that is slow, or silent, keeps nobody from their results; a job that nothing is known of is told."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import drivers

from hpo_cluster.cli.display import PlainDisplay, status_lines
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.job import JobRef, JobState, JobStatus
from hpo_cluster.launchers.local import LocalLauncher
from hpo_cluster.record.status import campaign_status


class Slow(LocalLauncher):
    """Answers once it may."""

    def __init__(self, launcher: Any) -> None:
        super().__init__(launcher.settings)
        self.may_answer = threading.Event()
        self.asked = threading.Event()

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        self.asked.set()
        assert self.may_answer.wait(60)
        return super().poll(refs)


class Silent(LocalLauncher):
    """Knows nothing of any job."""

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        return {ref.token: JobStatus(JobState.UNKNOWN, detail="no answer") for ref in refs}


def test_results_are_taken_in_while_the_scheduler_thinks(tmp_path: Path) -> None:
    made = drivers.spec(tmp_path / "c", {"operation": {"budget": 2, "workers": 2}})
    slow = Slow(made.launcher)
    with Campaign(dataclasses.replace(made, launcher=slow)) as campaign:
        taken: list[int] = []
        append = campaign.opened.append

        def note(event: str, **fields: Any) -> Any:
            if event == "ended":
                assert slow.asked.is_set()
                taken.append(fields["trial"])
                if len(taken) == 2:
                    slow.may_answer.set()  # both are in before the scheduler has answered at all
            return append(event, **fields)

        campaign.opened.append = note  # type: ignore[method-assign]
        for _ in campaign.drive():
            pass
    assert sorted(taken) == [0, 1]


def test_a_job_that_nothing_is_known_of_is_told_and_waited_for(tmp_path: Path) -> None:
    options = {"sleep": 3, "operation": {"budget": 1, "workers": 1, "unknown_after_s": 0.5}}
    made = drivers.spec(tmp_path / "c", options)
    lines: list[str] = []
    display = PlainDisplay(lines.append)
    shown: list[str] = []
    with Campaign(dataclasses.replace(made, launcher=Silent(made.launcher.settings))) as campaign:  # type: ignore[attr-defined]
        for status in campaign.drive():
            display.update(status, campaign.record.trials)
            shown += status_lines(status)
            if status["notices"] and not campaign_status(tmp_path / "c")["running"][0]["unknown_since"]:
                raise AssertionError("another terminal does not see it")
        assert campaign.record.trials[0].state == "completed"
    told = [line for line in lines if "nothing is known of job" in line]
    assert len(told) == 1  # once, in a file of lines
    assert f"hpo-cluster cancel {tmp_path / 'c'} 0" in told[0]
    assert any("nothing is known of job" in line for line in shown)
