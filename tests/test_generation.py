"""stream()/astream(), the Provider and the ScriptedEngine, without any framework."""

import copy
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from karakuri_integrations.conversation import Message, Piece, Prompt, Request, Sampling, Usage
from karakuri_integrations.engines import LocalEngine, ScriptedEngine, hub
from karakuri_integrations.errors import (
    ContextOverflowError,
    EngineError,
    ModelLoadError,
    NumericalError,
    OptionError,
    ScriptError,
    UnknownModelError,
    UnsupportedError,
)
from karakuri_integrations.generation import Engine, astream, fold, stream
from karakuri_integrations.provider import EngineFields, Provider, check_options, open_engine
from karakuri_integrations.templates import render

QUESTION = [Message("user", "hi")]


def prompt(engine: Engine) -> Prompt:
    return render(Request(tuple(QUESTION)), engine.family)


class Cut(ScriptedEngine):
    """Yields two pieces, then fails or simply ends; remembers whether its iterator was closed."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__([])
        self.error, self.closed = error, False

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        try:
            yield Piece("par", Usage(1, 1))
            yield Piece("tial", Usage(1, 2))
            if self.error:
                raise self.error
        finally:
            self.closed = True

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        for piece in self.stream(prompt, sampling):
            yield piece


def test_scripted_engine_is_an_engine() -> None:
    assert isinstance(ScriptedEngine([]), Engine)


async def test_stream_and_astream_agree_and_prompts_are_recorded() -> None:
    engine = ScriptedEngine(["こんにちは", "こんにちは"])
    whole = fold(stream(engine, prompt(engine), Sampling()))
    parts = [d async for d in astream(engine, prompt(engine), Sampling())]
    assert fold(parts) == whole
    assert (whole.text, whole.finish_reason) == ("こんにちは", "stop")
    assert whole.usage == Usage(engine.count_tokens(prompt(engine)), 5)
    assert engine.prompts == [prompt(engine).text] * 2
    with pytest.raises(ScriptError, match="2 replies and this is call 3"):
        fold(stream(engine, prompt(engine), Sampling()))


def test_scripted_engine_cuts_at_max_tokens_and_checks_the_window() -> None:
    engine = ScriptedEngine(["abcdef"] * 3, context_window=300)
    reply = fold(stream(engine, prompt(engine), Sampling(max_tokens=3)))
    assert (reply.text, reply.finish_reason) == ("abc", "length")
    n_prompt = engine.count_tokens(prompt(engine))
    with pytest.raises(ContextOverflowError) as caught:
        fold(stream(engine, prompt(engine), Sampling(max_tokens=300 - n_prompt + 1)))
    assert (caught.value.n_prompt, caught.value.n_max_new, caught.value.n_ctx) == (n_prompt, 301 - n_prompt, 300)
    assert len(engine.prompts) == 1
    fold(stream(engine, prompt(engine), Sampling(max_tokens=300 - n_prompt)))


@pytest.mark.parametrize("error", [NumericalError("NaN", 2), None])
async def test_an_error_carries_the_exact_partial_text(error: EngineError | None) -> None:
    kind = type(error) if error else EngineError
    for run in range(2):
        engine = Cut(error)
        with pytest.raises(kind) as caught:
            if run:
                async for _ in astream(engine, prompt(engine), Sampling()):
                    pass
            else:
                list(stream(engine, prompt(engine), Sampling()))
        assert caught.value.partial_text == "partial"
        assert engine.closed


def test_closing_a_stream_and_a_stop_string_close_the_engine() -> None:
    engine = Cut()
    deltas = stream(engine, prompt(engine), Sampling())
    next(deltas)
    deltas.close()
    assert engine.closed
    engine = Cut()
    assert fold(stream(engine, prompt(engine), Sampling(stop=("rt",)))).text == "pa"
    assert engine.closed


def test_open_engine_says_what_excludes_what() -> None:
    engine = ScriptedEngine([])
    assert open_engine(EngineFields(engine=engine)) is engine
    with pytest.raises(OptionError, match="exclude each other"):
        open_engine(EngineFields(engine=engine, base_url="http://localhost"))
    with pytest.raises(OptionError, match="belongs to a local model"):
        open_engine(EngineFields(base_url="http://localhost", quantization="bf16"))
    with pytest.raises(OptionError, match="give base_url="):
        open_engine(EngineFields(server="vllm"))
    with pytest.raises(OptionError, match="http or https address"):
        open_engine(EngineFields(base_url="localhost:8000"))
    with pytest.raises(UnknownModelError, match="karakuri-lm-70b-chat"):
        ScriptedEngine([], model="gpt-2")
    assert copy.deepcopy(engine) is engine


def test_options_are_refused_by_name() -> None:
    assert check_options({"temperature": 0.5, "stop": None, "functions": []}) == {"temperature": 0.5}
    with pytest.raises(OptionError, match="did you mean 'temperature'") as caught:
        check_options({"temprature": "secret"})
    assert "secret" not in str(caught.value)
    with pytest.raises(UnsupportedError, match="tools="):
        check_options({"functions": [1]})
    assert check_options({"tools": [], "strict": True}) == {"tools": [], "strict": True}


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": True}, {"top_p": 0}, {"top_p": 1.1},
        {"top_k": -1}, {"top_k": 1.5}, {"min_p": 2}, {"repetition_penalty": 0}, {"seed": -1}, {"stop": [""]},
        {"max_tokens": 0}, {"max_tokens": 1.0}, {"timeout": 0}, {"cache_scope": ""}, {"cache_scope": 7},
    ],
)  # fmt: skip
def test_sampling_refuses_values_out_of_range(bad: dict) -> None:
    with pytest.raises(OptionError, match=next(iter(bad))):
        Sampling(**bad)


def test_a_calls_stop_replaces_the_constructors() -> None:
    provider = Provider(sampling=Sampling(stop="a", temperature=0.5))  # type: ignore[arg-type]
    assert provider.merged({"stop": ["b"]}) == Sampling(stop=("b",), temperature=0.5)
    assert provider.merged({}).stop == ("a",)


def test_overflow_drops_the_oldest_turns_and_says_which() -> None:
    engine = ScriptedEngine(["ok"] * 2, context_window=700)
    turns = [Message("system", "S", None, 0)]
    for place in range(1, 12):
        turns.append(Message("user" if place % 2 else "assistant", str(place) * 20, None, place))
    refused = Provider(EngineFields(engine=engine))
    with pytest.raises(ContextOverflowError):
        fold(refused.prepare(turns, {}).stream())
    call = Provider(EngineFields(engine=engine), overflow="drop_oldest_turns").prepare(turns, {"max_tokens": 50})
    assert call.dropped == tuple(range(1, call.dropped[-1] + 1))
    assert engine.count_tokens(call.prompt) + 50 <= 700
    assert "<<SYS>>\nS\n" in call.prompt.text
    assert call.prompt.text.count("[INST]") == 3
    assert call.metadata()["dropped_messages"] == list(call.dropped)
    assert fold(call.stream()).text == "ok"


def test_overflow_uses_the_rest_of_the_window_when_only_the_last_turn_fits() -> None:
    engine = ScriptedEngine(["ok", "ok"], context_window=300)
    provider = Provider(EngineFields(engine=engine), overflow="drop_oldest_turns")
    last = Message("user", "x" * 140, None, 2)
    alone = provider.prepare([last], {})
    assert 300 - 300 // 16 < engine.count_tokens(alone.prompt) < 300
    call = provider.prepare([Message("user", "y" * 90), Message("assistant", "z", None, 1), last], {})
    assert (call.prompt, call.dropped) == (alone.prompt, (0, 1))
    assert fold(call.stream()).text == "ok"


def test_overflow_without_history_is_still_an_error() -> None:
    engine = ScriptedEngine(["ok"], context_window=200)
    provider = Provider(EngineFields(engine=engine), overflow="drop_oldest_turns")
    with pytest.raises(ContextOverflowError):
        fold(provider.prepare([Message("user", "x" * 300)], {}).stream())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization", "bf16"),
        ("device", "cpu"),
        ("cache_dir", "x"),
        ("local_files_only", True),
        ("context_window", 9),
    ],
)
def test_an_engine_takes_no_fields_that_it_would_ignore(field: str, value: object) -> None:
    with pytest.raises(OptionError, match=field):
        open_engine(EngineFields(engine=ScriptedEngine([]), **{field: value}))  # type: ignore[arg-type]
    assert open_engine(EngineFields(engine=ScriptedEngine([]), context_window=4096)).context_window == 4096


def test_a_calls_model_has_no_revision_and_no_template_of_another() -> None:
    fields = EngineFields(model="me/mine", revision="0" * 40, template="karakuri-lm-70b-chat-v0.1")
    known, unknown = "karakuri-ai/karakuri-lm-8x7b-instruct-v0.1", "me/other"
    provider = Provider(fields)
    assert provider.engine("me/mine") == open_engine(fields)
    assert provider.engine(known) == open_engine(EngineFields(model=known))
    assert provider.engine(unknown) == open_engine(EngineFields(model=unknown, template=fields.template))


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 10**400}, {"top_p": -(10**5000)}, {"max_tokens": -(10**5000)}, {"seed": 2**64}],
    ids=["temperature", "top_p", "max_tokens", "seed"],
)
def test_numbers_beyond_every_float_are_our_errors(fields: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="got"):
        Sampling(**fields)  # type: ignore[arg-type]


def test_the_demo_notice_is_seen_without_any_logging_set_up() -> None:
    script = (
        "from karakuri_integrations.provider import Provider\n"
        "from karakuri_integrations.conversation import Message\n"
        "for _ in range(2): Provider().prepare([Message('user', 'hi')], {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("karakuri-demo answers") == 1
    assert done.stdout == ""


def test_the_demo_notice_comes_once_to_calls_that_begin_together() -> None:
    script = (
        "import threading\n"
        "from karakuri_integrations import provider\n"
        "import karakuri_integrations.engines.checkpoint as checkpoint\n"
        "both, told = threading.Barrier(2), []\n"
        "def notify(message):\n"
        "    told.append(message)\n"
        "    try: both.wait(1)\n"
        "    except threading.BrokenBarrierError: pass\n"
        "checkpoint.notify = notify\n"
        "threads = [threading.Thread(target=provider._demo_notice) for _ in range(2)]\n"
        "for one in threads: one.start()\n"
        "for one in threads: one.join()\n"
        "print(len(told))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_demo_model_can_be_named_by_the_id_it_reports() -> None:
    assert open_engine(EngineFields(model="karakuri-demo"))._shared is LocalEngine()._shared  # type: ignore[attr-defined]
    assert LocalEngine("karakuri-demo").embedded and not LocalEngine("karakuri-lm-70b-chat-v0.1").embedded
    assert Provider(EngineFields(model="karakuri-demo")).render(QUESTION, {}).text.startswith("<s>[INST] hi [ATTR]")


def test_a_scripted_callable_may_be_slow_and_may_ask_the_engine() -> None:
    both = threading.Barrier(2, timeout=5)

    def reply(prompt: str) -> str:
        both.wait()
        return "a"

    slow = ScriptedEngine(reply)
    with ThreadPoolExecutor(2) as pool:
        replies = [
            pool.submit(lambda: fold(Provider(EngineFields(engine=slow)).prepare(QUESTION, {}).stream())) for _ in "ab"
        ]
        assert [one.result().text for one in replies] == ["a", "a"]
    assert len(slow.prompts) == 2


async def test_a_hub_is_asked_in_a_thread_for_formatted_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[threading.Thread] = []

    def fetch(*_: object, **__: object) -> Path:
        asked.append(threading.current_thread())
        raise ModelLoadError("no network")

    monkeypatch.setattr(hub, "fetch", fetch)
    with pytest.raises(UnknownModelError):
        await Provider(EngineFields(model="someone/model-of-mine")).aprepare_raw("<s>hi", {})
    assert asked and threading.main_thread() not in asked
    call = await Provider(EngineFields(engine=ScriptedEngine(["ok"]))).aprepare_raw("<s>hi", {})
    assert fold(call.stream()).text == "ok"


def test_whether_the_family_is_known_asks_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("the hub was asked"))
    unknown = LocalEngine("someone/model")
    assert not unknown.family_known
    assert not Provider(EngineFields(engine=unknown)).family_at_hand()
    assert not Provider(EngineFields(model=str(tmp_path / "absent"))).family_at_hand()
    assert Provider(EngineFields(model="someone/model", template="karakuri-lm-70b-chat-v0.1")).family_at_hand()
    assert Provider().family_at_hand() and Provider(EngineFields(engine=ScriptedEngine([]))).family_at_hand()
    assert not Provider().family_at_hand("someone/model")


def test_an_unknown_model_lists_the_families_also_where_no_hub_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> Path:
        raise ModelLoadError("no network")

    monkeypatch.setattr(hub, "fetch", fetch)
    with pytest.raises(
        UnknownModelError, match="'gpt-9' is not known to be .*; those are karakuri-lm-70b.*template=.*no network"
    ):
        Provider(EngineFields(model="gpt-9")).render(QUESTION, {})
    known = Provider(EngineFields(model="gpt-9", template="karakuri-lm-70b-chat-v0.1"))
    assert known.render(QUESTION, {}).text.startswith("<s>[INST] hi")


class Gathering(ScriptedEngine):
    """Notes how each reply was asked for."""

    def __init__(self, replies: list[str]) -> None:
        super().__init__(replies)
        self.asked = list[bool]()

    def stream(self, prompt: Prompt, sampling: Sampling, *, whole: bool = False) -> Iterator[Piece]:
        self.asked.append(whole)
        return super().stream(prompt, sampling)

    async def astream(self, prompt: Prompt, sampling: Sampling, *, whole: bool = False) -> AsyncIterator[Piece]:
        self.asked.append(whole)
        for piece in super().stream(prompt, sampling):
            yield piece


def test_an_engine_is_told_where_nobody_looks_at_a_reply_before_its_end() -> None:
    engine = Gathering(["ok"] * 5)
    provider = Provider(EngineFields(engine=engine))
    for how, options in (({"whole": True}, {}), ({}, {}), ({"whole": True}, {"stop": ["x"]})):
        assert fold(provider.prepare(QUESTION, options).stream(**how)).text == "ok"
    assert engine.asked == [True, False, False]  # what a stop text may end has to be looked at


async def test_and_asynchronously() -> None:
    engine = Gathering(["ok"])
    call = Provider(EngineFields(engine=engine)).prepare(QUESTION, {})
    assert fold([one async for one in call.astream(whole=True)]).text == "ok"
    assert engine.asked == [True]


class Older(LocalEngine):
    """Whoever wrote this knew nothing of `whole`."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:  # type: ignore[override]
        yield Piece("ok", Usage(1, 1), "stop")


@pytest.mark.parametrize("engine", [ScriptedEngine(["ok"]), Older()])
def test_an_engine_that_does_not_ask_is_not_told(engine: Engine) -> None:
    assert fold(Provider(EngineFields(engine=engine)).prepare(QUESTION, {}).stream(whole=True)).text == "ok"


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
async def test_which_calls_of_the_frameworks_look_at_the_end_only(framework: str) -> None:
    engine = Gathering(["ok"] * 4)
    if framework == "langchain":
        chat = pytest.importorskip("karakuri_integrations.langchain").ChatKarakuri(engine=engine)
        chat.invoke("q")
        await chat.ainvoke("q")
        [*chat.stream("q")]
        [one async for one in chat.astream("q")]
    else:
        llm = pytest.importorskip("karakuri_integrations.llama_index").KarakuriLLM(engine=engine)
        llm.complete("q")
        await llm.acomplete("q")
        [*llm.stream_complete("q")]
        [one async for one in await llm.astream_complete("q")]
    assert engine.asked == [True, True, False, False]
