"""The HTTP layer: one request, one stream of bytes back; sync by urllib3, async by aiohttp. No retries, no redirects.

Why these two: a reply of n tokens is n small reads, so what counts is the CPU per read. aiohttp parses in C and costs a
fraction of httpx, whose parser is Python; the comparison is `cookbook/remote/cost.py`. aiohttp has no sync half, and
urllib3 is the sync client with the least code between socket and caller. Both are pooled: one async session per event
loop, closed together with it; one sync pool per process, made anew after fork (the inherited one is left alone, since
closing it would end the parent's TLS sessions).

Every failure is one of ours: RemoteConnectionError, RemoteTimeoutError with its stage, StreamInterruptedError for bytes
that stop too early. Nothing here knows servers, prompts or JSON.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from ..errors import (
    MissingDependencyError,
    OptionError,
    RemoteConnectionError,
    RemoteTimeoutError,
    StreamInterruptedError,
)
from .proxies import proxy_of
from .watchdog import Watched, watch

if TYPE_CHECKING:
    import aiohttp
    import urllib3

__all__ = [
    "AsyncResponse",
    "HttpRequest",
    "Limits",
    "SyncResponse",
    "aopen",
    "close_all",
    "open_",
    "timed_out",
]

INSTALL_HINT: Final = 'pip install "karakuri-integrations[remote]"'
_POOL: Final = 1000
_READ: Final = 65536


@dataclass(frozen=True)
class HttpRequest:
    """One request. `body` is sent as it is; headers hold secrets, so they are not shown."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None

    def __repr__(self) -> str:
        return f"HttpRequest({self.method})"


@dataclass(frozen=True)
class Limits:
    """Seconds. connect: to reach the host; pool: for a free connection; first_token: from sending to the first data;
    idle: between two data events (comments do not count); total: for the whole call with all its tries, None is
    without limit."""

    connect: float = 5.0
    pool: float = 10.0
    first_token: float = 600.0
    idle: float = 120.0
    total: float | None = None


def timed_out(stage: str, seconds: float) -> RemoteTimeoutError:
    """The error of a time limit."""
    knob = "timeout=" if stage == "total" else f'timeouts={{"{stage}": ...}}'
    error = RemoteTimeoutError(
        f"the endpoint took longer than {seconds:g} s ({stage}); raise {knob} if it is only slow"
    )
    error.stage = stage
    return error


def _unreachable(error: BaseException) -> RemoteConnectionError:
    return RemoteConnectionError(
        f"the endpoint cannot be reached or closed the connection before it answered ({_short(error)}); "
        "check base_url and that the server runs"
    )


def _short(error: BaseException) -> str:
    """The error's class and system error, without texts that could hold a URL or a header."""
    cause = error
    while True:
        inner = cause.__cause__ or cause.__context__
        if getattr(cause, "errno", None) is not None or inner is None:
            break
        cause = inner
    number = getattr(cause, "errno", None)
    said = os.strerror(number) if isinstance(number, int) and number > 0 else ""
    return f"{type(cause).__name__}: {said}" if said else type(cause).__name__


def _cut(error: BaseException) -> StreamInterruptedError:
    return StreamInterruptedError(f"the connection ended in the middle of the reply ({_short(error)})")


# --- sync: urllib3 --------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_sync: tuple[int, dict[str, Any]] | None = None


def _import_urllib3() -> Any:
    try:
        import urllib3
    except ImportError as error:
        raise MissingDependencyError(f"remote endpoints need urllib3: {INSTALL_HINT}") from error
    return urllib3


def _sync_pool(url: str) -> Any:
    """This process's pool for a URL: through the environment's proxy (HTTP_PROXY, NO_PROXY), where there is one."""
    global _sync
    proxy = proxy_of(url)
    with _lock:
        if _sync is None or _sync[0] != os.getpid():
            _sync = (os.getpid(), {})
        pools = _sync[1]
        if proxy not in pools:
            pools[proxy] = _make_pool(proxy)
        return pools[proxy]


def _make_pool(proxy: str) -> Any:
    urllib3 = _import_urllib3()
    options = {"num_pools": 100, "maxsize": _POOL, "block": True}
    if not proxy:
        return _watched(urllib3, urllib3.PoolManager(**options))
    try:
        credentials = urlsplit(proxy)
        signed = f"{unquote(credentials.username or '')}:{unquote(credentials.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=signed) if len(signed) > 1 else None
        return _watched(urllib3, urllib3.ProxyManager(proxy, proxy_headers=headers, **options))
    except (ValueError, urllib3.exceptions.HTTPError):
        failure = OptionError("the proxy in HTTP_PROXY or HTTPS_PROXY must be an http or https address")
    raise failure  # outside `except`: the library's error shows the address


#: What the request that this thread is sending is watched by.
_watching = threading.local()


def _watched(urllib3: Any, manager: Any) -> Any:
    """The manager, with connections that tell the watchdog their socket before they wait for an answer."""

    class Plain(urllib3.connection.HTTPConnection):  # type: ignore[misc]
        def getresponse(self) -> Any:
            _watching.by.socket = self.sock
            return super().getresponse()

    class Secure(urllib3.connection.HTTPSConnection):  # type: ignore[misc]
        def getresponse(self) -> Any:
            _watching.by.socket = self.sock
            return super().getresponse()

    class PlainPool(urllib3.HTTPConnectionPool):  # type: ignore[misc]
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):  # type: ignore[misc]
        ConnectionCls = Secure

    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def _socket_of(response: Any) -> Any:
    """The socket under a reply, whose time limit changes while it is read.

    The connection has given it away where the server is going to close it; then it is under the reply's own file.
    """
    found = getattr(getattr(response, "connection", None), "sock", None)
    raw = getattr(getattr(getattr(response, "_fp", None), "fp", None), "raw", None)
    return found if found is not None else getattr(raw, "_sock", None)


class SyncResponse:
    """The answer to a request: status, headers, then bytes as they arrive."""

    def __init__(self, response: Any, watched: Watched) -> None:
        self._response, self._watched = response, watched
        self._socket = _socket_of(response)
        watched.socket = self._socket if self._socket is not None else watched.socket
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers

    def read(self, seconds: float) -> bytes:
        """The next bytes, b"" at the end of the body.

        Raises:
            TimeoutError: nothing came within the seconds.
            StreamInterruptedError: the connection ended too early.
        """
        if seconds <= 0:
            raise TimeoutError
        if self._socket is not None and self._socket.fileno() >= 0:  # closed where all has arrived
            self._socket.settimeout(seconds)
        urllib3 = _import_urllib3()
        failure: BaseException | None = None
        data = b""
        self._watched.at = time.monotonic() + seconds
        try:
            data = bytes(self._response.read1(_READ, decode_content=False))
        except (urllib3.exceptions.ReadTimeoutError, TimeoutError):
            failure = TimeoutError()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            failure = _cut(error)
        self._watched.at = float("inf")
        if self._watched.late and not data:
            raise TimeoutError
        if failure is not None:
            raise failure  # outside `except`: a library's error can hold what the server echoed
        return data

    def finish(self) -> None:
        """The body was read to its end: the connection can serve again."""
        self._watched.release()
        self._response.release_conn()

    def close(self) -> None:
        """Close the connection at once, so that the server stops; nothing after `finish`."""
        self._watched.release()
        self._response.close()
        self._response.release_conn()


def open_(
    request: HttpRequest, limits: Limits, seconds: float, client: urllib3.PoolManager | None = None
) -> SyncResponse:
    """Send a request and wait up to `seconds` for the headers of the answer.

    Raises:
        RemoteConnectionError: not reached, or closed before the headers.
        RemoteTimeoutError: connect or pool.
        TimeoutError: no headers within the seconds.
    """
    urllib3 = _import_urllib3()
    errors = urllib3.exceptions
    manager = client if client is not None else _sync_pool(request.url)
    patience = urllib3.Timeout(connect=min(limits.connect, max(seconds, 0.001)), read=max(seconds, 0.001))
    watched = _watching.by = watch()
    watched.at = time.monotonic() + seconds
    failure: BaseException
    try:
        response = manager.request(
            request.method, request.url, body=request.body, headers=dict(request.headers), timeout=patience,
            retries=False, redirect=False, preload_content=False, decode_content=False,
            pool_timeout=min(limits.pool, max(seconds, 0.001)),
        )  # fmt: skip
        watched.at = float("inf")
        return SyncResponse(response, watched)
    except errors.NewConnectionError as error:
        failure = _unreachable(error)
    except errors.ConnectTimeoutError:
        failure = _late("connect", limits.connect, seconds)
    except errors.EmptyPoolError:
        failure = _late("pool", limits.pool, seconds)
    except (errors.ReadTimeoutError, TimeoutError):
        failure = TimeoutError()
    except errors.LocationValueError:
        failure = OptionError("base_url is no URL of a host")
    except (errors.HTTPError, OSError, ValueError) as error:
        failure = _unreachable(error)
    except BaseException:  # an interrupt
        watched.release()
        raise
    watched.release()
    if watched.late:
        raise TimeoutError
    raise failure  # outside `except`: a library's error holds the connection, and so the headers


def _late(stage: str, limit: float, seconds: float) -> BaseException:
    """The limit itself has passed, or the rest of the whole call's."""
    return timed_out(stage, limit) if limit <= seconds else TimeoutError()


# --- async: aiohttp -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Shared:
    """One event loop's session, and how many replies are open on it; a retired one is closed with its last reply."""

    session: Any
    process: int
    keeper: Any = None
    open: int = 0
    retired: bool = False

    def give_back(self) -> None:
        self.open -= 1
        if self.retired and self.open <= 0:
            self.close_soon()

    def close_soon(self) -> None:
        """In the session's own loop, without waiting."""
        _closing.add(task := asyncio.get_running_loop().create_task(self.session.close()))
        task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()
#: A session refers to its loop, so entries are taken out by hand.
_sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = weakref.WeakKeyDictionary()


def _import_aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError as error:
        raise MissingDependencyError(f"remote endpoints need aiohttp: {INSTALL_HINT}") from error
    return aiohttp


async def _session() -> _Shared:
    """This event loop's session. It is closed when the loop shuts its async generators down, as asyncio.run does."""
    loop = asyncio.get_running_loop()
    with _lock:
        found = _sessions.get(loop)
    if found is not None and found.process == os.getpid() and not found.session.closed:
        return found
    aiohttp = _import_aiohttp()
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=_POOL, limit_per_host=0, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
    shared = _Shared(session, os.getpid(), _close_with_loop(loop, session))
    await anext(shared.keeper)  # from now on the loop knows it
    with _lock:
        for other in [one for one in _sessions if one.is_closed()]:
            del _sessions[other]
        _sessions[loop] = shared
    return shared


async def _close_with_loop(loop: asyncio.AbstractEventLoop, session: Any) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        with _lock:
            _sessions.pop(loop, None)
        await session.close()


class AsyncResponse:
    """As SyncResponse, natively async. One timer per reply watches the time limits, whatever the number of tokens."""

    def __init__(self, response: aiohttp.ClientResponse, shared: _Shared | None = None) -> None:
        self._response, self._shared = response, shared
        self._loop = asyncio.get_running_loop()
        self._at = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._late = False
        self._broken: BaseException | None = None
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self, seconds: float) -> bytes:
        """As SyncResponse.read."""
        if seconds <= 0:
            raise TimeoutError
        if self._broken is not None:
            raise self._broken
        self._watch(self._loop.time() + seconds)
        failure: BaseException | None = None
        data = b""
        try:
            data = await self._response.content.readany()
        except (OSError, _client_error(), ValueError) as error:
            failure = _cut(error)
            error.__traceback__ = None  # of a closed connection it is one object for the whole process, and would grow
            data = self._left()
        finally:
            self._at = float("inf")
        if self._late and not data:  # closing the connection ends a body that has no length
            raise TimeoutError
        if failure is not None and data:
            self._broken, failure = failure, None
        if failure is not None:
            raise failure  # outside `except`: a library's error can hold what the server echoed
        return data

    def _left(self) -> bytes:
        """What had arrived when the connection broke: aiohttp raises before it gives that out."""
        content = self._response.content
        content.set_exception(None)  # type: ignore[arg-type]
        try:
            return content.read_nowait()
        except Exception:  # noqa: BLE001  # whatever it raises, there is nothing left
            return b""

    def _watch(self, at: float) -> None:
        self._at = at
        if self._timer is None or self._timer.when() > at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._check)

    def _check(self) -> None:
        self._timer = None
        if self._loop.time() < self._at:
            if self._at != float("inf"):
                self._timer = self._loop.call_at(self._at, self._check)
            return
        self._late = True
        self._response.close()

    def finish(self) -> None:
        """As SyncResponse.finish."""
        self._stop_watching()
        self._response.release()

    def close(self) -> None:
        """As SyncResponse.close."""
        self._stop_watching()
        self._response.close()
        if self._shared is not None:
            self._shared.give_back()
            self._shared = None

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _client_error() -> type[Exception]:
    return _import_aiohttp().ClientError  # type: ignore[no-any-return]


async def aopen(
    request: HttpRequest, limits: Limits, seconds: float, client: aiohttp.ClientSession | None = None
) -> AsyncResponse:
    """As `open_`, natively async."""
    aiohttp = _import_aiohttp()
    shared = None if client is not None else await _session()
    session: Any = shared.session if shared is not None else client
    patience = aiohttp.ClientTimeout(total=None, connect=limits.pool + limits.connect, sock_connect=limits.connect)
    started = time.monotonic()
    failure: BaseException
    try:
        async with asyncio.timeout(max(seconds, 0.001)):
            response = await session.request(
                request.method, request.url, data=request.body, headers=dict(request.headers), timeout=patience,
                allow_redirects=False, raise_for_status=False, proxy=proxy_of(request.url) or None,
            )  # fmt: skip
        if shared is not None:
            shared.open += 1
        return AsyncResponse(response, shared)
    except aiohttp.ServerTimeoutError:
        waited = time.monotonic() - started >= limits.pool + 0.9 * limits.connect
        failure = _late(*(("pool", limits.pool) if waited else ("connect", limits.connect)), seconds)
    except TimeoutError:
        failure = TimeoutError()
    except aiohttp.InvalidURL:
        failure = OptionError("base_url is no URL of a host")
    except (aiohttp.ClientError, OSError) as error:
        failure = _unreachable(error)
    except (RuntimeError, ValueError):
        failure = OptionError(
            "the request cannot be sent: a session of your own must be open and of this event loop, and the proxy in "
            "HTTP_PROXY or HTTPS_PROXY must be an http or https address"
        )
    raise failure  # outside `except`: a library's error holds the request, and so the headers


def close_all() -> None:
    """Let go of all connections of this process: idle ones are closed now, others when their reply has ended."""
    global _sync
    with _lock:
        pools = list(_sync[1].values()) if _sync is not None and _sync[0] == os.getpid() else []
        sessions = [(loop, one) for loop, one in _sessions.items() if one.process == os.getpid()]
        _sync = None
        _sessions.clear()
    for pool in pools:
        pool.clear()
    for loop, shared in sessions:
        if loop.is_running():
            loop.call_soon_threadsafe(_retire, shared)


def _retire(shared: _Shared) -> None:
    shared.retired = True
    if shared.open <= 0:
        shared.close_soon()


def _after_fork() -> None:
    """In a forked child: the lock may be held by a thread that is not there; the parent's connections are left."""
    global _lock, _sync
    _inherited.extend([_sync, *_sessions.values()])
    _lock, _sync = threading.Lock(), None
    _sessions.clear()


#: The parent's pools and sessions, kept so that no destructor closes their TLS connections under the parent.
_inherited: list[Any] = []
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
