"""What a grammar costs: to compile, and for each token, at the 70B model's vocabulary of 45,416 tokens.

    python cookbook/tools/overhead.py              about a minute
    python cookbook/tools/overhead.py --forward    and a decode step at the 70B's layer shapes, in bf16; needs 2 GiB

The vocabulary is a byte-fallback BPE trained on made-up words, kept in the temporary folder for the next run. A token's
cost is that of its mask, of applying it to the logits, and of following the token in the grammar, the way to the end
included. "First" is the first reply that a grammar sees, "later" the ones after it: what the grammar has learnt about
the vocabulary stays with it. Times are wall-clock medians and 95th percentiles of many replies, and the CPU time of
all of them divided by their tokens; on a machine that does other work the CPU time is the one to trust.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

# Choosing a token is too little work to share between threads, which wait for each other where a core is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from vocabulary import VOCABULARY, big_tokenizer

from karakuri_integrations.conversation import Grammar, Sampling
from karakuri_integrations.engines.decoding import Sampler
from karakuri_integrations.engines.grammars import Constraint, Grammars
from karakuri_integrations.engines.tokens import Tokens
from karakuri_integrations.tools import SYNTAXES, list_of_calls, tooling_of

FORM = SYNTAXES["brackets"].form
END = 2
ROOM = 400
BAR = 0.8  # milliseconds a token
#: A decode step of the 70B model on two cores of this class, in NF4: 0.75 tokens/s.
STEP_70B = 1333.0


def tool(place: int) -> dict[str, Any]:
    properties = {
        "city": {"type": "string", "description": "都市の名前"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["摂氏", "華氏"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "exact": {"type": "boolean"}},
            "required": ["lat"],
        },
        f"only_{place}": {"anyOf": [{"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}, {"type": "null"}]},
    }
    parameters = {"type": "object", "properties": properties, "required": ["city", "days"]}
    return {"type": "function", "function": {"name": f"tool_{place}", "parameters": parameters}}


def grammar_of(count: int) -> Grammar:
    tooling = tooling_of({"tools": [tool(place) for place in range(count)]})
    return Grammar(list_of_calls(tooling, FORM), opener=FORM.opener, lead=" ")


TEXT = "明日の東京は晴れ時々曇りで、最高気温は二十度の見込みです。 Bring a coat in the evening, please. " * 4
CALL = json.dumps(
    [{"name": "tool_0", "arguments": {
        "city": TEXT[:160], "days": 7, "unit": "摂氏", "tags": ["天気", "旅行", "weather"], "place": {"lat": 35.68, "exact": True},
        "only_0": "123-4567"}}],
    ensure_ascii=False,
)  # fmt: skip


# --- timing ----------------------------------------------------------------------------------------------------------


class Clock:
    """Wall and CPU time of what is run through it, in milliseconds, by kind."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, float] = {}

    def run(self, kind: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        result = work()
        self.wall.setdefault(kind, []).append((time.perf_counter() - wall) * 1e3)
        self.cpu[kind] = self.cpu.get(kind, 0.0) + (time.thread_time() - cpu) * 1e3
        return result

    def cells(self, kind: str) -> str:
        if kind not in self.wall:
            return "- | - | -"
        times = sorted(self.wall[kind])
        high = times[min(len(times) - 1, int(0.95 * len(times)))]
        return f"{statistics.median(times):.3f} | {high:.3f} | {self.cpu[kind] / len(times):.3f}"


def follow(clock: Clock, grammars: Grammars, constraint: Constraint, text: str, choose: Callable[[Any], Any]) -> None:
    """Lead a constraint through this reply, token by token, as a model that wants to write it would."""
    rest, said = text.encode(), b""
    while rest:
        token = grammars.tokenizer.tokenize_bytes(rest)[0]

        def step(token: int = token) -> list[int]:
            choose(constraint.allowed())
            return constraint.take(token)

        for taken in clock.run(kind_of(said.decode(errors="ignore")), step):
            size = len(grammars.tokenizer.decode_bytes([taken]))
            said, rest = said + rest[:size], rest[size:]
    assert said.decode() == text
    assert not constraint.ended_early


def kind_of(said: str) -> str:
    _, opened, call = said.partition(FORM.opener)
    if not opened:
        return "text"
    return "in strings" if call.replace('\\"', "").count('"') % 2 else "JSON structure"


# --- what is measured ------------------------------------------------------------------------------------------------


def compiling(grammars: Callable[[], Grammars], counts: Sequence[int]) -> None:
    began = time.perf_counter()
    one = grammars()
    print(f"Tokenizer of {one.width} tokens, once per model: {(time.perf_counter() - began) * 1e3:.0f} ms\n")
    print("| tools | cold, ms | cached, ms |\n|---|---|---|")
    for count in counts:
        grammar, cold = grammar_of(count), []
        for _ in range(5):
            one._compiled.clear()
            began = time.perf_counter()
            one.constraint(grammar, ROOM)
            cold.append((time.perf_counter() - began) * 1e3)
        cached = []
        for _ in range(50):
            began = time.perf_counter()
            one.constraint(grammar, ROOM)
            cached.append((time.perf_counter() - began) * 1e3)
        print(f"| {count} | {statistics.median(cold):.1f} | {statistics.median(cached):.3f} |", flush=True)


def following(one: Grammars, counts: Sequence[int], replies: int) -> dict[str, float]:
    """The table of a token's cost; CPU milliseconds a token of later replies."""
    import torch

    sampler = Sampler(Sampling(), torch.device("cpu"))
    logits, history = torch.randn(1, one.width), torch.zeros((1, 1), dtype=torch.long)
    bare = Clock()
    for _ in range(200):
        bare.run("bare", lambda: sampler(logits, history))

    def choose(allowed: Any) -> Any:
        return sampler(logits, history, allowed)

    print("\n| tools | reply | where | median, ms | 95th percentile, ms | CPU, ms |\n|---|---|---|---|---|---|")
    least = bare.cpu["bare"] / 200
    print(f"| - | - | choosing without a grammar (in each figure below) | {bare.cells('bare')} |")
    cost: dict[str, float] = {}
    for count in counts:
        one._compiled.clear()
        for name, times in (("first", 1), ("later", replies)):
            clock = Clock()
            for _ in range(times):
                for text in (TEXT, FORM.opener + CALL):
                    follow(clock, one, one.constraint(grammar_of(count), ROOM), text, choose)
            for kind in clock.wall:
                print(f"| {count} | {name} | {kind} | {clock.cells(kind)} |", flush=True)
                if name == "later":
                    cost[kind] = max(cost.get(kind, 0.0), clock.cpu[kind] / len(clock.wall[kind]) - least)
    return cost


def hiding(one: Grammars, forward: Callable[[], Any], replies: int) -> tuple[float, float, float]:
    """Milliseconds a token of a forward pass alone, with the mask before it, and with the mask beside it."""
    found = []
    for beside in (None, False, True):
        times = []
        for _ in range(replies):
            constraint = one.constraint(grammar_of(5), ROOM)
            clock = Clock()

            def choose(_allowed: Any) -> None:
                """The mask is what is timed here."""

            follow(clock, one, _Timed(constraint, forward, beside, times), FORM.opener + CALL, choose)  # type: ignore[arg-type]
        found.append(statistics.median(times))
    return found[0], found[1], found[2]


class _Timed:
    """A constraint whose masks are computed around a forward pass, and the time that the two take together."""

    def __init__(self, inner: Constraint, forward: Callable[[], Any], beside: bool | None, times: list[float]) -> None:
        self._inner, self._forward, self._beside, self._times = inner, forward, beside, times

    def allowed(self) -> Any:
        if self._beside is None:
            mask = self._inner.allowed()
        began = time.perf_counter()
        if self._beside:
            waiting: Future[Any] = self._inner.beside(self._inner.allowed)
            self._forward()
            mask = waiting.result()
        else:
            if self._beside is False:
                mask = self._inner.allowed()
            self._forward()
        self._times.append((time.perf_counter() - began) * 1e3)
        return mask

    def take(self, token: int) -> list[int]:
        return self._inner.take(token)

    @property
    def ended_early(self) -> bool:
        return self._inner.ended_early


def computing(milliseconds: float) -> Callable[[], Any]:
    """Matrix products on the CPU that take about so long."""
    import torch

    left, right = torch.randn(256, 256), torch.randn(256, 256)
    began = time.perf_counter()
    for _ in range(50):
        left @ right
    times = max(1, int(milliseconds / ((time.perf_counter() - began) * 1e3 / 50)))

    def forward() -> None:
        for _ in range(times):
            left @ right

    return forward


def decode_step() -> float:
    """Milliseconds of a decode step at the 70B's layer shapes in bf16: one layer's matrices, times 80."""
    import torch

    shapes = [(8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672)]
    matrices = [torch.full(shape, 0.01, dtype=torch.bfloat16) for shape in shapes]
    inputs = {size: torch.ones(size, dtype=torch.bfloat16) for size in (8192, 28672)}
    times = []
    for _ in range(6):
        began = time.perf_counter()
        for matrix in matrices:
            matrix @ inputs[matrix.shape[1]]
        times.append((time.perf_counter() - began) * 1e3)
    return 80 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replies", type=int, default=20, help="how many replies of each kind")
    parser.add_argument("--forward", action="store_true", help="measure a decode step at the 70B's layer shapes")
    asked = parser.parse_args()
    raw = big_tokenizer(Path(tempfile.gettempdir()))
    tokens = Tokens(raw)

    def grammars() -> Grammars:
        return Grammars(raw.to_str(), VOCABULARY, VOCABULARY, END, tokens.bytes_of)

    compiling(grammars, (1, 5, 20))
    one = grammars()
    cost = following(one, (1, 5, 20), asked.replies)
    print("\n| forward pass | alone, ms | mask before it | mask beside it | hidden |\n|---|---|---|---|---|")
    waits = [(f"waits {wait} ms, as for a GPU", lambda wait=wait: time.sleep(wait / 1e3)) for wait in (2, 10)]
    for name, forward in [*waits, *((f"computes about {each} ms here", computing(each)) for each in (2, 10, 50))]:
        alone, before, beside = hiding(one, forward, 4)
        share = f"{100 * (before - beside) / (before - alone):.0f} %" if before > alone else "-"
        print(f"| {name} | {alone:.2f} | {before:.2f} | {beside:.2f} | {share} |", flush=True)
    worst = max(cost.values())
    print(f"\nThe dearest kind of token costs {worst:.3f} ms of CPU time; the bar is {BAR} ms.")
    steps = [(STEP_70B, "on two such cores in NF4, as measured before")]
    if asked.forward:
        steps.append((decode_step(), f"on {torch_threads()} of these cores in bf16, one layer measured now, times 80"))
    for step, where in steps:
        print(f"A token of the 70B takes {step:.0f} ms {where}: the grammar is {100 * worst / step:.3f} % of it.")
    print(f"It is 5 % of a step of {20 * worst:.0f} ms.")


def torch_threads() -> int:
    import torch

    return int(torch.get_num_threads())


if __name__ == "__main__":
    main()
