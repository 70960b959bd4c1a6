"""The journal as one pandas table: optimizers read it, ``history.csv`` holds it, users analyse it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.fidelity import Ladder
from hpo_cluster.goals import Goals
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.files import replace_text
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.space import parameter_names
from hpo_cluster.trial import State

if TYPE_CHECKING:
    import pandas as pd

#: Columns that every history has, before the parameters and the metrics, in the order of the file.
HISTORY_COLUMNS = (
    "trial",  # number, from 0; the baseline is -1
    "state",  # proposed, submitted, running, completed, diverged, infeasible, failed, cancelled, paused
    "origin",  # evaluated, inherited, approximated, imputed, imported, baseline
    "value",  # what is optimised, as measured; empty if nothing was measured
    "value_sem",  # its standard error as the objective reports it
    "target",  # the value, or -value if it is minimised: always maximised
)
#: Columns after the parameters and the metrics.
TAIL_COLUMNS = (
    "attempts",  # number of jobs that began to evaluate the trial
    "job",  # the scheduler's id of the last attempt's job
    "node",
    "submitted_at",  # of the first attempt; UTC, ISO 8601
    "started_at",
    "ended_at",
    "seed",  # of the trial; retries keep it
    "asked_seq",  # journal sequence numbers: the order of events
    "ended_seq",
    "error",  # kind: message
)
METRIC_PREFIX = "metric."


def several_columns(goals: Goals | None) -> list[str]:
    """Return the columns that a history has because of several objectives, before the parameters; none with one."""
    if goals is None:
        return []
    kinds = ("value", "value_sem", "target")
    columns = [f"{kind}_{goal.name}" for goal in goals.metrics for kind in kinds]
    columns += [f"reference_{goal.name}" for goal in goals.metrics if goal.reference is not None]
    return [*columns, *(f"slack_{bound.name}" for bound in goals.constraints), "feasible", "front"]


def _several_cells(trial: TrialRecord, goals: Goals | None) -> list[Any]:
    """Return a trial's cells of these columns; `front` is filled in later, since it depends on all trials."""
    if goals is None:
        return []
    cells: list[Any] = []
    for goal in goals.metrics:
        value = trial.metrics.get(goal.name, math.nan)
        cells += [value, trial.sems.get(goal.name, math.nan), goal.sign * value]
    cells += [edge for edge in goals.references if not math.isnan(edge)]
    return [*cells, *goals.slacks(trial.metrics), goals.feasible(trial.metrics) if trial.metrics else None, False]


#: Columns that a history has because of rungs, after the first ones.
RUNG_COLUMNS = (
    "rung",  # highest rung at which the trial was scored; NaN before the first
    "fidelity",  # its share of a whole evaluation
    "goal",  # rung up to which the trial may climb now
    "rung_value",  # value at the rung reached, as measured
    "rung_target",  # the same, always maximised
    "paused_seq",  # journal sequence number of the event that first paused the trial
    "paused_value",  # value where it was first paused, as measured
)


def rung_columns(ladder: Ladder | None) -> list[str]:
    """Return the columns that a history has because of rungs, before the parameters; none without rungs."""
    return [] if ladder is None else [*RUNG_COLUMNS, *(f"value@{label}" for label in ladder.labels[:-1])]


def _rung_cells(trial: TrialRecord, ladder: Ladder | None, sign: float) -> list[float]:
    """Return a trial's cells of these columns."""
    if ladder is None:
        return []
    climb = trial.climb
    if climb is None:  # evaluated without rungs: imported, settled, or the baseline
        whole = trial.state is State.COMPLETED
        value = trial.value if whole else None
        target = None if value is None else sign * value
        reached: list[float | None] = [ladder.top, 1.0, ladder.top, value, target] if whole else [None] * 5
        return _numbers([*reached, *[None] * (2 + ladder.top)])
    rung = climb.reached
    there = [rung, ladder.shares[rung]] if rung >= 0 else [None, None]
    value = climb.scores[rung].value if rung >= 0 else None
    below = [climb.scores[k].value if k in climb.scores else None for k in range(ladder.top)]
    target = None if value is None else sign * value
    return _numbers([*there, climb.goal, value, target, climb.paused_seq, climb.paused_value, *below])


def _numbers(cells: Sequence[float | None]) -> list[float]:
    return [math.nan if cell is None else float(cell) for cell in cells]


def _row(
    trial: TrialRecord,
    names: Sequence[str],
    metrics: Sequence[str],
    sign: float,
    goals: Goals | None,
    ladder: Ladder | None,
) -> list[Any]:
    last = trial.attempts[-1] if trial.attempts else None
    value = math.nan if trial.value is None else trial.value
    error = f"{trial.error['kind']}: {trial.error['message']}" if trial.error else None
    return [
        trial.number,
        str(trial.state),
        str(trial.origin),
        value,
        math.nan if trial.value_sem is None else trial.value_sem,
        sign * value,
        *_rung_cells(trial, ladder, sign),
        *_several_cells(trial, goals),
        *(trial.parameters.get(name) for name in names),
        *(trial.metrics.get(name, math.nan) for name in metrics),
        trial.began,
        last.job_id if last else None,
        last.node if last else None,
        trial.submitted_at,
        trial.started_at,
        trial.ended_at,
        trial.seed,
        trial.asked_seq,
        math.nan if trial.ended_seq is None else trial.ended_seq,
        error,
    ]


class HistoryTable:
    """The history of a growing record: each frame is made from the previous one and the trials that changed.

    Args:
        record: the campaign's record.
        parameters: names of the parameters, in the order of the space.
        maximize: whether larger values are better.
        goals: the objectives, if there are several.
    """

    def __init__(
        self, record: Record, parameters: Sequence[str], *, maximize: bool, goals: Goals | None = None
    ) -> None:
        self._record, self._parameters, self._goals = record, list(parameters), goals
        self._sign = 1.0 if maximize else -1.0
        self._metrics: list[str] = []
        self._columns: list[list[Any]] = []
        self._seen: list[tuple[int, int]] = []  # number and version of the trials in the columns

    def frame(self) -> pd.DataFrame:
        """Return one row for each trial, in trial order; the baseline (-1), if there is one, comes first."""
        import pandas as pd

        trials = self._record.rows
        now = [(trial.number, trial.version) for trial in trials]
        if any(seen[0] != there[0] for seen, there in zip(self._seen, now, strict=False)):
            self._seen = []  # the baseline was inserted before other trials
        old = len(self._seen)
        changed = [i for i in range(old) if self._seen[i] != now[i]] + list(range(old, len(now)))
        metrics = sorted({*self._metrics, *(name for i in changed for name in trials[i].metrics)})
        if metrics != self._metrics or not self._seen:
            self._metrics, changed, old = metrics, list(range(len(trials))), 0
            self._columns = [[] for _ in self._names]
        for i in changed:
            row = _row(trials[i], self._parameters, metrics, self._sign, self._goals, self._record.ladder)
            for column, cell in zip(self._columns, row, strict=True):
                if i < old:
                    column[i] = cell
                else:
                    column.append(cell)
        self._seen = now
        columns = dict(zip(self._names, self._columns, strict=True)) if trials else None
        frame = pd.DataFrame(columns, columns=self._names)
        if self._goals is not None:
            frame["front"] = frame["trial"].isin([trial.number for trial in self._record.front(self._goals)])
        return frame

    @property
    def _names(self) -> list[str]:
        metrics = (METRIC_PREFIX + name for name in self._metrics)
        more = [*rung_columns(self._record.ladder), *several_columns(self._goals)]
        return [*HISTORY_COLUMNS, *more, *self._parameters, *metrics, *TAIL_COLUMNS]


def to_frame(record: Record, parameters: Sequence[str], *, maximize: bool, goals: Goals | None = None) -> pd.DataFrame:
    """Return the history of a record: one row for each trial, in trial order; a baseline (-1) comes first."""
    return HistoryTable(record, parameters, maximize=maximize, goals=goals).frame()


class MemoryJournal:
    """A journal in memory, for a campaign without a directory; trials, states and history follow from its events.

    Args:
        parameters: names of the parameters, in the order of the space.
        maximize: whether larger values are better.
        goals: the objectives, if there are several.
        ladder: the rungs, if there are any.
    """

    def __init__(
        self,
        parameters: Sequence[str],
        *,
        maximize: bool,
        goals: Goals | None = None,
        ladder: Ladder | None = None,
    ) -> None:
        self.record = Record()
        self._table = HistoryTable(self.record, parameters, maximize=maximize, goals=goals)
        self._count = 0
        if ladder is not None:
            self.append("created", fidelity=ladder.to_json())

    def append(self, event: str, at: str = "", **fields: Any) -> None:
        """Add an event that happened at the time `at` (ISO 8601)."""
        self.record.apply({"seq": self._count, "at": at, "event": event, **fields})
        self._count += 1

    def history(self) -> pd.DataFrame:
        """Return the history, as `load_history` does for a campaign on disk."""
        return self._table.frame()


def load_history(campaign_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the history of a campaign, read from its journal while it runs or afterwards.

    Args:
        campaign_dir: the campaign's directory, for instance ``campaigns/first``.

    Returns:
        One row for each trial; the columns are described in ``docs/reference/history.md``.

    Raises:
        JournalError: if there is no campaign, or its journal cannot be read.

    Example:
        >>> from hpo_cluster import optimize
        >>> from my_study import loss  # def loss(x): return x * x
        >>> result = optimize(loss, {"x": {"low": -1.0, "high": 1.0}}, optimizer="random", budget=2, campaign="first")
        >>> load_history("campaigns/first")["state"].tolist()
        ['completed', 'completed']
    """
    layout = CampaignLayout(Path(campaign_dir))
    identity = identity_of_campaign(layout.identity)
    maximize, goals = identity["direction"] == "maximize", Goals.of(identity["objective"])
    return to_frame(Record.read(layout.events), parameter_names(identity["space"]), maximize=maximize, goals=goals)


def write_history(frame: pd.DataFrame, path: Path) -> None:
    """Write ``history.csv`` whole."""
    texts = [name for name in ("error", "job", "node") if name in frame.columns]
    whole = {
        name: [cell.replace("\r", "\\r") if isinstance(cell, str) else cell for cell in frame[name]] for name in texts
    }
    replace_text(path, frame.assign(**whole).to_csv(index=False))  # a carriage return would begin a new row
