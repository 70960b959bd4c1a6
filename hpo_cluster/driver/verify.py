"""The verification of a campaign: does everything that it recorded still follow from what it recorded before?

Derived again or compared, without changing anything:

| what | with what |
|---|---|
| each proposal, each value that an optimizer settled | what the optimizer answers to the journal's events before it |
| each trial's seed | the campaign's seed and the number of the trial |
| each trial's parameters | ``params.json`` of its attempts, which its jobs read |
| each completed trial's value, error and metrics | what the objective makes of its ``result.json`` |
| the metrics of its tasks | the scores of their items in ``items.json``, if it has that |
| each copy of the code | the hash that is its name |
| the versions of the libraries, then | those installed now |

Files that are gone are counted and are not a fault: a campaign may be handed on without them. Other versions are not a
fault either, but the likely reason for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hpo_cluster.driver.check_proposals import Difference, derive
from hpo_cluster.driver.code_snapshot import current_code, hash_of_copy
from hpo_cluster.errors import ConfigError, JournalError
from hpo_cluster.goals import Goals
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.optimizers.libraries import libraries_of
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.attempt_files import result_faults
from hpo_cluster.record.campaign_state import Record, refuse_if_emptied
from hpo_cluster.record.confirmation import REPLICATE, confirmation_seed
from hpo_cluster.record.files import is_there, read_json
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.items import ROUNDING, read_items
from hpo_cluster.record.journal import Event, read_journal
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.record.versions import package_versions
from hpo_cluster.space import Space
from hpo_cluster.text import Progress, untold
from hpo_cluster.trial import BASELINE, Origin, State, derive_seed

#: Number of an optimizer's libraries, the first ones, whose absence from the record says that they were not used.
RECORDED_LONG = 2

#: The kinds of what is verified, in order.
PROPOSALS, SEEDS, PARAMETERS, RESULTS, CODE = "proposals", "seeds", "parameters", "results", "code"


@dataclass(frozen=True)
class Fault:
    """Something that is not as recorded.

    Args:
        kind: which check found it.
        message: what is wrong, as the end of a sentence that begins with the trial.
        trial: number of the trial; None if it is about the campaign.
        recorded: what the journal says.
        derived: what follows now, or what a file says.
        seq: number of the journal's event, for proposals.
    """

    kind: str
    message: str
    trial: int | None = None
    recorded: Any = None
    derived: Any = None
    seq: int | None = None


@dataclass
class Count:
    """How far one kind of check has come.

    Args:
        checked: number of trials or folders that were compared.
        total: number of those to compare.
        missing: number of those whose files are gone; of proposals: that differ after a loss that was repaired.
        rounded: number of those that differ in the last digits alone.
    """

    checked: int = 0
    total: int = 0
    missing: int = 0
    rounded: int = 0


@dataclass
class Verification:
    """What has been verified so far; `run` goes on to the end.

    Args:
        campaign_dir: folder of the campaign.

    Raises:
        JournalError: if there is no campaign, or its journal cannot be read.
    """

    campaign_dir: Path
    counts: dict[str, Count] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    finished: bool = False

    def __post_init__(self) -> None:
        self.layout = CampaignLayout(self.campaign_dir)
        self.identity = identity_of_campaign(self.layout.identity)
        self.events: Sequence[Event] = read_journal(self.layout.events).events
        self.record = Record.of(self.events, self.layout.events)
        self._repairs = [event for event in self.events if event["event"] == "repaired"]
        self.counts = {kind: Count() for kind in (CODE, SEEDS, PARAMETERS, RESULTS, PROPOSALS)}
        self.counts[PROPOSALS].total = sum(trial.origin in _DERIVABLE for trial in self._own_rows)

    @cached_property
    def _own_rows(self) -> list[TrialRecord]:
        """The trials that this campaign proposed, and those that it imported as evaluations of another one."""
        elsewhere = {trial.number for trial in self.record.made_elsewhere if trial.origin is not Origin.IMPORTED}
        return [trial for trial in self.record.rows if trial.number not in elsewhere]

    @property
    def optimizer(self) -> str:
        """Name of the campaign's optimizer."""
        return str(self.identity["optimizer"].get("name"))

    def run(self, progress: Progress = untold) -> None:
        """Verify everything, the proposals last, since they may take long."""
        try:
            if not self.events:
                refuse_if_emptied(self.layout)
        except JournalError as error:
            self._fault(RESULTS, str(error))
        self._check_code()
        self._check_seeds()
        self._check_files(progress)
        self._check_proposals(progress)
        self.finished = True

    def _fault(self, kind: str, message: str, trial: int | None = None, **fields: Any) -> None:
        self.faults.append(Fault(kind, message, trial, **fields))

    def _check_code(self) -> None:
        count, used = self.counts[CODE], [start["code"] for start in self.record.starts]
        used += [attempt.code for trial in self.record.rows for attempt in trial.attempts]
        for name in dict.fromkeys(str(code) for code in used if code):
            count.total += 1
            folder = self.layout.code_dir / name
            if not folder.is_dir():
                count.missing += 1
                continue
            count.checked += 1
            if (found := hash_of_copy(folder)) != name:
                self._fault(CODE, f"{folder}: a file was changed, added or removed", recorded=name, derived=found)

    def _check_seeds(self) -> None:
        count, seed = self.counts[SEEDS], int(self.identity["seed"])
        for trial in self._own_rows:
            count.total += 1
            count.checked += 1
            if trial.seed != (derived := _seed_of(trial, seed)):
                self._fault(SEEDS, "has another seed", trial.number, recorded=trial.seed, derived=derived)

    def _check_files(self, progress: Progress) -> None:
        """Compare the files of the attempts with the journal."""
        objective = None
        try:
            objective = parse_objective(self.identity["objective"])
        except ConfigError as error:
            self._fault(RESULTS, f"the objective cannot be read by this version: {'; '.join(error.faults)}")
        ended = [event for event in self.events if event["event"] == "ended"]
        completed = {
            event["trial"]: event
            for event in ended
            if event["state"] == State.COMPLETED and event.get("attempt") is not None
        }
        self.counts[RESULTS].total = len(completed)
        trials = [trial for trial in self._own_rows if trial.attempts]
        self.counts[PARAMETERS].total = len(trials)
        for done, trial in enumerate(trials):
            progress("files", done, len(trials))
            folders = [self.layout.attempt(trial.number, attempt.number) for attempt in trial.attempts]
            self._check_parameters(trial.number, trial.parameters, folders)
            if trial.number in completed and objective is not None:
                event = completed[trial.number]
                attempt = trial.attempts[event["attempt"]]
                self._check_result(event, folders[attempt.number], attempt.token, objective)

    def _check_parameters(self, trial: int, parameters: Mapping[str, Any], folders: Sequence[AttemptLayout]) -> None:
        read = [params for files in folders if (params := read_json(files.params)) is not None]
        if not read:
            self.counts[PARAMETERS].missing += 1
            return
        self.counts[PARAMETERS].checked += 1
        for params in read:
            if (given := params.get("parameters")) != parameters:
                message = "was given other parameters (params.json)"
                self._fault(PARAMETERS, message, trial, recorded=parameters, derived=given)
                return

    def _check_result(self, event: Event, files: AttemptLayout, token: str, objective: Objective) -> None:
        """Compare what the journal says of a completed trial with what its result's file says."""
        number = event["trial"]
        if not is_there(files.result):
            self.counts[RESULTS].missing += 1
            return
        self.counts[RESULTS].checked += 1
        result = read_json(files.result)
        if faults := result_faults(result):
            self._fault(RESULTS, f"{files.result}: {'; '.join(faults)}", number)
            return
        assert result is not None
        if result.get("token") != token:
            self._fault(RESULTS, f"{files.result}: was written by another attempt", number)
            return
        try:
            outcome = objective.outcome(result)
        except KeyError as error:
            self._fault(RESULTS, f"{files.result}: has no metric {', '.join(map(str, error.args))}", number)
            return
        measured = {"value": outcome.value, "value_sem": outcome.known_sem}
        now = _flat({**measured, "metrics": outcome.metrics, "sems": outcome.sems})
        then = _flat(event)
        names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if names:
            recorded, derived = ({name: side.get(name) for name in names} for side in (then, now))
            self._fault(RESULTS, "has another result in its file", number, recorded=recorded, derived=derived)
        self._check_items(number, files, token, outcome.metrics)

    def _check_items(self, trial: int, files: AttemptLayout, token: str, metrics: Mapping[str, float]) -> None:
        """Compare the scores of single items with the metrics of their tasks; few trials have them."""
        if not is_there(files.items):
            return
        if (items := read_items(files, token)) is None:
            self._fault(RESULTS, f"{files.items}: cannot be read, or was written by another attempt", trial)
            return
        means = {name: mean for name, mean in items.means.items() if name in metrics}
        names = [name for name, mean in means.items() if not math.isclose(mean, metrics[name], rel_tol=ROUNDING)]
        if names:
            recorded, derived = ({name: side[name] for name in names} for side in (metrics, means))
            self._fault(RESULTS, "has other means over its items", trial, recorded=recorded, derived=derived)

    def _check_proposals(self, progress: Progress) -> None:
        count, settings = self.counts[PROPOSALS], dict(self.identity["optimizer"])
        if not count.total:
            return
        try:
            name, space = str(settings.pop("name", None)), Space.from_json(self.identity["space"])
            optimizer = make_optimizer(name, space, int(self.identity["seed"]), **settings)
        except ConfigError as error:
            why = "; ".join(filter(None, [*error.faults, error.hint]))
            self._fault(PROPOSALS, f"the optimizer cannot be made by this version: {why}")
            return
        maximize, goals = self.identity["direction"] == "maximize", Goals.of(self.identity["objective"])
        progress(PROPOSALS, 0, count.total)
        for answer in derive(self.events, optimizer, maximize=maximize, goals=goals):
            count.checked += len(answer.trials)
            for difference in answer.differences:
                if difference.is_rounding:
                    count.rounded += 1
                elif self._is_after_loss(answer.seq):
                    count.missing += 1
                else:
                    self._differs(difference, answer.seq)
            progress(PROPOSALS, count.checked, count.total)

    def _is_after_loss(self, seq: int) -> bool:
        """Return whether a repair has lost what came before an event, or when: the optimizer saw another history."""
        return any(repaired.get("sound", 0) <= seq < repaired["seq"] for repaired in self._repairs)

    def _differs(self, difference: Difference, seq: int) -> None:
        number, recorded, derived = difference
        if not derived:
            message = "was proposed, and nothing is proposed now"
        else:
            message = "was proposed with other values" if "origin" not in recorded else "was settled otherwise"
        self._fault(PROPOSALS, message, number, recorded=recorded, derived=derived, seq=seq)

    def versions(self) -> dict[str, dict[str, Any]]:
        """Return the packages that had another version in some start of a driver, with these versions and today's."""
        now = self._installed
        had: dict[str, set[str]] = {}
        for start in self.record.starts:
            for name, version in (start.get("versions") or {}).items():
                had.setdefault(name, set()).add(str(version))
        return {
            name: {"recorded": sorted(versions), "installed": now.get(name)}
            for name, versions in sorted(had.items())
            if versions != {now.get(name)}
        }

    @cached_property
    def _installed(self) -> dict[str, str]:
        return package_versions()

    @cached_property
    def _code(self) -> str:
        return current_code()

    def reasons(self, fault: Fault) -> list[str]:
        """Return what may explain a difference: what was not the same when the proposal was made."""
        starts = [start for start in self.record.starts if fault.seq is None or start["seq"] < fault.seq]
        start = starts[-1] if starts else {}
        now, then = self._installed, start.get("versions") or {}
        names = [*libraries_of(self.optimizer)[:RECORDED_LONG], *then]
        others = [
            f"{name} {then.get(name, 'not recorded')} (now {now.get(name, 'not installed')})"
            for name in dict.fromkeys(names)
            if then and then.get(name) != now.get(name)
        ]
        if (code := start.get("code")) and code != self._code:
            others.append(f"hpo_cluster with code {code} (now {self._code})")
        return others

    def document(self) -> dict[str, Any]:
        """Return the outcome as plain data (JSON)."""
        return {
            "campaign": self.layout.dir.resolve().name,
            "dir": str(self.layout.dir),
            "ok": self.finished and not self.faults,
            "finished": self.finished,
            "optimizer": self.optimizer,
            "imported": len(self.record.made_elsewhere),
            "checks": {kind: vars(count) for kind, count in self.counts.items()},
            "differences": [
                {**vars(fault), "reasons": self.reasons(fault) if fault.kind == PROPOSALS else []}
                for fault in self.faults
            ],
            "other_versions": self.versions(),
        }


def _seed_of(trial: TrialRecord, seed: int) -> int:
    """Return the seed that a trial of a campaign with this seed has."""
    if trial.origin is Origin.CONFIRMATION:
        return confirmation_seed(seed, trial.info.get(REPLICATE))
    return derive_seed(seed, "baseline") if trial.number == BASELINE else derive_seed(seed, "trial", trial.number)


def _flat(ended: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a completed trial under the names of the history's columns."""
    metrics = {f"{METRIC_PREFIX}{name}": value for name, value in (ended.get("metrics") or {}).items()}
    sems = {f"value_sem_{name}": value for name, value in (ended.get("sems") or {}).items()}
    return {"value": ended.get("value"), "value_sem": ended.get("value_sem"), **metrics, **sems}


#: Origins of the trials whose proposal or value an optimizer has made.
_DERIVABLE = (Origin.EVALUATED, Origin.INHERITED, Origin.APPROXIMATED, Origin.IMPUTED)
