"""What each server's events mean, on recorded shapes. Where they were recorded or read stands above each."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from karakuri_integrations.conversation import Usage
from karakuri_integrations.engines.servers import Event, server_of
from karakuri_integrations.engines.sse import Lines, ServerSentEvents


def events(name: str, body: str) -> list[Event]:
    """The body as this server's framing cuts it, without [DONE]."""
    server = server_of(name)
    decoder = Lines() if server.framing == "lines" else ServerSentEvents()
    raws = [*decoder.push(body.encode()), *decoder.end()]
    return [server.read(kind, json.loads(data)) for kind, data in raws if data != b"[DONE]"]


def whole(found: list[Event]) -> tuple[str, str | None, Usage | None]:
    reasons = [one.finish_reason for one in found if one.finish_reason]
    usages = [one.usage for one in found if one.usage is not None]
    return "".join(one.text for one in found), reasons[0] if reasons else None, usages[-1] if usages else None


# vllm-project/vllm, vllm/entrypoints/openai/completion/serving.py: completion_stream_generator; chunks are written with
# exclude_unset, the last one has no choice; prompt_tokens_details under --enable-prompt-tokens-details.
VLLM = """data: {"id":"cmpl-1","object":"text_completion","created":1790000000,"model":"karakuri","choices":[{"index":0,"text":" 富士","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}

data: {"id":"cmpl-1","object":"text_completion","created":1790000000,"model":"karakuri","choices":[{"index":0,"text":"山","logprobs":null,"finish_reason":"stop","stop_reason":null,"prompt_token_ids":null,"token_ids":null}]}

data: {"id":"cmpl-1","object":"text_completion","created":1790000000,"model":"karakuri","choices":[],"usage":{"prompt_tokens":61,"total_tokens":64,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":48}}}

data: [DONE]

"""

# sgl-project/sglang, python/sglang/srt/entrypoints/openai/serving_completions.py and protocol.py; usage is written with
# exclude_none, its details under --enable-cache-report.
SGLANG = """data: {"id":"5b1c","object":"text_completion","created":1790000000,"model":"karakuri","choices":[{"index":0,"text":" 富士","logprobs":null,"finish_reason":null,"matched_stop":null}],"usage":null}

data: {"id":"5b1c","object":"text_completion","created":1790000000,"model":"karakuri","choices":[{"index":0,"text":"山","logprobs":null,"finish_reason":"length","matched_stop":null}],"usage":null}

data: {"id":"5b1c","object":"text_completion","created":1790000000,"model":"karakuri","choices":[],"usage":{"prompt_tokens":61,"total_tokens":64,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":16},"reasoning_tokens":0}}

data: [DONE]

"""

# ggml-org/llama.cpp, tools/server/server-task.cpp: to_json_oaicompat of partial and final results; counts stand in the
# event of the last token; server-context.cpp sends ":" as a ping.
LLAMACPP = """data: {"choices":[{"text":" 富士","index":0,"logprobs":null,"finish_reason":null}],"created":1790000000,"model":"karakuri","system_fingerprint":"b1-x","object":"text_completion","id":"chatcmpl-7"}

:

data: {"choices":[{"text":"山","index":0,"logprobs":null,"finish_reason":null}],"created":1790000000,"model":"karakuri","system_fingerprint":"b1-x","object":"text_completion","id":"chatcmpl-7"}

data: {"choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"length"}],"created":1790000000,"model":"karakuri","system_fingerprint":"b1-x","object":"text_completion","usage":{"completion_tokens":3,"prompt_tokens":61,"total_tokens":64,"prompt_tokens_details":{"cached_tokens":57}},"id":"chatcmpl-7","timings":{"cache_n":57,"prompt_n":4,"predicted_n":3}}

data: [DONE]

"""

# huggingface/text-generation-inference, router/src/lib.rs StreamResponse and server.rs generate_stream_internal; the
# last event carries details, generated_text and the token that ended it.
TGI = """data:{"index":1,"token":{"id":29871,"text":" 富士","logprob":-0.1,"special":false},"generated_text":null,"details":null}

data:{"index":2,"token":{"id":30329,"text":"山","logprob":-0.1,"special":false},"generated_text":null,"details":null}

data:{"index":3,"token":{"id":2,"text":"</s>","logprob":-0.2,"special":true},"generated_text":" 富士山","details":{"finish_reason":"eos_token","generated_tokens":3,"seed":null,"input_length":61}}

"""

# deepjavalibrary/djl-serving, serving/docs/lmi/user_guides/lmi_input_output_schema.md: JSON lines, no count of the prompt.
DJL = """data: {"token": {"id": 304, "text": " 富士", "log_prob": -0.05}}

data: {"token": {"id": 11157, "text": "山", "log_prob": -1.28}, "generated_text": " 富士山", "details": {"finish_reason": "length", "generated_tokens": 3, "inputs": "..."}}

"""

# ollama/ollama, api/types.go GenerateResponse and server/routes.go streamResponse.
OLLAMA = """{"model":"karakuri:70b","created_at":"2026-08-21T18:48:22.1Z","response":" 富士","done":false}
{"model":"karakuri:70b","created_at":"2026-08-21T18:48:22.2Z","response":"山","done":false}
{"model":"karakuri:70b","created_at":"2026-08-21T18:48:22.3Z","response":"","done":true,"done_reason":"stop","total_duration":9,"load_duration":1,"prompt_eval_count":61,"prompt_eval_duration":5,"eval_count":3,"eval_duration":3}
"""

# transformers serve 5.23, recorded from a running server: no finish_reason before the end, no [DONE].
TRANSFORMERS = """data: {"id":"36ab","choices":[{"index":0,"text":"Mount"}],"created":1795431234,"model":"karakuri-demo@main","object":"text_completion"}

data: {"id":"36ab","choices":[{"index":0,"text":" Fuji"}],"created":1795431234,"model":"karakuri-demo@main","object":"text_completion"}

data: {"id":"36ab","choices":[{"finish_reason":"length","index":0,"text":""}],"created":1795431234,"model":"karakuri-demo@main","object":"text_completion","usage":{"completion_tokens":3,"prompt_tokens":37,"total_tokens":40}}

"""

# transformers serve 5.23, observed: delta with the role first, then texts, then an empty delta with reason and usage.
CHAT = """data: {"choices":[{"delta":{"role":"assistant"},"index":0}],"object":"chat.completion.chunk"}

data: {"choices":[{"delta":{"content":" 富士"},"index":0}],"object":"chat.completion.chunk"}

data: {"choices":[{"delta":{"content":"山"},"index":0}],"object":"chat.completion.chunk"}

data: {"choices":[{"delta":{},"finish_reason":"length","index":0}],"usage":{"completion_tokens":3,"prompt_tokens":61,"total_tokens":64},"object":"chat.completion.chunk"}

"""

# llama.cpp, tools/server/server-task.cpp to_json_oaicompat_chat(_stream): the role's content is null; usage stands alone.
CHAT_LLAMACPP = """data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],"object":"chat.completion.chunk"}

data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" 富士山"}}],"object":"chat.completion.chunk"}

data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"object":"chat.completion.chunk"}

data: {"choices":[],"object":"chat.completion.chunk","usage":{"completion_tokens":3,"prompt_tokens":61,"total_tokens":64,"prompt_tokens_details":{"cached_tokens":60}}}

data: [DONE]

"""


@pytest.mark.parametrize(
    ("name", "body", "text", "reason", "usage"),
    [
        ("vllm", VLLM, " 富士山", "stop", Usage(61, 3, 48)),
        ("sglang", SGLANG, " 富士山", "length", Usage(61, 3, 16)),
        ("llamacpp", LLAMACPP, " 富士山", "length", Usage(61, 3, 57)),
        ("tgi", TGI, " 富士山", "eos_token", Usage(61, 3)),
        ("sagemaker", TGI, " 富士山", "eos_token", Usage(61, 3)),
        ("sagemaker", DJL, " 富士山", "length", None),
        ("ollama", OLLAMA, " 富士山", "stop", Usage(61, 3)),
        ("transformers", TRANSFORMERS, "Mount Fuji", "length", Usage(37, 3)),
        ("openai", VLLM, " 富士山", "stop", Usage(61, 3, 48)),
        ("chat", CHAT, " 富士山", "length", Usage(61, 3)),
        ("chat", CHAT_LLAMACPP, " 富士山", "stop", Usage(61, 3, 60)),
    ],
)
def test_a_whole_reply(name: str, body: str, text: str, reason: str, usage: Usage | None) -> None:
    assert whole(events(name, body)) == (text, reason, usage)


def test_one_event_per_token_where_the_server_sends_one() -> None:
    assert [one.text for one in events("vllm", VLLM)] == [" 富士", "山", ""]
    assert [one.done for one in events("ollama", OLLAMA)] == [False, False, True]


def read(name: str) -> Callable[[Any], Event]:
    return lambda payload: server_of(name).read("", payload)


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "transformers", "openai"])
def test_odd_but_good_events(name: str) -> None:
    one = read(name)
    assert one({"choices": [{"index": 0, "text": None, "finish_reason": None}]}) == Event()
    assert one({"choices": [], "usage": None}) == Event()
    assert one({"choices": None, "usage": {"prompt_tokens": 4, "completion_tokens": None}}) == Event(usage=Usage(4, 0))
    assert one({"choices": [{"index": 1, "text": "no"}]}) == Event()
    assert one({"choices": [{"index": 1, "text": "no"}, {"index": 0, "text": "yes"}]}) == Event("yes")
    assert one({"choices": [{"text": "without an index"}]}) == Event("without an index")
    assert one(
        {"choices": [{"index": 0, "text": "a"}], "usage": {"prompt_tokens": 4, "prompt_tokens_details": None}}
    ) == (Event("a", None, Usage(4, 0)))


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"id": "x"},
        {"choices": "text"},
        {"choices": ["text"]},
        {"choices": [None]},
        {"choices": {"0": 1}},
        {"choices": [{"index": 0, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]},
    ],
)
@pytest.mark.parametrize("name", ["vllm", "chat"])
def test_events_of_another_shape_are_refused(name: str, payload: Any) -> None:
    with pytest.raises((AttributeError, IndexError, KeyError, TypeError, ValueError)):
        server_of(name).read("", payload)


def test_chat_deltas_that_are_no_text() -> None:
    one = read("chat")
    assert one({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}) == Event()
    assert one({"choices": [{"index": 0, "delta": {"content": None}}]}) == Event()
    assert one({"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}]}) == Event("", "stop")
    assert one({"choices": [], "usage": None}) == Event()
    assert one({"choices": [{"index": 1, "delta": {"content": "no"}}]}) == Event()


def test_a_chat_answer_in_one_piece() -> None:
    answer = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "はい"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2},
    }
    assert read("chat")(answer) == Event("はい", "stop", Usage(9, 2))


def test_tgi_never_shows_a_special_token() -> None:
    one = read("tgi")
    assert one({"token": {"id": 1, "text": "<s>", "special": True}}) == Event()
    assert one({"token": {"id": -1, "text": "", "log_prob": -1, "special_token": True}}) == Event()
    assert one({"token": {"id": 5, "text": None, "special": False}}) == Event()
    assert one({"token": {"id": 5, "text": "<s>", "special": False}}) == Event("<s>")
    with pytest.raises(KeyError):
        one({"generated_text": "of another route"})


def test_djl_ends_in_an_error_by_its_finish_reason() -> None:
    """lmi_input_output_schema.md, "Error Responses", when using streaming."""
    last = {
        "token": {"id": -1, "text": "", "log_prob": -1, "special_token": True},
        "generated_text": "",
        "details": {"finish_reason": "error", "generated_tokens": None, "inputs": None},
    }
    assert read("sagemaker")(last) == Event("", "error")


def test_ollama_without_a_reason_is_not_finished() -> None:
    """llm/server.go DoneReason.String(): the connection was closed, which has no word."""
    assert read("ollama")({"response": "", "done": True}) == Event(done=True, usage=Usage(0, 0))
    assert read("ollama")({"response": "", "done": True, "done_reason": ""}).finish_reason is None


def test_ollama_that_only_loaded_the_model_gave_no_reply() -> None:
    """server/routes.go: an empty prompt loads the model and answers done_reason "load"."""
    event = read("ollama")({"model": "k", "response": "", "done": True, "done_reason": "load"})
    assert event.error is not None and "load" in event.error
