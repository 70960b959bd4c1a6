"""The state of a campaign: its trials and attempts, computed from the events of the journal, without pandas.

The events:

| event | fields | meaning |
|---|---|---|
| ``created`` | campaign, code, trials, fidelity | the first line; imported trials; the rungs, if there are any |
| ``started`` | host, pid, dir, operation, settings, overrides, code, versions, tick | a driver (or a tick) began |
| ``asked`` | trials, decision | one answer of `Optimizer.ask`, all or nothing |
| ``intent`` | trial, attempt, token, job_name, code | a job is about to be submitted; a second one replaces the first |
| | after, turn | the same, of an attempt that is given to a running job: `after` names the attempt before it |
| ``submitted`` | trial, attempt, job, adopted | the scheduler has the job (`adopted`: a job of this token was found) |
| ``running`` | trial, attempt, job, node, started_at | the job has claimed its attempt |
| ``attempt_failed`` | trial, attempt, error, ended_at | the attempt failed; the trial goes on |
| ``ended`` | trial, attempt, state, value, value_sem, metrics, … | the trial has ended (several objectives: `sems`) |
| | ended_at | in this and other events: when the job ended, as it says itself; `at` is when the driver noted it |
| ``commanded`` | id, verb, trial | a command from the inbox was carried out |
| ``rung`` | trial, attempt, rung, value, value_sem, metrics, step, seconds | the trial was scored at a rung |
| ``promoted`` | trial, rung, why | the trial may climb up to this rung now |
| ``paused`` | trial, attempt, rung, ended_at | the attempt has ended at this rung, which was its goal |
| ``reopened`` | trial | an ended trial will be tried again |
| ``stopped`` | reason | the driver released the campaign |
| ``repaired`` | damaged, lost_lines, rebuilt, sound | the journal was rebuilt from its valid lines and files |
| | | `sound`: number of its first events before which nothing was lost |
"""

from __future__ import annotations

import bisect
import contextlib
import datetime
import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from hpo_cluster.errors import JournalError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.goals import Goals, Point, dominates
from hpo_cluster.record.climb import Climb, costs, sem_of
from hpo_cluster.record.clock import is_time, moment, seconds_between
from hpo_cluster.record.journal import Event, read_journal
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import AttemptRecord, Member, Place, TrialRecord, advance, take_over
from hpo_cluster.text import command_line
from hpo_cluster.trial import BASELINE, Ask, ErrorKind, Origin, Proposal, Settled, State, derive_seed

T = TypeVar("T")

#: Why a tick stops: the next one goes on.
BETWEEN_TICKS = "between ticks"
#: Why a driver or a tick stops that was told to by the command `stop`.
BY_STOP = "stopped from another terminal"


class Record:
    """The trials of a campaign in the order of their numbers, and the starts of its drivers.

    What the driver needs twice a second (trials in flight, budget spent, best trial, hours used) is updated with each
    event. So its cost depends on the number of trials in flight and not on the length of the campaign.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.trials: dict[int, TrialRecord] = {}
        self.created: Event | None = None
        self.starts: list[Event] = []
        self.stopped: Event | None = None
        self.rested_s = 0.0  # between the end of a finished campaign and what it was given to do after that
        self.commands: set[str] = set()
        self.halted = False  # stopped from another terminal: ticks submit nothing until `resume`
        self.left_out = 0  # stale lines of the journal, by drivers that had lost the campaign
        self.last: Event | None = None
        self.ladder: Ladder | None = None  # the rungs, if there are any
        self.any_scored = False  # whether a trial was scored at a rung below the top
        self.rung_tables: dict[bool, tuple[int, list[dict[str, Any]]]] = {}  # by `maximize`, with `seq` at that time
        self._spent: float = 0
        self._committed: float = 0
        self.counts: Counter[State] = Counter()  # number of trials of the optimizer in each state
        self._rows: list[TrialRecord] = []
        self._imported: list[TrialRecord] = []
        self.confirmations: list[TrialRecord] = []  # the best configurations again, outside the budget
        self._in_flight: dict[int, TrialRecord] = {}
        self._with_error: dict[int, TrialRecord] = {}
        self._with_lost_attempts: dict[int, TrialRecord] = {}
        self._evaluation_s: dict[int, float] = {}
        self._gpu_s: dict[int, float] = {}  # by trial: seconds of its ended attempts
        self._energy_wh: dict[int, float] = {}  # by trial: as its ended attempts measured it
        self._on_gpu: dict[int, list[AttemptRecord]] = {}  # by trial: its attempts that run on a GPU now
        self._best: dict[bool, TrialRecord | None] = {}  # by `maximize`; without an entry it has to be searched
        self._fronts: dict[Goals, list[tuple[Point, TrialRecord]]] = {}  # likewise, with several objectives: targets
        self._left: dict[Place, None] = {}  # ended attempts whose job may evaluate another one, in order of their ends
        self.longest_evaluation_s = 0.0  # of the attempts that have completed
        for event in events:
            self.apply(event)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return the record of a journal file.

        Raises:
            JournalError: if it cannot be read, or is empty although there are attempts.
        """
        with _keeping_everything():
            contents = read_journal(path)
            if not contents.events:
                refuse_if_emptied(CampaignLayout(path.parent))
            record = cls.of(contents.events, path)
        record.left_out = contents.left_out
        return record

    @classmethod
    def of(cls, events: Iterable[Event], path: Path) -> Record:
        """Return the record of the events of a journal file.

        Raises:
            JournalError: if one of them does not fit what came before it.
        """
        record = cls()
        record.extend(events, path)
        return record

    def extend(self, events: Iterable[Event], path: Path) -> None:
        """Update the record by the next events of a journal file; sums and lists over all trials once, at their end.

        Raises:
            JournalError: if one of them does not fit what came before it.
        """
        changed: dict[int, tuple[State | None, Event]] = {}  # by trial: its state before, and the last of its events
        event: Event = {}
        try:
            for event in events:
                _check(event)
                for trial, before in self._advance(event):
                    changed[trial.number] = changed.get(trial.number, (before,))[0], event
            for number, (before, last) in changed.items():
                event = last
                self._note(self.trials[number], before)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise JournalError(
                f"{path}: event number {event['seq']} ({event['event']}) does not fit those before it; was the "
                "file edited? Rebuild it from what fits and from the jobs' files:  "
                f"{command_line('repair', path.parent)}"
            ) from error

    def apply_read(self, event: Event) -> None:
        """Update the record by an event that was read from a file, where people may have edited it.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: if it does not fit those before it.
        """
        _check(event)
        self.apply(event)

    def apply(self, event: Event) -> None:
        """Update the record by one event."""
        for trial, before in self._advance(event):
            self._note(trial, before)

    def _advance(self, event: Event) -> list[tuple[TrialRecord, State | None]]:
        """Update all but sums and lists by one event; return the trials that have changed, with their states before."""
        kind = event["event"]
        if kind in ("asked", "started") and self.last and (self.stopped or {}).get("reason") == "finished":
            self.rested_s += max(0.0, seconds_between(self.last["at"], event["at"]))
        self.last = event
        if kind == "created":
            self.created = event
            self.ladder = Ladder.from_json(event.get("fidelity"))
            return [(self._ask(row, event), None) for row in event.get("trials", ())]
        if kind == "started":
            self.starts.append(event)
            self.stopped = None
            self.halted = self.halted and bool(event.get("tick"))
        elif kind == "stopped":
            self.stopped = event
        elif kind == "commanded":
            self.commands.add(event["id"])
            self.halted = self.halted or event["verb"] == "stop"
        elif kind == "asked":
            return [(self._ask(row, event), None) for row in event["trials"]]
        elif kind != "repaired":
            trial = self.trials[event["trial"]]
            before = trial.state
            advance(trial, kind, event)
            trial.version += 1
            self._note_job(trial, kind, event)
            return [(trial, before)]
        return []

    def _ask(self, row: dict[str, Any], event: Event) -> TrialRecord:
        origin = Origin(row["origin"])
        trial = TrialRecord(row["trial"], row["parameters"], row["seed"], origin, event["seq"], row.get("info", {}))
        if origin not in (Origin.EVALUATED, Origin.BASELINE, Origin.CONFIRMATION):
            trial.state, trial.value = State.COMPLETED, row.get("value")
            trial.value_sem, trial.metrics = sem_of(row), row.get("metrics") or {}
            trial.sems = row.get("sems") or {}
            trial.ended_seq, trial.ended_at = event["seq"], row.get("ended_at") or event["at"]
        elif "state" in row:
            take_over(trial, row, event)
        elif self.ladder is not None and origin is Origin.EVALUATED:
            trial.climb = Climb.of(self.ladder, trial.info)
        self.trials[trial.number] = trial
        if origin is Origin.IMPORTED:
            self._imported.append(trial)
        if origin is Origin.CONFIRMATION:
            self.confirmations.append(trial)
        if self._rows and trial.number < self._rows[-1].number:
            bisect.insort(self._rows, trial, key=lambda row: row.number)
        else:
            self._rows.append(trial)
        return trial

    def _note(self, trial: TrialRecord, before: State | None) -> None:
        """Update the sums and lists over all trials for a trial that has changed; `before` is its previous state."""
        number, state = trial.number, trial.state
        if number > BASELINE and trial.origin is not Origin.IMPORTED:
            self.counts[state] += 1
            if before is not None:
                self.counts[before] -= 1
        spent, committed = costs(trial, self.ladder)
        self._spent += spent - trial.spent
        self._committed += committed - trial.committed
        trial.spent, trial.committed = spent, committed
        self.any_scored = self.any_scored or (trial.climb is not None and bool(trial.climb.scores))
        _put(self._in_flight, number, None if state.ended else trial)
        _put(self._with_error, number, trial if trial.error is not None else None)
        _put(self._with_lost_attempts, number, trial if any(a.error for a in trial.attempts) else None)
        timed = trial.in_budget and state is State.COMPLETED and trial.started_at and trial.ended_at
        _put(self._evaluation_s, number, trial.took_s if timed else None)
        on_gpu = [attempt for attempt in trial.attempts if attempt.gpus and attempt.started_at]
        seconds = (a.gpus * seconds_between(a.occupied_since, a.ended_at) for a in on_gpu if a.ended_at)
        _put(self._gpu_s, number, sum(seconds) if on_gpu else None)
        _put(self._energy_wh, number, trial.energy_wh or None)
        _put(self._on_gpu, number, [attempt for attempt in on_gpu if not attempt.ended_at] or None)
        if before is not None and before.ended:
            self._best.clear()  # this trial may have been the best
            self._fronts.clear()
        for maximize, best in self._best.items():
            if trial.has_value and (best is None or _rank(trial, maximize) > _rank(best, maximize)):
                self._best[maximize] = trial
        for goals, front in self._fronts.items():
            self._fronts[goals] = _with_one_more(front, trial, goals)

    def _note_job(self, trial: TrialRecord, kind: str, event: Event) -> None:
        """Note which jobs may evaluate another attempt, and how long evaluations take."""
        if kind == "intent" and event.get("after"):
            attempt, before = trial.attempts[-1], (int(event["after"][0]), int(event["after"][1]))
            attempt.after, attempt.idle_since = before, self.member(before)[1].ended_at
            self._left.pop(before, None)
        elif kind == "submitted" and self.starts:
            attempt = trial.attempts[event["attempt"]]
            attempt.launcher = self.starts[-1].get("settings", {}).get("launcher") or {}
        elif kind in ("attempt_failed", "ended", "paused") and event.get("attempt") is not None:
            attempt = trial.attempts[event["attempt"]]
            if attempt.may_be_followed:
                self._left[trial.number, attempt.number] = None
            if trial.state is State.COMPLETED or kind == "paused":
                self.longest_evaluation_s = max(self.longest_evaluation_s, attempt.took_s)

    def member(self, place: Place) -> Member:
        """Return a trial and its attempt by their numbers."""
        trial = self.trials[place[0]]
        return trial, trial.attempts[place[1]]

    def left(self) -> Iterator[Member]:
        """Yield the ended attempts whose job may evaluate another one and was not given any, the last to end first."""
        return map(self.member, reversed(self._left))

    @property
    def is_between_ticks(self) -> bool:
        """Whether the last driver was a tick, so that the next one is expected."""
        return (self.stopped or {}).get("reason") == BETWEEN_TICKS

    @property
    def is_finished(self) -> bool:
        """Whether the last driver has spent the budget, and nothing is under way."""
        return (self.stopped or {}).get("reason") == "finished" and not self.in_flight

    @property
    def rows(self) -> list[TrialRecord]:
        """The trials in the order of their numbers; confirmations and the baseline come first."""
        return [*self._rows]

    @property
    def in_flight(self) -> list[TrialRecord]:
        """The trials that have not ended: the baseline, confirmations and all others, each in the order of asking."""
        numbers = sorted(self._in_flight, key=lambda number: (number > BASELINE, abs(number)))
        return [self._in_flight[number] for number in numbers]

    @property
    def with_error(self) -> list[TrialRecord]:
        """The trials that ended with an error."""
        return [self._with_error[number] for number in sorted(self._with_error)]

    @property
    def made_elsewhere(self) -> list[TrialRecord]:
        """The trials that the campaign began with: imported, or those of a campaign that was made elsewhere."""
        return [trial for trial in self._rows if self.created is not None and trial.asked_seq == self.created["seq"]]

    @property
    def imported(self) -> list[TrialRecord]:
        """The trials imported from earlier campaigns."""
        return [*self._imported]

    def best_imported(self, *, maximize: bool) -> TrialRecord | None:
        """Return the imported trial with the best value, the first of equals; None if there is none."""
        return max(self._imported, key=lambda trial: _rank(trial, maximize), default=None)

    @property
    def seq(self) -> int:
        """The number of the last event; -1 before the first."""
        return -1 if self.last is None else int(self.last["seq"])

    @property
    def spent(self) -> float:
        """The part of the budget that is used; with rungs, in whole evaluations."""
        return self._spent if self.ladder is None else round(self._spent, 9)

    @property
    def committed(self) -> float:
        """The part of the budget that will be used when all trials in flight have reached their goals."""
        return self._committed if self.ladder is None else round(self._committed, 9)

    @property
    def next_trial(self) -> int:
        """The number of the next trial."""
        return self._rows[-1].number + 1 if self._rows else 0

    @property
    def mean_evaluation_s(self) -> float | None:
        """The mean seconds from first start to end of this campaign's completed trials; None before the first."""
        return sum(self._evaluation_s.values()) / len(self._evaluation_s) if self._evaluation_s else None

    @property
    def valued(self) -> list[TrialRecord]:
        """The completed trials of the budget that have a value, in the order of their numbers."""
        return [trial for trial in self._rows if trial.has_value]

    def best(self, *, maximize: bool) -> TrialRecord | None:
        """Return the completed trial with the best value, the first of equals; None if there is none."""
        if maximize not in self._best:
            self._best[maximize] = max(self.valued, key=lambda trial: _rank(trial, maximize), default=None)
        return self._best[maximize]

    def front(self, goals: Goals) -> list[TrialRecord]:
        """Return the completed trials that satisfy the constraints and that no other one dominates.

        The best by the first objective comes first.
        """
        if goals not in self._fronts:
            front: list[tuple[Point, TrialRecord]] = []
            for trial in self._rows:
                front = _with_one_more(front, trial, goals)
            self._fronts[goals] = front
        return [trial for _, trial in sorted(self._fronts[goals], key=lambda item: (-item[0][0], item[1].number))]

    def bad_nodes(self, losses: int) -> tuple[str, ...]:
        """Return the nodes, by name, that lost at least `losses` attempts to a fault of node or disk; none for 0."""
        kinds = (ErrorKind.NODE, ErrorKind.DISK)
        attempts = [attempt for trial in self._with_lost_attempts.values() for attempt in trial.attempts]
        lost = Counter(a.node for a in attempts if a.node and a.error and a.error["kind"] in kinds)
        return tuple(sorted(node for node, count in lost.items() if losses and count >= losses))

    def gpu_hours(self, now: datetime.datetime, ends: Mapping[int, str] = MappingProxyType({})) -> float:
        """Return the GPU-hours that attempts have used, each from its claim to its end, or to `now` if it runs.

        An attempt that follows another one in the same job counts from the end of that one: the job waited in between.
        `ends` holds the ends of trials in flight that no driver has noted yet.
        """
        running = [(attempt, number) for number, attempts in self._on_gpu.items() for attempt in attempts]
        since = ((attempt.gpus, attempt.occupied_since, ends.get(number)) for attempt, number in running)
        spans = ((gpus, moment(begin), moment(end) if end else now) for gpus, begin, end in since if begin)
        seconds = sum(gpus * max(0.0, (min(end, now) - begin).total_seconds()) for gpus, begin, end in spans)
        return (sum(self._gpu_s.values()) + seconds) / 3600

    def gpu_hours_of(self, trial: int) -> float:
        """Return the GPU-hours of a trial's attempts that have ended; 0 without a GPU."""
        return self._gpu_s.get(trial, 0.0) / 3600

    def energy_wh_of(self, trial: int) -> float:
        """Return the watt-hours that a trial's ended attempts have measured; 0 if nothing counted them."""
        return self._energy_wh.get(trial, 0.0)

    @property
    def energy_kwh(self) -> float:
        """The kilowatt-hours that ended attempts have measured, those that failed included."""
        return sum(self._energy_wh.values()) / 1000

    @property
    def code(self) -> str | None:
        """The hash of the code that new attempts run."""
        return self.starts[-1]["code"] if self.starts else None


def refuse_if_emptied(layout: CampaignLayout) -> None:
    """Raise if a campaign without events has attempts: starting over would evaluate all of them again."""
    if any(layout.trials_dir.glob("*/a*")):
        raise JournalError(
            f"{layout.events} is empty, but there are attempts in {layout.trials_dir}. Rebuild the journal from their "
            f"files:  {command_line('repair', layout.dir)}"
        )


def _put(kept: dict[int, T], number: int, value: T | None) -> None:
    """Set `kept[number]` to a value, or remove it if the value is None."""
    if value is None:
        kept.pop(number, None)
    else:
        kept[number] = value


def _rank(trial: TrialRecord, maximize: bool) -> tuple[float, int]:
    """Return a key that sorts trials from worst to best; of equal ones, the first comes last."""
    value = trial.value or 0.0
    return (value if maximize else -value), -trial.number


@contextlib.contextmanager
def _keeping_everything() -> Iterator[None]:
    """Do not search for garbage while the context lasts: a long journal makes many objects, and none of them is any."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check(event: Event) -> None:
    """Raise ValueError, LookupError or TypeError for an event that people have edited, so that it cannot be applied."""
    if not is_time(event["at"]):
        raise ValueError(event["at"])
    if event["event"] == "started" and not isinstance(event["operation"], dict):
        raise ValueError(event["operation"])


def _with_one_more(
    front: list[tuple[Point, TrialRecord]], trial: TrialRecord, goals: Goals
) -> list[tuple[Point, TrialRecord]]:
    """Return the front of some trials and one more, each with its targets."""
    if not trial.has_value or not goals.feasible(trial.metrics):
        return front
    mine = goals.targets(trial.metrics)
    if any(dominates(theirs, mine) for theirs, _ in front):
        return front
    return [*(item for item in front if not dominates(mine, item[0])), (mine, trial)]


def asked_rows(ask: Ask, first: int, seed: int) -> list[dict[str, Any]]:
    """Return the trials of an `Ask` for the ``asked`` event, numbered from `first`, with seeds derived from `seed`."""
    settled = [{"origin": row.origin, **_measured(row), **_asked(row)} for row in ask.settled]
    proposed = [{"origin": Origin.EVALUATED, **_asked(proposal)} for proposal in ask.proposals]
    rows = enumerate([*settled, *proposed], first)
    return [{"trial": number, "seed": derive_seed(seed, "trial", number), **row} for number, row in rows]


def _measured(row: Settled) -> dict[str, Any]:
    more = {"value_sem": row.value_sem, "metrics": dict(row.metrics), "sems": dict(row.sems)}
    return {"value": row.value, **{name: measured for name, measured in more.items() if measured}}


def _asked(item: Settled | Proposal) -> dict[str, Any]:
    return {"parameters": dict(item.parameters), "info": dict(item.info)}
