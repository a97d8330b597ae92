"""A draft model: the same text in fewer passes of the large model, whatever the draft says."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

import karakuri_integrations
from karakuri_integrations.conversation import Sampling
from karakuri_integrations.engines import LocalEngine, drafting
from karakuri_integrations.errors import ModelLoadError, OptionError

from .conftest import answer, loaded_model, make_model, make_tokenizer, prompt_of
from .test_batching import QUESTIONS, at_once, batch_of, plain, text_of

HOWS = [
    Sampling(max_tokens=40),
    Sampling(max_tokens=40, temperature=1.2, seed=3),
    Sampling(max_tokens=40, repetition_penalty=1.3),
    Sampling(max_tokens=1),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Another random model with the same tokenizer: its guesses are as good as none."""
    folder = tmp_path_factory.mktemp("models") / "draft-llama"
    make_model(folder, num_hidden_layers=1, hidden_size=32, intermediate_size=64, initializer_range=0.3)
    make_tokenizer(folder)
    return folder


@pytest.fixture
def alone(checkpoint):
    found = plain(checkpoint, prefix_cache_mib=0, prompt_lookup=False)
    yield found
    found.close()


def drafted(checkpoint, draft, **fields) -> LocalEngine:
    return plain(checkpoint, draft_model=draft, **{"prompt_lookup": False, **fields})


@pytest.mark.parametrize("how", HOWS, ids=["greedy", "seeded", "penalty", "one"])
@pytest.mark.parametrize("lookup", [False, True], ids=["", "lookup"])
def test_what_is_generated_stays_the_same(checkpoint, small, alone, how, lookup):
    right = [text_of(alone, prompt_of(one), how) for one in QUESTIONS[:4]]
    for draft in (checkpoint, small):
        engine = drafted(checkpoint, draft, prompt_lookup=lookup)
        assert [text_of(engine, prompt_of(one), how) for one in QUESTIONS[:4]] == right
        engine.close()


def test_right_guesses_save_passes(checkpoint, alone):
    how = Sampling(max_tokens=60)
    before = alone.steps
    right = text_of(alone, prompt_of(), how)
    passes = alone.steps - before
    engine = drafted(checkpoint, checkpoint)
    before = engine.steps
    assert text_of(engine, prompt_of(), how) == right
    assert engine.steps - before <= passes / 4  # 8 guesses and one token of its own in a pass, at best
    engine.close()


def test_wrong_guesses_are_given_up(checkpoint, small):
    engine = drafted(checkpoint, small)
    answer(engine, max_tokens=200)
    asked: list[int] = []
    guess = drafting.Draft.guess

    def counted(self, *given):
        asked.append(len(given[0]))
        return guess(self, *given)

    drafting.Draft.guess = counted
    try:
        answer(engine, "おはようございます", max_tokens=200)
    finally:
        drafting.Draft.guess = guess
    assert 2 <= len(asked) < 40
    engine.close()


def test_a_long_prompt_is_read_by_chunks(checkpoint, alone, monkeypatch):
    monkeypatch.setattr(drafting, "PREFILL_CHUNK", 16)
    text = "富士山は日本で一番高い山です。" * 12
    right = answer(alone, text, max_tokens=60)
    engine = drafted(checkpoint, checkpoint)
    before = engine.steps
    assert answer(engine, text, max_tokens=60) == right
    assert engine.steps - before < 60
    engine.close()


def test_with_others_and_after_them(checkpoint, alone):
    right = [answer(alone, one, max_tokens=10 + 4 * n) for n, one in enumerate(QUESTIONS[:6])]
    engine = drafted(checkpoint, checkpoint)
    calls = [lambda n=n, one=one: answer(engine, one, max_tokens=10 + 4 * n) for n, one in enumerate(QUESTIONS[:6])]
    assert at_once(calls) == right
    assert at_once(calls) == right
    engine.close()


def test_what_it_read_is_used_again_in_its_scope_only(checkpoint, monkeypatch):
    engine = drafted(checkpoint, checkpoint)
    read: list[int] = []
    forward = drafting.Draft._forward
    monkeypatch.setattr(drafting.Draft, "_forward", lambda self, new: (read.append(len(new)), forward(self, new))[1])
    text = "富士山は日本で一番高い山です。" * 4

    def most_read(**how) -> int:
        read.clear()
        answer(engine, text, **how)
        return max(read)

    first = most_read()
    assert first > 50
    assert most_read() < 5
    assert most_read(cache_scope="another") == first
    engine.close()


def test_nothing_is_kept_where_nothing_may_be(checkpoint, monkeypatch):
    made = []
    init = drafting.Draft.__init__
    monkeypatch.setattr(drafting.Draft, "__init__", lambda self, *given: (made.append(self), init(self, *given))[1])
    for kept in (0, 64):
        engine = drafted(checkpoint, checkpoint, prefix_cache_mib=kept)
        answer(engine)
        loaded_model(engine)  # behind the step in which the reply ended
        assert bool(made[-1]._values.bytes) == bool(kept)
        engine.close()


def test_another_vocabulary_is_refused_before_weights_are_read(checkpoint, tmp_path, small):
    other = tmp_path / "other"
    other.mkdir()
    for file in small.iterdir():
        if file.suffix != ".safetensors":
            (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    engine = drafted(checkpoint, other)
    with pytest.raises(ModelLoadError, match="draft_model other has another tokenizer than tiny-llama"):
        answer(engine)


def test_a_model_is_loaded_for_each_draft_model(checkpoint, small):
    assert plain(checkpoint)._shared is not drafted(checkpoint, small)._shared
    assert drafted(checkpoint, small)._shared is drafted(checkpoint, str(small))._shared
    assert drafted(checkpoint, small) != plain(checkpoint, prompt_lookup=False)


def test_a_revision_without_a_draft_model_is_refused(checkpoint):
    with pytest.raises(OptionError, match="draft_revision is for a draft_model"):
        plain(checkpoint, draft_revision="main")


def test_the_embedded_model_drafts_wherever_the_package_is():
    engine = LocalEngine("o/large", cache_dir="files", draft_model="karakuri-demo")
    again = pickle.loads(pickle.dumps(engine))
    assert again == engine
    assert again._key == engine._key
    assert str(Path(karakuri_integrations.__file__).parent) not in str(engine._arguments)


def test_the_cache_of_the_hub_is_for_a_draft_model_from_the_hub():
    def drafts(draft: str) -> str | None:
        return LocalEngine("o/large", cache_dir="files", draft_model=draft)._key.draft.cache_dir

    assert drafts("o/small") == str(Path("files").absolute())
    assert drafts("./not_there_yet") is None


@pytest.mark.parametrize("draft", [5, True, b"x", "", ["x"]])
def test_what_is_no_draft_model_is_refused(draft):
    with pytest.raises(OptionError, match="draft_model must be a hub id or a folder, got"):
        LocalEngine(draft_model=draft)


@pytest.mark.parametrize("how", [Sampling(max_tokens=60), Sampling(max_tokens=60, temperature=1.3, seed=1)])
def test_a_draft_model_without_the_large_ones_last_ids_does_not_read_them(tmp_path, small, how):
    """As where the large one has more ids than the tokenizer, to fill a matrix."""
    large = tmp_path / "large"
    make_model(large, vocab_size=480)
    make_tokenizer(large)
    engine, right = drafted(large, small), plain(large, prompt_lookup=False)
    read, forward = [0], drafting.Draft._forward
    drafting.Draft._forward = lambda self, new: (read.append(max(new)), forward(self, new))[1]
    try:
        for number in range(4):
            prompt = prompt_of(f"Number {number}, and so on?")
            assert text_of(engine, prompt, how) == text_of(right, prompt, how)
    finally:
        drafting.Draft._forward = forward
    assert 0 < max(read) < 400
    for one in (engine, right):
        one.close()


@pytest.mark.parametrize("kept", [0, 64])
@pytest.mark.parametrize("which", ["draft", "large"])
def test_where_a_device_is_full_the_draft_model_is_given_up(checkpoint, alone, which, kept):
    right = answer(alone, max_tokens=60)
    engine = drafted(checkpoint, checkpoint, prefix_cache_mib=kept)
    batch, times = batch_of(engine), []

    def full(_module, _given, _output) -> None:
        if batch._draft.bytes and (which == "large" or len(batch._draft._read) > 80):
            times.append(1)
            raise MemoryError

    hook = (batch.model if which == "large" else batch._draft._model).register_forward_hook(full)
    assert answer(engine, max_tokens=60) == right
    hook.remove()
    assert times == [1]
    batch_of(engine)  # the worker has done
    before = engine.steps
    assert answer(engine, max_tokens=60) == right
    assert engine.steps - before < 30  # it guesses again
    engine.close()


def test_an_engine_that_keeps_nothing_uses_nothing_of_others(checkpoint, monkeypatch):
    careful = drafted(checkpoint, checkpoint, prefix_cache_mib=0)
    keeping = drafted(checkpoint, checkpoint)
    read, forward = list[int](), drafting.Draft._forward
    monkeypatch.setattr(drafting.Draft, "_forward", lambda self, new: (read.append(len(new)), forward(self, new))[1])

    def most_read(engine: LocalEngine) -> int:
        read.clear()
        answer(engine)
        return max(read)

    first = most_read(keeping)
    assert first > 20
    assert most_read(careful) == first
    assert most_read(keeping) >= first - 1  # the large one's first token comes without a pass over its prompt
    assert most_read(keeping) < 5
    keeping.close()
