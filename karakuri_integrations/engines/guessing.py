"""Guesses of the next tokens, which a model then reads in one pass: what makes one, and how far it is trusted.

After Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023
(https://arxiv.org/abs/2211.17192). What is generated stays the same: at each place the token is chosen from the model's
own scores, and a guess is kept as long as it is that token. Knows ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["MOST_GUESSES", "Guesser", "Trust"]

#: Tokens guessed at a time, by any guesser.
MOST_GUESSES: Final = 16
_PATIENCE: Final = 2  # guesses that are all wrong, after which it rests
_REST: Final = 32  # tokens


class Guesser(Protocol):
    """Guesses for one reply."""

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` ids that may follow `ids`; often none."""
        ...

    def learn(self, length: int, guessed: int, right: int) -> None:
        """How the last guess went; `length` is how many ids there are now."""
        ...


class Trust:
    """How many tokens to guess: more while the guesses are right, fewer while they are not, none for a while after."""

    def __init__(self, first: int, most: int) -> None:
        self._least, self._most = max(1, first // 2), most
        self._size = first
        self._misses = 0
        self._rest_until = 0

    def size(self, length: int, most: int) -> int:
        """Tokens to guess behind `length` ids."""
        return 0 if length < self._rest_until else min(self._size, most)

    def learn(self, length: int, guessed: int, right: int) -> None:
        if right == guessed:
            self._size = min(2 * self._size, self._most)
        elif right < guessed // 2:
            self._size = max(self._least, self._size // 2)
        self._misses = 0 if right else self._misses + 1
        if self._misses >= _PATIENCE:
            self._misses, self._rest_until = 0, length + _REST
