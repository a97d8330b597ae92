"""Which server is which: every server's own answers, and that none is taken for another."""

from typing import Any

import pytest

from karakuri_integrations.engines.addresses import addresses_of
from karakuri_integrations.engines.servers import SERVERS, Recognised, Server
from karakuri_integrations.errors import OptionError

Answers = dict[str, tuple[int, Any]]

#: A FastAPI server's and llama.cpp's answer to a route that they do not have.
MISSING: tuple[int, Any] = (404, {"detail": "Not Found"})


def models(owner: str, **more: Any) -> tuple[int, Any]:
    card = {"id": "karakuri-lm-70b-chat-v0.1", "object": "model", "created": 1790000000, "owned_by": owner, **more}
    return 200, {"object": "list", "data": [card]}


def paths(*names: str) -> tuple[int, Any]:
    return 200, {"openapi": "3.1.0", "info": {"title": "FastAPI", "version": "0.1.0"}, "paths": dict.fromkeys(names)}


MODEL = "karakuri-lm-70b-chat-v0.1"
OPENAI_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health")
SEEN: dict[str, tuple[str, Answers, Recognised]] = {
    "vLLM: openai/models/serving.py, ModelCard": (
        "vllm",
        {
            "/v1/models": models("vllm", root="/models/k", parent=None, max_model_len=4096, permission=[]),
            "/openapi.json": paths(*OPENAI_PATHS, "/tokenize", "/version"),
        },
        Recognised((MODEL,), 4096),
    ),
    "SGLang: openai/protocol.py ModelCard; it has Ollama's routes too (entrypoints/ollama)": (
        "sglang",
        {
            "/v1/models": models("sglang", root=MODEL, parent=None, max_model_len=4096),
            "/api/tags": (200, {"models": [{"name": MODEL, "model": MODEL, "digest": "", "details": {}}]}),
        },
        Recognised((MODEL,), 4096),
    ),
    "llama.cpp: server-context.cpp get_res_models": (
        "llamacpp",
        {
            "/v1/models": (
                200,
                {
                    "models": [{"name": MODEL, "model": MODEL, "digest": "", "details": {"format": "gguf"}}],
                    "object": "list",
                    "data": [{"id": MODEL, "owned_by": "llamacpp", "meta": {"n_ctx": 4096, "n_ctx_train": 8192}}],
                },
            )
        },
        Recognised((MODEL,), 4096),
    ),
    "llama.cpp's router, which loads on demand": (
        "llamacpp",
        {"/v1/models": models("llamacpp", meta=None)},
        Recognised((MODEL,), None),
    ),
    "TGI: router/src/lib.rs Info; its models are owned by themselves": (
        "tgi",
        {
            "/v1/models": models(MODEL),
            "/info": (
                200,
                {
                    "model_id": MODEL,
                    "model_sha": "abc",
                    "model_pipeline_tag": "text-generation",
                    "max_concurrent_requests": 128,
                    "max_best_of": 2,
                    "max_stop_sequences": 4,
                    "max_input_tokens": 4095,
                    "max_total_tokens": 4096,
                    "validation_workers": 2,
                    "max_client_batch_size": 4,
                    "router": "text-generation-router",
                    "version": "3.3.6",
                },
            ),
        },
        Recognised((MODEL,), 4096),
    ),
    "Ollama: api/types.go ListModelResponse": (
        "ollama",
        {
            "/v1/models": models("library"),
            "/api/tags": (
                200,
                {
                    "models": [
                        {"name": "k:70b", "model": "k:70b", "modified_at": "", "size": 1, "digest": "ab", "details": {}}
                    ]
                },
            ),
        },
        Recognised(("k:70b",), None),
    ),
    "Ollama without a model": (
        "ollama",
        {"/v1/models": (200, {"object": "list", "data": None}), "/api/tags": (200, {"models": []})},
        Recognised(),
    ),
    "transformers serve 5.23, recorded; the list is of the hub's cache": (
        "transformers",
        {
            "/v1/models": (200, {"object": "list", "data": []}),
            "/openapi.json": paths(*OPENAI_PATHS, "/v1/responses", "/v1/systemone", "/load_model", "/reset"),
        },
        Recognised(),
    ),
    "transformers serve 5.23, recorded, without a cache folder": (
        "transformers",
        {
            "/v1/models": (500, None),
            "/openapi.json": paths(*OPENAI_PATHS, "/v1/responses", "/v1/systemone", "/load_model", "/reset"),
        },
        Recognised(),
    ),
    "a FastAPI server with a chat route only": (
        "chat",
        {"/v1/models": models("me"), "/openapi.json": paths("/v1/chat/completions", "/v1/models")},
        Recognised(),
    ),
    "llama-cpp-python: models are owned by me": (
        "openai",
        {"/v1/models": models("me"), "/openapi.json": paths(*OPENAI_PATHS)},
        Recognised((MODEL,), None),
    ),
    "a gateway that hides what stands behind it": (
        "openai",
        {"/v1/models": models("openai")},
        Recognised((MODEL,), None),
    ),
}


def recognise(answers: Answers) -> tuple[str, Recognised] | None:
    """As `remote` asks: every record in order, the first judge that knows its own."""
    for server in SERVERS.values():
        for probe in server.probes:
            found = probe.judge(*answers.get(probe.path, MISSING))
            if found is not None:
                return server.name, found
    return None


@pytest.mark.parametrize("source", SEEN)
def test_recognised(source: str) -> None:
    name, answers, said = SEEN[source]
    assert recognise(answers) == (name, said)


@pytest.mark.parametrize(
    "answer",
    [
        MISSING,
        (200, None),  # an HTML page of a proxy or a login
        (200, []),
        (200, "ok"),
        (200, 5),
        (200, {}),
        (200, {"status": "ok"}),
        (200, {"data": "x", "models": "x", "paths": [], "model_id": "x"}),
        (200, {"data": [{"name": "no id"}], "models": [None], "paths": {}}),
        (200, {"data": [5]}),
        (500, None),
        (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
        (301, None),
    ],
)
def test_what_is_nobody(answer: tuple[int, Any]) -> None:
    everything = {probe.path: answer for server in SERVERS.values() for probe in server.probes}
    assert recognise(everything) is None


@pytest.mark.parametrize("server", [one for one in SERVERS.values() if one.probes], ids=lambda one: one.name)
def test_a_status_that_is_no_success_is_never_a_recognition(server: Server) -> None:
    name = server.name
    answers = next(answers for known, answers, _ in SEEN.values() if known == name)
    for probe in server.probes:
        assert probe.judge(503, answers[probe.path][1]) is None


def test_adapters_beside_the_model() -> None:
    """vLLM lists LoRA adapters without max_model_len (openai/models/serving.py show_available_models)."""
    status, listed = models("vllm", max_model_len=4096)
    listed["data"].append({"id": "adapter", "owned_by": "vllm", "max_model_len": None, "parent": MODEL})
    assert SERVERS["vllm"].probes[0].judge(status, listed) == Recognised((MODEL, "adapter"), 4096)


def test_sagemaker_is_only_what_it_is_named() -> None:
    assert SERVERS["sagemaker"].probes == ()


@pytest.mark.parametrize(
    ("name", "path", "body", "answer", "ids"),
    [
        # vLLM: serve/tokenize/protocol.py TokenizeResponse
        ("vllm", "/tokenize", {"model": "k", "prompt": "<s>a", "add_special_tokens": False},
         {"count": 2, "max_model_len": 4096, "tokens": [1, 263], "token_strs": None}, [1, 263]),
        # SGLang: openai/serving_tokenize.py
        ("sglang", "/tokenize", {"model": "k", "prompt": "<s>a", "add_special_tokens": False},
         {"tokens": [1, 263], "count": 2, "max_model_len": 4096}, [1, 263]),
        # llama.cpp: server-context.cpp post_tokenize
        ("llamacpp", "/tokenize", {"content": "<s>a", "add_special": False, "parse_special": True},
         {"tokens": [1, 263]}, [1, 263]),
        # TGI: router/src/server.rs encoding_to_tokens: BOS is put before the text, which may hold one of its own
        ("tgi", "/tokenize", {"inputs": "<s>a"},
         [{"id": 1, "text": "", "start": 0, "stop": 0}, {"id": 1, "text": "<s>", "start": 0, "stop": 3},
          {"id": 263, "text": "a", "start": 3, "stop": 4}], [1, 263]),
    ],
)  # fmt: skip
def test_tokenizer_routes(name: str, path: str, body: Any, answer: Any, ids: list[int]) -> None:
    assert SERVERS[name].tokenize is not None
    route, write, read = SERVERS[name].tokenize or ("", None, None)
    assert route == path
    assert write is not None and write("k", "<s>a") == body
    assert read is not None and read(answer) == ids


def test_who_cannot_count() -> None:
    assert {one.name for one in SERVERS.values() if one.tokenize is None} == {
        "ollama", "transformers", "chat", "sagemaker", "openai",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
@pytest.mark.parametrize(("name", "route"), [("tgi", "/generate_stream"), ("vllm", "/v1/completions")])
def test_a_hugging_face_inference_endpoint_is_an_address_like_any_other(name: str, route: str, path: str) -> None:
    """It runs TGI's or vLLM's container; the hub's token goes as every key does."""
    root = "https://xyz.eu-west-1.aws.endpoints.huggingface.cloud"
    assert addresses_of(root + path)[0].root + SERVERS[name].route == root + route
    source = next(source for source, (known, *_) in SEEN.items() if known == name)
    assert recognise(SEEN[source][1]) == (name, Recognised((MODEL,), 4096))


def test_a_sagemaker_address_keeps_its_endpoint() -> None:
    url = "https://runtime.sagemaker.us-east-1.amazonaws.com/endpoints/karakuri"
    assert addresses_of(url)[0].root + SERVERS["sagemaker"].route == f"{url}/invocations-response-stream"


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("http://h:8000/v1/completions", "http://h:8000/v1"),
        ("https://h/proxy/v1/chat/completions/", "https://h/proxy/v1"),
        ("http://h:8000/v1/models", "http://h:8000/v1"),
        ("http://h:8080/completion", "http://h:8080"),
        ("http://h/generate", "http://h"),
        ("http://h/generate_stream", "http://h"),
        ("http://h:11434/api/generate", "http://h:11434"),
        ("http://me:secret@h/v1/completions", "http://h/v1"),
        ("https://r.amazonaws.com/endpoints/k/invocations-response-stream", "https://r.amazonaws.com/endpoints/k"),
    ],
)
def test_an_address_with_its_route_is_refused_with_the_right_one(given: str, right: str) -> None:
    with pytest.raises(OptionError, match="base_url must end before the route") as caught:
        addresses_of(["http://other/v1", given])
    assert str(caught.value).endswith(f"which is added: {right}")
    assert addresses_of(right)


@pytest.mark.parametrize(
    "good", ["https://gateway/v1/account/name/compat", "http://h/models", "http://h/completions/v1"]
)
def test_a_path_of_a_gateways_own_is_none(good: str) -> None:
    assert addresses_of(good)[0].root == good.removesuffix("/v1")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("localhost:8000/v1", "'localhost:8000/v1'"),
        ("u:secret@h:8000", "'h:8000'"),
        ("ftp://u:secret?x@h/x?key=secret#secret", "'ftp://h/x'"),
        ("http://u:a://secret@/x", "'http:///x'"),
        ("http://h/v1?key=secret", "'http://h/v1'"),
        (" ", "' '; is an environment variable not set?"),
    ],
)
def test_an_address_that_is_none_is_shown_without_what_may_be_a_key(given: str, shown: str) -> None:
    with pytest.raises(OptionError, match="base_url must be an http or https address") as caught:
        addresses_of(given)
    assert str(caught.value).endswith(f"; got {shown}")
    assert "secret" not in str(caught.value)
