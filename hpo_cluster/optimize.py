"""Optimise a Python function in one call, without a cluster and without files.

    result = hpo_cluster.optimize(fn, {"x": {"low": -5.0, "high": 5.0}}, budget=30, workers=4, direction="minimize")
    result.parameters, result.value, result.history

The same optimizers, the same history and the same rules as a campaign has: a proposal as soon as a worker is free, a
function that raises is a failed trial, NaN is divergence. What is not here is the journal: what is interrupted is lost,
unless the call names a `campaign`.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import multiprocessing.connection
import random
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hpo_cluster.errors import ConfigError, HpoClusterError
from hpo_cluster.objectives.function import FunctionObjective
from hpo_cluster.objectives.output import read_output
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import ErrorKind, Origin, State, derive_seed
from hpo_cluster.worker import classify, utc_now

if TYPE_CHECKING:
    import pandas as pd

    from hpo_cluster.optimizers.base import Optimizer

log = logging.getLogger(__name__)

#: What is optimised: called as ``fn(**parameters)``, gives the value or a dictionary with ``value`` in it.
Function: TypeAlias = Callable[..., Any]
Direction: TypeAlias = Literal["maximize", "minimize"]

METRIC = "value"
#: Kinds of error that say something about the configuration; any other makes the trial a failed one.
STATES = {ErrorKind.DIVERGED: State.DIVERGED, ErrorKind.OUT_OF_MEMORY: State.INFEASIBLE}


class AllFailedError(HpoClusterError):
    """No trial has a value. The message ends with the traceback of the first."""


@dataclass(frozen=True)
class Result:
    """The best trial and all of them.

    Args:
        parameters: of the trial with the best value.
        value: as measured, in the user's direction.
        trial: its number.
        history: one row a trial; the columns are those of a campaign's history.
    """

    parameters: Configuration
    value: float
    trial: int
    history: pd.DataFrame = field(repr=False)


def optimize(
    fn: Function,
    space: Space | Mapping[str, Mapping[str, Any]],
    *,
    optimizer: str = "bo",
    budget: int = 30,
    workers: int = 1,
    seed: int = 0,
    direction: Direction = "maximize",
    campaign: str | None = None,
    **settings: Any,
) -> Result:
    """Optimise `fn` over `space`.

    Args:
        fn: called as ``fn(**parameters)``. Returns a number, or a dictionary whose field ``value`` is optimised; its
            other number fields are metrics, and ``value_sem`` is the standard error.
        space: a Space, or its JSON form: ``{"lr": {"low": 1e-5, "high": 1e-1, "log": True}}``.
        optimizer: a name that `hpo_cluster.make_optimizer` knows.
        budget: evaluations in all.
        workers: evaluations at once. With 1, `fn` is called in this process; with more, in that many forked ones, where
            the global generators of `random` and numpy are seeded from the trial's seed. The next evaluation is
            proposed as soon as one ends.
        seed: of the optimizer and the trials.
        direction: whether more is better.
        campaign: name of a campaign to keep a journal in; `fn` must then be importable by its name.
        settings: of the optimizer.

    Raises:
        ConfigError: with every fault of the arguments.
        AllFailedError: where no trial has a value.
    """
    faults = [f"{name}={n!r}: at least 1" for name, n in (("budget", budget), ("workers", workers)) if n < 1]
    if direction not in ("maximize", "minimize"):
        faults.append(f"direction={direction!r}: maximize or minimize")
    if not callable(fn):
        faults.append(f"fn={fn!r} cannot be called")
    if faults:
        raise ConfigError(faults)
    if not isinstance(space, Space):
        space = Space.from_json(space)
    if campaign is not None:
        FunctionObjective.of(fn, direction=direction)
        raise NotImplementedError("optimize(campaign=…) is not wired to the campaign's loop yet; leave campaign out")

    from hpo_cluster.optimizers.registry import make_optimizer

    crew = _Crew(fn, workers) if workers > 1 else _Alone(fn)  # forked first, while this process holds no threads
    try:
        table = _Table(space, direction == "maximize", seed)
        _loop(make_optimizer(optimizer, space, seed, **settings), table, crew, budget)
    finally:
        crew.close()
    return table.result()


def _loop(optimizer: Optimizer, table: _Table, crew: _Crew | _Alone, budget: int) -> None:
    while True:
        free = min(crew.free, budget - table.committed)
        if free > 0:
            ask = optimizer.ask(table.history(), free)
            for row in ask.settled:
                table.add(row.parameters, row.origin, row.value)
            for proposal in ask.proposals:
                number = table.add(proposal.parameters, Origin.EVALUATED)
                crew.start(number, proposal.parameters, table.rows[number]["seed"])
            if not (ask.settled or ask.proposals or crew.busy):
                log.info("optimizer exhausted evaluations=%d budget=%d", table.committed, budget)
                return
            if ask.settled:
                continue
        if not crew.busy:
            return
        for number, answer in crew.wait():
            table.end(number, answer)


@dataclass(frozen=True)
class _Answer:
    """What became of a call: `result` as `read_output` gives it, or the kind, message and traceback of an error."""

    result: Mapping[str, Any] | None = None
    kind: str = ""
    message: str = ""
    trace: str = ""


def _call(fn: Function, parameters: Configuration) -> _Answer:
    try:
        output = fn(**parameters)
        return _Answer(read_output(output if isinstance(output, Mapping) else {METRIC: output}, METRIC))
    except Exception as error:
        return _Answer(None, str(classify(error)), str(error) or type(error).__name__, traceback.format_exc())


class _Alone:
    """Calls the function in this process, when it is waited for."""

    def __init__(self, fn: Function) -> None:
        self.fn = fn
        self._next: tuple[int, Configuration] | None = None

    @property
    def busy(self) -> bool:
        return self._next is not None

    @property
    def free(self) -> int:
        return 0 if self.busy else 1

    def start(self, number: int, parameters: Configuration, seed: int) -> None:
        self._next = (number, parameters)

    def wait(self) -> list[tuple[int, _Answer]]:
        assert self._next is not None
        number, parameters = self._next
        answer = _call(self.fn, dict(parameters))
        self._next = None
        return [(number, answer)]

    def close(self) -> None:
        pass


class _Member:
    """A forked process that calls the function for one trial after another."""

    def __init__(self, fn: Function, others: Sequence[_Member]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        # Ends of the parent that a fork inherits keep a pipe open: without the parent nobody would notice its end.
        inherited = [self.connection, *(other.connection for other in others)]
        self.process = context.Process(target=_serve, args=(fn, theirs, inherited))
        self.process.start()
        theirs.close()
        self.trial: int | None = None


def _serve(
    fn: Function,
    connection: multiprocessing.connection.Connection,
    inherited: Sequence[multiprocessing.connection.Connection],
) -> None:
    for end in inherited:
        end.close()
    while True:
        try:
            parameters, seed = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        try:
            connection.send(_call(fn, parameters))
        except (BrokenPipeError, KeyboardInterrupt):
            return


class _Crew:
    """Forked processes; one that dies takes only its trial with it and is replaced."""

    def __init__(self, fn: Function, workers: int) -> None:
        self.fn = fn
        self.members: list[_Member] = []
        for _ in range(workers):
            self.members.append(_Member(fn, self.members))

    @property
    def busy(self) -> bool:
        return any(member.trial is not None for member in self.members)

    @property
    def free(self) -> int:
        return sum(member.trial is None for member in self.members)

    def start(self, number: int, parameters: Configuration, seed: int) -> None:
        member = next(member for member in self.members if member.trial is None)
        member.trial = number
        try:
            member.connection.send((parameters, seed))
        except BrokenPipeError:
            log.debug("trial=%d worker gone before it began", number)  # `wait` finds the end of the pipe

    def wait(self) -> list[tuple[int, _Answer]]:
        """Trials that have ended, at least one, in the order of their numbers."""
        busy = {id(member.connection): member for member in self.members if member.trial is not None}
        ready = multiprocessing.connection.wait([member.connection for member in busy.values()])
        answers: list[tuple[int, _Answer]] = []
        for connection in ready:
            member = busy[id(connection)]
            assert member.trial is not None
            answers.append((member.trial, self._receive(member)))
            member.trial = None
        return sorted(answers, key=lambda entry: entry[0])

    def _receive(self, member: _Member) -> _Answer:
        try:
            answer: _Answer = member.connection.recv()
        except (EOFError, ConnectionResetError):
            member.process.join()
            message = f"the process of the function ended with exit code {member.process.exitcode}"
            member.connection.close()
            others = [other for other in self.members if other is not member]
            self.members[self.members.index(member)] = _Member(self.fn, others)
            return _Answer(None, ErrorKind.CODE, message, message)
        return answer

    def close(self) -> None:
        for member in self.members:
            if member.trial is not None:
                member.process.terminate()
            member.connection.close()
        for member in self.members:
            member.process.join()


class _Table:
    """The trials, and the history that is made of them."""

    def __init__(self, space: Space, maximize: bool, seed: int) -> None:
        self.space, self.maximize, self.seed = space, maximize, seed
        self.rows: list[dict[str, Any]] = []
        self.first_trace = ""
        self._events = 0

    @property
    def committed(self) -> int:
        """Evaluations that have ended or are under way."""
        return sum(row["origin"] == Origin.EVALUATED for row in self.rows)

    def add(self, parameters: Configuration, origin: Origin, value: float | None = None) -> int:
        """A new trial; its number. One that needs no evaluation has ended already."""
        now, number, evaluated = utc_now(), len(self.rows), origin is Origin.EVALUATED
        self.rows.append(
            {
                "trial": number,
                "state": str(State.RUNNING if evaluated else State.COMPLETED),
                "origin": str(origin),
                "value": math.nan if value is None else value,
                "value_sem": math.nan,
                "parameters": dict(parameters),
                "metrics": {},
                "attempts": 1 if evaluated else 0,
                "job": None,
                "node": None,
                "submitted_at": now if evaluated else None,
                "started_at": now if evaluated else None,
                "ended_at": None if evaluated else now,
                "seed": derive_seed(self.seed, "trial", number),
                "asked_seq": self._event(),
                "ended_seq": math.nan if evaluated else self._events - 1,
                "error": None,
            }
        )
        return number

    def end(self, number: int, answer: _Answer) -> None:
        """Take in what became of an evaluation."""
        row = self.rows[number]
        row["ended_at"], row["ended_seq"] = utc_now(), self._event()
        if answer.result is not None:
            metrics = answer.result["metrics"]
            row["state"], row["value"], row["metrics"] = str(State.COMPLETED), metrics[METRIC], metrics
            row["value_sem"] = answer.result["sems"].get(METRIC, math.nan)
            log.info("trial=%d state=completed value=%s", number, row["value"])
            return
        row["state"] = str(STATES.get(ErrorKind(answer.kind), State.FAILED))
        row["error"] = f"{answer.kind}: {answer.message}"
        self.first_trace = self.first_trace or answer.trace
        log.warning("trial=%d state=%s parameters=%s error=%s", number, row["state"], row["parameters"], row["error"])

    def history(self) -> pd.DataFrame:
        """The trials as `hpo_cluster.load_history` would give them."""
        import pandas as pd

        from hpo_cluster.history import HISTORY_COLUMNS, METRIC_PREFIX, TAIL_COLUMNS

        metrics = sorted({name for row in self.rows for name in row["metrics"]})
        columns = [*HISTORY_COLUMNS, *self.space.names, *(METRIC_PREFIX + name for name in metrics), *TAIL_COLUMNS]
        sign = 1.0 if self.maximize else -1.0
        cells = [
            [{**row, "target": sign * row["value"]}[name] for name in HISTORY_COLUMNS]
            + [row["parameters"][name] for name in self.space.names]
            + [row["metrics"].get(name, math.nan) for name in metrics]
            + [row[name] for name in TAIL_COLUMNS]
            for row in self.rows
        ]
        return pd.DataFrame(cells, columns=columns)

    def result(self) -> Result:
        """The best of the evaluated trials. Raises AllFailedError where none has a value."""
        done = [row for row in self.rows if row["origin"] == Origin.EVALUATED and row["state"] == State.COMPLETED]
        if not done:
            ended = len([row for row in self.rows if row["error"]])
            raise AllFailedError(f"none of {ended} trials has a value; the first one's error:\n{self.first_trace}")
        best = (max if self.maximize else min)(done, key=lambda row: row["value"])
        return Result(best["parameters"], best["value"], best["trial"], self.history())

    def _event(self) -> int:
        self._events += 1
        return self._events - 1
