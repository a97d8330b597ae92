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

    @property
    def sole(self) -> str | None:
        """The server's only model, where it has said so; two names with and without `karakuri-ai/` are one model."""
        listed = self.found.models if self.found is not None else ()
        return listed[0] if len({_bare(one) for one in listed}) == 1 else None

    def served(self, model: str) -> str:
        """The id by which the server knows a model: the one given, or the same with or without `karakuri-ai/`."""
        listed = self.found.models if self.found is not None else ()
        same = [one for one in listed if _bare(one) == _bare(model)]
        return same[0] if same and model not in listed else model

    def missing(self, model: str) -> str:
        """What to say of a 404: the model or, where the server lists that, the route does not exist."""
        listed = self.found.models if self.found is not None else ()
        if not listed:
            return (
                f"the endpoint has no such route, or no model {model!r:.120}; check base_url, server= and, at "
                f"{self.endpoints.members[0].url}/v1/models, the names of its models"
            )
        if self.served(model) in listed:
            return f"the endpoint serves {model!r:.120} and has no such route; check base_url and server="
        return (
            f"the endpoint has no model {model!r:.120}; it serves {', '.join(listed[:20])}. Pass one of these as "
            "model=, with template= where the name does not tell the family"
        )

    def forget(self) -> None:
        """What the server said of itself no longer holds: it is asked again."""
        self.server = self.found = None
        self.ways.clear()


def _bare(model: str) -> str:
    return model.removeprefix("karakuri-ai/")


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
