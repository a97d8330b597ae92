"""Calls out of a reply, character by character: text before the opener, then each call's name and arguments.

Made for JSON as a grammar lets it through, and forgiving otherwise: what is no call becomes one with an `error`, its
text kept, and never an exception.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from ..conversation import CallDelta, CallForm, ToolCall
from .repeats import repeats_in
from .schemas import shown_place, tools_in
from .validation import loads, misfit

__all__ = ["CallReader"]

_CUT: Final = "the reply ended before the call was complete"
_NO_JSON: Final = "the reply holds no JSON list of calls"
_NO_OBJECT: Final = "the call's arguments are no JSON object"
_TWICE: Final = "a list of the call's arguments holds an item twice; its schema wants each once"
_MORE: Final = "the reply goes on after its list of calls"


class CallReader:
    """Reads one reply. Feed it every text; it gives back what is plain text and the fragments of calls.

    `taken_back` is what undoes the escaping of data in the calls (a text, and whether it is the last one). The opener
    is looked for in the text as it comes: one that is escaped is data that the model repeats, and opens nothing.
    `schema` is that of the list of calls; of its words `uniqueItems` is looked at again, which not every server holds,
    and all of them where a server held the reply by means of its own.
    """

    def __init__(
        self, form: CallForm, taken_back: Callable[[str, bool], str] = lambda text, _: text, schema: str = ""
    ) -> None:
        self._form, self._taken_back = form, taken_back
        self._schema = schema
        self._mark = form.opener.rstrip()
        self._buffer = self._opener = ""
        self._list: _List | None = None

    @property
    def held(self) -> str:
        """What was received and not given out as text: the beginning of an opener, or the calls as they came."""
        return self._buffer if self._list is None else self._opener + self._list.received

    @property
    def opened(self) -> bool:
        """Whether the reply has come to its calls."""
        return self._list is not None

    def push(self, text: str, *, last: bool) -> tuple[str, list[CallDelta]]:
        """(plain text, fragments of calls) that this text completes."""
        if self._list is not None:
            return "", self._list.push(self._taken_back(text, last))
        whole = self._buffer + text
        found = self._found(whole, last=last)
        if found is not None:
            begins, ends = found
            self._list, self._buffer, self._opener = _List(self._form), "", whole[begins:ends]
            before = "" if self._form.begun and not whole[:begins].strip() else whole[:begins]
            return before, self._list.push(self._taken_back(whole[ends:], last))
        cut = len(whole) - (0 if last else self._waiting(whole))
        self._buffer = whole[cut:]
        return whole[:cut], []

    def _found(self, whole: str, *, last: bool) -> tuple[int, int] | None:
        """Where the opener begins and ends: as it is written, or without its line feed and right before a list."""
        found = _pattern(self._form.opener).search(whole)
        if found or not self._form.begun:
            return found.span() if found else None
        # The prompt ends with the opener: what comes is the list, unless a server or a script repeats it.
        start = whole.lstrip()
        if last or (start[:1] in ("[", "{") and not self._mark.startswith(start)):
            place = max(0, min((at for at in map(whole.find, "[{") if at >= 0), default=0))
            return place, place
        return None

    def _waiting(self, whole: str) -> int:
        """How many characters at the end could still become an opener; all where nothing but calls is expected."""
        if self._form.begun:
            return len(whole)
        place = whole.rfind(self._mark)
        if place >= 0 and whole[place + len(self._mark) :].strip() in ("", "["):
            return len(whole) - place
        return _overlap(whole, self._mark)

    def calls(self, *, held: bool = False) -> tuple[ToolCall, ...]:
        """Every call of the reply so far, whole or with an `error`. `held`: by means of the server's own."""
        found = () if self._list is None else self._list.calls()
        if '"uniqueItems"' in self._schema:
            found = tuple(map(self._without_repeats, found))
        if held and self._schema:
            schema = loads(self._schema)
            wanted = dict(tools_in(schema))
            found = tuple(_fitted(call, wanted.get(call.name), schema) for call in found)
        return found

    def _without_repeats(self, call: ToolCall) -> ToolCall:
        if call.error is not None:
            return call
        keys = self._form.name_key, self._form.arguments_key
        text = f'[{{"{keys[0]}": {json.dumps(call.name)}, "{keys[1]}": {call.arguments}}}]'
        return replace(call, error=_TWICE) if repeats_in(json.loads(self._schema), text) else call


def _fitted(call: ToolCall, wanted: Any, root: Any) -> ToolCall:
    """The call, with an error where its arguments do not fit their schema."""
    found = None if call.error is not None else misfit(loads(call.arguments), wanted, root)
    if found is None:
        return call
    word, place = found
    where = shown_place(place, root) or "the top"
    return replace(call, error=f"the call's arguments do not fit their schema ({word!r} at {where})")


@lru_cache(maxsize=16)
def _pattern(opener: str) -> re.Pattern[str]:
    return re.compile(f"{re.escape(opener)}|{re.escape(opener.rstrip())}(?=\\s*(?:\\[\\s*)?{{)")


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
        self._closer, self._most = form.closer.strip(), form.most
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
        if self._key == self._name_key and not call.name and self.received[begins] == '"':
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
            rest = self.received[self._at :].strip() if self._over else ""
            more = rest.removesuffix(self._closer).strip() if self._closer else rest
            found = tuple(self._finished(call, place) for place, call in enumerate(self._calls))
            return (*found, ToolCall("", more, _Call(0).id, _MORE)) if more else found
        text = self.received.strip().removesuffix(self._closer).strip()
        return (ToolCall("", text, _Call(0).id, _NO_JSON if text else _CUT),)

    def _finished(self, call: _Call, place: int) -> ToolCall:
        if not call.name:
            why = _CUT if call.ends is None else "the call has no name"
            return ToolCall("", self.received[call.begins : call.ends], call.id, why)
        if call.arguments is None:
            return ToolCall(call.name, "{}" if call.ends else "", call.id, None if call.ends else _CUT)
        arguments = self.received[call.arguments : call.arguments_end]
        error = None if _is_object(arguments) else _CUT if call.ends is None else _NO_OBJECT
        if error is None and self._most is not None and place >= self._most:
            error = f"only {self._most} call was asked for"
        return ToolCall(call.name, arguments, call.id, error)


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError:
        return literal.strip('"')


def _is_object(text: str) -> bool:
    """Whether it is JSON of an object, and every text in it can be written again."""
    try:
        value = json.loads(text, strict=False, parse_constant=_refused)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _refused(name: str) -> float:
    raise ValueError(name)
