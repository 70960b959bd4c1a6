"""Files that appear whole or not at all, on shared file systems too, and readers that tolerate their absence."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: There is no space.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: A disk, a quota or a file server does not let anybody write.
STORAGE = FULL | {errno.EROFS, errno.EIO, errno.ESTALE, errno.EREMOTEIO}
#: Errors that may be over in a while: of the storage, of rights that expire, of a server or this machine at its limits.
PASSING = STORAGE | {
    *(errno.EACCES, errno.EPERM, errno.EKEYEXPIRED, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOLCK, errno.EAGAIN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
#: Something else lies where a file or a folder belongs.
IN_THE_WAY = frozenset({errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})


@contextlib.contextmanager
def _whole(path: Path, text: str) -> Iterator[Path]:
    """A temporary file beside `path` that holds `text` on disk; removed at the end if it is still there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path`, in the place of what was there; a reader sees the old file or the new one, whole."""
    with _whole(path, text) as temporary:
        temporary.replace(path)


def publish_once(path: Path, text: str) -> bool:
    """Create `path` whole with `text` unless it exists. Returns False, changing nothing, where it exists already.

    A hard link is atomic on every POSIX file system, NFS included, where exclusive creation followed by a write
    could be seen half done. Where NFS loses the answer to a link that it made, and asks again, the answer is that the
    file exists: it is ours all the same.
    """
    with _whole(path, text) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return path.samefile(temporary)
    return True


class Reserve:
    """Space for one file that has to be published even if the disk is full by then.

    Hours of work end in a file of some kilobytes. They are written to disk as zeros at the beginning, and overwritten
    in place if there is no space for a new file at the end.

    Args:
        folder: where the file will be.
    """

    BYTES = 32_768

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".reserve"
        with self._path.open("wb") as stream:
            stream.write(bytes(self.BYTES))
            stream.flush()
            os.fsync(stream.fileno())

    def publish_once(self, path: Path, text: str) -> bool:
        """Publish as `publish_once` does, into the reserve if the disk is full.

        Raises:
            OSError: if that does not work either.
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
        """Give the space back."""
        self._path.unlink(missing_ok=True)


def refresh(directory: Path) -> list[str]:
    """Ask a shared file system what is in a directory: NFS remembers for a minute that a file was not there.

    Returns:
        Names of what is in it, in no order; nothing where there is no such directory.
    """
    try:
        return listing(directory)
    except OSError:
        return []


def listing(directory: Path) -> list[str]:
    """Return the names of what is in a directory now: opening it makes NFS forget what it remembers.

    Raises:
        OSError: if there is no such directory, or it cannot be read.
    """
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(opened)  # noqa: PTH208 - a directory that is open
    finally:
        os.close(opened)


def matching(directory: Path, pattern: str) -> list[Path]:
    """Return what in a directory has a name like `pattern`, in order; nothing if it cannot be read."""
    return [directory / name for name in sorted(fnmatch.filter(refresh(directory), pattern))]


def is_there(path: Path) -> bool:
    """Return whether something is at `path`, as far as we may look: `Path.exists` raises where we may not."""
    return os.path.exists(path)  # noqa: PTH110


def dumps(data: Any) -> str:
    """Strict JSON with a final newline: NaN and infinity are an error, since no reader agrees on them."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


#: Bytes of a file of a job that are read at most. Results have kilobytes.
READ_AT_MOST = 32 * 2**20


def read_bytes(path: Path, start: int = 0, end: int | None = None) -> bytes:
    """Return what is in a file that anybody may have put there; nothing if it is not a readable regular file.

    A pipe, a device or a directory of that name holds nobody up, and of a file without end only so much is read.

    Args:
        path: of the file.
        start: offset to begin at; below zero, from the end.
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
    """Return when a file was last written (seconds since the epoch); 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None if there is none yet (absent, empty, cut, not an object, not a file)."""
    try:
        text = read_bytes(path)
        data = json.loads(text)
        if b"\\u" in text:  # halves of characters, which no file and no terminal takes
            data = json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


class Reread:
    """Reads JSON as `read_json` does, and a file that has not been replaced since not again.

    On a shared file system that is told after a `refresh` of its directory.
    """

    #: Files that are remembered at most.
    KEPT = 10_000

    def __init__(self) -> None:
        self._read: dict[str, tuple[tuple[int, int, int], dict[str, Any] | None]] = {}

    def __call__(self, path: Path) -> dict[str, Any] | None:
        """The JSON object in `path`; whoever gets it leaves it as it is."""
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
    """`text` without the secrets of the environment: values of variables whose names speak of one become ``***``."""
    for name, value in os.environ.items():
        if len(value) >= 6 and any(word in name.upper() for word in ("TOKEN", "SECRET", "PASSWORD", "API_KEY")):
            text = text.replace(value, "***")
    return text
