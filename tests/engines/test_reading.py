"""Prompts that are read together: in few passes, to the same replies, and each for itself where one goes wrong."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, decoding
from karakuri_integrations.engines.channel import Channel, Deadline
from karakuri_integrations.engines.decoding import PREFILL_CHUNK
from karakuri_integrations.engines.generating import Generation
from karakuri_integrations.engines.guessing import MOST_GUESSES
from karakuri_integrations.engines.key_values import KeyValues
from karakuri_integrations.engines.pace import Pace
from karakuri_integrations.engines.rows import Row
from karakuri_integrations.errors import NumericalError, WorkerError

from .conftest import answer, loaded_model, prompt_of
from .test_batching import QUESTIONS, alone, at_once, batch_of, open_when, plain  # noqa: F401
from .test_cancel import Gate
from .test_faults import wait_until

TOKENS = 6


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """As where nobody waits for a token: how much is read at once hangs on no duration."""
    monkeypatch.setattr(Pace, "chunk", lambda *_: PREFILL_CHUNK)


class NoTexts:
    def text_stream(self) -> None: ...


FIRST = "Wait until the others have come."


def together(engine: LocalEngine, questions: list[str], tokens: int = TOKENS) -> list:
    """Replies to questions, or what was raised: all come while the first pass of another call is made."""
    entered, go = threading.Event(), threading.Event()

    def hold(*_) -> None:
        entered.set()
        go.wait(30)

    def one(question: str):
        try:
            return answer(engine, question, max_tokens=tokens)
        except Exception as error:
            return error

    hook = loaded_model(engine).register_forward_pre_hook(hold)
    first = threading.Thread(target=one, args=(FIRST,))
    first.start()
    entered.wait(30)

    def start() -> None:
        worker = engine._shared._worker
        wait_until(lambda: len(worker._jobs) == len(questions))
        hook.remove()
        go.set()

    starter = threading.Thread(target=start)
    starter.start()
    found = at_once([lambda question=question: one(question) for question in questions])
    for each in (starter, first):
        each.join(60)
    return found


def prompt_ids(engine: LocalEngine, question: str) -> list[int]:
    return engine._shared.tokens.encode(prompt_of(question))


def sizes_of(engine: LocalEngine) -> tuple[list[tuple[int, int]], object]:
    """Rows and columns of all passes from now on."""
    sizes = list[tuple[int, int]]()
    module = loaded_model(engine).model.embed_tokens
    return sizes, module.register_forward_hook(lambda _module, given, _output: sizes.append(tuple(given[0].shape)))


@pytest.mark.parametrize("fields", [{}, {"prefix_cache_mib": 0}], ids=["kept", "nothing_kept"])
def test_short_prompts_are_read_in_one_pass(checkpoint, alone, fields):  # noqa: F811
    questions = [f"Question {number}: where is it?" for number in range(5)]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine = plain(checkpoint, prompt_lookup=False, **fields)
    sizes, hook = sizes_of(engine)
    assert together(engine, questions) == right
    hook.remove()
    assert [rows for rows, columns in sizes if columns > 1] == [1, 5]
    # The first call's prompt, then of each pass that reads or makes tokens one.
    assert len(sizes) <= 1 + 1 + 1 + TOKENS


def test_a_long_prompt_is_read_by_itself(checkpoint, alone):  # noqa: F811
    questions = ["長い " * PREFILL_CHUNK, *QUESTIONS[:3]]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    sizes, hook = sizes_of(engine)
    assert together(engine, questions) == right
    hook.remove()
    assert all(rows * columns <= PREFILL_CHUNK for rows, columns in sizes)


def test_who_begins_as_another_takes_that_from_it(checkpoint, alone):  # noqa: F811
    """Whoever waits beside one with the same document does not read it as well."""
    document = "富士山は日本で一番高い山です。" * 12
    questions = [f"{document} Question {number}?" for number in range(4)]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine = plain(checkpoint, prompt_lookup=False)
    sizes, hook = sizes_of(engine)
    assert together(engine, questions) == right
    hook.remove()
    length = len(engine.token_ids(document))
    assert length > 100
    assert [rows for rows, columns in sizes if columns > 1] == [1, 1, 3]
    assert sum(columns for _, columns in sizes) < length + 300


def test_what_is_filled_takes_no_memory_beyond_the_longest(checkpoint, alone, monkeypatch):  # noqa: F811
    """One goes on behind a long beginning that is known, the other is new: side by side both would be as long as both."""
    monkeypatch.setattr(Pace, "fill", lambda *_: True)  # as where a pass by itself takes long
    document, new = "富士山は日本で一番高い山です。" * 30, "Elsewhere " * 30
    questions = [f"{document} And so on?", new]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine = plain(checkpoint, prompt_lookup=False)
    answer(engine, document, max_tokens=1)
    sizes, hook = sizes_of(engine)
    assert together(engine, questions) == right
    hook.remove()
    read = [one for one in sizes if one[1] > 1]
    assert [rows for rows, _ in read] == [1, 1, 1]
    assert read[1][1] < len(engine.token_ids(document))


def test_tenants_who_wait_together_take_nothing_from_each_other(checkpoint):
    document = "富士山は日本で一番高い山です。" * 12

    def row(scope: str | None, cache_bytes: int | None = None) -> Row:
        ids = [5 + n % 300 for n in range(len(document))]
        how = Sampling(max_tokens=1, cache_scope=scope)
        job = Generation(Channel(Deadline(None)), ids, how, 1, frozenset(), None, cache_bytes=cache_bytes)
        return Row(replace(job, tokens=NoTexts()), 0, ())

    assert row("a").ahead_of(row("a"))
    assert not row("a").ahead_of(row("b"))
    assert not row("a").ahead_of(row(None))
    assert not row("a").ahead_of(row("a", cache_bytes=0))
    begun = row("a")
    begun.begun = True
    assert not row("a").ahead_of(begun)


def test_a_pass_over_prompts_that_fails_is_theirs_alone(checkpoint, alone):  # noqa: F811
    questions = ["Question 1?", "Question 2?", "Question 3?"]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine, done = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False), []

    def broken(_module, given, _output) -> None:
        if min(given[0].shape) > 1:
            raise RuntimeError("bug")

    hook = loaded_model(engine).model.embed_tokens.register_forward_hook(broken)
    running = threading.Thread(target=lambda: done.append(answer(engine, QUESTIONS[0], max_tokens=40)))
    running.start()
    errors = together(engine, questions)
    running.join(60)
    hook.remove()
    assert all(isinstance(one, WorkerError) for one in errors)
    assert len({id(one) for one in errors}) == 3
    assert done == [answer(alone, QUESTIONS[0], max_tokens=40)]
    assert together(engine, questions) == right


def test_logits_that_are_no_numbers_end_one_of_those_that_are_read_together(checkpoint, alone):  # noqa: F811
    questions = ["Question 1?", "Question 2, a longer one?", "Question 3?"]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)

    def poisoned(_module, _given, named, output) -> None:
        if min(named["input_ids"].shape) > 1:
            output.logits[1] = float("nan")

    hook = loaded_model(engine).register_forward_hook(poisoned, with_kwargs=True)
    found = together(engine, questions)
    hook.remove()
    errors = [one for one in found if isinstance(one, Exception)]
    assert [type(one) for one in errors] == [NumericalError]
    assert all(one in (reply, errors[0]) for one, reply in zip(found, right, strict=True))


def test_room_is_kept_for_what_a_prompt_that_waits_goes_on_from(checkpoint, alone, monkeypatch):  # noqa: F811
    """Others join before it begins, where memory is short; its known beginning still has a place."""
    questions = ["一番高い山 " * 160, "Question 1?", "Question 2?"]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine = plain(checkpoint, prompt_lookup=False)
    longest = len(prompt_ids(engine, questions[0])) + 128 + MOST_GUESSES
    monkeypatch.setattr(batch_of(engine)._parking, "room", lambda _estimated: KeyValues.least(3, longest))
    assert answer(engine, questions[0], max_tokens=TOKENS) == right[0]
    assert together(engine, questions) == right


def test_a_pass_that_fails_is_not_theirs_who_wait(checkpoint, alone):  # noqa: F811
    """Nothing of those whose prompts are unread was in it."""
    questions = [f"一番高い山 {number} " * 90 for number in range(4)]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine, done = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False), []
    model, fails = loaded_model(engine), [3]

    def broken(_module, given, _output) -> None:
        if given[0].shape[1] == 1 and len(batch._reading) > 1:
            fails[0] -= 1
            if fails[0] == 0:
                raise ValueError("bug")

    batch = batch_of(engine)
    hook = model.model.embed_tokens.register_forward_hook(broken)

    def call() -> None:
        try:
            done.append(answer(engine, QUESTIONS[0], max_tokens=200))
        except WorkerError as error:
            done.append(error)

    running = threading.Thread(target=call)
    running.start()
    found = together(engine, questions)
    running.join(60)
    hook.remove()
    assert fails[0] <= 0
    failed = [one for one in (*done, *found) if isinstance(one, Exception)]
    assert 1 <= len(failed) <= 3  # those whose tokens the pass was to make
    assert sum(one == reply for one, reply in zip(found, right, strict=True)) >= 2


def test_what_is_made_beside_a_pass_fails_for_one(checkpoint, alone, monkeypatch):  # noqa: F811
    questions = ["Question 1?", "Question 2?", "Question 3?"]
    right = [answer(alone, one, max_tokens=TOKENS) for one in questions]
    engine, prepare = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False), decoding.Sequence.prepare
    second = prompt_ids(engine, questions[1])

    def broken(self, guess):
        if self.ids == second:
            raise RuntimeError("bug")
        return prepare(self, guess)

    monkeypatch.setattr(decoding.Sequence, "prepare", broken)
    found = together(engine, questions)
    assert isinstance(found[1], WorkerError)
    assert [found[0], found[2]] == [right[0], right[2]]


def test_what_a_call_has_read_itself_is_not_reused(checkpoint, monkeypatch):
    """One that is half read leaves its row where memory is short, and comes back to what was kept of it."""
    engine = plain(checkpoint, prompt_lookup=False)
    batch = batch_of(engine)
    room, put, parked = [10**6], batch._parking.put, []
    monkeypatch.setattr(batch._parking, "room", lambda _estimated: room[0])

    def noted(row) -> None:
        parked.append((row.sequence.made, len(row.sequence.ids)))
        room[0] = 10**6
        put(row)

    monkeypatch.setattr(batch._parking, "put", noted)
    long = "一番高い山 " * 200

    def short(_module, given, _output) -> None:
        if given[0].shape[1] == PREFILL_CHUNK and not parked:
            room[0] = 200

    model = loaded_model(engine)
    hook = model.model.embed_tokens.register_forward_hook(short)
    beside = threading.Thread(target=lambda: answer(engine, FIRST, max_tokens=300))
    beside.start()
    wait_until(lambda: batch._rows)
    pieces = [*engine.stream(prompt_of(long), Sampling(max_tokens=TOKENS))]
    beside.join(60)
    hook.remove()
    assert parked[0][0] == 0
    assert pieces[-1].usage.cache_read == 0


def test_no_place_keeps_numbers_that_are_none(checkpoint, alone):  # noqa: F811
    """Several of those that are read together fail; who comes to their places later would see theirs in hidden columns."""
    questions = ["Question 1?", "Question 2?", "Question 3?", "Question 4?"]
    engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    batch, model, bad = batch_of(engine), loaded_model(engine), []

    def poisoned(_module, _given, output) -> None:
        if min(output.shape[:2]) > 1:
            output[1:] = float("nan")

    def look(*_) -> None:
        bad.extend(one for layer in batch._values._layers for one in layer if not one.isfinite().all())

    hooks = [
        model.model.layers[0].self_attn.v_proj.register_forward_hook(poisoned),
        model.register_forward_pre_hook(look),
    ]
    running = threading.Thread(target=lambda: answer(engine, QUESTIONS[0], max_tokens=60))
    running.start()
    wait_until(lambda: batch._rows)
    found = together(engine, questions)
    running.join(60)
    for hook in hooks:
        hook.remove()
    assert sum(isinstance(one, NumericalError) for one in found) >= 2
    assert bad == []
    assert answer(engine, QUESTIONS[1]) == answer(alone, QUESTIONS[1])


def test_a_reply_that_ends_beside_prompts_that_wait_moves_them(checkpoint, alone):  # noqa: F811
    """The rows close up behind one that leaves, also those whose prompts are half read."""
    long = ["一番高い山 " * (200 + n) for n in range(3)]
    right = [answer(alone, one, max_tokens=TOKENS) for one in [*QUESTIONS[:2], *long]]
    for tokens in (1, 2, 3):
        engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
        gate = Gate(loaded_model(engine))
        calls = [
            lambda one=one, most=most, engine=engine: answer(engine, one, max_tokens=most)
            for one, most in [(QUESTIONS[0], tokens), (QUESTIONS[1], TOKENS), *((one, TOKENS) for one in long)]
        ]
        opener = threading.Thread(target=open_when, args=(engine, gate, 5))
        opener.start()
        found = at_once(calls)
        opener.join()
        gate.remove()
        engine.close()
        assert right[0].startswith(found[0])
        assert found[1:] == right[1:]


def test_the_first_token_comes_with_the_prompt(checkpoint):
    engine = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    loaded_model(engine)
    before = engine.steps
    answer(engine, max_tokens=1)
    assert engine.steps - before == 1
