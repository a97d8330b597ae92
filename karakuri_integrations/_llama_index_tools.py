"""LlamaIndex's tools, tool choices and tool calls, to the values of `conversation` and back. Pure.

**Both forms.** A reply's calls stand in `message.blocks` (ToolCallBlock, which `get_tool_calls_from_response` and so
the agents read, and `estimate_tokens`) and in `additional_kwargs["tool_calls"]` in OpenAI's form (which LlamaIndex's
streamed programs, `Memory`'s token estimates, summaries and traces read). Each consumer counts one of the two. Where a
message with both comes back as history, the blocks count.

**Arguments** are kept as the JSON text that the reply holds, so that history is written as it was said. A finished call
whose arguments are no JSON object, or repeat an item of a set, is listed under "invalid_tool_calls" with the reason and
its text. It is never selected: running a tool with the beginning of its arguments could do something else than was
meant.

**Names.** LlamaIndex allows any tool name. What a prompt cannot hold, such as a space, becomes an underscore there, and
the tool's own name again in the reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.types import BaseTool, ToolMetadata
from pydantic_core import from_json

from .conversation import CallDelta, Tool, ToolCall
from .errors import MessageError, OptionError, ReplyFormatError
from .tools import usable_name

__all__ = [
    "INVALID",
    "Calls",
    "Offer",
    "call_blocks",
    "call_kwargs",
    "calls_of",
    "checked_selections",
    "offered",
    "openai_tool",
    "tool_options",
    "usable_name",
    "without_calls",
]

#: Where OpenAI's form of the calls stands in `additional_kwargs`, and where those that cannot be run do.
_CALLS: Final = "tool_calls"
INVALID: Final = "invalid_tool_calls"

#: The line that LlamaIndex puts before a function's docstring. The prompt writes the signature anyway.
_SIGNATURE: Final = re.compile(r"\A\w+\([^\n]*\)(?: -> [^\n]+)?(?:\n|\Z)")


# -- tools in ----------------------------------------------------------------------------------------------------------


def openai_tool(tool: Any) -> Any:
    """A tool in OpenAI's form under its own name: a BaseTool or a function; what is neither stays as it is."""
    if isinstance(tool, Callable) and not isinstance(tool, BaseTool | type):  # type: ignore[arg-type]
        tool = FunctionTool.from_defaults(tool)
    if not isinstance(tool, BaseTool):
        return tool
    data, name = tool.metadata, tool.metadata.get_name()
    described = _SIGNATURE.sub("", data.description or "", 1)
    return {
        "type": "function",
        "function": {"name": name, "description": described, "parameters": _parameters(data)},
    }


def _parameters(metadata: ToolMetadata) -> dict[str, Any]:
    parameters = metadata.get_parameters_dict()
    if "properties" in parameters or metadata.fn_schema is None:
        return parameters
    return metadata.fn_schema.model_json_schema()  # LlamaIndex's dict lacks the $ref of a model that holds itself


def tool_options(tools: Sequence[Any], parallel: bool, required: bool, options: Mapping[str, Any]) -> dict[str, Any]:
    """The call options of `chat_with_tools`, in the words of `chat`."""
    options = dict(options)
    choice = options.pop("tool_choice", None)
    if choice is None and required:
        choice = "required"
    if tools:
        options |= {"tools": [openai_tool(tool) for tool in tools], "parallel_tool_calls": parallel}
    return options if choice is None else {**options, "tool_choice": choice}


def without_calls(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a completion, whose text holds no calls; a choice that asks for none is what it does anyway.

    Raises:
        OptionError: tools, or a choice that asks for a call.
    """
    if options.get("tools") or options.get("tool_choice") not in (None, False, "none", "auto"):
        raise OptionError("a completion holds no tool calls; use chat or chat_with_tools for tools=")
    return {name: value for name, value in options.items() if name not in ("tools", "tool_choice")}


@dataclass(frozen=True)
class Offer:
    """What a call may make of its tools: their own names by those in the prompt, and whether several calls may be."""

    names: Mapping[str, str] = field(default_factory=dict)
    parallel: bool = True

    def calls(self, calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
        """A reply's calls as the caller knows the tools."""
        kept = calls if self.parallel else calls[:1]  # a server without grammars may make more
        return tuple(replace(call, name=self.names.get(call.name, call.name)) for call in kept)


def offered(options: Mapping[str, Any]) -> tuple[dict[str, Any], Offer]:
    """The options as the Provider takes them, and what they offer."""
    tools = options.get("tools")
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        return dict(options), Offer()
    own = [openai_tool(tool) for tool in tools]
    named = {**options, "tools": [_renamed(tool) for tool in own]}
    if "tool_choice" in options:
        named["tool_choice"] = _usable_choice(options["tool_choice"])
    names = {usable_name(name): name for name in map(_name, own) if name}
    return named, Offer(names, options.get("parallel_tool_calls") is not False)


def _name(tool: Any) -> str:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = tool.name if isinstance(tool, Tool) else inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def _renamed(tool: Any) -> Any:
    name = _name(tool)
    if not name or usable_name(name) == name:
        return tool
    if isinstance(tool, Tool):
        return replace(tool, name=usable_name(name))
    return {"type": "function", "function": {**tool.get("function", tool), "name": usable_name(name)}}


def _usable_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return usable_name(choice)
    name = _name(choice)
    return usable_name(name) if name else choice


# -- calls out ---------------------------------------------------------------------------------------------------------


class Calls:
    """The calls of a stream so far."""

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}

    def push(self, fragments: Sequence[CallDelta]) -> tuple[ToolCall, ...]:
        for one in fragments:
            known = self._calls.get(one.index, ToolCall(one.name or "", "", one.id or ""))
            self._calls[one.index] = replace(known, arguments=known.arguments + one.arguments)
        return tuple(self._calls.values())


def call_blocks(calls: Sequence[ToolCall]) -> list[ToolCallBlock]:
    return [ToolCallBlock(tool_call_id=one.id, tool_name=one.name, tool_kwargs=one.arguments) for one in calls]


def call_kwargs(calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The calls as `additional_kwargs` shows them, plain JSON values; nothing where there are none."""
    good = [_openai_call(one) for one in calls if one.error is None]
    bad = [{**_openai_call(one), "error": one.error} for one in calls if one.error is not None]
    return {**({_CALLS: good} if good else {}), **({INVALID: bad} if bad else {})}


def _openai_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


# -- calls in ----------------------------------------------------------------------------------------------------------


def calls_of(message: ChatMessage, index: int = 0) -> tuple[ToolCall, ...]:
    """The calls that an assistant message made: its ToolCallBlocks, else `additional_kwargs["tool_calls"]`.

    Raises:
        MessageError: an entry of `tool_calls` that is no call.
    """
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if blocks:
        return tuple(ToolCall(one.tool_name, _json(one.tool_kwargs), one.tool_call_id or "") for one in blocks)
    given = message.additional_kwargs.get(_CALLS) or ()
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise MessageError(f"message {index}: tool_calls must be a list, got a {type(given).__name__}", index)
    return tuple(_call(one, index) for one in given)


def _call(given: Any, index: int) -> ToolCall:
    """A call in OpenAI's form, as a dict or as an object of its client, or a ToolSelection."""
    if isinstance(given, ToolSelection):
        return ToolCall(given.tool_name, _json(given.tool_kwargs), given.tool_id)
    function = _part(given, "function") or given
    name, arguments = _part(function, "name"), _part(function, "arguments")
    if not isinstance(name, str) or not isinstance(arguments, str | Mapping | None):
        raise MessageError(
            f"message {index}: each of tool_calls must be "
            '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}',
            index,
        )
    return ToolCall(name, _json(arguments or "{}"), str(_part(given, "id") or ""))


def _part(given: Any, key: str) -> Any:
    return given.get(key) if isinstance(given, Mapping) else getattr(given, key, None)


def _json(arguments: str | Mapping[str, Any]) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, default=str)


def checked_selections(message: ChatMessage, *, needed: bool) -> list[ToolSelection]:
    """The calls that a response made, or has made so far, with what is known of their arguments.

    Raises:
        ReplyFormatError: `needed`, and there is none that can be run.
    """
    found = list(_selections(message))
    if found or not needed:
        return found
    bad = message.additional_kwargs.get(INVALID) or [{}]
    why = f": {bad[0]['error']}; raise max_tokens or try again" if "error" in bad[0] else ""
    error = ReplyFormatError(f"expected a tool call and the reply makes none that can be run{why}")
    error.partial_text = message.content or ""
    raise error


def _selections(message: ChatMessage) -> Iterator[ToolSelection]:
    invalid = {_part(one, "id") for one in message.additional_kwargs.get(INVALID) or ()}
    for call in calls_of(message):
        if not call.id or call.id not in invalid:
            yield ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=arguments_so_far(call.arguments))


def arguments_so_far(text: str) -> dict[str, Any]:
    """The arguments in JSON text that may be cut anywhere; an empty dict where it holds none yet."""
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        found = _cut(text)
    return found if isinstance(found, dict) else {}


def _cut(text: str) -> Any:
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return {}
