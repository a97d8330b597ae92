"""LangChain's cache keys of served models: one question, one key, whatever is known of the server, and no secret in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from loopback import Loopback, Reply, Request
from wires import COMPLETION

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")

from langchain_core.caches import InMemoryCache

from karakuri_integrations.engines import RemoteEngine
from karakuri_integrations.langchain import ChatKarakuri

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
URL = "http://127.0.0.1:9/v1"
JSON = (("Content-Type", "application/json"),)


def vllm(request: Request) -> Reply:
    if request.path.endswith("/models"):
        entry = {"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": 4096}
        return Reply([json.dumps({"object": "list", "data": [entry]}).encode()], framing="length", headers=JSON)
    return Reply(COMPLETION.stream("はい。"))


@pytest.mark.parametrize("given", ["base_url", "engine"])
def test_the_key_is_the_same_before_and_after_the_server_was_asked(given: str, loopback: Loopback) -> None:
    url = loopback.script("a", [vllm])
    source = (
        {"base_url": url, "server": "vllm"} if given == "base_url" else {"engine": RemoteEngine(url, server="vllm")}
    )
    llm = ChatKarakuri(**source, cache=InMemoryCache(), max_tokens=9)
    before = llm._get_llm_string()
    assert llm.invoke("質問です。").text == llm.invoke("質問です。").text == "はい。"
    assert llm._get_llm_string() == before
    asked = [one.request.path for one in loopback.exchanges() if one.request.path.endswith("/completions")]
    assert len(asked) == 1, "the second answer comes from the cache"
    assert llm._identifying_params["model"] == MODEL, "traces show what the server says"


def key(**fields: Any) -> str:
    return ChatKarakuri(**{"model": MODEL, "base_url": URL, "max_tokens": 9} | fields)._get_llm_string()


def engine_key(**fields: Any) -> str:
    return ChatKarakuri(engine=RemoteEngine(URL, MODEL, **fields))._get_llm_string()


DIFFER: list[dict[str, Any]] = [
    {},
    {"default_headers": {"X-Tenant": "north"}},
    {"default_headers": {"X-Tenant": "south"}},
    {"default_headers": {"X-Region": "south"}},
    {"extra_body": {"lora": "a"}},
    {"extra_body": {"lora": "b"}},
    {"context_window": 4000},
]


@pytest.mark.parametrize("made", [key, engine_key])
def test_what_can_change_a_reply_is_in_the_key(made: Any) -> None:
    keys = [made(**fields) for fields in DIFFER]
    assert len(set(keys)) == len(DIFFER)
    assert keys == [made(**fields) for fields in DIFFER]
    assert made(default_headers={"X-Tenant": "north"}) == made(default_headers={"x-tenant": "north"})


def test_who_asks_is_not_in_the_key() -> None:
    plain = key()
    assert key(api_key="sk-one") == key(api_key="sk-two") == plain
    for name in ("Authorization", "Cookie", "X-Api-Key"):
        assert key(default_headers={name: "sk-three-of-mine"}) == plain


def test_no_value_of_a_header_is_in_the_key() -> None:
    shown = key(default_headers={"X-Tenant": "a tenant's secret", "Authorization": "Bearer sk-hidden"})
    assert "secret" not in shown
    assert "hidden" not in shown
    assert "sk-" not in shown


def test_a_calls_model_is_in_the_key() -> None:
    llm = ChatKarakuri(base_url=URL, template="karakuri-lm-70b-chat-v0.1")
    keys = {llm._get_llm_string(), llm._get_llm_string(model="a"), llm._get_llm_string(model="b")}
    assert len(keys) == 3
