"""Many callers on one model: bounded queue, order, no mixing, several event loops, a loop that is never blocked."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, registry
from karakuri_integrations.errors import BusyError, ContextOverflowError, DeadlineError, MessageError

from .conftest import answer, loaded_model, prompt_of
from .test_cancel import Gate
from .test_faults import wait_until

SIX = Sampling(max_tokens=6)


def test_the_queue_is_bounded_and_first_in_first_out(checkpoint):
    engine = LocalEngine(checkpoint, device="cpu", max_queue=8, max_batch=1)
    right = [answer(engine, f"question {n}", max_tokens=6) for n in range(9)]
    gate = Gate(loaded_model(engine))
    worker = engine._shared._worker
    ended, texts, refused = [], {}, []

    def call(n: int) -> None:
        try:
            texts[n] = "".join(one.text for one in engine.stream(prompt_of(f"question {n}"), SIX))
            ended.append(n)
        except BusyError as error:
            refused.append(str(error))

    threads = []
    for n in range(32):
        threads.append(threading.Thread(target=call, args=(n,)))
        threads[-1].start()
        if n == 0:
            wait_until(lambda: worker._running)
        elif n <= 8:
            wait_until(lambda n=n: len(worker._jobs) == n)
    wait_until(lambda: len(refused) == 23)
    gate.open()
    for one in threads:
        one.join(30)
    gate.remove()
    assert all("max_queue=8" in one for one in refused)
    assert ended == list(range(9))
    assert [texts[n] for n in range(9)] == right
    engine.close()


def all_at_once(engine: LocalEngine, count: int) -> tuple[list[str], list[str]]:
    """Calls that come while nothing is computed: what was answered, and what was said to those that were refused."""
    gate, answered, refused = Gate(loaded_model(engine)), [], []

    def call(n: int) -> None:
        try:
            answered.append(answer(engine, f"question {n}", max_tokens=6))
        except BusyError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(count)]
    for one in threads:
        one.start()
    worker = engine._shared._worker
    try:
        wait_until(lambda: len(worker._running) + len(worker._jobs) + len(refused) == count)
    finally:
        gate.open()
        for one in threads:
            one.join(30)
        gate.remove()
    return answered, refused


@pytest.mark.parametrize(("max_batch", "max_queue"), [(16, 1), (4, 3), (1, 1)])
def test_a_burst_may_be_as_large_as_the_batch_and_the_queue(checkpoint, max_batch, max_queue):
    """However many of them have begun when the last one comes."""
    engine = LocalEngine(checkpoint, device="cpu", max_queue=max_queue, max_batch=max_batch)
    right = max_batch + max_queue
    answered, refused = all_at_once(engine, right)
    assert (len(answered), refused) == (right, [])
    answered, refused = all_at_once(engine, right + 2)
    assert (len(answered), len(refused)) == (right, 2)
    assert all(f"max_batch={max_batch} at once, max_queue={max_queue} more" in one for one in refused)
    engine.close()


@pytest.mark.parametrize("leave", [False, True])
def test_as_many_clients_as_there_is_room_for_are_never_refused(checkpoint, leave):
    """A client that has seen the end of its reply, or has left it, may call again at once."""
    engine = LocalEngine(checkpoint, device="cpu", max_queue=1, max_batch=2)
    answer(engine)
    failures = []

    def client(n: int) -> None:
        try:
            for turn in range(40):
                pieces = engine.stream(prompt_of(f"question {n} {turn}"), Sampling(max_tokens=2 + n))
                for _ in pieces:
                    if leave:
                        break
                pieces.close()
        except BusyError as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert failures == []
    engine.close()


def test_many_threads_get_their_own_answers(engine):
    questions = [f"富士山 {n}" for n in range(16)]
    right = {one: answer(engine, one) for one in questions}
    got: dict[str, str] = {}

    def call(question: str) -> None:
        got[question] = answer(engine, question)

    threads = [threading.Thread(target=call, args=(one,)) for one in questions]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert got == right


def test_seeds_reproduce_under_concurrency(engine):
    right = {seed: answer(engine, temperature=1.5, seed=seed) for seed in range(8)}
    got: dict[int, str] = {}

    async def all_at_once() -> None:
        async def one(seed: int) -> None:
            sampling = Sampling(max_tokens=12, temperature=1.5, seed=seed)
            got[seed] = "".join([piece.text async for piece in engine.astream(prompt_of(), sampling)])

        await asyncio.gather(*map(one, right))

    asyncio.run(all_at_once())
    assert got == right


async def acollect(engine: LocalEngine, text: str = "富士山は？") -> str:
    return "".join([one.text async for one in engine.astream(prompt_of(text), Sampling(max_tokens=12))])


def test_several_loops_in_several_threads(engine):
    right, got = answer(engine), []

    def call() -> None:
        for _ in range(3):
            got.append(asyncio.run(acollect(engine)))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert got == [right] * 12


def test_a_loop_that_is_closed_with_an_open_stream_stops_the_compute(engine):
    right = answer(engine)
    loop = asyncio.new_event_loop()
    pieces = engine.astream(prompt_of(), Sampling(max_tokens=3000))
    loop.run_until_complete(anext(pieces))
    loop.close()
    loaded_model(engine)  # waits behind the abandoned stream
    assert engine.steps < 3000
    assert answer(engine) == right


async def test_sync_and_async_give_the_same(engine):
    assert await acollect(engine) == await asyncio.to_thread(answer, engine)


class TurningLoop:
    """An event loop of which something that takes long can ask whether it goes on turning meanwhile."""

    def __init__(self) -> None:
        self._turned = threading.Event()
        self.seen: list[bool] = []

    async def __aenter__(self) -> TurningLoop:
        self._task = asyncio.create_task(self._turn())
        return self

    async def __aexit__(self, *_) -> None:
        self._task.cancel()

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            self._turned.set()

    def slow(self, real):
        """As `real`, after the loop has turned ten times more, or has not within a long time."""

        def waiting(*given):
            self._turned.clear()
            self.seen += [self._turned.wait(20) and not self._turned.clear() for _ in range(10)]
            return real(*given)

        return waiting


async def test_loading_does_not_block_the_event_loop(checkpoint, monkeypatch):
    engine = LocalEngine(checkpoint, device="cpu", quantization="bf16")
    engine.close()
    async with TurningLoop() as loop:
        monkeypatch.setattr(registry, "load", loop.slow(registry.load))
        assert await acollect(engine)
    assert loop.seen == [True] * 10
    engine.close()


async def test_loading_a_tokenizer_does_not_block_the_event_loop(checkpoint, monkeypatch):
    engine = LocalEngine(checkpoint, device="cpu", quantization="bf16", context_window=100)
    engine._shared._tokenizer = None
    async with TurningLoop() as loop:
        monkeypatch.setattr(registry, "load_tokenizer", loop.slow(registry.load_tokenizer))
        with pytest.raises(ContextOverflowError):
            await acollect(engine, "long " * 200)
    assert loop.seen == [True] * 10


async def test_megabytes_of_text_do_not_block_the_event_loop(engine):
    await asyncio.to_thread(answer, engine)
    text = "富士山は日本で一番高い山です。" * (2**22 // 45)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.002)
            turns += 1

    turning = asyncio.create_task(turn())
    with pytest.raises(ContextOverflowError) as caught:
        await acollect(engine, text)
    turning.cancel()
    assert caught.value.n_prompt > 4096
    assert turns >= 20  # two or three where something holds the interpreter's lock


async def test_a_deadline_holds_while_the_model_loads(checkpoint, monkeypatch):
    release = threading.Event()
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda *given: (release.wait(20), load(*given))[1])
    engine = LocalEngine(checkpoint, device="cpu", quantization="bf16")
    engine.close()
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        async for _ in engine.astream(prompt_of(), Sampling(timeout=0.2)):
            pass
    with pytest.raises(DeadlineError):
        await asyncio.to_thread(lambda: list(engine.stream(prompt_of(), Sampling(timeout=0.2))))
    assert time.monotonic() - began < 5
    release.set()
    assert await acollect(engine)
    engine.close()


async def test_a_deadline_holds_while_the_prompt_is_prepared(checkpoint, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(registry, "load_tokenizer", lambda *_: release.wait(20))
    engine = LocalEngine(checkpoint, device="cpu", quantization="bf16")
    engine._shared._tokenizer = None
    with pytest.raises(DeadlineError):
        async for _ in engine.astream(prompt_of(), Sampling(timeout=0.2)):
            pass
    release.set()


async def test_errors_of_the_preparation_reach_the_async_caller(engine):
    for text in ("short\ud800", "long " * 4000 + "\ud800"):
        with pytest.raises(MessageError, match="surrogate"):
            await acollect(engine, text)


async def test_cancelling_every_few_milliseconds_never_loses_a_cancellation(engine):
    right = await acollect(engine)
    for n in range(60):
        task = asyncio.create_task(acollect(engine, "x" * n))
        await asyncio.sleep(0.0007 * n)
        done = task.done()
        task.cancel()
        if not done:
            with pytest.raises(asyncio.CancelledError):
                await task
    assert await acollect(engine) == right


def test_many_calls_leave_no_thread_behind(engine):
    answer(engine)
    before = threading.active_count()
    for _ in range(200):
        pieces = engine.stream(prompt_of(), SIX)
        next(pieces)
        pieces.close()
    assert threading.active_count() == before
    assert len(engine._shared._worker._jobs) <= 1


def test_counting_is_safe_from_many_threads(engine):
    prompts = [prompt_of("</s> text <s> " * n) for n in range(1, 9)]
    right = [engine.count_tokens(one) for one in prompts]
    wrong = []

    def call() -> None:
        for _ in range(100):
            if [engine.count_tokens(one) for one in prompts] != right or {1, 2} & set(engine.token_ids("<s></s>")):
                wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    assert not wrong
