"""Which words of a JSON schema llama.cpp holds a reply to, and which it takes and passes over. Pure.

Its converter makes a grammar of the words that it knows, and says nothing of the others; Ollama hands schemas to the
same one. Read from ggml-org/llama.cpp common/json-schema.cpp (what is read of a schema) and
common/json-schema-to-grammar.cpp (what becomes of it), as llama-cpp-python 0.3.36 brings them. A server that was built
with LLAMA_LLGUIDANCE holds more, and does not say so.

A word is missed where a whole reply need not fit it. Where the converter allows less than the schema does, such as
no property that is not listed, nothing is missed. `minLength` is taken for held, although a character that is written
as two escapes (\\ud83c\\udf63) is two to it: the reply is checked when it has come.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Final

from ...tools.schema_logic import Schema, disjoint, kind_of, kinds, named, words
from .record import Gap

__all__ = ["llamacpp_gap"]

# --- what is read ----------------------------------------------------------------------------------------------------

#: The words that are read of each kind of schema (`_kind` says which one it is); those beside them are passed over.
_READ: Final[Mapping[str, tuple[str, ...]]] = {
    "$ref": ("$ref",),
    "oneOf": ("oneOf",),
    "anyOf": ("anyOf",),
    "allOf": ("allOf",),
    "const": ("const",),
    "enum": ("enum",),
    "object": ("type", "properties", "required", "additionalProperties"),
    "array": ("type", "items", "minItems", "maxItems"),
    "tuple": ("type", "prefixItems", "minItems", "maxItems"),
    "pattern": ("type", "pattern"),
    "format": ("type", "format"),
    "string": ("type", "minLength", "maxLength"),
    "integer": ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("type",),
    "boolean": ("type",),
    "null": ("type",),
    "any": (),
}
#: The formats that become rules. Of the others those are missed that a local model is held to; no other says anything.
_FORMATS: Final = frozenset({"date", "time", "date-time", "uuid", "uuid1", "uuid2", "uuid3", "uuid4", "uuid5"})
_MISSED_FORMATS: Final = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uri"})
#: Words that say something of every value, and of values of one type.
_OF_ALL: Final = ("$ref", "$dynamicRef", "type", "const", "enum", "allOf", "anyOf", "oneOf", "not", "if")
_OF_TYPE: Final[Mapping[str, tuple[str, ...]]] = {
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "unevaluatedItems"),
    "object": (
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties",
        "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties",
    ),
}  # fmt: skip
#: The type of what fits a kind, where the kind alone says it.
_TYPES: Final[Mapping[str, str]] = {
    "object": "object", "array": "array", "tuple": "array", "pattern": "string", "format": "string", "string": "string",
    "integer": "number", "number": "number", "boolean": "boolean", "null": "null",
}  # fmt: skip
#: What says nothing with this value.
_IDLE: Final[Mapping[str, tuple[Any, ...]]] = {
    **dict.fromkeys(("minLength", "minItems", "minProperties"), (0,)),
    **dict.fromkeys(("required", "allOf"), ([],)),
    **dict.fromkeys(("properties", "patternProperties"), ({},)),
    **dict.fromkeys(("dependentRequired", "dependentSchemas", "dependencies"), ({},)),
    **dict.fromkeys(("items", "additionalProperties", "propertyNames"), (True, {})),
    **dict.fromkeys(("unevaluatedProperties", "unevaluatedItems"), (True, {})),
    **dict.fromkeys(("uniqueItems", "not"), (False,)),
}
#: Beyond these an integer's bounds are wrong: any, and one that stands alone.
_LARGEST: Final = 10**18
_LARGEST_ALONE: Final = 10**15

_PASSED_OVER: Final = "its converter passes over it there"
_NO_SCHEMA: Final = "its converter takes neither true nor false for a schema"
_NO_NAME: Final = "its converter finds only what this schema itself holds, under names without % and ~"
_TWO_NAMES: Final = "its converter tells definitions apart by the signs A-Z, a-z, 0-9 and - of their names alone"
_ALONE: Final = "its converter lets other numbers through where this bound stands alone; say both"
_NOTHING: Final = "nothing fits it together with what stands beside it"


def llamacpp_gap(schema: Schema) -> Gap | None:
    """The first word of the schema, in a place where it says something, that a reply is not held to."""
    return next(_Converter(schema).gaps(), None)


class _Converter:
    """One schema, as the converter goes through it. `rule`: what it names the rule for a part."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._rules = set[str]()
        self._references: dict[str, str] = {}

    def gaps(self) -> Iterator[Gap]:
        yield from self._part(self._root, "", "")
        if self._references and _holds_id(self._root):
            yield Gap("$id", "its converter takes every reference for one into the whole schema")
        if self._rules & self._references.keys():
            yield Gap("$ref", _TWO_NAMES)

    def _part(self, schema: Schema, rule: str, under: str) -> Iterator[Gap]:
        """`under`: the word that the part stands under."""
        self._rules.add(_rule(rule))
        yield from self._inside(schema, rule, under)

    def _inside(self, schema: Schema, rule: str, under: str) -> Iterator[Gap]:
        if not isinstance(schema, Mapping):
            yield Gap(under, _NO_SCHEMA)
            return
        kind = _kind(schema)
        if kind == "types" and ("const" in schema or "enum" in schema):  # each of the types gets all of the values
            kind = "const" if "const" in schema else "enum"
        if kind == "types":
            for place, one in enumerate(schema["type"]):
                yield from self._part({**schema, "type": one}, f"{rule}-{place}", "type")
            return
        yield from self._passed_over(schema, kind)
        yield from self._read(schema, kind, rule)

    def _passed_over(self, schema: Mapping[str, Any], kind: str) -> Iterator[Gap]:
        types = [_TYPES[kind]] if kind in _TYPES else sorted(kinds(schema, self._root))
        for word in (*_OF_ALL, *(own for one in types for own in _OF_TYPE.get(one, ()))):
            if word in schema and word not in _READ[kind] and not self._says_nothing(word, schema, kind):
                yield Gap(word, _PASSED_OVER)

    def _says_nothing(self, word: str, schema: Mapping[str, Any], kind: str) -> bool:
        """Whether the value fits the word anyway."""
        value = schema[word]
        if word == "type":
            return self._implied(schema, kind)
        if word == "if":
            return "then" not in schema and "else" not in schema
        if word == "format":
            return value not in _FORMATS | _MISSED_FORMATS
        if word == "multipleOf":
            return kind == "integer" and value == 1
        if word in ("minProperties", "maxProperties") and kind == "object" and _is(value, "number"):
            return _counted(word, value, schema)
        if word == "uniqueItems" and _most_items(schema, kind) <= 1:
            return True
        if (word == "unevaluatedProperties" and kind == "object" and not _open(schema)) or (
            word == "unevaluatedItems" and (kind == "tuple" or "items" in schema)
        ):
            return True
        return any(value == one and type(value) is type(one) for one in _IDLE.get(word, ()))

    def _implied(self, schema: Mapping[str, Any], kind: str) -> bool:
        listed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if kind in ("const", "enum"):
            return all(any(_is(value, one) for one in listed) for value in _values(schema, kind))
        rest = {key: value for key, value in schema.items() if key != "type"}
        return kinds(rest, self._root) <= set(listed)

    # --- what is read ---

    def _read(self, schema: Mapping[str, Any], kind: str, rule: str) -> Iterator[Gap]:
        match kind:
            case "$ref":
                yield from self._reference(schema["$ref"])
            case "oneOf" | "anyOf":
                yield from self._options(schema[kind], kind, rule)
            case "allOf":
                yield from self._all(schema["allOf"], rule)
            case "enum" | "const":
                if not _values(schema, kind):
                    yield Gap(kind, _NOTHING)
            case "object":
                yield from self._object(schema, rule)
            case "array" | "tuple":
                yield from _counts(schema, "minItems", "maxItems")
                yield from self._array(schema, kind, rule)
            case "string":
                yield from _counts(schema, "minLength", "maxLength")
            case "pattern" if not _written(schema["pattern"]):
                yield Gap("pattern", _PATTERN)
            case "integer":
                yield from _bounds(schema)

    def _reference(self, reference: Any) -> Iterator[Gap]:
        steps = reference.split("/") if isinstance(reference, str) else []
        if steps[:1] != ["#"] or not steps[1:] or not all(steps) or set(reference) & {"%", "~"}:
            yield Gap("$ref", _NO_NAME)
            return
        rule = _rule("ref" + reference[1:])
        known = self._references.get(rule)
        if known is None:
            self._references[rule] = reference
            yield from self._inside(named(self._root, reference), rule, "$ref")
        elif known != reference:
            yield Gap("$ref", _TWO_NAMES)

    def _options(self, options: Any, word: str, rule: str) -> Iterator[Gap]:
        if not isinstance(options, list) or not options:
            yield Gap(word, _NOTHING)
            return
        for place, one in enumerate(options):
            yield from self._part(one, f"{rule}-{place}" if rule else f"alternative-{place}", word)
        if word == "oneOf" and not all(disjoint(one, other, self._root) for one, other in combinations(options, 2)):
            yield Gap(word, "its converter takes it for anyOf, and a value may fit two of these")

    def _all(self, parts: Any, rule: str) -> Iterator[Gap]:
        """All properties of the parts become one object, each of them required; nothing else of them is read."""
        if not isinstance(parts, list) or not parts:
            yield Gap("allOf", _NOTHING)
            return
        for one in parts:
            yield from self._part(one, rule, "allOf")
        found = [self._target(one) for one in parts]
        objects = all(_kind(one) == "object" and not _open(one) for one in found)
        names = [name for one in found for name in one.get("properties") or ()]
        one_enum = len(found) == 1 and _kind(found[0]) == "enum"
        closed = any("additionalProperties" in one or "unevaluatedProperties" in one for one in found)
        if not one_enum and not (objects and names and len(names) == len(set(names)) and not (closed and found[1:])):
            yield Gap("allOf", "its converter puts together objects that share no property, and nothing else")

    def _target(self, schema: Schema) -> Mapping[str, Any]:
        for _ in range(8):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                break
            schema = named(self._root, schema["$ref"])
        return schema if isinstance(schema, Mapping) else {}

    def _object(self, schema: Mapping[str, Any], rule: str) -> Iterator[Gap]:
        properties = schema.get("properties", {})
        further = schema.get("additionalProperties", False)
        for name, one in properties.items():
            yield from self._part(one, f"{rule}-{name}" if rule else name, "properties")
        if not set(schema.get("required") or ()) <= properties.keys():
            yield Gap("required", "its converter asks only for properties that are listed")
        if properties and further is not False:
            yield Gap("additionalProperties", "its converter lets names through that are no JSON, or are listed ones")
        if isinstance(further, Mapping):
            yield from self._part(further, f"{rule}-additional-value", "additionalProperties")

    def _array(self, schema: Mapping[str, Any], kind: str, rule: str) -> Iterator[Gap]:
        if kind == "array":
            if "items" in schema:
                yield from self._part(schema["items"], f"{rule}-item", "items")
            return
        items = schema["prefixItems"]
        for place, one in enumerate(items):
            yield from self._part(one, f"{rule}-tuple-{place}", "prefixItems")
        if len(items) < schema.get("minItems", 0):
            yield Gap("minItems", "its converter allows as many items as prefixItems has")
        if len(items) > schema.get("maxItems", len(items)):
            yield Gap("maxItems", "its converter wants as many items as prefixItems has")


def _kind(schema: Mapping[str, Any]) -> str:
    """As build_node tells them apart; "types" for a list of several types."""
    kind = schema.get("type")
    for word in ("$ref", "oneOf", "anyOf", "types", "const", "enum"):
        if word in schema or (word == "types" and isinstance(kind, list)):
            return word
    known = "properties" in schema or schema.get("additionalProperties", True) is not True
    if kind in (None, "object") and known:
        return "object"
    if kind in (None, "object", "string") and "allOf" in schema:
        return "allOf"
    if kind == "object":
        return "object"
    if kind == "array" or (kind is None and ("items" in schema or "prefixItems" in schema)):
        return "tuple" if "items" not in schema and isinstance(schema.get("prefixItems"), list) else "array"
    texts = "pattern" in schema or "minLength" in schema or "maxLength" in schema or schema.get("format") in _FORMATS
    if kind == "string" or (kind is None and texts):
        return "pattern" if schema.get("pattern") else "format" if schema.get("format") in _FORMATS else "string"
    return str(kind) if kind in ("integer", "number", "boolean", "null") else "any"


def _holds_id(schema: Schema, *, inner: bool = False) -> bool:
    """Whether a part has an id of its own, within which references lead elsewhere."""
    return any((inner and word == "$id") or _holds_id(value, inner=True) for word, value in words(schema))


def _rule(name: str) -> str:
    return re.sub("[^a-zA-Z0-9-]+", "-", name)


def _values(schema: Mapping[str, Any], kind: str) -> list[Any]:
    return [schema["const"]] if kind == "const" else schema["enum"] if isinstance(schema["enum"], list) else []


def _is(value: object, kind: object) -> bool:
    if kind == "integer":
        return isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0
    return kind_of(value) == kind


def _open(schema: Mapping[str, Any]) -> bool:
    """Whether an object may have properties that are not listed, as the converter takes it."""
    return schema.get("additionalProperties", "properties" not in schema) is not False


def _counted(word: str, value: float, schema: Mapping[str, Any]) -> bool:
    if word == "minProperties":
        return value <= len(set(schema.get("required") or ()))
    return not _open(schema) and value >= len(schema.get("properties") or ())


def _most_items(schema: Mapping[str, Any], kind: str) -> float:
    most: Any = schema.get("maxItems")
    allowed = most if _is(most, "number") else math.inf
    return float(min(allowed, len(schema["prefixItems"]) if kind == "tuple" else math.inf))


# --- numbers ---------------------------------------------------------------------------------------------------------


def _counts(schema: Mapping[str, Any], least: str, most: str) -> Iterator[Gap]:
    for word in (least, most):
        if word in schema and (type(schema[word]) is not int or schema[word] < 0):
            yield Gap(word, "its converter takes a whole number, written without a point")
            return
    if schema.get(least, 0) > schema.get(most, math.inf):
        yield Gap(most, _NOTHING)


def _bounds(schema: Mapping[str, Any]) -> Iterator[Gap]:
    """An integer's, as build_min_max_int writes them: right on both sides, and alone where no zero is left out."""
    for word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if word in schema and not (_is(schema[word], "number") and abs(schema[word]) < _LARGEST):
            yield Gap(word, "its converter takes a number of at most 18 digits")
            return
    low, high = _lowest(schema), _highest(schema)
    for word, other in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        narrower = schema.get(word, 0) - schema.get(other, 0)
        if word in schema and other in schema and (narrower >= 0 if word == "exclusiveMinimum" else narrower <= 0):
            yield Gap(word, _PASSED_OVER)
    if low is not None and high is not None:
        if low > high:
            yield Gap("maximum" if "maximum" in schema else "exclusiveMaximum", _NOTHING)
    elif low is not None and not _right_alone(low):
        yield Gap("minimum" if "minimum" in schema else "exclusiveMinimum", _ALONE)
    elif high is not None and high < 0:
        yield Gap("maximum" if "maximum" in schema else "exclusiveMaximum", _ALONE)


def _lowest(schema: Mapping[str, float]) -> int | None:
    if "minimum" in schema:
        return math.ceil(schema["minimum"])
    return math.floor(schema["exclusiveMinimum"]) + 1 if "exclusiveMinimum" in schema else None


def _highest(schema: Mapping[str, float]) -> int | None:
    if "maximum" in schema:
        return math.floor(schema["maximum"])
    return math.ceil(schema["exclusiveMaximum"]) - 1 if "exclusiveMaximum" in schema else None


def _right_alone(low: int) -> bool:
    """It goes on with the rest of the digits as a number of its own, so that 105 becomes a 1 and 5 or more."""
    return low < 0 or (low < _LARGEST_ALONE and "0" not in str(low)[1:-1])


# --- patterns --------------------------------------------------------------------------------------------------------

_PATTERN: Final = "its converter holds patterns between ^ and $ of plain signs, classes such as [a-z0-9] and groups"
_PIECE: Final = re.compile(
    r"(?P<klass>\[(?!\^)(?:\\[-\[\]]|\\u[0-9a-fA-F]{4}|[^\\\[\]])+\])|(?P<open>\((?:\?:)?)|(?P<close>\))|(?P<or>\|)"
    r"|(?P<times>[*+?]|\{\d+(?:,\d*)?\})|(?P<escaped>\\[-^$.\[\]()|{}*+?])|(?P<plain>[^\x00-\x1f\x7f\"\\|.()\[\]{}*+?^$])"
)
_SIGN: Final = re.compile(r"\\u(....)|\\?(.)", re.DOTALL)
#: What stands escaped in JSON, and is let through as it is: quotation marks, backslashes, control characters.
_ESCAPED: Final = (*range(0x20), 0x22, 0x5C)


def _written(pattern: Any) -> bool:
    """Whether a text that the converter's rule lets through fits the pattern, and is JSON."""
    if not isinstance(pattern, str) or len(pattern) < 2 or pattern[0] != "^" or pattern[-1] != "$":
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    before, place, end = ("or", ""), 1, len(pattern) - 1
    literal = False  # whether the text before is one literal, of which an escaped sign would become part
    while place < end:
        piece = _PIECE.match(pattern, place, end)
        if piece is None:
            return False
        now = (piece.lastgroup or "", piece.group())
        if (now[0] == "times" and not _repeatable(before, literal)) or (now[0] == "klass" and not _safe(now[1])):
            return False
        literal = before[0] in ("plain", "escaped")
        before, place = now, piece.end()
    return True


def _repeatable(before: tuple[str, str], literal: bool) -> bool:
    kind, text = before
    return kind in ("klass", "close") or (kind == "plain" and text.isascii()) or (kind == "escaped" and not literal)


def _safe(text: str) -> bool:
    """Whether a class has no sign that JSON escapes."""
    signs = [(found.group() == "-", int(found[1], 16) if found[1] else ord(found[2])) for found in _SIGN.finditer(text)]
    place, last = 1, len(signs) - 2  # between the brackets
    while place <= last:
        low = high = signs[place][1]
        if place + 2 <= last and signs[place + 1][0]:
            place += 2
            high = signs[place][1]
        if any(low <= one <= high for one in _ESCAPED) or (low <= 0xDFFF and high >= 0xD800):
            return False
        place += 1
    return True
