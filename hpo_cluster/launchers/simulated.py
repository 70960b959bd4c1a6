"""Jobs that are not processes: they wait, run, are lost and publish their files on a simulated clock.

The files of an attempt are those of a real job (claim, rungs, result or error), with the times of the simulated clock.
Everything random depends on a seed, a trial and the number of its attempt.
"""

from __future__ import annotations

import datetime
import heapq
import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from hpo_cluster.errors import AttemptError, HpoClusterError
from hpo_cluster.goals import GPU_SECONDS
from hpo_cluster.job import EndReason, JobRef, JobState, JobStatus
from hpo_cluster.launchers.base import Submission, make_ref
from hpo_cluster.record.attempt_files import CHECKPOINT_LIST, SCHEMA, job_identity
from hpo_cluster.record.clock import SimulatedClock, utc_now
from hpo_cluster.record.files import dumps, publish_once, read_json, replace_text
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import END, has_another_turn, job_goes_on, publish_next, read_next
from hpo_cluster.record.rung_files import publish_rung, publish_word, read_word
from hpo_cluster.settings import Settings
from hpo_cluster.trial import derive_seed

#: (params.json, share of a whole evaluation) -> result; raises AttemptError if the attempt fails.
Evaluate = Callable[[Mapping[str, Any], float], Mapping[str, Any]]

#: Mean seconds of an evaluation if neither the settings nor the objective know better.
DEFAULT_S = 600.0
#: Default of `ClusterSettings.spread`.
DEFAULT_SPREAD = 0.1
#: Attempts of a trial after which a simulation gives up: it would not end.
MOST_ATTEMPTS = 200
#: Checkpoints count the work done in this many steps.
STEPS = 1_000_000


class ClusterSettings(Settings):
    """Settings of a simulated cluster. Null: as the objective's campaign was, if it is a surrogate."""

    duration_s: float | None = Field(
        None,
        gt=0,
        description=f"mean seconds of a whole evaluation; null: as the objective predicts, or else {DEFAULT_S:g}",
    )
    spread: float | None = Field(
        None,
        ge=0,
        description="standard deviation of the logarithm of the seconds of an evaluation; null: as the objective's "
        f"campaign, or else {DEFAULT_SPREAD:g}",
    )
    waiting_s: float | None = Field(
        None,
        ge=0,
        description="mean seconds in the queue, exponentially distributed; null: as jobs of the objective's campaign "
        "waited, or else 0",
    )
    places: int | None = Field(
        None, ge=1, description="jobs that the cluster runs at the same time; null: as many as are submitted"
    )
    failure_rate: float = Field(0.0, ge=0, le=1, description="share of the jobs that are lost with their node")
    preemptions_per_hour: float = Field(0.0, ge=0, description="how often an hour of a running job is preempted")
    checkpoints: bool = Field(
        True, description="whether an attempt goes on where a preempted one, or one at its walltime, has ended"
    )


@dataclass
class _Member:
    """An attempt of a job: its files, what the driver wrote for it, and how far it is.

    `done` is the share of the evaluation at the time `since`; `goal` the share, and `rung` the rung that it works for.
    `whole_s` are the seconds of a whole evaluation in a job that has started.
    """

    files: AttemptLayout
    params: Mapping[str, Any]
    done: float = 0.0
    since: float = 0.0
    whole_s: float = 0.0
    rung: int = 0
    over: bool = False
    worked_s: float = 0.0

    @property
    def rungs(self) -> Mapping[str, Any] | None:
        """The rungs, if there are any."""
        return None if self.params.get("baseline") else self.params.get("rungs") or None

    @property
    def goal(self) -> float:
        """The share of a whole evaluation that it works for now."""
        return 1.0 if self.rungs is None else float(self.rungs["shares"][self.rung])

    @property
    def at_the_top(self) -> bool:
        """Whether the evaluation will be whole at its goal."""
        return self.rungs is None or self.rung == len(self.rungs["shares"]) - 1


@dataclass
class _Job:
    """A job: its members, and its state as a scheduler tells it."""

    ref: JobRef
    members: list[_Member]
    state: JobState = JobState.PENDING
    reason: EndReason | None = None
    claim: dict[str, Any] = field(default_factory=dict)


class SimulatedCluster:
    """A launcher whose jobs run on a simulated clock.

    Args:
        settings: of the cluster.
        clock: the clock; `advance` moves it.
        evaluate: computes results.
        seconds: (parameters) -> seconds of a whole evaluation; None if they are not known.
        waits: seconds that jobs wait, one of which is drawn for each; used if the settings do not say.
        spread: spread of the seconds, used if the settings do not say.
        start_s: part of `seconds` that each job takes once, before its first evaluation; not used if the settings say
            how long an evaluation takes.
        walltime_s: seconds after which a job is ended.
        trials_per_node: trials that share a job.
        poll_period_s: seconds between two questions to the scheduler.
        seed: what is drawn follows from it.
    """

    backend = "simulated"

    def __init__(
        self,
        settings: ClusterSettings,
        clock: SimulatedClock,
        evaluate: Evaluate,
        *,
        seconds: Callable[[Mapping[str, Any]], float | None] = lambda parameters: None,
        waits: Sequence[float] = (),
        spread: float | None = None,
        start_s: float = 0.0,
        walltime_s: float = math.inf,
        trials_per_node: int = 1,
        poll_period_s: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.trials_per_node, self.poll_period_s = trials_per_node, poll_period_s
        self._settings, self._clock, self._evaluate, self._seconds = settings, clock, evaluate, seconds
        self._waits, self._walltime_s, self._seed = sorted(waits), walltime_s, seed
        known = spread if settings.spread is None else settings.spread
        self._spread = DEFAULT_SPREAD if known is None else known
        self._start_s = start_s if settings.duration_s is None else 0.0
        self._start = clock.at
        self._events: list[tuple[float, int, Callable[[], None]]] = []  # a heap: second, order, what happens
        self._order = itertools.count()
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[_Job] = deque()  # jobs whose turn has come, and that wait for a place
        self._running = 0
        self._listening: list[tuple[_Job, _Member, float]] = []  # at a rung, waiting for the word since a second
        self._free: list[tuple[_Job, _Member, float]] = []  # ended, waiting for another attempt since a second
        self._kept: dict[int, float] = {}  # by trial: share of its evaluation that a checkpoint or a rung holds

    # ------------------------------------------------------------------------------------------------- as a launcher

    def script(self, submission: Submission) -> str:
        """Return an empty script: jobs are not processes."""
        return ""

    def command(self, submission: Submission) -> list[str]:
        """Return an empty command."""
        return []

    def submit(self, submission: Submission) -> JobRef:
        """Put the job into the queue, and return it."""
        ref = make_ref(self.backend, str(len(self._jobs) + 1), submission.token)
        members = list[_Member]()
        for folder in submission.command[-submission.trials :]:
            files = AttemptLayout(Path(folder))
            members.append(_Member(files, read_json(files.params) or {}))
        first = members[0].params
        if int(first["attempt"]) >= MOST_ATTEMPTS:
            raise HpoClusterError(
                f"trial {first['trial']} began {MOST_ATTEMPTS} times and never came to its end: its jobs are preempted "
                "or end at their walltime before that. Accepted: fewer simulate.preemptions_per_hour, a smaller "
                "simulate.duration_s, simulate.checkpoints=true, a longer launcher.walltime_min"
            )
        job = self._jobs[submission.token] = _Job(ref, members)
        self._at(self._now + self._wait_s(first), lambda: self._come_up(job))
        return ref

    def poll(self, refs: Sequence[JobRef]) -> dict[str, JobStatus]:
        """Return what a scheduler would say of each job."""
        found = {}
        for ref in refs:
            job = self._jobs.get(ref.token)
            if job is None:
                found[ref.token] = JobStatus(JobState.ENDED, EndReason.FORGOTTEN)
                continue
            detail = str(job.reason or job.state).upper()
            found[ref.token] = JobStatus(job.state, job.reason, detail, job.claim.get("node"))
        return found

    def cancel(self, ref: JobRef) -> None:
        """End the job without a result."""
        if ref.token in self._jobs:
            self._end(self._jobs[ref.token], EndReason.CANCELLED)

    def find(self, submission: Submission) -> JobRef | None:
        """Return None: a submission never stops halfway here."""
        return None

    # ----------------------------------------------------------------------------------------------------- its clock

    @property
    def next_at(self) -> datetime.datetime | None:
        """Time of the next thing that happens by itself; None if nothing does."""
        return None if not self._events else self._start + datetime.timedelta(seconds=self._events[0][0])

    @property
    def is_listening(self) -> bool:
        """Whether a job waits for the driver, at a rung or for its next attempt."""
        return bool(self._listening or self._free)

    def is_alive(self, token: str) -> bool:
        """Return whether a job waits or runs."""
        return token in self._jobs and self._jobs[token].state is not JobState.ENDED

    def advance(self, seconds: float) -> None:
        """Move the clock forward, and let happen what happens meanwhile, each thing at its own time."""
        end = self._clock.at + datetime.timedelta(seconds=seconds)
        self._hear()
        while self._events and self._start + datetime.timedelta(seconds=self._events[0][0]) <= end:
            at, _, happen = heapq.heappop(self._events)
            self._clock.at = self._start + datetime.timedelta(seconds=at)
            happen()
        self._clock.at = end

    @property
    def _now(self) -> float:
        return (self._clock.at - self._start).total_seconds()

    def _at(self, second: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (second, next(self._order), happen))

    # ------------------------------------------------------------------------------------------------------- a job

    def _come_up(self, job: _Job) -> None:
        """Start a job whose turn has come, or let it wait for a place."""
        if job.state is JobState.PENDING:
            self._queue.append(job)
            self._fill()

    def _fill(self) -> None:
        places = math.inf if self._settings.places is None else self._settings.places
        while self._queue and self._running < places:
            job = self._queue.popleft()
            if job.state is JobState.PENDING:
                self._begin(job)

    def _begin(self, job: _Job) -> None:
        job.state = JobState.RUNNING
        self._running += 1
        node = f"node{int(job.ref.job_id) % (self._settings.places or 1000)}"
        job.claim = {**job_identity(), "job": job.ref.job_id, "node": node}
        longest_s = 0.0
        for member in job.members:
            longest_s = max(longest_s, self._start_work(job, member))
        self._draw_end(job, longest_s)
        self._end_if_over(job)

    def _start_work(self, job: _Job, member: _Member) -> float:
        """Let an attempt claim its folder and begin; return the seconds until its evaluation would be whole."""
        params, trial = member.params, int(member.params["trial"])
        claim = {"token": params["token"], **job.claim, "started_at": utc_now()}
        if member.files.cancel.exists() or not publish_once(member.files.claim, dumps(claim)):
            member.over = True
            return 0.0
        replace_text(member.files.progress, dumps({"phase": "evaluate", "at": utc_now()}))
        start_s = 0.0 if int(params.get("turn") or 1) > 1 else self._start_s
        member.whole_s, member.worked_s = max(0.0, self._whole_s(params) - self._start_s), start_s
        if (rungs := member.rungs) is not None:
            member.rung = min(max(int(rungs["goal"]), int(rungs["first"])), len(rungs["shares"]) - 1)
        member.done = min(self._kept.get(trial, 0.0), member.goal)
        self._work(job, member, start_s)
        return start_s + (1 - member.done) * member.whole_s

    def _work(self, job: _Job, member: _Member, start_s: float = 0.0) -> None:
        """Let an attempt work until its goal, after the seconds that its job needs to start."""
        member.since = self._now + start_s
        self._at(member.since + (member.goal - member.done) * member.whole_s, lambda: self._arrive(job, member))

    def _arrive(self, job: _Job, member: _Member) -> None:
        """Publish what an attempt has found at its goal."""
        if member.over or job.state is not JobState.RUNNING:
            return
        if member.files.cancel.exists():
            member.over = True
            self._end_if_over(job)
            return
        member.worked_s += self._now - member.since
        member.done = member.goal
        try:
            result = self._found(member)
        except AttemptError as error:
            self._publish(job, member, member.files.error, {"kind": error.kind, "message": str(error)})
            return
        if member.at_the_top:
            self._publish(job, member, member.files.result, result)
            return
        identity = {key: member.params.get(key) for key in ("trial", "attempt", "token")}
        place = {"rung": member.rung, "share": member.goal, "step": None, "at": utc_now()}
        publish_rung(member.files, member.rung, {"schema": SCHEMA, **identity, **place, **result})
        self._kept[int(member.params["trial"])] = member.goal
        self._listening.append((job, member, self._now))

    def _found(self, member: _Member) -> dict[str, Any]:
        """Return what an attempt has measured at its goal, and the time that it took."""
        worked_s = round(member.worked_s, 3)
        return {"seconds": {"evaluate": worked_s}, GPU_SECONDS: worked_s, **self._evaluate(member.params, member.goal)}

    def _hear(self) -> None:
        """Let the attempts that wait at a rung read the driver's word, and jobs that wait their next attempt."""
        for waiting in list(self._listening):
            job, member, since = waiting
            assert member.rungs is not None
            word = read_word(member.files, member.rung)
            if word is None and self._now - since >= float(member.rungs["linger_s"]):
                word = not publish_word(member.files, member.rung, go_on=False) and read_word(member.files, member.rung)
            if word is None:
                continue
            self._listening.remove(waiting)
            if member.over or job.state is not JobState.RUNNING:
                continue
            if word:
                member.rung += 1
                self._work(job, member)
            else:
                self._publish(job, member, member.files.result, {**self._found(member), "rung": member.rung})
        for place in list(self._free):
            job, member, since = place
            decision = read_next(member.files)
            if decision is None and self._now - since >= float(member.params["linger_s"]):
                decision = END if publish_next(member.files, END) else read_next(member.files)
            if decision is None:
                continue
            self._free.remove(place)
            if decision.attempt_dir is not None:
                files = AttemptLayout(decision.attempt_dir)
                follower = _Member(files, read_json(files.params) or {})
                job.members.append(follower)
                self._start_work(job, follower)
            self._end_if_over(job)

    def _publish(self, job: _Job, member: _Member, path: Path, document: Mapping[str, Any]) -> None:
        """Publish a result or an error, with which the attempt is over; its job may wait for another one."""
        common = {key: member.params.get(key) for key in ("campaign", "trial", "attempt", "token", "code", "seed")}
        claim = read_json(member.files.claim) or {}
        whole = {"schema": SCHEMA, **common, **claim, "ended_at": utc_now(), **document}
        publish_once(path, dumps(whole))
        member.over = True
        if has_another_turn(member.params) and job_goes_on(member.files):
            self._free.append((job, member, self._now))
        self._end_if_over(job)

    def _end_if_over(self, job: _Job) -> None:
        if all(member.over for member in job.members) and not any(other is job for other, _, _ in self._free):
            self._end(job, EndReason.WELL)

    def _end(self, job: _Job, reason: EndReason) -> None:
        """End a job; what its attempts have done is lost, or kept in a checkpoint if they are warned."""
        if job.state is JobState.ENDED:
            return
        was_running, job.state, job.reason = job.state is JobState.RUNNING, JobState.ENDED, reason
        if not was_running:
            return
        self._running -= 1
        if self._settings.checkpoints and reason in (EndReason.PREEMPTED, EndReason.WALLTIME):
            for member in job.members:
                if not member.over:
                    self._keep(member)
        for place in [place for place in self._free if place[0] is job]:
            self._free.remove(place)
            publish_next(place[1].files, END)
        self._fill()

    def _keep(self, member: _Member) -> None:
        """Leave a checkpoint of an attempt's work."""
        waits = any(other is member for _, other, _ in self._listening)
        worked = 0.0 if waits or not member.whole_s else max(0.0, self._now - member.since) / member.whole_s
        done = min(member.done + worked, member.goal)
        self._kept[int(member.params["trial"])] = done
        step = int(done * STEPS)
        if step:
            folder = member.files.checkpoint_dir / str(step)
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / CHECKPOINT_LIST, dumps({"step": step, "files": {}}))

    # ------------------------------------------------------------------------------------------------ what is drawn

    def _uniform(self, params: Mapping[str, Any], what: str, *, each_attempt: bool = True) -> float:
        """Return a number above 0 and below 1 that depends on the trial, its attempt and what it is for."""
        attempt = int(params["attempt"]) if each_attempt else -1
        return (derive_seed(self._seed, "cluster", what, int(params["trial"]), attempt) + 0.5) / 2**31

    def _wait_s(self, params: Mapping[str, Any]) -> float:
        u = self._uniform(params, "wait")
        if self._settings.waiting_s is not None:
            return -math.log(u) * self._settings.waiting_s
        return self._waits[int(u * len(self._waits))] if self._waits else 0.0

    def _whole_s(self, params: Mapping[str, Any]) -> float:
        """Return the seconds that a whole evaluation of a trial takes."""
        mean = self._settings.duration_s
        if mean is None:
            mean = self._seconds(params["parameters"]) or DEFAULT_S
        draw = statistics.NormalDist().inv_cdf(self._uniform(params, "duration", each_attempt=False))
        return mean * math.exp(self._spread * draw - self._spread**2 / 2)

    def _draw_end(self, job: _Job, longest_s: float) -> None:
        """Draw when a job is lost, preempted or at its walltime, if that happens before it is done."""
        params, ends = job.members[0].params, [(self._walltime_s, EndReason.WALLTIME)]
        if (u := self._uniform(params, "lost")) < self._settings.failure_rate:
            ends.append((longest_s * u / self._settings.failure_rate, EndReason.NODE))
        if rate := self._settings.preemptions_per_hour:
            ends.append((-math.log(self._uniform(params, "preempted")) * 3600 / rate, EndReason.PREEMPTED))
        second, reason = min(ends)
        if second < math.inf:
            self._at(self._now + second, lambda: self._end(job, reason))
