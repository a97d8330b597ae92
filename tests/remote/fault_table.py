"""The fault table: what a server does, and what a caller of ours must get. One row is one fault; the rows are data.

Knows the faults of facts that other clients fail on (cut streams, error events, stalls, broken framing), every status,
every Retry-After, redirects. How a call is made and judged lives in `calls`, the sockets in `loopback`, a server's
shapes in `wires`. `tests/remote/test_faults.py` runs every row for our classes; `cookbook/remote/faults.py` runs them for
others too and writes the table.
"""

from __future__ import annotations

import email.utils
import gzip
import json
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from loopback import HTML, JSON, RESET, SSE, Exchange, Reply, Request, Script
from wires import DONE, HALF, TEXT, Wire, sse, wire_of

__all__ = ["KEY", "MARK", "PROMPT", "ROWS", "WAYS", "Bad", "Good", "Row", "Site"]

STREAMED = ("stream", "astream")
WHOLE = ("invoke", "ainvoke")
WAYS = (*WHOLE, *STREAMED)

#: Planted in every call; neither may show up in an error.
KEY = "sk-planted-key-5c1f09"
MARK = "PROMPT-MARK-7f3a"
PROMPT = f"富士山について教えてください。{MARK}"

PARTIAL = TEXT[:HALF]
MESSAGE = "CUDA error: device-side assert triggered"
CONTEXT_NEW = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion). Please reduce the length of the messages or completion."
CONTEXT_LLAMA_CPP = {
    "code": 400,
    "message": "the request exceeds the available context size, try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 5000,
    "n_ctx": 4096,
}
CONTEXT_TGI = "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and 1000 `max_new_tokens`"


@dataclass(frozen=True)
class Site:
    """Where the servers of a run stand: `refused` is a port nobody listens on, `full` one that accepts nobody."""

    elsewhere: str
    refused: str
    full: str


@dataclass(frozen=True)
class Good:
    """The call succeeds with exactly this text."""

    text: str = TEXT
    finish: str | None = None


@dataclass(frozen=True)
class Bad:
    """The call fails with one of these classes of `karakuri_integrations.errors`, holding exactly this partial text.

    said: what `.server_text` must hold. stage: what a RemoteTimeoutError names. status: the error's `.status`.
    partial: None where it depends on the clock; it is then the beginning of the text.
    """

    kinds: tuple[str, ...]
    partial: str | None = ""
    said: str = ""
    stage: str | None = None
    status: int | None = None


def bad(*kinds: str, **facts: Any) -> Bad:
    return Bad(kinds, **facts)


def cut(*kinds: str, **facts: Any) -> Bad:
    """A failure after HALF characters."""
    return Bad(kinds, **{"partial": PARTIAL, **facts})


@dataclass(frozen=True)
class Row:
    """One fault. `tries`: how many requests the server may see; None is any number.

    fields: constructor fields of ours. limit: seconds until the call must have ended. gap: what must lie between the
    first two requests, in seconds. peer, ways: the timeout that other clients get, and how they are asked. heavy: only
    streamed.
    """

    name: str
    script: Callable[[Site], Script]
    expect: tuple[Good | Bad, ...]
    tries: tuple[int, ...] | None = (1,)
    fields: dict[str, Any] = field(default_factory=dict)
    limit: float = 40.0
    gap: tuple[float, float] | None = None
    peer: float = 20.0
    url: Callable[[Site], str] | None = None
    heavy: bool = False
    ways: tuple[str, ...] = WAYS
    case: str = ""


@dataclass(frozen=True)
class AtSite:
    """A script that depends on where the servers stand."""

    make: Callable[[Site], Script]


ROWS: list[Row] = []


def row(name: str, script: Any, *expect: Good | Bad, **facts: Any) -> None:
    """Add a row; `script` is a reply (or a function of the request), a list of them (one per try), or an AtSite."""
    steps = script if isinstance(script, list) else [script]
    facts.setdefault("ways", getattr(steps[0], "ways", WAYS))
    ROWS.append(Row(name, script.make if isinstance(script, AtSite) else lambda site: steps, expect, **facts))


@dataclass(frozen=True)
class Shaped:
    """What a request gets, in the shapes of the route that it asked. `ways`: how others are asked for it, since it would
    be unfair to answer them with a stream that they did not ask for."""

    answer: Callable[[Request], Reply]
    ways: tuple[str, ...]

    def __call__(self, request: Request) -> Reply:
        return self.answer(request)


def said(parts: Callable[[Wire], Any], **facts: Any) -> Shaped:
    """A streamed reply."""
    return Shaped(lambda request: Reply(parts(wire_of(request.path)), **facts), STREAMED)


def body(value: Callable[[Wire], Any], **facts: Any) -> Shaped:
    """A whole JSON body."""

    def answer(request: Request) -> Reply:
        content = json.dumps(value(wire_of(request.path)), ensure_ascii=False).encode()
        return Reply([content], **{"framing": "length", "headers": JSON, **facts})

    return Shaped(answer, WHOLE)


def as_asked(request: Request) -> Reply:
    """The right answer, streamed where the request asks for that."""
    return (said(Wire.stream) if request.json.get("stream") else body(Wire.whole))(request)


GOOD = Shaped(as_asked, WAYS)
ERROR = {"message": MESSAGE, "type": "InternalServerError", "param": None, "code": 500}


def status(code: int, message: str = "as scripted", **headers: str) -> Reply:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    content = json.dumps({"error": {"message": message, "type": "scripted", "param": None, "code": code}}).encode()
    return Reply([content], status=code, framing="length", headers=(*JSON, *named))


# A row is a line, so that the table can be read as one.
# fmt: off
# --- 27: before the first byte ---

LOST = bad("RemoteConnectionError")
row("connection refused", GOOD, LOST, tries=(0,), url=lambda site: site.refused, case="27")
row("RST before headers", RESET, LOST, tries=(3,), case="27")
row("FIN before headers", Reply(framing="raw", end="fin"), LOST, tries=(3,), case="27")
row("FIN inside the headers", Reply([b"HTTP/1.1 200 OK\r\nContent-Ty"], framing="raw", end="fin"), LOST, tries=(3,), case="27")
row("FIN between two headers", Reply([b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"], framing="raw", end="fin"), LOST, tries=(3,), case="27")
row("headers, then FIN before the body", Reply(end="fin"), LOST, bad("StreamInterruptedError"), tries=(1, 3), case="27")
row("RST once, then well", [RESET, GOOD], Good(), tries=(2,), case="27")
row("FIN twice, then well", [Reply(framing="raw", end="fin")] * 2 + [GOOD], Good(), tries=(3,), case="27")
row("no HTTP at all", Reply([b"SSH-2.0-OpenSSH_9.6\r\n"], framing="raw", end="fin"), bad("ProtocolError", "RemoteConnectionError"), tries=(1, 3), case="27")
row("headers of 1 MiB", Reply([b"{}"], headers=(*SSE, ("X-Long", "a" * (1 << 20)))), bad("ProtocolError", "RemoteConnectionError"), tries=(1, 3), case="27")

# --- 28, 29: the stream ends early ---

INTERRUPTED = cut("StreamInterruptedError")
row("drop mid-stream, chunked", said(Wire.half, end="fin"), INTERRUPTED, case="28")
row("RST mid-stream", said(lambda w: w.half(0.05), end="reset"), INTERRUPTED, case="28")
row("drop mid-stream, close-delimited body", said(Wire.half, framing="close"), INTERRUPTED, case="28")
row("drop mid-stream, Content-Length too long", said(Wire.half, framing="length", length=99_999, end="fin"), INTERRUPTED, case="28")
row("drop inside a character", said(lambda w: w.half(w.event("富")[:-60]), end="fin"), INTERRUPTED, case="28")
row("clean end, no finish_reason, no [DONE]", said(Wire.half), INTERRUPTED, case="29")
row("[DONE] but no finish_reason", said(lambda w: w.half(DONE)), INTERRUPTED, case="29")
row("usage and [DONE] but no finish_reason", said(lambda w: w.half(w.usage(), DONE)), INTERRUPTED, case="29")
row("last event cut in half, clean end", said(lambda w: w.half(w.event("本")[:-40])), INTERRUPTED, case="29")
row("Content-Length ends the stream early", said(Wire.half, framing="length"), INTERRUPTED, case="29")
row("finish event cut in half, clean end", said(lambda w: [*w.deltas(), w.end()[:-30]]), bad("StreamInterruptedError", partial=TEXT), case="29")

# --- 30: complete without ceremony ---

row("finish_reason but no [DONE]", said(lambda w: [*w.deltas(), w.end()]), Good(), case="30")
row("finish_reason, no [DONE], close-delimited", said(lambda w: [*w.deltas(), w.end()], framing="close"), Good(), case="30")
row("finish_reason, then the connection drops", said(lambda w: [*w.deltas(), w.end()], end="fin"), Good(), case="30")
row("[DONE] without blank line", said(lambda w: [*w.deltas(), w.end(), b"data: [DONE]"]), Good(), case="30")
row("[DONE], then the connection stays open", said(Wire.stream, end="stall"), Good(), limit=8, case="30")
row("events after [DONE]", said(lambda w: [*w.stream(), w.event("余計")]), Good(), case="30")

# --- 31: the server reports an error ---


def reported(name: str, event: bytes, *, words: str = MESSAGE, kinds: tuple[str, ...] = ("RemoteStreamError",)) -> None:
    """An error event in the middle and, again, in the place of the first event."""
    row(f"{name}", said(lambda w: w.half(event, DONE)), cut(*kinds, said=words), case="31")
    row(f"{name}, first event", said(lambda w: [event, DONE]), bad(*kinds, said=words), tries=None, case="31")


reported('`{"error":{...}}` event (vLLM >=0.10.1)', sse({"error": ERROR}))
reported('`{"object":"error"}` flat (vLLM <0.10.1)', sse({"object": "error", **ERROR}))
reported("SSE field `error: {...}` (llama.cpp before 2025-09)", b"error: " + json.dumps(ERROR).encode() + b"\n\n")
reported('`{"error":"text","error_type":...}` (TGI)', sse({"error": MESSAGE, "error_type": "generation"}))
reported("`event: error` and plain text", b"event: error\ndata: " + MESSAGE.encode() + b"\n\n")
reported("`event: error` and JSON", b"event: error\ndata: " + json.dumps({"message": MESSAGE}).encode() + b"\n\n")
OVERFLOW = ("ContextOverflowError",)
reported("context overflow event, vLLM", sse({"error": {**ERROR, "message": CONTEXT_NEW, "code": 400}}), words="maximum context length", kinds=OVERFLOW)
reported("context overflow event, llama.cpp", sse({"error": CONTEXT_LLAMA_CPP}), words="context size", kinds=OVERFLOW)
reported("context overflow event, TGI", sse({"error": CONTEXT_TGI, "error_type": "validation"}), words="inputs", kinds=OVERFLOW)
row("error event without [DONE], connection drops", said(lambda w: w.half(sse({"error": ERROR})), end="fin"), cut("RemoteStreamError", said=MESSAGE), case="31")
row("error event that echoes key and prompt", Shaped(lambda r: Reply(wire_of(r.path).half(sse({"error": {**ERROR, "message": f"{r.headers} {r.prompt}"}}))), STREAMED), cut("RemoteStreamError"), case="31")

# --- 32: finish reasons ---

row('finish_reason "abort"', said(lambda w: w.half(w.end("abort"), DONE)), cut("RemoteStreamError"), case="32")
row('finish_reason "error"', said(lambda w: w.half(w.end("error"), DONE)), cut("RemoteStreamError"), case="32")
row('finish_reason "length"', said(lambda w: w.stream(finish="length")), Good(finish="length"), case="32")
row("finish_reason of an unknown word", said(lambda w: w.stream(finish="banana")), Good(), case="32")
row("finish_reason with the last text", said(lambda w: [*w.deltas()[:-1], w.event(TEXT[-1], "stop"), DONE]), Good(), case="32")

# --- 33: framing ---


def whole_bytes(w: Wire) -> bytes:
    return b"".join(w.stream())


def framed(name: str, change: Callable[[bytes], bytes], packet: int = 0) -> None:
    row(name, said(lambda w: [change(whole_bytes(w))], packet=packet), Good(), case="33")


def with_newlines(newline: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"\n", newline)


row("keep-alive comments between events", said(lambda w: [part for one in w.stream() for part in (b": ping\n\n", one)]), Good(), case="33")
framed("one byte per packet", bytes, 1)
for size in (2, 3, 5):
    framed(f"{size} bytes per packet", bytes, size)
framed("CRLF in 7-byte packets", with_newlines(b"\r\n"), 7)
framed("CRLF, one byte per packet", with_newlines(b"\r\n"), 1)
framed("CR only, 7-byte packets", with_newlines(b"\r"), 7)
framed("everything in one packet", bytes)
framed("UTF-8 BOM at the start", lambda data: b"\xef\xbb\xbf" + data)
framed("UTF-8 BOM at the start, one byte per packet", lambda data: b"\xef\xbb\xbf" + data, 1)
framed("`data:` without a space", lambda data: data.replace(b"data: ", b"data:"))
framed("`data:` with two spaces", lambda data: data.replace(b"data: ", b"data:  "))
framed("id, event and retry fields", lambda data: data.replace(b"data: ", b"id: 7\nevent: message\nretry: 3000\nfoo: bar\ndata: "))
framed("JSON over two data lines", lambda data: data.replace(b', "choices"', b',\ndata: "choices"'))
framed("fields without a colon", lambda data: data.replace(b"data: ", b"retry\nid\ndata: "))
framed("events without data", lambda data: b"event: ping\n\n" + data.replace(b"\n\n", b"\n\nid: 1\n\n\n"))
ODD = "一\u2028二\u0085三\u2029四\x1c五\x0b六\x0c七\U0001f363八"
row("U+2028, U+2029, U+0085 and controls raw", said(lambda w: [w.event(one) for one in ODD] + [w.end(), DONE]), Good(ODD), case="33")
row("the same, one byte per packet", said(lambda w: [w.event(one) for one in ODD] + [w.end(), DONE], packet=1), Good(ODD), case="33")
row("HTTP/1.1 close-delimited", said(Wire.stream, framing="close"), Good(), case="33")
row("an event of 300 kB", said(lambda w: [w.event("富" * 100_000), w.end(), DONE], packet=8192), Good("富" * 100_000), case="33")

# --- 34 to 35: silence ---

IDLE = {"timeouts": {"connect": 5, "pool": 5, "first_token": 20, "idle": 2.5}}  # a machine may stand still for a second
FIRST = {"timeouts": {"connect": 5, "pool": 5, "first_token": 1.0, "idle": 20}}


def pings(seconds: float) -> list[bytes | float]:
    return [part for _ in range(int(seconds / 0.1)) for part in (b": keepalive\n\n", 0.1)]


row("stall mid-stream", said(Wire.half, end="stall"), cut("RemoteTimeoutError", stage="idle"), fields=IDLE, limit=8, peer=1, case="34")
row("stall mid-event", said(lambda w: w.half(w.event("富")[:20]), end="stall"), cut("RemoteTimeoutError", stage="idle"), fields=IDLE, limit=8, peer=1, case="34")
row("only keep-alive comments mid-stream", said(lambda w: w.half(*pings(6))), cut("RemoteTimeoutError", stage="idle"), fields=IDLE, limit=8, peer=1, case="34")
row("events without text mid-stream", said(lambda w: w.half(*[part for _ in range(60) for part in (b"event: ping\n\n", 0.1)])), cut("RemoteTimeoutError", stage="idle"), fields=IDLE, limit=8, peer=1, case="34")
row("only keep-alive comments from the start", said(lambda w: pings(6)), bad("RemoteTimeoutError", stage="first_token"), fields=FIRST, limit=8, peer=1, case="34")
row("headers, then silence", Reply(end="stall"), bad("RemoteTimeoutError", stage="first_token"), fields=FIRST, limit=8, peer=1, case="35")
row("never answers", Reply(framing="raw", end="stall"), bad("RemoteTimeoutError", stage="first_token"), fields=FIRST, limit=8, peer=1, case="35")
row("never answers, total deadline", Reply(framing="raw", end="stall"), bad("RemoteTimeoutError", stage="total"), fields={"timeout": 1.5}, limit=8, peer=1, case="35")
row("slow stream, total deadline", said(lambda w: [part for one in w.stream() for part in (one, 0.1)]), bad("RemoteTimeoutError", stage="total", partial=None), fields={"timeout": 1.5}, limit=8, peer=1, case="35")
row("stall mid-stream, total deadline", said(Wire.half, end="stall"), cut("RemoteTimeoutError", stage="total"), fields={"timeout": 2.0}, limit=6, peer=1, case="35")
row("503 for ever, total deadline", status(503, Retry_After="1"), bad("RemoteTimeoutError", "ServerFaultError"), tries=(1, 2), fields={"timeout": 1.8}, limit=8, peer=1, case="35")
row("500 whose body never comes", Reply([b'{"er'], status=500, headers=JSON, framing="length", length=999, end="stall"), bad("ServerFaultError", "RemoteTimeoutError"), tries=None, fields={**FIRST, "max_retries": 0}, limit=6, peer=1, case="35")
row("the server accepts nobody", GOOD, bad("RemoteTimeoutError", "RemoteConnectionError"), tries=(0,), url=lambda site: site.full, fields={"timeouts": {"connect": 0.4, "pool": 5, "first_token": 5, "idle": 5}}, limit=6, peer=1, case="35")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def dripped(data: bytes) -> list[bytes | float]:
    """Byte by byte, so slowly that no single wait is long and the whole is."""
    return [part for place in range(len(data)) for part in (data[place : place + 1], 0.3)]


def chunks(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


row("headers byte by byte", Reply(dripped(HEAD), framing="raw"), bad("RemoteTimeoutError", stage="first_token"), fields=FIRST, limit=8, peer=1, case="35")
row("headers byte by byte, total deadline", Reply(dripped(HEAD), framing="raw"), bad("RemoteTimeoutError", stage="total"), fields={"timeout": 1.5}, limit=8, peer=1, case="35")
row("an event byte by byte", said(lambda w: w.half(*dripped(w.event("富")))), cut("RemoteTimeoutError", stage="idle"), fields=IDLE, limit=8, peer=1, case="35")
row("a chunk size byte by byte", said(lambda w: [HEAD, chunks(w.deltas(TEXT[:HALF])), *dripped(b"0" * 60)], framing="raw"), cut("RemoteTimeoutError", stage="idle"), fields=IDLE, limit=8, peer=1, case="35")
row("slow but steady", said(lambda w: [part for one in w.stream() for part in (one, 0.1)]), Good(), fields={"timeouts": {"connect": 5, "pool": 5, "first_token": 2, "idle": 2}}, limit=10, case="35")

# --- 36: statuses ---

KINDS = {400: "RemoteRequestError", 401: "AuthenticationError", 403: "AccessDeniedError", 404: "EndpointNotFoundError", 405: "RemoteRequestError", 413: "RemoteRequestError", 418: "RemoteRequestError", 422: "RemoteRequestError", 424: "ServerFaultError", 501: "ServerFaultError", 505: "ServerFaultError", 408: "ServerFaultError", 409: "ServerFaultError", 425: "ServerFaultError", 429: "RateLimitError", 500: "ServerFaultError", 502: "ServerFaultError", 503: "ServerFaultError", 504: "ServerFaultError", 529: "ServerFaultError"}  # fmt: skip
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
for code, kind in KINDS.items():
    row(f"HTTP {code}", status(code), bad(kind, status=code, said="as scripted"), tries=(3,) if code in RETRIED else (1,), case="36")
row("HTTP 500 once, then well", [status(500), GOOD], Good(), tries=(2,), gap=(0.3, 5.0), case="36")
row("HTTP 500, x-should-retry: false", status(500, x_should_retry="false"), bad("ServerFaultError", status=500), tries=(1,), case="36")
row("HTTP 400, x-should-retry: true, then well", [status(400, x_should_retry="true"), GOOD], Good(), tries=(2,), case="36")
row("HTTP 400, vLLM's flat context wording", Reply([json.dumps({"object": "error", "message": CONTEXT_NEW, "type": "BadRequestError", "code": 400}).encode()], status=400, framing="length", headers=JSON), bad("RemoteContextOverflowError", status=400), case="36")
row("HTTP 400, vLLM's nested context wording", status(400, CONTEXT_NEW), bad("RemoteContextOverflowError", status=400), case="36")
row("HTTP 400, llama.cpp's context wording", Reply([json.dumps({"error": CONTEXT_LLAMA_CPP}).encode()], status=400, framing="length", headers=JSON), bad("RemoteContextOverflowError", status=400), case="36")
row("HTTP 422, TGI's context wording", Reply([json.dumps({"error": CONTEXT_TGI, "error_type": "validation"}).encode()], status=422, framing="length", headers=JSON), bad("RemoteContextOverflowError", status=422), case="36")
row("HTTP 502 with an HTML page", Reply([b"<html>" + b"<p>Bad gateway</p>" * 900 + b"</html>"], status=502, headers=HTML), bad("ServerFaultError", status=502), tries=(3,), case="36")
row("HTTP 401 with an empty body", Reply(status=401, framing="length"), bad("AuthenticationError", status=401), case="36")
row("HTTP 400 with a body that is no UTF-8", Reply([b"\xff\xfe\x80" * 9], status=400, framing="length"), bad("RemoteRequestError", status=400), case="36")
row("HTTP 400 whose body is cut", Reply([b'{"error": {"message": "half'], status=400, framing="length", headers=JSON, length=400, end="fin"), bad("RemoteRequestError", "RemoteConnectionError", "StreamInterruptedError"), tries=None, case="36")


def echo(code: int) -> Callable[[Request], Reply]:
    """The request given back, as validation errors and proxies do: headers, key and prompt."""

    def answer(request: Request) -> Reply:
        detail = [{"type": "extra_forbidden", "loc": ["body"], "msg": "not permitted", "input": request.json}]
        content = {"headers": dict(request.headers), "prompt": request.prompt, "detail": detail}
        return Reply([json.dumps(content).encode()], status=code, framing="length", headers=JSON)

    return answer


row("HTTP 422 that echoes headers and prompt", [echo(422)], bad("RemoteRequestError", status=422), case="36")
row("HTTP 401 that echoes the key", [lambda r: status(401, f"Incorrect API key provided: {r.headers.get('authorization', '')[7:]}")], bad("AuthenticationError", status=401, said="Incorrect API key"), case="36")

# --- 37: Retry-After ---


def later(**headers: str) -> list[Any]:
    return [status(429, **headers), GOOD]


BACKOFF = (0.3, 5.0)
row("429, Retry-After 0.2", later(Retry_After="0.2"), Good(), tries=(2,), gap=(0.19, 5.0), case="37")
row("429, Retry-After 1", later(Retry_After="1"), Good(), tries=(2,), gap=(0.98, 6.0), case="37")
row("429, retry-after-ms 900", later(retry_after_ms="900"), Good(), tries=(2,), gap=(0.88, 6.0), case="37")
for value in ("0", "-1", "inf", "nan", "soon", "1e999", "99999999999999999999d", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 100000 23:59:59 GMT"):
    row(f"429, Retry-After {value}", later(Retry_After=value), Good(), tries=(2,), gap=BACKOFF, case="37")
row("429, Retry-After 121", later(Retry_After="121"), bad("RateLimitError", status=429), tries=(1,), case="37")
row("429, Retry-After 120, deadline 1", later(Retry_After="120"), bad("RateLimitError", "RemoteTimeoutError"), tries=(1,), fields={"timeout": 3.0}, limit=10, peer=1, case="37")
row("429, Retry-After a date in 2 s", [lambda r: status(429, Retry_After=email.utils.formatdate(time.time() + 2, usegmt=True)), GOOD], Good(), tries=(2,), gap=(0.8, 6.0), case="37")
row("503, Retry-After 0.2, twice, then well", [status(503, Retry_After="0.2")] * 2 + [GOOD], Good(), tries=(3,), gap=(0.19, 5.0), case="37")
row("429 for ever, max_retries=0", status(429), bad("RateLimitError", status=429), tries=(1,), fields={"max_retries": 0}, case="37")

# --- 38, 42: redirects ---


def redirect(code: int, same: bool = False) -> AtSite:
    def script(site: Site) -> Script:
        target = (lambda r: f"/{r.key}/v1/completions") if same else (lambda r: f"{site.elsewhere}/elsewhere{r.path}")
        return [lambda r: Reply(status=code, framing="length", headers=(("Location", target(r)),))]

    return AtSite(script)


for code in (301, 302, 303, 307, 308):
    row(f"HTTP {code} to another origin", redirect(code), bad("RedirectError", status=code), case="42")
row("HTTP 307 to the same origin", redirect(307, same=True), bad("RedirectError", status=307), case="38")
row("HTTP 307 without Location", Reply(status=307, framing="length"), bad("RedirectError", "ProtocolError"), case="38")
row("HTTP 304", Reply(status=304, framing="length"), bad("RedirectError", "ProtocolError", "RemoteStatusError"), case="38")

# --- 39: 200, but no answer ---

NO_ANSWER = bad("ProtocolError", status=200)
row("200 + HTML login page", Reply([b"<!doctype html><html><title>Log in</title></html>"], headers=HTML, framing="length"), NO_ANSWER, case="39")
row("200 + HTML, event-stream type", Reply([b"<!doctype html><html><title>Log in</title></html>"]), bad("ProtocolError", "StreamInterruptedError"), case="39")
row("200 + JSON error", body(lambda w: {"error": ERROR}), bad("ProtocolError", "RemoteStreamError", said=MESSAGE), case="39")
row("200 + empty body", Reply(), bad("ProtocolError", "StreamInterruptedError"), tries=(1, 3), case="39")
row("200 + empty body, Content-Length 0", Reply(framing="length"), bad("ProtocolError", "StreamInterruptedError"), tries=(1, 3), case="39")
row("200 + only [DONE]", said(lambda w: [DONE]), bad("ProtocolError", "StreamInterruptedError"), case="39")
row("200 + text/plain", Reply([b"ok"], headers=(("Content-Type", "text/plain"),), framing="length"), NO_ANSWER, case="39")
row("200 + JSON that is no answer", body(lambda w: {"status": "ok"}), bad("ProtocolError"), case="39")
row("200 + JSON, a list", body(lambda w: []), bad("ProtocolError"), case="39")
row("200 + broken JSON", Reply([b'{"choices": [{"te'], headers=JSON, framing="length"), bad("ProtocolError", "StreamInterruptedError"), case="39")
row("204", Reply(status=204, framing="raw", parts=[b"HTTP/1.1 204 No Content\r\n\r\n"]), bad("ProtocolError", "RemoteStatusError"), tries=(1, 3), case="39")
row("a stream without a content type", said(Wire.stream, headers=()), Good(), bad("ProtocolError"), case="39")
row("a stream labelled application/json", said(Wire.stream, headers=JSON), Good(), bad("ProtocolError"), case="39")

# --- 40: shapes ---

NULL = Wire.stream
row("usage null in every event", said(lambda w: [*(sse(w.delta(one, usage=None)) for one in TEXT), w.end(), DONE]), Good(), case="40")
row("usage in every event (continuous_usage_stats)", said(lambda w: [*(sse(w.delta(one, usage={"prompt_tokens": 11, "completion_tokens": n, "total_tokens": 11 + n})) for n, one in enumerate(TEXT, 1)), w.end(), DONE]), Good(), case="40")
row("role-only or empty first event", said(lambda w: [w.event(""), *w.stream()]), Good(), case="40")
row("text null in one event", said(lambda w: [sse({**w.base, "choices": [w.choice(None)]}), *w.stream()]), Good(), bad("ProtocolError"), case="40")
row("event without choices", said(lambda w: [sse(w.base), *w.stream()]), Good(), bad("ProtocolError"), case="40")
row("index 1 first (n > 1)", said(lambda w: [sse({**w.base, "choices": [w.choice("誤", index=1)]}), *w.stream()]), Good(), bad("ProtocolError"), case="40")
row("two choices in one event", said(lambda w: [sse({**w.base, "choices": [w.choice(TEXT[0]), w.choice("誤", index=1)]}), *w.stream()[1:]]), Good(), bad("ProtocolError", partial=None), case="40")
row("index 1 finishes, index 0 does not", said(lambda w: w.half(sse({**w.base, "choices": [w.choice("", "stop", index=1)]}), DONE)), cut("StreamInterruptedError", "ProtocolError"), case="40")
for shown, value in (("5", 5), ("null", None), ("a list", []), ("choices a text", {"choices": "a"}), ("choice a number", {"choices": [5]}), ("text a number", {"choices": [{"index": 0, "text": 5, "delta": {"content": 5}, "finish_reason": None}]}), ("text a list", {"choices": [{"index": 0, "text": ["a"], "delta": {"content": ["a"]}, "finish_reason": None}]})):  # fmt: skip
    row(f"event of another shape: {shown}", said(lambda w, value=value: w.half(sse(value), w.end(), DONE)), cut("ProtocolError"), case="40")
row("whole JSON in place of a stream", body(Wire.whole), Good(), case="40")
row("whole JSON, chunked, 3 bytes per packet", body(Wire.whole, framing="chunked", packet=3), Good(), case="40")
row("whole JSON, finish_reason length", body(lambda w: w.whole(finish="length")), Good(finish="length"), case="40")
row("whole JSON, choices []", body(lambda w: {**w.whole(), "choices": []}), bad("ProtocolError"), case="40")
row("whole JSON, text null", body(lambda w: w.whole(None)), bad("ProtocolError"), Good(""), case="40")
row("whole JSON, no message", body(lambda w: {**w.whole(), "choices": [{"index": 0, "finish_reason": "stop"}]}), bad("ProtocolError"), case="40")
row("whole JSON, usage null", body(lambda w: w.whole(usage=None)), Good(), case="40")
row("whole JSON, finish_reason null", body(lambda w: w.whole(finish=None)), bad("ProtocolError", "StreamInterruptedError", partial=TEXT), case="40")
row("whole JSON, finish_reason abort", body(lambda w: w.whole(PARTIAL, "abort")), cut("RemoteStreamError"), case="40")
row("whole JSON, body cut (Content-Length too long)", body(Wire.whole, length=9999, end="fin"), bad("StreamInterruptedError", "RemoteConnectionError", "ProtocolError", partial=None), tries=(1,), case="40")

# --- 41: bytes ---

row("broken JSON in an event", said(lambda w: w.half(b'data: {"choices": [{"te\n\n', w.end(), DONE)), cut("ProtocolError"), case="41")
row("broken UTF-8 in an event", said(lambda w: w.half(w.event("X").replace(b"X", b"\xe5\xaf"), w.end(), DONE)), cut("ProtocolError"), case="41")
row("NUL bytes between events", said(lambda w: w.half(b"\x00\x00\n\n", *w.stream()[HALF:])), Good(), cut("ProtocolError"), case="41")
row("a lone surrogate, escaped", said(lambda w: w.half(sse(w.delta("X")).replace(b'"X"', b'"\\ud83c"'), w.end(), DONE)), cut("ProtocolError"), Good(PARTIAL + "\ufffd"), case="41")
row("broken chunk size", Reply([b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n"], framing="raw", end="fin"), bad("ProtocolError", "StreamInterruptedError", "RemoteConnectionError"), tries=(1, 3), case="41")
row("gzip though nobody asked", said(lambda w: [gzip.compress(whole_bytes(w))], headers=(*SSE, ("Content-Encoding", "gzip"))), Good(), bad("ProtocolError"), case="41")
row("an encoding nobody knows", said(lambda w: [b"\x01\x02\x03"], headers=(*SSE, ("Content-Encoding", "banana"))), bad("ProtocolError", "StreamInterruptedError"), case="41")


def endless(first: bytes, megabytes: int) -> Callable[[], Iterator[bytes]]:
    """A body made as it is read, so that a client that hangs up early costs nothing."""

    def parts() -> Iterator[bytes]:
        if first:
            yield first
        yield from (b"a" * (1 << 16) for _ in range(megabytes * 16))

    return parts


def bomb() -> list[bytes]:
    """64 MiB of one event in some 60 kB."""
    press = zlib.compressobj(9, wbits=31)
    packed = [press.compress(b'data: {"choices": [{"text": "')]
    packed += [press.compress(b"a" * (1 << 20)) for _ in range(64)]
    return [*(part for part in packed if part), press.flush()]


row("an event of 64 MiB", Reply(endless(b'data: {"choices": [{"index": 0, "text": "', 64)), bad("ProtocolError"), heavy=True, case="41")
row("a line of 64 MiB without a field", Reply(endless(b"", 64)), bad("ProtocolError"), heavy=True, case="41")
row("gzip bomb of 64 MiB", [Reply(bomb(), headers=(*SSE, ("Content-Encoding", "gzip")))], bad("ProtocolError"), heavy=True, case="41")
row("a whole JSON body of 64 MiB", Reply(endless(b'{"choices": [{"index": 0, "text": "', 64), headers=JSON), bad("ProtocolError"), heavy=True, case="41")
row("an error body of 64 MiB", Reply(endless(b'{"error": {"message": "', 64), headers=JSON, status=400), bad("RemoteRequestError", "ProtocolError"), heavy=True, case="41")


def gap(exchanges: list[Exchange]) -> float | None:
    """Seconds between the first two requests."""
    return exchanges[1].request.at - exchanges[0].request.at if len(exchanges) > 1 else None
