"""What a ScriptedEngine makes of a grammar: replies are read as they stand, and under strict they must fit."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from karakuri_integrations.conversation import Reply
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import MissingDependencyError, ScriptError, UnsupportedSchemaError
from karakuri_integrations.generation import fold
from karakuri_integrations.provider import EngineFields, Provider

pytest.importorskip("llguidance")

OPENER = "[TOOL_CALLS]\n"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CALL = '[{"name": "weather", "arguments": {"city": "東京", "days": 3}}]'
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
FORCED = {"tools": [TOOL], "tool_choice": "weather"}


def answer(reply: str, model: str = "karakuri-lm-70b-chat-v0.1", **options: Any) -> Reply:
    provider = Provider(EngineFields(engine=ScriptedEngine([reply], model=model)))
    return fold(provider.prepare([provider.user("天気は?", {}, 0)], options).stream())


@pytest.mark.parametrize(
    ("reply", "options"),
    [
        (CALL, FORCED),
        (OPENER + CALL, FORCED),
        (CALL.replace(" ", ""), FORCED),
        ("晴れです。", {"tools": [TOOL]}),
        ("見てみます。" + OPENER + CALL, {"tools": [TOOL]}),
        ('{\n  "city": "東京"\n}', {"response_format": FORMAT}),
        ('{"city": "東京"}', {"response_format": FORMAT, "tools": [TOOL]}),
        (" " + OPENER + CALL, {"response_format": FORMAT, "tools": [TOOL]}),
    ],
)
def test_what_a_model_held_to_the_schema_could_say_is_said_under_strict(reply: str, options: dict[str, Any]) -> None:
    free, strict = answer(reply, **options), answer(reply, **options, strict=True)
    assert strict.text == free.text
    assert [(one.name, one.arguments, one.error) for one in strict.calls] == [
        (one.name, one.arguments, one.error) for one in free.calls
    ]
    assert all(one.error is None for one in strict.calls)


@pytest.mark.parametrize(
    ("reply", "options", "after"),
    [
        (CALL.replace("3", "33"), FORCED, CALL.index("3") + 1),
        (CALL.replace("weather", "whether"), FORCED, CALL.index("weather") + 1),
        ("晴れです。", FORCED, 0),
        (CALL[:-1], FORCED, len(CALL) - 1),
        (OPENER + CALL.replace("3", '"三"'), {"tools": [TOOL]}, len(OPENER) + CALL.index("3")),
        ("晴れです。", {"response_format": FORMAT}, 0),
        ('{"days": 3, "city": "東京"}', {"response_format": FORMAT}, 2),
    ],
)
def test_what_it_could_not_say_is_an_error_under_strict_alone(reply: str, options: dict[str, Any], after: int) -> None:
    assert answer(reply, **options) is not None
    with pytest.raises(ScriptError, match=f"strict=True .* after {after} characters; .*leave strict out") as caught:
        answer(reply, **options, strict=True)
    assert "晴れ" not in str(caught.value)
    assert "東京" not in str(caught.value)


def test_the_other_familys_calls() -> None:
    call = 'Action: ```json\n[{"tool_name": "weather", "parameters": {"city": "東京"}}]\n```'
    family = "karakuri-lm-8x7b-instruct-v0.1"
    for options in ({"tools": [TOOL]}, FORCED):
        (made,) = answer(call, family, **options, strict=True).calls
        assert (made.name, made.error) == ("weather", None)
    with pytest.raises(ScriptError):
        answer(call.replace("city", "town"), family, **FORCED, strict=True)


def test_a_schema_that_nothing_can_hold_is_refused_under_strict() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"pattern": "a"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert answer('{"a": "b"}', response_format=form).text == '{"a": "b"}'
    with pytest.raises(UnsupportedSchemaError, match="not"):
        answer('{"a": "b"}', response_format=form, strict=True)


def test_an_item_that_stands_twice_leaves_its_schema_under_strict() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert answer('{"a": [1, 2]}', response_format=form, strict=True).text == '{"a": [1, 2]}'
    with pytest.raises(ScriptError, match="after 11 characters"):
        answer('{"a": [1, 1]}', response_format=form, strict=True)


def test_a_call_that_repeats_an_item_is_invalid_with_its_text() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}, "n": {"type": "array"}}}
    options = {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    calls = '[{"name": "f", "arguments": {"tags": ["a", "b"], "n": [1, 1]}}, {"name": "f", "arguments": {"tags": [1, 1.0]}}]'
    good, bad = answer(f"[TOOL_CALLS]\n{calls}", **options).calls
    assert good.error is None
    assert bad.arguments == '{"tags": [1, 1.0]}'
    assert "twice" in (bad.error or "") and "1.0" not in (bad.error or "")


def test_without_the_library_strict_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert answer(CALL, **FORCED).calls
    with pytest.raises(MissingDependencyError, match="pip install"):
        answer(CALL, **FORCED, strict=True)


def test_it_says_that_it_holds_nothing() -> None:
    assert ScriptedEngine([]).grammars is False
