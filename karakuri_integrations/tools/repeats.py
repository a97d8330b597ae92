"""Lists that must hold each item once (`uniqueItems`), in JSON as it grows: what no grammar can see.

Knows JSON and schemas, no tokens. Where a value may fit several schemas, a list holds each item once if one of those
that still can fit wants it; an option is out once a property is not what its `const` or `enum` says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from .schema_logic import ANNOTATIONS, DATA, NAMED, Schema, named, references, values, words

__all__ = ["Item", "Repeats", "loosened", "number", "repeats_in"]

#: Under these a list is looked at for what it must not be, or only sometimes; there `uniqueItems` stays as it is.
_ELSEWHERE: Final = frozenset(
    {"not", "if", "then", "else", "contains", "propertyNames", "dependentSchemas", "dependencies", "unevaluatedItems",
     "unevaluatedProperties", "additionalItems"}
)  # fmt: skip
_PARTS: Final = ("allOf", "anyOf", "oneOf")
_WHOLE: Final = frozenset({"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
#: Whole numbers between bounds are listed up to so many.
_MOST: Final = 1000
_SPACE: Final = b" \t\r\n"


# --- schemas ---


def loosened(schema: Schema) -> Schema:
    """The schema without `uniqueItems`, where `Repeats` can watch every list that has it; else the schema itself."""
    if not _wanted(schema) or any(one in ("$id", "$dynamicRef") for one, _ in _all_words(schema)):
        return schema
    elsewhere = [value for word, value in _all_words(schema) if word in _ELSEWHERE]
    if any(_wanted(one) or any(references(one)) for one in elsewhere):
        return schema
    if any(named(schema, one) is None for one in references(schema)):
        return schema
    return _without(schema, schema)


def _wanted(schema: Schema) -> bool:
    return any(word == "uniqueItems" and value is True for word, value in _all_words(schema))


def _all_words(schema: Schema) -> Iterator[tuple[str, Any]]:
    for word, value in words(schema):
        if word:
            yield word, value
        yield from _all_words(value)


def _without(schema: Any, root: Schema) -> Any:
    if isinstance(schema, list):
        return [_without(one, root) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _without_at(key, value, root) for key, value in schema.items()}
    if found.get("uniqueItems") is True:
        del found["uniqueItems"]
        few = _listed(schema.get("items"), root)
        if few is not None and not schema.get("prefixItems"):
            found["maxItems"] = min(len(few), found.get("maxItems", len(few)))
    return found


def _without_at(key: str, value: Any, root: Schema) -> Any:
    if key in NAMED and isinstance(value, Mapping):  # a property may be called like a word of schemas
        return {name: _without(one, root) for name, one in value.items()}
    return value if key in DATA else _without(value, root)


def _listed(schema: Schema, root: Schema, depth: int = 0) -> list[bytes] | None:
    """Every value that may fit, as JSON; None where they are not a few that can be listed."""
    if not isinstance(schema, Mapping) or depth > 8:
        return None
    found = values(schema) or _whole_numbers(schema)
    if found is not None:
        plain = all(one is None or isinstance(one, str | int) for one in found)
        texts = (json.dumps(one, ensure_ascii=False).encode() for one in found)
        return list(dict.fromkeys(texts)) if plain else None
    if "$ref" in schema:
        return _listed(named(root, schema["$ref"]), root, depth + 1)
    options = schema.get("anyOf")
    parts = [_listed(one, root, depth + 1) for one in options] if isinstance(options, list) else []
    good = [one for one in parts if one is not None]
    return list(dict.fromkeys(text for one in good for text in one)) if parts and len(good) == len(parts) else None


def _whole_numbers(schema: Mapping[str, Any]) -> list[int] | None:
    if schema.get("type") != "integer" or schema.keys() - ANNOTATIONS - _WHOLE:
        return None
    if any(isinstance(schema.get(word, 0), bool | float) for word in _WHOLE):
        return None
    low = [schema[word] + step for word, step in (("minimum", 0), ("exclusiveMinimum", 1)) if word in schema]
    high = [schema[word] - step for word, step in (("maximum", 0), ("exclusiveMaximum", 1)) if word in schema]
    return list(range(max(low), min(high) + 1)) if low and high and min(high) - max(low) < _MOST else None


# --- JSON as it grows ---


@dataclass(frozen=True)
class Item:
    """An item of such a list, that is being written or comes next.

    text: of it so far. earlier: the items before it. left: where the items are a few values, those that it may still
    be. behind_comma: nothing stands behind the comma yet, not even white space.
    """

    text: bytes
    earlier: tuple[bytes, ...]
    left: tuple[bytes, ...] | None
    behind_comma: bool


@dataclass
class _Open:
    """A list or an object that is open, and the schemas that its value may have to fit.

    `known` are those of its properties so far of which a schema lists the values.
    """

    schemas: tuple[Schema, ...]
    views: list[Mapping[str, Any]]
    begins: int
    keyed: bool
    key: str | None = None
    unique: bool = False
    listed: list[bytes] | None = None
    items: list[bytes] = field(default_factory=list)
    place: int = 0
    known: dict[str, bytes] = field(default_factory=dict)


class Repeats:
    """Reads JSON piece by piece. `repeated`: a list that must hold each item once holds one twice."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._received = b""
        self._at = 0
        self._stack: list[_Open] = []
        self._value: int | None = None  # where the value that is being read begins, if it is no list and no object
        self._string = self._escaped = self._over = False
        self.repeated = False

    def copy(self) -> Repeats:
        found = Repeats.__new__(Repeats)
        vars(found).update(vars(self))
        found._stack = [replace(one, items=[*one.items]) if one.unique else replace(one) for one in self._stack]
        return found

    def push(self, text: bytes) -> None:
        """Go on by this text."""
        self._received += text
        while self._at < len(self._received) and not self._over:
            self._step(self._received[self._at])
            self._at += 1

    def items(self) -> Iterator[Item]:
        """The items that the next character belongs to, of lists that must hold each once; the outermost first."""
        for place, one in enumerate(self._stack):
            innermost = place == len(self._stack) - 1
            begins = self._item_begins(one) if innermost else self._stack[place + 1].begins
            if one.unique and begins is not None:
                left = None if one.listed is None else tuple(text for text in one.listed if text not in one.items)
                yield Item(self._received[begins:], tuple(one.items), left, self._received[-1:] == b",")

    def _item_begins(self, inside: _Open) -> int | None:
        if self._value is not None:
            return self._value
        last = self._received[: self._at].rstrip(_SPACE)[-1:]
        return len(self._received) if last in (b"[", b",") and not inside.keyed else None

    def _step(self, one: int) -> None:
        if self._string:
            self._in_string(one)
        elif one in b'"':
            self._string, self._value = True, self._at
        elif one in b"[{":
            self._stack.append(self._opened(keyed=one in b"{"))
        elif one in b"]},":
            self._end_scalar(self._at)
            if one not in b"," and self._stack:
                begins = self._stack.pop().begins
                self._end(begins, self._at + 1)
            elif self._stack:
                self._stack[-1].place += 1
        elif one in b":" + _SPACE:
            self._end_scalar(self._at)
        elif self._value is None:
            self._value = self._at

    def _in_string(self, one: int) -> None:
        if self._escaped:
            self._escaped = False
        elif one in b"\\":
            self._escaped = True
        elif one in b'"':
            self._string = False
            self._end_scalar(self._at + 1)

    def _end_scalar(self, end: int) -> None:
        if self._value is not None:
            begins, self._value = self._value, None
            self._end(begins, end)

    def _end(self, begins: int, end: int) -> None:
        """A value, or a key, is whole."""
        inside = self._stack[-1] if self._stack else None
        text = self._received[begins:end]
        if inside is None:
            self._over = True
        elif not inside.keyed:
            if inside.unique:
                self.repeated = self.repeated or any(_same(text, one) for one in inside.items)
                inside.items.append(text)
        elif inside.key is None:
            inside.key = str(_loaded(text))
        else:
            if any(_listed_of(one, inside.key) is not None for one in inside.views):
                inside.known = {**inside.known, inside.key: text}
                inside.views = list(self._views(inside.schemas, inside.known))
            inside.key = None

    def _opened(self, *, keyed: bool) -> _Open:
        schemas = tuple(self._inner())
        found = _Open(schemas, list(self._views(schemas, {})), self._at, keyed)
        if not keyed and any(one.get("uniqueItems") is True for one in found.views):
            own = [one for one in found.views if "items" in one and "prefixItems" not in one]
            listed = _listed(own[0]["items"], self._root) if len(own) == 1 else None
            return replace(found, unique=True, listed=listed)
        return found

    def _inner(self) -> Iterable[Schema]:
        """The schemas of the value that begins here."""
        if not self._stack:
            return [self._root]
        inside = self._stack[-1]
        if inside.keyed:
            return [inner for one in inside.views for inner in _of_key(one, inside.key or "")]
        return [_of_place(one, inside.place) for one in inside.views]

    def _views(self, schemas: Iterable[Schema], known: Mapping[str, bytes]) -> Iterator[Mapping[str, Any]]:
        """The schemas and those that the same value must or still may fit."""
        todo, seen = list(schemas), set[str]()
        while todo:
            one = todo.pop(0)
            if not isinstance(one, Mapping) or not self._may_be(one, known, frozenset()):
                continue
            yield one
            if isinstance(one.get("$ref"), str) and one["$ref"] not in seen:
                seen.add(one["$ref"])
                todo.append(named(self._root, one["$ref"]))
            todo += [part for word in _PARTS for part in one.get(word) or ()]

    def _may_be(self, schema: Schema, known: Mapping[str, bytes], seen: frozenset[str]) -> bool:
        """Whether an object of this schema may have these values."""
        if not known or not isinstance(schema, Mapping):
            return True
        for key, text in known.items():
            listed = _listed_of(schema, key)
            if listed is not None and not any(_same(text, json.dumps(one).encode()) for one in listed):
                return False
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen |= {reference}
            if not self._may_be(named(self._root, reference), known, seen):
                return False
        if not all(self._may_be(one, known, seen) for one in schema.get("allOf") or ()):
            return False
        options = [schema[word] for word in ("anyOf", "oneOf") if schema.get(word)]
        return all(any(self._may_be(one, known, seen) for one in those) for those in options)


def _listed_of(schema: Mapping[str, Any], key: str) -> list[Any] | None:
    """The values that a property may have; None where the schema lists none."""
    return values((schema.get("properties") or {}).get(key))


def _of_key(schema: Mapping[str, Any], key: str) -> list[Schema]:
    listed = schema.get("properties") or {}
    found = [listed[key]] if key in listed else []
    found += [one for pattern, one in (schema.get("patternProperties") or {}).items() if _matches(pattern, key)]
    return found or [schema.get("additionalProperties")]


def _matches(pattern: str, key: str) -> bool:
    try:
        return re.search(pattern, key) is not None
    except re.error:
        return True


def _of_place(schema: Mapping[str, Any], place: int) -> Schema:
    items = schema.get("items")
    first = items if isinstance(items, list) else schema.get("prefixItems")
    if isinstance(first, list) and place < len(first):
        return first[place]
    return None if isinstance(items, list) else items


def number(text: str) -> Decimal | float:
    """Exactly, but for exponents beyond any use."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return float(text)


def _loaded(text: bytes) -> Any:
    """The value; text that is no JSON as it is."""
    try:
        return json.loads(text, parse_float=number, parse_int=number)
    except ValueError:
        return text


def _same(one: bytes, other: bytes) -> bool:
    """Whether two texts are the same value to JSON Schema, where 1 is 1.0 and no number is a boolean.

    Of what is nested too deeply to be read only the text is compared.
    """
    try:
        return one == other or _plain(_loaded(one)) == _plain(_loaded(other))
    except RecursionError:
        return False


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def repeats_in(schema: Schema, text: str) -> bool:
    """Whether JSON of this schema repeats an item where it must not."""
    found = Repeats(schema)
    found.push(text.encode(errors="surrogatepass"))
    return found.repeated
