"""Several endpoints of one model: the one with the fewest calls under way is asked, a dead one is left out for a while.

Shared by every engine handle of the process for the same addresses, and thread-safe. What a call does after a failure
is `remote`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Endpoint", "Endpoints"]

#: After this many failures in a row an endpoint is left out, at first for this long; each further failure doubles it.
_FAILURES: Final = 3
_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 60.0


@dataclass(eq=False)
class Endpoint:
    """One address and how it does."""

    url: str
    under_way: int = 0
    failures: int = 0
    closed_until: float = 0.0


@dataclass(eq=False)
class Endpoints:
    """The addresses of one model."""

    members: tuple[Endpoint, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: int = 0

    def take(self, tried: Collection[Endpoint] = (), near: Endpoint | None = None) -> Endpoint:
        """The least busy endpoint, or `near`, counted as one call busier; those of `tried` and dead ones only if none
        is left."""
        now = time.monotonic()
        with self._lock:
            count, turn = len(self.members), self._turn
            self._turn += 1
            order = [self.members[(turn + k) % count] for k in range(count)]  # equally busy ones take turns
            chosen = min(order, key=lambda one: (one in tried, one.closed_until > now, one is not near, one.under_way))
            chosen.under_way += 1
            if chosen.failures >= _FAILURES:
                chosen.closed_until = now + _PAUSE  # one call tries whether it is back
            return chosen

    def give_back(self, endpoint: Endpoint, *, failed: bool | None) -> None:
        """The call is over. `failed`: the endpoint did not answer; None says nothing about it."""
        with self._lock:
            endpoint.under_way -= 1
            if failed:
                endpoint.failures += 1
                over = endpoint.failures - _FAILURES
                if over >= 0:
                    endpoint.closed_until = time.monotonic() + min(_LONGEST_PAUSE, _PAUSE * 2.0 ** min(over, 6))
            elif failed is not None:
                endpoint.failures, endpoint.closed_until = 0, 0.0
