"""Replies that outgrow the memory together: the youngest wait, and nobody's tokens change."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace

import pytest

from karakuri_integrations.conversation import Grammar, Sampling
from karakuri_integrations.engines.key_values import KeyValues
from karakuri_integrations.engines.memory import usual_cache
from karakuri_integrations.engines.parking import Parking
from karakuri_integrations.errors import DeadlineError, DeviceMemoryError

from .conftest import answer, loaded_model, prompt_of
from .test_batching import alone, at_once, batch_of, open_when, plain, text_of
from .test_cancel import Gate
from .test_faults import wait_until

__all__ = ["alone"]  # a fixture

LIST = Grammar(json.dumps({"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 90}))
CALLS = [
    (prompt_of("一 番"), Sampling(max_tokens=400)),
    (prompt_of("二 番"), Sampling(max_tokens=320, temperature=0.9, seed=2)),
    (replace(prompt_of("三 番"), grammar=LIST), Sampling(max_tokens=350)),
    (prompt_of("四 番"), Sampling(max_tokens=300, temperature=1.2, top_p=0.8, seed=4, repetition_penalty=1.2)),
    (replace(prompt_of("五 番"), grammar=LIST), Sampling(max_tokens=280, temperature=1, seed=5)),
]


@pytest.fixture(scope="module")
def right(checkpoint):
    engine = plain(checkpoint, max_batch=1, prefix_cache_mib=0, prompt_lookup=False)
    yield [text_of(engine, *one) for one in CALLS]
    engine.close()


@pytest.fixture
def small(monkeypatch):
    """Let an engine's batch believe in so much memory; the model is shared, so it is told the truth again."""

    def make(engine, tokens: int):
        batch = batch_of(engine)
        monkeypatch.setattr(batch._parking, "room", lambda _estimated: tokens)
        return batch

    return make


def run_all(engine, gate: Gate) -> list[str]:
    """All of CALLS at once; the first pass is made when all have come."""
    opener = threading.Thread(target=open_when, args=(engine, gate, len(CALLS)))
    opener.start()
    try:
        return at_once([lambda one=one: text_of(engine, *one) for one in CALLS])
    finally:
        opener.join()
        gate.remove()


class Parked:
    """How often a reply has left its row to wait."""

    def __init__(self, batch, monkeypatch) -> None:
        self.times, put = 0, batch._parking.put

        def counted(row) -> None:
            self.times += 1
            put(row)

        monkeypatch.setattr(batch._parking, "put", counted)


@pytest.mark.parametrize("kept", [0, 64])
@pytest.mark.parametrize("tokens", [2 * 256, 4 * 256, 1])
def test_replies_that_outgrow_the_memory_take_turns(checkpoint, right, small, monkeypatch, tokens, kept):
    engine = plain(checkpoint, prefix_cache_mib=kept)
    batch, held = small(engine, tokens), []
    parked = Parked(batch, monkeypatch)
    batch.prefixes.clear()

    def look(_module, _given, _output) -> None:
        values = batch._values
        if len(batch._everyone()) > 1:
            held.append(values._rows * values._columns)

    hook = batch.model.register_forward_hook(look)
    assert run_all(engine, Gate(batch.model)) == right
    hook.remove()
    loaded_model(engine)  # the worker has done
    assert max(held, default=0) <= tokens
    assert parked.times or tokens == 1
    assert (batch._parking.rows, batch._values.bytes) == ([], 0)


def test_a_reply_that_is_alone_never_waits(checkpoint, right, small, monkeypatch):
    engine = plain(checkpoint)
    batch = small(engine, 1)
    monkeypatch.setattr(batch._parking, "put", lambda _row: 1 / 0)
    assert [text_of(engine, *one) for one in CALLS] == right


def test_what_came_from_earlier_calls_is_counted_when_a_reply_joins(checkpoint, small, monkeypatch):
    engine = plain(checkpoint)
    batch = small(engine, 2 * 384)
    batch.prefixes.clear()
    parked, long = Parked(batch, monkeypatch), Sampling(max_tokens=400)
    gate, ends = Gate(batch.model), {}

    def call(n: int) -> None:
        *_, ends[n] = engine.stream(prompt_of(f"{n} 番の山"), long)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(2)]
    for one in threads:
        one.start()
    open_when(engine, gate, 2)
    for one in threads:
        one.join(60)
    gate.remove()
    assert parked.times
    for end in ends.values():
        assert end.usage.output_tokens == 400
        assert end.usage.cache_read < end.usage.input_tokens


def begun(engine, gate: Gate):
    """A reply that has begun; the model stands still."""
    older = engine.stream(prompt_of("一 番"), Sampling(max_tokens=600))
    gate.permit(3)
    next(older)
    return older


def wait_for_parking(batch, gate: Gate) -> None:
    for _ in range(3000):
        if batch._parking.rows:
            return
        before = gate.passes
        gate.permit(1)
        wait_until(lambda before=before: gate.passes > before)
    raise AssertionError("nobody had to wait")


async def test_deadlines_and_cancellations_hold_while_a_reply_waits(checkpoint, alone, small):
    engine = plain(checkpoint)
    batch = await asyncio.to_thread(small, engine, 2 * 256)
    gate = Gate(batch.model)
    older = await asyncio.to_thread(begun, engine, gate)
    seen = []

    async def younger(timeout: float | None) -> None:
        async for one in engine.astream(prompt_of("二 番"), Sampling(max_tokens=600, timeout=timeout)):
            seen.append(one)

    task = asyncio.create_task(younger(None))
    await asyncio.to_thread(wait_for_parking, batch, gate)
    assert seen
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    count = len(seen)
    gate.permit(3)
    await asyncio.to_thread(wait_until, lambda: not batch._parking.rows)

    task = asyncio.create_task(younger(0.3))  # there is no room for it beside the older one, nor was there ever
    with pytest.raises(DeadlineError):
        await task
    older.close()
    gate.open()
    await asyncio.to_thread(loaded_model, engine)
    gate.remove()
    assert len(seen) == count
    assert await asyncio.to_thread(answer, engine) == await asyncio.to_thread(answer, alone)


def test_a_deadline_ends_a_reply_that_waits(checkpoint, small):
    engine = plain(checkpoint)
    batch = small(engine, 2 * 256)
    gate = Gate(batch.model)
    older = begun(engine, gate)
    pieces = engine.stream(prompt_of("二 番"), Sampling(max_tokens=600, timeout=60))
    thread = threading.Thread(target=wait_for_parking, args=(batch, gate))
    thread.start()
    next(pieces)
    thread.join(60)
    (row,) = batch._parking.rows
    row.job.channel.deadline._end = 0.0  # long ago
    steps = gate.passes
    gate.permit(2)
    wait_until(lambda: not batch._parking.rows)
    with pytest.raises(DeadlineError):
        list(pieces)
    assert gate.passes <= steps + 2
    gate.open()
    older.close()
    loaded_model(engine)
    gate.remove()


def test_nobody_joins_before_one_that_waits(checkpoint, alone, small, monkeypatch):
    engine = plain(checkpoint, max_batch=2)
    right = [answer(alone, f"{n} 番", max_tokens=300 - 290 * (n == 2)) for n in range(3)]
    batch = small(engine, 2 * 256)
    gate, got, entered, enter = Gate(batch.model), {}, [], batch._enter
    monkeypatch.setattr(batch, "_enter", lambda row: (entered.append(row.job.limit), enter(row))[1])

    def call(n: int) -> None:
        got[n] = answer(engine, f"{n} 番", max_tokens=300 - 290 * (n == 2))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(2)]
    threads[0].start()
    gate.permit(3)
    wait_until(lambda: gate.passes >= 3)
    threads[1].start()
    wait_for_parking(batch, gate)
    threads.append(threading.Thread(target=call, args=(2,)))  # ten tokens only, for which there would be room
    threads[2].start()
    wait_until(lambda: len(engine._shared._worker._jobs) == 1)
    gate.open()
    for one in threads:
        one.join(60)
    gate.remove()
    assert [got[n] for n in range(3)] == right
    assert entered == [300, 300, 300, 10]


# A device that is full although the estimate said that it is not


def full_at(model, full):
    """Raise MemoryError in each pass for which `full` is true of its rows; how often it did."""
    times = []

    def raises(_module, _given, output) -> None:
        if full(output.logits.shape[0]):
            times.append(1)
            raise MemoryError

    return model.register_forward_hook(raises), times


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_device_that_holds_fewer_than_was_estimated_fails_nobody(checkpoint, right, most):
    engine = plain(checkpoint)
    model, batch = loaded_model(engine), batch_of(engine)
    hook, times = full_at(model, lambda rows: rows > most)
    assert run_all(engine, Gate(model)) == right
    hook.remove()
    loaded_model(engine)
    assert 1 <= len(times) < 20
    assert batch._parking.room(10**9) == 10**9  # nobody runs any more: the next ones try anew


def test_a_device_that_is_full_once_fails_nobody(checkpoint, right):
    engine = plain(checkpoint)
    model, calls = loaded_model(engine), iter(range(10**6))
    hook, times = full_at(model, lambda rows: rows > 3 and next(calls) == 40)
    assert run_all(engine, Gate(model)) == right
    hook.remove()
    assert times == [1]


def test_the_one_that_is_too_much_alone_fails_alone(checkpoint, right):
    engine = plain(checkpoint, prefix_cache_mib=0)
    model, batch = loaded_model(engine), batch_of(engine)
    broken = []

    def full(rows: int) -> bool:
        oldest = min(batch._everyone(), key=lambda row: row.age)
        if not broken and rows > 3:
            broken.append(oldest)
        return bool(broken) and oldest is broken[0]

    hook, _ = full_at(model, full)
    failed = []

    def call(one) -> str:
        try:
            return text_of(engine, *one)
        except DeviceMemoryError as error:
            failed.append(error)
            return ""

    gate = Gate(model)
    threading.Thread(target=open_when, args=(engine, gate, len(CALLS))).start()
    got = at_once([lambda one=one: call(one) for one in CALLS])
    hook.remove()
    gate.remove()
    assert len(failed) == 1
    assert sum(one == two for one, two in zip(got, right, strict=True)) == len(CALLS) - 1


def test_a_device_that_is_full_while_a_prompt_is_read_lets_it_wait(checkpoint, alone):
    engine, long = plain(checkpoint, prefix_cache_mib=0), "長い文書です。" * 60
    right = [answer(alone, "一 番", max_tokens=60), answer(alone, long, max_tokens=20)]
    model, batch = loaded_model(engine), batch_of(engine)
    hook, times = full_at(model, lambda _rows: bool(batch._reading and batch._rows))
    gate = Gate(model)
    first = engine.stream(prompt_of("一 番"), Sampling(max_tokens=60))
    gate.permit(4)
    got = [next(first).text]
    thread = threading.Thread(target=lambda: got.append(answer(engine, long, max_tokens=20)))
    thread.start()
    open_when(engine, gate, 2)
    got[0] += "".join(one.text for one in first)
    thread.join(60)
    hook.remove()
    gate.remove()
    assert got == right
    assert times


def test_a_device_that_is_full_when_a_reply_joins_lets_it_wait(checkpoint, alone, monkeypatch):
    engine, long = plain(checkpoint, prefix_cache_mib=0), "長い文書です。" * 60
    right = [answer(alone, "一 番", max_tokens=60), answer(alone, long, max_tokens=20)]
    batch, resized = batch_of(engine), KeyValues._resized

    def full(self, old):
        if self._rows > 1:
            raise MemoryError
        return resized(self, old)

    first = engine.stream(prompt_of("一 番"), Sampling(max_tokens=60))
    got = [next(first).text]
    monkeypatch.setattr(KeyValues, "_resized", full)
    got.append(answer(engine, long, max_tokens=20))
    got[0] += "".join(one.text for one in first)
    assert got == right
    assert batch._parking.rows == []


@pytest.mark.parametrize("where", ["reading", "writing", "joining"])
def test_what_is_kept_of_other_calls_is_given_up_where_a_device_is_full(checkpoint, alone, monkeypatch, where):
    engine, long = plain(checkpoint), "長い文書です。" * 60
    right = answer(alone, long, max_tokens=20)
    batch = batch_of(engine)
    answer(engine, "一 番")
    loaded_model(engine)  # the worker has done
    assert len(batch.prefixes) >= 1
    if where == "joining":
        made = KeyValues.reserve

        def reserve(self, *given):
            if len(batch.prefixes):
                raise MemoryError
            made(self, *given)

        monkeypatch.setattr(KeyValues, "reserve", reserve)
    reading = where == "reading"
    hook, times = full_at(
        batch.model, lambda _: len(batch.prefixes) and where != "joining" and reading == bool(batch._reading)
    )
    assert answer(engine, long, max_tokens=20) == right
    hook.remove()
    assert len(times) == (where != "joining")


def test_what_did_not_fit_is_tried_again_little_by_little():
    parking = Parking[str]()
    assert parking.room(1000) == 1000
    parking.was_full(800)
    parking.was_full(900)
    assert parking.room(1000) == 600
    assert parking.room(100) == 100
    for _ in range(900):
        parking.stepped(idle=False)
    assert 700 < parking.room(1000) < 800
    parking.stepped(idle=True)
    assert parking.room(1000) == 1000


@pytest.mark.parametrize(
    ("free", "window", "token", "kept"),
    [
        (2**34, 4096, 2560, 2**28),  # two windows of a small model are less than what is kept at least
        (42 * 2**30, 4096, 320 * 2**10, 2 * 4096 * 320 * 2**10),  # the 70B on a large card
        (10 * 2**30, 4096, 320 * 2**10, 2 * 2**30),  # and on a smaller one: a fifth of what is free
        (0, 4096, 320 * 2**10, 2**28),
    ],
)
def test_what_is_kept_by_default(free, window, token, kept):
    assert usual_cache(free, window, token) == kept
