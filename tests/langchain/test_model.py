"""The model object: fields, copies, cache keys, traces, serialised form, profile, token counts and errors."""

import ast
import asyncio
import copy
import inspect
import json
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core import exceptions as core
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.load import dumpd, dumps, load
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr

from karakuri_integrations import SteeringAttributes, errors, provider
from karakuri_integrations.conversation import Piece, Usage
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.langchain import ChatKarakuri

Make = Callable[..., ChatKarakuri]
MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"


@pytest.fixture
def scripted_models(monkeypatch: pytest.MonkeyPatch) -> dict[str, ScriptedEngine]:
    """Model ids are answered by one script each, which counts its answers; JSON where a joke's is asked for."""
    engines: dict[str, ScriptedEngine] = {}

    def engine_of(fields: provider.EngineFields) -> ScriptedEngine:
        name = fields.model or MODEL

        def reply(prompt: str) -> str:
            joke = '{"setup": "Why?", "punchline": "Because."}'
            return joke if "punchline" in prompt else f"answer {len(engines[name].prompts)}"

        return engines.setdefault(name, ScriptedEngine(reply, name))

    monkeypatch.setattr(provider, "_local_engine", engine_of)
    return engines


# --- fields ---


@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("tempertaure", "temperature"),
        ("attribute", "attributes"),
        ("max_token", "max_tokens"),
        ("modelname", "model_name"),
        ("zzz", None),
        ("verbosity", None),
    ],
)
def test_a_misspelt_field_is_named_without_its_value(field: str, near: str | None, echo: Make) -> None:
    with pytest.raises(errors.OptionError, match=repr(field)) as caught:
        echo(**{field: "secret words"})
    assert "secret words" not in str(caught.value)
    assert near is None or f"did you mean {near!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"attributes": {"humour": 1}}, errors.AttributeConfigError),
        ({"attributes": {"humor": 5}}, errors.AttributeConfigError),
        ({"attributes": {"humor": 3.0}}, errors.AttributeConfigError),
        ({"attributes": {"humor": True}}, errors.AttributeConfigError),
        ({"attributes": "concise"}, errors.AttributeConfigError),
        ({"message_attributes": "perhaps"}, errors.AttributeConfigError),
        ({"attribute_bounds": {"toxicity": (3, 1)}}, errors.AttributeConfigError),
        ({"max_retries": -1}, errors.OptionError),
        ({"max_retries": True}, errors.OptionError),
        ({"context_window": True}, errors.OptionError),
        ({"context_window": "4096"}, errors.OptionError),
        ({"temperature": -1}, errors.OptionError),
        ({"temperature": "0.5"}, errors.OptionError),
        ({"top_p": 1.5}, errors.OptionError),
        ({"max_tokens": 0}, errors.OptionError),
        ({"max_tokens": True}, errors.OptionError),
        ({"stop": [""]}, errors.OptionError),
        ({"stop": 5}, errors.OptionError),
        ({"stop": "a", "stop_sequences": ["b"]}, errors.OptionError),
        ({"timeout": 0}, errors.OptionError),
        ({"max_retries": "many"}, errors.OptionError),
        ({"template_tokens": "strip"}, errors.OptionError),
        ({"overflow": "drop"}, errors.OptionError),
        ({"model": MODEL}, errors.OptionError),
        ({"engine": None, "base_url": "http://user:hidden@localhost:8000/v1?key=hidden"}, errors.OptionError),
        ({"engine": None, "base_url": "http://user:hidden@localhost:port/v1"}, errors.OptionError),
        ({"engine": None, "base_url": "http://user:hidden@localhost/v1", "api_key": "k"}, errors.OptionError),
        ({"engine": None, "base_url": "http://localhost/v1", "server": "vlm"}, errors.OptionError),
        ({"engine": None, "base_url": "http://localhost/v1", "timeouts": {"idel": 1}}, errors.OptionError),
        ({"engine": None, "base_url": "http://localhost/v1", "extra_body": {"prompt": "x"}}, errors.OptionError),
        ({"engine": None, "server": "vllm"}, errors.OptionError),
        ({"engine": "vllm"}, errors.OptionError),
    ],
    ids=str,
)
def test_bad_fields_are_our_errors_at_construction(fields: dict, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        ChatKarakuri(**{"engine": ScriptedEngine([]), **fields})
    assert isinstance(caught.value, core.ModelError)
    assert "hidden" not in str(caught.value)
    assert "http://user" not in str(caught.value)


def test_aliases_and_defaults(scripted_models: dict) -> None:
    llm = ChatKarakuri(model_name=MODEL, request_timeout=3, stop_sequences="x", temperature=None, max_retries=None)
    assert (llm.model, llm.timeout, llm.stop, llm.temperature, llm.max_retries) == (MODEL, 3, ["x"], 0.0, 2)
    assert ChatKarakuri(stop=("a", "b")).stop == ["a", "b"]
    assert ChatKarakuri().attributes is None


def test_a_later_mutation_of_the_users_dict_changes_nothing(echo: Make) -> None:
    mine, bounds, stop = {"humor": 1}, {"toxicity": (0, 1)}, ["x"]
    llm = echo(attributes=mine, attribute_bounds=bounds, stop=stop)
    mine["humor"] = 4
    bounds["toxicity"] = (0, 4)
    stop.append("y")
    assert llm.attributes["humor"] == 1
    assert llm.attribute_bounds == {"toxicity": (0, 1)}
    assert llm.stop == ["x"]


def test_a_field_set_later_holds_and_is_checked(echo: Make) -> None:
    llm = echo()
    llm.attributes = {"humor": 2}
    assert "humor: 2" in llm.render_prompt("q")
    llm.attributes = {"humor": 9}
    with pytest.raises(errors.AttributeConfigError) as caught:
        llm.invoke("q")
    assert isinstance(caught.value, core.ModelInvalidRequestError)
    with pytest.raises(ValueError, match="humour"):
        llm.humour = 1


# --- copies ---


def test_copies_share_the_engine(echo: Make) -> None:
    llm = echo(attributes={"humor": 1})
    for one in (llm.model_copy(), copy.copy(llm), copy.deepcopy(llm), llm.model_copy(update={"temperature": 0.5})):
        assert one.engine is llm.engine
        assert one.invoke("q").text == "Yes, indeed."
    other = copy.deepcopy(llm)
    other.attributes["humor"] = 4
    assert llm.attributes["humor"] == 1


def test_pickle(scripted_models: dict) -> None:
    llm = ChatKarakuri(model=MODEL, attributes={"humor": 1}, stop=["x"], api_key="hidden")
    stored = pickle.dumps(llm)
    assert b"hidden" not in stored  # no secret leaves the process in a pickle
    one = pickle.loads(stored)
    assert one == llm.model_copy(update={"api_key": None})
    assert one.render_prompt("q") == llm.render_prompt("q")
    assert one.invoke("q").response_metadata["attributes"]["humor"] == 1


# --- cache keys ---


def _count(engine: ScriptedEngine, ask: Callable[[], AIMessage]) -> tuple[int, str]:
    before = len(engine.prompts)
    text = ask().text
    return len(engine.prompts) - before, text


@pytest.mark.parametrize("make", ["engine", "model"])
def test_cache_keys_differ_where_replies_can(make: str, scripted_models: dict) -> None:
    cache = InMemoryCache()
    engine = ScriptedEngine(lambda prompt: f"answer {len(engine.prompts)}")
    scripted_models[MODEL] = engine

    def model(**fields: Any) -> ChatKarakuri:
        source: dict[str, Any] = {"engine": engine} if make == "engine" else {"model": MODEL}
        return ChatKarakuri(**source, cache=cache, **fields)

    ways: list[Callable[[], AIMessage]] = [
        lambda: model().invoke("q"),
        lambda: model(attributes={"helpfulness": 1}).invoke("q"),
        lambda: model(attributes={"helpfulness": 2}).invoke("q"),
        lambda: model().invoke("q", attributes={"helpfulness": 3}),
        lambda: model(attributes={"humor": 1}).bind(attributes={"helpfulness": 1}).invoke("q"),
        lambda: model().invoke([HumanMessage("q", additional_kwargs={"attributes": {"helpfulness": 1}})]),
        lambda: model().invoke([HumanMessage("q", additional_kwargs={"attributes": {"helpfulness": 2}})]),
        lambda: model(temperature=0.5, seed=1).invoke("q"),
        lambda: model(temperature=0.5, seed=2).invoke("q"),
        lambda: model().invoke("q", max_tokens=7),
        lambda: model(stop=["x"]).invoke("q"),
        lambda: model(template_tokens="allow").invoke("q"),
        lambda: model(message_attributes="ignore").invoke("q"),
        lambda: model(overflow="drop_oldest_turns").invoke("q"),
    ]
    if make == "model":  # an engine has its own window
        ways.append(lambda: model(context_window=4000).invoke("q"))
    texts = []
    for way in ways:
        asked, text = _count(engine, way)
        assert asked == 1, way
        texts.append(text)
    assert len(set(texts)) == len(ways)
    for way, text in zip(ways, texts, strict=True):
        assert _count(engine, way) == (0, text), "the same question hits the cache"


def test_cache_keys_of_equal_attributes_are_equal(echo: Make) -> None:
    llm = echo(cache=InMemoryCache())
    llm.invoke("q", attributes={"helpfulness": 1})
    llm.invoke("q", attributes=SteeringAttributes(helpfulness=1))
    llm.bind(attributes={"helpfulness": 1, "humor": 0}).invoke("q")
    echo_again = ChatKarakuri(engine=llm.engine, cache=llm.cache, attributes={"helpfulness": 1})
    echo_again.invoke("q")
    assert len(llm.engine.prompts) == 1


def test_cache_keys_see_fields_set_later_and_models(scripted_models: dict) -> None:
    cache = InMemoryCache()
    llm = ChatKarakuri(model=MODEL, cache=cache)
    first = llm.invoke("q").text
    llm.attributes = {"helpfulness": 1}
    assert llm.invoke("q").text != first
    assert llm.model_copy(update={"attributes": {"helpfulness": 2}}).invoke("q").text != first
    other = "karakuri-ai/karakuri-lm-8x7b-chat-v0.1"
    llm.invoke("q", model=other)
    ChatKarakuri(model=other, cache=cache).invoke("q")
    ChatKarakuri(model=MODEL, quantization="bf16", cache=cache).invoke("q")
    ChatKarakuri(model=MODEL, revision="0" * 40, cache=cache).invoke("q")
    assert (len(scripted_models[MODEL].prompts), len(scripted_models[other].prompts)) == (5, 2)


def test_a_configured_copy_has_its_own_cache_key(echo: Make) -> None:
    llm = echo(cache=InMemoryCache())
    configurable = llm.configurable_fields(attributes=ConfigurableField(id="a"))
    for value in (1, 2, 1):
        configurable.invoke("q", config={"configurable": {"a": {"helpfulness": value}}})
    assert len(llm.engine.prompts) == 2


# --- traces ---


class Starts(BaseCallbackHandler):
    def __init__(self) -> None:
        self.seen: list[dict] = []

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.seen.append({"serialized": serialized, **kwargs})


async def test_traces_see_attributes_and_no_secret(echo: Make) -> None:
    llm, handler = echo(attributes={"humor": 1}, api_key="hidden", stop=["z"], max_tokens=9), Starts()
    config = {"callbacks": [handler]}
    llm.invoke("q", config=config, attributes=SteeringAttributes(verbosity=0))
    await llm.ainvoke("q", config=config, attributes={"verbosity": 0})
    list(llm.stream("q", config=config))
    _ = [chunk async for chunk in llm.astream("q", config=config, stop=["y"], model=MODEL)]
    shown = [seen["invocation_params"]["attributes"] for seen in handler.seen]
    assert shown == [
        dict(SteeringAttributes(verbosity=0)),
        dict(SteeringAttributes(verbosity=0, humor=1)),
        dict(SteeringAttributes(humor=1)),
        dict(SteeringAttributes(humor=1)),
    ]
    assert [seen["invocation_params"]["stop"] for seen in handler.seen] == [["z"], ["z"], ["z"], ["y"]]
    for seen in handler.seen:
        assert seen["metadata"]["ls_provider"] == "karakuri"
        assert seen["metadata"]["ls_model_name"] == MODEL
        assert seen["metadata"]["ls_max_tokens"] == 9
        assert seen["metadata"]["lc_versions"]["karakuri-integrations"]
        assert "hidden" not in str(seen)
        json.dumps(seen["invocation_params"])


def test_ls_params_honour_the_call(echo: Make) -> None:
    llm = echo(temperature=0.5, stop="a")
    assert llm._get_ls_params()["ls_stop"] == ["a"]
    params = llm._get_ls_params(stop=["b"], model="other", temperature=0.1, max_tokens=5)
    assert params == {
        "ls_provider": "karakuri",
        "ls_model_type": "chat",
        "ls_model_name": "other",
        "ls_temperature": 0.1,
        "ls_max_tokens": 5,
        "ls_stop": ["b"],
    }
    assert llm.invoke("q").response_metadata["model_provider"] == llm._get_ls_params()["ls_provider"]


def test_usage_callback(echo: Make) -> None:
    handler = UsageMetadataCallbackHandler()
    llm = echo()
    llm.invoke("q", config={"callbacks": [handler]})
    list(llm.stream("q", config={"callbacks": [handler]}))
    assert handler.usage_metadata[MODEL]["output_tokens"] == 2 * len("Yes, indeed.")


def test_identifying_params_are_plain(echo: Make) -> None:
    llm = echo(api_key="hidden", attributes=SteeringAttributes(humor=1))
    params = llm._identifying_params
    json.dumps(params)
    assert params["attributes"] == dict(SteeringAttributes(humor=1))
    assert "api_key" not in params
    assert llm.asdict()["_type"] == "karakuri-chat" == llm._llm_type


# --- serialised form ---


def test_round_trip(scripted_models: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = ChatKarakuri(
        model=MODEL,
        attributes={"humor": 1},
        api_key="hidden",
        stop="x",
        seed=3,
        attribute_bounds={"toxicity": (0, 1)},
        message_attributes="clamp",
        max_tokens=9,
    )
    text = dumps(llm)
    assert "hidden" not in text
    assert "hidden" not in repr(llm)
    monkeypatch.setenv("KARAKURI_API_KEY", "from-env")
    loaded = load(
        json.loads(text),
        allowed_objects=[ChatKarakuri],
        valid_namespaces=["karakuri_integrations"],
        secrets_from_env=True,
    )
    assert type(loaded) is ChatKarakuri
    assert loaded.asdict() == llm.asdict()
    assert loaded.api_key == SecretStr("from-env")
    assert loaded.render_prompt("q") == llm.render_prompt("q")
    assert loaded.attribute_bounds == {"toxicity": (0, 1)}


def test_an_engine_object_cannot_be_loaded_back(echo: Make) -> None:
    serialized = dumpd(echo())
    with pytest.raises(NotImplementedError):
        load(serialized, allowed_objects=[ChatKarakuri], valid_namespaces=["karakuri_integrations"])


def test_the_key_comes_from_the_environment(echo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARAKURI_API_KEY", "from-env")
    assert echo().api_key == SecretStr("from-env")
    assert echo(api_key=None).api_key is None
    assert "from-env" not in repr(echo()) + str(echo()) + str(echo()._identifying_params)


def test_repr_has_no_prompt(echo: Make) -> None:
    llm = echo()
    llm.invoke("secret words")
    assert "secret words" not in repr(llm)


# --- profile and tokens ---


def test_profile(echo: Make) -> None:
    profile = echo().profile
    assert profile["max_input_tokens"] == 4096
    for able in ("tool_calling", "tool_choice", "tool_call_streaming", "structured_output"):
        assert profile[able] is True
    assert profile["text_inputs"]
    assert not profile["image_inputs"]
    large = ChatKarakuri(engine=ScriptedEngine([], "karakuri-ai/karakuri-lm-8x7b-chat-v0.1"))
    assert large.profile["max_input_tokens"] == 32768
    assert echo(profile={"max_input_tokens": 7}).profile == {"max_input_tokens": 7}


@pytest.mark.parametrize(
    ("fields", "window"),
    [({"model": MODEL}, 4096), ({"model": "a/b"}, None), ({"model": "a/b", "context_window": 9}, 9)],
)
def test_construction_asks_no_hub(fields: dict, window: int | None) -> None:
    assert ChatKarakuri(**fields).profile.get("max_input_tokens") == window


def test_token_counts_are_those_of_the_real_prompt(echo: Make) -> None:
    llm = echo()
    message = [SystemMessage("s"), HumanMessage("q")]
    assert llm.get_num_tokens_from_messages(message) == llm.invoke(message).usage_metadata["input_tokens"]
    assert llm.get_num_tokens("hello") == 5
    assert llm.get_token_ids("hi") == [104, 105]
    assert echo(custom_get_token_ids=lambda text: [1]).get_num_tokens("hello") == 1
    tool = {"title": "f", "type": "object", "properties": {"a": {"type": "string"}}}
    counted = llm.get_num_tokens_from_messages(message, tools=[tool])
    assert counted == llm.bind_tools([tool]).invoke(message).usage_metadata["input_tokens"]
    assert counted > llm.get_num_tokens_from_messages(message)


def test_parts_of_conversations_can_be_counted(echo: Make) -> None:
    llm = echo()
    history = [SystemMessage("s"), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
    counts = [llm.get_num_tokens_from_messages(history[:end]) for end in range(5)]
    assert counts[0] == 0
    assert counts[1:] == sorted(counts[1:])
    enough = llm.get_num_tokens_from_messages([history[0], history[3]])
    kept = trim_messages(
        history, max_tokens=enough, token_counter=llm, strategy="last", include_system=True, start_on="human"
    )
    assert [message.text for message in kept] == ["s", "three"]


# --- errors ---

BUSY = errors.BusyError("the queue of 8 calls is full")


class Failing(ScriptedEngine):
    """Sends a piece, then fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__([])
        self.error = error

    def stream(self, prompt: Any, sampling: Any) -> Any:
        yield Piece("part", Usage(1, 1))
        raise self.error

    async def astream(self, prompt: Any, sampling: Any) -> Any:
        for piece in self.stream(prompt, sampling):
            yield piece


@pytest.mark.parametrize(
    ("error", "theirs", "retryable"),
    [
        (BUSY, core.ModelRateLimitError, True),
        (errors.DeadlineError("timeout"), core.ModelTimeoutError, True),
        (errors.WorkerError("failed"), core.ModelAPIError, True),
        (errors.DeviceMemoryError("oom"), core.ModelAPIError, True),
        (errors.EngineClosedError("closed"), core.ModelAPIError, True),
        (errors.NumericalError("nan", step=3), core.ModelAPIError, False),
        (errors.ModelLoadError("no weights"), core.ModelAPIError, False),
        (errors.ModelFolderError("absent"), core.ModelNotFoundError, False),
        (errors.UnsafeModelError("pickle"), core.ModelAPIError, False),
        (errors.MissingDependencyError("pip install x"), core.ModelAPIError, False),
        (errors.ForkedProcessError("fork"), core.ModelAPIError, False),
        (errors.ScriptError("empty"), core.ModelAPIError, False),
        (errors.ContextOverflowError(9, None, 8), core.ContextOverflowError, False),
        (errors.UnknownModelError("unknown"), core.ModelNotFoundError, False),
        (errors.MessageError("message 3", 3), core.ModelInvalidRequestError, False),
        (errors.TemplateInjectionError(1, 2, "[INST]"), core.ModelInvalidRequestError, False),
        (errors.AttributeConfigError("humor"), core.ModelInvalidRequestError, False),
        (errors.OptionError("top_p"), core.ModelInvalidRequestError, False),
        (errors.UnsupportedError("tools"), core.ModelInvalidRequestError, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_errors_belong_to_both_trees(error: Exception, theirs: type, retryable: bool) -> None:
    llm = ChatKarakuri(engine=Failing(error))

    async def drain() -> None:
        _ = [chunk async for chunk in llm.astream("q")]

    calls: list[Callable[[], Any]] = [lambda: llm.invoke("q"), lambda: list(llm.stream("q"))]
    for call in calls:
        with pytest.raises(type(error)) as caught:
            call()
        _same(caught.value, error, theirs, retryable)
    for acall in (lambda: llm.ainvoke("q"), drain):
        with pytest.raises(type(error)) as caught:
            await acall()
        _same(caught.value, error, theirs, retryable)


def _same(raised: Any, error: Any, theirs: type, retryable: bool) -> None:
    assert isinstance(raised, theirs)
    assert isinstance(raised, core.ModelError)
    assert raised.is_retryable is retryable
    assert str(raised) == str(error)
    for name in ("index", "offset", "literal", "n_prompt", "n_ctx", "step"):
        assert getattr(raised, name, None) == getattr(error, name, None)
    if isinstance(error, errors.EngineError):
        assert raised.partial_text == "part"
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is type(raised)
    assert (str(again), again.__dict__) == (str(raised), raised.__dict__)
    assert isinstance(copy.copy(raised), type(error))


def test_the_cause_of_an_error_is_kept() -> None:
    failed = errors.WorkerError("the worker failed")
    failed.__cause__ = ZeroDivisionError("at the bottom")
    with pytest.raises(errors.WorkerError) as caught:
        ChatKarakuri(engine=Failing(failed)).invoke("q")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_overflow_numbers(echo: Make) -> None:
    with pytest.raises(errors.ContextOverflowError) as caught:
        echo().invoke("q", max_tokens=5000)
    assert isinstance(caught.value, core.ContextOverflowError)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.n_max_new, caught.value.n_ctx) == (5000, 4096)


def test_with_retry_and_with_fallbacks() -> None:
    llm = ChatKarakuri(engine=ScriptedEngine([BUSY, "second"]))
    retried = llm.with_retry(retry_if_exception_type=(core.ModelRateLimitError,), wait_exponential_jitter=False)
    assert retried.invoke("q").text == "second"
    primary = ChatKarakuri(engine=ScriptedEngine([BUSY, BUSY]))
    fallback = primary.with_fallbacks([ChatKarakuri(engine=ScriptedEngine(["other", "other"]))])
    assert fallback.invoke("q").text == "other"
    assert asyncio.run(fallback.ainvoke("q")).text == "other"


def test_the_error_callback_sees_our_error() -> None:
    seen: list[BaseException] = []

    class Errors(BaseCallbackHandler):
        def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
            seen.append(error)

    with pytest.raises(errors.BusyError):
        ChatKarakuri(engine=ScriptedEngine([BUSY])).invoke("q", config={"callbacks": [Errors()]})
    assert isinstance(seen[0], core.ModelRateLimitError)


# --- documentation and import ---


async def test_the_docstrings_code_runs(scripted_models: dict) -> None:
    blocks = re.findall(r"```python\n(.*?)```", inspect.cleandoc(ChatKarakuri.__doc__ or ""), re.DOTALL)
    assert len(blocks) == 10
    names: dict[str, Any] = {"__name__": "docstring"}
    for block in blocks:
        code = compile(textwrap.dedent(block), "<docstring>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result
    assert "humor: 3" in scripted_models[MODEL].prompts[-2]
    assert "complexity: 0" in scripted_models[MODEL].prompts[-1]


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, karakuri_integrations.langchain; print(*sorted(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"torch", "transformers", "llama_index", "numpy", "karakuri_integrations.engines.local"}


def test_local_engines_that_differ_have_their_own_cache_keys() -> None:
    from karakuri_integrations.engines import LocalEngine

    engines = [LocalEngine(), LocalEngine(quantization="bf16"), LocalEngine(context_window=100)]
    keys = {ChatKarakuri(engine=engine)._get_llm_string() for engine in engines}
    assert len(keys) == 3
    assert len({ChatKarakuri(engine=LocalEngine())._get_llm_string() for _ in range(2)}) == 1
