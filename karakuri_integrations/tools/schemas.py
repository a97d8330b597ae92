"""JSON schemas as a reply is held to them: a tool's arguments, a list of calls, an answer that is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Final
from urllib.parse import unquote

from ..conversation import CallForm, Tool, Tooling
from .schema_logic import DATA, NAMED, disjoint, named, references, words

__all__ = ["MOST_CALLS", "closed", "list_of_calls", "shown_place", "tools_in"]

#: A reply's list of calls ends at the latest after this many.
MOST_CALLS: Final = 16

#: Beside one of these an object's properties are not all that is said of it.
_BESIDE: Final = frozenset(
    {"$ref", "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames", "allOf", "anyOf",
     "oneOf", "not", "if", "then", "else", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas",
     "dependencies", "$dynamicRef"}
)  # fmt: skip
_NOTES: Final = frozenset(
    {"$ref", "title", "description", "default", "examples", "deprecated", "$defs", "definitions", "$comment", "$schema",
     "discriminator"}
)  # fmt: skip
#: Places that are put together with what stands beside them.
_PARTS: Final = ("allOf", "anyOf", "oneOf", "if", "then", "else", "not")


def closed(schema: Any) -> Any:
    """The schema, narrowed: objects that list all their properties take no others.

    Whatever fits the result fits the schema. What is put together with something else stays open, because closing it
    would forbid what its neighbour asks for: parts of `allOf`, branches beside properties or other branches, and
    definitions that such a place refers to. What must not fit stays as it is: to narrow it would allow more.
    """
    return _Closing(schema).of(schema, "#")


class _Closing:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._composed = frozenset(map(_place, _composed(root)))
        self._kept = frozenset(self._reached(self._negated(root)))

    def of(self, schema: Any, place: str, *, stays_open: bool = False) -> Any:
        if not isinstance(schema, Mapping) or place in self._kept:
            return schema
        found = {key: self._value(key, value, f"{place}/{key}", schema) for key, value in schema.items()}
        if _whole(schema) and not stays_open and place not in self._composed:
            found["additionalProperties"] = False
        return found

    def _value(self, key: str, value: Any, place: str, parent: Mapping[str, Any]) -> Any:
        if key in ("items", "additionalProperties"):
            return self.of(value, place)
        if key in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            if key == "oneOf" and not self._apart(value):
                return value
            stays_open = key != "prefixItems" and not _alone(parent, key)
            return [self.of(one, f"{place}/{n}", stays_open=stays_open) for n, one in enumerate(value)]
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            return {name: self.of(one, f"{place}/{name}") for name, one in value.items()}
        return value

    def _apart(self, options: Sequence[Any]) -> bool:
        """Whether no value can fit two of the options, so that none has to be kept from fitting another."""
        return all(disjoint(one, other, self._root) for one, other in combinations(options, 2))

    def _negated(self, schema: Any) -> Iterator[str]:
        """References in what a value must not fit, or must not fit besides."""
        for key, value in words(schema):
            if key in ("not", "if") or (key == "oneOf" and isinstance(value, list) and not self._apart(value)):
                yield from references(value)
            yield from self._negated(value)

    def _reached(self, given: Iterable[str]) -> set[str]:
        """The places that these lead to, and those that they lead to; all of it where one leads to an anchor."""
        found, todo = set[str](), [*given]
        while todo:
            one = todo.pop()
            target = named(self._root, one)
            place = "#" if target is None else _place(one)
            if place not in found:
                found.add(place)
                todo += references(target)
        return found


def _whole(schema: Mapping[str, Any]) -> bool:
    """Whether an object's listed properties are all that it is meant to have."""
    listed = schema.get("properties")
    if not isinstance(listed, Mapping) or not set(_names(schema.get("required"))) <= listed.keys():
        return False
    beside = _BESIDE & schema.keys()
    if listed:
        beside -= {"maxProperties", "propertyNames"}
        beside -= {"minProperties"} if schema.get("minProperties", 0) <= len(listed) else set()
        beside -= {"unevaluatedProperties"} if schema.get("unevaluatedProperties") is False else set()
    return not beside


def _composed(schema: Any, *, within: bool = False) -> Iterator[str]:
    """Local references whose target is put together with something else."""
    if isinstance(schema, list):
        for one in schema:
            yield from _composed(one, within=within)
    if not isinstance(schema, Mapping):
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and (within or not schema.keys() <= _NOTES):
        yield reference
    for key, value in schema.items():
        if key in NAMED and isinstance(value, Mapping):
            for one in value.values():
                yield from _composed(one)
        elif key not in DATA:
            yield from _composed(value, within=key in _PARTS and (key == "allOf" or not _alone(schema, key)))


def _alone(schema: Mapping[str, Any], key: str) -> bool:
    """Whether a branching word says all that is said of the value."""
    return key in ("anyOf", "oneOf") and schema.keys() <= _NOTES | {key, "type"}


def _place(reference: str) -> str:
    """A reference as places are written here."""
    return unquote(reference).replace("~1", "/").replace("~0", "~")


def _names(required: Any) -> list[str]:
    return required if isinstance(required, list) else []


def shown_place(place: Sequence[object], schema: Any) -> str:
    """Where in a reply something is wrong, in the schema's own names: a key that the reply chose is shown as `*`."""
    known = set(_property_names(schema))
    return ".".join(str(one) if isinstance(one, int) or one in known else "*" for one in place)


def _property_names(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for one in schema:
            yield from _property_names(one)
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key == "properties" and isinstance(value, Mapping):
                yield from value
            yield from _property_names(value)


def list_of_calls(tooling: Tooling, form: CallForm) -> str:
    """The schema of the list of calls that a reply may make, as JSON text."""
    tools = _choosable(tooling)
    definitions = {
        f"t{place}": _moved(json.loads(tool.parameters), f"#/$defs/t{place}") for place, tool in enumerate(tools)
    }
    options = [_call(tool.name, f"#/$defs/t{place}", form) for place, tool in enumerate(tools)]
    schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": MOST_CALLS if tooling.parallel else 1,
        "items": options[0] if len(options) == 1 else {"anyOf": options},
        "$defs": definitions,
    }
    return json.dumps(schema, ensure_ascii=False)


def _choosable(tooling: Tooling) -> Sequence[Tool]:
    if isinstance(tooling.choice, tuple):
        return [tool for tool in tooling.tools if tool.name == tooling.choice[0]]
    return tooling.tools


def _call(name: str, arguments: str, form: CallForm) -> dict[str, Any]:
    keys = [form.name_key, form.arguments_key]
    return {
        "type": "object",
        "properties": {keys[0]: {"const": name}, keys[1]: {"$ref": arguments}},
        "required": keys,
        "additionalProperties": False,
    }


def tools_in(schema: Any) -> Iterator[tuple[str, Any]]:
    """(name, parameters) of the tools whose calls `list_of_calls` made this schema of; of other schemas nothing."""
    items = schema.get("items") if isinstance(schema, Mapping) else None
    options = items.get("anyOf", [items]) if isinstance(items, Mapping) else ()
    for place, option in enumerate(options):
        parts = [*option["properties"].values()] if isinstance(option, Mapping) and "properties" in option else []
        if parts[1:] != [{"$ref": f"#/$defs/t{place}"}] or "const" not in parts[0]:
            return
        yield parts[0]["const"], parts[1]


def _moved(schema: Any, place: str) -> Any:
    """The schema with its local references pointing to where it now stands; its own id and anchors are resolved."""
    own = schema.get("$id") if isinstance(schema, Mapping) else None
    bare = {key: value for key, value in schema.items() if key != "$id"} if isinstance(schema, Mapping) else schema
    return _referring(bare, place, own if isinstance(own, str) else "", dict(_anchors(bare, "")))


def _anchors(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """(anchor, where it stands) of everything in a schema."""
    if isinstance(schema, list):
        for n, one in enumerate(schema):
            yield from _anchors(one, f"{place}/{n}")
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$anchor"), str):
            yield schema["$anchor"], place
        for key, one in schema.items():
            yield from _anchors(one, f"{place}/{key.replace('~', '~0').replace('/', '~1')}")


def _referring(schema: Any, place: str, own: str, anchors: Mapping[str, str]) -> Any:
    if isinstance(schema, list):
        return [_referring(one, place, own, anchors) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            moved[key] = _reference(value, place, own, anchors)
        elif key in ("enum", "const", "default", "examples"):
            moved[key] = value
        elif key in NAMED and isinstance(value, Mapping):  # a property may be called like a word of schemas
            moved[key] = {name: _referring(one, place, own, anchors) for name, one in value.items()}
        elif key != "$anchor" or not isinstance(value, str):
            moved[key] = _referring(value, place, own, anchors)
    return moved


def _reference(text: str, place: str, own: str, anchors: Mapping[str, str]) -> str:
    local = text.removeprefix(own) if own else text
    if local and not local.startswith("#"):
        return text
    name = local.removeprefix("#")
    return place + (anchors.get(name, name) if name and not name.startswith("/") else name)
