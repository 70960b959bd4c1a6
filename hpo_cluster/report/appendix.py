"""The paragraph and the tables that a paper's appendix needs, made of the facts of a campaign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpo_cluster.goals import Bound
from hpo_cluster.record.identity import SIMULATED
from hpo_cluster.record.item_pairs import sentences_on_items
from hpo_cluster.report.markup import Markup
from hpo_cluster.text import counted, listed

#: What the user types, and what a reader of a paper calls it.
SCHEDULERS = {"slurm": "Slurm", "oar": "OAR", "local": "processes of one machine"}
RUNG_OF = {
    "steps": "the training steps",
    "data": "the training data",
    "items": "each task's items",
    "share": "an evaluation",
}
DIRECTIONS = {"maximize": "maximised", "minimize": "minimised"}
#: Largest number of nodes, devices and kinds of failures that are listed.
SHOWN = 6


def appendix(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    """Return the lines of the appendix, without its bibliography.

    Args:
        facts: result of `hpo_cluster.report.facts.facts_of`.
        markup: Markdown or LaTeX.
    """
    sentences = [
        *_search(facts, markup),
        *_trials(facts, markup),
        *_resources(facts, markup),
        *_failures(facts, markup),
    ]
    lines = [*markup.heading(f"Campaign {facts['campaign']}"), " ".join(sentences), ""]
    lines += markup.table("Search space", ["parameter", "values", "scale", "remarks"], _space_rows(facts, markup))
    if facts["optimizer"]["settings"]:
        rows = _settings_rows(facts["optimizer"]["settings"], markup)
        lines += markup.table(f"Settings of the optimizer {markup.name(facts['optimizer']['name'])}", _SETTINGS, rows)
    if facts["objective"]["settings"]:
        rows = _settings_rows(facts["objective"]["settings"], markup)
        lines += markup.table(f"Settings of the objective {markup.name(facts['objective']['kind'])}", _SETTINGS, rows)
    if facts["versions"]:
        rows = [[markup.name(name), markup.text(", ".join(found))] for name, found in facts["versions"].items()]
        lines += markup.table("Versions of the software", ["package", "version"], rows)
    return lines


_SETTINGS = ["setting", "value"]


def _search(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    """Return what was searched, how, and for how long."""
    objective, optimizer, cited = facts["objective"], facts["optimizer"], facts["references"]
    goals = [f"{markup.name(goal['name'])} ({DIRECTIONS[goal['direction']]})" for goal in objective["metrics"]]
    searched = sum(_is_searched(parameter) for parameter in facts["space"])
    fixed = len(facts["space"]) - searched
    more = f" and {counted(fixed, 'fixed one')}" if fixed else ""
    sentences = [
        f"The objective {markup.name(objective['kind'])}{markup.cite(cited['objective'])}, measured by "
        f"{listed(goals)}, was optimised over {counted(searched, 'hyperparameter')}{more} with the optimizer "
        f"{markup.name(optimizer['name'])}{markup.cite(cited['optimizer'])} of "
        f"{markup.name('hpo_cluster')}{markup.cite(cited['project'])}."
    ]
    sentences += [markup.text(note) for note in objective["notes"]]
    if objective["constraints"]:
        bounds = [
            f"{markup.name(bound.name)} {words} {_number(end)}"
            for bound in (Bound(**entry) for entry in objective["constraints"])
            for words, end in bound.ends
        ]
        sentences.append(f"Results had to satisfy {listed(bounds)}.")
    if facts["constraints"]:
        sentences.append(f"Configurations had to satisfy {listed([markup.name(c) for c in facts['constraints']])}.")
    if facts["budget"] is not None:
        sentences.append(
            f"The budget was {counted(facts['budget'], 'whole evaluation' if facts['rungs'] else 'evaluation')}, at "
            f"most {facts['workers']} at the same time; "
            f"everything random follows from the seed {facts['seed']} and the number of the trial."
        )
    if facts["rungs"]:
        *shares, _ = facts["rungs"]["shares"]
        sentences.append(
            f"Evaluations were scored early, after {listed(shares)} of {RUNG_OF[facts['rungs']['kind']]}, where the "
            f"rule {markup.name(facts['rungs']['rule'])} (eta {_number(facts['rungs']['eta'])}) decided which of them "
            "went on; only values of whole evaluations are results."
        )
    if facts["starting_points"]:
        sentences.append(f"The search began with {counted(facts['starting_points'], 'given configuration')}.")
    if facts["made_elsewhere"]:
        files = [f"{count} of {markup.name(file)}" for file, count in facts["made_elsewhere"].items()]
        sentences.append(
            f"Evaluations made elsewhere were imported: {listed(files)}; optimizer, workers and seed named above are "
            "not known to be theirs."
        )
    if facts["imported"]:
        earlier = [f"{source['evaluations']} of {markup.name(source['campaign'])}" for source in facts["imported"]]
        sentences.append(f"It began with evaluations of earlier campaigns: {listed(earlier)}.")
    return sentences


def _trials(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    """Return what became of the trials."""
    states = [f"{count} {state}" for state, count in facts["trials"].items()]
    if not states:
        return ["No trial has been proposed yet."]
    sentences = [f"Trials by state: {listed(states)}."]
    if facts["settled"]:
        kinds = [f"{count} {origin}" for origin, count in facts["settled"].items()]
        sentences.append(f"Further values needed no evaluation: {listed(kinds)}.")
    if facts["best"] is not None:
        best = facts["best"]
        sem = "" if best["value_sem"] is None else f", standard error {_number(best['value_sem'])}"
        sentences.append(f"The best value measured was {_number(best['value'])} (trial {best['trial']}{sem}).")
    if facts["objective"]["constraints"] and facts["trials"].get("completed") and not (facts["best"] or facts["front"]):
        sentences.append("No trial satisfied the constraints.")
    elif facts["front"] is not None:
        sentences.append(f"The Pareto front has {counted(facts['front'], 'trial')}.")
    if facts["baseline"] is not None and facts["baseline"]["value"] is not None:
        sentences.append(f"The baseline has {_number(facts['baseline']['value'])}.")
    return [*sentences, *_confirmation(facts, markup)]


def _confirmation(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    """Return what the best configurations have reached with new seeds, which had no part in their choice."""
    found = facts["confirmation"]
    if found is None:
        return []
    done = f"{found['done']} of {counted(found['wanted'], 'evaluation')} outside the budget"
    again = f"The chosen configurations were evaluated again with new seeds ({done})"
    on_items = [f"Item by item, {markup.text(sentence)}." for sentence in sentences_on_items(found)]
    if facts["confirmed_front"] is not None:
        return [f"{again}.", *_confirmed_front(facts, markup), *on_items]
    means = []
    for row in found["trials"]:
        if row["mean"] is not None:
            sem = "" if row["sem"] is None else f"standard error {_number(row['sem'])}, "
            means.append(
                f"{_number(row['mean'])} for trial {row['trial']} ({sem}{counted(len(row['values']), 'seed')})"
            )
    metric = markup.name(facts["objective"]["metrics"][0]["name"])
    return [f"{again}{f', with the mean {metric} {_some(means)}' if means else ''}.", *on_items]


def _confirmed_front(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    """Return the means of each objective with new seeds, and what of the front they leave."""
    rows = [row for row in facts["confirmed_front"] if row["done"]]
    means = []
    for row in rows[:SHOWN]:
        values = []
        for goal in facts["objective"]["metrics"]:
            mean, sem = row["metrics"][goal["name"]]["mean"], row["metrics"][goal["name"]]["sem"]
            error = "" if sem is None else f" (standard error {_number(sem)})"
            values += [] if mean is None else [f"{markup.name(goal['name'])} {_number(mean)}{error}"]
        means.append(f"Trial {row['trial']} has the means {listed(values)} ({counted(row['done'], 'seed')}).")
    left = sum(not row["dominated_by"] and not row["violates"] for row in rows)
    more = f" ({len(rows) - SHOWN} more are not listed)" if len(rows) > SHOWN else ""
    remain = f"{left} of {counted(len(rows), 'confirmed trial')} remain{'s' * (left == 1)} on the front"
    return [*means, f"By these means {remain}{more}."] if rows else []


def _resources(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    """Return on what the campaign ran, and what it cost."""
    hardware, time = facts["hardware"], facts["time"]
    sentences = []
    if facts["simulated"]:
        sentences.append(SIMULATED)
    if hardware["nodes"]:
        nodes = _some([markup.name(name) for name in hardware["nodes"]])
        how = SCHEDULERS.get(hardware["launcher"], hardware["launcher"] or "a scheduler that is not recorded")
        where = f" ({markup.name(hardware['partition'])})" if hardware["partition"] else ""
        count = counted(len(hardware["nodes"]), "node")
        sentences.append(f"Evaluations were run by {markup.text(how)}{where} on {count} ({nodes}).")
    if hardware["devices"]:
        devices = _some([f"{markup.text(name)} ({count})" for name, count in hardware["devices"].items()])
        sentences.append(f"Devices, with the number of results: {devices}.")
    gpus = [count for count in hardware["gpus_per_trial"] if count]
    if gpus:
        sentences.append(f"An evaluation had {listed([str(count) for count in gpus])} GPU{'s' * (gpus != [1])}.")
    if time["began"] is not None:
        began = f"{time['began'][:16].replace('T', ' ')} UTC"
        starts = f", in {time['starts']} starts" if time["starts"] > 1 else ""
        sentences.append(f"From the start ({began}) to the last change {_hours(time['wall_s'])} passed{starts}.")
        sentences.append(f"The evaluations took {_hours(time['evaluations_s'])} in all.")
    used = [counted(_number(facts["gpu_hours"]), "GPU-hour")] if facts["gpu_hours"] else []
    if facts["energy_kwh"]:
        by = f" (counted by {markup.text(', '.join(hardware['energy_source']))})" if hardware["energy_source"] else ""
        used.append(f"{_number(facts['energy_kwh'])} kWh{by}")
    return [*sentences, f"They used {listed(used)}."] if used else sentences


def _failures(facts: Mapping[str, Any], markup: Markup) -> list[str]:
    kinds, retries = facts["failures"]["attempts"], facts["failures"]["retries"]
    if not kinds:
        return ["No attempt failed."] if facts["trials"] else []
    listed = _some([f"{count} {markup.name(kind)}" for kind, count in kinds.items()])
    again = "none was tried again" if not retries else f"{counted(retries, 'further attempt')} began"
    return [f"{counted(sum(kinds.values()), 'attempt')} failed ({listed}); {again}."]


def _space_rows(facts: Mapping[str, Any], markup: Markup) -> list[list[str]]:
    """Return a row for each parameter: name, values, scale, and its condition and prior."""
    rows = []
    for parameter in facts["space"]:
        if parameter["type"] == "choice":
            values, scale = (
                ", ".join(map(_number, parameter["choices"])),
                "ordered" if parameter["ordered"] else "choice",
            )
        elif parameter["low"] == parameter["high"]:
            values, scale = _number(parameter["low"]), "fixed"
        else:
            values = f"{_number(parameter['low'])} to {_number(parameter['high'])}"
            step = f", step {_number(parameter['step'])}" if parameter["step"] else ""
            scale = f"{parameter['scale']}{', integer' if parameter['type'] == 'integer' else ''}{step}"
        remarks = [
            f"if {parent} is {' or '.join(map(_number, values_of_parent))}"
            for parent, values_of_parent in parameter["when"].items()
        ]
        if prior := parameter["prior"]:
            weights = f"prior weights {_number(prior['weights'])}" if "weights" in prior else ""
            remarks.append(weights or f"prior around {_number(prior['center'])}, spread {_number(prior['spread'])}")
        rows.append(
            [markup.name(parameter["name"]), *(markup.text(cell) for cell in (values, scale, "; ".join(remarks)))]
        )
    return rows


def _is_searched(parameter: Mapping[str, Any]) -> bool:
    if parameter["type"] == "choice":
        return len(parameter["choices"]) > 1
    return bool(parameter["low"] != parameter["high"])


def _settings_rows(settings: Mapping[str, Any], markup: Markup) -> list[list[str]]:
    return [[markup.name(name), markup.text(_number(value))] for name, value in settings.items()]


def _number(value: Any) -> str:
    """Return a number with six significant digits at most, a list as its elements, anything else as configured."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_number, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _some(items: Sequence[str]) -> str:
    more = [f"{len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return ", ".join([*items[:SHOWN], *more])


def _hours(seconds: float) -> str:
    """Return a duration in the unit that fits: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
