"""How far a trial has climbed: rungs at which it was scored, the rung up to which it may climb, and what that costs.

`Record` holds a `Climb` for each trial of a campaign with rungs, and passes the events about rungs to this module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpo_cluster.fidelity import Ladder, agreement
from hpo_cluster.record.journal import Event
from hpo_cluster.trial import Origin, State

if TYPE_CHECKING:
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.trial_record import AttemptRecord, TrialRecord

#: Events that only campaigns with rungs have.
RUNG_EVENTS = frozenset({"rung", "promoted", "paused"})


def sem_of(row: Mapping[str, Any]) -> float | None:
    """Return the standard error of a row's value; None if it is missing or negative."""
    sem: float | None = row.get("value_sem")
    return None if sem is None or sem < 0 else sem


@dataclass(frozen=True)
class Score:
    """What was measured at a rung: the value in the user's direction, its standard error, and all metrics.

    Args:
        value: as measured.
        value_sem: its standard error; None if unknown.
        metrics: all metrics by name.
        attempt: number of the attempt that reached the rung.
        step: number of optimizer steps done; None if the job did not say.
        seconds: that the attempt had worked when it got there; None if the job did not say.
        at: when the driver noted it.
        seq: number of the journal's event.
    """

    value: float | None
    value_sem: float | None
    metrics: Mapping[str, float]
    attempt: int
    step: int | None
    seconds: float | None
    at: str
    seq: int

    @classmethod
    def of(cls, event: Event) -> Score:
        """Return the score that an event ``rung`` or ``ended`` holds."""
        return cls(
            event.get("value"),
            sem_of(event),
            event.get("metrics") or {},
            int(event["attempt"]) if event.get("attempt") is not None else 0,
            event.get("step"),
            event.get("seconds"),
            event["at"],
            event["seq"],
        )


@dataclass
class Climb:
    """The climb of one trial.

    Args:
        top: number of the last rung.
        first: lowest rung at which the trial may be paused.
        goal: rung up to which it may climb now.
        why: why its goal was last raised.
        scores: by rung, what was measured there.
        paused_seq: number of the event that first paused the trial; None before.
        paused_value: value at the rung where it was first paused.
    """

    top: int
    first: int
    goal: int
    why: str = ""
    scores: dict[int, Score] = field(default_factory=dict)
    paused_seq: int | None = None
    paused_value: float | None = None

    @classmethod
    def of(cls, ladder: Ladder, info: Mapping[str, Any]) -> Climb:
        """Return the climb of a new trial; its proposal may say in ``rung`` what its first rung is."""
        asked = info.get("rung", 0)
        first = min(max(asked, 0), ladder.top) if isinstance(asked, int) else 0
        return cls(ladder.top, first, first)

    @property
    def reached(self) -> int:
        """The highest rung at which the trial was scored; -1 before the first."""
        return max(self.scores, default=-1)

    @property
    def is_resting(self) -> bool:
        """Whether the trial has reached its goal, below the top."""
        return self.goal <= self.reached < self.top


def take(trial: TrialRecord, event: Event) -> None:
    """Update a trial by an event about rungs."""
    climb, kind, rung = trial.climb, event["event"], int(event["rung"])
    if climb is None or not 0 <= rung <= climb.top:
        raise ValueError(f"rung {rung}")
    if kind == "rung":
        climb.scores[rung] = Score.of(event)
        climb.goal = max(climb.goal, rung)
    elif kind == "promoted":
        climb.goal, climb.why = max(climb.goal, rung), event["why"]
        if trial.state is State.PAUSED:
            trial.state = State.PROPOSED
    else:
        attempt = trial.attempts[event["attempt"]]
        attempt.rung = rung
        attempt.end(event)
        attempt.energy_wh = max(0.0, event.get("energy_wh") or 0.0)
        trial.forgiven = len(trial.attempts)  # what failed on the way here does not count further up
        rest(trial, event)


def rest(trial: TrialRecord, event: Event) -> None:
    """Set the state of a trial whose attempt is over: paused if it has reached its goal, waiting for a job if not."""
    climb = trial.climb
    trial.state = State.PAUSED if climb is not None and climb.is_resting else State.PROPOSED
    if climb is not None and trial.state is State.PAUSED and climb.paused_seq is None:
        climb.paused_seq, climb.paused_value = event["seq"], climb.scores[climb.reached].value


def costs(trial: TrialRecord, ladder: Ladder | None) -> tuple[float, float]:
    """Return what a trial has used of the budget, and what it will have used when its present goal is reached.

    Both are in whole evaluations. A trial has used the share of the rung that it has reached, a failed trial the share
    of its goal.
    """
    state, climb = trial.state, trial.climb
    if not trial.in_budget:
        return 0, 0
    if ladder is None or climb is None:
        return int(state.counts), int(state.counts or not state.ended)
    reached, goal = ladder.cost(climb.reached), ladder.cost(climb.goal)
    if not state.ended:
        return reached, max(reached, goal)
    used = reached if state in (State.PAUSED, State.CANCELLED, State.COMPLETED) else goal
    return used, used


def lingers_at(trial: TrialRecord, attempt: AttemptRecord) -> int | None:
    """Return the rung that an attempt in progress has reported and after which it waits for a word; None without one.

    The word may have been said already: only the attempt's folder knows.
    """
    climb = trial.climb
    if climb is None or not 0 <= climb.reached < climb.top or climb.scores[climb.reached].attempt != attempt.number:
        return None
    return climb.reached


def rung_table(record: Record, *, maximize: bool) -> list[dict[str, Any]]:
    """Return a row for each rung, the lowest first: how many trials got there, what became of them, and the best."""
    ladder = record.ladder
    if ladder is None:
        return []
    made = record.rung_tables.get(maximize)
    if made is None or made[0] != record.seq:
        made = record.rung_tables[maximize] = record.seq, _rung_table(record, ladder, maximize=maximize)
    return made[1]


def _rung_table(record: Record, ladder: Ladder, *, maximize: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "rung": rung,
            "fidelity": share,
            "label": label,
            "reached": 0,
            "promoted": 0,
            "paused": 0,
            "best": None,
            "agreement": _agreement(record, ladder, rung, sign=1.0 if maximize else -1.0),
        }
        for rung, (share, label) in enumerate(zip(ladder.shares, ladder.labels, strict=True))
    ]
    for trial in record.rows:
        climb = trial.climb
        if climb is None:
            continue
        for rung, score in climb.scores.items():
            row, best = rows[rung], rows[rung]["best"]
            row["reached"] += 1
            row["promoted"] += climb.goal > rung
            row["paused"] += trial.state is State.PAUSED and climb.reached == rung
            if score.value is not None and (
                best is None or (score.value > best["value"] if maximize else score.value < best["value"])
            ):
                row["best"] = {"trial": trial.number, "value": score.value, "value_sem": score.value_sem}
    return rows


def _agreement(record: Record, ladder: Ladder, rung: int, *, sign: float) -> float | None:
    """Return how well the values at a rung agree with those above, as a correlation; None if too few have climbed."""
    rows = []
    for trial in record.rows:
        values = [] if trial.climb is None else [trial.climb.scores.get(number) for number in range(ladder.top + 1)]
        if values and values[rung] is not None:
            seen = (None if score is None else score.value for score in values)
            rows.append([-math.inf if value is None else sign * value for value in seen])
    if not any(max(row[rung + 1 :], default=-math.inf) > -math.inf for row in rows):
        return None  # NumPy is not imported to say so
    import numpy as np

    found = agreement(np.array(rows), rung)
    return None if found is None else round(found, 4)


def saved(record: Record) -> float:
    """Return the whole evaluations that rungs have saved: of trials that are over or paused, what they did not use."""
    if record.ladder is None:
        return 0.0
    ended = [trial for trial in record.rows if trial.climb is not None and trial.state.ended]
    return round(sum(1 - trial.spent for trial in ended if trial.state is not State.CANCELLED), 9)


#: Sums of shares are rounded in floating point.
SLACK = 1e-6


def room_for(record: Record, budget: int) -> int:
    """Return how many trials may still be proposed.

    With rungs, as long as a whole evaluation is left: the rest of the budget is for finishing what has begun.
    """
    left = budget - record.committed
    if record.ladder is None:
        return max(0, int(left))  # a budget may be smaller than what earlier starts have spent
    whole = record.ladder.cost(record.ladder.top)
    return 0 if left < whole - SLACK else int((left - whole) / record.ladder.cost(0) + SLACK) + 1


def within_budget(rows: Sequence[dict[str, Any]], record: Record, budget: int) -> list[dict[str, Any]]:
    """Return the first rows of an answer of the optimizer, up to a proposal for which the budget is too small.

    Proposals may begin at rungs that cost more than the lowest.
    """
    if record.ladder is None:
        return [*rows]
    kept, left, whole = [], budget - record.committed, record.ladder.cost(record.ladder.top)
    for row in rows:
        if row["origin"] == Origin.EVALUATED:
            if left < whole - SLACK:
                break
            left -= record.ladder.cost(Climb.of(record.ladder, row["info"]).first)
        kept.append(row)
    return kept
