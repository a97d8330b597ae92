"""One prepared LlamaIndex call, run: whole or as a stream that is closed together with the caller's. No messages."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage

from ._llama_index_messages import Answer, Answers, to_messages, whole
from ._llama_index_tools import Offer, tool_options
from .closing import Owned, aclosing
from .conversation import Delta, Message
from .generation import fold
from .provider import Call, Provider

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

__all__ = ["Plan", "PreparesTools", "acloses", "acollect", "astream", "closes", "collect", "stream"]

_T = TypeVar("_T")
_Method = TypeVar("_Method", bound=Callable[..., Any])

#: The streams that the call in progress has opened; see `closes`.
_opened: ContextVar[list[Any]] = ContextVar("karakuri_opened")


@dataclass(frozen=True)
class Plan:
    """A call before it is prepared: messages, or a formatted prompt as text."""

    provider: Provider
    given: Sequence[Message] | str
    options: Mapping[str, Any]
    offer: Offer = field(default_factory=Offer)

    def call(self) -> Call:
        if isinstance(self.given, str):
            return self.provider.prepare_raw(self.given, self.options)
        return self.provider.prepare(self.given, self.options)

    async def acall(self) -> Call:
        if isinstance(self.given, str):
            return await self.provider.aprepare_raw(self.given, self.options)
        return await self.provider.aprepare(self.given, self.options)


def collect(plan: Plan) -> Answer:
    call = plan.call()
    with closing(cast("Generator[Delta, None, None]", call.stream(whole=True))) as deltas:
        return whole(call, fold(deltas), plan.offer)


async def acollect(plan: Plan) -> Answer:
    call = await plan.acall()
    async with aclosing(cast("AsyncGenerator[Delta, None]", call.astream(whole=True))) as deltas:
        return whole(call, fold([delta async for delta in deltas]), plan.offer)


def stream(plan: Plan, view: Callable[[Answer], _T]) -> Generator[_T, None, None]:
    call = plan.call()  # what cannot be answered is an error here, not at the first item
    items = _items(call, Answers(call, plan.offer), view)
    _opened.get().append(items)
    return items


def _items(call: Call, answers: Answers, view: Callable[[Answer], _T]) -> Generator[_T, None, None]:
    with closing(cast("Generator[Delta, None, None]", call.stream())) as deltas:
        for delta in deltas:
            yield view(answers.push(delta))


async def astream(plan: Plan, view: Callable[[Answer], _T]) -> AsyncGenerator[_T, None]:
    call = await plan.acall()
    items = Owned[_T](_aitems(call, Answers(call, plan.offer), view))
    _opened.get().append(items)
    return items


async def _aitems(call: Call, answers: Answers, view: Callable[[Answer], _T]) -> AsyncGenerator[_T, None]:
    async with aclosing(cast("AsyncGenerator[Delta, None]", call.astream())) as deltas:
        async for delta in deltas:
            yield view(answers.push(delta))


class PreparesTools:
    """The arguments of `chat_with_tools` as those of `chat`.

    Apart from the model's class: LlamaIndex makes a span of each implementation of an abstract method in a class of its
    own, and traces would show it as a second LLM call.
    """

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        user = [] if user_msg is None else to_messages(user_msg)
        options = tool_options(tools, allow_parallel_tool_calls, tool_required, kwargs)
        return {"messages": [*(chat_history or []), *user], **options}


def closes(method: _Method) -> _Method:
    """Close the engine's stream with the caller's.

    LlamaIndex's decorators wrap the generator that a method returns and do not close it when theirs is closed; a
    traceback that some event handler keeps would keep the model running.
    """

    @functools.wraps(method)
    def opened(*args: Any, **kwargs: Any) -> Any:
        token = _opened.set([])
        try:
            items = method(*args, **kwargs)
            return _until_closed(items, _opened.get()[0])
        finally:
            _opened.reset(token)

    return cast("_Method", opened)


def _until_closed(items: Generator[_T, None, None], source: Generator[_T, None, None]) -> Iterator[_T]:
    with closing(source), closing(items):
        yield from items


def acloses(method: _Method) -> _Method:
    """As `closes`, for coroutines that return an async generator."""

    @functools.wraps(method)
    async def opened(*args: Any, **kwargs: Any) -> Any:
        token = _opened.set([])
        try:
            items = await method(*args, **kwargs)
            return _auntil_closed(items, _opened.get()[0])
        finally:
            _opened.reset(token)

    return cast("_Method", opened)


async def _auntil_closed(items: AsyncGenerator[_T, None], source: AsyncGenerator[_T, None]) -> AsyncIterator[_T]:
    async with aclosing(source), aclosing(items) as own:
        async for item in own:
            yield item
