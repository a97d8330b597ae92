"""Request to Prompt, exactly, for each model family. Knows no tokens, no engine and no framework.

**How a conversation is laid out.** The published templates accept only strictly alternating turns; conversations of
both frameworks do not alternate. They are first put into turns by these rules; no text is ever lost:

1. System messages before the first other message are joined by a blank line and are the system text. (One that is
   empty still writes the family's empty system block, as the published template does.)
2. A later system message is put before the next user turn's text, followed by a blank line. With no user turn after
   it, it is a user turn of its own (or ends the user turn it follows).
3. Consecutive user messages are one turn and so are consecutive assistant messages, joined by a blank line; an empty
   text adds nothing. Of the attributes on merged user messages the last message that carries any counts, whole;
   values are never added up. On merged assistant messages likewise.
4. A conversation that begins with an assistant message gets an empty user turn before it.
5. An assistant turn without text is written as the template writes an empty answer.

An empty list, a list without a user turn, a last turn that is blank and a last turn that is the assistant's are
MessageErrors that name the message's index. Only for counting tokens (`partial=True`) such lists are rendered too.

**Which attributes a turn has.** The turn being answered: `Request.attributes`, overlaid by the message's own. A past
turn: the values recorded on its answer, else `Request.past_attributes`; then the message's own. So history is never
re-steered and a chat only ever appends to its prompt.

**Tools.** The family's tool syntax (`tools`) writes the tools after the system text, a reply's calls after its text,
and the results of tool messages, which are a user turn. With a forced call the prompt ends with the syntax's opener.

**Data can never become structure.** Control tokens (`<s>`, `</s>`, `<unk>`) in any message are plain text by
construction: a Prompt keeps control tokens apart from text. The families' textual tokens (`[INST]` and the like) in
data follow `template_tokens`: "escape" (reversible), "reject" (TemplateInjectionError) or "allow"; while tools are
in use the tool syntax's own as well.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from .attributes import AttributeLike, SteeringAttributes
from .conversation import (
    CONTROL_TEXTS,
    CallForm,
    Control,
    Grammar,
    Message,
    Prompt,
    Request,
    Role,
    Segment,
    ToolCall,
    Tooling,
    Turn,
)
from .errors import MessageError, OptionError, TemplateInjectionError, ToolDefinitionError, UnknownModelError
from .escaping import escape, find
from .tools import Result, Syntax, list_of_calls, syntax_of

__all__ = [
    "FAMILIES",
    "Family",
    "TemplateTokens",
    "family_of_checkpoint",
    "family_of_model",
    "family_of_template",
    "parse_raw",
    "render",
]

TemplateTokens: TypeAlias = Literal["escape", "reject", "allow"]
_POLICIES: Final = ("escape", "reject", "allow")


class _Slot(Enum):
    TEXT = "text"
    ATTRIBUTES = "attributes"


_TEXT, _ATTRIBUTES = _Slot.TEXT, _Slot.ATTRIBUTES
_Part: TypeAlias = Control | str | _Slot

_BOS, _EOS = Control("<s>"), Control("</s>")
_START, _END = Control("<|START_OF_TURN_TOKEN|>"), Control("<|END_OF_TURN_TOKEN|>")
_SYSTEM, _USER, _BOT = (Control(f"<|{role}_TOKEN|>") for role in ("SYSTEM", "USER", "CHATBOT"))

_LLAMA_LITERALS: Final = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[ATTR]", "[/ATTR]")


@dataclass(frozen=True)
class Family:
    """The facts of one model family's prompt; a new family is a new record.

    `system`, `user`, `assistant` and `reply` are what is written for the system text, a user turn, an assistant turn
    and before the answer; `start` once at the beginning. `system_inside_user`: the system block is part of the first
    user turn's text, before it is stripped. `stripped`: the roles whose text is stripped (str.strip).
    `reply_stripped`: a past answer is stripped, so replies are given stripped. `literals`: textual template tokens.
    `tools`: the name of its tool syntax. `model_ids`: lower-case substrings of model ids. `model_types` and
    `template_marks`: how a checkpoint of this family is recognised by its config.json and by texts in its chat
    template. `context_window`: tokens.
    """

    name: str
    context_window: int
    start: tuple[_Part, ...]
    system: tuple[_Part, ...]
    user: tuple[_Part, ...]
    assistant: tuple[_Part, ...]
    reply: tuple[_Part, ...]
    system_inside_user: bool
    stripped: frozenset[str]
    literals: tuple[str, ...]
    model_ids: tuple[str, ...]
    model_types: tuple[str, ...]
    template_marks: tuple[str, ...]
    end_token: str = "</s>"
    tools: str = "brackets"

    @property
    def reply_lead(self) -> str:
        """What stands between the end of a prompt and the text of its reply."""
        parts = self.assistant[len(self.reply) :]
        return "".join(str(part) for part in parts[: parts.index(_TEXT)])

    @property
    def reply_stripped(self) -> bool:
        return "assistant" in self.stripped

    @property
    def controls(self) -> tuple[Control, ...]:
        """The control tokens of this family's prompts."""
        parts = (*self.start, *self.system, *self.user, *self.assistant, *self.reply)
        return tuple(dict.fromkeys((_BOS, _EOS, *(part for part in parts if isinstance(part, Control)))))


_LLAMA_SYSTEM: Final = ("<<SYS>>\n", _TEXT, "\n<</SYS>>\n\n")
_LLAMA_USER: Final = ("[INST] ", _TEXT, " [ATTR] ", _ATTRIBUTES, " [/ATTR] [/INST]")
_BOT_TURN: Final = (_START, _BOT, "<attributes>", _ATTRIBUTES, "</attributes>")

#: Every family, by name. Formats: the chat templates that KARAKURI published with each model.
FAMILIES: Final[Mapping[str, Family]] = {
    family.name: family
    for family in (
        Family(
            name="karakuri-lm-70b-chat-v0.1",
            context_window=4096,
            start=(),
            system=_LLAMA_SYSTEM,
            user=(_BOS, *_LLAMA_USER),
            assistant=(" ", _TEXT, " ", _EOS),
            reply=(),
            system_inside_user=True,
            stripped=frozenset({"user", "assistant"}),
            literals=_LLAMA_LITERALS,
            model_ids=("karakuri-lm-70b-chat", "karakuri-lm-70b-v0.1-chat"),
            model_types=("llama",),
            template_marks=("[INST]", "[ATTR]"),
        ),
        Family(
            name="karakuri-lm-8x7b-chat-v0.1",
            context_window=32768,
            start=(_BOS,),
            system=_LLAMA_SYSTEM,
            user=_LLAMA_USER,
            assistant=(_TEXT, _EOS),
            reply=(),
            system_inside_user=True,
            stripped=frozenset(),
            literals=_LLAMA_LITERALS,
            model_ids=("karakuri-lm-8x7b-chat",),
            model_types=("mixtral",),
            template_marks=("[INST]", "[ATTR]"),
        ),
        Family(
            name="karakuri-lm-8x7b-instruct-v0.1",
            context_window=32768,
            start=(_BOS,),
            system=(_START, _SYSTEM, _TEXT, _END),
            user=(_START, _USER, _TEXT, _END),
            assistant=(*_BOT_TURN, _TEXT, _END),
            reply=_BOT_TURN,
            system_inside_user=False,
            stripped=frozenset({"user", "assistant"}),
            literals=(
                *(control.token for control in (_START, _END, _SYSTEM, _USER, _BOT)),
                "<attributes>",
                "</attributes>",
            ),
            model_ids=("karakuri-lm-8x7b-instruct",),
            model_types=("mixtral",),
            template_marks=("<|START_OF_TURN_TOKEN|>", "<attributes>"),
            end_token="<|END_OF_TURN_TOKEN|>",
            tools="command_r",
        ),
    )
}


def family_of_template(name: str) -> Family:
    """The family an explicit `template=` names, with or without `karakuri-ai/`.

    Raises:
        UnknownModelError: no family of that name.
    """
    found = FAMILIES.get(name.removeprefix("karakuri-ai/")) if isinstance(name, str) else None
    if found is None:
        near = difflib.get_close_matches(str(name), FAMILIES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UnknownModelError(f"unknown template {name!r:.80}{hint}; the templates are {', '.join(FAMILIES)}")
    return found


def family_of_model(model: str) -> Family | None:
    """The family of a model id: by substring, so that quantised copies are recognised; None when there is none."""
    lowered = model.lower()
    return next((f for f in FAMILIES.values() if any(one in lowered for one in f.model_ids)), None)


def family_of_checkpoint(config: Mapping[str, Any], chat_template: str | None) -> Family | None:
    """The family of a checkpoint: by `model_type` in its config.json and marks in its chat template; or None."""
    if not chat_template:
        return None
    for family in FAMILIES.values():
        if config.get("model_type") in family.model_types and all(m in chat_template for m in family.template_marks):
            return family
    return None


def unknown_model(model: str, files: str = "") -> UnknownModelError:
    """The error for a model of no known family. `files`: why its own files do not tell either."""
    more = f". Its own files, which could tell, were not at hand: {files}" if files else ""
    *names, last = FAMILIES
    return UnknownModelError(
        f"model {model!r:.120} is not known to be one of the KARAKURI LM models; those are {', '.join(names)} "
        f"and {last}. If it is a copy of one of them under another name, its prompt template has to be named: "
        f'template="{names[0]}"{more}'
    )


@dataclass
class _Turn:
    role: Role
    texts: list[str] = field(default_factory=list)
    attributes: AttributeLike | None = None
    index: int = 0

    def add(self, text: str) -> None:
        if text:
            self.texts.append(text)

    @property
    def text(self) -> str:
        return "\n\n".join(self.texts)


def _turns(messages: Iterable[Message]) -> tuple[str | None, list[_Turn]]:
    """The system text (None without a system message) and the alternating turns, by the module's rules."""
    system: list[str] | None = None
    turns: list[_Turn] = []
    waiting: list[Message] = []
    for message in messages:
        if message.role == "system":
            if turns:
                waiting.append(message)
            else:
                system = [*(system or []), message.text]
            continue
        if not turns and message.role == "assistant":
            turns.append(_Turn("user", index=message.index))
        if message.role == "user":
            _place(turns, waiting)
        turn = _turn_for(turns, message.role)
        turn.add(message.text)
        turn.index = message.index
        if message.attributes is not None:
            turn.attributes = message.attributes
    _place(turns, waiting)
    return None if system is None else "\n\n".join(filter(None, system)), turns


def _turn_for(turns: list[_Turn], role: Role) -> _Turn:
    if not turns or turns[-1].role != role:
        turns.append(_Turn(role))
    return turns[-1]


def _place(turns: list[_Turn], waiting: list[Message]) -> None:
    """Put waiting system texts into the user turn that begins or ends here."""
    for message in waiting:
        turn = _turn_for(turns, "user")
        turn.add(message.text)
        turn.index = message.index
    waiting.clear()


def _answerable(messages: tuple[Message, ...], turns: list[_Turn]) -> None:
    if not messages:
        raise MessageError("the conversation is empty; it needs at least one user message")
    last = messages[-1].index
    if not turns:
        raise MessageError(
            f"the conversation has only system messages (the last is message {last}); add a user message", last
        )
    if turns[-1].role == "assistant":
        raise MessageError(
            f"message {turns[-1].index}: the conversation ends with the assistant's turn and asks nothing; "
            "add a user message",
            turns[-1].index,
        )
    if not turns[-1].text.strip():
        raise MessageError(f"message {turns[-1].index}: the last user turn is blank; give it text", turns[-1].index)


def _attributes(turns: list[_Turn], request: Request) -> Iterator[SteeringAttributes]:
    """The nine values of each user turn, in order."""
    for place, turn in enumerate(turns):
        if turn.role != "user":
            continue
        answer = turns[place + 1] if place + 1 < len(turns) else None
        if answer is None:
            yield SteeringAttributes.overlay(request.attributes, turn.attributes)
        else:
            yield SteeringAttributes.overlay(request.past_attributes, answer.attributes, turn.attributes)


class _Writer:
    """Collects segments; text that meets text is one segment, because a tokenizer merges across it."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []

    def write(self, parts: Iterable[_Part], text: str = "", attributes: SteeringAttributes | None = None) -> None:
        for part in parts:
            if isinstance(part, Control):
                self.segments.append(part)
            elif part is _TEXT:
                self._text(text)
            elif part is _ATTRIBUTES:
                self._text(" ".join(f"{name}: {value}" for name, value in (attributes or {}).items()))
            else:
                self._text(str(part))

    def _text(self, text: str) -> None:
        if not text:
            return
        if self.segments and isinstance(self.segments[-1], str):
            self.segments[-1] += text
        else:
            self.segments.append(text)


@dataclass
class _Guard:
    """Applies the `template_tokens` policy to data and counts what was escaped."""

    literals: tuple[str, ...]
    policy: TemplateTokens
    escaped: int = 0

    def __call__(self, text: str) -> str:
        if self.policy == "allow":
            return text
        result, count = escape(text, self.literals)
        self.escaped += count
        return result

    def message(self, message: Message) -> Message:
        calls = tuple(replace(call, name=self(call.name), arguments=self(call.arguments)) for call in message.calls)
        return replace(message, text=self(message.text), name=self(message.name), calls=calls)


def _refuse(messages: Iterable[Message], literals: tuple[str, ...]) -> None:
    for message in messages:
        for text in (
            message.text,
            message.name,
            *(part for call in message.calls for part in (call.name, call.arguments)),
        ):
            found = find(text, literals)
            if found:
                raise TemplateInjectionError(message.index, *found)


def _joined(parts: Iterable[_Part], text: str) -> str:
    return "".join(text if part is _TEXT else str(part) for part in parts)


# --- tools ----------------------------------------------------------------------------------------------------------

_JAPANESE: Final = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uff66-\uff9f]")


def _language(request: Request) -> Literal["ja", "en"]:
    """The setting's, else that of the first user message with text, so that a conversation keeps it."""
    if request.tooling.language != "auto":
        return request.tooling.language
    texts = [message.text for message in request.messages if message.role == "user" and message.text.strip()]
    return "ja" if _JAPANESE.search((texts or [message.text for message in request.messages] or [""])[0]) else "en"


def _in_plain_turns(messages: Iterable[Message], syntax: Syntax) -> Iterator[Message]:
    """Calls and results as the text that the syntax writes for them.

    Results stand in the order of the calls that they belong to, whatever order they came in; those of unknown calls
    last. They carry what the question asked for on its message: the reply that follows them still answers it.
    """
    calls: list[ToolCall] = []
    results: list[Message] = []
    asked, before = None, ""
    for message in messages:
        if message.role == "tool":
            results.append(message)
            before = message.role
            continue
        if results:
            again = asked if message.role != "user" else None  # a question that follows them is a turn of its own
            yield _with_results(results, calls, syntax, again)
            results = []
        if message.role == "user" and (message.attributes is not None or before != "user"):
            asked = message.attributes
        before = message.role
        calls += message.calls
        yield _with_calls(message, syntax) if message.calls else message
    if results:
        yield _with_results(results, calls, syntax, asked)


def _with_results(
    messages: list[Message], calls: list[ToolCall], syntax: Syntax, attributes: AttributeLike | None
) -> Message:
    """The turn of these results; takes the calls that they answer from the list."""
    placed: list[tuple[int, Result]] = []
    open_calls: list[ToolCall | None] = list(calls)
    for message in messages:
        answers = (n for n, call in enumerate(open_calls) if call and call.id and call.id == message.call_id)
        place = next(answers, len(calls))
        call = open_calls[place] if place < len(calls) else None
        if call is not None:
            open_calls[place] = None
        name = call.name if call is not None else message.name or "tool"
        placed.append((place, Result(name, message.text, message.failed)))
    calls[:] = [call for call in open_calls if call is not None]
    ordered = [result for _, result in sorted(placed, key=lambda one: one[0])]
    return Message("user", syntax.write_results(ordered), attributes, messages[-1].index)


def _with_calls(message: Message, syntax: Syntax) -> Message:
    text = message.text.strip()
    written = syntax.write_calls(message.calls)
    return replace(message, text=f"{text}\n{written}" if text else written, calls=())


def _described(request: Request, syntax: Syntax, clean: Callable[[str], str]) -> Iterator[Message]:
    """System messages that tell the model of its tools and of the form of its reply."""
    tooling, language = request.tooling, _language(request)
    calling = bool(tooling.tools) and tooling.choice != "none"
    if calling:
        yield Message("system", syntax.describe(tooling.tools, language, clean))
    if tooling.schema is not None and (not calling or tooling.choice == "auto"):
        text = syntax.describe_schema(tooling.schema, language, clean)
        if text:
            yield Message("system", text)


def _clean(guard: _Guard) -> Callable[[str], str]:
    """What makes a tool's or a schema's line safe: the guard, or under "reject" an error."""

    def refuse(line: str) -> str:
        found = find(line, guard.literals)
        if found:
            raise ToolDefinitionError(
                f"a tool or a response format holds the template token {found[1]!r}, which template_tokens='reject' "
                "refuses; take it out of the description or the schema"
            )
        return line

    return refuse if guard.policy == "reject" else guard


def _with_system(messages: list[Message], said: list[Message]) -> list[Message]:
    """The messages with `said` after the leading system messages."""
    if not said:
        return messages
    place = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    return [*messages[:place], *said, *messages[place:]]


def _held_to(tooling: Tooling, family: Family, form: CallForm) -> tuple[Grammar | None, CallForm | None]:
    """What the reply is held to, and how calls stand in it."""
    lead = family.reply_lead
    if not tooling.tools or tooling.choice == "none":
        return (None if tooling.schema is None else Grammar(tooling.schema, lead=lead, strict=tooling.strict)), None
    schema = list_of_calls(tooling, form)
    form = form if tooling.parallel else replace(form, most=1)
    if tooling.choice == "auto":
        return Grammar(schema, form.opener, form.closer, lead, tooling.schema, tooling.strict), form
    return Grammar(schema, closer=form.closer, strict=tooling.strict), replace(form, begun=True)


def render(
    request: Request, family: Family, template_tokens: TemplateTokens = "escape", *, partial: bool = False
) -> Prompt:
    """The exact prompt of a request in a family's template.

    Args:
        request: the conversation, with its attributes and tools.
        family: one record of `FAMILIES`.
        template_tokens: what happens to the family's textual tokens in data.
        partial: render a part of a conversation too, which cannot be answered as it stands; for counting tokens only.

    Raises:
        MessageError: an empty or unanswerable conversation.
        TemplateInjectionError: under "reject", the first template token found in data.
        ToolDefinitionError: under "reject", a template token in a tool or a response format.
        AttributeConfigError: attributes of a message that are not valid.
        OptionError: an unknown policy.
    """
    if template_tokens not in _POLICIES:
        raise OptionError(f"template_tokens must be one of {', '.join(_POLICIES)}, got {template_tokens!r:.40}")
    syntax, literals = syntax_of(family.tools), family.literals
    if request.tooling.tools or any(one.calls or one.role == "tool" for one in request.messages):
        literals += syntax.literals
    if template_tokens == "reject":
        _refuse(request.messages, literals)
    guard, writer = _Guard(literals, template_tokens), _Writer()
    guarded = list(_in_plain_turns([guard.message(message) for message in request.messages], syntax))
    system, turns = _turns(_with_system(guarded, list(_described(request, syntax, _clean(guard)))))
    if not partial:
        _answerable(request.messages, turns)
    grammar, form = _held_to(request.tooling, family, syntax.form)
    values = list(_attributes(turns, request)) or [request.attributes]
    writer.write(family.start)
    lead = ""
    if system is not None:
        if family.system_inside_user:
            lead = _joined(family.system, system)
        else:
            writer.write(family.system, system)
    for place, turn in enumerate(turns):
        text = turn.text
        if turn.role == "user":
            text, lead = lead + text, ""
        if turn.role in family.stripped:
            text = text.strip()
        writer.write(family.user if turn.role == "user" else family.assistant, text, values[place // 2])
    if lead:  # only a part of a conversation has no user turn to carry it
        writer.write((_TEXT,), lead)
    if turns and turns[-1].role == "user":
        writer.write(family.reply, attributes=values[-1])
        if form is not None and form.begun:
            writer.write((family.reply_lead, form.opener))
    return Prompt(
        segments=tuple(writer.segments),
        attributes=values[-1],
        escaped=guard.escaped,
        literals=literals if template_tokens == "escape" else (),
        strip_reply=family.reply_stripped,
        turns=tuple(_given(system, turns, values)),
        grammar=grammar,
        calls=form,
    )


def _given(system: str | None, turns: list[_Turn], values: list[SteeringAttributes]) -> Iterator[Turn]:
    """The turns for a server that renders them; it parses control tokens in text, so they are escaped."""
    if system is not None:
        yield Turn("system", escape(system, CONTROL_TEXTS)[0])
    for place, turn in enumerate(turns):
        yield Turn(turn.role, escape(turn.text, CONTROL_TEXTS)[0], values[place // 2] if turn.role == "user" else None)


def parse_raw(text: str, family: Family) -> Prompt:
    """A prompt that the caller has written out in full, as `Prompt.text` shows one: its control tokens are honoured.

    Whatever stands in the text counts as structure, so text from others must never get here. Nothing is escaped, and
    nothing added but the BOS that every prompt begins with, where the text lacks it: servers differ in whether they
    add it. The prompt has no attributes that we know of.
    """
    begun = text.lstrip()
    text = begun if begun.startswith(_BOS.token) else _BOS.token + text
    tokens = {control.token: control for control in family.controls}
    parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text)
    segments = tuple(tokens.get(part, part) for part in parts if part)
    if not any(isinstance(part, str) and part.strip() for part in segments):
        raise MessageError("the formatted prompt is blank; give it text")
    return Prompt(segments, strip_reply=family.reply_stripped, raw=True)
