"""The same contract on the model that ships with the package, as `KarakuriLLM()` builds it."""

import asyncio
import copy
import pickle
import time
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate

from karakuri_integrations.engines import LocalEngine
from karakuri_integrations.errors import ContextOverflowError
from karakuri_integrations.llama_index import KarakuriLLM

pytest.importorskip("torch", reason="the embedded model needs the extra `local`")
QUESTION = "東京の名物は何ですか。"


def steps() -> int:
    return LocalEngine().steps


@pytest.fixture(scope="module")
def llm() -> KarakuriLLM:
    return KarakuriLLM(max_tokens=8)


@pytest.fixture(scope="module")
def expected(llm: KarakuriLLM) -> str:
    return llm.complete(QUESTION).text


async def test_all_entry_points_give_the_same_greedy_text_in_one_call(
    llm: KarakuriLLM, expected: str, entry_point: str, ask: Any, text: Any, events: Any, spans: Any
) -> None:
    items = await ask(llm, entry_point, QUESTION)
    last = items[-1]
    assert text(last) == expected != ""
    usage = last.raw["usage"]
    assert usage["prompt_tokens"] == llm.count_tokens(QUESTION)
    assert 1 <= usage["completion_tokens"] <= 8
    assert last.raw["finish_reason"] in ("stop", "length")
    assert last.raw["model"] == llm.metadata.model_name
    if "stream" in entry_point:
        assert "".join(item.delta for item in items) == expected
        assert len(items) > 2
    assert sum(name.endswith("EndEvent") for name in events.names()) == 1
    assert [span.id_.split("-")[0] for span in spans.completed_spans] == [f"KarakuriLLM.{entry_point}"]


def test_copies_and_pickles_share_the_loaded_model(llm: KarakuriLLM, expected: str) -> None:
    before = steps()
    for again in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm)), KarakuriLLM.from_dict(llm.to_dict())):
        made = steps()
        assert again.complete(QUESTION).text == expected
        assert steps() > made >= before


def test_a_formatted_prompt_of_ours_gives_the_same_answer(llm: KarakuriLLM, expected: str) -> None:
    assert llm.complete(llm.render_prompt(QUESTION), formatted=True).text == expected


def test_the_template_needs_no_more_than_the_window_leaves_for_it(llm: KarakuriLLM) -> None:
    short = [ChatMessage(role="system", content="s"), ChatMessage(role="user", content="u")]
    assert llm.context_window - llm.metadata.context_window >= llm.count_tokens(short) - 2


def test_prompts_that_llama_index_fills_up_fit(llm: KarakuriLLM) -> None:
    tokenizer = LocalEngine().token_ids
    helper = PromptHelper.from_llm_metadata(llm.metadata, tokenizer=tokenizer)
    template = PromptTemplate("次の文を読んで答えてください。\n{context_str}\n質問: " + QUESTION)
    packed = helper.repack(template, ["富士山は日本で一番高い山です。桜の名所も近くにあります。\n" * 400], llm=llm)[0]
    used = llm.count_tokens(template.format(context_str=packed))
    assert 3600 < used <= 4096 - 8


def test_settings_count_with_the_models_tokenizer(llm: KarakuriLLM) -> None:
    from llama_index.core import Settings

    with llm.configure_settings():
        ids = Settings.tokenizer(QUESTION)
        assert ids == LocalEngine().token_ids(QUESTION)
        assert 1 not in ids
        query = SummaryIndex.from_documents([Document(text="緑川町の図書館は月曜日が休みです。")]).as_query_engine()
        assert query.query("図書館はいつ休みですか。").response


def test_a_chat_engine_on_it(llm: KarakuriLLM) -> None:
    chat = SimpleChatEngine.from_defaults(llm=llm, system_prompt="短く答えてください。", chat_history=[])
    with llm.configure_settings():
        assert chat.chat(QUESTION).response
        assert "".join(chat.stream_chat("もう一つ教えてください。").response_gen)
    assert [message.role.value for message in chat.chat_history] == ["user", "assistant"] * 2


def test_beyond_the_window_nothing_is_computed(llm: KarakuriLLM) -> None:
    before = steps()
    with pytest.raises(ContextOverflowError) as caught:
        llm.complete("山" * 5000)
    assert caught.value.n_ctx == 4096
    assert steps() == before


@pytest.mark.parametrize("name", ["stream_chat", "stream_complete"])
def test_closing_stops_the_compute_within_two_tokens(llm: KarakuriLLM, expected: str, name: str) -> None:
    given: Any = [ChatMessage(content=QUESTION)] if "chat" in name else QUESTION
    stream = getattr(llm, name)(given, max_tokens=400)
    next(stream)
    stream.close()
    stopped = steps()
    time.sleep(0.3)
    assert steps() <= stopped + 2
    assert llm.complete(QUESTION).text == expected


async def test_cancelling_stops_the_compute_and_the_next_call_is_right(llm: KarakuriLLM, expected: str) -> None:
    async def read() -> None:
        async for _ in await llm.astream_complete(QUESTION, max_tokens=400):
            pass

    for place in range(8):
        task = asyncio.create_task(read() if place % 2 else llm.acomplete(QUESTION, max_tokens=400))
        await asyncio.sleep(0.004 * place)
        if task.done():
            continue
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stopped = steps()
        await asyncio.sleep(0.15)
        assert steps() <= stopped + 2
    assert (await llm.acomplete(QUESTION)).text == expected


async def test_the_event_loop_turns_while_it_computes(llm: KarakuriLLM, expected: str) -> None:
    task = asyncio.create_task(llm.acomplete(QUESTION))
    ticks = 0
    while not task.done():
        await asyncio.sleep(0)
        ticks += 1
    assert task.result().text
    assert ticks > 20


def test_fresh_event_loops_and_parallel_calls(llm: KarakuriLLM, expected: str) -> None:
    async def several() -> list[str]:
        return [answer.text for answer in await asyncio.gather(*(llm.acomplete(QUESTION) for _ in range(2)))]

    for _ in range(2):
        assert asyncio.run(several()) == [expected] * 2
