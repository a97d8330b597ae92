"""The prompt text of a conversation and the spans in it that the model has to write.

The same text as chat_template.jinja gives; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from answers import DEFAULTS, DIALS


def prompt_text(messages: list[dict[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """The text and the (start, end) of every assistant turn, its </s> included."""
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
