"""JSON schemas as llguidance takes them, and what it says of those that it does not take.

The words that decide nothing are left out, since llguidance refuses some of them: a format that it does not know (in
the standard a format is an annotation), `uniqueItems: false`, a `then` without an `if`. Everything that is left and
that it cannot hold a reply to is refused by name (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

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
    *_ONE, *_MANY, *_NAMED, *_IDLE, *_WITH, "$ref", "$dynamicRef", "$dynamicAnchor",
    "$anchor", "$id", "const", "enum", "type", "format",
    "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minItems", "maxItems", "minProperties", "maxProperties", "required",
)  # fmt: skip
#: Words that count; 2.0 is an integer in JSON.
_COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
#: The signs that a URI may hold as they are.
_URI: Final = "#/%:@!$&'()*+,;=?[]~-._"
#: What the library calls them where it does not say the word.
_SAID: Final = (
    ("regexes", "patternProperties"), ("regex", "pattern"), ("lookaround", "pattern"), ("Resource", "$ref"),
    ("Pointer", "$ref"), ("anyOf is empty", "enum"), ('"if"', "if"),
)  # fmt: skip


def prepared(schema: Any) -> dict[str, Any]:
    """The schema without what decides nothing. Whatever fits the result fits the schema.

    Raises:
        UnsupportedSchemaError: it asks for a value that has no end, such as a node that must hold a node.
    """
    found = _prepared(schema)
    endless = _Ends(found).endless()
    if endless is not None:
        raise _refused(f"{endless[:60]!r} must hold itself without end", "$ref")
    return found


def _prepared(schema: Any) -> dict[str, Any]:
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
    if key == "$ref" and isinstance(value, str):
        return quote(value, safe=_URI)  # a definition's name may be in any script, and a reference is a URI
    if key in _COUNTS and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _inner(schema: Any) -> Any:
    return _prepared(schema) if isinstance(schema, Mapping) else schema


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
    return _refused(line, _keyword(line))


def _refused(why: str, keyword: str) -> UnsupportedSchemaError:
    error = UnsupportedSchemaError(
        f"no grammar can be made of this JSON schema ({why[:200]}); leave the word out, or describe the rule in words "
        "and check the arguments in the tool"
    )
    error.keyword = keyword
    return error


def _keyword(line: str) -> str:
    """The word of JSON Schema that the message speaks of."""
    for said, word in _SAID:
        if said in line:
            return word
    found = [word for word in re.findall(r"[A-Za-z$]+", line) if word in _WORDS]
    return found[0] if found else ""


class _Ends:
    """Which references of a schema lead to a value that can end; llguidance follows the others for ever."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._good: set[str] = set()

    def endless(self) -> str | None:
        """A reference that no finite value fits, or None."""
        return next((one for one in _references(self._root) if not self._reference(one, frozenset())), None)

    def _reference(self, name: str, within: frozenset[str]) -> bool:
        if name in self._good or not name.startswith("#"):
            return True
        if name in within:
            return False
        if self._schema(_pointed(self._root, name), within | {name}):
            self._good.add(name)
            return True
        return False

    def _schema(self, schema: Any, within: frozenset[str]) -> bool:
        if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
            return True
        if isinstance(schema.get("$ref"), str) and not self._reference(schema["$ref"], within):
            return False
        if not all(self._schema(one, within) for one in _list(schema, "allOf")):
            return False
        for word in ("anyOf", "oneOf"):
            options = _list(schema, word)
            if options and not any(self._schema(one, within) for one in options):
                return False
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        return any(all(self._schema(one, within) for one in _needed(schema, kind)) for kind in kinds)


def _needed(schema: Mapping[str, Any], kind: Any) -> list[Any]:
    """What a value of this type must hold."""
    properties = schema.get("properties")
    if kind == "object" and isinstance(properties, Mapping):
        return [properties[name] for name in _list(schema, "required") if name in properties]
    least = schema.get("minItems", 0)
    if kind == "array" and isinstance(least, int) and least > 0:
        first = _list(schema, "prefixItems")[:least]
        return [*first, schema.get("items", True)] if least > len(first) else first
    return []


def _list(schema: Mapping[str, Any], key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _references(schema: Any) -> Iterator[str]:
    """Of every place that may hold a schema; a name in data that looks like one does no harm."""
    if isinstance(schema, list):
        for one in schema:
            yield from _references(one)
    elif isinstance(schema, Mapping):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            elif key not in ("enum", "const", "default", "examples"):
                yield from _references(value)


def _pointed(root: Any, name: str) -> Any:
    """What a local reference names; None where there is nothing."""
    for step in filter(None, unquote(name[1:]).split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and step.isdigit() and int(step) < len(root):
            root = root[int(step)]
        else:
            root = root.get(step) if isinstance(root, Mapping) else None
    return root
