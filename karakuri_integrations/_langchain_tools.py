"""Tools and calls between LangChain and the core: definitions to OpenAI's form, calls of replies and of past messages.

Knows what LangChain's users pass as a tool or a response format, and how langchain-core keeps calls in messages and
chunks. What a tool means to the model is `tools`' and the Provider's. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import AIMessage, InvalidToolCall
from langchain_core.messages.tool import ToolCall as CoreToolCall
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass

from .conversation import Delta, Tool, ToolCall
from .errors import MessageError, ToolDefinitionError
from .tools import tooling_of

__all__ = [
    "CALL_BLOCKS",
    "as_openai",
    "calls_of",
    "check_bound",
    "chunks_of",
    "invalid_calls_in",
    "openai_tools",
    "response_format_of",
    "valid_calls_in",
]

#: Content blocks of a past reply that are calls: Anthropic's, LangChain's own, OpenAI's Responses'.
CALL_BLOCKS: Final = frozenset({"tool_use", "tool_call", "invalid_tool_call", "function_call"})

#: Keys that describe a tool's arguments; and those of dicts that are no plain JSON schema, or one with properties.
_DESCRIBED: Final = frozenset({"function", "parameters", "input_schema", "toolSpec", "title"})
_NOT_TITLED: Final = frozenset({"name", "function", "toolSpec", "input_schema", "properties"})

_FORMATS: Final = ("text", "json_object", "json_schema")


# --- definitions ---


def as_openai(options: Mapping[str, Any]) -> dict[str, Any]:
    """A call's options with tools and response format in OpenAI's form, whichever form they came in."""
    shaped = dict(options)
    if shaped.get("tools") is not None:
        shaped["tools"] = openai_tools(shaped["tools"], shaped.get("strict"))
        if shaped.get("strict") is None and any(_is_strict(one) for one in shaped["tools"]):
            shaped["strict"] = True
    if shaped.get("response_format") is not None:
        shaped["response_format"] = response_format_of(shaped["response_format"])
    return shaped


def openai_tools(tools: Any, strict: bool | None = None) -> list[Any]:
    """Functions, classes, BaseTools and dicts in OpenAI's form.

    Raises:
        ToolDefinitionError: what cannot be made a tool; names its place.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise ToolDefinitionError(f"tools must be a list of tools, got a {type(tools).__name__}")
    return [_openai_tool(one, place, strict) for place, one in enumerate(tools)]


def _openai_tool(given: Any, place: int, strict: bool | None) -> Any:
    if isinstance(given, Tool):
        return given
    if isinstance(given, Mapping):
        given = dict(given)
        _refuse_foreign(given, place)
        if "title" in given and not _NOT_TITLED & given.keys():
            return _titled(given)
    try:
        made = convert_to_openai_tool(given, strict=strict)
        return _with_maps(made, convert_to_openai_tool(given)) if strict else made
    except Exception as error:
        nameless = isinstance(given, Mapping) and not {"name", "title", "toolSpec"} & given.keys()
        why = "it has no `name` (a JSON schema: no `title`)" if nameless else type(error).__name__
        raise ToolDefinitionError(
            f"tools[{place}] of the type {type(given).__name__} cannot be made a tool: {why}; use a "
            "function with a docstring and annotations, a BaseTool, a pydantic or TypedDict class, a dict in OpenAI's "
            "form, or a JSON schema with a title"
        ) from error


def _with_maps(strict: Any, plain: Any) -> Any:
    """A tool that was made strict, with its objects of any keys as they were.

    langchain-core closes those too, as OpenAI's servers want it; then nothing but an empty one fits a dict[str, int].
    """
    if isinstance(strict, list) and isinstance(plain, list) and len(strict) == len(plain):
        return [_with_maps(*pair) for pair in zip(strict, plain, strict=True)]
    if not isinstance(strict, Mapping) or not isinstance(plain, Mapping):
        return strict
    found = {key: _with_maps(value, plain[key]) if key in plain else value for key, value in strict.items()}
    if not plain.get("properties") and plain.get("additionalProperties", False) is not False:
        found["additionalProperties"] = plain["additionalProperties"]
    return found


def _titled(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema as a tool; langchain-core would drop one whose properties stand behind a `$ref`."""
    function = {"name": schema["title"], "description": schema.get("description") or "", "parameters": schema}
    return {"type": "function", "function": function}


def _refuse_foreign(given: Mapping[str, Any], place: int) -> None:
    """Tools that another provider's servers run have no arguments of their own to hold a call to."""
    kind = given.get("type", "function")
    if kind not in ("function", "object") and not _DESCRIBED & given.keys():
        raise ToolDefinitionError(
            f"tools[{place}]: a tool of type {kind!r:.40} is run by another provider's servers; KARAKURI LM calls "
            "functions only"
        )


def check_bound(options: Mapping[str, Any], language: str) -> None:
    """What is wrong with options that are bound shows when they are; but two tools of one name show at the call.

    langchain-tests binds the same class in several forms at once, and asks nothing.
    """
    named: dict[Any, Any] = {}
    for tool in options.get("tools") or ():
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        named.setdefault(name if isinstance(name, str) else id(tool), tool)
    tooling_of({**options, "tools": list(named.values())}, language)


def _is_strict(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    return isinstance(function, Mapping) and function.get("strict") is True


def response_format_of(given: Any, strict: bool | None = None) -> Any:
    """A schema of any kind as OpenAI's response format; one in that form already stays as it is."""
    if isinstance(given, Mapping) and given.get("type") in _FORMATS:
        return given
    name, schema = _named_schema(given)
    inner = {"name": name, "schema": schema}
    if strict is None and isinstance(given, Mapping):
        strict = given.get("strict")
    return {"type": "json_schema", "json_schema": inner if strict is None else {**inner, "strict": strict}}


def _named_schema(given: Any) -> tuple[str, Any]:
    """A name for the schema and the schema itself, as it stands where it is one."""
    if isinstance(given, Mapping):
        if isinstance(given.get("schema"), Mapping):
            return str(given.get("name", "answer")), given["schema"]
        if not {"name", "function", "toolSpec"} & given.keys() or "properties" in given:
            return str(given.get("title", "answer")), given
    if isinstance(given, type) and is_basemodel_subclass(given):
        model: Any = given  # pydantic's second or first version
        return model.__name__, model.model_json_schema() if hasattr(model, "model_json_schema") else model.schema()
    function = _openai_tool(given, 0, None).get("function", {})
    return str(function.get("name", "answer")), function.get("parameters", {"type": "object"})


# --- calls of a reply ---


def valid_calls_in(calls: Sequence[ToolCall]) -> list[CoreToolCall]:
    """The calls that came whole."""
    return [
        tool_call(name=call.name, args=json.loads(call.arguments, strict=False), id=call.id)
        for call in calls
        if call.error is None
    ]


def invalid_calls_in(calls: Sequence[ToolCall]) -> list[InvalidToolCall]:
    """The others, with their text and what is wrong with them."""
    return [
        invalid_tool_call(name=call.name or None, args=call.arguments, id=call.id, error=call.error)
        for call in calls
        if call.error is not None
    ]


def chunks_of(delta: Delta, first_index: int = 0) -> list[ToolCallChunk]:
    """The fragments of calls that a delta holds, one per call: langchain-core merges chunks, not within one."""
    found: dict[int, ToolCallChunk] = {}
    for one in delta.fragments:
        chunk = found.setdefault(one.index, tool_call_chunk(args=""))
        chunk["name"] = one.name if chunk["name"] is None else chunk["name"]
        chunk["id"] = one.id if chunk["id"] is None else chunk["id"]
        chunk["args"] = f"{chunk['args']}{one.arguments}"
    for place, call in enumerate(delta.calls):
        if call.error is not None:
            _spoil(found, place, call)
    for place, chunk in found.items():
        chunk["index"] = first_index + place
    return [found[place] for place in sorted(found)]


def _spoil(found: dict[int, ToolCallChunk], place: int, call: ToolCall) -> None:
    """Have a call with an error end among the invalid ones.

    langchain-core completes the JSON of chunks, so a call that was cut would count as whole and be run. A bracket that
    closes nothing keeps it from that; it is the only part of the text that the model did not write.
    """
    # A call whose name was never known has had no fragments.
    known = tool_call_chunk(args="") if call.name else tool_call_chunk(args=call.arguments, id=call.id)
    chunk = found.setdefault(place, known)
    chunk["args"] = f"{chunk['args']}{_end_of_no_object(call.arguments)}"


def _end_of_no_object(text: str) -> str:
    ends = ("", "]", "}", '"]', '"}', '""]', '""}')
    return next((end for end in ends if not _completed(text + end)), "")


def _completed(text: str) -> bool:
    """Whether langchain-core reads the text, as far as it goes, as arguments."""
    try:
        return not text or isinstance(parse_partial_json(text), dict)
    except (ValueError, RecursionError):
        return False


# --- calls of past messages ---


def calls_of(message: AIMessage, index: int) -> tuple[ToolCall, ...]:
    """Every call that a past reply made, wherever the message keeps it.

    Raises:
        MessageError: a call that is of no known form, or whose arguments are no JSON.
    """
    calls = [_call(one["name"], one["args"], one.get("id"), index) for one in message.tool_calls]
    calls += [
        ToolCall(one.get("name") or "", one.get("args") or "", one.get("id") or "", one.get("error") or "invalid")
        for one in message.invalid_tool_calls
    ]
    # The same calls may stand in the content and in OpenAI's form too.
    known = {call.id for call in calls if call.id} | {(call.name, call.arguments) for call in calls}
    more = [*_in_content(message, index)]
    if not calls:
        more += _in_kwargs(message, index)
    calls += [call for call in more if call.id not in known and (call.id or (call.name, call.arguments) not in known)]
    return tuple(calls)


def _in_content(message: AIMessage, index: int) -> Iterator[ToolCall]:
    for block in message.content if isinstance(message.content, list) else ():
        if not isinstance(block, Mapping) or block.get("type") not in CALL_BLOCKS:
            continue
        given: Any = next((block[key] for key in ("input", "args", "arguments") if block.get(key) is not None), {})
        identity = block.get("call_id") or block.get("id")
        if block["type"] == "invalid_tool_call":
            yield ToolCall(str(block.get("name") or ""), str(given or ""), str(identity or ""), "invalid")
        else:
            yield _call(block.get("name"), given, identity, index)


def _in_kwargs(message: AIMessage, index: int) -> Iterator[ToolCall]:
    """OpenAI's form, where langchain-core has not read it, and its older `function_call`."""
    extra = message.additional_kwargs
    given = extra.get("tool_calls") or ()
    for one in given if isinstance(given, Sequence) else (given,):
        function = one.get("function") if isinstance(one, Mapping) else None
        if not isinstance(function, Mapping):
            raise _bad_call(index, 'of no known form; use {"id": ..., "function": {"name": ..., "arguments": "..."}}')
        yield _call(function.get("name"), function.get("arguments"), one.get("id"), index)
    function = extra.get("function_call")
    if isinstance(function, Mapping):
        yield _call(function.get("name"), function.get("arguments"), None, index)


def _call(name: Any, given: Any, identity: Any, index: int) -> ToolCall:
    """A call whose arguments are an object or its JSON text, which is kept as it is."""
    if not isinstance(name, str):
        raise _bad_call(index, f"whose name is a {type(name).__name__}; it must be text")
    if given is not None and not isinstance(given, str | Mapping):
        raise _bad_call(index, f"whose arguments are a {type(given).__name__}; they must be an object or its JSON text")
    if isinstance(given, str) and given.strip():
        return ToolCall(name, given, str(identity or ""))
    try:
        text = json.dumps(given or {}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
    else:
        return ToolCall(name, text, str(identity or ""))
    raise _bad_call(index, f"whose arguments cannot be written as JSON ({kind})")


def _bad_call(index: int, what: str) -> MessageError:
    return MessageError(f"message {index} carries a tool call {what}", index)
