"""The contract between the driver and a job: a directory.

The driver writes ``params.json``. The job claims the directory, works, rewrites ``progress.json`` as it goes and
publishes ``result.json`` or ``error.json``, whole or not at all. A program in ``jobs/`` is one call::

    if __name__ == "__main__":
        sys.exit(worker.main(evaluate))

where ``evaluate(attempt)`` returns the result as a dictionary with at least ``metrics`` (name to number) and
raises `AttemptError` to end with a typed error. Anybody can run the same attempt again by hand::

    python jobs/lora.py campaigns/first/trials/t0007/a0 --copy-to /tmp/again

**Interruption.** Slurm's ``--signal`` and OAR's ``--checkpoint`` send SIGUSR2 before the time is over, preemption sends
SIGTERM. A program that has set `Attempt.looks` finds the signal's name in `Attempt.interrupted` when it next looks; it
then keeps what it has with `Attempt.save_checkpoint` and raises `Attempt.interruption`. The next attempt of the trial
finds that folder among `Attempt.checkpoints`, as it finds the last one of an attempt that was killed without warning. A
program that does not look works on after SIGUSR2, is ended by SIGTERM at once, and begins anew.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from hpo_cluster.clock import utc_now
from hpo_cluster.errors import AttemptError
from hpo_cluster.files import STORAGE, Reserve, dumps, publish_once, read_json, redact, replace_text
from hpo_cluster.layout import AttemptLayout
from hpo_cluster.processes import process_start
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)

SCHEMA = 1
PROGRESS_PERIOD_S = 1.0
HANDLED = (signal.SIGUSR2, signal.SIGTERM)
CLAIMED_EXIT_STATUS, NOTHING_WRITTEN_EXIT_STATUS = 3, 4
CHECKPOINT_LIST = "checkpoint.json"  # in each checkpoint: its step, and the sizes of its files

#: Packages whose versions a result records, where they are installed.
RECORDED_PACKAGES = ("torch", "litgpt", "lm_eval", "transformers", "tokenizers", "datasets", "numpy", "hpo_cluster")


class Attempt:
    """One attempt as the job sees it.

    Attributes:
        files: paths of the attempt directory.
        parameters: the configuration to evaluate, name to value.
        settings: the objective's fixed settings (JSON).
        seed: of this trial; a retry has the same.
        baseline: whether to score the model as it is, without training.
        previous: directories of the trial's earlier attempts, newest first.
        interrupted: name of the signal that asks the program to keep what it has and end; None: go on.
        looks: whether the program looks at `interrupted` now and then, and so is not to be ended by a signal.
    """

    def __init__(self, directory: Path) -> None:
        self.files = AttemptLayout(directory.resolve())
        params = read_json(self.files.params)
        if params is None:
            raise SystemExit(f"{self.files.params}: no such file, or no JSON object. Give an attempt directory.")
        if params.get("schema") != SCHEMA:
            raise SystemExit(f"{self.files.params}: schema {params.get('schema')!r}, this code reads {SCHEMA}")
        self.params: dict[str, Any] = params
        self.parameters: dict[str, Any] = params["parameters"]
        self.settings: dict[str, Any] = params["settings"]
        self.seed = int(params["seed"])
        self.baseline = bool(params.get("baseline", False))
        self.previous = [Path(folder) for folder in reversed(params.get("previous") or [])]
        self.interrupted: str | None = None
        self.looks = False
        self.told: dict[str, Any] = {}
        self._progress_at = -math.inf
        self._seconds: dict[str, float] = {}
        self._phase = ("", time.monotonic())

    def phase(self, name: str, **told: Any) -> None:
        """Begin a phase of the work (``import``, ``train``, ``score``…); its seconds go into the result.

        `told` (JSON) goes with everything that is told of the phase: its progress, and the error that it may end with.
        """
        self._close_phase()
        self._phase = (name, time.monotonic())
        self.told = told
        self.progress(force=True)

    def progress(self, *, force: bool = False, **fields: Any) -> None:
        """Tell where the work is (``step=``, ``total=``, ``loss=``…); written once a second at most, or by force."""
        now = time.monotonic()
        if not force and now - self._progress_at < PROGRESS_PERIOD_S:
            return
        self._progress_at = now
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        try:
            replace_text(self.files.progress, dumps({"phase": self._phase[0], "at": utc_now(), **self.told, **finite}))
        except OSError as error:  # progress is a courtesy: the result is not given up for it
            log.warning("progress not written: %s", error)

    def interruption(self) -> AttemptError:
        """The error to end with after `interrupted` has been seen, and a checkpoint saved where there is one."""
        return AttemptError(ErrorKind.INTERRUPTED, f"{self.interrupted} asked to end during {self.current_phase}")

    @property
    def current_phase(self) -> str:
        """Name of the phase that the work is in."""
        return self._phase[0]

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> bool:
        """Keep where the work is, whole or not at all, in the place of what was kept before.

        Args:
            step: how far the work is; it only grows.
            write: writes any files into the empty folder that it is given.

        Returns:
            Whether it is kept. A full disk is no reason to end: it is logged, and the checkpoint before stays.
        """
        if checkpoint_step(self.files) == step:
            return True
        folder = self.files.checkpoint_dir
        temporary = folder / f".{step}-{secrets.token_hex(4)}"
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            for path in temporary.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
            replace_text(temporary / CHECKPOINT_LIST, dumps({"step": step, "files": sizes}))
            temporary.rename(folder / str(step))
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError where a file cannot be written
            log.warning("no checkpoint at step %d: %s", step, error)
            return False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for attempt_dir in (self.files.dir, *self.previous):
            for number, path in _checkpoints(AttemptLayout(attempt_dir)):
                if number < step or (number == step and attempt_dir != self.files.dir):
                    shutil.rmtree(path, ignore_errors=True)
        return True

    @property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints of earlier attempts: of the newest attempt first, its last one first."""
        return [path for folder in self.previous for _, path in _checkpoints(AttemptLayout(folder))]

    def remove_checkpoints(self) -> None:
        """Remove the trial's checkpoints: there is a result."""
        for folder in (self.files.dir, *self.previous):
            shutil.rmtree(AttemptLayout(folder).checkpoint_dir, ignore_errors=True)

    def seconds(self) -> dict[str, float]:
        """Wall seconds of each phase until now."""
        self._close_phase()
        return dict(self._seconds)

    def _close_phase(self) -> None:
        name, began = self._phase
        now = time.monotonic()
        if name:
            self._seconds[name] = round(self._seconds.get(name, 0.0) + now - began, 3)
        self._phase = (name, now)


def _checkpoints(files: AttemptLayout) -> list[tuple[int, Path]]:
    """Step and folder of an attempt's whole checkpoints, the last one first."""
    found = []
    with contextlib.suppress(OSError):
        for path in files.checkpoint_dir.iterdir():
            listed = read_json(path / CHECKPOINT_LIST) or {}
            sizes, step = listed.get("files"), listed.get("step")
            if not isinstance(sizes, dict) or type(step) is not int or path.name != str(step):
                continue
            with contextlib.suppress(OSError):
                if {name: (path / name).stat().st_size for name in sizes} == sizes:
                    found.append((step, path))
    return sorted(found, reverse=True)


def checkpoint_step(files: AttemptLayout) -> int:
    """How far the attempt's last whole checkpoint is; zero where it has none."""
    return max((step for step, _ in _checkpoints(files)), default=0)


def job_identity() -> dict[str, Any]:
    """Which job this process is: the scheduler's id (or the pid), host, node, pid and its start time."""
    job_id = os.environ.get("SLURM_JOB_ID") or os.environ.get("OAR_JOB_ID") or str(os.getpid())
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return {
        "job": job_id,
        "host": socket.gethostname(),
        "node": node,
        "pid": os.getpid(),
        "pid_started": process_start(os.getpid()),
    }


def claim(attempt: Attempt, started_at: str) -> bool:
    """Take the attempt for this job; False where another job has it."""
    document = {"token": attempt.params.get("token"), **job_identity(), "started_at": started_at}
    return publish_once(attempt.files.claim, dumps(document))


def result_faults(result: Any) -> list[str]:
    """Why `result` (parsed ``result.json``) is not one; empty when it is. Driver and job use the same rule."""
    if not isinstance(result, Mapping):
        return ["is no JSON object"]
    metrics = result.get("metrics")
    if not isinstance(metrics, Mapping) or not metrics:
        return ["metrics is missing or empty"]
    faults = []
    for section in ("metrics", "sems"):
        numbers = result.get(section) or {}
        if not isinstance(numbers, Mapping):
            faults.append(f"{section} is no object")
            continue
        wrong = [(name, value) for name, value in numbers.items() if not is_finite_number(value)]
        faults += [f"{section}.{name}={value!r:.80} is no finite number" for name, value in wrong]
    return faults


def is_finite_number(value: Any) -> bool:
    """Return whether a value of parsed JSON is a number, and one that a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def classify(error: BaseException) -> str:
    """The error kind of an exception that a program let through."""
    if isinstance(error, AttemptError):
        return error.kind
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ErrorKind.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
        return ErrorKind.OUT_OF_MEMORY
    if any(isinstance(cause, OSError) and cause.errno in STORAGE for cause in _causes(error)):
        return ErrorKind.DISK
    if any(_DISK_WORDS.search(str(cause)) for cause in _causes(error)):  # of libraries that write without Python
        return ErrorKind.DISK
    return ErrorKind.CODE


#: What torch, safetensors and the programs that a job starts say when they cannot write.
_DISK_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|Stale file handle"
    r"|PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos"  # torch.save on a full disk
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that a traceback would show before it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def run(attempt: Attempt, evaluate: Callable[[Attempt], Mapping[str, Any]]) -> int:
    """Claim, evaluate, publish.

    Returns:
        The exit status: 0 result, 1 error, 3 not ours (or no longer wanted), 4 the storage took neither.
    """
    try:
        return _run(attempt, evaluate)
    except OSError as error:
        if classify(error) != ErrorKind.DISK:
            raise
        _print_failure(ErrorKind.DISK, str(error))
        return NOTHING_WRITTEN_EXIT_STATUS


def _print_failure(kind: str, message: str) -> None:
    """Print how the attempt ended as the last line of its log, which is read if it could publish nothing."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"attempt failed: {kind}: {redact(message)}\n")
        sys.stderr.flush()


def _run(attempt: Attempt, evaluate: Callable[[Attempt], Mapping[str, Any]]) -> int:
    started_at = utc_now()
    if attempt.files.cancel.exists():
        log.warning("attempt cancelled before it began; nothing done")
        return CLAIMED_EXIT_STATUS
    if not claim(attempt, started_at):
        owner = read_json(attempt.files.claim) or {}
        log.warning("attempt claimed already by job %s on %s; nothing done", owner.get("job"), owner.get("host"))
        return CLAIMED_EXIT_STATUS
    common = {
        "schema": SCHEMA,
        **{key: attempt.params.get(key) for key in ("campaign", "trial", "attempt", "token", "code")},
        **job_identity(),
        "started_at": started_at,
    }
    reserve = Reserve(attempt.files.dir)
    try:
        result = dict(evaluate(attempt))
        if faults := result_faults(result):
            raise AttemptError(ErrorKind.BAD_RESULT, "; ".join(faults))
        document = {
            **common,
            "ended_at": utc_now(),
            "seed": attempt.seed,
            "seconds": attempt.seconds(),
            "versions": package_versions(),
            **result,
        }
        reserve.publish_once(attempt.files.result, dumps(document))
        attempt.remove_checkpoints()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        kind, message = classify(error), str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):  # SIGINT: how submitit's local executor ends a job at its walltime
            kind, message = ErrorKind.INTERRUPTED, f"SIGINT asked to end during {attempt.current_phase}"
        elif attempt.interrupted is not None and isinstance(error, SystemExit):
            kind = ErrorKind.INTERRUPTED
        if kind == ErrorKind.CODE:
            traceback.print_exc()
        _print_failure(kind, message)
        document = {
            **common,
            "ended_at": utc_now(),
            "kind": str(kind),
            "message": redact(message)[:4000],
            "traceback": redact(traceback.format_exc())[-8000:],
            "seconds": attempt.seconds(),
            **attempt.told,
            **getattr(error, "fields", {}),
        }
        reserve.publish_once(attempt.files.error, dumps(document))
        return 1
    finally:
        reserve.release()
    return 0


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    versions = {"python": sys.version.split()[0]}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def _keep_from_children() -> None:
    """Let every process that this one forks from now on die of the signals that are handled here.

    Process pools end their processes with SIGTERM and wait for them, which takes for ever if that only calls a handler.
    """

    def forget() -> None:
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        let_through()

    def hold() -> None:  # in between a signal would meet the handler still
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)

    def let_through() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    os.register_at_fork(before=hold, after_in_parent=let_through, after_in_child=forget)


@contextlib.contextmanager
def _signals(attempt: Attempt) -> Iterator[None]:
    """While this lasts, SIGUSR2 and SIGTERM interrupt the attempt."""
    asked: set[int] = set()

    def handle(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # not logged: a signal may come while something else is
            os.write(2, f"{name} received\n".encode())
        attempt.interrupted = attempt.interrupted or name
        if number == signal.SIGTERM and number not in asked and not attempt.looks:
            asked.add(number)  # a second one must not disturb what the first has begun
            raise SystemExit(str(attempt.interruption()))  # no Exception: those are often passed over

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    _keep_from_children()
    before = {number: signal.signal(number, handle) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(evaluate: Callable[[Attempt], Mapping[str, Any]], argv: list[str] | None = None) -> int:
    """Entry point of a program in ``jobs/``: parse the attempt directory, run it."""
    parser = argparse.ArgumentParser(description="Evaluate one attempt of a campaign.")
    parser.add_argument("attempt_dir", type=Path, help="folder that holds params.json")
    parser.add_argument("--copy-to", type=Path, metavar="DIR", help="run a copy of the attempt in DIR, a new folder")
    arguments = parser.parse_args(argv)
    directory: Path = arguments.attempt_dir
    if arguments.copy_to is not None:
        arguments.copy_to.mkdir(parents=True)
        params = {**(read_json(directory / "params.json") or {}), "previous": []}  # from its beginning
        replace_text(arguments.copy_to / "params.json", dumps(params))
        directory = arguments.copy_to
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    attempt = Attempt(directory)
    with _signals(attempt):
        status = run(attempt, evaluate)
    if arguments.copy_to is not None and status != CLAIMED_EXIT_STATUS:
        log.info("written: %s", directory / ("result.json" if status == 0 else "error.json"))
    return status
