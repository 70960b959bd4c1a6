from __future__ import annotations

import datetime
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_cluster.errors import LockedError
from hpo_cluster.lock import DriverLock, is_locked, read_lock

HOLD = "import sys, time; from pathlib import Path; from hpo_cluster.lock import DriverLock; "
HOLD += "DriverLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def ago(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)).isoformat()


def test_it_says_who_holds_it_and_is_empty_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "driver.lock"
    lock = DriverLock(path)
    owner = read_lock(path)
    assert owner is not None
    assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert is_locked(path)
    lock.release()
    assert read_lock(path) is None
    assert not is_locked(path)


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


def test_a_driver_notices_that_it_was_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "driver.lock"
    lock = DriverLock(path)
    assert lock.check()
    path.write_text(json.dumps({"host": "elsewhere", "pid": 42, "heartbeat": ago(0)}))
    assert not lock.check()
    lock.release()
    assert (read_lock(path) or {})["host"] == "elsewhere"  # not ours to clear
