"""A local model gets as many calls as it answers together, and never more than its queue holds."""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig

from karakuri_integrations.conversation import Piece, Prompt, Sampling
from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.errors import OptionError, WorkerError
from karakuri_integrations.langchain import ChatKarakuri


class Counted(ScriptedEngine):
    """Echoes questions; knows how many calls were made at once. A question that says so fails."""

    def __init__(self, max_batch: int | None) -> None:
        super().__init__(lambda prompt: prompt.split("[INST] ")[1].split(" [ATTR]")[0])
        if max_batch is not None:
            self.max_batch = max_batch
        self.now = self.most = 0
        self._lock = threading.Lock()

    def _entered(self, prompt: Prompt, by: int) -> None:
        with self._lock:
            self.now += by
            self.most = max(self.most, self.now)
        if by > 0 and "fail" in prompt.text:
            raise WorkerError("failed")

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        try:
            self._entered(prompt, 1)
            time.sleep(0.05)
            yield from super().stream(prompt, sampling)
        finally:
            self._entered(prompt, -1)

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        try:
            self._entered(prompt, 1)
            await asyncio.sleep(0.05)
            for piece in super().stream(prompt, sampling):
                yield piece
        finally:
            self._entered(prompt, -1)


QUESTIONS = [f"question {place}" for place in range(60)]


async def _as_completed(llm: ChatKarakuri) -> list[str]:
    found = dict([one async for one in llm.abatch_as_completed(QUESTIONS)])
    return [found[place].text for place in range(len(QUESTIONS))]


async def _abatch(llm: ChatKarakuri) -> list[str]:
    return [reply.text for reply in await llm.abatch(QUESTIONS)]


async def _agenerate(llm: ChatKarakuri) -> list[str]:
    return [one[0].text for one in (await llm.agenerate([[HumanMessage(one)] for one in QUESTIONS])).generations]


WAYS: dict[str, Callable[[ChatKarakuri], list[str]]] = {
    "batch": lambda llm: [reply.text for reply in llm.batch(QUESTIONS)],
    "batch_as_completed": lambda llm: [
        reply.text for _, reply in sorted(llm.batch_as_completed(QUESTIONS), key=lambda one: one[0])
    ],
    "generate": lambda llm: [one[0].text for one in llm.generate([[HumanMessage(q)] for q in QUESTIONS]).generations],
    "chain": lambda llm: (ChatPromptTemplate([("user", "{q}")]) | llm | StrOutputParser()).batch(
        [{"q": one} for one in QUESTIONS]
    ),
    "abatch": lambda llm: asyncio.run(_abatch(llm)),
    "abatch_as_completed": lambda llm: asyncio.run(_as_completed(llm)),
    "agenerate": lambda llm: asyncio.run(_agenerate(llm)),
}


@pytest.mark.parametrize("way", WAYS)
def test_as_many_as_it_answers_together(way: str) -> None:
    engine = Counted(max_batch=20)
    assert WAYS[way](ChatKarakuri(engine=engine)) == QUESTIONS
    assert engine.most == 20


def test_who_says_how_many_is_heard() -> None:
    engine = Counted(max_batch=20)
    ChatKarakuri(engine=engine).batch(QUESTIONS[:9], {"max_concurrency": 3})
    assert engine.most == 3


@pytest.mark.parametrize("most", [0, -1])
@pytest.mark.parametrize("known", [20, None])
async def test_fewer_than_one_at_a_time_is_refused_and_nobody_waits(most: int, known: int | None) -> None:
    llm = ChatKarakuri(engine=Counted(max_batch=known))
    config: RunnableConfig = {"max_concurrency": most}
    said = f"max_concurrency must be at least 1, got {most}"
    with pytest.raises(OptionError, match=said):
        llm.batch(QUESTIONS[:2], config)
    with pytest.raises(OptionError, match=said):
        await llm.abatch(QUESTIONS[:2], config)
    with pytest.raises(OptionError, match=said):
        next(iter(llm.batch_as_completed(QUESTIONS[:2], [config, config])))


def test_an_engine_that_does_not_know_is_left_to_langchain() -> None:
    engine = Counted(max_batch=None)
    llm = ChatKarakuri(engine=engine)
    llm.generate([[HumanMessage(one)] for one in QUESTIONS[:3]])
    assert engine.most == 1
    asyncio.run(_abatch(llm))
    assert engine.most == len(QUESTIONS)


class Runs(BaseCallbackHandler):
    def __init__(self) -> None:
        self.begun: list[uuid.UUID] = []
        self.ended: list[uuid.UUID] = []
        self.failed: list[uuid.UUID] = []

    def on_chat_model_start(self, *_: Any, run_id: uuid.UUID, **__: Any) -> None:
        self.begun.append(run_id)

    def on_llm_end(self, *_: Any, run_id: uuid.UUID, **__: Any) -> None:
        self.ended.append(run_id)

    def on_llm_error(self, *_: Any, run_id: uuid.UUID, **__: Any) -> None:
        self.failed.append(run_id)


@pytest.mark.parametrize("how", ["generate", "agenerate"])
def test_every_run_of_generate_is_told_of(how: str) -> None:
    llm, runs, first = ChatKarakuri(engine=Counted(max_batch=4)), Runs(), uuid.uuid4()
    given: Any = {"messages": [[HumanMessage(one)] for one in QUESTIONS[:6]], "callbacks": [runs], "run_id": first}
    result = llm.generate(**given) if how == "generate" else asyncio.run(llm.agenerate(**given))
    assert result.run is not None
    found = [one.run_id for one in result.run]
    assert found[0] == first
    assert len(set(found)) == 6
    assert set(found) == set(runs.begun) == set(runs.ended)


@pytest.mark.parametrize("how", ["generate", "agenerate"])
def test_what_fails_is_raised_and_leaves_no_run_open(how: str) -> None:
    llm, runs = ChatKarakuri(engine=Counted(max_batch=3)), Runs()
    given: Any = {"messages": [[HumanMessage(one)] for one in ("a", "fail", "b", "c")], "callbacks": [runs]}
    with pytest.raises(WorkerError):
        llm.generate(**given) if how == "generate" else asyncio.run(llm.agenerate(**given))
    assert len(runs.failed) == 1
    assert set(runs.begun) == {*runs.ended, *runs.failed}


def test_exceptions_are_returned_where_asked_for() -> None:
    llm = ChatKarakuri(engine=Counted(max_batch=3))
    found: list[Any] = llm.batch(["a", "fail", "b"], return_exceptions=True)
    assert isinstance(found[1], WorkerError)
    assert [one.text for one in found if isinstance(one, AIMessage)] == ["a", "b"]


async def test_a_field_that_was_set_to_what_cannot_be_fails_each_call() -> None:
    llm = ChatKarakuri(engine=Counted(max_batch=3))
    other = llm.model_copy()
    llm.temperature = -5.0
    assert [type(one).__name__ for one in llm.batch(["a", "b"], return_exceptions=True)] == ["OptionError"] * 2
    assert [type(one).__name__ for one in await llm.abatch(["a", "b"], return_exceptions=True)] == ["OptionError"] * 2
    assert [one.text for one in llm.with_fallbacks([other]).batch(["a", "b"])] == ["a", "b"]
    with pytest.raises(OptionError):
        llm.generate([[HumanMessage("a")], [HumanMessage("b")]])


async def test_more_than_the_queue_holds_are_no_busy_error() -> None:
    pytest.importorskip("torch")
    llm = ChatKarakuri(engine=LocalEngine(max_batch=2, max_queue=1), max_tokens=2)
    assert len(await llm.abatch(QUESTIONS[:8])) == 8
    assert len(llm.batch(QUESTIONS[:8])) == 8
    assert len((await llm.agenerate([[HumanMessage(one)] for one in QUESTIONS[:8]])).generations) == 8
    assert len(llm.generate([[HumanMessage(one)] for one in QUESTIONS[:8]]).generations) == 8
