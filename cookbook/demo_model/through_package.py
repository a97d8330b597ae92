"""Asks the model through the package itself: its templates, its LocalEngine, its reply decoder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from answers import DIALS

from karakuri_integrations import SteeringAttributes
from karakuri_integrations.conversation import Message, Request, Sampling
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.generation import fold, stream
from karakuri_integrations.templates import render

LIMIT = 900
AT_ONCE = 32


def _values(messages: list[dict[str, Any]]) -> tuple[Message, ...]:
    """The messages as the package's values; a past reply keeps the dials of its question."""
    out, dials = [], None
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            dials = SteeringAttributes({name: message[name] for name in DIALS})
        out.append(Message(role, message["content"], None if role == "system" else dials, index))
    return tuple(out)


def with_package(model: str, quantization: str) -> Callable[[list[list[dict[str, Any]]]], list[tuple[str, bool]]]:
    """Greedy answers; those that are asked together share the engine's forward passes."""
    engine = LocalEngine(model, quantization=quantization, max_batch=AT_ONCE, prefix_cache_mib=0)
    own = SteeringAttributes()

    def one(chat: list[dict[str, Any]]) -> tuple[str, bool]:
        prompt = render(Request(_values(chat), own, own), engine.family)
        room = engine.context_window - engine.count_tokens(prompt)
        reply = fold(stream(engine, prompt, Sampling(max_tokens=min(LIMIT, room))))
        return reply.text.strip(), reply.finish_reason == "stop"

    def ask(chats: list[list[dict[str, Any]]]) -> list[tuple[str, bool]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, chats))

    return ask
