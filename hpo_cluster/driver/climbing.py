"""Decisions at rungs: which trials go on, what their jobs are told, and which paused trials are taken up again.

The decision is journaled (``promoted``) before the job is told (``word-<k>.json``). A driver that dies between the two
tells the job at its next start; if the job has given up by then, its trial waits for another job with the higher goal.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.optimizers.rungs.rules import Climber, Promotion, promotions
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.climb import SLACK, lingers_at, room_for
from hpo_cluster.record.files import remove_folder
from hpo_cluster.record.rung_files import publish_word
from hpo_cluster.record.trial_record import AttemptRecord, TrialRecord
from hpo_cluster.trial import State

log = logging.getLogger(__name__)

#: States that no further attempt follows, whatever happens.
FINAL = (State.COMPLETED, State.DIVERGED, State.INFEASIBLE)

BY_HAND = "by hand"
#: Why a trial is promoted that the rule would leave where it is.
REST = "the best of those that the rest of the budget can finish"


class Waiting(NamedTuple):
    """A trial whose job waits at a rung for the decision."""

    trial: TrialRecord
    attempt: AttemptRecord
    rung: int


class Climbing:
    """The decisions at rungs of a campaign. Without rungs, none is ever made.

    Args:
        campaign: the campaign.

    Attributes:
        exhausted: whether the optimizer has no further proposal.
    """

    def __init__(self, campaign: OpenCampaign) -> None:
        self._campaign = campaign
        self.exhausted = False
        self._told: set[tuple[int, int, int]] = set()  # trial, attempt and rung of the words said by this driver
        self._decided: tuple[int, list[Promotion]] = (-1, [])
        self._highest = (-1, -1)
        if self._record.ladder is not None:
            self._tidy_all()

    @property
    def _record(self) -> Record:
        return self._campaign.record

    @property
    def _sign(self) -> float:
        """The factor from a value to what is maximised."""
        return 1.0 if self._campaign.spec.objective.direction == "maximize" else -1.0

    @property
    def _left(self) -> float:
        """The part of the budget that nothing is committed to."""
        return self._campaign.spec.operation.budget - self._record.committed

    # ------------------------------------------------------------------------------------------ jobs that wait

    def answer(self) -> None:
        """Tell each job that waits at a rung whether it goes on."""
        waiting = {each.trial.number: each for each in self._waiting()}
        if not waiting:
            return
        operation, now = self._campaign.spec.operation, clock.now()
        if not operation.used_up(now, self._record.gpu_hours(now), self._record.energy_kwh):
            for promotion in self._deserving():
                if promotion.trial in waiting:
                    self._promote_within_budget(promotion)
            if all(each.trial.climb is not None and each.trial.climb.goal == each.rung for each in waiting.values()):
                rest = self._finisher(set(waiting))
                if rest is not None and rest.trial in waiting:
                    self._promote_within_budget(rest)
        for each in waiting.values():
            self._tell(each)

    def _waiting(self) -> list[Waiting]:
        """Return the trials whose job has reported a rung and that this driver has not told anything yet."""
        found = []
        for trial in self._record.in_flight if self._record.ladder is not None else ():
            attempt = trial.attempt
            rung = None if attempt is None else lingers_at(trial, attempt)
            if attempt is None or rung is None or trial.number in self._campaign.held:
                continue
            if (trial.number, attempt.number, rung) not in self._told:
                found.append(Waiting(trial, attempt, rung))
        return found

    def _tell(self, waiting: Waiting) -> None:
        """Publish the word for an attempt, unless one is there already."""
        trial, attempt, rung = waiting
        assert trial.climb is not None
        self._campaign.lock.check()
        go_on = trial.climb.goal > rung
        try:
            said = publish_word(self._campaign.layout.attempt(trial.number, attempt.number), rung, go_on=go_on)
        except FileNotFoundError:  # somebody removed the attempt's folder
            said = False
        self._told.add((trial.number, attempt.number, rung))
        log.info("trial=%d rung=%d word=%s said=%s", trial.number, rung, "on" if go_on else "end", said)

    # ------------------------------------------------------------------------------------- trials that are paused

    def promote_paused(self, free: int) -> None:
        """Take up paused trials that deserve it, as far as places and budget allow.

        Args:
            free: number of trials that could be submitted at once.
        """
        if free <= 0 or not self._record.counts[State.PAUSED]:
            return
        for promotion in self._deserving():
            if free > 0 and self._is_paused(promotion):
                free -= self._promote_within_budget(promotion)
        rest = self._finisher() if free > 0 else None
        if rest is not None and self._is_paused(rest):
            self._promote_within_budget(rest)

    def may_promote(self) -> bool:
        """Return whether a paused trial would be taken up if there were a place for it."""
        if not self._record.counts[State.PAUSED]:
            return False
        deserving = (promotion for promotion in self._deserving() if self._is_paused(promotion))
        return any(map(self._is_affordable, deserving)) or self._finisher() is not None

    def going_on(self) -> tuple[list[Promotion], float]:
        """Return the paused trials that are taken up now, before anything is proposed, and what they cost together.

        The cost is in whole evaluations. There are some if a start has a larger budget than the one before, or another
        rule; the trials may climb further when the rungs that they reach are known.
        """
        found, cost, ladder = list[Promotion](), 0.0, self._record.ladder
        if ladder is None or not self._record.counts[State.PAUSED]:
            return found, cost
        for promotion in self._deserving():
            if self._is_paused(promotion) and self._is_affordable(promotion, cost):
                found.append(promotion)
                cost += ladder.cost(promotion.rung) - self._record.trials[promotion.trial].committed
        return found, cost

    def promote_by_hand(self, trial: TrialRecord) -> None:
        """Let a paused trial climb to the top, whatever the rule and the budget say."""
        assert trial.climb is not None
        self._campaign.append("promoted", trial=trial.number, rung=trial.climb.top, why=BY_HAND)

    def _is_paused(self, promotion: Promotion) -> bool:
        return self._record.trials[promotion.trial].state is State.PAUSED

    def _is_affordable(self, promotion: Promotion, others: float = 0.0) -> bool:
        """Return whether the budget allows a promotion, and what is left then still takes one trial to the top.

        Args:
            promotion: the trial and its rung.
            others: whole evaluations that trials before it take.
        """
        ladder, trial = self._record.ladder, self._record.trials[promotion.trial]
        assert ladder is not None
        left = self._left - others - (ladder.cost(promotion.rung) - trial.committed)
        if self._record.counts[State.COMPLETED]:
            return left >= -SLACK
        highest = max(promotion.rung, self._highest_goal())
        return left >= ladder.cost(ladder.top) - ladder.cost(highest) - SLACK

    def _highest_goal(self) -> int:
        """Return the highest goal of the trials that are paused or under way; -1 without any."""
        if self._highest[0] != self._record.seq:
            rows = self._record.rows
            live = (trial for trial in rows if not trial.state.ended or trial.state is State.PAUSED)
            goals = (trial.climb.goal for trial in live if trial.climb is not None)
            self._highest = self._record.seq, max(goals, default=-1)
        return self._highest[1]

    def _promote_within_budget(self, promotion: Promotion) -> bool:
        """Promote a trial if the budget allows it; return whether it does."""
        if not self._is_affordable(promotion):
            return False
        self._campaign.append("promoted", trial=promotion.trial, rung=promotion.rung, why=promotion.why)
        return True

    # ---------------------------------------------------------------------------------------------- who goes on

    def _deserving(self) -> list[Promotion]:
        """Return what the rule says of the record as it is now."""
        record, spec = self._record, self._campaign.spec
        assert record.ladder is not None
        if self._decided[0] != record.seq:
            self._decided = record.seq, promotions(climbers(record, self._sign), record.ladder, spec.fidelity)
        return self._decided[1]

    def _finisher(self, waiting: frozenset[int] | set[int] = frozenset()) -> Promotion | None:
        """Return the trial to take up next with the rest of the budget, once nobody can be proposed any more.

        It is the best at the highest rung of those that the budget can take to the top. None as long as a trial is
        under way, since the rule may choose then.

        Args:
            waiting: trials under way that wait for the decision.
        """
        record, spec = self._record, self._campaign.spec
        ladder = record.ladder
        if ladder is None or any(trial.number not in waiting and trial.climb is not None for trial in record.in_flight):
            return None
        room = room_for(record, spec.operation.budget) > 0
        if room and not (self.exhausted and not record.counts[State.COMPLETED]):
            return None
        found = []
        for trial in record.rows:
            climb = trial.climb
            if climb is None or not (trial.state is State.PAUSED or trial.number in waiting):
                continue
            value = climb.scores[climb.reached].value
            if value is not None and ladder.cost(ladder.top) - trial.committed <= self._left + SLACK:
                found.append((climb.reached, self._sign * value, -trial.number))
        if not found:
            return None
        rung, _, number = max(found)
        return Promotion(-number, rung + 1, REST)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def tidy(self, trial: TrialRecord) -> None:
        """Remove the checkpoints of a trial that no further attempt goes on from, except those of a running attempt."""
        paused_for_good = trial.state is State.PAUSED and self._campaign.spec.fidelity.keep == "none"
        if trial.climb is None or not (trial.state in FINAL or paused_for_good):
            return
        self._campaign.lock.check()
        layout = self._campaign.layout
        over = [layout.attempt(trial.number, attempt.number) for attempt in trial.attempts if attempt.over]
        for files in over:
            remove_folder(files.checkpoint_dir)
        if over and len(over) == len(trial.attempts):
            remove_folder(over[0].trial_checkpoint_dir)

    def _tidy_all(self) -> None:
        """Remove what an earlier driver, or a job that was killed, has left."""
        layout = self._campaign.layout
        there = {path.parents[1].name for path in layout.trials_dir.glob("*/a*/checkpoint")}
        there |= {path.parent.name for path in layout.trials_dir.glob("*/checkpoint")}
        for trial in self._record.rows if there else ():
            if layout.attempt(trial.number, 0).dir.parent.name in there:
                self.tidy(trial)


def climbers(record: Record, sign: float) -> list[Climber]:
    """Return the trials of a record as the rules see them.

    Args:
        record: the campaign's record.
        sign: 1 if larger values are better, -1 if smaller ones are.
    """
    found = []
    for trial in record.rows:
        climb = trial.climb
        if climb is None:
            continue
        goal = climb.goal
        values = [climb.scores[k].value if k in climb.scores else None for k in range(climb.reached + 1)]
        if trial.state is State.CANCELLED:
            goal = climb.top  # it is compared with others, and never goes on
        elif trial.state.ended and trial.state not in (State.PAUSED, State.COMPLETED):
            values.append(None)  # the rung at which it failed
        targets = tuple(math.nan if value is None else sign * value for value in values)
        found.append(Climber(trial.number, climb.first, goal, targets))
    return found
