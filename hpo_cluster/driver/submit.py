"""From trials to jobs: what is written for an attempt, and what is handed to the launcher.

A job holds one attempt, or several side by side (`Launcher.trials_per_node`) where a site gives out whole nodes only.
Its name is the token of its first attempt; each attempt has a token of its own, which its files carry.
"""

from __future__ import annotations

import dataclasses
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.job import JobRef
from hpo_cluster.launchers.base import Submission, make_ref
from hpo_cluster.record.attempt_files import SCHEMA, document_of
from hpo_cluster.record.campaign_state import AttemptRecord, TrialRecord
from hpo_cluster.record.files import dumps, replace_text
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.trial import BASELINE, trial_label

#: A trial with its attempt that is to run.
Member: TypeAlias = tuple[TrialRecord, AttemptRecord]


def new_token(campaign: str, trial: int, attempt: int) -> str:
    """Names an attempt, and so the job that it is the first of; never the same twice."""
    return f"hpo-{campaign}-{trial_label(trial)}-a{attempt}-{secrets.token_hex(4)}"


def command(spec: CampaignSpec, layout: CampaignLayout, code: str, folders: Sequence[Path]) -> tuple[str, ...]:
    """What a job runs on its attempts' directories, of the campaign's copy of the code."""
    programs = (layout.code_dir / code / "jobs").resolve()
    program, directories = str(programs / spec.objective.program), [str(folder.resolve()) for folder in folders]
    if len(folders) == 1:
        return (sys.executable, program, *directories)
    runner = (str(programs / "side_by_side.py"), "--gpus", str(spec.gpus_per_trial))
    return (sys.executable, *runner, program, *directories)


def make_submission(
    spec: CampaignSpec, layout: CampaignLayout, members: Sequence[Member], exclude: tuple[str, ...]
) -> Submission:
    """The job of these attempts."""
    folders = [layout.attempt(trial.number, attempt.number) for trial, attempt in members]
    first = members[0][1]
    line = command(spec, layout, first.code, [files.dir for files in folders])
    home = folders[0]
    return Submission(first.job_name, line, home.dir.resolve(), home.job_dir.resolve(), exclude, len(members))


def write_params(spec: CampaignSpec, layout: CampaignLayout, member: Member) -> None:
    """What the job finds in its attempt's directory."""
    trial, attempt = member
    files = layout.attempt(trial.number, attempt.number)
    files.dir.mkdir(parents=True, exist_ok=True)
    params = {
        "schema": SCHEMA,
        "campaign": layout.dir.name,
        "trial": trial.number,
        "attempt": attempt.number,
        "token": attempt.token,
        "code": attempt.code,
        "seed": trial.seed,
        "baseline": trial.number == BASELINE,
        "previous": [str(layout.attempt(trial.number, n).dir.resolve()) for n in range(attempt.number)],
        "physical_batch_size": trial.physical_batch_size,
        "gpus": spec.gpus_per_trial,
        "parameters": trial.parameters,
        "settings": spec.objective.job_settings(spec.resolve),
    }
    replace_text(files.params, dumps(params))


def claimed_job(spec: CampaignSpec, layout: CampaignLayout, members: Sequence[Member]) -> JobRef | None:
    """The job that has claimed one of the attempts, or has ended it: the scheduler no longer knows it, its files do."""
    for trial, attempt in members:
        files = layout.attempt(trial.number, attempt.number)
        documents = (document_of(path, attempt.token) for path in (files.claim, files.result, files.error))
        claim = next((document for document in documents if document is not None), None)
        if claim is not None and claim.get("job") and claim.get("host"):
            extra = {"pid_started": claim.get("pid_started"), "attempt_dir": str(files.dir.resolve())}
            ref = make_ref(spec.launcher.backend, str(claim["job"]), attempt.job_name, **extra)
            return dataclasses.replace(ref, host=str(claim["host"]))
    return None
