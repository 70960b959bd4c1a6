"""Several attempts one after another in one process: waiting for the next one, and beginning it.

After an attempt that published a result, the process goes on with what it has loaded. After one that failed, it may be
in any state, so it starts its program again, in the same job, with the next attempt's folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from hpo_cluster.objectives.signals import handled
from hpo_cluster.record.attempt_files import job_identity
from hpo_cluster.record.files import read_json, refresh
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import END, Next, publish_next, read_next

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks for a decision: first, and at most. The driver usually answers within a second.
FIRST_LOOK_S, LAST_LOOK_S = 0.1, 1.0


@contextlib.contextmanager
def noting_signals() -> Iterator[list[int]]:
    """Within the context, note the signals that ask to end instead of ending; yield the list of their numbers."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)

    with handled(note):
        yield seen


def look_for(read: Callable[[], T | None], linger_s: float, until: Callable[[], bool]) -> T | None:
    """Look again and again, less and less often, until there is something; None if there is nothing in `linger_s`.

    Args:
        read: returns what is looked for; None while it is not there.
        linger_s: seconds to look, once at least.
        until: returns whether to stop looking.
    """
    end, look_s = time.monotonic() + linger_s, FIRST_LOOK_S
    while (found := read()) is None and not until() and (left := end - time.monotonic()) > 0:
        time.sleep(min(look_s, left))
        look_s = min(1.5 * look_s, LAST_LOOK_S)
    return found


def next_attempt(files: AttemptLayout, linger_s: float, signals: list[int]) -> Path | None:
    """Wait until it is decided what the job does next; return the folder of its next attempt, or None if it ends.

    If the driver has decided nothing within `linger_s`, or a signal arrives, the job ends: this is published, unless
    the driver decided in the meantime.

    Args:
        files: files of the attempt that has just ended.
        linger_s: seconds to wait.
        signals: grows when a signal asks the job to end.
    """
    decision = None
    try:
        decision = look_for(lambda: read_next(files), linger_s, until=lambda: bool(signals))
    except KeyboardInterrupt:  # how submitit's local executor ends a job at its walltime
        signals.append(signal.SIGINT)
    if decision is None:
        decision = END if _end(files) else read_next(files) or END
    if signals or decision.attempt_dir is None:
        return None
    return decision.attempt_dir if _is_offered(decision) else None


def _end(files: AttemptLayout) -> bool:
    """Publish that the job ends; return False if the driver has decided otherwise."""
    try:
        return publish_next(files, END)
    except OSError as error:  # the driver learns it from the scheduler
        log.warning("%s not written: %s", files.next, error)
        return True


def _is_offered(decision: Next) -> bool:
    """Return whether the next attempt is still the one that was offered: the driver may have taken it back."""
    assert decision.attempt_dir is not None
    files = AttemptLayout(decision.attempt_dir)
    refresh(files.dir.parent.parent)
    refresh(files.dir.parent)
    refresh(files.dir)
    return (read_json(files.params) or {}).get("token") == decision.token


def write_log_of(directory: Path) -> None:
    """From now on, write the output of this process to the log of the attempt in `directory`."""
    folder, name = AttemptLayout(directory).job_dir, f"{job_identity()['job']}_log"
    log.info("the job goes on with %s, and writes its log there", directory)
    try:
        folder.mkdir(exist_ok=True)
        for stream, end in ((sys.stdout, "out"), (sys.stderr, "err")):
            stream.flush()
            opened = os.open(folder / f"{name}.{end}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(opened, 1 if end == "out" else 2)
            os.close(opened)
        os.write(1, f"{directory}: after another attempt in the same job\n".encode())
    except OSError as error:
        log.warning("the log goes on here: %s", error)


def start_program_again(program: Path, directory: Path) -> NoReturn:
    """Replace this process by a fresh one of the same program, for the attempt in `directory`."""
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError):
            if int(number) > 2:  # what a driver of a device keeps open would keep the device's memory
                os.set_inheritable(int(number), False)
    os.execv(sys.executable, [sys.executable, str(program), str(directory)])
