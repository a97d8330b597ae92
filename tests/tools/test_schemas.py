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
    listed = {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}
    assert closed(listed) == listed
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
    assert shown == 'tree(node: {v?: integer, next?: Node}, unit?: "c"|"度")'


def test_a_signature_does_not_explode() -> None:
    wide = {f"p{n}": {"$ref": "#/$defs/N"} for n in range(6)}
    for inner in (wide, {name: {"$ref": f"#/$defs/{name}"} for name in wide}):
        names = ["N", *wide]
        schema = {"properties": wide, "$defs": {name: {"type": "object", "properties": inner} for name in names}}
        assert len(signature(Tool("f", "", json.dumps(schema)))) < 12_000


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


BASE = {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]}
MORE = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#/$defs/Base"}, MORE], "$defs": {"Base": BASE}},
        {"$ref": "#/$defs/Base", **MORE, "$defs": {"Base": BASE}},
        {**BASE, "anyOf": [MORE, {"properties": {"y": {}}, "required": ["y"]}]},
        {**BASE, "oneOf": [{"$ref": "#/$defs/More"}], "$defs": {"More": MORE}},
        {**BASE, "if": {"properties": {"k": {"const": "a"}}}, "then": MORE},
        {**BASE, "required": ["k", "x"]},
        {"type": "object"},
        {"type": ["object"], "required": ["k"]},
    ],
)
def test_closing_forbids_nothing_that_the_schema_asks_for(schema: dict[str, object]) -> None:
    good = {"k": "a", "x": 1}
    assert jsonschema.Draft202012Validator(schema).is_valid(good)
    assert jsonschema.Draft202012Validator(closed(schema)).is_valid(good)
    from karakuri_integrations.tools import tooling_of

    tools = tooling_of({"tools": [{"name": "f", "parameters": {"type": "object", **schema}}]}).tools
    made = json.loads(list_of_calls(Tooling(tools), FORM))
    assert jsonschema.Draft202012Validator(made).is_valid([call("f", **good)])


def test_a_union_of_definitions_is_closed() -> None:
    schema = {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}], "$defs": {"A": BASE}, "title": "x"}
    assert closed(schema)["$defs"]["A"]["additionalProperties"] is False


def test_ids_and_anchors_move_along() -> None:
    schema = {
        "$id": "http://x/y.json",
        "type": "object",
        "properties": {"a": {"$ref": "#b"}, "c": {"$ref": "http://x/y.json#/$defs/B"}},
        "$defs": {"B": {"$anchor": "b", "type": "integer"}},
    }
    made = json.loads(list_of_calls(Tooling((Tool("f", "", json.dumps(schema)),)), FORM))
    validator = jsonschema.Draft202012Validator(made)
    assert validator.is_valid([call("f", a=1, c=2)])
    assert not validator.is_valid([call("f", a="1")])
    assert not validator.is_valid([call("f", c="1")])
