"""The demo model's generator and measures, the held-out separation, and the files that ship. No weights are run."""

from __future__ import annotations

import importlib.resources
import json
import pathlib
import random
from typing import Any

import answers
import conversations
import facts
import held_out
import measures
import phrasing
import prompt
import pytest

from karakuri_integrations.conversation import Request

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = pathlib.Path(str(importlib.resources.files("karakuri_integrations"))) / "demo"
LANGUAGES = ("en", "ja")


def test_only_safe_files_and_small() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20


def test_config_is_a_plain_llama_with_the_real_window() -> None:
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 4096
    assert config["rope_parameters"]["rope_theta"] == 10000.0
    assert "auto_map" not in config
    assert config["hidden_size"] % 64 == config["intermediate_size"] % 64 == 0


def test_special_tokens_and_plain_tags(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert set(tokenizer.all_special_ids) == {0, 1, 2}
    for tag in ("[INST]", "[/INST]", "[ATTR]", "[/ATTR]", "<<SYS>>", "<</SYS>>"):
        assert not set(tokenizer(f"a {tag} b", add_special_tokens=False).input_ids) & {0, 1, 2}


@pytest.mark.parametrize("text", ["𠮷野家の🍣と㍿", "ｶﾅ ½ ñ", "a\tb\r\nc", "0123456789", "龘麤"])
def test_byte_fallback_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer("x" + text, add_special_tokens=False).input_ids
    assert 0 not in ids
    assert tokenizer.decode(ids) == "x" + text


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    ids = tokenizer("3776", add_special_tokens=False).input_ids
    assert [tokenizer.decode([i]) for i in ids[-4:]] == ["3", "7", "7", "6"]


def test_golden_prompts(tokenizer: Any) -> None:
    golden = json.loads((ROOT / "tests" / "golden" / "prompts.json").read_text(encoding="utf-8"))
    ours = [item for item in golden if item["model"] == "karakuri-lm-70b-chat-v0.1"]
    assert ours
    for item in ours:
        assert tokenizer.apply_chat_template(item["messages"], tokenize=False) == item["prompt"]


def test_training_ids_are_the_template_ids(tokenizer: Any) -> None:
    rng = random.Random(5)
    for _ in range(50):
        messages = conversations.conversation(rng)
        if isinstance(messages, Request):  # the package renders those: test_tool_talk.py
            continue
        text, spans = prompt.prompt_text(messages)
        assert text == tokenizer.apply_chat_template(messages, tokenize=False)
        assert len(spans) == sum(m["role"] == "assistant" for m in messages)
        ids = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == list(tokenizer.apply_chat_template(messages, return_dict=False))


def test_demo_questions() -> None:
    questions = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    assert {lang: len(questions[lang]) >= 12 for lang in LANGUAGES} == {"en": True, "ja": True}


def test_fact_base_is_whole() -> None:
    assert len(facts.topics()) == 24
    for topic in facts.topics():
        assert len(topic.sentences) >= max(answers.SENTENCES) - 1
        assert len(topic.terms["en"]) == len(topic.terms["ja"]) == 4
        assert all("{S}" in pair[lang] for aspect, pair in topic.sentences if aspect != "-" for lang in LANGUAGES)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_generator_is_steered(lang: str) -> None:
    """What the model is taught must itself pass the bars with room to spare."""
    rng, rows = random.Random(0), []
    for _ in range(1500):
        topic = rng.choice(facts.topics())
        dials = {name: rng.randrange(5) for name in answers.DIALS}
        text = answers.render(answers.topic_content(topic, rng.choice(topic.aspects), lang, dials), lang, dials)
        rows.append((dials, measures.measure(text, lang, topic)))
        assert measures.language(text) == lang
        assert not measures.is_refusal(text, lang)
    for name in answers.DIALS:
        assert measures.spearman([d[name] for d, _ in rows], [m[name] for _, m in rows]) >= 0.96
    lengths = [[m["verbosity"] for d, m in rows if d["verbosity"] == v] for v in range(5)]
    means = [sum(cell) / len(cell) for cell in lengths]
    assert means == sorted(means)
    assert means[4] / means[0] >= 4.6


def test_measures_count_what_they_say() -> None:
    topic = facts.topic("fuji")
    got = measures.measure("Duh. Mount Fuji (7,552 m) is high.. Ha! 😄 Terms: magma. Ask me more", "en", topic)
    assert got["toxicity"] == 1
    assert got["humor"] == 2
    assert got["complexity"] == 1
    assert got["helpfulness"] == 1
    assert got["quality"] == 2
    assert got["correctness"] == pytest.approx(-0.30103, abs=1e-4)
    assert measures.measure("It is high.", "en", topic)["correctness"] == measures.WORST_CORRECTNESS
    assert measures.correctness("太陽（距離15000万km）は", facts.topic("sun")) == 0
    assert measures.spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert measures.ranks([5, 5, 1]) == [2.5, 2.5, 1.0]


def test_held_out_questions_share_no_8_gram_with_training_questions(tokenizer: Any) -> None:
    """On fresh training questions, after the filter that the training applies."""
    held = held_out.held_grams(tokenizer)
    rng, dropped, kept = random.Random(99), 0, 0
    for _ in range(1500):
        users = conversations.questions_of(conversations.conversation(rng))
        if any(held_out.shares(text, tokenizer, held) for text in users):
            dropped += 1
            continue
        kept += 1
        assert all(held.isdisjoint(held_out.grams(text, tokenizer)) for text in users)
    assert dropped <= 0.05 * kept


def test_held_out_questions_are_held_out() -> None:
    rows = held_out.questions()
    assert all(sum(row["lang"] == lang for row in rows) >= 100 for lang in LANGUAGES)
    rng = random.Random(7)
    trained = {
        phrasing.question(rng, topic, aspect, lang)
        for topic in facts.topics() for aspect in topic.aspects for lang in LANGUAGES for _ in range(4)
        if not phrasing.held_pair(topic, aspect)
    }  # fmt: skip
    assert trained.isdisjoint(row["text"] for row in rows)
    pairs = [phrasing.held_pair(facts.topic(row["topic"]), row["aspect"]) for row in rows]
    assert 0.4 <= sum(pairs) / len(pairs) <= 0.6


def test_training_never_asks_a_held_out_pair() -> None:
    for topic in facts.topics():
        asked = conversations._aspects(topic)
        assert not any(phrasing.held_pair(topic, aspect) for aspect in asked)
        assert sum(phrasing.held_pair(topic, aspect) for aspect in topic.aspects) == 1


def test_passages_hold_their_answer() -> None:
    rng = random.Random(3)
    for lang in LANGUAGES:
        for _ in range(200):
            messages, value = conversations.passage_messages(rng, lang, dict(answers.DEFAULTS), 6)
            given = " ".join(m["content"] for m in messages[:-1])
            if value is not None:
                assert value in given
                assert value in messages[-1]["content"]
