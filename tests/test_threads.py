"""Threads beside an event loop: values, errors and context come through, and nobody waits for one that hangs."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time

import pytest

from karakuri_integrations.conversation import Message
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.provider import EngineFields, Provider
from karakuri_integrations.threads import in_thread

SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("seen")


async def test_values_errors_and_context() -> None:
    SEEN.set("the caller's")
    assert await in_thread(lambda a, b: (a + b, SEEN.get(), threading.current_thread().daemon), 1, 2) == (
        3,
        "the caller's",
        True,
    )
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


async def test_a_hundred_calls_take_few_threads() -> None:
    async with asyncio.timeout(30):
        names = await asyncio.gather(*(in_thread(_named) for _ in range(100)))
    assert 1 < len(set(names)) <= 16
    started = threading.active_count()
    assert await in_thread(_named) in names
    assert threading.active_count() == started


def _named() -> str:
    time.sleep(0.005)
    return f"{threading.current_thread().ident}"


async def test_one_who_stops_waiting_disturbs_nobody() -> None:
    gate = threading.Event()
    waiting = asyncio.create_task(_awaited(gate))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    assert await in_thread(lambda: "next") == "next"


async def _awaited(gate: threading.Event) -> bool:
    return await in_thread(gate.wait, 10)


class _Slow(ScriptedEngine):
    def count_tokens(self, prompt: object) -> int:
        time.sleep(3)
        return 1


def test_an_event_loop_ends_though_a_prompt_is_still_being_counted() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    provider = Provider(EngineFields(engine=_Slow(["ok"])), overflow="drop_oldest_turns")

    async def run() -> None:
        async with asyncio.timeout(0.2):
            await provider.aprepare(turns, {})

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert time.monotonic() - started < 2


_LEFT = """
import asyncio, time
from karakuri_integrations.threads import in_thread

async def run():
    in_thread(time.sleep, 60)
    await asyncio.sleep(0.1)

asyncio.run(run())
print("left")
"""


def test_the_interpreter_ends_though_a_thread_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", _LEFT], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


_FORKED = """
import asyncio, os
from karakuri_integrations.threads import in_thread

async def run():
    async with asyncio.timeout(5):
        return await in_thread(lambda: 7)

assert asyncio.run(run()) == 7
child = os.fork()
if child == 0:
    code = 1
    try:
        code = 0 if asyncio.run(run()) == 7 else 2
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "right\n", "")
