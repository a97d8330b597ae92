"""The shortest end of a reply that is held to a grammar: which tokens lead from where it is to where it may stop.

Knows a matcher's masks and what each token writes. A greedy walk: at each choice the token that closes the most; one
mask a choice. Where that leads nowhere, as in a string whose pattern wants certain characters, a search in breadth
over one character of each kind finds the way out, in which two states that allow the same tokens count as one. Neither
promises the very shortest way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["Endings", "allowed_tokens"]

_NEVER: Final = 1 << 20
_LAST: Final = 1 << 10
#: The greedy walk leads nowhere when it made one choice so often: a string that it cannot close that way.
_REPEATED: Final = 100
_LONGEST_NUMBER: Final = 24
#: The search gives up after it looked at so many states.
_STATES: Final = 3000
#: Ranks up to here close a string, a list or an object, or end a value.
_CLOSING: Final = 21
#: Letters of true, false, null and of exponents: outside of strings JSON has no other.
_LITERAL: Final = b"truefalsnE"
_SINGLE: Final = (b",", b'"', b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9")


def allowed_tokens(matcher: Any, width: int) -> Any:
    """Which tokens the matcher allows: bool, one per logit."""
    import numpy as np

    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    return np.unpackbits(bits, bitorder="little")[:width].view(bool)


class Endings:
    """Finds ends for one vocabulary; immutable, so threads can share it. `texts`: what each token writes."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        import numpy as np

        self._outside = np.array([_rank(one) for one in texts], np.int32)
        self._inside = np.array([_rank_in_string(one) for one in texts], np.int32)
        self._words = np.array([_word(one) for one in texts], bool)
        self._digits = np.array([int(one) if len(one) == 1 and one.isdigit() else -1 for one in texts], np.int8)
        self._kinds = np.array([_kind(one) for one in texts], np.int16)
        self._single = self._kinds > 0

    def shortest(self, matcher: Any, most: int) -> list[int] | None:
        """A way of at most `most` tokens to where the grammar may end, or None. The matcher stays as it is."""
        at, path = matcher.deep_copy(), list[int]()
        while True:
            at, walked = self._walk(at, most - len(path))
            path += walked
            if len(path) > most or at.is_error():
                return None
            if at.is_accepting():
                return path
            out = self._way_out(at, most - len(path))
            if not out or not at.consume_tokens(out):
                return None
            path += out

    def _walk(self, at: Any, most: int) -> tuple[Any, list[int]]:
        """Greedily on, to the end or to where the same choice would be made again and again; there and the way."""
        path, last, times, before = list[int](), 0, 0, at
        while not at.is_accepting() and not at.is_error() and len(path) <= most:
            step = list(at.compute_ff_tokens()) or self._soonest(at, last)
            if not step:
                break
            digits = self._digits[step[0]] >= 0 and self._digits[last] >= 0
            if len(step) == 1 and (step[0] == last or digits):
                times += 1
            else:
                times, before = 0, at.deep_copy()
            last = step[-1]
            if times >= (_LONGEST_NUMBER if digits else _REPEATED):
                return before, path[:-times]
            if not at.consume_tokens(step):
                break
            path += step
        return at, path

    def _soonest(self, matcher: Any, last: int = 0) -> list[int]:
        """Of the allowed tokens the one that gets to the end the soonest; not the same digit twice, as 0.000... is."""
        import numpy as np

        mask = allowed_tokens(matcher, len(self._kinds))
        ranks = np.where(mask, self._inside if (mask & self._words).any() else self._outside, _NEVER)
        if self._digits[last] >= 0:
            ranks += np.where(self._digits == self._digits[last], _LAST, 0)
        best = int(ranks.argmin())
        return [best] if mask[best] and ranks[best] < _NEVER else []

    def _way_out(self, matcher: Any, most: int) -> list[int] | None:
        """The tokens behind which the greedy walk closes what it is in."""
        seen = set[tuple[bytes, ...]]()
        todo = deque([(list[int](), matcher)])
        for _ in range(_STATES):
            if not todo:
                break
            path, at = todo.popleft()
            state = at.compute_bitmask(), self._kinds[path[-2:]].tobytes()
            if state in seen or at.is_error() or len(path) > most:
                continue
            seen.add(state)
            if path and (at.is_accepting() or self._closes(at)):
                return path
            todo.extend(([*path, token], then) for token, then in self._steps(at, every=not path))
        return None

    def _closes(self, matcher: Any) -> bool:
        step = self._soonest(matcher)
        return bool(step) and min(self._inside[step[0]], self._outside[step[0]]) <= _CLOSING

    def _steps(self, matcher: Any, *, every: bool) -> list[tuple[int, Any]]:
        """Where the grammar can go from here by one character of each kind, then by every letter of ASCII."""
        import numpy as np

        mask = allowed_tokens(matcher, len(self._kinds))
        few = np.flatnonzero(mask & self._single)
        ones = few[np.unique(self._kinds[few], return_index=True)[1]] if len(few) else np.flatnonzero(mask)[:8]
        found = []
        for token in [*map(int, ones), *map(int, few[self._kinds[few] < 3] if every else ())]:
            then = matcher.deep_copy()
            if then.consume_token(token):
                found.append((token, then))
        return found


def _kind(text: bytes) -> int:
    """Of one character, as patterns tell them apart: a number for each large kind, digit and sign; else 0."""
    try:
        character = text.decode()
    except UnicodeDecodeError:
        return 0
    if len(character) != 1 or character < " " or character == "\\":  # a backslash begins an escape
        return 0
    if character.isascii():
        letter = 1 if character.islower() else 2 if character.isupper() else 0
        return letter or (10 if character.isdigit() else 20) + ord(character)
    if "\u3040" <= character < "\u3100":
        return 3 if character < "\u30a0" else 4  # hiragana, katakana
    return 5 if character.isalpha() else 6


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
