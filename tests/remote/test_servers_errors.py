"""How servers word errors: text and kind of every shape, and which of them say that the prompt is too long."""

from typing import Any

import pytest

from karakuri_integrations.engines.servers import error_of, overflow_in, reason_of

LONG = "This model's maximum context length is 4096 tokens."


@pytest.mark.parametrize(
    ("source", "payload", "expected"),
    [
        (
            "vLLM: vllm/entrypoints/serve/exception_handling/error_response.py",
            {"error": {"message": "bad", "type": "BadRequestError", "param": None, "code": 400}},
            ("bad", "BadRequestError"),
        ),
        (
            "vLLM before 0.10.1 (vllm#22099); SGLang: openai/protocol.py ErrorResponse",
            {"object": "error", "message": "bad", "type": "BadRequestError", "param": None, "code": 400},
            ("bad", "BadRequestError"),
        ),
        (
            "SGLang: openai/serving_base.py create_streaming_error_response",
            {"error": {"object": "error", "message": "bad", "type": "InternalServerError", "param": None, "code": 500}},
            ("bad", "InternalServerError"),
        ),
        (
            "llama.cpp: tools/server/server-common.cpp format_error_response",
            {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
            ("Loading model", "unavailable_error"),
        ),
        (
            "TGI: router/src/server.rs ErrorResponse",
            {"error": "Model is overloaded", "error_type": "overloaded"},
            ("Model is overloaded", "overloaded"),
        ),
        (
            "TGI's chat route: router/src/infer/mod.rs OpenaiErrorEvent",
            {"error": {"message": "Template error", "http_status_code": 422}},
            ("Template error", ""),
        ),
        ("DJL: lmi_input_output_schema.md", {"error": "bad parameter", "code": 424}, ("bad parameter", "424")),
        ("Ollama: server/routes.go", {"error": "model 'k' not found"}, ("model 'k' not found", "")),
        (
            "transformers serve 5.23, recorded",
            {"error": "`temperature` (=-1.0) has"},
            ("`temperature` (=-1.0) has", ""),
        ),
        ("FastAPI, recorded from transformers serve", {"detail": "Not Found"}, ("Not Found", "")),
        (
            "FastAPI, recorded from transformers serve: `input` repeats the request and is left out",
            {
                "detail": [
                    {"type": "json_invalid", "loc": ["body", 1], "msg": "JSON decode error", "input": {"p": "秘密"}}
                ]
            },
            ("body.1: JSON decode error", ""),
        ),
        ("AWS: botocore's model of sagemaker-runtime", {"Message": "Model is not ready"}, ("Model is not ready", "")),
        ("AWS, without a token", {"message": "Missing Authentication Token"}, ("Missing Authentication Token", "")),
        (
            "AWS: ModelError, with what the container said",
            {
                "ErrorCode": "CLIENT_ERROR_FROM_MODEL",
                "Message": "Received client error (422) from primary with message ...",
                "OriginalMessage": '{"error":"bad","error_type":"validation"}',
                "OriginalStatusCode": 422,
            },
            ('{"error":"bad","error_type":"validation"}', "CLIENT_ERROR_FROM_MODEL"),
        ),
        ("an error without a text", {"error": {"code": 500}}, ("no message", "500")),
    ],
)
def test_every_shape(source: str, payload: Any, expected: tuple[str, str]) -> None:
    assert error_of(payload) == expected, source


@pytest.mark.parametrize(
    "payload",
    [
        {"choices": [{"index": 0, "text": "error"}]},
        {"choices": [{"index": 0, "text": "a"}], "error": None},
        {"choices": [{"message": {"content": "a"}}], "message": "a field of a proxy's"},
        {"token": {"id": 1, "text": "error"}, "details": None},
        {"response": "error", "done": False},
        [],
        "text",
        None,
        5,
    ],
)
def test_what_is_no_error(payload: Any) -> None:
    assert error_of(payload) is None


@pytest.mark.parametrize(
    ("source", "text", "numbers"),
    [
        (
            "vLLM 2026: vllm/renderers/params.py",
            f"{LONG} However, you requested 900 output tokens and your prompt contains at least 3197 input tokens, for a "
            "total of at least 4097 tokens. Please reduce the length of the input prompt or the number of requested "
            "output tokens. (parameter=input_tokens, value=3197)",
            (3197, 4096),
        ),
        (
            "vLLM 0.10, recorded by a user",
            f"'max_tokens' or 'max_completion_tokens' is too large: 8000. {LONG[:-1]} and your request has 2778 input "
            "tokens (8000 > 4096 - 2778). None",
            (2778, 4096),
        ),
        (
            "vLLM until 2025",
            f"{LONG} However, you requested 5000 tokens (4900 in the messages, 100 in the completion). Please reduce "
            "the length of the messages or completion.",
            (4900, 4096),
        ),
        ("vLLM until 2025", f"{LONG} However, your request has 5000 input tokens.", (5000, 4096)),
        (
            "vLLM, ids: the engine's own check",
            "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that "
            "`max_model_len` is no smaller than the number of text tokens.",
            (5000, 4096),
        ),
        (
            "SGLang: managers/tokenizer_manager.py",
            "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
            (5000, 4096),
        ),
        (
            "SGLang: managers/tokenizer_manager.py",
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of "
            "5097 tokens: 1000 tokens from the input messages and 4097 tokens for the completion.",
            (1000, 4096),
        ),
        (
            "llama.cpp: server-context.cpp",
            "exceed_context_size_error request (5013 tokens) exceeds the available context size (4096 tokens), try "
            "increasing it",
            (5013, 4096),
        ),
        (
            "llama.cpp: server-context.cpp",
            "input (5013 tokens) is larger than the max context size (4096 tokens). skipping",
            (5013, 4096),
        ),
        ("llama.cpp: server-context.cpp, while answering", "Context size has been exceeded.", (0, 0)),
        (
            "TGI: router/src/validation.rs MaxTotalTokens",
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and "
            "100 `max_new_tokens`",
            (4000, 4096),
        ),
        (
            "TGI: router/src/validation.rs InputLength",
            "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
            (5000, 4095),
        ),
        (
            "TGI through SageMaker's OriginalMessage",
            '{"error":"Input validation error: `inputs` must have less than 4095 tokens. Given: 5000","error_type":'
            '"validation"}',
            (5000, 4095),
        ),
        (
            "Ollama: llm/llama_server.go",
            "the prompt is longer than the context length currently available to the model; shorten the prompt",
            (0, 0),
        ),
        (
            "Ollama hands llama-server's body on",
            '{"error":{"code":400,"message":"request (5013 tokens) exceeds the available context size (4096 tokens), '
            'try increasing it","type":"exceed_context_size_error"}}',
            (5013, 4096),
        ),
        ("Ollama until 2025", "the input length exceeds the context length", (0, 0)),
        ("OpenAI", "context_length_exceeded the messages are too long", (0, 0)),
    ],
)
def test_too_long(source: str, text: str, numbers: tuple[int, int]) -> None:
    assert overflow_in(text) == numbers, source


def test_llamacpp_names_the_numbers_beside_an_older_text() -> None:
    """tools/server/server-task.cpp server_task_result_error::to_json; the text of 2025."""
    payload = {
        "error": {
            "code": 400,
            "message": "the request exceeds the available context size. try increasing the context size or enable context shift",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 5013,
            "n_ctx": 4096,
        }
    }
    text, kind = error_of(payload) or ("", "")
    assert overflow_in(f"{kind} {text}") == (5013, 4096)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Model is overloaded",
        "Input validation error: `temperature` must be strictly positive",
        "The model `x` does not exist.",
        "max_tokens must be at least 1, got 0.",
        "Server is pinned to 'karakuri-demo'; requested 'x'.",
    ],
)
def test_other_errors_are_not_about_length(text: str) -> None:
    assert overflow_in(text) is None


def test_a_long_text_is_searched_in_linear_time() -> None:
    assert overflow_in("maximum context length is 4096 " + "1 " * 200_000) == (0, 4096)


def test_finish_reasons() -> None:
    assert {word: reason_of(word) for word in ("stop", "eos_token", "stop_sequence", "length", "limit")} == {
        "stop": "stop", "eos_token": "stop", "stop_sequence": "stop", "length": "length", "limit": "length",
    }  # fmt: skip
    assert [reason_of(word) for word in ("abort", "error", "load", "content_filter", "")] == [None] * 5
