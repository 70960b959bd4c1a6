"""Read evaluations that were made elsewhere, check them against a space, and name every fault at once."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals
from hpo_cluster.record.exchange.optuna_study import JOURNAL_ENDS, rows_of_study
from hpo_cluster.record.exchange.study_of_2025 import is_of_2025, row_of_2025
from hpo_cluster.record.history import HISTORY_COLUMNS, METRIC_PREFIX, RUNG_COLUMNS, TAIL_COLUMNS, several_columns
from hpo_cluster.space import Categorical, Configuration, Integer, Parameter, Space
from hpo_cluster.text import counted, did_you_mean, instead_of, some_of
from hpo_cluster.trial import Origin, State

TABLES = (".csv", ".tsv", ".parquet")
LINES = (".jsonl", ".ndjson")
DATABASES = (".db", ".sqlite", ".sqlite3")
#: Ends of the names of files that can be read, for messages.
ACCEPTED = "a table (.csv, .tsv, .parquet), JSON lines (.jsonl) or an Optuna storage (.db, .log)"
#: Keys of JSON lines under which parameters stand, and what other tools write before the names of parameters.
NESTED = ("parameters", "params", "config", "hyperparameters")
PREFIXES = ("params_", "params.", "param.", "config.")
#: What other tools call the states.
STATES = {
    "complete": State.COMPLETED,
    "finished": State.COMPLETED,
    "ok": State.COMPLETED,
    "fail": State.FAILED,
    "killed": State.CANCELLED,
    "pruned": State.PAUSED,
    "waiting": State.PROPOSED,
    "scheduled": State.PROPOSED,
}
#: Largest number of faults that a message lists.
SHOWN = 20


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that was made elsewhere, inside the space.

    Args:
        number: its number there; its place in the file if it has none.
        parameters: what was evaluated.
        state: how it ended.
        origin: source of its value.
        value: what was measured; None if nothing was.
        value_sem: its standard error.
        metrics: all metrics by name.
        sems: their standard errors, with several objectives.
        seed: of the trial; None if it is not known.
        error: kind and message.
        times: ``submitted_at``, ``started_at`` and ``ended_at``, as far as they are known.
        jobs: number of its attempts, job and node, as far as they are known.
    """

    number: int
    parameters: Configuration
    state: State = State.COMPLETED
    origin: Origin = Origin.EVALUATED
    value: float | None = None
    value_sem: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sems: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    error: Mapping[str, str] | None = None
    times: Mapping[str, str] = field(default_factory=dict)
    jobs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Reading:
    """What was read of a file: evaluations, and the rows that are none.

    Args:
        evaluations: in the order of their numbers.
        unfinished: number of rows that had not ended.
        confirmations: number of rows that confirm another one: no part of a campaign's search.
        bad: faults of the rows that were left out.
        unused: columns that are neither parameters nor numbers.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    unfinished: int = 0
    confirmations: int = 0
    bad: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Sentences on what was left out."""
        notes = [f"{counted(self.unfinished, 'row')} left out that had not ended"] if self.unfinished else []
        notes += [f"{counted(self.confirmations, 'confirmation')} left out"] if self.confirmations else []
        notes += [f"{counted(len(self.bad), 'bad row')} left out; the first: {self.bad[0]}"] if self.bad else []
        return notes + ([f"columns that are not used: {', '.join(self.unused)}"] if self.unused else [])


def is_readable(path: Path) -> bool:
    """Return whether the name of a file says that it can hold evaluations."""
    return file_and_study(path)[0].suffix.lower() in (*TABLES, *LINES, *DATABASES, *JOURNAL_ENDS)


def file_and_study(path: Path) -> tuple[Path, str | None]:
    """Return the file and the study's name of a path such as ``study.db#name``."""
    file, sign, study = str(path).rpartition("#")
    return (Path(file), study) if sign and not path.exists() else (path, None)


def read_evaluations(
    path: Path,
    space: Space,
    *,
    metric: str,
    goals: Goals | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> Reading:
    """Return the evaluations in a file.

    Args:
        path: of the file; ``study.db#name`` for one of several studies.
        space: that must contain them.
        metric: name of the metric that is optimised.
        goals: the objectives and constraints, if there are several.
        columns: by column of the file, the parameter or other column that it is.
        skip_bad: whether rows with faults are left out; if not, they are an error.

    Raises:
        ConfigError: naming all faults: of columns, and of rows unless they are left out.
    """
    rows = _rows(path)
    reader = _Reader(space, metric, goals, dict(columns or {}))
    faults = [f"{path}: {fault}" for fault in reader.column_faults([row for _, row in rows])]
    reading, seen = Reading(), dict[int, str]()
    for place, (where, raw) in enumerate(rows):
        row = {reader.names.get(key, key): cell for key, cell in raw.items()}
        if row.get("origin") == Origin.CONFIRMATION:
            reading.confirmations += 1
            continue
        found = reader.evaluation(row, place)
        if isinstance(found, Evaluation) and found.number in seen:
            found = [f"trial {found.number} is there twice, first in {seen[found.number]}"]
        if isinstance(found, Evaluation):
            seen[found.number] = where
            reading.evaluations.append(found)
        elif found is None:
            reading.unfinished += 1
        else:
            reading.bad += (
                [f"{where}: {fault}" for fault in found] if not skip_bad else [f"{where}: {'; '.join(found)}"]
            )
    reading.unused = reader.unused
    if reading.bad and not skip_bad:
        more = [counted(len(reading.bad) - SHOWN, "more fault")] if len(reading.bad) > SHOWN else []
        rows_out = "" if faults else "To leave these rows out:  warm_start_skip_bad=true"
        raise ConfigError([*faults, *(f"{path}, {fault}" for fault in reading.bad[:SHOWN]), *more], rows_out)
    if faults:
        raise ConfigError(faults)
    reading.evaluations.sort(key=lambda evaluation: evaluation.number)
    return reading


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a file, each with its place in words."""
    file, study = file_and_study(path)
    if not file.is_file():
        raise ConfigError([f"{path}: there is no such file"])
    suffix = file.suffix.lower()
    if suffix in LINES:
        return list(_json_lines(file))
    if suffix in TABLES:
        import pandas as pd

        try:
            if suffix == ".parquet":
                frame = pd.read_parquet(file).astype(object)
            else:
                sep = "\t" if suffix == ".tsv" else ","
                frame = pd.read_csv(file, sep=sep, dtype=str, keep_default_na=False, skipinitialspace=True)
        except (ValueError, OSError) as error:
            raise ConfigError([f"{file}: cannot be read as {suffix[1:]}: {error}"]) from error
        names = [str(name).strip() for name in frame.columns]
        return [
            (f"row {number}", dict(zip(names, row, strict=True)))
            for number, row in enumerate(frame.itertuples(index=False, name=None), 1)
        ]
    return [(f"trial {number}", row) for number, row in rows_of_study(file, study)]


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    faults = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            data, problem = None, f"is not JSON ({error})"
        else:
            problem = "is not a JSON object"
        if isinstance(data, dict):
            yield f"line {number}", row_of_2025(data) if is_of_2025(data) else _flat(data)
        else:
            faults.append(f"{path}, line {number}: {problem}")
    if faults:
        raise ConfigError(faults)


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON line with its nested parameters and metrics as columns."""
    row: dict[str, Any] = {}
    for key, cell in data.items():
        if key in NESTED and isinstance(cell, Mapping):
            row |= {f"params.{name}": value for name, value in cell.items()}
        elif key in ("metrics", "sems") and isinstance(cell, Mapping):
            prefix = METRIC_PREFIX if key == "metrics" else "value_sem_"
            row |= {f"{prefix}{name}": value for name, value in cell.items()}
        else:
            row[key] = cell
    return row


class _Reader:
    """The meaning of the columns of one file."""

    def __init__(self, space: Space, metric: str, goals: Goals | None, columns: dict[str, str]) -> None:
        self.space, self.metric, self.goals = space, metric, goals
        self.needed = goals.names if goals is not None else ()
        metrics = {metric, *self.needed} - {"value", *space.names}
        self.columns = {name: METRIC_PREFIX * (target in metrics) + target for name, target in columns.items()}
        self.own = {*HISTORY_COLUMNS, *TAIL_COLUMNS, *RUNG_COLUMNS, *several_columns(goals), "error_message"}
        self.names: dict[str, str] = {}
        self.unused: list[str] = []
        self.absent: set[str] = set()  # what has no column, which is not a fault of every row

    def column_faults(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Find out what each column is; return the faults."""
        there = list(dict.fromkeys(name for row in rows for name in row))
        if not rows:
            return ["holds no evaluation"]
        faults = [
            f"columns: there is no {name}; {instead_of(name, there, 'there are')}"
            for name in self.columns
            if name not in there
        ]
        known = [*self.space.names, *self.own]
        faults += [
            f"columns: {name} is to be {target}, which is not a parameter; {did_you_mean(target, known)}accepted: "
            f"{some_of(self.space.names)}, value, {METRIC_PREFIX}NAME, or a column of a history"
            for name, target in self.columns.items()
            if target not in known and not target.startswith(METRIC_PREFIX)
        ]
        for name in there:
            self.names[name] = self._meaning(name)
        unknown = [name for name in there if self.names[name].startswith("params.")]
        faults += [
            f"{name}: is not a parameter of the space; {instead_of(name, self.space.names)}"
            for name in (name.partition(".")[2] for name in unknown)
        ]
        meanings = set(self.names.values())
        conditional = {name for name, parameter in self.space.parameters.items() if parameter.when}
        fixed = {name for name, parameter in self.space.parameters.items() if parameter.fixed}
        missing = [name for name in self.space.names if name not in meanings | conditional | fixed]
        faults += [
            f"{name}: is a parameter without a column; there are: {some_of(there)}; name one:  "
            f"warm_start_columns={{COLUMN: {name}}}"
            for name in missing
        ]
        has_value = meanings & {"value", METRIC_PREFIX + self.metric}
        lacking = [name for name in self.needed if METRIC_PREFIX + name not in meanings] if self.goals else []
        if not has_value and not self.goals:
            lacking = ["value" if self.metric == "value" else f"value or {self.metric}"]
        below = [name for name, p in self.space.parameters.items() if set(p.conditions) & set(missing)]
        self.absent = {*missing, *below, *lacking, *(["value"] if lacking else [])}
        for name in lacking:
            target = f"metric.{name}" if self.goals else "value"
            faults.append(
                f"{name}: is a metric without a column; there are: {some_of(there)}; name one:  "
                f"warm_start_columns={{COLUMN: {target}}}"
            )
        texts = [name for name in there if self.names[name] == name and not self._is_known(name)]
        for name in texts:
            if all(_number(row.get(name)) is None for row in rows):
                self.unused.append(name)
            else:
                self.names[name] = METRIC_PREFIX + name
        return faults

    def _is_known(self, name: str) -> bool:
        prefixes = (METRIC_PREFIX, "value_sem_", "value@", "params.")
        return name in self.own or name in self.space.names or name.startswith(prefixes)

    def _meaning(self, name: str) -> str:
        """Return the parameter or the column of a history that a column of the file is."""
        if name in self.columns:
            return self.columns[name]
        rest = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
        if rest in self.columns:
            return self.columns[rest]
        if rest in self.space.names:
            return rest
        metrics = (self.metric, *self.needed)
        return METRIC_PREFIX + name if name in metrics and name != "value" else name

    def evaluation(self, row: Mapping[str, Any], place: int) -> Evaluation | list[str] | None:
        """Return the evaluation of a row, its faults, or None if it had not ended."""
        faults: list[str] = []
        state, origin = _state(row.get("state"), faults), Origin.EVALUATED
        if not _is_empty(row.get("origin")):
            try:
                origin = Origin(str(row["origin"]))
            except ValueError:
                faults.append(f"origin={row['origin']}: accepted: {', '.join(Origin)}")
        if state is not None and (not state.ended or state is State.PAUSED):
            return None
        given = {
            name: _typed(self.space.parameters[name], row[name])
            for name in self.space.names
            if not _is_empty(row.get(name))
        }
        for name, parameter in self.space.parameters.items():
            if parameter.fixed and name not in given and not parameter.when:
                given[name] = parameter.decode(0.5)
        if origin is not Origin.BASELINE:
            try:
                self.space.check(given)
            except ConfigError as error:
                faults += [fault for fault in error.faults if fault.partition(":")[0] not in self.absent]
        metrics = _numbers(row, METRIC_PREFIX, faults)
        sems = _numbers(row, "value_sem_", faults)
        for name in [goal.name for goal in self.goals.metrics] if self.goals else []:
            if name not in metrics and (number := _number(row.get(f"value_{name}"))) is not None:
                metrics[name] = number
        value = _cell(row, "value", faults)
        if value is None:
            value = metrics.get(self.metric)
        known = "value" not in self.absent
        if state is None and value is None and not faults and known:
            faults.append(f"value: is missing (a trial without one needs a state: {', '.join(_ENDS)})")
        if state is State.COMPLETED and value is None and origin is not Origin.BASELINE and known:
            faults.append("value: is missing")
        lacking = [name for name in self.needed if name not in metrics] if value is not None else []
        faults += [f"{name}: is missing" for name in lacking if name not in self.absent]
        number, seed = _whole(row.get("trial")), _whole(row.get("seed"))
        times = {name: _time(row, name, faults) for name in ("submitted_at", "started_at", "ended_at")}
        if faults:
            return faults
        kind, sign, message = str(row.get("error") or "").partition(": ")
        jobs = {name: row.get(name) for name in ("job", "node") if not _is_empty(row.get(name))}
        return Evaluation(
            number=place if number is None else number,
            parameters=given,
            state=state or State.COMPLETED,
            origin=origin,
            value=value,
            value_sem=_cell(row, "value_sem", faults),
            metrics=metrics,
            sems=sems,
            seed=seed,
            error={"kind": kind, "message": message} if sign else None,
            times={name: text for name, text in times.items() if text},
            jobs={"attempts": _whole(row.get("attempts")) or 0, **{name: str(cell) for name, cell in jobs.items()}},
        )


_ENDS = [str(state) for state in State if state.ended and state not in (State.COMPLETED, State.PAUSED)]


def _is_empty(cell: Any) -> bool:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    text = cell.strip().lower() if isinstance(cell, str) else repr(cell)  # pandas.NA is <NA>
    return text in ("", "nan", "none", "null", "<NA>", "<na>")


def _state(cell: Any, faults: list[str]) -> State | None:
    """Return the state in a row; None if it holds none."""
    if _is_empty(cell):
        return None
    name = str(cell).strip().rpartition(".")[2].lower()
    if name in STATES:
        return STATES[name]
    try:
        return State(name)
    except ValueError:
        faults.append(f"state={cell}: accepted: {', '.join(State)}")
        return None


def _number(cell: Any) -> float | None:
    """Return a finite number in a cell; None if there is none."""
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _cell(row: Mapping[str, Any], name: str, faults: list[str]) -> float | None:
    cell = row.get(name)
    if _is_empty(cell):
        return None
    number = _number(cell)
    if number is None:
        faults.append(f"{name}={cell}: is not a finite number")
    return number


def _numbers(row: Mapping[str, Any], prefix: str, faults: list[str]) -> dict[str, float]:
    found = {name: _cell(row, name, faults) for name in row if name.startswith(prefix)}
    return {name.removeprefix(prefix): number for name, number in found.items() if number is not None}


def _whole(cell: Any) -> int | None:
    number = _number(cell)
    return int(number) if number is not None and number == int(number) else None


def _time(row: Mapping[str, Any], name: str, faults: list[str]) -> str | None:
    """Return a time as the journal holds it; one without a time zone is taken as UTC."""
    cell = row.get(name)
    if _is_empty(cell):
        return None
    try:
        moment = datetime.datetime.fromisoformat(str(cell))
    except ValueError:
        faults.append(f"{name}={cell}: is not a time; accepted: 2026-11-28T18:00:00Z")
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return str(cell) if isinstance(cell, str) and cell.endswith("Z") else moment.isoformat()


def _typed(parameter: Parameter, cell: Any) -> Any:
    """Return a cell as a value of a parameter; unchanged if it is none, so that the space says why."""
    if isinstance(parameter, Categorical):
        return next(
            (choice for choice in parameter.choices if str(choice).lower() == str(cell).strip().lower()),
            next((c for c in parameter.choices if not isinstance(c, (str, bool)) and c == _number(cell)), cell),
        )
    number = _number(cell)
    if number is None:
        return cell
    return int(number) if isinstance(parameter, Integer) and number == int(number) else number
