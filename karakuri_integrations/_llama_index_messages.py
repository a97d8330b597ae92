"""LlamaIndex messages to `Message` values, and deltas back to LlamaIndex responses. Pure: nothing is opened or sent.

Content is joined by LlamaIndex's own accessor (`message.content`: text blocks joined by a newline). Thinking blocks and
cache points are not part of the conversation and are left out; calls are `_llama_index_tools`' matter; every other
block that is not text is an error. Foreign keys of `additional_kwargs` are never written into the prompt.

**The record.** A reply carries the attributes it was answered with in a trailing ThinkingBlock without text, in
`additional_information`: LlamaIndex's memories, JSON and pickle keep it, and no helper of LlamaIndex prints it into a
prompt (they do print `additional_kwargs`). An assistant message without a record may carry attributes in
`additional_kwargs`, as user messages do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from ._llama_index_tools import Calls, Offer, call_blocks, call_kwargs, calls_of, usable_name
from .conversation import Delta, FinishReason, Message, Reply, Role, ToolCall, Usage
from .errors import MessageError
from .provider import Call, Provider

__all__ = ["RECORD", "Answer", "Answers", "to_messages", "to_values", "whole"]

#: The key of the record in a ThinkingBlock's `additional_information`.
RECORD: Final = "karakuri_attributes"

_ROLES: Final[Mapping[MessageRole, Role]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def to_messages(given: object) -> list[ChatMessage]:
    """What LlamaIndex users pass: text, a ChatMessage, or a sequence of ChatMessages, dicts and texts.

    Keys of a dict that a ChatMessage does not have become its `additional_kwargs`, so that attributes written flat
    are not lost.

    Raises:
        MessageError: something else, with its index and without its content.
    """
    if isinstance(given, str | ChatMessage | Mapping):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes | bytearray):
        raise MessageError(f"messages must be text or a list of ChatMessage, got a {type(given).__name__}")
    return [_message(one, place) for place, one in enumerate(given)]


def _message(given: object, index: int) -> ChatMessage:
    if isinstance(given, ChatMessage):
        return given
    if isinstance(given, str):
        return ChatMessage(role=MessageRole.USER, content=given)
    if not isinstance(given, Mapping):
        raise MessageError(
            f"message {index}: must be a ChatMessage, a dict or text, got a {type(given).__name__}", index
        )
    known = {key: value for key, value in given.items() if key in ("role", "content", "blocks")}
    extra = {key: value for key, value in given.items() if key not in known and key != "additional_kwargs"}
    with contextlib.suppress(TypeError, ValueError):
        return ChatMessage(**known, additional_kwargs={**extra, **(given.get("additional_kwargs") or {})})
    # Raised out here, where nothing is chained: LlamaIndex's error would show the content.
    raise MessageError(f"message {index}: the dict is not a message with `role` and `content`", index)


def to_values(messages: Sequence[ChatMessage], provider: Provider) -> list[Message]:
    """The conversation as values, with the calls and attributes that its messages carry.

    Raises:
        MessageError: a block that is not text, with the message's index and the block's type; a call of a message
            that is not the assistant's.
        AttributeConfigError: attributes of a message that are not valid or not allowed.
    """
    echoes = set(_echoes(messages))
    return [_value(message, provider, index) for index, message in enumerate(messages) if index not in echoes]


def _echoes(messages: Sequence[ChatMessage]) -> Iterator[int]:
    """Where FunctionAgent repeats as the assistant's a result that was to be the answer, and goes on all the same.

    It does so after the error of a tool that returns directly; the model itself said nothing there.
    """
    for index, message in enumerate(messages):
        identity = message.additional_kwargs.get("tool_call_id")
        if index == 0 or identity is None or _ROLES[message.role] != "assistant":
            continue
        before, after = messages[index - 1], messages[index + 1 : index + 2]
        repeats = before.additional_kwargs.get("tool_call_id") == identity and before.content == message.content
        if repeats and all(_ROLES[one.role] == "assistant" for one in after):
            yield index


def _an(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def _value(message: ChatMessage, provider: Provider, index: int) -> Message:
    role, extra = _ROLES[message.role], message.additional_kwargs
    calls = tuple(replace(call, name=usable_name(call.name)) for call in calls_of(message, index))
    if calls and role != "assistant":
        raise MessageError(f"message {index}: a tool call on a {role} message; calls are the assistant's", index)
    for block in message.blocks:
        if not isinstance(block, TextBlock | ThinkingBlock | CachePoint | ToolCallBlock):
            raise MessageError(
                f"message {index}: {_an(block.block_type)} block; KARAKURI models read text only, "
                "leave it out or describe it in words",
                index,
            )
    text = message.content or ""
    if role == "system":
        return provider.system(text, extra, index)
    if role == "user":
        return provider.user(text, extra, index)
    if role == "tool":
        name = usable_name(str(extra.get("name") or ""))
        return provider.tool(text, str(extra.get("tool_call_id") or ""), name, index)
    return provider.assistant(text, _recorded(message), index, extra, calls)


def _recorded(message: ChatMessage) -> object:
    for block in message.blocks:
        if isinstance(block, ThinkingBlock) and RECORD in block.additional_information:
            return block.additional_information[RECORD]
    return None


class _ReplyMessage(ChatMessage):
    """A reply whose record stays when LlamaIndex replaces the text.

    SimpleChatEngine sets `blocks` anew on the last message of a stream before it puts it into its memory.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "blocks":
            kept = [block for block in self.blocks if isinstance(block, ThinkingBlock)]
            value = [*value, *(block for block in kept if block not in value)]
        super().__setattr__(name, value)


class Answer(NamedTuple):  # one is made for every token
    """A reply so far, or whole: then it has a report. `delta` is None where nothing was streamed."""

    text: str
    delta: str | None = None
    report: Mapping[str, Any] | None = None
    calls: tuple[ToolCall, ...] = ()

    def chat(self) -> ChatResponse:
        """As a chat response; the message of a finished reply carries the record."""
        return ChatResponse(message=self._message(), delta=self.delta, **self._extras())

    def completion(self) -> CompletionResponse:
        """As a completion response."""
        return CompletionResponse(text=self.text, delta=self.delta, **self._extras())

    def _message(self) -> ChatMessage:
        if self.report is None and not self.calls:  # most items of a stream
            return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=self.text)])
        # Without text a call's message has no text block: other providers refuse an empty one in history.
        blocks: list[ContentBlock] = [TextBlock(text=self.text)] if self.text or not self.calls else []
        blocks.extend(call_blocks(self.calls))
        if self.report and "attributes" in self.report:
            blocks.append(ThinkingBlock(additional_information={RECORD: dict(self.report["attributes"])}))
        return _ReplyMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=call_kwargs(self.calls))

    def _extras(self) -> dict[str, Any]:
        if self.report is None:
            return {}
        return {"raw": dict(self.report), "additional_kwargs": dict(self.report.get("usage", {}))}


class Answers:
    """Turns the deltas of one call into answers so far, the last one with its report."""

    def __init__(self, call: Call, offer: Offer) -> None:
        self._call, self._offer = call, offer
        self._text = ""
        self._calls = Calls()
        self._offered: tuple[ToolCall, ...] = ()

    def push(self, delta: Delta) -> Answer:
        self._text += delta.text
        if delta.fragments:
            self._offered = self._offer.calls(self._calls.push(delta.fragments))
        if delta.finish_reason is None:
            return Answer(self._text, delta.text, None, self._offered)
        report = _report(self._call, delta.usage, delta.finish_reason)
        return Answer(self._text, delta.text, report, self._offer.calls(delta.calls))


def whole(call: Call, reply: Reply, offer: Offer) -> Answer:
    """The answer of a call that was not streamed."""
    return Answer(reply.text, None, _report(call, reply.usage, reply.finish_reason), offer.calls(reply.calls))


def _report(call: Call, usage: Usage | None, reason: FinishReason) -> dict[str, Any]:
    """What `raw` shows, plain JSON values; no `usage` where the server does not count."""
    rest = call.metadata()
    counts = {} if usage is None else {"usage": _counts(usage)}
    return {"model": rest.pop("model_name"), **counts, "finish_reason": reason, **rest}


def _counts(usage: Usage) -> dict[str, Any]:
    """The names that LlamaIndex's counters read; cached tokens as OpenAI names them."""
    cached = {"prompt_tokens_details": {"cached_tokens": usage.cache_read}} if usage.cache_read else {}
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        **cached,
    }
