"""Time limits for blocking sockets. A socket's own timeout begins anew with every byte, so a server that drips never
meets it; this thread shuts the socket down when the limit of the whole wait has passed. One thread per process, alive
while somebody waits.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Final

__all__ = ["Watched", "watch"]

_EVERY: Final = 0.1
_NEVER: Final = float("inf")
_IDLE: Final = 30.0


class Watched:
    """A socket that is waited on until `at` (time.monotonic); `late` once it was shut down."""

    def __init__(self) -> None:
        self.socket: Any = None
        self.at = _NEVER
        self.late = False

    def release(self) -> None:
        """No longer watch."""
        self.at = _NEVER
        _dog.items.discard(self)

    def look(self, now: float) -> None:
        """Shut the socket down if its time is over."""
        if now >= self.at and self.socket is not None and not self.late:
            self.late = True
            with suppress(OSError, ValueError):
                self.socket.shutdown(socket.SHUT_RDWR)


class _Watchdog:
    def __init__(self) -> None:
        self.items: set[Watched] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, item: Watched) -> None:
        with self._lock:
            self.items.add(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="karakuri-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(_EVERY)
            now = time.monotonic()
            items = list(self.items)
            for item in items:
                item.look(now)
            if items:
                idle_since = now
            elif now - idle_since > _IDLE:
                with self._lock:
                    if not self.items:
                        self._thread = None
                        return


_dog = _Watchdog()


def watch() -> Watched:
    """A new entry; its socket and limit are set when they are known."""
    item = Watched()
    _dog.add(item)
    return item


def _after_fork() -> None:
    """The thread is not there in a forked child."""
    global _dog
    _dog = _Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
