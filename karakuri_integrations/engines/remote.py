"""RemoteEngine: a served model behind its raw completion route. The prompt is rendered here, so every dial arrives.

Knows what one call needs and runs its tries. What a server speaks is in `servers`, what its bytes mean in `exchange`,
how they travel in `http`, which try is next in `attempts`, how one goes in `trying`, and what becomes of a reply that
must fit a grammar in `held`. Handles are cheap and hold no connection; what is learned of
a server is kept per process (`knowledge`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from .. import __version__
from ..closing import Owned
from ..conversation import Piece, Prompt, Sampling, Usage
from ..errors import (
    ContextOverflowError,
    OptionError,
    RemoteError,
)
from ..templates import Family, family_of_model, family_of_template, unknown_model
from ..threads import in_thread
from .addresses import Address, addresses_of, basic_authorisation, origin_of
from .asking import Asker
from .attempts import Call, Reader, endpoint_failed
from .balancing import Endpoint
from .chat_route import turns_for
from .exchange import secrets_of
from .held import Continuation, plan_of
from .http import Limits, close_all
from .knowledge import Known, known_of
from .remote_arguments import (
    body_of,
    check_sampling,
    checked_client,
    checked_extra,
    checked_headers,
    checked_limits,
    checked_retries,
    checked_window,
    fingerprint_of,
    headers_with,
    merged,
    text_for,
    warn_of_plain_http,
)
from .remote_tokens import is_loaded, place_of, tokens_of
from .servers import Ask, Server, server_of
from .trying import apieces_of, pieces_of

__all__ = ["RemoteEngine"]

_DEFAULT: Final = Sampling()
_STANDARD: Final = {
    "Accept": "text/event-stream, application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": f"karakuri-integrations/{__version__}",
}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


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
        self._max_retries, self._limits = checked_retries(max_retries), checked_limits(timeouts)
        self._window = checked_window(context_window)
        self._tokenizer = place_of(tokenizer) if tokenizer is not None else None
        self._extra = checked_extra(extra_body)
        self._client = checked_client("http_client", http_client, "urllib3.PoolManager")
        self._async_client = checked_client("http_async_client", http_async_client, "aiohttp.ClientSession")
        self._headers = headers_with(_STANDARD, checked_headers(default_headers))
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
        if api_key is not None and not isinstance(api_key, str):
            raise OptionError(f"api_key must be text, got a {type(api_key).__name__}")
        if api_key and (not api_key.isascii() or any(ord(one) <= 32 for one in api_key)):
            raise OptionError(
                "api_key holds a blank or a character that no key has; was it read from a file with its line end?"
            )
        if (credentials or api_key) and "authorization" in map(str.lower, self._headers):
            raise OptionError(
                "default_headers holds Authorization and a key is given too (api_key, KARAKURI_API_KEY or base_url); "
                "one of them can be sent, so leave the other out"
            )
        if credentials:
            self._headers["Authorization"] = basic_authorisation(credentials.pop())
        elif api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        secrets = [part for one in addresses for part in (one.credentials, *one.credentials.split(":"))]
        self._own_headers = {name: value for name, value in self._headers.items() if _STANDARD.get(name) != value}
        self._secrets = secrets_of(self._own_headers, [*secrets, api_key or ""])
        for url in self._urls if self._own_headers else ():
            parts = urlsplit(url)
            if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
                warn_of_plain_http(origin_of(url))

    def __repr__(self) -> str:
        server = self._named.name if self._named else None
        return f"RemoteEngine({', '.join(self._urls)!r}, model={self._model!r}, server={server!r})"

    @property
    def identity(self) -> str:
        """What tells its replies from another engine's, for caches: without secrets, and the same whatever is known of
        the server by now."""
        template = self._template.name if self._template else None
        settings = {"template": template, "window": self._window, "extra_body": self._extra, "ids": self._tokenizer}
        return f"{self!r}, {fingerprint_of(settings, self._own_headers)}"

    # --- what it is ---

    @property
    def model(self) -> str:
        """The id that the server knows the model by; asks it once where none was given."""
        return self._model if self._model is not None else self._sole_model()

    @property
    def known_model(self) -> str | None:
        """As `model`, where it can be told without asking the server; else None."""
        return self._model or self._state().sole

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

    @property
    def grammars(self) -> bool:
        """Whether the server can hold replies to a JSON schema; it is asked once what it is where `server` is None."""
        return self._server().grammar is not None

    def _state(self) -> Known:
        key = self._urls, self._named.name if self._named else None, hash(self._secrets)
        return known_of(key, self._urls)

    def _asker(self, sampling: Sampling = _DEFAULT, ends_at: float | None = None) -> Asker:
        limits = replace(self._limits, total=sampling.timeout)
        return Asker(self._state(), self._headers, self._secrets, limits, self._max_retries, self._client, ends_at)

    def _server(self) -> Server:
        if self._named is not None:
            return self._named
        self._asker().identify(None)
        server = self._state().server
        assert server is not None  # noqa: S101  # identify() raises otherwise
        return server

    def _served(self) -> str:
        """The name to send: the model's, as the server writes it where it has listed that."""
        return self._state().served(self.model)

    def _sole_model(self) -> str:
        self._asker().identify(self._named)
        found, sole = self._state().found, self._state().sole
        if sole is not None:
            return sole
        models = found.models if found else ()
        shown = f"it serves {', '.join(models[:20])}" if models else "it does not say which models it serves"
        raise OptionError(f"model= is needed with this base_url: {shown}")

    # --- one call ---

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """The reply, one Piece per event of the server; how it is held to the prompt's grammar says `held`.

        Raises:
            RemoteError: see `errors`; nothing is retried once the reply has begun.
            UnsupportedSchemaError: the server refuses the grammar's schema.
            ContextOverflowError, OptionError, UnsupportedError: before anything is sent.
        """
        call = self._call(prompt, sampling)
        while True:
            endpoint, exchange = call.next_try()
            reader, failure = call.reader(), None
            pieces = pieces_of(call, exchange, self._client)
            try:
                if reader is None:
                    yield from pieces
                    return
                for piece in pieces:
                    yield from reader.push(piece)
                    if reader.opened:
                        break
                else:
                    return
            except RemoteError as error:
                failure = error
            finally:
                pieces.close()
                call.known.endpoints.give_back(endpoint, failed=endpoint_failed(failure, exchange))
            if failure is not None:
                yield from reader.rest() if reader else ()
                time.sleep(call.pause(failure, exchange))
                continue
            then = self._second(call, endpoint, reader)
            if isinstance(then, Piece):
                yield then
                return
            call = then

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        """As `stream`, natively async."""
        if self._must_ask(sampling):
            call = await in_thread(self._call, prompt, sampling)
        else:
            call = self._call(prompt, sampling)
        while True:
            endpoint, exchange = call.next_try()
            reader, failure = call.reader(), None
            pieces = Owned[Piece](apieces_of(call, exchange, self._async_client))
            try:
                async for piece in pieces:
                    if reader is None:
                        yield piece
                        continue
                    for one in reader.push(piece):
                        yield one
                    if reader.opened:
                        break
                else:
                    return
            except RemoteError as error:
                failure = error
            finally:
                await pieces.aclose()
                call.known.endpoints.give_back(endpoint, failed=endpoint_failed(failure, exchange))
            if failure is not None:
                for piece in reader.rest() if reader else ():
                    yield piece
                await asyncio.sleep(call.pause(failure, exchange))
                continue
            then = await self._asecond(call, endpoint, reader)
            if isinstance(then, Piece):
                yield then
                return
            call = then

    def _must_ask(self, sampling: Sampling) -> bool:
        """Whether preparing a call may contact the server or read files."""
        server = self._named or self._state().server
        unknown = self._state().found is None
        if server is None or (unknown and (self._model is None or self._needs_window(server, sampling))):
            return True
        if server.takes_turns and self._served() not in self._state().ways:
            return True
        counts = server.needs_max_tokens and sampling.max_tokens is None
        return (counts and self._tokenizer is None) or (self._tokenizer is not None and not is_loaded(self._tokenizer))

    def _call(self, prompt: Prompt, sampling: Sampling, first: Call | None = None) -> Call:
        """Everything that can be wrong before anything is sent. `first`: the request that this one continues."""
        ends_at = None if sampling.timeout is None else time.monotonic() + sampling.timeout
        ends_at = first.ends_at if first is not None else ends_at
        asker, named = self._asker(sampling, ends_at), self._named
        if named is None:
            asker.identify(None)
        server = self._server()
        plan = plan_of(prompt.grammar, server, origin_of(self._urls[0]))
        if self._model is None or self._needs_window(server, sampling):
            asker.identify(named)
        check_sampling(server, sampling)
        tokens = self._tokens()
        ids = tokens.encode(prompt) if tokens is not None else None
        room = self._room(prompt, ids, sampling, server, asker, clip=first is not None)
        sent = replace(sampling, stop=()) if prompt.calls is not None else sampling  # see `held`
        model = self._served()
        ask = Ask(model, "", sent, room, self.context_window)
        if server.takes_turns:
            way = asker.way(server, model)
            ask = replace(ask, turns=turns_for(prompt, way), way=way)
        elif ids is not None and server.takes_ids:
            ask = replace(ask, prompt=ids)
        else:
            ask = replace(ask, prompt=text_for(prompt, server))
        return Call(
            known=self._state(),
            server=server,
            model=model,
            prompt=prompt,
            sampling=sampling,
            plan=plan,
            body=body_of(merged(merged(server.body(ask), plan.additions), self._extra)),
            headers=self._headers,
            secrets=self._secrets,
            limits=replace(self._limits, total=sampling.timeout),
            max_retries=self._max_retries,
            ends_at=ends_at,
            escaped=isinstance(ask.prompt, str),
            prompt_tokens=None if ids is None else len(ids),
        )

    def _second(self, first: Call, endpoint: Endpoint, reader: Reader | None) -> Call | Piece:
        """The request that continues a reply where it must be held; its last piece where no token is left for that."""
        opening = reader.opening if reader is not None else None
        assert opening is not None  # noqa: S101  # it has opened
        prompt, sampling = opening.prompt(first.prompt), first.sampling
        if opening.opened == "text":
            call = self._call(prompt, sampling, first)
            call.near = endpoint
            return call
        used = opening.used(self._used(first, prompt))
        left = None if sampling.max_tokens is None else sampling.max_tokens - used
        if left is None or left > 0:
            with contextlib.suppress(ContextOverflowError):
                call = self._call(prompt, replace(sampling, max_tokens=left), first)
                call.near, call.continues = endpoint, Continuation(opening.usage, first.prompt_tokens)
                return call
        counted = first.prompt_tokens
        return Piece("", opening.usage or (None if counted is None else Usage(counted, used)), "length")

    async def _asecond(self, first: Call, endpoint: Endpoint, reader: Reader | None) -> Call | Piece:
        if self._must_ask(first.sampling):
            return await in_thread(self._second, first, endpoint, reader)
        return self._second(first, endpoint, reader)

    def _used(self, first: Call, prompt: Prompt) -> int | None:
        """Tokens that the second prompt has more than the first, where there is a tokenizer."""
        tokens = self._tokens()
        return None if tokens is None else len(tokens.encode(prompt)) - (first.prompt_tokens or 0)

    def _needs_window(self, server: Server, sampling: Sampling) -> bool:
        """Whether the server must be asked for its window: it wants a number of tokens, and nobody has named one."""
        return server.needs_max_tokens and sampling.max_tokens is None and self._window is None

    def _room(
        self, prompt: Prompt, ids: list[int] | None, sampling: Sampling, server: Server, asker: Asker, *, clip: bool
    ) -> int | None:
        """max_tokens as the server is told: None is the rest of its window. `clip`: no more than the window has."""
        if ids is None and not (server.needs_max_tokens and sampling.max_tokens is None):
            return sampling.max_tokens
        count = len(ids) if ids is not None else self._counted(prompt, server, asker)
        window = self.context_window
        if clip and sampling.max_tokens and count < window:
            return min(sampling.max_tokens, window - count)
        if count + (sampling.max_tokens or 1) > window:
            raise ContextOverflowError(count, sampling.max_tokens, window)
        return sampling.max_tokens or (window - count if server.needs_max_tokens else None)

    def _counted(self, prompt: Prompt, server: Server, asker: Asker) -> int:
        if server.tokenize is None:
            raise OptionError(
                f"max_tokens= is needed: {server.name} would cut the reply at its own small number, and without "
                "tokenizer= the rest of the window is not known"
            )
        return len(asker.token_ids(server, self._served(), prompt.text))

    # --- tokens ---

    def _tokens(self) -> Any:
        return None if self._tokenizer is None else tokens_of(self._tokenizer)

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the prompt as sent, by `tokenizer` or the server's own route."""
        tokens = self._tokens()
        return len(tokens.encode(prompt)) if tokens is not None else len(self._asked_ids(prompt.text))

    def token_ids(self, text: str) -> list[int]:
        """Ids of plain text, without BOS, by `tokenizer` or the server's own route."""
        tokens = self._tokens()
        return tokens.encode_text(text) if tokens is not None else self._asked_ids(text)

    def _asked_ids(self, text: str) -> list[int]:
        server = self._server()
        return self._asker().token_ids(server, self._served(), text)

    # --- shared ---

    def close(self) -> None:
        """Close this process's connections, those in use when their reply has ended, and forget what the server is.

        The next call opens new ones and asks again.
        """
        self._state().forget()
        close_all()
