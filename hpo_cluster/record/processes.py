"""Telling one process from another (a pid is recycled, pid and start time together are not), and their limits."""

from __future__ import annotations

import ctypes
import resource
import signal
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # of prctl(2)

_libc = ctypes.CDLL(None, use_errno=True)  # looked up before any fork
_first_limit: tuple[int, int] | None = None  # of this process's memory, before it was capped


def cap_memory(gigabytes: float) -> None:
    """From now on, this process gets no more memory than so much: it is a guest on the frontend.

    What it starts is not capped where it calls `uncap_memory` before all else.
    """
    global _first_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    _first_limit = _first_limit or (soft, hard)
    wanted = int(gigabytes * 2**30)
    limits = [limit for limit in (_first_limit[0], hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *limits]), hard))


def uncap_memory() -> None:
    """Lift the cap again."""
    if _first_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _first_limit)


def end_with_parent() -> None:
    """From now on, this process is killed when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stat(pid: Any) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_start(pid: int) -> str | None:
    """When a living process of this host began: the boot's id and clock ticks since boot. None where there is none."""
    fields = _stat(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if not fields or fields[0] in ("Z", "X") else f"{boot}:{fields[19]}"


def is_stopped(pid: Any) -> bool:
    """Return whether a process of this host is there and does not run, after Ctrl-Z or SIGSTOP."""
    return _stat(pid)[:1] in (["T"], ["t"])


def is_alive(pid: Any, started: Any) -> bool:
    """Whether the process of this host with that pid is still the one that began at `started`."""
    return isinstance(pid, int) and started is not None and process_start(pid) == started
