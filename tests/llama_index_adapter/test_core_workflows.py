"""What else llama-index-core's own tests of agents, programs and predict_and_call say, with a KarakuriLLM as the model.

Each test names the test that it checks, under llama-index-core/tests/. The rest is in test_agents.py and
test_structured.py. Of those tests these have no model in them, or one that this class is not: agent/workflow/test_events,
test_function_call (but test_call_tool_with_exception), test_safe_model_dump, test_wait_for_event_replay; test_thinking_delta
and test_function_agent_reasoning_only, since this model has no reasoning apart from its reply; output_parsers/ and
program/test_utils, test_streaming_utils and llms/test_structured_llm, which are about functions. What
llama-index-core 0.14.25 itself does not do yet is not here: test_structured_output_tool, test_tool_streaming,
test_json_schema_program, test_run_args_apply_on_reused_context, test_react_agent_answer_without_thought,
test_early_stopping_method_generate_includes_tool_results, and a context stored as JSON (test_agent_with_hitl; with
pickle it is in test_agents.py).
"""

from typing import Any

import pytest
from llama_index.core.agent.workflow import (
    AgentInput,
    AgentStream,
    AgentStreamStructuredOutput,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
)
from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.workflow.errors import WorkflowRuntimeError
from pydantic import BaseModel, Field
from workflows import Context

from karakuri_integrations.errors import ReplyFormatError
from karakuri_integrations.llama_index import KarakuriLLM

from .test_agents import HANDOFF, Answer, add, call, model, run

ADD = 'Thought: t\nAction: add\nAction Input: {"a": 5, "b": 3}\n'


@pytest.fixture(params=[True, False], ids=["streaming", "whole"])
def streaming(request: pytest.FixtureRequest) -> bool:
    return request.param


# -- predict_and_call and programs -------------------------------------------------------------------------------------


class Person(BaseModel):
    name: str = Field(description="Person name")


async def test_a_call_without_its_arguments() -> None:
    """llms/test_function_calling.py: an error is the response, or is raised where that is asked for."""
    tool, reply = get_function_tool(Person), call("Person")
    llm = model(*[reply] * 4)
    assert "name" in llm.predict_and_call([tool], "?").response
    assert "name" in (await llm.apredict_and_call([tool], "?")).response
    with pytest.raises(ValueError, match="name"):
        llm.predict_and_call([tool], "?", error_on_tool_error=True)
    with pytest.raises(ValueError, match="name"):
        await llm.apredict_and_call([tool], "?", error_on_tool_error=True)


class Names(BaseModel):
    """Names."""

    names: list[str] = Field(default_factory=list)


class Text(BaseModel):
    """A text."""

    value: str = ""


class Count(BaseModel):
    """A count."""

    count: int = 0


@pytest.mark.parametrize(
    ("cls", "arguments"), [(Names, {"names": ["a", "b"]}), (Text, {"value": "a"}), (Count, {"count": 42})]
)
async def test_models_of_one_field_with_a_default(cls: type[BaseModel], arguments: dict[str, Any]) -> None:
    """program/test_function_program.py, test_single_field_*_with_default."""
    llm = model(*[call(cls.__name__, **arguments)] * 2)
    program = FunctionCallingProgram.from_defaults(cls, prompt_template_str="{topic}", llm=llm)
    assert program(topic="songs") == await program.acall(topic="songs") == cls(**arguments)


async def test_a_programs_tool_choice_goes_along() -> None:
    """program/test_function_program.py, test_function_program_forwards_tool_choice, and its async twin."""
    llm = model(*['[{"name": "Text", "arguments": {"value": "a"}}]'] * 2)
    program = FunctionCallingProgram.from_defaults(
        Text, prompt_template_str="{topic}", llm=llm, tool_choice={"type": "any"}
    )
    assert program(topic="songs") == await program.acall(topic="songs") == Text(value="a")
    assert all(prompt.endswith("[TOOL_CALLS]\n") for prompt in llm.engine.prompts)


async def test_a_program_without_a_call_or_with_a_bad_one_is_an_error() -> None:
    """program/test_function_program.py, test_async_function_program_raises_on_no_tool_calls and on_tool_error."""
    program = FunctionCallingProgram.from_defaults(
        Person, prompt_template_str="{topic}", llm=model("はい。", call("Person"))
    )
    with pytest.raises(ReplyFormatError, match="expected a tool call"):
        await program.acall(topic="songs")
    with pytest.raises(ValueError, match="Person"):
        await program.acall(topic="songs")


def test_a_text_program_of_messages() -> None:
    """program/test_llm_program.py, test_llm_program and test_llm_program_with_messages_and_chat."""
    reply = '{"value": "chat"}'
    templates = (ChatPromptTemplate([ChatMessage(content="Test")]), PromptTemplate("Test"))
    for prompt in templates:
        llm, parser = model(reply), PydanticOutputParser(Text)
        program = LLMTextCompletionProgram.from_defaults(output_parser=parser, prompt=prompt, llm=llm)
        assert program() == Text(value="chat")
        assert "Test" in llm.engine.prompts[0]


# -- one agent ---------------------------------------------------------------------------------------------------------


async def test_an_agent_stops_early_where_a_run_asks_for_it(streaming: bool) -> None:
    """agent/workflow/test_single_agent_workflow.py, test_early_stopping_method_override_in_run and _force."""
    for generate in (True, False):
        llm = model(*[call("add", a=1, b=1)] * 3, "まとめです。")
        agent = FunctionAgent(tools=[add], llm=llm, early_stopping_method="force", streaming=streaming)
        if generate:
            output, _ = await run(agent, "?", max_iterations=3, early_stopping_method="generate")
            assert output.response.content == "まとめです。"
        else:
            with pytest.raises(WorkflowRuntimeError, match="early_stopping_method='generate'"):
                await run(agent, "?", max_iterations=3)


async def test_the_default_limit_is_twenty() -> None:
    """agent/workflow/test_single_agent_workflow.py, test_max_iterations."""
    llm = model(*[call("add", a=1, b=1)] * 21)
    with pytest.raises(WorkflowRuntimeError, match="Either something went wrong"):
        await FunctionAgent(tools=[add], llm=llm).run(user_msg="test")
    assert len(llm.engine.prompts) == 20


async def test_a_message_of_several_blocks_and_a_context() -> None:
    """agent/workflow/test_single_agent_workflow.py, test_function_agent_with_context_and_chat_message."""
    llm = model("2です。")
    agent = FunctionAgent(llm=llm, tools=[add], system_prompt="計算の助手です。")
    blocks = [TextBlock(text="計算を手伝ってください。"), TextBlock(text="1足す1です。")]
    output = await agent.run(user_msg=ChatMessage(role="user", blocks=blocks), ctx=Context(agent))
    assert str(output) == "2です。"
    assert all(block.text in llm.engine.prompts[0] for block in blocks)
    assert "計算の助手です。" in llm.engine.prompts[0]


@pytest.mark.parametrize("whole", [True, False])
async def test_a_run_keeps_the_name_that_it_is_given(whole: bool) -> None:
    """agent/workflow/test_single_agent_workflow.py and test_multi_agent_workflow.py, test_run_id_*."""
    agent: Any = FunctionAgent(name="a", description="d", llm=model("はい。", "はい。"))
    agent = AgentWorkflow(agents=[agent]) if whole else agent
    named, unnamed = agent.run(user_msg="q", run_id="run-1"), agent.run(user_msg="q")
    assert named.run_id == "run-1"
    assert isinstance(unnamed.run_id, str) and unnamed.run_id
    assert {str(await named), str(await unnamed)} == {"はい。"}


async def test_an_answer_has_no_reasoning_and_an_empty_one_stays_empty(streaming: bool) -> None:
    """agent/workflow/test_thinking_delta.py, test_agents_handle_missing_thinking_delta, and
    test_function_agent_reasoning_only.py, test_truly_empty_response_stays_empty: what the record of the dials travels
    in is not taken for an answer."""
    for reply in ("はい。", ""):
        agent = FunctionAgent(llm=model(reply, attributes={"humor": 2}), streaming=streaming)
        output, events = await run(agent, "?")
        assert (output.response.content or "") == reply
        assert all(event.thinking_delta is None for event in events if isinstance(event, AgentStream))


# -- ReActAgent --------------------------------------------------------------------------------------------------------


async def test_a_react_agent(streaming: bool) -> None:
    """agent/workflow/test_single_agent_workflow.py, test_single_react_agent: also with its backslash."""
    llm = model(ADD, r"Thought: The result is 8\Answer: The sum is 8")
    output, _ = await run(ReActAgent(tools=[add], llm=llm, system_prompt="S", streaming=streaming), "5+3?")
    assert "8" in str(output.response)
    assert "Observation: 8" in llm.engine.prompts[1]


# -- AgentWorkflow -----------------------------------------------------------------------------------------------------


def agent_of(llm: KarakuriLLM, name: str = "a", **options: Any) -> FunctionAgent:
    return FunctionAgent(name=name, description="d", llm=llm, **options)


def test_a_workflow_needs_one_root() -> None:
    """agent/workflow/test_multi_agent_workflow.py, test_basic_workflow and test_workflow_requires_root_agent."""
    agents = [agent_of(model(), "a"), ReActAgent(name="b", description="d", llm=model())]
    workflow = AgentWorkflow(agents=agents, root_agent="b")
    assert (workflow.root_agent, set(workflow.agents)) == ("b", {"a", "b"})
    with pytest.raises(ValueError, match="Exactly one root agent"):
        AgentWorkflow(agents=agents)


async def test_an_agent_that_was_handed_over_to_and_says_nothing_is_asked_again() -> None:
    """agent/workflow/test_multi_agent_workflow.py, test_workflow_execution_empty, with an answer in the end."""
    react = ReActAgent(name="calculator", description="d", tools=[add], llm=model("", "Thought: t\nAnswer: 8"))
    workflow = AgentWorkflow(agents=[agent_of(model(HANDOFF), "retriever"), react], root_agent="retriever")
    output, events = await run(workflow, "5+3?")
    asked = [event.input[-1].content or "" for event in events if isinstance(event, AgentInput)]
    assert any("FAILURE: Your previous response was empty" in text for text in asked)
    assert output.response.content == "8"


async def test_a_workflows_react_agent_asks_again() -> None:
    """agent/workflow/test_multi_agent_workflow.py, test_retry."""
    llm = model('Thought: t\nAction: add\n{"a": 5 "b": 3}\n', ADD, r"Thought: The result is 8\Answer: The sum is 8")
    agent = ReActAgent(name="agent", description="test", tools=[add], llm=llm)
    output, events = await run(AgentWorkflow(agents=[agent]), "5+3?")
    asked = [event.input[-1].content or "" for event in events if isinstance(event, AgentInput)]
    assert any("Error while parsing the output" in text for text in asked)
    assert "8" in str(output.response)


@pytest.mark.parametrize("where", ["workflow", "run"])
async def test_a_workflow_stops_early(where: str) -> None:
    """agent/workflow/test_multi_agent_workflow.py, test_early_stopping_method_generate_multi_agent and _override."""
    llm = model(*[call("add", a=1, b=1)] * 3, "まとめです。")
    asked = {"early_stopping_method": "generate"}
    workflow = AgentWorkflow(agents=[agent_of(llm, tools=[add])], **asked if where == "workflow" else {})
    output, _ = await run(workflow, "?", max_iterations=3, **asked if where == "run" else {})
    assert output.response.content == "まとめです。"


async def test_a_workflows_limit() -> None:
    """agent/workflow/test_multi_agent_workflow.py, test_max_iterations."""
    workflow = AgentWorkflow(agents=[agent_of(model(*[call("add", a=1, b=1)] * 21), tools=[add])])
    with pytest.raises(WorkflowRuntimeError, match="Either something went wrong"):
        await workflow.run(user_msg="test")


def made(messages: list[ChatMessage]) -> dict[str, Any]:
    return {"hello": "bonjour", "world": len(messages)}


async def amade(messages: list[ChatMessage]) -> dict[str, Any]:
    return made(messages)


async def test_a_workflows_answer_as_an_object() -> None:
    """agent/workflow/test_agent_with_structured_output.py, test_structured_output_agentworkflow."""
    llm = model("できました。", '{"hello": "やあ", "world": 1}')
    workflow = AgentWorkflow(agents=[agent_of(llm)], root_agent="a", output_cls=Answer)
    output, events = await run(workflow, "test")
    assert any(isinstance(event, AgentStreamStructuredOutput) for event in events)
    assert output.response.content == "できました。"
    assert output.get_pydantic_model(Answer) == Answer(hello="やあ", world=1)


@pytest.mark.parametrize("function", [made, amade])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_function_makes_the_object(function: Any, whole: bool) -> None:
    """agent/workflow/test_agent_with_structured_output.py, test_(a)structured_fn_agent and _output_fn_agentworkflow."""
    options = {"structured_output_fn": function}
    agent: Any = agent_of(model("できました。"), **{} if whole else options)
    agent = AgentWorkflow(agents=[agent], **options) if whole else agent
    output, events = await run(agent, "test")
    assert any(isinstance(event, AgentStreamStructuredOutput) for event in events)
    assert output.get_pydantic_model(Answer) == Answer(hello="bonjour", world=2)
