"""Telling one process from another: a pid is recycled, the pair of pid and start time is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def process_start(pid: int) -> str | None:
    """When a living process of this host began: the boot's id and clock ticks since boot. None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else f"{boot}:{fields[19]}"


def is_alive(pid: Any, started: Any) -> bool:
    """Whether the process of this host with that pid is still the one that began at `started`."""
    return isinstance(pid, int) and started is not None and process_start(pid) == started
