"""Grammars over a local model's vocabulary: which tokens may come next, which must, and how to end in time.

llguidance compiles and matches (https://github.com/guidance-ai/llguidance); this module says what a `Grammar` is in its
Lark dialect, keeps what was compiled, and ends a reply whose tokens run out: while a reply is JSON, a way to its end is
always known that still fits, and is taken where a token would leave no room for one. Knows numpy and token ids; torch
and the decoding loop are `decoding`'s, the search for ends is `endings`', what a schema may say is `schema_words`', and
lists that must hold each item once are `unrepeated`'s.
"""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from ..conversation import Grammar
from ..errors import EngineError, MissingDependencyError, UnsupportedSchemaError
from ..tools.repeats import loosened
from .endings import Endings, allowed_tokens
from .hub import INSTALL_HINT
from .schema_places import cause
from .schema_rules import placed
from .schema_words import prepared, refusal
from .unrepeated import Unrepeated, Vocabulary, Watch

__all__ = ["Constraint", "Grammars", "fitting"]

_KEPT: Final = 64
#: With so many tokens more than the known end takes, an end is looked for beside the model instead of before the token.
_PLENTY: Final = 256
#: Where no end was found, one is looked for again after so many tokens.
_EVERY: Final = 8
#: JSON as Python's json.dumps writes it, and as tools' calls are written into prompts.
_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def _import() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(f"tools and structured output need llguidance: {INSTALL_HINT}") from error
    return llguidance


@dataclass(eq=False)
class _Kept:
    """What was made of a grammar, once it was."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    matcher: Any = None


class Grammars:
    """The compiled grammars of one tokenizer; threads share it.

    Args:
        description: the tokenizer as the tokenizers library writes it (tokenizer.json).
        tokens: how many ids the tokenizer has.
        width: how many logits the model has.
        end: the id that ends a reply.
        bytes_of: what a token writes.
    """

    def __init__(self, description: str, tokens: int, width: int, end: int, bytes_of: Callable[[int], bytes]) -> None:
        self.size, self.width, self.end = max(tokens, width), width, end
        self.tokenizer = _import().LLTokenizer(description, n_vocab=self.size, eos_token=end)
        texts = [bytes_of(one) if one < tokens else b"" for one in range(width)]
        self.endings = Endings(texts)
        self._vocabulary = functools.cache(lambda: Vocabulary(texts))
        self._compiled: OrderedDict[Grammar, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        #: Masks are computed here while the model computes.
        self.threads = ThreadPoolExecutor(1, "karakuri-grammar")

    def __contains__(self, grammar: object) -> bool:
        """Whether it is compiled already, so that `constraint` takes no time."""
        found = self._compiled.get(grammar)  # type: ignore[call-overload]  # any object may be asked for
        return found is not None and found.matcher is not None

    def constraint(self, grammar: Grammar, room: int) -> Constraint:
        """The grammar at the beginning of a reply of at most `room` tokens.

        Raises:
            UnsupportedSchemaError: no grammar can be made of the schema, also where that is so of one of several tools;
                names the tool, the place and the word that is the cause.
        """
        matcher = self._matcher(grammar)
        return Constraint(self, matcher, room, text=bool(grammar.opener) and grammar.text_schema is None)

    def _matcher(self, grammar: Grammar) -> Any:
        """A matcher at the beginning. The same grammar is compiled once, however many threads ask for it at once."""
        with self._lock:
            found = self._compiled.setdefault(grammar, _Kept())
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        with found.lock:  # its own: a large schema must not hold up the others
            try:
                if found.matcher is None:
                    found.matcher = self._compile(grammar)
            finally:
                if found.matcher is None:  # what is refused takes no place of what is not
                    self._compiled.pop(grammar, None)
            return found.matcher.deep_copy()

    def _compile(self, grammar: Grammar) -> Any:
        matcher, watch = _compiled(self.tokenizer, grammar), _watch(grammar)
        return matcher if watch is None else Unrepeated(matcher, self._vocabulary(), watch)


def fitting(grammar: Grammar, reply: str) -> int | None:
    """How many characters of a reply fit the grammar; None where it is a whole reply of it.

    White space between the parts of JSON is free here. Keys must stand in the schema's order, and characters as they
    are: a model that is held to the grammar writes nothing else.
    """
    matcher = _compiled(_import().LLTokenizer("byte"), grammar, style={})
    sent = reply.encode()
    taken = matcher.try_consume_tokens(list(sent))
    fits = len(sent[:taken].decode(errors="ignore"))
    repeated = _repeated(grammar, reply[:fits])
    if repeated is not None:
        return repeated
    return None if taken == len(sent) and matcher.is_accepting() else fits


def _repeated(grammar: Grammar, reply: str) -> int | None:
    """How many characters of it come before an item that a list must not hold again; None where none does."""
    watch = _watch(grammar)
    if watch is not None:
        for place, character in enumerate(reply):
            watch.push(character.encode())
            if watch.repeated:
                return place
    return None


def _watch(grammar: Grammar) -> Watch | None:
    """What reads a reply where the grammar alone cannot hold it: lists that must hold each item once."""
    schema, text_schema = json.loads(grammar.schema), json.loads(grammar.text_schema or "null")
    if loosened(schema) is schema and loosened(text_schema) is text_schema:
        return None
    return Watch(schema, grammar.opener, text_schema)


def _compiled(tokenizer: Any, grammar: Grammar, style: Mapping[str, Any] = _STYLE) -> Any:
    found = _tried(tokenizer, grammar, style)
    if isinstance(found, UnsupportedSchemaError):
        raise _placed(found, grammar)
    return found


def _tried(tokenizer: Any, grammar: Grammar, style: Mapping[str, Any] = _STYLE) -> Any:
    """A matcher, or why there is none."""
    try:
        found = _import().LLMatcher(tokenizer, _lark(grammar, style), log_level=0)
    except UnsupportedSchemaError as error:
        return error
    return refusal(found.get_error()) if found.is_error() else found


def _placed(error: UnsupportedSchemaError, grammar: Grammar) -> UnsupportedSchemaError:
    """The same, with the place of its cause."""
    tokenizer = _import().LLTokenizer("byte")

    def trial(schema: Any) -> UnsupportedSchemaError | None:
        found = _tried(tokenizer, Grammar(json.dumps(schema)))
        return found if isinstance(found, UnsupportedSchemaError) else None

    for text in (grammar.schema, grammar.text_schema):
        schema = json.loads(text or "true")
        found = trial(schema)
        if found is not None:
            return placed(found, cause(schema, found, trial))
    return error


def _lark(grammar: Grammar, style: Mapping[str, Any] = _STYLE) -> str:
    """The grammar in llguidance's Lark dialect
    (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""
    lead = f"{json.dumps(grammar.lead)}? " if grammar.lead else ""
    held = f"held {json.dumps(grammar.closer)}?" if grammar.closer else "held"
    rules = [f"held: %json {_styled(grammar.schema, style)}"]
    opener = json.dumps(grammar.opener)
    if not grammar.opener:
        start = lead + held
    elif grammar.text_schema is not None:
        start = f"{lead}answer | {lead}{opener} {held}"
        rules.append(f"answer: %json {_styled(grammar.text_schema, style)}")
    else:
        start = f"TEXT | before {held}"
        rules.append(f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{_literally(grammar.opener)}(.|\\n)*/")
        rules.append(f"before[suffix={opener}]: /(.|\\n)*/")
    return "\n".join([f"start: {start}", *rules])


def _styled(schema: str, style: Mapping[str, Any]) -> str:
    return json.dumps({**prepared(loosened(json.loads(schema))), "x-guidance": dict(style)})


def _literally(text: str) -> str:
    """A regular expression of this very text; by number, since Lark and regular expressions both have their escapes."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)


class Constraint:
    """One reply held to a grammar. For each token: look at `allowed`, choose one of them, `take` it.

    `ended_early`: the reply was led to its end because its tokens ran out, or cut where it could only repeat an item.
    """

    def __init__(self, grammars: Grammars, matcher: Any, room: int, *, text: bool = False) -> None:
        self._grammars, self._matcher, self._left = grammars, matcher, room
        self._text = text  # still text, which may end anywhere
        self._path: list[int] | None = None
        self._known = False  # whether the path was looked for
        self._wait = 0  # tokens until the next search, after one that found nothing
        self.ended_early = False

    @property
    def end(self) -> int:
        """The id that ends the reply."""
        return self._grammars.end

    @property
    def finished(self) -> bool:
        """Nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def beside(self, work: Callable[[], Any]) -> Future[Any]:
        """Run it in another thread."""
        return self._grammars.threads.submit(work)

    def allowed(self) -> Any:
        """Which tokens may come next: bool, one per logit."""
        if not self._known and not self._text:
            self._path, self._known = self._found(), True
        mask = allowed_tokens(self._matcher, self._grammars.width)
        if self._matcher.is_error() or not (mask.any() or isinstance(self._matcher, Unrepeated)):
            raise self._stuck()
        if not mask.any():  # whatever followed would repeat an item: the reply is cut
            self.ended_early = mask[self.end] = True
        return mask

    def take(self, token: int) -> list[int]:
        """What the reply goes on with: the token and those that must follow it, or its end where it must end now."""
        if token == self._grammars.end:
            self._left -= 1
            return [token]
        if not self._fits(token):
            return self._ended()
        self._left -= 1
        if isinstance(self._matcher, Unrepeated) and self._matcher.repeated:
            self.ended_early = True
            return [token, self.end][: 1 + max(0, min(1, self._left))]
        forced = self._forced()
        self._left -= len(forced)
        return [token, *forced]

    def _fits(self, token: int) -> bool:
        """Go on by the token, unless it takes away the last chance to end in time."""
        before = self._matcher.deep_copy() if self._path is not None else None
        if not self._matcher.consume_token(token):
            raise self._stuck()
        if self._text and self._matcher.is_accepting():
            return True
        self._text = False
        path, self._path = self._path, None
        self._known = path is not None and self._keep(path, token)
        if self._known or self._left > _PLENTY + 4 * len(path or ()):
            return True
        self._path, self._known = self._found(), True
        late = self._path is None or len(self._path) >= self._left
        if late and before is not None and path is not None and len(path) <= self._left:
            self._matcher, self._path = before, path
            return False
        return True

    def _found(self) -> list[int] | None:
        """A way to the end from here; after a search that found none, the next few tokens are not worth another."""
        self._wait -= 1
        if self._wait > 0 and self._left > _EVERY:
            return None
        found = self._grammars.endings.shortest(self._matcher, self._left)
        self._wait = 0 if found is not None else _EVERY
        return found

    def _keep(self, path: list[int], token: int) -> bool:
        """Most often the way to the end that was known still is one behind the token, or what is left of it."""
        known = path[1:] if path[:1] == [token] else path
        if len(known) < self._left and self._leads(known):
            self._path = known
        return self._path is not None

    def _leads(self, path: list[int]) -> bool:
        then = self._matcher.deep_copy()
        return bool(then.try_consume_tokens(path) == len(path) and then.is_accepting())

    def _ended(self) -> list[int]:
        """The known way to the end, all of it."""
        path = self._path or []
        if not self._matcher.consume_tokens(path):
            raise self._stuck()
        self.ended_early = True
        self._left -= len(path)
        return [*path, self._grammars.end][: len(path) + max(0, min(1, self._left))]

    def _forced(self) -> list[int]:
        """The tokens that must come next; they need no forward pass of their own."""
        if self._text or self.finished:
            return []
        found = list(self._matcher.compute_ff_tokens())[: max(0, self._left)]
        if any(one >= self._grammars.width for one in found):
            return []
        if found and not self._matcher.consume_tokens(found):
            raise self._stuck()
        if found and self._path is not None:
            on_it = self._path[: len(found)] == found
            self._path = self._path[len(found) :] if on_it else None
            self._known = on_it
        return found

    def _stuck(self) -> EngineError:
        return EngineError(
            f"the reply's grammar has come to a state that cannot go on ({self._matcher.stop_reason()}); make the JSON "
            "schema simpler: shorter patterns, smaller bounds, fewer alternatives"
        )
