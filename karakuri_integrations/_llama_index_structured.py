"""Structured output in LlamaIndex: which program makes a pydantic object of a reply.

**DEFAULT** asks for a reply that is JSON of the class's schema (`response_format`) and needs no tool: the prompt is
shorter, and classes that are no object, such as a list, work too. **FUNCTION** makes the object from a forced tool
call; **OPENAI** is the same, because its own program exists for OpenAI's class only. **LLM** writes the schema into
the prompt and reads whatever comes back. **LM_FORMAT_ENFORCER** knows two other classes and is refused; DEFAULT holds
the reply to the schema already.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import BaseModel, ValidationError

from .errors import OptionError, ReplyFormatError

__all__ = ["StructuredPredict", "response_format"]

_dispatcher = get_dispatcher(__name__)

#: Options of LlamaIndex's function program, which every program takes and the others have no use for.
_OF_FUNCTIONS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


def response_format(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The call option that holds a reply to the JSON schema of a class."""
    named = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {"type": "json_schema", "json_schema": named}


class _Parser(PydanticOutputParser[Any]):
    """Reads a reply that is JSON of the class; adds nothing to the prompt, which the response format has described."""

    def format(self, query: str) -> str:
        return query

    def format_messages(self, messages: list[ChatMessage]) -> list[ChatMessage]:
        return messages

    def parse(self, text: str) -> Any:
        try:
            return self.output_cls.model_validate_json(text.strip())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # Raised out here, where nothing is chained: pydantic's error would show the reply.
        where = ".".join(map(str, first["loc"])) or "the whole of it"
        failed = ReplyFormatError(
            f"the reply is no {self.output_cls.__name__}: {where}: {first['type']}; `.partial_text` is the reply. "
            "Raise max_tokens if it was cut, or ask again"
        )
        failed.partial_text = text
        raise failed


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
        if mode is PydanticProgramMode.DEFAULT and tools:
            return _schema_program(self, output_cls, prompt), {
                **options,
                "response_format": response_format(output_cls),
            }
        if mode in (PydanticProgramMode.OPENAI, PydanticProgramMode.FUNCTION):
            # LlamaIndex's program forces the call in its streams only if it is told so.
            program = FunctionCallingProgram.from_defaults(output_cls, prompt=prompt, llm=self, tool_choice="required")
            return program, options
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=mode), options


def _schema_program(
    llm: FunctionCallingLLM, output_cls: type[BaseModel], prompt: BasePromptTemplate
) -> BasePydanticProgram[Any]:
    own = copy.copy(prompt)  # the program writes its parser into the prompt
    return LLMTextCompletionProgram.from_defaults(output_parser=_Parser(output_cls), prompt=own, llm=llm)


def _started(output_cls: type[BaseModel], prompt: BasePromptTemplate, arguments: dict[str, Any]) -> None:
    _dispatcher.event(LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=arguments))
