"""The driver: reconcile, collect, ask, journal, submit, wait.

All state is in the journal and in the attempts' directories; this process holds nothing else but clocks. A driver may
be killed between any two lines. The next driver then finds and does the following:

| the driver died… | found on the next start | what is done |
|---|---|---|
| after ask, before the journal | nothing | ask again: same history, same seed, same proposals |
| after the intent, before submitting | no job with that token, no claim, no result | submit |
| after submitting, before ``submitted`` | a job with that token, or its claim, result or error | adopt it |
| while jobs ran or ended | claims, rungs, results, errors | read them |
| after ``promoted``, before the job's word | a rung without a word | say it |
| in the middle of an append | a last line without its newline | cut it, log that, continue |
| and the job vanished | job ended, no file after `grace_s` | attempt failed; retry up to the limit |

A submission that outlives its driver and acts later is harmless: its job finds the attempt claimed and ends.
`OpenCampaign` holds the lock and the journal, `Collector` reads results, `Climbing` decides at rungs, `Submitter`
submits jobs, and `hpo_cluster.driver.failures` decides whether a failed trial is tried again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hpo_cluster.driver import notify
from hpo_cluster.driver.background import Background
from hpo_cluster.driver.climbing import Climbing
from hpo_cluster.driver.collect import Collector
from hpo_cluster.driver.live_tracking import LiveTracking
from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.driver.submit import Submitter
from hpo_cluster.errors import HpoClusterError, LostCampaignError
from hpo_cluster.launchers.commands import Pause
from hpo_cluster.record import clock, inbox
from hpo_cluster.record.campaign_state import BETWEEN_TICKS, BY_STOP, Record, asked_rows
from hpo_cluster.record.climb import room_for, within_budget
from hpo_cluster.record.confirmation import Wanted, chosen, missing_rows
from hpo_cluster.record.exchange.facts import outline_of
from hpo_cluster.record.files import PASSING, Reread
from hpo_cluster.record.history import HistoryTable, write_history
from hpo_cluster.record.journal import Event
from hpo_cluster.record.status import has_jobs_to_submit, summarise
from hpo_cluster.record.trial_record import may_be_retried
from hpo_cluster.text import command_line, first_line
from hpo_cluster.trial import BASELINE, Ask, Origin, State, derive_seed

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

HISTORY_PERIOD_S = 2.0
#: Share of the driver's time that writing the history may take, once the history is long.
HISTORY_SHARE = 0.05
#: Seconds between two cycles while no job is in flight and none may be submitted.
IDLE_S = 2.0


class _AbandonedError(BaseException):
    """The optimizer's work is given up: its answer is no longer wanted."""


class Campaign:
    """The driver's loop over one campaign, which this process keeps locked until `close`.

    Attributes:
        spec: what the campaign is, and how it is run now.
        opened: folder, lock, journal and record of the campaign.
        reason: why the driver stops before the budget is spent; empty if it does not.
        tracking: logs trials to a tracker as they end.
    """

    def __init__(self, spec: CampaignSpec) -> None:
        self.reason = ""
        with contextlib.ExitStack() as undo:
            self.opened = OpenCampaign(spec)
            undo.callback(self.opened.close)
            self.collector = Collector(self.opened)
            undo.callback(self.collector.in_background.close)
            self._asking = Background(self.collector.read_rungs, spec.operation.poll_s)
            undo.callback(self._asking.close)
            self.submitter = Submitter(self.opened, self.collector.in_background, self.collector.places)
            maximize = spec.objective.direction == "maximize"
            self._table = HistoryTable(self.record, spec.space.names, maximize=maximize, goals=spec.objective.goals)
            outline = outline_of(self.opened.layout, spec.identity, self.record, spec.objective.metric)
            self.tracking = LiveTracking(spec.tracking, outline, self.record, at_once=not spec.tick)
            undo.callback(self.tracking.close)
            self._undo = undo.pop_all()
        self._failed = False  # whether an exception ended the driver
        self._confirming = False  # whether the driver waits for what is under way, and proposes nothing
        self._stopping = False
        self._may_abandon = False  # whether this thread is at work in the optimizer, which holds nothing that counts
        self._closing = ""  # why nothing more is submitted while the driver waits for the jobs that run
        self._history_at = 0.0
        self._storage = Pause()
        self._read_again = Reread()

    @property
    def spec(self) -> CampaignSpec:
        """What the campaign is, and how it is run now."""
        return self.opened.spec

    @property
    def record(self) -> Record:
        """The campaign's state, as the journal's events define it."""
        return self.opened.record

    def append(self, event: str, **fields: Any) -> Event:
        """Write an event to the journal, then take it into the record."""
        return self.opened.append(event, **fields)

    # ----------------------------------------------------------------------------------------------------- the loop

    def drive(self, wait: Callable[[float], object] = time.sleep) -> Iterator[dict[str, Any]]:
        """Run until the budget is spent, the optimizer is exhausted or `stop` is called; yield the status each cycle.

        Args:
            wait: called between two cycles with the seconds to wait.
        """
        while True:
            if not self._storage.lasts:
                self._tick_or_pause()
            yield self.status()
            if self._closing and not self.opened.with_job():
                self.stop(self._closing)
            if self._stopping or self._ended():
                return
            wait(self._cycle_s)

    @property
    def _cycle_s(self) -> float:
        """Seconds until the next cycle."""
        poll_s = self.spec.operation.poll_s
        return max(poll_s, IDLE_S) if self.submitter.shut and not self.opened.with_job() else poll_s

    def tick(self) -> None:
        """Make one pass: commands, results, proposals, submissions."""
        self.opened.lock.check()
        self.take_commands()
        self.collect()
        now = clock.now()
        self._closing = self.spec.operation.used_up(now, self.record.gpu_hours(now), self.record.energy_kwh)
        if self._closing:
            waiting = [trial for trial in self.record.in_flight if trial.attempts and self.collector.is_pending(trial)]
            self.submitter.cancel(waiting)
        elif not (self._stopping or self.record.halted):
            # ask only when jobs may start: the optimizer may know more by then
            if not self._confirming and not self.submitter.is_shut():
                self.climbing.promote_paused(self.submitter.free_slots())
                self.propose()
            self.submit()
        self._end_idle_jobs()
        self.tracking.look()
        self._write_history()

    def _tick_or_pause(self) -> None:
        """Make one pass; if the storage is full or unavailable, log that and wait a while before the next pass."""
        lock = self.opened.lock
        try:
            self.tick()
        except OSError as error:
            if error.errno not in PASSING:
                lock.check()  # if the folder was moved in the middle of a pass, that is what to say
                raise
            wait_s = self._storage.begin()
            log.warning("storage: %s; tried again in %.0f s", error, wait_s)
            where = error.filename or self.opened.layout.dir
            lock.tell(f"the driver waits: {where}: {error.strerror}. Nothing is lost, and jobs run on")
        else:
            self._storage.end()
            lock.tell(self._waits_for)

    def _end_idle_jobs(self) -> None:
        """Tell jobs that wait for another attempt to end, if there will be none for them soon."""
        halted = self._stopping or self.record.halted
        if halted or self._closing or self.submitter.shut or not self._has_more:
            self.collector.places.close_all()
        if halted:  # no driver will be there when the jobs that run now have ended
            for member in self.opened.with_job():
                if member[1].may_be_followed:
                    self.collector.places.close(member)

    @property
    def _has_more(self) -> bool:
        """Whether trials wait for a job, are still to be proposed, or may be taken up again."""
        no_proposals = self._exhausted or self._confirming
        if has_jobs_to_submit(self.record, self.spec.operation.budget, exhausted=no_proposals):
            return True
        if self._confirming:
            return False
        return self.climbing.may_promote() or any(trial.climb is not None for trial in self.record.in_flight)

    @property
    def climbing(self) -> Climbing:
        """The decisions at rungs."""
        return self.collector.climbing

    @property
    def _exhausted(self) -> bool:
        """Whether the optimizer has no further proposal."""
        return self.climbing.exhausted

    @property
    def _waits_for(self) -> str | None:
        """The reason why nothing is submitted just now, shown in other terminals; None if the driver works normally."""
        submitter = self.submitter
        if submitter.refused:
            return f"the driver waits: the scheduler did not take a job, which is submitted again: {submitter.refused}"
        if self._closing:
            return f"the driver waits: {self._closing}; nothing more is submitted, and what is under way is waited for"
        if submitter.shut and has_jobs_to_submit(self.record, self.spec.operation.budget):
            return submitter.shut
        return None

    def stop(self, reason: str) -> None:
        """Submit nothing more and end the loop after this cycle. Jobs in flight keep running.

        A signal's handler may call it at any moment. A proposal under way is given up; the next driver makes the same.
        """
        self._stopping, self.reason = True, self.reason or reason
        self.submitter.stopped = True
        self._asking.give_up(_AbandonedError)
        if self._may_abandon:
            self._may_abandon = False
            raise _AbandonedError

    def _ended(self) -> bool:
        return not self.record.in_flight if self._confirming else self._finished()

    def _finished(self) -> bool:
        no_more = self._exhausted or not room_for(self.record, self.spec.operation.budget)
        return not self.record.in_flight and no_more and not self.climbing.may_promote()

    # ---------------------------------------------------------------------------------------------- steps of the loop

    def take_commands(self) -> None:
        """Carry out the commands that were given in other terminals."""
        for command in inbox.pending(self.opened.layout.inbox_dir):
            if command.id not in self.record.commands:
                self.append("commanded", id=command.id, verb=command.verb, trial=command.trial)
                trial = None if command.trial is None else self.record.trials.get(command.trial)
                if command.verb == "stop":
                    self.stop(BY_STOP)
                elif trial is not None and command.verb == "cancel" and not trial.state.ended:
                    self.submitter.cancel([trial])
                elif trial is not None and command.verb == "promote" and trial.state is State.PAUSED:
                    self.climbing.promote_by_hand(trial)
                elif trial is not None and command.verb == "retry" and may_be_retried(trial):
                    self.append("reopened", trial=trial.number)
            self.opened.lock.check()
            command.path.unlink(missing_ok=True)

    def confirm(self, wanted: Wanted) -> None:
        """Add the missing evaluations of a confirmation; from now on `drive` proposes nothing else.

        Raises:
            ConfigError: if there is nothing to confirm.
        """
        maximize, goals = self.spec.identity["direction"] == "maximize", self.spec.objective.goals
        trials = chosen(self.record, wanted, goals, maximize=maximize)
        rows = missing_rows(self.record, trials, wanted.replicates, self.spec.seed)
        if rows:
            self.append("asked", trials=rows, decision={"confirm": [trial.number for trial in trials]})
        self._confirming = True

    def collect(self) -> None:
        """Read results and failures; stop if all trials fail in the same way."""
        if all_fail := self.collector.collect():
            self.stop(all_fail)

    def propose(self) -> None:
        """Ask for new trials until the slots are full or the budget is committed."""
        operation = self.spec.operation
        if operation.baseline and BASELINE not in self.record.trials:
            seed = derive_seed(self.spec.seed, "baseline")
            row = {"trial": BASELINE, "parameters": {}, "seed": seed, "origin": Origin.BASELINE}
            self.append("asked", trials=[row], decision={})
        while not self._exhausted:
            free = min(self.submitter.free_slots(), room_for(self.record, operation.budget))
            if free <= 0:
                return
            known = self.record.seq
            try:
                ask = self._ask(free)
            except _AbandonedError:
                return
            if self._stop_was_asked():  # meanwhile
                return
            rows = asked_rows(ask, self.record.next_trial, self.spec.seed)
            if not rows:
                self.climbing.exhausted = not self.record.in_flight
                return
            rows = within_budget(rows, self.record, operation.budget)
            if not rows:  # those who went on in the meantime have taken the budget
                return
            more = {} if self.record.seq == known else {"known": known}  # rungs that the optimizer did not see
            self.append("asked", trials=rows, decision=dict(ask.decision), **more)

    def _ask(self, n: int) -> Ask:
        """Ask the optimizer; jobs that reach a rung meanwhile do not wait for its answer."""
        history, ask = self.history(), self.spec.optimizer.ask
        try:
            self._may_abandon = self.record.ladder is None
            return ask(history, n) if self.record.ladder is None else self._asking(lambda: ask(history, n))
        except (MemoryError, RuntimeError) as error:  # torch raises the latter
            if not (isinstance(error, MemoryError) or "allocate memory" in str(error)):
                raise
            limit = self.spec.operation.driver_memory_gb
            raise HpoClusterError(
                f"the optimizer needs more memory than driver_memory_gb={limit} allows, or than the machine has. "
                "Nothing is lost. If the frontend has more:  "
                f"{command_line('resume', self.opened.layout.dir, 'driver_memory_gb=16')}"
            ) from error
        finally:
            self._may_abandon = False

    def _stop_was_asked(self) -> bool:
        """Return whether to stop, by a signal or from another terminal, which may have come while nobody looked."""
        if any(command.verb == "stop" for command in inbox.pending(self.opened.layout.inbox_dir)):
            self.take_commands()
        return self._stopping

    def submit(self) -> None:
        """Submit jobs for the trials that have none; stop if the scheduler will never accept them."""
        self.submitter.submit()
        if self.submitter.hopeless:
            self.stop(self.submitter.hopeless)

    def cancel_jobs(self) -> None:
        """Read the results that are there, then end every job in flight. Cancelled trials do not use up the budget."""
        self.collect()
        self.submitter.cancel(self.record.in_flight)
        self.collector.places.close_all()

    # ---------------------------------------------------------------------------------------------------- views, end

    def status(self) -> dict[str, Any]:
        """Return the progress of the campaign, in the form of `hpo_cluster.record.status.campaign_status`."""
        return summarise(
            self.record,
            self.opened.layout,
            self.spec.identity["direction"],
            goals=self.spec.objective.goals,
            driver_alive=True,
            exhausted=self._exhausted,
            read=self._read_again,
        )

    def history(self) -> pd.DataFrame:
        """Return the current history: the optimizer is asked with it, and ``history.csv`` holds it."""
        return self._table.frame()

    def _write_history(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.opened.changed and (force or now >= self._history_at):
            self.opened.lock.check()
            try:
                write_history(self.history(), self.opened.layout.history)
            except OSError as error:
                if error.errno in PASSING:
                    raise
                log.warning("history=%s not written: %s; remove what is in the way", self.opened.layout.history, error)
            after = time.monotonic()
            self.opened.changed = False
            self._history_at = after + max(HISTORY_PERIOD_S, (after - now) / HISTORY_SHARE)

    def close(self) -> None:
        """Write the history and release the campaign. Jobs in flight keep running.

        Raises:
            LostCampaignError: if the campaign no longer belongs to this driver.
        """
        ending = BETWEEN_TICKS if self.spec.tick else "interrupted"
        ending = "confirmed" if self._confirming and self._ended() else ending
        try:
            more = {"exhausted": True} if self._exhausted else {}
            reason = self.reason or ("finished" if self._finished() else ending)
            written = self.opened.write_stop(reason, **more)
            self._write_history(force=True)
            if written:
                self._notify(reason)
        except LostCampaignError:
            log.warning("the campaign no longer belongs to this driver: nothing is written at its end")
            raise
        except (HpoClusterError, OSError) as error:  # raising would hide the error that led here
            log.error("not closed properly: %s", error)
        finally:
            self._undo.close()

    def _notify(self, reason: str) -> None:
        """Tell the user that the campaign has ended or stopped, with the command that the settings name."""
        what = notify.happening(reason, failed=self._failed)
        if what is None or self.spec.operation.notify.command is None:
            return
        try:
            facts = notify.facts_of(what, reason, self.status())
            notify.call(self.spec.operation.notify, facts, self.opened.log_path.with_name("notify.log"))
        except Exception:  # the end of the campaign counts, and not who hears of it
            log.exception("notify.command: not run")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._failed = error is not None and not isinstance(error, KeyboardInterrupt)
        if error is not None and not self.reason:
            self.reason = f"{type(error).__name__}: {first_line(str(error))}"
        with contextlib.suppress(*([] if error is None else [LostCampaignError])):  # the first error counts
            self.close()
