"""A way to wait for slow work while doing other work meanwhile."""

from __future__ import annotations

import concurrent.futures
import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

from hpo_cluster.record import clock

T = TypeVar("T")


class Background:
    """A thread that runs one piece of work at a time, while the caller repeats something else until it is done.

    Args:
        meanwhile: called in the caller's thread every `period_s` seconds until the work is done.
        period_s: seconds between two calls of `meanwhile`.
    """

    def __init__(self, meanwhile: Callable[[], object], period_s: float) -> None:
        self._meanwhile, self._period_s = meanwhile, period_s
        self._at_work: int | None = None  # the thread, while it is at work
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="background")

    def __call__(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread; return what it returns, or raise what it raises.

        On a simulated clock nothing happens meanwhile, and it runs here.
        """
        if clock.is_simulated():
            return work()

        def in_thread() -> T:
            self._at_work = threading.get_ident()
            try:
                return work()
            finally:
                self._at_work = None

        future = self._pool.submit(in_thread)
        while not concurrent.futures.wait([future], timeout=self._period_s).done:
            self._meanwhile()
        return future.result()

    def give_up(self, error: type[BaseException]) -> None:
        """Raise `error` in the thread at its next step in Python, if it is at work. A signal's handler may call it."""
        thread, self._at_work = self._at_work, None
        if thread is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))

    def close(self) -> None:
        """Let the thread end once its work is done."""
        self._pool.shutdown(wait=False)
