"""What both frameworks pass as tools, tool choice and response format, in OpenAI's form, checked and turned to values.

Knows the form (https://platform.openai.com/docs/api-reference/chat/create): `{"type": "function", "function": {"name",
"description", "parameters"}}`, `tool_choice` as a word or `{"type": "function", "function": {"name"}}`, and
`response_format` of type text, json_object or json_schema. LangChain's other words for the same are taken too.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast, get_args

from ..conversation import Tool, Tooling, ToolLanguage
from ..errors import ToolDefinitionError
from .schemas import closed

__all__ = ["TOOL_OPTIONS", "tooling_of", "usable_name"]

#: The call options that make a Tooling.
TOOL_OPTIONS: Final = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "strict")

_LONGEST: Final = 128
_UNUSABLE: Final = re.compile(r"[\s\[\]()\"'`:,{}<>|]")
_WORDS: Final = ("auto", "none", "any", "required")
_SAID: Final[Mapping[type, str]] = {
    Mapping: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "a boolean"
}  # fmt: skip
#: Words whose values are schemas, lists of schemas, and named schemas.
_ONE: Final = (
    "items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties",
)  # fmt: skip
_MANY: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys((*_NAMED, "dependentRequired", "dependencies"), (Mapping,)),
    **dict.fromkeys(("required", "enum", *_MANY), (list,)),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), (int, float)),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minContains", "maxContains"), (int, float)),
    **dict.fromkeys(("minProperties", "maxProperties"), (int, float)),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (int, float, bool)),  # a boolean in draft 4
    **dict.fromkeys(("$ref", "format", "pattern", "$id", "$anchor"), (str,)),
    "type": (str, list),
}
_LANGUAGES: Final = get_args(ToolLanguage)


def usable_name(name: str) -> str:
    """A tool's name as a prompt can hold it, for callers that know the tool by the other name themselves."""
    return _UNUSABLE.sub("_", name)[:_LONGEST]


def tooling_of(options: Mapping[str, Any], language: str = "auto") -> Tooling:
    """The tooling that a call's options ask for.

    Args:
        options: of a call; only those of `TOOL_OPTIONS` are looked at.
        language: of the words around the tools: "auto" (the conversation's), "ja" or "en".

    Raises:
        ToolDefinitionError: a definition, choice or format that is not of the form; names the place and the rule.
    """
    if language not in _LANGUAGES:
        raise ToolDefinitionError(f"tool_language must be one of {', '.join(_LANGUAGES)}, got {language!r:.40}")
    tools = _tools(options.get("tools"))
    schema, strict = _format(options.get("response_format"), _flag("strict", options.get("strict"), default=False))
    if strict and not tools and schema is None:
        raise ToolDefinitionError(
            "strict=True holds a reply to tools or to a response format, and there is neither; pass one, or leave "
            "strict out"
        )
    return Tooling(
        tools,
        _choice(options.get("tool_choice"), [tool.name for tool in tools]),
        _flag("parallel_tool_calls", options.get("parallel_tool_calls"), default=True),
        schema,
        strict,
        language=language,  # type: ignore[arg-type]
    )


def _flag(name: str, value: Any, *, default: bool) -> bool:
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ToolDefinitionError(f"{name} must be True or False, got {value!r:.40}")
    return value


def _tools(given: Any) -> tuple[Tool, ...]:
    if given is None:
        return ()
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise ToolDefinitionError(f"tools must be a list of tools, got a {type(given).__name__}")
    tools = tuple(_tool(one, place) for place, one in enumerate(given))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ToolDefinitionError(f"two tools are called {twice!r}; a call could mean either: rename one")
    return tools


def _tool(given: Any, place: int) -> Tool:
    if isinstance(given, Tool):
        given = {"name": given.name, "description": given.description, "parameters": _parsed(given, place)}
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ToolDefinitionError(
            f'tools[{place}] must be {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
        )
    name = function["name"]
    if not name or usable_name(name) != name:
        raise ToolDefinitionError(
            f"tools[{place}]: a tool's name has 1 to {_LONGEST} characters, no spaces, brackets, quotes or colons; got "
            f"{name[:60]!r}: give it another, a generic class such as Box[int] by a subclass with a name of its own"
        )
    if name in _WORDS:
        raise ToolDefinitionError(f"tools[{place}]: {name!r} is a word of tool_choice; give the tool another name")
    description = function.get("description") or ""
    if not isinstance(description, str):
        raise ToolDefinitionError(f"tool {name!r}: its description must be text")
    return Tool(name, description, _parameters(name, function.get("parameters")))


def _parsed(tool: Tool, place: int) -> Any:
    try:
        return json.loads(tool.parameters)
    except ValueError:
        pass
    raise ToolDefinitionError(f"tools[{place}]: its parameters must be a JSON schema as JSON text")


def _parameters(name: str, given: Any) -> str:
    if given is None or given == {}:
        return '{"type": "object", "properties": {}, "additionalProperties": false}'
    if not isinstance(given, Mapping) or given.get("type", "object") not in ("object", ["object"]):
        raise ToolDefinitionError(f"tool {name!r}: its parameters must be the JSON schema of an object")
    schema = given if "$ref" in given else {**given, "type": "object"}
    return schema_json(schema, f"tool {name!r}: its parameters")


def schema_json(schema: Any, what: str) -> str:
    """A JSON schema as JSON text, objects closed.

    Raises:
        ToolDefinitionError: it is none, or holds something that JSON cannot; names the place.
    """
    wrong = _wrong(schema, "")
    if wrong:
        raise ToolDefinitionError(f"{what} must be a JSON schema; {wrong}")
    try:
        return json.dumps(closed(schema), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
    raise ToolDefinitionError(f"{what} must be a JSON schema; this cannot be written as JSON ({kind})")


def _wrong(schema: Any, place: str) -> str:
    """What keeps this from being a JSON schema, where the code that reads it would stumble; "" where nothing does."""
    if isinstance(schema, bool):
        return ""
    if not isinstance(schema, Mapping):
        return f"{place or 'it'} must be an object or a boolean, got a {type(schema).__name__}"
    for key, value in schema.items():
        kinds = _KINDS.get(key)
        if kinds is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            said = " or ".join(dict.fromkeys(_SAID[one] for one in kinds))
            return f"{place}/{key} must be {said}, got a {type(value).__name__}"
        if not _lists_names(key, value):
            return f"{place}/{key} must list names"
        for name, one in _inner(key, value).items():
            if found := _wrong(one, f"{place}/{key}/{name}".rstrip("/")):
                return found
    return ""


def _lists_names(key: str, value: Any) -> bool:
    """Whether what must be lists of names are such, where this is a word of such."""
    lists = [value] if key == "required" else []
    if key in ("dependentRequired", "dependencies"):
        lists = [one for one in value.values() if key == "dependentRequired" or isinstance(one, list)]
    return all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists)


def _inner(key: str, value: Any) -> Mapping[Any, Any]:
    """The schemas under a word, by where they stand."""
    if key in _NAMED:
        return cast("Mapping[Any, Any]", value)
    if key == "dependencies":
        return {name: one for name, one in value.items() if not isinstance(one, list)}
    if key in _MANY or (key in _ONE and isinstance(value, list)):
        return dict(enumerate(value))
    return {"": value} if key in _ONE else {}


def _choice(given: Any, names: Sequence[str]) -> Any:
    """LangChain's "any" and True, OpenAI's "required" and dict, or a tool's name."""
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if isinstance(function, Mapping):
        given = function.get("name", given.get("type"))
    if given in (None, "auto"):
        return "auto"
    if given in (False, "none"):
        return "none"
    if not names:
        raise ToolDefinitionError(f"tool_choice={given!r:.60} needs tools; pass tools= too, or leave it out")
    if given in (True, "any", "required"):
        return "required"
    if given not in names:
        near = difflib.get_close_matches(str(given), names, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ToolDefinitionError(
            f"tool_choice {given!r:.60} is no tool{hint}; use auto, none, required or one of {', '.join(names)}"
        )
    return (str(given),)


def _format(given: Any, strict: bool) -> tuple[str | None, bool]:
    """(schema, strict) of a response format."""
    if given is None:
        return None, strict
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text":
        return None, strict
    if kind == "json_object":
        return '{"type": "object"}', strict
    inner = given.get("json_schema") if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ToolDefinitionError(
            'response_format must be {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
            '{"type": "json_object"} or {"type": "text"}'
        )
    return schema_json(schema, "response_format: its schema"), strict or inner.get("strict") is True  # type: ignore[union-attr]
