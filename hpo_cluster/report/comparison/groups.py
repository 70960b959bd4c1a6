"""Which campaigns can be compared, and which of them differ only in their seed: these are one group."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.registry import OBJECTIVES
from hpo_cluster.record.identity import ABSENT, flatten
from hpo_cluster.record.warm_start import SHOWN_DIFFERENCES
from hpo_cluster.report.comparison.runs import Run
from hpo_cluster.report.data import shorten
from hpo_cluster.space import parameter_names
from hpo_cluster.text import counted

#: Largest number of fields that are written into the name of a group, and of campaigns that a fault names.
IN_A_NAME, NAMED = 2, 4
#: Largest number of characters of a value in a name or a message.
VALUE_WIDTH = 40
#: Settings of an objective that say what is optimised; with several objectives they are compared metric by metric.
GOALS = ("metric", "metrics", "constraints")
#: Ways of running that tell campaigns apart which are the same otherwise.
WAYS = ("budget", "workers")


@dataclass(frozen=True)
class Group:
    """Campaigns that differ only in their seed, in the order of the seeds."""

    name: str
    runs: tuple[Run, ...]

    @property
    def by_seed(self) -> dict[int, Run]:
        """The campaigns by their seed."""
        return {run.seed: run for run in self.runs}

    @cached_property
    def alike(self) -> int:
        """How many of the first evaluations are of the same configurations with every seed; 0 with one seed."""
        runs = [[parameters for parameters, _ in run.evaluated] for run in self.runs]
        if len(runs) < 2:
            return 0
        same = (all(each == first for each in rest) for first, *rest in zip(*runs, strict=False))
        return sum(1 for _ in itertools.takewhile(bool, same))

    @cached_property
    def repeats(self) -> bool:
        """Whether the campaigns have the same evaluations with the same values, so that seeds make no difference."""
        first, *rest = (run.evaluated for run in self.runs)
        return bool(rest and first) and all(each == first for each in rest)


def faults_of(runs: Sequence[Run]) -> list[str]:
    """Return why campaigns cannot be compared: each field of the objective that differs, with the campaigns."""
    several = any(run.campaign.several for run in runs)
    fields = [{**_optimised(run, several=several), **flatten(_measured(run), "objective.")} for run in runs]
    for mine in fields:
        for name in GOALS if several else ():
            mine.pop(f"objective.{name}", None)
    found = _differing(fields)
    if "objective.kind" in found:  # then everything else differs too
        found = {name: found[name] for name in found if name == "objective.kind" or not name.startswith("objective.")}
    faults = [
        f"{name} differs, so that values cannot be compared: {_by_value(runs, values)}"
        for name, values in itertools.islice(found.items(), SHOWN_DIFFERENCES)
    ]
    if len(found) > SHOWN_DIFFERENCES:
        faults.append(f"objective: {counted(len(found) - SHOWN_DIFFERENCES, 'field')} more")
    first = set(parameter_names(runs[0].identity["space"]))
    apart = [run for run in runs if not first & set(parameter_names(run.identity["space"]))]
    if apart:
        faults.append(f"space: {_some(apart)} and {runs[0].dir} have no parameter in common")
    return faults


def _optimised(run: Run, *, several: bool) -> dict[str, str]:
    """Return the direction; if a campaign has several objectives, a field for each metric and each constraint."""
    campaign, direction = run.campaign, str(run.identity["direction"])
    if not several:
        return {"direction": direction}
    if campaign.goals is None:
        return {f"objective {campaign.metric}": direction}
    fields = {f"objective {goal.name}": str(goal.direction or direction) for goal in campaign.goals.metrics}
    for bound in campaign.goals.constraints:
        fields[f"constraint on {bound.name}"] = bound.text
    return fields


def _measured(run: Run) -> dict[str, Any]:
    """Return the objective's settings that affect results; of a place where files are, only its last part."""
    objective = dict(run.identity["objective"])
    kind = OBJECTIVES.get(str(objective.get("kind")))
    flat = {name: value for name, value in flatten(objective).items() if name != "direction"}
    if kind is None:
        return flat
    for name in (*kind.OPERATIONAL, *kind.FORMER):
        flat.pop(name, None)
    places = {name: PurePath(str(flat[name])).name for name in kind.PLACES if flat.get(name) is not None}
    return {**flat, **places}


def group(runs: Sequence[Run]) -> list[Group]:
    """Return the campaigns in groups, in the order in which their first members were given.

    Campaigns are in one group if they have the same optimizer, settings, space, rungs and warm start. Campaigns that
    have the same seed too are told apart by their budget and workers.

    Raises:
        ConfigError: if campaigns are the same in all of it.
    """
    fields = [_searched(run) for run in runs]
    if _same_twice(runs, fields):
        fields = [
            {**mine, **{name: run.operation.get(name) for name in WAYS}} for run, mine in zip(runs, fields, strict=True)
        ]
    if twice := _same_twice(runs, fields):
        faults = [
            f"{_some(same)}: have the same optimizer, settings, space and seed {same[0].seed}; give one of them, or "
            "campaigns with other seeds"
            for same in twice
        ]
        raise ConfigError(faults, "hpo-cluster compare --help")
    members: dict[str, list[int]] = {}
    for number, mine in enumerate(fields):
        members.setdefault(_key(mine), []).append(number)
    names = _names(
        [[runs[i] for i in numbers] for numbers in members.values()], [fields[n[0]] for n in members.values()]
    )
    return [
        Group(name, tuple(sorted((runs[i] for i in numbers), key=lambda run: run.seed)))
        for name, numbers in zip(names, members.values(), strict=True)
    ]


def differences_beside_optimizer(groups: Sequence[Group]) -> list[str]:
    """Return how groups differ in more than the optimizer, in words, one line for each field."""
    fields = [
        {name: value for name, value in _searched(group.runs[0]).items() if not name.startswith("optimizer.")}
        for group in groups
    ]
    lines = []
    for name, values in _differing(fields).items():
        shown = [f"{group.name} {value}" for group, value in zip(groups, _told_apart(values), strict=True)]
        lines.append(f"{name} differs: {', '.join(shown)}")
    return lines


def without_seeds(groups: Sequence[Group]) -> list[str]:
    """Return which groups propose the same with every seed, in words: such seeds are no repetitions of a search."""
    lines = []
    for group in groups:
        given, seeds = len(group.runs[0].identity["space"].get("start", ())), len(group.runs)
        if group.repeats:
            lines.append(f"{group.name}: its {seeds} campaigns are one, with the same evaluations and values")
        elif group.alike > max(given, 1):
            most = max(len(run.evaluated) for run in group.runs)
            which = "all evaluations" if group.alike == most else f"the first {group.alike} of {most} evaluations"
            lines.append(
                f"{group.name}: {which} are of the same configurations with every seed, so that its spread over seeds "
                "is that of the results' noise and of what follows from it"
            )
    return lines


def _searched(run: Run) -> dict[str, Any]:
    """Return what tells groups apart: how the campaign searches, without what it measures and its seed."""
    parts = {key: value for key, value in run.identity.items() if key not in ("objective", "direction", "seed")}
    if run.campaign.goals is not None:  # an optimizer may read where the metrics begin to be of interest
        references = {goal.name: goal.reference for goal in run.campaign.goals.metrics if goal.reference is not None}
        parts |= {"reference": references} if references else {}
    return flatten(parts)


def _key(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, default=str)


def _same_twice(runs: Sequence[Run], fields: Sequence[Mapping[str, Any]]) -> list[list[Run]]:
    """Return the campaigns that nothing tells apart."""
    found: dict[tuple[str, int], list[Run]] = {}
    for run, mine in zip(runs, fields, strict=True):
        found.setdefault((_key(mine), run.seed), []).append(run)
    return [same for same in found.values() if len(same) > 1]


def _names(members: Sequence[Sequence[Run]], fields: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each group: its optimizer, with what differs between the groups of one optimizer."""
    optimizers = [str(mine.get("optimizer.name")) for mine in fields]
    names = []
    for number, optimizer in enumerate(optimizers):
        alike = [i for i, other in enumerate(optimizers) if other == optimizer]
        differing = _differing([fields[i] for i in alike])
        mine = alike.index(number)
        shown = [f"{_short(name)}={_told_apart(values)[mine]}" for name, values in differing.items()]
        if len(shown) > IN_A_NAME:
            shown = [f"({_without_seed(members[number][0])})"]
        names.append(" ".join([optimizer, *shown]))
    return [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]


def _short(name: str) -> str:
    return name.removeprefix("optimizer.").removeprefix("space.")


def _without_seed(run: Run) -> str:
    """Return the campaign's name without its seed at the end."""
    return run.campaign.name.removesuffix(str(run.seed)).rstrip("-_.") or run.campaign.name


def _differing(fields: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the fields that are not the same everywhere, with their values."""
    names = dict.fromkeys(name for mine in fields for name in mine)
    values = {name: [mine.get(name, ABSENT) for mine in fields] for name in names}
    return {name: found for name, found in values.items() if len({_key({"": value}) for value in found}) > 1}


def _by_value(runs: Sequence[Run], values: Sequence[Any]) -> str:
    """Return which campaigns have which value, in words."""
    found: dict[str, list[Run]] = {}
    for run, value in zip(runs, _told_apart(values), strict=True):
        found.setdefault(value, []).append(run)
    return "; ".join(f"{value} in {_some(having)}" for value, having in found.items())


def _told_apart(values: Sequence[Any]) -> list[str]:
    """Return the texts of values; long ones that begin alike from the word on in which they differ."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if max(map(len, texts)) > VALUE_WIDTH:
        words = [text.split(" ") for text in texts]
        alike = sum(1 for _ in itertools.takewhile(lambda heads: len(set(heads)) == 1, zip(*words, strict=False)))
        if first := min(alike, *(len(each) - 1 for each in words)):
            texts = [f"… {' '.join(each[first:])}" for each in words]
    return [shorten(text, VALUE_WIDTH) for text in texts]


def _some(runs: Iterable[Run]) -> str:
    """Return the folders of campaigns, the first few by name."""
    folders = [str(run.dir) for run in runs]
    more = [f"{len(folders) - NAMED} more"] if len(folders) > NAMED else []
    return ", ".join([*folders[:NAMED], *more])
