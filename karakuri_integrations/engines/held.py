"""Replies held to a grammar on a server: what its requests carry, and one stream of pieces out of one or two of them.

A server holds a whole reply to a JSON schema, by a field of its own (`servers.schemas`); no two have the same way of
saying "text, or a call that fits". So:

- A grammar without opener (a forced call, a reply that is JSON) is one request that carries the schema.
- A grammar with opener begins as a free request. Where its text comes to the opener it is closed, and a second one
  continues the prompt with that text behind it, and carries the schema. What the server wrote behind the opener is
  dropped; it is written again, under the schema.
- With `text_schema` besides, the reply is one or the other from its first character on. As soon as it cannot become
  the opener, the few tokens are dropped and a second request carries that schema.
- What cannot be held is read as it comes, and a warning says so once per server; `strict` is an UnsupportedError before
  the prompt is sent. That is: a server without such a field, a schema that it cannot be told, and a call on a chat
  route that need not come, because no reply can be continued there.
- Some servers take a schema and pass over words of it (`Server.gap`). Under `strict` that is an UnsupportedSchemaError
  before the prompt is sent; else the reply is checked when it has come.
- `closer` and `lead` are not asked for: the reply is the JSON from its beginning to its end.

Stop strings are not sent where a reply may call, because none is looked for in calls: `reply` ends the text at them.
A server does not end the JSON in time where max_tokens runs out: the last call of such a reply has an `error`.

Counts of a reply of two requests are of both: the prompt's tokens as the first one counted them, and all that were
generated. Where the first was closed before it counted (servers without `running_counts`) and there is no tokenizer
here, the text before the call counts as prompt. max_tokens of the second is less what was used, an event of such a
server counting as one token.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from ..conversation import Grammar, Piece, Prompt, Usage
from ..errors import UnsupportedError, UnsupportedSchemaError
from ..notices import notify
from .schema_places import cause
from .schema_rules import placed
from .servers import Server, server_of

__all__ = ["Continuation", "Opening", "Plan", "plan_of"]

Opened: TypeAlias = Literal["", "call", "text"]


@dataclass(frozen=True)
class Plan:
    """What a request's body gets. `held`: it carries a schema; `opens`: a second request may follow it."""

    additions: Mapping[str, Any] = field(default_factory=dict)
    held: bool = False
    opens: bool = False


def plan_of(grammar: Grammar | None, server: Server, address: str) -> Plan:
    """How the reply is held to its grammar there. `address`: the server as a warning names it.

    Raises:
        UnsupportedError: it cannot be, and the grammar is strict; an UnsupportedSchemaError that names the word, where
            the server would pass over one.
    """
    if grammar is None:
        return Plan()
    told = _told(grammar.schema, server)
    if grammar.text_schema is not None and _told(grammar.text_schema, server) is None:
        told = None
    if told is None or (grammar.opener and server.takes_turns):
        _not_held(grammar, server, address)
        return Plan()
    if grammar.strict:
        for schema in filter(None, (grammar.schema, grammar.text_schema)):
            _check_words(schema, server.name)
    if grammar.opener:
        return Plan(server.running_counts, opens=True)
    return Plan(told, held=True)


def _told(schema: str, server: Server) -> Mapping[str, Any] | None:
    return None if server.grammar is None else server.grammar(schema)


def _not_held(grammar: Grammar, server: Server, address: str) -> None:
    if server.grammar is None:
        why = f"{server.name} cannot hold replies to a JSON schema; vLLM, SGLang, llama.cpp and Ollama can"
    elif grammar.opener and server.takes_turns:
        why = "a chat route cannot hold a call that need not come to its schema; force one by tool_choice, or use "
        why += "a server with /v1/completions"
    else:
        why = f"{server.name} cannot hold a reply to this JSON schema, which must name an object's properties; vLLM, "
        why += "SGLang, llama.cpp and Ollama take a list of calls too"
    if grammar.strict:
        raise UnsupportedError(f"strict=True: {why}, or leave strict out: what the model writes is then read as it is")
    _warn(address, why)


@functools.lru_cache(maxsize=64)
def _check_words(text: str, name: str) -> None:
    """The second request of a reply, and the next one with the same tools, need not be looked at again."""
    schema, trial = json.loads(text), functools.partial(_missed, server_of(name))
    found = trial(schema)
    if found is not None:
        raise placed(found, cause(schema, found, trial))


def _missed(server: Server, schema: Any) -> UnsupportedSchemaError | None:
    """The error for what the server would pass over of a schema."""
    gap = server.gap(schema) if server.gap is not None else None
    if gap is None:
        return None
    # To a validator `format` is an annotation.
    else_ = "any text is taken," if gap.word == "format" else "the reply is checked when it has come,"
    error = UnsupportedSchemaError(
        f"strict=True: {server.name} does not hold replies to the word {gap.word!r} of this JSON schema ({gap.why}); "
        f"leave strict out, and {else_} or use a local model, or vLLM or SGLang with llguidance"
    )
    error.keyword = gap.word
    return error


@functools.lru_cache(maxsize=256)
def _warn(address: str, why: str) -> None:
    notify(f"{address}: {why}. Calls and JSON are read as the model writes them, and may not fit their schema")


@dataclass(eq=False)
class Opening:
    """The first of two requests. Feed it every piece; `opened` is set where the second one must follow.

    "call": the text has come to the opener, and `text` ends with it. "text": the reply is JSON of `text_schema`.
    """

    grammar: Grammar
    text: str = ""
    opened: Opened = ""
    usage: Usage | None = None
    _events: int = field(default=0, init=False)

    def push(self, piece: Piece) -> Iterator[Piece]:
        """What of the piece belongs to the reply."""
        self.usage = piece.usage or self.usage
        self._events += bool(piece.text)
        if self.grammar.text_schema is None:
            return self._freely(piece)
        return self._either(piece)

    def _freely(self, piece: Piece) -> Iterator[Piece]:
        """The opener may be split over pieces, so it is looked for across their seams; nothing is held back."""
        opener, before = self.grammar.opener, len(self.text)
        self.text += piece.text
        found = self.text.find(opener, max(0, before - len(opener) + 1))
        if found < 0:
            yield piece
            return
        self.opened, self.text = "call", self.text[: found + len(opener)]
        yield Piece(self.text[before:], piece.usage)

    def _either(self, piece: Piece) -> Iterator[Piece]:
        """Nothing is given out until it is clear which of the two it is."""
        self.text += piece.text
        begun, opener = self.text.lstrip(), self.grammar.opener
        if begun.startswith(opener):
            self.opened, self.text = "call", self.text[: self.text.index(opener) + len(opener)]
            yield Piece(self.text, piece.usage)
        elif piece.finish_reason is not None or not opener.startswith(begun):
            self.opened = "text"

    def used(self, counted: int | None) -> int:
        """Tokens of `text`, as the server or a tokenizer (`counted`) says, else its events."""
        if self.usage is not None and self.usage.output_tokens:
            return self.usage.output_tokens
        return self._events if counted is None else counted

    def prompt(self, first: Prompt) -> Prompt:
        """What the second request continues."""
        if self.opened == "call":
            return first.continued(self.text)
        held = Grammar(self.grammar.text_schema or "{}", lead=self.grammar.lead, strict=self.grammar.strict)
        return replace(first, grammar=held)

    def rest(self) -> Iterator[Piece]:
        """What was not given out when the request broke off."""
        if self.grammar.text_schema is not None and not self.opened and self.text:
            yield Piece(self.text)


@dataclass(frozen=True)
class Continuation:
    """Counts of the second request as those of the whole reply.

    `before`: what the first request counted, as far as it came. `prompt_tokens`: of the first request's prompt, by a
    tokenizer; None where there is none.
    """

    before: Usage | None = None
    prompt_tokens: int | None = None

    def __call__(self, piece: Piece) -> Piece:
        return piece if piece.usage is None else piece._replace(usage=self._joined(piece.usage))

    def _joined(self, now: Usage) -> Usage:
        before = self.before
        if before is not None and before.input_tokens:
            return Usage(before.input_tokens, before.output_tokens + now.output_tokens, before.cache_read)
        prompt = self.prompt_tokens
        if prompt is None or not prompt <= now.input_tokens:
            return now
        return Usage(prompt, now.input_tokens - prompt + now.output_tokens)
