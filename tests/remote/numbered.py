"""Streams whose every event says whose it is and which: loss, repetition and mixing can be counted.

A question carries, as JSON in its text, which stream it asks for, how many events, at what pace and with which fault; the
server reads it there, so one server without state of its own answers any number of streams. Knows which end each fault
must have; sockets are `loopback`'s.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from loopback import HTML, JSON, RESET, Reply, Request
from wires import DONE, Wire, sse, wire_of

__all__ = ["FAULTS", "Fault", "Question", "answer"]

_ASKED = re.compile(r'\{"stream": .*?\}')


@dataclass(frozen=True)
class Question:
    """What one stream is asked for. `after`: events before the fault; `pace`: seconds between two events."""

    stream: str
    count: int = 50
    pace: float = 0.0
    fault: str = ""
    after: int = 0

    @property
    def prompt(self) -> str:
        return f"番号付きの答えをください。{json.dumps(asdict(self))}"

    def text(self, count: int | None = None) -> str:
        """What the first events say; all of them without a count."""
        return "".join(self.piece(number) for number in range(self.count if count is None else count))

    def piece(self, number: int) -> str:
        return f"{self.stream}:{number:03d}富|"

    @property
    def partial(self) -> str:
        """What the fault leaves of the text."""
        return self.text(self.after) if FAULTS[self.fault].midway else ""


def asked(request: Request) -> Question:
    """The question in a request."""
    found = _ASKED.search(request.prompt)
    assert found, "no question in the prompt"
    return Question(**json.loads(found.group()))


@dataclass(frozen=True)
class Fault:
    """What the server does and what the caller must get: one of these classes, or None for the whole text.

    midway: the events before it arrive. tries: how often the server is asked. once: only the first try fails.
    """

    reply: Callable[[Wire, Question], Reply]
    kinds: tuple[str, ...] | None
    midway: bool = True
    tries: int = 1
    once: bool = False


def _events(wire: Wire, question: Question, count: int | None = None) -> Iterator[bytes | float]:
    for number in range(question.count if count is None else count):
        yield wire.event(question.piece(number))
        if question.pace:
            yield question.pace


def _whole(wire: Wire, question: Question) -> Iterator[bytes | float]:
    yield from _events(wire, question)
    yield from (wire.end(), wire.usage(), DONE)


def _part(wire: Wire, question: Question, *then: bytes | float) -> Iterator[bytes | float]:
    yield from _events(wire, question, question.after)
    yield from then


def _status(code: int, message: str = "as scripted", *headers: tuple[str, str]) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "scripted", "code": code}}).encode()
    return Reply([body], status=code, framing="length", headers=(*JSON, *headers))


def _pinged(wire: Wire, question: Question) -> Iterator[bytes | float]:
    for part in _whole(wire, question):
        yield b": ping\n\n"
        yield part


_ERROR = sse({"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}})
_CUT = ("StreamInterruptedError",)
_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."

#: Every kind of fault by name; "" is none.
FAULTS: dict[str, Fault] = {
    "": Fault(lambda w, q: Reply(_whole(w, q)), None),
    # Odd, but whole.
    "bytes": Fault(lambda w, q: Reply(_whole(w, q), packet=7), None),
    "pings": Fault(lambda w, q: Reply(_pinged(w, q)), None),
    "late reset": Fault(lambda w, q: Reply([*_events(w, q), w.end(), DONE, 0.05], end="reset"), None),
    "no done": Fault(lambda w, q: Reply([*_events(w, q), w.end()], framing="close"), None),
    # Whole at the second try.
    "500 once": Fault(lambda w, q: _status(500), None, tries=2, once=True),
    "429 once": Fault(lambda w, q: _status(429, "busy", ("Retry-After", "0.05")), None, tries=2, once=True),
    "gone once": Fault(lambda w, q: Reply(framing="raw", end="fin"), None, tries=2, once=True),
    "reset once": Fault(lambda w, q: RESET, None, tries=2, once=True),
    # Cut.
    "drop": Fault(lambda w, q: Reply(_part(w, q), end="fin"), _CUT),
    "reset": Fault(lambda w, q: Reply(_part(w, q, 0.02), end="reset"), _CUT),
    "close-delimited": Fault(lambda w, q: Reply(_part(w, q), framing="close"), _CUT),
    "no finish": Fault(lambda w, q: Reply(_part(w, q)), _CUT),
    "done too early": Fault(lambda w, q: Reply(_part(w, q, DONE)), _CUT),
    "half an event": Fault(lambda w, q: Reply(_part(w, q, w.event("富")[:-30])), _CUT),
    "stall": Fault(lambda w, q: Reply(_part(w, q), end="stall"), ("RemoteTimeoutError",)),
    # Said.
    "error event": Fault(lambda w, q: Reply(_part(w, q, _ERROR, DONE)), ("RemoteStreamError",)),
    "abort": Fault(lambda w, q: Reply(_part(w, q, w.end("abort"), DONE)), ("RemoteStreamError",)),
    "broken JSON": Fault(lambda w, q: Reply(_part(w, q, b'data: {"cho\n\n', DONE)), ("ProtocolError",)),
    # Never begun.
    "401": Fault(lambda w, q: _status(401), ("AuthenticationError",), midway=False),
    "too long": Fault(lambda w, q: _status(400, _LONG), ("RemoteContextOverflowError",), midway=False),
    "dead": Fault(lambda w, q: _status(503), ("ServerFaultError",), midway=False, tries=3),
    "web page": Fault(lambda w, q: Reply([b"<html></html>"], headers=HTML), ("ProtocolError",), midway=False),
}

_tries: Counter[str] = Counter()
_lock = threading.Lock()


def answer(request: Request) -> Reply:
    """The reply that a question asks for."""
    question, wire = asked(request), wire_of(request.path)
    fault = FAULTS[question.fault]
    with _lock:
        _tries[question.stream] += 1
        first = _tries[question.stream] == 1
    if fault.once and not first:
        return FAULTS[""].reply(wire, question)
    return fault.reply(wire, question)


def verdict(question: Question, chunks: list[str], error: Any) -> str:
    """What is wrong with how a stream ended, in words; "" when it is right."""
    kinds, got = FAULTS[question.fault].kinds, "".join(chunks)
    if error is None:
        if kinds is not None:
            return f"{question.fault}: a silent truncation: success with {len(got)} characters"
        return "" if got == question.text() else f"{question.fault}: another text: {_difference(question, chunks)}"
    names = {base.__name__ for base in type(error).__mro__}
    if "RemoteError" not in names:
        return f"{question.fault}: an untyped error: {type(error).__name__}: {error}"
    if kinds is None or not names & set(kinds):
        return f"{question.fault}: {type(error).__name__} ({error}), expected {kinds or 'the text'}"
    if error.partial_text != question.partial:
        return f"{question.fault}: partial_text has {len(error.partial_text)} characters, {len(question.partial)} came"
    return "" if got == question.partial else f"{question.fault}: chunks {_difference(question, chunks)}"


def _difference(question: Question, chunks: list[str]) -> str:
    seen = Counter(re.findall(r"(\S+?):(\d{3})", "".join(chunks)))
    own = {f"{number:03d}" for number in range(question.count)}
    crossed = sum(count for (stream, _), count in seen.items() if stream != question.stream)
    repeated = sum(count - 1 for count in seen.values())
    lost = len(own - {number for stream, number in seen if stream == question.stream})
    return f"{lost} lost, {repeated} repeated, {crossed} of other streams"
