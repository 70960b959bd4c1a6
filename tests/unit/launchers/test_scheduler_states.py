"""The tables of every state that a scheduler can report, and how long a silent one is left alone."""

from __future__ import annotations

import itertools

import pytest

from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import EndReason, JobState
from hpo_cluster.launchers import oar, slurm
from hpo_cluster.launchers.commands import Backoff

SLURM = (
    "PENDING CONFIGURING RUNNING COMPLETING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING REQUEUED REQUEUE_HOLD "
    "REQUEUE_FED RESV_DEL_HOLD SPECIAL_EXIT COMPLETED FAILED TIMEOUT CANCELLED NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE "
    "OUT_OF_MEMORY REVOKED LAUNCH_FAILED RECONFIG_FAIL POWER_UP_NODE UPDATE_DB"
)
OAR = "Waiting Hold toLaunch toError toAckReservation Launching Running Suspended Resuming Finishing Terminated Error"


@pytest.mark.parametrize(("table", "states"), [(slurm.STATES, SLURM), (oar.STATES, OAR)])
def test_every_state_is_in_the_table_with_a_reason_where_it_is_an_end(table: slurm.StateTable, states: str) -> None:
    assert set(table) == set(states.split())
    for state, (ours, reason) in table.items():
        assert (ours is JobState.ENDED) == (reason is not None), state


@pytest.mark.parametrize(
    ("state", "code", "log", "expected"),
    [
        ("COMPLETED", "0:0", "", EndReason.WELL),
        ("FAILED", "1:0", "Traceback", EndReason.EXIT),
        ("FAILED", "9:0", "", EndReason.EXIT),
        ("FAILED", "105:0", "", EndReason.NODE),
        ("FAILED", "12:0", "", EndReason.WALLTIME),
        ("FAILED", "1:0", "srun: error: Unable to create step for job 94: Invalid generic resource (gres)",
         EndReason.NODE),
        ("FAILED", "1:0", "srun: error: Task launch for StepId=65.0 failed on node node06: Communication connection "
         "failure", EndReason.NODE),
        ("FAILED", "1:0", "slurmstepd-node06: error: *** REASON: ReqNodeNotAvail, UnavailableNodes:node06 ***",
         EndReason.NODE),
        ("CANCELLED by 0", "0:0", "", EndReason.CANCELLED),
        ("CANCELLED+", "0:0", "", EndReason.CANCELLED),
        ("TIMEOUT", "0:0", "", EndReason.WALLTIME),
        ("OUT_OF_MEMORY", "0:125", "", EndReason.OUT_OF_MEMORY),
    ],
)  # fmt: skip
def test_slurms_words(state: str, code: str, log: str, expected: EndReason) -> None:
    status = slurm.job_status(state, exit_code=code, log=log, node="None assigned")
    assert (status.state, status.reason, status.node) == (JobState.ENDED, expected, None)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("PartitionTimeLimit", "launcher.walltime_min"),
        ("QOSMaxWallDurationPerJobLimit", "launcher.walltime_min"),
        ("QOSMaxCpuPerJobLimit", "launcher.gpus_per_trial"),
        ("QOSMaxGRESPerNode", "launcher.gpus_per_trial"),
        ("AssocGrpCPUMinutesLimit", "launcher.account"),
        ("InvalidAccount", "launcher.account"),
        ("JobHeldUser", "scontrol release"),
        # these pass by themselves
        *((reason, "") for reason in ("None", "Priority", "Resources", "BeginTime", "QOSMaxJobsPerUserLimit")),
        *(
            (reason, "")
            for reason in ("AssocGrpCPURunMinutesLimit", "QOSMaxSubmitJobPerUserLimit", "AssocMaxJobsLimit")
        ),
    ],
)
def test_a_job_that_waits_for_ever_has_a_remedy(reason: str, remedy: str) -> None:
    said = slurm.job_status("PENDING", detail=reason).remedy
    assert remedy in said
    assert bool(said) is bool(remedy)
    assert slurm.job_status("RUNNING", detail=reason).remedy == ""


@pytest.mark.parametrize("word", ["", "MELTED", "completed", "?"])
def test_an_unknown_word_ends_nothing(word: str) -> None:
    assert slurm.job_status(word).state is JobState.UNKNOWN
    assert oar.job_status({"state": word}).state is JobState.UNKNOWN
    assert oar.job_status({}).reason is None


@pytest.mark.parametrize(
    ("state", "code", "events", "expected"),
    [
        ("Terminated", 0, "SWITCH_INTO_TERMINATE_STATE", EndReason.WELL),
        ("Terminated", 768, "SWITCH_INTO_TERMINATE_STATE", EndReason.EXIT),
        ("Terminated", 9, "", EndReason.EXIT),
        ("Terminated", 137 << 8, "", EndReason.EXIT),
        ("Terminated", 12, "CHECKPOINT", EndReason.WALLTIME),
        ("Terminated", 11, "", EndReason.EXIT),
        ("Error", None, "WALLTIME FRAG_JOB_REQUEST SEND_KILL_JOB SWITCH_INTO_ERROR_STATE", EndReason.WALLTIME),
        ("Error", None, "FRAG_JOB_REQUEST SEND_KILL_JOB", EndReason.CANCELLED),
        ("Error", None, "BESTEFFORT_KILL FRAG_JOB_REQUEST", EndReason.PREEMPTED),
        ("Error", None, "WALLTIME SEND_KILL_JOB EXTERMINATE_JOB", EndReason.NODE),
        ("Error", None, "OUTPUT_FILES", EndReason.NODE),
        ("Error", 256, "", EndReason.EXIT),
        ("Error", None, "", None),
    ],
)
def test_oars_words(state: str, code: int | None, events: str, expected: EndReason | None) -> None:
    job = {"state": state, "exit_code": code, "events": [{"type": event} for event in events.split()]}
    status = oar.job_status(job)
    assert (status.state, status.reason) == (JobState.ENDED, expected)


@pytest.mark.parametrize(
    ("who", "code", "expected"),
    [
        ("metasched", 12, EndReason.PREEMPTED),
        ("metasched", 256, EndReason.PREEMPTED),
        ("metasched", 0, EndReason.WELL),
        ("sarko", 256, EndReason.WALLTIME),
    ],
)
def test_a_job_that_oar_warned_ended_of_what_it_was_warned_of(who: str, code: int, expected: EndReason) -> None:
    events = [
        {"type": "CHECKPOINT", "description": f"User oar ({who}) requested a checkpoint on the job 19 on chiclet-1"}
    ]
    assert oar.job_status({"state": "Terminated", "exit_code": code, "events": events}).reason is expected


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("No enough matching resources (no_matching_slot)", "Waiting No enough matching resources (no_matching_slot)"),
        ("R=1,W=0:2:0,J=B (Karma=0.000,quota_exceeded)", "Waiting R=1,W=0:2:0,J=B (Karma=0.000,quota_exceeded)"),
        ("R=1,W=0:2:0,J=B (Karma=0.000,quota_ok)", "Waiting"),
        ("R=1,W=0:2:0,J=B", "Waiting"),
        ("", "Waiting"),
        (None, "Waiting"),
    ],
)
def test_oar_says_why_a_job_waits_only_if_it_does_not_wait_for_its_turn(message: str | None, said: str) -> None:
    assert oar.job_status({"state": "Waiting", "message": message}).detail == said


def test_the_back_off_doubles_up_to_a_minute_and_ends_with_an_answer() -> None:
    now = [100.0]
    backoff = Backoff(lambda: now[0])
    asked = []

    def question() -> str:
        asked.append(now[0])
        if len(asked) < 9:
            raise SubmissionError("no answer")
        return "yes"

    def ask() -> str | None:
        try:
            return backoff.ask(question)
        except SubmissionError:
            return None

    while ask() is None:
        now[0] += 1
    gaps = [late - early for early, late in itertools.pairwise(asked)]
    assert gaps == [2, 4, 8, 16, 32, 60, 60, 60]
    assert ask() == "yes"
    assert ask() == "yes"
