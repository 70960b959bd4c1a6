"""The scheduler's last answer about a campaign's jobs, and since when it has not answered or has called them ended."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping

from hpo_cluster.job import JobState, JobStatus
from hpo_cluster.record.clock import monotonic, seconds_since, utc_now
from hpo_cluster.record.files import dumps, read_json, replace_text
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.status import scheduler_view

log = logging.getLogger(__name__)


class JobWatch:
    """Clocks of the jobs in flight, and the scheduler's last answer about them, kept in a file for `status`.

    Args:
        layout: files of the campaign; `CampaignLayout.scheduler` is written.
        period_s: seconds between two questions to the scheduler.
        grace_s: seconds after a job's end in which its files may still appear.
        unknown_after_s: seconds of silence about a job after which a warning is logged.
    """

    def __init__(self, layout: CampaignLayout, period_s: float, grace_s: float, unknown_after_s: float) -> None:
        self._layout, self._period_s, self._grace_s, self._unknown_after_s = layout, period_s, grace_s, unknown_after_s
        view = scheduler_view(read_json(layout.scheduler))  # from an earlier driver: its clocks of silence go on
        self._silent_since: str | None = view.get("silent_since")
        jobs: Mapping[str, Mapping[str, str]] = view.get("jobs", {})
        self._unknown_since = {token: job["unknown_since"] for token, job in jobs.items() if job.get("unknown_since")}
        self._warned: set[str] = set()
        self._ended_since: dict[str, float] = {}
        self._pending: frozenset[str] = frozenset()
        self._answered_at = -math.inf
        self._due_at = 0.0

    def due(self) -> bool:
        """Return whether it is time to ask; if so, the next time is one period from now."""
        now = monotonic()
        if now < self._due_at:
            return False
        self._due_at = now + self._period_s
        return True

    def take(self, states: Mapping[str, JobStatus]) -> None:
        """Note the scheduler's answer about all jobs in flight, by token."""
        now = utc_now()
        unknown = [token for token, status in states.items() if status.state is JobState.UNKNOWN]
        self._unknown_since = {token: self._unknown_since.get(token, now) for token in unknown}
        ended = [token for token, status in states.items() if status.state is JobState.ENDED]
        self._ended_since = {token: self._ended_since.get(token, monotonic()) for token in ended}
        self._pending = frozenset(token for token, status in states.items() if status.state is JobState.PENDING)
        self._answered_at = monotonic()
        self._silent_since = (self._silent_since or now) if states and len(unknown) == len(states) else None
        for token, since in self._unknown_since.items():
            if token not in self._warned and seconds_since(since) >= self._unknown_after_s:
                self._warned.add(token)
                log.warning("token=%s nothing is known of its job since %s: %s", token, since, states[token].detail)
        jobs = {
            token: {**dataclasses.asdict(status), "unknown_since": self._unknown_since.get(token)}
            for token, status in states.items()
        }
        with contextlib.suppress(OSError):  # only `status` reads this file
            replace_text(self._layout.scheduler, dumps({"at": now, "silent_since": self._silent_since, "jobs": jobs}))

    def is_pending(self, token: str) -> bool:
        """Return whether the scheduler has just reported that a job waits, so that the job has written no file yet.

        An answer older than two periods does not count: while the scheduler hangs, jobs begin and end.
        """
        return token in self._pending and monotonic() - self._answered_at < 2 * self._period_s

    def has_ended(self, token: str) -> bool:
        """Return whether the scheduler has reported that a job ended."""
        return token in self._ended_since

    def is_lost(self, token: str) -> bool:
        """Return whether a job ended so long ago that its files can no longer be expected."""
        since = self._ended_since.get(token)
        return since is not None and monotonic() - since >= self._grace_s
