"""Calls of a Python function, each for one trial: in this process, or in forked ones.

`Alone` and `Crew` have the same methods: `start` begins a call while some are `free`, and `wait` returns answers.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import GPU_SECONDS
from hpo_cluster.objectives.black_box import read_output
from hpo_cluster.objectives.error_kinds import classify
from hpo_cluster.objectives.function import more_arguments
from hpo_cluster.space import Configuration
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)

#: The function to optimise: called as ``fn(**parameters)``, it returns the value or a dictionary with key ``value``.
Function: TypeAlias = Callable[..., Any]
#: A call of the function with one configuration.
Call: TypeAlias = "Callable[[Configuration], Answer]"


@dataclass(frozen=True)
class Answer:
    """The outcome of a call: `result` as `read_output` returns it, or the kind, message and traceback of an error."""

    result: Mapping[str, Any] | None = None
    kind: str = ""
    message: str = ""
    trace: str = ""


def call_function(fn: Function, needed: Sequence[str], parameters: Configuration) -> Answer:
    """Call the function; `needed` are the fields of its result that are optimised or constrained."""
    began, returned = time.monotonic(), False
    try:
        with contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory
            more = more_arguments(
                fn, parameters, None, lambda: Path(stack.enter_context(folder(prefix="hpo-cluster-")))
            )
            output = fn(**parameters, **more)
        returned = True
        result = read_output(output if isinstance(output, Mapping) else {needed[0]: output}, *needed)
        return Answer({**result, GPU_SECONDS: round(time.monotonic() - began, 6)})
    except Exception as error:
        message = str(error) or type(error).__name__
        # of a result that cannot be read the traceback shows no line of the function
        trace = message if returned and isinstance(error, AttemptError) else traceback.format_exc()
        return Answer(None, str(classify(error)), message, trace)


class Alone:
    """A worker that calls the function in this process, inside `wait`.

    Args:
        call: of the function.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self._next: tuple[int, Configuration] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call has begun and has not ended."""
        return self._next is not None

    @property
    def free(self) -> int:
        """The number of calls that can begin."""
        return 0 if self.busy else 1

    def start(self, number: int, parameters: Configuration, seed: int) -> None:
        """Begin the call of a trial."""
        self._next = (number, parameters)

    def wait(self, end: float | None) -> list[tuple[int, Answer]]:
        """Call the function, and return the number of the trial and the answer; `end` cannot interrupt it."""
        assert self._next is not None
        number, parameters = self._next
        answer = self.call(dict(parameters))
        self._next = None
        return [(number, answer)]

    def close(self) -> None:
        """Do nothing: there is no process to end."""


class _Member:
    """A forked process that calls the function for one trial after another."""

    def __init__(self, call: Call, others: Sequence[_Member]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        # A fork inherits the parent's ends of the pipes. Left open, they would hide from members that the parent died.
        inherited = [self.connection, *(other.connection for other in others)]
        self.process = context.Process(target=_serve, args=(call, theirs, inherited))
        self.process.start()
        theirs.close()
        self.trial: int | None = None
        self.since = 0.0  # when the call of the trial began


def _serve(
    call: Call,
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
            connection.send(call(parameters))
        except (BrokenPipeError, KeyboardInterrupt):
            return


class Crew:
    """A group of forked workers; one that dies loses only its own trial, and is replaced.

    Args:
        call: of the function.
        workers: number of processes.
        trial_timeout_s: seconds after which a call is ended; None: no limit.
    """

    def __init__(self, call: Call, workers: int, trial_timeout_s: float | None = None) -> None:
        self.call, self._trial_timeout_s = call, trial_timeout_s
        self.members: list[_Member] = []
        for _ in range(workers):
            self.members.append(_Member(call, self.members))

    @property
    def busy(self) -> bool:
        """Whether a call has begun and has not ended."""
        return any(member.trial is not None for member in self.members)

    @property
    def free(self) -> int:
        """The number of calls that can begin."""
        return sum(member.trial is None for member in self.members)

    def start(self, number: int, parameters: Configuration, seed: int) -> None:
        """Begin the call of a trial."""
        member = next(member for member in self.members if member.trial is None)
        member.trial, member.since = number, time.monotonic()
        try:
            member.connection.send((parameters, seed))
        except BrokenPipeError:
            log.debug("trial=%d worker died before it began", number)  # `wait` notices the closed pipe

    def wait(self, end: float | None) -> list[tuple[int, Answer]]:
        """Return the trials that have ended, in the order of their numbers; none if no trial ends before `end`."""
        busy = {id(member.connection): member for member in self.members if member.trial is not None}
        moments = [
            member.since + self._trial_timeout_s for member in busy.values() if self._trial_timeout_s is not None
        ]
        first = min([*moments, *([] if end is None else [end])], default=None)
        patience = None if first is None else max(0.0, first - time.monotonic())
        ready = multiprocessing.connection.wait([member.connection for member in busy.values()], patience)
        answers = self._overdue([member for member in busy.values() if member.connection not in ready])
        for connection in ready:
            member = busy[id(connection)]
            assert member.trial is not None
            answers.append((member.trial, self._receive(member)))
            member.trial = None
        return sorted(answers, key=lambda entry: entry[0])

    def _overdue(self, members: Sequence[_Member]) -> list[tuple[int, Answer]]:
        """End the calls that have taken too long, and return their answers."""
        answers = []
        for member in members:
            limit = self._trial_timeout_s
            if limit is not None and member.trial is not None and time.monotonic() >= member.since + limit:
                message = f"the call was ended after trial_timeout_s={limit:g}"
                answers.append((member.trial, Answer(None, ErrorKind.WALLTIME, message, message)))
                member.process.kill()
                self._replace(member)
        return answers

    def _replace(self, member: _Member) -> None:
        member.process.join()
        member.connection.close()
        others = [other for other in self.members if other is not member]
        self.members[self.members.index(member)] = _Member(self.call, others)

    def _receive(self, member: _Member) -> Answer:
        try:
            answer: Answer = member.connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace(member)
            message = f"the process of the function ended with exit code {member.process.exitcode}"
            return Answer(None, ErrorKind.CODE, message, message)
        return answer

    def close(self) -> None:
        """End the processes, and the calls in them."""
        for member in self.members:
            if member.trial is not None:
                member.process.terminate()
            member.connection.close()
        for member in self.members:
            member.process.join()
