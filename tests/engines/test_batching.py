"""Replies that share forward passes, prompts that begin alike, guesses: the same tokens as one call after another."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref

import numpy as np
import pytest
import torch

from karakuri_integrations.conversation import Control, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine, decoding
from karakuri_integrations.engines.key_values import KeyValues
from karakuri_integrations.engines.lookup import Lookup
from karakuri_integrations.engines.memory import KV_CACHE_DTYPES
from karakuri_integrations.engines.prefixes import Prefixes, common
from karakuri_integrations.errors import DeadlineError, DeviceMemoryError, EngineError, NumericalError, WorkerError

from .conftest import answer, loaded_model, prompt_of
from .test_cancel import Gate
from .test_faults import failing, wait_until

QUESTIONS = [f"{'富士山 ' * (1 + n % 5)}{n} はどこにありますか？ How high is it{'?' * n}" for n in range(16)]
SAMPLINGS = [
    Sampling(max_tokens=8 + 3 * n, temperature=(0.0, 0.9)[n % 2], seed=n, top_p=(1.0, 0.8)[n % 3 == 1])
    for n in range(15)
] + [Sampling(max_tokens=40, repetition_penalty=1.3)]


def plain(checkpoint, **fields) -> LocalEngine:
    return LocalEngine(checkpoint, device="cpu", quantization="fp32", **fields)


@pytest.fixture
def alone(checkpoint):
    """One call after another, nothing kept, nothing guessed."""
    found = plain(checkpoint, max_batch=1, prefix_cache_mib=0, prompt_lookup=False)
    yield found
    found.close()


def text_of(engine: LocalEngine, prompt: Prompt, sampling: Sampling) -> str:
    return "".join(one.text for one in engine.stream(prompt, sampling))


def at_once(calls) -> list[str]:
    """The texts of calls that begin together, in their order."""
    got: dict[int, str] = {}
    threads = [threading.Thread(target=lambda n=n, one=one: got.__setitem__(n, one())) for n, one in enumerate(calls)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
    return [got[n] for n in range(len(threads))]


def open_when(engine: LocalEngine, gate: Gate, count: int) -> None:
    """Let the model compute when so many calls have come."""
    worker = engine._shared._worker
    wait_until(lambda: len(worker._running) + len(worker._jobs) >= count)
    gate.open()


@pytest.mark.parametrize(
    "fields", [{}, {"prefix_cache_mib": 0}, {"max_batch": 3}], ids=["all", "nothing_kept", "three"]
)
def test_sixteen_at_once_are_as_one_after_another(checkpoint, alone, fields):
    right = [text_of(alone, prompt_of(one), how) for one, how in zip(QUESTIONS, SAMPLINGS, strict=True)]
    engine = plain(checkpoint, **fields)
    gate = Gate(loaded_model(engine))  # so that all have come when the first pass is made
    calls = [
        lambda one=one, how=how: text_of(engine, prompt_of(one), how)
        for one, how in zip(QUESTIONS, SAMPLINGS, strict=True)
    ]
    before = engine.steps
    opener = threading.Thread(target=open_when, args=(engine, gate, 16))
    opener.start()
    assert at_once(calls) == right
    opener.join()
    gate.remove()
    made = sum(how.max_tokens for how in SAMPLINGS)
    assert engine.steps - before < made / (3 if not fields else 2)


@pytest.mark.parametrize(
    ("count", "sampling", "transfers"),
    [
        (1, Sampling(max_tokens=12), 1),
        (3, Sampling(max_tokens=12), 1),
        (3, Sampling(max_tokens=12, temperature=0.7, top_p=0.9, top_k=50, min_p=0.01, seed=1), 1),
        (1, Sampling(max_tokens=12, repetition_penalty=1.3), 2),  # it looks at all ids
    ],
    ids=["alone", "together", "sampled", "looking_back"],
)
def test_a_pass_is_one_transfer_to_the_device(checkpoint, monkeypatch, count, sampling, transfers):
    """On a GPU each would wait for what runs there."""
    engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    gate = Gate(loaded_model(engine))
    made, real, before = [0], torch.tensor, engine.steps

    def counted(*arguments, **named):
        made[0] += "device" in named
        return real(*arguments, **named)

    monkeypatch.setattr(torch, "tensor", counted)
    opener = threading.Thread(target=open_when, args=(engine, gate, count))
    opener.start()
    at_once([lambda n=n: text_of(engine, prompt_of(QUESTIONS[n]), sampling) for n in range(count)])
    opener.join()
    gate.remove()
    passes, tokens = engine.steps - before, 12 * count
    assert made[0] == passes + (transfers - 1) * tokens


def test_replies_join_one_that_runs(checkpoint, alone):
    right = [text_of(alone, prompt_of(one), Sampling(max_tokens=30)) for one in QUESTIONS[:4]]
    engine = plain(checkpoint)
    gate = Gate(loaded_model(engine))
    first = engine.stream(prompt_of(QUESTIONS[0]), Sampling(max_tokens=30))
    gate.permit(8)
    got = [next(first).text for _ in range(5)]
    gate.open()
    others = at_once(
        [lambda one=one: text_of(engine, prompt_of(one), Sampling(max_tokens=30)) for one in QUESTIONS[1:4]]
    )
    got += [one.text for one in first]
    gate.remove()
    assert ["".join(got), *others] == right


def test_a_reply_that_fails_in_a_batch_fails_alone(checkpoint, alone):
    right = [answer(alone, one, max_tokens=20) for one in QUESTIONS[:4]]
    engine = plain(checkpoint, prefix_cache_mib=0)
    model = loaded_model(engine)

    def poison(_module, _given, output):
        if output.logits.shape[0] == 4:
            output.logits[2, -1, 5] = torch.nan

    gate, hook = Gate(model), model.register_forward_hook(poison)
    failed = []

    def call(question: str) -> str:
        try:
            return answer(engine, question, max_tokens=20)
        except NumericalError as error:
            failed.append(error)
            return "failed"

    threading.Thread(target=open_when, args=(engine, gate, 4)).start()
    got = at_once([lambda one=one: call(one) for one in QUESTIONS[:4]])
    hook.remove()
    gate.remove()
    assert len(failed) == 1
    assert sum(one == two for one, two in zip(got, right, strict=True)) == 3


def test_a_pass_that_fails_fails_all_who_shared_it_and_the_next_calls_work(checkpoint):
    engine = plain(checkpoint)
    right = answer(engine)

    def break_down(_output):
        raise ValueError

    model = loaded_model(engine)
    gate, hook = Gate(model), failing(model, 12, break_down)
    errors = []

    def call(n: int) -> str:
        try:
            return answer(engine, f"{n} 番", max_tokens=60)
        except Exception as error:
            errors.append(error)
            return ""

    threading.Thread(target=open_when, args=(engine, gate, 3)).start()
    at_once([lambda n=n: call(n) for n in range(3)])
    hook.remove()
    gate.remove()
    assert {type(one).__name__ for one in errors} == {"WorkerError"}
    assert len({id(one) for one in errors}) == len(errors) == 3
    assert answer(engine) == right


async def test_cancelled_replies_leave_and_the_others_go_on(checkpoint, alone):
    right = await asyncio.to_thread(answer, alone, QUESTIONS[0], max_tokens=60)
    engine = plain(checkpoint)

    async def whole() -> str:
        return "".join([one.text async for one in engine.astream(prompt_of(QUESTIONS[0]), Sampling(max_tokens=60))])

    async def left(n: int) -> None:
        taken = 0
        async for _ in engine.astream(prompt_of(QUESTIONS[n]), Sampling(max_tokens=500)):
            taken += 1
            if taken > 3 * n:
                return

    found, *_ = await asyncio.gather(whole(), *(left(n) for n in range(1, 8)))
    assert found == right


def test_max_batch_is_kept(checkpoint):
    engine = plain(checkpoint, max_batch=2)
    sizes = set()
    hook = loaded_model(engine).register_forward_hook(lambda _m, _g, output: sizes.add(output.logits.shape[0]))
    at_once([lambda n=n: answer(engine, f"{n}", max_tokens=30) for n in range(6)])
    hook.remove()
    assert max(sizes) == 2


def test_no_more_join_than_the_memory_holds(checkpoint, alone, monkeypatch):
    right = [answer(alone, f"{n} 番", max_tokens=30) for n in range(4)]
    engine = plain(checkpoint)
    batch, sizes = batch_of(engine), set()
    monkeypatch.setattr(batch._parking, "room", lambda _estimated: 2 * 256)
    hook = batch.model.register_forward_hook(lambda _m, _g, output: sizes.add(output.logits.shape[0]))
    assert at_once([lambda n=n: answer(engine, f"{n} 番", max_tokens=30) for n in range(4)]) == right
    hook.remove()
    assert max(sizes) == 2


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_numbers_that_are_none_stay_in_their_row(checkpoint, alone, dtype):
    """What a failed reply leaves behind lies under the columns of the others, hidden; 0 times NaN is NaN."""
    alone = LocalEngine(**{**alone._arguments, "kv_cache_dtype": dtype})
    right = [answer(alone, QUESTIONS[n], max_tokens=40) for n in (0, 5)]
    engine = plain(checkpoint, prefix_cache_mib=0, kv_cache_dtype=dtype)
    model = loaded_model(engine)
    layer = model.model.layers[0].self_attn.v_proj

    def poison(_module, _given, output):
        if output.shape[0] == 3 and output.shape[1] == 1:
            output[2] = torch.nan

    gate, hook = Gate(model), layer.register_forward_hook(poison)
    failed = []

    def call(question: str) -> str:
        try:
            return answer(engine, question, max_tokens=40)
        except NumericalError:
            failed.append(question)
            return ""

    threading.Thread(target=open_when, args=(engine, gate, 3)).start()
    got = at_once([lambda one=one: call(one) for one in (QUESTIONS[0], QUESTIONS[5], "長い " * 90)])
    hook.remove()
    gate.remove()
    assert len(failed) == 1
    assert {one for one in got if one} <= {*right, answer(alone, "長い " * 90, max_tokens=40)}


# Prompts that begin alike


def raw(*texts: str) -> Prompt:
    return Prompt((Control("<s>"), *texts))


def usage(engine: LocalEngine, prompt: Prompt, count: int = 6):
    *_, last = engine.stream(prompt, Sampling(max_tokens=count))
    return last.usage


@pytest.mark.parametrize("cut", [0, 1, 2, 15, 16, 17, 40, 199, 200, 201])
def test_what_begins_alike_goes_on_with_the_same_tokens(checkpoint, alone, cut):
    """Borders: nothing shared, all but one token, all, more than all."""
    words = [f"w{n}" for n in random.Random(cut).choices(range(50), k=100)]
    first, second = " ".join(words), " ".join([*words[: cut // 2], "other", *words[cut // 2 + 1 :]])[: 3 * cut or None]
    right = [answer(alone, one) for one in (first, second, first)]
    engine = plain(checkpoint)
    assert [answer(engine, one) for one in (first, second, first)] == right


def test_the_same_prompt_again_reads_its_last_token_only(checkpoint):
    engine = plain(checkpoint)
    before = usage(engine, prompt_of("富士山 " * 50))
    steps = engine.steps
    again = usage(engine, prompt_of("富士山 " * 50))
    assert before.cache_read < 60
    assert again.cache_read == again.input_tokens - 1
    assert engine.steps - steps <= 6
    shorter = engine.token_ids("富士山 " * 50)
    assert len(shorter) > 50


def test_a_chat_appends(checkpoint, alone):
    """The second turn begins where the first one's reply ended."""
    engine, long = plain(checkpoint), "京都の寺 " * 30
    reply = text_of(engine, raw(long), Sampling(max_tokens=20))
    then = raw(long, reply, " そして？")
    assert text_of(engine, then, Sampling(max_tokens=9)) == text_of(alone, then, Sampling(max_tokens=9))
    assert usage(engine, then).cache_read > engine.count_tokens(raw(long)) - 2


def test_a_prompt_shares_what_a_running_reply_has_read(checkpoint):
    engine, long = plain(checkpoint), "長い文書です。" * 60
    first = engine.stream(prompt_of(long + "一"), Sampling(max_tokens=300))
    next(first)
    assert usage(engine, prompt_of(long + "二")).cache_read > 50
    first.close()


def test_scopes_share_nothing(checkpoint):
    engine, long = plain(checkpoint), "範囲の文書です。" * 60

    def cached(question: str, scope: str | None) -> int:
        *_, last = engine.stream(prompt_of(long + question), Sampling(max_tokens=4, cache_scope=scope))
        return last.usage.cache_read

    assert cached("一", "a") < 60  # the tools' and the template's own words may be known
    assert cached("二", "b") < 60
    assert cached("三", None) < 60
    assert cached("四", "a") > 300
    running = engine.stream(prompt_of(long * 2), Sampling(max_tokens=300, cache_scope="c"))
    next(running)
    assert cached("五", "d") < 60
    running.close()


def test_what_is_kept_stays_within_its_memory(checkpoint):
    engine = plain(checkpoint, prefix_cache_mib=1)
    store = batch_of(engine).prefixes
    store.clear()  # it is the model's, and others have used it
    seen = 0
    for n in range(60):
        answer(engine, f"{n} " * 150, max_tokens=2)
        seen = max(seen, len(batch_of(engine).prefixes))  # when the worker has done
        assert store.bytes <= 2**20
        assert store.bytes == sum(one.bytes for one in store._kept.values())
    assert seen > len(store) - 1 > 0
    assert batch_of(engine)._values.bytes == 0  # nobody runs


def test_nothing_is_kept_where_it_is_switched_off(checkpoint):
    engine = plain(checkpoint, prefix_cache_mib=0)
    before = len(batch_of(engine).prefixes)  # the store is the model's, whoever uses it
    for _ in range(2):
        assert usage(engine, prompt_of("別の山 " * 50)).cache_read == 0
    assert len(batch_of(engine).prefixes) == before


def batch_of(engine: LocalEngine):
    """What the worker runs."""
    from karakuri_integrations.engines.channel import Channel, Deadline

    class Look:
        channel = Channel(Deadline(None))

        def run(self, batch) -> None:
            self.found = batch
            self.channel.put(None)

        def fits(self, batch) -> bool:
            return not batch.active

    look = Look()
    look.channel = Channel(Deadline(None))
    worker = engine._shared.submit(look, 128, engine.family)
    assert look.channel.take(worker.alive) is None
    return look.found


def test_the_store_finds_the_longest_beginning_and_drops_the_oldest():
    def values(size: int) -> list:
        return [np.zeros(size, np.uint8)]

    store = Prefixes()
    store.keep([1, 2, 3], values(10), 1000)
    store.keep([1, 2, 3, 4, 5], values(10), 1000)  # in place of its beginning
    assert len(store) == 1
    store.keep([1, 9], values(10), 1000)
    kept, length = store.longest([1, 2, 3, 7, 7])
    assert (list(kept.ids), length) == ([1, 2, 3, 4, 5], 3)
    assert store.longest([1, 2, 3, 4, 5])[1] == 4  # the last token is always read
    assert store.longest([1])[1] == 0
    assert store.longest([8, 8])[0] is None
    assert store.longest([1, 2, 3], "another's")[0] is None
    store.longest([1, 9, 9])
    store.keep([7] * 20, values(700), 920)  # the least recently used one has to go
    assert store.longest([1, 2, 3, 4])[1] == 1
    store.keep([6] * 20, values(2000), 1000)  # more than all
    assert store.longest([6, 6, 6])[0] is None


def test_common_beginnings():
    first, second = np.array([1, 2, 3, 4]), np.array([1, 2, 9])
    assert (common(first, second), common(first, first), common(first, first[:0])) == (2, 4, 0)


# Guesses


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "seed": 5}, {"repetition_penalty": 1.2}])
def test_guesses_change_nothing(checkpoint, alone, how):
    text = "京都の寺は古い。 奈良の寺も古い。 " * 12
    sampling = Sampling(max_tokens=60, **how)
    engine = plain(checkpoint, prefix_cache_mib=0)
    assert text_of(engine, raw(text), sampling) == text_of(alone, raw(text), sampling)


def test_a_text_that_repeats_itself_takes_fewer_passes(checkpoint, alone):
    """The model is made to write 10 11 12 ... 29 10 11 ..., at each place of a pass."""
    engine = plain(checkpoint, prefix_cache_mib=0)

    def counts(_module, _given, named, output):
        read = named["input_ids"][0, -output.logits.shape[1] :].tolist()
        for place, token in enumerate(read):
            output.logits[0, place, token + 1 if 10 <= token < 29 else 10] += 1000

    hook = loaded_model(engine).register_forward_hook(counts, with_kwargs=True)
    passes, made = [], []
    for one in (alone, engine):
        before = engine.steps
        made.append([piece.text for piece in one.stream(raw("a"), Sampling(max_tokens=200))])
        passes.append(engine.steps - before)
    hook.remove()
    assert made[0] == made[1]
    assert passes[0] >= 200
    assert passes[1] < 60


def test_a_guess_is_what_followed_last_time():
    lookup = Lookup()
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]
    assert lookup.guess(ids, 10) == [4, 5, 6, 7]
    assert lookup.guess(ids, 2) == [4, 5]
    assert lookup.guess(ids, 0) == []
    lookup.learn(len(ids), 4, 4)
    assert lookup.guess(ids, 10) == [4, 5, 6, 7, 8, 1, 2, 3]  # right ones grow
    assert lookup.guess([*ids, 9], 10) == []
    assert lookup.guess([*ids, 9, 1, 2, 3], 10)[:2] == [9, 1]  # the last time counts


def test_guesses_that_are_wrong_rest():
    lookup = Lookup()
    ids = [1, 2, 3] * 4
    for _ in range(2):
        assert lookup.guess(ids, 4)
        lookup.learn(len(ids), 4, 0)
    assert lookup.guess(ids, 4) == []
    assert lookup.guess(ids * 4, 4)


# What fails, and what it leaves


def test_errors_that_are_kept_do_not_keep_the_model(checkpoint):
    engine = plain(checkpoint)
    model = loaded_model(engine)
    ghost, kept = weakref.ref(model), []

    def poison(_module, _given, output):
        output.logits[:] = torch.nan

    def fail(_module, _given, _output):
        raise ValueError

    for what in (poison, fail):
        hook = model.register_forward_hook(what)
        with pytest.raises(EngineError) as caught:
            answer(engine)
        kept.append(caught.value)
        hook.remove()
    assert any("in _forward" in one for one in kept[1].__cause__.__notes__)
    del model, hook, caught, what
    engine.close()
    gc.collect()
    assert ghost() is None


@pytest.mark.parametrize("grown", [0, 1, 2, 3])
def test_room_that_could_not_be_made_leaves_what_is_there(grown):
    """Of two layers some tensors have grown when the device is full."""
    values = KeyValues()
    values.reserve(1, 100, 10**6)
    for number in range(2):
        for one in values.layer(number, [torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 1)]):
            one[0, :, :100] = number + 1
    resized, calls = values._resized, []

    def full(old):
        calls.append(old)
        if len(calls) > grown:
            raise MemoryError
        return resized(old)

    values._resized = full
    with pytest.raises(MemoryError):
        values.reserve(3, 500, 10**6)
    values._resized = resized
    for rows, columns in ((2, 300), (4, 700)):
        values.reserve(rows, columns, 10**6)
        for number in range(2):
            for one in values.layer(number, []):
                assert one.shape[0] >= rows and one.shape[2] >= columns
                assert one[0, 0, :100, 0].tolist() == [number + 1] * 100


def test_room_beyond_the_memory_is_made_as_asked_for_only():
    values = KeyValues()
    values.reserve(1, 4000, 10**6)
    values.layer(0, [torch.ones(1, 1, 1, 1)] * 2)[0][0, :, :200] = 7
    values.reserve(9, 300, 9 * 400)  # the long one has left
    one = values.layer(0, [])[0]
    assert (one.shape[0], one.shape[2]) == (9, 384)
    assert one[0, 0, :200, 0].tolist() == [7] * 200


def test_a_device_that_is_full_when_a_reply_is_kept_fails_nobody(checkpoint, alone, monkeypatch):
    right = [answer(alone, one, max_tokens=20 + 9 * n) for n, one in enumerate(QUESTIONS[:3])]
    engine = plain(checkpoint)
    loaded_model(engine)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(KeyValues, "taken", full)
    calls = [lambda n=n, one=one: answer(engine, one, max_tokens=20 + 9 * n) for n, one in enumerate(QUESTIONS[:3])]
    assert at_once(calls) == right


def test_what_is_too_large_to_be_kept_is_not_copied(checkpoint, monkeypatch):
    engine = plain(checkpoint, prefix_cache_mib=1)
    loaded_model(engine)
    taken, lengths = KeyValues.taken, []
    monkeypatch.setattr(KeyValues, "taken", lambda *given: (lengths.append(given[2]), taken(*given))[1])
    answer(engine, "長い文書です。" * 250, max_tokens=2)
    loaded_model(engine)  # it has left
    assert lengths == []
    answer(engine, "短い文書です。" * 9, max_tokens=2)
    loaded_model(engine)
    assert len(lengths) == 1


def test_a_call_for_which_the_device_is_too_small_fails_alone_and_leaves_no_memory(checkpoint, alone, monkeypatch):
    right = answer(alone, max_tokens=40)
    engine = plain(checkpoint, prefix_cache_mib=0)
    batch, long = batch_of(engine), "長い文書です。" * 100
    resized, layer = KeyValues._resized, KeyValues.layer

    def full(real):
        def checked(self, *given):
            if self._columns > 600:
                raise MemoryError
            return real(self, *given)

        return checked

    running = engine.stream(prompt_of(), Sampling(max_tokens=40))
    got = next(running).text
    monkeypatch.setattr(KeyValues, "_resized", full(resized))
    monkeypatch.setattr(KeyValues, "layer", full(layer))
    with pytest.raises(DeviceMemoryError):
        answer(engine, long)
    assert got + "".join(one.text for one in running) == right
    assert answer(engine, max_tokens=40) == right
    monkeypatch.setattr(Prefixes, "longest", lambda *_: 1 / 0)
    with pytest.raises(WorkerError):
        answer(plain(checkpoint), long)
    assert (batch._values._rows, batch._values._columns) == (0, 0)


@pytest.mark.parametrize("dtype", KV_CACHE_DTYPES)
def test_a_prompt_that_is_left_half_read_leaves_no_wrong_numbers(checkpoint, monkeypatch, dtype):
    """They would spoil every call that begins alike, and the columns that others do not see."""
    engine = plain(checkpoint, kv_cache_dtype=dtype)
    batch, model = batch_of(engine), loaded_model(engine)
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 32)
    batch.prefixes.clear()
    layer, long = model.model.layers[0].self_attn.v_proj, "途中の文書です。" * 60

    def poison(_module, _given, output):
        output[:] = torch.nan

    gate, hook = Gate(model), layer.register_forward_hook(poison)
    with pytest.raises(DeadlineError):
        threading.Timer(0.5, gate.permit, (3,)).start()
        answer(engine, long, timeout=0.4)
    wait_until(lambda: gate.passes)
    hook.remove()
    gate.open()
    loaded_model(engine)
    gate.remove()
    assert answer(engine, long)


def test_a_call_that_keeps_nothing_gives_nothing_either(checkpoint):
    careful, other, long = plain(checkpoint, prefix_cache_mib=0), plain(checkpoint), "秘密の文書です。" * 60
    running = careful.stream(prompt_of(long + "一"), Sampling(max_tokens=300))
    next(running)
    assert usage(other, prompt_of(long + "二")).cache_read < 60
    running.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_best_tokens(dtype):
    """Of equal ones the first, as argmax says; None where any logit of the row is no number."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (64, 300), generator=random).to(dtype)
    assert decoding.best(logits) == logits.argmax(-1).tolist()
    for row, wrong in enumerate((torch.nan, torch.inf, -torch.inf)):
        logits[2 * row, 7] = wrong
    found = decoding.best(logits)
    assert [place for place, token in enumerate(found) if token is None] == [0, 2, 4]


def test_a_prompt_of_one_token_beside_another(checkpoint, alone):
    """It has no prompt to read, so nothing had been made when the second one came."""
    prompts = [Prompt((Control("<s>"),)), raw("a longer one, which is read in a pass of its own")]
    right = [text_of(alone, one, Sampling(max_tokens=9 - 6 * (n == 0))) for n, one in enumerate(prompts)]
    for _ in range(3):
        engine = plain(checkpoint)
        gate = Gate(loaded_model(engine))

        def call(n: int, engine: LocalEngine = engine) -> str:
            return text_of(engine, prompts[n], Sampling(max_tokens=9 - 6 * (n == 0), timeout=20))

        calls = [lambda call=call: call(0), lambda call=call: call(1)]
        threading.Thread(target=open_when, args=(engine, gate, 2)).start()
        assert at_once(calls) == right
        gate.remove()
        engine.close()


def test_a_reply_that_fails_leaves_what_was_kept_of_others(checkpoint):
    engine = plain(checkpoint)
    batch, model = batch_of(engine), loaded_model(engine)
    batch.prefixes.clear()
    for one in QUESTIONS[:2]:
        answer(engine, one)
    loaded_model(engine)
    kept, before = len(batch.prefixes), model.lm_head.weight.data.clone()
    model.lm_head.weight.data[:] = torch.nan
    with pytest.raises(NumericalError):
        answer(engine, "another one")
    model.lm_head.weight.data[:] = before
    loaded_model(engine)
    assert len(batch.prefixes) == kept > 0
    engine.close()


def test_a_llama_reads_everything_whatever_its_configuration_says(tmp_path):
    from .conftest import make_model, make_tokenizer

    make_model(tmp_path, sliding_window=8)
    make_tokenizer(tmp_path)
    engine = plain(tmp_path, template="karakuri-lm-70b-chat-v0.1", prefix_cache_mib=0, prompt_lookup=False)
    right = [answer(engine, one, max_tokens=30) for one in QUESTIONS[:4]]
    assert at_once([lambda one=one: answer(engine, one, max_tokens=30) for one in QUESTIONS[:4]]) == right
    engine.close()
