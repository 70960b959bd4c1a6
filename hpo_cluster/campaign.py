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
import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hpo_cluster import code as code_copy
from hpo_cluster import inbox, outcomes
from hpo_cluster.errors import HpoClusterError, SubmissionError
from hpo_cluster.files import dumps, read_json, redact, replace_text
from hpo_cluster.history import to_frame, write_history
from hpo_cluster.identity import settle_identity
from hpo_cluster.journal import Event, Journal
from hpo_cluster.launchers.base import Submission, make_ref
from hpo_cluster.layout import AttemptLayout, CampaignLayout
from hpo_cluster.lock import DriverLock
from hpo_cluster.record import AttemptRecord, Record, TrialRecord, asked_rows
from hpo_cluster.spec import CampaignSpec
from hpo_cluster.status import summarise
from hpo_cluster.trial import BASELINE, ErrorKind, JobState, JobStatus, Origin, State, derive_seed, trial_label
from hpo_cluster.worker import SCHEMA, checkpoint_step, package_versions, utc_now

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

HISTORY_PERIOD_S = 2.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 2.0, 60.0

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
        self._missing_since: dict[str, float] = {}  # token -> when its job was first seen ended, without a file
        self._unsure: set[str] = set()  # tokens that may have been submitted: look before submitting
        self._backoff_s, self._submit_at, self._poll_at, self._history_at = 0.0, 0.0, 0.0, 0.0
        self._changed = True
        self._silent_since: str | None = None
        self._closing = ""  # why nothing more is submitted, while what runs is waited for
        self._unwritten_start: dict[str, Any] = {}

        with contextlib.ExitStack() as undo:
            self.layout.dir.mkdir(parents=True, exist_ok=True)
            self.lock = DriverLock(self.layout.lock, take_over=spec.take_over)
            undo.callback(self.lock.release)
            settle_identity(self.layout.identity, spec.identity)
            undo.enter_context(self._log_file())
            self.journal = undo.enter_context(Journal(self.layout.events))
            self.record = Record(self.journal.events)
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

    def _start(self) -> None:
        recorded = self.record.code
        keep = recorded is not None and self.spec.code == "recorded" and (self.layout.code_dir / recorded).is_dir()
        code = recorded if keep else code_copy.copy_code(self.layout.code_dir)
        self.code = str(code)
        if self.record.created is None:
            self._append("created", schema=SCHEMA, campaign=self.layout.dir.name, code=code)
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
        self._unsure = {t.attempt.token for t in self.record.in_flight if t.attempt and t.attempt.job is None}

    def _write_start(self) -> None:
        start, self._unwritten_start = self._unwritten_start, {}
        self._append("started", **start)

    def close(self) -> None:
        """Write the history and let go of the campaign. Jobs run on."""
        ending = "between ticks" if self.spec.tick else "interrupted"
        try:
            if not self._unwritten_start:
                self._append("stopped", reason=self.reason or ("finished" if self._finished() else ending))
            self._write_history(force=True)
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
        if not self.lock.check():
            raise HpoClusterError(
                f"{self.layout.dir}: another driver has taken this campaign over; nothing more is written"
            )
        if self._unwritten_start and event != "created":
            self._write_start()
        try:
            written = self.journal.append(event, **fields)
        except OSError as error:
            raise HpoClusterError(
                f"{self.journal.path}: {error.strerror}. Nothing is lost: jobs run on and their results are taken in "
                f"later. When it is mended:  hpo-cluster resume {self.layout.dir}"
            ) from error
        self.record.apply(written)
        self._changed = True
        shown = {
            k: v for k, v in fields.items() if k in ("trial", "attempt", "state", "value", "token", "host", "reason")
        }
        log.info("event=%s %s", event, " ".join(f"{key}={value}" for key, value in shown.items()))
        return written

    # ----------------------------------------------------------------------------------------------------- the loop

    def drive(self) -> Iterator[dict[str, Any]]:
        """Run until the budget is spent, the optimizer exhausted or `stop` called; yields the status each cycle."""
        while True:
            self.tick()
            yield self.status()
            if self._closing and not any(t.attempt and t.attempt.job for t in self.record.in_flight):
                self.stop(self._closing)
            if self._stopping or self._finished():
                return
            time.sleep(self.spec.operation.poll_s)

    def tick(self) -> None:
        """One pass: commands, results, proposals, submissions."""
        self.take_commands()
        self.collect()
        now = datetime.datetime.now(datetime.UTC)
        self._closing = self.spec.operation.used_up(now, self.record.gpu_hours(now))
        if not (self._stopping or self.record.halted or self._closing):
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
                    self._cancel(trial)
                elif trial is not None and command.verb == "retry" and trial.state.ended and trial.value is None:
                    self._append("reopened", trial=trial.number)
            command.path.unlink(missing_ok=True)

    def cancel_jobs(self) -> None:
        """End every job in flight, once what has finished is taken in. Cancelled trials do not count for the budget."""
        self.collect()
        for trial in self.record.in_flight:
            self._cancel(trial)

    def _cancel(self, trial: TrialRecord) -> None:
        attempt = trial.attempt
        if attempt is not None and attempt.job is not None:
            try:
                self.spec.launcher.cancel(attempt.job)
            except SubmissionError as error:
                log.warning("trial=%d job=%s not cancelled: %s", trial.number, attempt.job.job_id, error)
        self._end(trial, attempt, State.CANCELLED)

    def status(self) -> dict[str, Any]:
        """Where the campaign is, as `hpo_cluster.status.campaign_status` gives it."""
        return summarise(self.record, self.layout, self.spec.identity["direction"], driver_alive=True)

    def history(self) -> pd.DataFrame:
        """The history as it is now: what the optimizer is asked with, and what ``history.csv`` holds."""
        return to_frame(self.record, self.spec.space.names, maximize=self.spec.objective.direction == "maximize")

    def _finished(self) -> bool:
        return not self.record.in_flight and (self._exhausted or self.record.spent >= self.spec.operation.budget)

    def _write_history(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._changed and (force or now >= self._history_at):
            write_history(self.history(), self.layout.history)
            self._changed, self._history_at = False, now + HISTORY_PERIOD_S

    # -------------------------------------------------------------------------------------------------- ask, submit

    def propose(self) -> None:
        """Fill the free slots with new trials, as far as the budget goes."""
        operation = self.spec.operation
        if operation.baseline and BASELINE not in self.record.trials:
            seed = derive_seed(self.spec.seed, "baseline")
            row = {"trial": BASELINE, "parameters": {}, "seed": seed, "origin": Origin.BASELINE}
            self._append("asked", trials=[row], decision={})
        while not self._exhausted:
            in_flight = self.record.in_flight
            committed = self.record.spent + sum(trial.in_budget for trial in in_flight)
            free = min(operation.slots - len(in_flight), operation.budget - committed)
            if free <= 0:
                return
            ask = self.spec.optimizer.ask(self.history(), free)
            rows = asked_rows(ask, self.record.next_trial, self.spec.seed)
            if not rows:
                self._exhausted = not in_flight
                return
            self._append("asked", trials=rows, decision=dict(ask.decision))

    def submit(self) -> None:
        """Submit a job for each trial that has none; where the scheduler does not take it, wait and try again."""
        if time.monotonic() < self._submit_at:
            return
        for trial in self.record.in_flight:
            if trial.attempt is None or trial.attempt.job is None:
                try:
                    self._submit(trial)
                except SubmissionError as error:
                    if not error.retriable:
                        self.stop(f"the job of trial {trial.number} cannot be submitted: {error}")
                        return
                    self._backoff_s = min(max(FIRST_BACKOFF_S, 2 * self._backoff_s), LAST_BACKOFF_S)
                    self._submit_at = time.monotonic() + self._backoff_s
                    log.warning("trial=%d not submitted, again in %.0f s: %s", trial.number, self._backoff_s, error)
                    return
                self._backoff_s = 0.0

    def _submit(self, trial: TrialRecord) -> None:
        attempt = trial.attempt
        if attempt is None:
            number = len(trial.attempts)
            token = f"hpo-{self.layout.dir.name}-{trial_label(trial.number)}-a{number}-{secrets.token_hex(4)}"
            self._append("intent", trial=trial.number, attempt=number, token=token, code=self.code)
            attempt = trial.attempts[-1]
        submission = self._submission(trial, attempt)
        if attempt.token in self._unsure:
            job = self.spec.launcher.find(submission) or self._claimed_job(submission)
            if job is not None:
                self._note_submission(trial, attempt, job, adopted=True)
                return
        self._write_params(trial, attempt, submission.attempt_dir)
        self._unsure.add(attempt.token)
        job = self.spec.launcher.submit(submission)
        self._note_submission(trial, attempt, job, adopted=False)

    def _note_submission(self, trial: TrialRecord, attempt: AttemptRecord, job: Any, *, adopted: bool) -> None:
        self._append(
            "submitted",
            trial=trial.number,
            attempt=attempt.number,
            job=dataclasses.asdict(job),
            gpus=int((self.spec.settings.get("launcher") or {}).get("gpus_per_trial", 0)),
            adopted=adopted,
        )
        self._unsure.discard(attempt.token)

    def _submission(self, trial: TrialRecord, attempt: AttemptRecord) -> Submission:
        files = self.layout.attempt(trial.number, attempt.number)
        program = self.layout.code_dir / attempt.code / "jobs" / self.spec.objective.program
        command = (sys.executable, str(program.resolve()), str(files.dir.resolve()))
        exclude = self.record.bad_nodes(self.spec.operation.exclude_node_after)
        return Submission(attempt.token, command, files.dir.resolve(), files.job_dir.resolve(), exclude)

    def _write_params(self, trial: TrialRecord, attempt: AttemptRecord, attempt_dir: Path) -> None:
        attempt_dir.mkdir(parents=True, exist_ok=True)
        params = {
            "schema": SCHEMA,
            "campaign": self.layout.dir.name,
            "trial": trial.number,
            "attempt": attempt.number,
            "token": attempt.token,
            "code": attempt.code,
            "seed": trial.seed,
            "baseline": trial.number == BASELINE,
            "previous": [str(self.layout.attempt(trial.number, n).dir.resolve()) for n in range(attempt.number)],
            "physical_batch_size": trial.physical_batch_size,
            "parameters": trial.parameters,
            "settings": self.spec.objective.job_settings(self.spec.resolve),
        }
        replace_text(AttemptLayout(attempt_dir).params, dumps(params))

    def _claimed_job(self, submission: Submission) -> Any:
        """The job that claimed the attempt, or has ended it: the scheduler no longer knows it, its files do."""
        files = AttemptLayout(submission.attempt_dir)
        claim = read_json(files.claim) or read_json(files.result) or read_json(files.error)
        if claim is None or claim.get("token") != submission.token:
            return None
        extra = {"pid_started": claim.get("pid_started"), "attempt_dir": str(submission.attempt_dir)}
        ref = make_ref(self.spec.launcher.backend, str(claim["job"]), submission.token, **extra)
        return dataclasses.replace(ref, host=str(claim["host"]))

    # ------------------------------------------------------------------------------------------------------ collect

    def collect(self) -> None:
        """Take in what jobs have published, and what has become of those that have not."""
        for trial in self.record.in_flight:
            self._read_files(trial)
        if time.monotonic() >= self._poll_at:
            self._poll_jobs()
            self._poll_at = time.monotonic() + self.spec.launcher.poll_period_s
        self._stop_if_all_fail()

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
            message = f"the result has no metric {error}; it has {', '.join(sorted(result['metrics']))}"
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
        told = {**(read_json(files.progress) or {}), **seen}  # a killed one has told its physical batch before
        if smaller := trial.smaller_batch(kind, told.get("physical_batch_size")):
            error["smaller_batch"] = smaller
        failures = self.spec.operation.failures
        if smaller or (step > trial.furthest_step and failures.action(kind) == "retry"):
            state = None
        else:
            state = failures.verdict([*trial.lost_kinds, kind], self.spec.operation.retries)
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
        waiting = [(t, t.attempt) for t in self.record.in_flight if t.attempt is not None and t.attempt.job is not None]
        states = self.spec.launcher.poll([attempt.job for _, attempt in waiting if attempt.job is not None])
        tokens = {attempt.token for _, attempt in waiting}
        if waiting:
            self._note_scheduler(states)
        self._missing_since = {token: at for token, at in self._missing_since.items() if token in tokens}
        for trial, attempt in waiting:
            status = states.get(attempt.token, JobStatus(JobState.UNKNOWN))
            if status.state is not JobState.ENDED:
                self._missing_since.pop(attempt.token, None)
            elif time.monotonic() - self._missing_since.setdefault(attempt.token, time.monotonic()) >= (
                self.spec.operation.grace_s
            ):
                self._read_files(trial)
                if not trial.state.ended and trial.attempt is attempt:
                    files = self.layout.attempt(trial.number, attempt.number)
                    failure = outcomes.silent_failure(files, attempt.job_id, status)
                    self._fail(trial, attempt, failure.kind, failure.message, {})

    def _note_scheduler(self, states: Mapping[str, JobStatus]) -> None:
        """Keep what the scheduler said, for whoever asks for the status."""
        silent = all(status.state is JobState.UNKNOWN for status in states.values())
        self._silent_since = (self._silent_since or utc_now()) if silent else None
        jobs = {token: dataclasses.asdict(status) for token, status in states.items()}
        view = {"at": utc_now(), "silent_since": self._silent_since, "jobs": jobs}
        with contextlib.suppress(OSError):  # a courtesy
            replace_text(self.layout.scheduler, dumps(view))

    def _stop_if_all_fail(self) -> None:
        limit = self.spec.operation.stop_after_failures
        starts = [start for start in self.record.starts if not start.get("tick")] or self.record.starts
        began = starts[-1]["seq"] if starts else 0
        ended = [t for t in self.record.rows if t.in_budget and t.ended_seq is not None and t.ended_seq > began]
        ended.sort(key=lambda trial: trial.ended_seq or 0)
        errors = [t.error for t in ended if t.state is State.FAILED and t.error]
        alike = {(error["kind"], _NUMBER.sub("#", error["message"])) for error in errors}
        if limit and len(ended) >= limit and len(errors) == len(ended) and len(alike) == 1:
            self.stop(f"the first {len(ended)} trials failed alike ({errors[0]['kind']}): {errors[0]['message']}")


def _whereabouts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Which job it was, where and since when, from a claim, a result or an error."""
    names = {"job": "job_id", "node": "node", "started_at": "started_at"}
    return {ours: document[theirs] for theirs, ours in names.items() if document.get(theirs) is not None}
