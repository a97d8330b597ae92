"""JSON schemas as llguidance takes them, and what it says of those that it does not take.

The words that decide nothing are left out, since llguidance refuses some of them: a format that it does not know (in
the standard a format is an annotation), `uniqueItems: false`, a `then` without an `if`. Everything that is left and
that it cannot hold a reply to is refused by name (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..errors import UnsupportedSchemaError

__all__ = ["prepared", "refusal"]

_FORMATS: Final = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
#: Words whose values are schemas, lists of schemas, and named schemas.
_ONE: Final = (
    "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip
_MANY: Final = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED: Final = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
#: What says nothing with this value.
_IDLE: Final[Mapping[str, tuple[Any, ...]]] = {
    "uniqueItems": (False,),
    "propertyNames": (True, {}),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "not": (False,),
}
#: What says nothing without another word.
_WITH: Final = {"minContains": "contains", "maxContains": "contains", "then": "if", "else": "if"}
_WORDS: Final = (
    *_ONE, *_MANY, *_NAMED, *_IDLE, *_WITH, "$ref", "$dynamicRef", "$anchor", "$id", "const", "enum", "type", "format",
    "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minItems", "maxItems", "minProperties", "maxProperties", "required",
)  # fmt: skip
#: What the library calls them where it does not say the word.
_SAID: Final = (
    ("regexes", "patternProperties"), ("regex", "pattern"), ("lookaround", "pattern"), ("Resource", "$ref"),
    ("anyOf is empty", "enum"),
)  # fmt: skip


def prepared(schema: Any) -> dict[str, Any]:
    """The schema without what decides nothing. Whatever fits the result fits the schema."""
    if not isinstance(schema, Mapping):
        return {} if schema is True else {"enum": []}
    kept = {key: value for key, value in schema.items() if not _idle(key, value, schema)}
    return {key: _prepared_value(key, value) for key, value in kept.items()}


def _prepared_value(key: str, value: Any) -> Any:
    if key in _MANY and isinstance(value, list):
        return [_inner(one) for one in value]
    if key in _ONE:
        return _inner(value)
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _inner(one) for name, one in value.items()}
    return value


def _inner(schema: Any) -> Any:
    return prepared(schema) if isinstance(schema, Mapping) else schema


def _idle(key: str, value: Any, schema: Mapping[str, Any]) -> bool:
    if key == "format":
        return value not in _FORMATS
    if key == "if":
        return "then" not in schema and "else" not in schema
    if key in _WITH:
        return _WITH[key] not in schema
    if key == "uniqueItems" and _at_most_one(schema):
        return True
    return any(value == one and type(value) is type(one) for one in _IDLE.get(key, ()))


def _at_most_one(schema: Mapping[str, Any]) -> bool:
    most = schema.get("maxItems")
    return isinstance(most, int | float) and most <= 1


def refusal(problem: str) -> UnsupportedSchemaError:
    """The library's message names the word; it also quotes the schema, which is not repeated."""
    line = problem.strip().splitlines()[0].partition("failed to compile JSON schema:")[2].strip() or "it is not valid"
    error = UnsupportedSchemaError(
        f"no grammar can be made of this JSON schema ({line[:200]}); leave the word out, or describe the rule in words "
        "and check the arguments in the tool"
    )
    error.keyword = _keyword(line)
    return error


def _keyword(line: str) -> str:
    """The word of JSON Schema that the message speaks of."""
    for said, word in _SAID:
        if said in line:
            return word
    found = [word for word in re.findall(r"[A-Za-z$]+", line) if word in _WORDS]
    return found[0] if found else ""
