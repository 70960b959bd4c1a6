"""What a job does when its attempt has ended: the file ``next.json`` in that attempt's folder, which is written once.

A job may evaluate several attempts one after another (``launcher.trials_per_job``). After each, its program waits for
a while. The driver names the next attempt, or says that the job is to end; if it says nothing in time, the program
writes that it ends. Both publish the file exclusively, so exactly one of them decides, on shared file systems too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo_cluster.record.files import dumps, publish_once, read_json, refresh
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.trial import ErrorKind


@dataclass(frozen=True)
class Next:
    """What a job does next.

    Args:
        attempt_dir: folder of the attempt that it evaluates; None: it ends.
        token: token of that attempt. If the attempt has another one by then, the driver has taken it back.
    """

    attempt_dir: Path | None = None
    token: str = ""


END = Next()

#: Kinds of errors after which a job ends at once: it was asked to, its machine is at fault, or its process has died.
ENDING_KINDS = frozenset({ErrorKind.INTERRUPTED, ErrorKind.NODE, ErrorKind.DISK, ErrorKind.VANISHED})


def has_another_turn(params: Mapping[str, Any]) -> bool:
    """Return whether the job may evaluate another attempt after the one with these ``params.json``."""
    return int(params.get("turn") or 1) < int(params.get("trials_per_job") or 1)


def read_next(files: AttemptLayout) -> Next | None:
    """Return what was decided for the job after this attempt; None if nothing has been decided yet."""
    if files.next.name not in refresh(files.dir):
        return None
    document = read_json(files.next) or {}
    directory, token = document.get("attempt_dir"), document.get("token")
    return Next(Path(directory), token) if isinstance(directory, str) and isinstance(token, str) else END


def publish_next(files: AttemptLayout, decision: Next) -> bool:
    """Decide what the job does after this attempt; return False, and change nothing, if that was decided before."""
    document: dict[str, Any] = {"end": True}
    if decision.attempt_dir is not None:
        document = {"attempt_dir": str(decision.attempt_dir), "token": decision.token}
    return publish_once(files.next, dumps(document))


def job_goes_on(files: AttemptLayout) -> bool:
    """Return whether an attempt has ended in such a way that its job may evaluate another one."""
    there = refresh(files.dir)
    if files.result.name in there:
        return True
    error: Mapping[str, Any] = read_json(files.error) or {}
    return files.error.name in there and error.get("kind") not in ENDING_KINDS
