"""Calls out of a reply, character by character: text before the opener, then each call's name and arguments.

Made for JSON as a grammar lets it through, and forgiving otherwise: what is no call becomes one with an `error`, its
text kept, and never an exception.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from ..conversation import CallDelta, CallForm, ToolCall

__all__ = ["CallReader"]

_CUT: Final = "the reply ended before the call was complete"
_NO_JSON: Final = "the reply holds no JSON list of calls"
_NO_OBJECT: Final = "the call's arguments are no JSON object"


class CallReader:
    """Reads one reply. Feed it every text; it gives back what is plain text and the fragments of calls.

    `taken_back` is what undoes the escaping of data in the calls (a text, and whether it is the last one). The opener
    is looked for in the text as it comes: one that is escaped is data that the model repeats, and opens nothing.
    """

    def __init__(self, form: CallForm, taken_back: Callable[[str, bool], str] = lambda text, _: text) -> None:
        self._form, self._taken_back = form, taken_back
        self._buffer = ""
        self._list: _List | None = None

    @property
    def held(self) -> str:
        """What was received and not given out as text: the beginning of an opener, or the calls as they came."""
        if self._list is None:
            return self._buffer
        return ("" if self._form.begun else self._form.opener) + self._list.received

    @property
    def opened(self) -> bool:
        """Whether the reply has come to its calls."""
        return self._form.begun or self._list is not None

    def push(self, text: str, *, last: bool) -> tuple[str, list[CallDelta]]:
        """(plain text, fragments of calls) that this text completes."""
        if self._list is not None:
            return "", self._list.push(self._taken_back(text, last))
        whole = self._buffer + text
        if self._form.begun:
            return "", self._begin(whole, last=last)
        place = whole.find(self._form.opener)
        if place >= 0:
            self._list, self._buffer = _List(self._form), ""
            return whole[:place], self._list.push(self._taken_back(whole[place + len(self._form.opener) :], last))
        keep = 0 if last else _overlap(whole, self._form.opener)
        cut = len(whole) - keep
        self._buffer = whole[cut:]
        return whole[:cut], []

    def _begin(self, whole: str, *, last: bool) -> list[CallDelta]:
        """The prompt ends with the opener, which a server or a script may repeat."""
        begun, opener = whole.lstrip(), self._form.opener.rstrip()
        if opener.startswith(begun) and begun != opener and not last:
            self._buffer = whole
            return []
        self._list, self._buffer = _List(self._form), ""
        return self._list.push(self._taken_back(begun.removeprefix(opener), last))

    def calls(self) -> tuple[ToolCall, ...]:
        """Every call of the reply so far, whole or with an `error`."""
        return () if self._list is None else self._list.calls()


def _overlap(text: str, opener: str) -> int:
    """The length of the longest end of `text` that begins the opener."""
    return next((n for n in range(min(len(opener) - 1, len(text)), 0, -1) if text.endswith(opener[:n])), 0)


@dataclass
class _Call:
    """A call being read, as places in the text: its own, and those of the arguments' JSON."""

    begins: int
    ends: int | None = None
    name: str = ""
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    arguments: int | None = None
    arguments_end: int | None = None
    named: bool = False
    given: int = 0


class _List:
    """A JSON list of calls, scanned once: depth, strings, and the key and value being read in the call that is open."""

    def __init__(self, form: CallForm) -> None:
        self._name_key, self._arguments_key = form.name_key, form.arguments_key
        self._closer = form.closer.strip()
        self.received = ""
        self._at = 0
        self._depth = 0
        self._string: int | None = None
        self._escaped = False
        self._key = ""
        self._expects_value = False
        self._value: int | None = None
        self._over = False
        self._calls: list[_Call] = []

    def push(self, text: str) -> list[CallDelta]:
        self.received += text
        while self._at < len(self.received) and not self._over:
            if self._string is not None:
                self._in_string(self.received[self._at])
            else:
                self._step(self.received[self._at])
            self._at += 1
        return [delta for place, call in enumerate(self._calls) for delta in self._new(place, call)]

    def _step(self, character: str) -> None:
        if character in "[{":
            self._open(character)
        elif character in "]}":
            self._close()
        elif character == '"':
            self._begin_value()
            self._string = self._at
        elif character == ":" and self._depth == 2:
            self._expects_value = True
        elif character == "," and self._depth == 2:
            self._end_value(self._at)
            self._expects_value = False
        elif not character.isspace():
            self._begin_value()

    def _in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            literal = self.received[self._string : self._at + 1]
            self._string = None
            if self._depth == 2 and not self._expects_value:
                self._key = _text(literal)
            elif self._depth == 2:
                self._end_value(self._at + 1)

    def _open(self, character: str) -> None:
        if self._depth == 0 and character == "{":
            self._depth = 1  # one call, without its list
        self._begin_value()
        self._depth += 1
        if self._depth == 2 and character == "{":
            self._calls.append(_Call(self._at))
            self._key, self._expects_value, self._value = "", False, None

    def _close(self) -> None:
        if self._depth == 2:
            self._end_value(self._at)
            if self._calls:
                self._calls[-1].ends = self._at + 1
        self._depth -= 1
        if self._depth == 2:
            self._end_value(self._at + 1)
        self._over = self._depth <= 0

    def _begin_value(self) -> None:
        if self._depth != 2 or not self._expects_value or self._value is not None:
            return
        self._value = self._at
        if self._key == self._arguments_key and self._calls and self._calls[-1].arguments is None:
            self._calls[-1].arguments = self._calls[-1].given = self._at

    def _end_value(self, end: int) -> None:
        if self._value is None or not self._calls:
            return
        call, begins, self._value = self._calls[-1], self._value, None
        if self._key == self._name_key:
            call.name = _text(self.received[begins:end])
        elif call.arguments == begins:
            call.arguments_end = end

    def _new(self, place: int, call: _Call) -> Iterator[CallDelta]:
        """What became known of a call since the last time."""
        if not call.name:
            return
        if not call.named:
            call.named = True
            yield CallDelta(place, call.name, call.id)
        end = self._at if call.arguments_end is None else call.arguments_end
        if call.arguments is not None and end > call.given:
            yield CallDelta(place, arguments=self.received[call.given : end])
            call.given = end

    def calls(self) -> tuple[ToolCall, ...]:
        if self._calls:
            return tuple(self._finished(call) for call in self._calls)
        text = self.received.strip().removesuffix(self._closer).strip()
        return (ToolCall("", text, _Call(0).id, _NO_JSON if text else _CUT),)

    def _finished(self, call: _Call) -> ToolCall:
        if not call.name:
            why = _CUT if call.ends is None else "the call has no name"
            return ToolCall("", self.received[call.begins : call.ends], call.id, why)
        if call.arguments is None:
            return ToolCall(call.name, "{}" if call.ends else "", call.id, None if call.ends else _CUT)
        arguments = self.received[call.arguments : call.arguments_end]
        error = None if _is_object(arguments) else _CUT if call.ends is None else _NO_OBJECT
        return ToolCall(call.name, arguments, call.id, error)


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        return literal.strip('"')


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except (ValueError, RecursionError):
        return False
