"""What a record says of a server, and the values that go into it and come out of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from ...conversation import Sampling, Turn, Usage

__all__ = ["Ask", "Event", "Gap", "Json", "Probe", "Recognised", "Server", "seed_below"]

#: What a JSON body holds.
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """What is asked of a server: the prompt as ids or text, and how to sample.

    `prompt` as text begins without `<s>` where the server adds it. `max_tokens` is a number wherever the server needs
    one. `context_window`: tokens of prompt and reply together. `turns` and `way`: only for a server that takes turns,
    instead of the prompt; see `chat_route`.
    """

    model: str
    prompt: str | list[int]
    sampling: Sampling
    max_tokens: int | None = None
    context_window: int | None = None
    turns: tuple[Turn, ...] = ()
    way: str = "turns"


class Event(NamedTuple):
    """What one event of a reply says.

    `finish_reason` is the server's own word. `usage` is None where the event has none. `error` is the server's text;
    `code` its kind or number. `done`: nothing follows.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    done: bool = False
    error: str | None = None
    code: str = ""


class Gap(NamedTuple):
    """A word of a JSON schema that a server takes and does not hold a reply to; `why` in words for an error."""

    word: str
    why: str


@dataclass(frozen=True)
class Recognised:
    """What a server says of itself: the ids of the models it serves; the context window in tokens, None if silent."""

    models: tuple[str, ...] = ()
    context_window: int | None = None


@dataclass(frozen=True)
class Probe:
    """A GET that recognises a server: `judge` reads status and JSON (None where the body is none)."""

    path: str
    judge: Callable[[int, Any], Recognised | None]


@dataclass(frozen=True)
class Server:
    """The facts of one kind of server.

    name: as in `server=`. route: below the root of base_url. framing: how the reply is cut into events; "aws" is
    `sagemaker.EventStream`. takes_ids: whether token ids can be sent. takes_turns: whether it wants `Ask.turns` instead
    of a prompt. adds_bos: whether it puts BOS before a text prompt. body: the request. read: one event's JSON.
    sampling: the fields of Sampling that it honours, beside max_tokens and timeout. needs_max_tokens: it would cut the
    reply at a small number of its own. probes: how it is recognised, best first. tokenize: (path, request body of a
    model and a text, ids in the answer) of its tokenizer route; in the text `<s>` counts as the control token.
    grammar: what is added to the body so that the reply fits a JSON schema (as JSON text), None for a schema that it
    cannot be told; no such function: it holds replies to nothing. gap: what of a schema it takes and does not hold a
    reply to; no such function: nothing is known of that. running_counts: what is added to the body so that every event
    has the counts so far.
    """

    name: str
    route: str
    body: Callable[[Ask], Json]
    read: Callable[[str, Json], Event]
    framing: Literal["sse", "lines", "aws"] = "sse"
    takes_ids: bool = False
    takes_turns: bool = False
    adds_bos: bool = True
    sampling: frozenset[str] = frozenset()
    needs_max_tokens: bool = False
    probes: tuple[Probe, ...] = ()
    tokenize: tuple[str, Callable[[str, str], Json], Callable[[Any], list[int]]] | None = None
    grammar: Callable[[str], Json | None] | None = None
    gap: Callable[[Any], Gap | None] | None = None
    running_counts: Mapping[str, Any] = field(default_factory=dict)


_SIGNED: Final = 2**63


def seed_below(seed: int, limit: int = _SIGNED) -> int:
    """A seed folded into a server's range: below 2**63 where it keeps a signed integer of 64 bits."""
    return seed % limit
