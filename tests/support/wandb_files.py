"""What wandb wrote offline, read back from the file of a run."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<4sHB")  # of a file: ":W&B", a number, the version
PART = struct.Struct("<IHB")  # of a part of a record: checksum, length, kind
BLOCK = 32 * 1024  # bytes; no part crosses the end of a block
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbRun:
    """One run: its identity, and what was logged."""

    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    entity: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def runs_in(folder: Path) -> dict[str, WandbRun]:
    """Return the runs below a folder by name; a name that is there twice is an error."""
    found = [read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]
    assert len({run.name for run in found}) == len(found)
    return {run.name: run for run in found}


def read_run(path: Path) -> WandbRun:
    """Return a run as its file says; keys that wandb adds itself, which begin with ``_``, are left out but the step."""
    from wandb.proto import wandb_internal_pb2

    run = WandbRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            for name in ("project", "entity", "job_type", "notes"):
                setattr(run, name, getattr(record.run, name))
            run.id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
            run.tags = list(record.run.tags)
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "history":
            run.history.append({**_items(record.history.item), "_step": record.history.step.num})
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    named = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
    return {name: value for name, value in named.items() if not name.startswith("_")}


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file: parts, joined."""
    assert HEADER.unpack_from(content)[0] == b":W&B"
    at, parts = HEADER.size, b""
    while at + PART.size <= len(content):
        if BLOCK - at % BLOCK < PART.size:  # the rest of a block is empty
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = PART.unpack_from(content, at)
        assert kind in (WHOLE, FIRST, MIDDLE, LAST)
        parts += content[at + PART.size : at + PART.size + length]
        at += PART.size + length
        if kind in (WHOLE, LAST):
            yield parts
            parts = b""
