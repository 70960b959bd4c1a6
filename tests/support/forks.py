"""Processes forked from one that has imported the package already, which takes half a second each time otherwise."""

from __future__ import annotations

import functools
import importlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: What optimizers import when they are asked.
IMPORTS = {"lhs": ("scipy.stats",), "sobol": ("scipy.stats",)}
IMPORTS |= dict.fromkeys(("bo", "turbo", "mosaic", "bamsoo"), ("botorch",))


def run(script: str, directory: Path, options: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """Run a driver of a script that calls `serve`; returns its exit status (negative: the signal that ended it)."""
    server = _server(script)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps([str(directory), dict(options), dict(environment)]) + "\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], 120)[0]:
        server.kill()
        _server.cache_clear()
        raise TimeoutError(f"the driver of {directory} did not end in 120 s")
    return int(server.stdout.readline())


@functools.cache
def _server(script: str) -> subprocess.Popen[str]:
    command, root = [sys.executable, script], Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve(drive: Callable[[Path, dict[str, Any]], object]) -> None:
    """Fork a process for each line of standard input, let it drive, and answer with how it has ended."""
    while line := sys.stdin.readline():
        directory, options, environment = json.loads(line)
        for name in ("pandas", *IMPORTS.get(options.get("optimizer"), ())):
            importlib.import_module(name)
        if (pid := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            os.environ.clear()
            os.environ.update(environment)
            drive(Path(directory), options)
            return
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
