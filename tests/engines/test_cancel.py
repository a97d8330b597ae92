"""Cancelling: on every path the compute stops within two tokens and the next call is right."""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, decoding
from karakuri_integrations.engines.channel import Deadline
from karakuri_integrations.errors import DeadlineError

from .conftest import answer, loaded_model, prompt_of

LONG = Sampling(max_tokens=400)


class Gate:
    """Lets the model make one forward pass per permit, so that "within two tokens" is counted and not timed."""

    def __init__(self, model) -> None:
        self.passes = 0
        self._permits = threading.Semaphore(0)
        self._open = False
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *_) -> None:
        if not self._open:
            self._permits.acquire(timeout=30)
        self.passes += 1

    def permit(self, count: int) -> None:
        self._permits.release(count)

    def open(self) -> None:
        self._open = True
        self._permits.release(1000)

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture(scope="module")
def shared_engine(checkpoint):
    engine = LocalEngine(checkpoint, device="cpu", quantization="bf16")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def right(shared_engine):
    return answer(shared_engine)


@pytest.fixture
def gate(shared_engine):
    found = Gate(loaded_model(shared_engine))
    yield found
    found.open()
    found.remove()


def points() -> list[tuple[int, int]]:
    """Fifty seeded points: tokens taken before the cancel, and whether the worker may be one ahead."""
    draw = random.Random(0)
    return [(draw.randrange(1, 12), draw.randrange(0, 2)) for _ in range(50)]


def check_stopped(engine: LocalEngine, gate: Gate, before: int, right: str) -> None:
    """`before`: passes when the cancel was known. Everything may run now: the cancelled call must not."""
    gate.open()
    loaded_model(engine)  # waits in the queue behind the cancelled call
    assert gate.passes - before <= 2
    assert answer(engine) == right


@pytest.mark.parametrize(("taken", "ahead"), points())
@pytest.mark.parametrize("path", ["close", "drop"])
def test_a_stream_that_is_left_stops(shared_engine, gate, right, path, taken, ahead):
    gate.permit(1 + taken + ahead)
    pieces = shared_engine.stream(prompt_of(), LONG)
    for _ in range(taken):
        next(pieces)
    before = gate.passes
    if path == "close":
        pieces.close()
    else:
        del pieces  # as a `break` out of a loop over it does
    check_stopped(shared_engine, gate, before, right)


@pytest.mark.parametrize(("taken", "ahead"), points())
async def test_aclose_stops(shared_engine, gate, right, taken, ahead):
    gate.permit(1 + taken + ahead)
    pieces = shared_engine.astream(prompt_of(), LONG)
    for _ in range(taken):
        await anext(pieces)
    before = gate.passes
    await pieces.aclose()
    await asyncio.to_thread(check_stopped, shared_engine, gate, before, right)


@pytest.mark.parametrize(("taken", "ahead"), points())
async def test_task_cancel_stops_and_always_propagates(shared_engine, gate, right, taken, ahead):
    gate.permit(1 + taken + ahead)
    reached, seen = asyncio.Event(), 0

    async def consume() -> None:
        nonlocal seen
        async for _ in shared_engine.astream(prompt_of(), LONG):
            seen += 1
            if seen == taken:
                reached.set()

    task = asyncio.create_task(consume())
    await reached.wait()
    before = gate.passes
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(check_stopped, shared_engine, gate, before, right)


@pytest.mark.parametrize("seed", range(50))
def test_a_timeout_stops(shared_engine, right, monkeypatch, seed):
    timeout = random.Random(seed).uniform(0.005, 0.06)
    check_timeout(shared_engine, right, monkeypatch, lambda: list(shared_engine.stream(prompt_of(), long(timeout))))


@pytest.mark.parametrize("seed", range(50))
def test_a_timeout_stops_an_async_stream(shared_engine, right, monkeypatch, seed):
    timeout = random.Random(seed).uniform(0.005, 0.06)

    async def call() -> None:
        async for _ in shared_engine.astream(prompt_of(), long(timeout)):
            pass

    check_timeout(shared_engine, right, monkeypatch, lambda: asyncio.run(call()))


def long(timeout: float) -> Sampling:
    return Sampling(max_tokens=3000, timeout=timeout)


def check_timeout(engine, right, monkeypatch, call) -> None:
    deadlines, begun = [], []
    make = Deadline.__init__

    def made(self, timeout) -> None:
        make(self, timeout)
        if timeout is not None:
            deadlines.append(self._end)

    monkeypatch.setattr(Deadline, "__init__", made)
    hook = loaded_model(engine).register_forward_pre_hook(lambda *_: begun.append(time.monotonic()))
    try:
        with pytest.raises(DeadlineError, match="timeout"):
            call()
        loaded_model(engine)
    finally:
        hook.remove()
    assert sum(one > deadlines[0] for one in begun) <= 2
    assert answer(engine) == right


def test_a_consumer_that_pauses_past_the_timeout_stops_the_compute_too(shared_engine, right):
    pieces = shared_engine.stream(prompt_of(), long(0.1))
    next(pieces)
    time.sleep(0.15)
    steps = shared_engine.steps
    time.sleep(0.1)
    assert shared_engine.steps == steps
    with pytest.raises(DeadlineError):
        list(pieces)
    assert answer(shared_engine) == right


def test_a_cancelled_call_that_still_waits_is_dropped_without_running(shared_engine, gate, right):
    first = shared_engine.stream(prompt_of(), LONG)
    gate.permit(2)
    next(first)
    waiting = [threading.Thread(target=lambda: _expect_deadline(shared_engine)) for _ in range(3)]
    for one in waiting:
        one.start()
    for one in waiting:
        one.join(10)
    before = gate.passes
    first.close()
    check_stopped(shared_engine, gate, before, right)


def _expect_deadline(engine: LocalEngine) -> None:
    with pytest.raises(DeadlineError):
        list(engine.stream(prompt_of("another"), long(0.05)))


def test_a_long_prompt_can_be_cancelled_between_its_chunks(shared_engine, gate, right, monkeypatch):
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 8)
    task_done = threading.Event()

    def consume() -> None:
        with pytest.raises(DeadlineError):
            list(shared_engine.stream(prompt_of("富士山 " * 300), Sampling(max_tokens=4, timeout=0.3)))
        task_done.set()

    thread = threading.Thread(target=consume)
    thread.start()
    gate.permit(3)
    assert task_done.wait(10)
    monkeypatch.undo()
    check_stopped(shared_engine, gate, 3, right)
