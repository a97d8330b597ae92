"""Does a value fit its JSON schema? For replies that a server held by means of its own, which may let through more.

Knows the words of draft 2020-12 but for `$dynamicRef`, `unevaluatedItems`, `unevaluatedProperties` and references to
other documents: what it does not know, fits. Numbers are compared as they are written, so `loads` reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, TypeAlias

from .repeats import comparable, number
from .schema_logic import Schema, kind_of, named, words

__all__ = ["loads", "misfit"]

#: Words that are not known here.
_UNKNOWN: Final = frozenset({"unevaluatedProperties", "unevaluatedItems", "$dynamicRef"})
#: The word that does not fit, and where.
Misfit: TypeAlias = tuple[str, tuple[object, ...]]
_Found: TypeAlias = Iterator[Misfit]


def loads(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, strict=False, parse_float=number)


def misfit(value: Any, schema: Schema, root: Schema) -> Misfit | None:
    """What of the schema the value does not fit, and where in the value; None where it fits or nobody can tell.

    That is so of a value that is nested too deeply, and of a schema that is none.

    Args:
        value: as `loads` reads it.
        schema: what it is to fit, as `loads` reads it.
        root: what the schema's references refer to.
    """
    try:
        return next(_Check(root).of(value, schema, ()), None)
    except (RecursionError, TypeError, AttributeError):
        return None


class _Check:
    def __init__(self, root: Schema) -> None:
        self._root = root
        #: References that are being followed, with the value: one that leads to itself says nothing.
        self._within: set[tuple[str, int]] = set()
        #: Whether every word is known; else what fits may not fit in truth, and nothing is told of its opposite.
        self._sure = _all_known(root, root)

    def of(self, value: Any, schema: Schema, place: tuple[object, ...]) -> _Found:
        if schema is False:
            yield "false", place
        if not isinstance(schema, Mapping):
            return
        for word, rule in (*_ANY.items(), *_RULES.get(_kind(value), {}).items()):
            if word in schema and not rule(schema[word], value):
                yield word, place
        yield from self._parts(value, schema, place)
        if isinstance(value, Mapping):
            yield from self._object(value, schema, place)
        elif isinstance(value, list):
            yield from self._list(value, schema, place)

    def fits(self, value: Any, schema: Schema) -> bool:
        return next(self.of(value, schema, ()), None) is None

    def _parts(self, value: Any, schema: Mapping[str, Any], place: tuple[object, ...]) -> _Found:
        if isinstance(schema.get("$ref"), str):
            yield from self._reference(value, schema["$ref"], place)
        for one in schema.get("allOf") or ():
            yield from self.of(value, one, place)
        if "anyOf" in schema and not any(self.fits(value, one) for one in schema["anyOf"]):
            yield "anyOf", place
        if "oneOf" in schema and (count := sum(self.fits(value, one) for one in schema["oneOf"])) != 1:
            yield from [("oneOf", place)] if self._sure or count == 0 else ()
        if "not" in schema and self._sure and self.fits(value, schema["not"]):
            yield "not", place
        if "if" in schema and self._sure:
            word = "then" if self.fits(value, schema["if"]) else "else"
            yield from self.of(value, schema.get(word), place)

    def _reference(self, value: Any, reference: str, place: tuple[object, ...]) -> _Found:
        followed = reference, id(value)
        if followed not in self._within:
            self._within.add(followed)
            try:
                yield from self.of(value, named(self._root, reference), place)
            finally:
                self._within.discard(followed)

    def _object(self, value: Mapping[str, Any], schema: Mapping[str, Any], place: tuple[object, ...]) -> _Found:
        listed, patterns = schema.get("properties") or {}, schema.get("patternProperties") or {}
        for key, one in value.items():
            own = [listed[key]] if key in listed else []
            own += [inner for pattern, inner in patterns.items() if _matches(pattern, key)]
            for inner in own or [schema.get("additionalProperties")]:
                yield from self.of(one, inner, (*place, key))
            if not self.fits(key, schema.get("propertyNames")):
                yield "propertyNames", place
        for word in ("dependentRequired", "dependentSchemas", "dependencies"):
            for key, asked in (schema.get(word) or {}).items():
                inner = {"required": asked} if isinstance(asked, list) else asked
                if key in value and not self.fits(value, inner):
                    yield word, place

    def _list(self, value: list[Any], schema: Mapping[str, Any], place: tuple[object, ...]) -> _Found:
        items = schema.get("items")
        first = items if isinstance(items, list) else schema.get("prefixItems") or []
        rest = schema.get("additionalItems") if isinstance(items, list) else items
        for at, one in enumerate(value):
            yield from self.of(one, first[at] if at < len(first) else rest, (*place, at))
        if "contains" in schema:
            count = sum(self.fits(one, schema["contains"]) for one in value)
            most = schema.get("maxContains", count) if self._sure else count
            if not schema.get("minContains", 1) <= count <= most:
                yield "contains", place


def _all_known(schema: Schema, root: Schema) -> bool:
    for word, value in words(schema):
        lost = word == "$ref" and named(root, value) is None
        if lost or word in _UNKNOWN or not _all_known(value, root):
            return False
    return True


# --- words of one value ---


def _kind(value: object) -> str:
    return "number" if isinstance(value, Decimal) else kind_of(value)


def _of_type(wanted: Any, value: Any) -> bool:
    kinds = wanted if isinstance(wanted, list) else [wanted]
    return _kind(value) in kinds or ("integer" in kinds and _kind(value) == "number" and _whole(value))


def _whole(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_finite() and value == value.to_integral_value()
    return isinstance(value, int)


def _multiple(step: Any, value: Any) -> bool:
    try:
        return bool(Decimal(value) % Decimal(step) == 0)
    except ArithmeticError:  # too large to be divided: nobody can say
        return True


def _once(wanted: Any, value: list[Any]) -> bool:
    items = [comparable(one) for one in value] if wanted is True else []
    return not any(one in items[:at] for at, one in enumerate(items))


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:
        return None


def _matches(pattern: str, text: str) -> bool:
    found = _pattern(pattern)
    return found is None or found.search(text) is not None


_Rule: TypeAlias = Callable[[Any, Any], bool]
_ANY: Final[Mapping[str, _Rule]] = {
    "type": _of_type,
    "const": lambda wanted, value: comparable(value) == comparable(wanted),
    "enum": lambda wanted, value: any(comparable(value) == comparable(one) for one in wanted),
}
_RULES: Final[Mapping[str, Mapping[str, _Rule]]] = {
    "number": {
        "minimum": lambda least, value: value >= least,
        "maximum": lambda most, value: value <= most,
        "exclusiveMinimum": lambda least, value: value > least,
        "exclusiveMaximum": lambda most, value: value < most,
        "multipleOf": _multiple,
    },
    "string": {
        "minLength": lambda least, value: len(value) >= least,
        "maxLength": lambda most, value: len(value) <= most,
        "pattern": _matches,
    },
    "array": {
        "minItems": lambda least, value: len(value) >= least,
        "maxItems": lambda most, value: len(value) <= most,
        "uniqueItems": _once,
    },
    "object": {
        "minProperties": lambda least, value: len(value) >= least,
        "maxProperties": lambda most, value: len(value) <= most,
        "required": lambda names, value: all(name in value for name in names),
    },
}
