"""Places in running jobs that are free: the attempt there has ended, and the job waits for another one.

Nothing is kept in memory that the next driver would miss. A job waits if the journal says that its attempt has ended
within the last ``launcher.linger_s``, and if the attempt's folder has a result or an error and no ``next.json``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hpo_cluster.driver.job_watch import JobWatch
from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.job import JobRef
from hpo_cluster.launchers.base import LauncherSettings
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import seconds_since
from hpo_cluster.record.next_attempt import END, job_goes_on, publish_next, read_next
from hpo_cluster.record.trial_record import AttemptRecord, Member, Place

#: Shares of the longest evaluation, and of the walltime, that must be left over when a job begins another evaluation.
SPARE_EVALUATION, SPARE_WALLTIME = 0.1, 0.1
#: Largest number of seconds of the walltime that must be left over.
SPARE_AT_MOST_S = 60.0


class FreePlaces:
    """The free places of a campaign's jobs.

    Args:
        campaign: the campaign.
        watch: what the scheduler last said about its jobs.
    """

    def __init__(self, campaign: OpenCampaign, watch: JobWatch) -> None:
        self._campaign, self._watch = campaign, watch
        self._closed: set[Place] = set()  # their jobs have ended, or end now

    def free(self) -> list[Member]:
        """Return the ended attempts whose job waits and has time for another evaluation; end the other jobs."""
        found = []
        for member in self._waiting():
            if self._fits(member):
                found.append(member)
            else:
                self.close(member)
        return found

    def jobs(self) -> dict[str, JobRef]:
        """Return the jobs that wait, by name."""
        return {attempt.job_name: attempt.job for _, attempt in self._recent() if attempt.job is not None}

    def close(self, member: Member) -> None:
        """Tell the job after this attempt, which may still run, not to wait for another one."""
        trial, attempt = member
        self._closed.add((trial.number, attempt.number))
        self._campaign.lock.check()
        with contextlib.suppress(FileNotFoundError):  # somebody removed the attempt's folder
            publish_next(self._campaign.layout.attempt(trial.number, attempt.number), END)

    def close_all(self) -> None:
        """Tell all jobs that wait to end."""
        for member in list(self._waiting()):
            self.close(member)

    def _recent(self) -> Iterator[Member]:
        """Yield the ended attempts whose job may wait, as far as the journal and the scheduler know."""
        for trial, attempt in self._campaign.record.left():
            if attempt.noted_at is None or seconds_since(attempt.noted_at) > attempt.launcher["linger_s"]:
                return
            place = trial.number, attempt.number
            if self._watch.has_ended(attempt.job_name):
                self._closed.add(place)
            if place not in self._closed:
                yield trial, attempt

    def _waiting(self) -> Iterator[Member]:
        """Yield the ended attempts whose job waits, as their folders say."""
        for trial, attempt in self._recent():
            files = self._campaign.layout.attempt(trial.number, attempt.number)
            if job_goes_on(files) and read_next(files) is None:
                yield trial, attempt
            else:
                self._closed.add((trial.number, attempt.number))

    def _fits(self, member: Member) -> bool:
        """Return whether a job has this driver's code and settings, a node that loses no attempts, and the time."""
        _, attempt = member
        spec, record = self._campaign.spec, self._campaign.record
        settings = spec.launcher_settings
        if attempt.code != self._campaign.code or attempt.launcher != settings.model_dump(mode="json"):
            return False
        if attempt.node in record.bad_nodes(spec.operation.exclude_node_after):
            return False
        return has_time(record, attempt, settings)


def has_time(record: Record, attempt: AttemptRecord, settings: LauncherSettings) -> bool:
    """Return whether the job of an attempt has time for one more evaluation, as long as the longest one until now."""
    first = attempt
    while first.after is not None:
        first = record.member(first.after)[1]
    if first.started_at is None:
        return False
    walltime_s = 60.0 * settings.walltime_min
    spare_s = SPARE_EVALUATION * record.longest_evaluation_s + min(SPARE_WALLTIME * walltime_s, SPARE_AT_MOST_S)
    needed_s = seconds_since(first.started_at) + record.longest_evaluation_s + spare_s
    return needed_s <= walltime_s - settings.warning_s - settings.early_s
