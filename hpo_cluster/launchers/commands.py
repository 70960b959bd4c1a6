"""Calls of a scheduler's commands, with time limits and pauses, so that a slow scheduler never blocks the driver."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hpo_cluster.errors import SubmissionError
from hpo_cluster.record.processes import end_with_parent, uncap_memory

log = logging.getLogger(__name__)

FIRST_BACKOFF_S, LAST_BACKOFF_S = 2.0, 60.0

Answer = TypeVar("Answer")


class CommandError(SubmissionError):
    """A scheduler's command ended with a status other than 0.

    Args:
        program: name of the command.
        status: its exit status.
        output: standard output, then standard error.
    """

    def __init__(self, program: str, status: int, output: str) -> None:
        self.program, self.status, self.output = program, status, output
        lines = output.strip().splitlines() or ["no message"]
        super().__init__(f"{program} failed with status {status}: {lines[-1]}")


def _begin_child() -> None:
    """Prepare the child process of a command.

    The child is killed when the driver dies, so that it cannot submit a job minutes later. The driver's memory limit is
    lifted, because schedulers pass limits on to their jobs.
    """
    end_with_parent()
    uncap_memory()


def call(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a scheduler's command and return its standard output.

    A command that does not answer in time is killed. If it cannot be killed it is abandoned: OAR's commands are setuid
    root, and a process that waits for a file server takes no signal. The output goes to temporary files, not to pipes,
    so that this never waits for processes that the command has started.

    Raises:
        SubmissionError: if the command cannot be started, takes longer than `timeout_s` seconds, or if too many
            abandoned commands still hang.
        OSError: if `cwd` does not exist, or if the machine is at its limits.
        CommandError: if the command fails.
    """
    global _let_go
    _let_go = [process for process in _let_go if process.poll() is None]
    if len(_let_go) >= LET_GO_AT_MOST:
        raise SubmissionError(f"{len(_let_go)} earlier commands hang and cannot be ended; no new one is started")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                cwd=cwd,
                preexec_fn=_begin_child,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            if error.filename != command[0]:  # it is `cwd`
                raise
            message = f"{command[0]}: command not found; is this a frontend of the cluster?"
            raise SubmissionError(message, retriable=False) from error
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            _end(process)
            raise SubmissionError(f"{command[0]} did not answer within {timeout_s:g} s") from error
        except BaseException:
            _end(process)
            raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    if status != 0:
        raise CommandError(command[0], status, "\n".join(text.strip() for text in texts if text.strip()))
    return texts[0]


#: Largest number of commands that were abandoned and still hang: each is a process on the frontend.
LET_GO_AT_MOST = 16
#: Seconds to wait for a killed command to end.
KILLED_WITHIN_S = 2.0
_let_go: list[subprocess.Popen[bytes]] = []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and the processes that it started; abandon it if it cannot be killed."""
    with contextlib.suppress(OSError):  # PermissionError: it runs as another user
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        log.warning("command=%s pid=%d cannot be killed and is abandoned", process.args, process.pid)
        _let_go.append(process)


class Pause:
    """A time in which nothing is tried; its length doubles with each failure in a row."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_s, self._until = 0.0, 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until the next try; zero or less if it may be made now."""
        return self._until - self._clock()

    @property
    def lasts(self) -> bool:
        """Whether it is too early for the next try."""
        return self.wait_s > 0

    def begin(self) -> float:
        """Note a failure and return the seconds until the next try."""
        self._delay_s = min(max(FIRST_BACKOFF_S, 2 * self._delay_s), LAST_BACKOFF_S)
        self._until = self._clock() + self._delay_s
        return self._delay_s

    def end(self) -> None:
        """Note a success: the next pause is short again."""
        self._delay_s, self._until = 0.0, 0.0


class Backoff(Pause):
    """A pause between questions to a scheduler, which begins when the scheduler does not answer one."""

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Ask and return the answer.

        Raises:
            SubmissionError: if the scheduler does not answer, or if it is too early to ask again.
        """
        if self.lasts:
            raise SubmissionError(f"the scheduler did not answer; it is asked again in {self.wait_s:.0f} s")
        try:
            answer = question()
        except SubmissionError:
            self.begin()
            raise
        self.end()
        return answer
