"""What becomes of a trial whose attempt failed, by the kind of failure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from hpo_cluster.trial import State

#: ``retry``: another attempt, `retries` of them at most; ``requeue``: another attempt, however often; the others are
#: the state that the trial ends in. ``learn`` is infeasible once another trial has completed, and failed before: a
#: program that has worked elsewhere fails because of the configuration, one that never has says nothing about it.
Action: TypeAlias = Literal["retry", "requeue", "learn", "diverged", "infeasible", "failed"]


class Failures(BaseModel):
    """The policy for each kind of failure. Attempts that are made again are never told to the optimizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        """The policy of a kind; a kind that nobody knows is one of the program's."""
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
