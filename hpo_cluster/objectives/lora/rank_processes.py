"""The processes of an evaluation on several GPUs: started, watched and ended by the process of the job.

The process of the job (`hpo_cluster.objectives.worker`) claims the attempt, receives the signals and writes progress,
result or error. With several GPUs it computes nothing. It starts the same program once for each GPU, as a rank with its
own process, and waits for what the ranks report:

| message | from | meaning |
|---|---|---|
| ``phase``, ``progress`` | the first rank | what `Attempt.phase` and `Attempt.progress` are called with |
| ``done`` | each rank | the rank has finished; the first one sends the result |
| ``failed`` | any rank | the error that ends the attempt |

A rank that waits for one that is gone may wait for ever. Therefore the process of the job takes part in no exchange
between ranks: as soon as a rank fails or is killed, it kills all of them and reports why. If it is killed itself, the
kernel kills the ranks. Signals go to the first rank, which writes a checkpoint and reports an interruption.

The ranks stay for the next attempt of the same process, so that packages are imported once. After a failure new ones
are started.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora.ranks import RankLostError, Ranks
from hpo_cluster.objectives.signals import END_SIGNALS, handled
from hpo_cluster.objectives.worker import PROGRESS_PERIOD_S, Attempt, values_of
from hpo_cluster.record.processes import end_with_parent
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)

#: Evaluation of an attempt by one rank.
Evaluate = Callable[[Attempt, Ranks], Mapping[str, Any]]

POLL_S = 0.2
#: Seconds in which a rank that only lost its connection to another waits for the reason.
REASON_WITHIN_S = 5.0
#: Kinds of errors that may concern one rank alone, so that the message says which.
OF_ONE_RANK = (ErrorKind.CODE, ErrorKind.OUT_OF_MEMORY, ErrorKind.DISK, ErrorKind.NODE)


# --- in the process of the job ---------------------------------------------------------------------------------------


def evaluate(attempt: Attempt, count: int, program: Path) -> dict[str, Any]:
    """Evaluate an attempt on several ranks; return the result of the first one.

    Args:
        attempt: the attempt; from now on the ranks answer its signals.
        count: number of ranks.
        program: Python program that calls `main` if `is_rank` says so.

    Raises:
        AttemptError: what a rank reported, or which rank was killed.
    """
    attempt.phase("import")
    team = _team_of(count, program)
    try:
        with team.receiving_signals_of(attempt):
            return team.evaluate(attempt)
    except BaseException:
        team.end()
        raise


@dataclass(frozen=True)
class Member:
    """The process of one rank, and the connection to it."""

    rank: int
    process: subprocess.Popen[bytes]
    connection: Connection


class Team:
    """The processes of all ranks.

    Args:
        count: number of ranks.
        program: Python program that each of them runs.
    """

    def __init__(self, count: int, program: Path) -> None:
        self.count, self.program = count, program
        self._folder = Path(tempfile.mkdtemp(prefix="hpo-cluster-ranks-"))
        self._members: list[Member] = []
        self._killed_before = 0
        atexit.register(self.end)
        with _blocked_signals():  # until a rank has its handlers
            for rank in range(count):
                self._members.append(self._start(rank))

    def _start(self, rank: int) -> Member:
        mine, of_rank = Pipe()
        (self._folder / "tmp").mkdir(exist_ok=True)
        threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        environment = {
            "GLOO_SOCKET_IFNAME": "lo",  # all ranks are on this machine
            **os.environ,
            "OMP_NUM_THREADS": str(max(1, threads // self.count)),
            "TMPDIR": str(self._folder / "tmp"),  # removed here: a rank may be killed
        }
        numbers = [str(number) for number in (rank, self.count, of_rank.fileno(), os.getpid())]
        with of_rank:
            process = subprocess.Popen(
                [sys.executable, str(self.program), RANK_OPTION, *numbers, str(self._folder / "store")],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[of_rank.fileno()],
            )
        return Member(rank, process, mine)

    @property
    def alive(self) -> bool:
        """Whether all processes live."""
        return bool(self._members) and all(member.process.poll() is None for member in self._members)

    def end(self) -> None:
        """Kill all processes, and remove their temporary files."""
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.wait()
            member.connection.close()
        self._members = []
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.end)

    @contextlib.contextmanager
    def receiving_signals_of(self, attempt: Attempt) -> Iterator[None]:
        """Within the context, pass SIGUSR2 and SIGTERM on to the first rank, after the attempt's own handlers."""
        first = self._members[0].process
        before = {number: signal.getsignal(number) for number in END_SIGNALS}

        def pass_on(number: int, frame: FrameType | None) -> None:
            own = before[signal.Signals(number)]
            if callable(own):
                own(number, frame)
            first.send_signal(number)

        attempt.looks = True  # SIGTERM ends it as soon as the first rank has answered
        with handled(pass_on):
            yield

    def evaluate(self, attempt: Attempt) -> dict[str, Any]:
        """Let the ranks evaluate an attempt; see `evaluate`."""
        self._killed_before = processes_killed_for_memory()
        working = {member.connection: member for member in self._members}
        for connection in working:
            with contextlib.suppress(OSError):  # a rank that is dead already is found below
                connection.send(attempt.files.dir)
        result: dict[str, Any] = {}
        lost: AttemptError | None = None
        patience = math.inf
        while working:
            ready = wait(list(working), timeout=POLL_S)
            for connection, member in [(one, member) for one, member in working.items() if one in ready]:
                try:
                    kind, *content = connection.recv()
                except (EOFError, OSError):
                    raise self._death(member) from None
                if kind == "phase":
                    attempt.phase(*content)
                    if attempt.interrupted is not None:  # perhaps before the first rank heard signals
                        member.process.send_signal(signal.Signals[attempt.interrupted])
                elif kind == "progress":
                    used, fields = content
                    attempt.used = used.copy
                    attempt.progress(**fields)
                elif kind == "done":
                    del working[connection]
                    result = content[0] if member.rank == 0 else result
                elif not content[1]:
                    raise self._failure(member, content[0])
                elif lost is None:
                    lost, patience = self._failure(member, content[0]), time.monotonic() + REASON_WITHIN_S
            for member in self._members:
                if member.process.poll() is not None and not member.connection.poll():
                    raise self._death(member)
            if lost is not None and time.monotonic() >= patience:
                raise lost
        return result

    def _failure(self, member: Member, document: dict[str, Any]) -> AttemptError:
        """Return the error that a rank reported."""
        kind, message = document.pop("kind"), document.pop("message")
        if member.rank > 0 and kind in OF_ONE_RANK:
            message = f"GPU {member.rank} of {self.count} (counted from 0): {message}"
        return AttemptError(kind, message, **document)

    def _death(self, member: Member) -> AttemptError:
        """Return the error of an attempt one of whose processes has ended and reported nothing."""
        status = member.process.wait()
        who = f"the process of GPU {member.rank} of {self.count} (counted from 0)"
        if status >= 0:
            return AttemptError(ErrorKind.VANISHED, f"{who} ended with status {status}; see the job's log")
        name = signal.Signals(-status).name
        if processes_killed_for_memory() > self._killed_before:
            hint = "the memory of the job was full; set launcher.mem_gb"
            return AttemptError(ErrorKind.OUT_OF_MEMORY, f"{who} was ended by {name}: {hint}")
        return AttemptError(ErrorKind.VANISHED, f"{who} was ended by {name}")


_teams: list[Team] = []  # at most one


def _team_of(count: int, program: Path) -> Team:
    """Return the team of this process, which is a new one unless the last one can be used again."""
    if _teams and (not _teams[0].alive or (_teams[0].count, _teams[0].program) != (count, program)):
        _teams.pop().end()
    if not _teams:
        _teams.append(Team(count, program))
    return _teams[0]


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block the handled signals; processes that are started within the context begin with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def processes_killed_for_memory(listed: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processes of this one's control group the kernel has killed because its memory was full.

    Args:
        listed: lists the control groups of this process.
        root: where the control groups are mounted.
    """
    killed = 0
    with contextlib.suppress(OSError, ValueError):
        for line in listed.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            folder = {"": root, "memory": root / "memory"}.get(controllers)
            for name in ("memory.events", "memory.oom_control") if folder is not None else ():
                with contextlib.suppress(OSError):
                    fields = (folder / path.lstrip("/") / name).read_text().split()  # type: ignore[operator]
                    killed += int(dict(zip(fields[::2], fields[1::2], strict=False)).get("oom_kill", 0))
    return killed


# --- in the process of a rank ----------------------------------------------------------------------------------------

RANK_OPTION = "--rank"


def is_rank() -> bool:
    """Return whether this process was started as a rank."""
    return sys.argv[1:2] == [RANK_OPTION]


class AttemptOfRank(Attempt):
    """An attempt as a rank sees it: the first rank reports to the process of the job, and the others report nothing.

    Args:
        directory: of the attempt.
        connection: to the process of the job.
        first: whether it is that of the first rank.
    """

    def __init__(self, directory: Path, connection: Connection, *, first: bool) -> None:
        super().__init__(directory)
        self._connection, self._is_first, self._sent_at = connection, first, -math.inf

    def phase(self, name: str) -> None:
        """Start a phase; see `Attempt`."""
        if self._is_first:
            self._connection.send(("phase", name))
        super().phase(name)

    def progress(self, *, force: bool = False, **fields: Any) -> None:
        """Report progress; see `Attempt`."""
        now = time.monotonic()
        if self._is_first and (force or now - self._sent_at >= PROGRESS_PERIOD_S):
            self._sent_at = now
            self._connection.send(("progress", dict(self.used()), values_of(fields)))

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> bool:
        """Save a checkpoint; see `Attempt`."""
        return not self._is_first or super().save_checkpoint(step, write)


def main(evaluate: Evaluate, argv: Sequence[str] | None = None) -> int:
    """Be a rank: evaluate the attempts that the process of the job names, until it ends."""
    parser = argparse.ArgumentParser(description="Be one of the processes of an attempt on several GPUs.")
    parser.add_argument(RANK_OPTION, action="store_true", help="this program was started for one GPU")
    for name in ("rank", "count", "connection", "parent"):
        parser.add_argument(f"{name}_number", type=int)
    parser.add_argument("store", type=Path)
    given = parser.parse_args(argv)
    end_with_parent()
    if os.getppid() != given.parent_number:  # it had ended before the line above
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, for all processes: the job's process answers it
    ranks = Ranks(given.rank_number, given.count_number, given.store)
    level = logging.INFO if ranks.first else logging.WARNING
    form = f"%(asctime)s %(levelname)s GPU {ranks.rank} %(name)s %(message)s"
    logging.basicConfig(level=level, format=form)
    connection: Connection = Connection(given.connection_number)
    while True:
        try:
            directory = connection.recv()
        except (EOFError, OSError):
            return 0
        _write_log_of(given.parent_number)
        attempt = AttemptOfRank(directory, connection, first=ranks.first)
        answer = _answer(evaluate, attempt, ranks)
        _ignore_signals()  # until the next attempt
        with contextlib.suppress(BrokenPipeError):
            connection.send(answer)


def _write_log_of(parent: int) -> None:
    """Write to the files that the process of the job writes to now: each attempt may have a log of its own."""
    for number in (1, 2):
        with contextlib.suppress(OSError):  # a socket cannot be opened by another process
            path = Path(f"/proc/{parent}/fd/{number}")
            if not os.path.samestat(path.stat(), os.fstat(number)):
                opened = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.dup2(opened, number)
                os.close(opened)


def _answer(evaluate: Evaluate, attempt: AttemptOfRank, ranks: Ranks) -> tuple[Any, ...]:
    """Evaluate an attempt; return the message that says how it ended."""
    try:
        if not ranks.first:
            _ignore_signals()
        with worker.signals_interrupting(attempt) if ranks.first else contextlib.nullcontext():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
            return ("done", dict(evaluate(attempt, ranks)))
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        return ("failed", worker.described(error, attempt), isinstance(error, RankLostError))


def _ignore_signals() -> None:
    for number in END_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
