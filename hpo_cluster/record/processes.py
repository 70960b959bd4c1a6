"""Identity of processes by pid and start time (the system reuses pids), and limits of their memory and lifetime."""

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
    """Limit the memory of this process to `gigabytes`, because the frontend is shared with other users.

    A child process inherits the limit unless the child calls `uncap_memory` first.
    """
    global _first_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    _first_limit = _first_limit or (soft, hard)
    wanted = int(gigabytes * 2**30)
    limits = [limit for limit in (_first_limit[0], hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([wanted, *limits]), hard))


def uncap_memory() -> None:
    """Restore the memory limit that this process had before `cap_memory`."""
    if _first_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _first_limit)


def end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stat(pid: Any) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; an empty list if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def process_start(pid: int) -> str | None:
    """Return when a living process of this host began (boot id, clock ticks since boot); None if it does not live."""
    fields = _stat(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if not fields or fields[0] in ("Z", "X") else f"{boot}:{fields[19]}"


def is_stopped(pid: Any) -> bool:
    """Return whether a process of this host exists and is suspended, by Ctrl-Z or SIGSTOP."""
    return _stat(pid)[:1] in (["T"], ["t"])


def is_alive(pid: Any, started: Any) -> bool:
    """Return whether `pid` is still the process of this host that began at `started`."""
    return isinstance(pid, int) and started is not None and process_start(pid) == started
