"""Closing async streams of streams, also when the event loop shuts down.

`asyncio.run` closes every async generator that it knows and that is still open, all at once. Of two generators one of
which closes the other, one then meets what is being closed already, and Python raises or reports a RuntimeError
("aclose(): asynchronous generator is already running"). So the loop gets to know only the outermost one, which the
caller holds: it closes all that lie inside.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Owned", "aclosing"]

_T = TypeVar("_T")


class Owned(AsyncGenerator[_T, None]):
    """An async generator, not started yet, of which the event loop is not told: whoever makes this closes it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._started = False

    def __anext__(self) -> Any:
        if self._started:
            return self._stream.__anext__()
        return self._untold(self._stream.__anext__)

    def asend(self, value: None) -> Any:
        return self._stream.asend(value) if self._started else self._untold(self._stream.asend, value)

    def athrow(self, *error: Any) -> Any:
        return self._stream.athrow(*error) if self._started else self._untold(self._stream.athrow, *error)

    async def aclose(self) -> None:
        """Close it, unless somebody is closing it at this moment."""
        try:
            await self._stream.aclose()
        except RuntimeError:
            if not getattr(self._stream, "ag_running", False):
                raise

    def _untold(self, step: Any, *given: Any) -> Awaitable[_T]:
        # Python calls the hooks of the running loop where a generator's first step is asked for, before it is awaited.
        self._started = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=None)
        try:
            return step(*given)  # type: ignore[no-any-return]
        finally:
            sys.set_asyncgen_hooks(*hooks)


class aclosing(Generic[_T]):  # noqa: N801  # named as contextlib's
    """`async with aclosing(stream) as own`: as contextlib's, and `own` is the stream to iterate, an Owned one."""

    def __init__(self, stream: _T) -> None:
        self._stream: Owned[Any] = stream if isinstance(stream, Owned) else Owned(stream)

    async def __aenter__(self) -> _T:
        return self._stream  # type: ignore[return-value]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.aclose()
