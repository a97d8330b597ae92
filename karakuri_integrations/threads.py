"""Threads beside an event loop, for what has no async half: a small question to a server, a file, a tokenizer.

Neither the loop's own pool, which name resolution needs and whose end `asyncio.run` waits for, nor concurrent.futures',
which the interpreter's exit waits for: these threads are daemons, so nobody waits for a server that does not answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, TypeVar

__all__ = ["in_thread"]

_T = TypeVar("_T")
_MOST: Final = 16


def in_thread(function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
    """What `function(*args)` returns or raises, to await on the running loop; the thread sees the caller's context."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():  # nobody waits any more
            set_it(value)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = (done.set_result, context.run(function, *args))
        except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
            outcome = (done.set_exception, error)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    _pool.submit(run)
    return done


class _Pool:
    """A few threads, each begun when there is more to do than threads that are idle."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._count = 0

    def submit(self, work: Callable[[], None]) -> None:
        self._work.put(work)
        if self._idle.acquire(blocking=False):
            return
        with self._lock:
            if self._count < _MOST:
                self._count += 1
                threading.Thread(target=self._run, name="karakuri-beside", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._work.get()()
            self._idle.release()


_pool = _Pool()


def _after_fork() -> None:
    """The threads are not there in a forked child."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
