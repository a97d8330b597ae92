"""JSON schemas as llguidance takes them, and what it says of those that it does not take.

The words that decide nothing are left out, since llguidance refuses some of them: a format that it does not know (in
the standard a format is an annotation), `uniqueItems: false`, a `then` without an `if`. `uniqueItems: true` no grammar
can say; where `tools.repeats` can watch the list, it was taken out before. Everything that is left and that it cannot
hold a reply to is refused by name (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote

from ..errors import UnsupportedSchemaError
from ..tools.schema_logic import DATA, NAMED, named, references, words
from .schema_patterns import safe_pattern
from .schema_rules import Outer, refused, rewritten

__all__ = ["prepared", "refusal"]

_FORMATS: Final = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
#: Words whose values are schemas, lists of schemas, and named schemas.
_ONE: Final = ("additionalProperties", "items")
_MANY: Final = ("allOf", "anyOf", "items", "prefixItems")
_NAMED: Final = ("$defs", "definitions", "patternProperties", "properties")
#: Words for which there are rules. Where one still stands it is refused, and stays as it is: to narrow what a value
#: must not fit would allow more.
_RULED: Final = (
    "not", "if", "then", "else", "oneOf", "contains", "propertyNames", "dependentSchemas", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip
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
    *_ONE, *_MANY, *_NAMED, *_RULED, *_IDLE, *_WITH, "$ref", "$dynamicRef", "$dynamicAnchor",
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
    """The schema in words that llguidance knows. Whatever fits the result fits the schema.

    Raises:
        UnsupportedSchemaError: it asks for a value that has no end, such as a node that must hold a node.
    """
    found = _Preparation(schema).whole()
    return found if isinstance(found, dict) else {"enum": []} if found is False else {}


class _Preparation:
    """One schema being prepared, place by place."""

    def __init__(self, root: Any) -> None:
        self._root = _quoted(root)
        self._targets = tuple(map(unquote, references(self._root)))
        self._endless = _Ends(self._root).endless()
        #: What references lead to, as far as that can be told: behind an id of their own they lead elsewhere.
        self._known = None if any(_ids(one) for _, one in words(self._root)) else self._root

    def whole(self) -> Any:
        return self._of(self._root, "#")

    def _of(self, schema: Any, place: str, outer: Outer | None = None) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        if schema.get("$ref") in self._endless:
            return False  # nothing fits what must hold itself
        kept = {key: value for key, value in schema.items() if not _idle(key, value, schema)}
        led_through = [key for key in kept if any(f"{one}/".startswith(f"{place}/{key}/") for one in self._targets)]
        made = rewritten(kept, self._known, led_through, outer)
        outer = (outer or Outer()).with_(made)
        return {key: self._value(key, value, f"{place}/{key}", outer) for key, value in made.items()}

    def _value(self, key: str, value: Any, place: str, outer: Outer) -> Any:
        if key in _MANY and isinstance(value, list):
            same = None if key in ("items", "prefixItems") else outer
            return [self._of(one, f"{place}/{n}", same) for n, one in enumerate(value)]
        if key in _ONE:
            return self._of(value, place)
        if key in _NAMED and isinstance(value, Mapping):
            said = safe_pattern if key == "patternProperties" else str
            return {said(name): self._of(one, f"{place}/{_escaped(name)}") for name, one in value.items()}
        if key == "pattern" and isinstance(value, str):
            return safe_pattern(value)
        if key in _COUNTS and isinstance(value, float) and value.is_integer():
            return int(value)
        return value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


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
    advice = "no value fits that property: let its words agree" if "is unsatisfiable" in line else ""
    return refused(line, _keyword(line), advice)


def _keyword(line: str) -> str:
    """The word of JSON Schema that the message speaks of."""
    for said, word in _SAID:
        if said in line:
            return word
    found = [word for word in re.findall(r"[A-Za-z$]+", line) if word in _WORDS]
    return found[0] if found else ""


class _Ends:
    """Which references of a schema lead to a value that can end; llguidance follows the others for ever."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._good: set[str] = set()

    def endless(self) -> frozenset[str]:
        """The references that no finite value fits.

        Raises:
            UnsupportedSchemaError: the schema, or an alternative of its items (a tool that could never be called),
                has no end.
        """
        found = frozenset(one for one in references(self._root) if not self._reference(one, frozenset()))
        items = self._root.get("items") if isinstance(self._root, Mapping) else None
        for one in (self._root, items, *_list(items, "anyOf")):
            if found and not self._schema(one, frozenset()):
                raise refused("nothing fits a reference, or only what holds itself without end", "$ref")
        return found

    def _reference(self, name: str, within: frozenset[str]) -> bool:
        if name in self._good or not name.startswith("#"):
            return True
        if name in within:
            return False
        if self._schema(named(self._root, name), within | {name}):
            self._good.add(name)
            return True
        return False

    def _schema(self, schema: Any, within: frozenset[str]) -> bool:
        if not isinstance(schema, Mapping) or "const" in schema or "enum" in schema:
            return schema is not False
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


def _list(schema: Any, key: str) -> list[Any]:
    value = schema.get(key) if isinstance(schema, Mapping) else None
    return value if isinstance(value, list) else []


def _ids(schema: Any) -> bool:
    """Whether there is an id in it."""
    return any(key == "$id" or _ids(value) for key, value in words(schema))


def _quoted(schema: Any) -> Any:
    """With references as URIs; a definition's name may be in any script."""
    if isinstance(schema, list):
        return [_quoted(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _quoted_value(key, value) for key, value in schema.items()}


def _quoted_value(key: str, value: Any) -> Any:
    if key == "$ref" and isinstance(value, str):
        return quote(value, safe=_URI)
    if key in NAMED and isinstance(value, Mapping):
        return {name: _quoted(one) for name, one in value.items()}
    return value if key in DATA else _quoted(value)
