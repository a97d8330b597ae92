"""Tools and JSON replies on real servers of the embedded model: held on llama-server, read on `transformers serve`.

Little here needs a model that has learnt tools: where a call must begin by itself, the opener is taken to be words
that the model is known to write.
"""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from llama_index.core.tools import FunctionTool
from real_servers import DEMO, MODEL, TEMPLATE, RealServer
from test_real_servers import QUESTIONS, SHORT, busy, chat, llm, local_chat, wait_until_idle

from karakuri_integrations import errors
from karakuri_integrations.conversation import Prompt, Reply, Sampling
from karakuri_integrations.engines import LocalEngine, RemoteEngine
from karakuri_integrations.generation import astream, fold, stream
from karakuri_integrations.provider import EngineFields, Provider

pytestmark = pytest.mark.slow
jsonschema = pytest.importorskip("jsonschema")

PLACE = {
    "type": "object",
    "properties": {"緯度": {"type": "integer"}, "経度": {"type": "integer"}},
    "required": ["緯度", "経度"],
    "additionalProperties": False,
}
REPORT = {
    "type": "object",
    "properties": {
        "都市": {"enum": ["東京", "大阪", "札幌"]},
        "場所": {"$ref": "#/$defs/place"},
        "天気": {"type": "array", "items": {"enum": ["晴れ", "雨", "雪"]}, "minItems": 1, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["都市", "場所", "天気", "ok"],
    "additionalProperties": False,
    "$defs": {"place": PLACE},
}
TOOL = {"type": "function", "function": {"name": "天気を報告", "description": "天気", "parameters": REPORT}}
EMPTY = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "report", "schema": REPORT}}


def fits(arguments: Any) -> bool:
    jsonschema.validate(arguments, REPORT)
    return True


def engine(server: RealServer, **more: Any) -> RemoteEngine:
    return RemoteEngine(server.url, MODEL, server=server.name, template=TEMPLATE, **more)


def prompt_of(**options: Any) -> Prompt:
    provider = Provider(EngineFields(model=MODEL, template=TEMPLATE, base_url="http://127.0.0.1:9/v1"), SHORT)
    return provider.render([provider.user(QUESTIONS[1], {}, 0)], {"tools": [TOOL, EMPTY]} | options)


# --- held -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_forced_call_fits_its_schema(llama_cpp: RealServer, seed: int) -> None:
    model = chat(llama_cpp, temperature=1.0, seed=seed, max_tokens=600)
    reply = model.bind_tools([TOOL, EMPTY], tool_choice="天気を報告", parallel_tool_calls=False).invoke(QUESTIONS[0])
    (call,) = reply.tool_calls
    assert call["name"] == "天気を報告" and fits(call["args"])
    assert reply.response_metadata["finish_reason"] == "tool_calls"
    assert reply.content == ""


async def test_a_forced_call_all_ways(llama_cpp: RealServer) -> None:
    bound = chat(llama_cpp, max_tokens=600).bind_tools([TOOL, EMPTY], tool_choice="any")
    first = bound.invoke(QUESTIONS[0])
    assert first.tool_calls and not first.invalid_tool_calls
    for call in first.tool_calls:
        assert call["name"] == "now" or fits(call["args"])
    plain = [(call["name"], call["args"]) for call in first.tool_calls]
    asked = await bound.ainvoke(QUESTIONS[0])
    assert [(call["name"], call["args"]) for call in asked.tool_calls] == plain
    streamed = None
    for chunk in bound.stream(QUESTIONS[0]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == plain
    assert streamed.usage_metadata["total_tokens"] == first.usage_metadata["total_tokens"]


def test_llama_indexes_class_too(llama_cpp: RealServer) -> None:
    def double(number: int) -> int:
        """Doubles a number."""
        return 2 * number

    model, tool = llm(llama_cpp, max_tokens=600), FunctionTool.from_defaults(double)
    response = model.chat_with_tools([tool], user_msg="Double 7.", tool_required=True)
    (call, *_) = model.get_tool_calls_from_response(response)
    assert call.tool_name == "double" and isinstance(call.tool_kwargs["number"], int)


def test_the_chat_route_holds_what_is_json_from_its_start(llama_cpp: RealServer) -> None:
    route = replace(llama_cpp, name="chat")
    model = chat(route, max_tokens=600)
    calls = model.bind_tools([TOOL], tool_choice="any").invoke(QUESTIONS[0]).tool_calls
    assert calls and all(fits(call["args"]) for call in calls)
    assert fits(json.loads(whole(engine(route), prompt_of(tools=None, response_format=FORMAT)).text))


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(llama_cpp: RealServer, method: str) -> None:
    schema = {"title": "report", "description": "A report.", **REPORT}
    assert fits(chat(llama_cpp, max_tokens=600).with_structured_output(schema, method=method).invoke(QUESTIONS[0]))


def test_results_go_back(llama_cpp: RealServer) -> None:
    model = chat(llama_cpp, max_tokens=600)
    call = model.bind_tools([TOOL], tool_choice="any").invoke(QUESTIONS[0])
    results = [ToolMessage("晴れ", tool_call_id=one["id"]) for one in call.tool_calls]
    reply = model.bind_tools([TOOL]).invoke([HumanMessage(QUESTIONS[0]), call, *results])
    assert reply.text or reply.tool_calls or reply.invalid_tool_calls


# --- the same as here -----------------------------------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather at a location.",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}


@pytest.fixture(scope="module")
def here() -> Iterator[LocalEngine]:
    """The same weights in this process, as they are."""
    engine = LocalEngine(quantization="none", device="cpu")
    yield engine
    engine.close()


@pytest.mark.parametrize("question", ["What is the weather in San Francisco, CA?", "札幌の天気は?", "Hello!"])
@pytest.mark.parametrize("choice", ["auto", "any"])
@pytest.mark.parametrize("tokenizer", [None, str(DEMO)], ids=["text", "ids"])
def test_calls_and_counts_are_the_local_engines(
    llama_cpp: RealServer, here: LocalEngine, question: str, choice: str, tokenizer: str | None
) -> None:
    ours = local_chat(here).bind_tools([WEATHER], tool_choice=choice).invoke(question)
    reply = chat(llama_cpp, tokenizer=tokenizer).bind_tools([WEATHER], tool_choice=choice).invoke(question)
    assert reply.text == ours.text
    assert [call["args"] for call in reply.tool_calls] == [call["args"] for call in ours.tool_calls]
    for count in ("input_tokens", "output_tokens"):
        assert reply.usage_metadata[count] == ours.usage_metadata[count]


# --- a call that begins by itself -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(llama_cpp: RealServer) -> str:
    """What the model answers, greedily, where tools are described to it."""
    return whole(engine(llama_cpp), replace(prompt_of(), grammar=None, calls=None)).text


def whole(one: RemoteEngine, prompt: Prompt, **sampling: Any) -> Reply:
    return fold(stream(one, prompt, Sampling(**{"max_tokens": 700} | sampling)))


def awhole(one: RemoteEngine, prompt: Prompt, **sampling: Any) -> Reply:
    async def collect() -> Reply:
        asked = Sampling(**{"max_tokens": 700} | sampling)
        return fold([delta async for delta in astream(one, prompt, asked)])

    return asyncio.run(collect())


def opening(words: str, **options: Any) -> Prompt:
    """The prompt whose calls begin with these words."""
    prompt = prompt_of(**options)
    assert prompt.grammar is not None and prompt.calls is not None
    return replace(prompt, grammar=replace(prompt.grammar, opener=words), calls=replace(prompt.calls, opener=words))


@pytest.mark.parametrize("tokenizer", [None, str(DEMO)], ids=["text", "ids"])
@pytest.mark.parametrize("place", [0, 3, 10])
def test_text_then_a_call_that_fits(llama_cpp: RealServer, written: str, tokenizer: str | None, place: int) -> None:
    words, one = written[place : place + 6], engine(llama_cpp, tokenizer=tokenizer)
    prompt = opening(words)
    for ask in (whole, awhole):
        reply = ask(one, prompt)
        assert reply.text == written[: written.index(words)].strip()
        assert reply.finish_reason == "tool_calls" and reply.calls
        for call in reply.calls:
            assert call.error is None
            assert call.name == "now" or fits(json.loads(call.arguments))
        assert reply.usage is not None
        assert reply.usage.input_tokens == engine(llama_cpp, tokenizer=str(DEMO)).count_tokens(prompt)
        assert 20 < reply.usage.output_tokens <= 700


@pytest.mark.parametrize("most", [2, 6, 20])
def test_max_tokens_is_of_both_requests(llama_cpp: RealServer, written: str, most: int) -> None:
    reply = whole(engine(llama_cpp), opening(written[4:10]), max_tokens=most)
    assert reply.usage is not None
    assert reply.usage.output_tokens == most
    assert reply.finish_reason == "length"
    assert all(call.error for call in reply.calls[-1:])


def test_a_reply_without_a_call_is_the_same_as_without_tools(llama_cpp: RealServer, written: str) -> None:
    reply = whole(engine(llama_cpp), opening("\x00never\x00"))
    assert (reply.text, reply.calls, reply.finish_reason) == (written, (), "stop")


def test_json_or_calls(llama_cpp: RealServer, written: str) -> None:
    one = engine(llama_cpp)
    assert fits(json.loads(whole(one, prompt_of(response_format=FORMAT)).text))
    prompt = prompt_of(response_format=FORMAT)
    begins = whole(one, replace(prompt, grammar=None, calls=None)).text[:2]
    prompt = opening(begins, response_format=FORMAT)
    reply = whole(one, prompt)
    assert reply.text == "" and reply.calls and reply.calls[0].error is None


def test_closing_in_the_second_request_frees_the_slot(llama_cpp: RealServer, written: str) -> None:
    pieces = engine(llama_cpp).stream(opening(written[:4]), Sampling(max_tokens=700))
    text = ""
    while "[" not in text:
        text += next(pieces).text
    pieces.close()
    assert wait_until_idle(llama_cpp, 5.0) < 2.0
    assert busy(llama_cpp) == 0


def test_a_schema_that_llama_server_refuses(llama_cpp: RealServer) -> None:
    broken = {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}, "required": ["a"]}
    with pytest.raises(errors.UnsupportedSchemaError, match="HTTP 400") as caught:
        chat(llama_cpp).with_structured_output({"title": "x", **broken}, method="json_schema").invoke("hi")
    assert caught.value.keyword == "$ref"


# --- read -----------------------------------------------------------------------------------------------------------


def test_transformers_serve_is_read_and_says_so(transformers_server: RealServer) -> None:
    one = engine(transformers_server)
    assert one.grammars is False
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reply = whole(one, prompt_of(tool_choice="required"), max_tokens=30)
        whole(one, prompt_of(), max_tokens=30)
    assert sum("cannot hold replies" in str(each.message) for each in told) == 1
    assert reply.finish_reason in ("tool_calls", "length")
    assert reply.calls  # what the prompt's opener begins is a call, be it one that does not parse


def test_strict_is_refused_before_it_is_asked(transformers_server: RealServer) -> None:
    began = time.monotonic()
    with pytest.raises(errors.UnsupportedError, match="transformers cannot hold replies"):
        chat(transformers_server).bind_tools([TOOL], tool_choice="any", strict=True).invoke("hi")
    assert time.monotonic() - began < 5
