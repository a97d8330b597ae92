"""JSON schemas as a reply is held to them: a tool's arguments, a list of calls, an answer that is JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..conversation import CallForm, Tool, Tooling

__all__ = ["MOST_CALLS", "closed", "list_of_calls"]

#: A reply's list of calls ends at the latest after this many.
MOST_CALLS: Final = 16

#: Words whose values are schemas, lists of schemas, and named schemas.
_ONE: Final = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_MANY: Final = ("anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def closed(schema: Any) -> Any:
    """The schema, narrowed: objects that list their properties take no others.

    Whatever fits the result fits the schema. Parts of `allOf` and objects beside other applicators stay open, because
    closing them would forbid what their neighbours ask for.
    """
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _closed_value(key, value) for key, value in schema.items()}
    lists = isinstance(schema.get("properties"), Mapping)
    open_words = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "if"}
    if lists and not open_words & schema.keys() and "$ref" not in schema:
        found["additionalProperties"] = False
    return found


def _closed_value(key: str, value: Any) -> Any:
    if key in _ONE and isinstance(value, Mapping) and key not in ("not", "if", "propertyNames"):
        return closed(value)
    if key in _MANY and isinstance(value, list):
        return [closed(one) for one in value]
    if key in _NAMED and isinstance(value, Mapping):
        return {name: closed(one) for name, one in value.items()}
    return value


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


def _moved(schema: Any, place: str) -> Any:
    """The schema with its local references pointing to where it now stands."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {}
    for key, value in schema.items():
        local = key == "$ref" and isinstance(value, str) and value.startswith("#")
        if key in ("enum", "const", "default", "examples"):
            moved[key] = value
        elif key in _NAMED and isinstance(value, Mapping):  # a property may be called like a word of schemas
            moved[key] = {name: _moved(one, place) for name, one in value.items()}
        else:
            moved[key] = place + value.removeprefix("#") if local else _moved(value, place)
    return moved
