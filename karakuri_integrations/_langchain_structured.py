"""with_structured_output: what a model is bound with, and how its reply becomes the value that was asked for.

Knows LangChain's three methods and its runnables. The reply is held to the schema by the engine's grammar; this parser
only reads it, and says so where the reply was cut or a server has no grammars.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers.transform import BaseTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, ValidationError
from pydantic.v1 import ValidationError as OldValidationError
from typing_extensions import override

from ._langchain_tools import openai_tools, response_format_of
from .errors import OptionError
from .tools import shown_place, usable_name

__all__ = ["AnswerParser", "bound_options", "parsed_by"]

_METHODS: Final = ("json_schema", "function_calling", "json_mode")
_SHOWN_ERRORS: Final = 5
_CUT: Final = "the reply ended before its JSON did; raise max_tokens, or ask for less"


def bound_options(schema: Any, method: str, strict: bool | None) -> tuple[dict[str, Any], AnswerParser]:
    """The call options that ask for an answer of this schema, and what reads the reply.

    Raises:
        OptionError: an unknown method, or one that cannot do what is asked for.
        ToolDefinitionError: no schema.
    """
    if method not in _METHODS:
        raise OptionError(f"method must be one of {', '.join(_METHODS)}, got {method!r:.40}")
    if method == "json_mode" and strict is not None:
        raise OptionError('strict= does not go with method="json_mode"; use method="json_schema"')
    if schema is None and method != "json_mode":
        raise OptionError(f'schema must be given with method="{method}"; only method="json_mode" does without')
    model_class = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
    told = {"method": method} if strict is None else {"method": method, "strict": strict}
    if method == "function_calling":
        function = openai_tools([schema], strict)[0]["function"]
        name = usable_name(function["name"])  # nobody but the parser sees it, so a class may be Box[int]
        tool = {"type": "function", "function": {**function, "name": name}}
        options = {"tools": [tool], "tool_choice": name, "parallel_tool_calls": False, "strict": strict}
    else:
        form = {"type": "json_object"} if schema is None else response_format_of(schema, strict)
        options, name = {"response_format": form}, None
    if schema is not None:
        options["ls_structured_output_format"] = {"kwargs": told, "schema": schema}  # for traces; no option of a call
    return options, AnswerParser(model_class=model_class, tool=name)


def parsed_by(model: Runnable[Any, Any], parser: AnswerParser, *, include_raw: bool) -> Runnable[Any, Any]:
    """The bound model with its parser behind it."""
    if not include_raw:
        return model | parser
    return RunnableMap(raw=model) | RunnableLambda(functools.partial(_beside_raw, parser), name="parse")


def _beside_raw(parser: AnswerParser, given: dict[str, Any]) -> dict[str, Any]:
    try:
        return {**given, "parsed": parser.answer(given["raw"]), "parsing_error": None}
    except OutputParserException as error:
        return {**given, "parsed": None, "parsing_error": error}


class AnswerParser(BaseTransformOutputParser[Any]):
    """Reads the JSON of a reply, or of its call where `tool` is given; an instance of `model_class` if there is one.

    In a stream, JSON comes as it grows and an instance when it is whole; a reply that ends before its JSON does is an
    error there as well.
    """

    model_class: Any = None
    tool: str | None = None

    @property
    def _type(self) -> str:
        return "karakuri_answer"

    def answer(self, message: BaseMessage) -> Any:
        """The value of a whole reply.

        Raises:
            OutputParserException: the reply is no such value; its `llm_output` holds the reply.
        """
        text = self._text(message)
        if message.response_metadata.get("finish_reason") == "length":
            # Its JSON may be whole: led to its end when the tokens ran out, with values that nobody chose.
            raise OutputParserException(_CUT, llm_output=_said(message) if text is None else text)
        try:
            return self._made(_loads(text or ""))
        except (ValueError, RecursionError) as error:  # pydantic's errors are ValueErrors too
            why = self._why(error, message, called=text is not None)
        # Raised out here: the errors of json and pydantic quote the reply.
        raise OutputParserException(why, llm_output=_said(message) if text is None else text)

    def _text(self, message: BaseMessage) -> str | None:
        """The JSON: of the reply, or of its first call of the tool; None where it makes none."""
        if self.tool is None:
            return str(message.text)
        return next((text for name, text in _calls(message) if name == self.tool), None)

    def _why(self, error: Exception, message: BaseMessage, *, called: bool) -> str:
        """What is wrong with a reply, without the reply."""
        if isinstance(error, ValidationError | OldValidationError):
            schema = response_format_of(self.model_class)["json_schema"]["schema"]
            shown = "; ".join(_line(one, schema) for one in error.errors()[:_SHOWN_ERRORS])
            return f"the reply is JSON and does not fit the schema: {shown}"
        if not called:
            return f"the reply makes no call of {self.tool!r}; where a server has no grammars, try method='json_schema'"
        return "the reply is no JSON; where a server has no grammars, ask for JSON in the prompt and try again"

    def _made(self, value: Any) -> Any:
        if self.model_class is None:
            return value
        if issubclass(self.model_class, BaseModel):
            return self.model_class.model_validate_json(json.dumps(value))
        return self.model_class.parse_obj(value)

    def _growing(self, message: BaseMessage) -> Any:
        """What can be given of a reply that has not ended; None where that is nothing."""
        text = self._text(message) or ""
        try:
            return parse_json_markdown(text) if self.model_class is None else self._made(_loads(text))
        except (ValueError, RecursionError):
            return None

    @override
    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        first = result[0]
        message = first.message if isinstance(first, ChatGeneration) else AIMessage(first.text)
        return self._growing(message) if partial else self.answer(message)

    @override
    def parse(self, text: str) -> Any:
        return self.answer(AIMessage(text))

    @override
    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        growth = _Growth(self)
        for chunk in input:
            yield from growth.push(chunk)
        growth.end()

    @override
    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        growth = _Growth(self)
        async for chunk in input:
            for value in growth.push(chunk):
                yield value
        growth.end()


class _Growth:
    """One streamed reply as it grows."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser = parser
        self._whole: Any = None
        self._last: Any = None

    def push(self, chunk: str | BaseMessage) -> Sequence[Any]:
        message = AIMessageChunk(content=chunk) if isinstance(chunk, str) else chunk
        self._whole = message if self._whole is None else self._whole + message
        value = self._parser._growing(self._whole)
        if value is None or value == self._last:
            return ()
        self._last = value
        return (value,)

    def end(self) -> None:
        if self._whole is not None:
            self._parser.answer(self._whole)


def _loads(text: str) -> Any:
    """Whole JSON, also in the Markdown fence that models without a grammar like to put around it."""
    whole = functools.partial(json.loads, strict=False)
    try:
        return whole(text)
    except ValueError:
        return parse_json_markdown(text, parser=whole)


def _calls(message: BaseMessage) -> Iterator[tuple[str | None, str]]:
    """(name, JSON of the arguments) of a reply's calls, those that are valid first, or of those so far in a stream."""
    if isinstance(message, AIMessageChunk):
        for one in message.tool_call_chunks:
            yield one["name"], one["args"] or "{}"
    elif isinstance(message, AIMessage):
        for valid in message.tool_calls:
            yield valid["name"], json.dumps(valid["args"], ensure_ascii=False)
        for invalid in message.invalid_tool_calls:
            yield invalid["name"], invalid["args"] or ""


def _said(message: BaseMessage) -> str:
    """A reply without the call that was asked for."""
    return "\n".join(filter(None, (str(message.text), *(f"{name}: {text}" for name, text in _calls(message)))))


def _line(error: Mapping[str, Any], schema: Any) -> str:
    return f"{shown_place(error['loc'], schema) or 'the whole'}: {error['type']}"
