"""LangChain's agents and LangGraph on scripted replies: strategies, several steps, middleware, token streams."""

import json
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from packaging.version import Version
from pydantic import BaseModel

from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import BusyError, ContextOverflowError
from karakuri_integrations.langchain import ChatKarakuri

if Version(version("langchain-core")) < Version("1.7"):
    pytest.skip("langchain's agents need langchain-core 1.7", allow_module_level=True)
pytest.importorskip("langchain.agents")

from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    SummarizationMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy

OPENER = "[TOOL_CALLS]\n"


def call(name: str, **arguments: Any) -> str:
    return f"{OPENER}{json.dumps([{'name': name, 'arguments': arguments}], ensure_ascii=False)}"


@tool
def price(item: str) -> str:
    """The price of an item in yen."""
    return {"りんご": "120", "みかん": "80"}[item]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def broken() -> str:
    """Always fails."""
    raise RuntimeError("no connection")


class Total(BaseModel):
    """The total."""

    yen: int


STEPS = [call("price", item="りんご"), call("price", item="みかん"), call("add", a=120, b=80), "200円です。"]
QUESTION = {"messages": [{"role": "user", "content": "りんごとみかんでいくら?"}]}


def scripted(*replies: str | BaseException, **fields: Any) -> ChatKarakuri:
    return ChatKarakuri(engine=ScriptedEngine(list(replies)), **fields)


def checked_steps(llm: ChatKarakuri, messages: list[Any]) -> None:
    kinds = [type(message).__name__ for message in messages]
    assert kinds == ["HumanMessage", *["AIMessage", "ToolMessage"] * 3, "AIMessage"]
    assert [message.text for message in messages if isinstance(message, ToolMessage)] == ["120", "80", "200"]
    assert messages[-1].text == "200円です。"
    prompts = llm.engine.prompts
    assert len(prompts) == 4
    for earlier, later in pairwise(prompts):
        assert later.startswith(earlier)  # each step only adds to the prompt, so its beginning stays cached
    assert '[TOOL_RESULTS]\n[{"name": "add", "result": 200}]' in prompts[3]


async def test_several_steps_all_ways() -> None:
    for way in ("invoke", "ainvoke", "stream", "astream"):
        llm = scripted(*STEPS)
        agent = create_agent(llm, [price, add])
        if way == "invoke":
            messages = agent.invoke(QUESTION)["messages"]
        elif way == "ainvoke":
            messages = (await agent.ainvoke(QUESTION))["messages"]
        elif way == "stream":
            messages = list(agent.stream(QUESTION, stream_mode="values"))[-1]["messages"]
        else:
            messages = [state async for state in agent.astream(QUESTION, stream_mode="values")][-1]["messages"]
        checked_steps(llm, messages)


def test_several_calls_at_once() -> None:
    both = OPENER + json.dumps([{"name": "price", "arguments": {"item": one}} for one in ("りんご", "みかん")])
    llm = scripted(both, "200円です。")
    messages = create_agent(llm, [price]).invoke(QUESTION)["messages"]
    assert sorted(message.text for message in messages if isinstance(message, ToolMessage)) == ["120", "80"]
    assert '[{"name": "price", "result": 120}, {"name": "price", "result": 80}]' in llm.engine.prompts[1]


async def test_tokens_stream_through_langgraph() -> None:
    def seen(pairs: list[Any]) -> None:
        chunks = [chunk for chunk, where in pairs if where["langgraph_node"] == "model"]
        assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
        assert "".join(chunk.text for chunk in chunks) == "200円です。"
        assert len([chunk for chunk in chunks if chunk.text]) == len("200円です。")
        fragments = [one for chunk in chunks for one in chunk.tool_call_chunks]
        assert "".join(one["args"] for one in fragments) == '{"item": "りんご"}'
        assert [one["name"] for one in fragments if one["name"]] == ["price"]

    replies = (STEPS[0], STEPS[3])
    seen(list(create_agent(scripted(*replies), [price]).stream(QUESTION, stream_mode="messages")))
    agent = create_agent(scripted(*replies), [price])
    seen([pair async for pair in agent.astream(QUESTION, stream_mode="messages")])


def test_a_call_that_was_cut_is_not_run_in_a_stream() -> None:
    ran: list[str] = []

    @tool
    def pay(yen: int) -> str:
        """Pay."""
        ran.append(str(yen))
        return "paid"

    for mode in ("messages", "values"):
        llm = scripted(call("pay", yen=1000000), max_tokens=len(call("pay", yen=100)) - 3)
        list(create_agent(llm, [pay]).stream(QUESTION, stream_mode=mode))
    assert ran == []


# --- structured output ---


async def test_the_profile_has_agents_choose_the_providers_strategy() -> None:
    for way in ("invoke", "ainvoke"):
        llm = scripted(STEPS[0], '{"yen": 120}')
        agent = create_agent(llm, [price], response_format=Total)
        found = agent.invoke(QUESTION) if way == "invoke" else await agent.ainvoke(QUESTION)
        assert found["structured_response"] == Total(yen=120)
        assert not llm.engine.prompts[0].endswith(OPENER)
        assert "{yen: integer}" in llm.engine.prompts[0]
        assert [type(message).__name__ for message in found["messages"]] == [
            "HumanMessage", "AIMessage", "ToolMessage", "AIMessage"
        ]  # fmt: skip


def test_strategies_that_were_named() -> None:
    pytest.importorskip("llguidance")  # strict checks the script by it
    llm = scripted('{"yen": 120}')
    agent = create_agent(llm, [], response_format=ProviderStrategy(Total, strict=True))
    assert agent.invoke(QUESTION)["structured_response"] == Total(yen=120)
    llm = scripted(
        '[{"name": "price", "arguments": {"item": "りんご"}}]', '[{"name": "Total", "arguments": {"yen": 120}}]'
    )
    agent = create_agent(llm, [price], response_format=ToolStrategy(Total))
    assert agent.invoke(QUESTION)["structured_response"] == Total(yen=120)
    assert all(prompt.endswith(OPENER) for prompt in llm.engine.prompts)


def test_a_value_that_does_not_fit_is_asked_for_again() -> None:
    llm = scripted('[{"name": "Total", "arguments": {"yen": "many"}}]', '[{"name": "Total", "arguments": {"yen": 1}}]')
    found = create_agent(llm, [], response_format=ToolStrategy(Total)).invoke(QUESTION)
    assert found["structured_response"] == Total(yen=1)
    assert "[TOOL_RESULTS]" in llm.engine.prompts[1]


# --- middleware ---


async def test_retries_ask_again_where_that_can_help() -> None:
    again = ModelRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False, on_failure="error")
    llm = scripted(BusyError("full"), *STEPS)
    messages = create_agent(llm, [price, add], middleware=[again]).invoke(QUESTION)["messages"]
    assert messages[-1].text == "200円です。"
    llm = scripted(BusyError("full"), BusyError("full"), *STEPS)
    found = await create_agent(llm, [price, add], middleware=[again]).ainvoke(QUESTION)
    assert found["messages"][-1].text == "200円です。"
    llm = scripted(ContextOverflowError(5000, None, 4096), *STEPS)
    with pytest.raises(ContextOverflowError):
        create_agent(llm, [price, add], middleware=[again]).invoke(QUESTION)
    assert len(llm.engine.prompts) == 1


async def test_another_model_takes_over() -> None:
    for way in ("invoke", "ainvoke"):
        other = scripted(*STEPS)
        agent = create_agent(
            scripted(*[BusyError("full")] * 4), [price, add], middleware=[ModelFallbackMiddleware(other)]
        )
        found = agent.invoke(QUESTION) if way == "invoke" else await agent.ainvoke(QUESTION)
        checked_steps(other, found["messages"])


def test_a_long_conversation_is_summarised() -> None:
    summaries = scripted("SUMMARY")
    middle = SummarizationMiddleware(
        summaries,
        trigger=("tokens", 700),
        keep=("messages", 2),
        token_counter=lambda messages: summaries.get_num_tokens_from_messages(list(messages)),
    )
    llm = scripted("So.")
    talk = [one for turn in range(4) for one in (HumanMessage(f"question {turn} " * 5), AIMessage("answer " * 9))]
    found = create_agent(llm, [price], middleware=[middle]).invoke({"messages": [*talk, HumanMessage("And now?")]})
    assert found["messages"][-1].text == "So."
    assert "SUMMARY" in llm.engine.prompts[0]
    assert "question 0" not in llm.engine.prompts[0]
    assert "question 0" in summaries.engine.prompts[0]


def test_fractions_of_the_window_count_reported_tokens() -> None:
    """LangChain takes a reply's own counts where its `model_provider` is the model's, and the window of the profile."""
    summaries = scripted("SUMMARY")
    middle = SummarizationMiddleware(summaries, trigger=("fraction", 0.3), keep=("messages", 1))
    llm = scripted("x" * 1200, "So.")
    agent = create_agent(llm, [], middleware=[middle])
    first = agent.invoke({"messages": [HumanMessage("q")]})
    agent.invoke({"messages": [*first["messages"], HumanMessage("And now?")]})
    assert "SUMMARY" in llm.engine.prompts[1]


def test_tools_that_fail_answer_with_an_error() -> None:
    llm = scripted(call("broken"), "It is down.")
    agent = create_agent(llm, [broken], middleware=[ToolRetryMiddleware(max_retries=0, on_failure="continue")])
    messages = agent.invoke(QUESTION)["messages"]
    assert messages[2].status == "error"
    assert '[{"name": "broken", "error": "' in llm.engine.prompts[1]


def test_arguments_that_do_not_fit_the_tool_come_back_as_its_error() -> None:
    llm = scripted(call("add", a="x"), call("add", a=1, b=2), "3")
    messages = create_agent(llm, [add]).invoke(QUESTION)["messages"]
    assert [getattr(message, "status", None) for message in messages if isinstance(message, ToolMessage)] == [
        "error", "success"
    ]  # fmt: skip
    assert '{"name": "add", "error": "' in llm.engine.prompts[1]


def test_call_limits_hold() -> None:
    llm = scripted(*STEPS)
    limit = ModelCallLimitMiddleware(run_limit=2)
    create_agent(llm, [price, add], middleware=[limit]).invoke(QUESTION)
    assert len(llm.engine.prompts) == 2


# --- dials ---


def test_dials_through_an_agent() -> None:
    llm = scripted(*STEPS, attributes={"verbosity": 1})
    asked = HumanMessage("いくら?", additional_kwargs={"attributes": {"humor": 3}})
    messages = create_agent(llm, [price, add]).invoke({"messages": [asked]})["messages"]
    for message in messages:
        if isinstance(message, AIMessage):
            assert message.response_metadata["attributes"]["verbosity"] == 1
            assert message.response_metadata["attributes"]["humor"] == 3
