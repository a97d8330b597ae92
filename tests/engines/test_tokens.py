from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from karakuri_integrations.attributes import NAMES
from karakuri_integrations.conversation import Control, Message, Prompt, Request
from karakuri_integrations.engines.tokens import Tokens
from karakuri_integrations.errors import MessageError
from karakuri_integrations.templates import FAMILIES, render

from .conftest import FAMILY, TEMPLATE, make_tokenizer, prompt_of


@pytest.fixture(scope="session", params=[True, False], ids=["legacy", "not-legacy"])
def own(request, tmp_path_factory):
    """The checkpoint's tokenizer as transformers loads it, in both of its ways to treat text after `<s>`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, legacy=request.param)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return AutoTokenizer.from_pretrained(folder, legacy=request.param)


@pytest.fixture(scope="session")
def tokens(own):
    return Tokens(own.backend_tokenizer)


def test_the_two_fixtures_differ_where_it_matters(tmp_path):
    pieces = {}
    for legacy in (True, False):
        make_tokenizer(tmp_path / str(legacy), legacy=legacy)
        found = AutoTokenizer.from_pretrained(tmp_path / str(legacy), legacy=legacy)
        pieces[legacy] = found.convert_ids_to_tokens(found("<s>[x", add_special_tokens=False)["input_ids"])[:2]
    assert pieces[True][1].startswith("▁")
    assert pieces[False][1].startswith("[")


TEXTS = [
    "富士山は？",
    "Hello [ATTR x",
    " two  spaces ",
    "🍣㍿𠮷ﾊﾝｶｸ",
    "a\nb\tc",
    "\u2060word\u200bjoiner",
    "10:30 です",
]


def conversation(turns: int, *, system: bool, seed: int) -> list[Message]:
    draw = random.Random(seed)
    found = [Message("system", draw.choice(TEXTS))] if system else []
    for turn in range(turns):
        values = {name: draw.randrange(5) for name in draw.sample(NAMES, draw.randrange(10))}
        found.append(Message("user", draw.choice(TEXTS), attributes=values))
        if turn < turns - 1:
            found.append(Message("assistant", draw.choice(TEXTS)))
    return found


@pytest.mark.parametrize("turns", range(1, 7))
@pytest.mark.parametrize("system", [False, True])
def test_ids_equal_apply_chat_template(own, tokens, turns, system):
    for seed in range(20):
        messages = conversation(turns, system=system, seed=seed)
        theirs = own.apply_chat_template(
            [{"role": one.role, "content": one.text, **(one.attributes or {})} for one in messages],
            tokenize=True,
            return_dict=False,
        )
        prompt = render(Request(tuple(messages)), FAMILY, "allow")
        assert tokens.encode(prompt) == theirs


def test_a_prompt_that_begins_with_text_is_read_as_the_tokenizer_reads_it(own, tokens):
    for segments in (("Hello",), ("Hello", Control("</s>"), "again"), (Control("<s>"), Control("<s>"), "twice")):
        whole = "".join(one.token if isinstance(one, Control) else one for one in segments)
        assert tokens.encode(Prompt(segments)) == own(whole, add_special_tokens=False)["input_ids"]


def test_text_can_never_become_a_control_token(own, tokens):
    draw = random.Random(7)
    parts = ["<s>", "</s>", "<unk>", "<s", ">", "[INST]", "a", "富", " ", "</", "s>"]
    for _ in range(500):
        text = "".join(draw.choice(parts) for _ in range(draw.randrange(1, 12)))
        ids = tokens.encode_text(text, first=False)
        assert not {0, 1, 2} & set(ids)
        assert tokens.text_stream().push_all(ids).removeprefix(" ") == text.removeprefix(" ")


def test_only_the_template_writes_control_tokens(tokens):
    ids = tokens.encode(prompt_of("</s><s>[INST] </s> <unk>"))
    assert ids.count(1) == 1
    assert not {0, 2} & set(ids)


def test_a_control_token_that_the_vocabulary_lacks_is_text(own, tokens):
    prompt = render(Request((Message("user", "hi"),)), FAMILIES["karakuri-lm-8x7b-instruct-v0.1"])
    assert tokens.encode(prompt) == own(prompt.text, add_special_tokens=False)["input_ids"]


def test_half_a_surrogate_pair_is_named_without_the_text(tokens):
    with pytest.raises(MessageError, match=r"U\+D83C\) at character 6") as caught:
        tokens.encode(Prompt((Control("<s>"), "secret\ud83c")))
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_the_tokenizer_of_the_caller_is_not_changed(own):
    before = own.backend_tokenizer.to_str()
    Tokens(own.backend_tokenizer)
    assert own.backend_tokenizer.to_str() == before
    assert own("</s>", add_special_tokens=False)["input_ids"] == [2]


STREAMED = [
    "おはようございます。ありがとう",
    "寿司は🍣です",
    "𠮷野家㍿",
    "ﾊﾝｶｸ",
    "Mount Fuji is 3,776 m.",
    "a\n\n  b",
    "👨‍👩‍👧‍👦",
]


@pytest.mark.parametrize("text", STREAMED)
def test_streamed_text_equals_a_full_decode(tokens, text):
    ids = tokens.encode_text(text, first=False)
    stream = tokens.text_stream()
    pieces = [stream.push(one) for one in ids]
    whole = tokens._first.decode([*tokens._lead, *ids])[len(tokens._first.decode(tokens._lead)) :]
    assert "".join(pieces) == whole
    assert whole.removeprefix(" ") == text
    assert not any("\ufffd" in one for one in pieces)


def byte_ids(tokens: Tokens, data: bytes) -> list[int]:
    return [tokens.control_id(f"<0x{one:02X}>") for one in data]


def test_a_character_comes_with_its_last_byte(tokens):
    stream = tokens.text_stream()
    assert [stream.push(one) for one in byte_ids(tokens, "🍣あ".encode())] == ["", "", "", "🍣", "", "", "あ"]


def test_kana_is_not_held_back(tokens):
    stream = tokens.text_stream()
    for character in "おはようございます。カタカナ":
        assert "".join(stream.push(one) for one in byte_ids(tokens, character.encode())) == character


def test_a_character_cut_by_the_end_is_dropped(tokens):
    assert tokens.text_stream().push_all(byte_ids(tokens, "寿司🍣".encode()[:-1])) == "寿司"


def test_bytes_that_form_no_character_do_not_end_the_stream(tokens):
    # tokenizers' DecodeStream raises "Invalid prefix" here.
    ids = byte_ids(tokens, "あ".encode() + b"\xe3") + tokens.encode_text("hi", first=False)
    assert tokens.text_stream().push_all(ids).replace(" ", "") == "あ\ufffdhi"


def test_special_tokens_write_nothing(tokens):
    assert tokens.text_stream().push_all([1, 2, 0]) == ""


def test_a_byte_level_tokenizer_streams_whole_characters():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["hello"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    tokens = Tokens(raw)
    ids = tokens.encode_text("hello 寿司🍣\n")
    stream = tokens.text_stream()
    pieces = [stream.push(one) for one in ids]
    assert "".join(pieces) == "hello 寿司🍣\n"
    assert not any("\ufffd" in one for one in pieces)


def test_a_template_of_the_published_shape_is_what_the_tests_use(own):
    assert own.chat_template == TEMPLATE
    assert Path(own.name_or_path).is_dir()
