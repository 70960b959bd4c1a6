"""Checks of what a campaign needs: files, commands, shared storage, clocks, and a real job through the queue."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_cluster.driver.code_snapshot import copy_code
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.errors import SubmissionError
from hpo_cluster.job import JobRef, JobState
from hpo_cluster.launchers.base import Submission
from hpo_cluster.record.attempt_files import SCHEMA, log_tail
from hpo_cluster.record.files import dumps, publish_once, read_json, replace_text
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.lock import try_flock

#: Commands that each launcher calls.
COMMANDS = {"slurm": ("sbatch", "squeue", "sacct", "scancel"), "oar": ("oarsub", "oarstat", "oardel")}
CLOCK_TOLERANCE_S = 5.0
POLL_S = 0.5


@dataclass(frozen=True)
class Finding:
    """Outcome of one check: whether it passed, what was found, and what to do if it did not pass."""

    ok: bool
    what: str
    remedy: str = ""


def examine(spec: CampaignSpec, *, timeout_s: float = 300.0) -> Iterator[Finding]:
    """Yield the findings of all checks of a campaign's configuration; the last check submits a real job.

    Args:
        spec: the campaign; nothing is written into its folder.
        timeout_s: seconds that the job may wait and run.
    """
    ready = True
    for finding in [*_files(spec), *_commands(spec), *_storage(spec.dir.parent)]:
        ready = ready and finding.ok
        yield finding
    if not ready:
        yield Finding(False, "no job was submitted", "fix what is named above, then run this again")
        return
    yield from _job(spec, timeout_s)


def _files(spec: CampaignSpec) -> Iterator[Finding]:
    faults = spec.objective.file_faults(spec.resolve) or spec.objective.reading_faults(spec.resolve)
    for fault in faults:
        what, _, remedy = fault.partition("; ")
        yield Finding(False, what, remedy or "change that key, and run this again")
    if not faults:
        yield Finding(True, f"the files that objective={spec.objective.kind} reads are there")


def _commands(spec: CampaignSpec) -> Iterator[Finding]:
    wanted = COMMANDS.get(spec.launcher.backend, ())
    missing = [name for name in wanted if shutil.which(name) is None]
    for name in missing:
        yield Finding(
            False, f"command {name} is not found", f"run this on a frontend of a {spec.launcher.backend} cluster"
        )
    if wanted and not missing:
        yield Finding(True, f"commands {', '.join(wanted)} are there")


def _storage(folder: Path) -> Iterator[Finding]:
    """Yield whether the campaigns' folder publishes files whole, as the driver and the jobs rely on."""
    probe = folder / f".doctor-{secrets.token_hex(4)}"
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            first, second = publish_once(probe, "1"), publish_once(probe, "2")
            replace_text(probe, "3")
            sound = first and not second and probe.read_text() == "3"
            with probe.open() as stream:
                has_flock = try_flock(stream.fileno()) is not None
        finally:
            probe.unlink(missing_ok=True)
            if made:
                folder.rmdir()
    except OSError as error:
        remedy = "choose a folder with write permission, on a file system with hard links: campaigns_dir=DIR"
        yield Finding(False, f"{folder}: {error.strerror}", remedy)
        return
    if sound:
        yield Finding(True, f"{folder} can be written, with hard links and renaming")
        locks = "file locks (flock)" if has_flock else "no file locks (flock): drivers notice each other by heartbeat"
        yield Finding(True, f"{folder} has {locks}")
    else:
        yield Finding(False, f"{folder} does not keep files whole", "choose another file system: campaigns_dir=DIR")


def _job(spec: CampaignSpec, timeout_s: float) -> Iterator[Finding]:
    token = f"hpo-doctor-{secrets.token_hex(4)}"
    root = spec.dir.parent.absolute() / f".{token}"
    made = not root.parent.exists()
    try:
        files = AttemptLayout(root / "a0")
        files.dir.mkdir(parents=True)
        code = copy_code(root / "code")
        paths = [str(spec.resolve("bundle:")), sys.executable]
        params = {"schema": SCHEMA, "token": token, "seed": 0, "parameters": {}, "settings": {"paths": paths}}
        replace_text(files.params, dumps(params))
        command = (sys.executable, str(root / "code" / code / "jobs" / "doctor.py"), str(files.dir))
        yield from _follow(spec, Submission(token, command, files.dir, files.job_dir), files, timeout_s)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                root.parent.rmdir()


def _follow(spec: CampaignSpec, submission: Submission, files: AttemptLayout, timeout_s: float) -> Iterator[Finding]:
    began = time.time()
    try:
        ref = spec.launcher.submit(submission)
    except SubmissionError as error:
        yield Finding(False, f"the scheduler refused a job: {error}", "queue, account, constraint: see launcher.*")
        return
    yield Finding(True, f"job {ref.job_id} was accepted")
    result, detail = _wait(spec, ref, files, began + timeout_s)
    if result is None:
        tail = log_tail(files).splitlines()[-3:]
        said = f" ({detail})" if detail else ""
        seen = f"; its log ends: {' / '.join(tail)}" if tail else "; it left no log"
        spec.launcher.cancel(ref)
        remedy = "check that the nodes share this folder and this Python, and that they are free; see launcher.setup"
        yield Finding(False, f"job {ref.job_id} left no result within {timeout_s:g} s{said}{seen}", remedy)
        return
    yield Finding(True, f"it ran on {result['node']} with {result['python']}; result after {time.time() - began:.1f} s")
    yield from _found_by_job(result, began, submission, spec.gpus_per_trial)


def _wait(spec: CampaignSpec, ref: JobRef, files: AttemptLayout, until: float) -> tuple[dict[str, Any] | None, str]:
    """Return the job's result (None if there is none in time), and what the scheduler last said about the job."""
    detail, poll_at, ended_at = "", 0.0, None
    while time.time() < until:
        result = read_json(files.result)
        if result is not None:
            return result, detail
        if time.time() >= poll_at:
            status = spec.launcher.poll([ref])[ref.token]
            detail, poll_at = status.detail or str(status.state), time.time() + spec.launcher.poll_period_s
            if status.state is JobState.ENDED:
                ended_at = ended_at or time.time()
                if time.time() - ended_at > spec.operation.grace_s:
                    return None, detail
        time.sleep(POLL_S)
    return None, detail


def _found_by_job(result: dict[str, Any], began: float, submission: Submission, gpus: int) -> Iterator[Finding]:
    clock = result["metrics"]["time_s"]
    if began - CLOCK_TOLERANCE_S <= clock <= time.time() + CLOCK_TOLERANCE_S:
        yield Finding(True, "the node's clock agrees with this one")
    else:
        off = clock - began
        yield Finding(
            False, f"the node's clock is {off:+.0f} s off", "times cannot be compared; ask the site to use NTP"
        )
    for path in result["unreadable"]:
        yield Finding(False, f"the node cannot read {path}", "install where the nodes can read it")
    names: Sequence[str] = result["gpu_names"]
    devices = result["visible_devices"]
    there = f"GPUs there: {', '.join(names) or 'none'}" + (f" (visible: {devices})" if devices else "")
    if len(names) < gpus:
        remedy = (
            "ask for hosts with GPUs (launcher.partition, constraint, properties), or set launcher.gpus_per_trial=0"
        )
        yield Finding(False, f"launcher.gpus_per_trial={gpus}; {there}", remedy)
    else:
        yield Finding(True, there)
    leftovers = [path.name for path in submission.job_dir.iterdir()] if os.access(submission.job_dir, os.R_OK) else []
    yield Finding(
        bool(leftovers),
        f"its logs are here: {', '.join(sorted(leftovers)) or 'none'}",
        "check that the nodes share this folder",
    )
