"""A scripted HTTP/1.1 server on 127.0.0.1: every way a reply can go wrong, as data.

Knows sockets, framing and faults, not what a completion looks like (`wires`) and not which faults there are
(`fault_table`). A `Reply` says what one request gets; `Loopback` serves replies by key, the first part of a request's
path, and records every exchange: the request, when each came, and when the client closed the connection.

    with Loopback() as server:
        server.script("a", [Reply(status=503), Reply([b"data: ..."])])     # first try, second try (the last repeats)
        ChatKarakuri(base_url=server.url("a"), ...)
        server.exchanges("a")[0].closed_at
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, Literal

__all__ = ["RESET", "Exchange", "Loopback", "LoopbackProcess", "Reply", "Request", "full_port", "refusing_port"]

SSE = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))
JSON = (("Content-Type", "application/json"),)
HTML = (("Content-Type", "text/html; charset=utf-8"),)


@dataclass(frozen=True)
class Request:
    """What a client sent. `key` is the first part of the path; `at` and every other time is time.monotonic()."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def key(self) -> str:
        return self.path.strip("/").partition("/")[0]

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        """The prompt's text, of a completion or a chat."""
        if "messages" in self.json:
            return "\n".join(str(message["content"]) for message in self.json["messages"])
        prompt = self.json.get("prompt", self.json.get("inputs", ""))
        return prompt if isinstance(prompt, str) else json.dumps(prompt)


@dataclass
class Exchange:
    """One request and what became of it. `sent` counts parts; `closed_at`: when the client had closed."""

    request: Request
    connection: int
    sent: int = 0
    ended_at: float | None = None
    closed_at: float | None = None


@dataclass(frozen=True)
class Reply:
    """What one request gets.

    parts: bytes, each written as a packet of its own; a number pauses that many seconds; a callable makes them anew
        for every request.
    framing: how the body's end is told: chunked, close, length, or raw, where the parts are everything, status line
        included.
    end: `end` as HTTP wants it; `fin` or `reset` closes the connection without; `stall` keeps it open and silent.
    packet: at most that many bytes per packet (0: a part is a packet).
    length: a Content-Length of its own, which may lie.
    """

    parts: Iterable[bytes | float] | Callable[[], Iterable[bytes | float]] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = SSE
    framing: Literal["chunked", "close", "length", "raw"] = "chunked"
    end: Literal["end", "fin", "reset", "stall"] = "end"
    packet: int = 0
    length: int | None = None

    def pieces(self) -> Iterable[bytes | float]:
        for part in self.parts() if callable(self.parts) else self.parts:
            if isinstance(part, bytes) and self.packet:
                yield from (part[at : at + self.packet] for at in range(0, len(part), self.packet))
            else:
                yield part

    def head(self, body: int | None) -> bytes:
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Scripted"
        headers = list(self.headers)
        if self.framing == "chunked":
            headers.append(("Transfer-Encoding", "chunked"))
        elif self.framing == "length":
            headers.append(("Content-Length", str(body if self.length is None else self.length)))
        else:
            headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


#: The connection is reset before anything is said.
RESET = Reply(framing="raw", end="reset")

#: What a request with a key gets: a reply for each try, the last one for all that follow.
Answer = Callable[[Request], Reply]
Script = Sequence[Reply | Answer]


class _Connection(asyncio.Protocol):
    """One client connection: requests in, scripted replies out, one at a time."""

    def __init__(self, server: _Core, number: int) -> None:
        self.server, self.number = server, number
        self.buffer = bytearray()
        self.task: asyncio.Task[None] | None = None
        self.exchange: Exchange | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=1 << 18)
        self.server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.next_request()

    def eof_received(self) -> bool:
        self.note_close()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.note_close()
        self.server.connections.discard(self)
        self.writable.set()
        if self.task:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def note_close(self) -> None:
        if self.exchange and self.exchange.closed_at is None and self.exchange.ended_at is None:
            self.exchange.closed_at = time.monotonic()

    def next_request(self) -> None:
        if self.task is None and (request := _parsed(self.buffer)):
            self.exchange = Exchange(request, self.number)
            self.server.exchanges.append(self.exchange)
            self.task = asyncio.get_running_loop().create_task(self.answer(self.exchange))

    async def answer(self, exchange: Exchange) -> None:
        reply = self.server.reply(exchange.request)
        try:
            await self.send(reply, exchange)
        except ConnectionError:
            return
        if reply.end == "stall":
            await asyncio.Event().wait()
        exchange.ended_at = time.monotonic()
        self.finish(reply)

    def finish(self, reply: Reply) -> None:
        if reply.end == "reset":
            linger = struct.pack("ii", 1, 0)
            with suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif reply.end == "fin" or reply.framing in ("close", "raw"):
            self.transport.close()
        else:
            self.task = None
            self.next_request()

    async def send(self, reply: Reply, exchange: Exchange) -> None:
        chunked = reply.framing == "chunked"
        pieces = reply.pieces()
        if reply.framing == "length":
            pieces = list(pieces)
            self.write(reply.head(sum(len(piece) for piece in pieces if isinstance(piece, bytes))))
        elif reply.framing != "raw":
            self.write(reply.head(None))
        async for piece in self.paced(pieces):
            self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            exchange.sent += 1
        if chunked and reply.end == "end":
            self.write(b"0\r\n\r\n")

    async def paced(self, pieces: Iterable[bytes | float]) -> AsyncIterator[bytes]:
        for piece in pieces:
            if piece == b"":  # as a chunk it would be the end of the body
                continue
            if isinstance(piece, bytes):
                yield piece
                await self.writable.wait()
                await asyncio.sleep(0)  # lets other connections write between two packets of this one
            else:
                await asyncio.sleep(piece)

    def write(self, data: bytes) -> None:
        if self.transport.is_closing():
            raise ConnectionError
        self.transport.write(data)


def _parsed(buffer: bytearray) -> Request | None:
    """The first whole request in the buffer, taken out of it."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    first, *lines = buffer[:end].decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "chunked" in headers.get("transfer-encoding", ""):
        body, used = _dechunked(buffer, end + 4)
    else:
        used = end + 4 + int(headers.get("content-length", 0))
        body = bytes(buffer[end + 4 : used]) if len(buffer) >= used else None
    if body is None:
        return None
    del buffer[:used]
    method, path, _ = first.split(" ", 2)
    return Request(method, path, headers, body, time.monotonic())


def _dechunked(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    body = bytearray()
    while (end := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:end], 16)
        at = end + 2 + size + 2
        if len(buffer) < at:
            break
        if size == 0:
            return bytes(body), at
        body += buffer[end + 2 : end + 2 + size]
    return None, at


class _Core:
    """The server inside its event loop; `Loopback` and `LoopbackProcess` are the handles."""

    def __init__(self, answer: Answer | None = None) -> None:
        self.scripts: dict[str, Script] = {}
        self.tries: dict[str, int] = {}
        self.default = answer
        self.exchanges: list[Exchange] = []
        self.connections: set[_Connection] = set()
        self.accepted = 0

    def accept(self) -> _Connection:
        self.accepted += 1
        return _Connection(self, self.accepted)

    def reply(self, request: Request) -> Reply:
        script = self.scripts.get(request.key)
        if script is None:
            return self.default(request) if self.default else Reply([b"no such key"], status=404, framing="length")
        number = self.tries.get(request.key, 0)
        self.tries[request.key] = number + 1
        step = script[min(number, len(script) - 1)]
        return step if isinstance(step, Reply) else step(request)

    async def start(self) -> int:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(self.accept, "127.0.0.1", 0, backlog=1024)
        return self.server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.close()
        for connection in list(self.connections):
            connection.transport.abort()


class Loopback:
    """The server in a thread of this process.

    Args:
        answer: what requests without a script get; None is a 404.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        self._core = _Core(answer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loopback", daemon=True)
        self._ready = threading.Event()
        self.port = 0

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self.port = self._loop.run_until_complete(self._core.start())
        self._ready.set()
        self._loop.run_forever()
        self._core.stop()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def __enter__(self) -> Loopback:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, key: str, path: str = "/v1") -> str:
        return f"http://127.0.0.1:{self.port}/{key}{path}"

    def script(self, key: str, script: Script) -> str:
        """Serve these replies under a key; gives the base url."""
        self._core.scripts[key] = list(script)
        return self.url(key)

    def exchanges(self, key: str | None = None) -> list[Exchange]:
        return [one for one in list(self._core.exchanges) if key is None or one.request.key == key]

    def open(self) -> int:
        """Connections that stand open now."""
        return len(self._core.connections)

    @property
    def accepted(self) -> int:
        """Connections that were ever opened."""
        return self._core.accepted

    def drop(self, key: str | None = None) -> None:
        """Close every connection (whose last request had that key) now, as a server that goes away does."""
        self._loop.call_soon_threadsafe(self._drop, key)

    def _drop(self, key: str | None) -> None:
        for connection in list(self._core.connections):
            if key is None or (connection.exchange and connection.exchange.request.key == key):
                connection.transport.abort()

    def forget(self) -> None:
        """Forget the exchanges so far."""
        self._core.exchanges.clear()


def _serve(answer: Answer, pipe: Any) -> None:
    """A process: sends the port, then answers each message with its counters until None comes."""
    core = _Core(answer)
    loop = asyncio.new_event_loop()
    pipe.send(loop.run_until_complete(core.start()))

    def stats() -> None:
        if not pipe.poll():
            return
        try:
            asked = pipe.recv()
        except EOFError:
            asked = None
        if asked is None:
            loop.stop()
            return
        pipe.send({"open": len(core.connections), "accepted": core.accepted, "requests": len(core.exchanges)})
        core.exchanges.clear()

    loop.add_reader(pipe.fileno(), stats)
    with suppress(KeyboardInterrupt):
        loop.run_forever()


@dataclass
class LoopbackProcess:
    """The server in a process of its own, so that its CPU time and files are not the client's.

    Args:
        answer: a function at the top level of a module.
    """

    answer: Answer
    port: int = field(default=0, init=False)

    def __enter__(self) -> LoopbackProcess:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.answer, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.port = self._pipe.recv()
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def url(self, key: str, path: str = "/v1") -> str:
        return f"http://127.0.0.1:{self.port}/{key}{path}"

    def stats(self) -> dict[str, int]:
        """Connections that stand open, connections ever accepted, requests since the last asking."""
        self._pipe.send("stats")
        return self._pipe.recv()


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that nobody listens on, kept so that nobody else takes it."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


@contextmanager
def full_port() -> Iterator[int]:
    """A port whose queue of connections is full: connecting to it neither succeeds nor fails."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port = listening.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        yield port
