"""Sixteen calls at once on one local model: each answer is the one that the same call gets alone.

In fp32, greedy: lengths, dials, stop texts, grammars and max_tokens differ, through every way to make calls at once.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage

from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.langchain import ChatKarakuri

pytest.importorskip("torch")

PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
}
FORM = {"type": "json_schema", "json_schema": {"name": "Person", "schema": PERSON}}
QUESTIONS = (
    "富士山について教えてください。",
    "What is Mount Fuji?",
    "東京で一日過ごすなら、どこがいいですか。",
    "Mika Tanaka is 34 years old.",
)
#: Calls that have their options in common, four of each: what `bind` and one batch take.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 48},
    {"max_tokens": 20, "stop": ["。", "."]},
    {"max_tokens": 60, "response_format": FORM},
    {"max_tokens": 33, "repetition_penalty": 1.1},
)


def asked(place: int) -> list[BaseMessage]:
    """A question with dials of its own, behind a text of its own length."""
    number = place % 4
    dials = {"verbosity": number, "humor": (place // 4) % 3, "complexity": place % 5}
    before = "富士山は日本で一番高い山です。" * (place * 3)
    return [HumanMessage(before + QUESTIONS[number], additional_kwargs={"attributes": dials})]


CALLS = [(asked(place), OPTIONS[place // 4]) for place in range(16)]


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    found = LocalEngine(quantization="fp32")
    yield found
    found.close()


@pytest.fixture(scope="module")
def expected(engine: LocalEngine) -> list[str]:
    alone = LocalEngine(quantization="fp32", max_batch=1, prefix_cache_mib=0, prompt_lookup=False)
    llm = ChatKarakuri(engine=alone)
    found = [llm.invoke(messages, **options).text for messages, options in CALLS]
    assert len(set(found)) > 10
    return found


def batches(llm: ChatKarakuri) -> list[str]:
    """Four batches of four, at the same time."""
    with ThreadPoolExecutor(4) as pool:
        done = pool.map(lambda n: llm.bind(**OPTIONS[n]).batch([asked(4 * n + one) for one in range(4)]), range(4))
        return [reply.text for replies in done for reply in replies]


def abatches(llm: ChatKarakuri) -> list[str]:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(
            *(llm.bind(**OPTIONS[n]).abatch([asked(4 * n + one) for one in range(4)]) for n in range(4))
        )

    return [reply.text for replies in asyncio.run(all_of_them()) for reply in replies]


def threads(llm: ChatKarakuri) -> list[str]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda call: llm.invoke(call[0], **call[1]).text, CALLS))


def tasks(llm: ChatKarakuri) -> list[str]:
    async def streamed(messages: list[BaseMessage], options: dict[str, Any]) -> str:
        return "".join([chunk.text async for chunk in llm.astream(messages, **options)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(streamed(*call) for call in CALLS))

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("kept", [0, 64])
@pytest.mark.parametrize("way", [batches, abatches, threads, tasks])
def test_sixteen_at_once_are_answered_as_one_after_another(
    engine: LocalEngine, expected: list[str], way: Callable[[ChatKarakuri], list[str]], kept: int
) -> None:
    together = LocalEngine(quantization="fp32", prefix_cache_mib=kept)
    before = engine.steps
    assert way(ChatKarakuri(engine=together)) == expected
    # A pass for each token would be about 500; the model makes the tokens of several calls in each.
    assert engine.steps - before < 300
