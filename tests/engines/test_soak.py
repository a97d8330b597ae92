"""Many calls at random, many at once: left, cancelled, timed out, stopped, failed. Every answer is its prompt's own, and
nothing is left over: no memory, no threads, no keys and values, no calls.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import psutil
import pytest
import torch

from karakuri_integrations.conversation import Grammar, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.engines.channel import Channel
from karakuri_integrations.engines.decoding import Sequence
from karakuri_integrations.engines.generating import Generation
from karakuri_integrations.engines.grammars import Constraint
from karakuri_integrations.engines.rows import Row
from karakuri_integrations.errors import DeadlineError, DeviceMemoryError, NumericalError, WorkerError
from karakuri_integrations.generation import fold, stream

from .conftest import loaded_model, prompt_of
from .test_batching import batch_of, plain
from .test_faults import wait_until

MIB = 2**20
OURS = {Channel, Constraint, Generation, Sequence, Row}  # what a call is made of
LIST = Grammar(json.dumps({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 3}))
THREADS, LOOPS, TASKS = 6, 3, 8


@dataclass(frozen=True)
class Question:
    """A prompt, what it is answered with when it is alone, and that answer up to a stop text."""

    prompt: Prompt
    sampling: Sampling
    pieces: list[str]
    stop: str
    stopped: str


def questions(engine: LocalEngine, count: int) -> list[Question]:
    found = []
    for n in range(count):
        prompt = prompt_of(f"印 {n} {n * 7919} {'富士山 ' * (5 * (n % 7))}")
        sampling = Sampling(max_tokens=40)
        if n % 2:
            sampling = replace(sampling, temperature=0.9, top_p=(1.0, 0.8)[n % 3 == 0], seed=n)
        if n % 4 == 0:
            sampling = replace(sampling, repetition_penalty=1.2)
        if n % 5 == 0:
            prompt = replace(prompt, grammar=LIST)
        pieces = [one.text for one in engine.stream(prompt, sampling)]
        text = "".join(pieces)
        stop = text[len(text) // 2 :][:3]
        stopped = fold(stream(engine, prompt, replace(sampling, stop=(stop,)))).text
        found.append(Question(prompt, sampling, pieces, stop, stopped))
    assert len({"".join(one.pieces) for one in found if one.prompt.grammar is None}) == count - -(-count // 5)
    return found


class Faults:
    """Goes wrong in some forward passes: one row's logits are no numbers, the pass fails, the memory is full."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.made = Counter[str]()
        self.most_rows = 0

    def __call__(self, _module, _given, output) -> None:
        rows, luck = output.logits.shape[0], self._random.random()
        self.most_rows = max(self.most_rows, rows)
        if luck < 0.02:
            output.logits[self._random.randrange(rows), :, 5] = torch.nan
            self.made["no number"] += 1
        elif luck < 0.025:
            self.made["failure"] += 1
            raise ValueError
        elif luck < 0.035:
            self.made["full"] += 1
            raise MemoryError


class Callers:
    """Threads and event loops that make the calls. What is not as it should be is noted in `wrong`."""

    def __init__(self, engine: LocalEngine, asked: list[Question], seed: int) -> None:
        self._engine, self._asked, self._seed = engine, asked, seed
        self.wrong: list[str] = []
        self.seen = Counter[str]()

    def make(self, numbers: range) -> None:
        waiting = iter(numbers)
        lock = threading.Lock()

        def some(count: int) -> list[int]:
            with lock:
                return [n for n, _ in zip(waiting, range(count), strict=False)]

        def calls() -> None:
            while took := some(1):
                self._guarded(took[0], lambda n: self._call(n, self._plan(n)))

        def loops() -> None:  # a new event loop for each few
            while took := some(TASKS):
                asyncio.run(self._at_once(took))

        threads = [threading.Thread(target=calls) for _ in range(THREADS)]
        threads += [threading.Thread(target=loops) for _ in range(LOOPS)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(900)

    def _plan(self, n: int) -> random.Random:
        return random.Random(self._seed * 1_000_003 + n)

    def _guarded(self, n: int, call) -> None:
        try:
            call(n)
        except Exception as error:
            self.wrong.append(f"{n}: {error!r:.200}")

    def _check(self, right: bool, n: int, how: str) -> None:
        self.seen[how] += 1
        if not right:
            self.wrong.append(f"{n}: {how}")

    def _drawn(self, draw: random.Random, ways: str) -> tuple[Question, Sampling, str]:
        question, how = draw.choice(self._asked), draw.choice(ways.split())
        sampling = question.sampling
        if question.prompt.grammar is None and draw.random() < 0.5:  # how a grammar ends depends on its room
            sampling = replace(sampling, max_tokens=draw.randrange(1, 41))
        if how == "timeout":
            sampling = replace(sampling, timeout=draw.uniform(0.001, 0.1))
        return question, sampling, how

    def _judge(self, n: int, question: Question, sampling: Sampling, got: list[str], how: str) -> None:
        """`how`: the whole reply, or only its beginning."""
        right = question.pieces[: sampling.max_tokens]
        self._check(got == (right if how == "whole" else right[: len(got)]), n, how)

    def _failed(self, error: Exception, n: int, how: str) -> None:
        self._check(how == "timeout" or not isinstance(error, DeadlineError), n, type(error).__name__)

    def _call(self, n: int, draw: random.Random) -> None:
        question, sampling, how = self._drawn(draw, "whole whole stop close drop timeout")
        if how == "stop":
            self._stopped(n, question)
            return
        got, most = list[str](), draw.randrange(30)
        pieces = self._engine.stream(question.prompt, sampling)
        try:
            for one in pieces:
                got.append(one.text)
                if how in ("close", "drop") and len(got) > most:
                    break
            else:
                how = "whole"
        except (DeadlineError, DeviceMemoryError, NumericalError, WorkerError) as error:
            self._failed(error, n, how)
            how = "failed"
        if how == "close":
            pieces.close()
        self._judge(n, question, sampling, got, how)

    def _stopped(self, n: int, question: Question) -> None:
        try:
            sampling = replace(question.sampling, stop=(question.stop,))
            text = fold(stream(self._engine, question.prompt, sampling)).text
        except (DeviceMemoryError, NumericalError, WorkerError) as error:
            self._failed(error, n, "stop")
        else:
            self._check(text == question.stopped, n, "stop")

    async def _at_once(self, numbers: list[int]) -> None:
        found = await asyncio.gather(*(self._acall(n, self._plan(n)) for n in numbers), return_exceptions=True)
        self.wrong += [f"{n}: {one!r:.200}" for n, one in zip(numbers, found, strict=True) if one is not None]

    async def _acall(self, n: int, draw: random.Random) -> None:
        question, sampling, how = self._drawn(draw, "whole whole aclose cancel timeout")
        got, most = list[str](), draw.randrange(30)
        ended = []

        async def consume() -> None:
            pieces = self._engine.astream(question.prompt, sampling)
            async for one in pieces:
                got.append(one.text)
                if how == "aclose" and len(got) > most:
                    break
            else:
                ended.append(True)
            await pieces.aclose()

        task = asyncio.create_task(consume())
        if how == "cancel":
            await asyncio.sleep(draw.uniform(0, 0.1))
            task.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await task
        except (DeadlineError, DeviceMemoryError, NumericalError, WorkerError) as error:
            self._failed(error, n, how)
        self._judge(n, question, sampling, got, "whole" if ended else how if how != "whole" else "failed")


@dataclass(frozen=True)
class Left:
    """What there is when no call is being made. Of the threads those that came since the test began."""

    threads: int
    objects: int
    ours: Counter[str]
    resident: int


def left_over(engine: LocalEngine, others: set[threading.Thread]) -> Left:
    batch, worker = batch_of(engine), engine._shared._worker
    wait_until(lambda: not worker._running)
    assert batch.active == []
    assert list(worker._jobs) == []
    assert batch._values.bytes == 0
    assert batch.prefixes.bytes == sum(one.bytes for one in batch.prefixes._kept.values()) <= 4 * MIB
    batch.prefixes.clear()
    gc.collect()
    alive = [type(one) for one in gc.get_objects()]
    ours = Counter(one.__name__ for one in alive if one in OURS)
    threads = sum(one not in others for one in threading.enumerate())  # those of earlier tests may end meanwhile
    return Left(threads, len(alive), ours, psutil.Process().memory_info().rss)


@pytest.fixture
def asked(checkpoint) -> Iterator[list[Question]]:
    engine = plain(checkpoint, max_batch=1, prefix_cache_mib=0, prompt_lookup=False)
    yield questions(engine, 40)
    engine.close()


@pytest.mark.parametrize(
    "count", [600, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=["fast", "full"]
)
def test_whatever_happens_to_the_calls_answers_are_right_and_nothing_is_left(checkpoint, asked, monkeypatch, count):
    others = set(threading.enumerate())
    engine = plain(checkpoint, max_batch=16, prefix_cache_mib=4)
    model, batch = loaded_model(engine), batch_of(engine)
    faults, callers = Faults(1), Callers(engine, asked, 1)
    waited, put = Counter[str](), batch._parking.put
    monkeypatch.setattr(batch._parking, "put", lambda row: (waited.update(["rows"]), put(row))[1])
    # As when something else on the device takes memory and gives it back.
    monkeypatch.setattr(batch._parking, "room", lambda most: (most, 5 * 256)[engine.steps // 300 % 2])
    hook = model.register_forward_hook(faults)
    parts = [range(count // 5), range(count // 5, 3 * count // 5), range(3 * count // 5, count)]
    found = []
    for part in parts:  # the first one is for what is made once
        callers.make(part)
        found.append(left_over(engine, others))
    hook.remove()
    print(f"\n{count} calls: {dict(callers.seen)}, faults {dict(faults.made)}, waited {waited['rows']}, {found}")
    assert callers.wrong == []
    warm, half, whole = found
    assert warm.threads == half.threads == whole.threads
    assert whole.ours == half.ours == warm.ours
    assert whole.objects - half.objects < count // 50  # not one for each call of this part
    assert whole.resident - half.resident < 16 * MIB
    # All of it did happen.
    assert faults.most_rows > 8
    assert waited["rows"]
    expected = "whole stop close drop aclose cancel timeout failed DeadlineError NumericalError WorkerError"
    assert set(expected.split()) <= set(callers.seen)
    assert callers.seen["NumericalError"] <= faults.made["no number"]
    assert callers.seen["DeviceMemoryError"] < faults.made["full"]  # it fails only who is alone


@pytest.mark.slow
def test_a_thousand_prompts_stay_within_the_memory_for_what_is_kept(checkpoint):
    """Each is answered as when nothing is kept, and the process does not grow."""
    careful, keeping = plain(checkpoint, max_batch=1, prefix_cache_mib=0), plain(checkpoint, prefix_cache_mib=4)
    store, most, resident = batch_of(keeping).prefixes, 0, []
    store.clear()
    sampling = Sampling(max_tokens=4)

    def read(n: int) -> str:
        words = " ".join(f"{n * n % 997} 番" for n in range(n, n + 10))
        return f"印 {n} {words}"

    for n in range(1000):
        prompt = prompt_of(read(n))
        right = [one.text for one in careful.stream(prompt, sampling)]
        assert [one.text for one in keeping.stream(prompt, sampling)] == right
        most = max(most, store.bytes)
        assert store.bytes <= 4 * MIB
        if n in (499, 999):
            batch_of(keeping)  # the worker has done
            assert store.bytes == sum(one.bytes for one in store._kept.values())
            gc.collect()
            resident.append(psutil.Process().memory_info().rss)
    assert most > 3 * MIB  # it was full
    assert len(store) < 500
    assert resident[1] - resident[0] < 16 * MIB
