"""The shortest end of a reply that is held to a grammar: which tokens lead from where it is to where it may stop.

Knows a matcher's masks and what each token writes. A greedy walk: at each choice the token that closes the most. It is
not always the very shortest way, and needs one mask a choice, most of which are the same few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["Endings"]

_LONGEST: Final = 1024
_NEVER: Final = 1 << 20
#: Letters of true, false, null and of exponents: outside of strings JSON has no other.
_LITERAL: Final = b"truefalsnE"
_SINGLE: Final = (b",", b'"', b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9")


class Endings:
    """Finds ends for one vocabulary; immutable, so threads can share it.

    Args:
        texts: what each token writes.
        mask: fills in which tokens a matcher allows.
    """

    def __init__(self, texts: Sequence[bytes], mask: Callable[[Any], Any]) -> None:
        import numpy as np

        self._outside = np.array([_rank(one) for one in texts], np.int32)
        self._inside = np.array([_rank_in_string(one) for one in texts], np.int32)
        self._words = np.array([_word(one) for one in texts], bool)
        self._mask = mask

    def shortest(self, matcher: Any) -> list[int] | None:
        """A short way to where the grammar may end; None where none was found. The matcher stays as it is."""
        matcher, path = matcher.deep_copy(), list[int]()
        while len(path) < _LONGEST:
            if matcher.is_error():
                return None
            if matcher.is_accepting():
                return path
            step = list(matcher.compute_ff_tokens()) or self._soonest(matcher)
            if not step or not matcher.consume_tokens(step):
                return None
            path += step
        return None

    def _soonest(self, matcher: Any) -> list[int]:
        """Of the allowed tokens the one that gets to the end the soonest."""
        import numpy as np

        mask = self._mask(matcher)
        ranks = self._inside if (mask & self._words).any() else self._outside
        best = int(np.where(mask, ranks, _NEVER).argmin())
        return [best] if mask[best] and ranks[best] < _NEVER else []


def _word(text: bytes) -> bool:
    """Whether it can only stand in a string."""
    return (text[:1].isalpha() and text[0] not in _LITERAL) or text[:1] >= b"\x80"


def _rank(text: bytes) -> int:
    """Outside of strings: closing brackets, a comma, a quote, a digit; of other tokens those that get further."""
    if not text:
        return _NEVER
    if not text.strip(b"]}"):
        return 16 - min(len(text), 16)
    return 20 + _SINGLE.index(text) if text in _SINGLE else 100 - min(len(text), 16)


def _rank_in_string(text: bytes) -> int:
    """A quote, with closing brackets where one token has both; of other tokens those that get further."""
    if not text:
        return _NEVER
    if text[:1] == b'"' and not text[1:].strip(b"]}"):
        return 16 - min(len(text), 16)
    return 100 - min(len(text), 16)
