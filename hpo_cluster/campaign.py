"""The driver: reconcile, collect, ask, journal, submit, wait.

Nothing here is remembered that is not in the journal or in the attempts' directories, but for clocks. A driver may be
killed between any two lines; what the next one finds, and does about it:

| the driver died… | found | done |
|---|---|---|
| after ask, before the journal | nothing | ask again: same history, same seed, same proposals |
| after the intent, before submitting | no job with that token, no claim, no result | submit |
| after submitting, before ``submitted`` | a job with that token, or its claim, result or error | adopt it |
| while jobs ran or ended | claims, results, errors | take them in |
| in the middle of an append | a last line without its newline | cut it, say so, go on |
| and the job vanished | ended for the scheduler, no file after `grace_s` | attempt failed; retry up to the limit |

A submission that outlives its driver and acts later is harmless: its job finds the attempt claimed and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hpo_cluster import code as code_copy
from hpo_cluster import inbox, outcomes
from hpo_cluster.beside import Beside
from hpo_cluster.clock import seconds_since, utc_now
from hpo_cluster.errors import HpoClusterError, JournalError, LostCampaignError, SubmissionError
from hpo_cluster.files import PASSING, Reread, read_json, redact, refresh
from hpo_cluster.history import HistoryTable, write_history
from hpo_cluster.identity import settle_identity
from hpo_cluster.journal import Event, Journal
from hpo_cluster.launchers.process import Backoff, Pause
from hpo_cluster.layout import CampaignLayout
from hpo_cluster.lock import DriverLock
from hpo_cluster.processes import cap_memory, uncap_memory
from hpo_cluster.record import AttemptRecord, Record, TrialRecord, asked_rows
from hpo_cluster.spec import CampaignSpec
from hpo_cluster.status import summarise
from hpo_cluster.submissions import Member, claimed_job, make_submission, new_token, write_params
from hpo_cluster.text import did_you_mean
from hpo_cluster.trial import BASELINE, Ask, ErrorKind, JobRef, JobState, JobStatus, Origin, State, derive_seed
from hpo_cluster.watch import JobWatch
from hpo_cluster.worker import SCHEMA, checkpoint_step, package_versions

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

HISTORY_PERIOD_S = 2.0
#: Of the driver's time that may go into writing it, once it is long.
HISTORY_SHARE = 0.05

#: Phases of a job before the work that a checkpoint could keep.
START_PHASES = ("import", "load")

#: Failures that a machine's state causes, which may last a while.
MACHINE_KINDS = frozenset({ErrorKind.NODE, ErrorKind.DISK, ErrorKind.VANISHED})
LONGEST_REST_S = 600.0

#: Files of an attempt that say that it is over, and those that say anything of one that is not known to have begun.
ENDING = frozenset({"result.json", "error.json"})
TELLING = ENDING | {"claim"}

#: Numbers and what hangs on them differ between two messages of one error.
_NUMBER = re.compile(r"[-+]?\d[\w.+-]*")


class Campaign:
    """An opened campaign: this process holds its lock until `close`."""

    def __init__(self, spec: CampaignSpec) -> None:
        self.spec = spec
        self.layout = CampaignLayout(spec.dir)
        self.reason = ""  # why the driver stops before the budget is spent
        self._stopping = False
        self._exhausted = False
        self._unsure: set[str] = set()  # names of jobs that may have been submitted: look before submitting
        self._held: set[int] = set()  # trials whose job is being submitted or cancelled just now
        self._submissions = Backoff()
        self._history_at = 0.0
        self._changed = True
        self._storage = Pause()
        self._refused = ""  # why the scheduler did not take the last job
        self._closing = ""  # why nothing more is submitted, while what runs is waited for
        self._unwritten_start: dict[str, Any] = {}
        self._some_completed = False
        self._read_again = Reread()

        with contextlib.ExitStack() as undo:
            self.layout.dir.parent.mkdir(parents=True, exist_ok=True)
            self.layout.dir.mkdir(mode=0o700, exist_ok=True)  # its owner's alone: jobs and settings may hold secrets
            self.lock = DriverLock(self.layout.lock, take_over=spec.take_over)
            undo.callback(self.lock.release)
            settle_identity(self.layout.identity, spec.identity)
            undo.enter_context(self._log_file())
            self.journal = undo.enter_context(Journal(self.layout.events, self.lock.check))
            self.lock.advance(self.journal.epoch)
            self.journal.epoch = self.lock.epoch
            self.record = Record.of(self.journal.take_events(), self.layout.events)
            self._refuse_if_emptied()
            self._table = HistoryTable(self.record, spec.space.names, maximize=spec.objective.direction == "maximize")
            operation = spec.operation
            self._watch = JobWatch(
                self.layout, spec.launcher.poll_period_s, operation.grace_s, operation.unknown_after_s
            )
            # a scheduler that is slow to answer, or does not, keeps nobody from taking in results
            self._launcher_call = Beside(self._read_all_files, operation.poll_s)
            undo.callback(self._launcher_call.close)
            if spec.launcher.backend != "local" and operation.driver_memory_gb is not None:
                cap_memory(operation.driver_memory_gb)
                undo.callback(uncap_memory)
            self._start()
            self._open = undo.pop_all()

    # ------------------------------------------------------------------------------------------------ start and end

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[None]:
        """While this lasts, what the package logs goes to a file of this start."""
        folder = self.layout.drivers_dir / ("ticks" if self.spec.tick else utc_now().replace(":", "").replace("-", ""))
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / "driver.log"
        handler = logging.FileHandler(self.log_path, encoding="utf-8")
        handler.handleError = lambda record: None  # type: ignore[method-assign]  # no traceback for each line on a full disk
        formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        package = logging.getLogger("hpo_cluster")
        before = package.level
        package.setLevel(min(before or logging.INFO, logging.INFO))
        package.addHandler(handler)
        try:
            yield
        finally:
            package.removeHandler(handler)
            package.setLevel(before)
            handler.close()

    def _refuse_if_emptied(self) -> None:
        """A journal without events next to attempts' folders was lost: beginning again would evaluate all again."""
        if self.record.created is None and any(self.layout.trials_dir.glob("*/a*")):
            raise JournalError(
                f"{self.layout.events} is empty, and there are attempts in {self.layout.trials_dir}. Rebuild it from "
                f"their files:  hpo-cluster repair {self.layout.dir}"
            )

    def _start(self) -> None:
        recorded = self.record.code
        keep = recorded is not None and self.spec.code == "recorded" and (self.layout.code_dir / recorded).is_dir()
        code = recorded if keep else code_copy.copy_code(self.layout.code_dir)
        self.code = str(code)
        self.is_new = self.record.created is None
        if self.is_new:
            self._append("created", schema=SCHEMA, campaign=self.layout.dir.name, code=code, **self._imported())
        self._unwritten_start = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "operation": self.spec.operation.model_dump(mode="json"),
            "settings": dict(self.spec.settings),
            "overrides": [redact(override) for override in self.spec.overrides],
            "code": code,
            "versions": package_versions(),
            "tick": self.spec.tick,
        }
        last = self.record.starts[-1] if self.record.starts else {}
        news = any(last.get(key) != self._unwritten_start[key] for key in ("operation", "settings", "code"))
        if news or not self.spec.tick:  # a tick that finds nothing to do leaves no trace
            self._write_start()
        self._unsure = {t.attempt.job_name for t in self.record.in_flight if t.attempt and t.attempt.job is None}

    def _imported(self) -> dict[str, Any]:
        """What a new campaign begins with, for its first event."""
        sources, rows = self.spec.warm_start.sources, self.spec.warm_start.rows
        missing = [source.campaign for source in sources if not source.read]
        if missing:
            names = ", ".join(missing)
            raise HpoClusterError(
                f"{self.layout.dir} was to begin with evaluations of {names}, and its driver died before it had them. "
                "Run the command that began it once more (hpo-cluster run ... warm_start=...)"
            )
        for source in sources:
            log.info("warm start: %s", source.message)
        return {"trials": asked_rows(Ask(settled=rows), 0, self.spec.seed)} if rows else {}

    def _write_start(self) -> None:
        start, self._unwritten_start = self._unwritten_start, {}
        self._append("started", **start)

    def close(self) -> None:
        """Write the history and let go of the campaign. Jobs run on."""
        ending = "between ticks" if self.spec.tick else "interrupted"
        try:
            if not self._unwritten_start:
                more = {"exhausted": True} if self._exhausted else {}
                self._append("stopped", reason=self.reason or ("finished" if self._finished() else ending), **more)
            self._write_history(force=True)
        except LostCampaignError:
            log.warning("the campaign is not this driver's any more: nothing is written at its end")
        except (HpoClusterError, OSError) as error:  # whoever closes has the first error; both are derived
            log.error("not closed properly: %s", error)
        finally:
            self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None and not self.reason:
            self.reason = f"{type(error).__name__}: {error}".splitlines()[0]
        self.close()

    def _append(self, event: str, **fields: Any) -> Event:
        if self._unwritten_start and event != "created":
            self._write_start()
        written = self.journal.append(event, **fields)
        self.record.apply(written)
        self._changed = True
        shown = {
            k: v for k, v in fields.items() if k in ("trial", "attempt", "state", "value", "token", "host", "reason")
        }
        log.info("event=%s %s", event, " ".join(f"{key}={value}" for key, value in shown.items()))
        return written

    # ----------------------------------------------------------------------------------------------------- the loop

    def drive(self, wait: Callable[[float], object] = time.sleep) -> Iterator[dict[str, Any]]:
        """Run until the budget is spent, the optimizer exhausted or `stop` called; yields the status each cycle.

        Args:
            wait: called with the seconds between two cycles.
        """
        while True:
            if not self._storage.lasts:
                self._tick_or_pause()
            yield self.status()
            if self._closing and not any(t.attempt and t.attempt.job for t in self.record.in_flight):
                self.stop(self._closing)
            if self._stopping or self._finished():
                return
            wait(self.spec.operation.poll_s)

    def _tick_or_pause(self) -> None:
        """Make one pass; if the storage is full or away just now, say so and wait a while before the next."""
        try:
            self.tick()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            wait_s = self._storage.begin()
            log.warning("storage: %s; tried again in %.0f s", error, wait_s)
            self.lock.tell(f"{error.filename or self.layout.dir}: {error.strerror}. Nothing is lost, and jobs run on")
        else:
            self._storage.end()
            self.lock.tell(self._waits_for)

    @property
    def _waits_for(self) -> str | None:
        """Why nothing more is submitted just now, for other terminals; None if all is as it should be."""
        if self._refused:
            return f"the scheduler did not take a job, which is submitted again: {self._refused}"
        if self._closing:
            return f"{self._closing}; nothing more is submitted, and what is under way is waited for"
        return None

    def tick(self) -> None:
        """One pass: commands, results, proposals, submissions."""
        self.lock.check()
        self.take_commands()
        self.collect()
        now = datetime.datetime.now(datetime.UTC)
        self._closing = self.spec.operation.used_up(now, self.record.gpu_hours(now))
        if self._closing:
            self._cancel([trial for trial in self.record.in_flight if trial.attempts and self._is_pending(trial)])
        elif not (self._stopping or self.record.halted):
            self.propose()
            self.submit()
        self._write_history()

    def stop(self, reason: str) -> None:
        """Submit nothing more and end the loop after this cycle. Jobs run on."""
        self._stopping, self.reason = True, self.reason or reason

    def take_commands(self) -> None:
        """Carry out what other terminals have asked for."""
        for command in inbox.pending(self.layout.inbox_dir):
            if command.id not in self.record.commands:
                self._append("commanded", id=command.id, verb=command.verb, trial=command.trial)
                trial = None if command.trial is None else self.record.trials.get(command.trial)
                if command.verb == "stop":
                    self.stop("stopped from another terminal")
                elif trial is not None and command.verb == "cancel" and not trial.state.ended:
                    self._cancel([trial])
                elif trial is not None and command.verb == "retry" and trial.state.ended and trial.value is None:
                    self._append("reopened", trial=trial.number)
            self.lock.check()
            command.path.unlink(missing_ok=True)

    def cancel_jobs(self) -> None:
        """End every job in flight, once what has finished is taken in. Cancelled trials do not count for the budget."""
        self.collect()
        self._cancel(self.record.in_flight)

    def _cancel(self, trials: Sequence[TrialRecord]) -> None:
        """End these trials: their jobs, or where others share one with them, their part of it."""
        self.lock.check()
        numbers = {trial.number for trial in trials}
        shared = {a.job_name for t, a in self._with_job() if t.number not in numbers}
        jobs: dict[str, JobRef] = {}
        for trial in trials:
            attempt = trial.attempt
            if attempt is not None and attempt.job is not None and attempt.job_name not in shared:
                jobs[attempt.job_name] = attempt.job
            elif attempt is not None:
                files = self.layout.attempt(trial.number, attempt.number)
                files.dir.mkdir(parents=True, exist_ok=True)
                files.cancel.touch()
        with self._holding(trials):
            for job in jobs.values():
                self.lock.check()
                try:
                    self._launcher_call(lambda job=job: self.spec.launcher.cancel(job))  # type: ignore[misc]
                except SubmissionError as error:
                    log.warning("job=%s not cancelled: %s", job.job_id, error)
        for trial in trials:
            self._end(trial, trial.attempt, State.CANCELLED)

    @contextlib.contextmanager
    def _holding(self, trials: Sequence[TrialRecord]) -> Iterator[None]:
        """While this lasts, the files of these trials are left alone."""
        self._held = {trial.number for trial in trials}
        try:
            yield
        finally:
            self._held = set()

    def _with_job(self) -> list[Member]:
        """The trials whose job is, or may be, in the hands of the scheduler."""
        members = ((trial, trial.attempt) for trial in self.record.in_flight)
        return [(trial, attempt) for trial, attempt in members if attempt is not None and attempt.job is not None]

    def status(self) -> dict[str, Any]:
        """Where the campaign is, as `hpo_cluster.status.campaign_status` gives it."""
        direction = self.spec.identity["direction"]
        return summarise(
            self.record,
            self.layout,
            direction,
            driver_alive=True,
            exhausted=self._exhausted,
            read=self._read_again,
        )

    def history(self) -> pd.DataFrame:
        """The history as it is now: what the optimizer is asked with, and what ``history.csv`` holds."""
        return self._table.frame()

    def _finished(self) -> bool:
        return not self.record.in_flight and (self._exhausted or self.record.spent >= self.spec.operation.budget)

    def _write_history(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._changed and (force or now >= self._history_at):
            self.lock.check()
            try:
                write_history(self.history(), self.layout.history)
            except OSError as error:
                if error.errno in PASSING:
                    raise
                log.warning("history=%s not written: %s; remove what is in the way", self.layout.history, error)
            after = time.monotonic()
            self._changed, self._history_at = False, after + max(HISTORY_PERIOD_S, (after - now) / HISTORY_SHARE)

    # -------------------------------------------------------------------------------------------------- ask, submit

    def propose(self) -> None:
        """Fill the free slots with new trials, as far as the budget goes."""
        operation = self.spec.operation
        if operation.baseline and BASELINE not in self.record.trials:
            seed = derive_seed(self.spec.seed, "baseline")
            row = {"trial": BASELINE, "parameters": {}, "seed": seed, "origin": Origin.BASELINE}
            self._append("asked", trials=[row], decision={})
        while not self._exhausted:
            committed = self.record.spent + sum(trial.in_budget for trial in self.record.in_flight)
            free = min(self._free_slots(), operation.budget - committed)
            if free <= 0:
                return
            ask = self._ask(free)
            rows = asked_rows(ask, self.record.next_trial, self.spec.seed)
            if not rows:
                self._exhausted = not self.record.in_flight
                return
            self._append("asked", trials=rows, decision=dict(ask.decision))

    def _ask(self, n: int) -> Ask:
        try:
            return self.spec.optimizer.ask(self.history(), n)
        except (MemoryError, RuntimeError) as error:  # torch raises the latter
            if not (isinstance(error, MemoryError) or "allocate memory" in str(error)):
                raise
            limit = self.spec.operation.driver_memory_gb
            raise HpoClusterError(
                f"the optimizer needs more memory than driver_memory_gb={limit} allows, or than there is. Nothing is "
                f"lost. Where the frontend has more:  hpo-cluster resume {self.layout.dir} driver_memory_gb=16"
            ) from error

    @property
    def _jobs_at_most(self) -> int:
        return max(1, self.spec.operation.slots // self.spec.launcher.trials_per_node)

    def _jobs(self) -> set[str]:
        return {attempt.job_name for _, attempt in self._with_job()}

    def _free_slots(self) -> int:
        """How many more trials would have a job at once; a job's places are free again when all of it has ended."""
        with_job = self._with_job()
        waiting = len(self.record.in_flight) - len(with_job)
        jobs = {attempt.job_name for _, attempt in with_job}
        return (self._jobs_at_most - len(jobs)) * self.spec.launcher.trials_per_node - waiting

    def submit(self) -> None:
        """Submit a job for the trials that have none; where the scheduler does not take it, wait and try again."""
        if self._submissions.wait_s > 0:
            return
        for group in self._waiting():
            trials = [trial for trial in group if not trial.state.ended]  # while others were being submitted
            if not trials:
                continue
            known = trials[0].attempt is not None and trials[0].attempt.job_name in self._unsure
            if not known and len(self._jobs()) >= self._jobs_at_most:
                return
            with self._holding(trials):
                try:
                    self._submissions.ask(functools.partial(self._submit, trials))
                    self._refused = ""
                except SubmissionError as error:
                    self._refused = str(error)
                    if not error.retriable:
                        self.stop(f"the job of trial {trials[0].number} cannot be submitted: {error}")
                        return
                    wait_s = self._submissions.wait_s
                    log.warning("trial=%d not submitted, again in %.0f s: %s", trials[0].number, wait_s, error)
                    return

    def _rests_s(self, trial: TrialRecord) -> float:
        """Seconds until a trial whose last attempt was lost to a machine is tried again, by the journal's times."""
        kinds = [attempt.error["kind"] for attempt in trial.attempts[trial.forgiven :] if attempt.error]
        lost = len(kinds) if kinds and kinds[-1] in MACHINE_KINDS else 0
        if not lost or not trial.attempts[-1].ended_at:
            return 0.0
        wait_s = min(self.spec.operation.retry_wait_s * 2 ** (lost - 1), LONGEST_REST_S)
        return float(wait_s - seconds_since(trial.attempts[-1].ended_at))

    def _waiting(self) -> list[list[TrialRecord]]:
        """The trials without a job, those together that are to share one."""
        begun: dict[str, list[TrialRecord]] = {}
        fresh: list[TrialRecord] = []
        for trial in self.record.in_flight:
            if trial.attempt is None and self._rests_s(trial) > 0:
                continue
            if trial.attempt is None:
                fresh.append(trial)
            elif trial.attempt.job is None:
                begun.setdefault(trial.attempt.job_name, []).append(trial)
        size = self.spec.launcher.trials_per_node
        return [*begun.values(), *(fresh[i : i + size] for i in range(0, len(fresh), size))]

    def _submit(self, trials: Sequence[TrialRecord]) -> None:
        job_name: str | None = None
        for trial in trials:
            if trial.attempt is None:
                number = len(trial.attempts)
                token = new_token(self.layout.dir.name, trial.number, number)
                job_name = job_name or token
                fields = {"attempt": number, "token": token, "job_name": job_name, "code": self.code}
                self._append("intent", trial=trial.number, **fields)
        members = [(trial, trial.attempts[-1]) for trial in trials]
        exclude = self.record.bad_nodes(self.spec.operation.exclude_node_after)
        submission = make_submission(self.spec, self.layout, members, exclude)
        launcher = self.spec.launcher
        if submission.token in self._unsure:
            siblings = (a.job for _, a in self._with_job() if a.job_name == submission.token)
            job = next(siblings, None) or self._launcher_call(lambda: launcher.find(submission))
            job = job or claimed_job(self.spec, self.layout, members)
            if job is not None:
                self._note_submission(members, job, adopted=True)
                return
        self.lock.check()  # what is written and submitted from here on no journal would know of
        for member in members:
            try:
                write_params(self.spec, self.layout, member)
            except OSError as error:
                if error.errno in PASSING:
                    raise
                what = f"{error.filename}: {error.strerror}; remove what is in the way"
                raise SubmissionError(what, retriable=False) from error
        self._unsure.add(submission.token)
        self._note_submission(members, self._launcher_call(lambda: launcher.submit(submission)), adopted=False)

    def _note_submission(self, members: Sequence[Member], job: JobRef, *, adopted: bool) -> None:
        common = {"job": dataclasses.asdict(job), "gpus": self.spec.gpus_per_trial, "adopted": adopted}
        for trial, attempt in members:
            self._append("submitted", trial=trial.number, attempt=attempt.number, **common)
        self._unsure.discard(job.token)

    # ------------------------------------------------------------------------------------------------------ collect

    def collect(self) -> None:
        """Take in what jobs have published, and what has become of those that have not."""
        self._read_all_files()
        if self._watch.due():
            self._poll_jobs()
        self._stop_if_all_fail()

    def _read_all_files(self) -> None:
        for trial in self.record.in_flight:
            if trial.number not in self._held and trial.attempts and not self._is_pending(trial):
                there = refresh(self.layout.attempt(trial.number, trial.attempts[-1].number).dir)
                telling = ENDING if trial.state is State.RUNNING else TELLING
                if len(trial.attempts) > 1 or not telling.isdisjoint(there):
                    self._read_files(trial)

    def _is_pending(self, trial: TrialRecord) -> bool:
        """Whether a trial's only job waits: looking into hundreds of empty folders is work for a file server."""
        first = trial.attempts[0]
        return len(trial.attempts) == 1 and trial.state is State.SUBMITTED and self._watch.is_pending(first.job_name)

    def _read_files(self, trial: TrialRecord) -> None:
        for attempt in trial.attempts:  # an attempt that was given up may have finished all the same
            result = outcomes.valid_result(self.layout.attempt(trial.number, attempt.number), attempt.token)
            if result is not None:
                self._take_result(trial, attempt, result)
                return
        current = trial.attempt
        if current is None or current.job is None:
            return
        files = self.layout.attempt(trial.number, current.number)
        failure = outcomes.reported_failure(files, current.token)
        if failure is not None and outcomes.awaits_reason(failure):
            return  # the scheduler may say who asked it to end, once the job is over
        if failure is not None:
            self._fail(trial, current, failure.kind, failure.message, dict(failure.seen))
        elif trial.state is State.SUBMITTED:
            claim = outcomes.document_of(files.claim, current.token)
            if claim is not None:
                self._append("running", trial=trial.number, attempt=current.number, **_whereabouts(claim))

    def _take_result(self, trial: TrialRecord, attempt: AttemptRecord, result: dict[str, Any]) -> None:
        try:
            outcome = self.spec.objective.outcome(result)
        except KeyError as error:
            there, name = sorted(result["metrics"]), str(error.args[0])
            message = f"the result has no metric {name!r}; {did_you_mean(name, there)}it has {', '.join(there)}"
            self._fail(trial, attempt, ErrorKind.BAD_RESULT, message, result)
            return
        self._end(
            trial,
            attempt,
            State.COMPLETED,
            value=outcome.value,
            value_sem=None if outcome.value_sem != outcome.value_sem else outcome.value_sem,
            metrics=dict(outcome.metrics),
            ended_at=result.get("ended_at"),
            **_whereabouts(result),
        )

    def _fail(self, trial: TrialRecord, attempt: AttemptRecord, kind: str, message: str, seen: dict[str, Any]) -> None:
        error: dict[str, Any] = {"kind": kind, "message": redact(message)}
        files = self.layout.attempt(trial.number, attempt.number)
        if step := checkpoint_step(files):
            error["checkpoint_step"] = step
        progress = outcomes.sound_fields(read_json(files.progress) or {}, files.progress)
        told = {**progress, **seen}  # a killed one has told its physical batch before
        if smaller := trial.smaller_batch(kind, told.get("physical_batch_size")):
            error["smaller_batch"] = smaller
        failures = self.spec.operation.failures
        if smaller or (step > trial.furthest_step and failures.action(kind) == "retry"):
            state = None
        else:
            completed = self.record.counts[State.COMPLETED] > 0
            kinds, retries = [*trial.lost_kinds, kind], self.spec.operation.retries
            state = failures.verdict(kinds, retries, others_completed=completed)
        if kind == ErrorKind.WALLTIME and progress.get("phase") in START_PHASES and not (step or trial.furthest_step):
            state = State.FAILED  # the next attempt would not get further
            error["message"] += (
                f"; it had not begun to train (phase {progress['phase']}): its time is shorter than its start. Give it "
                "more: launcher.walltime_min"
            )
        if state is None:
            fields = {"trial": trial.number, "attempt": attempt.number, "error": error, **_whereabouts(seen)}
            self._append("attempt_failed", **fields)
            return
        ended_at = {"ended_at": seen["ended_at"]} if "ended_at" in seen else {}
        self._end(trial, attempt, state, error=error, **ended_at, **_whereabouts(seen))

    def _end(self, trial: TrialRecord, attempt: AttemptRecord | None, state: State, **fields: Any) -> None:
        number = None if attempt is None else attempt.number
        self._append("ended", trial=trial.number, attempt=number, state=state, **fields)

    def _poll_jobs(self) -> None:
        jobs = {a.job_name: a.job for _, a in self._with_job() if a.job is not None}
        if not jobs:
            return
        told = self._launcher_call(lambda: self.spec.launcher.poll(list(jobs.values())))
        states = {name: told.get(name, JobStatus(JobState.UNKNOWN)) for name in jobs}
        self.lock.check()
        self._watch.take(states)
        for trial, attempt in self._with_job():
            status = states.get(attempt.job_name)
            if status is None or status.state is not JobState.ENDED:
                continue
            self._read_files(trial)
            if trial.state.ended or trial.attempt is not attempt:
                continue
            files = self.layout.attempt(trial.number, attempt.number)
            failure = outcomes.reported_failure(files, attempt.token)
            if failure is not None:
                failure = outcomes.explained(failure, status)
            elif self._watch.is_lost(attempt.job_name):
                failure = outcomes.silent_failure(files, attempt.job_id, status)
            if failure is not None:
                self._fail(trial, attempt, failure.kind, failure.message, dict(failure.seen))

    def _stop_if_all_fail(self) -> None:
        limit = self.spec.operation.stop_after_failures
        if not limit or self._some_completed:
            return
        starts = [start for start in self.record.starts if not start.get("tick")] or self.record.starts
        began = starts[-1]["seq"] if starts else 0
        ended = [t for t in self.record.rows if t.in_budget and t.ended_seq is not None and t.ended_seq > began]
        ended.sort(key=lambda trial: trial.ended_seq or 0)
        self._some_completed = any(trial.state is State.COMPLETED for trial in ended)
        errors = [t.error for t in ended if t.state is State.FAILED and t.error]
        alike = {(error["kind"], _NUMBER.sub("#", error["message"])) for error in errors}
        if len(ended) >= limit and len(errors) == len(ended) and len(alike) == 1:
            self.stop(f"the first {len(ended)} trials failed alike ({errors[0]['kind']}): {errors[0]['message']}")


def _whereabouts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Which job it was, where and since when, from a claim, a result or an error."""
    names = {"job": "job_id", "node": "node", "started_at": "started_at"}
    return {ours: document[theirs] for theirs, ours in names.items() if document.get(theirs) is not None}
