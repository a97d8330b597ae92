"""Whole, streamed and async calls: metadata once, native async, prompt closing, cancelling, threads and loops."""

import asyncio
import gc
import random
import threading
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from karakuri_integrations.attributes import SteeringAttributes
from karakuri_integrations.conversation import Piece, Usage
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.langchain import ChatKarakuri

Make = Callable[..., ChatKarakuri]
MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
PIECES = 12  # of "Yes, indeed.": the space waits for the word after it, and the last piece is empty


async def answers(llm: ChatKarakuri, **options: Any) -> dict[str, AIMessage]:
    """The same question over all eight ways to ask."""
    return {
        "invoke": llm.invoke("q", **options),
        "ainvoke": await llm.ainvoke("q", **options),
        "batch": llm.batch(["q"], **options)[0],
        "abatch": (await llm.abatch(["q"], **options))[0],
        "generate": llm.generate([[HumanMessage("q")]], **options).generations[0][0].message,
        "agenerate": (await llm.agenerate([[HumanMessage("q")]], **options)).generations[0][0].message,
        "stream": _sum(list(llm.stream("q", **options))),
        "astream": _sum([chunk async for chunk in llm.astream("q", **options)]),
    }


def _sum(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    return total


async def test_all_ways_give_the_same_answer(echo: Make) -> None:
    llm = echo(attributes={"verbosity": 1})
    found = await answers(llm, attributes={"humor": 2}, stop=["deed"])
    assert len(set(llm.engine.prompts)) == 1
    for way, message in found.items():
        assert message.text == "Yes, in", way
        assert message.usage_metadata == found["invoke"].usage_metadata, way
        assert message.response_metadata == found["invoke"].response_metadata, way
    assert found["invoke"].response_metadata == {
        "model_name": MODEL,
        "model_provider": "karakuri",
        "finish_reason": "stop",
        "attributes": dict(SteeringAttributes(verbosity=1, humor=2)),
    }
    assert type(found["invoke"].response_metadata["attributes"]) is dict


async def test_length_and_exact_usage(echo: Make) -> None:
    llm = echo(max_tokens=3)
    for way, message in (await answers(llm)).items():
        assert message.text == "Yes", way
        assert message.response_metadata["finish_reason"] == "length"
        assert message.usage_metadata == {
            "input_tokens": llm.get_num_tokens_from_messages([HumanMessage("q")]),
            "output_tokens": 3,
            "total_tokens": llm.get_num_tokens_from_messages([HumanMessage("q")]) + 3,
        }


@pytest.mark.parametrize("version", [None, "v1"])
async def test_usage_and_metadata_stand_on_one_chunk(version: str | None, echo: Make) -> None:
    llm = echo(output_version=version)
    for chunks in (list(llm.stream("q")), [chunk async for chunk in llm.astream("q")]):
        assert len(chunks) > 5
        assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
        assert sum("attributes" in chunk.response_metadata for chunk in chunks) == 1
        assert sum("finish_reason" in chunk.response_metadata for chunk in chunks) == 1
        assert [chunk.chunk_position for chunk in chunks] == [None] * (len(chunks) - 1) + ["last"]
        assert len({chunk.id for chunk in chunks}) == 1
        assert _sum(chunks).text == "Yes, indeed."


def test_prefix_cache_hits_are_reported() -> None:
    class Cached(ScriptedEngine):
        def stream(self, prompt: Any, sampling: Any) -> Any:
            yield Piece("hi", Usage(10, 1, cache_read=8), "stop")

    usage = ChatKarakuri(engine=Cached([])).invoke("q").usage_metadata
    assert usage == {
        "input_tokens": 10,
        "output_tokens": 1,
        "total_tokens": 11,
        "input_token_details": {"cache_read": 8},
    }


def test_sampling_reaches_the_engine(echo: Make) -> None:
    llm = echo(temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.1, seed=7, stop="x", max_tokens=9)
    llm.invoke("q", timeout=3)
    llm.invoke("q", temperature=0, stop=[], seed=8, max_tokens=None)
    first, second = llm.engine.samplings
    assert (first.temperature, first.top_p, first.top_k, first.min_p, first.repetition_penalty) == (
        0.5,
        0.9,
        3,
        0.1,
        1.1,
    )
    assert (first.seed, first.stop, first.max_tokens, first.timeout) == (7, ("x",), 9, 3)
    assert (second.temperature, second.stop, second.seed, second.max_tokens, second.timeout) == (0, (), 8, 9, None)


def test_a_calls_stop_replaces_the_constructors(echo: Make) -> None:
    llm = echo(stop_sequences=["Yes"])
    assert llm.invoke("q").text == ""
    assert llm.invoke("q", stop="indeed").text == "Yes,"  # the 70B template strips replies
    assert llm.bind(stop=["s"]).invoke("q").text == "Ye"


@pytest.mark.parametrize("streaming", [None, True, False])
async def test_streaming_flag(streaming: bool | None, echo: Make) -> None:
    llm = echo(streaming=streaming)
    assert llm.invoke("q").text == (await llm.ainvoke("q", stream=True)).text == "Yes, indeed."
    assert len(list(llm.stream("q"))) == (1 if streaming is False else PIECES)


def test_configured_copies_still_stream(echo: Make) -> None:
    from langchain_core.runnables import ConfigurableField

    llm = echo().configurable_fields(temperature=ConfigurableField(id="temperature"))
    assert len(list(llm.stream("q", config={"configurable": {"temperature": 0.5}}))) == PIECES


def test_other_template_metadata() -> None:
    llm = ChatKarakuri(
        engine=ScriptedEngine(lambda _: "ok", context_window=600), overflow="drop_oldest_turns", max_tokens=50
    )
    history = [HumanMessage("a" * 300), AIMessage("b" * 100), HumanMessage("q")]
    assert llm.invoke(history).response_metadata["dropped_messages"] == [0, 1]


# --- async is native ---


async def test_no_thread_is_started(echo: Make) -> None:
    before = set(threading.enumerate())
    llm = echo()
    await llm.ainvoke("q")
    await llm.abatch(["q"] * 20)
    _ = [chunk async for chunk in llm.astream("q")]
    _ = [event async for event in llm.astream_events("q", version="v2")]
    assert set(threading.enumerate()) == before


async def test_the_loop_stays_free(slow: Any) -> None:
    slow.pause = 0.02
    llm = ChatKarakuri(engine=slow)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await _first(llm.astream("q"), 5)
    ticker.cancel()
    assert ticks > 20


async def test_concurrent_calls_do_not_mix() -> None:
    llm = ChatKarakuri(engine=ScriptedEngine(lambda prompt: prompt.split("[INST] ")[1].split(" [ATTR]")[0]))
    questions = [f"question {place}" for place in range(50)]
    assert [reply.text for reply in await llm.abatch(questions)] == questions
    assert [reply.text for reply in llm.batch(questions)] == questions
    streams = await asyncio.gather(*(_all(llm.astream(one)) for one in questions))
    assert [_sum(chunks).text for chunks in streams] == questions


async def _all(chunks: Any) -> list[AIMessageChunk]:
    return [chunk async for chunk in chunks]


async def _first(chunks: Any, count: int) -> None:
    async with aclosing(chunks):
        async for _ in chunks:
            count -= 1
            if not count:
                return


# --- closing, breaking, cancelling ---


def test_breaking_a_stream_closes_the_engines(slow: Any) -> None:
    llm = ChatKarakuri(engine=slow)
    for place, _ in enumerate(llm.stream("q")):
        if place == 3:
            break
    assert slow.open == 0
    assert slow.pieces == 4
    stream = llm.stream("q")
    next(stream)
    assert slow.open == 1
    stream.close()
    assert slow.open == 0


def test_an_error_in_the_consumer_closes_the_engines(slow: Any) -> None:
    llm = ChatKarakuri(engine=slow)

    def consume() -> None:
        for _ in llm.stream("q"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert slow.open == 0


async def test_aclose_has_closed_the_engines_stream(slow: Any) -> None:
    llm = ChatKarakuri(engine=slow)
    gc.disable()
    try:
        for count in range(1, 20):
            chunks = llm.astream("q")
            for _ in range(count):
                await anext(chunks)
            assert slow.open == 1
            await chunks.aclose()
            assert slow.open == 0
    finally:
        gc.enable()
    assert slow.pieces == sum(range(1, 20))


async def test_breaking_an_async_stream(slow: Any) -> None:
    llm = ChatKarakuri(engine=slow)
    async for _ in llm.astream("q"):
        break
    await asyncio.sleep(0.01)
    assert slow.open == 0
    assert slow.pieces <= 2


async def test_closing_a_chain_stops_the_engine(slow: Any) -> None:
    prompt, llm = ChatPromptTemplate.from_messages([("user", "{q}")]), ChatKarakuri(engine=slow)
    for chain in (prompt | llm, prompt | llm | StrOutputParser()):
        await _first(chain.astream({"q": "hi"}), 3)
        await asyncio.sleep(0.01)
        assert slow.open == 0
    # Sync, langchain-core's own parsers read a closed chain's model to its end, for the trace; so without one here.
    stream = (prompt | llm).stream({"q": "hi"})
    next(stream)
    stream.close()
    assert slow.open == 0


async def test_closing_v3_events_stops_the_engine(slow: Any) -> None:
    stream = await ChatKarakuri(engine=slow).astream_events("q", version="v3")
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert slow.open == 0


async def test_interleaved_streams_close_their_own(slow: Any) -> None:
    llm = ChatKarakuri(engine=slow)
    one, two = llm.astream("q"), llm.astream("q")
    await anext(one)
    await anext(two)
    await one.aclose()
    assert slow.open == 1
    await anext(two)
    await two.aclose()
    assert slow.open == 0


@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch", "timeout"])
async def test_cancelling_at_random_points(way: str, slow: Any) -> None:
    llm, seeded = ChatKarakuri(engine=slow), random.Random(7)
    for _ in range(50):
        delay = seeded.uniform(0, 0.006)
        ways = {
            "ainvoke": lambda: llm.ainvoke("q"),
            "astream": lambda: _all(llm.astream("q")),
            "abatch": lambda: llm.abatch(["q", "r"]),
            "timeout": lambda: asyncio.wait_for(llm.ainvoke("q"), delay),  # noqa: B023
        }
        task = asyncio.ensure_future(ways[way]())
        await asyncio.sleep(delay)
        if way == "timeout":
            with pytest.raises(TimeoutError):
                await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert slow.open == 0
    seen = slow.pieces
    await asyncio.sleep(0.01)
    assert slow.pieces == seen


# --- loops and threads ---


def test_many_event_loops_one_model(echo: Make) -> None:
    llm = echo()
    for _ in range(5):
        assert asyncio.run(llm.ainvoke("q")).text == "Yes, indeed."
        assert len(asyncio.run(_all(llm.astream("q")))) == PIECES


def test_eight_threads_with_loops_of_their_own(echo: Make) -> None:
    llm, replies = echo(), []

    def work() -> None:
        for _ in range(5):
            replies.append(asyncio.run(llm.ainvoke("q")).text)
            replies.append(llm.invoke("q").text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == ["Yes, indeed."] * 80


# --- LangChain's event streams ---


async def test_event_streams(echo: Make) -> None:
    llm = echo()
    events = [event async for event in llm.astream_events("q", version="v2")]
    assert [event["event"] for event in events[:1] + events[-1:]] == ["on_chat_model_start", "on_chat_model_end"]
    assert "".join(e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream") == "Yes, indeed."
    stream = await llm.astream_events("q", version="v3")
    assert [event async for event in stream]
    message = await stream.output
    assert message.text == "Yes, indeed."
    assert message.usage_metadata["output_tokens"] > 0
    assert message.response_metadata["attributes"] == dict(SteeringAttributes())
    stream = llm.stream_events("q", version="v3")
    assert list(stream)
    assert stream.output.text == "Yes, indeed."


def test_each_token_is_reported_once(echo: Make) -> None:
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[str] = []

        def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            self.tokens.append(token)

    handler = Tokens()
    list(echo().stream("q", config={"callbacks": [handler]}))
    assert "".join(handler.tokens) == "Yes, indeed."
