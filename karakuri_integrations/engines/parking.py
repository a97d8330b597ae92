"""Replies that wait for memory in the midst of being made.

Each joins a batch when there is room for it, but together they can outgrow the memory: then the youngest leave their
rows. One that waits has all it has made, its random numbers and its grammar's state, so that its consumer sees a pause
and nothing else. It comes back before any new reply joins, the oldest first, and reads its ids again where they were
not kept. All that wait are younger than all that go on. Who leaves and who comes back is `batching`'s.
"""

from __future__ import annotations

from math import inf
from typing import Final, Generic, TypeVar

__all__ = ["Parking"]

RowT = TypeVar("RowT")

_LESS: Final = 0.75  # of what did not fit is tried from then on
_MORE: Final = 1.0003  # per pass: what did not fit is tried again after a thousand of them


class Parking(Generic[RowT]):
    """`rows` are those that wait, the oldest first."""

    def __init__(self) -> None:
        self.rows: list[RowT] = []
        self._found = inf

    def put(self, row: RowT) -> None:
        """It waits. It is older than all that wait already."""
        self.rows.insert(0, row)

    def room(self, estimated: int) -> int:
        """Tokens to make room for at most: what was estimated when the model was loaded, or what was found since."""
        return int(min(estimated, self._found))

    def was_full(self, tokens: int) -> None:
        """So many did not fit, whatever was estimated; others may use the same device."""
        self._found = min(self._found, _LESS * tokens)

    def stepped(self, *, idle: bool) -> None:
        """A pass was made. Little by little more is tried again, and all of it when no reply is being made."""
        self._found = inf if idle else self._found * _MORE
