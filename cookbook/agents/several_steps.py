"""One task of several steps, look up, calculate, answer, through both frameworks' agents on the same model.

    python cookbook/agents/several_steps.py
    python cookbook/agents/several_steps.py --question "What is the price of Tarosu times 3?"

LangChain's `create_agent` (needs `pip install langchain`) and LlamaIndex's `FunctionAgent`, each whole, async and
streamed: the calls of every step, what the tools returned, the answer, and the tokens. For the real model pass
`model="karakuri-ai/karakuri-lm-70b-chat-v0.1"` (or `base_url=`) in the two places marked below.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

QUESTION = "What is the price of Kavari times 7?"


def find_price(item: str) -> int:
    """Get the price of an item."""
    return {"Kavari": 42, "Tarosu": 150}[item]


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def with_langchain(question: str, show: Callable[[str], None]) -> list[str]:
    """The answers of create_agent: invoke, ainvoke, stream."""
    from langchain.agents import create_agent

    from karakuri_integrations.langchain import ChatKarakuri

    llm = ChatKarakuri(attributes={"verbosity": 0})  # here: model= or base_url=
    agent: Any = create_agent(llm, [find_price, multiply])
    asked = {"messages": [("user", question)]}
    answers = []
    for name, run in (
        ("invoke", lambda: agent.invoke(asked)["messages"]),
        ("ainvoke", lambda: asyncio.run(agent.ainvoke(asked))["messages"]),
    ):
        show(f"**create_agent, {name}**\n")
        messages = run()
        show_messages(messages, show)
        answers.append(messages[-1].text)
    show("**create_agent, stream of tokens**\n")
    answers.append(show_stream(agent.stream(asked, stream_mode="messages"), show))
    return answers


def show_messages(messages: Iterable[Any], show: Callable[[str], None]) -> None:
    for message in messages:
        usage = getattr(message, "usage_metadata", None)
        tokens = f" ({usage['input_tokens']} + {usage['output_tokens']} tokens)" if usage else ""
        for call in getattr(message, "tool_calls", ()):
            show(f"- call {call['name']}({json.dumps(call['args'], ensure_ascii=False)}){tokens}")
        if message.type == "tool":
            show(f"- result {message.text}")
        elif message.type == "ai" and message.text:
            show(f"- answer {message.text}{tokens}")
    show("")


def show_stream(chunks: Iterable[tuple[Any, dict[str, Any]]], show: Callable[[str], None]) -> str:
    """The last answer, put together from its pieces."""
    pieces: list[str] = []
    calls = 0
    for chunk, _ in chunks:
        if chunk.type == "tool":
            pieces = []
        elif chunk.text:
            pieces.append(chunk.text)
        calls += sum(1 for one in getattr(chunk, "tool_call_chunks", ()) if one["name"])
    show(f"- {calls} calls and {len(pieces)} pieces of text: {'|'.join(pieces)}\n")
    return "".join(pieces).strip()


def with_llama_index(question: str, show: Callable[[str], None]) -> list[str]:
    """The answers of FunctionAgent: streamed events, and without streaming."""
    from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ToolCallResult

    from karakuri_integrations.llama_index import KarakuriLLM

    async def run(*, streaming: bool) -> str:
        llm = KarakuriLLM(attributes={"verbosity": 0})  # here: model= or base_url=
        agent = FunctionAgent(tools=[find_price, multiply], llm=llm, streaming=streaming)
        handler = agent.run(question)
        deltas = 0
        async for event in handler.stream_events():
            if isinstance(event, AgentStream):
                deltas += bool(event.delta)
            elif isinstance(event, ToolCallResult):
                arguments = json.dumps(event.tool_kwargs, ensure_ascii=False)
                show(f"- call {event.tool_name}({arguments})\n- result {event.tool_output.content}")
            elif isinstance(event, AgentOutput):
                usage = (event.raw or {}).get("usage") or {}
                said = "calls" if event.tool_calls else f"answer {event.response.content}"
                show(f"- {said} ({usage.get('prompt_tokens')} + {usage.get('completion_tokens')} tokens)")
        show(f"- {deltas} pieces of text\n" if streaming else "")
        return str(await handler).strip()

    answers = []
    for streaming in (False, True):
        show(f"**FunctionAgent, {'streamed' if streaming else 'async'}**\n")
        answers.append(asyncio.run(run(streaming=streaming)))
    return answers


def main(arguments: list[str] | None = None, show: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--question", default=QUESTION)
    question = parser.parse_args(arguments).question
    show(f"{question}\n")
    answers = []
    try:
        answers += with_langchain(question, show)
    except ImportError as error:
        show(f"create_agent is left out: {error}\n")
    answers += with_llama_index(question, show)
    show(f"{len(answers)} runs, {len(set(answers))} answer{'s' if len(set(answers)) > 1 else ''}")
    return 0 if len(set(answers)) == 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
