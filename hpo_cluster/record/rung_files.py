"""The files by which a job reports a rung and learns whether to go on: ``rung-<k>.json`` and ``word-<k>.json``.

The job publishes the rung, then waits. The driver's word is *go on* or *end*. If it says nothing in time, the job
writes *end* itself. The word is published exclusively, so exactly one of them decides, on shared file systems too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_cluster.record.files import dumps, publish_once, read_json, refresh
from hpo_cluster.record.layout import AttemptLayout


def rung_name(rung: int) -> str:
    """Return the name of the file in which an attempt reports a rung."""
    return f"rung-{rung}.json"


def rung_file(files: AttemptLayout, rung: int) -> Path:
    """Return the file in which an attempt reports a rung."""
    return files.dir / rung_name(rung)


def word_file(files: AttemptLayout, rung: int) -> Path:
    """Return the file that says whether an attempt goes on after a rung."""
    return files.dir / f"word-{rung}.json"


def publish_rung(files: AttemptLayout, rung: int, document: Mapping[str, Any]) -> bool:
    """Report a rung; return False, and change nothing, if it was reported before."""
    return publish_once(rung_file(files, rung), dumps(dict(document)))


def publish_word(files: AttemptLayout, rung: int, *, go_on: bool) -> bool:
    """Say whether the attempt goes on after a rung; return False, and change nothing, if that was said before."""
    return publish_once(word_file(files, rung), dumps({"go_on": go_on}))


def read_word(files: AttemptLayout, rung: int) -> bool | None:
    """Return whether the attempt goes on after a rung; None if nothing was said yet."""
    path = word_file(files, rung)
    if path.name not in refresh(files.dir):
        return None
    return bool((read_json(path) or {}).get("go_on"))
