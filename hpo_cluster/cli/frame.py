"""One frame of `hpo-cluster watch`: lines of text that fit a terminal, made of one look at a campaign.

Nothing here prints or reads. A frame has sections. If a terminal is too low for all of them, the less important ones
become shorter or are left out, and what is left out is counted.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo_cluster.cli.display import (
    all_violate,
    confirmation_lines,
    duration,
    error_lines,
    front_lines,
    is_left,
    none_line,
    number,
    parameters_text,
    progress_line,
    rung_lines,
    score,
    state_text,
)
from hpo_cluster.record.trial_record import Place, TrialRecord
from hpo_cluster.record.watched import JobSeen, Look
from hpo_cluster.text import BLOCKS, command_line, counted, cut, in_blocks, visible
from hpo_cluster.trial import State, trial_label

#: States of trials whose job has not begun.
QUEUED = (State.PROPOSED, State.SUBMITTED)
#: Signs from low to high for terminals whose encoding has no blocks.
PLAIN_BLOCKS = "_.-~=+*#"
#: Fewest and most columns of a learning curve, and columns of the best value so far.
CURVE_LEAST, CURVE_MOST, BEST_WIDE = 8, 30, 30
#: Most columns of the learning curve of a trial that has ended.
ENDED_MOST = 16
#: Seconds without a report after which the silence of a job is shown in place of its speed.
SILENT_S = 60.0
#: Number of errors that are shown.
ERRORS = 5
#: Width of the frame where nothing limits it.
WIDE = 118


@dataclass(frozen=True)
class Line:
    """A line of a frame and its style, as rich names it."""

    text: str
    style: str = ""


@dataclass
class Section:
    """Lines that belong together.

    Attributes:
        lines: the lines, the most important ones first.
        least: the number of lines that are kept where the terminal is low.
        rank: the sections with the lowest ranks are kept first.
        more: what its lines are called where some are left out.
    """

    lines: list[Line]
    least: int
    rank: int
    more: str = "lines"

    def cut(self, room: int) -> list[Line]:
        """Return at most `room` lines; the last one counts those that are left out."""
        if len(self.lines) <= room:
            return self.lines
        if room <= 1:
            return self.lines[:room]
        hidden = len(self.lines) - room + 1
        return [*self.lines[: room - 1], Line(f"  ... and {hidden} more {self.more}", "dim")]


def frame(look: Look, width: int | None = None, height: int | None = None, *, blocks: str = BLOCKS) -> list[Line]:
    """Return the lines of a frame.

    Args:
        look: at the campaign.
        width: columns of the terminal; None if nothing limits it.
        height: lines of the terminal; None if nothing limits it.
        blocks: the signs of which curves are drawn, from low to high.
    """
    status, wide = look.status, width or WIDE
    queue = [row for row in status["running"] if row["state"] in QUEUED]
    running = [row for row in status["running"] if row["state"] not in QUEUED]
    sections = [
        Section([Line(f"{status['campaign']}: {state_text(status)}", "bold")], 1, 0),
        Section([Line(progress_line(status))], 1, 1),
        Section(_best_lines(look, wide, blocks), 2, 3),
        Section([Line(f"  {notice}", "yellow") for notice in _notices(status)], 1, 2, "notices"),
        Section([Line(line) for line in rung_lines(status)], 0, 9, "rungs"),
        Section([Line(line) for line in confirmation_lines(status)], 1, 8, "of the confirmation"),
        Section(job_lines(running, look.jobs, wide, blocks), 3, 4, "running"),
        Section(_queue_lines(queue), 1, 6, "waiting"),
        Section(_error_lines(status), 1, 5, "errors"),
        Section(_ended_lines(look.newest, look.curves, wide, blocks), 1, 7, "that ended"),
    ]
    lines = _fitted([section for section in sections if section.lines], height)
    return [Line(_one_line(line.text, width), line.style) for line in lines]


def _notices(status: Mapping[str, Any]) -> list[str]:
    """Return what needs attention: first that nobody takes in the results of jobs that run on."""
    jobs = any(row["job"] is not None for row in status["running"])
    left = f"no driver is at work, jobs run on. Take in their results:  {command_line('resume', status['dir'])}"
    return [left, *status["notices"]] if is_left(status) and jobs else status["notices"]


def _fitted(sections: Sequence[Section], height: int | None) -> list[Line]:
    """Return the lines of the sections that fit into `height`: first the least of each, by rank, then the rest."""
    if height is None:
        return [line for section in sections for line in section.lines]
    rooms = dict.fromkeys(range(len(sections)), 0)
    left = height
    by_rank = sorted(rooms, key=lambda place: sections[place].rank)
    for wanted in (lambda section: min(section.least, len(section.lines)), lambda section: len(section.lines)):
        for place in by_rank:
            more = max(0, min(wanted(sections[place]) - rooms[place], left))
            rooms[place] += more
            left -= more
    return [line for place, section in enumerate(sections) for line in section.cut(rooms[place])]


def _one_line(text: str, width: int | None) -> str:
    return cut(visible(text).replace("\n", " "), width)


def _best_lines(look: Look, width: int, blocks: str) -> list[Line]:
    """Return the best trial, its parameters and how the best value grew; with several objectives, the front."""
    status = look.status
    if "front" in status:
        return [Line(line) for line in front_lines(status)]
    if not status["best"]:
        return [Line(none_line("best", status))] if all_violate(status) else []
    lines = [Line(f"best       {score(status['best'])}", "green")]
    found = parameters_text(status["best"]["parameters"])
    lines += [Line(f"{'':11}{part}") for part in textwrap.wrap(found, max(20, width - 11), break_on_hyphens=False)]
    if len(look.best) > 1:
        drawn = in_blocks(look.best, BEST_WIDE, blocks)
        values = f"{number(look.best[0])} to {number(look.best[-1])} in {counted(len(look.best), 'trial')}"
        lines.append(Line(f"so far     {drawn}  {values}"))
    return lines


def job_lines(
    rows: Sequence[Mapping[str, Any]], jobs: Mapping[Place, JobSeen], width: int, blocks: str = BLOCKS
) -> list[Line]:
    """Return a line for each running trial: phase, step, loss, speed, time, where it runs and its learning curve."""
    seen = [jobs.get((row["trial"], row["attempt"])) or JobSeen() for row in rows]
    cells = [[*_job_cells(row, job), str(row["node"] or "")] for row, job in zip(rows, seen, strict=True)]
    return _with_curves(cells, [job.losses for job in seen], width, blocks)


def _job_cells(row: Mapping[str, Any], job: JobSeen) -> list[str]:
    step = "" if row["step"] is None else f"{row['step']}" + ("" if row["total"] is None else f"/{row['total']}")
    return [
        trial_label(row["trial"]) + (f" a{row['attempt']}" if row["attempt"] else ""),
        str(row["phase"] or row["state"]) + (f" to rung {row['goal']}" if "goal" in row else ""),
        step,
        "" if row["loss"] is None else f"loss {number(row['loss'])}",
        _speed_or_silence(row, job),
        "" if row["elapsed_s"] is None else duration(row["elapsed_s"]),
    ]


def _speed_or_silence(row: Mapping[str, Any], job: JobSeen) -> str:
    if row["silent_s"] is not None and row["silent_s"] >= SILENT_S:
        return f"silent {duration(row['silent_s'])}"
    return "" if job.steps_per_s is None else speed(job.steps_per_s)


def speed(steps_per_s: float) -> str:
    """Return a text such as ``12.3/s``, or ``4.1 s each`` for what takes longer than a second."""
    if steps_per_s <= 0:
        return "0/s"
    return f"{steps_per_s:.3g}/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.3g} s each"


def _with_curves(
    cells: Sequence[Sequence[str]], curves: Sequence[Sequence[float]], width: int, blocks: str, most: int = CURVE_MOST
) -> list[Line]:
    """Return aligned rows with a curve of at most `most` signs before their last cell."""
    if not cells:
        return []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    fixed = sum(wide + 2 for wide in widths[:-1] if wide)
    room = min(most, width - fixed - widths[-1] - 4)
    if room < CURVE_LEAST:  # rather the curve than the node
        room = min(most, width - fixed - 2)
    drawn = ["" if room < CURVE_LEAST else in_blocks(curve, room, blocks) for curve in curves]
    drawn_width = max(map(len, drawn), default=0)
    lines = []
    for row, curve in zip(cells, drawn, strict=True):
        left = "  ".join(cell.ljust(wide) for cell, wide in zip(row[:-1], widths[:-1], strict=True) if wide)
        middle = f"  {curve.ljust(drawn_width)}" if drawn_width else ""
        lines.append(Line(f"  {left}{middle}  {row[-1]}".rstrip()))
    return lines


def _queue_lines(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return a line with the number of trials that wait, then one for each."""
    if not rows:
        return []
    lines = [Line(f"queue      {len(rows)} wait for their job to start")]
    for row in rows:
        job = f"job {row['job']}" if row["job"] is not None else "no job yet"
        says = f"  ({row['scheduler']})" if row.get("scheduler") else ""
        lines.append(Line(f"  {trial_label(row['trial'])}  {job}{says}"))
    return lines


def _error_lines(status: Mapping[str, Any]) -> list[Line]:
    """Return the last errors, the newest first, and the number of earlier ones."""
    errors = status["errors"]
    lines = [Line(line, "red") for line in error_lines({"errors": errors[: -ERRORS - 1 : -1]}, ERRORS)]
    return (
        [*lines, Line(f"  ... and {counted(len(errors) - ERRORS, 'earlier error')}", "dim")]
        if len(errors) > ERRORS
        else lines
    )


def _ended_lines(
    trials: Sequence[TrialRecord], curves: Mapping[int, Sequence[float]], width: int, blocks: str
) -> list[Line]:
    """Return a line for each of the trials that ended last: state, value and learning curve."""
    cells = []
    for trial in trials:
        value = "" if trial.value is None else number(trial.value)
        cells.append([trial_label(trial.number), str(trial.state), value, parameters_text(trial.parameters)])
    return _with_curves(cells, [curves[trial.number] for trial in trials], width, blocks, ENDED_MOST)
