"""Steering through a chat route: how the dials travel, and the proof that they arrive. Pure; `remote` sends them.

A chat route renders the prompt itself, with whatever template its operator gave it, and most servers drop what they do
not know. So it is asked once, before the first answer, with two requests of one token that differ in one dial: a good
value, and a number of ten digits. Our template files refuse the number; the published template of 2024 pastes it, so
the prompt grows. Where neither happens the dials are lost, and that is an error.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ..attributes import SteeringAttributes
from ..conversation import Prompt, Turn
from ..errors import SteeringLostError, UnsupportedError
from .servers.chat import Way, chat_body, kwargs_of, messages_of, read
from .servers.record import Json

__all__ = ["WAYS", "Answer", "Trial", "chat_body", "find_way", "judge", "probe_bodies", "read", "turns_for"]

#: In the order in which they are tried: by how much of a conversation they can say.
WAYS: Final[tuple[Way, ...]] = ("turns", "messages", "flat")

#: Status and JSON of an answer, None where the body is none.
Answer: TypeAlias = tuple[int, Any]

_DIAL: Final = "humor"
_BAD: Final = 1111111111
#: What a server says of a template that raised: vLLM and SGLang 400, llama.cpp and `transformers serve` 500.
_REFUSED: Final = frozenset({400, 422, 500})


@dataclass(frozen=True)
class Trial:
    """A request to send. `must_answer`: a status other than 200, 400 and 422 says nothing about the dials and is the
    call's own error."""

    body: Json
    must_answer: bool


def turns_for(prompt: Prompt, way: str) -> tuple[Turn, ...]:
    """The turns of a prompt that is to go this way.

    Raises:
        UnsupportedError: a formatted prompt, or past turns whose values this way cannot say.
    """
    if not prompt.turns:
        raise UnsupportedError(
            "a formatted prompt cannot go through a chat route, which formats it itself; use a server with "
            "/v1/completions, or pass messages"
        )
    if way == "flat" and sum(turn.role == "user" for turn in prompt.turns) > 1:
        raise UnsupportedError(
            "this server's chat template takes one set of attributes for the whole conversation, so past turns would "
            "be steered anew; serve the model with our template file (`karakuri serve-command` prints how)"
        )
    return prompt.turns


def find_way(model: str) -> Generator[Trial, Answer, Way]:
    """The way that works, found by sending what this yields: send the answers back, take the value it returns.

    Raises:
        SteeringLostError: none of them; the message says what to do.
    """
    for way in WAYS:
        good, bad = probe_bodies(model, way)
        first = yield Trial(good, must_answer=True)
        if first[0] != 200 or not judge(first, (second := (yield Trial(bad, must_answer=False)))):
            continue
        if second[0] != 500:
            return way
        again = yield Trial(good, must_answer=False)  # or was it only failing at that moment?
        if again[0] == 200 and (yield Trial(bad, must_answer=False))[0] == 500:
            return way
    raise SteeringLostError(
        "this server's chat route drops the steering attributes: neither chat_template_kwargs nor keys on the messages "
        "change the prompt. Serve the model with our chat template file (`karakuri serve-command` prints the command), "
        "or use a server with /v1/completions and name it with server="
    )


def probe_bodies(model: str, way: Way) -> tuple[Json, Json]:
    """Two requests of one token, whose dials are good and bad."""
    turn = Turn("user", "a", SteeringAttributes())
    good: Json = {"model": model, "messages": messages_of((turn,), way), "max_tokens": 1}
    if way == "messages":
        return good, {**good, "messages": [{**good["messages"][0], _DIAL: _BAD}]}
    kwargs = kwargs_of((turn,), way)
    worse = {"attributes": [{**kwargs["attributes"][0], _DIAL: _BAD}]} if way == "turns" else {**kwargs, _DIAL: _BAD}
    return {**good, "chat_template_kwargs": kwargs}, {**good, "chat_template_kwargs": worse}


def judge(good: Answer, bad: Answer) -> bool:
    """Whether the dials arrive: the good request is answered, and the bad one is refused or has a longer prompt."""
    if good[0] != 200:
        return False
    if bad[0] in _REFUSED:
        return True
    counts = _prompt_tokens(good[1]), _prompt_tokens(bad[1])
    return bad[0] == 200 and counts[0] is not None and counts[1] is not None and counts[1] > counts[0]


def _prompt_tokens(payload: Any) -> int | None:
    usage = payload.get("usage") if isinstance(payload, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None
