"""CPU time per streamed token, ours beside others, in one run on this machine.

    python cookbook/remote/cost.py                                   # 1, 50 and 200 streams, 5 rounds: some 15 minutes
    python cookbook/remote/cost.py --rounds 1 --sizes 1x100,10x20 --pace 0

A server in a process of its own streams numbered events over 127.0.0.1. Each round runs both sides in the order A-B-B-A
with fresh clients; the figure is this process's CPU time (`time.process_time`), calls included, over the events, and the
ratio is taken per round. No run counts unless every stream's text is right and every server event came out as exactly one
delta: gathering several would look cheap. Events come as fast as the server can send them, and again at a pace, where the
event loop's wake-up for every packet, which is everybody's, weighs most. ChatOpenAI and OpenAILike speak to the chat
route, as they do; what is not installed is shown as absent. The command fails when one of our classes costs more than a
third of its peer with events as fast as they come, unless the machine is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "remote"))

from loopback import LoopbackProcess, Reply, Request
from numbered import Question, asked
from wires import DONE, Wire, wire_of

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
KEY = "sk-cost"
SHOWN = ("karakuri-integrations", "aiohttp", "urllib3", "httpx", "langchain-core", "llama-index-core", "openai", "langchain-openai", "llama-index-llms-openai-like")  # fmt: skip
#: What a class of ours may cost, in shares of its peer's CPU time.
LIMIT = 1 / 3


# --- the server ---


@lru_cache(maxsize=4)
def _around(wire: Wire) -> tuple[bytes, bytes]:
    """An event's bytes before and after its text."""
    before, _, after = wire.event("TEXT").partition(b"TEXT")
    return before, after


def _events(wire: Wire, question: Question) -> Iterator[bytes | float]:
    before, after = _around(wire)
    for number in range(question.count):
        yield before + question.piece(number).encode() + after
        if question.pace:
            yield question.pace
    yield from (wire.end(), wire.usage(), DONE)


def answer(request: Request) -> Reply:
    return Reply(_events(wire_of(request.path), asked(request)))


# --- the contenders: each is made for a round and yields the deltas of a stream ---

Stream = Callable[[str], AsyncIterator[str]]


def chat_karakuri(url: str) -> Stream:
    from karakuri_integrations.langchain import ChatKarakuri

    llm = ChatKarakuri(model=MODEL, base_url=url, server="vllm", api_key=KEY, max_tokens=2000)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for chunk in llm.astream(prompt):
            yield chunk.content

    return stream


def karakuri_llm(url: str) -> Stream:
    from llama_index.core.llms import ChatMessage

    from karakuri_integrations.llama_index import KarakuriLLM

    llm = KarakuriLLM(model=MODEL, base_url=url, server="vllm", api_key=KEY, max_tokens=2000)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for item in await llm.astream_chat([ChatMessage(prompt)]):
            yield item.delta

    return stream


def core(url: str) -> Stream:
    from karakuri_integrations.conversation import Message, Sampling
    from karakuri_integrations.conversation import Request as Asked
    from karakuri_integrations.engines import RemoteEngine
    from karakuri_integrations.generation import astream
    from karakuri_integrations.templates import render

    engine = RemoteEngine(url, MODEL, server="vllm", api_key=KEY)

    async def stream(prompt: str) -> AsyncIterator[str]:
        rendered = render(Asked((Message("user", prompt),)), engine.family)
        async for delta in astream(engine, rendered, Sampling(max_tokens=2000)):
            yield delta.text

    return stream


def chat_openai(url: str) -> Stream:
    from langchain_openai import ChatOpenAI

    llm = ChatOpenAI(model="karakuri", base_url=url, api_key=KEY, stream_usage=True, max_tokens=2000)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for chunk in llm.astream(prompt):
            yield chunk.content

    return stream


def openai_like(url: str) -> Stream:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(model="karakuri", api_base=url, api_key=KEY, is_chat_model=True, max_tokens=2000)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for item in await llm.astream_chat([ChatMessage(prompt)]):
            yield item.delta or ""

    return stream


def _body(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "stream": True, "max_tokens": 2000}


def _text(line: bytes | str) -> str:
    """What a bare client does with a line: parse it, take the text."""
    if not line.startswith(b"data: " if isinstance(line, bytes) else "data: "):
        return ""
    data = line[6:].strip()
    if data in (b"[DONE]", "[DONE]"):
        return ""
    choices = json.loads(data)["choices"]
    return choices[0]["text"] if choices else ""


def bare_httpx(url: str) -> Stream:
    import httpx

    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
    client = httpx.AsyncClient(limits=limits, timeout=600, headers={"Authorization": f"Bearer {KEY}"})

    async def stream(prompt: str) -> AsyncIterator[str]:
        async with client.stream("POST", f"{url}/completions", json=_body(prompt)) as response:
            async for line in response.aiter_lines():
                if text := _text(line):
                    yield text

    stream.close = client.aclose  # type: ignore[attr-defined]
    return stream


def bare_aiohttp(url: str) -> Stream:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=1000)
    session = aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {KEY}"})

    async def stream(prompt: str) -> AsyncIterator[str]:
        async with session.post(f"{url}/completions", json=_body(prompt)) as response:
            async for line in response.content:
                if text := _text(line):
                    yield text

    stream.close = session.close  # type: ignore[attr-defined]
    return stream


@dataclass(frozen=True)
class Pair:
    """Two sides. `package`: what the other needs; `gate`: whether ours must keep to LIMIT."""

    name: str
    make: Callable[[str], Stream]
    other: str
    make_other: Callable[[str], Stream]
    package: str
    gate: bool = False


PAIRS = (
    Pair("ChatKarakuri", chat_karakuri, "ChatOpenAI", chat_openai, "langchain-openai", gate=True),
    Pair("KarakuriLLM", karakuri_llm, "OpenAILike", openai_like, "llama-index-llms-openai-like", gate=True),
    Pair("core (RemoteEngine)", core, "bare httpx", bare_httpx, "httpx"),
    Pair("core (RemoteEngine)", core, "bare aiohttp", bare_aiohttp, "aiohttp"),
)


# --- measuring ---


@dataclass(frozen=True)
class Size:
    """How many streams at once, of how many events, at what pace in seconds."""

    streams: int
    events: int
    pace: float = 0.0

    def questions(self) -> list[Question]:
        return [Question(f"s{number}", self.events, self.pace) for number in range(self.streams)]


@dataclass(frozen=True)
class Taken:
    """One run: CPU microseconds per event and events per second."""

    cpu: float
    rate: float


async def run(make: Callable[[str], Stream], url: str, size: Size) -> Taken:
    """One side once, with a fresh client.

    Raises:
        AssertionError: a text is wrong, or deltas and server events differ in number.
    """
    stream, questions = make(url), size.questions()
    await _collect(stream, Question("first", 2))  # connects, imports
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    got = await asyncio.gather(*(_collect(stream, question) for question in questions))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    for question, deltas in zip(questions, got, strict=True):
        expected = [question.piece(number) for number in range(question.count)]
        assert deltas == expected, f"{len(deltas)} deltas for {len(expected)} events, or another text"
    if close := getattr(stream, "close", None):
        await close()
    total = size.streams * size.events
    return Taken(cpu / total * 1e6, total / wall)


async def _collect(stream: Stream, question: Question) -> list[str]:
    return [text async for text in stream(question.prompt) if text]


@dataclass
class Compared:
    """A pair at a size: what each round came to."""

    ours: list[Taken] = field(default_factory=list)
    others: list[Taken] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def add(self, ours: list[Taken], others: list[Taken]) -> None:
        self.ours += ours
        self.others += others
        self.ratios.append(sum(one.cpu for one in ours) / sum(one.cpu for one in others))

    def row(self) -> str:
        ratio = statistics.median(self.ratios)
        cpu = [statistics.median(one.cpu for one in side) for side in (self.ours, self.others)]
        rate = [statistics.median(one.rate for one in side) for side in (self.ours, self.others)]
        spread = f"{ratio:.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"
        return f"{cpu[0]:.1f} | {cpu[1]:.1f} | **{spread}** | {rate[0]:,.0f} | {rate[1]:,.0f}"


async def compare(pair: Pair, url: str, size: Size, rounds: int) -> Compared:
    """Rounds of A-B-B-A, after one round that does not count."""
    found = Compared()
    small = Size(min(size.streams, 10), min(size.events, 20))
    for make in (pair.make, pair.make_other):
        await run(make, url, small)
    for _ in range(rounds):
        a1, b1 = await run(pair.make, url, size), await run(pair.make_other, url, size)
        b2, a2 = await run(pair.make_other, url, size), await run(pair.make, url, size)
        found.add([a1, a2], [b1, b2])
    return found


# --- the command ---


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def sizes_of(text: str, pace: float) -> list[Size]:
    """`1x1000,50x100`: streams and events; each at full speed, and again at the pace."""
    plain = [Size(*(int(part) for part in one.split("x"))) for one in text.split(",")]
    return plain + ([Size(one.streams, one.events, pace) for one in plain] if pace else [])


async def measure(options: argparse.Namespace, url: str) -> list[str]:
    """Print the table row by row; what exceeds the limit."""
    print(
        "| arrival | streams x events | ours | other | ours, CPU µs/token | other | ratio, median (min to max) | ours, tokens/s | other |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    over: list[str] = []
    for size in sizes_of(options.sizes, options.pace):
        arrival = f"every {size.pace * 1000:g} ms" if size.pace else "at once"
        for pair in PAIRS:
            if options.only and options.only.lower() not in f"{pair.name} {pair.other}".lower():
                continue
            start = f"| {arrival} | {size.streams} x {size.events} | {pair.name} | {pair.other}"
            if not version(pair.package):
                print(f"{start} | **peer absent** ({pair.package}) | | | | |", flush=True)
                continue
            found = await compare(pair, url, size, options.rounds)
            print(f"{start} | {found.row()} |", flush=True)
            if pair.gate and not size.pace and statistics.median(found.ratios) > LIMIT:
                over.append(f"{pair.name} takes more than a third of {pair.other} at {size.streams} streams, {arrival}")
    return over


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", default="1x1000,50x100,200x50", help="streams x events")
    parser.add_argument("--pace", type=float, default=0.005, help="seconds between events in the second half; 0: none")
    parser.add_argument("--only", default="", help="only pairs whose names hold this")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    versions = ", ".join(f"{name} {version(name)}" for name in SHOWN if version(name))
    print(
        f"Python {sys.version.split()[0]}, {cores} cores, load {load:.1f}; {versions}; {options.rounds} rounds A-B-B-A.\n"
    )
    with LoopbackProcess(answer) as server:
        over = asyncio.run(measure(options, server.url("cost")))
    noisy = load > cores
    print("\nEvery stream's text was right, with one delta per server event.")
    print("\n".join(("noisy machine, not judged: " if noisy else "WRONG: ") + one for one in over))
    return 1 if over and not noisy else 0


if __name__ == "__main__":
    sys.exit(main())
