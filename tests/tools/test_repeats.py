"""Lists that must hold each item once, read as they grow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from karakuri_integrations.tools.repeats import Repeats, loosened, repeats_in


def once(items: Any = True, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True, **more}


def object_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


REFERRED = {**object_of(x={"$ref": "#/$defs/T"}), "$defs": {"T": {"allOf": [{"type": "array"}, {"uniqueItems": True}]}}}
PETS = {
    "anyOf": [
        object_of(kind={"const": "cat"}, names=once()),
        object_of(kind={"const": "dog"}, names={"type": "array"}),
    ]
}


CAT, DOG = object_of(kind={"const": "cat"}), object_of(kind={"const": "dog"}, names={"type": "array"})
NAMES = object_of(names=once())
#: As OpenAPI writes that one kind of thing is another with something more.
DERIVED = [
    {"anyOf": [{**CAT, "allOf": [NAMES]}, DOG]},
    {"oneOf": [{"allOf": [CAT, NAMES]}, DOG]},
    {"oneOf": [{"$ref": "#/$defs/Cat"}, DOG], "$defs": {"Cat": {"allOf": [CAT, {"$ref": "#/$defs/N"}]}, "N": NAMES}},
    {"anyOf": [{"anyOf": [CAT], "allOf": [NAMES]}, DOG]},
]


@pytest.mark.parametrize("schema", DERIVED)
@pytest.mark.parametrize(("kind", "repeats"), [("cat", True), ("dog", False)])
def test_an_option_that_is_out_is_so_with_all_its_parts(schema: Any, kind: str, repeats: bool) -> None:
    assert repeats_in(schema, json.dumps({"kind": kind, "names": [1, 1]})) is repeats
    assert repeats_in(schema, json.dumps({"names": [1, 1], "kind": kind})) is True  # the list came before it was known


@pytest.mark.parametrize("depth", [100, 900, 10_000])
def test_items_that_are_nested_deeply_are_compared_as_far_as_they_can_be_read(depth: int) -> None:
    def nested(one: int) -> str:
        return "[" * depth + str(one) + "]" * depth

    assert repeats_in(once(), f"[{nested(1)}, {nested(2)}]") is False
    assert repeats_in(once(), f"[{nested(1)}, {nested(1)}]") is True


@pytest.mark.parametrize(
    ("schema", "text", "repeats"),
    [
        (once(), '["a", "b"]', False),
        (once(), '["a", "b", "a"]', True),
        (once(), '["a", "\\u0061"]', True),
        (once(), "[1, 2, 1.0]", True),
        (once(), "[1, true, 0, false, null, \"1\", 12]", False),
        (once(), "[10, 1e1]", True),
        (once(), "[0, 0E99999999999999999999]", True),
        (once(), '[{"a": 1, "b": [true]}, {"b": [true], "a": 1.0}]', True),
        (once(), '[{"a": 1}, {"a": true}, [], {}]', False),
        (once(), '["a, b", "a", "a\\"", "a]"]', False),
        (once(once()), "[[1], [1, 2], [2, 1]]", False),
        (once(once()), "[[1, 1]]", True),
        ({"type": "array", "items": once()}, "[[1], [1]]", False),
        (object_of(x=once(), y={"type": "array"}), '{"y": [1, 1], "x": [1]}', False),
        (object_of(x=once(), y={"type": "array"}), '{"y": [1, 1], "x": [1, 1]}', True),
        ({"patternProperties": {"^a": once()}}, '{"b": [1, 1], "ab": [1]}', False),
        ({"patternProperties": {"^a": once()}}, '{"ab": [1, 1]}', True),
        ({"additionalProperties": once()}, '{"ab": [1, 1]}', True),
        ({"prefixItems": [once(), {}], "items": once()}, "[[1], [1, 1], [1]]", False),
        ({"prefixItems": [once(), {}], "items": once()}, "[[1], [1], [1, 1]]", True),
        ({"items": [once(), {}]}, "[[1, 1], []]", True),
        (REFERRED, '{"x": [1, 1]}', True),
        (PETS, '{"kind": "dog", "names": ["a", "a"]}', False),
        (PETS, '{"kind": "cat", "names": ["a", "a"]}', True),
        (object_of(uniqueItems={"type": "array"}), '{"uniqueItems": [1, 1]}', False),
    ],
)  # fmt: skip
def test_an_item_that_stands_twice_is_seen_where_the_schema_forbids_it(schema: Any, text: str, repeats: bool) -> None:
    assert repeats_in(schema, text) is repeats
    at_once, piece_by_piece = Repeats(schema), Repeats(schema)
    at_once.push(text.encode())
    for one in text.encode():
        piece_by_piece = piece_by_piece.copy()
        piece_by_piece.push(bytes([one]))
    assert at_once.repeated is piece_by_piece.repeated is repeats


def test_a_copy_goes_its_own_way() -> None:
    one = Repeats(once())
    one.push(b'["a", "b"')
    other = one.copy()
    other.push(b', "a"')
    one.push(b', "c"]')
    assert other.repeated and not one.repeated


def test_the_item_that_is_being_written_is_known_with_the_earlier_ones() -> None:
    one = Repeats(once({"enum": ["x", "y", 3]}))
    one.push(b'["x",')
    (item,) = one.items()
    assert (item.text, item.earlier, item.left, item.behind_comma) == (b"", (b'"x"',), (b'"y"', b"3"), True)
    one.push(b' "')
    (item,) = one.items()
    assert (item.text, item.behind_comma) == (b'"', False)
    one.push(b'y"')
    assert list(one.items()) == []


@pytest.mark.parametrize(
    ("items", "most"),
    [
        ({"enum": ["a", "b", "a"]}, 2),
        ({"type": "boolean"}, 2),
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 4}, 3),
        ({"anyOf": [{"type": "null"}, {"enum": [1, "1"]}]}, 3),
        ({"$ref": "#/$defs/Unit"}, 2),
        ({"type": "string"}, None),
        ({"type": "integer", "minimum": 1}, None),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
    ],
)
def test_a_list_of_few_values_holds_at_most_so_many(items: Any, most: int | None) -> None:
    schema = {**object_of(x=once(items)), "$defs": {"Unit": {"enum": ["c", "f"]}}}
    made = loosened(schema)
    assert made["properties"]["x"].get("maxItems") == most
    assert "uniqueItems" not in json.dumps(made)


@pytest.mark.parametrize(
    "schema",
    [
        {"not": once()},
        object_of(x={"if": {"type": "array"}, "then": {"uniqueItems": True}}),
        {**object_of(x=once()), "not": {"$ref": "#/properties/x"}},
        {**object_of(x={"$ref": "https://example.org/schema"}, y=once())},
        {**object_of(x={"$ref": "#anchor"}, y=once())},
        {"$id": "https://example.org/schema", **object_of(x=once())},
        object_of(x={"type": "array", "uniqueItems": False}, uniqueItems=True),
    ],
)
def test_where_a_list_cannot_be_watched_the_schema_stays_as_it_is(schema: Any) -> None:
    assert loosened(schema) is schema


def test_a_condition_elsewhere_changes_nothing() -> None:
    schema = {**object_of(x=once()), "if": {"required": ["x"]}, "then": {"required": ["y"]}}
    assert loosened(schema) == {**schema, "properties": {"x": {"type": "array", "items": True}}}
