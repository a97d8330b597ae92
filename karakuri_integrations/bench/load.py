"""Many clients that come at random: throughput, gaps between tokens, time to first token beside the queue's depth.

Each client asks, reads its reply to the end, waits a random time (exponential, seeded) and asks again, all on one event
loop, as in a server. One client that asks without a pause, before and after, is what it is compared with.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import Final

from ..conversation import Sampling
from .figures import Figure, Spread, quantile
from .subject import Effort, Subject, questions

__all__ = ["CLIENTS", "load"]

CLIENTS: Final = 32
LOAD: Final = "Clients that come at random"


@dataclass
class _Seen:
    """What the clients saw."""

    tokens: int = 0
    replies: int = 0
    gaps: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    #: Clients that waited for their first token, each time that one asked.
    depths: list[int] = field(default_factory=list)
    waiting: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def load(subject: Subject, effort: Effort, seconds: float) -> list[Figure]:
    """Figures of `seconds` with all clients, and a quarter of it before and after with one."""
    effort.say("one client")
    before = asyncio.run(_serve(subject, effort, seconds / 4, 1, 0.0))
    pause = before.seconds / before.replies
    effort.say(f"{CLIENTS} clients for {seconds:g} s")
    many = asyncio.run(_serve(subject, effort, seconds, CLIENTS, pause))
    effort.say("one client again")
    after = asyncio.run(_serve(subject, effort, seconds / 4, 1, 0.0))
    return _figures(many, [before.rate, after.rate], pause)


def _figures(many: _Seen, alone: list[float], pause: float) -> list[Figure]:
    middle, late = median(many.gaps), quantile(many.gaps, 0.99)
    gap, first = (quantile(one, 0.99) for one in (many.gaps, many.firsts))
    ratio = Spread.of(many.rate / one for one in alone)
    return [
        Figure(LOAD, "one client", "tokens/s", Spread.of(alone)),
        Figure(
            LOAD,
            f"{CLIENTS} clients",
            "tokens/s",
            Spread(many.rate, many.rate, many.rate),
            ratio,
            "over one client",
            note=f"{many.replies} replies in {many.seconds:.0f} s; mean pause of a client {1000 * pause:.0f} ms",
        ),
        Figure(LOAD, "gap between tokens, median", "ms", Spread(1000 * middle, 1000 * min(many.gaps), 1000 * gap)),
        Figure(
            LOAD,
            "gap between tokens, p99",
            "ms",
            _one(1000 * late),
            _one(late / middle),
            "of the median",
        ),
        Figure(
            LOAD,
            "first token, p99",
            "ms",
            _one(1000 * first),
            note=f"median {1000 * median(many.firsts):.0f} ms; clients waiting for theirs: median "
            f"{median(many.depths):g}, at most {max(many.depths)}",
        ),
    ]


def _one(value: float) -> Spread:
    return Spread(value, value, value)


async def _serve(subject: Subject, effort: Effort, seconds: float, clients: int, pause: float) -> _Seen:
    seen, began = _Seen(), time.perf_counter()
    await asyncio.gather(*(_client(subject, effort, seen, number, began + seconds, pause) for number in range(clients)))
    seen.seconds = time.perf_counter() - began
    return seen


async def _client(subject: Subject, effort: Effort, seen: _Seen, number: int, end: float, pause: float) -> None:
    random, asked = Random(number), questions()  # noqa: S311  # arrivals, the same in each run of the command
    while time.perf_counter() < end:
        if pause:
            await asyncio.sleep(random.expovariate(1 / pause))
        await _call(subject, effort, seen, random.choice(asked))


async def _call(subject: Subject, effort: Effort, seen: _Seen, text: str) -> None:
    seen.waiting += 1
    seen.depths.append(seen.waiting)
    began, last = time.perf_counter(), 0.0
    async for _ in subject.plain.astream(subject.prompt(text), Sampling(max_tokens=effort.tokens)):
        now = time.perf_counter()
        if last:
            seen.gaps.append(now - last)
        else:
            seen.firsts.append(now - began)
            seen.waiting -= 1
        last = now
        seen.tokens += 1
    seen.replies += 1
