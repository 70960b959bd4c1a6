"""Calling a scheduler's commands without being held up by them."""

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
        output: what it wrote, errors first.
    """

    def __init__(self, program: str, status: int, output: str) -> None:
        self.program, self.status, self.output = program, status, output
        lines = output.strip().splitlines() or ["no message"]
        super().__init__(f"{program} failed with status {status}: {lines[-1]}")


def _begin_child() -> None:
    """In the child: be killed when the driver dies, so that it cannot submit minutes later on its own.

    And be free of the driver's limits, which schedulers pass on to the jobs.
    """
    end_with_parent()
    uncap_memory()


def call(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Return the standard output of a scheduler's command.

    A command that does not answer in time is killed, and let go of if it cannot be killed: OAR's are setuid root, and
    a process that waits for a file server takes no signal. What it writes goes into temporary files, not pipes, so
    that nobody waits for those whom it has started.

    Raises:
        SubmissionError: if it cannot be started, takes longer than `timeout_s` seconds, or many that were let go of
            hang still; a `CommandError` if it fails.
    """
    global _let_go
    _let_go = [process for process in _let_go if process.poll() is None]
    if len(_let_go) >= LET_GO_AT_MOST:
        raise SubmissionError(f"{len(_let_go)} earlier commands hang and cannot be ended; no other is started")
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


#: Commands that could not be ended; no more than so many, since each is a process on the frontend.
LET_GO_AT_MOST = 16
#: Seconds in which a killed command should be gone.
KILLED_WITHIN_S = 2.0
_let_go: list[subprocess.Popen[bytes]] = []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it has started; let go of what cannot be killed."""
    with contextlib.suppress(OSError):  # PermissionError: it runs as another user
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(KILLED_WITHIN_S)
    except subprocess.TimeoutExpired:
        log.warning("command=%s pid=%d cannot be killed and is let go of", process.args, process.pid)
        _let_go.append(process)


class Pause:
    """A time in which nothing is tried, twice as long after each failure in a row."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delay_s, self._until = 0.0, 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until the next try; zero or less if it is time."""
        return self._until - self._clock()

    @property
    def lasts(self) -> bool:
        """Whether it is too early for the next try."""
        return self.wait_s > 0

    def begin(self) -> float:
        """Note a failure; returns the seconds until the next try."""
        self._delay_s = min(max(FIRST_BACKOFF_S, 2 * self._delay_s), LAST_BACKOFF_S)
        self._until = self._clock() + self._delay_s
        return self._delay_s

    def end(self) -> None:
        """Note a success: the next pause is a short one again."""
        self._delay_s, self._until = 0.0, 0.0


class Backoff(Pause):
    """After a question that was not answered, no other for a time that doubles with each failure."""

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """The answer to `question`.

        Raises:
            SubmissionError: where it was not answered, or where it is too early to ask again.
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
