"""From the worker to one consumer: pieces, then an end or an error. Knows no model and no queue of jobs.

The worker puts and never waits. A consumer in a thread or on an event loop takes; it never hangs, because each wait
is bounded and looks whether the producer still lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import queue
import threading
import time
from collections.abc import Callable

from ..conversation import Piece
from ..errors import DeadlineError, EngineError, WorkerError

__all__ = ["Channel", "Deadline", "copied"]

_HEARTBEAT = 1.0  # seconds between two looks whether the worker lives


class Deadline:
    """When a call must have ended; without a timeout, never."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float:
        """Seconds left, at most a heartbeat; 0 when it has passed."""
        return _HEARTBEAT if self._end is None else max(0.0, min(_HEARTBEAT, self._end - time.monotonic()))

    @property
    def passed(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def error(self) -> DeadlineError:
        return DeadlineError(
            f"the call's timeout of {self.timeout:g} s passed before the reply ended; raise timeout or lower max_tokens"
        )


class Channel:
    """One reply's way to its consumer. `cancelled` tells the worker that nobody waits any more; `ended` is true before
    the consumer can know the end.

    `whole`: nobody looks at the reply before its end, so the consumer is not woken before, which for many small tokens
    costs as much as making them; it then gets what there is as one piece (on a loop at each heartbeat).

    `take` and `atake` are plain calls and no generators, so that a consumer's `finally` has nothing to await: an
    abandoned async stream can be cleaned up without its loop.
    """

    def __init__(self, deadline: Deadline, *, whole: bool = False) -> None:
        self.deadline = deadline
        self._over = threading.Event() if whole else None
        self.cancelled = self.ended = False
        self._items: queue.SimpleQueue[Piece | EngineError | None] = queue.SimpleQueue()
        self._behind: list[EngineError | None] = []  # what came behind a piece that was made of several
        self._ready: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def put(self, item: Piece | EngineError | None) -> None:
        """Give the consumer a piece, an error that ends the reply, or None: the end."""
        self.ended |= item is None or isinstance(item, EngineError)
        self._items.put(item)
        if self._over is not None:
            if not self.ended:
                if self._loop is not None and self._loop.is_closed():
                    self.cancel()
                return
            self._over.set()
        if self._loop is not None and self._ready is not None:
            try:
                self._loop.call_soon_threadsafe(self._ready.set)
            except RuntimeError:  # the loop was closed with the stream open
                self.cancel()

    def cancel(self) -> None:
        self.cancelled = True

    def take(self, alive: Callable[[], bool]) -> Piece | None:
        """The next piece, waiting in this thread; None at the end.

        Raises:
            EngineError: what the worker gave, DeadlineError, or WorkerError when the worker is gone.
        """
        while True:
            lives = alive()  # looked at before the wait: a worker that ends has put its last item
            if lives and not self._ready_to_take():
                continue
            try:
                if self._over is not None:
                    return self._gathered()
                wait = self.deadline.left() if lives else 0
                return _piece(self._items.get(timeout=wait) if wait else self._items.get_nowait())
            except queue.Empty:
                self._check(lives)

    def _ready_to_take(self) -> bool:
        """Waits a while, where only the end counts; what came before a deadline passed is taken, too."""
        return self._over is None or self._over.wait(self.deadline.left()) or self.deadline.passed

    async def atake(self, alive: Callable[[], bool]) -> Piece | None:
        """As `take`, waiting on the running event loop."""
        if self._ready is None:
            self._ready, self._loop = asyncio.Event(), asyncio.get_running_loop()
        while True:
            self._ready.clear()
            lives = alive()
            try:
                return self._gathered() if self._over is not None else _piece(self._items.get_nowait())
            except queue.Empty:
                self._check(lives)
            await _wait(self._ready, self.deadline.left())

    def _gathered(self) -> Piece | None:
        """All pieces that there are, as one. Raises queue.Empty where there are none, and no end."""
        if self._behind:
            return _piece(self._behind.pop())
        found = list[Piece]()
        with contextlib.suppress(queue.Empty):
            while isinstance(item := self._items.get_nowait(), Piece):
                found.append(item)
            if not found:
                return _piece(item)
            self._behind.append(item)
        if not found:
            raise queue.Empty
        return found[-1]._replace(text="".join(one.text for one in found))

    def _check(self, lives: bool) -> None:
        if not lives:
            raise WorkerError("the engine's worker ended without finishing the reply; call again")
        if self.deadline.passed:
            raise self.deadline.error()


async def _wait(ready: asyncio.Event, seconds: float) -> None:
    # Not asyncio.wait_for: until Python 3.12 it can swallow a cancellation (cpython#86296).
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ready.wait()


def _piece(item: Piece | EngineError | None) -> Piece | None:
    if isinstance(item, EngineError):
        raise item
    return item


def copied(failure: EngineError) -> EngineError:
    """One for each consumer: two threads must not raise the same object, each adds its own traceback to it."""
    other = copy.copy(failure)
    other.__cause__ = failure.__cause__
    return other
