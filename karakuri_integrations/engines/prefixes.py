"""What was read before: keys and values of earlier prompts and replies, found by the longest common beginning.

Keys and values depend on the tokens before them only, so whatever begins with the same ids can go on from them. The
least recently used ones make room for new ones. Knows ids and opaque tensors; no model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Kept", "Prefixes", "common"]


@dataclass(frozen=True, repr=False)
class Kept:
    """The ids of one row and their keys and values, as `KeyValues.taken` gives them."""

    ids: Any
    scope: Hashable
    values: list[Any]

    @property
    def bytes(self) -> int:
        return int(self.ids.nbytes) + sum(int(one.nbytes) for one in self.values)


class Prefixes:
    """A store of at most `budget` bytes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Kept] = OrderedDict()
        self._next = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, ids: Sequence[int], scope: Hashable = None) -> tuple[Kept | None, int]:
        """What shares the longest beginning with `ids`, and how many tokens of it; at most all but the last one.

        A model makes a token from the one before it, so at least the last token of a prompt has to be read again.
        """
        wanted = np.asarray(ids[:-1], np.int64)
        best, length = -1, 0
        for number, one in self._kept.items():
            if one.scope == scope and len(one.ids) > length and (found := common(one.ids, wanted)) > length:
                best, length = number, found
        if best < 0:
            return None, 0
        self._kept.move_to_end(best)
        return self._kept[best], length

    def keep(self, ids: Sequence[int], values: list[Any], budget: int, scope: Hashable = None) -> None:
        """Keep a row, in place of those that are its beginnings, and no more than `budget` bytes in all."""
        new = Kept(np.asarray(ids, np.int64), scope, values)
        if new.bytes > budget:
            return
        for number, one in list(self._kept.items()):
            if one.scope == scope and len(one.ids) <= len(new.ids) and common(one.ids, new.ids) == len(one.ids):
                self._drop(number)
        while self.bytes + new.bytes > budget:
            self._drop(next(iter(self._kept)))
        self._kept[self._next] = new
        self._next += 1
        self.bytes += new.bytes

    def covers(self, ids: Sequence[int], scope: Hashable = None) -> bool:
        """Whether something that is kept begins with all of these ids."""
        wanted = np.asarray(ids, np.int64)
        return any(one.scope == scope and common(one.ids, wanted) == len(wanted) for one in self._kept.values())

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0

    def _drop(self, number: int) -> None:
        self.bytes -= self._kept.pop(number).bytes


def common(first: Any, second: Any) -> int:
    """How many ids two arrays begin with in common."""
    size = min(len(first), len(second))
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if len(differ) else size
