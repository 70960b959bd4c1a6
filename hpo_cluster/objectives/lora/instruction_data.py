"""Read instruction data: JSON or JSONL, one file or a folder with train and val, with any column names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hpo_cluster.errors import AttemptError
from hpo_cluster.trial import ErrorKind

Row: TypeAlias = dict[str, Any]

SUFFIXES = (".json", ".jsonl")
#: Names of the columns in this program.
Field: TypeAlias = Literal["instruction", "output", "input"]
#: Columns that a row must have; ``input`` is optional.
NEEDED: tuple[Field, ...] = ("instruction", "output")
FIELDS: tuple[Field, ...] = (*NEEDED, "input")
#: Columns that are dropped: LitGPT's prompt styles have an argument of the same name.
TAKEN = ("prompt",)


def files_of(path: Path) -> tuple[Path | None, Path | None]:
    """Return the paths of the training file and the validation file; None for a file that does not exist."""
    if path.is_dir():
        train, val = (
            next((file for suffix in SUFFIXES if (file := path / f"{name}{suffix}").is_file()), None)
            for name in ("train", "val")
        )
        return train, val
    return (path if path.is_file() and path.suffix in SUFFIXES else None), None


def read_data(path: Path, fields: Mapping[Field, str]) -> tuple[list[Row], list[Row] | None]:
    """Read the training rows, and the validation rows if they have their own file.

    Args:
        path: a ``.json`` or ``.jsonl`` file, or a folder with ``train`` and, optionally, ``val`` in these formats.
        fields: names of the columns in the file, by our names: ``{"instruction": "prompt", "output": "response"}``.

    Raises:
        AttemptError: of kind ``bad_data``; it names the file, the row and what to do.
    """
    train, val = files_of(path)
    if train is None:
        what = "does not exist" if not path.exists() else "is not a .json or .jsonl file, nor a folder with train.json"
        raise AttemptError(ErrorKind.BAD_DATA, f"data.path={path}: {what}")
    return _read_rows(train, fields), None if val is None else _read_rows(val, fields)


def _read_rows(path: Path, fields: Mapping[Field, str]) -> list[Row]:
    rows = _parse(path)
    if not isinstance(rows, list):
        keys = f" with the keys {', '.join(map(repr, list(rows)[:5]))}" if isinstance(rows, dict) else ""
        raise _fault(path, f"contains one {type(rows).__name__}{keys}, not a list of rows")
    if not rows:
        raise _fault(path, "is empty")
    names = {ours: fields.get(ours, ours) for ours in FIELDS}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _fault(path, f"row {number} is {_shown(row)}, not an object")
        for ours in NEEDED:
            if not isinstance(row.get(names[ours]), str):
                there = ", ".join(map(str, row)) or "nothing"
                hint = f"to use another column, give 'data.fields={{{ours}: NAME}}'"
                raise _fault(path, f"row {number} lacks the text {names[ours]!r}; it has {there}; {hint}")
        if not isinstance(row.get(names["input"], ""), (str, type(None))):
            raise _fault(path, f"row {number}: {names['input']}={_shown(row[names['input']])} is not a text")
    return [
        {
            **{name: value for name, value in row.items() if name not in TAKEN},
            **{ours: row[theirs] for ours, theirs in names.items() if theirs in row},
        }
        for row in rows
    ]


def _parse(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _fault(path, f"cannot be read: {error.strerror}") from error
    if data.startswith(b"\x1f\x8b"):
        raise _fault(path, f"is compressed; decompress it:  gunzip -c {path} > data.json")
    try:
        text = data.decode("utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        how = f"iconv -f latin1 -t utf-8 {path} > utf8{path.suffix}"
        raise _fault(
            path, f"line {line} is not UTF-8 (byte {data[error.start]:#04x}); if it is Latin-1:  {how}"
        ) from error
    try:
        return json.loads(text) if path.suffix == ".json" else _lines(text)
    except ValueError as error:
        if path.suffix == ".json" and "Extra data" in str(error):
            try:
                return _lines(text)  # JSON lines in a .json file
            except ValueError:
                pass
        raise _fault(path, f"is not JSON: {error}") from error
    except RecursionError as error:
        raise _fault(path, "is nested too deeply") from error


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _fault(path: Path, what: str) -> AttemptError:
    return AttemptError(ErrorKind.BAD_DATA, f"data.path: {path} {what}")
