"""What planning asks of campaigns, simulated or real: how long, how many GPU-hours, how busy, how good and when."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import moment, seconds_between
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.text import in_markdown
from hpo_cluster.trial import WITHOUT_VALUE, State

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Moments at which the best value is read off for a figure.
MOMENTS = 200
#: Percentiles of a band.
LOW, HIGH = 10, 90


@dataclass(frozen=True)
class Run:
    """What became of one campaign.

    Args:
        campaign: its name.
        wall_s: seconds from its start to its last result.
        on_gpus: whether its trials use GPUs.
        hours: GPU-hours of all attempts; without GPUs, their hours.
        busy: share of the workers' time in which they evaluated.
        ended: trials that have ended.
        failed: those that ended without a value, paused ones not counted.
        paused: those that are paused at a rung.
        lost: attempts that had to be repeated.
        best: seconds and value of each improvement.
        maximize: whether larger values are better.
    """

    campaign: str
    wall_s: float
    on_gpus: bool
    hours: float
    busy: float
    ended: int
    failed: int
    paused: int
    lost: int
    best: tuple[tuple[float, float], ...]
    maximize: bool

    @property
    def value(self) -> float:
        """The best value; NaN without any."""
        return self.best[-1][1] if self.best else float("nan")


def run_of(folder: Path) -> Run:
    """Return what became of the campaign in a folder. Raises JournalError if there is none."""
    layout = CampaignLayout(folder)
    identity, record = identity_of_campaign(layout.identity), Record.read(layout.events)
    maximize, workers = identity["direction"] == "maximize", 1
    if record.starts:
        operation = record.starts[-1]["operation"]
        workers = operation.get("max_in_flight") or operation.get("workers", 1)
    own = [trial for trial in record.rows if trial.in_budget]
    attempts = [attempt for trial in own for attempt in trial.attempts]
    began = record.starts[0]["at"] if record.starts else None
    spans = [attempt.took_s for attempt in attempts if attempt.started_at and attempt.ended_at]
    ends = sorted((seconds_between(began, t.ended_at), t.value) for t in own if t.ended_at and t.value is not None)
    best: list[tuple[float, float]] = []
    for at, value in ends:
        if not best or (value > best[-1][1] if maximize else value < best[-1][1]):
            best.append((at, value))
    over = [trial for trial in own if trial.state.ended]
    wall_s = max((seconds_between(began, t.ended_at) for t in over), default=0.0)
    gpus = any(attempt.gpus for attempt in attempts)
    last = moment(record.last["at"]) if record.last else datetime.now().astimezone()
    return Run(
        campaign=layout.dir.resolve().name,
        wall_s=wall_s,
        on_gpus=gpus,
        hours=record.gpu_hours(last) if gpus else sum(spans) / 3600,
        busy=sum(spans) / (workers * wall_s) if wall_s else 0.0,
        ended=len(over),
        failed=sum(trial.state in WITHOUT_VALUE for trial in over),
        paused=sum(trial.state is State.PAUSED for trial in over),
        lost=sum(sum(a.error is not None for a in trial.attempts) - (trial.state in WITHOUT_VALUE) for trial in own),
        best=tuple(best),
        maximize=maximize,
    )


#: Heads of the columns of the table.
HEADS = ("campaign", "seeds", "trials", "wall time", "hours of jobs", "busy", "lost", "best value")


def rows_of(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Return the heads, and a row for each group: medians, and in brackets the 10th and 90th percentiles."""
    on_gpus = any(run.on_gpus for runs in groups.values() for run in runs)
    rows = [["GPU-hours" if on_gpus and head == "hours of jobs" else head for head in HEADS]]
    for label, runs in groups.items():
        apart = {word: sum(getattr(run, word) for run in runs) / len(runs) for word in ("failed", "paused")}
        words = ", ".join(f"{mean:.3g} {word}" for word, mean in apart.items() if mean)
        trials = f"{np.median([run.ended for run in runs]):.0f}" + (f" ({words})" if words else "")
        rows.append(
            [
                label,
                str(len(runs)),
                trials,
                _spread([run.wall_s for run in runs], duration),
                _spread([run.hours for run in runs], lambda hours: f"{hours:.3g}"),
                _spread([run.busy for run in runs], lambda share: f"{share:.0%}"),
                f"{sum(run.lost for run in runs) / len(runs):.3g}",
                _spread([run.value for run in runs if run.best], lambda value: f"{value:.4g}"),
            ]
        )
    return rows


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``45 s``, ``4.5 min``, ``3.4 h``, ``2.1 d``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min" if seconds < 1200 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"


def _spread(values: Sequence[float], text: object) -> str:
    assert callable(text)
    if not values:
        return "-"
    low, middle, high = (text(float(v)) for v in np.percentile(values, [LOW, 50, HIGH]))
    return str(middle) if low == high else f"{middle} [{low}, {high}]"


def markdown(groups: Mapping[str, Sequence[Run]]) -> str:
    """Return the table as Markdown."""
    heads, *rows = [[in_markdown(cell) for cell in row] for row in rows_of(groups)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def plain(groups: Mapping[str, Sequence[Run]]) -> str:
    """Return the table with aligned columns, for a terminal."""
    rows = rows_of(groups)
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def write_csv(groups: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Write a line for each campaign."""
    names = ("campaign", "wall_s", "hours", "busy", "ended", "failed", "paused", "lost", "value")
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("group", *names))
        writer.writerows([label, *(getattr(run, n) for n in names)] for label, runs in groups.items() for run in runs)


def draw(groups: Mapping[str, Sequence[Run]], path: Path, metric: str) -> None:
    """Draw the best value against time, and the wall times, with a colour for each group."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(4.0, 2.5 + 0.4 * len(groups))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    longest = max((run.wall_s for runs in groups.values() for run in runs), default=0.0)
    unit_s, unit = (60.0, "minutes") if longest < 7200 else (3600.0, "hours")
    styles = ("-", "--", "-.", ":")
    for number, (label, runs) in enumerate(groups.items()):
        _draw_best(left, runs, f"C{number % 10}", styles[number % 4], label, unit_s)
        walls = [run.wall_s / unit_s for run in runs]
        right.boxplot([walls], positions=[number], orientation="horizontal", widths=0.6, whis=(0, 100))
        busy = float(np.median([run.busy for run in runs]))
        right.annotate(f" {busy:.0%} busy", (max(walls), number), va="center", fontsize="small")
    left.set(
        xlabel=f"wall time ({unit})", ylabel=f"best {metric}", title="Best value (median, 10th to 90th percentile)"
    )
    if left.get_legend_handles_labels()[0]:  # none where no campaign has a value
        left.legend(fontsize="small")
    right.set_yticks(range(len(groups)), list(groups))
    right.invert_yaxis()
    right.set_xlim(0, 1.4 * max(longest / unit_s, 1e-9))
    right.set(xlabel=f"wall time ({unit})", title="Wall time of the whole campaign")
    figure.savefig(path, dpi=150)


def _draw_best(axes: Axes, runs: Sequence[Run], colour: str, style: str, label: str, unit_s: float) -> None:
    """Draw the median of the best values against time, and the band around it."""
    end = float(np.median([run.wall_s for run in runs]))
    moments = np.linspace(0, end, MOMENTS)
    values = np.full((len(runs), MOMENTS), np.nan)
    for row, run in enumerate(runs):
        for at, value in run.best:
            values[row, moments >= at] = value
    known = np.isfinite(values).all(axis=0)
    if known.any():
        low, middle, high = np.nanpercentile(values[:, known], [LOW, 50, HIGH], axis=0)
        axes.plot(moments[known] / unit_s, middle, style, color=colour, label=label)
        axes.fill_between(moments[known] / unit_s, low, high, color=colour, alpha=0.15, linewidth=0)
