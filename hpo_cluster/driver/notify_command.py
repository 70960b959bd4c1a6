"""Find what is wrong with `notify.command` before a campaign starts, since it is called when nobody looks."""

from __future__ import annotations

import os
import re
import shlex
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hpo_cluster.text import first_line

#: Signs and words after which a command begins, and words before a command.
_SEPARATORS, _BEFORE = frozenset({"|", "||", "&&", ";", "&", "|&"}), frozenset({"!", "time", "exec", "command"})
#: Texts in which the beginnings of commands are not looked for: functions, subshells, substitutions, here-documents.
_NOT_LOOKED_INTO = re.compile(r"[()`]|<<")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
#: Names of programs that a shell takes as they are.
_PLAIN_NAME = re.compile(r"[\w.+/~-]+")
CHECK_S = 5.0


def command_faults(command: str) -> list[str]:
    """Return why a command for bash could not run: its syntax, or a program that does not exist; empty if it can.

    Args:
        command: as configured, with ``{message}`` for the message and doubled braces.
    """
    try:
        line = in_shell(command, "message")
    except ValueError:  # braces, of which the setting's own check says what is wrong
        return []
    if not line.strip():
        return ["notify.command: is empty; accepted: a command for bash, or null for none"]
    parsed = _bash("-n", "-c", line)
    if parsed is None:
        return []
    if parsed.returncode != 0:
        why = first_line(parsed.stderr) or "it cannot be parsed"
        return [f"notify.command: bash cannot read it: {re.sub(r'^bash: -c: line [0-9]+: ', '', why)}"]
    missing = dict.fromkeys(name for name in _programs(line) if not _is_command(name))
    return [
        f"notify.command: {shlex.quote(name)} is not a program here (not on PATH); give its path, or null for none"
        for name in missing
    ]


def in_shell(command: str, message: str) -> str:
    """Return the line for bash: the command with a message, quoted, in place of ``{message}``."""
    parts = string.Formatter().parse(command)
    return "".join(text + ("" if name is None else shlex.quote(message)) for text, name, _, _ in parts)


def _bash(*words: str) -> subprocess.CompletedProcess[str] | None:
    """Return what bash says; None if it cannot be asked."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            ["bash", *words], capture_output=True, text=True, timeout=CHECK_S, check=False, env=environment
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _programs(line: str) -> Iterator[str]:
    """Yield the names of the programs that a simple line calls; those that only a shell could find are left out."""
    if _NOT_LOOKED_INTO.search(line):
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        tokens = list(lexer)
    except ValueError:
        return
    begins = True
    for token in tokens:
        if token in _SEPARATORS or token.startswith("\n"):
            begins = True
        elif begins and not (token in _BEFORE or _ASSIGNMENT.match(token)):
            begins = False
            if token in ("cd", "pushd"):  # paths that follow are relative to another folder
                return
            if not token or _PLAIN_NAME.fullmatch(token):
                yield token


def _is_command(name: str) -> bool:
    """Return whether bash would find a program, a builtin or a keyword of this name."""
    if "/" in name:
        path = Path(name).expanduser()
        return path.is_file() and os.access(path, os.X_OK)
    found = _bash("-c", 'type -t -- "$1"', "bash", name)
    return found is None or bool(found.stdout.strip())
