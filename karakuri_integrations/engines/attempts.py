"""One call over all its tries: which endpoint is next, whether a failure may be repeated, and after how long.

The one retry layer of the package. No I/O: `remote` runs each try and sleeps between them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..conversation import CONTROL_TEXTS, Piece, Prompt
from ..errors import RemoteConnectionError, RemoteError, RemoteStatusError, RemoteTimeoutError, ServerFaultError
from ..reply import Unescape
from .balancing import Endpoint
from .exchange import Exchange, Private
from .http import HttpRequest, Limits
from .knowledge import Known
from .retrying import backoff, may_retry, retry_after
from .servers import Server

__all__ = ["Call", "endpoint_failed", "raise_unless_whole"]


@dataclass(eq=False)
class Call:
    """One call over all its tries.

    `headers` are those of every request, `timeout` and `ends_at` the call's own limit and when it passes, `escaped`
    whether the prompt goes as text.
    """

    known: Known
    server: Server
    prompt: Prompt
    body: bytes
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    limits: Limits
    max_retries: int
    ends_at: float | None
    escaped: bool
    tried: list[Endpoint] = field(default_factory=list)
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def next_try(self) -> tuple[Endpoint, Exchange]:
        endpoint = self.known.endpoints.take(self.tried)
        self.tried.append(endpoint)
        private = Private(self.secrets, tuple(one for one in self.prompt.segments if isinstance(one, str)))
        url = endpoint.url + self.server.route
        return endpoint, Exchange(self.server, url, self.limits, private, self.request_id, self.ends_at)

    def request(self, exchange: Exchange) -> HttpRequest:
        headers = {"X-Request-Id": self.request_id, "Idempotency-Key": self.request_id, **self.headers}
        if self.server.framing == "aws":
            from .sagemaker import sign

            headers = sign("POST", exchange.url, headers, self.body)
        return HttpRequest("POST", exchange.url, headers, self.body)

    async def arequest(self, exchange: Exchange) -> HttpRequest:
        """As `request`; looking for credentials may read files or ask a server, so it runs in a thread."""
        if self.server.framing == "aws":
            return await asyncio.to_thread(self.request, exchange)
        return self.request(exchange)

    def pause(self, error: RemoteError, exchange: Exchange) -> float:
        """Seconds until the next try.

        Raises:
            RemoteError: the error itself, where there is no further try.
        """
        error.tries = len(self.tried)
        others = len(set(self.known.endpoints.members) - set(self.tried))
        allowed = self.max_retries + len(self.known.endpoints.members) - 1
        if exchange.began or len(self.tried) > allowed or not _repeatable(error, exchange):
            raise error
        asked = retry_after(exchange.headers) if isinstance(error, RemoteStatusError) else None
        seconds = 0.0 if others else backoff(len(self.tried), asked)
        if self.ends_at is not None and time.monotonic() + seconds >= self.ends_at:
            raise error
        return seconds

    def unescaper(self) -> Any:
        """In text, data that looks like a control token stands escaped; the reply is taken back."""
        if not self.escaped or not any(
            literal in one for one in self.prompt.segments if isinstance(one, str) for literal in CONTROL_TEXTS
        ):
            return None
        stage = Unescape(CONTROL_TEXTS)
        return lambda piece: replace(piece, text=stage.push(piece.text, last=piece.finish_reason is not None))

    def shown(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        unescape = self.unescaper()
        return map(unescape, pieces) if unescape else pieces


def raise_unless_whole(error: RemoteError | None, cause: BaseException | None = None) -> None:
    if error is not None:
        raise error from (cause.__cause__ if cause is not None else None)


def _repeatable(error: RemoteError, exchange: Exchange) -> bool:
    if isinstance(error, RemoteStatusError):
        return error.status is not None and may_retry(error.status, exchange.headers)
    if isinstance(error, RemoteTimeoutError):
        return error.stage == "connect"
    return isinstance(error, RemoteConnectionError)


def endpoint_failed(error: RemoteError) -> bool | None:
    """Whether an error says that the endpoint itself is down; None: it says nothing about that."""
    if isinstance(error, RemoteConnectionError | RemoteTimeoutError | ServerFaultError):
        return True
    return False if isinstance(error, RemoteStatusError) else None
