"""Many streams at once with faults among them, for as many seeds as wanted: nothing lost, repeated, crossed or left over.

    python cookbook/remote/soak.py                                  # 200 streams x 50 events, 20 % faults, 10 seeds
    python cookbook/remote/soak.py --streams 40 --seeds 1           # a short one

Every event of every stream says whose it is and which. A stream must end with exactly its own text, or, where its
fault allows no text, with the typed error of that fault, holding exactly what arrived. Both classes, async (one event
loop per seed) and sync (a thread per stream). Afterwards file descriptors, threads, tasks and the memory in use must be
back where they started. The server runs in a process of its own. The command fails when anything is wrong.

Memory in use is what Python and the C library have given out and not got back. The process's size (RSS) is shown too:
it also has the holes that hundreds of streams at once leave in the heap, since Python returns a MiB only when nothing in
it is used. So it may rise at first, and must then stand still: over the second half of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "remote"))

from loopback import LoopbackProcess
from numbered import FAULTS, Question, answer, verdict

MODEL = "karakuri-ai/karakuri-lm-70b-chat-v0.1"
#: Seconds after which a stream counts as hung.
WATCHDOG = 30.0
#: What the measures may differ by at the end. A block of Python's has 80 bytes or so, and 8,000 streams are run.
SLACK = {"file descriptors": 0, "threads": 0, "Python's blocks in use": 4000, "C heap in use, MiB": 1.0}
#: What the process's size may rise by in the second half of the rounds, in MiB.
RISE = 5.0


# --- the classes ---


def fields(url: str, idle: float) -> dict[str, Any]:
    limits = {"connect": 20, "pool": 20, "first_token": 20, "idle": idle}
    common = {"model": MODEL, "server": "vllm", "api_key": "sk-soak", "max_tokens": 500}
    return {**common, "base_url": url, "timeouts": limits}


class ChatKarakuri:
    """Texts of a stream of ChatKarakuri."""

    def __init__(self, url: str, idle: float) -> None:
        from karakuri_integrations.langchain import ChatKarakuri

        self.llm = ChatKarakuri(**fields(url, idle))

    def stream(self, prompt: str) -> Iterator[str]:
        for chunk in self.llm.stream(prompt):
            yield str(chunk.content)

    async def astream(self, prompt: str, take: Callable[[str], None]) -> None:
        async for chunk in self.llm.astream(prompt):
            take(str(chunk.content))


class KarakuriLLM:
    """Texts of a stream of KarakuriLLM."""

    def __init__(self, url: str, idle: float) -> None:
        from karakuri_integrations.llama_index import KarakuriLLM

        self.llm = KarakuriLLM(**fields(url, idle))

    def stream(self, prompt: str) -> Iterator[str]:
        for item in self.llm.stream_complete(prompt):
            yield item.delta or ""

    async def astream(self, prompt: str, take: Callable[[str], None]) -> None:
        async for item in await self.llm.astream_complete(prompt):
            take(item.delta or "")


# --- one seed ---


def questions(name: str, seed: int, asked: argparse.Namespace) -> list[Question]:
    """The streams of one seed: which have a fault, which one, and where."""
    chance = random.Random(f"{name} {seed}")
    kinds = [kind for kind in FAULTS if kind]
    made = []
    for number in range(asked.streams):
        fault = chance.choice(kinds) if chance.random() < asked.faults else ""
        after = chance.randrange(1, asked.events)
        made.append(Question(f"{name}-{seed}-{number}", asked.events, asked.pace, fault, after))
    return made


@dataclass
class Result:
    """What one seed came to."""

    wrong: list[str] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    left_tasks: int = 0

    def judge(self, question: Question, chunks: list[str], error: BaseException | None) -> None:
        self.ends[type(error).__name__ if error else "text"] += 1
        if isinstance(error, TimeoutError) and not hasattr(error, "partial_text"):
            self.wrong.append(f"{question.stream}: {question.fault}: hung for {WATCHDOG:g} s")
        elif found := verdict(question, chunks, error):
            self.wrong.append(f"{question.stream}: {found}")


def run_async(model: Any, asked: list[Question]) -> Result:
    result = Result()

    async def one(question: Question) -> None:
        chunks: list[str] = []
        error: BaseException | None = None
        try:
            async with asyncio.timeout(WATCHDOG):
                await model.astream(question.prompt, chunks.append)
        except Exception as caught:  # noqa: BLE001  # judged below
            error = caught
        result.judge(question, chunks, error)

    async def every() -> None:
        await asyncio.gather(*(one(question) for question in asked))
        await asyncio.sleep(0.05)
        result.left_tasks = len(asyncio.all_tasks()) - 1

    asyncio.run(every())
    return result


def run_sync(model: Any, asked: list[Question]) -> Result:
    result = Result()

    def one(question: Question) -> None:
        chunks: list[str] = []
        error: BaseException | None = None
        try:
            for text in model.stream(question.prompt):
                chunks.append(text)
        except Exception as caught:  # noqa: BLE001  # judged below
            error = caught
        result.judge(question, chunks, error)

    with ThreadPoolExecutor(len(asked)) as threads:
        for future in [threads.submit(one, question) for question in asked]:
            try:
                future.result(WATCHDOG * 2)
            except TimeoutError:
                result.wrong.append("a stream hung in its thread")
    return result


RUNS = {"async": run_async, "sync": run_sync}


# --- what is left over ---


class Heap(ctypes.Structure):
    """glibc's mallinfo2: bytes by kind, over all threads."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _give_back() -> None:
    """What the C library keeps of freed memory goes back to the system, where it can be told to (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def heap_in_use() -> float:
    """MiB that the C library has given out; 0 where it cannot be asked."""
    with suppress(OSError, AttributeError):
        ask = ctypes.CDLL("libc.so.6").mallinfo2
        ask.restype = Heap
        found = ask()
        return round((found.uordblks + found.hblkhd) / 2**20, 1)
    return 0.0


def size() -> float:
    """RSS in MiB, after memory that is free was given back."""
    _give_back()
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def measures() -> dict[str, float]:
    _give_back()
    return {
        "file descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "Python's blocks in use": sys.getallocatedblocks(),
        "C heap in use, MiB": heap_in_use(),
    }


def settle(before: dict[str, float]) -> dict[str, float]:
    """The measures, once they are back; what takes longer than two seconds is left over."""
    end = time.monotonic() + 2
    while True:
        now = measures()
        if all(now[name] <= before[name] + slack for name, slack in SLACK.items()) or time.monotonic() > end:
            return now
        time.sleep(0.1)


# --- the command ---


KINDS = [(make, way) for make in (ChatKarakuri, KarakuriLLM) for way in RUNS]


def one_round(make: Any, way: str, seed: int, asked: argparse.Namespace, server: LoopbackProcess) -> tuple[Result, int]:
    """Its result, and requests the server saw beyond those expected."""
    model = make(server.url("soak"), asked.idle)
    mine = questions(f"{make.__name__}-{way}", seed, asked)
    server.stats()
    started = time.monotonic()
    result = RUNS[way](model, mine)
    result.seconds = time.monotonic() - started
    expected = sum(FAULTS[question.fault].tries for question in mine)
    surplus = server.stats()["requests"] - expected
    model.llm.close()
    return result, surplus


def warm_up(asked: argparse.Namespace, server: LoopbackProcess) -> None:
    """What is made once is made: imports, caches, the first connections."""
    for make, way in KINDS:
        for seed in (10_000, 10_001):
            one_round(make, way, seed, asked, server)


def soak(asked: argparse.Namespace) -> list[str]:
    """Run everything and print the table; what is wrong."""
    wrong: list[str] = []
    sizes: list[float] = []
    with LoopbackProcess(answer) as server:
        warm_up(asked, server)
        before = measures()
        print(
            "| class | seed | streams | right text | typed errors | wrong | surplus requests | tasks left | RSS MiB | seconds |"
        )
        print("|---" * 10 + "|")
        for make, way, seed in (
            (*kind, seed) for kind in KINDS for seed in range(asked.first, asked.first + asked.seeds)
        ):
            name = f"{make.__name__} {way}"
            result, surplus = one_round(make, way, seed, asked, server)
            total, texts = sum(result.ends.values()), result.ends["text"]
            sizes.append(size())
            row = (name, seed, total, texts, total - texts, len(result.wrong), surplus, result.left_tasks, sizes[-1])
            print(f"| {' | '.join(map(str, row))} | {result.seconds:.1f} |", flush=True)
            wrong += result.wrong
            wrong += [f"{name} seed {seed}: {total} streams ended of {asked.streams}"] if total != asked.streams else []
            wrong += [f"{name} seed {seed}: {surplus} requests beyond the expected"] if surplus else []
            wrong += [f"{name} seed {seed}: {result.left_tasks} tasks left"] if result.left_tasks else []
        after = settle(before)
        connections = server.stats()["open"]
    print("\n| | before | after |\n|---|---|---|")
    for name, slack in SLACK.items():
        print(f"| {name} | {before[name]:.10g} | {after[name]:.10g} |")
        over = after[name] > before[name] + slack
        wrong += [f"{name}: {before[name]:.10g} before, {after[name]:.10g} after"] if over else []
    print(f"| connections that the server holds | 0 | {connections} |")
    half = sizes[len(sizes) // 2 - 1 :]
    print(f"| RSS MiB, after the first half of the rounds and after all | {half[0]:g} | {half[-1]:g} |\n")
    wrong += [f"RSS rises on: {half[0]:g} to {half[-1]:g} MiB"] if half[-1] > half[0] + RISE else []
    return wrong + ([f"{connections} connections stand open"] if connections else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=200, help="at once")
    parser.add_argument("--events", type=int, default=50, help="per stream")
    parser.add_argument("--faults", type=float, default=0.2, help="share of the streams")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds between two events of a stream")
    parser.add_argument("--idle", type=float, default=6.0, help="seconds after which a silent stream is given up")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    wrong = soak(parser.parse_args())
    print("\n".join(f"WRONG: {one}" for one in wrong[:200]) or "Nothing lost, repeated, crossed or left over.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
