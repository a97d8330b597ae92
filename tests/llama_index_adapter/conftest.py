"""Engines and observers for the tests of KarakuriLLM."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import llama_index.core.instrumentation as instrument
import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler

from karakuri_integrations.conversation import Piece, Prompt, Sampling, Usage
from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.llama_index import KarakuriLLM

ENTRY_POINTS = (
    "chat",
    "achat",
    "stream_chat",
    "astream_chat",
    "complete",
    "acomplete",
    "stream_complete",
    "astream_complete",
)


def echo(prompt: str) -> str:
    """The last user text of a Llama-2 shaped prompt."""
    return re.findall(r"\[INST\] (.*?) \[ATTR\]", prompt, re.DOTALL)[-1].split("<</SYS>>\n\n")[-1]


@pytest.fixture
def echoing() -> KarakuriLLM:
    return KarakuriLLM(engine=ScriptedEngine(echo))


async def items_of(llm: KarakuriLLM, name: str, text: str, **options: Any) -> list[ChatResponse | CompletionResponse]:
    """Every response that one entry point gives: one, or the items of its stream."""
    given = [ChatMessage(role="user", content=text)] if "chat" in name else text
    result = getattr(llm, name)(given, **options)
    if name.startswith("a"):
        result = await result
    if name.startswith("stream"):
        return list(result)
    if name.startswith("astream"):
        return [item async for item in result]
    return [result]


def text_of(response: ChatResponse | CompletionResponse) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content


@pytest.fixture(params=ENTRY_POINTS)
def entry_point(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def ask() -> Callable[..., Any]:
    return items_of


@pytest.fixture
def text() -> Callable[..., str]:
    return text_of


class Observer(BaseEventHandler):
    seen: list[Any]

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


@pytest.fixture
def events() -> Iterator[Observer]:
    """Every instrumentation event, kept with its exceptions and their tracebacks."""
    root, observer = instrument.get_dispatcher(), Observer(seen=[])
    root.add_event_handler(observer)
    yield observer
    root.event_handlers.remove(observer)


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    root, handler = instrument.get_dispatcher(), SimpleSpanHandler()
    root.add_span_handler(handler)
    yield handler
    root.span_handlers.remove(handler)


class SlowEngine(ScriptedEngine):
    """Answers without end, a piece every millisecond, and notes what was produced and when a stream was closed."""

    def __init__(self) -> None:
        super().__init__([])
        self.produced = 0
        self.opened = 0
        self.closed = 0

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        self.opened += 1
        try:
            while True:
                time.sleep(0.001)
                self.produced += 1
                yield Piece("あ", Usage(1, self.produced))
        finally:
            self.closed += 1

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        self.opened += 1
        try:
            while True:
                await asyncio.sleep(0.001)
                self.produced += 1
                yield Piece("あ", Usage(1, self.produced))
        finally:
            self.closed += 1


@pytest.fixture
def slow() -> SlowEngine:
    return SlowEngine()
