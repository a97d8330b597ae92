"""A grammar's matcher that also keeps lists from holding an item twice, where their schema says `uniqueItems`.

llguidance knows no such word, and a grammar cannot say it. So the list's items are read as they are written
(`tools.repeats`), and the tokens that would complete an earlier one are taken out of the mask: the item goes on, or is
another. Has llguidance's own methods, as far as they are used here, so that whoever asks a matcher sees no difference.
What is found too late (the same text written with other escapes, a pattern that leaves nothing else) allows no token:
the reply ends there, cut.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from decimal import Decimal
from typing import Any, Final

from ..tools.repeats import Item, Repeats, number

__all__ = ["Unrepeated", "Vocabulary", "Watch"]

_ENDS_NUMBER: Final = re.compile(rb"( ?[0-9.eE+-]*)[,\]]")
_NUMBER: Final = re.compile(rb"[0-9.eE+-]*")
_IN_NUMBER: Final = re.compile(rb" ?[0-9.eE+-]+")
_EXPONENT: Final = re.compile(rb" ?[0-9.+-]*[eE]")
_LITERALS: Final = (b"true", b"false", b"null")


class Vocabulary:
    """What each token writes, in the orders that are asked for. Immutable; threads share it."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.texts = texts
        self._longest = max(map(len, texts), default=0)
        ordered = sorted((text, token) for token, text in enumerate(texts) if text)
        self._ordered, self._tokens = [one for one, _ in ordered], [token for _, token in ordered]
        self.crossing = [token for token, text in enumerate(texts) if b", " in text[:-1] and text[-2:] != b", "]
        #: By what of the text belongs to the number.
        self.ends_number, self.in_number = dict[bytes, list[int]](), dict[bytes, list[int]]()
        for token, text in enumerate(texts):
            if found := _ENDS_NUMBER.match(text):
                self.ends_number.setdefault(found[1], []).append(token)
            elif _IN_NUMBER.fullmatch(text):
                self.in_number.setdefault(text, []).append(token)
        self.exponents = [token for token, text in enumerate(texts) if _EXPONENT.match(text)]

    def from_(self, text: bytes) -> Iterator[int]:
        """The tokens that begin with this text."""
        for place in range(bisect_left(self._ordered, text), len(self._ordered)):
            if not self._ordered[place].startswith(text):
                return
            yield self._tokens[place]

    def towards(self, text: bytes) -> Iterator[int]:
        """The tokens that this text begins with, and that are not all of it."""
        for end in range(1, min(len(text), self._longest + 1)):
            part = text[:end]
            for place in range(bisect_left(self._ordered, part), len(self._ordered)):
                if self._ordered[place] != part:
                    break
                yield self._tokens[place]


class Watch:
    """Finds where a reply's JSON begins and reads it: behind the opener, or what stands in the place of text.

    `repeats` is None as long as there is none.
    """

    def __init__(self, schema: Any, opener: str, text_schema: Any) -> None:
        self._schema, self._opener, self._text_schema = schema, opener.encode(), text_schema
        self._before = b""
        self.repeats: Repeats | None = None if opener else Repeats(schema)

    def copy(self) -> Watch:
        found = Watch.__new__(Watch)
        vars(found).update(vars(self))
        found.repeats = self.repeats and self.repeats.copy()
        return found

    def push(self, text: bytes) -> None:
        if self.repeats is not None:
            self.repeats.push(text)
            return
        self._before += text
        begun = self._before.lstrip()
        if self._opener in self._before and (self._text_schema is None or begun.startswith(self._opener)):
            self.repeats = Repeats(self._schema)
            self.repeats.push(self._before.partition(self._opener)[2])
        elif self._text_schema is not None and not self._opener.startswith(begun):
            self.repeats = Repeats(self._text_schema)
            self.repeats.push(begun)

    @property
    def repeated(self) -> bool:
        return self.repeats is not None and self.repeats.repeated

    def items(self) -> list[Item]:
        return [] if self.repeats is None else list(self.repeats.items())


class Unrepeated:
    """llguidance's matcher and what it cannot see."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary, watch: Watch) -> None:
        self._matcher, self._vocabulary, self._watch = matcher, vocabulary, watch

    @property
    def repeated(self) -> bool:
        """An item stands twice after all."""
        return self._watch.repeated

    def deep_copy(self) -> Unrepeated:
        return Unrepeated(self._matcher.deep_copy(), self._vocabulary, self._watch.copy())

    def is_error(self) -> bool:
        return bool(self._matcher.is_error())

    def is_stopped(self) -> bool:
        return bool(self._matcher.is_stopped())

    def is_accepting(self) -> bool:
        return not self._watch.repeated and bool(self._matcher.is_accepting())

    def stop_reason(self) -> Any:
        return self._matcher.stop_reason()

    def consume_token(self, token: int) -> bool:
        return self.consume_tokens([token])

    def consume_tokens(self, tokens: Sequence[int]) -> bool:
        if not self._matcher.consume_tokens(list(tokens)):
            return False
        for token in tokens:
            self._watch.push(self._vocabulary.texts[token])
        return True

    def try_consume_tokens(self, tokens: Sequence[int]) -> int:
        """How many of them it took."""
        for place, token in enumerate(tokens):
            if self._watch.repeated or self._matcher.try_consume_tokens([token]) != 1:
                return place
            self._watch.push(self._vocabulary.texts[token])
        return len(tokens)

    def compute_ff_tokens(self) -> list[int]:
        """The tokens that must come next, up to one that must not."""
        watch, found = self._watch.copy(), list[int]()
        for token in self._matcher.compute_ff_tokens():
            watch.push(self._vocabulary.texts[token])
            if watch.repeated:
                break
            found.append(token)
        return found

    def compute_bitmask(self) -> bytes:
        return bytes(self._mask(ahead=True))

    def _mask(self, *, ahead: bool) -> Any:
        """A bit for each token; those that nothing may follow are looked for only where it looks ahead."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8).copy()
        if self._watch.repeated:
            bits[:] = 0
        for item in self._watch.items():
            for token in list(self._out(item, bits, ahead=ahead)):
                bits[token >> 3] &= 0xFF ^ (1 << (token & 7))
        return bits

    def _out(self, item: Item, bits: Any, *, ahead: bool) -> Iterator[int]:
        """The tokens that would make it one of the earlier items, or leave it nothing else to be."""
        if item.left is not None:
            yield from (token for token in _set(bits) if self._no_way(token))
            return
        yield from (token for token in self._vocabulary.crossing if _is_set(bits, token) and self._no_way(token))
        near, numbers = set[int](), set[Decimal | float]()
        for one in item.earlier:
            rest = _rest(item, one)
            if (value := _number(one)) is not None:
                numbers.add(value)
            elif rest is not None:
                yield from self._vocabulary.from_(rest)
                towards = list(self._vocabulary.towards(rest))
                decided = one in _LITERALS  # its first letter decides
                near.update(() if decided else towards)
                yield from (token for token in towards if decided and self._vocabulary.texts[token] != b" ")
        if numbers and _NUMBER.fullmatch(item.text):
            yield from self._vocabulary.exponents  # behind 0e nothing would be another number
            yield from _with(item.text, numbers, self._vocabulary.ends_number)
            near.update(_with(item.text, numbers, self._vocabulary.in_number))
        if ahead:
            yield from (token for token in near if _is_set(bits, token) and self._stuck_behind(token))

    def _no_way(self, token: int) -> bool:
        """Whether the token makes an item one of the earlier ones, or one of none that is left."""
        then = self._watch.copy()
        then.push(self._vocabulary.texts[token])
        return then.repeated or any(
            item.left is not None and not any(one.startswith(item.text) for one in item.left) for item in then.items()
        )

    def _stuck_behind(self, token: int) -> bool:
        """Whether nothing may follow this token but what repeats an item."""
        then = self.deep_copy()
        if not then.consume_token(token):
            return True
        forced = then._watch.copy()
        forced.push(bytes(then._matcher.compute_ff_bytes()))
        return forced.repeated or not (then._mask(ahead=False).any() or then.is_accepting())


def _rest(item: Item, whole: bytes) -> bytes | None:
    """What the item lacks to be this one; None where it is another already."""
    if not whole.startswith(item.text):
        return None
    return (b" " if item.behind_comma else b"") + whole[len(item.text) :]


def _with(text: bytes, numbers: Set[Decimal | float], tokens: Mapping[bytes, Sequence[int]]) -> Iterator[int]:
    """The tokens that make it one of the numbers."""
    for part, those in tokens.items():
        if _number(text + part) in numbers:
            yield from those


def _number(text: bytes) -> Decimal | float | None:
    try:
        return number(text.decode()) if text.strip()[-1:].isdigit() else None
    except ValueError:
        return None


def _is_set(bits: Any, token: int) -> bool:
    return token >> 3 < len(bits) and bool(bits[token >> 3] >> (token & 7) & 1)


def _set(bits: Any) -> list[int]:
    """The tokens that are allowed."""
    import numpy as np

    return list(map(int, np.flatnonzero(np.unpackbits(bits, bitorder="little"))))
