"""The kind of error that an exception of an evaluation is, from which the driver concludes whether to try again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hpo_cluster.errors import AttemptError
from hpo_cluster.record.files import STORAGE
from hpo_cluster.trial import ErrorKind

#: What the system says of a storage that takes nothing more.
STORAGE_WORDS = r"No space left on device|Disk quota exceeded|Stale file handle"
#: Messages of torch, safetensors and programs started by the job if they cannot write.
DISK_WORDS = re.compile(
    STORAGE_WORDS
    + r"|PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos"  # torch.save on a full disk
)


def classify(error: BaseException) -> str:
    """Return the error kind of an exception that a program did not catch."""
    if isinstance(error, AttemptError):
        return error.kind
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ErrorKind.OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
        return ErrorKind.OUT_OF_MEMORY
    if any(isinstance(cause, OSError) and cause.errno in STORAGE for cause in _causes(error)):
        return ErrorKind.DISK
    if any(DISK_WORDS.search(str(cause)) for cause in _causes(error)):  # libraries may write without Python
        return ErrorKind.DISK
    return ErrorKind.CODE


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and the exceptions that a traceback would show before it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
