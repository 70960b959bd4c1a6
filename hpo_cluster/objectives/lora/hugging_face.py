"""Hugging Face folders as base models: recognise one, and find the LitGPT checkpoint that `prepare` has made of it.

The jobs read LitGPT checkpoints. The one made of a Hugging Face folder lies in shared storage under a name that follows
from the folder's path, so that the same ``model.checkpoint_dir`` serves `prepare` and `run`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpo_cluster.record.files import read_json

#: Files without which there is no LitGPT checkpoint.
CHECKPOINT_FILES = ("lit_model.pth", "model_config.yaml", "tokenizer.json", "tokenizer_config.json")

#: Where the converted models are.
CONVERTED_DIR = "storage:checkpoints/converted"

#: File in a converted model that says what it was made of. Files that end in .json would be linked into each adapter.
ORIGIN = "converted_from"


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a LitGPT checkpoint has and `folder` lacks."""
    return [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]


def weight_files(folder: Path) -> list[str]:
    """Return the names of the Hugging Face weights in a folder, of its index too; safetensors come first.

    A file that the index names is listed even if it is not there.
    """
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = f"{single}.index.json"
        if (folder / index).is_file():
            shards = (read_json(folder / index) or {}).get("weight_map")
            names = set(shards.values()) if isinstance(shards, dict) else set()
            return [index, *sorted(str(name) for name in names)]
        if (folder / single).is_file():
            return [single]
    return []


def is_hugging_face(folder: Path) -> bool:
    """Return whether a folder holds a Hugging Face model, and no LitGPT one."""
    is_litgpt = (folder / "lit_model.pth").exists()
    return not is_litgpt and (folder / "config.json").is_file() and bool(weight_files(folder))


def converted_dir(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """Return where the LitGPT checkpoint made of a Hugging Face folder is, or will be.

    Args:
        folder: absolute path; its hash keeps folders of the same name apart. The hash comes first, since LitGPT's
            tokenizer has special rules for folders whose names begin with a model's.
        resolve: turns ``storage:…`` into a path.
    """
    mark = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return resolve(CONVERTED_DIR) / f"{mark}-{folder.name}"


def litgpt_dir(folder: Path, resolve: Callable[[str], Path]) -> Path:
    """Return the LitGPT checkpoint that jobs read for a configured folder: what it was converted to, or itself."""
    if (folder / "lit_model.pth").exists():
        return folder
    converted = converted_dir(folder, resolve)
    return converted if converted.is_dir() else folder


def origin(folder: Path) -> dict[str, Any]:
    """Return what a conversion of a folder is made of: size (bytes) and time of writing (ns) of each of its files."""
    tokenizer = ("vocab.json", "merges.txt", *(path.name for path in folder.glob("*token*")))
    names = {"config.json", *weight_files(folder), *tokenizer}
    stats = {name: (folder / name).stat() for name in sorted(names) if (folder / name).is_file()}
    files = {name: [status.st_size, status.st_mtime_ns] for name, status in stats.items()}
    return {"folder": str(folder), "files": files}


def write_origin(converted: Path, made_of: dict[str, Any]) -> None:
    """Record in a converted model what it was made of, as `origin` gives it."""
    (converted / ORIGIN).write_text(json.dumps(made_of, indent=1) + "\n")


def conversion_fault(folder: Path, resolve: Callable[[str], Path]) -> str | None:
    """Return why jobs cannot use a Hugging Face folder as it is now, and what to do; None if they can."""
    if not is_hugging_face(folder):
        return None
    words = ["model=local", f"model.checkpoint_dir={folder}", f"storage_dir={resolve('storage:')}"]
    prepare = f"hpo-cluster prepare {shlex.join(words)}"
    converted = converted_dir(folder, resolve)
    if not converted.is_dir():
        return f"{folder} is a Hugging Face model that has not been converted for LitGPT yet; run: {prepare}"
    if missing := missing_files(converted):
        return f"{converted}, made of {folder}, lacks {', '.join(missing)}; move it away and run: {prepare}"
    made_of = read_json(converted / ORIGIN)
    if made_of is not None and made_of.get("files") != origin(folder)["files"]:
        changed = f"{folder} has changed since it was converted to {converted}"
        return f"{changed}; move {converted} away and run: {prepare} (or give model.checkpoint_dir={converted})"
    return None
