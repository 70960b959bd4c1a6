from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo_cluster.errors import LockedError, LostCampaignError
from hpo_cluster.record.lock import DriverLock, owner_lives, read_lock

HOLD = "import sys, time; from pathlib import Path; from hpo_cluster.record.lock import DriverLock; "
HOLD += "DriverLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def ago(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat()


def test_it_says_who_holds_it_and_is_empty_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "driver.lock"
    lock = DriverLock(path)
    owner = read_lock(path)
    assert owner is not None
    assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert owner_lives(path, owner)
    lock.release()
    assert read_lock(path) is None
    assert not owner_lives(path, owner)


def test_a_second_driver_is_refused_by_host_and_pid_and_takes_over_from_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "driver.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(LockedError, match=rf"{socket.gethostname()}.*{other.pid}"):
        DriverLock(path, take_over=True)
    other.kill()
    other.wait()
    other.stdout.close()
    lock = DriverLock(path)
    assert lock.taken_over is not None
    assert lock.taken_over["pid"] == other.pid
    lock.release()


@pytest.mark.parametrize(("age_s", "take_over", "taken"), [(30, True, False), (300, False, False), (300, True, True)])
def test_another_host_is_respected_while_its_heart_beats(
    tmp_path: Path, age_s: float, take_over: bool, taken: bool
) -> None:
    path = tmp_path / "driver.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 42, "heartbeat": ago(age_s)}))
    if taken:
        DriverLock(path, take_over=take_over).release()
        return
    with pytest.raises(LockedError, match=r"elsewhere.*42"):
        DriverLock(path, take_over=take_over)
    assert (read_lock(path) or {})["host"] == "elsewhere"


@pytest.fixture
def other_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on this process is one of another host, on a file system that does not pass flock on."""

    def become() -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)

    return become


def age(path: Path, seconds: float) -> None:
    """Make the last heartbeat so old."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "heartbeat": ago(seconds)}))


def test_a_driver_notices_that_it_was_taken_over_also_after_the_other_one_has_ended(
    tmp_path: Path, other_host: Callable[[], None]
) -> None:
    path = tmp_path / "driver.lock"
    first = DriverLock(path)
    first.check()
    age(path, 300)
    other_host()
    second = DriverLock(path, take_over=True)
    with pytest.raises(LostCampaignError, match="elsewhere"):
        first.check()
    second.check()
    second.release()
    assert read_lock(path) is None
    with pytest.raises(LostCampaignError, match="taken this campaign over"):
        first.check()
    before = path.read_bytes()
    first.release()
    assert path.read_bytes() == before  # not its to clear
    third = DriverLock(path)
    assert (first.epoch, second.epoch, third.epoch) == (1, 2, 3)
    third.release()


def test_a_heartbeat_of_a_driver_that_lost_does_not_count(tmp_path: Path, other_host: Callable[[], None]) -> None:
    path = tmp_path / "driver.lock"
    first = DriverLock(path)
    age(path, 300)
    other_host()
    second = DriverLock(path, take_over=True)
    first._beat()  # it was stopped between its check and the beat
    second.check()
    with pytest.raises(LostCampaignError):
        first.check()
    second.release()
    first.release()


def test_two_that_start_at_the_same_moment_do_not_both_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_host: Callable[[], None]
) -> None:
    path = tmp_path / "driver.lock"
    first = DriverLock(path)
    other_host()
    seen = DriverLock._epochs
    monkeypatch.setattr(DriverLock, "_epochs", lambda self: [n for n in seen(self) if n != first.epoch])
    path.write_text("{}")  # nor has it read the other's name
    with pytest.raises(LockedError, match="at this moment"):
        DriverLock(path)
    monkeypatch.setattr(DriverLock, "_epochs", seen)
    first.check()
    first.release()


def test_a_folder_that_is_deleted_or_moved_or_made_again_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    lock = DriverLock(folder / "driver.lock")
    folder.rename(tmp_path / "moved")
    with pytest.raises(LostCampaignError, match="moved or deleted"):
        lock.check()
    folder.mkdir()
    another = DriverLock(folder / "driver.lock")
    assert another.epoch == lock.epoch
    with pytest.raises(LostCampaignError, match="moved or deleted"):
        lock.check()
    lock.release()
    another.check()
    another.release()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_flock_heartbeat_and_epoch_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def unknown(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "driver.lock"
    monkeypatch.setattr(fcntl, "flock", unknown)
    lock = DriverLock(path)
    assert not lock.has_flock
    assert owner_lives(path, read_lock(path) or {})
    with pytest.raises(LockedError, match=rf"{socket.gethostname()}.*{os.getpid()}"):
        DriverLock(path)  # of this host: its process lives
    lock.check()
    lock.release()
    dead = {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": "another boot", "heartbeat": ago(1)}
    path.write_text(json.dumps(dead))
    assert not owner_lives(path, dead)
    again = DriverLock(path)
    assert again.taken_over == dead
    again.release()


def test_a_driver_that_is_stopped_is_named_with_what_to_type(tmp_path: Path) -> None:
    path = tmp_path / "driver.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    other.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(LockedError, match=f"kill -CONT {other.pid}"):
            DriverLock(path)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "driver.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(LockedError, match="symbolic link"):
        DriverLock(tmp_path / "driver.lock")
    assert (tmp_path / "precious").read_text() == "precious"


def test_trouble_is_told_to_other_terminals_until_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "driver.lock"
    lock = DriverLock(path)
    lock.tell("No space left on device")
    assert (read_lock(path) or {})["trouble"] == "No space left on device"
    lock.tell(None)
    assert "trouble" not in (read_lock(path) or {})
    lock.release()
