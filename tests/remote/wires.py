"""What servers say on the wire: streamed and whole completions, in the shapes of the completion and the chat route.

Shapes as vLLM, SGLang and llama.cpp's server write them on `/v1/completions` and `/v1/chat/completions`. Faults are put
together from these in `fault_table`; nothing here knows sockets.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["CHAT", "COMPLETION", "DONE", "HALF", "TEXT", "Wire", "sse", "wire_of"]

#: What a whole answer says, one event per character.
TEXT = "富士山は日本で一番高い山です。標高は三七七六です。"
assert len(TEXT) == 25

#: How many characters arrive before a fault.
HALF = 8

DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 25, "total_tokens": 36}


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


@dataclass(frozen=True)
class Wire:
    """One route's shapes. `chat`: the chat route, where text stands in `delta.content`."""

    chat: bool = False

    @property
    def base(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {"id": "cmpl-2f6c1ab5", "object": kind, "created": 1760000000, "model": "karakuri"}

    def choice(self, text: str | None, finish: str | None = None, index: int = 0) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {} if text is None else {"content": text}} if self.chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish, "stop_reason": None}

    def delta(self, text: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
        return {**self.base, "choices": [self.choice(text, finish)], **more}

    def event(self, text: str, finish: str | None = None) -> bytes:
        return sse(self.delta(text, finish))

    def deltas(self, text: str = TEXT) -> list[bytes]:
        """One event per character, without an end."""
        return [self.event(one) for one in text]

    def end(self, finish: str | None = "stop") -> bytes:
        return self.event("", finish)

    def usage(self) -> bytes:
        return sse({**self.base, "choices": [], "usage": USAGE})

    def stream(self, text: str = TEXT, finish: str = "stop") -> list[bytes]:
        """A whole good stream."""
        return [*self.deltas(text), self.end(finish), self.usage(), DONE]

    def half(self, *then: bytes | float) -> list[bytes | float]:
        """The first HALF characters, and then what is given."""
        return [*self.deltas(TEXT[:HALF]), *then]

    def whole(self, text: str | None = TEXT, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
        """An answer that is not streamed."""
        choice = {"index": 0, "logprobs": None, "finish_reason": finish}
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.base, "object": kind, "choices": [{**choice, **said}], "usage": USAGE, **more}


COMPLETION = Wire()
CHAT = Wire(chat=True)


def wire_of(path: str) -> Wire:
    """The shapes of the route that a request asked for."""
    return CHAT if path.endswith("/chat/completions") else COMPLETION
