"""Intents: the event that precedes every submission, and every attempt that is given to a running job."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any

from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.job import JobRef
from hpo_cluster.record.trial_record import Member, TrialRecord
from hpo_cluster.trial import trial_label


def new_token(campaign: str, trial: int, attempt: int) -> str:
    """Return a new token for an attempt; the job of which it is the first attempt has the same name."""
    return f"hpo-{campaign}-{trial_label(trial)}-a{attempt}-{secrets.token_hex(4)}"


def intend(
    campaign: OpenCampaign, trial: TrialRecord, *, job_name: str | None = None, after: Member | None = None
) -> str:
    """Journal that an attempt of a trial is about to be submitted, and return its job's name.

    An attempt that is in progress, but was never begun, is replaced: it gets a new token, and a job of its own.

    Args:
        campaign: the campaign.
        trial: the trial.
        job_name: name of the job that it shares with others; None: its own token.
        after: the attempt after which a running job is to evaluate this one.
    """
    number = len(trial.attempts) if trial.attempt is None else trial.attempt.number
    token = new_token(campaign.layout.dir.name, trial.number, number)
    fields: dict[str, Any] = {"attempt": number, "token": token, "job_name": job_name or token, "code": campaign.code}
    if after is not None:
        before, attempt = after
        fields |= {"after": [before.number, attempt.number], "turn": attempt.turn + 1}
    campaign.append("intent", trial=trial.number, **fields)
    return str(fields["job_name"])


def note_job(campaign: OpenCampaign, members: Sequence[Member], job: JobRef, *, adopted: bool) -> None:
    """Journal that a job evaluates these attempts."""
    common = {"job": dataclasses.asdict(job), "gpus": campaign.spec.gpus_per_trial, "adopted": adopted}
    for trial, attempt in members:
        campaign.append("submitted", trial=trial.number, attempt=attempt.number, **common)
