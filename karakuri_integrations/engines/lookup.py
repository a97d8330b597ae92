"""Prompt lookup: what followed the last few tokens the last time they stood in the text is a guess at what follows now.

After Saxena, "Prompt Lookup Decoding", 2023 (https://github.com/apoorvumang/prompt-lookup-decoding). The guesses are
read together with the last token in one pass; those that the model would have chosen are kept. Knows ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .guessing import MOST_GUESSES, Trust

__all__ = ["Lookup"]

_GRAM: Final = 3  # so many tokens have to be the same
_FIRST: Final = 4  # tokens guessed at first


class Lookup:
    """A Guesser. Give it all ids at each step; it reads each once."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # a gram to the place behind it, the last one
        self._seen = 0
        self._trust = Trust(_FIRST, MOST_GUESSES)

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`; often none."""
        self._read(ids)
        size = self._trust.size(len(ids), most)
        place = self._after.get(tuple(ids[-_GRAM:])) if size > 0 else None
        return list(ids[place : place + size]) if place is not None else []

    def _read(self, ids: Sequence[int]) -> None:
        """Note the grams that end before the last token: the last one's own place is no guess."""
        for end in range(max(self._seen, _GRAM), len(ids)):
            self._after[tuple(ids[end - _GRAM : end])] = end
        self._seen = max(self._seen, len(ids))

    def learn(self, length: int, guessed: int, right: int) -> None:
        """How a guess went; `length` is how many ids there are now."""
        self._trust.learn(length, guessed, right)
