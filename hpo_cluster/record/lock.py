"""The lock that lets only one driver write to a campaign, and the record of who that driver is and whether it lives.

Three mechanisms decide, because none of them works everywhere:

- the operating system's lock (flock) on ``driver.lock`` decides between drivers of one host, and is released when its
  process dies, for whatever reason;
- the heartbeat in that file decides between hosts, because a shared file system may not pass locks on. While the
  heartbeat of another host's driver is younger than two minutes, a new driver is refused; afterwards it needs
  `take_over`;
- the **epoch**: each start creates the next number in ``driver.epochs/`` exclusively, which every POSIX file system
  supports. The driver with the newest number may write. A driver that was suspended for minutes while another one took
  over finds a newer number when it wakes, even if the other driver has ended by then, and writes nothing more.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import secrets
import shlex
import socket
import stat
import threading
from pathlib import Path
from typing import Any

from hpo_cluster.errors import LockedError, LostCampaignError
from hpo_cluster.record.clock import moment
from hpo_cluster.record.files import listing, publish_once, read_json
from hpo_cluster.record.processes import is_alive, is_stopped, process_start
from hpo_cluster.text import command_line

log = logging.getLogger(__name__)

HEARTBEAT_PERIOD_S = 15.0
STALE_AFTER_S = 120.0

#: Errors of a file system without flock, such as Lustre with its default mount options.
NO_FLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
#: Errors for a folder that was moved or deleted.
GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
#: Errors of flock while another process holds the lock.
HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def read_lock(path: Path) -> dict[str, Any] | None:
    """Return the driver that holds the lock, or held it when it died (host, pid, heartbeat, trouble); else None."""
    data = read_json(path) or {}
    return data if data.get("pid") else None


def heartbeat_age_s(owner: dict[str, Any]) -> float:
    """Return the seconds since the owner's last heartbeat; infinity if it has none."""
    try:
        return (_now() - moment(owner["heartbeat"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return float("inf")


def try_flock(fd: int) -> bool | None:
    """Take the operating system's lock on an open file.

    Returns:
        True if this process has it now, False if another one has it, None if the file system has no flock.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        if error.errno in HELD:
            return False
        raise
    return True


def owner_lives(path: Path, owner: dict[str, Any]) -> bool:
    """Return whether the driver that owns a campaign is alive, as far as this host can tell.

    Args:
        path: path of the lock file.
        owner: the owner, from `read_lock`.
    """
    if owner.get("host") != socket.gethostname():
        return heartbeat_age_s(owner) < STALE_AFTER_S
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return _process_lives(owner)
    try:
        taken = try_flock(fd)
    except OSError:
        taken = None
    finally:
        os.close(fd)
    return _process_lives(owner) if taken is None else not taken


def _process_lives(owner: dict[str, Any]) -> bool:
    return is_alive(owner.get("pid"), owner.get("pid_started"))


class DriverLock:
    """The lock of a campaign, held from construction to `release`.

    Args:
        path: path of the lock file; ``driver.epochs`` lies next to it.
        take_over: whether to replace a driver on another host whose heartbeat has stopped.

    Attributes:
        epoch: number of this start.
        has_flock: whether the file system supports flock; if not, only heartbeat and epoch decide.
        taken_over: the previous owner, if it died without releasing the lock.

    Raises:
        LockedError: if another driver holds the lock; the message names host and pid.
    """

    def __init__(self, path: Path, *, take_over: bool = False) -> None:
        self.path = path
        self.taken_over: dict[str, Any] | None = None
        self.epoch = 0
        self.has_flock = True
        self._epochs_dir = path.with_name("driver.epochs")
        self._nonce = secrets.token_hex(8)
        pid = os.getpid()
        self._owner = {"host": socket.gethostname(), "pid": pid, "pid_started": process_start(pid)}
        self._owner["started"] = _now().isoformat()
        self._trouble: str | None = None
        self._writing = threading.Lock()
        self._stopping = threading.Event()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            if error.errno == errno.EISDIR:
                raise LockedError(f"{path}: is a folder, so no driver can hold it. Remove it:  rm -r {path}") from None
            if error.errno != errno.ELOOP:
                raise
            raise LockedError(
                f"{path}: is a symbolic link; nothing is written through it. Remove it:  rm {path}"
            ) from None
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise LockedError(
                    f"{path}: is not a file, so no driver can hold it. Remove it:  rm {shlex.quote(str(path))}"
                )
            self._acquire(take_over)
            epoch = (read_json(path) or {}).get("epoch")
            self.advance(epoch if isinstance(epoch, int) else 0)
        except BaseException:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._thread.start()

    def _acquire(self, take_over: bool) -> None:
        folder, owner = self.path.parent, read_lock(self.path)
        taken = try_flock(self._fd)
        self.has_flock = taken is not None
        here = owner is not None and owner.get("host") == self._owner["host"]
        if taken is False or (taken is None and here and owner is not None and _process_lives(owner)):
            holder = owner or {}
            pid, stopped = holder.get("pid", "?"), here and is_stopped(holder.get("pid"))
            way = f"It is stopped (Ctrl-Z, SIGSTOP). Wake it:  kill -CONT {pid}      or end it:  kill -9 {pid}"
            raise LockedError(
                f"{folder} is driven already, on host {holder.get('host', '?')} by process {pid}. "
                + (way if stopped else f"Watch it:  {command_line('status', folder)}")
            )
        if not self.has_flock:
            log.warning("lock=%s flock=no: the file system has no file locks; heartbeat and epoch decide", self.path)
        if owner is None:
            return
        self.taken_over = owner
        if not here:
            age_s = heartbeat_age_s(owner)
            who = f"host {owner.get('host')}, process {owner['pid']}"
            if age_s < STALE_AFTER_S:
                raise LockedError(
                    f"{folder} is driven on {who}: its last heartbeat is {age_s:.0f} s old. "
                    f"Stop it there, or wait until the heartbeat is {STALE_AFTER_S:.0f} s old and add --take-over"
                )
            if not take_over:
                raise LockedError(
                    f"{folder} was driven on {who}, with no heartbeat for {age_s:.0f} s. If that driver is "
                    "dead, add --take-over"
                )
        log.warning("lock=%s taken_over_from=%s:%s", self.path, owner.get("host"), owner.get("pid"))

    def advance(self, beyond: int) -> None:
        """Take the next epoch: a number above `beyond` and above all earlier ones.

        Raises:
            LockedError: if another driver takes that number at the same moment.
        """
        self._epochs_dir.mkdir(exist_ok=True)
        earlier = self._epochs()
        if self.epoch and self.epoch > beyond and self.epoch >= max(earlier, default=0):
            return
        epoch = max([beyond, *earlier]) + 1
        if not publish_once(self._epochs_dir / str(epoch), json.dumps({"nonce": self._nonce, **self._owner}) + "\n"):
            raise LockedError(f"{self.path.parent}: another driver starts at this moment. Try again in a few seconds")
        self.epoch = epoch
        self._beat()
        for number in earlier:
            if number < epoch:
                with contextlib.suppress(OSError):
                    (self._epochs_dir / str(number)).unlink()

    def _epochs(self) -> list[int]:
        """Return the epochs taken so far; an empty list if the campaign's folder is gone."""
        try:
            names = listing(self._epochs_dir)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return []
        return [int(name) for name in names if name.isdecimal()]

    def check(self) -> None:
        """Check that this driver may write.

        Raises:
            LostCampaignError: if another driver has taken the campaign, or its folder is not where it was.
            OSError: if the file system does not answer.
        """
        folder = self.path.parent
        newest = max(self._epochs(), default=0)
        if newest > self.epoch:
            owner = read_json(self.path) or {}
            who = f" (host {owner['host']}, process {owner['pid']})" if owner.get("pid") else ""
            raise LostCampaignError(
                f"{folder}: another driver{who} has taken this campaign over while this one did not answer. This one "
                f"writes nothing more; jobs run on.  {command_line('status', folder)}"
            )
        if not newest or self._nonce not in (self._epochs_dir / str(newest)).read_text(encoding="utf-8"):
            raise LostCampaignError(
                f"{folder} was moved or deleted while its driver was at work. The driver writes nothing more, and "
                "creates nothing again; jobs run on. If it was moved:  hpo-cluster resume NEW_FOLDER"
            )

    def holds(self) -> bool:
        """Return whether this driver may write; False if that is not known."""
        try:
            self.check()
        except (LostCampaignError, OSError):
            return False
        return True

    def tell(self, trouble: str | None) -> None:
        """Write into the lock file what keeps the driver from its work, for `status`; None if nothing does.

        The lock file is rewritten in place, which also works on a full disk.
        """
        if trouble != self._trouble:
            self._trouble = trouble
            with contextlib.suppress(OSError):
                self._beat()

    def _write(self, data: dict[str, Any]) -> None:
        text = json.dumps(data).encode() + b"\n"
        with self._writing:
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))

    def _beat(self) -> None:
        beat = {**self._owner, "epoch": self.epoch, "heartbeat": _now().isoformat()}
        self._write({**beat, "trouble": self._trouble} if self._trouble else beat)

    def _keep_beating(self) -> None:
        while not self._stopping.wait(HEARTBEAT_PERIOD_S):
            try:
                self.check()
                self._beat()
            except LostCampaignError:
                return
            except OSError as error:
                log.warning("heartbeat not written: %s", error)

    def release(self) -> None:
        """Release the lock: leave the file with its epoch, but without an owner."""
        self._stopping.set()
        self._thread.join()
        if self._fd >= 0:
            if self.holds():
                try:
                    self._write({"epoch": self.epoch})
                except OSError as error:
                    log.warning("lock not cleared: %s", error)
            os.close(self._fd)
            self._fd = -1
