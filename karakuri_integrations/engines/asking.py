"""What a server is asked beside replies: what it is, how many tokens a text has, how the dials reach its chat route.

Small requests, sync and with the same retries as replies; an event loop runs them in a thread. What the answers mean is
in `servers` and `chat_route`; what was learned is kept in `knowledge`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors import (
    OptionError,
    ProtocolError,
    RemoteConnectionError,
    RemoteError,
    RemoteTimeoutError,
    SteeringLostError,
    StreamInterruptedError,
    UnsupportedError,
)
from .balancing import Endpoint, Endpoints
from .chat_route import Answer, find_way
from .exchange import ERROR_BODY, Exchange, Private
from .http import AsyncResponse, HttpRequest, Limits, SyncResponse, open_, timed_out
from .knowledge import Known
from .retrying import backoff, log_retry, may_retry, retry_after
from .servers import SERVERS, Recognised, Server

__all__ = ["Asker", "aread_all", "coded", "read_all"]

#: Seconds that an answer may take, and bytes that it may have.
_PATIENCE: Final = 10.0
#: Seconds for the body of an error, whose status has come already.
_ERROR_PATIENCE: Final = 2.0
_LARGEST: Final = 16 * 1024 * 1024
_MEDIA_TYPE: Final = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}")
#: How a gateway answers that does not pass a route on.
_HIDDEN: Final = (403, 404, 405, 501)


@dataclass(frozen=True)
class Asker:
    """Asks one of the endpoints of a model. `ends_at`: when the call that needs the answer must have ended."""

    known: Known
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    limits: Limits
    max_retries: int
    client: Any = None
    ends_at: float | None = None

    def identify(self, named: Server | None) -> None:
        """Find out what the server is and which models it serves, once.

        Raises:
            OptionError: it is none that is known.
            RemoteError: it cannot be reached, is not ready, redirects, or refuses the key.
        """
        if self.known.found is not None:  # without the lock, which somebody who waits for a server may hold
            return
        with self._locked(self.known.lock):
            if self.known.found is None:
                candidates = [named] if named else list(SERVERS.values())
                server, found = self._recognised(candidates, named)
                self.known.server, self.known.found = server, found

    def _recognised(self, candidates: list[Server], named: Server | None) -> tuple[Server, Recognised]:
        answers: dict[str, Answer] = {}
        came: dict[str, list[str]] = {}
        for server in candidates:
            for probe in server.probes:
                if probe.path not in answers:
                    answers[probe.path], kind = self._looked_at(probe.path, answers)
                    came.setdefault(kind, []).append(probe.path)
                found = probe.judge(*answers[probe.path])
                if found is not None:
                    return server, found
        if named is not None:
            return named, Recognised()
        received = "; ".join(f"{kind} to {', '.join(paths)}" for kind, paths in came.items())
        raise OptionError(
            f"the server at {self.known.endpoints.members[0].url} is none that is known ({', '.join(SERVERS)}): it "
            f"answered {received}. Check that base_url is the model server's and no web page's, or name the nearest "
            "with server="
        )

    def _looked_at(self, path: str, others: Mapping[str, Answer]) -> tuple[Answer, str]:
        """The answer to a probe, and its status and content type in words."""
        status, answer, exchange = self.fetch("GET", path)
        # 404, 405, 500: it has no such route; so a gateway says too that passes only others on
        hidden = status in (401, 403) and any(known == 200 for known, _ in others.values())
        if not hidden and (300 <= status < 400 or status in (401, 403, 408, 429) or status > 501):
            raise exchange.refused(status, answer)
        kind = _MEDIA_TYPE.match(exchange.headers.get("content-type") or "")
        return (status, _json(answer)), f"HTTP {status} ({kind.group() if kind else 'no content type'})"

    def token_ids(self, server: Server, model: str, text: str) -> list[int]:
        """Ids of a text by the server's own tokenizer; `<s>` in it is the control token.

        Raises:
            UnsupportedError: it has no such route.
        """
        if server.tokenize is None:
            raise UnsupportedError(
                f"{server.name} does not count tokens; pass tokenizer= (a tokenizer.json, its folder or a hub id)"
            )
        path, body, read = server.tokenize
        status, answer, exchange = self.fetch("POST", path, coded(body(model, text)), texts=(text,))
        if not 200 <= status < 300:
            error = exchange.refused(status, answer)
            if isinstance(error, RemoteError) and status in _HIDDEN:
                error.args = (self._no_counts(path, model),)
            raise error
        try:
            return read(_json(answer))
        except (AttributeError, KeyError, TypeError, ValueError):
            wrong = ProtocolError(f"the endpoint's answer to {path} holds no tokens; pass tokenizer= or max_tokens=")
        raise exchange.signed(wrong)

    def _no_counts(self, path: str, model: str) -> str:
        if self.known.found is not None and self.known.found.models and model not in self.known.found.models:
            return self.known.missing(model)
        return (
            f"no {path} there (a gateway that passes only /v1 on?), so that no tokens can be counted; pass tokenizer= "
            "(a tokenizer.json, its folder or a hub id), or for a call max_tokens="
        )

    def way(self, server: Server, model: str) -> str:
        """How the dials reach a chat route, proven once per model, at every endpoint.

        Raises:
            SteeringLostError: they don't, or not in the same way everywhere.
        """
        found = self.known.ways.get(model)
        if found is not None:
            return found
        with self._locked(self.known.way_lock):
            if model not in self.known.ways:
                ways = {self._proven_way(server, model, one) for one in self.known.endpoints.members}
                if len(ways) > 1:
                    raise SteeringLostError("the endpoints take the dials in different ways; serve them alike")
                self.known.ways[model] = ways.pop()
            return self.known.ways[model]

    def _proven_way(self, server: Server, model: str, endpoint: Endpoint) -> str:
        trials = find_way(model)
        trial = next(trials)
        # A server whose template raises may drop the connection behind its 500 without a word: none is kept.
        asker = replace(self, known=Known(Endpoints((endpoint,))), headers={**self.headers, "Connection": "close"})
        patience = self.limits.first_token
        while True:
            status, answer, exchange = asker.fetch(
                "POST", server.route, coded(trial.body), patience=patience, any_status=not trial.must_answer
            )
            if trial.must_answer and status not in (200, 400, 422):
                raise exchange.refused(status, answer)
            try:
                trial = trials.send((status, _json(answer)))
            except StopIteration as found:
                return str(found.value)

    @contextmanager
    def _locked(self, lock: threading.Lock) -> Iterator[None]:
        patience = -1.0 if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())
        if not lock.acquire(timeout=patience):
            raise timed_out("total", self.limits.total or 0.0)
        try:
            yield
        finally:
            lock.release()

    def fetch(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        texts: tuple[str, ...] = (),
        patience: float = _PATIENCE,
        any_status: bool = False,
    ) -> tuple[int, bytes, Exchange]:
        """Status and body of one small answer, and the exchange for its errors. `any_status`: a refusal is an answer.

        Raises:
            RemoteError: no endpoint answers in time.
        """
        tried: list[Endpoint] = []
        while True:
            endpoint = self.known.endpoints.take(tried)
            tried.append(endpoint)
            exchange = self._exchange(endpoint.url + path, texts, patience)
            others = bool(set(self.known.endpoints.members) - set(tried))
            failure: RemoteError | None = None
            try:
                status, headers, answer = self._once(HttpRequest(method, exchange.url, self.headers, body), exchange)
                again = not any_status and may_retry(status, {} if others else headers)
                if not again or len(tried) > self.max_retries:
                    return status, answer, exchange
                pause = 0.0 if others else backoff(len(tried), retry_after(headers))
            except TimeoutError:
                failure, pause = _late(exchange, path, patience), 0.0
            except RemoteError as error:
                failure, pause = exchange.signed(error), 0.0 if others else backoff(len(tried))
            finally:
                self.known.endpoints.give_back(endpoint, failed=None)
            if failure is not None:
                failure.tries = len(tried)
                again = isinstance(failure, RemoteConnectionError) and len(tried) <= self.max_retries
                if self._is_over(pause) or not (others or again):
                    raise failure
            elif self._is_over(pause):
                return status, answer, exchange
            log_retry(failure or status, exchange.url, len(tried), pause)
            time.sleep(pause)

    def _is_over(self, pause: float) -> bool:
        return self.ends_at is not None and time.monotonic() + pause >= self.ends_at

    def _once(self, request: HttpRequest, exchange: Exchange) -> tuple[int, Mapping[str, str], bytes]:
        response = open_(request, self.limits, exchange.wait(), self.client)
        try:
            exchange.headers = response.headers
            return response.status, response.headers, read_all(response, _LARGEST, max(0.001, exchange.wait()))
        finally:
            response.close()

    def _exchange(self, url: str, texts: tuple[str, ...], patience: float) -> Exchange:
        """For the time limit and the errors of a small request."""
        limits = replace(self.limits, first_token=patience)
        return Exchange(SERVERS["openai"], url, limits, Private(self.secrets, texts), ends_at=self.ends_at)


def _late(exchange: Exchange, path: str, patience: float) -> RemoteError:
    """The error of the limit that has passed; that of a small question is nobody's to set."""
    error = exchange.late()
    if patience != _PATIENCE or not isinstance(error, RemoteTimeoutError) or error.stage != "first_token":
        return error
    late = RemoteTimeoutError(
        f"the endpoint did not answer a small question ({path}) within {patience:g} s; look whether it runs, or spare "
        "it the question: server=, model= and context_window= say what it is, tokenizer= counts here"
    )
    late.stage = "question"
    return exchange.signed(late)


def coded(body: Mapping[str, Any]) -> bytes:
    """A request's body.

    Raises:
        UnicodeEncodeError: half a surrogate pair in a text.
    """
    return json.dumps(body, ensure_ascii=False).encode()


def _json(answer: bytes) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def read_all(response: SyncResponse, most: int = ERROR_BODY, seconds: float = _ERROR_PATIENCE) -> bytes:
    """The body of a small answer, as much of it as comes."""
    found, ends_at = b"", time.monotonic() + seconds
    try:
        while len(found) < most:
            chunk = response.read(ends_at - time.monotonic())
            if not chunk:
                response.finish()
                break
            found += chunk
    except (TimeoutError, StreamInterruptedError):
        pass
    return found[:most]


async def aread_all(response: AsyncResponse, most: int = ERROR_BODY, seconds: float = _ERROR_PATIENCE) -> bytes:
    """As `read_all`."""
    found, ends_at = b"", time.monotonic() + seconds
    try:
        while len(found) < most:
            chunk = await response.read(ends_at - time.monotonic())
            if not chunk:
                response.finish()
                break
            found += chunk
    except (TimeoutError, StreamInterruptedError):
        pass
    return found[:most]
