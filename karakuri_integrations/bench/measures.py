"""The measurements: one stream, first token, several at once, what is kept, what is guessed, memory. Greedy throughout.

Each takes a Subject and an Effort and gives figures. Ratios are taken round by round. The peers, which take part in the
first and in those of several at once, are `peers`'; providers are `providers`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from ..engines.memory import KV_CACHE_DTYPES, cache_bytes
from .figures import Figure, Spread, quantile, ratios
from .subject import AT_ONCE, TIGHT_MIB, Answer, Effort, Run, Subject, alternate, ask, at_once, questions, rate

__all__ = [
    "Candidate",
    "beside",
    "chat_and_document",
    "curve",
    "first_token",
    "lookup",
    "memory",
    "one_stream",
    "same",
    "together",
    "words",
]

ONE, FIRST, MANY, KEPT, GUESSED, MEMORY = (
    "One stream",
    "Time to first token",
    "Several at once",
    "Prompts that begin alike",
    "Prompt lookup",
    "Memory",
)
CURVE: Final = (1, 2, 4, 8, 16)
OURS: Final = "LocalEngine.stream"

_CALLS: Final = 20  # first tokens a round
_PROMPTS: Final = 40  # different prompts a round
_DOCUMENT: Final = 2000  # tokens
_ON_DOCUMENT: Final = 20  # questions
_TURNS: Final = 10


@dataclass(frozen=True)
class Candidate:
    """Another way to the same reply. `call` answers a question in one stream, `batch` several at once.

    `beside`: which of ours it is compared with. `absent`: why it could not be measured.
    """

    name: str
    call: Callable[[str], Run] | None = None
    batch: Callable[[Sequence[str]], Run] | None = None
    beside: str = OURS
    absent: str = ""


def one_stream(subject: Subject, effort: Effort, others: Sequence[Candidate]) -> list[Figure]:
    """Tokens a second of whole calls, prompt included, and how much faster ours is."""
    asked = questions()
    calls: dict[str, Callable[[str], Run]] = {
        OURS: lambda text: ask(subject.plain, subject.prompt(text), effort.tokens).run()
    }
    calls.update({one.name: one.call for one in others if one.call is not None})
    runs: dict[str, Callable[[int], Run]] = {
        name: lambda number, call=call: call(asked[number % len(asked)])  # type: ignore[misc]
        for name, call in calls.items()
    }
    found = alternate(effort, "one stream", runs)
    rates = {name: [rate(pair) for pair in pairs] for name, pairs in found.items()}
    figures = [_stream_figure(OURS, None, found, rates)]
    for one in others:
        if one.call is not None:
            figures.append(_stream_figure(one.name, one.beside, found, rates))
        elif one.absent:
            figures.append(Figure(ONE, one.name, note=one.absent))
    return figures


def _stream_figure(
    name: str, beside: str | None, found: Mapping[str, list[list[Run]]], rates: Mapping[str, list[float]]
) -> Figure:
    first = Spread.of(run.first_text for pair in found[name] for run in pair)
    note = f"first text after {1000 * first.median:.1f} ms" if first.median else ""
    if beside is None:
        return Figure(ONE, name, "tokens/s", Spread.of(rates[name]), note=note)
    return Figure(
        ONE,
        name,
        "tokens/s",
        Spread.of(rates[name]),
        ratio=ratios(rates[beside], rates[name]),
        ratio_to=f"{beside} over it",
        same=same(found[OURS], found[name]),
        note=note,
    )


def same(first: Sequence[Sequence[Run]], second: Sequence[Sequence[Run]]) -> tuple[int, int]:
    """How many texts are the same, surrounding spaces aside, of how many."""
    pairs = [
        (one.strip(), other.strip())
        for mine, others in zip(first, second, strict=True)
        for run, beside in zip(mine, others, strict=True)
        for one, other in zip(run.texts, beside.texts, strict=True)
    ]
    return sum(one == other for one, other in pairs), len(pairs)


def first_token(subject: Subject, effort: Effort) -> list[Figure]:
    """Of short questions, nothing kept; and after how many tokens there is text to show."""
    asked = questions()
    seconds, until = list[float](), list[int]()
    for number in range(-2, effort.rounds * _CALLS):
        if number % _CALLS == 0:
            effort.say(f"first token: {number} of {effort.rounds * _CALLS}")
        answer = ask(subject.plain, subject.prompt(asked[number % len(asked)]), 8)
        if number >= 0:
            seconds.append(1000 * answer.first)
            until.append(answer.until_text)
    half, late = quantile(seconds, 0.5), quantile(seconds, 0.99)
    return [
        Figure(FIRST, "p50", "ms", Spread(half, min(seconds), max(seconds)), note=f"{len(seconds)} calls"),
        Figure(FIRST, "p99", "ms", Spread(late, late, late)),
        Figure(FIRST, "tokens until there is text", "tokens", Spread.of(until)),
    ]


# --- several at once ---


def _calls(subject: Subject, effort: Effort, number: int) -> list[Callable[[], Answer]]:
    asked = questions()
    prompts = [subject.prompt(asked[(number + place) % len(asked)]) for place in range(AT_ONCE)]
    return [lambda one=one: ask(subject.plain, one, effort.tokens) for one in prompts]  # type: ignore[misc]


def curve(subject: Subject, effort: Effort) -> list[Figure]:
    """The same 16 questions by 1, 2, 4, 8 and 16 threads: tokens a second of all together."""
    runs: dict[str, Callable[[int], Run]] = {
        str(clients): lambda number, clients=clients: at_once(_calls(subject, effort, number), clients)  # type: ignore[misc]
        for clients in CURVE
    }
    found = alternate(effort, f"{AT_ONCE} questions by 1 to 16 threads", runs)
    rates = {name: [rate(pair) for pair in pairs] for name, pairs in found.items()}
    alone = str(CURVE[0])
    return [
        Figure(
            MANY,
            f"{name} at once" if name != alone else "one after another",
            "tokens/s",
            Spread.of(rates[name]),
            ratio=None if name == alone else ratios(rates[name], rates[alone]),
            ratio_to="" if name == alone else "over one after another",
            same=None if name == alone else same(found[alone], found[name]),
        )
        for name in found
    ]


def together(subject: Subject, effort: Effort, others: Sequence[Candidate]) -> list[Figure]:
    """16 questions through each framework's own batch, over ours one after another."""
    asked = questions()
    batches = {one.name: one.batch for one in others if one.batch is not None}
    if not batches:
        return []
    runs: dict[str, Callable[[int], Run]] = {"alone": lambda number: at_once(_calls(subject, effort, number), 1)}
    for name, batch in batches.items():
        runs[name] = lambda number, batch=batch: batch(  # type: ignore[misc]
            [asked[(number + place) % len(asked)] for place in range(AT_ONCE)]
        )
    found = alternate(effort, f"{AT_ONCE} at once through the frameworks", runs)
    rates = {name: [rate(pair) for pair in pairs] for name, pairs in found.items()}
    return [
        Figure(
            MANY,
            name,
            "tokens/s",
            Spread.of(rates[name]),
            ratio=ratios(rates[name], rates["alone"]),
            ratio_to="over one after another",
            same=same(found["alone"], found[name]),
        )
        for name in batches
    ]


# --- what is kept ---


def chat_and_document(subject: Subject, effort: Effort) -> list[Figure]:
    """Time to first token of the last question on a document, and of a chat's last turn, with and without reuse."""
    return [*_kept(subject, effort, "document", _document), *_kept(subject, effort, "chat", _chat)]


_Exchange = tuple[list[Answer], Any]


def _kept(
    subject: Subject, effort: Effort, what: str, talk: Callable[[Subject, Effort, Random], _Exchange]
) -> list[Figure]:
    firsts, lasts, anew, equal, read = list[float](), list[float](), list[float](), 0, 0
    for number in range(effort.rounds):
        effort.say(f"a {what}, with and without reuse: round {number + 1} of {effort.rounds}")
        answers, last = talk(subject, effort, Random(number))  # noqa: S311  # the same text in each run of the command
        again = ask(subject.plain, last, effort.tokens)
        firsts.append(1000 * answers[0].first)
        lasts.append(1000 * answers[-1].first)
        anew.append(1000 * again.first)
        equal += again.text == answers[-1].text
        read = answers[-1].cache_read
    title = f"question {len(answers)} on a document" if what == "document" else f"turn {len(answers)} of a chat"
    tokens = len(subject.ids(last))
    return [
        Figure(KEPT, f"{title}, read anew", "ms", Spread.of(anew), note=f"{tokens} tokens of prompt"),
        Figure(
            KEPT,
            f"{title}, reused",
            "ms",
            Spread.of(lasts),
            ratio=ratios(lasts, anew),
            ratio_to="of reading it anew",
            same=(equal, effort.rounds),
            note=f"{read} tokens not read again; the first one took {Spread.of(firsts).median:.1f} ms",
        ),
    ]


def _document(subject: Subject, effort: Effort, random: Random) -> _Exchange:
    """Questions on one text."""
    asked = questions()
    room = subject.plain.context_window - effort.tokens - 300
    text = words(subject, random, min(_DOCUMENT, room))
    prompts = [subject.prompt(f"{text}\n\n{asked[number % len(asked)]}") for number in range(_ON_DOCUMENT)]
    return [ask(subject.reusing, one, effort.tokens) for one in prompts], prompts[-1]


def _chat(subject: Subject, effort: Effort, random: Random) -> _Exchange:
    """A conversation that keeps what it said."""
    said, answers, asked = list[str](), list[Answer](), questions()
    begin = random.randrange(10**6)
    for turn in range(_TURNS):
        said.append(asked[turn % len(asked)] if turn else f"{begin}: {asked[0]}")
        prompt = subject.prompt(*said)
        answers.append(ask(subject.reusing, prompt, effort.tokens))
        said.append(answers[-1].text.strip() or "...")
    return answers, prompt


def words(subject: Subject, random: Random, tokens: int) -> str:
    """A text of about so many tokens that begins like no other."""
    words = [word for one in questions() for word in one.split()]
    text = f"{random.randrange(10**6)}"
    while len(subject.ids(subject.prompt(text))) < tokens:
        text += "".join(f" {random.choice(words)}" for _ in range(40))
    return text


# --- guesses ---


def lookup(subject: Subject, effort: Effort) -> list[Figure]:
    """With guesses over without: a question asked again, whose answer stands in the chat, and one asked first."""
    asked = questions()
    answers = [ask(subject.plain, subject.prompt(one), effort.tokens).text.strip() or "..." for one in asked[:8]]
    return [
        _looked(
            subject,
            effort,
            "text that copies",
            lambda n: (asked[n % 8], answers[n % 8], asked[n % 8]),
            "a question asked again",
        ),
        _looked(subject, effort, "text that does not", lambda n: (asked[n % 8],), "a question asked first"),
    ]


def _looked(subject: Subject, effort: Effort, name: str, texts: Callable[[int], tuple[str, ...]], note: str) -> Figure:
    passes = dict.fromkeys(("without", "with"), 0)

    def call(engine: Any, which: str, number: int) -> Run:
        before = engine.steps
        run = ask(engine, subject.prompt(*texts(number)), effort.tokens).run()
        passes[which] += engine.steps - before
        return run

    found = beside(
        effort,
        f"prompt lookup, {name}",
        GUESSED,
        name,
        {
            "without": lambda number: call(subject.plain, "without", number),
            "with": lambda number: call(subject.looking, "with", number),
        },
        "over without guesses",
    )
    return replace(found, note=f"{note}; {passes['without']} passes without, {passes['with']} with")


def beside(
    effort: Effort, what: str, section: str, name: str, runs: dict[str, Callable[[int], Run]], ratio_to: str
) -> Figure:
    """Tokens a second of the second of two, over those of the first."""
    usual, other = runs
    found = alternate(effort, what, runs)
    rates = {which: [rate(pair) for pair in pairs] for which, pairs in found.items()}
    return Figure(
        section,
        name,
        "tokens/s",
        Spread.of(rates[other]),
        ratio=ratios(rates[other], rates[usual]),
        ratio_to=ratio_to,
        same=same(found[usual], found[other]),
    )


# --- memory ---


def memory(subject: Subject, effort: Effort) -> list[Figure]:
    """Weights as they are held, what a token adds, and what is kept after many prompts under a small budget."""
    report = subject.plain.report()
    most = kept = 0
    count = _PROMPTS * effort.rounds
    for number in range(count):
        if number % _PROMPTS == 0:
            effort.say(f"memory: prompt {number} of {count}")
        ask(subject.tight, subject.prompt(f"{number} " * 40), 1)
        if number % 10 == 9:
            kept = subject.look(lambda batch: batch.prefixes.bytes)
            most = max(most, kept)
    parts = subject.look(lambda batch: (len(batch.prefixes), *(per_token(batch, one) for one in KV_CACHE_DTYPES)))
    return [
        _bytes("weights", report.weight_bytes, f"{report.quantization}; {report.bf16_bytes / 2**20:,.1f} MiB as bf16"),
        _bytes("keys and values of a token", parts[1], ""),
        _bytes("the same in 8 bits", parts[2], 'kv_cache_dtype="int8"'),
        _bytes("kept at most", most, f"{count} prompts, of which {parts[0]} are kept; budget {TIGHT_MIB} MiB"),
    ]


def per_token(batch: Any, kv_cache_dtype: str) -> int:
    """Bytes of keys and values that a token adds."""
    size = batch.model.get_input_embeddings().weight.element_size()
    return cache_bytes(batch.model.config.to_dict(), size, kv_cache_dtype)


def _bytes(name: str, count: int, note: str) -> Figure:
    unit, value = ("KiB", count / 2**10) if count < 2**20 else ("MiB", count / 2**20)
    return Figure(MEMORY, name, unit, Spread(value, value, value), note=note)
