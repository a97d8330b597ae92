"""Server-sent events and JSON lines, decoded from bytes as they arrive. Pure and push-based; knows no JSON, no server.

Follows the WHATWG event-stream grammar (https://html.spec.whatwg.org/multipage/server-sent-events.html): lines end with
LF, CR or CRLF and nothing else, so U+2028 or U+0085 inside a text never splits an event. Two things are taken that the
grammar would drop, because servers send them: a last event without its blank line (llama.cpp ends so), and the field
`error:` (llama.cpp until 2025-09).
"""

from __future__ import annotations

from typing import Final, TypeAlias

__all__ = ["EventTooLargeError", "Lines", "Raw", "ServerSentEvents"]

_BOM: Final = b"\xef\xbb\xbf"
_LIMIT: Final = 8 * 1024 * 1024

#: (event name, data); the name is "" for an ordinary event.
Raw: TypeAlias = tuple[str, bytes]


class EventTooLargeError(Exception):
    """One event exceeds the limit in bytes."""


class _Reader:
    """Bytes to whole lines; at most one line is held back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tail = b""
        self._after_cr = False
        self._begun = False

    def lines(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes."""
        data = self._tail + chunk if self._tail else chunk
        if not self._begun:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._tail = data
                return []
            self._begun = True
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, newline, self._tail = data.rpartition(b"\n")
        if len(self._tail) > self._limit:
            raise EventTooLargeError
        return head.split(b"\n") if newline else []

    def rest(self) -> bytes:
        """What stands after the last line end."""
        rest, self._tail = self._tail, b""
        return rest


class ServerSentEvents:
    """Decodes one event stream. `push` gives the events that a chunk completes, `end` what the end of it leaves."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._reader = _Reader(limit)
        self._limit = limit
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def push(self, chunk: bytes) -> list[Raw]:
        """The events that this chunk completes.

        Raises:
            EventTooLargeError: an event exceeds the limit.
        """
        found: list[Raw] = []
        for line in self._reader.lines(chunk):
            if not line:
                if self._data or self._name == "error":
                    found.append(self._take())
                else:  # an event without data is none, by the grammar
                    self._name = ""
            else:
                self._field(line)
        return found

    def end(self) -> list[Raw]:
        """The last event, where it only lacks its blank line or line end."""
        rest = self._reader.rest()
        if rest:
            self._field(rest)
        return [self._take()] if self._data else []

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._size += len(value)
            if self._size > self._limit:
                raise EventTooLargeError
            self._data.append(value)
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")[:40]
        elif name == b"error":
            self._name = "error"
            self._data.append(value)

    def _take(self) -> Raw:
        event = self._name, b"\n".join(self._data) if len(self._data) != 1 else self._data[0]
        self._name, self._data, self._size = "", [], 0
        return event


class Lines:
    """JSON lines: every line that is not blank is one event."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self._reader = _Reader(limit)

    def push(self, chunk: bytes) -> list[Raw]:
        """As `ServerSentEvents.push`."""
        return [("", line) for line in self._reader.lines(chunk) if line.strip()]

    def end(self) -> list[Raw]:
        """A last line without its line end."""
        rest = self._reader.rest()
        return [("", rest)] if rest.strip() else []
