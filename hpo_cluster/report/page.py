"""The text of a report: Markdown that can be read as plain text, and that the HTML page renders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpo_cluster.record.confirmed_front import confirmed_front, front_table
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.record.identity import SIMULATED, SIMULATION
from hpo_cluster.record.item_pairs import sentences_on_items
from hpo_cluster.record.looks import looks_in_words, read_looks
from hpo_cluster.record.warm_start import IDENTITY_KEY
from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures.description import Figure
from hpo_cluster.report.figures.shared import MOST_POINTS
from hpo_cluster.text import counted, in_code, in_markdown
from hpo_cluster.trial import BASELINE, Origin, State

BEST_ROWS = 10

#: What is said if trials have values, and all of them violate the constraints.
NONE_WITHIN = "No trial satisfies the constraints."


def render_page(campaign: Campaign, figures: Mapping[str, Figure]) -> str:
    """Return the report as Markdown; `figures` are those next to it, by the names of their files."""
    lines = [f"# Campaign {campaign.name}", "", *summary(campaign)]
    for title, section in sections(campaign).items():
        lines += ["", f"## {title}", "", *section]
    for stem, figure in figures.items():
        lines += ["", f"## {figure.title}", "", f"![{figure.title}]({stem}.png)", "", figure.reading]
        lines += ["", *figure.table] if figure.table else []
    return "\n".join(lines) + "\n"


def summary(campaign: Campaign) -> list[str]:
    """Return what the campaign is, and how many trials it has."""
    identity = campaign.identity
    kind = (identity.get("objective") or {}).get("kind", "?")
    optimizer = identity.get("optimizer") or {}
    optimizer_name = optimizer.get("name", "?") if isinstance(optimizer, dict) else optimizer
    return [
        f"Objective `{kind}`, {_goals(campaign)}, optimizer `{optimizer_name}`, seed {identity.get('seed', '?')}.",
        "",
        *([SIMULATED, ""] if SIMULATION in identity else []),
        *(line for note in campaign.notes for line in (in_markdown(note), "")),
        *_counts(campaign),
    ]


def sections(campaign: Campaign) -> dict[str, list[str]]:
    """Return the sections of text by their titles: the best, the rungs, a table of the best trials."""
    ranked = campaign.ranked
    lines = []
    if campaign.several and not ranked.empty:
        lines += front_section(campaign)
    elif campaign.ended.empty:
        lines.append("No trial has a value yet.")
    elif ranked.empty:
        outside = campaign.ended["value"].notna().any()
        lines += [*_constraints(campaign), NONE_WITHIN if outside else "No trial ended with a value."]
    else:
        lines += _constraints(campaign)
        lines.append(f"By measured value: {_describe(campaign, ranked.iloc[0])}")
        if advice := _recommendation(campaign):
            lines += ["", advice]
    if not campaign.imported.empty:
        best = _describe(campaign, campaign.imported.iloc[0])
        lines += ["", f"Imported, not a result of this campaign: the best of {len(campaign.imported)} is {best}"]
    if campaign.baseline is not None:
        lines += ["", f"Baseline: {_value(campaign.baseline)}{_other_scores(campaign, campaign.baseline)}."]
    if note := looks_in_words(read_looks(campaign.layout)):
        lines += ["", f"{note.capitalize()}."]
    found = {"Pareto front" if campaign.several else "Best": lines}
    if confirmed := confirmation_section(campaign):
        found["Confirmed with new seeds"] = confirmed
    if rungs := rung_section(campaign):
        found["Rungs"] = rungs
    if not ranked.empty and not campaign.several:
        found[f"The {min(BEST_ROWS, len(ranked))} best of {len(ranked)}"] = _table(campaign)
    return found


def _goals(campaign: Campaign) -> str:
    """Return what is optimised, in words."""
    if campaign.goals is None or not campaign.several:
        return f"metric `{campaign.metric}` ({_directed(campaign.maximize)})"
    return "metrics " + ", ".join(f"`{goal.name}` ({_directed(goal.sign > 0)})" for goal in campaign.goals.metrics)


def _directed(maximize: bool) -> str:
    return "maximised" if maximize else "minimised"


def _constraints(campaign: Campaign) -> list[str]:
    """Return a paragraph about the constraints; empty if there are none."""
    bounds = campaign.goals.constraints if campaign.goals is not None else ()
    held = ", ".join(f"`{bound.name}` {bound.text}" for bound in bounds)
    if not held:
        return []
    violated = int(campaign.ended["feasible"].eq(False).sum())
    return [f"Constraints: {held}; {violated} of {counted(len(campaign.ended), 'trial')} violate them.", ""]


def front_section(campaign: Campaign) -> list[str]:
    """Return the front as a table, with the constraints and the volume that it dominates."""
    assert campaign.goals is not None
    front, goals = campaign.front, campaign.goals
    lines = _constraints(campaign)
    if front.empty:
        return [*lines, NONE_WITHIN]
    volumes, reference = campaign.hypervolumes
    at = ", ".join(f"{goal.name} {edge:.4g}" for goal, edge in zip(goals.metrics, reference, strict=True))
    count = counted(len(front), "trial")
    lines += [
        f"{count} that no other one dominates. Hypervolume {volumes[-1]:.6g}, counted from {in_markdown(at)}.",
        "",
    ]
    names, metrics = [*campaign.space.names], [goal.name for goal in goals.metrics]
    head = ["trial", *metrics, *campaign.others, *names]
    lines += ["| " + " | ".join(map(in_markdown, head)) + " |", "|" + " ---: |" * len(head)]
    for _, row in front.iterrows():
        others = [_cell(float(row[METRIC_PREFIX + name])) for name in campaign.others]
        values = [f"{float(row[f'value_{name}']):.6g}" for name in metrics]
        cells = [str(int(row["trial"])), *values, *others, *(_cell(row[name]) for name in names)]
        lines.append("| " + " | ".join(map(in_markdown, cells)) + " |")
    return lines


def rung_section(campaign: Campaign) -> list[str]:
    """Return what became of the trials at each rung, as a table with words; nothing without rungs."""
    rungs = campaign.rungs
    if rungs is None:
        return []
    hours = ""
    if rungs.gpu_hours and rungs.spent:
        took = counted(f"{rungs.gpu_hours:.3g}", "GPU-hour")
        hours = f" ({took}; about {rungs.saved * rungs.gpu_hours / rungs.spent:.3g} saved)"
    lines = [
        f"{counted(rungs.trials, 'trial')} took {counted(f'{rungs.spent:.3g}', 'whole evaluation')}{hours}. "
        "Without rungs, the trials that are "
        f"over or paused would have taken {max(rungs.saved, 0):.3g} more. Values at different rungs are not "
        "compared: only those of the top are results. *agrees* is the correlation of the values at a rung with those "
        "above it, estimated from the trials that have climbed: 1 the same order, 0 an order that says nothing.",
        "",
        "| rung | share | trials | promoted | paused | agrees | best there |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rungs.table:
        best = "" if row["best"] is None else f"{row['best']['value']:.6g} (trial {row['best']['trial']})"
        agrees = "" if row["agreement"] is None else f"{row['agreement']:.2f}"
        moved = [row["promoted"], row["paused"], agrees] if row is not rungs.table[-1] else ["", "", ""]
        lines.append("| " + " | ".join(map(str, [row["rung"], row["label"], row["reached"], *moved, best])) + " |")
    return lines


def confirmation_section(campaign: Campaign) -> list[str]:
    """Return a table of the configurations that were evaluated again with new seeds; empty without any."""
    found = campaign.confirmation
    if found is None:
        return []
    front = confirmed_front(campaign.record, campaign.goals)
    if front is not None and campaign.goals is not None:
        head, *rows = front_table(front, [goal.name for goal in campaign.goals.metrics])
        return [
            f"{found['done']} of {found['wanted']} evaluations outside the budget. *First* is the value by which a "
            "trial came onto the front, too good on average; *again* the mean of evaluations that had no part in the "
            "choice, ± its standard error. By these means it is still there if no other confirmed trial dominates it.",
            "",
            "| " + " | ".join(map(in_markdown, head)) + " |",
            "|" + " ---: |" * len(head),
            *("| " + " | ".join(map(in_markdown, row)) + " |" for row in rows),
        ]
    lines = [
        f"{found['done']} of {found['wanted']} evaluations outside the budget. *First* is the value by which a trial "
        "was chosen, too good on average; *again* the mean of evaluations that had no part in the choice, ± its "
        "standard error; *behind* compares with the best mean in pairs of equal seeds (95 % interval).",
        "",
        "| trial | first | again | lowest | highest | seeds | behind |",
        "|" + " ---: |" * 7,
    ]
    for row in found["trials"]:
        again = _cell(row["mean"]) + ("" if row["sem"] is None else f" ± {row['sem']:.2g}")
        behind = row["behind"] or {"mean": None, "low": None}
        interval = "" if behind["low"] is None else f" ({behind['low']:.4g} to {behind['high']:.4g})"
        cells = [str(row["trial"]), _cell(row["first"]), again, _cell(row["lowest"]), _cell(row["highest"])]
        cells += [str(len(row["values"])), _cell(behind["mean"]) + interval]
        lines.append("| " + " | ".join(cells) + " |")
    if compared := sentences_on_items(found):
        lines += ["", f"Item by item: {in_markdown('. '.join(compared))}."]
    return lines


def _counts(campaign: Campaign) -> list[str]:
    frame = campaign.history[campaign.history["trial"] > BASELINE]
    evaluated = frame[frame["origin"] == str(Origin.EVALUATED)]
    counts = {str(state): int((evaluated["state"] == str(state)).sum()) for state in State}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    settled = len(frame) - len(evaluated) - len(campaign.imported)
    more = f"; {settled} more rows need no job (inherited or approximated)" if settled else ""
    lines = [f"Trials: {text or 'none yet'}{more}."]
    if not campaign.imported.empty:
        earlier = campaign.identity.get(IDENTITY_KEY) or ()
        names = ", ".join(f"`{source['campaign']}`" for source in earlier)
        lines += [
            "",
            f"It began with {counted(len(campaign.imported), 'evaluation')} imported from {names}. "
            "They are outside its budget, "
            "and are not among the trials that are counted, ranked and drawn below.",
        ]
    if len(campaign.ended) > MOST_POINTS:
        lines += [
            "",
            f"Figures with a marker for each trial show {MOST_POINTS} or fewer, half of them the best (the depths of "
            "a tree: all).",
        ]
    return lines


def _value(row: Any) -> str:
    sem = float(row["value_sem"]) if row["value_sem"] is not None else math.nan
    return f"{float(row['value']):.6g}" + (f" ± {sem:.2g}" if math.isfinite(sem) else "")


def _other_scores(campaign: Campaign, row: Any) -> str:
    scores = {name: float(row[METRIC_PREFIX + name]) for name in campaign.others}
    shown = [f"{in_code(name)} {value:.6g}" for name, value in scores.items() if math.isfinite(value)]
    return f" ({', '.join(shown)})" if shown else ""


def _parameters(campaign: Campaign, row: Any) -> str:
    return ", ".join(in_code(f"{name}={_cell(row[name])}") for name in campaign.space.names if _cell(row[name]))


def _describe(campaign: Campaign, row: Any) -> str:
    scores = _other_scores(campaign, row)
    return f"trial {int(row['trial'])}, {_value(row)}{scores}, with {_parameters(campaign, row)}."


def _cell(value: Any) -> str:
    """Return a value as text; empty for an inactive parameter."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(campaign: Campaign) -> list[str]:
    names = [*campaign.space.names]
    head = ["trial", campaign.metric, *campaign.others, *names]
    lines = ["| " + " | ".join(map(in_markdown, head)) + " |", "|" + " ---: |" * len(head)]
    for _, row in campaign.ranked.head(BEST_ROWS).iterrows():
        others = [_cell(float(row[METRIC_PREFIX + name])) for name in campaign.others]
        cells = [str(int(row["trial"])), _value(row), *others, *(_cell(row[name]) for name in names)]
        lines.append("| " + " | ".join(map(in_markdown, cells)) + " |")
    return lines


def _recommendation(campaign: Campaign) -> str | None:
    """Return a sentence about the trial with the best posterior mean, evaluated here or imported; None without one."""
    trial = campaign.recommended
    if trial is None:
        return None
    if trial == int(campaign.ranked.iloc[0]["trial"]):
        return "By posterior mean (recommended, since a single measurement is partly luck): the same trial."
    row = campaign.history[campaign.history["trial"] == trial].iloc[0]
    where = "imported " if row["origin"] == str(Origin.IMPORTED) else ""
    advice = f"{where}{_describe(campaign, row)}"
    return f"By posterior mean (recommended, since a single measurement is partly luck): {advice}"
