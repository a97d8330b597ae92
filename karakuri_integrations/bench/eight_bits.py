"""Keys and values in 8 bits (`kv_cache_dtype="int8"`) beside the model's own type: speed and exactness.

Speed is that of replies being made, the reading of the prompt left out: it grows with what was read before. Exactness:
the model reads the very same replies with both, token by token as they are made, and the logits are compared. How far
they move when the model's own type reads a reply at once instead says what rounding does anyway. Memory is `measures`'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from ..conversation import Prompt
from .figures import Figure, Spread
from .measures import beside, words
from .providers import loop
from .subject import Effort, Run, Subject, ask, questions

__all__ = ["eight_bits"]

EIGHT: Final = "Keys and values in 8 bits"

_CONTEXT: Final = 2000  # tokens
_READ: Final = 8  # replies whose logits are compared, of each kind


def eight_bits(subject: Subject, effort: Effort) -> list[Figure]:
    """Tokens a second with and without, over short and long prompts; then the error."""
    return [*(_speed(subject, effort, *kind) for kind in _kinds(subject, effort)), *_error(subject, effort)]


def _kinds(subject: Subject, effort: Effort) -> list[tuple[str, Callable[[int], Prompt]]]:
    """Short questions, and the same ones behind a long text."""
    asked = questions()
    room = min(_CONTEXT, subject.plain.context_window - effort.tokens - 300)
    text = words(subject, Random(0), room)  # noqa: S311  # the same text in each run of the command
    long = len(subject.ids(subject.prompt(text)))
    return [
        ("short questions", lambda number: subject.prompt(asked[number % len(asked)])),
        (f"behind {long:,} tokens", lambda number: subject.prompt(f"{text}\n\n{asked[number % len(asked)]}")),
    ]


def _speed(subject: Subject, effort: Effort, name: str, prompt: Callable[[int], Prompt]) -> Figure:
    return beside(
        effort,
        f"keys and values in 8 bits, {name}",
        EIGHT,
        name,
        {
            "auto": lambda number: _made(subject.plain, prompt(number), effort.tokens),
            "int8": lambda number: _made(subject.eight, prompt(number), effort.tokens),
        },
        "over the model's own type",
    )


def _made(engine: Any, prompt: Prompt, tokens: int) -> Run:
    """From the first token on, where there are more."""
    answer = ask(engine, prompt, tokens)
    if len(answer.times) < 2:
        return answer.run()
    return Run(len(answer.times) - 1, answer.seconds - answer.first, (answer.text,))


@dataclass(frozen=True)
class _Distance:
    """How far logits lie from others. `error`: their root mean square, of that of the others.

    `other`: at how many of all `places` the best token is another one.
    """

    error: float
    places: int
    other: int


def _error(subject: Subject, effort: Effort) -> list[Figure]:
    off: list[_Distance] = []
    rounding: list[_Distance] = []
    kinds = _kinds(subject, effort)
    ends = subject.shared.checkpoint.eos_ids
    for number in range(_READ):
        effort.say(f"logits, keys and values in 8 bits: question {number + 1} of {_READ}")
        for _, prompt in kinds:
            ids = subject.ids(prompt(number))
            one, other = subject.look(lambda batch, ids=ids: _compared(batch, ids, effort.tokens, ends))  # type: ignore[misc]
            off.append(one)
            rounding.append(other)
    usual = Spread.of(100 * one.error for one in rounding)
    return [
        Figure(
            EIGHT,
            "logits, relative error",
            "%",
            Spread.of(100 * one.error for one in off),
            note=f"{len(off)} replies; by the rounding of the model's own type {usual.median:.2g} %",
        ),
        Figure(EIGHT, "best tokens that are the same", "%", _share(off), note=f"{_counted(off)}; {_counted(rounding)}"
               " by the rounding of the model's own type"),
    ]  # fmt: skip


def _share(off: Sequence[_Distance]) -> Spread:
    return Spread.of(100 * (one.places - one.other) / one.places for one in off)


def _counted(off: Sequence[_Distance]) -> str:
    places = sum(one.places for one in off)
    return f"{places - sum(one.other for one in off):,} of {places:,}"


def _compared(batch: Any, ids: list[int], tokens: int, ends: frozenset[int]) -> tuple[_Distance, _Distance]:
    """A greedy reply read in 8 bits, and read at once, against the model's own type token by token."""
    made, _, _ = loop(batch.model, ids, tokens, ends)
    whole = [*ids, *made[:-1]]
    run = batch.forward
    right = _logits(run, whole, len(made), "auto")
    return (
        _distance(_logits(run, whole, len(made), "int8"), right),
        _distance(_logits(run, whole, len(made), "auto", at_once=True), right),
    )


def _logits(run: Any, ids: list[int], count: int, dtype: str, *, at_once: bool = False) -> Any:
    """Those behind each of the last `count` ids, (count, vocabulary). `run` is a Forward."""
    import torch

    from ..engines.key_values import KeyValues

    values = KeyValues(dtype)
    values.reserve(1, len(ids), len(ids))
    first = len(ids) if at_once else len(ids) - count + 1
    found = []
    for begin, end in [(0, first), *((place, place + 1) for place in range(first, len(ids)))]:
        found.append(run(values, 0, [ids[begin:end]], [begin], count if at_once else 1)[0].float())
    return torch.cat(found)


def _distance(found: Any, right: Any) -> _Distance:
    error = float((found - right).norm() / right.norm())
    return _Distance(error, len(right), int((found.argmax(-1) != right.argmax(-1)).sum()))
