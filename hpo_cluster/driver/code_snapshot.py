"""The campaign's own copy of the code that its jobs run.

A job imports code when it *starts*, which may be hours after its submission: without a copy, an edit in between would
change what is measured. The name of a copy is the hash of its contents.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from hpo_cluster.record.layout import PACKAGE_DIR, resources_dir

HASH_LENGTH = 12


def _sources() -> list[tuple[str, Path]]:
    """Return the files of the running code as sorted pairs (path inside a copy, path of the source)."""
    roots = {"hpo_cluster": PACKAGE_DIR, "jobs": resources_dir() / "jobs"}
    files = [
        (f"{top}/{path.relative_to(root).as_posix()}", path)
        for top, root in roots.items()
        for path in root.rglob("*.py")
        if "_resources" not in path.relative_to(root).parts
    ]
    return sorted(files)


def current_code() -> str:
    """Return the hash of the running code."""
    return _hash(_sources())


def hash_of_copy(folder: Path) -> str:
    """Return the hash of the code in a copy; it is the copy's name, unless a file was changed, added or removed."""
    return _hash(sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py")))


def _hash(sources: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in sources:
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:HASH_LENGTH]


def copy_code(code_dir: Path) -> str:
    """Copy the running code to ``code_dir/<hash>`` in one step, unless it is there already; return the hash."""
    code = current_code()
    target = code_dir / code
    if target.is_dir():
        return code
    code_dir.mkdir(parents=True, exist_ok=True)
    temporary = code_dir / f".{code}.partial"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a driver that died while copying; we hold the lock
    for name, path in _sources():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, temporary / name)
    temporary.rename(target)
    return code
