"""Sixteen calls at once on one local model: each answer is the one that the same call gets alone (fp32, greedy)."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel, Field

from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.llama_index import KarakuriLLM

pytest.importorskip("torch", reason="the embedded model needs the extra `local`")


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


QUESTIONS = (
    "富士山について教えてください。",
    "What is Mount Fuji?",
    "東京で一日過ごすなら、どこがいいですか。",
    "Mika Tanaka is 34 years old.",
)
OPTIONS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 48},
    {"max_tokens": 20, "stop": ["。", "."]},
    {"max_tokens": 33, "repetition_penalty": 1.1},
)


def asked(place: int) -> list[ChatMessage]:
    """A question with dials of its own, behind a text of its own length."""
    number = place % 4
    dials = {"verbosity": number, "humor": (place // 4) % 3, "complexity": place % 5}
    before = "富士山は日本で一番高い山です。" * (place * 3)
    return [ChatMessage(role="user", content=before + QUESTIONS[number], additional_kwargs={"attributes": dials})]


async def answer(llm: KarakuriLLM, place: int) -> str:
    """One call, by its place: whole, streamed or held to a schema."""
    if place % 4 == 3:
        return str((await llm.as_structured_llm(Person).achat(asked(place))).message.content)
    options = OPTIONS[place % 4]
    if place % 2:
        return str((await llm.achat(asked(place), **options)).message.content)
    return "".join([part.delta or "" async for part in await llm.astream_chat(asked(place), **options)])


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    found = LocalEngine(quantization="fp32")
    yield found
    found.close()


@pytest.fixture(scope="module")
def expected(engine: LocalEngine) -> list[str]:
    alone = LocalEngine(quantization="fp32", max_batch=1, prefix_cache_mib=0, prompt_lookup=False)
    llm = KarakuriLLM(engine=alone, max_tokens=60)

    async def one_after_another() -> list[str]:
        return [await answer(llm, place) for place in range(16)]

    found = asyncio.run(one_after_another())
    assert len(set(found)) > 10
    return found


@pytest.mark.parametrize("kept", [0, 64])
async def test_sixteen_at_once_are_answered_as_one_after_another(
    engine: LocalEngine, expected: list[str], kept: int
) -> None:
    llm = KarakuriLLM(engine=LocalEngine(quantization="fp32", prefix_cache_mib=kept), max_tokens=60)
    before = engine.steps
    assert list(await asyncio.gather(*(answer(llm, place) for place in range(16)))) == expected
    # A pass for each token would be about 500; the model makes the tokens of several calls in each.
    assert engine.steps - before < 300
