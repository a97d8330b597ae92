"""A reply's way to its consumer, where only its end is waited for: nothing is lost, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from karakuri_integrations.conversation import Piece, Usage
from karakuri_integrations.engines.channel import Channel, Deadline
from karakuri_integrations.errors import DeadlineError, EngineError, WorkerError

PIECES = [Piece("富", Usage(3, 1)), Piece("士", Usage(3, 2)), Piece("", Usage(3, 3), "stop", held=True)]


WHOLE = [Piece("富士", Usage(3, 3), "stop", held=True)]


def channel(timeout: float | None = None) -> Channel:
    return Channel(Deadline(timeout), whole=True)


def fill(target: Channel, *items: object) -> None:
    for one in items:
        target.put(one)


def taken(target: Channel, alive=lambda: True) -> list[Piece]:
    found = []
    while (piece := target.take(alive)) is not None:
        found.append(piece)
    return found


async def ataken(target: Channel, alive=lambda: True) -> list[Piece]:
    found = []
    while (piece := await target.atake(alive)) is not None:
        found.append(piece)
    return found


def test_all_pieces_come_as_one():
    one = channel()
    fill(one, *PIECES, None)
    assert taken(one) == WHOLE
    other = channel()
    fill(other, *PIECES, None)
    assert asyncio.run(ataken(other)) == WHOLE


def test_the_consumer_is_not_woken_before_the_end():
    target, got = channel(), list[Piece]()

    def consume() -> None:
        while (piece := target.take(lambda: True)) is not None:
            got.append(piece)

    thread = threading.Thread(target=consume)
    thread.start()
    fill(target, *PIECES)
    time.sleep(0.2)
    assert got == []
    target.put(None)
    thread.join(10)
    assert got == WHOLE


async def test_nor_its_event_loop():
    target, woken = channel(), []
    task = asyncio.create_task(ataken(target))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    real = loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *given: (woken.append(1), real(*given))[1]
    try:
        fill(target, *PIECES)
        assert woken == []
        target.put(None)
        assert woken == [1]
        assert await task == WHOLE
    finally:
        del loop.call_soon_threadsafe


def test_an_error_comes_behind_what_was_made():
    one = channel()
    fill(one, *PIECES[:2], EngineError("bug"))
    assert one.take(lambda: True) == Piece("富士", Usage(3, 2))
    with pytest.raises(EngineError, match="bug"):
        one.take(lambda: True)


async def test_and_on_a_loop():
    one = channel()
    fill(one, *PIECES[:2], EngineError("bug"))
    assert await one.atake(lambda: True) == Piece("富士", Usage(3, 2))
    with pytest.raises(EngineError, match="bug"):
        await one.atake(lambda: True)


@pytest.mark.parametrize("how", [taken, lambda one: asyncio.run(ataken(one))], ids=["thread", "loop"])
def test_a_deadline_ends_the_wait(how):
    one = channel(0.3)
    one.put(PIECES[0])
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        how(one)
    assert time.monotonic() - began < 5


def test_what_was_made_before_a_deadline_is_taken():
    one = channel(0.2)
    fill(one, *PIECES[:2])
    assert one.take(lambda: True) == Piece("富士", Usage(3, 2))
    with pytest.raises(DeadlineError):
        one.take(lambda: True)


@pytest.mark.parametrize("how", [taken, lambda one, alive: asyncio.run(ataken(one, alive))], ids=["thread", "loop"])
def test_a_worker_that_is_gone_is_noticed(how):
    one = channel()
    one.put(PIECES[0])
    with pytest.raises(WorkerError):
        how(one, lambda: False)


@pytest.mark.parametrize("whole", [True, False])
def test_a_loop_that_was_closed_ends_the_compute(whole):
    """As where a program ends its loop with a call under way: nobody will ever take the reply."""
    target, loop = Channel(Deadline(None), whole=whole), asyncio.new_event_loop()
    loop.create_task(ataken(target))
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    target.put(PIECES[0])
    assert not target.cancelled
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    target.put(PIECES[1])
    assert target.cancelled
