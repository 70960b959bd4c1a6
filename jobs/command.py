"""Evaluate one attempt of ``objective=command``: run the command and read the last line of its output."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.black_box import CHECKPOINT, needed_metrics, read_output, reported_error
from hpo_cluster.objectives.climbing import at_each_rung
from hpo_cluster.objectives.command_line import placeholders, render
from hpo_cluster.objectives.error_kinds import DISK_WORDS
from hpo_cluster.record.processes import process_start
from hpo_cluster.trial import ErrorKind

#: Number of last lines of each output stream in which the reason of a failure is searched.
TAIL_LINES = 100
#: The line of an exception below its traceback. More lines may follow: of its message, or of what ended after it.
EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)(:|$)")
#: Most characters of that line in an error message.
MOST_OF_REASON = 500
#: Seconds to wait for output after the command has ended: a process that it left behind may hold the stream open.
DRAIN_S = 5.0
#: Exit statuses of a command that SIGUSR2 or SIGTERM ended: -N for the command itself, 128 + N from a shell.
SIGNALLED = {
    sign * int(number) + offset for number in (signal.SIGUSR2, signal.SIGTERM) for sign, offset in ((-1, 0), (1, 128))
}
#: Seconds between SIGTERM and SIGKILL.
TERMINATE_S = 10.0


class Tail(threading.Thread):
    """A thread that copies an output stream of the command to one of this process, and keeps the last lines."""

    def __init__(self, stream: IO[bytes], onto: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.onto = onto
        self.lines: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.start()

    def run(self) -> None:
        """Copy until the stream ends, without buffers: a lock held here would keep the interpreter from ending."""
        rest = b""
        while chunk := os.read(self.stream.fileno(), 1 << 16):
            *whole, rest = (rest + chunk).split(b"\n")
            self._keep(*whole)
            with contextlib.suppress(OSError):  # the log's disk may be full: the command goes on, and its result counts
                self.onto.write(chunk)
                self.onto.flush()
        self._keep(rest)

    def _keep(self, *lines: bytes) -> None:
        for line in lines:
            if text := line.decode(errors="replace").rstrip().rpartition("\r")[2]:
                self.lines.append(text)

    def reason(self) -> str:
        """Return the line that says most of why the command failed: the last exception, or else the last line."""
        lines = [*reversed(self.lines)]
        return next(filter(EXCEPTION.match, lines), lines[0] if lines else "")[:MOST_OF_REASON]


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Run the command with this attempt's configuration, at one rung after another; return the metrics of the last."""
    return at_each_rung(attempt, lambda share: run_for(attempt, share))


def run_for(attempt: worker.Attempt, share: float) -> dict[str, Any]:
    """Run the command for a share of a whole evaluation, and return its metrics."""
    settings = attempt.settings
    own = CHECKPOINT in placeholders(settings["command"]) and CHECKPOINT not in attempt.parameters
    checkpoint = attempt.trial_checkpoint() if own else ""
    command = render(settings["command"], attempt.parameters, attempt.seed, share, checkpoint)
    attempt.phase("command")
    status, out, err = run(command, settings["cwd"], settings["timeout_s"], attempt)
    output = last_object(out.lines[-1]) if out.lines else None
    if status != 0:
        if output is not None and output.get("error"):
            raise reported_error(output)
        if attempt.interrupted and status in SIGNALLED:
            raise attempt.interruption()
        how, reason = ending(status, settings["timeout_s"]), err.reason() or out.reason()
        if how.startswith("exit"):
            told = f"{reason or 'no output'} ({how}: {command})"
        else:  # what a program printed before it was killed or stopped is a cause only if it is an exception
            last = reason if EXCEPTION.match(reason) else f"its last line was {reason!r}" if reason else "no output"
            told = f"{how}: {last} ({command})"
        raise AttemptError(ErrorKind.DISK if DISK_WORDS.search(reason) else ErrorKind.CODE, told)
    if output is None:
        seen = repr(out.lines[-1][:200]) if out.lines else "nothing"
        message = f'the last line of standard output must be a JSON object such as {{"value": 0.5}}, not {seen}'
        raise AttemptError(ErrorKind.BAD_RESULT, message)
    return {**read_output(output, *needed_metrics(settings)), "command": command}


def run(command: str, cwd: str, timeout_s: float | None, attempt: worker.Attempt) -> tuple[int | None, Tail, Tail]:
    """Run `command` with bash; return its exit status (None if it was stopped) and the ends of its output streams.

    The command stays in this process's group, so that a signal that ends the job ends the command too.
    """
    environment = {
        **os.environ,
        "HPO_CLUSTER_ATTEMPT_DIR": str(attempt.files.dir),
        "HPO_CLUSTER_PREVIOUS": ":".join(map(str, attempt.previous)),
    }
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = Tail(process.stdout, sys.stdout.buffer), Tail(process.stderr, sys.stderr.buffer)
    status: int | None
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        stop(process)
        status = None
    except BaseException:
        stop(process)
        raise
    for tail in (out, err):
        tail.join(DRAIN_S)
    return status, out, err


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the command and every process that it started, with SIGTERM first and SIGKILL after TERMINATE_S."""
    family = [process.pid, *descendants(process.pid)]
    send(signal.SIGTERM, family)
    deadline = time.monotonic() + TERMINATE_S
    while any(process_start(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    send(signal.SIGKILL, [pid for pid in family if process_start(pid)])
    process.wait()


def send(order: signal.Signals, pids: list[int]) -> None:
    """Send a signal to those of the processes that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, order)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes that descend from `pid`."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def ending(status: int | None, timeout_s: float | None) -> str:
    """Return how the command ended, in words."""
    if status is None:
        return f"stopped after objective.timeout_s={timeout_s:g} seconds"
    number = -status if status < 0 else status - 128
    if 0 < number < signal.NSIG:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit status {status}"


def last_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object in a line; None if the line does not hold one."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
