"""Failures: why an attempt failed, and whether its trial is tried again. No other module decides about a retry.

The cause is read from the attempt's own files first, from the scheduler second, from the end of the log last
(`reported_failure`, `explained`, `silent_failure`). `decide` says what becomes of the trial, `rests_s` how long it
waits before its next attempt, and `all_fail_alike` whether the whole campaign should stop.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import Field

from hpo_cluster.job import EndReason, JobStatus
from hpo_cluster.objectives.error_kinds import STORAGE_WORDS
from hpo_cluster.record.attempt_files import checkpoint_step, document_of, log_tail, result_faults, sound_fields
from hpo_cluster.record.clock import seconds_from
from hpo_cluster.record.files import is_there, read_json, redact
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.settings import Settings
from hpo_cluster.text import first_line
from hpo_cluster.trial import ErrorKind, State

#: ``retry``: another attempt, at most `retries` times; ``requeue``: another attempt, without a limit; the others name
#: the state in which the trial ends. ``learn`` means infeasible once another trial has completed, and failed before
#: that: a program that has worked elsewhere fails because of the configuration; one that has never worked tells nothing
#: about the configuration.
Action: TypeAlias = Literal["retry", "requeue", "learn", "diverged", "infeasible", "failed"]


class Failures(Settings):
    """The action for each kind of failure. The optimizer never sees an attempt that is followed by another one."""

    node: Action = Field("retry", description="the node failed, or the job could not start on it")
    preempted: Action = Field("requeue", description="other jobs took the nodes")
    interrupted: Action = Field("retry", description="the job was asked to end, and reported that")
    walltime: Action = Field("retry", description="the job's walltime was over")
    cancelled: Action = Field("retry", description="somebody cancelled the job with the scheduler's own command")
    vanished: Action = Field("retry", description="the job ended and left no file")
    disk: Action = Field("retry", description="no space left, or no permission to write")
    out_of_memory: Action = Field("infeasible", description="of the device or the host")
    diverged: Action = Field("diverged", description="a loss that is NaN or infinite")
    bad_data: Action = Field("failed", description="training data that cannot be read as what it should be")
    missing_task: Action = Field("failed", description="an lm-eval task that does not exist")
    missing_model: Action = Field("failed", description="no checkpoint in the configured folder")
    bad_config: Action = Field("failed", description="settings that do not fit the tasks, the model or one another")
    bad_result: Action = Field("failed", description="the objective's output is not what was agreed")
    code: Action = Field("learn", description="any other exception: a fault of the program or of its configuration")

    def action(self, kind: str) -> Action:
        """Return the action for a kind of failure; an unknown kind counts as `code`."""
        action: Action = getattr(self, kind) if kind in type(self).model_fields else self.code
        return action

    def verdict(self, kinds: Iterable[str], retries: int, *, others_completed: bool = False) -> State | None:
        """Return the state that a trial ends in after failed attempts, or None if another attempt is to be made.

        Args:
            kinds: kinds of the attempts' errors, the last one included.
            retries: number of attempts that may follow the first.
            others_completed: whether another trial of the campaign has completed.
        """
        kinds = list(kinds)
        action = self.action(kinds[-1])
        if action == "requeue":
            return None
        if action == "retry":
            return None if sum(self.action(kind) == "retry" for kind in kinds) <= retries else State.FAILED
        if action == "learn":
            return State.INFEASIBLE if others_completed else State.FAILED
        return State(action)


# ------------------------------------------------------------------------------------------------------------- causes

#: The most probable kind of failure of a job that left no report, by the reason that its scheduler gives.
KINDS_OF_REASONS: Mapping[EndReason, ErrorKind] = {
    EndReason.WALLTIME: ErrorKind.WALLTIME,
    EndReason.PREEMPTED: ErrorKind.PREEMPTED,
    EndReason.NODE: ErrorKind.NODE,
    EndReason.OUT_OF_MEMORY: ErrorKind.OUT_OF_MEMORY,
    EndReason.CANCELLED: ErrorKind.CANCELLED,
    EndReason.WELL: ErrorKind.VANISHED,
    EndReason.EXIT: ErrorKind.VANISHED,
    EndReason.FORGOTTEN: ErrorKind.VANISHED,
}

#: Kinds for which a scheduler first asks a job to end.
REASONS_TO_END = frozenset({ErrorKind.WALLTIME, ErrorKind.PREEMPTED, ErrorKind.NODE, ErrorKind.CANCELLED})
#: Seconds to wait, after an attempt reports that it was asked to end, for the scheduler to say why.
REASON_WITHIN_S = 60.0

#: The kind of failure by words at the end of a job's log, for a scheduler that says only that the job ended.
KINDS_OF_WORDS: tuple[tuple[re.Pattern[str], ErrorKind], ...] = (
    (re.compile(r"CUDA out of memory|OutOfMemoryError|oom[-_ ]kill|Out Of Memory", re.I), ErrorKind.OUT_OF_MEMORY),
    (re.compile(r"DUE TO TIME LIMIT", re.I), ErrorKind.WALLTIME),
    (re.compile(r"DUE TO PREEMPTION", re.I), ErrorKind.PREEMPTED),
    (re.compile(r"Node failure|DUE TO NODE FAILURE|Communication connection failure", re.I), ErrorKind.NODE),
    (re.compile(rf"failed: disk:|{STORAGE_WORDS}", re.I), ErrorKind.DISK),
)


@dataclass(frozen=True)
class Failure:
    """A failed attempt: kind and message of its error. `seen` holds its error file, if it wrote one."""

    kind: str
    message: str
    seen: Mapping[str, Any] = field(default_factory=dict)


def reported_failure(files: AttemptLayout, token: str) -> Failure | None:
    """Return the failure that the attempt's own files report; None if they report none."""
    if is_there(files.result) and (faults := result_faults(read_json(files.result))):
        return Failure(ErrorKind.BAD_RESULT, f"{files.result.name}: {'; '.join(faults)}")
    error = document_of(files.error, token)
    if error is None:
        return None
    return Failure(error.get("kind", ErrorKind.CODE), error.get("message", "its error file says no more"), error)


def awaits_reason(failure: Failure) -> bool:
    """Return whether an attempt has only just reported that it was asked to end: its scheduler may soon say why."""
    ended_at = failure.seen.get("ended_at")
    if failure.kind != ErrorKind.INTERRUPTED or not isinstance(ended_at, str):
        return False
    return seconds_from(ended_at) < REASON_WITHIN_S


def explained(failure: Failure, status: JobStatus) -> Failure:
    """Add the scheduler's reason to a failure, if the attempt itself knows only that it was asked to end."""
    kind = KINDS_OF_REASONS[status.reason] if status.reason is not None else ErrorKind.VANISHED
    if failure.kind != ErrorKind.INTERRUPTED or kind not in REASONS_TO_END:
        return failure
    return Failure(kind, f"{failure.message} ({status.detail})", failure.seen)


def silent_failure(files: AttemptLayout, job_id: str | None, status: JobStatus) -> Failure:
    """Return the most probable failure of a job that ended, by its scheduler's account, without publishing a file."""
    tail = log_tail(files)
    kind = KINDS_OF_REASONS[status.reason] if status.reason is not None else ErrorKind.VANISHED
    if kind is ErrorKind.VANISHED:
        kind = next((kind for pattern, kind in KINDS_OF_WORDS if pattern.search(tail)), kind)
    said = f" ({status.detail})" if status.detail else ""
    lines = [line for line in tail.splitlines() if line.strip()]
    words = f"; its log ends: {lines[-1].strip()[:300]}" if lines else ""
    return Failure(kind, f"job {job_id} ended{said} and left no result{words}")


# ----------------------------------------------------------------------------------------------------------- decision

#: Phases of a job before there is any work that a checkpoint could keep.
START_PHASES = ("import", "load")


@dataclass(frozen=True)
class Decision:
    """The decision about a trial whose attempt failed.

    Args:
        state: state in which the trial ends; None: it is tried again.
        error: error of the attempt (JSON), as the journal keeps it.
    """

    state: State | None
    error: Mapping[str, Any]


def decide(
    trial: TrialRecord,
    failure: Failure,
    files: AttemptLayout,
    policy: Failures,
    retries: int,
    *,
    others_completed: bool,
) -> Decision:
    """Decide whether a trial is tried again after a failed attempt, or how it ends.

    A failure counts towards `retries` only if the attempt brought no progress. An attempt that left a checkpoint
    further on than earlier ones did bring progress: the next one continues from there. So did an attempt that ran out
    of memory with a physical batch that can be halved: the next one uses half.

    Args:
        trial: the trial, before the failure is journaled.
        failure: failure of its last attempt.
        files: files of that attempt.
        policy: action for each kind of failure.
        retries: number of attempts that may follow the first.
        others_completed: whether another trial of the campaign has completed.
    """
    error: dict[str, Any] = {"kind": failure.kind, "message": redact(failure.message)}
    step = checkpoint_step(files)
    if step:
        error["checkpoint_step"] = step
    progress = sound_fields(read_json(files.progress) or {}, files.progress)
    # A user's program may report its batch. LoRA jobs that run the code of an earlier version do, as progress too.
    seen = {**progress, **failure.seen}  # a killed attempt reported its batch and its energy as progress
    size, energy_wh = seen.get("physical_batch_size"), seen.get("energy_wh")
    if energy_wh is not None and 0 < energy_wh < math.inf:
        error["energy_wh"] = energy_wh
    if smaller := _smaller_batch(trial, failure.kind, size):
        error["smaller_batch"] = smaller
    state: State | None = None
    if not smaller and not (step > trial.furthest_step and policy.action(failure.kind) == "retry"):
        kinds = [*fruitless_kinds(trial), failure.kind]
        state = policy.verdict(kinds, retries, others_completed=others_completed)
    began_training = step or trial.furthest_step or progress.get("phase") not in START_PHASES
    had_it_all = not trial.attempts or trial.attempts[-1].turn == 1  # other attempts of its job may have used the time
    if failure.kind == ErrorKind.WALLTIME and not began_training and had_it_all:
        state = State.FAILED  # the next attempt would not get further
        error["message"] += (
            f"; it had not begun to train (phase {progress['phase']}): its walltime is too short for its start. "
            "Raise launcher.walltime_min"
        )
    elif state is State.FAILED and _out_of_time(failure):
        error["message"] += "; it needs more than its walltime. Raise launcher.walltime_min"
    return Decision(state, error)


def _out_of_time(failure: Failure) -> bool:
    """Return whether an attempt ended with its walltime, or at the signal by which launchers have it warned before."""
    warned = failure.kind == ErrorKind.INTERRUPTED and failure.message.startswith(signal.SIGUSR2.name)
    return warned or failure.kind == ErrorKind.WALLTIME


def fruitless_kinds(trial: TrialRecord) -> list[str]:
    """Return the kinds of the failures that count: without progress, and since the trial was last reopened."""
    kinds, furthest = [], 0
    for attempt in trial.attempts:
        error = attempt.error or {}
        step = int(error.get("checkpoint_step", 0))
        if error and attempt.number >= trial.forgiven and step <= furthest and "smaller_batch" not in error:
            kinds.append(str(error["kind"]))
        furthest = max(furthest, step)
    return kinds


def _smaller_batch(trial: TrialRecord, kind: str, size: Any) -> int | None:
    """Return half of the physical batch with which an attempt ran out of memory; None if it cannot be halved."""
    if kind != ErrorKind.OUT_OF_MEMORY or not isinstance(size, int):
        return None
    size = min(size, trial.physical_batch_size or size)  # a program may ignore the size that it was given
    return size // 2 if size > 1 else None


# --------------------------------------------------------------------------------------------------------------- when

#: Failures caused by the state of a machine, which may last a while.
MACHINE_KINDS = frozenset({ErrorKind.NODE, ErrorKind.DISK, ErrorKind.VANISHED})
LONGEST_REST_S = 600.0


def rests_s(trial: TrialRecord, retry_wait_s: float) -> float:
    """Return the seconds until a trial may be tried again, if its last attempt failed because of a machine.

    Args:
        trial: a trial between two attempts.
        retry_wait_s: seconds of the first wait; the wait doubles with each such failure.
    """
    kinds = [attempt.error["kind"] for attempt in trial.attempts[trial.forgiven :] if attempt.error]
    lost = len(kinds) if kinds and kinds[-1] in MACHINE_KINDS else 0
    if not lost or not trial.attempts[-1].ended_at:
        return 0.0
    wait_s = min(retry_wait_s * 2 ** (lost - 1), LONGEST_REST_S)
    return float(wait_s - seconds_from(trial.attempts[-1].ended_at))


#: Numbers, with the characters attached to them, which differ between two messages of the same error.
_NUMBER = re.compile(r"[-+]?\d[\w.+-]*")


def all_fail_alike(ended: Sequence[TrialRecord], limit: int) -> str:
    """Return why a campaign should stop, if its first trials all failed in the same way; empty if they did not.

    Args:
        ended: trials of the budget that ended since the driver's start, in the order of their ends.
        limit: number of failed trials from which on the campaign should stop.
    """
    errors = [trial.error for trial in ended if trial.state is State.FAILED and trial.error]
    alike = {(error["kind"], _NUMBER.sub("#", error["message"])) for error in errors}
    if len(ended) < limit or len(errors) != len(ended) or len(alike) != 1:
        return ""
    return f"the first {len(ended)} trials failed alike ({errors[0]['kind']}): {first_line(errors[0]['message'])}"
