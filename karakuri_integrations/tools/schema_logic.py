"""What can be told of a JSON schema by looking at it: where a reference leads, which types fit, what is its opposite.

Every answer is exact or None. Knows the words of draft 2020-12; `schemas` narrows schemas by it, and
`engines.schema_rules` says them in other words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

__all__ = [
    "ANNOTATIONS",
    "DATA",
    "NAMED",
    "TYPES",
    "Schema",
    "disjoint",
    "every",
    "kinds",
    "named",
    "negated",
    "none_of",
    "references",
    "some",
    "values",
    "words",
]

#: As JSON has it: an object, or True (anything) or False (nothing).
Schema: TypeAlias = Any

TYPES: Final = ("null", "boolean", "number", "string", "array", "object")
#: Words that no value breaks.
ANNOTATIONS: Final = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id",
     "$anchor", "$defs", "definitions", "discriminator", "contentEncoding", "contentMediaType", "contentSchema"}
)  # fmt: skip
#: Words whose values are named schemas: a name may be a word of schemas too.
NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
#: Words whose values are data, in which nothing is a schema.
DATA: Final = ("enum", "const", "default", "examples")
#: References are followed so many times in a row, then nothing is told.
_DEEPEST: Final = 8
#: The opposite of a bound on a value of this type is another bound.
_BOUNDS: Final = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}


def named(root: Schema, reference: object) -> Schema:
    """What a local reference names; None where there is nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for step in filter(None, unquote(reference[1:]).split("/")):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        else:
            found = found.get(step) if isinstance(found, Mapping) else None
    return found


def words(schema: Schema) -> Iterator[tuple[str, Any]]:
    """The words of a schema and what stands under them, data left out; "" for schemas that have a name or a place."""
    if isinstance(schema, list):
        yield from (("", one) for one in schema)
    elif isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in NAMED and isinstance(value, Mapping):
                yield from (("", one) for one in value.values())
            elif key not in DATA:
                yield key, value


def references(schema: Schema) -> Iterator[str]:
    """Every reference in a schema."""
    for key, value in words(schema):
        if key == "$ref" and isinstance(value, str):
            yield value
        yield from references(value)


# --- putting together ---


def every(schemas: Iterable[Schema]) -> Schema:
    """What fits all of them."""
    found = [one for one in schemas if one is not True and one != {}]
    if any(one is False for one in found):
        return False
    return {"allOf": found} if len(found) > 1 else found[0] if found else True


def some(schemas: Iterable[Schema]) -> Schema:
    """What fits at least one of them."""
    found = [one for one in schemas if one is not False]
    if any(one is True or one == {} for one in found):
        return True
    return {"anyOf": found} if len(found) > 1 else found[0] if found else False


# --- values and types ---


def values(schema: Schema) -> list[Any] | None:
    """Every value that fits, where the schema lists them."""
    if not isinstance(schema, Mapping) or schema.keys() - ANNOTATIONS - {"type", "const", "enum"}:
        return None
    if "const" in schema or "enum" in schema:
        listed = [schema["const"]] if "const" in schema else list(schema["enum"])
        good = kinds({key: one for key, one in schema.items() if key == "type"}, {})
        whole = schema.get("type") == "integer"
        return [one for one in listed if kind_of(one) in good and (not whole or one == int(one))]
    if schema.get("type") == "null":
        return [None]
    return [False, True] if schema.get("type") == "boolean" else None


def kind_of(value: object) -> str:
    """The type of a JSON value; integers are numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    by_class = ((int | float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in by_class if isinstance(value, kind)), "object")


def kinds(schema: Schema, root: Schema, depth: int = 0) -> frozenset[str]:
    """The types that a value that fits can have, perhaps more."""
    if schema is False:
        return frozenset()
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return frozenset(TYPES)
    found = set(TYPES)
    if "type" in schema:
        listed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        found &= {"number" if one == "integer" else one for one in listed}
    if "const" in schema:
        found &= {kind_of(schema["const"])}
    if isinstance(schema.get("enum"), list):
        found &= set(map(kind_of, schema["enum"]))
    if "$ref" in schema:
        found &= kinds(named(root, schema["$ref"]), root, depth + 1)
    for one in schema.get("allOf") or ():
        found &= kinds(one, root, depth + 1)
    for word in ("anyOf", "oneOf"):
        if schema.get(word):
            found &= frozenset().union(*(kinds(one, root, depth + 1) for one in schema[word]))
    return frozenset(found)


def disjoint(one: Schema, other: Schema, root: Schema, depth: int = 0) -> bool:
    """Whether it is certain that no value fits both."""
    both = kinds(one, root) & kinds(other, root)
    if not both:
        return True
    first, second = _plain(one, root), _plain(other, root)
    listed, further = values(first), values(second)
    if listed is not None and further is not None:
        return not any(_same(a, b) for a in listed for b in further)
    if both != {"object"} or depth > _DEEPEST:
        return False
    needed = {*(first.get("required") or ()), *(second.get("required") or ())}
    mine, theirs = first.get("properties") or {}, second.get("properties") or {}
    return any(
        disjoint(mine[name], theirs[name], root, depth + 1) for name in needed if name in mine and name in theirs
    )


def _plain(schema: Schema, root: Schema) -> Mapping[str, Any]:
    """The schema behind references that stand alone."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping) or schema.keys() - ANNOTATIONS != {"$ref"}:
            break
        schema = named(root, schema["$ref"])
    return schema if isinstance(schema, Mapping) else {}


def _same(one: Any, other: Any) -> bool:
    """Whether they may be the same to JSON Schema, where 1 is 1.0 and no boolean is a number."""
    return kind_of(one) == kind_of(other) and bool(one == other)


# --- opposites ---


def negated(schema: Schema, root: Schema, depth: int = 0) -> Schema:
    """What every value fits that does not fit the schema, and no other; None where that cannot be said."""
    if isinstance(schema, bool):
        return not schema
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    found = []
    for word, value in schema.items():
        if word in ANNOTATIONS:
            continue
        opposite = _opposite(word, value, schema, root, depth)
        if opposite is None:
            return None
        found.append(opposite)
    return some(found)


def _opposite(word: str, value: Any, schema: Mapping[str, Any], root: Schema, depth: int) -> Schema:
    if word in _BOUNDS and isinstance(value, int | float) and not isinstance(value, bool):
        kind, bound, step = _BOUNDS[word]
        return False if value + step < 0 and kind != "number" else {"type": kind, bound: value + step}
    if word == "type":
        listed = value if isinstance(value, list) else [value]
        return (
            None
            if "integer" in listed and "number" not in listed
            else {"type": _others(listed)}
            if _others(listed)
            else False
        )
    if word in ("const", "enum"):
        return _none_of_values([value] if word == "const" else value)
    if word == "required" and isinstance(value, list):
        return some({"type": "object", "properties": {name: False}} for name in value)
    if word == "properties" and isinstance(value, Mapping):
        inner = {name: negated(one, root, depth + 1) for name, one in value.items()}
        if any(one is None for one in inner.values()):
            return None
        return some(
            {"type": "object", "properties": {name: one}, "required": [name]}
            for name, one in inner.items() if one is not False
        )  # fmt: skip
    return _opposite_of_several(word, value, root, depth)


def _opposite_of_several(word: str, value: Any, root: Schema, depth: int) -> Schema:
    if word in ("anyOf", "allOf") and isinstance(value, list):
        inner = [negated(one, root, depth + 1) for one in value]
        if any(one is None for one in inner):
            return None
        return every(inner) if word == "anyOf" else some(inner)
    if word == "not":
        return value if isinstance(value, Mapping | bool) else None
    if word == "$ref":
        return negated(named(root, value), root, depth + 1)
    return None


def _others(listed: Sequence[str]) -> list[str]:
    return [one for one in TYPES if one not in listed]


def _none_of_values(listed: Any) -> Schema:
    """What is none of these values; None where one is a list or an object."""
    if not isinstance(listed, list) or any(isinstance(one, list | dict) for one in listed):
        return None
    strings = [one for one in listed if isinstance(one, str)]
    numbers = sorted({one for one in listed if kind_of(one) == "number"})
    found: list[Schema] = [{"type": ["array", "object"]}]
    found += [] if None in listed else [{"type": "null"}]
    found += [{"const": one} for one in (False, True) if not any(one is other for other in listed)]
    found.append({"type": "string", "pattern": none_of(strings)} if strings else {"type": "string"})
    found += list(_between(numbers))
    return some(found)


def _between(numbers: Sequence[float]) -> Iterator[Schema]:
    for low, high in zip([None, *numbers], [*numbers, None], strict=True):
        bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high}
        yield {"type": "number", **{key: one for key, one in bounds.items() if one is not None}}


def none_of(texts: Iterable[str]) -> str:
    """A regular expression of every text but these."""
    return f"^{_not_behind(sorted(set(texts)))}$"


def _not_behind(rests: Sequence[str]) -> str:
    first = sorted({one[0] for one in rests if one})
    options = [] if "" in rests else [""]
    options.append(f"[^{''.join(map(_literally, first))}][\\s\\S]*" if first else "[\\s\\S]+")
    for character in first:
        options.append(_literally(character) + _not_behind([one[1:] for one in rests if one[:1] == character]))
    return f"(?:{'|'.join(options)})"


def _literally(character: str) -> str:
    if character.isalnum():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
