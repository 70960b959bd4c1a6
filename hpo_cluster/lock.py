"""One driver for each campaign: a file that says who, held by an advisory lock and a heartbeat.

On one host the operating system's lock decides, and vanishes with its process, however it dies. Between hosts, where a
shared file system may not pass locks on, the heartbeat decides: another host's driver is respected while its heartbeat
is younger than two minutes, and afterwards yields only to `take_over`.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

from hpo_cluster.errors import LockedError

log = logging.getLogger(__name__)

HEARTBEAT_PERIOD_S = 15.0
STALE_AFTER_S = 120.0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def read_lock(path: Path) -> dict[str, Any] | None:
    """Who holds the campaign, or held it when it died: host, pid, heartbeat. None where nobody does."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and data.get("pid") else None


def heartbeat_age_s(owner: dict[str, Any]) -> float:
    """Seconds since the owner's last heartbeat; infinite where it has none."""
    try:
        return (_now() - datetime.datetime.fromisoformat(owner["heartbeat"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return float("inf")


def is_locked(path: Path) -> bool:
    """Whether a process of this host holds the lock right now."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


class DriverLock:
    """Held from construction to `release`.

    Raises:
        LockedError: where another driver holds it; the message names host and pid.
    """

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        self.path = path
        self.taken_over: dict[str, Any] | None = None
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _now().isoformat()}
        self._lost = False
        self._stopping = threading.Event()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._acquire(take_over)
            self._beat()
        except BaseException:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._thread.start()

    def _acquire(self, take_over: bool) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = read_lock(self.path) or {}
            raise LockedError(
                f"{self.path.parent} is driven already, on host {holder.get('host', '?')} by process "
                f"{holder.get('pid', '?')}. Watch it:  hpo-cluster status {self.path.parent}"
            ) from None
        previous = read_lock(self.path)
        if previous is None:
            return
        self.taken_over = owner = previous
        if owner.get("host") != self._owner["host"]:
            age_s = heartbeat_age_s(owner)
            who = f"host {owner.get('host')}, process {owner['pid']}"
            if age_s < STALE_AFTER_S:
                raise LockedError(
                    f"{self.path.parent} is driven on {who}: its last heartbeat is {age_s:.0f} s old. "
                    f"Stop it there, or wait until the heartbeat is {STALE_AFTER_S:.0f} s old and add --take-over"
                )
            if not take_over:
                raise LockedError(
                    f"{self.path.parent} was driven on {who}, with no heartbeat for {age_s:.0f} s. If that driver is "
                    "dead, add --take-over"
                )
        log.warning("lock=%s taken_over_from=%s:%s", self.path, owner.get("host"), owner.get("pid"))

    def _write(self, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode() + b"\n"
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))

    def _beat(self) -> None:
        self._write({**self._owner, "heartbeat": _now().isoformat()})

    def _keep_beating(self) -> None:
        while not self._stopping.wait(HEARTBEAT_PERIOD_S):
            self.check()
            if self._lost:
                return
            try:
                self._beat()
            except OSError as error:
                log.warning("heartbeat not written: %s", error)

    def check(self) -> bool:
        """Whether the lock is still ours: False once another host has taken it over."""
        owner = read_lock(self.path)
        if owner is not None and (owner.get("host"), owner["pid"]) != (self._owner["host"], self._owner["pid"]):
            self._lost = True
        return not self._lost

    def release(self) -> None:
        """Let go, leaving the file empty of an owner."""
        self._stopping.set()
        self._thread.join()
        if self._fd >= 0:
            if not self._lost:
                try:
                    self._write({})
                except OSError as error:
                    log.warning("lock not cleared: %s", error)
            os.close(self._fd)
            self._fd = -1
