"""Several endpoints of one model, through both classes: spread, failover before the first token, and the circuit."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from loopback import RESET, Loopback, Reply, Request
from wires import COMPLETION

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from karakuri_integrations.engines import balancing
from karakuri_integrations.errors import AuthenticationError, RemoteConnectionError, StreamInterruptedError
from karakuri_integrations.langchain import ChatKarakuri
from karakuri_integrations.llama_index import KarakuriLLM

COMMON = {"model": "karakuri-ai/karakuri-lm-70b-chat-v0.1", "server": "vllm", "max_tokens": 100}
DOWN = Reply(status=503, framing="length")


def says(text: str, pause: float = 0.0) -> Callable[[Request], Reply]:
    return lambda request: Reply([part for one in COMPLETION.stream(text) for part in (one, pause)])


def ask_langchain(urls: list[str], **fields: Any) -> Callable[[], str]:
    llm = ChatKarakuri(base_url=urls, **COMMON, **fields)
    return lambda: str(llm.invoke("質問です。").content)


def aask_langchain(urls: list[str], **fields: Any) -> Callable[[], str]:
    llm = ChatKarakuri(base_url=urls, **COMMON, **fields)
    return lambda: str(asyncio.run(llm.ainvoke("質問です。")).content)


def ask_llama_index(urls: list[str], **fields: Any) -> Callable[[], str]:
    llm = KarakuriLLM(base_url=urls, **COMMON, **fields)
    return lambda: llm.complete("質問です。").text


def aask_llama_index(urls: list[str], **fields: Any) -> Callable[[], str]:
    llm = KarakuriLLM(base_url=urls, **COMMON, **fields)
    return lambda: asyncio.run(llm.acomplete("質問です。")).text


WAYS = pytest.mark.parametrize("make", [ask_langchain, aask_langchain, ask_llama_index, aask_llama_index])
Make = Callable[..., Callable[[], str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Loopback]:
    with Loopback() as running:
        yield running


_used: dict[str, int] = {}


def endpoints(server: Loopback, *replies: Any) -> tuple[list[str], list[str]]:
    """Fresh endpoints with these replies: their keys and urls."""
    _used["number"] = _used.get("number", 0) + 1
    keys = [f"e{_used['number']}-{place}" for place in range(len(replies))]
    return keys, [server.script(key, [reply]) for key, reply in zip(keys, replies, strict=True)]


def asked(server: Loopback, keys: list[str]) -> list[int]:
    return [len(server.exchanges(key)) for key in keys]


@WAYS
def test_calls_are_spread(make: Make, server: Loopback) -> None:
    keys, urls = endpoints(server, *[says("はい。", 0.03)] * 3)
    call = make(urls)
    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(lambda _: call(), range(24))) == {"はい。"}
    assert min(asked(server, keys)) >= 5, asked(server, keys)


@WAYS
def test_a_slow_one_gets_fewer(make: Make, server: Loopback) -> None:
    keys, urls = endpoints(server, says("はい。", 0.4), says("はい。", 0.01))
    call = make(urls)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: call(), range(24)))
    slow, quick = asked(server, keys)
    assert slow < quick


@WAYS
@pytest.mark.parametrize("failure", [DOWN, RESET, Reply(status=429, framing="length")], ids=["503", "reset", "429"])
def test_failover_before_the_first_token(make: Make, failure: Reply, server: Loopback) -> None:
    keys, urls = endpoints(server, failure, says("はい。"))
    call = make(urls)
    assert [call() for _ in range(4)] == ["はい。"] * 4
    assert asked(server, keys)[1] == 4


@WAYS
def test_no_failover_after_the_first_token(make: Make, server: Loopback) -> None:
    cut = Reply(COMPLETION.half(), end="fin")
    keys, urls = endpoints(server, cut, cut)
    with pytest.raises(StreamInterruptedError) as caught:
        make(urls)()
    assert sum(asked(server, keys)) == 1
    assert caught.value.tries == 1


@WAYS
def test_an_error_of_the_request_is_no_failover(make: Make, server: Loopback) -> None:
    keys, urls = endpoints(server, *[Reply(status=401, framing="length")] * 2)
    with pytest.raises(AuthenticationError):
        make(urls)()
    assert sum(asked(server, keys)) == 1


@WAYS
def test_a_dead_one_is_left_out(make: Make, server: Loopback) -> None:
    keys, urls = endpoints(server, RESET, says("はい。"))
    call = make(urls)
    assert [call() for _ in range(20)] == ["はい。"] * 20
    assert asked(server, keys) == [3, 20]


@WAYS
def test_and_asked_again_later(make: Make, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "_PAUSE", 0.05)
    keys, urls = endpoints(server, RESET, says("はい。", 0.02))
    call = make(urls)
    for _ in range(8):
        call()
    server.script(keys[0], [says("はい。", 0.02)])
    for _ in range(30):
        call()
    dead, other = asked(server, keys)
    assert dead >= 10, (dead, other)


@WAYS
def test_all_dead(make: Make, server: Loopback) -> None:
    keys, urls = endpoints(server, RESET, RESET)
    with pytest.raises(RemoteConnectionError) as caught:
        make(urls, max_retries=1)()
    assert sum(asked(server, keys)) == caught.value.tries == 3
    assert min(asked(server, keys)) >= 1


@WAYS
def test_one_call_keeps_its_id(make: Make, server: Loopback) -> None:
    keys, urls = endpoints(server, DOWN, DOWN)
    call = make(urls, max_retries=1)
    for _ in range(2):
        with pytest.raises(Exception, match="failed"):
            call()
    sent = sorted((one.request for key in keys for one in server.exchanges(key)), key=lambda one: one.at)
    ids = [request.headers["x-request-id"] for request in sent]
    assert len(ids) == 6
    assert ids[:3] == [ids[0]] * 3
    assert ids[3:] == [ids[3]] * 3
    assert ids[0] != ids[3]
    assert [request.headers["idempotency-key"] for request in sent] == ids
    assert len({request.body for request in sent}) == 1
