"""Calling a scheduler's commands without being held up by them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
from collections.abc import Sequence

from hpo_cluster.errors import SubmissionError

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """In the child: be killed when the driver dies, so that it cannot submit minutes later on its own."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def call(command: Sequence[str], *, timeout_s: float) -> str:
    """Standard output of a scheduler's command.

    Raises:
        SubmissionError: where it cannot be started, fails or takes longer than `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            preexec_fn=_die_with_parent,
        )
    except FileNotFoundError as error:
        message = f"{command[0]}: command not found; is this a frontend of the cluster?"
        raise SubmissionError(message, retriable=False) from error
    except subprocess.TimeoutExpired as error:
        raise SubmissionError(f"{command[0]} did not answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise SubmissionError(f"{command[0]} failed with status {done.returncode}: {last}")
    return done.stdout
