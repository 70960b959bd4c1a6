"""The commands of the command line. Each imports what it needs when it runs, and may print."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

from hpo_cluster.errors import ConfigError
from hpo_cluster.text import Progress, command_line, untold, visible

#: Exit statuses: all is well, a campaign ended badly, the input is wrong, interrupted.
OK, BAD_END, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def say(*parts: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print, with control characters written out, since names, parameters and messages come from anywhere."""
    try:
        print(visible(sep.join(map(str, parts))), end=end, file=file, flush=flush)
    except OSError as error:  # a long text is written at once, and then the error says here where
        stream = "standard error" if file is sys.stderr else "standard output"
        raise OSError(error.errno, error.strerror, stream) from error


def tell(*parts: object, file: TextIO | None = None) -> None:
    """Print at once, if that is possible: a driver goes on when its terminal is gone or its output has no space."""
    with contextlib.suppress(OSError):
        say(*parts, file=file, flush=True)


def terminal_width() -> int | None:
    """Return the columns of the terminal on which is printed; None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fill_closed_streams() -> None:
    """Open ``/dev/null`` for each standard stream that is closed.

    The next file that is opened, a journal perhaps, would get the stream's number, and with it whatever a library or
    a child process prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(opened, True)
            setattr(sys, name, os.fdopen(opened, "w" if number else "r", closefd=False))


def flush(stream: TextIO) -> OSError | None:
    """Write out what has been printed; return the error that prevented it, unless the reader closed the pipe."""
    try:
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python tries once more when it ends
        return error if error.errno != errno.EPIPE else None
    return None


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a function that draws a bar on the terminal for each kind of work; it draws nothing anywhere else."""
    if not sys.stderr.isatty():
        yield untold
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        drawn: dict[str, TaskID] = {}

        def draw(what: str, done: int, total: int) -> None:
            if what not in drawn:
                drawn[what] = bars.add_task(what)
            bars.update(drawn[what], completed=done, total=total)

        yield draw


@contextlib.contextmanager
def help_of(command: str) -> Iterator[None]:
    """Let the errors of a configuration name the help of this command instead of that of ``run``."""
    theirs, ours = command_line("run", "--help"), command_line(command, "--help")
    try:
        yield
    except ConfigError as error:
        faults = [fault.replace(theirs, ours) for fault in error.faults]
        raise ConfigError(faults, error.hint.replace(theirs, ours)) from None
