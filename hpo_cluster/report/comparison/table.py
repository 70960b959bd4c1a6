"""The tables of a comparison: as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hpo_cluster.report.comparison import Comparison, Group, Metric, mean_and_sem
from hpo_cluster.report.comparison.verdicts import NOTHING, plus_minus
from hpo_cluster.text import in_latex, in_markdown

#: What a cost is called in the head of a column.
COST_TITLES = {
    "evaluations": "evaluations",
    "equivalents": "whole evaluations",
    "gpu_hours": "GPU-hours",
    "hours": "wall time",
}


class Head(NamedTuple):
    """The head of a column: its title, and what stands over it and over its neighbours of the same kind."""

    over: str
    title: str


def cells(comparison: Comparison) -> tuple[list[Head], list[list[str]]]:
    """Return the head and the rows of the table, as plain text: one row for each group."""
    head = [Head("", name) for name in ("group", "seeds", "evaluations")]
    head += [Head(metric.role, metric.shown) for metric in comparison.metrics]
    if comparison.reach is not None:
        over = f"to reach {comparison.reach_in_words}"
        head += [Head(over, name) for name in ("seeds", *(COST_TITLES[cost] for cost in comparison.costs))]
    rows = []
    for group in comparison.groups:
        row = [group.name, str(len(group.runs)), _span([run.curve.end("evaluations") for run in group.runs])]
        row += [plus_minus(*mean_and_sem(_scores(group, metric))) for metric in comparison.metrics]
        if comparison.reach is not None:
            row.append(f"{comparison.reached(group)}/{len(group.runs)}")
            row += [cost_text(cost, comparison.to_reach(group, cost)) for cost in comparison.costs]
        rows.append(row)
    return head, rows


def _scores(group: Group, metric: Metric) -> list[float]:
    return [run.score(metric.name) for run in group.runs]


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low}–{high}"


def cost_text(cost: str, value: float) -> str:
    """Return a cost with the unit that fits."""
    if not math.isfinite(value):
        return NOTHING
    if cost != "hours":
        return f"{value:.3g}"
    seconds = 3600 * value
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (4 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.3g} d"


def text_table(head: Sequence[Head], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the table as lines with columns of equal width; what stands over several columns begins at the first."""
    body = [[each.title for each in head], *rows]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    for over, columns in _spans(head):  # the last of its columns makes room for it
        widths[columns[-1]] += max(0, len(over) - sum(widths[i] + 2 for i in columns) + 2)
    above = "  ".join(over.ljust(sum(widths[i] + 2 for i in columns) - 2) for over, columns in _spans(head))
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in body)
    return [line.rstrip() for line in ([above, *lines] if above.strip() else lines)]


def _spans(head: Sequence[Head]) -> list[tuple[str, list[int]]]:
    """Return what stands over which columns, in order."""
    runs = itertools.groupby(range(len(head)), key=lambda i: head[i].over)
    return [(over, list(columns)) for over, columns in runs]


def markdown_table(head: Sequence[Head], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the table as lines of Markdown, which has one line for the head."""
    titles = [f"{each.over} {each.title}".strip() for each in head]
    lines = [f"| {' | '.join(map(in_markdown, row))} |" for row in [titles, *rows]]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def latex_table(comparison: Comparison) -> str:
    """Return the table as LaTeX that needs no packages."""
    head, rows = cells(comparison)
    above: list[str] = []
    for text, columns in _spans(head):
        above += [rf"\multicolumn{{{len(columns)}}}{{c}}{{{_in_latex(text)}}}"] if text else [""] * len(columns)
    lines = [rf"    {' & '.join(map(_in_latex, row))} \\" for row in [[each.title for each in head], *rows]]
    several = max(len(group.runs) for group in comparison.groups) > 1
    seeds = r": mean $\pm$ standard error over seeds" if several else ""
    what = "Hypervolumes and sizes of the fronts" if comparison.several else "Scores at the recommended configurations"
    reach = "" if comparison.reach is None else "; medians over seeds of what it took to reach a value"
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"  \centering",
            r"  \footnotesize",
            r"  \setlength{\tabcolsep}{3pt}",
            rf"  \caption{{{what}{seeds}{reach}.}}",
            rf"  \begin{{tabular}}{{@{{}}l{'r' * (len(head) - 1)}@{{}}}}",
            r"    \hline",
            *([rf"    {' & '.join(above)} \\"] if any(each.over for each in head) else []),
            lines[0],
            r"    \hline",
            *lines[1:],
            r"    \hline",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _in_latex(cell: str) -> str:
    return in_latex(cell).replace("±", r"$\pm$").replace("–", "--")


def table_csv(comparison: Comparison) -> str:
    """Return the table as CSV, with every number in full: one row for each group."""
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        ends = [run.curve.end("evaluations") for run in group.runs]
        row: dict[str, Any] = {"group": group.name, "seeds": len(group.runs)}
        row |= {"evaluations_min": min(ends), "evaluations_max": max(ends)}
        for metric in comparison.metrics:
            scores = _scores(group, metric)
            mean, sem = mean_and_sem(scores)
            name = metric.column
            row |= {name: mean, f"{name}_sem": sem, f"{name}_seeds": sum(map(math.isfinite, scores))}
        if comparison.reach is not None:
            row |= {"reach": comparison.reach, "reached_seeds": comparison.reached(group)}
            row |= {f"reach_{cost}": comparison.to_reach(group, cost) for cost in comparison.costs}
        rows.append(row)
    return _csv(rows)


def campaigns_csv(comparison: Comparison) -> str:
    """Return one row for each campaign as CSV: what it recommends, and what it has cost."""
    rows: list[dict[str, Any]] = []
    for group in comparison.groups:
        for run in group.runs:
            row: dict[str, Any] = {"group": group.name, "seed": run.seed, "campaign": run.campaign.name}
            row["dir"] = str(run.dir)
            if not comparison.several:
                row |= {"recommended": run.recommended, "value": run.score(), "value_sem": run.score_sem}
            row |= {metric.column: run.score(metric.name) for metric in comparison.metrics}
            if not comparison.several:
                row["best"] = run.sign * float(run.curve.best[-1]) if len(run.curve.best) else math.nan
            row |= {cost: run.curve.end(cost) for cost in comparison.costs}
            if comparison.reach is not None:
                target = run.sign * comparison.reach
                row |= {f"reach_{cost}": run.curve.reaches(cost, target) for cost in comparison.costs}
            rows.append({**row, "without_value": run.without_value})
    return _csv(rows)


def pairs_csv(comparison: Comparison) -> str:
    """Return one row for each two groups and metric as CSV."""
    rows = [
        {
            "metric": pair.metric.column,
            "better": pair.better,
            "worse": pair.worse,
            "seeds": pair.seeds,
            "difference": pair.difference,
            "sem": pair.sem,
            "p_holm": pair.p,
            "tests": pair.tests,
            "verdict": pair.verdict,
        }
        for pair in comparison.pairs
    ]
    return _csv(rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV; what is not known is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.split())
    return None if value is None or not math.isfinite(value) else value


def page(comparison: Comparison, figures: Iterable[tuple[str, str]], files: Iterable[str]) -> str:
    """Return the comparison as Markdown: table, sentences, notes and figures.

    Args:
        comparison: the comparison.
        figures: titles and names of the pictures.
        files: names of the other files.
    """
    head, rows = cells(comparison)
    lines = [f"# Comparison of {len(comparison.runs)} campaigns", "", *markdown_table(head, rows), ""]
    lines += [in_markdown(line) for line in explanation(comparison)]
    lines += ["", "## What can be said", ""]
    for verdict in comparison.verdicts:
        lines += [*_bullets([verdict.leader]), *(f"  {line}" for line in _bullets(verdict.details))]
    if comparison.notes:
        lines += ["", "## To know", "", *_bullets(comparison.notes)]
    for title, name in figures:
        lines += ["", f"## {in_markdown(title)}", "", f"![{in_markdown(title)}]({name})"]
    return "\n".join([*lines, "", f"Also here: {', '.join(files)}.", ""])


def _bullets(lines: Iterable[str]) -> list[str]:
    return [f"- {in_markdown(line)}" for line in lines]


def explanation(comparison: Comparison) -> list[str]:
    """Return how the table is to be read, in words."""
    lines = _of_volumes(comparison) if comparison.several else _of_scores(comparison)
    if comparison.reach is not None:
        why = "" if comparison.reach_given else ", which more than half of the campaigns of every group have reached,"
        what = "hypervolume" if comparison.several else "best value"
        lines.append(
            f"The last columns tell how many campaigns have reached {comparison.reach_in_words}{why} with their "
            f"{what}, and the median of what it took them."
        )
    return lines


def _of_volumes(comparison: Comparison) -> list[str]:
    """Return what the hypervolumes are."""
    if comparison.box is None:
        return [
            "Every hypervolume is 0: no campaign has a trial that satisfies the constraints and is better than the "
            "reference point in every metric."
        ]
    return [*comparison.box.words, "The table has means ± standard errors over seeds."]


def _of_scores(comparison: Comparison) -> list[str]:
    """Return what the scores are."""
    lines = [
        "Scores are those measured at the configuration that each campaign recommends (the best posterior mean), as "
        "mean ± standard error over seeds."
    ]
    sems = [run.score_sem for run in comparison.runs if math.isfinite(run.score_sem)]
    if sems:
        lines.append(
            f"One score of {comparison.first.campaign.metric} has a standard error of {statistics.median(sems):.2g} by "
            "itself, as its objective reports it."
        )
    return lines
