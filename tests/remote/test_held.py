"""Replies held to a grammar: one request or two, sync and async, on a scripted server; what each request says."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from loopback import RESET, Exchange, Loopback, Reply
from wires import CHAT, COMPLETION, DONE, sse

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")

from karakuri_integrations.conversation import Delta, Grammar, Prompt, Sampling, Usage
from karakuri_integrations.conversation import Reply as Answer
from karakuri_integrations.engines import RemoteEngine
from karakuri_integrations.errors import (
    RemoteConnectionError,
    RemoteRequestError,
    RemoteTimeoutError,
    StreamInterruptedError,
    UnsupportedError,
    UnsupportedSchemaError,
)
from karakuri_integrations.generation import astream, fold, stream
from karakuri_integrations.provider import EngineFields, Provider

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
OPENER = "[TOOL_CALLS]\n"
LIST = '[{"name": "weather", "arguments": {"city": "東京"}}]'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "天気", "parameters": CITY}}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
WAYS = ("stream", "astream")


def engine(loopback: Loopback, *script: Any, key: str = "a", **more: Any) -> RemoteEngine:
    url = loopback.script(key, list(script))
    return RemoteEngine(url, MODEL, **{"server": "vllm", "timeouts": {"idle": 5, "first_token": 5}} | more)


def prompt_of(text: str = "東京の天気は?", **options: Any) -> Prompt:
    provider = Provider(EngineFields(model=MODEL, base_url="http://127.0.0.1:9/v1", server="vllm"))
    return provider.render([provider.user(text, {}, 0)], {"tools": TOOLS} | options)


def answer(one: RemoteEngine, prompt: Prompt, way: str = "stream", **sampling: Any) -> Answer:
    return fold(deltas(one, prompt, way, **sampling))


def deltas(one: RemoteEngine, prompt: Prompt, way: str = "stream", **sampling: Any) -> list[Delta]:
    asked = Sampling(**{"max_tokens": 100} | sampling)
    if way == "stream":
        return list(stream(one, prompt, asked))

    async def collect() -> list[Delta]:
        return [delta async for delta in astream(one, prompt, asked)]

    return asyncio.run(collect())


def endless(*events: str, usage: bool = False) -> Reply:
    """The first request: it never ends by itself."""
    counted = [{"prompt_tokens": 40, "completion_tokens": 3 * place + 3} for place in range(len(events))]
    parts = [
        sse(COMPLETION.delta(text, **({"usage": counted[place]} if usage else {}))) for place, text in enumerate(events)
    ]
    return Reply(parts, end="stall")


def ends(text: str, prompt_tokens: int = 60, completion_tokens: int = 20, finish: str = "stop") -> Reply:
    """The second request."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage = sse({**COMPLETION.base, "choices": [], "usage": counts})
    return Reply([*COMPLETION.deltas(text), COMPLETION.end(finish), usage, DONE])


def bodies(loopback: Loopback, key: str = "a") -> list[dict[str, Any]]:
    return [one.request.json for one in loopback.exchanges(key)]


def closed(exchange: Exchange, within: float = 2.0) -> bool:
    ends_at = time.monotonic() + within
    while exchange.closed_at is None and time.monotonic() < ends_at:
        time.sleep(0.01)
    return exchange.closed_at is not None


# --- one request ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_forced_call_is_one_request_with_the_schema(loopback: Loopback, way: str) -> None:
    one = engine(loopback, Reply(COMPLETION.stream(LIST)))
    prompt = prompt_of(tool_choice="required")
    reply = answer(one, prompt, way, stop=("天",))
    (body,) = bodies(loopback)
    schema = body["structured_outputs"]["json"]
    assert schema.pop("x-guidance") == {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    assert schema == json.loads(prompt.grammar.schema)
    assert "continuous_usage_stats" not in body["stream_options"]
    assert "stop" not in body  # none is looked for in calls
    assert body["prompt"].endswith(OPENER)
    assert [(call.name, call.arguments) for call in reply.calls] == [("weather", '{"city": "東京"}')]
    assert reply.finish_reason == "tool_calls"


MISFIT = '[{"name": "weather", "arguments": {"city": "東京"}}, {"name": "weather", "arguments": {"city": 7}}]'


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_the_server_held_and_that_does_not_fit_is_invalid_with_its_text(
    loopback: Loopback, way: str
) -> None:
    one = engine(loopback, Reply(COMPLETION.stream(MISFIT)))
    good, bad = answer(one, prompt_of(tool_choice="required"), way).calls
    assert good.error is None
    assert bad.arguments == '{"city": 7}'
    assert bad.error == "the call's arguments do not fit their schema ('type' at city)"


@pytest.mark.parametrize("way", WAYS)
def test_so_it_is_behind_text(loopback: Loopback, way: str) -> None:
    one = engine(loopback, endless("はい。\n", OPENER + "[", usage=True), ends(MISFIT))
    good, bad = answer(one, prompt_of(), way).calls
    assert good.error is None and "('type' at city)" in (bad.error or "")


def test_what_is_only_read_is_not_checked(loopback: Loopback) -> None:
    """A framework may take the text "7" for a number; a server that was told nothing may write it."""
    one = engine(loopback, Reply(COMPLETION.stream(MISFIT)), server="openai")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [call.error for call in answer(one, prompt_of(tool_choice="required")).calls] == [None, None]


def test_a_reply_that_is_json_is_one_request_with_its_schema(loopback: Loopback) -> None:
    one = engine(loopback, Reply(COMPLETION.stream('{"city": "京都"}')))
    reply = answer(one, prompt_of(tools=None, response_format=FORMAT), stop=("}",))
    (body,) = bodies(loopback)
    assert body["structured_outputs"]["json"]["required"] == ["city"]
    assert body["stop"] == ["}"]  # text is ended by stop strings
    assert reply.text == '{"city": "京都"'


def test_a_prompt_without_grammar_is_asked_as_ever(loopback: Loopback) -> None:
    one = engine(loopback, Reply(COMPLETION.stream("はい")))
    assert answer(one, prompt_of(tools=None), stop=("。",)).text == "はい"
    (body,) = bodies(loopback)
    assert "structured_outputs" not in body and body["stream_options"] == {"include_usage": True}
    assert body["stop"] == ["。"]


# --- two requests ---------------------------------------------------------------------------------------------------


def splits() -> Iterator[tuple[str, ...]]:
    whole = f"はい。{OPENER}"
    for place in range(len(whole) + 1):
        yield whole[:place], whole[place:] + '[{"na'
    yield (*whole, "[", "{")
    yield (whole + '[{"name": "other", "arg',)
    yield ("はい。[TOOL", "_CALLS]", "\n")


@pytest.mark.parametrize("way", WAYS)
def test_the_opener_is_found_however_it_is_split(loopback: Loopback, way: str) -> None:
    prompt = prompt_of()
    for place, events in enumerate(splits()):
        key = f"{way}{place}"
        one = engine(loopback, endless(*[text for text in events if text]), ends(LIST), key=key)
        found = deltas(one, prompt, way)
        reply = fold(found)
        assert reply.text == "はい。"
        assert [(call.name, call.arguments, call.error) for call in reply.calls] == [
            ("weather", '{"city": "東京"}', None)
        ]
        assert reply.finish_reason == "tool_calls"
        first, second = bodies(loopback, key)
        assert second["prompt"] == first["prompt"] + "はい。" + OPENER
        assert "structured_outputs" not in first
        assert first["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
        assert second["structured_outputs"]["json"]["type"] == "array"
        assert second["stream_options"] == {"include_usage": True}
        assert "stop" not in first and "stop" not in second
        assert closed(loopback.exchanges(key)[0])


@pytest.mark.parametrize("way", WAYS)
def test_a_call_at_the_very_start_and_a_reply_without_one(loopback: Loopback, way: str) -> None:
    begins = engine(loopback, endless(" ", OPENER), ends(LIST), key="begins")
    reply = answer(begins, prompt_of(), way)
    assert (reply.text, len(reply.calls)) == ("", 1)
    never = engine(loopback, Reply(COMPLETION.stream(" [TOOL_CALLS] は書きません。")), key="never")
    reply = answer(never, prompt_of(), way)
    assert (reply.text, reply.calls, reply.finish_reason) == ("[TOOL_CALLS] は書きません。", (), "stop")
    assert reply.usage == Usage(11, 25)
    assert len(loopback.exchanges("never")) == 1


def test_text_flows_while_the_first_request_is_under_way(loopback: Loopback) -> None:
    one = engine(loopback, Reply([COMPLETION.event("は"), COMPLETION.event("い")], end="stall"))
    found = stream(one, prompt_of(), Sampling(max_tokens=9))
    assert [next(found).text, next(found).text] == ["は", "い"]
    found.close()


def test_a_stop_string_ends_the_text_before_a_call(loopback: Loopback) -> None:
    one = engine(loopback, endless("はい。", "では", OPENER), ends(LIST))
    reply = answer(one, prompt_of(), stop=("で",))
    assert (reply.text, reply.calls, reply.finish_reason) == ("はい。", (), "stop")
    assert len(loopback.exchanges()) == 1


def test_both_requests_are_answered_by_the_same_endpoint(loopback: Loopback) -> None:
    script = [endless("はい", OPENER), ends(LIST)]
    for turn in range(4):
        urls = [loopback.script(f"{turn}{name}", script) for name in "abc"]
        one = RemoteEngine(urls, MODEL, server="vllm")
        assert len(answer(one, prompt_of()).calls) == 1
        assert sorted(len(loopback.exchanges(f"{turn}{name}")) for name in "abc") == [0, 0, 2]


def test_data_that_looks_like_a_control_token_is_escaped_once_in_both(loopback: Loopback) -> None:
    one = engine(loopback, endless("<\u2060s> です。", OPENER), ends(LIST))
    reply = answer(one, prompt_of("<s> とは?"))
    assert reply.text == "<s> です。"
    first, second = bodies(loopback)
    assert "<\u2060s> とは?" in first["prompt"]
    assert second["prompt"] == first["prompt"] + "<\u2060s> です。" + OPENER


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_counts_are_of_both_requests(loopback: Loopback, way: str) -> None:
    one = engine(loopback, endless("はい。", OPENER, usage=True), ends(LIST, 47, 20))
    reply = answer(one, prompt_of(), way, max_tokens=50)
    assert reply.usage == Usage(40, 6 + 20)
    assert [body["max_tokens"] for body in bodies(loopback)] == [50, 44]


def test_a_server_that_counts_at_the_end_only(loopback: Loopback) -> None:
    one = engine(loopback, endless("はい。", OPENER), ends(LIST, 60, 20), server="llamacpp")
    reply = answer(one, prompt_of(), max_tokens=50)
    assert reply.usage == Usage(60, 20)  # how many of the 60 are text of the reply is not known
    assert [body["max_tokens"] for body in bodies(loopback)] == [50, 48]  # an event counts as a token


def test_llama_cpps_running_counts(loopback: Loopback) -> None:
    timings = [{"cache_n": 7, "prompt_n": 33, "predicted_n": made} for made in (2, 5)]
    parts = [sse(COMPLETION.delta(text, timings=timings[place])) for place, text in enumerate(("はい。", OPENER))]
    one = engine(loopback, Reply(parts, end="stall"), ends(LIST, 45, 20), server="llamacpp")
    reply = answer(one, prompt_of(), max_tokens=50)
    assert reply.usage == Usage(40, 25, 7)
    first, second = bodies(loopback)
    assert (first["timings_per_token"], first["max_tokens"], second["max_tokens"]) == (True, 50, 45)
    assert "timings_per_token" not in second


def test_counts_by_a_tokenizer(loopback: Loopback) -> None:
    pytest.importorskip("tokenizers")
    from real_servers import DEMO

    one = engine(loopback, endless("はい。", OPENER), ends(LIST, 60, 20), server="ollama", tokenizer=str(DEMO))
    lines = [{"response": text, "done": False} for text in ("はい。", OPENER)]
    then = [{"response": LIST, "done": False}, {"response": "", "done": True, "done_reason": "stop"}]
    prompt = prompt_of()
    count = one.count_tokens(prompt)
    used = one.count_tokens(prompt.continued(f"はい。{OPENER}")) - count
    then[-1] |= {"prompt_eval_count": count + used, "eval_count": 20}
    loopback.script("a", [Reply(map(_line, lines), end="stall"), Reply(map(_line, then))])
    reply = answer(one, prompt, max_tokens=50)
    assert reply.usage == Usage(count, used + 20)
    first, second = bodies(loopback)
    assert (first["options"]["num_predict"], second["options"]["num_predict"]) == (50, 50 - used)
    assert "format" not in first and second["format"]["type"] == "array"


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("way", WAYS)
def test_without_a_token_left_the_reply_ends_at_the_opener(loopback: Loopback, way: str) -> None:
    one = engine(loopback, endless("はい。", OPENER, usage=True), ends(LIST))
    reply = answer(one, prompt_of(), way, max_tokens=6)
    assert (reply.text, reply.finish_reason, reply.usage) == ("はい。", "length", Usage(40, 6))
    assert reply.calls[0].error
    assert len(loopback.exchanges()) == 1


def test_a_full_window_ends_the_reply_at_the_opener(loopback: Loopback) -> None:
    pytest.importorskip("tokenizers")
    from real_servers import DEMO

    prompt = prompt_of()
    count = engine(loopback, tokenizer=str(DEMO)).count_tokens(prompt)
    one = engine(loopback, endless("はい。" * 9, OPENER), ends(LIST), tokenizer=str(DEMO), context_window=count + 20)
    reply = answer(one, prompt, max_tokens=None)
    assert (reply.finish_reason, len(loopback.exchanges())) == ("length", 1)


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_second_request_is_tried_again(loopback: Loopback, way: str) -> None:
    down = Reply(status=503, framing="length", headers=(("Retry-After", "0.01"),))
    one = engine(loopback, endless("はい", OPENER), RESET, down, ends(LIST))
    assert len(answer(one, prompt_of(), way).calls) == 1
    asked = loopback.exchanges()
    assert len(asked) == 4
    ids = [one.request.headers["x-request-id"] for one in asked]
    assert ids[0] != ids[1] == ids[2] == ids[3]
    assert asked[1].request.body == asked[3].request.body


@pytest.mark.parametrize("way", WAYS)
def test_the_first_request_is_tried_again(loopback: Loopback, way: str) -> None:
    one = engine(loopback, RESET, endless("はい", OPENER), ends(LIST))
    assert len(answer(one, prompt_of(), way).calls) == 1
    assert len(loopback.exchanges()) == 3


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_in_the_second_request_has_the_text_of_both(loopback: Loopback, way: str) -> None:
    half = Reply(COMPLETION.deltas(LIST[:20]), end="fin")
    one = engine(loopback, endless("はい。", OPENER), half)
    with pytest.raises(StreamInterruptedError) as caught:
        answer(one, prompt_of(), way)
    assert caught.value.partial_text == "はい。" + OPENER + LIST[:20]
    refused = engine(loopback, endless("はい。", OPENER), RESET, key="b", max_retries=0)
    with pytest.raises(RemoteConnectionError) as broken:
        answer(refused, prompt_of(), way)
    assert broken.value.partial_text == "はい。" + OPENER


@pytest.mark.parametrize("way", WAYS)
def test_the_deadline_is_of_both_requests(loopback: Loopback, way: str) -> None:
    slow = Reply([1.2, COMPLETION.event("はい"), COMPLETION.event(OPENER)], end="stall")
    one = engine(loopback, slow, Reply([COMPLETION.event("[")], end="stall"))
    began = time.monotonic()
    with pytest.raises(RemoteTimeoutError) as caught:
        answer(one, prompt_of(), way, timeout=1.6)
    assert caught.value.stage == "total"
    assert time.monotonic() - began < 2.6  # 2.8 and more if the second one had a deadline of its own
    assert caught.value.partial_text == "はい" + OPENER + "["


@pytest.mark.parametrize("phase", [0, 1])
def test_closing_the_stream_closes_the_connection(loopback: Loopback, phase: int) -> None:
    one = engine(loopback, endless(*(["はい"] if phase == 0 else ["はい", OPENER])), endless('[{"name": "weather", '))
    found = one.stream(prompt_of(), Sampling(max_tokens=50))
    for _ in range(1 + 2 * phase):
        next(found)
    found.close()
    assert len(loopback.exchanges()) == 1 + phase
    assert all(closed(each) for each in loopback.exchanges())


@pytest.mark.parametrize("phase", [0, 1])
async def test_cancelling_the_task_closes_the_connection(loopback: Loopback, phase: int) -> None:
    one = engine(loopback, endless(*(["はい"] if phase == 0 else ["はい", OPENER])), endless('[{"name": "weather", '))
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def read() -> None:
        async for piece in one.astream(prompt_of(), Sampling(max_tokens=50)):
            seen.put_nowait(piece.text)

    task = asyncio.create_task(read())
    for _ in range(1 + 2 * phase):
        await seen.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(loopback.exchanges()) == 1 + phase
    assert all([await asyncio.to_thread(closed, each) for each in loopback.exchanges()])


# --- text that is JSON, or calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("begun", ["{", " {", "[T", "は", " [TOOL_CALLS] ["])
def test_a_reply_that_is_json_or_calls_is_held_to_either(loopback: Loopback, way: str, begun: str) -> None:
    one = engine(loopback, endless(*begun, "x"), ends('{"city": "京都"}', 40, 9))
    reply = answer(one, prompt_of(response_format=FORMAT), way)
    assert (reply.text, reply.calls, reply.usage) == ('{"city": "京都"}', (), Usage(40, 9))
    first, second = bodies(loopback)
    assert second["prompt"] == first["prompt"]
    assert second["max_tokens"] == first["max_tokens"]
    assert second["structured_outputs"]["json"]["required"] == ["city"]
    assert closed(loopback.exchanges()[0])


@pytest.mark.parametrize("way", WAYS)
def test_and_the_calls_too(loopback: Loopback, way: str) -> None:
    one = engine(loopback, endless(" ", *OPENER, "[{"), ends(LIST))
    reply = answer(one, prompt_of(response_format=FORMAT), way)
    assert (reply.text, len(reply.calls)) == ("", 1)
    first, second = bodies(loopback)
    assert second["prompt"] == f"{first['prompt']} {OPENER}"


def test_a_reply_that_ends_before_it_is_clear_is_json(loopback: Loopback) -> None:
    one = engine(loopback, Reply(COMPLETION.stream("[")), ends('{"city": "京都"}'))
    assert answer(one, prompt_of(response_format=FORMAT)).text == '{"city": "京都"}'


def test_what_came_before_it_was_clear_is_partial_text(loopback: Loopback) -> None:
    one = engine(loopback, Reply([COMPLETION.event("[TOOL")], end="fin"))
    with pytest.raises(StreamInterruptedError) as caught:
        answer(one, prompt_of(response_format=FORMAT))
    assert caught.value.partial_text == "[TOOL"


# --- servers that cannot --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["openai", "transformers"])
@pytest.mark.parametrize("options", [{}, {"tool_choice": "required"}, {"tools": None, "response_format": FORMAT}])
def test_a_server_without_grammars_says_so_once_and_is_read(
    loopback: Loopback, server: str, options: dict[str, Any]
) -> None:
    text = {"required": LIST}.get(options.get("tool_choice", ""), f"はい。{OPENER}{LIST}")
    one = engine(loopback, Reply(COMPLETION.stream(text)), server=server)
    assert one.grammars is False
    with pytest.warns(UserWarning, match=f"127.0.0.1:{loopback.port}.*{server} cannot hold replies") as told:
        reply = answer(one, prompt_of(**options))
    assert len(told) == 1
    assert len(reply.calls) == (0 if "response_format" in options else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer(one, prompt_of(**options))
    for body in bodies(loopback):
        assert not {"structured_outputs", "json_schema", "response_format", "format"} & body.keys()


def test_tgi_is_read_where_its_grammars_take_no_list(loopback: Loopback) -> None:
    token = {"token": {"id": 5, "text": LIST, "special": False}, "details": None}
    last = {"token": {"id": 2, "text": "", "special": True}, "details": {"finish_reason": "eos_token"}}
    one = engine(loopback, Reply([sse(token), sse(last)]), server="tgi")
    assert one.grammars is True
    with pytest.warns(UserWarning, match="must name an object's properties"):
        assert len(answer(one, prompt_of(tool_choice="required")).calls) == 1
    (body,) = bodies(loopback)
    assert "grammar" not in body["parameters"]


@pytest.mark.parametrize(
    ("server", "options"),
    [
        ("openai", {}),
        ("openai", {"tool_choice": "required"}),
        ("openai", {"tools": None, "response_format": FORMAT}),
        ("tgi", {"tool_choice": "required"}),
        ("chat", {}),
    ],
)
def test_strict_is_refused_before_anything_is_sent(loopback: Loopback, server: str, options: dict[str, Any]) -> None:
    one = engine(loopback, Reply(COMPLETION.stream(LIST)), server=server)
    for way in WAYS:
        with pytest.raises(UnsupportedError, match="strict=True: .*or leave strict out"):
            answer(one, prompt_of(strict=True, **options), way)
    assert loopback.exchanges() == []


def test_strict_holds_where_the_server_can(loopback: Loopback) -> None:
    one = engine(loopback, Reply(COMPLETION.stream(LIST)))
    assert one.grammars is True
    assert len(answer(one, prompt_of(strict=True, tool_choice="required")).calls) == 1


def chat_engine(loopback: Loopback, text: str) -> RemoteEngine:
    """Its dials are proven by two requests of one token."""

    def reply(request: Any) -> Reply:
        if b"1111111111" in request.body:
            return Reply([b"{}"], status=400, framing="length")
        return Reply(CHAT.stream(text))

    return engine(loopback, reply, server="chat")


def test_a_chat_route_is_held_where_the_reply_is_json_from_its_start(loopback: Loopback) -> None:
    one = chat_engine(loopback, LIST)
    prompt = prompt_of(tool_choice="required")
    assert len(answer(one, prompt).calls) == 1
    wanted = {"name": "reply", "schema": json.loads(prompt.grammar.schema), "strict": True}
    assert bodies(loopback)[-1]["response_format"] == {"type": "json_schema", "json_schema": wanted}


def test_a_chat_route_is_read_where_a_call_need_not_come(loopback: Loopback) -> None:
    one = chat_engine(loopback, f"はい。{OPENER}{LIST}")
    with pytest.warns(UserWarning, match="chat route"):
        reply = answer(one, prompt_of())
    assert (reply.text, len(reply.calls)) == ("はい。", 1)
    assert "response_format" not in bodies(loopback)[-1]


# --- schemas that a server refuses ----------------------------------------------------------------------------------


def refusal(text: str, status: int = 400) -> Reply:
    body = json.dumps({"error": {"message": text, "type": "BadRequestError", "code": status}}).encode()
    return Reply([body], status=status, framing="length", headers=(("Content-Type", "application/json"),))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("The provided JSON schema contains features not supported by xgrammar.", ""),
        ('Grammar error: failed to compile JSON schema: Unimplemented keys: ["uniqueItems"]', "uniqueItems"),
        ("Failed to transform json schema into a grammar: 'prefixItems' and 'items'", ""),
        ("JSON schema conversion failed:\nJSON schema error at #: cannot resolve $ref #/nope, nope not found", "$ref"),
        ("structured_outputs.json cannot be an empty string", ""),
    ],
)
def test_a_schema_that_the_server_refuses(loopback: Loopback, way: str, text: str, keyword: str) -> None:
    one = engine(loopback, refusal(text), api_key="sk-secret-key")
    with pytest.raises(UnsupportedSchemaError) as caught:
        answer(one, prompt_of(tool_choice="required"), way)
    said = str(caught.value)
    assert caught.value.keyword == keyword
    assert " ".join(text.split()) in said and "HTTP 400" in said and "/v1/completions" in said and "request " in said
    assert len(loopback.exchanges()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_schema_that_the_server_refuses_after_the_text(loopback: Loopback, way: str) -> None:
    one = engine(loopback, endless("はい", OPENER), refusal("grammar is not valid"))
    with pytest.raises(UnsupportedSchemaError, match="grammar is not valid"):
        answer(one, prompt_of(), way)


def test_the_refusal_is_cut_and_scrubbed(loopback: Loopback) -> None:
    one = engine(loopback, refusal("schema sk-secret-key " + "x" * 5000), api_key="sk-secret-key")
    with pytest.raises(UnsupportedSchemaError) as caught:
        answer(one, prompt_of(tool_choice="required"))
    assert "sk-secret" not in str(caught.value) and len(str(caught.value)) < 1000
    echo = engine(loopback, refusal("schema: 東京の天気はどうなりますか、明日の午後の話ですが"), key="b")
    with pytest.raises(UnsupportedSchemaError) as withheld:
        answer(echo, prompt_of("東京の天気はどうなりますか、明日の午後の話ですが", tool_choice="required"))
    assert "東京" not in str(withheld.value)


def test_tgis_refusal_comes_as_an_event(loopback: Loopback) -> None:
    said = {"error": "Input validation error: grammar is not valid: Grammar must have a 'properties' field"}
    one = engine(loopback, Reply([sse({**said, "error_type": "validation"})]), server="tgi")
    with pytest.raises(UnsupportedSchemaError, match="grammar is not valid"):
        answer(one, prompt_of(tools=None, response_format=FORMAT))


def test_other_refusals_stay_what_they_are(loopback: Loopback) -> None:
    one = engine(loopback, refusal("temperature must be at most 2"))
    with pytest.raises(RemoteRequestError, match="temperature"):
        answer(one, prompt_of(tool_choice="required"))
    free = engine(loopback, refusal("bad json schema"), key="b")
    with pytest.raises(RemoteRequestError, match="bad json schema"):
        answer(free, prompt_of(tools=None))


def test_an_error_within_the_json_is_no_refusal(loopback: Loopback) -> None:
    broken = Reply([COMPLETION.event("[{"), sse({"error": {"message": "grammar FSM failed"}})])
    one = engine(loopback, broken)
    with pytest.raises(Exception, match="grammar FSM failed") as caught:
        answer(one, prompt_of(tool_choice="required"))
    assert type(caught.value).__name__ == "RemoteStreamError"


def test_closer_and_lead_are_not_asked_for(loopback: Loopback) -> None:
    """The reply is the JSON from its beginning to its end; what the model adds is passed over."""
    prompt = prompt_of(tool_choice="required")
    prompt = replace(prompt, grammar=replace(prompt.grammar or Grammar("{}"), closer="\n```", lead=" "))
    one = engine(loopback, Reply(COMPLETION.stream(LIST + "\n```")))
    assert answer(one, prompt).calls[0].error is None
    (body,) = bodies(loopback)
    assert "```" not in json.dumps(body["structured_outputs"])
