"""A campaign that this process holds: its folder, its lock, its journal, and the record that the journal defines.

The parts of the driver share one `OpenCampaign`. Every event goes through `OpenCampaign.append`, so that journal and
record never differ.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hpo_cluster.driver.code_snapshot import copy_code, current_code
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.errors import HpoClusterError
from hpo_cluster.record.attempt_files import SCHEMA
from hpo_cluster.record.campaign_state import Record, asked_rows, refuse_if_emptied
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import is_there, redact
from hpo_cluster.record.identity import settle_identity
from hpo_cluster.record.journal import Event, Journal
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.lock import DriverLock
from hpo_cluster.record.processes import cap_memory, uncap_memory
from hpo_cluster.record.trial_record import Member, TrialRecord
from hpo_cluster.record.versions import package_versions
from hpo_cluster.record.writable import writing
from hpo_cluster.trial import Ask

log = logging.getLogger(__name__)

#: Fields of an event that the log shows.
LOGGED = ("trial", "attempt", "rung", "state", "value", "token", "host", "reason")


class _LogFile(logging.FileHandler):
    """A log file that leaves out what it cannot write, instead of a traceback for each line on a full disk."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # submitit's import closes all handlers, and this one opens its file again
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing."""


class OpenCampaign:
    """An open campaign, new or existing, which this process keeps locked until `close`.

    Attributes:
        spec: what the campaign is, and how it is run now.
        layout: paths of its files.
        record: the campaign's state, kept up to date with the journal.
        code: hash of the code that new attempts run.
        is_new: whether this start created the campaign.
        changed: whether an event has been written since this was last set to False.
        held: numbers of the trials whose job is being submitted or cancelled just now.

    Raises:
        LockedError: if another driver holds the campaign.
        IdentityError: if the folder holds a campaign with another identity.
        JournalError: if the journal cannot be read, or was lost.
        ConfigError: if nothing can be written to the folder.
    """

    def __init__(self, spec: CampaignSpec) -> None:
        self.spec = spec
        self.layout = CampaignLayout(spec.dir)
        self.changed = True
        self.held: set[int] = set()
        self._unwritten_start: dict[str, Any] = {}
        with self._writing(), contextlib.ExitStack() as undo:
            self.layout.dir.mkdir(mode=0o700, exist_ok=True)  # for its owner alone: jobs and settings may hold secrets
            self.lock = DriverLock(self.layout.lock, take_over=spec.take_over)
            undo.callback(self.lock.release)
            settle_identity(self.layout.identity, spec.identity)
            undo.enter_context(self._log_file())
            self.journal = undo.enter_context(Journal(self.layout.events, self.lock.check))
            self.lock.advance(self.journal.epoch)
            self.journal.epoch = self.lock.epoch
            self.record = Record.of(self.journal.take_events(), self.layout.events)
            if self.record.created is None:
                refuse_if_emptied(self.layout)
            if spec.launcher.backend != "local" and spec.operation.driver_memory_gb is not None:
                cap_memory(spec.operation.driver_memory_gb)
                undo.callback(uncap_memory)
            self._start()
            self._undo = undo.pop_all()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Return the context in which the campaign is opened; it says in one sentence if nothing can be written."""
        folder = self.layout.dir
        if not is_there(folder):
            return writing(str(folder.parent), folder.parent, "Give a folder of yours:  campaigns_dir=FOLDER")
        later = "Jobs run on, and their results are taken in later. Type the command again when that is fixed"
        return writing(str(folder), folder, later)

    @contextlib.contextmanager
    def _log_file(self) -> Iterator[None]:
        """Write the package's log to a file of this start while the context lasts."""
        folder = self.layout.drivers_dir / ("ticks" if self.spec.tick else utc_now().replace(":", "").replace("-", ""))
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / "driver.log"
        handler = _LogFile(self.log_path, encoding="utf-8")
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
        """Choose the code that jobs run, and journal the start."""
        recorded = self.record.code
        keep = recorded is not None and self.spec.code == "recorded" and (self.layout.code_dir / recorded).is_dir()
        self.code = str(recorded) if keep else self._new_code()
        self.is_new = self.record.created is None
        if self.is_new:
            fields = {"schema": SCHEMA, "campaign": self.layout.dir.name, "code": self.code}
            self.append("created", **fields, **self.spec.fidelity.identity(), **self._imported())
        self._unwritten_start = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "dir": str(self.layout.dir.absolute()),
            "operation": self.spec.operation.model_dump(mode="json"),
            "settings": dict(self.spec.settings),
            "overrides": [redact(override) for override in self.spec.overrides],
            "code": self.code,
            "versions": package_versions(),
            "tick": self.spec.tick,
        }
        last = self.record.starts[-1] if self.record.starts else {}
        news = any(last.get(key) != self._unwritten_start[key] for key in ("operation", "settings", "code", "dir"))
        if news or not self.spec.tick:  # a tick that finds nothing to do leaves no trace
            self._write_start()

    def _new_code(self) -> str:
        """Return the hash of the running code, copied for the jobs if they run it."""
        return current_code() if self.spec.code == "none" else copy_code(self.layout.code_dir)

    def _imported(self) -> dict[str, Any]:
        """Return the evaluations that a new campaign begins with, for its first event."""
        sources, rows = self.spec.warm_start.sources, self.spec.warm_start.rows
        missing = [source.campaign for source in sources if not source.read]
        if missing:
            names = ", ".join(missing)
            raise HpoClusterError(
                f"{self.layout.dir} was to begin with evaluations of {names}, but its driver died before it had them. "
                "Run the command that began the campaign again (hpo-cluster run ... warm_start=...)"
            )
        for source in sources:
            log.info("warm start: %s", source.message)
        if made := self.spec.warm_start.made_elsewhere:
            return {"trials": [*made]}
        return {"trials": asked_rows(Ask(settled=rows), 0, self.spec.seed)} if rows else {}

    def _write_start(self) -> None:
        start, self._unwritten_start = self._unwritten_start, {}
        self.append("started", **start)

    def append(self, event: str, **fields: Any) -> Event:
        """Write an event to the journal, then take it into the record."""
        if self._unwritten_start and event != "created":
            self._write_start()
        written = self.journal.append(event, **fields)
        self.record.apply(written)
        self.changed = True
        shown = " ".join(f"{key}={value}" for key, value in fields.items() if key in LOGGED)
        log.info("event=%s %s", event, shown)
        return written

    @contextlib.contextmanager
    def holding(self, trials: Sequence[TrialRecord]) -> Iterator[None]:
        """Keep others from reading the files of these trials while the context lasts."""
        self.held = {trial.number for trial in trials}
        try:
            yield
        finally:
            self.held = set()

    def with_job(self) -> list[Member]:
        """Return the trials that have a submitted job, each with its attempt."""
        members = ((trial, trial.attempt) for trial in self.record.in_flight)
        return [(trial, attempt) for trial, attempt in members if attempt is not None and attempt.job is not None]

    def write_stop(self, reason: str, **fields: Any) -> bool:
        """Journal that the driver stops, unless nothing of this start was journaled; return whether it was."""
        if self._unwritten_start:
            return False
        self.append("stopped", reason=reason, **fields)
        return True

    def close(self) -> None:
        """Release the campaign. Jobs in flight keep running."""
        self._undo.close()
