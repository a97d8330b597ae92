"""Addresses that are not quite a server's: gateways that pass only /v1 on, web pages, names that the server does not know."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from loopback import HTML, JSON, Loopback, Reply, Request
from wires import COMPLETION

pytest.importorskip("urllib3")
pytest.importorskip("aiohttp")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from karakuri_integrations.engines import RemoteEngine
from karakuri_integrations.errors import (
    AuthenticationError,
    EndpointNotFoundError,
    OptionError,
    RemoteError,
    RemoteStatusError,
)
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM

PLAIN = "karakuri-lm-70b-chat-v0.1"
FULL = f"karakuri-ai/{PLAIN}"
BOTH = pytest.mark.parametrize("make", [ChatKarakuri, KarakuriLLM])


def say(value: Any, status: int = 200) -> Reply:
    return Reply([json.dumps(value).encode()], status=status, headers=JSON, framing="length")


def gateway(*models: str, owner: str = "vllm", hidden: int = 404) -> Callable[[Request], Reply]:
    """Passes /v1/models and /v1/completions on; a model that it does not serve is vLLM's 404."""

    def answer(request: Request) -> Reply:
        if request.path.endswith("/v1/models"):
            return say({"data": [{"id": one, "owned_by": owner, "max_model_len": 4096} for one in models]})
        if not request.path.endswith("/v1/completions"):
            return say({"detail": "hidden"}, hidden)
        if request.json["model"] not in models:
            return say({"error": {"message": "The model does not exist.", "code": 404}}, 404)
        return Reply(COMPLETION.stream("はい。"))

    return answer


def ask(llm: Any) -> str:
    return str(llm.invoke("hi").content if isinstance(llm, ChatKarakuri) else llm.complete("hi").text)


# --- only /v1 is passed on ---


@BOTH
@pytest.mark.parametrize("status", [403, 404, 405])
def test_without_a_tokenize_route_max_tokens_is_enough(make: Any, status: int, loopback: Loopback) -> None:
    url = loopback.script("a", [gateway(PLAIN, hidden=status)])
    assert ask(make(base_url=url, max_tokens=9)) == "はい。"
    with pytest.raises(RemoteStatusError, match=r"no /tokenize there \(a gateway") as caught:
        ask(make(base_url=url))
    assert caught.value.status == status
    assert "pass tokenizer=" in str(caught.value)
    assert "max_tokens=" in str(caught.value)
    assert "check base_url" not in str(caught.value)


def test_routes_that_a_gateway_forbids_are_no_wrong_key(loopback: Loopback) -> None:
    """Its own name on the list of models: more routes are asked for, and it answers 403 to all it does not pass on."""
    url = loopback.script("a", [gateway(PLAIN, owner="gateway", hidden=403)])
    assert ask(ChatKarakuri(base_url=url, max_tokens=9)) == "はい。"
    closed = loopback.script("b", [Reply(status=401, framing="length")])
    with pytest.raises(AuthenticationError):
        ask(ChatKarakuri(base_url=closed, max_tokens=9))


# --- no server of ours ---


def test_a_web_page_is_said_to_be_one(loopback: Loopback) -> None:
    url = loopback.script("a", [Reply([b"<html>secret</html>"], headers=HTML, framing="length")])
    with pytest.raises(OptionError, match=r"it answered HTTP 200 \(text/html\) to /v1/models, /info") as caught:
        RemoteEngine(url).model  # noqa: B018
    assert "server=" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_each_kind_of_answer_is_said_once(loopback: Loopback) -> None:
    def answer(request: Request) -> Reply:
        if request.path.endswith("/v1/models"):
            return say({"hello": 1})
        return Reply([b"gone"], status=404, headers=(("Content-Type", "k" * 200),), framing="length")

    with pytest.raises(
        OptionError, match=r"answered HTTP 200 \(application/json\) to /v1/models; HTTP 404 \(no content"
    ):
        RemoteEngine(loopback.script("a", [answer])).model  # noqa: B018


# --- names of models ---


@BOTH
@pytest.mark.parametrize(("served", "named"), [(PLAIN, FULL), (FULL, PLAIN)])
def test_a_name_with_or_without_the_owner_is_the_same_model(
    make: Any, served: str, named: str, loopback: Loopback
) -> None:
    url = loopback.script("a", [gateway(served, "karakuri-lm-8x7b-chat-v0.1")])
    assert ask(make(base_url=url, model=named, max_tokens=9)) == "はい。"
    assert loopback.exchanges("a")[-1].request.json["model"] == served


def test_two_names_of_one_model_are_one_model(loopback: Loopback) -> None:
    """As `karakuri serve-command` has vLLM serve it."""
    url = loopback.script("a", [gateway(PLAIN, FULL)])
    assert RemoteEngine(url).model == PLAIN
    for named in (None, PLAIN, FULL):
        assert ask(ChatKarakuri(base_url=url, model=named, max_tokens=9)) == "はい。"
        assert loopback.exchanges("a")[-1].request.json["model"] == (named or PLAIN)
    other = RemoteEngine(loopback.script("b", [gateway(PLAIN, "karakuri-lm-8x7b-chat-v0.1")]))
    with pytest.raises(OptionError, match="model= is needed"):
        other.model  # noqa: B018


@BOTH
def test_a_model_that_is_not_served_names_those_that_are(make: Any, loopback: Loopback) -> None:
    url = loopback.script("a", [gateway("karakuri-lm-8x7b-chat-v0.1", "mine")])
    with pytest.raises(EndpointNotFoundError, match=f"no model '{FULL}'; it serves karakuri-lm-8x7b-chat-v0.1, mine"):
        ask(make(base_url=url, model=FULL, max_tokens=9))
    with pytest.raises(EndpointNotFoundError, match="it serves karakuri-lm-8x7b-chat-v0.1, mine"):
        ask(make(base_url=url, model=FULL))  # at /tokenize already
    with pytest.raises(EndpointNotFoundError, match=f"no such route, or no model '{FULL}'.*a/v1/models"):
        ask(make(base_url=url, model=FULL, max_tokens=9, server="vllm"))  # nobody has asked for the list


def test_a_route_that_is_missing_is_no_wrong_model(loopback: Loopback) -> None:
    def answer(request: Request) -> Reply:
        return gateway(PLAIN)(request) if request.path.endswith("/models") else say({"detail": "Not Found"}, 404)

    with pytest.raises(EndpointNotFoundError, match=f"serves '{PLAIN}' and has no such route"):
        ask(ChatKarakuri(base_url=loopback.script("a", [answer]), max_tokens=9))


# --- what the log says of retries ---


@BOTH
def test_each_retry_is_one_line_of_the_log(make: Any, loopback: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    busy = Reply([b"secret said"], status=503, headers=(("Retry-After", "0.01"),), framing="length")
    url = loopback.script("a", [busy, busy, gateway(PLAIN)])
    address = url.replace("://", "://me:secret@")
    caplog.set_level(logging.INFO, "karakuri_integrations")
    assert ask(make(base_url=address, model=PLAIN, server="vllm", max_tokens=9)) == "はい。"
    lines = [one.getMessage() for one in caplog.records if one.name == "karakuri_integrations"]
    assert lines == [f"HTTP 503 from {url}/completions; try {number} in 0.0 s" for number in (2, 3)]
    assert {one.levelno for one in caplog.records if one.name == "karakuri_integrations"} == {logging.INFO}


def test_so_are_those_of_small_questions(loopback: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    busy = Reply(status=503, headers=(("Retry-After", "0.01"),), framing="length")
    url = loopback.script("a", [Reply(end="reset", framing="raw"), busy, gateway(PLAIN)])
    caplog.set_level(logging.INFO, "karakuri_integrations")
    assert RemoteEngine(url, server="vllm").model == PLAIN
    lines = [one.getMessage() for one in caplog.records]
    assert [line.split(" from ")[0] for line in lines] == ["RemoteConnectionError", "HTTP 503"]
    assert lines[1].endswith("/v1/models; try 3 in 0.0 s")


def test_what_is_not_tried_again_is_no_retry(loopback: Loopback, caplog: pytest.LogCaptureFixture) -> None:
    url = loopback.script("a", [Reply(status=503, framing="length")])
    caplog.set_level(logging.INFO, "karakuri_integrations")
    with pytest.raises(RemoteError):
        ask(ChatKarakuri(base_url=url, model=PLAIN, server="vllm", max_tokens=9, max_retries=0))
    assert not caplog.records
