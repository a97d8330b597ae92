"""Tools, choices and formats as frameworks pass them: taken in every form, or refused with the place and the rule."""

import json
import math

import pytest

from karakuri_integrations.conversation import Tool, Tooling
from karakuri_integrations.errors import ToolDefinitionError
from karakuri_integrations.tools import tooling_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "It.", "parameters": SCHEMA}}
OTHER = {"name": "時刻", "description": None, "parameters": None}


def test_openai_tools_become_values() -> None:
    tools = tooling_of({"tools": [WEATHER, OTHER]}).tools
    assert [(one.name, one.description) for one in tools] == [("get_weather", "It."), ("時刻", "")]
    assert json.loads(tools[0].parameters) == {**SCHEMA, "additionalProperties": False}
    assert json.loads(tools[1].parameters)["properties"] == {}


def test_values_pass_and_nothing_is_no_tooling() -> None:
    (tool,) = tooling_of({"tools": [Tool("f", "d")]}).tools
    assert (tool.name, tool.description) == ("f", "d")
    assert json.loads(tool.parameters)["additionalProperties"] is False
    assert tooling_of({}) == tooling_of({"tools": [], "tool_choice": None, "response_format": None}) == Tooling()


@pytest.mark.parametrize(
    ("given", "choice"),
    [
        (None, "auto"), ("auto", "auto"), ("none", "none"), (False, "none"), ("any", "required"), (True, "required"),
        ("required", "required"), ("get_weather", ("get_weather",)), ("時刻", ("時刻",)),
        ({"type": "function", "function": {"name": "get_weather"}}, ("get_weather",)),
        ({"type": "tool", "name": "get_weather"}, ("get_weather",)), ({"type": "any"}, "required"),
    ],
)  # fmt: skip
def test_choices(given: object, choice: object) -> None:
    assert tooling_of({"tools": [WEATHER, OTHER], "tool_choice": given}).choice == choice


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": "f"}, ("list of tools", "str")),
        ({"tools": [Tool("x] [/INST]")]}, ("tools[0]", "brackets")),
        ({"tools": [Tool("x", "", "not json")]}, ("tools[0]", "JSON")),
        ({"tools": [{"name": "none"}]}, ("tools[0]", "'none'", "another name")),
        ({"tools": [{"name": "f", "parameters": {"properties": ["a"]}}]}, ("'f'", "/properties must be an object")),
        (
            {"tools": [{"name": "f", "parameters": {"properties": {"a": {"required": True}}}}]},
            ("'f'", "/properties/a/required must be a list"),
        ),
        ({"tools": [{"name": "f", "parameters": {"properties": {"a": {"format": {}}}}}]}, ("/properties/a/format",)),
        ({"tools": [{"name": "f", "parameters": {"properties": {"a": 3}}}]}, ("/properties/a must be an object",)),
        ({"tools": [1]}, ("tools[0]", "function")),
        ({"tools": [WEATHER, {"type": "function"}]}, ("tools[1]", "name")),
        ({"tools": [{"name": "a b"}]}, ("tools[0]", "'a b'", "spaces")),
        ({"tools": [{"name": "[INST]"}]}, ("tools[0]", "brackets")),
        ({"tools": [{"name": "Box[int]"}]}, ("'Box[int]'", "a subclass with a name of its own")),
        ({"tools": [{"name": ""}]}, ("tools[0]", "1 to 128")),
        ({"tools": [WEATHER, WEATHER]}, ("two tools", "'get_weather'", "rename")),
        ({"tools": [{"name": "f", "description": 3}]}, ("'f'", "description")),
        ({"tools": [{"name": "f", "parameters": {"type": "array"}}]}, ("'f'", "object")),
        ({"tools": [{"name": "f", "parameters": {"properties": {"x": {"default": math.nan}}}}]}, ("'f'", "JSON")),
        ({"tools": [{"name": "f", "parameters": {"properties": {"x": {1, 2}}}}]}, ("'f'", "JSON")),
        ({"tools": [WEATHER], "tool_choice": "get_wether"}, ("get_wether", "did you mean 'get_weather'")),
        ({"tool_choice": "any"}, ("needs tools",)),
        ({"tools": [], "tool_choice": "f"}, ("needs tools",)),
        ({"parallel_tool_calls": "yes"}, ("parallel_tool_calls", "True or False")),
        ({"strict": 1}, ("strict", "True or False")),
        ({"strict": True}, ("strict=True", "there is neither")),
        ({"strict": True, "tools": []}, ("strict=True", "there is neither")),
        ({"strict": True, "response_format": {"type": "text"}}, ("strict=True", "there is neither")),
        ({"response_format": "json"}, ("response_format", "json_schema")),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, ("response_format", "schema")),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ToolDefinitionError) as found:
        tooling_of(options)
    assert all(word in str(found.value) for word in words)


def test_an_unknown_language_is_named() -> None:
    with pytest.raises(ToolDefinitionError, match="auto, ja, en"):
        tooling_of({}, "fr")


def test_formats() -> None:
    inner = {"name": "x", "schema": SCHEMA}
    schema = tooling_of({"response_format": {"type": "json_schema", "json_schema": inner}})
    assert (json.loads(schema.schema or ""), schema.strict) == ({**SCHEMA, "additionalProperties": False}, False)
    assert tooling_of({"response_format": {"type": "json_schema", "json_schema": {**inner, "strict": True}}}).strict
    assert tooling_of({"response_format": {"type": "json_object"}}).schema == '{"type": "object"}'
    assert tooling_of({"response_format": {"type": "text"}}).schema is None
