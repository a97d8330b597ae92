"""What is measured: one loaded model behind engines that differ in what they may do, and one timed call.

Everything goes through LocalEngine as users call it. What only the worker thread may touch (the torch module, what
is kept) is looked at by a job of its own.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ..conversation import Message, Prompt, Request, Sampling
from ..engines import LocalEngine
from ..engines.channel import Channel, Deadline
from ..engines.checkpoint import source_of
from ..engines.precision import Precision, precision_of, stored_form
from ..engines.registry import Key, Shared, shared
from ..templates import render

if TYPE_CHECKING:
    from ..engines.batching import Batch

__all__ = [
    "AT_ONCE",
    "TIGHT_MIB",
    "Answer",
    "Effort",
    "Run",
    "Subject",
    "alternate",
    "ask",
    "at_once",
    "in_threads",
    "questions",
    "rate",
    "streamed",
    "whole",
]

_T = TypeVar("_T")

AT_ONCE: Final = 16
#: The memory that `Subject.tight` may keep.
TIGHT_MIB: Final = 16


@dataclass(frozen=True)
class Effort:
    """How much is measured. `tokens` are those of a reply; `say` tells whoever waits what is being done."""

    rounds: int
    tokens: int
    say: Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One call, or several that ran together: what came out and how long it took, in seconds."""

    tokens: int
    seconds: float
    texts: tuple[str, ...]
    first_text: float = 0.0


@dataclass
class Answer:
    """A streamed reply as its consumer saw it: when it was asked, when each token came."""

    asked: float
    text: str = ""
    times: list[float] = field(default_factory=list)
    #: Tokens up to and with the first one that gave text.
    until_text: int = 0
    first_text: float = 0.0
    cache_read: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.asked

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.asked

    def run(self) -> Run:
        return Run(len(self.times), self.seconds, (self.text,), self.first_text)


class Subject:
    """The model and its engines. `plain` keeps nothing and guesses nothing; the others differ from it in one thing."""

    def __init__(self, model: str | None, template: str | None, quantization: str, device: str) -> None:
        common: dict[str, Any] = {"template": template, "quantization": quantization, "device": device}
        self.plain = LocalEngine(model, prefix_cache_mib=0, prompt_lookup=False, **common)
        self.looking = LocalEngine(model, prefix_cache_mib=0, **common)
        self.reusing = LocalEngine(model, prompt_lookup=False, **common)
        self.tight = LocalEngine(model, prefix_cache_mib=TIGHT_MIB, prompt_lookup=False, **common)
        self.eight = LocalEngine(model, prefix_cache_mib=0, prompt_lookup=False, kv_cache_dtype="int8", **common)
        self._key = Key(source_of(model), precision_of(quantization), device)

    @property
    def shared(self) -> Shared:
        return shared(self._key)

    @property
    def folder(self) -> str:
        """Where the checkpoint's files are."""
        return str(self.shared.checkpoint.all_files())

    @property
    def precision(self) -> Precision:
        return self._key.precision

    @property
    def stored(self) -> bool:
        """Whether the checkpoint is quantised as it is stored."""
        return stored_form(self.shared.checkpoint.config) is not None

    def look(self, at: Callable[[Batch], _T]) -> _T:
        """What a function finds in the worker's thread, when no reply is being made."""
        job = _Look(at)
        worker = self.shared.submit(job, 1, self.plain.family)
        while job.channel.take(worker.alive) is not None:
            pass
        return job.found[0]

    def prompt(self, *texts: str) -> Prompt:
        """A chat: the user's and the assistant's texts in turn."""
        roles = ("user", "assistant")
        return render(
            Request(tuple(Message(roles[n % 2], text) for n, text in enumerate(texts))),  # type: ignore[arg-type]
            self.plain.family,
        )

    def ids(self, prompt: Prompt) -> list[int]:
        return self.shared.tokens.encode(prompt)

    def close(self) -> None:
        self.plain.close()


class _Look(Generic[_T]):
    """A job that calls a function and waits for those that run to end."""

    def __init__(self, at: Callable[[Batch], _T]) -> None:
        self.channel = Channel(Deadline(None))
        self.found: list[_T] = []
        self._at = at

    def run(self, loaded: Batch) -> None:
        self.found.append(self._at(loaded))
        self.channel.put(None)

    def fits(self, loaded: Batch) -> bool:
        return not loaded.active


def questions() -> list[str]:
    """Short ones in Japanese and English by turns, the embedded model's demonstration questions."""
    text = (files("karakuri_integrations") / "demo" / "questions.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return [one for pair in zip(found["ja"], found["en"], strict=True) for one in pair]


def ask(engine: LocalEngine, prompt: Prompt, tokens: int) -> Answer:
    """One greedy reply, streamed."""
    answer = Answer(time.perf_counter())
    for piece in engine.stream(prompt, Sampling(max_tokens=tokens)):
        now = time.perf_counter()
        answer.times.append(now)
        if piece.text and not answer.text:
            answer.until_text, answer.first_text = len(answer.times), now - answer.asked
        answer.text += piece.text
        answer.cache_read = piece.usage.cache_read if piece.usage is not None else 0
    return answer


def streamed(texts: Iterator[str], tokens: Callable[[], int]) -> Run:
    """Any stream of texts, taken to its end; `tokens` counts what it made, when it is done."""
    began, first, text = time.perf_counter(), 0.0, ""
    for piece in texts:
        text += piece
        if text and not first:
            first = time.perf_counter() - began
    seconds = time.perf_counter() - began
    return Run(tokens(), seconds, (text,), first)


def whole(work: Callable[[], Sequence[str]], tokens: Callable[[Sequence[str]], int]) -> Run:
    """Any work that gives whole replies; `tokens` counts those of them, when it is done."""
    began = time.perf_counter()
    texts = work()
    seconds = time.perf_counter() - began
    return Run(tokens(texts), seconds, tuple(texts))


def at_once(calls: Sequence[Callable[[], Answer]], clients: int) -> Run:
    """So many threads; each takes the next call when its last one has ended."""
    waiting = list(range(len(calls)))[::-1]
    answers: dict[int, Answer] = {}

    def work() -> None:
        while waiting:
            number = waiting.pop()
            answers[number] = calls[number]()

    began = time.perf_counter()
    in_threads(work, clients, [])
    seconds = time.perf_counter() - began
    ordered = [answers[number] for number in range(len(calls))]
    return Run(sum(len(one.times) for one in ordered), seconds, tuple(one.text for one in ordered))


def in_threads(work: Callable[[], object], count: int, failures: list[BaseException]) -> None:
    """Let so many threads do the same work, to its end; what fails is put to `failures`, and the first one raised."""

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if failures:
        raise failures[0]


def alternate(
    effort: Effort,
    what: str,
    runs: dict[str, Callable[[int], Run]],
    begin: int = 0,
    done: Callable[[dict[str, list[Run]]], None] = lambda _: None,
) -> dict[str, list[list[Run]]]:
    """In each round all of them forwards and then backwards (A-B-B-A), so that none gains from its place.

    A first round is not counted: caches, code and threads become warm in it. Gives each name's two runs of each round;
    `done` is told those of a round when it has ended. `begin`: so many rounds have been made before.
    """
    found: dict[str, list[list[Run]]] = {name: [] for name in runs}
    for number in range(begin - 1, effort.rounds):
        warming = number < begin
        effort.say(f"{what}: {'warming up' if warming else f'round {number + 1} of {effort.rounds}'}")
        pairs: dict[str, list[Run]] = {name: [] for name in runs}
        for name in [*runs] if warming else [*runs, *reversed(runs)]:
            pairs[name].append(runs[name](max(number, 0)))
        if not warming:
            for name, pair in pairs.items():
                found[name].append(pair)
            done(pairs)
    return found


def rate(pair: Sequence[Run]) -> float:
    """Tokens a second."""
    return sum(one.tokens for one in pair) / sum(one.seconds for one in pair)
