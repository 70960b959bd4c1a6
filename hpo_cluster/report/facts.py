"""What a paper's appendix says of a campaign, as plain data: read from its journal and its results, nothing changed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hpo_cluster
from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals
from hpo_cluster.objectives.registry import OBJECTIVES, parse_objective
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import seconds_between
from hpo_cluster.record.confirmed_front import confirmed_front
from hpo_cluster.record.files import read_json
from hpo_cluster.record.identity import SIMULATION, flatten, identity_of_campaign
from hpo_cluster.record.item_pairs import confirmation_on_items
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.status import shown_trial, unnoticed_ends
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.record.warm_start import IDENTITY_KEY
from hpo_cluster.report.bibliography import bibtex, references
from hpo_cluster.space import Categorical, Space
from hpo_cluster.trial import BASELINE, Origin, State

#: Sections and fields of an objective's settings that the text names in another place.
NAMED_ELSEWHERE = frozenset({"kind", "direction", "metrics", "constraints"})


def facts_of(campaign_dir: Path) -> dict[str, Any]:
    """Return the facts of a campaign as plain data (JSON).

    Raises:
        JournalError: if there is no campaign, or its journal cannot be read.
    """
    layout = CampaignLayout(campaign_dir)
    identity, record = identity_of_campaign(layout.identity), Record.read(layout.events)
    space, goals = Space.from_json(identity["space"]), Goals.of(identity["objective"])
    start = record.starts[-1] if record.starts else {}
    operation, settings = start.get("operation", {}), start.get("settings", {})
    cited = references(identity, has_prior=any(p.prior is not None for p in space.parameters.values()))
    results = list(_results(layout, record))
    versions = _versions(record, results)
    maximize = identity["direction"] == "maximize"
    several, front = goals is not None and goals.several, [] if goals is None else record.front(goals)
    best = record.best(maximize=maximize) if goals is None else next(iter(front), None)
    return {
        "campaign": layout.dir.resolve().name,
        "objective": _objective(identity, goals, space),
        "space": [_parameter(name, space) for name in space.names],
        "constraints": [constraint.text for constraint in space.constraints],
        "starting_points": len(space.start),
        "optimizer": {
            "name": identity["optimizer"].get("name"),
            "settings": {key: value for key, value in flatten(identity["optimizer"]).items() if key != "name"},
        },
        "rungs": _rungs(record, settings.get("fidelity") or {}),
        "seed": identity["seed"],
        "budget": operation.get("budget"),
        "workers": operation.get("workers"),
        "trials": {str(state): count for state in State if (count := record.counts[state])},
        "settled": dict(Counter(str(trial.origin) for trial in record.rows if trial.origin in _SETTLED)),
        "made_elsewhere": _made_elsewhere(record),
        "imported": [dict(source) for source in identity.get(IDENTITY_KEY) or ()],
        "baseline": shown_trial(record.trials.get(BASELINE)),
        "best": None if several else shown_trial(best),
        "front": len(front) if several else None,
        "confirmation": confirmation_on_items(record, layout, maximize=maximize),
        "confirmed_front": confirmed_front(record, goals),
        "versions": versions,
        "code": sorted({str(start["code"]) for start in record.starts}),
        "simulated": SIMULATION in identity,
        "hardware": _hardware(record, results, settings.get("launcher") or {}),
        "time": _time(record),
        "gpu_hours": round(_gpu_hours(record, layout), 3),
        "energy_kwh": round(record.energy_kwh, 6),
        "failures": _failures(record),
        "references": cited,
        "bibtex": bibtex(cited, ", ".join(versions.get("hpo_cluster", [hpo_cluster.__version__]))),
    }


def _rungs(record: Record, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return at which shares evaluations were scored and who went on; None without rungs."""
    if record.ladder is None:
        return None
    fidelity = Fidelity(**settings)
    shares = list(record.ladder.labels)
    return {"kind": record.ladder.kind, "shares": shares, "rule": fidelity.rule, "eta": fidelity.eta}


_SETTLED = (Origin.INHERITED, Origin.APPROXIMATED, Origin.IMPUTED)


def _results(layout: CampaignLayout, record: Record) -> Iterator[dict[str, Any]]:
    """Yield the results of this campaign's trials that can be read."""
    for trial in record.rows:
        for attempt in trial.attempts:
            if trial.value is not None and attempt.over and attempt.error is None:
                result = read_json(layout.attempt(trial.number, attempt.number).result)
                if result is not None:
                    yield result


def _made_elsewhere(record: Record) -> dict[str, int]:
    """Return the number of trials that were not made by this campaign, by the file that they come from."""
    files = (trial.info.get("made_elsewhere") for trial in record.made_elsewhere)
    return dict(Counter(str(file) for file in files if file))


def _objective(identity: Mapping[str, Any], goals: Goals | None, space: Space) -> dict[str, Any]:
    recorded = identity["objective"]
    notes: list[str] = []
    try:
        objective = parse_objective(recorded)
        metric, notes = objective.metric, objective.notes
    except ConfigError:  # perhaps written by another version
        metric = None
    if goals is None:
        metrics = [{"name": metric or "value", "direction": identity["direction"]}]
    else:
        metrics = [{"name": goal.name, "direction": goal.direction} for goal in goals.metrics]
    bounds = (
        [{"name": b.name, "at_most": b.at_most, "at_least": b.at_least} for b in goals.constraints] if goals else []
    )
    places = OBJECTIVES[recorded["kind"]].PLACES if recorded.get("kind") in OBJECTIVES else ()
    said = {*space.names, *(["metric"] if len(metrics) > 1 else [])}  # of several, `metric` is the first one again
    fixed = {
        key: value
        for key, value in flatten({k: v for k, v in recorded.items() if k not in NAMED_ELSEWHERE}).items()
        if value is not None
        and value != []
        and key.rpartition(".")[2] not in said
        and not (key in places and str(value).startswith("/"))  # a folder of one machine says nothing to a reader
    }
    return {"kind": recorded.get("kind"), "metrics": metrics, "constraints": bounds, "settings": fixed, "notes": notes}


def _parameter(name: str, space: Space) -> dict[str, Any]:
    """Return a parameter's type, range, scale, condition and prior."""
    parameter = space.parameters[name]
    when = {parent: list(values) for parent, values in parameter.conditions.items()}
    prior: dict[str, Any] | None
    if isinstance(parameter, Categorical):
        prior = None if parameter.prior is None else {"weights": list(parameter.prior)}
        kind = {"type": "choice", "choices": list(parameter.choices), "ordered": parameter.ordered}
        return {"name": name, **kind, "when": when, "prior": prior}
    prior = None if parameter.prior is None else {"center": parameter.prior.center, "spread": parameter.prior.spread}
    return {
        "name": name,
        "type": "integer" if isinstance(parameter.low, int) and isinstance(parameter.high, int) else "real",
        "low": parameter.low,
        "high": parameter.high,
        "scale": "log" if parameter.log else "linear",
        "step": parameter.step,
        "when": when,
        "prior": prior,
    }


def _versions(record: Record, results: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the versions of Python and of the packages that drivers and jobs recorded."""
    found: dict[str, set[str]] = {}
    for document in (*record.starts, *results):
        versions = document.get("versions")
        for package, version in versions.items() if isinstance(versions, dict) else ():
            found.setdefault(package, set()).add(str(version))
    return {package: sorted(versions) for package, versions in sorted(found.items())}


def _hardware(record: Record, results: list[dict[str, Any]], launcher: Mapping[str, Any]) -> dict[str, Any]:
    attempts = [attempt for trial in _own(record) for attempt in trial.attempts]
    devices = [str(result["device_name"]) for result in results if result.get("device_name")]
    sources = {str(result["energy_source"]) for result in results if result.get("energy_source") not in (None, "none")}
    return {
        "launcher": launcher.get("kind"),
        "partition": launcher.get("partition") or launcher.get("queue"),
        "nodes": dict(Counter(attempt.node for attempt in attempts if attempt.node)),
        "devices": dict(Counter(devices)),
        "gpus_per_trial": sorted({attempt.gpus for attempt in attempts if attempt.job is not None}),
        "cpus_per_trial": launcher.get("cpus_per_trial"),
        "energy_source": sorted(sources),
    }


def _gpu_hours(record: Record, layout: CampaignLayout) -> float:
    return record.gpu_hours(clock.now(), {trial: end.at for trial, end in unnoticed_ends(record, layout).items()})


def _time(record: Record) -> dict[str, Any]:
    """Return when the campaign ran, and the seconds of its evaluations, those that failed included."""
    began = record.starts[0]["at"] if record.starts else None
    ended = None if record.last is None else record.last["at"]
    attempts = [attempt for trial in _own(record) for attempt in trial.attempts]
    spans = [attempt.took_s for attempt in attempts if attempt.started_at and attempt.ended_at]
    wall = seconds_between(began, ended)
    return {
        "began": began,
        "last_change": ended,
        "wall_s": round(wall, 1),
        "evaluations_s": round(math.fsum(spans), 1),
        "starts": len(record.starts),
    }


def _failures(record: Record) -> dict[str, Any]:
    """Return how many attempts failed, by kind of error, and how many attempts tried a trial again."""
    kinds = Counter(str(a.error["kind"]) for trial in _own(record) for a in trial.attempts if a.error)
    retries = sum(max(0, trial.began - 1) for trial in _own(record))
    return {"attempts": dict(kinds), "retries": retries}


def _own(record: Record) -> list[TrialRecord]:
    """Return the trials that this campaign has evaluated."""
    return [trial for trial in record.rows if trial.origin is not Origin.IMPORTED]
