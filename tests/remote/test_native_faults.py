"""The faults that cut a reply, on the routes that are not OpenAI's: TGI's events and Ollama's JSON lines."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from calls import OURS, Run, problems, run_row, servers
from fault_table import CONTEXT_TGI, IDLE, MESSAGE, PARTIAL, Bad, Good, Row
from loopback import SSE, Reply
from wires import HALF, TEXT

pytest.importorskip("aiohttp")
pytest.importorskip("urllib3")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")


@dataclass(frozen=True)
class Dialect:
    """A server's route: how it writes a piece, an end with a reason, and an error."""

    server: str
    headers: tuple[tuple[str, str], ...]
    frame: Callable[[dict[str, Any]], bytes]
    piece: Callable[[str], dict[str, Any]]
    end: Callable[[str], dict[str, Any]]
    error: Callable[[str], dict[str, Any]]
    words: dict[str, str]

    def pieces(self, text: str = TEXT) -> list[bytes]:
        return [self.frame(self.piece(one)) for one in text]

    def whole(self, word: str = "stop") -> list[bytes]:
        return [*self.pieces(), self.frame(self.end(self.words[word]))]

    def half(self, *then: bytes) -> list[bytes]:
        return [*self.pieces(TEXT[:HALF]), *then]

    def reported(self, text: str) -> bytes:
        return self.frame(self.error(text))


def _event(value: dict[str, Any]) -> bytes:
    return b"data:" + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _tgi_token(text: str, special: bool = False) -> dict[str, Any]:
    return {"id": 5, "text": text, "logprob": -0.1, "special": special}


TGI = Dialect(
    "tgi",
    SSE,
    _event,
    lambda text: {"index": 1, "token": _tgi_token(text), "generated_text": None, "details": None},
    lambda word: {
        "index": 26,
        "token": _tgi_token("</s>", special=True),
        "generated_text": TEXT,
        "details": {"finish_reason": word, "generated_tokens": 26, "seed": None, "input_length": 9},
    },
    lambda text: {"error": text, "error_type": "generation"},
    {"stop": "eos_token", "length": "length"},
)

OLLAMA = Dialect(
    "ollama",
    (("Content-Type", "application/x-ndjson"),),
    _line,
    lambda text: {"model": "k", "created_at": "2026-08-21T18:48:22.1Z", "response": text, "done": False},
    lambda word: {
        "model": "k",
        "created_at": "2026-08-21T18:48:22.3Z",
        "response": "",
        "done": True,
        "done_reason": word,
        "prompt_eval_count": 9,
        "eval_count": 26,
    },
    lambda text: {"error": text},
    {"stop": "stop", "length": "length"},
)

INTERRUPTED = Bad(("StreamInterruptedError",), PARTIAL)
SAID = Bad(("RemoteStreamError",), PARTIAL, said=MESSAGE)
BROKEN = Bad(("ProtocolError",), PARTIAL)


def rows(d: Dialect) -> Iterator[Row]:
    def made(
        name: str, parts: list[bytes], *expect: Good | Bad, fields: dict[str, Any] | None = None, **how: Any
    ) -> Row:
        reply = Reply(parts, headers=d.headers, **how)
        return Row(f"{d.server}: {name}", lambda site: [reply], expect, fields={"server": d.server, **(fields or {})})

    broken_text = d.frame(d.piece("X")).replace(b"X", b"\xe5\xaf")
    yield made("whole", d.whole(), Good(finish="stop"))
    yield made("length", d.whole("length"), Good(finish="length"))
    yield made("whole, one byte per packet", d.whole(), Good(), packet=1)
    yield made("whole, CRLF in 7-byte packets", [b"".join(d.whole()).replace(b"\n", b"\r\n")], Good(), packet=7)
    yield made("whole, BOM first", [b"\xef\xbb\xbf", *d.whole()], Good())
    yield made("whole, the last line end is missing", [b"".join(d.whole()).rstrip(b"\n")], Good())
    yield made("whole, then the connection drops", d.whole(), Good(), end="fin")
    yield made("whole, then the connection stays open", d.whole(), Good(), end="stall")
    yield made("drop, chunked", d.half(), INTERRUPTED, end="fin")
    yield made("drop, close-delimited", d.half(), INTERRUPTED, framing="close")
    yield made("clean end without the last event", d.half(), INTERRUPTED)
    yield made("last event cut in half", d.half(d.frame(d.end("stop"))[:-30]), INTERRUPTED)
    yield made("error in the middle", d.half(d.reported(MESSAGE)), SAID)
    yield made("error, then the connection drops", d.half(d.reported(MESSAGE)), SAID, end="fin")
    yield made("error first", [d.reported(MESSAGE)], Bad(("RemoteStreamError",), said=MESSAGE))
    yield made("context overflow first", [d.reported(CONTEXT_TGI)], Bad(("ContextOverflowError",)))
    yield made("broken JSON", d.half(d.frame({})[:-3] + b'{"\n\n', *d.whole()), BROKEN)
    yield made("broken UTF-8", d.half(broken_text, *d.whole()), BROKEN)
    yield made("another shape", d.half(d.frame({"index": 5}), *d.whole()), BROKEN)
    yield made("stall", d.half(), Bad(("RemoteTimeoutError",), PARTIAL, stage="idle"), fields=IDLE, end="stall")
    yield made("empty", [], Bad(("ProtocolError", "StreamInterruptedError")))


def tgi(name: str, *replies: list[bytes], expect: Good | Bad, tries: int) -> Row:
    script = [Reply(parts, headers=TGI.headers) for parts in replies]
    return Row(f"tgi: {name}", lambda site: script, (expect,), tries=(tries,), fields={"server": "tgi"})


BUSY = TGI.frame({"error": "Model is overloaded", "error_type": "overloaded"})
REFUSED = TGI.frame({"error": "Input validation error: `top_p` must be > 0.0", "error_type": "validation"})
#: It answers 200 before it looks at a request; what other servers say by a status stands in the first event.
EARLY = (
    tgi("overloaded first, then whole", [BUSY], TGI.whole(), expect=Good(finish="stop"), tries=2),
    tgi("overloaded each time", [BUSY], expect=Bad(("RateLimitError",), said="overloaded"), tries=3),
    tgi("overloaded after text", TGI.half(BUSY), expect=Bad(("RemoteStreamError",), PARTIAL), tries=1),
    tgi("validation first", [REFUSED], expect=Bad(("RemoteRequestError",), said="top_p"), tries=1),
)

ALL = [*(row for dialect in (TGI, OLLAMA) for row in rows(dialect)), *EARLY]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[str, "Future[list[Run]]"]]:
    wanted = {item.name.partition("[")[2][:-1] for item in request.session.items}
    with servers() as at, ThreadPoolExecutor(6) as threads:
        yield {row.name: threads.submit(run_row, row, OURS, at) for row in ALL if row.name in wanted}


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
def test_row(row: Row, runs: dict[str, "Future[list[Run]]"]) -> None:
    found = [f"{run.client.name}.{run.way}: {one}" for run in runs[row.name].result() for one in problems(row, run)]
    assert not found, "\n".join(found)
