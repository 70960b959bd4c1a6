"""What happens to a campaign with rungs on a cluster: each scenario once, on every scheduler.

Everybody goes on (``rule=all``), so that what is decided does not depend on who is first. Each evaluation notes
where it runs and its share, as in ``t0000/a0@0.25``, and leaves its share in the trial's checkpoint when it is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from clusters import Cluster, kill, wait
from on_a_cluster import CampaignOnACluster

from hpo_cluster import load_curves
from hpo_cluster.record.files import read_json
from hpo_cluster.record.rung_files import rung_file

Make: TypeAlias = Callable[..., CampaignOnACluster]
Reference: TypeAlias = list[dict[str, Any]]

FOR_EVER = "sleep 1000"
GATE = "until test -e gate; do sleep 0.2; done"

#: Jobs wait at a rung for longer than any scenario takes.
RUNGS = {"kind": "share", "rungs": [0.25, 0.5, 1], "rule": "all", "linger_s": 900.0}
TWO = {"budget": 2, "workers": 2}


def begun(one: CampaignOnACluster, label: str) -> None:
    """Wait until an evaluation has begun."""
    one.wait(lambda: label in one.evaluations(), 60, f"{label} to begin")


def waits(one: CampaignOnACluster, trial: int) -> None:
    """Wait until the first attempt of a trial has reported its first rung."""
    one.wait(lambda: read_json(rung_file(one.layout.attempt(trial, 0), 0)), 60, f"trial {trial} at its rung")


def without_a_driver(one: CampaignOnACluster) -> list[str]:
    """Kill the driver when both trials evaluate their first rung, and only then let them end it; return their jobs."""
    one.start()
    begun(one, "t0000/a0@0.25")
    begun(one, "t0001/a0@0.25")
    jobs = [one.job(0), one.job(1)]
    one.kill_driver()
    one.open_gate()
    return jobs


def check(one: CampaignOnACluster, reference: Reference, evaluations: list[str]) -> None:
    """Two whole trials with the reference's parameters; each share of each was evaluated once, or as said."""
    story, trials = one.story(), one.trials
    assert [trial.parameters for trial in trials] == reference[:2], story
    assert [str(trial.state) for trial in trials] == ["completed"] * 2, story
    assert [trial.value for trial in trials] == [float(f"{t.parameters['x']}{t.parameters['k']}") for t in trials], (
        story
    )
    assert sorted(one.evaluations()) == sorted(evaluations), story
    curves = load_curves(one.directory)
    assert [*zip(curves.trial, curves.fidelity, strict=True)] == [(n, s) for n in (0, 1) for s in RUNGS["rungs"]], story


def shares(trial: int, attempt: int = 0, of: tuple[str, ...] = ("0.25", "0.5", "1")) -> list[str]:
    """The evaluations of an attempt that climbs."""
    return [f"t{trial:04d}/a{attempt}@{share}" for share in of]


def test_rungs_are_climbed_in_one_job(campaign: Make, reference: Reference) -> None:
    one = campaign(fidelity=RUNGS, operation=TWO)
    assert one.run() == 0, one.story()
    check(one, reference, [*shares(0), *shares(1)])
    assert [len(trial.attempts) for trial in one.trials] == [1, 1], one.story()


def test_rungs_a_job_that_is_cancelled_on_its_way_goes_on_in_another_one(
    cluster: Cluster, campaign: Make, reference: Reference
) -> None:
    done = "until grep -q 0.25 {checkpoint}/done; do sleep 0.2; done"  # never ends without the checkpoint
    one = campaign(fidelity=RUNGS, operation=TWO, steps={"t0000/a0@0.5": FOR_EVER, "t0000/a1@0.5": done})
    one.start()
    begun(one, "t0000/a0@0.5")
    cluster.cancel(one.job())
    one.finish()
    check(one, reference, [*shares(0, of=("0.25", "0.5")), *shares(0, 1, of=("0.5", "1")), *shares(1)])
    first = one.trials[0].attempts[0]
    assert first.error is not None, one.story()
    assert first.error["kind"] == "cancelled", one.story()
    assert one.trials[0].attempts[1].job_id != first.job_id


def test_rungs_jobs_wait_there_while_no_driver_lives(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    """One of them is cancelled meanwhile. The other one goes on as it is, the trial of the first in another job."""
    one = campaign(fidelity=RUNGS, operation=TWO, step=GATE)
    jobs = without_a_driver(one)
    waits(one, 0)
    waits(one, 1)
    cluster.cancel(jobs[0])
    wait(lambda: cluster.state(jobs[0]) != "running", 30, "the end of the job")
    one.start()
    one.finish()
    check(one, reference, [*shares(0, of=("0.25",)), *shares(0, 1, of=("0.5", "1")), *shares(1)])
    assert [len(trial.attempts) for trial in one.trials] == [2, 1], one.story()


def test_rungs_a_job_that_nobody_answers_ends_there(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(fidelity={**RUNGS, "linger_s": 0.5}, operation=TWO, step=GATE)
    jobs = without_a_driver(one)
    wait(lambda: not any(cluster.state(job) == "running" for job in jobs), 60, "the end of the jobs")
    one.start(fidelity=RUNGS)
    one.finish()
    first, then = ("0.25",), ("0.5", "1")
    check(one, reference, [*(shares(0, of=first) + shares(1, of=first)), *(shares(0, 1, then) + shares(1, 1, then))])
    assert all(trial.attempts[0].error is None for trial in one.trials), one.story()


@pytest.mark.parametrize("when", ["before", "after"])
def test_rungs_the_driver_is_killed_at_an_event(campaign: Make, reference: Reference, when: str) -> None:
    """Event 9 is about a rung: both trials have been submitted and have begun by then."""
    one = campaign(fidelity=RUNGS, operation=TWO)
    assert one.run(kill_at=9, when=when) == -9, one.story()
    assert one.run() == 0, one.story()
    check(one, reference, [*shares(0), *shares(1)])


def test_rungs_a_job_goes_on_with_other_trials(campaign: Make) -> None:
    """With one in three going on, a trial that is paused gives its job to the next one."""
    fidelity = {**RUNGS, "rungs": [0.25, 1], "rule": "asha", "eta": 3.0}
    launcher = {"trials_per_job": 9, "linger_s": 900.0}
    one = campaign(fidelity=fidelity, operation={"budget": 2, "workers": 1}, launcher=launcher)
    assert one.run() == 0, one.story()
    states = {str(trial.state) for trial in one.trials}
    assert states == {"completed", "paused"}, one.story()
    assert len({attempt.job_id for trial in one.trials for attempt in trial.attempts}) == 1, one.story()
    assert len(set(one.evaluations())) == len(one.evaluations()), one.story()


SIDE_BY_SIDE = {"trials_per_node": 2}


def test_rungs_side_by_side_are_climbed_in_one_job(campaign: Make, reference: Reference) -> None:
    one = campaign(fidelity=RUNGS, operation=TWO, launcher=SIDE_BY_SIDE)
    assert one.run() == 0, one.story()
    check(one, reference, [*shares(0), *shares(1)])
    assert [len(trial.attempts) for trial in one.trials] == [1, 1], one.story()
    assert one.job(0) == one.job(1)


def test_rungs_one_of_two_side_by_side_is_killed_there(campaign: Make, reference: Reference) -> None:
    """Its trial goes on in another job. The other one goes on as it is, in the job that they shared."""
    one = campaign(fidelity=RUNGS, operation=TWO, launcher=SIDE_BY_SIDE, step=GATE)
    jobs = without_a_driver(one)
    assert jobs[0] == jobs[1]
    waits(one, 0)
    waits(one, 1)
    claim = read_json(one.layout.attempt(0, 0).claim)
    assert claim is not None
    kill(claim["pid"])
    wait(lambda: read_json(one.layout.attempt(0, 0).error), 30, "the report of its end")
    one.start()
    one.finish()
    check(one, reference, [*shares(0, of=("0.25",)), *shares(0, 1, of=("0.5", "1")), *shares(1)])
    assert [len(trial.attempts) for trial in one.trials] == [2, 1], one.story()
    error = one.trials[0].attempts[0].error
    assert error is not None, one.story()
    assert error["kind"] == "vanished", one.story()


@pytest.mark.parametrize("trials_per_job", [1, 9])
def test_rungs_places_side_by_side_are_filled_again(campaign: Make, trials_per_job: int) -> None:
    """The place of a trial that is paused is free once its job has ended, or at once if jobs go on with others."""
    fidelity = {**RUNGS, "rungs": [0.25, 1], "rule": "asha", "eta": 3.0}
    launcher = {**SIDE_BY_SIDE, "trials_per_job": trials_per_job, "linger_s": 900.0}
    one = campaign(fidelity=fidelity, operation={"budget": 3, "workers": 2}, launcher=launcher)
    assert one.run() == 0, one.story()
    assert {str(trial.state) for trial in one.trials} == {"completed", "paused"}, one.story()
    attempts = [attempt for trial in one.trials for attempt in trial.attempts]
    assert all(attempt.error is None for attempt in attempts), one.story()
    jobs = Counter(attempt.job_id for attempt in attempts)
    assert max(jobs.values()) <= 2 * trials_per_job, one.story()
    assert len(jobs) == 1 if trials_per_job > 1 else len(jobs) < len(attempts), one.story()
    assert len(set(one.evaluations())) == len(one.evaluations()), one.story()
