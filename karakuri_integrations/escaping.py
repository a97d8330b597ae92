"""Reversible escaping of template literals in data: U+2060 WORD JOINER after the literal's first character.

A literal that is already escaped gets one joiner more, so escaping is injective and `unescape` undoes it exactly.
Matching is by exact characters: full-width and case variants have other token ids and are left alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["JOINER", "escape", "find", "held_back", "unescape"]

JOINER: Final = "\u2060"


@lru_cache(maxsize=64)
def _pattern(literals: tuple[str, ...], joiners: str) -> re.Pattern[str]:
    """Matches `first character, joiners, rest` of any literal; group 1 is the first character, group 2 the rest."""
    heads = dict.fromkeys(one[0] for one in literals)
    options = []
    for head in heads:
        rests = "|".join(re.escape(one[1:]) for one in literals if one[0] == head)
        options.append(f"(?<={re.escape(head)}){JOINER}{joiners}(?:{rests})")
    return re.compile("|".join(options))


def escape(text: str, literals: tuple[str, ...]) -> tuple[str, int]:
    """The text with every literal escaped one level further, and how many were."""
    if not literals or not any(one[0] in text for one in literals):
        return text, 0
    return _pattern(literals, "*").subn(lambda found: JOINER + found[0], text)


def unescape(text: str, literals: tuple[str, ...]) -> str:
    """The text with every escaped literal taken back one level."""
    if not literals or JOINER not in text:
        return text
    return _pattern(literals, "+").sub(lambda found: found[0][1:], text)


def find(text: str, literals: tuple[str, ...]) -> tuple[int, str] | None:
    """The first literal that stands unescaped in the text, with its offset; None when there is none."""
    places = [(place, one) for one in literals if (place := text.find(one)) >= 0]
    return min(places, default=None)


@lru_cache(maxsize=64)
def _tail(literals: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the end of a text that could still become an escaped literal."""
    options = []
    for one in literals:
        rest = ""
        for character in reversed(one[1:-1]):
            rest = f"(?:{re.escape(character)}{rest})?"
        options.append(f"{re.escape(one[0])}(?:{JOINER}+{rest})?")
    return re.compile(f"(?:{'|'.join(options)})\\Z")


def held_back(text: str, literals: tuple[str, ...]) -> int:
    """How many characters at the end of a stream must wait because they could become an escaped literal."""
    if not literals:
        return 0
    found = _tail(literals).search(text)
    return len(text) - found.start() if found else 0
