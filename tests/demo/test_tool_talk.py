"""The generator of conversations with tools: what the model is taught is what the package renders and accepts."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import conversations
import held_out
import pytest
import tool_asks
import tool_table
import tool_talk
import tool_words
from prompt import FAMILY, request_text

from karakuri_integrations.conversation import Message, Reply, Request, ToolCall
from karakuri_integrations.templates import render
from karakuri_integrations.tools import tooling_of

LANGUAGES = ("en", "ja")
MAKERS = {
    "talk": tool_talk.tool_talk,
    "drill": lambda rng, lang: tool_talk.tool_talk(rng, lang, drill=True),
    "held": lambda rng, lang: tool_talk.tool_talk(rng, lang, held=True),
    "forced": tool_talk.forced_talk,
    "structured": tool_talk.structured_talk,
    "list": tool_talk.list_practice,
    "many": tool_talk.many_calls,
}


def _requests(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    return [maker(rng, lang) for _ in range(count) for maker in MAKERS.values() for lang in LANGUAGES]


def test_the_same_seed_makes_the_same_conversations() -> None:
    assert _requests(5, 3) == _requests(5, 3)
    assert _requests(5, 3) != _requests(5, 4)


def test_every_reply_is_taught_behind_the_prompt_that_the_package_renders() -> None:
    for request in _requests(15):
        text, spans = request_text(request)
        places = [place for place, one in enumerate(request.messages) if one.role == "assistant"]
        assert len(spans) == len(places)
        for place, (start, end) in zip(places, spans, strict=True):
            auto = place != places[-1]
            past = Request(
                request.messages[:place],
                _dials(request.messages, place),
                request.past_attributes,
                request.tooling if not auto else tool_talk.Tooling(request.tooling.tools, "auto", schema=request.tooling.schema, language=request.tooling.language),
            )  # fmt: skip
            assert render(past, FAMILY).text == text[:start]
            assert text[:end].endswith(" </s>")


def _dials(messages: tuple[Message, ...], place: int) -> Any:
    """The dials of the answered turn: results carry none of their own, so the request's would hold."""
    return messages[place].attributes


def test_a_prompt_is_tokens_of_its_own(tokenizer: Any) -> None:
    """What is encoded at once for the training begins with the ids of the prompt, also of one that ends in a call."""
    encode = tokenizer._tokenizer.encode
    for request in _requests(6, 1):
        text, spans = request_text(request)
        ids = encode(text, add_special_tokens=False).ids
        for start, _ in spans:
            prompt = encode(text[:start], add_special_tokens=False).ids
            assert ids[: len(prompt)] == prompt


def test_calls_hold_arguments_of_their_tools_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    seen = 0
    for request in _requests(40, 5):
        schemas = {tool.name: json.loads(tool.parameters) for tool in request.tooling.tools}
        for message in request.messages:
            for call in message.calls:
                arguments = json.loads(call.arguments)
                jsonschema.validate(arguments, schemas[call.name])
                assert call.arguments == json.dumps(arguments, ensure_ascii=False)
                assert list(arguments) == [name for name in schemas[call.name]["properties"] if name in arguments]
                seen += 1
            if request.tooling.schema is not None and message.role == "assistant":
                jsonschema.validate(json.loads(message.text), json.loads(request.tooling.schema))
    assert seen > 100


def test_definitions_are_taken_by_the_package() -> None:
    for request in _requests(10, 6):
        given = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}}
            for tool in request.tooling.tools
        ]  # fmt: skip
        assert [tool.name for tool in tooling_of({"tools": given}).tools] == [t.name for t in request.tooling.tools]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("held", [False, True])
def test_strings_of_a_first_call_stand_in_the_question(lang: str, held: bool) -> None:
    rng = random.Random(7)
    for _ in range(300):
        made = tool_asks.ask(rng, lang, held)
        for step in made.rounds[0]:
            for value in step.arguments.values():
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, str | int | float) and not isinstance(one, bool):
                        assert str(one) in made.question


@pytest.mark.parametrize("lang", LANGUAGES)
def test_second_rounds_calculate_with_the_first_ones_result(lang: str) -> None:
    rng = random.Random(8)
    for _ in range(100):
        made = tool_asks.chain_ask(rng, lang)
        amounts = [json.loads(step.result) for step in made.rounds[0]]
        amounts = [one["value"] if isinstance(one, dict) else one for one in amounts]
        (second,) = made.rounds[1]
        assert next(iter(second.arguments.values())) == amounts[0]
        assert second.result in made.answer


def test_about_half_of_the_questions_are_for_a_tool() -> None:
    rng, calls, words = random.Random(9), 0, 0
    for _ in range(300):
        messages = tool_talk.tool_talk(rng, rng.choice(LANGUAGES)).messages
        for before, message in itertools.pairwise(messages):
            if before.role == "user" and message.role == "assistant":
                calls, words = calls + bool(message.calls), words + (not message.calls)
    assert 0.4 <= calls / (calls + words) <= 0.6


def _tables(module: Any) -> list[tuple[str, str]]:
    """Every (trained, held out) pair of a module, also those by language."""
    found: list[tuple[str, str]] = []
    waiting: list[Any] = [value for name, value in vars(module).items() if name.lstrip("_").isupper()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, str) and "|" in one for one in value):
            found.append(value)
        elif isinstance(value, tuple):
            waiting += [one for one in value if isinstance(one, dict | tuple)]
    return found


def test_held_out_names_and_wordings_are_not_in_the_training() -> None:
    tables = _tables(tool_words) + _tables(tool_asks) + _tables(tool_talk)
    assert len(tables) >= 20
    for trained, held in tables:
        shared = set(trained.split("|")) & set(held.split("|"))
        assert shared <= {"{}", "The tool says: {r}", "ツールの返事：{r}"}


def test_held_out_questions_share_no_8_gram_with_training_questions(tokenizer: Any) -> None:
    held = held_out.held_grams(tokenizer)
    rows = held_out.tool_questions()
    assert all(sum(row["lang"] == lang and bool(row["rounds"]) for row in rows) == 60 for lang in LANGUAGES)
    rng, dropped = random.Random(99), 0
    for _ in range(600):
        request = tool_talk.tool_talk(rng, rng.choice(LANGUAGES))
        dropped += any(held_out.shares(text, tokenizer, held) for text in conversations.questions_of(request))
    assert dropped <= 6  # what the training drops is little


def test_the_well_known_test_suite_is_not_taught() -> None:
    """Its names and wordings are to be met unseen."""
    rng = random.Random(10)
    wordings = (
        "What is the value of ",
        "Create a customer named",
        "What is the weather in ",
        "using the tool, generate",
    )
    for _ in range(3000):
        made = tool_asks.ask(rng, "en")
        assert not {tool.name for tool in made.tools} & set(tool_asks.UNSEEN)
        assert not any(wording in made.question for wording in wordings)


class _Scripted:
    """Answers what is expected, or always the same."""

    def __init__(self, rows: list[dict[str, Any]], wrong: bool = False) -> None:
        self._rows, self._wrong = {row["question"]: row for row in rows}, wrong

    def __call__(self, messages: list[Message], grammar: bool = True, **options: Any) -> Reply:
        row = self._rows[messages[0].text]
        place = sum(message.role == "assistant" for message in messages)
        if self._wrong:
            return Reply("no", "tool_calls", None, (ToolCall("x", "{", "", "cut"),))
        if place == len(row["rounds"]):
            return Reply(row["answer"], "stop", None)
        calls = tuple(ToolCall(step["tool"], json.dumps(step["arguments"])) for step in row["rounds"][place])
        return Reply("", "tool_calls", None, calls)


def test_the_table_counts_what_it_says() -> None:
    rows = [row for row in held_out.tool_questions() if row["rounds"]]
    plain = [row for row in held_out.tool_questions() if not row["rounds"]]
    right = tool_table.calls(_Scripted(rows), rows)  # type: ignore[arg-type]
    assert [
        right[key] for key in ("exact", "exact_free", "exact_forced", "valid", "further_rounds", "answers", "whole")
    ] == [1.0] * 7
    wrong = tool_table.calls(_Scripted(rows, wrong=True), rows)  # type: ignore[arg-type]
    assert [
        wrong[key] for key in ("exact", "exact_free", "exact_forced", "valid", "further_rounds", "answers", "whole")
    ] == [0.0] * 7
    assert tool_table.without(_Scripted(plain), plain)["no_call"] == 1.0  # type: ignore[arg-type]
    assert tool_table.without(_Scripted(plain, wrong=True), plain)["no_call"] == 0.0  # type: ignore[arg-type]
