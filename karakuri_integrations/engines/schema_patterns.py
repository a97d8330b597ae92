"""Regular expressions of JSON schemas, so said that llguidance holds a reply to them.

Within JSON a character may be escaped, and llguidance (1.9) lets an escaped quotation mark and backslash through every
class that has all control characters, also through `[^"]`. Without the character NUL the class is held; a text that
has one is lost, which no model writes.
"""

from __future__ import annotations

import re
from typing import Final

from .schema_rules import refused

__all__ = ["safe_pattern"]

_PARTS: Final = re.compile(r"\\[\s\S]|\[\^?\]?(?:\\[\s\S]|[^\]\\])*\]")
_CONTROLS: Final = [chr(code) for code in range(32) if chr(code) != "\n"]


def safe_pattern(pattern: str) -> str:
    """The same regular expression, but for NUL.

    Raises:
        UnsupportedSchemaError: a class that lets through what it must not and cannot be said otherwise.
    """
    return _PARTS.sub(lambda found: _safe_class(found.group()), pattern)


def _safe_class(part: str) -> str:
    if part[0] != "[":
        return part
    try:
        one = re.compile(part, re.ASCII)
    except re.error:  # it is for llguidance to say what it makes of it
        return part
    if all(map(one.fullmatch, '"\\')) or not all(map(one.fullmatch, _CONTROLS)):
        return part
    if not part.startswith("[^"):
        raise refused(
            "a class with all control characters must have the quotation mark and the backslash too", "pattern"
        )
    literally = "\\" if part[2] in "-]" else ""  # at the beginning of a class these two are characters
    return f"[^\\x00{literally}{part[2:]}"
