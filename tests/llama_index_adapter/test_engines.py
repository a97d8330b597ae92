"""LlamaIndex's own chat engines, query engines and agents on scripted replies."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex, VectorStoreIndex, get_response_synthesizer
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.tools import FunctionTool

from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.llama_index import KarakuriLLM

FACTS = "青葉駅の改札は三つあります。\n\n緑川町の図書館は月曜日が休みです。"


def characters(text: str) -> list[str]:
    return list(text)


def memory() -> ChatMemoryBuffer:
    return ChatMemoryBuffer.from_defaults(token_limit=2000, tokenizer_fn=characters)


def model(*replies: str, **fields: Any) -> KarakuriLLM:
    return KarakuriLLM(engine=ScriptedEngine(list(replies)), **fields)


@pytest.fixture
def index() -> VectorStoreIndex:
    splitter = SentenceSplitter(chunk_size=100, chunk_overlap=0, tokenizer=characters)
    return VectorStoreIndex.from_documents(
        [Document(text=FACTS)], embed_model=MockEmbedding(embed_dim=4), transformations=[splitter]
    )


def humor(prompt: str) -> list[int]:
    return [int(part[0]) for part in prompt.split("humor: ")[1:]]


async def test_simple_chat_engine_keeps_what_past_turns_were_answered_with() -> None:
    llm = model("一", "二", "三", "四", "五", attributes={"humor": 1})
    chat = SimpleChatEngine.from_defaults(llm=llm, memory=memory(), system_prompt="S")
    assert chat.chat("a").response == "一"
    llm.attributes = {"humor": 2}
    assert "".join(chat.stream_chat("b").response_gen) == "二"
    llm.attributes = {"humor": 3}
    assert (await chat.achat("c")).response == "三"
    llm.attributes = {"humor": 4}
    stream = await chat.astream_chat("d")
    assert "".join([token async for token in stream.async_response_gen()]) == "四"
    llm.attributes = {"humor": 0}
    chat.chat("e")
    prompts = llm.engine.prompts
    assert humor(prompts[-1]) == [1, 2, 3, 4, 0]
    assert all(later.startswith(earlier) for earlier, later in pairwise(prompts))
    assert prompts[0].startswith("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [ATTR]")


async def test_context_chat_engine(index: VectorStoreIndex) -> None:
    llm = model("月曜日です。", "三つです。")
    chat = ContextChatEngine.from_defaults(retriever=index.as_retriever(), llm=llm, memory=memory(), system_prompt="S")
    assert chat.chat("図書館の休みは?").response == "月曜日です。"
    stream = await chat.astream_chat("改札は?")
    assert "".join([token async for token in stream.async_response_gen()]) == "三つです。"
    assert all("月曜日が休み" in prompt for prompt in llm.engine.prompts)
    assert llm.engine.prompts[1].count("[INST]") == 2
    assert "月曜日です。 </s>" in llm.engine.prompts[1]


def test_condense_engines_do_not_print_records(index: VectorStoreIndex) -> None:
    llm = model("月曜日です。", "図書館は日曜日に開いていますか。", "はい。")
    chat = CondensePlusContextChatEngine.from_defaults(retriever=index.as_retriever(), llm=llm, memory=memory())
    first = llm.chat([ChatMessage(role="user", content="休みは?")], attributes={"humor": 3})
    history = [ChatMessage(role="user", content="休みは?"), first.message]
    assert chat.chat("日曜日は?", chat_history=history).response == "はい。"
    condense = llm.engine.prompts[1]
    assert "assistant: 月曜日です。" in condense
    assert "karakuri" not in condense
    assert "humor: 3" not in condense


def test_condense_question_engine(index: VectorStoreIndex) -> None:
    llm = model("月曜日です。", "図書館は日曜日に開いていますか。", "はい。")
    chat = CondenseQuestionChatEngine.from_defaults(
        query_engine=index.as_query_engine(llm=llm), llm=llm, memory=memory()
    )
    assert str(chat.chat("休みは?")) == "月曜日です。"
    assert str(chat.chat("日曜日は?")) == "はい。"
    assert "karakuri" not in llm.engine.prompts[1]


@pytest.mark.parametrize("streaming", [False, True])
async def test_query_engine(index: VectorStoreIndex, streaming: bool) -> None:
    llm = model("月曜日です。", "月曜日です。", system_prompt="必ず日本語で。")
    engine = index.as_query_engine(llm=llm, streaming=streaming)
    for response in (engine.query("図書館の休みは?"), await engine.aquery("図書館の休みは?")):
        if not streaming:
            text = response.response
        elif hasattr(response, "async_response_gen"):
            text = "".join([token async for token in response.async_response_gen()])
        else:
            text = "".join(response.response_gen)
        assert text == "月曜日です。"
    assert all(FACTS.split("\n\n")[1] in prompt for prompt in llm.engine.prompts)
    assert all("<<SYS>>\n必ず日本語で。\n\n" in prompt for prompt in llm.engine.prompts)


@pytest.mark.parametrize("mode", [ResponseMode.REFINE, ResponseMode.COMPACT, ResponseMode.TREE_SUMMARIZE])
async def test_long_documents_are_packed_so_that_every_prompt_fits(mode: ResponseMode) -> None:
    engine = ScriptedEngine(lambda _: "要約です。")
    llm = KarakuriLLM(engine=engine, max_tokens=400)
    with llm.configure_settings():
        splitter = SentenceSplitter(chunk_size=1500, chunk_overlap=0, tokenizer=engine.token_ids)
        texts = [f"第{place}章。" + "緑川町の図書館は月曜日が休みです。" * 20 for place in range(20)]
        index = SummaryIndex.from_documents([Document(text=text) for text in texts], transformations=[splitter])
        synthesizer = get_response_synthesizer(llm=llm, response_mode=mode)
        query = index.as_query_engine(llm=llm, response_synthesizer=synthesizer)
        assert str(query.query("要約して。")) == "要約です。"
        assert str(await query.aquery("要約して。")) == "要約です。"
    sizes = [len(prompt) for prompt in engine.prompts]
    assert max(sizes) + 400 <= 4096
    if mode is not ResponseMode.REFINE:
        assert max(sizes) > 2500


async def test_a_react_agent_works_on_text() -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    llm = model(
        'Thought: I need a tool.\nAction: add\nAction Input: {"a": 2, "b": 3}',
        "Thought: I can answer without using any more tools.\nAnswer: 5です。",
    )
    agent = ReActAgent(tools=[FunctionTool.from_defaults(add)], llm=llm)
    response = await asyncio.wait_for(agent.run("2+3?"), 10)
    assert str(response) == "5です。"
    assert "Observation: 5" in llm.engine.prompts[1]
