"""The prompt text of a conversation and the spans in it that the model has to write.

The same text as chat_template.jinja gives; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from answers import DEFAULTS, DIALS

from karakuri_integrations.conversation import Control, Request
from karakuri_integrations.templates import FAMILIES, render

FAMILY = FAMILIES["karakuri-lm-70b-chat-v0.1"]
_ASKED = "[/INST]"


def request_text(request: Request) -> tuple[str, list[tuple[int, int]]]:
    """The same for a request of the package, which renders it: conversations with tools, replies that are JSON.

    Where a call is forced, the opener of the last reply is written by the prompt and not by the model.
    """
    text, spans, start = "", [], 0
    prompt = render(request, FAMILY, partial=True)
    for segment in prompt.segments:
        if isinstance(segment, Control):
            if segment.token == FAMILY.end_token:
                spans.append((start, len(text) + len(segment.token)))
            text += segment.token
        else:
            start = len(text) + segment.rfind(_ASKED) + len(_ASKED)
            text += segment
    if prompt.calls is not None and prompt.calls.begun:
        start, end = spans[-1]
        spans[-1] = (text.index(prompt.calls.opener, start) + len(prompt.calls.opener), end)
    return text, spans


def prompt_text(messages: list[dict[str, Any]] | Request) -> tuple[str, list[tuple[int, int]]]:
    """The text and the (start, end) of every assistant turn, its </s> included."""
    if isinstance(messages, Request):
        return request_text(messages)
    system, text, spans = None, "", []
    for message in messages:
        content = message["content"]
        if message["role"] == "system":
            system = content
        elif message["role"] == "user":
            if system is not None:
                content, system = f"<<SYS>>\n{system}\n<</SYS>>\n\n{content}", None
            dials = " ".join(f"{name}: {message.get(name, DEFAULTS[name])}" for name in DIALS)
            text += f"<s>[INST] {content.strip()} [ATTR] {dials} [/ATTR] [/INST]"
        else:
            start = len(text)
            text += f" {content.strip()} </s>"
            spans.append((start, len(text)))
    return text, spans
