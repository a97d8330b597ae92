"""Closing async streams of streams. Needed where contextlib's aclosing would fail: when the event loop shuts down.

`asyncio.run` closes every async generator that is still open, all at once. A generator that closes the one inside it
then meets one that is being closed already, and Python raises RuntimeError ("aclose(): asynchronous generator is
already running"). Nothing is lost, so nothing is raised here. No async generator itself, so the loop does not know it.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["aclose", "aclosing"]

_T = TypeVar("_T")


async def aclose(stream: Any) -> None:
    """Close an async generator, unless somebody is closing it at this moment."""
    try:
        await stream.aclose()
    except RuntimeError:
        if not getattr(stream, "ag_running", False):
            raise


class aclosing(Generic[_T]):  # noqa: N801  # named as contextlib's
    """`async with aclosing(stream)`: as contextlib's, by `aclose`."""

    def __init__(self, stream: _T) -> None:
        self._stream = stream

    async def __aenter__(self) -> _T:
        return self._stream

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await aclose(self._stream)
