"""The display of a campaign in a terminal: lines of text made of its status, and how they are kept up to date.

Nothing here prints: the caller passes the function that writes. On a terminal the lines are redrawn in place; anywhere
else there is one line for each change of state, with fixed ``key=value`` pairs.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hpo_cluster.record.campaign_state import BETWEEN_TICKS
from hpo_cluster.record.confirmed_front import front_table
from hpo_cluster.record.item_pairs import sentences_on_items
from hpo_cluster.text import command_line, counted, cut, first_line, in_bytes, test_metrics, visible
from hpo_cluster.trial import BASELINE, Origin, State, trial_label

BAR_WIDTH = 24
STATES_SHOWN = ("paused", "failed", "diverged", "infeasible", "cancelled")
LABEL_WIDTH = 11
#: Largest number of failed trials that the command to retry them names.
RETRIED = 10
#: Most metrics on one line.
SCORES = 8
#: Largest number of trials of a Pareto front that are listed, and widest lines with their parameters.
FRONT_ROWS, FRONT_WIDTH = 12, 118


def status_lines(status: Mapping[str, Any], width: int | None = None) -> list[str]:
    """Return a campaign's status as text: progress, best, baseline, what runs, what failed.

    Args:
        status: of the campaign.
        width: columns of the terminal, for which long reasons and errors are made to fit; None if nothing limits them.
    """
    lines = [*_first_lines(status, width), progress_line(status)]
    if "front" in status:
        lines += front_lines(status)
    elif status["best"]:
        lines.append(_labelled("best", score(status["best"])))
        lines.append(_labelled("", parameters_text(status["best"]["parameters"])))
    elif all_violate(status):
        lines.append(none_line("best", status))
    lines += rung_lines(status)
    lines += _imported_lines(status)
    lines += confirmation_lines(status)
    if status["baseline"] and status["baseline"]["value"] is not None:
        lines.append(_labelled("baseline", score(status["baseline"])))
    lines += [running_line(row) for row in status["running"]]
    if (status.get("scheduler") or {}).get("silent_since"):
        lines.append(f"  the scheduler has not answered since {status['scheduler']['silent_since']}; jobs may run on")
    lines += [f"  {notice}" for notice in status.get("notices", [])]
    lines += error_lines(status, width=width)
    if is_left(status):
        lines.append(f"go on with:  {command_line('resume', status['dir'])}")
    return lines


def is_left(status: Mapping[str, Any]) -> bool:
    """Return whether no driver is at work on an unfinished campaign that can go on, and no tick will be."""
    waits = status["state"] == "stopped" and status["reason"] != BETWEEN_TICKS
    return bool(waits and not status.get("simulated"))


def progress_line(status: Mapping[str, Any]) -> str:
    """Return the bar, with done, running and failed trials, best value and time left."""
    budget, done = max(status["budget"], 1), status["done"]
    filled = min(BAR_WIDTH, round(BAR_WIDTH * done / budget))
    counts, jobs = status["counts"], status["running"]  # the counts leave out what is outside the budget
    running = sum(row["state"] == "running" for row in jobs)
    over = sum(row["state"] in ("ended", "gone") for row in jobs)
    waiting = len(jobs) - running - over
    whole = " whole evaluations" if "fidelity" in status else " done"
    parts = [f"{number(done)}/{status['budget']}{whole}", f"{running} running"]
    if waiting:
        parts.append(f"{waiting} waiting")
    if over:
        parts.append(f"{over} ended, to be collected")
    parts += [f"{counts[state]} {state}" for state in STATES_SHOWN if counts.get(state)]
    if "front" in status:
        parts.append(f"front {len(status['front'])}")
    elif status["best"]:
        parts.append(f"best {number(status['best']['value'])}")
    if status["eta_s"] is not None:
        parts.append(f"{duration(status['eta_s'])} left")
    return f"[{'#' * filled}{'-' * (BAR_WIDTH - filled)}] {' · '.join(parts)}"


def error_lines(status: Mapping[str, Any], newest: int = 3, width: int | None = None) -> list[str]:
    """Return the last errors, one line each, and the commands that tell more and try again."""
    rows = status["errors"]
    lines = [
        cut(f"  {trial_label(row['trial'])}  {row['kind']}: {first_line(str(row['message']))}", width)
        for row in rows[-newest:]
    ]
    lines += [f"  ... and {counted(len(rows) - newest, 'earlier error')}"] if len(rows) > newest else []
    return lines + _ways_on(status, width) if rows and "dir" in status else lines


def _ways_on(status: Mapping[str, Any], width: int | None) -> list[str]:
    """Return the commands for trials that did not succeed, on one line if they fit: a story, another try."""
    lines = [f"  more:  {command_line('why', status['dir'], status['errors'][-1]['trial'])}"]
    if (again := retry_command(status)) and status["driver"] and not status.get("simulated"):
        lines.append(f"  once its cause is gone:  {again}")
    whole = "  ".join(lines)
    return [whole] if width is None or len(whole) <= width else lines


def retry_command(status: Mapping[str, Any]) -> str:
    """Return the command that tries the newest failed trials again; empty if there is none."""
    failed = [row["trial"] for row in status["errors"] if row["state"] == State.FAILED and row["trial"] > BASELINE]
    return command_line("retry", status["dir"], *failed[-RETRIED:]) if failed else ""


def running_line(row: Mapping[str, Any]) -> str:
    """Return the line of a trial in flight: where it runs and what it does."""
    parts = [f"  {trial_label(row['trial'])}", f"{row.get('phase') or row.get('state', 'submitted')}"]
    if row["step"] is not None:
        parts.append(f"step {row['step']}" + (f"/{row['total']}" if row["total"] is not None else ""))
    if "goal" in row:
        why = f", paused before: {row['taken_up']}" if row.get("taken_up") else ""
        parts.append(f"to rung {row['goal']}{why}")
    if row["loss"] is not None:
        parts.append(f"loss {number(row['loss'])}")
    if row["elapsed_s"] is not None:
        parts.append(duration(row["elapsed_s"]))
    if row["job"] is not None:
        parts.append(f"job {row['job']}" + (f" on {row['node']}" if row["node"] else ""))
    if row.get("scheduler") and str(row["scheduler"]).lower() != row.get("state"):
        parts.append(f"({row['scheduler']})")
    if row["attempt"]:
        parts.append(f"attempt {row['attempt']}")
    return "  ".join(parts)


def summary_lines(
    status: Mapping[str, Any],
    metric: str | None,
    tests: tuple[str, ...],
    files: Mapping[str, Path],
    looked: str = "",
    width: int | None = None,
) -> list[str]:
    """Return the summary of a run: best configuration, its scores, the baseline, and where everything is.

    Args:
        status: of the campaign.
        metric: name of the metric that was optimised.
        tests: lm-eval tasks that were only recorded; if there are none, all metrics are shown.
        files: label to path.
        looked: how often test scores were looked at, in words.
        width: columns of the terminal; None if nothing limits the lines.
    """
    lines = [*_first_lines(status, width), progress_line(status)]
    lines += [f"  {notice}" for notice in status.get("notices", [])]
    best, baseline = status["best"], status["baseline"]
    if "front" in status:
        lines += [*front_lines(status), *(error_lines(status, width=width) if best is None else ())]
    elif best is None:
        lines += [none_line("best", status), *error_lines(status, width=width)]
    else:
        lines.append(_labelled("best", f"{trial_label(best['trial'])}  {parameters_text(best['parameters'])}"))
        lines += _scores(best, metric, tests)
        lines += [_labelled("", looked)] if looked else []
    lines += rung_lines(status)
    lines += _imported_lines(status)
    lines += confirmation_lines(status)
    if baseline is not None and baseline["value"] is not None:
        lines.append(_labelled("baseline", "the model before fine-tuning"))
        lines += _scores(baseline, metric, tests)
    return lines + [_labelled(label, str(path)) for label, path in files.items()]


def all_violate(status: Mapping[str, Any]) -> bool:
    """Return whether trials were completed and none of them satisfies the constraints."""
    return bool(not status["best"] and status.get("constraints") and status["counts"].get("completed"))


def none_line(label: str, status: Mapping[str, Any]) -> str:
    """Return the line of a status without a best trial: why there is none."""
    why = "none satisfies the constraints" if all_violate(status) else "no trial was completed"
    return _labelled(label, f"none: {why}")


def front_lines(status: Mapping[str, Any]) -> list[str]:
    """Return the front of a status as a table: trials, their objectives and their parameters."""
    front, objectives = status["front"], status["objectives"]
    if not front:
        return [none_line("front", status)]
    count = counted(len(front), "trial")
    goals = ", ".join(f"{direction} {name}" for name, direction in objectives.items())
    rows, texts = [["trial", *objectives]], ["parameters"]
    for trial in front[:FRONT_ROWS]:
        values = (number(trial["metrics"][name]) for name in objectives)
        rows.append([trial_label(trial["trial"]), *values])
        texts.append(parameters_text(trial["parameters"]))
    lines = _aligned(rows)
    whole = [f"{line}  {text}" for line, text in zip(lines, texts, strict=True)]
    fits = max(map(len, whole)) <= FRONT_WIDTH
    more = [f"  ... and {len(front) - FRONT_ROWS} more: column front of history.csv"] if len(front) > FRONT_ROWS else []
    more += [] if fits else [f"  parameters of a trial:  {command_line('why', status['dir'], front[0]['trial'])}"]
    return [_labelled("front", f"{count} that no other one dominates ({goals})"), *(whole if fits else lines), *more]


def rung_lines(status: Mapping[str, Any]) -> list[str]:
    """Return the rungs of a status as a table, and what they have saved; no lines without rungs."""
    fidelity = status.get("fidelity")
    if not fidelity:
        return []
    rows = [["rung", "share", "trials", "promoted", "paused", "agrees", "best there"]]
    top = len(fidelity["rungs"]) - 1
    for row in fidelity["rungs"]:
        best = "" if row["best"] is None else score(row["best"])
        agrees = "" if row["agreement"] is None else f"{row['agreement']:.2f}"
        moved = ["", "", ""] if row["rung"] == top else [str(row["promoted"]), str(row["paused"]), agrees]
        rows.append([str(row["rung"]), row["label"], str(row["reached"]), *moved, best])
    spent, kept = counted(float(status["done"]), "whole evaluation"), fidelity.get("checkpoint_bytes")
    lines = [
        _labelled("rungs", f"{counted(fidelity['trials'], 'trial')} for {spent}{_saved(fidelity)}"),
        *(line.rstrip() for line in _aligned(rows)),
    ]
    if kept:
        lines.append(_labelled("", f"the checkpoints of paused trials take {in_bytes(kept)}"))
    return lines


def _saved(fidelity: Mapping[str, Any]) -> str:
    """Return what rungs have saved, in words; empty before there is anything."""
    if fidelity["saved"] <= 0:
        return ""
    hours = f" ({counted(fidelity['gpu_hours_saved'], 'GPU-hour')})" if fidelity["gpu_hours_saved"] else ""
    return f": {number(float(fidelity['saved']))}{hours} saved"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}" for line in lines]


def _values_text(metrics: Mapping[str, float], objectives: Sequence[str]) -> str:
    """Return the values of the objectives, as in ``accuracy=0.81 gpu_seconds=12.5``."""
    return " ".join(f"{name}={number(metrics[name])}" for name in objectives if name in metrics)


def _imported_lines(status: Mapping[str, Any]) -> list[str]:
    """Return the imported evaluations and the best of them, which is never the campaign's own best."""
    imported = status.get("imported")
    if not imported:
        return []
    whose = ", ".join(f"{count} of {campaign}" for campaign, count in imported["campaigns"].items())
    return [
        _labelled("imported", f"{whose}; the best of them {score(imported['best'])}"),
        _labelled("", parameters_text(imported["best"]["parameters"])),
    ]


def confirmation_lines(status: Mapping[str, Any]) -> list[str]:
    """Return what confirmations have found as a table; without any, what one would cost once the campaign is over."""
    found, cost = status.get("confirmation"), status.get("confirmation_cost")
    if found is None:
        if cost is None or not cost["evaluations"] or status["state"] == "running" or not status["best"]:
            return []
        hours = f"{counted(cost['gpu_hours'], 'GPU-hour')}, " if cost["gpu_hours"] else ""
        text = f"{counted(cost['evaluations'], 'evaluation')} with new seeds, some {hours}{duration(cost['seconds'])}"
        return [_labelled("confirm", f"{text}:  {command_line('confirm', status['dir'])}")]
    failed = f", {found['failed']} without a value" if found["failed"] else ""
    rows = [["trial", "first", "again", "spread", "seeds", "behind the best"]]
    for row in found["trials"]:
        again = "" if row["mean"] is None else number(row["mean"])
        again += "" if row["sem"] is None else f" ± {number(row['sem'])}"
        spread = "" if row["lowest"] is None else f"{number(row['lowest'])} to {number(row['highest'])}"
        seeds = f"{len(row['values'])}/{row['replicates']}"
        first = "" if row["first"] is None else number(row["first"])
        rows.append([trial_label(row["trial"]), first, again, spread, seeds, _behind_text(row["behind"])])
    if (front := status.get("confirmed_front")) is not None:
        rows = front_table(front, list(status["objectives"]))
    done = f"{found['done']} of {counted(found['wanted'], 'evaluation')} with new seeds, outside the budget{failed}"
    on_items = [f"  {sentence}" for sentence in sentences_on_items(found)]
    return [_labelled("confirmed", done), *(line.rstrip() for line in _aligned(rows)), *on_items]


def _behind_text(behind: Mapping[str, Any] | None) -> str:
    """Return a difference with its 95 % interval, and whether it is within the noise."""
    if behind is None:
        return ""
    if behind["low"] is None:
        return f"{number(behind['mean'])} (one pair: no interval)"
    noise = ", within the noise" if behind["low"] <= 0 <= behind["high"] else ""
    return f"{number(behind['mean'])} ({number(behind['low'])} to {number(behind['high'])}{noise})"


def _scores(trial: Mapping[str, Any], metric: str | None, tests: tuple[str, ...]) -> list[str]:
    name = metric or "value"
    shown = {key: value for key, value in trial["metrics"].items() if key != name}
    value = score(trial, trial_name=False)
    of_task = tests and "/" in name
    lines = [_labelled("validation" if of_task else "value", value if name == "value" else f"{name} {value}")]
    if tests:
        shown = {key: shown[key] for key in test_metrics(name, tests, shown)}
    text = "  ".join(f"{key} {number(value)}" for key, value in list(shown.items())[:SCORES])
    text += "  …" if len(shown) > SCORES else ""
    return [*lines, _labelled("test" if tests else "others", text)] if text else lines


class PlainDisplay:
    """A display of one line for each change of state: for files, pipes and batch jobs."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._seen: dict[int, tuple[Any, ...]] | None = None
        self._noticed: set[str] = set()

    def remember(self, trials: Mapping[int, Any]) -> None:
        """Take the present states of these trials as known, so that only later changes are written."""
        self._seen = {number: _key(record) for number, record in trials.items()}

    def update(self, status: Mapping[str, Any], trials: Mapping[int, Any]) -> None:
        """Write what has changed since the last call."""
        if self._seen is None:  # what ended under an earlier driver is not news
            self._seen = {number: _key(record) for number, record in trials.items() if record.state.ended}
            if any(trials[number].origin is not Origin.IMPORTED for number in self._seen):
                self._write(f"going on done={number(status['done'])}/{status['budget']}")
        for trial in sorted(trials):
            record = trials[trial]
            key = _key(record)
            if self._seen.get(trial) == key:
                continue
            self._seen[trial] = key
            parts = [f"trial={trial_label(trial)}", f"state={record.state}"]
            if record.attempts and not record.state.ended:
                parts.append(f"attempt={len(record.attempts) - 1}")
            climb = record.climb
            if climb is not None and climb.reached >= 0:
                parts.append(f"rung={climb.reached}/{climb.top}")
                if record.value is None:
                    parts.append(f"there={number(climb.scores[climb.reached].value)}")
                if not record.state.ended:
                    parts.append(f"goal={climb.goal}")
            if record.value is not None:
                several = _values_text(record.metrics, status.get("objectives", ()))
                parts.append(several or f"value={number(record.value)}")
            if record.state.ended:
                parts.append(f"done={number(status['done'])}/{status['budget']}")
                if "front" in status:
                    parts.append(f"front={len(status['front'])}")
                elif status["best"]:
                    parts.append(f"best={number(status['best']['value'])}")
            if record.error is not None:
                parts.append(f"error={record.error['kind']}")
            self._write(" ".join(parts))
        for notice in status["notices"]:
            if (trial := notice.partition(":")[0]) not in self._noticed:
                self._noticed.add(trial)
                self._write(notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return


def _key(record: Any) -> tuple[Any, ...]:
    climb = None if record.climb is None else (record.climb.reached, record.climb.goal)
    return record.state, len(record.attempts), climb


class LiveDisplay:
    """A display of the status, redrawn in place: for terminals."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False, transient=True)

    def update(self, status: Mapping[str, Any], trials: Mapping[int, Any]) -> None:
        """Draw the present status."""
        from rich.text import Text

        lines = status_lines(status)
        room = max(self._live.console.height - 1, 3)
        text = Text(visible("\n".join(lines[:room])), no_wrap=True, overflow="ellipsis")
        with contextlib.suppress(OSError):  # the terminal may be gone; the driver goes on
            self._live.update(text, refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()


def score(trial: Mapping[str, Any], *, trial_name: bool = True) -> str:
    """Return a text such as ``0.9625 ± 0.0106 (t0007)``."""
    text = number(trial["value"])
    if trial.get("value_sem") is not None:
        text += f" ± {number(trial['value_sem'])}"
    return f"{text}  ({trial_label(trial['trial'])})" if trial_name else text


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Return a text such as ``learning_rate=0.0026 lora_rank=18``."""
    return " ".join(f"{name}={number(value)}" for name, value in parameters.items())


def number(value: Any) -> str:
    """Return a number with four significant digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Return a text such as ``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def state_text(status: Mapping[str, Any]) -> str:
    """Return a text such as ``running on front, process 4711, 3 min 05 s``."""
    state, driver = str(status["state"]), status["driver"] or {}
    if state == "running":
        state += f" on {driver.get('host')}, process {driver.get('pid')}"
    elif state == "stopped" and status.get("reason"):
        state += f" ({first_line(str(status['reason']))})"
    simulated = " (simulated cluster and clock)" if status.get("simulated") else ""
    return f"{state}, {duration(status['elapsed_s'])}{simulated}"


def _first_lines(status: Mapping[str, Any], width: int | None) -> list[str]:
    """Return name and state of a campaign, on several lines if the reason why it stopped is too long for one."""
    line = f"{status['campaign']}: {state_text(status)}"
    return (
        [line] if width is None else textwrap.wrap(line, max(width, 20), subsequent_indent="  ", break_on_hyphens=False)
    )


def _labelled(label: str, text: str) -> str:
    return f"{label:<{LABEL_WIDTH}}{text}"
