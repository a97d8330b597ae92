"""One try of one call at one server, without I/O: bytes of the answer in, pieces of the reply or a typed error out.

Success needs a good finish reason; whatever else ends the bytes is an error. What the server says is quoted at most 500
characters long, without key, headers or prompt. The bytes come from `http`, the order of tries from `remote`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..conversation import Piece, Usage
from ..errors import (
    AccessDeniedError,
    AuthenticationError,
    EndpointNotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RemoteConnectionError,
    RemoteContextOverflowError,
    RemoteError,
    RemoteRequestError,
    RemoteStatusError,
    RemoteStreamError,
    ServerFaultError,
    StreamInterruptedError,
    UnsupportedSchemaError,
)
from .addresses import origin_of
from .http import Limits, timed_out
from .retrying import retry_after
from .servers import Event, Server, error_of, keyword_in, overflow_in, reason_of, refuses_schema, status_of
from .sse import EventTooLargeError, Lines, Raw, ServerSentEvents

__all__ = ["ERROR_BODY", "Exchange", "Private", "secrets_of"]

_log = logging.getLogger("karakuri_integrations")

#: An error's body is read up to this many bytes.
ERROR_BODY: Final = 65536
_QUOTED: Final = 500
_ECHO: Final = 24
_ID: Final = re.compile(r"[\w.:-]{1,120}")
_WHOLE_BODY: Final = 64 * 1024 * 1024
#: Seconds to wait for counts after the last token, and for the end of the body after the server's last word.
_GRACE, _GRACE_DONE = 2.0, 0.25
_BAD_REASONS: Final = frozenset({"abort", "error", "cancelled", "canceled"})


@dataclass(frozen=True)
class Private:
    """What no error may show: secrets, and the texts of the prompt."""

    secrets: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Private()"

    def scrub(self, text: str) -> str:
        """The text, shortened, with secrets masked; withheld where it repeats the prompt."""
        for secret in self.secrets:
            if secret:
                text = text.replace(secret, "**********")
        text = " ".join(text.split())
        text = text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "..."
        return "(withheld: it repeats the prompt)" if any(_echoes(text, one) for one in self.texts) else text


def _echoes(text: str, prompt: str) -> bool:
    """Whether the text holds the whole prompt text, or a run of it."""
    prompt = " ".join(prompt.split())
    if len(prompt) <= _ECHO:
        return len(prompt) >= 4 and prompt in text
    runs = {
        text[at : at + _ECHO] for at in range(len(text) - _ECHO + 1)
    }  # few: the text is short, the prompt may not be
    return any(prompt[at : at + _ECHO] in runs for at in range(len(prompt) - _ECHO + 1))


@dataclass(eq=False)
class Exchange:
    """One try. Feed it `begin`, then every chunk (b"" is the end); `done` is set when `final` can be given out.

    `held`: the request carries a JSON schema, which the server may refuse.
    """

    server: Server
    url: str
    limits: Limits
    private: Private = field(default_factory=Private)
    request_id: str = ""
    ends_at: float | None = None
    held: bool = False

    done: bool = False
    answered: bool = False
    began: bool = False
    final: Piece = field(default_factory=Piece)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._limit = time.monotonic() + self.limits.first_token
        self._stage = "first_token"
        self._fresh = self._over = self._said = False
        self._status: int | None = None
        self._reason: Literal["stop", "length"] | None = None
        self._usage: Usage | None = None
        self._decoder: Any = None
        self._whole: bytearray | None = None

    # --- time ---

    def wait(self) -> float:
        """Seconds that the next bytes may take."""
        now = time.monotonic()
        if self._fresh and self._reason is None:  # the caller's own time between two reads does not count
            self._limit, self._stage, self._fresh = now + self.limits.idle, "idle", False
        at = self._limit if self.ends_at is None else min(self._limit, self.ends_at)
        return at - now

    def late(self) -> RemoteError:
        """The error of the limit that has passed."""
        if self.ends_at is not None and self.ends_at <= self._limit:
            return self.signed(timed_out("total", self.limits.total or 0.0))
        return self.signed(timed_out(self._stage, getattr(self.limits, self._stage)))

    def _own_id(self, value: str | None) -> str:
        """The server's id of the request, unless it is none that may be shown."""
        return value if value and _ID.fullmatch(value) and self.private.scrub(value) == value else ""

    # --- the answer's head ---

    def begin(self, status: int, headers: Mapping[str, str]) -> bool:
        """Take status and headers; False for an answer that is an error, whose body `refused` reads.

        Raises:
            ProtocolError: a success that is no reply.
        """
        self.headers, self.answered, self._status = headers, True, status
        self.request_id = self._own_id(headers.get("x-request-id")) or self.request_id
        if not 200 <= status < 300:
            return False
        kind = (headers.get("content-type") or "").split(";")[0].strip().lower()
        if (headers.get("content-encoding") or "identity").lower() != "identity":
            raise self._protocol(
                f"is compressed ({self._quoted(headers['content-encoding'])}), which was not asked for"
            )
        if self.server.framing == "aws":
            from .sagemaker import EventStream

            self._decoder = EventStream()
        elif kind == "application/json" and self.server.framing == "sse":
            self._whole = bytearray()
        elif kind in ("text/html", "application/xhtml+xml"):
            raise self._protocol("is a web page, as a login page or a proxy sends; check base_url")
        elif self.server.framing == "lines":
            self._decoder = Lines()
        else:
            self._decoder = ServerSentEvents()
        return True

    def refused(self, status: int, body: bytes) -> RemoteError | UnsupportedSchemaError:
        """The error of a status that is no success."""
        text, kind = _said(body)
        if 300 <= status < 400:
            where = origin_of(self.headers.get("location") or "") or "another path of the same host"
            error: RemoteError = RedirectError(
                f"the endpoint redirects to {where}; redirects are not followed, so that neither key nor prompt goes "
                "elsewhere: set base_url to the final address",
                status=status,
            )
            return self.signed(error)
        overflow = overflow_in(f"{kind} {text}") if status in (400, 413, 422, 500) else None
        if overflow is not None:
            return self._overflow(overflow, text, status)
        if self.held and status in (400, 422, 500) and refuses_schema(text):
            return self._schema_refused(text, status)
        kind_, advice = _status_error(status)
        error = kind_(advice, status=status, server_text=self.private.scrub(text))
        if isinstance(error, RateLimitError):
            error.retry_after = retry_after(self.headers)
        return self.signed(error)

    # --- the answer's body ---

    def push(self, chunk: bytes) -> Iterator[Piece]:
        """The pieces in this chunk, also those before an error in it.

        Raises:
            RemoteStreamError, StreamInterruptedError, ProtocolError, RemoteContextOverflowError.
        """
        if self._whole is not None:
            return self._json(chunk)
        if not chunk:
            return self._end()
        try:
            return self._events(self._decoder.push(chunk))
        except EventTooLargeError:
            raise self._protocol("holds one event of more than 8 MiB") from None

    def cut(self, error: BaseException) -> RemoteError | None:
        """The error of a connection that broke; None where the reply was whole already."""
        if self._reason is not None:
            self._finish()
            return None
        if isinstance(error, RemoteError) and not self.began and not self._whole:
            return self._closed()
        return self.signed(error) if isinstance(error, RemoteError) else self._interrupted()

    def expired(self) -> RemoteError | None:
        """The error of a limit that passed; None where the reply was whole and only its counts were missing."""
        if self._reason is not None:
            self._finish()
            return None
        return self.late()

    def _events(self, raws: list[Raw]) -> Iterator[Piece]:
        for name, data in raws:
            if self._over:
                return
            if data.strip() == b"[DONE]":
                self._last_word()
                continue
            event = self._event(name, data)
            if event.usage is not None:
                self._usage = event.usage
            if event.text:
                self._said = True
                yield Piece(_whole_characters(event.text), self._usage)
            if event.finish_reason or event.done:  # some servers send "" until there is a reason
                self._ending(event)

    def _event(self, name: str, data: bytes) -> Event:
        self._fresh = True
        payload = _parsed(data)  # errors are raised outside `except`: a decoder's error holds the document
        if payload is _NO_JSON and name == "error":
            raise self._server_error(data.decode("utf-8", "replace"), "")
        if payload is _NO_JSON:
            raise self._protocol("holds an event that is no JSON")
        if error := error_of(payload) or (("no message", "") if name == "error" else None):
            raise self._server_error(*error)
        if not isinstance(payload, dict):
            raise self._protocol("holds an event that is no JSON object")
        event = self._understood(name, payload)
        if event is None:
            raise self._protocol(f"holds an event of another shape than {self.server.name}'s; check server=")
        if event.error is not None:
            raise self._server_error(event.error, event.code)
        self.began = True
        return event

    def _understood(self, name: str, payload: dict[str, Any]) -> Event | None:
        try:
            event = self.server.read(name, payload)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return None
        return event if isinstance(event.text, str) else None

    def _ending(self, event: Event) -> None:
        if event.finish_reason:
            self._reason = self._good(event.finish_reason)
            self._limit = time.monotonic() + _GRACE
        if event.done:
            self._last_word()

    def _good(self, word: Any) -> Literal["stop", "length"]:
        reason = reason_of(str(word))
        if reason is None and str(word) in _BAD_REASONS:
            raise self._server_error(f"finish_reason {word}", str(word))
        if reason is None:
            shown = self.private.scrub(str(word))[:40]
            _log.warning("the server's finish reason %r is not known; it counts as stop", shown)
        return reason or "stop"

    def _last_word(self) -> None:
        """Nothing more is said; the end of the body is waited for shortly, so that the connection can serve again."""
        self._over = True
        if self._reason is not None:
            self._limit = time.monotonic() + _GRACE_DONE

    def _end(self) -> Iterator[Piece]:
        try:
            yield from self._events(self._decoder.end())
        except ProtocolError:  # the end cut the last event
            if self._reason is None:
                raise self._interrupted() from None
        if self._reason is None:
            raise self._interrupted() if self.began else self._empty()
        self._finish()

    def _finish(self) -> None:
        self.done, self.final = True, Piece("", self._usage, self._reason, self.held)

    def _json(self, chunk: bytes) -> Iterator[Piece]:
        """A server that answers in one JSON body."""
        assert self._whole is not None  # noqa: S101  # push() looked
        self._whole += chunk
        if len(self._whole) > _WHOLE_BODY:
            raise self._protocol("exceeds 64 MiB")
        if chunk:
            return
        if not self._whole:
            raise self._empty()
        self._check_whole(bytes(self._whole))
        yield from self._events([("", bytes(self._whole))])
        if self._reason is None:
            raise self._protocol("has no finish reason")
        self._finish()

    def _check_whole(self, body: bytes) -> None:
        """A whole answer has a text, if it may be null; an event of a stream need not."""
        payload = _parsed(body)
        choices = payload.get("choices") if isinstance(payload, dict) else None
        if not isinstance(choices, list) or not choices:
            return  # `_event` says what is wrong with it
        choice = choices[0]
        if not isinstance(choice, dict) or not {"text", "message"} & choice.keys():
            raise self._protocol("has no text")

    # --- errors ---

    def signed(self, error: RemoteError) -> RemoteError:
        """The error with address and request id on it."""
        error.url, error.request_id = self.url, self.request_id
        return error

    def _closed(self) -> RemoteError:
        return self.signed(
            RemoteConnectionError("the endpoint closed the connection before the reply began; ask again")
        )

    def _empty(self) -> RemoteError:
        """Where nothing said how the body ends, closing was its end: one that came too early, perhaps in the headers,
        which http.client takes for their end."""
        told = self.headers.get("content-length") or self.headers.get("transfer-encoding")
        return self._protocol("is empty") if told or self._status == 204 else self._closed()

    def _protocol(self, what: str) -> RemoteError:
        kind = self.private.scrub(self.headers.get("content-type") or "no content type")[:60]
        return self.signed(ProtocolError(f"the endpoint's answer ({kind}) {what}", status=self._status))

    def _interrupted(self) -> RemoteError:
        return self.signed(
            StreamInterruptedError("the reply ended without a finish reason; `.partial_text` holds what came")
        )

    def _schema_refused(self, text: str, status: int | None) -> UnsupportedSchemaError:
        told = RemoteRequestError(
            "the server cannot hold a reply to this JSON schema; simplify it, or describe the rule in words and check "
            "the arguments in the tool",
            status=status,
            server_text=self.private.scrub(text),
        )
        error = UnsupportedSchemaError(str(self.signed(told)))
        error.keyword = keyword_in(text)
        return error

    def _server_error(self, text: str, kind: str) -> RemoteError | UnsupportedSchemaError:
        overflow = overflow_in(f"{kind} {text}")
        if overflow is not None:
            return self._overflow(overflow, text, None)
        if self.held and not self._said and refuses_schema(text):
            return self._schema_refused(text, None)
        if not self.began and (status := status_of(kind)):
            error, advice = _status_error(status)
            return self.signed(error(advice, server_text=self.private.scrub(text)))
        return self.signed(
            RemoteStreamError("the endpoint reported an error while answering", server_text=self.private.scrub(text))
        )

    def _overflow(self, numbers: tuple[int, int], text: str, status: int | None) -> RemoteError:
        error = RemoteContextOverflowError(
            "the endpoint says that prompt and reply exceed its context window; shorten the conversation, lower "
            'max_tokens, or pass overflow="drop_oldest_turns"',
            status=status,
            server_text=self.private.scrub(text),
        )
        error.n_prompt, error.n_ctx = numbers
        return self.signed(error)

    def _quoted(self, text: str) -> str:
        return self.private.scrub(text)[:40]


_NO_JSON: Final = object()


#: As `json.loads`, which would first find out for every event that it is no UTF-16.
_decoded: Final = json.JSONDecoder().decode


def _parsed(data: bytes) -> Any:
    try:
        return _decoded(data.decode("utf-8", "surrogatepass").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return _NO_JSON


def _whole_characters(text: str) -> str:
    """Half a surrogate pair, which JSON can write and no text can hold, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _said(body: bytes) -> tuple[str, str]:
    """(text, kind) of an error's body: the message in its JSON, else the text itself unless it is a web page."""
    payload = _parsed(body)
    text = body.decode("utf-8", "replace")
    if payload is _NO_JSON:
        return ("" if text.lstrip()[:1] == "<" else text), ""
    return error_of(payload) or (text, "")


_ADVICE: Final[Mapping[int, tuple[type[RemoteStatusError], str]]] = {
    401: (AuthenticationError, "the endpoint does not accept the key; check api_key or KARAKURI_API_KEY"),
    403: (AccessDeniedError, "the key may not use this endpoint or model"),
    404: (EndpointNotFoundError, "the endpoint has no such route or model; check base_url, model and server"),
    429: (RateLimitError, "the endpoint is busy or a quota is used up; ask later"),
    501: (ServerFaultError, "the endpoint does not have this route; check server="),
}


def _status_error(status: int) -> tuple[type[RemoteStatusError], str]:
    if found := _ADVICE.get(status):
        return found
    if status >= 500 or status in (408, 409, 424, 425):
        return ServerFaultError, "the endpoint failed; ask again or look at its log"
    if 400 <= status < 500:
        return RemoteRequestError, "the endpoint refuses the request; check model, server= and extra_body"
    return RemoteStatusError, "the endpoint answered with a status that is no success"


def secrets_of(headers: Mapping[str, str], others: Collection[str] = ()) -> tuple[str, ...]:
    """Everything in the headers that an error could repeat: values, and the parts of authorisations."""
    found = {*others}
    for value in headers.values():
        found |= {value, *value.split(" ")[1:]}
    return tuple(sorted((one for one in found if len(one) >= 4), key=len, reverse=True))
