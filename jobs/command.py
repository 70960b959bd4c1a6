"""Evaluate one attempt of ``objective=command``: run the command, read the last line of its output."""

from __future__ import annotations

import collections
import contextlib
import json
import os
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
from hpo_cluster.objectives.black_box import read_output, reported_error
from hpo_cluster.objectives.command import render
from hpo_cluster.record.processes import process_start
from hpo_cluster.trial import ErrorKind

#: What an error message keeps of each of the command's streams.
TAIL_LINES = 30
#: How long to wait for output once the command has ended: a process it left behind may hold the stream open.
DRAIN_S = 5.0
#: Exit statuses of a command that a warning or a request to end has ended, its own or as a shell tells of its child.
SIGNALLED = {
    sign * int(number) + offset for number in (signal.SIGUSR2, signal.SIGTERM) for sign, offset in ((-1, 0), (1, 128))
}
#: From the request to end to the order.
TERMINATE_S = 10.0


class Tail(threading.Thread):
    """Passes a stream of the command on to one of ours, and keeps its end."""

    def __init__(self, stream: IO[bytes], onto: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self.stream = stream
        self.onto = onto
        self.lines: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self.start()

    def run(self) -> None:
        """Copy until the stream ends. Unbuffered: a lock held here would stop the interpreter from ending."""
        rest = b""
        while chunk := os.read(self.stream.fileno(), 1 << 16):
            self.onto.write(chunk)
            self.onto.flush()
            *whole, rest = (rest + chunk).split(b"\n")
            self._keep(*whole)
        self._keep(rest)

    def _keep(self, *lines: bytes) -> None:
        for line in lines:
            if text := line.decode(errors="replace").rstrip().rpartition("\r")[2]:
                self.lines.append(text)

    def text(self) -> str:
        """The end of the stream, empty lines left out."""
        return "\n".join(self.lines)


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Run the command of this attempt's configuration."""
    settings = attempt.settings
    command = render(settings["command"], attempt.parameters, attempt.seed)
    attempt.phase("command")
    status, out, err = run(command, settings["cwd"], settings["timeout_s"], attempt)
    output = last_object(out.lines[-1]) if out.lines else None
    if status != 0:
        if output is not None and output.get("error"):
            raise reported_error(output)
        if attempt.interrupted and status in SIGNALLED:
            raise attempt.interruption()
        shown = err.text() or out.text() or "(no output)"
        raise AttemptError(ErrorKind.CODE, f"{ending(status, settings['timeout_s'])}: {command}\n{shown[-3000:]}")
    if output is None:
        seen = repr(out.lines[-1][:200]) if out.lines else "nothing"
        message = f'the last line of standard output must be a JSON object such as {{"value": 0.5}}, not {seen}'
        raise AttemptError(ErrorKind.BAD_RESULT, message)
    return {**read_output(output, settings["metric"]), "command": command}


def run(command: str, cwd: str, timeout_s: float | None, attempt: worker.Attempt) -> tuple[int | None, Tail, Tail]:
    """Run `command` with bash. Returns its exit status, None where it was stopped, and the end of its streams.

    It stays in this process's group, so that whatever ends the job ends it too.
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
    """End the command and every process that it started: ask, and kill those that are there after a while."""
    family = [process.pid, *descendants(process.pid)]
    send(signal.SIGTERM, family)
    deadline = time.monotonic() + TERMINATE_S
    while any(process_start(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    send(signal.SIGKILL, [pid for pid in family if process_start(pid)])
    process.wait()


def send(order: signal.Signals, pids: list[int]) -> None:
    """Signal processes, those that are gone already left out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, order)


def descendants(pid: int) -> list[int]:
    """Processes that `pid` started, and those that they started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def ending(status: int | None, timeout_s: float | None) -> str:
    """How the command ended, in words."""
    if status is None:
        return f"stopped after objective.timeout_s={timeout_s:g} seconds"
    number = -status if status < 0 else status - 128
    if 0 < number < signal.NSIG:
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit status {status}"


def last_object(line: str) -> dict[str, Any] | None:
    """The JSON object in a line, or None."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
