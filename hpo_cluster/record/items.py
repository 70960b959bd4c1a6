"""What each item of a task scored in an evaluation, so that two trials can be compared on the same items.

A fine-tuning keeps it in ``items.json``, beside its result::

    {"schema": 1, "token": "...", "optimised": "mmlu/acc", "groups": {"mmlu": ["mmlu_anatomy", ...]},
     "tasks": {"mmlu_anatomy": {"items": 135, "digest": "7c0f...", "scores": {"acc": "base64"}}, ...}}

The digest is that of the items in their order: two trials are compared only if it is the same. If all items score 0 or
1, each takes one bit, in base64, the first item in the highest bit of the first byte (as `numpy.packbits` does);
otherwise the scores are a list of numbers with six significant digits. A metric is kept only if it is the mean of its
items.
Trials of earlier versions, and of other objectives, have no such file.
"""

from __future__ import annotations

import base64
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import JournalError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import read_json, replace_text
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.trial import trial_label

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1

#: How far the mean of rounded scores may be from the metric, relative to it.
ROUNDING = 1e-5


@dataclass(frozen=True)
class TaskItems:
    """The items of one task.

    Attributes:
        digest: of the items in their order.
        scores: of each item in this order, by metric.
    """

    digest: str
    scores: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Items:
    """The items of all tasks of an evaluation.

    Attributes:
        tasks: by name.
        groups: names of the tasks of each group whose metric is the mean over all their items.
        optimised: name of the optimised metric, ``TASK/METRIC``; None if it is not a mean over items.
    """

    tasks: Mapping[str, TaskItems]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optimised: str | None = None

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric of each task over its items, under the metric's name in a result."""
        scored = [(name, *scores) for name, task in self.tasks.items() for scores in task.scores.items()]
        return {f"{name}/{metric}": statistics.fmean(values) for name, metric, values in scored}

    def of(self, metric: str) -> dict[str, tuple[str, Sequence[float]]]:
        """Return digest and scores of each task that a metric (``TASK/METRIC``) is the mean of; empty if unknown."""
        name, _, measure = metric.rpartition("/")
        parts = [(part, self.tasks.get(part)) for part in self.groups.get(name, (name,))]
        found = {part: (task.digest, task.scores[measure]) for part, task in parts if task and measure in task.scores}
        return found if len(found) == len(parts) else {}


def write_items(files: AttemptLayout, items: Items, token: Any) -> None:
    """Write the items of an attempt, whole or not at all.

    Args:
        files: of the attempt.
        items: what is kept.
        token: the attempt's.
    """
    tasks = {
        name: {
            "items": max(map(len, task.scores.values())),
            "digest": task.digest,
            "scores": {metric: _packed(scores) for metric, scores in task.scores.items()},
        }
        for name, task in items.tasks.items()
        if task.scores
    }
    groups = {name: list(parts) for name, parts in items.groups.items()}
    document = {"schema": SCHEMA, "token": token, "optimised": items.optimised, "groups": groups, "tasks": tasks}
    replace_text(files.items, json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n")


def read_items(files: AttemptLayout, token: str) -> Items | None:
    """Return the items that the attempt with `token` has kept; None without any, or if they cannot be read."""
    document = read_json(files.items)
    if document is None or document.get("schema") != SCHEMA or document.get("token") != token:
        return None
    try:
        tasks = {name: _task(task) for name, task in document["tasks"].items()}
        groups = {str(name): [str(part) for part in parts] for name, parts in document["groups"].items()}
        optimised = document["optimised"]
        return Items(tasks, groups, None if optimised is None else str(optimised))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _task(task: Mapping[str, Any]) -> TaskItems:
    count = int(task["items"])
    scores = {str(metric): _unpacked(packed, count) for metric, packed in task["scores"].items()}
    return TaskItems(str(task["digest"]), scores)


def _packed(scores: Sequence[float]) -> str | list[float]:
    """Return scores as base64 with one bit each if all of them are 0 or 1, else as rounded numbers."""
    if not all(score in (0, 1) for score in scores):
        return [float(f"{score:.6g}") for score in scores]
    size = -(-len(scores) // 8)
    bits = "".join("1" if score else "0" for score in scores).ljust(8 * size, "0")
    return base64.b64encode(int(bits or "0", 2).to_bytes(size, "big")).decode()


def _unpacked(packed: Any, count: int) -> list[float]:
    """Return the scores of `count` items. Raises ValueError or TypeError if they cannot be read."""
    if isinstance(packed, str):
        data = base64.b64decode(packed, validate=True)
        scores = [float(bit) for bit in f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"[:count]]
    else:
        scores = [float(score) for score in packed]
    if len(scores) != count or not all(map(math.isfinite, scores)):
        raise ValueError(f"{len(scores)} scores of {count} items")
    return scores


def items_of_trial(layout: CampaignLayout, trial: TrialRecord) -> Items | None:
    """Return the items of the evaluation that gave a trial its value; None if none were kept."""
    whole = [attempt for attempt in trial.attempts if attempt.over and attempt.error is None and attempt.rung is None]
    if trial.value is None or not whole:
        return None
    return read_items(layout.attempt(trial.number, whole[-1].number), whole[-1].token)


def load_items(campaign_dir: str | os.PathLike[str], trial: int) -> pd.DataFrame:
    """Return what each item of each task scored in a trial, for the metrics that a campaign optimises.

    Args:
        campaign_dir: the campaign's directory, for instance ``campaigns/first``.
        trial: its number in the history; the baseline is -1, confirmations are -2, -3, …

    Returns:
        One row for each item: ``task``, ``item`` (its number in the task, from 0) and a column for each metric, as
        described in ``docs/reference/history.md``.

    Raises:
        JournalError: if there is no such campaign or trial, or the trial has kept no items: it has no value, is no
            fine-tuning that was scored on tasks, or was evaluated by an earlier version.

    Example:
        >>> from hpo_cluster import optimize
        >>> from my_study import loss  # def loss(x): return x * x
        >>> result = optimize(loss, {"x": {"low": -1.0, "high": 1.0}}, optimizer="random", budget=1, campaign="plain")
        >>> load_items("campaigns/plain", 0)  # of a fine-tuning: .groupby("task")["acc"].mean() is its result
        Traceback (most recent call last):
        hpo_cluster.errors.JournalError: campaigns/plain: t0000 has kept no items...
    """
    import pandas as pd

    layout = CampaignLayout(Path(campaign_dir))
    identity_of_campaign(layout.identity)
    found = Record.read(layout.events).trials.get(trial)
    if found is None:
        raise JournalError(f"{layout.dir} has no trial {trial}: history.csv lists their numbers")
    items = items_of_trial(layout, found)
    if items is None:
        why = "fine-tunings that were scored on tasks keep them, unless an earlier version evaluated them"
        raise JournalError(f"{layout.dir}: {trial_label(trial)} has kept no items: {why}")
    frames = []
    for name, task in items.tasks.items():
        scores = pd.DataFrame({metric: list(values) for metric, values in task.scores.items()})
        scores.insert(0, "item", range(len(scores)))
        scores.insert(0, "task", name)
        frames.append(scores)
    return pd.concat(frames, ignore_index=True)
