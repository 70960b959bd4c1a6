"""What a failed attempt died of, and what becomes of its trial: the one place where a retry is decided.

The cause comes from the attempt's own files first, from the scheduler second, from the end of its log last
(`reported_failure`, `explained`, `silent_failure`). What follows from it is `decide`; `rests_s` says when a trial that
is to be tried again may be, and `all_fail_alike` when the whole campaign had better stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pydantic import Field

from hpo_cluster.job import EndReason, JobStatus
from hpo_cluster.record.attempt_files import checkpoint_step, document_of, log_tail, result_faults, sound_fields
from hpo_cluster.record.campaign_state import TrialRecord
from hpo_cluster.record.clock import seconds_since
from hpo_cluster.record.files import is_there, read_json, redact
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.settings import Settings
from hpo_cluster.trial import ErrorKind, State

#: ``retry``: another attempt, `retries` of them at most; ``requeue``: another attempt, however often; the others are
#: the state that the trial ends in. ``learn`` is infeasible once another trial has completed, and failed before: a
#: program that has worked elsewhere fails because of the configuration, one that never has says nothing about it.
Action: TypeAlias = Literal["retry", "requeue", "learn", "diverged", "infeasible", "failed"]


class Failures(Settings):
    """The action for each kind of failure. An attempt that is made again is no result for the optimizer."""

    node: Action = Field("retry", description="the node failed, or the job could not start on it")
    preempted: Action = Field("requeue", description="the nodes were wanted for others")
    interrupted: Action = Field("retry", description="the job was asked to end, and said so")
    walltime: Action = Field("retry", description="the job's time was over")
    cancelled: Action = Field("retry", description="somebody ended the job with the scheduler's own command")
    vanished: Action = Field("retry", description="the job ended and left nothing")
    disk: Action = Field("retry", description="no space or no right to write")
    out_of_memory: Action = Field("infeasible", description="of the device or the host")
    diverged: Action = Field("diverged", description="a loss that is NaN or infinite")
    bad_data: Action = Field("failed", description="training data that cannot be read as what it should be")
    missing_task: Action = Field("failed", description="an lm-eval task that is not there")
    missing_model: Action = Field("failed", description="no checkpoint where the configuration says")
    bad_config: Action = Field("failed", description="settings that do not fit the tasks, the model or one another")
    bad_result: Action = Field("failed", description="the objective's output is not what was agreed")
    code: Action = Field("learn", description="any other exception: the program or its configuration")

    def action(self, kind: str) -> Action:
        """Return the action of a kind; a kind that nobody knows counts as `code`."""
        action: Action = getattr(self, kind) if kind in type(self).model_fields else self.code
        return action

    def verdict(self, kinds: Iterable[str], retries: int, *, others_completed: bool = False) -> State | None:
        """Return the state that a trial ends in after failed attempts, or None if another attempt is to be made.

        Args:
            kinds: of the attempts' errors, the last one included.
            retries: attempts that may follow the first.
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

#: What a job that left no report most probably died of, by why its scheduler says it ended.
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

#: Those of them for which a scheduler asks a job to end.
REASONS_TO_END = frozenset({ErrorKind.WALLTIME, ErrorKind.PREEMPTED, ErrorKind.NODE, ErrorKind.CANCELLED})
#: Seconds after an attempt's report in which the scheduler may still say why it was asked to end.
REASON_WITHIN_S = 60.0

#: The kind by what a job's log ends with, if the scheduler says no more than that the job is over.
KINDS_OF_WORDS: tuple[tuple[re.Pattern[str], ErrorKind], ...] = (
    (re.compile(r"CUDA out of memory|OutOfMemoryError|oom[-_ ]kill|Out Of Memory", re.I), ErrorKind.OUT_OF_MEMORY),
    (re.compile(r"DUE TO TIME LIMIT", re.I), ErrorKind.WALLTIME),
    (re.compile(r"DUE TO PREEMPTION", re.I), ErrorKind.PREEMPTED),
    (re.compile(r"Node failure|DUE TO NODE FAILURE|Communication connection failure", re.I), ErrorKind.NODE),
    (re.compile(r"No space left on device|Disk quota exceeded|Stale file handle", re.I), ErrorKind.DISK),
)


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended without a result. `seen` is its error file, if it wrote one."""

    kind: str
    message: str
    seen: Mapping[str, Any] = field(default_factory=dict)


def reported_failure(files: AttemptLayout, token: str) -> Failure | None:
    """Return what the attempt's own files say went wrong; None if they say nothing."""
    if is_there(files.result) and (faults := result_faults(read_json(files.result))):
        return Failure(ErrorKind.BAD_RESULT, f"{files.result.name}: {'; '.join(faults)}")
    error = document_of(files.error, token)
    if error is None:
        return None
    return Failure(error.get("kind", ErrorKind.CODE), error.get("message", "its error file says no more"), error)


def awaits_reason(failure: Failure) -> bool:
    """Return whether an attempt has only just said that it was asked to end: its scheduler may soon say why."""
    ended_at = failure.seen.get("ended_at")
    if failure.kind != ErrorKind.INTERRUPTED or not isinstance(ended_at, str):
        return False
    return seconds_since(ended_at) < REASON_WITHIN_S


def explained(failure: Failure, status: JobStatus) -> Failure:
    """Add the scheduler's reason to a failure, if all that the attempt knows is that it was asked to end."""
    kind = KINDS_OF_REASONS[status.reason] if status.reason is not None else ErrorKind.VANISHED
    if failure.kind != ErrorKind.INTERRUPTED or kind not in REASONS_TO_END:
        return failure
    return Failure(kind, f"{failure.message} ({status.detail})", failure.seen)


def silent_failure(files: AttemptLayout, job_id: str | None, status: JobStatus) -> Failure:
    """Return why a job that is over for its scheduler, and has published nothing, most probably ended."""
    tail = log_tail(files)
    kind = KINDS_OF_REASONS[status.reason] if status.reason is not None else ErrorKind.VANISHED
    if kind is ErrorKind.VANISHED:
        kind = next((kind for pattern, kind in KINDS_OF_WORDS if pattern.search(tail)), kind)
    said = f" ({status.detail})" if status.detail else ""
    lines = [line for line in tail.splitlines() if line.strip()]
    words = f"; its log ends: {lines[-1].strip()[:300]}" if lines else ""
    return Failure(kind, f"job {job_id} ended{said} and left no result{words}")


# ----------------------------------------------------------------------------------------------------------- decision

#: Phases of a job before the work that a checkpoint could keep.
START_PHASES = ("import", "load")


@dataclass(frozen=True)
class Decision:
    """What becomes of a trial whose attempt failed.

    Args:
        state: that the trial ends in; None: it is tried again.
        error: of the attempt (JSON), as the journal keeps it.
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

    A failure counts towards `retries` only if nothing came of the attempt. Something came of one that left a
    checkpoint further on than those before it, and of one that ran out of memory with a physical batch that can be
    halved: the next attempt goes on, or gets by with less.

    Args:
        trial: before the failure is journaled.
        failure: of its last attempt.
        files: of that attempt.
        policy: action of each kind.
        retries: attempts that may follow the first.
        others_completed: whether another trial of the campaign has completed.
    """
    error: dict[str, Any] = {"kind": failure.kind, "message": redact(failure.message)}
    step = checkpoint_step(files)
    if step:
        error["checkpoint_step"] = step
    progress = sound_fields(read_json(files.progress) or {}, files.progress)
    size = {**progress, **failure.seen}.get("physical_batch_size")  # a killed attempt has reported its batch before
    if smaller := _smaller_batch(trial, failure.kind, size):
        error["smaller_batch"] = smaller
    state: State | None = None
    if not smaller and not (step > trial.furthest_step and policy.action(failure.kind) == "retry"):
        kinds = [*fruitless_kinds(trial), failure.kind]
        state = policy.verdict(kinds, retries, others_completed=others_completed)
    began_training = step or trial.furthest_step or progress.get("phase") not in START_PHASES
    if failure.kind == ErrorKind.WALLTIME and not began_training:
        state = State.FAILED  # the next attempt would not get further
        error["message"] += (
            f"; it had not begun to train (phase {progress['phase']}): its time is shorter than its start. Give it "
            "more: launcher.walltime_min"
        )
    return Decision(state, error)


def fruitless_kinds(trial: TrialRecord) -> list[str]:
    """Return the kinds of the failures that nothing came of since the trial was last reopened: those that count."""
    kinds, furthest = [], 0
    for attempt in trial.attempts:
        error = attempt.error or {}
        step = int(error.get("checkpoint_step", 0))
        if error and attempt.number >= trial.forgiven and step <= furthest and "smaller_batch" not in error:
            kinds.append(str(error["kind"]))
        furthest = max(furthest, step)
    return kinds


def _smaller_batch(trial: TrialRecord, kind: str, size: Any) -> int | None:
    """Return half of the physical batch that an attempt ran out of memory with, if there is a half to try."""
    if kind != ErrorKind.OUT_OF_MEMORY or not isinstance(size, int):
        return None
    size = min(size, trial.physical_batch_size or size)  # a program may ignore what it is given
    return size // 2 if size > 1 else None


# --------------------------------------------------------------------------------------------------------------- when

#: Failures that a machine's state causes, which may last a while.
MACHINE_KINDS = frozenset({ErrorKind.NODE, ErrorKind.DISK, ErrorKind.VANISHED})
LONGEST_REST_S = 600.0


def rests_s(trial: TrialRecord, retry_wait_s: float) -> float:
    """Return the seconds until a trial whose last attempt was lost to a machine may be tried again.

    Args:
        trial: between two attempts.
        retry_wait_s: seconds of the first wait; it doubles with each loss.
    """
    kinds = [attempt.error["kind"] for attempt in trial.attempts[trial.forgiven :] if attempt.error]
    lost = len(kinds) if kinds and kinds[-1] in MACHINE_KINDS else 0
    if not lost or not trial.attempts[-1].ended_at:
        return 0.0
    wait_s = min(retry_wait_s * 2 ** (lost - 1), LONGEST_REST_S)
    return float(wait_s - seconds_since(trial.attempts[-1].ended_at))


#: Numbers and what is attached to them differ between two messages of one error.
_NUMBER = re.compile(r"[-+]?\d[\w.+-]*")


def all_fail_alike(ended: Sequence[TrialRecord], limit: int) -> str:
    """Return why a campaign had better stop, if its first trials all failed in the same way; empty if they did not.

    Args:
        ended: trials of the budget that have ended since the driver's start, in that order.
        limit: how many it takes.
    """
    errors = [trial.error for trial in ended if trial.state is State.FAILED and trial.error]
    alike = {(error["kind"], _NUMBER.sub("#", error["message"])) for error in errors}
    if len(ended) < limit or len(errors) != len(ended) or len(alike) != 1:
        return ""
    return f"the first {len(ended)} trials failed alike ({errors[0]['kind']}): {errors[0]['message']}"
