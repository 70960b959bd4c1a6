"""Calling a scheduler's commands without being held up by them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from hpo_cluster.errors import SubmissionError
from hpo_cluster.processes import end_with_parent, uncap_memory

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
    """Standard output of a scheduler's command.

    Raises:
        SubmissionError: where it cannot be started or takes longer than `timeout_s` seconds; a `CommandError` where it
            fails.
    """
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=env,
            cwd=cwd,
            preexec_fn=_begin_child,
        )
    except FileNotFoundError as error:
        message = f"{command[0]}: command not found; is this a frontend of the cluster?"
        raise SubmissionError(message, retriable=False) from error
    except subprocess.TimeoutExpired as error:
        raise SubmissionError(f"{command[0]} did not answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        output = "\n".join(text.strip() for text in (done.stdout, done.stderr) if text.strip())
        raise CommandError(command[0], done.returncode, output)
    return done.stdout


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
