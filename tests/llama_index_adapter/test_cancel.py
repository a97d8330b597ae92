"""Whoever stops reading stops the model: break, close, aclose, cancel, on every streaming path."""

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage

from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.llama_index import KarakuriLLM

MESSAGES = [ChatMessage(role="user", content="q")]


def given(name: str) -> Any:
    return MESSAGES if "chat" in name else "q"


@pytest.mark.parametrize("name", ["stream_chat", "stream_complete"])
def test_close_stops_the_engine_though_handlers_keep_the_traceback(slow: Any, name: str, events: Any) -> None:
    stream = getattr(KarakuriLLM(engine=slow), name)(given(name))
    for _ in range(3):
        next(stream)
    stream.close()
    assert slow.closed == 1
    assert slow.produced == 3
    assert "ExceptionEvent" in events.names()


@pytest.mark.parametrize("name", ["stream_chat", "stream_complete"])
def test_break_stops_the_engine(slow: Any, name: str) -> None:
    for place, _ in enumerate(getattr(KarakuriLLM(engine=slow), name)(given(name))):
        if place == 4:
            break
    assert slow.closed == 1
    assert slow.produced == 5


@pytest.mark.parametrize("name", ["stream_chat", "stream_complete"])
def test_an_unread_stream_never_starts(slow: Any, name: str) -> None:
    getattr(KarakuriLLM(engine=slow), name)(given(name)).close()
    assert slow.opened == 0


@pytest.mark.parametrize("name", ["astream_chat", "astream_complete"])
async def test_aclose_stops_the_engine(slow: Any, name: str, events: Any) -> None:
    stream = await getattr(KarakuriLLM(engine=slow), name)(given(name))
    for _ in range(3):
        await anext(stream)
    await stream.aclose()
    assert slow.closed == 1
    assert slow.produced == 3


@pytest.mark.parametrize("name", ["astream_chat", "astream_complete"])
async def test_async_break_stops_the_engine(slow: Any, name: str) -> None:
    async with contextlib.aclosing(await getattr(KarakuriLLM(engine=slow), name)(given(name))) as stream:
        async for _ in stream:
            break
    assert slow.closed == 1
    async for _ in await getattr(KarakuriLLM(engine=slow), name)(given(name)):
        break
    produced = slow.produced
    await asyncio.sleep(0.05)
    assert slow.closed == 2
    assert slow.produced <= produced + 2


@pytest.mark.parametrize("name", ["achat", "acomplete", "astream_chat", "astream_complete"])
async def test_cancelling_stops_the_engine_and_is_never_swallowed(slow: Any, name: str) -> None:
    llm = KarakuriLLM(engine=slow)

    async def read() -> None:
        result = await getattr(llm, name)(given(name))
        if name.startswith("astream"):
            async for _ in result:
                pass

    for place in range(25):
        task = asyncio.create_task(read())
        await asyncio.sleep(0.0007 * place)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 0.25
        produced = slow.produced
        await asyncio.sleep(0.003)
        assert slow.produced == produced
    assert slow.closed == slow.opened > 15


async def test_a_timeout_around_a_call_stops_it(slow: Any) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await KarakuriLLM(engine=slow).achat(MESSAGES)
    assert slow.closed == 1


async def test_the_event_loop_keeps_turning(slow: Any) -> None:
    task = asyncio.create_task(KarakuriLLM(engine=slow).achat(MESSAGES))
    threads = threading.active_count()
    ticks = 0
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        await asyncio.sleep(0)
        ticks += 1
    assert ticks > 100
    assert threading.active_count() == threads
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_interrupt_while_waiting_closes_the_engine() -> None:
    closed = []

    class Interrupted(ScriptedEngine):
        def stream(self, *args: Any) -> Any:
            try:
                yield from super().stream(*args)
                raise KeyboardInterrupt
            finally:
                closed.append(True)

    engine = Interrupted(["a"])
    engine._next = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        KarakuriLLM(engine=engine).complete("q")
    assert closed == [True]


def test_event_loops_may_come_and_go() -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(lambda _: "答え"))

    async def both() -> str:
        items = [item async for item in await llm.astream_chat(MESSAGES)]
        return items[-1].message.content + (await llm.acomplete("q")).text

    for _ in range(5):
        assert asyncio.run(both()) == "答え答え"
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(both()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == ["答え答え"] * 8


async def test_parallel_calls_do_not_mix(ask: Any, text: Any) -> None:
    from llama_index.core.base.llms.types import ChatResponse

    llm = KarakuriLLM(engine=ScriptedEngine(lambda prompt: prompt.split("[INST] ")[-1].split(" [ATTR]")[0] * 3))

    async def one(place: int) -> ChatResponse:
        name = ("achat", "astream_chat", "acomplete", "astream_complete")[place % 4]
        return (await ask(llm, name, f"<{place}>", attributes={"humor": place % 5}))[-1]

    found = await asyncio.gather(*(one(place) for place in range(40)))
    assert [text(response) for response in found] == [f"<{place}>" * 3 for place in range(40)]
    assert [response.raw["attributes"]["humor"] for response in found] == [place % 5 for place in range(40)]


async def test_nothing_is_left_to_the_garbage_collector(slow: Any, recwarn: pytest.WarningsRecorder) -> None:
    gc.collect()  # what other tests left
    recwarn.clear()
    gc.disable()
    try:
        stream = await KarakuriLLM(engine=slow).astream_chat(MESSAGES)
        await anext(stream)
        await stream.aclose()
        assert slow.closed == 1
    finally:
        gc.enable()
    gc.collect()
    assert not [str(w.message) for w in recwarn if issubclass(w.category, ResourceWarning | RuntimeWarning)]


SLOW = """
import asyncio, itertools, time
from karakuri_integrations.conversation import Piece, Usage
from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.llama_index import KarakuriLLM
class Slow(ScriptedEngine):
    def stream(self, prompt, sampling):
        for n in itertools.count(1):
            time.sleep(0.001)
            yield Piece("a", Usage(1, n))
    async def astream(self, prompt, sampling):
        for n in itertools.count(1):
            await asyncio.sleep(0.001)
            yield Piece("a", Usage(1, n))
llm = KarakuriLLM(engine=Slow([]))
"""
SYNC = "first = llm.stream_complete('q'); next(first)"
ASYNC = """
async def main():
    global stream
    stream = await llm.astream_complete('q')
    await anext(stream)
asyncio.run(main())
"""
INTERRUPTED = """
import signal
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    llm.complete('q')
except KeyboardInterrupt:
    print('interrupted')
"""


def test_the_interpreter_exits_quietly_with_open_streams() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW + INTERRUPTED + SYNC + ASYNC],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")
