"""Structured output of a KarakuriLLM: every program mode, sync, async and streamed.

Mirrors what llama-index-core checks in tests/llms/test_structured_llm.py and tests/llms/test_predict_and_call.py.
"""

import json
from enum import Enum
from typing import Any

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field, RootModel

from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.errors import OptionError, ReplyFormatError
from karakuri_integrations.llama_index import KarakuriLLM


class Temple(BaseModel):
    """A temple."""

    name: str
    year: int = Field(ge=0)
    tags: list[str] = []


class Node(BaseModel):
    """A node of a tree."""

    name: str
    children: list["Node"] = []


class Kind(Enum):
    TEMPLE = "寺"
    SHRINE = "神社"


class Sight(BaseModel):
    """A sight."""

    kind: Kind


class Names(RootModel[list[str]]):
    """Names."""


JSON = '{"name": "清水寺", "year": 778, "tags": ["京都", "世界遺産"]}'
FORCED = f'[{{"name": "Temple", "arguments": {JSON}}}]'
KIYOMIZU = Temple(name="清水寺", year=778, tags=["京都", "世界遺産"])
PROMPT = PromptTemplate("{place}の寺を一つ教えてください。")
MODES = {
    PydanticProgramMode.DEFAULT: JSON,
    PydanticProgramMode.FUNCTION: FORCED,
    PydanticProgramMode.OPENAI: FORCED,
    PydanticProgramMode.LLM: f"こちらです。\n```json\n{JSON}\n```",
}


def scripted(*replies: Any, **fields: Any) -> KarakuriLLM:
    return KarakuriLLM(engine=ScriptedEngine(list(replies)), **fields)


@pytest.fixture(params=MODES, ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> PydanticProgramMode:
    return request.param


async def test_all_ways_in_all_modes(mode: PydanticProgramMode) -> None:
    reply = MODES[mode]
    streamed = JSON if mode is PydanticProgramMode.LLM else reply
    llm = scripted(reply, reply, streamed, streamed, pydantic_program_mode=mode)
    assert llm.structured_predict(Temple, PROMPT, place="京都") == KIYOMIZU
    assert await llm.astructured_predict(Temple, PROMPT, place="京都") == KIYOMIZU
    partial = list(llm.stream_structured_predict(Temple, PROMPT, place="京都"))
    apartial = [one async for one in await llm.astream_structured_predict(Temple, PROMPT, place="京都")]
    assert partial[-1] == apartial[-1] == KIYOMIZU
    assert [one.model_dump() for one in partial] == [one.model_dump() for one in apartial]
    names = [one.name for one in partial if getattr(one, "name", None)]
    assert {"清", "清水", "清水寺"} <= set(names)
    assert all("京都の寺" in prompt for prompt in llm.engine.prompts)
    assert llm.engine.prompts[0] == llm.engine.prompts[1]
    assert llm.engine.prompts[2] == llm.engine.prompts[3] == llm.engine.prompts[0]


async def test_a_structured_llm_in_all_modes(mode: PydanticProgramMode) -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(lambda _: MODES[mode]), pydantic_program_mode=mode)
    structured = llm.as_structured_llm(Temple)
    messages = [ChatMessage(role="system", content="S"), ChatMessage(role="user", content='寺は? {"a": {}}')]
    assert isinstance(structured, StructuredLLM)
    for response in (structured.chat(messages), await structured.achat(messages)):
        assert response.raw == KIYOMIZU
        assert json.loads(response.message.content)["name"] == "清水寺"
    for response in (structured.complete("寺は?"), await structured.acomplete("寺は?")):
        assert response.raw == KIYOMIZU
    assert all('寺は? {"a": {}}' in prompt for prompt in llm.engine.prompts[:2])


async def test_a_structured_llm_streams() -> None:
    structured = KarakuriLLM(engine=ScriptedEngine(lambda _: JSON)).as_structured_llm(Temple)
    messages = [ChatMessage(role="user", content="寺は?")]
    assert list(structured.stream_chat(messages))[-1].raw == KIYOMIZU
    assert [item async for item in await structured.astream_chat(messages)][-1].raw == KIYOMIZU


async def test_default_holds_the_reply_to_the_schema_and_writes_it_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = []
    llm = scripted(JSON, JSON)
    stream = llm.engine.stream
    monkeypatch.setattr(
        llm.engine, "stream", lambda prompt, sampling: (prompts.append(prompt), stream(prompt, sampling))[1]
    )
    llm.structured_predict(Temple, PROMPT, place="京都")
    (prompt,) = prompts
    assert json.loads(prompt.grammar.schema)["required"] == ["name", "year"]
    assert prompt.calls is None
    assert "次の形の JSON だけで答えてください: {name: string, year: integer, tags?: string[]}" in prompt.text
    assert len(prompt.text) < 350


def test_llm_writes_the_schema_itself() -> None:
    llm = scripted(JSON, pydantic_program_mode=PydanticProgramMode.LLM)
    llm.structured_predict(Temple, PROMPT, place="京都")
    assert "Here's a JSON schema" in llm.engine.prompts[0]


def test_function_forces_the_call() -> None:
    llm = scripted(FORCED, pydantic_program_mode=PydanticProgramMode.FUNCTION)
    llm.structured_predict(Temple, PROMPT, place="京都")
    assert llm.engine.prompts[0].endswith("[TOOL_CALLS]\n")
    assert "\nTemple(name: string, year: integer, tags?: string[]): A temple." in llm.engine.prompts[0]


def test_lm_format_enforcer_is_for_other_models() -> None:
    llm = scripted(JSON, pydantic_program_mode=PydanticProgramMode.LM_FORMAT_ENFORCER)
    with pytest.raises(OptionError, match="DEFAULT"):
        llm.structured_predict(Temple, PROMPT, place="京都")


@pytest.mark.parametrize(
    ("cls", "reply", "expected"),
    [
        (Node, '{"name": "a", "children": [{"name": "b", "children": []}]}', Node(name="a", children=[Node(name="b")])),
        (Sight, '{"kind": "神社"}', Sight(kind=Kind.SHRINE)),
        (Names, '["清水寺", "金閣寺"]', Names(["清水寺", "金閣寺"])),
        (Temple, f" \n{JSON}\n ", KIYOMIZU),
    ],
)
async def test_schemas_of_every_shape(cls: Any, reply: str, expected: Any) -> None:
    llm = scripted(reply, reply)
    assert llm.structured_predict(cls, PROMPT, place="京都") == expected
    assert await llm.astructured_predict(cls, PROMPT, place="京都") == expected


async def test_the_system_prompt_and_options_go_along(mode: PydanticProgramMode) -> None:
    """Also asynchronously, where LlamaIndex's own function program forgets the system prompt."""
    llm = scripted(MODES[mode], MODES[mode], pydantic_program_mode=mode, system_prompt="寺に詳しい案内人です。")
    options = {"attributes": {"humor": 2}, "temperature": 0.5, "tool_choice": "required"}
    llm.structured_predict(Temple, PROMPT, llm_kwargs=dict(options), place="京都")
    await llm.astructured_predict(Temple, PROMPT, llm_kwargs=dict(options), place="京都")
    assert all("寺に詳しい案内人です。" in prompt for prompt in llm.engine.prompts)
    assert all("humor: 2" in prompt for prompt in llm.engine.prompts)
    assert [one.temperature for one in llm.engine.samplings] == [0.5, 0.5]


def test_the_prompt_is_left_as_it_was() -> None:
    prompt = ChatPromptTemplate([ChatMessage(role="user", content="{place}の寺は?")])
    scripted(JSON).structured_predict(Temple, prompt, place="京都")
    assert prompt.output_parser is None
    assert prompt.message_templates[0].content == "{place}の寺は?"


@pytest.mark.parametrize(
    ("reply", "where"),
    [
        (JSON[:30], "the whole of it"),
        ("秘密の返事です。", "the whole of it"),
        ('{"name": "秘密", "year": -1}', "year"),
        ('{"name": "秘密"}', "year"),
        ("", "the whole of it"),
    ],
)
async def test_a_reply_that_does_not_fit_is_a_typed_error(reply: str, where: str) -> None:
    llm = scripted(reply, reply, reply, reply)
    with pytest.raises(ReplyFormatError, match=f"the reply is no Temple: {where}") as caught:
        llm.structured_predict(Temple, PROMPT, place="京都")
    assert isinstance(caught.value, ValueError)
    assert caught.value.partial_text == reply
    assert "秘密" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(ReplyFormatError):
        await llm.astructured_predict(Temple, PROMPT, place="京都")
    with pytest.raises(ReplyFormatError, match=f"the reply is no Temple: {where}"):
        list(llm.stream_structured_predict(Temple, PROMPT, place="京都"))
    with pytest.raises(ReplyFormatError, match=f"the reply is no Temple: {where}"):
        [one async for one in await llm.astream_structured_predict(Temple, PROMPT, place="京都")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ('{"name": "秘密", "year": -1}', "the reply is no Temple: year: greater_than_equal"),
        ('{"name": "秘密", "year": 1, "tags": [7]}', "the reply is no Temple: tags.0: string_type"),
    ],
)
async def test_arguments_that_do_not_fit_are_a_typed_error(arguments: str, says: str) -> None:
    reply = f'[{{"name": "Temple", "arguments": {arguments}}}]'
    llm = scripted(reply, reply, reply, pydantic_program_mode=PydanticProgramMode.FUNCTION)
    for caught in (
        lambda: llm.structured_predict(Temple, PROMPT, place="京都"),
        lambda: list(llm.stream_structured_predict(Temple, PROMPT, place="京都")),
    ):
        with pytest.raises(ReplyFormatError, match=says) as failed:
            caught()
        assert "秘密" not in str(failed.value)
    with pytest.raises(ReplyFormatError, match=says):
        await llm.astructured_predict(Temple, PROMPT, place="京都")


async def test_keys_that_the_reply_made_up_are_not_in_the_error() -> None:
    class Closed(BaseModel, extra="forbid"):
        counts: dict[str, int] = {}

    for reply, where in (('{"秘密": 1}', r"\*"), ('{"counts": {"秘密": "x"}}', r"counts\.\*")):
        with pytest.raises(ReplyFormatError, match=f"the reply is no Closed: {where}: ") as caught:
            scripted(reply).structured_predict(Closed, PROMPT, place="京都")
        assert "秘密" not in str(caught.value)


async def test_a_stream_that_is_cut_gives_what_there_was_and_ends_with_an_error(mode: PydanticProgramMode) -> None:
    function = mode in (PydanticProgramMode.FUNCTION, PydanticProgramMode.OPENAI)
    text = FORCED if function else JSON
    llm = scripted(text, text, pydantic_program_mode=mode, max_tokens=text.index("京都") + 1)
    seen: list[Any] = []
    with pytest.raises(ReplyFormatError, match="max_tokens") as caught:
        seen.extend(llm.stream_structured_predict(Temple, PROMPT, place="京都"))
    assert (seen[-1].name, seen[-1].year) == ("清水寺", 778)
    assert "清水" not in str(caught.value)
    aseen: list[Any] = []
    with pytest.raises(ReplyFormatError, match="max_tokens"):
        async for one in await llm.astream_structured_predict(Temple, PROMPT, place="京都"):
            aseen.append(one)
    assert [one.model_dump() for one in aseen] == [one.model_dump() for one in seen]


async def test_a_stream_of_fenced_json_ends_with_the_object() -> None:
    reply = MODES[PydanticProgramMode.LLM]
    llm = scripted(reply, reply, pydantic_program_mode=PydanticProgramMode.LLM)
    assert list(llm.stream_structured_predict(Temple, PROMPT, place="京都"))[-1] == KIYOMIZU
    found = [one async for one in await llm.astream_structured_predict(Temple, PROMPT, place="京都")]
    assert found[-1] == KIYOMIZU


async def test_a_stream_that_is_closed_stops_the_engine(mode: PydanticProgramMode) -> None:
    closed = []

    class Engine(ScriptedEngine):
        def stream(self, prompt: Any, sampling: Any) -> Any:
            try:
                yield from super().stream(prompt, sampling)
            finally:
                closed.append(len(closed))

    streamed = JSON if mode is PydanticProgramMode.LLM else MODES[mode]
    llm = KarakuriLLM(engine=Engine([streamed, streamed]), pydantic_program_mode=mode)
    items = llm.stream_structured_predict(Temple, PROMPT, place="京都")
    next(items)
    items.close()
    assert closed == [0]


async def test_spans_and_events(events: Any, spans: Any) -> None:
    llm = scripted(JSON, JSON)
    llm.structured_predict(Temple, PROMPT, place="京都")
    await llm.astructured_predict(Temple, PROMPT, place="京都")
    names = events.names()
    assert names.count("LLMStructuredPredictStartEvent") == names.count("LLMStructuredPredictEndEvent") == 2
    assert names.count("LLMChatStartEvent") == names.count("LLMChatEndEvent") == 2
    found = [span.id_.split("-")[0] for span in spans.completed_spans]
    assert [name for name in found if name.startswith("KarakuriLLM")] == [
        "KarakuriLLM.chat",
        "KarakuriLLM.structured_predict",
        "KarakuriLLM.achat",
        "KarakuriLLM.astructured_predict",
    ]


def test_a_template_of_ones_own_takes_the_text_program() -> None:
    llm = scripted(JSON, messages_to_prompt=lambda messages: f"<s>{messages[-1].content}")
    assert llm.structured_predict(Temple, PROMPT, place="京都") == KIYOMIZU
    assert "JSON schema" in llm.engine.prompts[0]


# -- response_format, without LlamaIndex's programs --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat", "stream_chat", "complete", "stream_complete"])
def test_response_format_in_every_call(name: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "Temple", "schema": Temple.model_json_schema()}}
    llm = scripted(JSON)
    result = getattr(llm, name)([ChatMessage(content="寺は?")] if "chat" in name else "寺は?", response_format=form)
    last = list(result)[-1] if name.startswith("stream") else result
    assert (last.message.content if "chat" in name else last.text) == JSON
    assert last.raw["finish_reason"] == "stop"
    assert "{name: string" in llm.engine.prompts[0]


# -- programs and predict_and_call -------------------------------------------------------------------------------------


async def test_a_function_program_gives_one_object_or_several() -> None:
    two = f'[{{"name": "Temple", "arguments": {JSON}}}, {{"name": "Temple", "arguments": {{"name": "金閣寺", "year": 1397}}}}]'
    llm = scripted(two, two, two)
    program = FunctionCallingProgram.from_defaults(Temple, prompt=PROMPT, llm=llm)
    assert program(place="京都") == KIYOMIZU
    several = FunctionCallingProgram.from_defaults(Temple, prompt=PROMPT, llm=llm, allow_parallel_tool_calls=True)
    assert [one.name for one in several(place="京都")] == ["清水寺", "金閣寺"]
    assert [one.name for one in await several.acall(place="京都")] == ["清水寺", "金閣寺"]


def test_a_function_program_says_why_there_is_no_object() -> None:
    bad = '[{"name": "Temple", "arguments": {"name": "清水寺"}}]'
    with pytest.raises(ValueError, match="could not be parsed into Temple"):
        FunctionCallingProgram.from_defaults(Temple, prompt=PROMPT, llm=scripted(bad))(place="京都")
    with pytest.raises(ReplyFormatError, match="expected a tool call"):
        FunctionCallingProgram.from_defaults(Temple, prompt=PROMPT, llm=scripted("寺です。"))(place="京都")


def test_a_text_program_works() -> None:
    program = LLMTextCompletionProgram.from_defaults(output_cls=Temple, prompt=PROMPT, llm=scripted(f"はい。{JSON}"))
    assert program(place="京都") == KIYOMIZU


def add(a: int, b: int) -> int:
    """足し算"""
    return a + b


def fail(a: int) -> int:
    """失敗する"""
    raise RuntimeError(f"{a} は使えません")


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(fail)]
ADD = '[TOOL_CALLS]\n[{"name": "add", "arguments": {"a": 2, "b": 3}}]'


async def test_predict_and_call() -> None:
    llm = scripted(ADD, ADD)
    for response in (llm.predict_and_call(TOOLS, "2+3は?"), await llm.apredict_and_call(TOOLS, "2+3は?")):
        assert response.response == "5"
        assert [(source.tool_name, source.raw_output) for source in response.sources] == [("add", 5)]


async def test_predict_and_call_of_several() -> None:
    two = ADD[:-1] + ', {"name": "fail", "arguments": {"a": 1}}]'
    llm = scripted(two, two, two)
    response = llm.predict_and_call(TOOLS, "?", allow_parallel_tool_calls=True)
    assert response.response == "5\n\nEncountered error: 1 は使えません"
    assert [source.is_error for source in response.sources] == [False, True]
    assert (await llm.apredict_and_call(TOOLS, "?", allow_parallel_tool_calls=True)).response == response.response
    assert llm.predict_and_call(TOOLS, "?").response == "5"  # one call, though the reply makes two


async def test_predict_and_call_without_a_call() -> None:
    llm = scripted("晴れです。", "晴れです。", "晴れです。")
    assert llm.predict_and_call(TOOLS, "?", error_on_no_tool_call=False).response == "晴れです。"
    with pytest.raises(ValueError, match="expected a tool call"):
        llm.predict_and_call(TOOLS, "?")
    with pytest.raises(ValueError, match="expected a tool call"):
        await llm.apredict_and_call(TOOLS, "?")


def test_predict_and_call_with_a_failing_tool() -> None:
    call = '[TOOL_CALLS]\n[{"name": "fail", "arguments": {"a": 1}}]'
    llm = scripted(call, call)
    assert "使えません" in llm.predict_and_call(TOOLS, "?").response
    with pytest.raises(ValueError, match="使えません"):
        llm.predict_and_call(TOOLS, "?", error_on_tool_error=True)


def test_predict_and_call_by_react_where_there_are_no_tools() -> None:
    """llama-index-core's tests/llms/test_predict_and_call.py: a model without function calling takes the ReAct agent."""
    from llama_index.core.agent.react.formatter import ReActChatFormatter
    from llama_index.core.agent.react.output_parser import ReActOutputParser

    llm = scripted(
        'Thought: t\nAction: add\nAction Input: {"a": 2, "b": 3}\n',
        messages_to_prompt=lambda messages: "<s>" + "\n".join(message.content for message in messages),
    )
    response = llm.predict_and_call(
        TOOLS, "2+3は?", react_chat_formatter=ReActChatFormatter(), output_parser=ReActOutputParser()
    )
    assert response.response == "5"
    assert len(response.sources) == 1


# -- query engines -----------------------------------------------------------------------------------------------------


def index() -> Any:
    from llama_index.core import Document, SummaryIndex

    return SummaryIndex.from_documents([Document(text="清水寺は778年に建てられた。")])


async def test_a_query_engine_answers_with_an_object() -> None:
    llm = scripted(JSON, JSON)
    engine = index().as_query_engine(llm=llm, output_cls=Temple)
    assert engine.query("寺は?").response == KIYOMIZU
    assert (await engine.aquery("寺は?")).response == KIYOMIZU
    assert "清水寺は778年" in llm.engine.prompts[0]


async def test_structured_answer_filtering() -> None:
    """In llama-index-core's Refine: an answer that the query does not satisfy is dropped."""
    answer = '[{"name": "StructuredRefineResponse", "arguments": {"answer": "778年", "query_satisfied": true}}]'
    none = answer.replace("true", "false")
    llm = scripted(answer, none, answer)
    synthesizer = get_response_synthesizer(llm=llm, structured_answer_filtering=True, response_mode="refine")
    engine = RetrieverQueryEngine(index().as_retriever(), synthesizer)
    assert str(engine.query("いつ?")) == "778年"
    assert str(engine.query("いつ?")) == "Empty Response"
    assert str(await engine.aquery("いつ?")) == "778年"
