"""Warm start: evaluations of earlier campaigns, or made elsewhere, become the first rows of a new campaign.

They are outside its budget.

The imported rows are written into the new campaign's journal with its first event; the earlier folders are not read
again. The new campaign's identity describes them by content: the name of each earlier campaign, the number of its
finished evaluations, and a digest of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_cluster.errors import ConfigError, JournalError
from hpo_cluster.goals import Goals
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.exchange.evaluations import (
    ACCEPTED,
    Evaluation,
    file_and_study,
    is_readable,
    read_evaluations,
)
from hpo_cluster.record.identity import differences, read_identity
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.space import Configuration, Space
from hpo_cluster.text import command_line, counted
from hpo_cluster.trial import Origin, Settled, State

#: The identity field of a campaign that began with imported evaluations.
IDENTITY_KEY = "warm_start"
#: Maximum number of differences between two objectives that a message lists.
SHOWN_DIFFERENCES = 8
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Source:
    """An earlier campaign.

    Args:
        campaign: the name of the earlier campaign.
        evaluations: number of its evaluations that finished with a value, including those that it had imported.
        digest: digest of these evaluations.
        outside: number of these evaluations outside the new campaign's space, which are left out.
        read: whether the folder was read; if not, this source comes from the new campaign's identity.
        notes: what else was left out, of a file.
    """

    campaign: str
    evaluations: int
    digest: str
    outside: int = 0
    read: bool = True
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the campaign's identity that is compared at each start."""
        return {"campaign": self.campaign, "evaluations": self.evaluations, "digest": self.digest}

    @property
    def message(self) -> str:
        """The message that says how many evaluations are imported and how many are not."""
        left_out = f"; {self.outside} left out: their configurations lie outside of the space" if self.outside else ""
        taken = self.evaluations - self.outside
        others = "".join(f"; {note}" for note in self.notes)
        return f"{taken} of {self.evaluations} evaluations of {self.campaign} are taken over{left_out}{others}"


@dataclass(frozen=True)
class WarmStart:
    """The imported evaluations that a campaign begins with. `rows` is empty if the earlier folders no longer exist.

    Args:
        sources: the earlier campaigns, in the order given.
        rows: their evaluations inside the space, each once.
        made_elsewhere: the trials of a campaign that was made elsewhere, as the journal's first event holds them.
    """

    sources: tuple[Source, ...] = ()
    rows: tuple[Settled, ...] = ()
    made_elsewhere: tuple[Mapping[str, Any], ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The field that a warm start adds to a campaign's identity; empty without sources."""
        return {IDENTITY_KEY: [source.identity for source in self.sources]} if self.sources else {}


def recorded_warm_start(identity: Mapping[str, Any] | None) -> WarmStart:
    """Return the warm start that an existing campaign's identity describes; the rows are in its journal."""
    sources = (identity or {}).get(IDENTITY_KEY) or ()
    return WarmStart(tuple(Source(**source, read=False) for source in sources))


def read_warm_start(
    folders: Sequence[Path],
    directory: Path,
    space: Space,
    identity: Mapping[str, Any],
    recorded: Mapping[str, Any] | None = None,
    *,
    other_objective: bool = False,
    objective_as: Callable[[Path, Mapping[str, Any]], Mapping[str, Any]] | None = None,
    metric: str = "value",
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> WarmStart:
    """Return the finished evaluations of earlier campaigns, or those in files. Nothing is written.

    Args:
        folders: folders of the earlier campaigns, and files of evaluations that were made elsewhere.
        directory: folder of the new campaign.
        space: space of the new campaign.
        identity: identity of the new campaign; its objective and direction are compared.
        recorded: identity of the new campaign on disk, if it exists; it describes earlier campaigns that are deleted.
        other_objective: whether the objectives may differ; the direction may not.
        objective_as: (folder, objective of an earlier campaign) -> the new campaign's objective, with the paths of the
            earlier one if both name the same files; None: the objective of `identity`.
        metric: name of the metric that is optimised, for files.
        columns: of the files: by column, the parameter or other column that it is.
        skip_bad: whether rows of files that have faults are left out.

    Raises:
        ConfigError: naming every folder that is not a campaign or has another direction or another objective.
    """
    known, goals = recorded_warm_start(recorded).sources, Goals.of(identity["objective"])
    faults: list[str] = []
    allow, paths, hint = False, set[Path](), ""
    sources, rows = list[Source](), dict[tuple[Any, ...], Settled]()
    for folder in folders:
        if is_readable(folder):
            try:
                same = next((s for s in known if s.campaign == folder.name and s not in sources), None)
                if same is not None and not file_and_study(folder)[0].exists():
                    sources.append(same)
                    continue
                source, made = _read_file(folder, space, metric, goals, columns, skip_bad)
            except ConfigError as error:
                faults += [f"{IDENTITY_KEY}: {fault}" for fault in error.faults]
                hint = hint or error.hint
                continue
            sources.append(source)
            rows |= {key: row for key, row in made.items() if key not in rows}
            continue
        layout = CampaignLayout(folder)
        try:
            earlier = read_identity(layout.identity)
            trials = [] if earlier is None else Record.read(layout.events).rows
        except JournalError as error:
            faults.append(f"{IDENTITY_KEY}: {error}")
            continue
        path = layout.dir.resolve()
        same = next((source for source in known if source.campaign == path.name and source not in sources), None)
        if earlier is None and same is not None:
            sources.append(same)
            continue
        if earlier is None:
            faults.append(
                f"{IDENTITY_KEY}={folder}: is not a campaign (it has no campaign.yaml), and no file: {ACCEPTED}"
            )
            continue
        if path == directory.resolve():
            faults.append(
                f"{IDENTITY_KEY}={folder}: is the campaign itself; to go on with it: {command_line('resume', folder)}"
            )
        if path in paths:
            faults.append(f"{IDENTITY_KEY}={folder}: is named twice")
        paths.add(path)
        if goals is None and earlier.get("direction") != identity["direction"]:
            faults.append(
                f"{IDENTITY_KEY}={folder}: direction={earlier.get('direction')}, here {identity['direction']}: what is "
                "good there would be bad here"
            )
        theirs = earlier.get("objective") or {}
        mine = objective_as(folder, theirs) if objective_as else identity["objective"]
        others = [] if other_objective else _differences(theirs, mine)
        faults += [f"{IDENTITY_KEY}={folder}: {difference}" for difference in others]
        allow = allow or bool(others)
        finished = [trial for trial in trials if _finished(trial, goals)]
        inside = {id(trial): found for trial in finished if (found := _inside(space, trial)) is not None}
        for trial in finished:
            if id(trial) in inside:
                row = _settled(path.name, trial, inside[id(trial)], goals)
                key = row.info["campaign"], row.info["trial"], row.value, *row.parameters.values()
                rows.setdefault(key, row)
        sources.append(Source(path.name, len(finished), _digest(finished), len(finished) - len(inside)))
    if faults:
        raise ConfigError(faults, "To use them all the same:  warm_start_other_objective=true" if allow else hint)
    return WarmStart(tuple(sources), tuple(rows.values()))


def _read_file(
    path: Path,
    space: Space,
    metric: str,
    goals: Goals | None,
    columns: Mapping[str, str] | None,
    skip_bad: bool,
) -> tuple[Source, dict[tuple[Any, ...], Settled]]:
    """Return the finished evaluations in a file, each once."""
    reading = read_evaluations(path, space, metric=metric, goals=goals, columns=columns, skip_bad=skip_bad)
    finished = [
        evaluation
        for evaluation in reading.evaluations
        if evaluation.state is State.COMPLETED and evaluation.origin in (Origin.EVALUATED, Origin.IMPORTED)
    ]
    rows = dict[tuple[Any, ...], Settled]()
    for e in finished:
        value, sem = e.value, e.value_sem
        if goals is not None:
            value, sem = e.metrics[goals.names[0]], e.sems.get(goals.names[0])
        info = {"campaign": path.name, "trial": e.number}
        row = Settled(e.parameters, Origin.IMPORTED, value, info, sem, e.metrics, e.sems)
        rows.setdefault((path.name, e.number, value, *e.parameters.values()), row)
    return Source(path.name, len(finished), _digest(finished), notes=tuple(reading.notes)), rows


def _differences(earlier: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Return how the objectives differ; the direction is compared elsewhere."""
    found = differences(earlier, mine)
    found = [difference for difference in found if difference[0] != "direction"]
    shown = [f"objective {name}: {theirs} there, {ours} here" for name, theirs, ours in found[:SHOWN_DIFFERENCES]]
    more = len(found) - len(shown)
    return [*shown, f"objective: {counted(more, 'more field')} differ{'s' * (more == 1)}"] if more else shown


def _finished(trial: TrialRecord, goals: Goals | None) -> bool:
    """Return whether a trial was evaluated and has a value, with several objectives all that they need."""
    evaluated = trial.origin in (Origin.EVALUATED, Origin.IMPORTED)
    needed = goals.names if goals is not None else ()
    measured = trial.value is not None and all(name in trial.metrics for name in needed)
    return evaluated and trial.state is State.COMPLETED and measured


def _inside(space: Space, trial: TrialRecord) -> Configuration | None:
    """Return the trial's configuration in the order of the space; None if the space does not contain it."""
    try:
        space.check(trial.parameters)
    except ConfigError:
        return None
    return {name: trial.parameters[name] for name in space.names if name in trial.parameters}


def _settled(campaign: str, trial: TrialRecord, configuration: Configuration, goals: Goals | None) -> Settled:
    """Return the row of an evaluation; one that was imported before keeps the name of its first campaign.

    With several objectives its value is that of the first one, whatever the earlier campaign optimised.
    """
    info = trial.info if trial.origin is Origin.IMPORTED else {"campaign": campaign, "trial": trial.number}
    value, sem = trial.value, trial.value_sem
    if goals is not None:
        value, sem = trial.metrics[goals.names[0]], trial.sems.get(goals.names[0])
    return Settled(configuration, Origin.IMPORTED, value, info, sem, trial.metrics, trial.sems)


def _digest(trials: Sequence[TrialRecord | Evaluation]) -> str:
    content = [[t.parameters, t.value, t.value_sem, dict(t.metrics)] for t in trials]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGEST_LENGTH]
