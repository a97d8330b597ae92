"""What a process knows of its servers: how their endpoints do, and what they were found to be."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from .balancing import Endpoint, Endpoints
from .servers import Recognised, Server

__all__ = ["Known", "known_of"]


@dataclass(eq=False)
class Known:
    """One set of addresses: how they do, what they were found to be, and per model how the dials reach a chat route."""

    endpoints: Endpoints
    server: Server | None = None
    found: Recognised | None = None
    ways: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    way_lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """What the server said of itself no longer holds: it is asked again."""
        self.server = self.found = None
        self.ways.clear()


_known: OrderedDict[tuple[Any, ...], Known] = OrderedDict()
_known_lock = threading.Lock()


def known_of(key: tuple[Any, ...], urls: tuple[str, ...]) -> Known:
    """What is known under a key; made anew for these addresses where nothing is."""
    with _known_lock:
        found = _known.pop(key, None) or Known(Endpoints(tuple(Endpoint(url) for url in urls)))
        _known[key] = found
        while len(_known) > 256:
            _known.popitem(last=False)
        return found


def _forget() -> None:
    """In a forked child: locks may be held by threads that are not there, and counts are the parent's."""
    global _known_lock
    _known_lock = threading.Lock()
    _known.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget)
