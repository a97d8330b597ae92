"""Tools and JSON schemas in few tokens: `name(city: string, unit?: "c"|"f"): what it does`.

The types are TypeScript's, which models know; descriptions of parameters stand behind `//`. The grammar holds a reply
to the whole schema, so what is left out here (bounds, patterns) costs no correctness.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ..conversation import Tool

__all__ = ["schema_text", "signature"]

_DEEPEST: Final = 6
#: A line is not written further in detail beyond so many characters.
_LONGEST: Final = 2000
_SIMPLE: Final = {"string": "string", "number": "number", "integer": "integer", "boolean": "boolean", "null": "null"}


def signature(tool: Tool) -> str:
    """One line for a tool."""
    schema = json.loads(tool.parameters)
    writer = _Writer(schema)
    text = f"{tool.name}({writer.members(schema, 0)})"
    return f"{text}: {_line(tool.description)}" if tool.description.strip() else text


def schema_text(schema: str) -> str:
    """A schema's shape; "" where it says no more than that it is an object."""
    parsed = json.loads(schema)
    text = _Writer(parsed).shape(parsed, 0)
    return "" if text in ("object", "any") else text


def _line(text: str) -> str:
    return " ".join(text.split())


class _Writer:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._within: list[str] = []
        self._written = 0

    def members(self, schema: Any, depth: int) -> str:
        """`name: type` of each property, those that may be left out with a question mark."""
        schema = self._followed(schema)
        required = schema.get("required") or ()
        parts = []
        for name, one in (schema.get("properties") or {}).items():
            shown = name if name.isidentifier() else json.dumps(name, ensure_ascii=False)
            part = f"{shown}{'' if name in required else '?'}: {self.shape(one, depth + 1)}"
            said = one.get("description") if isinstance(one, Mapping) else None
            self._written += len(shown) + (len(said) if isinstance(said, str) else 0)
            parts.append(f"{part} // {_line(said)}" if isinstance(said, str) and said.strip() else part)
        return ", ".join(parts)

    def shape(self, schema: Any, depth: int) -> str:
        """A type; one that holds itself stands there by its name."""
        if schema is True or not isinstance(schema, Mapping) or depth > _DEEPEST or self._written > _LONGEST:
            return "any"
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            found = self._shape(schema, depth)
        elif reference in self._within:
            return reference.rpartition("/")[2].lstrip("#") or "any"
        else:
            self._within.append(reference)
            found = self._shape(self._followed(schema), depth)
            self._within.pop()
        self._written += 0 if "{" in found else len(found)
        return found

    def _shape(self, schema: Mapping[str, Any], depth: int) -> str:
        if "const" in schema:
            return _json(schema["const"])
        if isinstance(schema.get("enum"), list):
            return "|".join(map(_json, schema["enum"]))
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list):
                return "|".join(dict.fromkeys(self.shape(one, depth + 1) for one in schema[word]))
        if isinstance(schema.get("allOf"), list):
            return " & ".join(self.shape(one, depth + 1) for one in schema["allOf"])
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            return "|".join(self._typed({**schema, "type": one}, depth) for one in kind)
        if kind == "array" or (kind is None and "items" in schema):
            return self._array(schema, depth)
        if kind == "object" or (kind is None and "properties" in schema):
            if schema.get("properties"):
                return f"{{{self.members(schema, depth)}}}"
            values = schema.get("additionalProperties")
            return f"{{[key]: {self.shape(values, depth + 1)}}}" if isinstance(values, Mapping) and values else "object"
        return _SIMPLE.get(str(kind), "any")

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        if isinstance(schema.get("prefixItems"), list):
            return f"[{', '.join(self.shape(one, depth + 1) for one in schema['prefixItems'])}]"
        item = self.shape(schema.get("items", True), depth + 1)
        return f"({item})[]" if "|" in item or "&" in item else f"{item}[]"

    def _followed(self, schema: Any) -> Mapping[str, Any]:
        """The schema that a local `$ref` names."""
        for _ in range(10):
            reference = schema.get("$ref") if isinstance(schema, Mapping) else None
            if not isinstance(reference, str) or not reference.startswith("#"):
                break
            target: Any = self._root
            for step in reference.lstrip("#/").split("/") if reference not in ("#", "#/") else ():
                step = step.replace("~1", "/").replace("~0", "~")
                target = target.get(step) if isinstance(target, Mapping) else None
            schema = target if target is not None else {}
        return schema if isinstance(schema, Mapping) else {}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
