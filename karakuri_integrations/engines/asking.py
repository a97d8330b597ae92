"""What a server is asked beside replies: what it is, how many tokens a text has, how the dials reach its chat route.

Small requests, sync and with the same retries as replies; an event loop runs them in a thread. What the answers mean is
in `servers` and `chat_route`; what was learned is kept in `knowledge`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ..errors import (
    OptionError,
    ProtocolError,
    RemoteConnectionError,
    RemoteError,
    StreamInterruptedError,
    UnsupportedError,
)
from .chat_route import Answer, find_way
from .exchange import ERROR_BODY, Exchange, Private
from .http import AsyncResponse, HttpRequest, Limits, SyncResponse, open_
from .knowledge import Known
from .retrying import backoff, may_retry, retry_after
from .servers import SERVERS, Recognised, Server

__all__ = ["Asker", "aread_all", "coded", "read_all"]

#: Seconds that an answer may take, and bytes that it may have.
_PATIENCE: Final = 10.0
#: Seconds for the body of an error, whose status has come already.
_ERROR_PATIENCE: Final = 2.0
_LARGEST: Final = 16 * 1024 * 1024


@dataclass(frozen=True)
class Asker:
    """Asks the first of some addresses that answers."""

    urls: tuple[str, ...]
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    limits: Limits
    max_retries: int
    client: Any = None

    def identify(self, known: Known, named: Server | None) -> None:
        """Find out what the server is and which models it serves, once.

        Raises:
            OptionError: it is none that is known.
            RemoteError: it cannot be reached, or refuses the key.
        """
        with known.lock:
            if known.found is None:
                known.server, known.found = self._recognised([named] if named else list(SERVERS.values()), named)

    def _recognised(self, candidates: list[Server], named: Server | None) -> tuple[Server, Recognised]:
        answers: dict[str, Answer] = {}
        for server in candidates:
            for probe in server.probes:
                if probe.path not in answers:
                    answers[probe.path] = self._looked_at(probe.path)
                found = probe.judge(*answers[probe.path])
                if found is not None:
                    return server, found
        if named is not None:
            return named, Recognised()
        raise OptionError(
            f"the server at {self.urls[0]} is none that is known ({', '.join(SERVERS)}); name the nearest with server="
        )

    def _looked_at(self, path: str) -> Answer:
        status, answer = self.fetch("GET", path)
        if status in (401, 403):
            raise self._exchange(path).refused(status, answer)
        return status, _json(answer)

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
        status, answer = self.fetch("POST", path, coded(body(model, text)), texts=(text,))
        if not 200 <= status < 300:
            raise self._exchange(path, texts=(text,)).refused(status, answer)
        try:
            return read(_json(answer))
        except (AttributeError, KeyError, TypeError, ValueError):
            error = ProtocolError(f"the endpoint's answer to {path} holds no tokens; pass tokenizer= or max_tokens=")
            raise self._exchange(path).signed(error) from None

    def way(self, known: Known, server: Server, model: str) -> str:
        """How the dials reach a chat route, proven once per model.

        Raises:
            SteeringLostError: they don't.
        """
        with known.lock:
            if model not in known.ways:
                known.ways[model] = self._proven_way(server, model)
            return known.ways[model]

    def _proven_way(self, server: Server, model: str) -> str:
        trials = find_way(model)
        trial = next(trials)
        while True:
            retries = self.max_retries if trial.must_answer else 0  # a refusal is what the bad one is sent for
            status, answer = replace(self, max_retries=retries).fetch(
                "POST", server.route, coded(trial.body), patience=self.limits.first_token
            )
            if trial.must_answer and status not in (200, 400, 422):
                raise self._exchange(server.route).refused(status, answer)
            try:
                trial = trials.send((status, _json(answer)))
            except StopIteration as found:
                return str(found.value)

    def fetch(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        texts: tuple[str, ...] = (),
        patience: float = _PATIENCE,
    ) -> tuple[int, bytes]:
        """Status and body of one small answer.

        Raises:
            RemoteError: no address answers.
        """
        tries = 0
        while True:
            tries += 1
            exchange = self._exchange(path, self.urls[(tries - 1) % len(self.urls)], texts)
            try:
                status, headers, answer = self._once(HttpRequest(method, exchange.url, self.headers, body), patience)
                if tries > self.max_retries or not may_retry(status, headers):
                    return status, answer
                pause = backoff(tries, retry_after(headers))
            except TimeoutError:
                raise exchange.late() from None
            except RemoteError as error:
                error.tries = tries
                if tries >= self.max_retries + len(self.urls) or not isinstance(error, RemoteConnectionError):
                    raise exchange.signed(error) from error.__cause__
                pause = 0.0 if tries < len(self.urls) else backoff(tries)
            time.sleep(pause)

    def _once(self, request: HttpRequest, patience: float) -> tuple[int, Mapping[str, str], bytes]:
        response = open_(request, self.limits, patience, self.client)
        try:
            return response.status, response.headers, read_all(response, _LARGEST, patience)
        finally:
            response.close()

    def _exchange(self, path: str, url: str | None = None, texts: tuple[str, ...] = ()) -> Exchange:
        """For the errors of a small request."""
        limits = replace(self.limits, first_token=_PATIENCE)
        return Exchange(SERVERS["openai"], (url or self.urls[0]) + path, limits, Private(self.secrets, texts))


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
