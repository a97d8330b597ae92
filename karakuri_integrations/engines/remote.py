"""RemoteEngine: a served model behind its raw completion route. The prompt is rendered here, so every dial arrives.

Knows the order of things: which server, which endpoint, which try. What a server speaks is in `servers`, what its bytes
mean in `exchange`, how they travel in `http`, when a try is repeated in `retrying`, which endpoint in `balancing`.
Handles are cheap and hold no connection; what is learned of a server and how its endpoints do is kept per process.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
import time
import uuid
import warnings
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final
from urllib.parse import urlsplit

from .. import __version__
from ..conversation import CONTROL_TEXTS, Control, Piece, Prompt, Sampling
from ..errors import (
    ContextOverflowError,
    MessageError,
    OptionError,
    RemoteConnectionError,
    RemoteError,
    RemoteStatusError,
    RemoteTimeoutError,
    ServerFaultError,
    StreamInterruptedError,
    UnsupportedError,
)
from ..reply import Unescape
from ..templates import Family, family_of_model, family_of_template, unknown_model
from .addresses import Address, addresses_of, basic_authorisation, origin_of
from .balancing import Endpoint, Endpoints
from .exchange import ERROR_BODY, Exchange, Private, secrets_of
from .http import INSTALL_HINT, AsyncResponse, HttpRequest, Limits, SyncResponse, aopen, close_all, open_
from .retrying import backoff, may_retry, retry_after
from .servers import SERVERS, Ask, Recognised, Server, server_of

__all__ = ["RemoteEngine"]

_ASKING: Final = 10.0
_OWN_KEYS: Final = frozenset({"prompt", "inputs", "input_ids", "messages", "stream", "raw"})
_DEFAULT: Final = Sampling()
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


# --- what a process knows of its servers ----------------------------------------------------------------------------


@dataclass(eq=False)
class _Known:
    """One set of addresses: how they do, and what they were found to be."""

    endpoints: Endpoints
    server: Server | None = None
    found: Recognised | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


_known: OrderedDict[tuple[Any, ...], _Known] = OrderedDict()
_known_lock = threading.Lock()


def _known_of(key: tuple[Any, ...], urls: tuple[str, ...]) -> _Known:
    with _known_lock:
        found = _known.pop(key, None) or _Known(Endpoints(tuple(Endpoint(url) for url in urls)))
        _known[key] = found
        while len(_known) > 256:
            _known.popitem(last=False)
        return found


def _forget() -> None:
    """In a forked child: locks may be held by threads that are not there, and counts are the parent's."""
    global _known_lock
    _known_lock = threading.Lock()
    _known.clear()


os.register_at_fork(after_in_child=_forget)


# --- arguments ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _warn_of_plain_http(origin: str) -> None:
    warnings.warn(
        f"the key is sent to {origin} without encryption; use https or a tunnel, or leave the key out",
        UserWarning,
        stacklevel=2,
    )


def _limits(timeouts: Mapping[str, Any] | Limits | None) -> Limits:
    if timeouts is None or isinstance(timeouts, Limits):
        return timeouts or Limits()
    names = [one.name for one in fields(Limits) if one.name != "total"]
    for name, value in timeouts.items():
        if name not in names:
            raise OptionError(
                f"timeouts has no {name[:40]!r}; it has {', '.join(names)}, and timeout= is the whole call's"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise OptionError(f"timeouts[{name!r}] must be seconds above 0, got {value!r:.40}")
    return Limits(**{name: float(value) for name, value in timeouts.items()})


def _headers(given: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise OptionError("default_headers must be text by text")
        if any(ord(one) < 32 or ord(one) == 127 for one in name + value) or not name.strip():
            raise OptionError(f"default_headers: {name[:40]!r} or its value holds a character that no header may hold")
    return dict(given or {})


def _extra(given: Mapping[str, Any] | None) -> dict[str, Any]:
    for name in given or {}:
        if name in _OWN_KEYS:
            raise OptionError(f"extra_body cannot set {name!r}: this class writes it")
    return dict(given or {})


class RemoteEngine:
    """Continues prompts on a server: vLLM, SGLang, llama.cpp, TGI, Ollama and other raw completion routes.

    Args:
        base_url: the server's address, with or without `/v1`; several addresses of the same model share the calls. A
            user name and password in it are sent as Basic authorisation and shown nowhere.
        model: the id that the server knows; None is its only model.
        server: the kind of server, one of `servers.SERVERS`; None asks it once.
        template: the prompt family, where the id does not tell.
        api_key: sent as a Bearer token.
        default_headers: sent with every request; their values are treated as secrets.
        tokenizer: a `tokenizer.json`, its folder or a hub id. With it prompts are sent as token ids where the server
            takes them, and tokens are counted here.
        context_window: tokens; None is what the server says, else the family's.
        max_retries: further tries after connection errors and the statuses 408, 409, 425, 429, 500, 502 to 504 and
            529, before the reply has begun.
        timeouts: seconds, of `connect` (5), `pool` (10), `first_token` (600) and `idle` between two events (120).
        extra_body: merged into every request's body.
        http_client, http_async_client: a urllib3.PoolManager and an aiohttp.ClientSession of your own.

    Raises:
        OptionError: an argument that cannot be used; nothing was contacted.
        UnknownModelError: no family is known for the model.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        *,
        server: str | None = None,
        template: str | None = None,
        api_key: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        context_window: int | None = None,
        max_retries: int = 2,
        timeouts: Mapping[str, float] | Limits | None = None,
        extra_body: Mapping[str, Any] | None = None,
        http_client: Any = None,
        http_async_client: Any = None,
    ) -> None:
        addresses = addresses_of(base_url)
        self._urls = tuple(one.root for one in addresses)
        self._model = model
        self._named = server_of(server) if server is not None else None
        self._template = family_of_template(template) if template else None
        self._max_retries, self._limits = _retries(max_retries), _limits(timeouts)
        self._window = _window(context_window)
        self._tokenizer = os.fspath(tokenizer) if tokenizer is not None else None
        self._extra = _extra(extra_body)
        self._client, self._async_client = http_client, http_async_client
        self._own_headers = _headers(default_headers)
        self._authorise(addresses, api_key)
        if model is not None and self._template is None and family_of_model(model) is None:
            raise unknown_model(model)

    def _authorise(self, addresses: list[Address], api_key: str | None) -> None:
        credentials = {one.credentials for one in addresses if one.credentials}
        if len(credentials) > 1 or (credentials and api_key):
            raise OptionError(
                "base_url holds a user name and password and another key is given; one Authorization header is sent, "
                "so give one of them"
            )
        if api_key and (not api_key.isascii() or any(ord(one) <= 32 for one in api_key)):
            raise OptionError(
                "api_key holds a blank or a character that no key has; was it read from a file with its line end?"
            )
        if credentials:
            self._own_headers["Authorization"] = basic_authorisation(credentials.pop())
        elif api_key:
            self._own_headers.setdefault("Authorization", f"Bearer {api_key}")
        secrets = [part for one in addresses for part in (one.credentials, *one.credentials.split(":"))]
        self._secrets = secrets_of(self._own_headers, [*secrets, api_key or ""])
        for url in self._urls if self._own_headers else ():
            parts = urlsplit(url)
            if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
                _warn_of_plain_http(origin_of(url))

    def __repr__(self) -> str:
        server = self._named.name if self._named else None
        return f"RemoteEngine({', '.join(self._urls)!r}, model={self._model!r}, server={server!r})"

    # --- what it is ---

    @property
    def model(self) -> str:
        """The id that the server knows the model by; asks it once where none was given."""
        return self._model if self._model is not None else self._sole_model()

    @property
    def known_model(self) -> str | None:
        """As `model`, where it can be told without asking the server; else None."""
        found = self._state().found
        return self._model or (found.models[0] if found is not None and len(found.models) == 1 else None)

    @property
    def family(self) -> Family:
        """The prompt family, by `template` or the model's id."""
        if self._template is not None:
            return self._template
        family = family_of_model(self.model)
        if family is None:
            raise unknown_model(self.model)
        return family

    @property
    def family_known(self) -> bool:
        """Whether `family` can be told without asking the server."""
        return self._template is not None or self.known_model is not None

    @property
    def context_window(self) -> int:
        """Tokens of prompt and reply together: as given, else as the server said, else the family's."""
        if self._window is not None:
            return self._window
        found = self._state().found
        return (found.context_window if found else None) or self.family.context_window

    def _state(self) -> _Known:
        return _known_of((self._urls, self._named.name if self._named else None), self._urls)

    def _server(self) -> Server:
        if self._named is not None:
            return self._named
        self._ask()
        server = self._state().server
        assert server is not None  # noqa: S101  # _ask() raises otherwise
        return server

    def _sole_model(self) -> str:
        self._ask()
        found = self._state().found
        models = found.models if found else ()
        if len(models) == 1:
            return models[0]
        shown = f"it serves {', '.join(models[:20])}" if models else "it does not say which models it serves"
        raise OptionError(f"model= is needed with this base_url: {shown}")

    # --- one call ---

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """The reply, one Piece per event of the server.

        Raises:
            RemoteError: see `errors`; nothing is retried once the reply has begun.
            ContextOverflowError, OptionError: before anything is sent.
        """
        call = self._call(prompt, sampling)
        while True:
            endpoint, exchange = call.next_try()
            failed: bool | None = None
            try:
                yield from call.shown(self._pieces(call, exchange))
                return
            except RemoteError as error:
                failed = _endpoint_failed(error)
                pause = call.pause(error, exchange)
            finally:
                call.known.endpoints.give_back(endpoint, failed=failed if not exchange.done else False)
            time.sleep(pause)

    def _pieces(self, call: _Call, exchange: Exchange) -> Iterator[Piece]:
        response: SyncResponse | None = None
        try:
            try:
                response = open_(call.request(exchange), exchange.limits, exchange.wait(), self._client)
                good = exchange.begin(response.status, response.headers)
                if not good:
                    raise exchange.refused(response.status, _all(response))
            except TimeoutError:
                raise exchange.late() from None
            while not exchange.done:
                try:
                    chunk = response.read(exchange.wait())
                except TimeoutError:
                    _raise(exchange.expired())
                except StreamInterruptedError as error:
                    _raise(exchange.cut(error), error)
                else:
                    yield from exchange.push(chunk)
                    if not chunk:
                        response.finish()
        except RemoteConnectionError as error:
            raise exchange.signed(error) from error.__cause__
        finally:
            if response is not None:
                response.close()
        yield exchange.final

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        """As `stream`, natively async."""
        if self._must_ask(sampling):
            call = await asyncio.to_thread(self._call, prompt, sampling)
        else:
            call = self._call(prompt, sampling)
        while True:
            endpoint, exchange = call.next_try()
            failed: bool | None = None
            unescape = call.unescaper()
            pieces = self._apieces(call, exchange)
            try:
                async for piece in pieces:
                    yield unescape(piece) if unescape else piece
                return
            except RemoteError as error:
                failed = _endpoint_failed(error)
                pause = call.pause(error, exchange)
            finally:
                await pieces.aclose()  # type: ignore[attr-defined]
                call.known.endpoints.give_back(endpoint, failed=failed if not exchange.done else False)
            await asyncio.sleep(pause)

    async def _apieces(self, call: _Call, exchange: Exchange) -> AsyncIterator[Piece]:
        response: AsyncResponse | None = None
        try:
            try:
                response = await aopen(call.request(exchange), exchange.limits, exchange.wait(), self._async_client)
                good = exchange.begin(response.status, response.headers)
                if not good:
                    raise exchange.refused(response.status, await _aall(response))
            except TimeoutError:
                raise exchange.late() from None
            while not exchange.done:
                try:
                    chunk = await response.read(exchange.wait())
                except TimeoutError:
                    _raise(exchange.expired())
                except StreamInterruptedError as error:
                    _raise(exchange.cut(error), error)
                else:
                    for piece in exchange.push(chunk):
                        yield piece
                    if not chunk:
                        response.finish()
        except RemoteConnectionError as error:
            raise exchange.signed(error) from error.__cause__
        finally:
            if response is not None:
                response.close()
        yield exchange.final

    def _must_ask(self, sampling: Sampling) -> bool:
        """Whether preparing a call may contact the server or read files."""
        server = self._named or self._state().server
        if server is None or (self._model is None and self._state().found is None):
            return True
        counts = server.needs_max_tokens and sampling.max_tokens is None
        return (counts and self._tokenizer is None) or (self._tokenizer is not None and not _loaded(self._tokenizer))

    def _call(self, prompt: Prompt, sampling: Sampling) -> _Call:
        """Everything that can be wrong before anything is sent."""
        ends_at = None if sampling.timeout is None else time.monotonic() + sampling.timeout
        server = self._server()
        _check_sampling(server, sampling)
        tokens = self._tokens()
        ids = tokens.encode(prompt) if tokens is not None else None
        room = self._room(prompt, ids, sampling, server)
        wire = ids if ids is not None and server.takes_ids else _text(prompt, server)
        body = server.body(Ask(self.model, wire, sampling, room, self.context_window))
        return _Call(self, self._state(), server, prompt, _coded({**body, **self._extra}), sampling.timeout, ends_at,
                     escaped=isinstance(wire, str))  # fmt: skip

    def _room(self, prompt: Prompt, ids: list[int] | None, sampling: Sampling, server: Server) -> int | None:
        """max_tokens as the server is told: None is the rest of its window."""
        if ids is None and not (server.needs_max_tokens and sampling.max_tokens is None):
            return sampling.max_tokens
        count = len(ids) if ids is not None else self._counted(prompt, server)
        window = self.context_window
        if count + (sampling.max_tokens or 1) > window:
            raise ContextOverflowError(count, sampling.max_tokens, window)
        return sampling.max_tokens or (window - count if server.needs_max_tokens else None)

    def _counted(self, prompt: Prompt, server: Server) -> int:
        if server.tokenize is None:
            raise OptionError(
                f"max_tokens= is needed: {server.name} would cut the reply at its own small number, and without "
                "tokenizer= the rest of the window is not known"
            )
        return len(self._remote_ids(prompt.text, server))

    # --- tokens ---

    def _tokens(self) -> Any:
        return None if self._tokenizer is None else _tokens_of(self._tokenizer)

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the prompt as sent, by `tokenizer` or the server's own route."""
        tokens = self._tokens()
        return len(tokens.encode(prompt)) if tokens is not None else len(self._remote_ids(prompt.text, self._server()))

    def token_ids(self, text: str) -> list[int]:
        """Ids of plain text, without BOS, by `tokenizer` or the server's own route."""
        tokens = self._tokens()
        return tokens.encode_text(text) if tokens is not None else self._remote_ids(text, self._server())

    def _remote_ids(self, text: str, server: Server) -> list[int]:
        if server.tokenize is None:
            raise UnsupportedError(
                f"{server.name} does not count tokens; pass tokenizer= (a tokenizer.json, its folder or a hub id)"
            )
        path, body, read = server.tokenize
        status, answer = self._fetch("POST", path, _coded(body(self.model, text)))
        try:
            return read(json.loads(answer))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise self._small(self._urls[0] + path).refused(status, answer) from None

    # --- asking a server what it is ---

    def _ask(self) -> None:
        known = self._state()
        with known.lock:
            if known.found is not None:
                return
            answers: dict[str, tuple[int, Any]] = {}
            for server in [self._named] if self._named else SERVERS.values():
                for probe in server.probes:
                    if probe.path not in answers:
                        answers[probe.path] = self._probed(probe.path)
                    found = probe.judge(*answers[probe.path])
                    if found is not None:
                        known.server, known.found = server, found
                        return
            if self._named is not None:
                known.server, known.found = self._named, Recognised()
                return
        raise OptionError(
            f"the server at {self._urls[0]} is none that is known ({', '.join(SERVERS)}); name the nearest with server="
        )

    def _probed(self, path: str) -> tuple[int, Any]:
        status, answer = self._fetch("GET", path)
        if status in (401, 403):
            raise self._small(self._urls[0] + path).refused(status, answer)
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, None

    def _fetch(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One small request to the first endpoint that answers."""
        last: RemoteError | None = None
        for url in self._urls:
            exchange, request = self._small(url + path), HttpRequest(method, url + path, self._request_headers(), body)
            try:
                response = open_(request, self._limits, _ASKING, self._client)
                try:
                    return response.status, _all(response, 16 * 1024 * 1024)
                finally:
                    response.close()
            except TimeoutError:
                last = exchange.late()
            except RemoteError as error:
                last = exchange.signed(error)
        assert last is not None  # noqa: S101  # there is at least one url
        raise last

    def _small(self, url: str) -> Exchange:
        """An exchange for the errors of a small request."""
        limits = replace(self._limits, first_token=_ASKING)
        return Exchange(SERVERS["openai"], url, limits, Private(self._secrets))

    # --- shared ---

    def _request_headers(self, request_id: str = "") -> dict[str, str]:
        return {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": f"karakuri-integrations/{__version__}",
            **({"X-Request-Id": request_id, "Idempotency-Key": request_id} if request_id else {}),
            **self._own_headers,
        }

    def _private(self, prompt: Prompt) -> Private:
        return Private(self._secrets, tuple(one for one in prompt.segments if isinstance(one, str)))

    def close(self) -> None:
        """Close the idle connections of this process; the next call opens new ones."""
        close_all()


@dataclass(eq=False)
class _Call:
    """One call over all its tries."""

    engine: RemoteEngine
    known: _Known
    server: Server
    prompt: Prompt
    body: bytes
    timeout: float | None
    ends_at: float | None
    escaped: bool
    tried: list[Endpoint] = field(default_factory=list)
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def next_try(self) -> tuple[Endpoint, Exchange]:
        endpoint = self.known.endpoints.take(self.tried)
        self.tried.append(endpoint)
        limits = replace(self.engine._limits, total=self.timeout)
        private = self.engine._private(self.prompt)
        url = endpoint.url + self.server.route
        return endpoint, Exchange(self.server, url, limits, private, self.request_id, self.ends_at)

    def request(self, exchange: Exchange) -> HttpRequest:
        return HttpRequest("POST", exchange.url, self.engine._request_headers(self.request_id), self.body)

    def pause(self, error: RemoteError, exchange: Exchange) -> float:
        """Seconds until the next try.

        Raises:
            RemoteError: the error itself, where there is no further try.
        """
        error.tries = len(self.tried)
        others = len(set(self.known.endpoints.members) - set(self.tried))
        allowed = self.engine._max_retries + len(self.known.endpoints.members) - 1
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


def _raise(error: RemoteError | None, cause: BaseException | None = None) -> None:
    if error is not None:
        raise error from (cause.__cause__ if cause is not None else None)


def _repeatable(error: RemoteError, exchange: Exchange) -> bool:
    if isinstance(error, RemoteStatusError):
        return error.status is not None and may_retry(error.status, exchange.headers)
    if isinstance(error, RemoteTimeoutError):
        return error.stage == "connect"
    return isinstance(error, RemoteConnectionError)


def _endpoint_failed(error: RemoteError) -> bool | None:
    """Whether an error says that the endpoint itself is down; None: it says nothing about that."""
    if isinstance(error, RemoteConnectionError | RemoteTimeoutError | ServerFaultError):
        return True
    return False if isinstance(error, RemoteStatusError) else None


def _all(response: SyncResponse, most: int = ERROR_BODY) -> bytes:
    """The body of a small answer, as much of it as comes."""
    found, ends_at = b"", time.monotonic() + _ASKING
    try:
        while len(found) < most and (chunk := response.read(ends_at - time.monotonic())):
            found += chunk
        else:
            if len(found) < most:
                response.finish()
    except (TimeoutError, StreamInterruptedError):
        pass
    return found[:most]


async def _aall(response: AsyncResponse, most: int = ERROR_BODY) -> bytes:
    found, ends_at = b"", time.monotonic() + _ASKING
    try:
        while len(found) < most and (chunk := await response.read(ends_at - time.monotonic())):
            found += chunk
        else:
            if len(found) < most:
                response.finish()
    except (TimeoutError, StreamInterruptedError):
        pass
    return found[:most]


def _check_sampling(server: Server, sampling: Sampling) -> None:
    for one in fields(Sampling):
        if one.name in ("max_tokens", "timeout", "stop") or one.name in server.sampling:
            continue  # stop strings are cut here in any case
        if getattr(sampling, one.name) != getattr(_DEFAULT, one.name):
            raise OptionError(f"{server.name} does not know {one.name}; leave it out, or name another server=")


def _text(prompt: Prompt, server: Server) -> str:
    segments = prompt.segments
    if server.adds_bos and segments and segments[0] == Control("<s>"):
        segments = segments[1:]
    return replace(prompt, segments=segments).text


def _coded(body: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise MessageError(
            f"the text holds half a surrogate pair (U+{ord(error.object[error.start]):04X}), which is no character; "
            "decode the input with errors='replace'"
        ) from None
    except (TypeError, ValueError):
        raise OptionError("extra_body holds a value that JSON cannot write") from None


def _retries(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"max_retries must be an integer of at least 0, got {value!r:.40}")
    return value


def _window(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"context_window must be an integer of at least 1, got {value!r:.40}")
    return value


_loaded_tokenizers: dict[str, Any] = {}


def _loaded(source: str) -> bool:
    return source in _loaded_tokenizers


def _tokens_of(source: str) -> Any:
    found = _loaded_tokenizers.get(source)
    if found is None:
        found = _loaded_tokenizers[source] = _load_tokens(source)
    return found


def _load_tokens(source: str) -> Any:
    from ..errors import MissingDependencyError, ModelLoadError

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(f"tokenizer= needs tokenizers: {INSTALL_HINT}") from error
    from .tokens import Tokens

    file = os.path.join(source, "tokenizer.json") if os.path.isdir(source) else source
    try:
        made = Tokenizer.from_file(file) if os.path.exists(file) else Tokenizer.from_pretrained(source)
    except Exception as error:
        raise ModelLoadError(
            f"no tokenizer can be loaded from tokenizer={source!r:.120} ({type(error).__name__}); it must be a "
            "tokenizer.json, a folder with one, or a hub id"
        ) from error
    return Tokens(made)
