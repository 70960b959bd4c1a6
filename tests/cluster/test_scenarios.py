"""What happens to a campaign on a cluster: each scenario once, on every scheduler.

Each ends with the right history, and with no evaluation lost or made twice: `CampaignOnACluster.check`.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from clusters import Cluster, Oar, Slurm, family, is_alive, kill, wait
from on_a_cluster import CampaignOnACluster

from hpo_cluster.record.attempt_files import log_tail
from hpo_cluster.record.journal import read_events

Make: TypeAlias = Callable[..., CampaignOnACluster]
Reference: TypeAlias = list[dict[str, Any]]

#: Longer than any scenario: an attempt that does this never ends by itself.
FOR_EVER = "sleep 1000"
#: Ends when `CampaignOnACluster.open_gate` has been called.
GATE = "until test -e gate; do sleep 0.2; done"


# ------------------------------------------------------------------------------------------------------- jobs and nodes


def test_a_whole_campaign_with_four_workers(campaign: Make, reference: Reference) -> None:
    one = campaign(operation={"budget": 12})
    assert one.run() == 0, one.story()
    one.check(reference)


def test_an_exception_in_the_job_fails_its_trial_alone(campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0001/a0": "echo broken >&2; exit 7"}, operation={"failures": {"code": "failed"}})
    assert one.run() == 0, one.story()
    one.check(reference, kinds={1: ["code"]}, states={1: "failed"})


def test_a_running_job_cancelled_by_hand_is_tried_again(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0000/a0": FOR_EVER})
    one.start()
    one.claim()
    cluster.cancel(one.job())
    one.finish()
    one.check(reference, kinds={0: ["cancelled"]})


def test_a_waiting_job_cancelled_by_hand_is_tried_again(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    other = cluster.fill(300)
    wait(lambda: cluster.state(other) == "running", 60, "the cluster to be full")
    one = campaign()
    one.start()
    job = one.job()
    wait(lambda: cluster.state(job) == "pending", 30, "the job to wait")
    cluster.cancel(job)
    one.wait(lambda: len(one.trials[0].attempts) == 2, 60, "another attempt")
    cluster.cancel(other)
    one.finish()
    one.check(reference, kinds={0: ["cancelled"]}, lost_before_start={0: 1})


def test_a_node_crashes_with_its_job(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0000/a0": FOR_EVER}, launcher={"walltime_min": 1}, operation={"workers": 1})
    one.start()
    cluster.crash_node(one.claim()["node"])
    one.finish(300)
    one.check(reference, kinds={0: ["node"]})


def test_a_node_is_set_down_by_the_administrator(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0000/a0": FOR_EVER}, operation={"workers": 1})
    one.start()
    cluster.set_down(one.claim()["node"])
    one.finish()
    one.check(reference, kinds={0: [cluster.set_down_kind]})


def test_a_suspended_job_is_waited_for(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0000/a0": GATE})
    one.start()
    one.claim()
    cluster.suspend(one.job())
    wait(lambda: cluster.state(one.job()) == "suspended", 30, "the job to be suspended")
    one.open_gate()
    time.sleep(8)
    assert len(one.trials[0].attempts) == 1
    assert not one.trials[0].state.ended
    cluster.resume(one.job())
    one.finish()
    one.check(reference)


def test_a_preempted_job_is_tried_again(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0000/a0": FOR_EVER}, operation={"workers": 1}, launcher=cluster.preemption_settings)
    one.start()
    one.claim()
    other = cluster.fill(300, urgent=True)
    wait(lambda: cluster.state(other) == "running", 90, "the other job to have its place")
    one.wait(lambda: len(one.trials[0].attempts) == 2, 60, "another attempt")
    cluster.cancel(other)
    one.finish()
    one.check(reference, kinds={0: ["preempted"]})


def test_jobs_over_their_walltime_are_tried_again(campaign: Make, reference: Reference) -> None:
    deaf = f"trap '' USR2 TERM; {FOR_EVER}"  # takes no notice of the warning
    launcher = {"walltime_min": 1, "checkpoint_delay_s": 10}
    one = campaign(steps={"t0000/a0": FOR_EVER, "t0001/a0": deaf}, launcher=launcher)
    one.start()
    one.finish(240)
    one.check(reference, kinds={0: ["walltime|interrupted"], 1: ["walltime|interrupted"]})


def test_a_job_whose_process_is_killed_is_tried_again(campaign: Make, reference: Reference) -> None:
    one = campaign(steps={"t0000/a0": FOR_EVER})
    one.start()
    pid = one.claim()["pid"]
    kill(pid)
    one.finish()
    one.check(reference, kinds={0: ["vanished"]})


def test_several_trials_share_each_job(campaign: Make, reference: Reference) -> None:
    one = campaign(
        steps={"t0000/a0": FOR_EVER, "t0001/a0": GATE},
        launcher={"trials_per_node": 4},
        operation={"budget": 10, "workers": 8},
    )
    one.start()
    pid = one.claim()["pid"]
    kill(pid)
    one.claim(trial=0, attempt=1)
    assert str(one.trials[1].state) == "running"  # those beside it go on, and it did not wait for them
    one.open_gate()
    one.finish()
    one.check(reference, kinds={0: ["vanished"]})
    attempts = [attempt for trial in one.trials for attempt in trial.attempts]
    jobs = {attempt.job_id for attempt in attempts}
    assert len(jobs) in (3, 4)  # the second attempt comes with the last two trials, or after them
    assert len({attempt.job_id for trial in one.trials[:4] for attempt in trial.attempts[:1]}) == 1


#: Longer than any scenario: a job that waits so long shows that nobody told it to end.
LINGERS = {"linger_s": 900.0}


def jobs_of(one: CampaignOnACluster) -> set[str]:
    """The scheduler's ids of all jobs of a campaign."""
    return {str(attempt.job_id) for trial in one.trials for attempt in trial.attempts}


def test_jobs_go_on_with_other_trials(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(launcher={"trials_per_job": 3, **LINGERS}, operation={"budget": 6, "workers": 2})
    assert one.run() == 0, one.story()
    one.check(reference)
    jobs = jobs_of(one)
    assert len(jobs) in (2, 3), one.story()
    assert max(attempt.turn for trial in one.trials for attempt in trial.attempts) == 3, one.story()
    wait(lambda: not any(cluster.state(job) == "running" for job in jobs), 60, "the end of jobs without work")


def test_a_failure_does_not_end_its_job(campaign: Make, reference: Reference) -> None:
    one = campaign(
        steps={"t0001/a0": "echo broken >&2; exit 7"},
        launcher={"trials_per_job": 3, **LINGERS},
        operation={"budget": 3, "workers": 1, "failures": {"code": "failed"}},
    )
    assert one.run() == 0, one.story()
    one.check(reference, kinds={1: ["code"]}, states={1: "failed"})
    assert len(jobs_of(one)) == 1, one.story()
    tails = [log_tail(one.layout.attempt(trial.number, 0)) for trial in one.trials]
    assert ["broken" in tail for tail in tails] == [False, True, False]


def test_a_job_dies_with_its_second_trial(campaign: Make, reference: Reference) -> None:
    one = campaign(
        steps={"t0001/a0": FOR_EVER},
        launcher={"trials_per_job": 3, **LINGERS},
        operation={"budget": 4, "workers": 1},
    )
    one.start()
    pid = one.claim(trial=1)["pid"]
    assert one.trials[1].attempts[0].after == (0, 0), one.story()
    kill(pid)
    one.finish()
    one.check(reference, kinds={1: ["vanished"]})
    assert len(jobs_of(one)) == 2, one.story()


def test_the_driver_dies_while_a_job_waits(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    one = campaign(launcher={"trials_per_job": 4, **LINGERS}, operation={"workers": 1})
    assert one.run(kill_at=8, when="after") == -9, one.story()  # the intent for the second trial
    assert one.run() == 0, one.story()
    one.check(reference)
    assert len(jobs_of(one)) == 1, one.story()


def test_a_job_gets_no_trial_that_would_not_fit(cluster: Cluster, campaign: Make, reference: Reference) -> None:
    """The last third of the walltime is after the warning, which Slurm may send a minute early."""
    launcher = {"walltime_min": 3 if cluster.kind == "slurm" else 1, "trials_per_job": 9, **LINGERS}
    one = campaign(step="sleep 8", launcher=launcher, operation={"budget": 6, "workers": 1})
    assert one.run() == 0, one.story()
    one.check(reference)
    assert 2 <= len(jobs_of(one)) <= 4, one.story()


#: Notes the cores that an attempt may use.
CORES = 'python3 -c "import os; print(*os.sched_getaffinity(0))" > $HPO_CLUSTER_ATTEMPT_DIR/cores'


@pytest.mark.only("slurm")
@pytest.mark.parametrize(("trials_per_node", "cores"), [(1, 2), (2, 1)])
def test_each_trial_has_the_cores_that_it_asked_for(
    campaign: Make, reference: Reference, trials_per_node: int, cores: int
) -> None:
    trials = {"budget": trials_per_node, "workers": trials_per_node}
    launcher = {"partition": "bound", "trials_per_node": trials_per_node, "cpus_per_trial": cores}
    one = campaign(step=CORES, operation=trials, launcher=launcher)
    assert one.run() == 0, one.story()
    one.check(reference)
    assert len({trial.attempts[0].job_id for trial in one.trials}) == 1
    files = [one.layout.attempt(trial.number, 0).dir / "cores" for trial in one.trials]
    seen = [file.read_text().split() for file in files]
    assert [len(their) for their in seen] == [cores] * trials_per_node, seen
    assert len({core for their in seen for core in their}) == 2, seen


# ------------------------------------------------------------------------------------------------------- the controller


@pytest.mark.parametrize("way", ["stopped", "killed"])
def test_the_controller_is_down_while_jobs_wait_and_run(
    cluster: Cluster, campaign: Make, reference: Reference, way: str
) -> None:
    other = cluster.fill(300, but=1)
    wait(lambda: cluster.state(other) == "running", 60, "the cluster to be almost full")
    one = campaign(
        steps={"t0000/a0": "sleep 30"}, operation={"workers": 2, "max_in_flight": 2}, launcher=cluster.big_job
    )
    one.start()
    one.claim()
    waiting = one.job(1)
    assert cluster.state(waiting) == "pending"
    time.sleep(cluster.forgets_s)
    cluster.stop_controller() if way == "stopped" else cluster.kill_controller()
    time.sleep(30)
    cluster.mend()
    cluster.cancel(other)
    one.finish(240)
    one.check(reference)


# -------------------------------------------------------------------------------------------------------------- drivers

#: created, started, asked, and intent, submitted, running, ended for each of 4 trials, asked again in between, stopped.
EVENTS = 22


def test_the_driver_is_killed_at_an_event_of_its_journal(
    cluster: Cluster, campaign: Make, reference: Reference
) -> None:
    def scenario(at: tuple[int, str]) -> str:
        kill_at, when = at
        one = campaign(operation={"workers": 2})
        try:
            assert one.run(kill_at=kill_at, when=when) in (-9, 0), one.story()
            seen = len(list(read_events(one.layout.events)))
            assert seen == kill_at + (when == "after") or seen < EVENTS, one.story()
            assert one.run() == 0, one.story()
            one.check(reference)
        except AssertionError as error:
            return f"killed {when} event {kill_at}: {error}\n"
        return ""

    moments = list(itertools.product(range(EVENTS), ("before", "after")))
    with ThreadPoolExecutor(8) as pool:
        faults = list(pool.map(scenario, moments[:: cluster.kill_at_each]))
    assert "".join(faults) == ""


def test_a_second_driver_is_refused_and_takes_over_when_the_first_is_dead(campaign: Make, reference: Reference) -> None:
    one = campaign(step=GATE)
    first = one.start()
    one.claim()
    assert one.run() != 0
    assert "another driver" in one.story().lower() or "locked" in one.story().lower()
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    one.open_gate()
    assert one.run() == 0, one.story()
    one.check(reference)


# ----------------------------------------------------------------------------------------------- the submission command

#: What the first call of the submission command does; `real` is the scheduler's own.
SUBMISSIONS = {
    "fails": "echo 'Socket timed out on send/recv operation' >&2; exit 1",
    "hangs": "exec sleep 1000",
    "dies when it has submitted": 'real "$@" > /dev/null; kill -9 $$',
    "hangs when it has submitted": 'real "$@" > /dev/null; exec sleep 1000',
    "says nothing when it has submitted": 'real "$@" > /dev/null',
}


def wrapper(cluster: Cluster, folder: Path, first_call: str) -> Path:
    """A folder with a submission command whose first call is `first_call`, and whose others are the scheduler's."""
    path = folder / "bin"
    path.mkdir()
    path.chmod(0o777)
    command = path / cluster.submit_command
    real = f'real() {{ /usr/bin/{cluster.submit_command} "$@"; }}'
    command.write_text(
        f'#!/bin/bash\n{real}\nif mkdir {path}/called 2>/dev/null; then\n{first_call}\nelse real "$@"\nfi\n'
    )
    command.chmod(0o755)
    return path


@pytest.mark.parametrize("first_call", SUBMISSIONS)
def test_the_submission_command(cluster: Cluster, campaign: Make, reference: Reference, first_call: str) -> None:
    one = campaign(limits={"SUBMIT_TIMEOUT_S": 5})
    one.start(path=wrapper(cluster, one.folder, SUBMISSIONS[first_call]))
    one.finish()
    assert (one.folder / "bin" / "called").is_dir()
    one.check(reference)


def test_a_submission_outlives_its_driver_and_acts_when_the_next_has_looked(
    cluster: Cluster, campaign: Make, reference: Reference
) -> None:
    one = campaign(operation={"workers": 1})
    acted = one.folder / "bin" / "acted"
    late = f'sleep 12; /usr/bin/{cluster.submit_command} "$@"; touch {acted}'
    survivor = f"setsid bash -c '{late}' - \"$@\" > {acted}.out 2>&1 < /dev/null &\nsleep 1000"
    path = wrapper(cluster, one.folder, survivor)
    one.start(path=path)
    wait((path / "called").is_dir, 60, "the submission")
    one.kill_driver()
    one.start(step="sleep 4", path=path)
    wait(acted.exists, 60, "the late submission")
    one.finish()
    one.check(reference)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_the_folder_is_moved_in_the_moment_of_a_submission(
    cluster: Cluster, campaign: Make, reference: Reference, moment: str
) -> None:
    one = campaign()
    moved = one.folder / "moved"
    move = f"mv {one.directory} {moved}"
    first_call = f'{move}; real "$@"' if moment == "before" else f'real "$@"; status=$?; {move}; exit $status'
    first = one.start(path=wrapper(cluster, one.folder, first_call))
    assert first.wait(timeout=60) == 1, one.story()
    assert "was moved or deleted" in one.story()
    tokens = [event["token"] for event in read_events(moved / "events.jsonl") if event["event"] == "intent"]
    assert tokens
    wait(lambda: not any(cluster.jobs(token) for token in tokens), 60, "the end of its job")
    assert not one.directory.exists()
    moved.rename(one.directory)
    assert one.run() == 0, one.story()
    one.check(reference)


# --------------------------------------------------------------------------------------------------------- result files


def put(text: str) -> str:
    """A step that writes a result file which is not the job's own."""
    doubled = text.replace("{", "{{").replace("}", "}}")  # the command is a template
    return f"echo '{doubled}' > $HPO_CLUSTER_ATTEMPT_DIR/result.json; sleep 2"


def test_result_files_that_are_cut_or_somebody_elses(campaign: Make, reference: Reference) -> None:
    foreign = put('{"token": "hpo-other-t0001-a0-00000000", "metrics": {"value": 1e9}}')
    one = campaign(steps={"t0000/a0": put('{"metrics": {"val'), "t0001/a0": foreign})
    assert one.run() == 0, one.story()
    one.check(reference, kinds={0: ["bad_result"], 1: ["vanished"]}, states={0: "failed"})


@pytest.mark.only("slurm")
@pytest.mark.parametrize("way", ["gone", "hanging"])
def test_accounting_out_of_order(cluster: Slurm, campaign: Make, reference: Reference, way: str) -> None:
    one = campaign(steps={"t0000/a0": FOR_EVER, "t0001/a0": "exit 7"}, operation={"failures": {"code": "failed"}})
    one.start()
    pid = one.claim()["pid"]
    cluster.stop_accounting() if way == "gone" else cluster.freeze_accounting()
    kill(pid)
    one.finish()
    one.check(reference, kinds={0: ["vanished"], 1: ["code"]}, states={1: "failed"})


@pytest.mark.only("oar")
def test_commands_that_hang_and_cannot_be_killed(cluster: Oar, campaign: Make, reference: Reference) -> None:
    """OAR's commands are setuid root: the ordinary user whose driver called them may not end them."""
    most = 3
    limits = {"LIST_TIMEOUT_S": 2, "SUBMIT_TIMEOUT_S": 3, "KILLED_WITHIN_S": 0.5, "LET_GO_AT_MOST": most}
    steps = {"t0000/a0": GATE, "t0001/a0": "until test -e second; do sleep 0.2; done"}
    one = campaign(steps=steps, operation={"budget": 3, "workers": 2}, limits=limits)
    driver = one.start()
    one.claim(0)
    one.claim(1)
    cluster.freeze_database()
    (one.folder / "second").touch()  # its result is taken in all the same, and the next trial is to be submitted
    one.wait(lambda: "trial=2 not submitted" in one.story(), 30, "a submission that hangs")
    refused = f"{most} earlier commands hang"  # said of a submission or a question about jobs, whichever was next
    one.wait(lambda: refused in one.story() + one.layout.scheduler.read_text(), 60, "as many as may hang")
    hanging = [pid for pid in family(driver.pid)[1:] if is_alive(pid)]
    assert len(hanging) == most, one.story()
    status = cluster.as_user(cluster.python.parent / "hpo-cluster", "status", one.directory)
    assert "the scheduler has not answered since" in status, status
    assert driver.poll() is None, one.story()
    cluster.mend()  # what hung goes on, and the submission too
    one.open_gate()
    one.finish()
    one.check(reference)
    wait(lambda: not any(map(is_alive, hanging)), 20, "the end of what hung")
