"""What each server is asked: route and body, against its own source, which the record in `engines.servers` names."""

import dataclasses
import json
from typing import Any

import pytest

from karakuri_integrations.conversation import Sampling, Turn
from karakuri_integrations.engines.remote_arguments import text_for
from karakuri_integrations.engines.servers import SERVERS, Ask, Server, server_of
from karakuri_integrations.errors import OptionError
from karakuri_integrations.templates import family_of_template, parse_raw

GREEDY = Sampling()
WIDE = Sampling(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1, seed=7, stop=("。", "\n"))
IDS = [1, 733, 16289]


def body(name: str, sampling: Sampling = GREEDY, prompt: Any = "[INST] はい", **more: Any) -> dict[str, Any]:
    return server_of(name).body(Ask("karakuri", prompt, sampling, **{"max_tokens": 64, "context_window": 4096, **more}))


def test_the_routes() -> None:
    assert {server.name: server.route for server in SERVERS.values()} == {
        "vllm": "/v1/completions",
        "sglang": "/v1/completions",
        "llamacpp": "/v1/completions",
        "tgi": "/generate_stream",
        "ollama": "/api/generate",
        "transformers": "/v1/completions",
        "chat": "/v1/chat/completions",
        "sagemaker": "/invocations-response-stream",
        "openai": "/v1/completions",
    }


@pytest.mark.parametrize("server", SERVERS.values(), ids=lambda one: one.name)
def test_every_body_is_json_and_asks_for_a_stream(server: Server) -> None:
    turns = (Turn("user", "はい"),) if server.takes_turns else ()
    for sampling in (GREEDY, WIDE):
        written = server.body(Ask("karakuri", "[INST] はい", sampling, 64, 4096, turns))
        assert json.loads(json.dumps(written)) == written
        assert written.get("stream") is True or server.name == "tgi"  # its route only streams
        assert ("[INST] はい" in (written.get("prompt"), written.get("inputs"))) is not server.takes_turns


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp"])
def test_token_ids_are_sent_as_they_are(name: str) -> None:
    assert server_of(name).takes_ids
    assert body(name, prompt=IDS)["prompt"] == IDS


def test_who_takes_only_text() -> None:
    """transformers answers 400 "prompt must be a string."; TGI's and Ollama's fields are strings."""
    assert {one.name for one in SERVERS.values() if not one.takes_ids} == {
        "tgi", "ollama", "transformers", "chat", "sagemaker", "openai",
    }  # fmt: skip


def test_exactly_one_bos() -> None:
    """vLLM takes add_special_tokens; every other puts BOS before a text (observed: transformers, llama.cpp)."""
    assert {one.name for one in SERVERS.values() if not one.adds_bos} == {"vllm", "chat"}
    assert body("vllm")["add_special_tokens"] is False
    assert all(
        "add_special_tokens" not in body(one.name) for one in SERVERS.values() if one.name not in ("vllm", "chat")
    )


@pytest.mark.parametrize("raw", ["[INST] q [/INST]", "<s>[INST] q [/INST]"])
@pytest.mark.parametrize(("server", "sent"), [("vllm", "<s>[INST] q [/INST]"), ("llamacpp", "[INST] q [/INST]")])
def test_a_formatted_prompt_has_one_too(server: str, sent: str, raw: str) -> None:
    """llama.cpp puts it before the text itself."""
    family = family_of_template("karakuri-lm-70b-chat-v0.1")
    assert text_for(parse_raw(raw, family), server_of(server)) == sent


def test_max_tokens_is_a_number_where_the_server_needs_one() -> None:
    """vLLM, SGLang and OpenAI cut at 16, transformers at 1024, DJL at 30; vLLM's null is an assertion (vllm#19862)."""
    needy = {one.name for one in SERVERS.values() if one.needs_max_tokens}
    assert needy == {"vllm", "sglang", "transformers", "sagemaker", "openai"}


def test_the_rest_of_the_window() -> None:
    assert body("tgi", max_tokens=None)["parameters"]["max_new_tokens"] is None
    assert body("ollama", max_tokens=None)["options"]["num_predict"] == 4096
    assert body("llamacpp", max_tokens=None)["max_tokens"] == 4096
    assert "max_tokens" not in body("llamacpp", max_tokens=None, context_window=None)
    assert body("ollama", max_tokens=None, context_window=None)["options"]["num_predict"] == -1


def test_vllm() -> None:
    shared = {"model": "karakuri", "prompt": "[INST] はい", "stream": True, "stream_options": {"include_usage": True}}
    assert body("vllm") == {
        **shared, "max_tokens": 64, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "add_special_tokens": False,
    }  # fmt: skip
    assert body("vllm", WIDE) == {
        **shared, "max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05,
        "repetition_penalty": 1.1, "seed": 7, "stop": ["。", "\n"], "add_special_tokens": False,
    }  # fmt: skip


def test_the_scope_of_a_cache_is_vllms_salt() -> None:
    """https://docs.vllm.ai/en/latest/design/prefix_caching.html: only requests of one salt share blocks."""
    assert body("vllm", Sampling(cache_scope="tenant"))["cache_salt"] == "tenant"
    assert {one.name for one in SERVERS.values() if "cache_scope" in one.sampling} == {"vllm"}


def test_sglang_is_written_as_vllm_without_what_it_does_not_know() -> None:
    expected = body("vllm")
    del expected["add_special_tokens"]
    assert body("sglang") == expected
    assert "seed" not in server_of("sglang").sampling  # only under --enable-deterministic-inference


def test_llamacpp() -> None:
    written = body("llamacpp", WIDE)
    assert written["repeat_penalty"] == 1.1
    assert written["repeat_last_n"] == 4096  # its own is 64; the whole prompt counts elsewhere
    assert (written["top_k"], written["min_p"], written["seed"]) == (40, 0.05, 7)
    assert "repetition_penalty" not in written
    assert "repeat_last_n" not in body("llamacpp")
    assert (body("llamacpp")["top_k"], body("llamacpp")["min_p"]) == (0, 0.0)  # its own are 40 and 0.05


def test_tgi_greedy_has_none_of_the_fields_that_it_refuses() -> None:
    """router/src/validation.rs: "`temperature` must be strictly positive", "`top_p` must be > 0.0 and < 1.0"."""
    assert body("tgi") == {
        "inputs": "[INST] はい",
        "parameters": {
            "details": True, "return_full_text": False, "do_sample": False, "max_new_tokens": 64,
            "repetition_penalty": 1.0,
        },
    }  # fmt: skip
    greedy_but_seeded = body("tgi", Sampling(top_p=0.5, top_k=5, seed=3))["parameters"]
    assert greedy_but_seeded.keys().isdisjoint({"top_p", "top_k", "temperature"})  # any of them would mean sampling


def test_tgi_sampling() -> None:
    written = body("tgi", dataclasses.replace(WIDE, min_p=0.0))["parameters"]
    assert written == {
        "details": True, "return_full_text": False, "do_sample": True, "max_new_tokens": 64, "repetition_penalty": 1.1,
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 7, "stop": ["。", "\n"],
    }  # fmt: skip
    plain = body("tgi", Sampling(temperature=1.0))["parameters"]
    assert plain["do_sample"] is True and plain["temperature"] == 1.0
    assert plain.keys().isdisjoint({"top_p", "top_k"})
    assert "min_p" not in server_of("tgi").sampling


def test_tgi_is_given_four_stop_strings_at_most() -> None:
    """launcher/src/main.rs: max_stop_sequences defaults to 4; more is a validation error."""
    assert body("tgi", Sampling(stop=tuple("abcdef")))["parameters"]["stop"] == list("abcd")


def test_ollama() -> None:
    assert body("ollama") == {
        "model": "karakuri", "prompt": "[INST] はい", "raw": True, "stream": True, "truncate": False, "shift": False,
        "options": {
            "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "num_predict": 64,
            "num_ctx": 4096,
        },
    }  # fmt: skip
    options = body("ollama", WIDE)["options"]
    assert (options["repeat_penalty"], options["repeat_last_n"]) == (1.1, 4096)
    assert (options["seed"], options["stop"]) == (7, ["。", "\n"])


def test_transformers_samples_only_by_generation_config() -> None:
    """Observed on 5.23: temperature and top_p at the top level leave do_sample false; other names are refused with 422."""
    written = body("transformers", WIDE)
    config = json.loads(written.pop("generation_config"))
    assert written == {
        "model": "karakuri", "prompt": "[INST] はい", "stream": True, "max_tokens": 64, "seed": 7, "stop": ["。", "\n"],
    }  # fmt: skip
    assert config == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1,
    }  # fmt: skip
    greedy = json.loads(body("transformers")["generation_config"])
    assert greedy == {"do_sample": False, "repetition_penalty": 1.0}
    assert (
        json.loads(body("transformers", Sampling(temperature=1.0))["generation_config"])["top_k"] == 0
    )  # its own is 50


def test_openai() -> None:
    assert body("openai", Sampling(temperature=0.5, seed=1, stop=("x",))) == {
        "model": "karakuri", "prompt": "[INST] はい", "stream": True, "stream_options": {"include_usage": True},
        "max_tokens": 64, "temperature": 0.5, "top_p": 1.0, "seed": 1, "stop": ["x"],
    }  # fmt: skip


def test_sagemaker_is_tgi_with_a_stream_and_both_names_of_stop() -> None:
    tgi = body("tgi", Sampling(stop=("a", "b")))
    written = body("sagemaker", Sampling(stop=("a", "b")))
    assert written.pop("stream") is True
    assert written["parameters"].pop("stop_sequences") == ["a", "b"]
    assert written == tgi


@pytest.mark.parametrize(
    ("name", "limit"),
    [("vllm", 2**63), ("transformers", 2**63), ("openai", 2**63), ("llamacpp", 2**32 - 1), ("ollama", 2**32 - 1)],
)
def test_seeds_fit_the_server(name: str, limit: int) -> None:
    """vLLM refuses more than a signed 64-bit integer; llama.cpp's is 32 bits, and 2**32 - 1 asks for a random one."""
    for seed in (0, 5, 2**31, 2**32 - 1, 2**63, 2**64 - 1):
        written = body(name, Sampling(temperature=1.0, seed=seed))
        assert written.get("options", written)["seed"] == seed % limit


@pytest.mark.parametrize("server", SERVERS.values(), ids=lambda one: one.name)
def test_a_field_that_is_honoured_changes_the_body(server: Server) -> None:
    base = Sampling(temperature=0.7)
    changed = {"temperature": 0.3, "top_p": 0.5, "top_k": 3, "min_p": 0.2, "repetition_penalty": 1.3, "seed": 9}
    turns = (Turn("user", "はい"),)
    for name, value in {**changed, "stop": ("x",), "cache_scope": "tenant"}.items():
        other = dataclasses.replace(base, **{name: value})
        same = server.body(Ask("k", "p", base, 9, 99, turns)) == server.body(Ask("k", "p", other, 9, 99, turns))
        assert same is (name not in server.sampling) or (server.name == "sglang" and name == "seed"), name


def test_names_are_found_in_any_case_and_others_are_refused() -> None:
    assert server_of("vLLM") is SERVERS["vllm"]
    with pytest.raises(OptionError, match="server must be one of vllm, sglang, llamacpp, tgi, ollama"):
        server_of("vlm")
