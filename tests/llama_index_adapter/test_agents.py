"""LlamaIndex's agents and routers with a KarakuriLLM in place of llama-index-core's mocks, on scripted replies.

Each test names the file of llama-index-core whose behaviour it checks, under tests/agent/workflow/ where not said.
"""

import json
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.agent.workflow import (
    AgentInput,
    AgentOutput,
    AgentStream,
    AgentStreamStructuredOutput,
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import StructuredLLMRerank
from llama_index.core.query_engine import RouterQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import (
    LLMMultiSelector,
    LLMSingleSelector,
    PydanticMultiSelector,
    PydanticSingleSelector,
)
from llama_index.core.selectors.utils import get_selector_from_llm
from llama_index.core.tools import FunctionTool, QueryEngineTool, ToolMetadata
from llama_index.core.workflow.errors import WorkflowRuntimeError
from pydantic import BaseModel
from workflows import Context
from workflows.context import JsonSerializer, PickleSerializer
from workflows.events import HumanResponseEvent, InputRequiredEvent

from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.llama_index import KarakuriLLM


def call(name: str, **arguments: Any) -> str:
    return calls((name, arguments))


def calls(*made: tuple[str, dict[str, Any]]) -> str:
    listed = ", ".join(json.dumps({"name": n, "arguments": a}, ensure_ascii=False) for n, a in made)
    return f"[TOOL_CALLS]\n[{listed}]"


def model(*replies: Any, **fields: Any) -> KarakuriLLM:
    return KarakuriLLM(engine=ScriptedEngine(list(replies), context_window=20000), **fields)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def subtract(a: int, b: int) -> int:
    """Subtract two numbers."""
    return a - b


def look_up(topic: str) -> str:
    """事実を調べる"""
    return {"清水寺": "778年に建てられた"}.get(topic, "分からない")


async def run(agent: Any, text: str, **options: Any) -> tuple[AgentOutput, list[Any]]:
    handler = agent.run(user_msg=text, **options)
    events = [event async for event in handler.stream_events()]
    return await handler, events


@pytest.fixture(params=[True, False], ids=["streaming", "whole"])
def streaming(request: pytest.FixtureRequest) -> bool:
    return request.param


# -- FunctionAgent -----------------------------------------------------------------------------------------------------


async def test_a_function_agent_answers(streaming: bool) -> None:
    """Mirrors test_single_agent_workflow.py, test_single_function_agent."""
    agent = FunctionAgent(llm=model("こんにちは。"), system_prompt="S", streaming=streaming)
    assert str((await run(agent, "test"))[0].response.content) == "こんにちは。"


async def test_several_steps_look_up_calculate_answer(streaming: bool) -> None:
    """A task of several steps: each prompt is the one before and its reply, and what came back."""
    llm = model(
        "調べます。\n" + call("look_up", topic="清水寺"),
        call("subtract", a=2026, b=778),
        "清水寺は1248年前に建てられました。",
    )
    agent = FunctionAgent(tools=[look_up, add, subtract], llm=llm, system_prompt="案内人です。", streaming=streaming)
    memory = ChatMemoryBuffer.from_defaults(token_limit=10000)
    output, events = await run(agent, "清水寺は何年前に建てられましたか。", memory=memory)
    assert output.response.content == "清水寺は1248年前に建てられました。"
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert [(one.tool_name, one.tool_output.raw_output) for one in results] == [
        ("look_up", "778年に建てられた"),
        ("subtract", 1248),
    ]
    assert [one.tool_name for one in output.tool_calls] == ["look_up", "subtract"]
    first, second, third = llm.engine.prompts
    assert second.startswith(first + " 調べます。\n" + call("look_up", topic="清水寺"))
    assert third.startswith(second + " " + call("subtract", a=2026, b=778))
    assert '[{"name": "subtract", "result": 1248}]' in third
    roles = [message.role.value for message in memory.get_all()]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    if streaming:
        assert "".join(event.delta for event in events if isinstance(event, AgentStream)) == (
            "調べます。清水寺は1248年前に建てられました。"
        )


async def test_a_second_question_sees_the_first_ones_calls() -> None:
    llm = model(call("add", a=1, b=2), "3です。", "3と言いました。")
    agent = FunctionAgent(tools=[add], llm=llm)
    memory = ChatMemoryBuffer.from_defaults(token_limit=10000)
    await run(agent, "1+2は?", memory=memory)
    await run(agent, "何と言いましたか。", memory=memory)
    assert llm.engine.prompts[2].startswith(llm.engine.prompts[1] + " 3です。 </s>")


async def test_parallel_calls_run_and_their_results_come_back_in_order(streaming: bool) -> None:
    llm = model(calls(("add", {"a": 1, "b": 2}), ("subtract", {"a": 5, "b": 1})), "3と4です。")
    output, _ = await run(FunctionAgent(tools=[add, subtract], llm=llm, streaming=streaming), "?")
    assert '[TOOL_RESULTS]\n[{"name": "add", "result": 3}, {"name": "subtract", "result": 4}]' in llm.engine.prompts[1]
    assert len(output.tool_calls) == 2


async def test_a_tool_without_arguments(streaming: bool) -> None:
    """Mirrors test_single_agent_workflow.py, test_function_agent_streams_empty_tool_arguments."""
    ran = []

    def empty_tool() -> str:
        """No arguments."""
        ran.append(1)
        return "result"

    agent = FunctionAgent(tools=[empty_tool], llm=model(call("empty_tool"), "finished"), streaming=streaming)
    assert ((await run(agent, "run it"))[0].response.content, ran) == ("finished", [1])


async def test_the_first_tool_may_be_forced() -> None:
    llm = model('[{"name": "add", "arguments": {"a": 1, "b": 1}}]', "2です。")
    await run(FunctionAgent(tools=[add, subtract], llm=llm, initial_tool_choice="add"), "?")
    assert llm.engine.prompts[0].endswith("[TOOL_CALLS]\n")
    assert not llm.engine.prompts[1].endswith("[TOOL_CALLS]\n")
    assert llm.engine.prompts[1].startswith(llm.engine.prompts[0] + '[{"name": "add"')


async def test_a_failing_tool_and_an_unknown_one_tell_the_model() -> None:
    """Mirrors test_function_call.py, test_call_tool_with_exception."""

    def broken(x: int) -> str:
        """It breaks."""
        raise ValueError(f"{x} は使えません")

    llm = model(call("broken", x=1), call("gone"), "すみません。")
    output, events = await run(FunctionAgent(tools=[broken], llm=llm), "?")
    assert "1 は使えません" in llm.engine.prompts[1]
    assert "Tool gone not found" in llm.engine.prompts[2]
    assert [event.tool_output.is_error for event in events if isinstance(event, ToolCallResult)] == [True, True]
    assert output.response.content == "すみません。"


async def test_a_cut_call_ends_the_run_and_runs_nothing(streaming: bool) -> None:
    text = call("add", a=1, b=234)
    agent = FunctionAgent(tools=[add], llm=model(text, max_tokens=len(text) - 4), streaming=streaming)
    output, events = await run(agent, "?")
    assert not [event for event in events if isinstance(event, ToolCallResult)]
    assert output.raw["finish_reason"] == "length"
    assert "ended before" in output.response.additional_kwargs["invalid_tool_calls"][0]["error"]


async def test_max_iterations(streaming: bool) -> None:
    """Mirrors test_single_agent_workflow.py, test_max_iterations and test_early_stopping_method_force."""
    agent = FunctionAgent(tools=[add], llm=model(*[call("add", a=1, b=1)] * 6), streaming=streaming)
    with pytest.raises(WorkflowRuntimeError, match="Max iterations of 4"):
        await run(agent, "?", max_iterations=4)


async def test_early_stopping_answers_from_the_results(streaming: bool) -> None:
    """Mirrors test_single_agent_workflow.py, test_early_stopping_method_generate: a trailing system message."""
    llm = model(*[call("add", a=1, b=1)] * 2, "まとめです。")
    agent = FunctionAgent(tools=[add], llm=llm, early_stopping_method="generate", streaming=streaming)
    output, _ = await run(agent, "?", max_iterations=2)
    assert output.response.content == "まとめです。"
    assert "maximum number of iterations" in llm.engine.prompts[2]


async def test_return_direct(streaming: bool) -> None:
    """Mirrors test_return_direct_e2e.py: an error goes back to the model, a success is the answer."""

    def once(previously_failed: bool = False) -> str:
        """It works the second time."""
        if not previously_failed:
            raise RuntimeError("もう一度 previously_failed=True で")
        return "成功"

    tool = FunctionTool.from_defaults(once, return_direct=True)
    llm = model(call("once"), call("once", previously_failed=True), "続きです。")
    memory = ChatMemoryBuffer.from_defaults(token_limit=10000)
    agent = FunctionAgent(tools=[tool], llm=llm, streaming=streaming)
    output, events = await run(agent, "?", memory=memory)
    assert [e.tool_output.is_error for e in events if isinstance(e, ToolCallResult)] == [True, False]
    assert (output.response.content, len(llm.engine.prompts)) == ("成功", 2)
    first, second = llm.engine.prompts
    assert second.startswith(f"{first} {call('once')} </s>")
    assert second.count("もう一度") == 1  # FunctionAgent repeats the error as the assistant's own words
    await run(agent, "それで?", memory=memory)
    assert llm.engine.prompts[2].startswith(second + " " + call("once", previously_failed=True))
    assert "成功 </s>" in llm.engine.prompts[2]


class Answer(BaseModel):
    hello: str
    world: int


async def test_an_agents_answer_as_an_object(streaming: bool) -> None:
    """Mirrors test_agent_with_structured_output.py, test_output_cls_agent and test_from_tools_or_functions."""
    llm = model("できました。", '{"hello": "やあ", "world": 1}')
    agent = FunctionAgent(llm=llm, system_prompt="S", output_cls=Answer, streaming=streaming)
    output, events = await run(agent, "test {curly}")
    assert output.get_pydantic_model(Answer) == Answer(hello="やあ", world=1)
    assert any(isinstance(event, AgentStreamStructuredOutput) for event in events)
    assert "test {curly}" in llm.engine.prompts[1]
    workflow = AgentWorkflow.from_tools_or_functions(
        [add], llm=model("はい。", '{"hello": "a", "world": 2}'), output_cls=Answer
    )
    assert isinstance(next(iter(workflow.agents.values())), FunctionAgent)
    assert (await run(workflow, "?"))[0].get_pydantic_model(Answer) == Answer(hello="a", world=2)


async def test_an_output_function(streaming: bool) -> None:
    """Mirrors test_agent_with_structured_output.py, test_structured_fn_agent."""
    agent = FunctionAgent(
        llm=model("できました。"), structured_output_fn=lambda messages: {"hello": messages[-1].content, "world": 3},
        streaming=streaming,
    )  # fmt: skip
    output, _ = await run(agent, "?")
    assert output.get_pydantic_model(Answer) == Answer(hello="できました。", world=3)


# -- AgentWorkflow -----------------------------------------------------------------------------------------------------


def pair(retriever: KarakuriLLM, calculator: KarakuriLLM, **options: Any) -> AgentWorkflow:
    agents = [
        FunctionAgent(name="retriever", description="調べる", llm=retriever, tools=[look_up], **options),
        FunctionAgent(name="calculator", description="計算する", llm=calculator, tools=[add, subtract], **options),
    ]
    return AgentWorkflow(agents=agents, root_agent="retriever")


HANDOFF = call("handoff", to_agent="calculator", reason="計算だから")


async def test_a_handoff_and_what_the_next_agent_sees(streaming: bool) -> None:
    """Mirrors test_multi_agent_workflow.py, test_workflow_execution."""
    first, second = model("引き継ぎます。" + HANDOFF), model(call("add", a=5, b=3), "8です。")
    output, events = await run(pair(first, second, streaming=streaming), "5+3は?")
    assert output.response.content == "8です。"
    assert output.current_agent_name == "calculator"
    assert {"retriever", "calculator"} <= {e.current_agent_name for e in events if isinstance(e, AgentOutput)}
    assert "handoff(to_agent: string, reason: string)" in first.engine.prompts[0]
    assert HANDOFF in second.engine.prompts[0]
    assert (
        '[TOOL_RESULTS]\n[{"name": "handoff", "result": "Agent calculator is now handling' in second.engine.prompts[0]
    )


async def test_a_handoff_to_nobody(streaming: bool) -> None:
    """Mirrors test_multi_agent_workflow.py, test_invalid_handoff."""
    first = model(call("handoff", to_agent="nobody", reason="?"), "困りました。")
    output, events = await run(pair(first, model(), streaming=streaming), "?")
    assert "Agent nobody not found" in str(events)
    assert output.response.content == "困りました。"


async def test_an_empty_reply_ends_the_run() -> None:
    """Mirrors test_multi_agent_workflow.py, test_workflow_handoff_empty."""
    assert (await run(pair(model(""), model()), "?"))[0].response.content == ""


async def test_a_handoff_to_a_react_agent() -> None:
    """Mirrors test_multi_agent_workflow.py: a FunctionAgent hands over to a ReActAgent."""
    steps = ('Thought: t\nAction: add\nAction Input: {"a": 5, "b": 3}\n', "Thought: t\nAnswer: The sum is 8")
    react = ReActAgent(name="calculator", description="d", system_prompt="S", tools=[add], llm=model(*steps))
    first = FunctionAgent(name="retriever", description="d", llm=model(HANDOFF))
    output, _ = await run(AgentWorkflow(agents=[first, react], root_agent="retriever"), "5+3?")
    assert output.response.content == "The sum is 8"


async def test_state_goes_through_tools() -> None:
    """Mirrors test_multi_agent_workflow.py, test_workflow_with_state: the context is no argument of a tool."""

    async def count(word: str, ctx: Context) -> str:
        """Count."""
        state = await ctx.store.get("state")
        state["counter"] += 1
        await ctx.store.set("state", state)
        return f"{word} {state['counter']}"

    llm = model(call("count", word="一"), "済み。")
    workflow = AgentWorkflow(
        agents=[FunctionAgent(name="a", description="d", tools=[count], llm=llm)],
        initial_state={"counter": 0},
        state_prompt="状態: {state}。発言: {msg}",
    )
    handler = workflow.run(user_msg="test")
    async for event in handler.stream_events():
        if isinstance(event, AgentInput):
            for message in event.input:
                assert message.role != MessageRole.USER or message.content.count("状態:") == 1
    await handler
    assert (await handler.ctx.store.get("state"))["counter"] == 1
    assert "\ncount(word: string)" in llm.engine.prompts[0]


async def test_a_run_can_wait_for_a_human_and_go_on_elsewhere() -> None:
    """As a workflow that waits for a human is stored: replies with calls go through the context."""

    async def ask(ctx: Context) -> str:
        """Ask a human."""
        event = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="名前は?"))
        return f"名前は{event.response}"

    llm = model(call("add", a=1, b=1), call("ask"), "太郎さんですね。")
    workflow = AgentWorkflow(agents=[FunctionAgent(name="a", description="d", tools=[add, ask], llm=llm)])
    handler = workflow.run(user_msg="test")
    kept = None
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            kept = handler.ctx.to_dict(serializer=PickleSerializer())
            await handler.cancel_run()
            break
    context = Context.from_dict(workflow, kept, serializer=PickleSerializer())
    handler = workflow.run(user_msg="test", ctx=context)
    handler.ctx.send_event(HumanResponseEvent(response="太郎"))
    assert (await handler).response.content == "太郎さんですね。"
    assert call("add", a=1, b=1) in llm.engine.prompts[-1]
    assert "名前は太郎" in llm.engine.prompts[-1]


def test_replies_with_calls_go_through_workflows_json() -> None:
    llm = model("はい。" + call("add", a=1, b=1), attributes={"humor": 2})
    message = llm.chat_with_tools([FunctionTool.from_defaults(add)], "q").message
    serializer = JsonSerializer()
    copied = serializer.deserialize(serializer.serialize(message))
    conversation = [ChatMessage(content="q"), message, ChatMessage(content="r")]
    assert copied == message
    assert llm.render_prompt([conversation[0], copied, conversation[2]]) == llm.render_prompt(conversation)


# -- ReActAgent and CodeActAgent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", 'Thought: t\nAction: add\n{"a": 5 "b": 3}\n'], ids=["empty", "unreadable"])
async def test_a_react_agent_asks_again(streaming: bool, bad: str) -> None:
    """Mirrors test_single_agent_workflow.py, test_empty_calculator_agent and test_single_react_agent_retry."""
    steps = (bad, 'Thought: t\nAction: add\nAction Input: {"a": 7, "b": 23}\n', "Thought: t\nAnswer: The sum is 30")
    llm = model(*steps)
    agent = ReActAgent(system_prompt="S", tools=[add], llm=llm, streaming=streaming)
    output, events = await run(agent, "7+23?", memory=ChatMemoryBuffer.from_defaults(token_limit=10000))
    asked = [e.input[-1].content for e in events if isinstance(e, AgentInput)]
    assert any(("FAILURE" if not bad else "Error while parsing") in (text or "") for text in asked)
    assert output.response.content == "The sum is 30"


async def test_a_code_act_agent(streaming: bool) -> None:
    """Mirrors test_code_act_agent.py: code is run, its result is a user message, the answer ends the run."""
    ran = []

    def execute(code: str) -> str:
        ran.append(code)
        return "4"

    llm = model("計算します。\n<execute>\nprint(2 + 2)\n</execute>", "4です。")
    agent = CodeActAgent(code_execute_fn=execute, llm=llm, tools=[add], streaming=streaming)
    output, _ = await run(agent, "2+2は?")
    assert (ran, output.response.content) == (["print(2 + 2)"], "4です。")
    assert "Result of executing the code given:\n\n4" in llm.engine.prompts[1]
    assert "def add(a: int, b: int) -> int:" in llm.engine.prompts[0]


async def test_a_code_act_agent_hands_over(streaming: bool) -> None:
    code = CodeActAgent(
        name="coder", description="d", code_execute_fn=lambda code: "", llm=model(HANDOFF), streaming=streaming
    )
    second = model("8です。")
    calculator = FunctionAgent(name="calculator", description="d", llm=second, streaming=streaming)
    output, _ = await run(AgentWorkflow(agents=[code, calculator], root_agent="coder"), "5+3は?")
    assert output.response.content == "8です。"
    assert "Agent calculator is now handling" in second.engine.prompts[0]


# -- routers, sub-questions, rerankers ---------------------------------------------------------------------------------

CHOICES = [
    ToolMetadata("天気の資料", name="weather"),
    ToolMetadata("地図の資料", name="map"),
    ToolMetadata("歴史", name="past"),
]
ONE = '[{"name": "SingleSelection", "arguments": {"index": 2, "reason": "地図だから"}}]'
MANY = '[{"name": "MultiSelection", "arguments": {"selections": [{"index": 1, "reason": "a"}, {"index": 3, "reason": "b"}]}}]'


async def test_pydantic_selectors_are_taken_and_work() -> None:
    """Selectors of llama-index-core, with calls in place of a patched program."""
    single, several = get_selector_from_llm(model(ONE, ONE)), get_selector_from_llm(model(MANY), is_multi=True)
    assert isinstance(single, PydanticSingleSelector)
    assert isinstance(several, PydanticMultiSelector)
    for result in (single.select(CHOICES, "道は?"), await single.aselect(CHOICES, "道は?")):
        assert (result.ind, result.reason) == (1, "地図だから")
    assert several.select(CHOICES, "?").inds == [0, 2]


async def test_text_selectors_work() -> None:
    single = LLMSingleSelector.from_defaults(model('[{"choice": 2, "reason": "地図"}]', '{"choice": 1, "reason": "x"}'))
    assert single.select(CHOICES, "道は?").ind == 1
    assert (await single.aselect(CHOICES, "天気は?")).ind == 0
    several = LLMMultiSelector.from_defaults(model('[{"choice": 1, "reason": "a"}, {"choice": 3, "reason": "b"}]'))
    assert several.select(CHOICES, "?").inds == [0, 2]


def test_a_router_asks_the_engine_that_was_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = model(ONE, "京都駅の北です。")
    tools = [
        QueryEngineTool.from_defaults(
            SummaryIndex.from_documents([Document(text=text)]).as_query_engine(llm=llm), name=name, description=name
        )
        for name, text in (("weather", "晴れ"), ("map", "京都駅の北"))
    ]
    router = RouterQueryEngine.from_defaults(tools, llm=llm)
    assert str(router.query("どこですか。")) == "京都駅の北です。"
    assert "京都駅の北" in llm.engine.prompts[1]


async def test_sub_questions() -> None:
    reply = '```json\n{"items": [{"sub_question": "天気は?", "tool_name": "weather"}]}\n```'
    generator = LLMQuestionGenerator.from_defaults(model(reply, reply))
    for found in (generator.generate(CHOICES, QueryBundle("?")), await generator.agenerate(CHOICES, QueryBundle("?"))):
        assert [(one.sub_question, one.tool_name) for one in found] == [("天気は?", "weather")]


def test_a_structured_reranker() -> None:
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("一", "二", "三")]
    reply = '{"documents": [{"document_number": 3, "relevance": 9}, {"document_number": 1, "relevance": 4}]}'
    found = StructuredLLMRerank(llm=model(reply), top_n=2).postprocess_nodes(nodes, query_str="?")
    assert [(one.node.get_content(), one.score) for one in found] == [("三", 9), ("一", 4)]


# -- two agents at once ------------------------------------------------------------------------------------------------


async def test_agents_at_once_share_one_model() -> None:
    import asyncio

    def reply(prompt: str) -> str:
        asked = prompt.split("[INST] ")[-1]
        return f"{json.loads(asked.split('[TOOL_RESULTS]')[1].split(' [ATTR]')[0])[0]['result']}です。" if "[TOOL_RESULTS]" in asked else call(
            "add", a=int(asked.split("数は")[1].split(" ")[0]), b=1
        )  # fmt: skip

    llm = KarakuriLLM(engine=ScriptedEngine(reply, context_window=20000))
    agent = FunctionAgent(tools=[add], llm=llm)
    outputs = await asyncio.gather(*(run(agent, f"数は{n}") for n in range(8)))
    assert [output.response.content for output, _ in outputs] == [f"{n + 1}です。" for n in range(8)]


def test_a_message_of_an_agent_can_be_made_by_hand() -> None:
    """What FunctionAgent itself writes into its scratchpad for a tool that returns directly."""
    message = ChatMessage(role="assistant", content="3", additional_kwargs={"tool_call_id": "x"})
    assert " 3 </s>" in model().render_prompt([ChatMessage(content="q"), message, ChatMessage(content="r")])
