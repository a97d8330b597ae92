"""LangChain messages to `Message` values, and replies to LangChain messages. Pure: nothing is opened or contacted.

Content is joined by LangChain's own accessor (`message.text`, parts joined by nothing). Blocks that hold a model's
private reasoning are left out, as LangChain's accessor does; every other block that is not text is a MessageError.
A message's `id`, its `name` (but a tool's) and foreign keys of `additional_kwargs` are never written into the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue, StringPromptValue

from ._langchain_tools import CALL_BLOCKS, calls_of, chunks_of, invalid_calls_in, valid_calls_in
from .attributes import carried_attributes
from .conversation import Delta, Message, Role, Usage
from .errors import AttributeConfigError, MessageError
from .generation import fold
from .provider import Call, Provider

__all__ = ["PROVIDER", "to_chunks", "to_prompt_value", "to_result", "to_values"]

#: What traces call us; LangChain compares `model_provider` of a reply with it.
PROVIDER: Final = "karakuri"

_ROLES: Final[Mapping[str, Role]] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}

#: A model's own thoughts: not said to anyone, so not part of the conversation.
_PRIVATE_BLOCKS: Final = frozenset({"reasoning", "reasoning_content", "thinking", "redacted_thinking"})

#: Blocks that are no text and are read where they stand: calls in replies, results in what the user sends.
_READ_BLOCKS: Final[Mapping[Role, frozenset[str]]] = {"assistant": CALL_BLOCKS, "user": frozenset({"tool_result"})}


def to_prompt_value(given: object) -> PromptValue:
    """What LangChain users pass to `invoke`: text, a prompt value, or a list of messages, dicts, tuples and texts.

    Raises:
        MessageError: something else, or an entry that is no message; with its index and without its content.
    """
    if isinstance(given, PromptValue):
        return given
    if isinstance(given, str):
        return StringPromptValue(text=given)
    if isinstance(given, Sequence) and not isinstance(given, bytes | bytearray):
        return ChatPromptValue(messages=[_message(one, place) for place, one in enumerate(given)])
    raise MessageError(f"the input must be text, a prompt value or a list of messages, got a {type(given).__name__}")


def _message(given: Any, index: int) -> BaseMessage:
    if isinstance(given, BaseMessage):
        return given
    if isinstance(given, Mapping):
        calls = bool(given.get("tool_calls") or given.get("function_call"))
        _check(given.get("role", given.get("type")), given.get("content", ""), calls, index)
    elif isinstance(given, tuple | list) and len(given) == 2:
        _check(given[0], given[1], False, index)
    try:
        return convert_to_messages([given])[0]
    except Exception as error:  # noqa: BLE001
        kind = type(error).__name__
    # Raised out here: langchain-core's messages quote the content, which may be private, so nothing is chained.
    raise MessageError(
        f"message {index}: a {type(given).__name__} that is not a message ({kind}); use a message "
        'object, {"role": "user", "content": "..."} or ("user", "...")',
        index,
    )


def _check(role: object, content: object, has_calls: bool, index: int) -> None:
    """Name what is wrong; langchain-core would turn some of it into empty text without a word."""
    if isinstance(role, str) and role not in _ROLES and role not in ("tool", "function", "constructor"):
        raise _unknown_role(role, index)
    if not isinstance(content, str | list) and not has_calls:
        raise _bad_content(content, index)


def to_values(messages: Iterable[BaseMessage], provider: Provider) -> list[Message]:
    """The messages as values; attributes are read where they stand, after the model's policy.

    Raises:
        MessageError: an unknown role, content that is not text, or a call of no known form; names index and type.
        AttributeConfigError: attributes of a message that are not valid or not allowed.
    """
    return [value for place, message in enumerate(messages) for value in _values(message, place, provider)]


def _values(message: BaseMessage, index: int, provider: Provider) -> Iterator[Message]:
    role = _role(message, index)
    text = _text(message, role, index)
    extra = message.additional_kwargs
    _check_fields(message, index, provider)
    if role == "user":
        yield from _user(message, text, index, provider)
    elif role == "system":
        yield provider.system(text, extra, index)
    elif role == "tool":
        yield _result(message, text, index, provider)
    else:
        calls = calls_of(message, index) if isinstance(message, AIMessage) else ()
        yield provider.assistant(text, message.response_metadata.get("attributes"), index, extra, calls)


def _check_fields(message: BaseMessage, index: int, provider: Provider) -> None:
    """Dials that were given to the class as fields of its own: LangChain's caches and saved chats leave these out."""
    extra = message.model_extra or {}
    if provider.policy.mode != "ignore" and carried_attributes(extra, f"message {index}") is not None:
        raise AttributeConfigError(
            f"message {index}: LangChain's caches and saved chats lose attributes that are fields of a message; write "
            'additional_kwargs={"attributes": {...}}'
        )


def _user(message: BaseMessage, text: str, index: int, provider: Provider) -> Iterator[Message]:
    """The results among the message's blocks (Anthropic's form), then what the user says."""
    blocks = message.content if isinstance(message.content, list) else ()
    results = [one for one in blocks if isinstance(one, Mapping) and one.get("type") == "tool_result"]
    for block in results:
        inner = ToolMessage(block.get("content") or "", tool_call_id=str(block.get("tool_use_id") or ""))
        said, failed = _text(inner, "tool", index), block.get("is_error") is True
        yield provider.tool(said, inner.tool_call_id, "", index, failed=failed)
    said_too = provider.user(text, message.additional_kwargs, index)
    if text or said_too.attributes is not None or not results:
        yield said_too


def _result(message: BaseMessage, text: str, index: int, provider: Provider) -> Message:
    if (
        provider.policy.mode != "ignore"
        and carried_attributes(message.additional_kwargs, f"message {index}") is not None
    ):
        raise AttributeConfigError(
            f"message {index}: a tool's result carries no steering attributes; put them on a user message, the call or "
            "the model"
        )
    identity = message.tool_call_id if isinstance(message, ToolMessage) else ""
    failed = isinstance(message, ToolMessage) and message.status == "error"
    return provider.tool(text, identity, message.name or "", index, failed=failed)


def _role(message: BaseMessage, index: int) -> Role:
    if isinstance(message, ToolMessage | FunctionMessage):
        return "tool"
    if isinstance(message, AIMessage):
        return "assistant"
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, SystemMessage):
        return "system"
    name = message.role if isinstance(message, ChatMessage) else message.type
    if name not in _ROLES:
        raise _unknown_role(name, index)
    return _ROLES[name]


def _text(message: BaseMessage, role: Role, index: int) -> str:
    content: object = message.content
    if isinstance(content, list):
        for block in content:
            _check_block(block, role, index)
    elif not isinstance(content, str):
        raise _bad_content(content, index)
    return str(message.text)


def _check_block(block: object, role: Role, index: int) -> None:
    if isinstance(block, str):
        return
    if not isinstance(block, Mapping):
        raise MessageError(
            f"message {index}: a content block must be text or a dict, got {type(block).__name__}", index
        )
    kind = block.get("type")
    if kind in _READ_BLOCKS.get(role, ()):
        return
    if kind == "text" and not isinstance(block.get("text"), str):
        raise MessageError(f"message {index}: a text block whose text is a {type(block.get('text')).__name__}", index)
    if kind != "text" and kind not in _PRIVATE_BLOCKS:
        shown = f"{kind[:40]!r}" if isinstance(kind, str) else "without a type"
        raise MessageError(
            f"message {index}: a content block {shown}; KARAKURI LM reads text only, leave it out or describe it in "
            "words",
            index,
        )


def _unknown_role(role: str, index: int) -> MessageError:
    return MessageError(f"message {index}: unknown role {role[:40]!r}; the roles are {', '.join(_ROLES)}", index)


def _bad_content(content: object, index: int) -> MessageError:
    return MessageError(f"message {index}: content must be text or a list, got {type(content).__name__}", index)


def _usage(usage: Usage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    counted = UsageMetadata(
        input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, total_tokens=usage.total_tokens
    )
    if usage.cache_read:
        counted["input_token_details"] = InputTokenDetails(cache_read=usage.cache_read)
    return counted


def _metadata(call: Call, finish_reason: str) -> dict[str, Any]:
    return {**call.metadata(), "model_provider": PROVIDER, "finish_reason": finish_reason}


def to_result(deltas: Sequence[Delta], call: Call) -> ChatResult:
    """The whole reply, folded."""
    reply = fold(deltas)
    message = AIMessage(
        content=reply.text,
        tool_calls=valid_calls_in(reply.calls),
        invalid_tool_calls=invalid_calls_in(reply.calls),
        usage_metadata=_usage(reply.usage),
        response_metadata=_metadata(call, reply.finish_reason),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def to_chunks(delta: Delta, call: Call, *, first_index: int = 0) -> Iterator[ChatGenerationChunk]:
    """One piece of a stream; usage and metadata stand on the last, once (LangChain would add them up).

    Text, calls and the end come in chunks of their own: as content blocks, calls are only seen where they stand alone.
    `first_index` is that of the first call; in blocks, text before it has one too.
    """
    fragments = chunks_of(delta, first_index)
    if delta.text and (fragments or delta.finish_reason is None):
        yield _chunk(content=delta.text)
    if fragments:
        yield _chunk(content="", tool_call_chunks=fragments)
    if delta.finish_reason is not None:
        yield _chunk(
            content="" if fragments else delta.text,
            usage_metadata=_usage(delta.usage),
            response_metadata=_metadata(call, delta.finish_reason),
            chunk_position="last",
        )


def _chunk(**fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(**fields))
