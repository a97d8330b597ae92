"""stream()/astream(), the Provider and the ScriptedEngine, without any framework."""

import copy
from collections.abc import AsyncIterator, Iterator

import pytest

from karakuri_integrations.conversation import Message, Piece, Prompt, Request, Sampling, Usage
from karakuri_integrations.engines import ScriptedEngine
from karakuri_integrations.errors import (
    ContextOverflowError,
    EngineError,
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
    with pytest.raises(UnsupportedError, match="remote"):
        open_engine(EngineFields(base_url="http://localhost"))
    with pytest.raises(UnknownModelError, match="karakuri-lm-70b-chat"):
        ScriptedEngine([], model="gpt-2")
    assert copy.deepcopy(engine) is engine


def test_options_are_refused_by_name() -> None:
    assert check_options({"temperature": 0.5, "stop": None, "tools": []}) == {"temperature": 0.5}
    with pytest.raises(OptionError, match="did you mean 'temperature'") as caught:
        check_options({"temprature": "secret"})
    assert "secret" not in str(caught.value)
    with pytest.raises(UnsupportedError, match="tools"):
        check_options({"tools": [1]})


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": True}, {"top_p": 0}, {"top_p": 1.1},
        {"top_k": -1}, {"top_k": 1.5}, {"min_p": 2}, {"repetition_penalty": 0}, {"seed": -1}, {"stop": [""]},
        {"max_tokens": 0}, {"max_tokens": 1.0}, {"timeout": 0},
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


def test_overflow_without_history_is_still_an_error() -> None:
    engine = ScriptedEngine(["ok"], context_window=200)
    provider = Provider(EngineFields(engine=engine), overflow="drop_oldest_turns")
    with pytest.raises(ContextOverflowError):
        fold(provider.prepare([Message("user", "x" * 300)], {}).stream())
