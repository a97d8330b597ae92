"""Engines that the tests of ChatKarakuri share."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from karakuri_integrations.conversation import Piece, Prompt, Sampling, Usage
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.langchain import ChatKarakuri

# Two threads that wait for each other on a busy machine take 50 times as long per token as one (measured). Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test does, nothing is looked up or connected to."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


class SlowEngine(ScriptedEngine):
    """Never ends by itself: one piece every `pause` seconds; counts open streams and pieces."""

    def __init__(self, pause: float = 0.001) -> None:
        super().__init__([])
        self.pause = pause
        self.open = 0
        self.pieces = 0

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        self.open += 1
        try:
            while True:
                time.sleep(self.pause)
                self.pieces += 1
                yield Piece("a", Usage(1, self.pieces))
        finally:
            self.open -= 1

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        self.open += 1
        try:
            while True:
                await asyncio.sleep(self.pause)
                self.pieces += 1
                yield Piece("a", Usage(1, self.pieces))
        finally:
            self.open -= 1


@pytest.fixture
def slow() -> SlowEngine:
    return SlowEngine()


@pytest.fixture
def echo() -> Callable[..., ChatKarakuri]:
    """Makes a model that always answers "Yes, indeed."; its engine records the prompts."""

    def make(**fields: object) -> ChatKarakuri:
        return ChatKarakuri(engine=ScriptedEngine(lambda prompt: "Yes, indeed."), **fields)

    return make
