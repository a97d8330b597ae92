"""Tools and structured output on the model that ships with the package: the grammar holds whatever it says."""

import json
from enum import Enum
from typing import Annotated, Any

import jsonschema
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field

from karakuri_integrations.errors import ReplyFormatError
from karakuri_integrations.llama_index import KarakuriLLM

pytest.importorskip("torch", reason="the embedded model needs the extra `local`")
pytest.importorskip("llguidance", reason="the grammars need the extra `local`")


class Unit(Enum):
    CELSIUS = "摂氏"
    FAHRENHEIT = "華氏"


def get_weather(city: str, unit: Unit = Unit.CELSIUS) -> str:
    """天気を調べる"""
    return f"{city}は晴れ"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    large: bool
    unit: Unit


class Topic(BaseModel):
    """What a text is about."""

    tags: set[Annotated[str, Field(max_length=8)]] = Field(min_length=2, max_length=4)
    units: frozenset[Unit] = Field(min_length=2)


class Long(BaseModel):
    text: str = Field(min_length=20)


TOOL = FunctionTool.from_defaults(get_weather)
PROMPT = PromptTemplate("{topic}について教えてください。")


@pytest.fixture(scope="module")
def llm() -> KarakuriLLM:
    return KarakuriLLM(max_tokens=80)


async def items_of(llm: KarakuriLLM, form: str) -> list[ChatResponse]:
    result = getattr(llm, form)([TOOL], user_msg="東京の天気は?", tool_required=True, seed=1)
    if form.startswith("a"):
        result = await result
    if form.startswith("stream"):
        return list(result)
    return [item async for item in result] if form.startswith("astream") else [result]


async def test_a_forced_call_is_valid_and_the_same_in_all_ways(llm: KarakuriLLM) -> None:
    found = []
    for form in ("chat_with_tools", "achat_with_tools", "stream_chat_with_tools", "astream_chat_with_tools"):
        last = (await items_of(llm, form))[-1]
        (call,) = llm.get_tool_calls_from_response(last)
        jsonschema.validate(call.tool_kwargs, TOOL.metadata.get_parameters_dict())
        counts = {name: count for name, count in last.raw["usage"].items() if name.endswith("_tokens")}
        found.append((call.tool_name, call.tool_kwargs, counts, last.raw["finish_reason"]))
    assert all(one == found[0] for one in found)
    assert found[0][0] == "get_weather"


async def test_structured_output_fits_its_class(llm: KarakuriLLM) -> None:
    one = llm.structured_predict(City, PROMPT, topic="東京")
    assert one == await llm.astructured_predict(City, PROMPT, topic="東京")
    assert one == list(llm.stream_structured_predict(City, PROMPT, topic="東京"))[-1]
    assert one == llm.as_structured_llm(City).complete("東京について教えてください。").raw


@pytest.mark.parametrize("mode", [PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION])
def test_sets_are_held(mode: PydanticProgramMode) -> None:
    llm = KarakuriLLM(max_tokens=200, pydantic_program_mode=mode)
    topic = llm.structured_predict(Topic, PROMPT, topic="東京")
    assert 2 <= len(topic.tags) <= 4
    assert topic.units == frozenset(Unit)


async def test_structured_output_that_was_led_to_its_end_is_an_error(llm: KarakuriLLM) -> None:
    """The grammar closes the JSON in time, with the smallest values that fit; nobody chose them."""
    how = {"max_tokens": 24}
    with pytest.raises(ReplyFormatError, match="raise max_tokens") as caught:
        llm.structured_predict(Long, PROMPT, llm_kwargs=how, topic="東京")
    assert isinstance(json.loads(caught.value.partial_text)["text"], str)
    with pytest.raises(ReplyFormatError, match="raise max_tokens"):
        await llm.astructured_predict(Long, PROMPT, llm_kwargs=how, topic="東京")
    with pytest.raises(ReplyFormatError, match="raise max_tokens"):
        list(llm.stream_structured_predict(Long, PROMPT, llm_kwargs=how, topic="東京"))


@pytest.mark.parametrize("limit", [24, 40])
def test_a_budget_ends_the_call_or_says_so(llm: KarakuriLLM, limit: int) -> None:
    last = llm.chat_with_tools([TOOL], "東京の天気は?", tool_required=True, max_tokens=limit)
    kinds = last.message.additional_kwargs
    if "invalid_tool_calls" in kinds:
        assert last.raw["finish_reason"] == "length"
    else:
        (call,) = kinds["tool_calls"]
        jsonschema.validate(json.loads(call["function"]["arguments"]), TOOL.metadata.get_parameters_dict())


async def test_an_agents_first_call_may_be_forced(llm: KarakuriLLM) -> None:
    agent = FunctionAgent(
        tools=[get_weather], llm=llm, initial_tool_choice="get_weather", allow_parallel_tool_calls=False
    )
    handler: Any = agent.run(user_msg="東京の天気は?", max_iterations=3, early_stopping_method="generate")
    output = await handler
    assert output.tool_calls[0].tool_name == "get_weather"
    assert output.tool_calls[0].tool_output.raw_output.endswith("は晴れ")
