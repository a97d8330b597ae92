"""The contract of LlamaIndex's LLM: entry points, streams, events, spans and token counts."""

import inspect
import json
import re
from typing import Any

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse, MessageRole, TextBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate

from karakuri_integrations.engines.scripted import ScriptedEngine
from karakuri_integrations.errors import EngineError, OptionError, UnsupportedError
from karakuri_integrations.llama_index import KarakuriLLM

USER = [ChatMessage(role="user", content="質問")]


def test_it_is_a_llama_index_llm() -> None:
    assert BaseLLM.__name__ in [base.__name__ for base in KarakuriLLM.__mro__]
    assert issubclass(KarakuriLLM, FunctionCallingLLM)
    assert not inspect.isabstract(KarakuriLLM)
    assert KarakuriLLM.class_name() == "karakuri_llm"


# What llama-index-core's own tests of its decorators check, on an echoing engine.


@pytest.mark.parametrize("name", ["complete", "stream_complete"])
def test_the_prompt_is_positional_or_named_once_and_needed(echoing: KarakuriLLM, name: str) -> None:
    def said(result: Any) -> str:
        return result.text if isinstance(result, CompletionResponse) else "".join(item.delta for item in result)

    method = getattr(echoing, name)
    assert said(method("test prompt")) == "test prompt"
    assert said(method(prompt="test prompt")) == "test prompt"
    with pytest.raises(TypeError):
        method("test prompt", prompt="test prompt")
    with pytest.raises(ValueError):
        method()


@pytest.mark.parametrize("name", ["acomplete", "astream_complete"])
async def test_async_prompts_likewise(echoing: KarakuriLLM, name: str, ask: Any, text: Any) -> None:
    assert text((await ask(echoing, name, "test prompt"))[-1]) == "test prompt"
    with pytest.raises(TypeError):
        await getattr(echoing, name)("test prompt", prompt="test prompt")
    with pytest.raises(ValueError):
        await getattr(echoing, name)()


async def test_empty_replies_stream_one_item(ask: Any, text: Any) -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["", "", "", ""]))
    for name in ("stream_chat", "astream_chat", "stream_complete", "astream_complete"):
        items = await ask(llm, name, "q")
        assert [(text(item), item.delta) for item in items] == [("", "")]


class Serialized(BaseCallbackHandler):
    def __init__(self) -> None:
        super().__init__([], [])
        self.payloads: list[Any] = []
        self.started = 0
        self.ended: list[dict[str, Any]] = []

    def on_event_start(self, event_type: CBEventType, payload: Any = None, event_id: str = "", **kwargs: Any) -> str:
        if event_type is CBEventType.LLM:
            self.started += 1
            self.payloads.append(payload[EventPayload.SERIALIZED])
        return event_id

    def on_event_end(self, event_type: CBEventType, payload: Any = None, **kwargs: Any) -> None:
        if event_type is CBEventType.LLM:
            self.ended.append(payload)

    def start_trace(self, trace_id: Any = None) -> None: ...
    def end_trace(self, trace_id: Any = None, trace_map: Any = None) -> None: ...


def test_payloads_hold_model_and_temperature_and_no_secret() -> None:
    handler = Serialized()
    llm = KarakuriLLM(
        engine=ScriptedEngine(["a"]),
        api_key="sk-super-secret",
        temperature=0.25,
        attributes={"humor": 2},
        callback_manager=CallbackManager([handler]),
    )
    llm.complete("q")
    (payload,) = handler.payloads
    assert payload["model"] == payload["model_name"] == llm.metadata.model_name
    assert payload["class_name"] == "karakuri_llm"
    assert payload["temperature"] == 0.25
    assert payload["attributes"]["humor"] == 2
    assert "api_key" not in payload
    for shown in (payload, llm.to_dict(), llm.to_json(), repr(llm), str(llm)):
        assert "super-secret" not in str(shown)


# One call is one call, whichever way it is made.


async def test_all_entry_points_agree(entry_point: str, ask: Any, text: Any) -> None:
    engine = ScriptedEngine(["京都です。そこには寺があります。"])
    llm = KarakuriLLM(engine=engine, attributes={"verbosity": 1}, stop=["そこ"])
    items = await ask(llm, entry_point, "名所は?")
    last = items[-1]
    assert text(last) == "京都です。"
    assert engine.prompts == [llm.render_prompt("名所は?")]
    n_prompt = engine.count_tokens(llm._chat([ChatMessage(content="名所は?")], {}).call().prompt)
    assert last.raw["usage"] == {
        "prompt_tokens": n_prompt,
        "completion_tokens": 7,
        "total_tokens": n_prompt + 7,
    }
    assert last.additional_kwargs == last.raw["usage"]
    assert last.raw["finish_reason"] == "stop"
    assert last.raw["model"] == engine.model
    assert last.raw["attributes"]["verbosity"] == 1
    assert json.loads(json.dumps(last.raw)) == last.raw
    if "stream" in entry_point:
        assert len(items) > 3
        assert all(isinstance(item.delta, str) for item in items)
        so_far = ""
        for item in items:
            so_far += item.delta
            assert text(item) == so_far
        assert all(item.raw is None and not item.additional_kwargs for item in items[:-1])
    else:
        assert last.delta is None
    if "chat" in entry_point:
        assert last.message.role is MessageRole.ASSISTANT
        assert last.message.additional_kwargs == {}


async def test_a_cut_reply_says_length(entry_point: str, ask: Any, text: Any) -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["12345"]), max_tokens=3)
    last = (await ask(llm, entry_point, "q"))[-1]
    assert (text(last), last.raw["finish_reason"], last.raw["usage"]["completion_tokens"]) == ("123", "length", 3)


async def test_one_event_one_span_and_exact_counts(entry_point: str, ask: Any, events: Any, spans: Any) -> None:
    counter, handler = TokenCountingHandler(tokenizer=lambda _: [0] * 999), Serialized()
    llm = KarakuriLLM(engine=ScriptedEngine(["答え"]), callback_manager=CallbackManager([counter, handler]))
    usage = (await ask(llm, entry_point, "q"))[-1].raw["usage"]
    kind = "Chat" if "chat" in entry_point else "Completion"
    assert events.names().count(f"LLM{kind}StartEvent") == 1
    assert events.names().count(f"LLM{kind}EndEvent") == 1
    assert {n for n in events.names() if n.startswith("LLM")} <= {
        f"LLM{kind}{when}Event" for when in ("Start", "InProgress", "End")
    }
    assert [span.id_.split("-")[0] for span in spans.completed_spans] == [f"KarakuriLLM.{entry_point}"]
    assert (handler.started, len(handler.ended)) == (1, 1)
    assert (counter.prompt_llm_token_count, counter.completion_llm_token_count) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert len(counter.llm_token_counts) == 1


async def test_openinference_sees_one_llm_span(entry_point: str, ask: Any) -> None:
    instrumentation = pytest.importorskip("openinference.instrumentation.llama_index")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = instrumentation.LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        llm = KarakuriLLM(engine=ScriptedEngine(["答え"]), api_key="sk-super-secret")
        usage = (await ask(llm, entry_point, "質問"))[-1].raw["usage"]
    finally:
        instrumentor.uninstrument()
    found = [s for s in exporter.get_finished_spans() if s.attributes.get("openinference.span.kind") == "LLM"]
    assert len(exporter.get_finished_spans()) == len(found) == 1
    shown = found[0].attributes
    assert shown["llm.model_name"] == llm.metadata.model_name
    assert shown["llm.token_count.prompt"] == usage["prompt_tokens"]
    assert shown["llm.token_count.completion"] == usage["completion_tokens"]
    assert shown["llm.token_count.total"] == usage["total_tokens"]
    assert "super-secret" not in str(dict(shown))


async def test_engine_errors_arrive_as_they_are(entry_point: str, ask: Any, events: Any) -> None:
    error = EngineError("broken")
    handler = Serialized()
    llm = KarakuriLLM(engine=ScriptedEngine([error, "next"]), callback_manager=CallbackManager([handler]))
    with pytest.raises(EngineError) as caught:
        await ask(llm, entry_point, "q")
    assert caught.value is error
    assert handler.ended[0][EventPayload.EXCEPTION] is error
    assert {"ExceptionEvent", "SpanDropEvent"} & set(events.names())
    assert (await ask(llm, entry_point, "q"))[-1].raw["finish_reason"] == "stop"


async def test_unknown_call_options_are_refused_by_name(echoing: KarakuriLLM, entry_point: str, ask: Any) -> None:
    with pytest.raises(OptionError, match="temprature.*did you mean 'temperature'") as caught:
        await ask(echoing, entry_point, "q", temprature="my secret")
    assert "my secret" not in str(caught.value)
    with pytest.raises(UnsupportedError, match="functions have become tools"):
        await ask(echoing, entry_point, "q", functions=[{"name": "f"}])


async def test_call_options_reach_the_engine(entry_point: str, ask: Any) -> None:
    engine = ScriptedEngine(["abc"])
    llm = KarakuriLLM(engine=engine, stop=["z"], temperature=0.5, seed=1, timeout=30)
    await ask(llm, entry_point, "q", stop=["c"], max_tokens=50, top_p=0.9, top_k=3, attributes={"humor": 1})
    (sampling,) = engine.samplings
    assert (sampling.stop, sampling.temperature, sampling.seed, sampling.timeout) == (("c",), 0.5, 1, 30)
    assert (sampling.max_tokens, sampling.top_p, sampling.top_k) == (50, 0.9, 3)
    assert "humor: 1" in engine.prompts[0]


# LlamaIndex's own layers over chat.


async def test_predict_stream_and_their_async_forms_use_chat() -> None:
    engine = ScriptedEngine(["a", "b", "c", "d"])
    llm = KarakuriLLM(engine=engine, system_prompt="S")
    prompt = PromptTemplate("about {topic}")
    assert llm.predict(prompt, topic="x") == "a"
    assert await llm.apredict(prompt, topic="x") == "b"
    assert "".join(llm.stream(prompt, topic="x")) == "c"
    assert "".join([piece async for piece in await llm.astream(prompt, topic="x")]) == "d"
    expected = llm.render_prompt([{"role": "system", "content": "S"}, {"role": "user", "content": "about x"}])
    assert engine.prompts == [expected] * 4


def test_two_system_messages_of_a_qa_prompt_are_one_block() -> None:
    engine = ScriptedEngine(["a"])
    llm = KarakuriLLM(engine=engine, system_prompt="S")
    prompt = ChatPromptTemplate([ChatMessage(role="system", content="T"), ChatMessage(role="user", content="{q}")])
    llm.predict(prompt, q="?")
    assert "<<SYS>>\nS\n\nT\n<</SYS>>" in engine.prompts[0]


def test_structured_predict_reads_json() -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    llm = KarakuriLLM(engine=ScriptedEngine(['{"name": "京都"}']))
    assert llm.structured_predict(City, PromptTemplate("which {x}?"), x="city").name == "京都"


def test_a_structured_llm_reads_json() -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    structured = KarakuriLLM(engine=ScriptedEngine(lambda _: '{"name": "京都"}')).as_structured_llm(City)
    assert structured.complete("which city?").raw.name == "京都"
    assert structured.chat(USER).raw.name == "京都"


async def test_the_rate_limiter_is_asked_once_a_call(entry_point: str, ask: Any) -> None:
    class Limiter:
        asked = 0

        def acquire(self) -> None:
            self.asked += 1

        async def async_acquire(self) -> None:
            self.asked += 1

    limiter = Limiter()
    await ask(KarakuriLLM(engine=ScriptedEngine(["a"]), rate_limiter=limiter), entry_point, "q")
    assert limiter.asked == 1


def test_the_examples_of_the_docstring_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    engine = ScriptedEngine(["寺です。", "Hi!"])
    monkeypatch.setattr("karakuri_integrations.provider.open_engine", lambda fields: engine)
    examples = re.findall(r"```python\n(.*?)```", inspect.getdoc(KarakuriLLM), re.DOTALL)
    for example in examples:
        exec(inspect.cleandoc(example), {})
    assert len(examples) == 1
    assert capsys.readouterr().out == "寺です。\nHi!"


# Formatted prompts.


async def test_a_formatted_prompt_is_sent_as_it_is(ask: Any, text: Any) -> None:
    engine = ScriptedEngine(lambda _: " reply ")
    llm = KarakuriLLM(engine=engine, attributes={"humor": 4})
    raw = "<s>[INST] a [ATTR] x [/ATTR] [/INST] b </s><s>[INST] c [/INST]"
    for name in ("complete", "acomplete", "stream_complete", "astream_complete"):
        last = (await ask(llm, name, raw, formatted=True))[-1]
        assert text(last) == "reply"
        assert "attributes" not in last.raw
    assert engine.prompts == [raw] * 4
    prompt = llm._completion(raw, True, {}).call().prompt
    assert [type(s).__name__ for s in prompt.segments] == ["Control", "str", "Control", "Control", "str"]


def test_a_rendered_prompt_sent_formatted_is_the_same_prompt() -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["a"]))
    messages = [ChatMessage(role="system", content="S"), ChatMessage(role="user", content="q")]
    raw = llm._completion(llm.render_prompt(messages), True, {}).call().prompt
    assert raw.segments == llm._chat(messages, {}).call().prompt.segments


def test_attributes_cannot_change_a_formatted_prompt() -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["a"]))
    with pytest.raises(OptionError, match="formatted"):
        llm.complete("<s>[INST] q [/INST]", formatted=True, attributes={"humor": 1})


def test_templates_default_to_the_models_own_and_a_users_own_is_sent_as_it_is() -> None:
    engine = ScriptedEngine(lambda _: "a")
    llm = KarakuriLLM(engine=engine)
    message = ChatMessage(role="user", content="q", additional_kwargs={"foreign": "secret"})
    assert llm.messages_to_prompt([message]) == llm.render_prompt("q")
    assert llm.completion_to_prompt("q") == llm.render_prompt("q")
    own = KarakuriLLM(
        engine=engine,
        messages_to_prompt=lambda messages: f"<s>mine {messages[0].content}",
        completion_to_prompt=lambda prompt: f"<s>mine too {prompt}",
    )
    own.chat([message])
    own.complete("q")
    assert engine.prompts == ["<s>mine q", "<s>mine too q"]
    with pytest.raises(OptionError, match="formatted"):
        own.chat([message], attributes={"humor": 1})
    llm.messages_to_prompt = lambda _: 3
    with pytest.raises(OptionError, match="messages_to_prompt must be text"):
        llm.chat([message])


def test_the_callback_manager_is_read_at_each_call() -> None:
    llm = KarakuriLLM(engine=ScriptedEngine(["a", "b"]))
    llm.chat(USER)
    handler = Serialized()
    llm.callback_manager = CallbackManager([handler])
    llm.chat(USER)
    assert handler.started == 1


def test_text_blocks_are_joined_by_a_newline() -> None:
    engine = ScriptedEngine(["a"])
    KarakuriLLM(engine=engine).chat([ChatMessage(blocks=[TextBlock(text="x"), TextBlock(text="y")])])
    assert "[INST] x\ny [ATTR]" in engine.prompts[0]
