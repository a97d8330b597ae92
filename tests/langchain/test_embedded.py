"""ChatKarakuri on the embedded model: one loaded model for all copies, the same text all ways, compute that stops."""

import asyncio
import copy
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField

from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.errors import ContextOverflowError, DeadlineError
from karakuri_integrations.langchain import ChatKarakuri

pytest.importorskip("torch")
QUESTION = "東京で一日過ごすなら、どこがいいですか。"


@pytest.fixture
def steps() -> Callable[[], int]:
    """Forward passes of the shared model so far."""
    engine = LocalEngine()
    return lambda: engine.steps


def test_it_reports_an_id_and_never_a_path() -> None:
    llm = ChatKarakuri()
    shown = str(llm._identifying_params) + repr(llm) + str(llm._get_ls_params())
    assert llm.invoke(QUESTION, max_tokens=1).response_metadata["model_name"] == "karakuri-demo"
    assert "/" not in shown.replace("1.0/", "")
    assert llm.profile["max_input_tokens"] == 4096


async def test_the_same_text_all_ways() -> None:
    llm = ChatKarakuri(max_tokens=12)
    first = llm.invoke(QUESTION)
    assert (await llm.ainvoke(QUESTION)).text == first.text
    assert "".join(chunk.text for chunk in llm.stream(QUESTION)) == first.text
    assert "".join([chunk.text async for chunk in llm.astream(QUESTION)]) == first.text
    assert [reply.text for reply in llm.batch([QUESTION] * 2)] == [first.text] * 2
    assert first.usage_metadata["input_tokens"] == llm.get_num_tokens_from_messages([HumanMessage(QUESTION)])
    assert first.usage_metadata["output_tokens"] <= 12


async def test_copies_share_the_loaded_model() -> None:
    llm = ChatKarakuri(max_tokens=2)
    text = llm.invoke(QUESTION).text
    began = time.perf_counter()
    for one in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm)), ChatKarakuri(max_tokens=2)):
        assert one.invoke(QUESTION).text == text
    configurable = llm.configurable_fields(attributes=ConfigurableField(id="a"))
    for _ in range(3):
        await configurable.ainvoke(QUESTION, config={"configurable": {"a": {"humor": 4}}})
    assert time.perf_counter() - began < 60
    engines = [configurable.prepare({"configurable": {"a": {"humor": 4}}})[0]._provider().engine() for _ in range(1000)]
    assert len({engine._shared for engine in engines}) == 1


def test_stop_and_overflow() -> None:
    llm = ChatKarakuri(max_tokens=12)
    text = llm.invoke(QUESTION).text
    assert llm.invoke(QUESTION, stop=[text[2:4]]).text == text[:2].rstrip()
    with pytest.raises(ContextOverflowError) as caught:
        llm.invoke(QUESTION, max_tokens=4096)
    assert caught.value.n_max_new == 4096


async def _stop_aclose(llm: ChatKarakuri) -> None:
    chunks: AsyncIterator[Any] = llm.astream(QUESTION)
    async with aclosing(chunks):
        await anext(chunks)


async def _stop_break(llm: ChatKarakuri) -> None:
    chunks: Iterator[Any] = llm.stream(QUESTION)
    for _ in chunks:
        break
    chunks.close()


async def _stop_cancel(llm: ChatKarakuri) -> None:
    task = asyncio.create_task(llm.ainvoke(QUESTION))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _stop_deadline(llm: ChatKarakuri) -> None:
    with pytest.raises(DeadlineError):
        await llm.ainvoke(QUESTION, timeout=0.05)


@pytest.mark.parametrize("way", [_stop_aclose, _stop_break, _stop_cancel, _stop_deadline], ids=lambda way: way.__name__)
async def test_the_compute_stops_within_two_tokens(way: Callable[..., Any], steps: Callable[[], int]) -> None:
    llm = ChatKarakuri(temperature=1.0, seed=1)
    llm.invoke(QUESTION, max_tokens=1)
    await way(llm)
    seen = steps()
    await asyncio.sleep(0.3)
    assert steps() - seen <= 2
    assert llm.invoke(QUESTION, max_tokens=1).usage_metadata["output_tokens"] == 1
