"""A trial and its attempts as the journal tells of them, and what an event changes in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from hpo_cluster.job import JobRef
from hpo_cluster.record.climb import RUNG_EVENTS, Climb, Score, rest, sem_of, take
from hpo_cluster.record.clock import moment, seconds_between
from hpo_cluster.record.journal import Event
from hpo_cluster.trial import BASELINE, Origin, State

if TYPE_CHECKING:
    from hpo_cluster.space import Configuration

#: The metric of a result that holds the energy of its attempt.
ENERGY = "energy_wh"

#: A trial and one of its attempts, by their numbers: where a running job is, or has just been.
Place: TypeAlias = tuple[int, int]


@dataclass
class AttemptRecord:
    """One attempt at a trial, from the intent to submit its job to its end. The job may hold other attempts too."""

    number: int
    token: str
    job_name: str
    code: str
    job: JobRef | None = None
    started_at: str | None = None
    job_id: str | None = None
    node: str | None = None
    gpus: int = 0
    ended_at: str | None = None  # as its job says; as the driver noted it, if the job left no word
    noted_at: str | None = None  # when the driver noted its end
    error: dict[str, Any] | None = None
    over: bool = False
    after: Place | None = None  # the attempt that the same job evaluated just before this one
    turn: int = 1  # number of attempts that the job evaluated one after another, this one included
    idle_since: str | None = None  # end of the attempt before it in the same job
    launcher: Mapping[str, Any] = field(default_factory=dict)  # settings with which the job was submitted
    rung: int | None = None  # at which the attempt ended, if it ended at a rung
    energy_wh: float = 0.0  # that it measured, if it ended at a rung
    goal: int = 0  # rung up to which the trial could climb when the attempt was intended

    @property
    def occupied_since(self) -> str | None:
        """Time from which on the job's GPUs count as used for this attempt; None if it has not begun."""
        return self.started_at and (self.idle_since or self.started_at)

    @property
    def took_s(self) -> float:
        """The seconds from the claim to the end; 0 if it has not begun or not ended."""
        return seconds_between(self.started_at, self.ended_at)

    def end(self, event: Event) -> None:
        """Note the end of the attempt, as its job dated it, but not before its start nor after the event.

        The driver may have noted it long after: it was away, or busy. Clocks of nodes may differ from the driver's.
        """
        self.over, self.noted_at = True, event["at"]
        end = event["at"]
        if event.get("ended_at"):
            end = min(event["ended_at"], end, key=moment)
        if self.started_at:
            end = max(self.started_at, end, key=moment)
        self.ended_at = end

    @property
    def may_be_followed(self) -> bool:
        """Whether the job may evaluate another attempt after this one."""
        return self.job is not None and self.turn < self.launcher.get("trials_per_job", 1)


@dataclass
class TrialRecord:
    """One decision of the optimizer and its evaluation."""

    number: int
    parameters: Configuration
    seed: int
    origin: Origin
    asked_seq: int
    info: dict[str, Any] = field(default_factory=dict)
    state: State = State.PROPOSED
    value: float | None = None
    value_sem: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    sems: dict[str, float] = field(default_factory=dict)  # standard errors of the metrics, with several objectives
    attempts: list[AttemptRecord] = field(default_factory=list)
    submitted_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    ended_seq: int | None = None
    error: dict[str, Any] | None = None
    forgiven: int = 0  # number of attempts before it was last reopened or paused, whose failures no longer count
    climb: Climb | None = None  # in a campaign with rungs
    spent: float = 0  # part of the budget that it has used
    committed: float = 0  # part of the budget that it will have used when its goal is reached
    version: int = 0  # grows with each event that changes the trial

    @property
    def attempt(self) -> AttemptRecord | None:
        """The attempt that is in progress; None before the first, between two and after the last."""
        return self.attempts[-1] if self.attempts and not self.attempts[-1].over else None

    @property
    def began(self) -> int:
        """The number of attempts whose job began to evaluate."""
        return sum(attempt.started_at is not None for attempt in self.attempts)

    @property
    def furthest_step(self) -> int:
        """The latest step of the checkpoints that failed attempts left; 0 without a checkpoint."""
        return max((_checkpoint_step(attempt) for attempt in self.attempts), default=0)

    @property
    def physical_batch_size(self) -> int | None:
        """The batch size that the next attempt may use after attempts that ran out of memory; None: the setting's."""
        sizes = [(attempt.error or {}).get("smaller_batch") for attempt in self.attempts]
        return min((size for size in sizes if size is not None), default=None)

    @property
    def energy_wh(self) -> float:
        """The watt-hours that its ended attempts have measured; 0 if nothing counted them, and of an imported trial."""
        if self.origin is Origin.IMPORTED:
            return 0.0
        lost = sum(attempt.energy_wh + float((attempt.error or {}).get("energy_wh", 0.0)) for attempt in self.attempts)
        return lost + max(0.0, self.metrics.get(ENERGY, 0.0))

    @property
    def took_s(self) -> float:
        """The seconds of the evaluation; of a trial with rungs, those of its attempts."""
        if self.climb is None:
            return seconds_between(self.started_at, self.ended_at)
        return sum(attempt.took_s for attempt in self.attempts)

    @property
    def has_value(self) -> bool:
        """Whether the budget counts the trial, and it has completed with a value."""
        return self.in_budget and self.state is State.COMPLETED and self.value is not None

    @property
    def in_budget(self) -> bool:
        """Whether the budget counts the trial, now or when it has ended."""
        return self.number > BASELINE and self.origin is Origin.EVALUATED


def may_be_retried(trial: TrialRecord) -> bool:
    """Return whether a trial has ended without a value, and can be tried again."""
    return trial.state.ended and trial.state is not State.PAUSED and trial.value is None


#: A trial with one of its attempts.
Member: TypeAlias = tuple[TrialRecord, AttemptRecord]


def advance(trial: TrialRecord, kind: str, event: Event) -> None:
    """Update a trial by an event of the journal that names it."""
    if kind == "intent":
        names = event["token"], event.get("job_name") or event["token"]
        goal = 0 if trial.climb is None else trial.climb.goal
        made = AttemptRecord(event["attempt"], *names, event["code"], turn=event.get("turn", 1), goal=goal)
        if trial.attempt is not None and trial.attempt.number == made.number:
            trial.attempts[-1], trial.state = made, State.PROPOSED
        else:
            trial.attempts.append(made)
        return
    attempt = trial.attempts[event["attempt"]] if event.get("attempt") is not None else None
    if attempt is not None:
        attempt.job_id = event.get("job_id", attempt.job_id)
        attempt.node = event.get("node", attempt.node)
        attempt.started_at = event.get("started_at", attempt.started_at)
        trial.started_at = trial.started_at or attempt.started_at
    if kind == "submitted" and attempt is not None:
        attempt.job, attempt.gpus = JobRef(**event["job"]), event.get("gpus", 0)
        attempt.job_id = attempt.job_id or attempt.job.job_id
        since = attempt.job.submitted_at if attempt.after is None else event["at"]
        trial.submitted_at = trial.submitted_at or since
        trial.state = State.SUBMITTED
    elif kind == "running":
        trial.state = State.RUNNING
    elif kind in RUNG_EVENTS:
        take(trial, event)
    elif kind == "reopened":
        trial.forgiven = len(trial.attempts)
        trial.ended_at = trial.ended_seq = trial.error = None
        rest(trial, event)
    elif kind == "attempt_failed" and attempt is not None:
        attempt.error = event["error"]
        attempt.end(event)
        rest(trial, event)
    elif kind == "ended":
        if attempt is not None:
            attempt.error = event.get("error")
            attempt.end(event)
        trial.state = State(event["state"])
        trial.value, trial.value_sem = event.get("value"), sem_of(event)
        trial.metrics, trial.sems = event.get("metrics") or {}, event.get("sems") or {}
        trial.error = event.get("error")
        trial.ended_at, trial.ended_seq = event["at"] if attempt is None else attempt.ended_at, event["seq"]
        if trial.climb is not None and trial.state is State.COMPLETED:
            trial.climb.scores[trial.climb.top], trial.climb.goal = Score.of(event), trial.climb.top


def take_over(trial: TrialRecord, row: Mapping[str, Any], event: Event) -> None:
    """Complete a trial that was evaluated elsewhere; its row says how it ended."""
    trial.state, trial.value, trial.value_sem = State(row["state"]), row.get("value"), sem_of(row)
    trial.metrics, trial.sems, trial.error = row.get("metrics") or {}, row.get("sems") or {}, row.get("error")
    trial.submitted_at, trial.started_at = row.get("submitted_at"), row.get("started_at")
    trial.ended_seq, trial.ended_at = event["seq"], row.get("ended_at") or event["at"]
    for number in range(row.get("attempts") or 0):
        attempt = AttemptRecord(number, "", "", "", started_at=row.get("started_at") or event["at"], over=True)
        attempt.job_id, attempt.node, attempt.ended_at = row.get("job"), row.get("node"), trial.ended_at
        trial.attempts.append(attempt)


def _checkpoint_step(attempt: AttemptRecord) -> int:
    return int((attempt.error or {}).get("checkpoint_step", 0))
