"""Structured output in LlamaIndex: which program makes a pydantic object of a reply.

**DEFAULT** asks for a reply that is JSON of the class's schema (`response_format`) and needs no tool: the prompt is
shorter, and classes that are no object, such as a list, work too. **FUNCTION** makes the object from a forced tool
call; **OPENAI** is the same, because its own program exists for OpenAI's class only. **LLM** writes the schema into
the prompt and reads whatever comes back. **LM_FORMAT_ENFORCER** knows two other classes and is refused; DEFAULT holds
the reply to the schema already.

Sets (`uniqueItems`) hold each item once; a local reply that could only repeat one is cut, which is an error.

LlamaIndex's programs complete the JSON of a stream that was cut and end as if it were whole, and their errors quote the
reply. The two here give the same partial objects, and a reply that makes no object is the same error everywhere: in a
stream at its end.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import closing
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from ._llama_index_tools import checked_selections
from .closing import aclosing
from .errors import OptionError, ReplyFormatError
from .tools import shown_place

__all__ = ["StructuredPredict", "response_format"]

_dispatcher = get_dispatcher(__name__)

#: Options of LlamaIndex's function program, which every program takes and the others have no use for.
_OF_FUNCTIONS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


def response_format(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The call option that holds a reply to the JSON schema of a class."""
    named = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {"type": "json_schema", "json_schema": named}


def _object(output_cls: type[BaseModel], json_text: str, reply: str) -> Any:
    """The object that the JSON is.

    Raises:
        ReplyFormatError: it is none; `.partial_text` is the reply.
    """
    try:
        return output_cls.model_validate_json(json_text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Raised out here, where nothing is chained: pydantic's error would show the reply.
    where = shown_place(first["loc"], output_cls.model_json_schema()) or "the whole of it"
    failed = ReplyFormatError(
        f"the reply is no {output_cls.__name__}: {where}: {first['type']}; `.partial_text` is the reply. "
        "Raise max_tokens if it was cut, or ask again"
    )
    failed.partial_text = reply
    raise failed


def _not_cut(response: ChatResponse) -> None:
    """Its JSON may be whole all the same: led to its end when the tokens ran out, with values that nobody chose.

    Raises:
        ReplyFormatError: the reply's tokens ran out; `.partial_text` is the reply.
    """
    if isinstance(response.raw, Mapping) and response.raw.get("finish_reason") == "length":
        failed = ReplyFormatError(
            "the reply ended before its JSON did; raise max_tokens, or ask for less. `.partial_text` is the reply"
        )
        failed.partial_text = response.message.content or ""
        raise failed


class _DescribingParser(PydanticOutputParser[Any]):
    """Writes the schema into the prompt, and reads a reply that has the JSON somewhere in it."""

    def parse(self, text: str) -> Any:
        begins, ends = text.find("{"), text.rfind("}") + 1
        return _object(self.output_cls, text[begins:ends] if 0 <= begins < ends else text, text)


class _Parser(PydanticOutputParser[Any]):
    """Reads a reply that is JSON of the class; adds nothing to the prompt, which the response format has described."""

    def format(self, query: str) -> str:
        return query

    def format_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        return messages

    def parse(self, text: str) -> Any:
        return _object(self.output_cls, text.strip(), text)


class _Growth:
    """The objects of one streamed reply: partial ones as LlamaIndex makes them, and the one of the whole reply."""

    def __init__(self, program: _TextProgram | _CallProgram) -> None:
        self._program = program
        self._objects: Any = None
        self._last: ChatResponse | None = None

    def push(self, response: ChatResponse) -> list[Any]:
        self._last = response
        try:
            made = process_streaming_objects(
                response, self._program.output_cls, cur_objects=self._objects, llm=self._program._llm
            )
        except Exception:  # noqa: BLE001  # a value that is no object, which LlamaIndex's helper stumbles over
            return []
        self._objects = [made]
        return [made]

    def end(self) -> list[Any]:
        """The object of the whole reply, where the last partial one is another.

        Raises:
            ReplyFormatError: the reply makes none.
        """
        if self._last is None:
            return []
        made = self._program.whole(self._last)
        return [] if self._objects == [made] else [made]


class _TextProgram(LLMTextCompletionProgram[Any]):
    """A reply that is JSON."""

    def whole(self, response: ChatResponse) -> Any:
        _not_cut(response)
        return self._output_parser.parse(response.message.content or "")

    def __call__(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.whole(self._llm.chat(self._messages(kwargs), **(llm_kwargs or {})))

    async def acall(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.whole(await self._llm.achat(self._messages(kwargs), **(llm_kwargs or {})))

    def _messages(self, given: dict[str, Any]) -> list[ChatMessage]:
        return list(self._llm._extend_messages(self._prompt.format_messages(llm=self._llm, **given)))

    def stream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Generator[Any, None, None]:
        return _objects(self, self._llm.stream_chat(self._messages(kwargs), **(llm_kwargs or {})))

    async def astream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        return _aobjects(self, await self._llm.astream_chat(self._messages(kwargs), **(llm_kwargs or {})))


class _CallProgram(FunctionCallingProgram[Any]):
    """A forced call whose arguments are the object."""

    def whole(self, response: ChatResponse) -> Any:
        _not_cut(response)
        call = checked_selections(response.message, needed=True)[0]
        text = json.dumps(call.tool_kwargs, ensure_ascii=False)
        return _object(self._output_cls, text, text)

    def _asked(self, llm_kwargs: dict[str, Any] | None, given: dict[str, Any]) -> dict[str, Any]:
        messages = self._llm._extend_messages(self._prompt.format_messages(llm=self._llm, **given))
        return {
            "tools": [get_function_tool(self._output_cls)],
            "chat_history": messages,
            "tool_choice": self._tool_choice,
            **(llm_kwargs or {}),
        }

    def __call__(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.whole(self._llm.chat_with_tools(**self._asked(llm_kwargs, kwargs)))

    async def acall(self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.whole(await self._llm.achat_with_tools(**self._asked(llm_kwargs, kwargs)))

    def stream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Generator[Any, None, None]:
        return _objects(self, self._llm.stream_chat_with_tools(**self._asked(llm_kwargs, kwargs)))

    async def astream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        return _aobjects(self, await self._llm.astream_chat_with_tools(**self._asked(llm_kwargs, kwargs)))


def _objects(program: _TextProgram | _CallProgram, responses: Any) -> Generator[Any, None, None]:
    growth = _Growth(program)
    with closing(responses):
        for response in responses:
            yield from growth.push(response)
    yield from growth.end()


async def _aobjects(program: _TextProgram | _CallProgram, responses: Any) -> AsyncGenerator[Any, None]:
    growth = _Growth(program)
    async with aclosing(responses) as own:
        async for response in own:
            for made in growth.push(response):
                yield made
    for made in growth.end():
        yield made


class StructuredPredict(FunctionCallingLLM):
    """The four structured calls; LlamaIndex's `as_structured_llm` goes through them."""

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An object of the class, made of the prompt's answer.

        Raises:
            ReplyFormatError: the reply is no such object; `.partial_text` is its text.
        """
        _started(output_cls, prompt, prompt_args)
        program, options = self._program(output_cls, prompt, llm_kwargs)
        result = program(llm_kwargs=options, **prompt_args)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """As `structured_predict`, natively async."""
        _started(output_cls, prompt, prompt_args)
        program, options = self._program(output_cls, prompt, llm_kwargs)
        result = await program.acall(llm_kwargs=options, **prompt_args)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        program, options = self._program(output_cls, prompt, llm_kwargs)
        return program.stream_call(llm_kwargs=options, **prompt_args)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        program, options = self._program(output_cls, prompt, llm_kwargs)
        return await program.astream_call(llm_kwargs=options, **prompt_args)

    def _program(
        self, output_cls: type[BaseModel], prompt: BasePromptTemplate, llm_kwargs: dict[str, Any] | None
    ) -> tuple[BasePydanticProgram[Any], dict[str, Any]]:
        mode, tools = self.pydantic_program_mode, self.metadata.is_function_calling_model
        options = {name: value for name, value in (llm_kwargs or {}).items() if name not in _OF_FUNCTIONS}
        if mode is PydanticProgramMode.LM_FORMAT_ENFORCER:
            raise OptionError(
                "pydantic_program_mode LM_FORMAT_ENFORCER is for other models; DEFAULT does the same here"
            )
        if mode in (PydanticProgramMode.OPENAI, PydanticProgramMode.FUNCTION):
            # LlamaIndex's program forces the call in its streams only if it is told so.
            program = _CallProgram.from_defaults(output_cls, prompt=prompt, llm=self, tool_choice="required")
            return program, options
        parser: PydanticOutputParser[Any] = _DescribingParser(output_cls)
        if mode is PydanticProgramMode.DEFAULT and tools:
            parser, options = _Parser(output_cls), {**options, "response_format": response_format(output_cls)}
        own = copy.copy(prompt)  # the program writes its parser into the prompt
        return cast("Any", _TextProgram.from_defaults(output_parser=parser, prompt=own, llm=self)), options


def _started(output_cls: type[BaseModel], prompt: BasePromptTemplate, arguments: dict[str, Any]) -> None:
    _dispatcher.event(LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=arguments))
