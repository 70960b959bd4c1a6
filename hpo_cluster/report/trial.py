"""The story of one trial: its attempts, jobs, nodes and errors, and the end of what its program wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals
from hpo_cluster.record.attempt_files import curve_losses, program_output
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.record.status import scheduler_view
from hpo_cluster.record.trial_record import AttemptRecord, TrialRecord
from hpo_cluster.text import in_blocks
from hpo_cluster.trial import Origin, State, trial_label

LOG_LINES = 15


def trial_story(campaign_dir: Path, number: int) -> list[str]:
    """Return the story of a trial, as lines of text.

    Raises:
        ConfigError: if the campaign does not have this trial.
    """
    layout = CampaignLayout(campaign_dir)
    trial = find_trial(Record.read(layout.events), campaign_dir, number)
    lines = [f"{trial_label(number)}: {trial.state}, origin {trial.origin}, seed {trial.seed}"]
    lines += [f"  {name} = {value}" for name, value in trial.parameters.items()]
    if trial.origin is Origin.IMPORTED:
        lines.append(f"  imported: trial {trial.info.get('trial')} of {trial.info.get('campaign')}")
    elif trial.info:
        lines.append("  proposed as " + ", ".join(f"{name} {value}" for name, value in trial.info.items()))
    goals = Goals.of(identity_of_campaign(layout.identity)["objective"])
    if goals is not None:
        lines += _goal_lines(trial, goals)
    elif trial.value is not None:
        lines.append(f"  value {trial.value:.6g}")
    lines += _climb_lines(trial)
    view = scheduler_view(read_json(layout.scheduler))
    for attempt in trial.attempts:
        lines += _attempt_lines(attempt, layout.attempt(number, attempt.number), view)
    if trial.error and not (trial.attempts and trial.attempts[-1].error):
        lines += _indented(f"  {trial.error['kind']}: ", trial.error["message"])
    if not trial.attempts:
        lines.append("  it needs no job" if trial.state.ended else "  no job has been submitted for it yet")
        return lines
    last = layout.attempt(number, trial.attempts[-1].number)
    for path, written in program_output(last, LOG_LINES):
        lines += [f"the end of {path}:", *(f"  | {line}" for line in written)]
    return lines


def _climb_lines(trial: TrialRecord) -> list[str]:
    """Return the values at the rungs below the top, and how far the trial has climbed or may; none without rungs."""
    climb = trial.climb
    if climb is None:
        return []
    lines = [
        f"  rung {rung}: {score.value:.6g}, in attempt {score.attempt}"
        for rung, score in sorted(climb.scores.items())
        if rung < climb.top and score.value is not None
    ]
    if trial.state is State.PAUSED:
        return [*lines, f"  paused at rung {climb.reached} of {climb.top}"]
    verb, why = "may climb to" if climb.reached < climb.goal else "reached", f" ({climb.why})" if climb.why else ""
    return [*lines, f"  {verb} rung {climb.goal} of {climb.top}{why}"]


def _goal_lines(trial: TrialRecord, goals: Goals) -> list[str]:
    """Return the values of several objectives, and those of constraints that do not hold."""
    lines = [f"  {goal.name} {trial.metrics[goal.name]:.6g}" for goal in goals.metrics if goal.name in trial.metrics]
    for bound, slack in zip(goals.constraints, goals.slacks(trial.metrics), strict=True):
        if slack < 0:
            lines.append(f"  violates a constraint: {bound.name} {trial.metrics[bound.name]:.6g}")
    return lines


def _attempt_lines(attempt: AttemptRecord, files: AttemptLayout, view: Mapping[str, Any]) -> list[str]:
    where = f" on {attempt.node}" if attempt.node else ""
    lines = [
        f"attempt {attempt.number}: " + (f"job {attempt.job_id}{where}" if attempt.job_id else "not submitted yet")
    ]
    if attempt.job is not None:
        lines.append(f"  submitted {attempt.job.submitted_at} from {attempt.job.host} ({attempt.job.backend})")
    if attempt.after is not None:
        before = f"attempt {attempt.after[1]} of {trial_label(attempt.after[0])}"
        lines.append(f"  number {attempt.turn} in its job, after {before}")
    job = view.get("jobs", {}).get(attempt.job_name) or {}
    if job.get("detail") and not attempt.over and not attempt.started_at:
        remedy = f". {job['remedy']}" if job.get("remedy") else ""
        lines.append(f"  waits     {job['detail']}, as the scheduler said at {view.get('at')}{remedy}")
    if attempt.started_at:
        lines.append(f"  started   {attempt.started_at}")
    if attempt.rung is not None:
        lines.append(f"  ended     at rung {attempt.rung}, {attempt.ended_at}")
    elif attempt.error:
        lines += _indented(f"  failed    {attempt.error['kind']}: ", attempt.error["message"])
    elif not attempt.over and (progress := read_json(files.progress)):
        shown = ", ".join(f"{name} {value}" for name, value in progress.items() if value is not None)
        lines.append(f"  progress  {shown}")
    elif (result := read_json(files.result)) is not None:
        lines.append(f"  ended     {result.get('ended_at')}")
        lines += _curve_line(result)
    return [*lines, f"  files     {files.dir}"]


def _indented(label: str, message: str) -> list[str]:
    """Return the lines of a message, those after the first one indented."""
    first, *more = message.splitlines() or [""]
    return [label + first, *(f"{'':12}{line}" for line in more)]


def _curve_line(result: Mapping[str, Any]) -> list[str]:
    """Return a line with the training loss of a fine-tuning, drawn in blocks; no line if there is no curve."""
    points = curve_losses(result)
    if len(points) < 2:
        return []
    losses = [loss for _, loss in points]
    return [f"  loss      {in_blocks(losses)} {losses[0]:.4g} to {losses[-1]:.4g} in {points[-1][0]} steps"]


def find_trial(record: Record, campaign_dir: Path, number: int) -> TrialRecord:
    """Return the trial with this number. Raise ConfigError, naming the trials that exist, if there is none."""
    if number not in record.trials:
        last = max(record.trials, default=None)
        there = f"it has trials 0 to {last}" if last is not None and last >= 0 else "it has no trials yet"
        raise ConfigError([f"trial {number}: {campaign_dir} has no such trial; {there}"])
    return record.trials[number]
