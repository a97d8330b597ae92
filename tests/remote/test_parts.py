"""The pure parts of the remote engine: event streams cut anywhere, waits, endpoints, addresses, scrubbed quotations."""

import email.utils
import random
import time

import pytest

from karakuri_integrations.engines.addresses import addresses_of, split_credentials
from karakuri_integrations.engines.balancing import Endpoint, Endpoints
from karakuri_integrations.engines.exchange import Exchange, Private
from karakuri_integrations.engines.http import Limits
from karakuri_integrations.engines.proxies import proxy_of
from karakuri_integrations.engines.retrying import backoff, may_retry, retry_after
from karakuri_integrations.engines.servers import SERVERS
from karakuri_integrations.engines.sse import EventTooLargeError, Lines, ServerSentEvents
from karakuri_integrations.errors import OptionError

STREAM = '\ufeffid: 1\n: ping\ndata: {"a":"富士\u2028山\u0085"}\n\ndata:x\ndata: y\n\nevent: error\ndata: boom\n\nevent: none\n\ndata: [DONE]'
EVENTS = [
    ("", '{"a":"富士\u2028山\u0085"}'.encode()),
    ("", b"x\ny"),
    ("error", b"boom"),
    ("", b"[DONE]"),
]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_events_do_not_depend_on_where_the_bytes_are_cut(line_end: str) -> None:
    data = STREAM.replace("\n", line_end).encode()
    for seed in range(100):
        rng, decoder, found, at = random.Random(seed), ServerSentEvents(), [], 0
        while at < len(data):
            size = rng.choice((1, 2, 3, 7, 50))
            found += decoder.push(data[at : at + size])
            at += size
        assert found + decoder.end() == EVENTS


def test_lines_and_limits() -> None:
    lines = Lines()
    assert lines.push(b'{"a":1}\n\n{"b"') == [("", b'{"a":1}')]
    assert lines.push(b":2}") + lines.end() == [("", b'{"b":2}')]
    with pytest.raises(EventTooLargeError):
        ServerSentEvents(limit=100).push(b"data: " + b"x" * 200)
    with pytest.raises(EventTooLargeError):
        decoder = ServerSentEvents(limit=100)
        for _ in range(20):
            decoder.push(b"data: 0123456789\n")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1", 1.0), ("0.2", 0.2), ("0", None), ("-1", None), ("inf", None), ("nan", None), ("soon", None), ("130", 130.0)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}) == seconds


def test_retry_after_as_date_and_milliseconds() -> None:
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 25 < (retry_after({"retry-after": later}) or 0) <= 31
    assert retry_after({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}) is None
    assert retry_after({"retry-after": "Mon, 01 Jan 100000 00:00:00 GMT"}) is None
    assert retry_after({"retry-after-ms": "900", "retry-after": "5"}) == 0.9


def test_what_may_be_repeated() -> None:
    assert [status for status in range(400, 600) if may_retry(status, {})] == [
        408, 409, 425, 429, 500, 502, 503, 504, 529,
    ]  # fmt: skip
    assert not may_retry(429, {"retry-after": "130"})
    assert may_retry(400, {"x-should-retry": "true"})
    assert not may_retry(500, {"x-should-retry": "false"})
    assert all(0.375 * 2**n <= backoff(n + 1) <= 0.5 * 2**n for n in range(5))
    assert backoff(5000) <= 8.0
    assert backoff(1, 120.0) == 120.0
    assert backoff(1, 121.0) <= 0.5


def test_endpoints_share_the_calls_and_a_dead_one_is_left_out() -> None:
    a, b = Endpoint("http://a"), Endpoint("http://b")
    both = Endpoints((a, b))
    assert {both.take(), both.take()} == {a, b}
    both.give_back(a, failed=False)
    assert both.take() is a  # the least busy
    both.give_back(a, failed=False)
    both.give_back(b, failed=None)
    for _ in range(3):
        both.members[0].under_way += 1
        both.give_back(a, failed=True)
    assert [both.take() for _ in range(4)] == [b] * 4
    assert both.take(tried=[b]) is a  # nothing else is left
    both.give_back(a, failed=False)
    assert (a.failures, a.closed_until) == (0, 0.0)


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000"),
        ("https://host/v1/", "https://host"),
        ("https://host/team/vllm/v1", "https://host/team/vllm"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("HTTPS://Host", "https://host"),
    ],
)
def test_addresses(url: str, root: str) -> None:
    assert [one.root for one in addresses_of(url)] == [root]


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://host:x", "http://h?key=1", [], 5]
)
def test_what_is_no_address(url: object) -> None:
    with pytest.raises(OptionError):
        addresses_of(url)


def test_credentials_leave_the_address() -> None:
    shown, header = split_credentials("http://user:p%40ss@host:1/v1")
    assert (shown, header) == ("http://host:1", "Basic dXNlcjpwQHNz")
    assert split_credentials(["http://a", "http://u:p@b"])[0] == ["http://a", "http://b"]
    with pytest.raises(OptionError, match="different"):
        split_credentials(["http://u:p@a", "http://u:q@b"])


def test_quotations_hold_no_secret_and_no_prompt() -> None:
    private = Private(("sk-secret",), ("富士山について三行で詳しく教えてください。できれば歴史も。", "abcd"))
    assert private.scrub("bad key sk-secret") == "bad key **********"
    assert "富士山" not in private.scrub("input: 富士山について三行で詳しく教えてください。できれば歴史も")
    assert "abcd" not in private.scrub("x abcd y")
    assert len(private.scrub("e" * 5000)) == 500


def test_the_proxy_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_of("http://gpu.invalid/v1") == ""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:8080")
    assert proxy_of("http://gpu.invalid/v1") == "http://proxy.invalid:8080"
    assert proxy_of("https://gpu.invalid/v1") == ""
    monkeypatch.setenv("NO_PROXY", "gpu.invalid")
    assert proxy_of("http://gpu.invalid/v1") == ""
    assert proxy_of("http://other.invalid/v1") == "http://proxy.invalid:8080"


def test_the_proxy_is_looked_up_once_while_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setenv("HTTPS_PROXY", "http://once.invalid:1")
    monkeypatch.setattr("urllib.request.getproxies", lambda: asked.append(1) or {"https": "http://once.invalid:1"})
    assert [proxy_of("https://once.invalid/v1") for _ in range(5)] == ["http://once.invalid:1"] * 5
    assert len(asked) == 1


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_whole_body_may_begin_with_a_byte_order_mark(before: bytes) -> None:
    exchange = Exchange(SERVERS["vllm"], "http://127.0.0.1:9/v1/completions", Limits())
    exchange.begin(200, {"content-type": "application/json"})
    body = '{"choices": [{"text": "富士山", "finish_reason": "stop"}]}'.encode()
    pieces = [piece for chunk in (before + body, b"") for piece in exchange.push(chunk)]
    assert [piece.text for piece in pieces] == ["富士山"]
    assert exchange.final.finish_reason == "stop"
