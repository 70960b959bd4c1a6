"""Write a campaign into an Optuna storage, where ``optuna-dashboard`` and Optuna's own analyses open it."""

from __future__ import annotations

import datetime
import json
import math
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.exchange.facts import RUNG_VALUE, TRAIN_LOSS, Outline, TrialFacts, trial_facts
from hpo_cluster.record.exchange.libraries import need
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.space import Categorical, Float, Integer, Parameter, Space
from hpo_cluster.text import first_line, instead_of
from hpo_cluster.trial import BASELINE, Origin, State

#: Attributes of a study that say which campaign it holds.
CAMPAIGN_KEY, IDENTITY_KEY = "hpo_cluster.campaign", "hpo_cluster.identity"
#: Attribute of a trial that differs if anything of the trial does.
DIGEST_KEY = "hpo_cluster.digest"
#: Ends of the names of files with Optuna's journal; any other file is an SQLite database.
JOURNAL_ENDS = (".log", ".journal", ".jsonl")


@contextmanager
def opened_storage(place: str) -> Iterator[Any]:
    """Yield the Optuna storage at a URL (``sqlite:///study.db``) or in a file, whose name says which kind it is."""
    need("optuna")
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        storage = _storage(place)
        try:
            yield storage
        finally:
            if isinstance(storage, optuna.storages.RDBStorage):
                storage.remove_session()
                storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _storage(place: str) -> Any:
    """Return the Optuna storage at a place. Raise ConfigError if there is something else, or nothing can be written."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    try:
        if Path(place).suffix in JOURNAL_ENDS:
            return optuna.storages.JournalStorage(JournalFileBackend(place))
        return optuna.storages.RDBStorage(place if "://" in place else f"sqlite:///{Path(place).absolute()}")
    except OSError:
        raise
    except Exception as error:  # of Optuna, SQLAlchemy or the driver of a database: any
        why = first_line(str(getattr(error, "orig", None) or error))
        raise ConfigError([f"{place}: cannot be opened as an Optuna storage: {why}"]) from error


def _holds_studies(file: Path) -> bool:
    """Return whether a file was written by Optuna: to open another database with Optuna would change it."""
    if file.suffix in JOURNAL_ENDS:
        return True
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchall())
    except sqlite3.DatabaseError:
        return True  # Optuna says what is wrong with it


def write_study(outline: Outline, record: Record, place: str, study_name: str) -> int:
    """Write or update the study of a campaign; return its number of trials.

    Finished trials of a study cannot be changed. If one of them is no longer what it was (it was tried again, or
    promoted to a higher rung), the study is written again as a whole.

    Raises:
        ConfigError: if Optuna is not installed, or the storage holds another study of that name.
    """
    if "://" not in place:
        Path(place).absolute().parent.mkdir(parents=True, exist_ok=True)
    with opened_storage(place) as storage:
        import optuna

        directions = [g.direction or "maximize" for g in outline.goals.metrics] if outline.goals else None
        directions = directions or [outline.identity["direction"]]
        names = [study.study_name for study in storage.get_all_studies()]
        create = {"study_name": study_name, "storage": storage, "directions": directions}
        if study_name in names:
            study = optuna.load_study(study_name=study_name, storage=storage)
            if study.user_attrs.get(CAMPAIGN_KEY) != outline.key:
                fault = f"name={study_name}: {place} holds another study of that name"
                raise ConfigError([f"{fault}; give name=NEW_NAME or another path="])
        else:
            study = optuna.create_study(**create)
        trials = list(_trials(outline, record))
        there = study.get_trials(deepcopy=False)
        done = [trial.state.is_finished() for trial in there]
        same = [
            old.user_attrs.get(DIGEST_KEY) == new.user_attrs[DIGEST_KEY]
            for old, new in zip(there, trials, strict=False)
        ]
        if len(there) > len(trials) or any(ended and not equal for ended, equal in zip(done, same, strict=True)):
            optuna.delete_study(study_name=study_name, storage=storage)
            study, there, same = optuna.create_study(**create), [], []
        _describe(study, outline, record)
        for old, new, equal in zip(there, trials, same, strict=False):
            if not equal:
                _update(storage, old, new)
        study.add_trials(trials[len(there) :])
        return len(trials)


def _describe(study: Any, outline: Outline, record: Record) -> None:
    """Set the attributes of a study that differ."""
    starts = record.starts[-1:] or [{}]
    wanted: dict[str, Any] = {
        CAMPAIGN_KEY: outline.key,
        IDENTITY_KEY: json.dumps(outline.identity, default=str),
        "campaign": outline.name,
        "optimizer": outline.identity["optimizer"].get("name"),
        "objective": outline.identity["objective"].get("kind"),
        "seed": outline.identity.get("seed"),
        "budget": (starts[0].get("operation") or {}).get("budget"),
    }
    if BASELINE in record.trials:
        wanted["baseline"] = record.trials[BASELINE].metrics
    if record.ladder is not None:
        wanted["rungs"] = list(record.ladder.labels)
    for name, value in wanted.items():
        if study.user_attrs.get(name) != value:
            study.set_user_attr(name, value)
    names = [goal.name for goal in outline.goals.metrics] if outline.goals else [outline.metric]
    if study.metric_names != names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna says that the method is experimental
            study.set_metric_names(names)


def _trials(outline: Outline, record: Record) -> Iterator[Any]:
    """Yield the trials of the study. Their numbers are their places, so one that is missing leaves a failed one."""
    space = Space.from_json(outline.identity["space"])
    distributions = {name: distribution_of(parameter) for name, parameter in space.parameters.items()}
    for number in range(record.next_trial):
        if (trial := record.trials.get(number)) is None:
            facts = TrialFacts(number, State.FAILED, Origin.EVALUATED, {})
        else:
            facts = trial_facts(outline, record, trial)
        yield _frozen(facts, outline, distributions)


def _frozen(facts: TrialFacts, outline: Outline, distributions: Mapping[str, Any]) -> Any:
    """Return a trial as Optuna keeps it."""
    from optuna.trial import FrozenTrial, TrialState

    values = _values(facts, outline)
    states = {
        State.PROPOSED: TrialState.WAITING,
        State.SUBMITTED: TrialState.WAITING,
        State.RUNNING: TrialState.RUNNING,
        State.PAUSED: TrialState.PRUNED,
        State.COMPLETED: TrialState.COMPLETE,
    }
    state = states.get(facts.state, TrialState.FAIL)
    if state == TrialState.COMPLETE and values is None:
        state = TrialState.PRUNED
    series = {} if outline.goals is not None else facts.series
    steps = dict(series.get(RUNG_VALUE) or series.get(TRAIN_LOSS) or ())
    if state == TrialState.PRUNED and steps and facts.state is State.PAUSED:
        values = [steps[max(steps)]]
    trial = FrozenTrial(
        number=-1,
        trial_id=-1,
        state=state,
        value=None,
        values=None if state == TrialState.FAIL else values,
        datetime_start=None if state == TrialState.WAITING else _local(facts.begin),
        datetime_complete=_local(facts.ended_at or facts.begin) if state.is_finished() else None,
        params=dict(facts.parameters),
        distributions={name: distributions[name] for name in facts.parameters},
        user_attrs={
            **{METRIC_PREFIX + name: value for name, value in facts.metrics.items()},
            "trial": facts.label,
            "state": str(facts.state),
            "origin": facts.origin,
            **({} if facts.value is None else {"value": facts.value}),
            **({} if facts.value_sem is None else {"value_sem": facts.value_sem}),
            **facts.notes,
            DIGEST_KEY: facts.digest,
        },
        system_attrs={},
        intermediate_values=steps,
    )
    if outline.goals is not None and facts.metrics:
        for bound, slack in zip(outline.goals.constraints, outline.goals.slacks(facts.metrics), strict=True):
            if not math.isnan(slack):
                trial.set_constraint(bound.name, -slack)
    return trial


def _values(facts: TrialFacts, outline: Outline) -> list[float] | None:
    """Return the values of a trial that was measured; None of one that an optimizer estimated."""
    if facts.state is not State.COMPLETED or facts.origin in (Origin.APPROXIMATED, Origin.IMPUTED):
        return None
    if outline.goals is None:
        return None if facts.value is None else [facts.value]
    names = [goal.name for goal in outline.goals.metrics]
    return [facts.metrics[name] for name in names] if all(name in facts.metrics for name in names) else None


def _local(moment: datetime.datetime | None) -> datetime.datetime:
    """Return a time as Optuna keeps it: local, without a time zone."""
    return (moment or datetime.datetime.fromtimestamp(0, datetime.UTC)).astimezone().replace(tzinfo=None)


def _update(storage: Any, old: Any, new: Any) -> None:
    """Change a trial that was not finished into what it is now."""
    from optuna.trial import TrialState

    trial_id = old._trial_id
    for name, value in new.user_attrs.items():
        if old.user_attrs.get(name) != value and name != DIGEST_KEY:
            storage.set_trial_user_attr(trial_id, name, value)
    for name, value in new.system_attrs.items():
        storage.set_trial_system_attr(trial_id, name, value)
    for step, value in new.intermediate_values.items():
        if old.intermediate_values.get(step) != value:
            storage.set_trial_intermediate_value(trial_id, step, value)
    storage.set_trial_user_attr(trial_id, DIGEST_KEY, new.user_attrs[DIGEST_KEY])
    if old.state == TrialState.WAITING and new.state != TrialState.WAITING:
        storage.set_trial_state_values(trial_id, state=TrialState.RUNNING)
    if new.state.is_finished():
        storage.set_trial_state_values(trial_id, state=new.state, values=new.values)


def distribution_of(parameter: Parameter) -> Any:
    """Return a parameter as a distribution of Optuna, with its scale."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Categorical):
        return CategoricalDistribution(list(parameter.choices))
    if isinstance(parameter, Integer):
        return IntDistribution(
            parameter.low, parameter.high, log=parameter.log, step=1 if parameter.log else parameter.step or 1
        )
    assert isinstance(parameter, Float)
    return FloatDistribution(
        parameter.low, parameter.high, log=parameter.log, step=None if parameter.log else parameter.step
    )


@contextmanager
def _study(file: Path, name: str | None) -> Iterator[Any]:
    """Yield a study of a storage in a file: the one of that name, or the only one."""
    import optuna

    if not _holds_studies(file):
        raise ConfigError([f"{file}: has no study"])
    with opened_storage(str(file)) as storage:
        names = [study.study_name for study in storage.get_all_studies()]
        if name not in names and (name is not None or len(names) != 1):
            what = f"has no study {name}" if name else "has not one study but several" if names else "has no study"
            there = [f"{file}#{other}" for other in names]
            hint = f"; {instead_of(f'{file}#{name}', there, 'there are')}" if names else ""
            raise ConfigError([f"{file}: {what}{hint}"])
        yield optuna.load_study(study_name=name or names[0], storage=storage)


def rows_of_study(file: Path, name: str | None) -> list[tuple[int, dict[str, Any]]]:
    """Return the trials of a study as rows of a history, each with its number."""
    need("optuna")
    rows = []
    with _study(file, name) as study:
        ours, metrics = CAMPAIGN_KEY in study.user_attrs, study.metric_names or []
        for trial in study.get_trials(deepcopy=False):
            row: dict[str, Any] = {f"params.{key}": value for key, value in trial.params.items()}
            row |= {"trial": trial.number, "state": trial.state.name, "started_at": _utc(trial.datetime_start)}
            row["ended_at"] = _utc(trial.datetime_complete)
            values = trial.values if trial.state.name == "COMPLETE" else None
            row |= {"value": values[0]} if values else {}
            row |= {f"{METRIC_PREFIX}{key}": value for key, value in zip(metrics, values or (), strict=False)}
            attributes = {key: value for key, value in trial.user_attrs.items() if key not in (DIGEST_KEY, "trial")}
            if ours:
                row = {key: cell for key, cell in row.items() if not key.endswith("_at")}
                row |= {_column(key): value for key, value in attributes.items()}
            else:
                row |= {f"{METRIC_PREFIX}{k}": v for k, v in attributes.items() if isinstance(v, (int, float))}
            rows.append((trial.number, row))
    return rows


def _column(attribute: str) -> str:
    """Return the column of a history that an attribute of an exported trial is."""
    name = attribute.removeprefix(METRIC_PREFIX)
    if attribute == f"{METRIC_PREFIX}value_sem":
        return "value_sem"
    return f"value_sem_{name.removesuffix('.sem')}" if attribute != name and name.endswith(".sem") else attribute


def _utc(moment: datetime.datetime | None) -> str | None:
    """Return a local time of Optuna as text in UTC."""
    return None if moment is None else moment.astimezone(datetime.UTC).isoformat()


def identity_of_study(file: Path, name: str | None) -> dict[str, Any]:
    """Return the identity of a campaign for a study: the recorded one of an exported campaign, else what it says."""
    need("optuna")
    with _study(file, name) as study:
        if recorded := study.user_attrs.get(IDENTITY_KEY):
            identity: dict[str, Any] = json.loads(recorded)
            return identity
        space: dict[str, Any] = {}
        for trial in study.get_trials(deepcopy=False):
            space |= {key: _entry(distribution) for key, distribution in trial.distributions.items()}
        directions = [direction.name.lower() for direction in study.directions]
        names = study.metric_names or (
            ["value"] if len(directions) == 1 else [f"value{k}" for k in range(len(directions))]
        )
        objective: dict[str, Any] = {"kind": "elsewhere", "direction": directions[0], "metric": names[0]}
        if len(directions) > 1:
            pairs = zip(names, directions, strict=True)
            objective["metrics"] = [{"name": key, "direction": direction} for key, direction in pairs]
        return {
            "space": space,
            "objective": objective,
            "optimizer": {"name": "random"},
            "direction": directions[0],
            "seed": 0,
        }


def _entry(distribution: Any) -> dict[str, Any]:
    """Return a distribution of Optuna as an entry of a space."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return {"type": "categorical", "choices": list(distribution.choices)}
    kind = "int" if isinstance(distribution, IntDistribution) else "float"
    entry = {"type": kind, "low": distribution.low, "high": distribution.high, "log": distribution.log}
    return entry if distribution.step is None or distribution.log else {**entry, "step": distribution.step}
