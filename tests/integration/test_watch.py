"""`hpo-cluster watch` on a real terminal: what it shows, how it ends, and that it disturbs nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait

from hpo_cluster.cli.main import main
from hpo_cluster.record.lock import owner_lives, read_lock

SLOW = ["objective=synthetic", "optimizer=random", "poll_s=0.1", "workers=1"]
OTHER_SCREEN, BACK = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A terminal in which a command runs; `text` is all that it has written."""

    def __init__(self, words: list[str], term: str) -> None:
        self.master, slave = pty.openpty()
        self.text = ""
        self.resize(80, 24)
        self.modes = termios.tcgetattr(slave)
        environment = {**os.environ, "TERM": term}
        environment = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hpo_cluster", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.slave = slave
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self.master, 65536):
                self.text += part.decode(errors="replace")

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def has(self, text: str, seconds: float = 60) -> str:
        """Wait until a text has been written; return all that has been written, without escape sequences."""
        wait(lambda: text in unescaped(self.text), seconds)
        return unescaped(self.text)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
        for fd in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(fd)


def unescaped(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A campaign whose trials take long."""
    monkeypatch.chdir(tmp_path)
    words = [*SLOW, "budget=2", "objective.duration_s=60", "campaign=now"]
    command = [sys.executable, "-m", "hpo_cluster", "run", *words]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait(lambda: Path("campaigns/now/trials/t0000/a0/claim").exists(), 60)
    yield driver
    driver.send_signal(signal.SIGINT)
    driver.wait(timeout=30)
    main(["cancel", "campaigns/now", "0"])


@contextlib.contextmanager
def terminal(words: list[str], term: str = "xterm-256color") -> Iterator[Terminal]:
    opened = Terminal(words, term)
    try:
        yield opened
    finally:
        opened.close()


def drives(folder: Path) -> bool:
    owner = read_lock(folder / "driver.lock")
    return owner is not None and owner_lives(folder / "driver.lock", owner)


@pytest.mark.parametrize(("keys", "ended"), [(b"q", 0), (b"\x03", 130)])
def test_a_key_ends_the_view_alone(running: subprocess.Popen[bytes], keys: bytes, ended: int) -> None:
    with terminal(["watch", "campaigns/now", "--every", "0.5"]) as shown:
        shown.has("t0000  ")
        before = len(shown.text)
        shown.resize(40, 6)
        wait(lambda: "read every" not in unescaped(shown.text[before:]) and "…" in shown.text[before:])
        assert shown.process.poll() is None
        shown.press(b"x" + keys)
        assert shown.process.wait(timeout=30) == ended
        wait(lambda: "now: running" in shown.text.rpartition(BACK)[2])  # the last frame stays
        assert shown.text.count(OTHER_SCREEN) == shown.text.count(BACK) == 1
        assert termios.tcgetattr(shown.slave) == shown.modes
    assert running.poll() is None
    assert drives(Path("campaigns/now"))


def test_a_signal_and_ctrl_z_leave_the_terminal_as_it_was(running: subprocess.Popen[bytes]) -> None:
    with terminal(["watch", "campaigns/now", "--every", "0.5"]) as shown:
        shown.has("t0000  ")
        shown.press(b"\x1a")
        wait(lambda: Path(f"/proc/{shown.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert shown.text.count(BACK) == 1
        assert termios.tcgetattr(shown.slave) == shown.modes
        shown.process.send_signal(signal.SIGCONT)
        wait(lambda: shown.text.count(OTHER_SCREEN) == 2)
        shown.process.send_signal(signal.SIGTERM)
        assert shown.process.wait(timeout=30) == 130
        assert shown.text.count(BACK) == 2
        assert termios.tcgetattr(shown.slave) == shown.modes
    assert running.poll() is None


def test_a_driver_that_is_killed_and_a_campaign_that_goes_on(running: subprocess.Popen[bytes]) -> None:
    with terminal(["watch", "campaigns/now", "--every", "0.5"]) as shown:
        shown.has("now: running")
        running.kill()
        running.wait(timeout=30)
        shown.has("no driver is at work, jobs run on")
        assert shown.process.poll() is None, "the jobs can still be watched"
        shown.press(b"q")
        assert shown.process.wait(timeout=30) == 0


def test_a_campaign_that_ends_under_the_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*SLOW, "budget=2", "objective.duration_s=4", "campaign=short"]
    driver = subprocess.Popen([sys.executable, "-m", "hpo_cluster", "run", *words], stdout=subprocess.DEVNULL)
    wait(lambda: Path("campaigns/short/trials/t0000").exists(), 60)
    with terminal(["watch", "campaigns/short", "--every", "0.5"]) as shown:
        assert shown.process.wait(timeout=120) == 0
        shown.has("hpo-cluster report campaigns/short")
        last = unescaped(shown.text.rpartition(BACK)[2])
        assert "short: finished" in last
        assert "2/2 done" in last
    driver.wait(timeout=60)

    # what is over needs no view
    with terminal(["watch", "campaigns/short"]) as shown:
        assert shown.process.wait(timeout=30) == 0
        assert OTHER_SCREEN not in shown.text


def test_one_frame_where_nothing_can_be_drawn_again(running: subprocess.Popen[bytes]) -> None:
    with terminal(["watch", "campaigns/now"], term="dumb") as shown:
        assert shown.process.wait(timeout=30) == 0
        assert "t0000  " in shown.has("TERM=dumb: one frame)")
        assert "\x1b" not in shown.text
    code = (
        "import sys; from hpo_cluster.cli.main import main; main(['watch', 'campaigns/now']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "now: running" in piped.stdout
    assert piped.stdout.endswith("(the output is not a terminal: one frame)\n")
    heavy = {"torch", "pandas", "matplotlib", "scipy", "hydra", "rich"}
    assert not heavy & {name.partition(".")[0] for name in piped.stderr.split()}
    assert running.poll() is None


@pytest.mark.parametrize("every", ["0.1", "-1", "nan", "inf", "soon"])
def test_a_period_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["watch", "campaigns/none", f"--every={every}"]) == 2
    message = capsys.readouterr().err
    assert f"--every {every}: accepted: a number of seconds, 0.5 or more" in message
    assert "campaigns/none: is not a campaign" in message
