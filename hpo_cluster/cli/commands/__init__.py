"""What the commands of the command line do. Each imports what it needs when it needs it, and may print."""

from __future__ import annotations

from typing import TextIO

from hpo_cluster.text import visible

#: Exit statuses: all is well, a campaign ended badly, the input is wrong, interrupted.
OK, BAD_END, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def say(*parts: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print; what a terminal would obey is written out, since names, parameters and messages come from anywhere."""
    print(visible(sep.join(map(str, parts))), end=end, file=file, flush=flush)
