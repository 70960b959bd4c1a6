"""The command that shows a campaign on a terminal and refreshes until the campaign or the user ends it."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from hpo_cluster.cli.arguments import Arguments
from hpo_cluster.cli.commands import INTERRUPTED, OK, say, terminal_width
from hpo_cluster.cli.display import is_left
from hpo_cluster.cli.frame import PLAIN_BLOCKS, Line, frame
from hpo_cluster.record.files import PASSING
from hpo_cluster.record.watched import Look, WatchedCampaign
from hpo_cluster.text import BLOCKS, command_line

#: Seconds between two looks if `--every` is not given, and the fewest that are accepted.
EVERY_S, LEAST_S = 3.0, 0.5
#: Seconds after which a change of the terminal's size is noticed at the latest.
GLANCE_S = 0.25
#: Names of terminals on which nothing can be drawn again.
DUMB = ("", "dumb", "unknown")

#: What is drawn, by width and height of the terminal.
Drawing: TypeAlias = Callable[[int, int], list[Line]]


def watch(arguments: Arguments) -> int:
    """Show a campaign again and again."""
    folder, every_s = _checked(arguments)
    campaign = WatchedCampaign(folder)
    first = campaign.look()
    blocks = _blocks()
    alone = _reason_for_one_frame()
    if alone or is_over(first):
        say("\n".join(line.text for line in frame(first, terminal_width(), blocks=blocks)))
        say(what_next(first, folder) if is_over(first) else f"({alone}: one frame)")
        return OK
    with _Screen() as screen:
        look, ended = _refresh(screen, campaign, first, every_s, blocks)
    say("\n".join(line.text for line in frame(look, screen.width, blocks=blocks)))
    if is_over(look):
        say(what_next(look, folder))
    return ended


def _checked(arguments: Arguments) -> tuple[Path, float]:
    """Return folder and period. Raises ConfigError, naming all faults."""
    text = arguments.option("--every")
    try:
        every_s = EVERY_S if text is None else float(text)
    except ValueError:
        every_s = 0.0
    if not LEAST_S <= every_s < float("inf"):
        arguments.faults.append(f"--every {text}: accepted: a number of seconds, {LEAST_S:g} or more")
    return arguments.folder(), every_s


def _reason_for_one_frame() -> str:
    """Return why nothing can be drawn again; empty if it can."""
    if not sys.stdout.isatty():
        return "the output is not a terminal"
    name = os.environ.get("TERM", "")
    return f"nothing can be drawn again on this terminal, TERM={name}" if name in DUMB else ""


def _blocks() -> str:
    """Return the signs for curves that the output can show."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN_BLOCKS
    return BLOCKS


def is_over(look: Look) -> bool:
    """Return whether nothing more will change unless somebody resumes the campaign."""
    jobs = any(row["job"] is not None for row in look.status["running"])
    ended = look.status["state"] == "finished" or (look.status["simulated"] and look.status["state"] == "stopped")
    return ended or (is_left(look.status) and not jobs)


def what_next(look: Look, folder: Path) -> str:
    """Return what to type after the last frame."""
    if not is_left(look.status):
        return f"{look.status['state']}. Its page and figures:  {command_line('report', folder)}"
    return f"no driver is at work. Go on with:  {command_line('resume', folder)}"


def _refresh(screen: _Screen, campaign: WatchedCampaign, look: Look, every_s: float, blocks: str) -> tuple[Look, int]:
    """Draw frames until the campaign is over or the user ends the view; return the last look and the exit status."""
    trouble = ""
    while True:
        note = trouble or f"q ends this view, the campaign goes on; read every {every_s:g} s"
        screen.draw(functools.partial(_whole, look, note, blocks))
        if is_over(look):
            return look, OK
        if (ended := screen.wait(every_s)) is not None:
            return look, ended
        try:
            look, trouble = campaign.look(), ""
        except OSError as error:
            if error.errno not in PASSING:
                raise
            trouble = f"the storage does not answer: {error.strerror}; tried again every {every_s:g} s"


def _whole(look: Look, note: str, blocks: str, width: int, height: int) -> list[Line]:
    """Return a frame with a note in the last line of the terminal."""
    lines = frame(look, width, max(1, height - 2), blocks=blocks)
    room = max(0, height - len(lines) - 1)
    return [*lines, *[Line("")] * room, Line(note[:width], "dim")][:height]


class _Screen:
    """The terminal while frames are drawn on it: another screen, no echo, and keys that are read at once.

    The terminal is left as it was found, also when the program is asked to end (SIGTERM, SIGHUP) or is suspended.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console()
        self._keys = sys.stdin.isatty()
        self._signal = 0
        self._draw: Drawing = lambda width, height: []
        self._size = (0, 0)

    @property
    def width(self) -> int:
        """The number of columns."""
        return self._console.width

    def draw(self, lines: Drawing) -> None:
        """Draw what `lines(width, height)` returns, now and when the size of the terminal changes."""
        self._draw = lines
        self._redraw()

    def _redraw(self) -> None:
        from rich.text import Text

        self._size = width, height = self._console.size
        shown = [Text(line.text, line.style, no_wrap=True, overflow="ellipsis") for line in self._draw(width, height)]
        with contextlib.suppress(OSError):  # the terminal may be gone
            self._live.update(Text("\n").join(shown), refresh=True)

    def wait(self, seconds: float) -> int | None:
        """Wait; return an exit status if the user or a signal ends the view, else None."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._key(min(left, GLANCE_S)) in ("q", "Q"):
                return OK
            if self._signal == signal.SIGTSTP:
                self._suspend()
            elif self._signal:
                return INTERRUPTED
            if self._console.size != self._size:
                self._redraw()
        return None

    def _key(self, seconds: float) -> str:
        """Return the key that is pressed within some seconds; empty if there is none."""
        if not self._keys:
            time.sleep(seconds)
            return ""
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return ""
        try:
            key = os.read(sys.stdin.fileno(), 1)
        except OSError:
            key = b""
        self._keys = bool(key)  # nobody can press a key any more
        return key.decode(errors="replace")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:  # again, while the storage does not answer
            raise KeyboardInterrupt
        self._signal = number

    def _suspend(self) -> None:
        """Give the terminal back, stop until the shell wakes this process, and draw again."""
        self._signal = 0
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
        self._redraw()

    def _enter(self) -> None:
        from rich.live import Live

        if self._keys:
            self._modes = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        self._live = Live(console=self._console, auto_refresh=False, screen=True)
        self._live.start()

    def _leave(self) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()
        if self._keys:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)

    def __enter__(self) -> _Screen:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()
        for number, handler in self._before.items():
            signal.signal(number, handler)
