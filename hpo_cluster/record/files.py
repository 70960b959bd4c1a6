"""Files that appear whole or not at all, also on shared file systems, and readers for which they may be missing."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The disk or the quota is full.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Nobody can write now: the disk, the quota or the file server is the reason.
STORAGE = FULL | {errno.EROFS, errno.EIO, errno.ESTALE, errno.EREMOTEIO}
#: Errors that may pass: of the storage, of expired access rights, of a server or a machine at its limits.
PASSING = STORAGE | {
    *(errno.EACCES, errno.EPERM, errno.EKEYEXPIRED, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOLCK, errno.EAGAIN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
#: Errors of a path at which there is something other than the expected file or folder.
IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})


#: Whether files are synced to disk.
_syncs = True


def sync(descriptor: int) -> None:
    """Sync an open file to disk, unless `without_sync` says that nobody needs that."""
    if _syncs:
        os.fsync(descriptor)


@contextlib.contextmanager
def without_sync() -> Iterator[None]:
    """Let this process sync no file to disk while the context lasts: of a simulation, nothing is lost with a crash."""
    global _syncs
    before, _syncs = _syncs, False
    try:
        yield
    finally:
        _syncs = before


@contextlib.contextmanager
def _whole(path: Path, write: Callable[[IO[bytes]], object]) -> Iterator[Path]:
    """Yield a temporary file next to `path`, written and synced to disk; remove it at the end if it still exists."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            sync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Replace the content of `path` by what `write` writes; a reader sees the whole old file or the whole new one."""
    with _whole(path, write) as temporary:
        temporary.replace(path)


def replace_bytes(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, as `replace` does."""
    replace(path, lambda stream: stream.write(data))


def replace_text(path: Path, text: str) -> None:
    """Replace the content of `path` by `text`, as `replace` does."""
    replace_bytes(path, text.encode())


def publish_once(path: Path, text: str) -> bool:
    """Create `path` whole with `text`. If `path` exists, change nothing and return False.

    A hard link is atomic on every POSIX file system, including NFS. After exclusive creation and a write, a reader
    could see half of the file. If NFS makes the link, loses the answer and repeats the request, the answer is that the
    file exists, although it is ours; the inode shows it.
    """
    with _whole(path, lambda stream: stream.write(text.encode())) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return path.samefile(temporary)
    return True


#: Seconds for which `patiently` tries, and seconds between two tries.
PATIENCE_S, AGAIN_S = 600.0, 2.0


def patiently(write: Callable[[], T]) -> T:
    """Return what `write` returns; while the storage does not take it, try again for ten minutes.

    For what hours of work are in, in a job that has nothing else to do.
    """
    end, told = time.monotonic() + PATIENCE_S, False
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() >= end:
                raise
            if not told:
                log.warning("storage: %s; tried again every %g s", error, AGAIN_S)
            told = True
            time.sleep(AGAIN_S)


class Reserve:
    """Disk space reserved for one small file that must be published even if the disk has become full.

    Hours of work end in a file of some kilobytes. The reserve is a file of zeros, written at the beginning; if there is
    no space for a new file at the end, the zeros are overwritten in place.

    Args:
        folder: folder that the file will be published in.
    """

    BYTES = 32_768

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".reserve"
        with self._path.open("wb") as stream:
            stream.write(bytes(self.BYTES))
            stream.flush()
            os.fsync(stream.fileno())

    def publish_once(self, path: Path, text: str) -> bool:
        """Publish as `publish_once` does; if the disk is full, publish the reserve's own file.

        Raises:
            OSError: if the reserve cannot be used either.
        """
        try:
            return publish_once(path, text)
        except OSError as error:
            data = text.encode()
            if error.errno not in FULL or len(data) > self.BYTES:
                raise
        with self._path.open("r+b") as stream:
            stream.write(data)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(self._path, path)
        except FileExistsError:
            return path.samefile(self._path)
        return True

    def release(self) -> None:
        """Free the reserved space."""
        self._path.unlink(missing_ok=True)


def refresh(directory: Path) -> list[str]:
    """List a directory from the file server: NFS remembers for a minute that a file did not exist.

    Returns:
        The names in the directory, in any order; an empty list if it does not exist.
    """
    try:
        return listing(directory)
    except OSError:
        return []


def listing(directory: Path) -> list[str]:
    """Return the names in a directory as they are now: opening it makes NFS drop its cache.

    Raises:
        OSError: if the directory does not exist or cannot be read.
    """
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(opened)  # noqa: PTH208 - by its descriptor
    finally:
        os.close(opened)


def matching(directory: Path, pattern: str) -> list[Path]:
    """Return the paths in a directory whose names match `pattern`, sorted; empty if it cannot be read."""
    return [directory / name for name in sorted(fnmatch.filter(refresh(directory), pattern))]


def is_there(path: Path) -> bool:
    """Return whether `path` exists; False without access rights, for which `Path.exists` raises."""
    return os.path.exists(path)  # noqa: PTH110


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it, as far as possible; anything else is left: at a pipe, rmtree would wait."""
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises where the folder above may not be searched)
        shutil.rmtree(path, ignore_errors=True)


def dumps(data: Any) -> str:
    """Return strict JSON with a final newline; NaN and infinity are errors, because JSON readers disagree on them."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


#: Maximum number of bytes read from a file written by a job. Results have some kilobytes.
READ_AT_MOST = 32 * 2**20


def read_bytes(path: Path, start: int = 0, end: int | None = None) -> bytes:
    """Return the content of a file that anybody may have written; empty if it is not a readable regular file.

    A pipe, a device or a directory of that name does not block the reader, and at most `READ_AT_MOST` bytes are read.

    Args:
        path: path of the file.
        start: offset to begin at; negative: counted from the end of the file.
        end: offset to stop at.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        first = max(0, status.st_size + start) if start < 0 else start
        return os.pread(fd, min(READ_AT_MOST, (end or first + READ_AT_MOST) - first), first)
    except OSError:
        return b""
    finally:
        os.close(fd)


def written_at(path: Path) -> float:
    """Return when a file was last written (seconds since 1970); 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in `path`; None if it holds none yet (absent, empty, cut, not an object, not a file)."""
    try:
        text = read_bytes(path)
        data = json.loads(text)
        if b"\\u" in text:  # lone surrogates, which cannot be encoded as UTF-8
            data = json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


class Reread:
    """A reader of JSON files that reads a file again only after it was replaced.

    On a shared file system, `refresh` the file's directory first: otherwise a replacement may go unnoticed.
    """

    #: Maximum number of files whose content is kept.
    KEPT = 10_000

    def __init__(self) -> None:
        self._read: dict[str, tuple[tuple[int, int, int], dict[str, Any] | None]] = {}

    def __call__(self, path: Path) -> dict[str, Any] | None:
        """Return the JSON object in `path`. Callers must not change it."""
        name = os.fspath(path)
        try:
            status = path.stat()
        except OSError:
            return None
        seen = status.st_ino, status.st_mtime_ns, status.st_size
        kept = self._read.get(name)
        if kept is None or kept[0] != seen:
            if len(self._read) >= self.KEPT:
                self._read.clear()
            kept = self._read[name] = seen, read_json(path)
        return kept[1]


def redact(text: str) -> str:
    """Return `text` without secrets: ``***`` for values of environment variables named like a token or password."""
    for name, value in os.environ.items():
        if len(value) >= 6 and any(word in name.upper() for word in ("TOKEN", "SECRET", "PASSWORD", "API_KEY")):
            text = text.replace(value, "***")
    return text
