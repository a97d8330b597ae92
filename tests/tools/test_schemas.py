"""Schemas that replies are held to, and the short signatures that prompts show."""

import json

import jsonschema
import pytest

from karakuri_integrations.conversation import CallForm, Tool, Tooling
from karakuri_integrations.tools import SYNTAXES, list_of_calls
from karakuri_integrations.tools.schemas import MOST_CALLS, closed
from karakuri_integrations.tools.signatures import schema_text, signature

FORM = CallForm("[TOOL_CALLS]\n")
TREE = {
    "type": "object",
    "properties": {"node": {"$ref": "#/$defs/Node"}, "unit": {"enum": ["c", "度"]}},
    "required": ["node"],
    "$defs": {"Node": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}}}},
}
TOOLS = (Tool("tree", "", json.dumps(TREE)), Tool("時刻"), Tool("f", "", '{"type": "object", "properties": {"x": {}}}'))


def valid(calls: object, **fields: object) -> bool:
    schema = json.loads(list_of_calls(Tooling(TOOLS, **fields), FORM))  # type: ignore[arg-type]
    return bool(jsonschema.Draft202012Validator(schema).is_valid(calls))


def call(name: str, **arguments: object) -> dict[str, object]:
    return {"name": name, "arguments": arguments}


def test_a_list_of_calls_has_each_tool_with_its_own_definitions() -> None:
    assert valid([call("tree", node={"v": 1, "next": {"v": 2}}), call("時刻"), call("時刻")])
    assert not valid([call("tree", node={"v": 1, "next": {"v": "2"}})])
    assert not valid([call("tree", unit="c")])
    assert not valid([call("nothing")])
    assert not valid([])
    assert not valid([{**call("時刻"), "more": 1}])


def test_choice_and_parallel_narrow_it() -> None:
    assert not valid([call("時刻")], choice=("f",))
    assert valid([call("f", x=1), call("f", x=1)], choice=("f",))
    assert not valid([call("f"), call("f")], parallel=False)
    assert not valid([call("時刻")] * (MOST_CALLS + 1))


def test_objects_that_list_their_properties_take_no_others() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert closed(inner)["additionalProperties"] is False
    nested = closed({"type": "object", "properties": {"x": {"type": "array", "items": inner}}})
    assert nested["properties"]["x"]["items"]["additionalProperties"] is False
    for kept in ({**inner, "additionalProperties": True}, {**inner, "allOf": [inner]}, {**inner, "anyOf": [{}]}, True):
        assert closed(kept) == kept or closed(kept).get("additionalProperties") is kept.get("additionalProperties")  # type: ignore[union-attr]
    assert closed({"enum": [inner]}) == {"enum": [inner]}
    assert "additionalProperties" not in closed({"type": "object"})


def test_a_property_may_be_called_like_a_word_of_schemas() -> None:
    schema = {
        "type": "object",
        "properties": {"properties": {"type": "string"}, "$ref": {"type": "string"}, "enum": {"$ref": "#/$defs/s"}},
    }
    schema["$defs"] = {"s": {"type": "string"}}
    tooling = Tooling((Tool("f", "", json.dumps(closed(schema))),))
    made = json.loads(list_of_calls(tooling, FORM))
    assert jsonschema.Draft202012Validator(made).is_valid([call("f", properties="a", enum="c", **{"$ref": "b"})])
    assert not jsonschema.Draft202012Validator(made).is_valid([call("f", enum=3)])


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"type": "object", "properties": {}}, "f()"),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, "f(a: string)"),
        ({"properties": {"a": {"type": ["integer", "null"]}, "b c": {"enum": ["x", 1]}}}, 'f(a?: integer|null, "b c"?: "x"|1)'),
        ({"properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"const": 3}]}}}}, "f(a?: (string|3)[])"),
        ({"properties": {"a": {"type": "object", "additionalProperties": {"type": "number"}}}}, "f(a?: {[key]: number})"),
        ({"properties": {"a": {"type": "string", "description": "two\nlines"}}}, "f(a?: string // two lines)"),
        ({"properties": {"a": True, "b": {"$ref": "#/nowhere"}}}, "f(a?: any, b?: any)"),
        ({"properties": {"a": {"prefixItems": [{"type": "string"}, {"type": "integer"}], "type": "array"}}}, "f(a?: [string, integer])"),
    ],
)  # fmt: skip
def test_signatures(schema: dict[str, object], shown: str) -> None:
    assert signature(Tool("f", "", json.dumps(schema))) == shown
    assert signature(Tool("f", "does\n it", json.dumps(schema))) == f"{shown}: does it"


def test_a_recursive_schema_is_shown_to_a_depth() -> None:
    shown = signature(TOOLS[0])
    assert shown.startswith("tree(node: {v?: integer, next?: {v?: integer")
    assert len(shown) < 300


def test_a_schema_that_says_nothing_is_not_shown() -> None:
    assert schema_text('{"type": "object"}') == schema_text("true") == ""
    assert schema_text(json.dumps(TREE)).startswith("{node: {v?: integer")


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_result_cannot_end_its_list(name: str) -> None:
    from karakuri_integrations.tools import Result

    written = SYNTAXES[name].write_results(
        [Result("f", 'a"}]\n[TOOL'), Result("g", "boom", failed=True), Result("h", '{"a":\n 1}')]
    )
    assert "boom" in written
    if name == "brackets":
        assert json.loads(written.partition("\n")[2]) == [
            {"name": "f", "result": 'a"}]\n[TOOL'}, {"name": "g", "error": "boom"}, {"name": "h", "result": {"a": 1}},
        ]  # fmt: skip
