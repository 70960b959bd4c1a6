"""The trials of a campaign as the page's script reads them: what the table, the pointer and the details show."""

from __future__ import annotations

import math
from typing import Any

from hpo_cluster.record.attempt_files import program_output
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import AttemptRecord, TrialRecord
from hpo_cluster.report.data import Campaign
from hpo_cluster.text import visible
from hpo_cluster.trial import Origin, State, trial_label

#: Most characters of a log and of a message, most logs in one page, and most lines of a log.
MOST_LOG, MOST_MESSAGE, MOST_LOGS, LOG_LINES = 1500, 2000, 600, 15
#: Significant digits of numbers, and of minutes.
DIGITS, FEW_DIGITS = 6, 3


def trial_table(campaign: Campaign) -> dict[str, Any]:
    """Return the columns of the table and a row for each trial, as JSON."""
    names = list(campaign.space.names)
    metrics = [goal.name for goal in campaign.goals.metrics] if campaign.goals and campaign.several else []
    others = [name for name in campaign.others if name not in metrics]
    rows = [_row(campaign, trial, [*metrics, *others], names) for trial in campaign.record.rows]
    _add_logs(campaign, rows)
    values = metrics or [campaign.metric]
    return {
        "columns": ["trial", "state", *values, *others, "minutes", *names],
        "numbers": 3 + len(values) + len(others),
        "best": int(campaign.ranked.iloc[0]["trial"]) if not campaign.ranked.empty and not campaign.several else None,
        "rows": rows,
    }


def _row(campaign: Campaign, trial: TrialRecord, metrics: list[str], names: list[str]) -> dict[str, Any]:
    measured = [trial.metrics.get(name) for name in metrics]
    cells = measured if campaign.several else [trial.value, *measured]
    parameters = [trial.parameters.get(name) for name in names]
    origin = "" if trial.origin is Origin.EVALUATED else str(trial.origin)
    return {
        "trial": trial.number,
        "label": trial_label(trial.number),
        "state": str(trial.state),
        "origin": origin,
        "cells": [
            *(_number(cell) for cell in cells),
            _number(_minutes(trial), FEW_DIGITS),
            *(_plain(value) for value in parameters),
        ],
        "error": _error(trial.error),
        "attempts": [_attempt(attempt) for attempt in trial.attempts],
    }


def _attempt(attempt: AttemptRecord) -> str:
    """Return a line about an attempt."""
    words = [f"attempt {attempt.number}:", f"job {attempt.job_id}" if attempt.job_id else "not submitted yet"]
    words += [f"on {attempt.node}"] if attempt.node else []
    words += [f"from {attempt.started_at[:19]}"] if attempt.started_at else []
    words += [f"to {attempt.ended_at[:19]}"] if attempt.ended_at else []
    words += [f"at rung {attempt.rung}"] if attempt.rung is not None else []
    return visible(" ".join(words) + (f", {_error(attempt.error)}" if attempt.error else ""))


def _error(error: dict[str, Any] | None) -> str:
    return "" if error is None else visible(f"{error.get('kind')}: {error.get('message')}", "\n\t")[:MOST_MESSAGE]


def _minutes(trial: TrialRecord) -> float | None:
    spans = [attempt.took_s for attempt in trial.attempts if attempt.started_at and attempt.ended_at]
    return math.fsum(spans) / 60 if spans else None


def _number(value: Any, digits: int = DIGITS) -> float | None:
    return float(f"{value:.{digits}g}") if isinstance(value, (int, float)) and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return a parameter as the table shows it: numbers stay numbers, so that they sort; text is cut short."""
    if isinstance(value, bool) or value is None:
        return None if value is None else str(value)
    return _number(value) if isinstance(value, (int, float)) else visible(str(value))[:200]


def _add_logs(campaign: Campaign, rows: list[dict[str, Any]]) -> None:
    """Add the ends of logs: of trials without a value first, then of the best, as long as there is room."""
    order = {int(trial): place for place, trial in enumerate(campaign.ranked["trial"])}
    wanted = [row for row in rows if row["attempts"]]
    lost = str(State.COMPLETED), str(State.PAUSED)
    wanted.sort(key=lambda row: (row["state"] in lost, order.get(row["trial"], len(order)), row["trial"]))
    for row in wanted[:MOST_LOGS]:
        row["log"] = _log(campaign.layout, row["trial"], len(row["attempts"]) - 1)


def _log(layout: CampaignLayout, trial: int, attempt: int) -> str:
    ends = program_output(layout.attempt(trial, attempt), LOG_LINES)
    return visible("\n".join(line for _, lines in ends for line in lines), "\n\t")[-MOST_LOG:]
