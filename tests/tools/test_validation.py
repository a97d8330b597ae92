"""Whether a value fits its schema: as the jsonschema library says, word by word; and what is not known, fits."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from jsonschema import Draft202012Validator, validators

from karakuri_integrations.tools.validation import loads, misfit

#: The library knows a float that is whole, and no Decimal.
ORACLE = validators.extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer",
        lambda _, one: not isinstance(one, bool) and isinstance(one, int | Decimal) and one == one // 1,
    ),
)

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["value"]}
SCHEMAS: list[Any] = [
    {"type": "integer"}, {"type": ["string", "null"]}, {"type": "number"}, {"type": "boolean"}, True, False,
    {"const": 1}, {"const": {"a": [True]}}, {"enum": ["a", None, 2.5, [0]]},
    {"minimum": 0.5, "maximum": 2}, {"exclusiveMinimum": 1, "exclusiveMaximum": 3}, {"multipleOf": 0.01}, {"multipleOf": 2},
    {"minLength": 2, "maxLength": 3}, {"pattern": "^a"},
    {"minItems": 1, "maxItems": 2}, {"uniqueItems": True}, {"uniqueItems": False}, {"items": {"type": "integer"}},
    {"prefixItems": [{"const": 1}], "items": False}, {"prefixItems": [{"type": "string"}, True]},
    {"contains": {"const": 1}}, {"contains": {"const": 1}, "minContains": 2}, {"contains": {"const": 1}, "maxContains": 1},
    {"contains": {"const": 1}, "minContains": 0},
    {"properties": {"a": {"type": "integer"}}, "additionalProperties": False}, {"required": ["a", "b"]},
    {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"propertyNames": {"maxLength": 1}}, {"minProperties": 1, "maxProperties": 1},
    {"dependentRequired": {"a": ["b"]}}, {"dependentSchemas": {"a": {"maxProperties": 1}}},
    {"allOf": [{"minimum": 1}, {"maximum": 1}]}, {"anyOf": [{"type": "string"}, {"minimum": 2}]},
    {"oneOf": [{"type": "integer"}, {"minimum": 2}]}, {"not": {"type": "integer"}},
    {"if": {"type": "integer"}, "then": {"minimum": 2}, "else": {"type": "string"}}, {"if": True}, {"then": False},
    {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}}, {"title": "a", "format": "date"},
]  # fmt: skip
VALUES = [
    "null", "true", "false", "0", "1", "1.0", "2", "2.5", "-3e0", "0.3", "0.29", "1e20", '""', '"a"', '"ab"', '"bcde"', '"🍣🍣"',
    "[]", "[1]", "[1, 1.0]", "[1, true]", '["a", 2]', "[0]", "[[1], [1]]", "{}", '{"a": 1}', '{"a": "1"}', '{"a": [true]}',
    '{"a": [1]}', '{"b": 1, "a": 2}', '{"bb": "x"}', '{"value": 1, "next": {"value": 2}}', '{"value": 1, "next": {}}',
]  # fmt: skip


def fits(text: str, schema: Any) -> bool:
    read = loads(json.dumps(schema))
    return misfit(loads(text), read, read) is None


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_it_says_what_the_jsonschema_library_says(schema: Any) -> None:
    validator = ORACLE(loads(json.dumps(schema)))
    for text in VALUES:
        assert fits(text, schema) == validator.is_valid(loads(text)), text


def test_a_number_is_whole_however_it_is_written() -> None:
    assert all(fits(text, {"type": "integer"}) for text in ("1", "1.0", "2e3", "1e20", "-0.0"))
    assert not any(fits(text, {"type": "integer"}) for text in ("1.5", "1e-1", "true", '"1"'))


def test_it_says_which_word_and_where() -> None:
    schema = {"properties": {"a": {"items": {"maximum": 3}}}}
    assert misfit(loads('{"a": [1, 4]}'), schema, schema) == ("maximum", ("a", 1))
    assert misfit([], {"type": "object"}, True) == ("type", ())


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"pattern": "("}, '"a"'),
        ({"$ref": "#"}, "1"),
        ({"$ref": "#/$defs/none"}, "1"),
        ({"$ref": "https://example.com/schema"}, "1"),
        ({"not": {"unevaluatedProperties": False}}, "{}"),
        ({"oneOf": [{"$dynamicRef": "#a"}, {"type": "integer"}]}, "1"),
        ({"if": {"unevaluatedItems": False}, "then": False}, "[]"),
        ({"multipleOf": 1e-300}, "1e300"),
        ({"minimum": "1"}, "0"),
        ({"properties": 3}, '{"a": 1}'),
    ],
)
def test_what_cannot_be_told_fits(schema: Any, text: str) -> None:
    assert fits(text, schema)


def test_what_is_too_deep_to_be_told_fits() -> None:
    schema = {"properties": {"a": {"$ref": "#"}}, "not": {"required": ["b"]}}
    value: Any = {"b": 1}
    for _ in range(5000):
        value = {"a": value}
    assert misfit(value, schema, schema) is None
