"""The values that travel between the framework adapters, the template, the engines and the reply decoder.

All are frozen and comparable. Nothing here knows a framework, a template or an engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Final, Literal, NamedTuple, TypeAlias

from .attributes import AttributeLike, SteeringAttributes
from .errors import OptionError
from .escaping import escape

__all__ = [
    "CONTROL_TEXTS",
    "CallDelta",
    "CallForm",
    "Control",
    "Delta",
    "FinishReason",
    "Grammar",
    "Message",
    "Piece",
    "Prompt",
    "Reply",
    "Request",
    "Role",
    "Sampling",
    "Segment",
    "Tool",
    "ToolCall",
    "ToolLanguage",
    "Tooling",
    "Turn",
    "Usage",
]

#: Integers from here on do not fit what computes with them, such as torch's seeds.
_LARGEST: Final = 2**64

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
ToolLanguage: TypeAlias = Literal["auto", "ja", "en"]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `parameters`: the JSON schema of its arguments, an object's, as JSON text."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'


@dataclass(frozen=True)
class ToolCall:
    """A call that a reply made. `arguments`: JSON text of an object, or whatever was received where `error` says why
    it is none: a reply that was cut, or a server without grammars."""

    name: str
    arguments: str
    id: str = ""
    error: str | None = None


@dataclass(frozen=True)
class CallDelta:
    """A fragment of a call in a stream: the first of a call carries its name and id, further ones more of the JSON
    text of its arguments. `index` counts the reply's calls from 0."""

    index: int
    name: str | None = None
    id: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Tooling:
    """What a reply may call, or what its text must be.

    `choice`: "auto" (text or calls), "required" (at least one call), "none", or the name of the tool to call in a
    tuple of one. `parallel`: more than one call in a reply. `schema`: the JSON schema, as JSON text, of a reply that
    is JSON and no call. `strict`: an error where it cannot be enforced. `language`: of the words around the tools.
    """

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "required", "none"] | tuple[str] = "auto"
    parallel: bool = True
    schema: str | None = None
    strict: bool = False
    language: ToolLanguage = "auto"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    `attributes`: on a user message, what the message itself asks for; on an assistant message, the values that it
    was answered with. None: nothing is carried. `index`: the message's place in the caller's list, for errors.
    `calls`: those of an assistant message. On a tool message `text` is the result, `call_id` the call that it belongs
    to, `name` the tool where the call is not part of the conversation, and `failed` that the tool raised.
    """

    role: Role
    text: str
    attributes: AttributeLike | None = None
    index: int = 0
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    failed: bool = False


_LONGEST_SCOPE: Final = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, in the field's standard terms.

    temperature: 0 is greedy; top_p: 0 < p <= 1; top_k: 0 is off; min_p: 0 <= p <= 1, 0 is off;
    repetition_penalty: > 0, 1 is off; seed: >= 0, None draws a fresh one; stop: strings at which the reply ends, not
    included in it; max_tokens: >= 1, None is the rest of the window; timeout: seconds for the whole call, None is
    without limit; cache_scope: what was read of other prompts is reused among calls of the same scope only, such as a
    tenant's.

    Raises:
        OptionError: a value out of its range, named.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    timeout: float | None = None
    cache_scope: str | None = None

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            "temperature": _number("temperature", self.temperature, 0.0, math.inf),
            "top_p": _number("top_p", self.top_p, 0.0, 1.0, above=True),
            "min_p": _number("min_p", self.min_p, 0.0, 1.0),
            "repetition_penalty": _number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True),
            "top_k": _integer("top_k", self.top_k, 0),
            "seed": None if self.seed is None else _integer("seed", self.seed, 0),
            "max_tokens": None if self.max_tokens is None else _integer("max_tokens", self.max_tokens, 1),
            "timeout": None if self.timeout is None else _number("timeout", self.timeout, 0.0, math.inf, above=True),
            "stop": _stop(self.stop),
            "cache_scope": _scope(self.cache_scope),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def _scope(value: object) -> str | None:
    if value is None or (isinstance(value, str) and 0 < len(value) <= _LONGEST_SCOPE):
        return value
    what = f"{len(value)} characters" if isinstance(value, str) else f"a {type(value).__name__}"
    raise OptionError(f"cache_scope must be a text of 1 to {_LONGEST_SCOPE} characters or None, got {what}")


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> float:
    plain = _plain(value)
    if plain is None or not low <= plain <= high or (above and plain == low):
        rule = f"above {low:g}" if above else f"at least {low:g}"
        rule += "" if high == math.inf else f" and at most {high:g}"
        raise OptionError(f"{name} must be a number {rule}, got {_show(value)}")
    return plain


def _integer(name: str, value: object, low: int) -> int:
    plain = _plain(value)
    if not isinstance(plain, int) or not low <= plain < _LARGEST:
        rule = f"at least {low}" + (f" and below {_LARGEST}" if isinstance(value, int) and value >= _LARGEST else "")
        raise OptionError(f"{name} must be an integer of {rule}, got {_show(value)}")
    return plain


def _plain(value: object) -> int | float | None:
    """A finite number as Python's own: NumPy's are taken too, but JSON and torch would not take those."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    plain = int(value) if isinstance(value, Integral) else float(value)
    with suppress(OverflowError):  # an integer beyond every float
        return plain if math.isfinite(plain) else None
    return None


def _show(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write out very long ones
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.40}"


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(one, str) and one for one in strings):
        raise OptionError("stop must be non-empty text or a list of such")
    return tuple(strings)


@dataclass(frozen=True)
class Request:
    """A conversation and how the next turn is to be answered.

    `attributes` steer the turn being answered, unless its own message carries some; `past_attributes` hold for past
    turns that carry no record; `tooling` is what the reply may call.
    """

    messages: tuple[Message, ...]
    attributes: SteeringAttributes = field(default_factory=SteeringAttributes)
    past_attributes: SteeringAttributes = field(default_factory=SteeringAttributes)
    tooling: Tooling = field(default_factory=Tooling)


@dataclass(frozen=True)
class Control:
    """A control token of the template, such as `<s>`: an engine with a tokenizer sends its number, never its text."""

    token: str


#: Texts that a Llama tokenizer would turn into control tokens; in data they are always plain text.
CONTROL_TEXTS: Final = ("<s>", "</s>", "<unk>")

#: Plain text is always encoded with special-token parsing off.
Segment: TypeAlias = Control | str


@dataclass(frozen=True)
class Turn:
    """One turn as a server with a chat route is given it: data with the template's literals and control tokens escaped.

    `attributes` are a user turn's nine values; None on the other roles.
    """

    role: Role
    text: str
    attributes: SteeringAttributes | None = None


@dataclass(frozen=True)
class Grammar:
    """What a reply must be: JSON of `schema` (a JSON schema as JSON text), then `closer`.

    With an `opener` the reply may also be text; once it writes the opener, which is not part of the text, the JSON
    follows. `text_schema`: that text must be JSON of this schema. `lead`: white space that may stand before either.
    `strict`: an engine that cannot hold the reply to it refuses instead.
    """

    schema: str
    opener: str = ""
    closer: str = ""
    lead: str = ""
    text_schema: str | None = None
    strict: bool = False


@dataclass(frozen=True)
class CallForm:
    """How calls stand in a reply: after `opener`, a JSON list of objects with these two keys, then `closer`.

    `begun`: the prompt ends with the opener, so the reply is the list. `most`: further calls are errors.
    """

    opener: str
    name_key: str = "name"
    arguments_key: str = "arguments"
    closer: str = ""
    begun: bool = False
    most: int | None = None


@dataclass(frozen=True)
class Prompt:
    """What an engine continues: control tokens and plain text, in order, never a string with markers in it.

    `attributes` are the values of the turn being answered. `escaped` counts the literals that were escaped in data.
    `literals` are the texts that stand escaped in it and are un-escaped in the reply. `strip_reply`: the family's
    template strips replies, so the reply is given without the white space around it. `raw`: the caller wrote it out,
    so `attributes` say nothing about it. `turns`: the same conversation for servers that render it themselves; empty
    on a raw prompt. `grammar`: what the engine holds the reply to. `calls`: how tool calls stand in the reply; None
    where there are none.
    """

    segments: tuple[Segment, ...]
    attributes: SteeringAttributes = field(default_factory=SteeringAttributes)
    escaped: int = 0
    literals: tuple[str, ...] = ()
    strip_reply: bool = True
    raw: bool = False
    turns: tuple[Turn, ...] = field(default=(), compare=False, repr=False)
    grammar: Grammar | None = None
    calls: CallForm | None = None

    def continued(self, text: str) -> Prompt:
        """The prompt with the beginning of its reply, which the grammar's opener has just ended."""
        *rest, last = self.segments or ("",)
        ends = (last + text,) if isinstance(last, str) else (last, text)
        grammar = replace(self.grammar, opener="", lead="", text_schema=None) if self.grammar else None
        return replace(self, segments=(*rest, *ends), grammar=grammar)

    @property
    def text(self) -> str:
        """The prompt as text, leading `<s>` included; data that looks like a control token is shown escaped."""
        return "".join(self._shown())

    def _shown(self) -> Iterator[str]:
        for segment in self.segments:
            if isinstance(segment, Control):
                yield segment.token
            else:
                yield escape(segment, CONTROL_TEXTS)[0]


@dataclass(frozen=True)
class Usage:
    """Exact token counts: of the prompt as sent (BOS included) and of what was generated (EOS included)."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Piece(NamedTuple):  # these two are made for every token: a dataclass that is frozen takes three times as long
    """What an engine yields: new raw text (may be empty), the counts so far, and on the last piece why it ended.

    `usage` is None where a server does not count. `held`: on a last piece, a server held the reply to the prompt's
    grammar by means of its own, which may know fewer words of JSON schemas: its calls are checked.
    """

    text: str = ""
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    held: bool = False


class Delta(NamedTuple):
    """What the reply decoder yields: text and fragments of calls, ready for the user.

    The last one carries finish_reason and usage, and the reply's `calls`, whole.
    """

    text: str = ""
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    fragments: tuple[CallDelta, ...] = ()
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A whole answer, folded from its deltas. `usage` is None where a server does not count."""

    text: str
    finish_reason: FinishReason
    usage: Usage | None
    calls: tuple[ToolCall, ...] = ()
