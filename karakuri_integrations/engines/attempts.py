"""One call over all its tries: which endpoint is next, whether a failure may be repeated, and after how long.

The one retry layer of the package. No I/O: `remote` runs each try and sleeps between them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ..conversation import CONTROL_TEXTS, Piece, Prompt, Sampling
from ..errors import (
    EndpointNotFoundError,
    RateLimitError,
    RemoteConnectionError,
    RemoteError,
    RemoteStatusError,
    RemoteTimeoutError,
    ServerFaultError,
)
from ..escaping import escape
from ..reply import Unescape
from ..threads import in_thread
from .balancing import Endpoint
from .exchange import Exchange, Private
from .held import Continuation, Opening, Plan
from .http import HttpRequest, Limits
from .knowledge import Known
from .retrying import backoff, log_retry, may_retry, retry_after
from .servers import Server

__all__ = ["Call", "Reader", "endpoint_failed", "raise_unless_whole"]


@dataclass(eq=False)
class Call:
    """One call over all its tries; where a reply takes two requests (`held`), one of them.

    `model` is the name that was sent, `headers` are those of every request, `ends_at` is when the call's own limit
    passes, `escaped` whether the prompt goes as text, `prompt_tokens` how many the prompt has where a tokenizer counted
    them. Of a second request, `continues` joins the counts, and `near` is the endpoint that holds the beginning in its
    cache.
    """

    known: Known
    server: Server
    model: str
    prompt: Prompt
    sampling: Sampling
    plan: Plan
    body: bytes
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    limits: Limits
    max_retries: int
    ends_at: float | None
    escaped: bool
    prompt_tokens: int | None = None
    continues: Continuation | None = None
    near: Endpoint | None = None
    tried: list[Endpoint] = field(default_factory=list)
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def next_try(self) -> tuple[Endpoint, Exchange]:
        endpoint = self.known.endpoints.take(self.tried, self.near)
        self.tried.append(endpoint)
        private = Private(self.secrets, tuple(one for one in self.prompt.segments if isinstance(one, str)))
        url = endpoint.url + self.server.route
        held = self.plan.held
        return endpoint, Exchange(self.server, url, self.limits, private, self.request_id, self.ends_at, held=held)

    def request(self, exchange: Exchange) -> HttpRequest:
        headers = {"X-Request-Id": self.request_id, "Idempotency-Key": self.request_id, **self.headers}
        if self.server.framing == "aws":
            from .sagemaker import sign

            headers = sign("POST", exchange.url, headers, self.body)
        return HttpRequest("POST", exchange.url, headers, self.body)

    async def arequest(self, exchange: Exchange) -> HttpRequest:
        """As `request`; looking for credentials may read files or ask a server, so it runs in a thread."""
        if self.server.framing == "aws":
            return await in_thread(self.request, exchange)
        return self.request(exchange)

    def pause(self, error: RemoteError, exchange: Exchange) -> float:
        """Seconds until the next try.

        Raises:
            RemoteError: the error itself, where there is no further try.
        """
        error.tries = len(self.tried)
        if isinstance(error, EndpointNotFoundError):
            error.args = (self.known.missing(self.model),)
            self.known.forget()
        others = bool(set(self.known.endpoints.members) - set(self.tried))
        allowed = self.max_retries + len(self.known.endpoints.members) - 1
        if exchange.began or len(self.tried) > allowed or not _repeatable(error, exchange, others=others):
            raise error
        asked = retry_after(exchange.headers) if isinstance(error, RemoteStatusError) else None
        seconds = 0.0 if others else backoff(len(self.tried), asked)
        if self.ends_at is not None and time.monotonic() + seconds >= self.ends_at:
            raise error
        log_retry(error.status or error, exchange.url, len(self.tried), seconds)
        return seconds

    def reader(self) -> Reader | None:
        """What stands between the server's pieces and the reply's; None where they are the same."""
        escaped = any(escape(one, CONTROL_TEXTS)[1] for one in self.prompt.segments if isinstance(one, str))
        unescape = Unescape(CONTROL_TEXTS) if self.escaped and escaped else None
        opening = Opening(self.prompt.grammar) if self.plan.opens and self.prompt.grammar else None
        return Reader(unescape, opening, self.continues) if unescape or opening or self.continues else None


@dataclass(frozen=True)
class Reader:
    """The reply's pieces out of the server's, of one try.

    `unescape`: in a prompt that goes as text, data that looks like a control token stands escaped; the reply is taken
    back. `opening` and `continues`: see `held`.
    """

    unescape: Unescape | None
    opening: Opening | None
    continues: Continuation | None

    @property
    def opened(self) -> bool:
        """Whether a second request must follow."""
        return self.opening is not None and bool(self.opening.opened)

    def push(self, piece: Piece) -> Iterable[Piece]:
        if self.unescape:
            piece = piece._replace(text=self.unescape.push(piece.text, last=piece.finish_reason is not None))
        if self.continues:
            piece = self.continues(piece)
        return self.opening.push(piece) if self.opening else (piece,)

    def rest(self) -> Iterator[Piece]:
        """What was held back when the reply broke off."""
        held = self.unescape.push("", last=True) if self.unescape else ""
        if held:
            yield from self.opening.push(Piece(held)) if self.opening else (Piece(held),)
        if self.opening:
            yield from self.opening.rest()


def raise_unless_whole(error: RemoteError | None, cause: BaseException | None = None) -> None:
    if error is not None:
        raise error from (cause.__cause__ if cause is not None else None)


def _repeatable(error: RemoteError, exchange: Exchange, *, others: bool) -> bool:
    if isinstance(error, RemoteStatusError):  # what a server says of repeating concerns itself, not another one
        status = 429 if isinstance(error, RateLimitError) else error.status  # TGI says it in an event
        return status is not None and may_retry(status, {} if others else exchange.headers)
    if isinstance(error, RemoteTimeoutError):
        return error.stage == "connect"
    return isinstance(error, RemoteConnectionError)


def endpoint_failed(error: RemoteError | None, exchange: Exchange) -> bool | None:
    """Whether a try says that the endpoint itself is down; None: it says nothing about that."""
    if error is None:
        return False if exchange.began else None
    if isinstance(error, RemoteTimeoutError) and error.stage in ("total", "pool"):
        return None  # the caller's own limits
    if isinstance(error, RemoteConnectionError | RemoteTimeoutError | ServerFaultError):
        return True
    return False if isinstance(error, RemoteStatusError) else None
