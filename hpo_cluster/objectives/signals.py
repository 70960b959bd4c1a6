"""The signals that ask a job to end, and their handling for a while."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

#: SIGUSR2 comes before the walltime, SIGTERM when a job is cancelled or preempted.
END_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


def in_main_thread() -> bool:
    """Return whether this is the main thread: others may not set signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within the context, `handler` handles the signals that ask a job to end; in another thread nothing changes."""
    if not in_main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in END_SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
