"""Piece to Delta: escaped literals, tool calls, stop strings, white space. Pure and push-based: no I/O, never awaits.

The text passes four stages, each of which holds back only what a later character could still change:

1. tool calls are taken out of it, where there can be some (`tools.reading`); an opener that is escaped is no opener,
   but data that the model repeats;
2. escaped template literals are taken back one level (`escaping`), in the text and in the calls;
3. the reply ends before the first stop string, which never shows, also when it spans pieces; none is looked for in
   calls;
4. where the family's template strips replies, white space around the reply's text is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .conversation import CallDelta, Delta, FinishReason, Piece, Prompt, ToolCall, Usage
from .escaping import held_back, unescape
from .tools import CallReader

__all__ = ["Decoder", "Unescape"]


_NO_FRAGMENTS: Final[Sequence[CallDelta]] = ()


class Decoder:
    """Decodes one reply. Feed it every Piece; `done` is set once a stop string or the last piece was seen."""

    def __init__(self, prompt: Prompt, stop: tuple[str, ...] = ()) -> None:
        self._escaped = Unescape(prompt.literals)
        self._called = Unescape(prompt.literals)
        schema = prompt.grammar.schema if prompt.grammar is not None else ""
        self._calls = CallReader(prompt.calls, self._called.push, schema) if prompt.calls is not None else None
        self._stop = _Stop(stop) if stop else None
        self._strip = _Strip() if prompt.strip_reply else None
        self._sent: list[str] = []
        self.usage: Usage | None = None
        self.done = False

    @property
    def text(self) -> str:
        """Everything given out so far."""
        return "".join(self._sent)

    @property
    def received(self) -> str:
        """Everything given out and what is still held back: the exact text received so far, calls included."""
        text = self.text + (self._strip.buffer if self._strip else "") + (self._stop.buffer if self._stop else "")
        text += self._escaped.held
        return text + ((self._calls.held + self._called.held) if self._calls else "")

    def push(self, piece: Piece) -> Sequence[Delta]:
        """The deltas this piece completes: none, one, or the last one."""
        text, usage, reason, held = piece
        self.usage = usage or self.usage
        last = flush = reason is not None
        stopped, fragments = False, _NO_FRAGMENTS
        if self._calls:
            text, fragments = self._calls.push(text, last=last)
            flush = last or self._calls.opened
        text = self._escaped.push(text, flush)
        if self._stop:
            text, stopped = self._stop.push(text, last=flush)
        if self._strip:
            text = self._strip.push(text)
        self._sent.append(text)
        if stopped:
            return self._ended(text, "stop")
        if reason is not None:
            return self._ended(text, reason, fragments, self._calls.calls(held=held) if self._calls else ())
        return (Delta(text, fragments=tuple(fragments)),) if text or fragments else ()

    def _ended(
        self,
        text: str,
        reason: FinishReason,
        fragments: Sequence[CallDelta] = (),
        calls: tuple[ToolCall, ...] = (),
    ) -> Sequence[Delta]:
        self.done = True
        reason = "tool_calls" if calls and reason == "stop" else reason
        return (Delta(text, self.usage, reason, tuple(fragments), calls),)


@dataclass
class Unescape:
    """Takes escaped literals back one level; holds back what could still become one."""

    literals: tuple[str, ...]
    buffer: str = ""

    def push(self, text: str, last: bool) -> str:
        whole = self.buffer + text
        keep = 0 if last else held_back(whole, self.literals)
        cut = len(whole) - keep
        self.buffer = whole[cut:]
        return unescape(whole[:cut], self.literals)

    @property
    def held(self) -> str:
        """What is held back, as it would be given out now."""
        return unescape(self.buffer, self.literals)


@dataclass
class _Stop:
    strings: tuple[str, ...]
    buffer: str = ""

    def push(self, text: str, *, last: bool) -> tuple[str, bool]:
        """Text that can go out, and whether a stop string was reached."""
        whole = self.buffer + text
        found = [place for one in self.strings if (place := whole.find(one)) >= 0]
        if found:
            return whole[: min(found)], True
        keep = 0 if last else max((_overlap(whole, one) for one in self.strings), default=0)
        cut = len(whole) - keep
        self.buffer = whole[cut:]
        return whole[:cut], False


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class _Strip:
    begun: bool = False
    buffer: str = ""

    def push(self, text: str) -> str:
        whole = self.buffer + text
        if not self.begun:
            whole = whole.lstrip()
        visible = whole.rstrip()
        self.begun = self.begun or bool(visible)
        self.buffer = whole[len(visible) :]
        return visible
