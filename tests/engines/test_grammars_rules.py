"""Words that llguidance does not know, said in words that it knows: what is let through fits the schema, exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from karakuri_integrations.conversation import Grammar
from karakuri_integrations.engines.grammars import fitting
from karakuri_integrations.engines.schema_words import prepared
from karakuri_integrations.errors import UnsupportedSchemaError
from karakuri_integrations.tools.schema_logic import disjoint, negated, none_of
from karakuri_integrations.tools.schemas import closed

pytest.importorskip("llguidance")


def fits(schema: Any, value: Any) -> bool:
    """Whether the grammar lets this value through."""
    return fitting(Grammar(json.dumps(schema)), json.dumps(value, ensure_ascii=False)) is None


def three(**more: Any) -> dict[str, Any]:
    """An object of three numbers, none of which must be there."""
    properties = {name: {"type": "integer"} for name in "abc"}
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


NONE, A, B, C = {}, {"a": 1}, {"b": 1}, {"c": 1}
AB, AC, BC, ABC = {**A, **B}, {**A, **C}, {**B, **C}, {**A, **B, **C}
OBJECTS = (NONE, A, B, C, AB, AC, BC, ABC)
VALUES = (None, True, False, 0, 1, 2.5, "", "a", "東京", "ab", [], [1], {}, {"a": 1})
LISTS = ([], [1], ["a"], ["a", "b"], ["b", "a"], ["a", "a"], ["a", 1], [1, "a", "b"], ["b", "b", "b", 1])


@pytest.mark.parametrize(
    "schema",
    [
        three(maxProperties=2),
        three(maxProperties=1),
        three(minProperties=2),
        three(minProperties=2, maxProperties=2),
        three(maxProperties=2, required=["b"]),
        three(minProperties=2, required=["b"]),
        three(dependentRequired={"a": ["b"]}),
        three(dependentRequired={"a": ["b"], "b": ["c"]}),
        three(dependentSchemas={"a": {"minProperties": 2}}),
        three(dependentSchemas={"c": {"properties": {"a": {"const": 2}}}}),
        three(**{"not": {"required": ["a"]}}),
        three(**{"not": {"required": ["a", "b"]}}),
        three(**{"not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}}),
        three(**{"not": {"maxProperties": 1}}),
        three(**{"not": {"properties": {"a": {"const": 1}}, "required": ["a"]}}),
        three(**{"if": {"required": ["a"]}, "then": {"required": ["b"]}, "else": {"required": ["c"]}}),
        three(**{"if": {"required": ["a"]}, "then": {"required": ["b"]}}),
        three(**{"if": {"properties": {"a": {"minimum": 1}}, "required": ["a"]}, "else": {"required": ["c"]}}),
        three(propertyNames={"enum": ["a", "b"]}),
        three(propertyNames={"pattern": "^[ac]$"}),
        three(propertyNames=False),
        three(oneOf=[{"required": ["a"]}, {"required": ["b"]}]),
        three(oneOf=[{"required": ["a"]}, {"required": ["b"]}, {"required": ["c"]}]),
        {"type": "object", "properties": {"a": {}, "b": {}}, "unevaluatedProperties": False},
        {"allOf": [{"properties": {"a": {}}}], "type": "object", "properties": {"b": {}}, "unevaluatedProperties": False},
        {"type": "object", "maxProperties": 1},
        {"type": "object", "properties": {"a": {}}, "maxProperties": 2},
        {"type": "object", "propertyNames": {"maxLength": 0}},
        {"type": "object", "propertyNames": {"enum": ["b", 1, "c"]}, "additionalProperties": {"type": "integer"}},
    ],
)  # fmt: skip
def test_objects(schema: dict[str, Any]) -> None:
    good = [one for one in OBJECTS if Draft202012Validator(schema).is_valid(one)]
    assert [one for one in OBJECTS if fits(schema, one)] == good
    assert good
    assert len(good) < len(OBJECTS)


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"not": {"type": ["integer", "number"]}},
        {"not": {"enum": ["a", 1, None, True, "東京"]}},
        {"not": {"const": ""}},
        {"type": "string", "not": {"enum": ["a", "ab"]}},
        {"type": "number", "not": {"enum": [0, 1]}},
        {"not": {"type": "string", "maxLength": 1}},
        {"not": {"not": {"type": "string"}}},
        {"not": {"allOf": [{"type": "string"}, {"minLength": 2}]}},
        {"type": "number", "not": {"minimum": 1}},
        {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "number"}},
        {"if": {"const": "a"}, "then": False},
        {"oneOf": [{"type": "string"}, {"enum": ["a", 1]}]},
        {"oneOf": [{"type": "string", "maxLength": 1}, {"type": "string", "minLength": 1}, {"type": "null"}]},
        {"oneOf": [{"anyOf": [{"type": "string"}, {"type": "array"}]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}]},
        {"oneOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]},
        {"oneOf": [{"$ref": "#/$defs/S"}, {"$ref": "#/$defs/N"}], "$defs": {"S": {"type": "string"}, "N": {"type": "null"}}},
        {"minProperties": 1, "maxLength": 1},
        {"dependentRequired": {"a": ["b"]}},
        {"contains": {"type": "integer"}},
    ],
)  # fmt: skip
def test_values_of_every_type(schema: dict[str, Any]) -> None:
    good = [one for one in VALUES if Draft202012Validator(schema).is_valid(one)]
    assert [one for one in VALUES if fits(schema, one)] == good
    assert good
    assert len(good) < len(VALUES)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "contains": {"type": "integer"}},
        {"type": "array", "contains": {"const": "b"}, "maxItems": 2},
        {"type": "array", "items": {"type": "string"}, "contains": {"const": "b"}, "minContains": 1},
        {"type": "array", "contains": {"const": "b"}, "minContains": 0, "items": {"type": "string"}},
        {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 1, "maxItems": 1},
        {"type": "array", "prefixItems": [{"type": "string"}], "unevaluatedItems": False},
        {"type": "array", "items": {"type": "string"}, "unevaluatedItems": False},
        {"type": "array", "not": {"minItems": 2}},
    ],
)
def test_lists(schema: dict[str, Any]) -> None:
    good = [one for one in LISTS if Draft202012Validator(schema).is_valid(one)]
    assert [one for one in LISTS if fits(schema, one)] == good
    assert good
    assert len(good) < len(LISTS)


def test_dependencies_of_older_drafts() -> None:
    older = three(dependencies={"a": ["b"], "c": {"required": ["a"]}})
    newer = three(dependentRequired={"a": ["b"], "c": ["a"]})
    assert [fits(older, one) for one in OBJECTS] == [Draft202012Validator(newer).is_valid(one) for one in OBJECTS]


def test_keys_that_could_be_written_twice_are_not_relied_on() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2}
    assert fits(schema, {"a": 1, "x": 1})
    assert not fits(schema, {"x": 1, "y": 1})
    with pytest.raises(UnsupportedSchemaError, match="would have to differ"):
        prepared({"type": "object", "properties": {"a": {}}, "minProperties": 3})
    assert fitting(Grammar(json.dumps({"type": "object", "minProperties": 1})), '{"x": 1, "x": 1}') is None


def test_an_option_is_not_closed_where_another_could_then_not_be_told_apart() -> None:
    """Closed, the first would fit what the second fits too."""
    schema = {"oneOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}], "type": "object"}
    assert closed(schema) == schema
    assert not Draft202012Validator(schema).is_valid({"a": 1})
    assert not fits(closed(schema), {"a": 1})
    apart = [{"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]} for name in "ab"]
    assert all(one["additionalProperties"] is False for one in closed({"oneOf": apart})["oneOf"])


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"$ref": "#/$defs/X"}},
        {"if": {"$ref": "#/$defs/Y"}, "then": False},
        {"oneOf": [{"$ref": "#/$defs/X"}, {"type": "object"}]},
        {"not": {"properties": {"y": {"$ref": "#/$defs/Y"}}, "required": ["y"]}},
        {"properties": {"z": {"not": {"$ref": "#/$defs/a%20b"}}}, "$defs": {}},
    ],
)
def test_what_must_not_fit_is_not_closed(schema: dict[str, Any]) -> None:
    inner = {"type": "object", "properties": {"k": {"type": "integer"}}}
    definitions = {"X": {"type": "object", "properties": {"y": {"$ref": "#/$defs/Y"}}}, "Y": inner, "a b": inner}
    whole = {"type": "object", **schema, "$defs": definitions}
    changed = {name for name, one in closed(whole)["$defs"].items() if one != definitions[name]}
    reached = (
        {"X", "Y"} if "#/$defs/X" in json.dumps(schema) else {"Y"} if "#/$defs/Y" in json.dumps(schema) else {"a b"}
    )
    assert changed == set(definitions) - reached


def test_words_that_a_reference_leads_through_stay() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"not": {"type": "string"}}, "b": {"$ref": "#/properties/a/not"}},
        "required": ["a", "b"],
    }
    with pytest.raises(UnsupportedSchemaError) as caught:
        fits(schema, {})
    assert caught.value.keyword == "not"


def test_references_behind_an_id_are_not_followed() -> None:
    inner = {"$id": "http://x/y", "not": {"$ref": "#/$defs/S"}, "$defs": {"S": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a"], "$defs": {"S": {"type": "string"}}}
    with pytest.raises(UnsupportedSchemaError) as caught:
        fits(schema, {"a": 1})
    assert caught.value.keyword == "not"


def test_every_text_but_some() -> None:
    texts = ["abc", "ab", "", "🍣", 'a "q"', "東京", "-]^\\"]
    schema = {"type": "string", "pattern": none_of(texts)}
    assert not any(fits(schema, one) for one in texts)
    assert all(fits(schema, one) for one in ("abcd", "a", "🍣🍣", "東", 'a "q', "-]^", "\n", " "))


@pytest.mark.parametrize(
    "pattern",
    ['^[^"]*$', "^[^\\\\]*$", '^[^"\\\\]+$', '^[^\\n"]*$', "^[^/\\u0022]*$", '^[^-"]*$', '^[^]"]*$', '^a[^"]b$', "^\\[[^\"]$", "^.*$"],
)  # fmt: skip
def test_classes_without_a_quotation_mark_or_a_backslash(pattern: str) -> None:
    """llguidance alone lets both through, escaped."""
    texts = ["", "a", '"', "\\", 'a"b', "a\\b", "axb", "-", "]", '["', "[x", "\t", "東"]
    schema = {"type": "string", "pattern": pattern}
    assert [one for one in texts if fits(schema, one)] == [
        one for one in texts if Draft202012Validator(schema).is_valid(one)
    ]


def test_a_class_that_cannot_be_said_otherwise_is_refused() -> None:
    with pytest.raises(UnsupportedSchemaError) as caught:
        fits({"type": "string", "pattern": "^[\\x00-!#-~]*$"}, "a")
    assert caught.value.keyword == "pattern"


def test_what_is_apart() -> None:
    root = {"$defs": {"S": {"type": "string"}, "T": {"allOf": [{"$ref": "#/$defs/S"}]}}}
    assert disjoint({"$ref": "#/$defs/T"}, {"type": ["null", "integer"]}, root)
    assert disjoint({"const": 1}, {"enum": [2, "1", True]}, root)
    assert not disjoint({"const": 1}, {"enum": [1.0]}, root)
    assert not disjoint({"type": "integer"}, {"type": "number"}, root)
    assert not disjoint({"$ref": "#/$defs/nowhere"}, {"type": "null"}, root)
    assert negated({"$ref": "#/$defs/nowhere"}, root) is None


# --- random schemas --------------------------------------------------------------------------------------------------


class Maker:
    """Small random schemas of the words for which there are rules, and small random values."""

    names = ("a", "b", "c", "dd")
    values = (None, True, False, 0, 1, 2, 1.5, "", "a", "ab", "dd", [], {})

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def value(self, depth: int = 0) -> Any:
        kind = self.rng.random()
        if depth > 2 or kind < 0.5:
            return self.rng.choice(self.values)
        if kind < 0.7:
            return [self.value(depth + 1) for _ in range(self.rng.randint(0, 3))]
        return {name: self.value(depth + 1) for name in self.rng.sample((*self.names, "e"), self.rng.randint(0, 4))}

    def schema(self, depth: int = 0) -> Any:
        if depth > 2:
            return self.rng.choice((True, {"type": "integer"}, {"enum": [1, "a", None]}, {"minProperties": 2}))
        kinds = ("object", "object", "array", "string", "number", ["object", "null"])
        made: dict[str, Any] = {"type": self.rng.choice(kinds)} if self.rng.random() < 0.8 else {}
        for word, value in self.words(depth + 1):
            if self.rng.random() < 0.18:
                made[word] = value()
        return made

    def words(self, depth: int) -> Iterator[tuple[str, Any]]:
        def several() -> list[Any]:
            return [self.schema(depth) for _ in range(self.rng.randint(1, 3))]

        def few() -> list[str]:
            return self.rng.sample(self.names, self.rng.randint(0, 2))

        def inner() -> Any:
            return self.schema(depth)

        def count() -> int:
            return self.rng.randint(0, 3)

        yield "properties", lambda: {name: inner() for name in self.rng.sample(self.names, 3)}
        yield from dict.fromkeys(("minProperties", "maxProperties", "minItems", "maxItems", "maxLength"), count).items()
        yield from dict.fromkeys(("not", "if", "then", "else", "items", "contains"), inner).items()
        yield from dict.fromkeys(("oneOf", "anyOf", "allOf", "prefixItems"), several).items()
        yield "required", few
        yield "additionalProperties", lambda: self.rng.choice((False, {"type": "integer"}))
        yield "dependentRequired", lambda: {self.rng.choice(self.names): few()}
        yield "dependentSchemas", lambda: {self.rng.choice(self.names): inner()}
        yield "propertyNames", lambda: self.rng.choice(({"maxLength": 1}, {"enum": ["a", "dd"]}, {"pattern": "^a"}))
        yield "unevaluatedProperties", lambda: self.rng.choice((False, {"type": "integer"}))
        yield "unevaluatedItems", lambda: False
        yield "uniqueItems", lambda: True
        yield "enum", lambda: self.rng.sample(self.values[:-2], 3)
        yield "minimum", lambda: 1
        yield "$ref", lambda: "#/$defs/X"


def without_references(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_references(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: without_references(one) for key, one in schema.items() if key != "$ref"}


#: Words whose rules allow less.
NARROWED = ("minProperties", "contains")


@pytest.mark.parametrize("block", range(4))
def test_random_schemas_mean_the_same_in_other_words(block: int) -> None:
    accepted = 0
    for seed in range(block * 100, block * 100 + 100):
        maker = Maker(seed)
        schema = {**maker.schema(), "$defs": {"X": without_references(maker.schema(1))}}
        try:
            said, narrowed = prepared(schema), prepared(closed(schema))
        except UnsupportedSchemaError:
            continue
        exact = not any(f'"{word}"' in json.dumps(schema) for word in NARROWED)
        for value in (maker.value() for _ in range(40)):
            good = Draft202012Validator(schema).is_valid(value)
            found = Draft202012Validator(said).is_valid(value)
            assert good or not found, (seed, schema, value)
            assert good or not Draft202012Validator(narrowed).is_valid(value), (seed, schema, value)
            assert found or not good or not exact, (seed, schema, value)
            accepted += found
    assert accepted > 50
