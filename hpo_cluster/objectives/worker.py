"""The contract between the driver and a job: a directory.

The driver writes ``params.json``. The job claims the directory, works, rewrites ``progress.json`` as it goes and
publishes ``result.json`` or ``error.json``, each of them atomically. A program in ``jobs/`` is one call::

    if __name__ == "__main__":
        sys.exit(worker.main(evaluate))

where ``evaluate(attempt)`` returns the result as a dictionary with at least ``metrics`` (name to number) and
raises `AttemptError` to end with a typed error. Anyone can run the same attempt again by hand::

    python jobs/lora.py campaigns/first/trials/t0007/a0 --copy-to /tmp/again

**Interruption.** Slurm's ``--signal`` and OAR's ``--checkpoint`` send SIGUSR2 before the walltime is over; preemption
sends SIGTERM. A program that sets `Attempt.looks` must check `Attempt.interrupted` regularly. Once `interrupted` holds
the name of a signal, the program calls `Attempt.save_checkpoint` and raises `Attempt.interruption`. The next attempt of
the trial finds the checkpoint in `Attempt.checkpoints`, which also holds the last one of an attempt that was killed
without warning. A program that does not check keeps running after SIGUSR2 and is ended by SIGTERM at once; its next
attempt starts from the beginning.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import math
import os
import secrets
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import GPU_SECONDS
from hpo_cluster.objectives.climbing import WAIT, Climb
from hpo_cluster.objectives.error_kinds import classify
from hpo_cluster.objectives.one_after_another import next_attempt, noting_signals, start_program_again, write_log_of
from hpo_cluster.objectives.signals import END_SIGNALS, handled, in_main_thread
from hpo_cluster.record.attempt_files import (
    CHECKPOINT_LIST,
    CLAIMED_EXIT_STATUS,
    NOTHING_WRITTEN_EXIT_STATUS,
    SCHEMA,
    checkpoint_step,
    checkpoints_of,
    job_identity,
    result_faults,
)
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import (
    PASSING,
    Reserve,
    dumps,
    patiently,
    publish_once,
    read_json,
    redact,
    remove_folder,
    replace_text,
)
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.next_attempt import has_another_turn, job_goes_on
from hpo_cluster.record.versions import package_versions
from hpo_cluster.trial import ErrorKind

log = logging.getLogger(__name__)

PROGRESS_PERIOD_S = 1.0

#: Phases whose seconds are not part of what an evaluation costs.
UNCOUNTED = ("import", WAIT)


def values_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a progress report, those included that are given as functions."""
    return {name: value() if callable(value) else value for name, value in fields.items()}


class Attempt:
    """An attempt, as the program in its job sees it.

    Attributes:
        files: paths in the attempt directory.
        parameters: the configuration to evaluate, values by name.
        settings: the objective's fixed settings (JSON).
        seed: seed of the trial; a retry has the same.
        baseline: whether to score the model without training.
        previous: directories of the trial's earlier attempts, newest first.
        interrupted: name of the signal that asked the program to save its state and end; None if none has arrived.
        looks: whether the program checks `interrupted` regularly, so that SIGTERM must not end it at once.
        earlier_s: seconds of earlier attempts whose work this one goes on with, set by a program with checkpoints.
        climb: the rungs at which the evaluation is looked at; None without any.
        used: returns what the attempt has used until now (JSON: ``energy_wh``), for its progress and its error.
    """

    def __init__(self, directory: Path) -> None:
        self.files = AttemptLayout(directory.resolve())
        params = read_json(self.files.params)
        if params is None:
            raise SystemExit(f"{self.files.params} does not exist or is not a JSON object. Give an attempt directory.")
        if params.get("schema") != SCHEMA:
            raise SystemExit(
                f"{self.files.params}: schema {params.get('schema')!r}, but this code reads schema {SCHEMA}"
            )
        self.params: dict[str, Any] = params
        self.parameters: dict[str, Any] = params["parameters"]
        self.settings: dict[str, Any] = params["settings"]
        self.seed = int(params["seed"])
        self.baseline = bool(params.get("baseline", False))
        self.previous = [Path(folder) for folder in reversed(params.get("previous") or [])]
        self.interrupted: str | None = None
        self.looks = False
        self.climb = Climb.of(self)
        self.earlier_s = 0.0 if self.climb is None else self.climb.earlier_s()
        self.used: Callable[[], Mapping[str, Any]] = dict
        self._progress_at = -math.inf
        self._seconds: dict[str, float] = {}
        self._phase = ("", time.monotonic())
        self._trial_checkpoint: Path | None = None

    def phase(self, name: str) -> None:
        """Start a phase of the work (``import``, ``train``, ``score``…); the result records its seconds."""
        self._close_phase()
        self._phase = (name, time.monotonic())
        self.progress(force=True)

    def progress(self, *, force: bool = False, **fields: Any) -> None:
        """Report progress (``step=``, ``total=``, ``loss=``…); written once a second at most, unless `force`.

        A field may be a function without arguments that returns its value; it is called only when progress is written.
        """
        now = time.monotonic()
        if not force and now - self._progress_at < PROGRESS_PERIOD_S:
            return
        self._progress_at = now
        values = values_of(fields).items()
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values}
        try:
            document = {"phase": self._phase[0], "at": utc_now(), **self.used(), **finite}
            replace_text(self.files.progress, dumps(document))
        except OSError as error:  # progress is optional: do not lose the result because of it
            log.warning("progress not written: %s", error)

    def interruption(self) -> AttemptError:
        """Return the error to raise once `interrupted` is set and a checkpoint, if there is any, is saved."""
        return AttemptError(ErrorKind.INTERRUPTED, f"{self.interrupted} asked to end during {self.current_phase}")

    @property
    def current_phase(self) -> str:
        """Name of the current phase."""
        return self._phase[0]

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> bool:
        """Save a checkpoint atomically, then remove the earlier ones.

        Args:
            step: number of the last step done; it never decreases.
            write: writes any files to the empty folder that is passed to it.

        Returns:
            Whether the checkpoint is saved. If not (the disk may be full), this is logged and the previous one stays.
        """
        if checkpoint_step(self.files) == step:
            return True
        folder = self.files.checkpoint_dir
        temporary = folder / f".{step}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(exist_ok=True)  # not its parents: a campaign that was moved is not made again
            temporary.mkdir()
            write(temporary)
            for path in temporary.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
            sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
            replace_text(temporary / CHECKPOINT_LIST, dumps({"step": step, "files": sizes}))
            temporary.rename(folder / str(step))
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if it cannot write a file
            log.warning("checkpoint at step %d not saved: %s", step, error)
            return False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for attempt_dir in (self.files.dir, *self.previous):
            for number, path in checkpoints_of(AttemptLayout(attempt_dir)):
                if number < step or (number == step and attempt_dir != self.files.dir):
                    shutil.rmtree(path, ignore_errors=True)
        return True

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints of earlier attempts: newest attempt first, and its last checkpoint first."""
        return [path for folder in self.previous for _, path in checkpoints_of(AttemptLayout(folder))]

    def trial_checkpoint(self) -> Path:
        """Return a folder that all attempts of the trial share, and make it.

        It is for programs with checkpoints of their own, and is removed once the evaluation is whole.
        """
        own = self.params.get("trial_checkpoint_dir")
        self._trial_checkpoint = self.files.trial_checkpoint_dir if own is None else Path(own)
        self._trial_checkpoint.mkdir(exist_ok=True)
        return self._trial_checkpoint

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of all attempts of the trial, once there is a result."""
        for folder in (self.files.dir, *self.previous):
            remove_folder(AttemptLayout(folder).checkpoint_dir)
        if self._trial_checkpoint is not None:
            remove_folder(self._trial_checkpoint)

    def seconds(self) -> dict[str, float]:
        """Return the wall-clock seconds of each phase so far."""
        self._close_phase()
        return dict(self._seconds)

    def gpu_seconds(self) -> float:
        """Return the cost of the evaluation so far: its seconds times its GPUs, or times one if it has none.

        The phase ``import`` is left out: it says nothing of the configuration, and a job with several trials imports
        once. So is ``wait``: nothing is done while a job waits at a rung. The seconds of earlier attempts whose work
        goes on here are part of it.
        """
        seconds = self.earlier_s + sum(s for phase, s in self.seconds().items() if phase not in UNCOUNTED)
        return round(seconds * max(1, int(self.params.get("gpus") or 0)), 3)

    def _close_phase(self) -> None:
        name, began = self._phase
        now = time.monotonic()
        if name:
            self._seconds[name] = round(self._seconds.get(name, 0.0) + now - began, 3)
        self._phase = (name, now)


def claim(attempt: Attempt, started_at: str) -> bool:
    """Claim the attempt for this job; return False if another job has claimed it."""
    document = {"token": attempt.params.get("token"), **job_identity(), "started_at": started_at}
    return publish_once(attempt.files.claim, dumps(document))


def described(error: BaseException, attempt: Attempt) -> dict[str, Any]:
    """Return kind, message, traceback (JSON) and what was used, of an exception that ends the attempt.

    Called where the exception is handled. The traceback of an exception that nobody expected is printed too.
    """
    kind, message = classify(error), str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):  # submitit's local executor ends a job with SIGINT at its walltime
        kind, message = ErrorKind.INTERRUPTED, f"SIGINT asked to end during {attempt.current_phase}"
    elif attempt.interrupted is not None and isinstance(error, SystemExit):
        kind = ErrorKind.INTERRUPTED
    if kind == ErrorKind.CODE and not isinstance(error, AttemptError):
        traceback.print_exc()
    return {
        "kind": str(kind),
        "message": message,
        "traceback": redact(traceback.format_exc())[-8000:],
        **attempt.used(),
        **getattr(error, "fields", {}),
    }


def run(attempt: Attempt, evaluate: Callable[[Attempt], Mapping[str, Any]]) -> int:
    """Claim the attempt, evaluate it and publish its result or error.

    Returns:
        The exit status: 0 result published, 1 error published, 3 claimed by another job or cancelled, 4 neither result
        nor error could be written.
    """
    try:
        return _run(attempt, evaluate)
    except OSError as error:
        if classify(error) != ErrorKind.DISK and error.errno not in PASSING:
            raise
        _print_failure(ErrorKind.DISK, str(error))
        return NOTHING_WRITTEN_EXIT_STATUS


def _print_failure(kind: str, message: str) -> None:
    """Print the error as the last line of the log, where the driver looks if no file could be published."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"attempt failed: {kind}: {' '.join(redact(message).split())}\n")
        sys.stderr.flush()


def _run(attempt: Attempt, evaluate: Callable[[Attempt], Mapping[str, Any]]) -> int:
    started_at = utc_now()
    if attempt.files.cancel.exists():
        log.warning("attempt was cancelled before it began; nothing to do")
        return CLAIMED_EXIT_STATUS
    if not claim(attempt, started_at):
        owner = read_json(attempt.files.claim) or {}
        log.warning("attempt is already claimed by job %s on %s; nothing to do", owner.get("job"), owner.get("host"))
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
        if attempt.climb is not None:
            result = {**attempt.climb.part_of_result(), **result}
        if faults := result_faults(result):
            raise AttemptError(ErrorKind.BAD_RESULT, "; ".join(faults))
        document = {
            **common,
            "ended_at": utc_now(),
            "seed": attempt.seed,
            "seconds": attempt.seconds(),
            GPU_SECONDS: attempt.gpu_seconds(),
            "versions": package_versions(),
            **result,
        }
        attempt.looks = True  # the work is done: a signal now ends the job before its next attempt, not this attempt
        patiently(functools.partial(reserve.publish_once, attempt.files.result, dumps(document)))
        if attempt.climb is None or "rung" not in result:  # the trial may go on after a rung
            attempt.remove_checkpoints()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        failure = described(error, attempt)
        _print_failure(failure["kind"], failure["message"])
        failure["message"] = redact(failure["message"])[:4000]
        document = {**common, "ended_at": utc_now(), "seconds": attempt.seconds(), **failure}
        publish = functools.partial(reserve.publish_once, attempt.files.error, dumps(document))
        if isinstance(error, OSError):  # where the storage ended the attempt, it has been waited for
            publish()
        else:
            patiently(publish)
        return 1
    finally:
        with contextlib.suppress(OSError):
            reserve.release()
    return 0


@functools.cache
def _keep_from_children() -> None:
    """Restore the default signal handlers in every process forked from now on.

    A process pool ends its processes with SIGTERM and waits for them; with our handler it would wait forever.
    """

    def forget() -> None:
        for number in END_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        let_through()

    def hold() -> None:  # a child must not receive a signal before it has dropped the handler
        signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)

    def let_through() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)

    os.register_at_fork(before=hold, after_in_parent=let_through, after_in_child=forget)


@contextlib.contextmanager
def signals_interrupting(attempt: Attempt) -> Iterator[None]:
    """Let SIGUSR2 and SIGTERM interrupt the attempt while the context is open."""
    asked: set[int] = set()

    def handle(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # not through logging: the signal may arrive while a message is being logged
            os.write(2, f"{name} received\n".encode())
        attempt.interrupted = attempt.interrupted or name
        if number == signal.SIGTERM and number not in asked and not attempt.looks:
            asked.add(number)  # a second SIGTERM must not disturb the shutdown
            raise SystemExit(str(attempt.interruption()))  # not an Exception: programs often catch those

    if in_main_thread():
        _keep_from_children()
    with handled(handle):
        yield


def main(evaluate: Callable[[Attempt], Mapping[str, Any]], argv: list[str] | None = None) -> int:
    """Run a program in ``jobs/``: parse the command line, then run the attempt. Return the exit status."""
    parser = argparse.ArgumentParser(description="Evaluate one attempt of a campaign.")
    parser.add_argument("attempt_dir", type=Path, help="directory that contains params.json")
    parser.add_argument("--copy-to", type=Path, metavar="DIR", help="run a copy of the attempt in DIR, a new directory")
    arguments = parser.parse_args(argv)
    directory: Path = arguments.attempt_dir
    if arguments.copy_to is not None:
        if not (directory / "params.json").is_file():
            parser.error(f"{directory}: is not an attempt (it has no params.json)")
        if arguments.copy_to.exists():
            parser.error(f"--copy-to {arguments.copy_to}: is there already; give a new directory")
        arguments.copy_to.mkdir(parents=True)
        params = {**(read_json(directory / "params.json") or {}), "previous": []}  # start without a checkpoint
        params["trial_checkpoint_dir"] = str(arguments.copy_to.resolve() / "checkpoint")
        if params.get("rungs"):
            params["rungs"] = {**params["rungs"], "linger_s": 0}  # no driver answers
        replace_text(arguments.copy_to / "params.json", dumps(params))
        directory = arguments.copy_to
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    attempt = Attempt(directory)
    if arguments.copy_to is None and has_another_turn(attempt.params):
        return run_one_after_another(attempt, evaluate)
    with signals_interrupting(attempt):
        status = run(attempt, evaluate)
    if arguments.copy_to is not None and status != CLAIMED_EXIT_STATUS:
        log.info("written: %s", directory / ("result.json" if status == 0 else "error.json"))
    return status


def run_one_after_another(attempt: Attempt, evaluate: Callable[[Attempt], Mapping[str, Any]]) -> int:
    """Run the attempt, then each one that the driver gives this job. Return the exit status of the last one."""
    program = Path(sys.argv[0]).resolve()
    with noting_signals() as signals:
        while True:
            with signals_interrupting(attempt):
                if signals:
                    return 0  # the attempt is not claimed, so the driver gives it to another job
                status = run(attempt, evaluate)
            if not has_another_turn(attempt.params) or not job_goes_on(attempt.files):
                return status
            if attempt.interrupted:  # since its result
                signals.append(signal.Signals[attempt.interrupted])
            following = next_attempt(attempt.files, float(attempt.params["linger_s"]), signals)
            if following is None or signals:
                return 0
            write_log_of(following)
            if status != 0:
                start_program_again(program, following)
            attempt = Attempt(following)
