"""The driver's memory is capped, what it starts is not; and it lets go of what cannot be ended."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hpo_cluster.errors import SubmissionError
from hpo_cluster.launchers import commands
from hpo_cluster.launchers.commands import CommandError, call

PROGRAM = """
from hpo_cluster.launchers.commands import call
from hpo_cluster.record.processes import cap_memory, uncap_memory

before = call(["sh", "-c", "ulimit -d"], timeout_s=10)
cap_memory(1.0)
try:
    bytearray(2 * 2**30)
except MemoryError:
    print("capped")
cap_memory(0.5)
print(call(["sh", "-c", "ulimit -d"], timeout_s=10) == before)
uncap_memory()
print(len(bytearray(2 * 2**30)) == 2 * 2**30)
"""


def test_the_cap_is_this_process_alone() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["capped", "True", "True"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(commands, "KILLED_WITHIN_S", 0.2)
    monkeypatch.setattr(commands, "_let_go", [])
    yield
    for left in commands._let_go:
        left.kill()
        left.wait()


def as_nobody(program: Path, connection: Connection) -> None:
    """Call a program three times that becomes root and hangs, as a user who cannot end it."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    commands.KILLED_WITHIN_S, commands.LET_GO_AT_MOST = 0.2, 2
    said = []
    for _ in range(3):
        try:
            call([str(program), "--reuid=0", "--regid=0", "--clear-groups", "sleep", "20"], timeout_s=0.3)
        except SubmissionError as error:
            said.append(str(error))
    connection.send((said, [left.pid for left in commands._let_go]))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a program setuid root, as OAR's commands are")
def test_a_command_that_hangs_and_belongs_to_root_is_let_go_of() -> None:
    """OAR's commands are setuid root: whoever starts them cannot kill them."""
    context = multiprocessing.get_context("fork")  # nobody may not be able to read this environment
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "oarstat"
        shutil.copy(shutil.which("setpriv") or "/usr/bin/setpriv", program)  # becomes root for good, as OAR's do
        program.chmod(0o4755)
        ours, theirs = context.Pipe()
        child = context.Process(target=as_nobody, args=(program, theirs))
        began = time.monotonic()
        child.start()
        assert ours.poll(19)
        said, pids = ours.recv()
        assert time.monotonic() - began < 19  # it waited for none of them
        child.join()
        for pid in pids:  # they live, and are ours to end
            os.kill(pid, signal.SIGKILL)
    assert said[:2] == [f"{program} did not answer within 0.3 s"] * 2
    assert said[2].startswith("2 earlier commands hang")
    assert len(pids) == 2


def test_whoever_keeps_the_output_open_holds_nobody_up(quick: None) -> None:
    """A command that ends while a process that it has started goes on with its output, and one that hangs with one."""
    assert call(["sh", "-c", "sleep 20 & echo done"], timeout_s=10) == "done\n"
    began = time.monotonic()
    with pytest.raises(SubmissionError, match="did not answer"):
        call(["sh", "-c", "sleep 20 & sleep 20"], timeout_s=0.2)
    assert time.monotonic() - began < 10
    assert commands._let_go == []


def test_what_a_command_says_is_told(quick: None) -> None:
    with pytest.raises(CommandError, match="failed with status 3: on the error stream") as caught:
        call(["sh", "-c", "echo out; echo on the error stream >&2; exit 3"], timeout_s=10)
    assert caught.value.output == "out\non the error stream"
    assert call(["printf", "\\377x"], timeout_s=10) == "\ufffdx"


def test_a_folder_to_run_in_that_is_gone_is_not_a_missing_command(quick: None, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        call(["true"], timeout_s=10, cwd=tmp_path / "gone")
    with pytest.raises(SubmissionError, match="nosuchcommand: command not found"):
        call(["nosuchcommand"], timeout_s=10, cwd=tmp_path)
