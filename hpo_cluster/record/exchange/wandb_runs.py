"""Log a campaign to Weights & Biases: a run for each trial, in a group for the campaign.

wandb starts threads and a service, and its hooks wait for uploads when a process exits. So it lives in a process of its
own, which is given a limited time for each trial and ends with the process that started it.

That process first writes a run to disk, whole, as wandb does offline. A run that has changed is written again. Unless
the mode is offline, ``wandb sync`` then uploads the folder; an upload replaces what the server has under the run's id,
which follows from campaign and trial. So nothing is there twice, and what could not be uploaded lies on the disk. Two
files say how far a run is: ``hpo_cluster.digest`` in its folder, which state of the trial was written, and wandb's own
mark, that it was uploaded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from hpo_cluster.record.exchange.facts import Outline, TrialFacts
from hpo_cluster.record.processes import end_with_parent
from hpo_cluster.trial import State

#: The project, if neither the settings nor wandb's environment name one.
PROJECT = "hpo_cluster"
#: The file in a run's folder that says which state of the trial it holds, and for which project.
DIGEST = "hpo_cluster.digest"
#: Number of characters of the campaign's key that its group has after its name.
KEY_LENGTH = 6
#: Seconds for one answer of the process, and for one upload: less, so that the upload's own message is told.
ANSWER_S, UPLOAD_S = 120.0, 60.0
#: Characters of a run's notes.
NOTES_LENGTH = 2000
#: Environment of the process: nothing but the trial is recorded, neither this machine nor its code; no messages.
ENVIRONMENT = {
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_SILENT": "true",
    "WANDB__DISABLE_MACHINE_INFO": "true",
    "WANDB__DISABLE_META": "true",
    "WANDB__DISABLE_STATS": "true",
    "WANDB__SAVE_REQUIREMENTS": "false",
}
#: What wandb's environment may say of a single run: not of those of a campaign.
OF_ONE_RUN = ("JOB_TYPE", "NAME", "NOTES", "RESUME", "RUN_GROUP", "RUN_ID", "SERVICE", "SWEEP_ID", "TAGS")
#: States of a trial whose run is not marked as failed.
GOOD = (State.COMPLETED, State.PAUSED)


class WandbError(Exception):
    """What wandb could not do, with its message."""


class WandbSettingsError(WandbError):
    """wandb cannot be used as it is set; the message says what to type."""


class WandbTimeoutError(WandbError):
    """wandb has not answered in time."""


@dataclass(frozen=True)
class WandbSettings:
    """Where runs go.

    Args:
        project: name of the project; None: that of wandb's environment, or ``hpo_cluster``.
        entity: user or team; None: that of wandb's environment, or of the account.
        mode: ``online`` or ``offline``; None: that of wandb's environment.
        dir: folder of the runs on disk, absolute.
    """

    project: str | None
    entity: str | None
    mode: str | None
    dir: Path


class WandbTracker:
    """The runs of one campaign, written by a process of its own.

    Args:
        outline: the campaign; None to find out only whether anything can be logged.
        settings: where its runs go.

    Raises:
        WandbError: if wandb cannot be used: switched off, no API key, not installed as it should be.
        WandbTimeoutError: if it does not answer in time; the same holds for `log`.
    """

    def __init__(self, outline: Outline | None, settings: WandbSettings) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the driver
            )
        self.place: str = self._ask((outline, settings))

    def _ask(self, what: Any) -> Any:
        """Send something to the process and return its answer; end it if there is none in time, or a fault."""
        good, answer = False, WandbError("its process ended unexpectedly")
        try:
            with contextlib.suppress(EOFError, OSError):
                self._pipe.send(what)
                if not self._pipe.poll(ANSWER_S):
                    raise WandbTimeoutError(f"no answer of wandb within {ANSWER_S:g} s")
                good, answer = self._pipe.recv()
        finally:
            if not good:
                self._end()
        if not good:
            raise answer
        return answer

    def _end(self) -> None:
        """Kill the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()

    def log(self, facts: TrialFacts) -> bool:
        """Log a trial that has ended; return False if it has not, or if it was logged already."""
        return facts.state.ended and bool(self._ask(facts))

    def close(self, *, ended: bool) -> None:
        """End the process, which has written every run as a whole."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_S)
        self._end()


@functools.cache
def wandb_fault(project: str | None, entity: str | None, mode: str | None) -> str:
    """Return why nothing can be logged with these settings; empty if it can, as far as is known without a server."""
    try:
        WandbTracker(None, WandbSettings(project, entity, mode, Path())).close(ended=False)
    except WandbTimeoutError:
        return ""
    except WandbError as error:
        return str(error)
    return ""


def serve(descriptor: int) -> None:
    """Log trials until there are no more: the whole life of the process, whose pipe has this file descriptor."""
    end_with_parent()
    runs: _Runs | None = None
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, OSError):  # the other end is gone
        while (given := pipe.recv()) is not None:
            answer: tuple[bool, bool | str | WandbError]
            try:
                if runs is None:
                    runs = _Runs(*given)
                    answer = (True, runs.place)
                else:
                    answer = (True, runs.log(given))
            except Exception as error:
                answer = (
                    False,
                    error if isinstance(error, WandbError) else WandbError(f"{type(error).__name__}: {error}"),
                )
            pipe.send(answer)
    import wandb

    wandb.teardown()


class _Runs:
    """The runs of one campaign on disk and on the server, in the process that uses wandb."""

    def __init__(self, outline: Outline | None, settings: WandbSettings) -> None:
        for name in OF_ONE_RUN:
            os.environ.pop(f"WANDB_{name}", None)
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.update(ENVIRONMENT)
        if settings.mode:
            os.environ["WANDB_MODE"] = settings.mode
        import wandb

        theirs: Any = wandb.setup().settings
        self.outline, self.dir = outline, settings.dir
        self.project: str = settings.project or theirs.project or PROJECT
        self.entity: str | None = settings.entity or theirs.entity
        if theirs.mode == "disabled":
            raise WandbSettingsError("nothing is logged while WANDB_MODE=disabled; export WANDB_MODE=offline or online")
        self.online = theirs.mode not in ("offline", "dryrun")
        if self.online and not wandb.login(prompt=False, verify=False):
            raise WandbSettingsError(
                f"there is no API key for {theirs.base_url}; type  wandb login  or export WANDB_API_KEY=..., or "
                "export WANDB_MODE=offline (in a campaign tracking.mode=offline) and upload the runs later with "
                " wandb sync"
            )
        self.place = f"{theirs.base_url} {self._project}" if self.online else str(self.dir / "wandb")

    @property
    def _project(self) -> str:
        return f"{self.entity or ''}/{self.project}".lstrip("/")

    def log(self, facts: TrialFacts) -> bool:
        """Write a run and upload it, as far as that has not been done; return False if nothing had to be done."""
        assert self.outline is not None
        run_id = f"{self.outline.key}-{facts.label}"
        mark = f"{facts.digest} {self._project}"
        folders = list(self.dir.glob(f"*wandb/offline-run-*-{run_id}"))
        written = [folder for folder in folders if _text(folder / DIGEST) == mark]
        if written and (not self.online or _uploaded(written[0])):
            return False
        if not written:
            for folder in folders:
                shutil.rmtree(folder)
            written = [self._write(run_id, facts)]
            (written[0] / DIGEST).write_text(mark, encoding="utf-8")
        if self.online:
            _upload(written[0])
        return True

    def _write(self, run_id: str, facts: TrialFacts) -> Path:
        """Write a run as a whole; return its folder."""
        import wandb

        assert self.outline is not None
        self.dir.mkdir(parents=True, exist_ok=True)
        run: Any = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(self.dir),
            id=run_id,
            name=facts.label,
            group=f"{self.outline.name}-{self.outline.key[:KEY_LENGTH]}",
            job_type=facts.origin,
            tags=[str(facts.state)],
            notes=facts.notes.get("error", "")[:NOTES_LENGTH] or None,
            config={"hpo_cluster": _context(self.outline, facts), **facts.parameters},
            mode="offline",
        )
        folder = Path(run.dir).parent
        good = False
        try:
            # wandb takes a folder for temporary files instead
            if not folder.resolve().is_relative_to(self.dir.resolve()):
                raise WandbError(f"nothing can be written to {self.dir}")
            for step, row in _rows(facts.series):
                run.log(row, step=step, commit=True)  # now, or the summary would end with it
            run.summary.update(facts.measured)
            good = facts.state in GOOD
        finally:
            run.finish(exit_code=0 if good else 1)
        return folder


def _context(outline: Outline, facts: TrialFacts) -> dict[str, Any]:
    """Return what is known of a trial besides its parameters: campaign, state, job, times and so on."""
    campaign = {"name": outline.name, "key": outline.key, **outline.identity}
    trial = {"trial": facts.label, "state": str(facts.state), "origin": facts.origin}
    return {"campaign": campaign, **trial, **facts.notes}


def _rows(series: Mapping[str, tuple[tuple[int, float], ...]]) -> list[tuple[int, dict[str, float]]]:
    """Return the steps of all series in order, each with what was measured at it."""
    rows: dict[int, dict[str, float]] = {}
    for name, points in series.items():
        for step, value in points:
            rows.setdefault(step, {})[name] = value
    return sorted(rows.items())


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _uploaded(folder: Path) -> bool:
    """Return whether wandb has marked a run's file as uploaded."""
    return any(folder.glob("*.wandb.synced"))


def _upload(folder: Path) -> None:
    """Upload a run. Raise WandbError with the last line that ``wandb sync`` wrote if it did not come to its end."""
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "wandb", "sync", str(folder)],
            env={**os.environ, "WANDB_SILENT": "false", "WANDB_MODE": "online"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=UPLOAD_S,
            preexec_fn=end_with_parent,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise WandbError(f"not uploaded within {UPLOAD_S:g} s; the run is in {folder}") from error
    if not _uploaded(folder):
        said = [line for line in ended.stdout.splitlines() if line.strip()]
        raise WandbError(f"{said[-1] if said else 'not uploaded'}; the run is in {folder}")
