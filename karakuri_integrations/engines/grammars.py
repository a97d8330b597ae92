"""Grammars over a local model's vocabulary: which tokens may come next, which must, and how to end in time.

llguidance compiles and matches (https://github.com/guidance-ai/llguidance); this module says what a `Grammar` is in its
Lark dialect, keeps what was compiled, and ends a reply whose tokens run out: the shortest end is followed as soon as
there is just room for it. Knows numpy and token ids; torch and the decoding loop are `decoding`'s.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from ..conversation import Grammar
from ..errors import MissingDependencyError, UnsupportedSchemaError
from .hub import INSTALL_HINT

__all__ = ["Constraint", "Grammars"]

_KEPT: Final = 64
#: From this many tokens above the shortest end on, each choice is checked for whether the end still fits behind it.
_ZONE: Final = 24
#: After so many tokens the shortest end is looked for anew, where tokens are not plenty.
_EVERY: Final = 16
_LONGEST_END: Final = 256
#: JSON as Python's json.dumps writes it, and as tools' calls are written into prompts.
_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NEVER: Final = 1 << 20


def _import() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(f"tools and structured output need llguidance: {INSTALL_HINT}") from error
    return llguidance


class Grammars:
    """The compiled grammars of one tokenizer; threads share it.

    Args:
        description: the tokenizer as the tokenizers library writes it (tokenizer.json).
        vocabulary: the number of the model's logits.
        end: the id that ends a reply.
        bytes_of: what a token writes.
    """

    def __init__(self, description: str, vocabulary: int, end: int, bytes_of: Callable[[int], bytes]) -> None:
        self.vocabulary, self.end = vocabulary, end
        self._tokenizer = _import().LLTokenizer(description, n_vocab=vocabulary, eos_token=end)
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes_of = bytes_of
        self._ranks: Any = None
        self._letters: list[int] = []
        #: Masks are computed here while the model computes.
        self.threads = ThreadPoolExecutor(1, "karakuri-grammar")

    def constraint(self, grammar: Grammar, room: int) -> Constraint:
        """The grammar at the beginning of a reply of at most `room` tokens.

        Raises:
            UnsupportedSchemaError: no grammar can be made of the schema; names the word that is the cause.
        """
        with self._lock:
            found = self._compiled.pop(grammar, None)
            if found is None:
                found = self._compile(grammar)
            self._compiled[grammar] = found
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return Constraint(self, found.deep_copy(), room)

    def _compile(self, grammar: Grammar) -> Any:
        library = _import()
        text = _lark(grammar)
        problem = library.LLMatcher.validate_grammar(text, self._tokenizer)
        if problem:
            raise _refusal(problem)
        return library.LLMatcher(self._tokenizer, text)

    def soonest(self, mask: Any) -> int | None:
        """Of the allowed tokens the one that gets a reply to its end the soonest."""
        import numpy as np

        if self._ranks is None:
            texts = [self._bytes_of(one) for one in range(self.vocabulary)]
            self._ranks = tuple(np.array([rank(one) for one in texts], np.int32) for rank in (_rank, _rank_in_string))
            self._letters = [place for place, one in enumerate(texts) if one in _LETTERS]
        ranks = np.where(mask, self._ranks[bool(mask[self._letters].any())], _NEVER)
        best = int(ranks.argmin())
        return best if ranks[best] < _NEVER else None


#: No JSON outside of strings begins a word with one of these.
_LETTERS: Final = (b"q", b"x", b"Q", b"X")


def _rank(text: bytes) -> int:
    """Outside of strings: closing brackets, a comma, a quote, a digit; of other tokens those that get further."""
    if not text:
        return _NEVER
    if not text.strip(b"]}"):
        return 16 - min(len(text), 16)
    single = (b",", b'"', *(bytes([one]) for one in b"0123456789"))
    return 20 + single.index(text) if text in single else 100 - min(len(text), 16)


def _rank_in_string(text: bytes) -> int:
    """A quote, with closing brackets where one token has both; of other tokens those that get further."""
    if not text:
        return _NEVER
    if text[:1] == b'"' and not text[1:].strip(b"]}"):
        return 16 - min(len(text), 16)
    return 100 - min(len(text), 16)


def _lark(grammar: Grammar) -> str:
    """The grammar in llguidance's Lark dialect
    (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""
    lines = [f"held: %json {_styled(grammar.schema)}"]
    held = f"held {_string(grammar.closer)}?" if grammar.closer else "held"
    if not grammar.opener:
        lead = f"{_string(grammar.lead)}? " if grammar.lead else ""
        return "\n".join([f"start: {lead}{held}", *lines])
    escaped = (
        re.escape(grammar.opener).replace("\\\n", "\\n").replace("\\ ", " ").replace("\n", "\\n").replace("/", "\\/")
    )
    if grammar.text_schema is None:
        lines.append(f"TEXT: /(.|\\n)*/ & ~/(.|\\n)*{escaped}(.|\\n)*/")
        lines.append(f"before[suffix={_string(grammar.opener)}]: /(.|\\n)*/")
        return "\n".join([f"start: TEXT | before {held}", *lines])
    lines.append(f"answer: %json {_styled(grammar.text_schema)}")
    lead = f"{_string(grammar.lead)}? " if grammar.lead else ""
    return "\n".join([f"start: {lead}answer | {lead}{_string(grammar.opener)} {held}", *lines])


def _styled(schema: str) -> str:
    parsed = json.loads(schema)
    return json.dumps({**parsed, "x-guidance": _STYLE} if isinstance(parsed, dict) else parsed)


def _string(text: str) -> str:
    return json.dumps(text)


def _refusal(problem: str) -> UnsupportedSchemaError:
    """The library's message names the word; it also quotes the schema, which is not repeated."""
    line = problem.strip().splitlines()[0].partition("failed to compile JSON schema:")[2].strip() or "it is not valid"
    words = re.findall(r'"([A-Za-z$]{2,40})"', line)
    error = UnsupportedSchemaError(
        f"no grammar can be made of this JSON schema ({line[:200]}); leave the word out, or describe the rule in words "
        "and check the arguments in the tool"
    )
    error.keyword = words[0] if words else ""
    return error


class Constraint:
    """One reply held to a grammar. For each token: `allowed`, choose one of them, `accept` it, take the `forced` ones.

    `ended_early`: the reply was led to its end because its tokens ran out.
    """

    def __init__(self, grammars: Grammars, matcher: Any, room: int) -> None:
        import llguidance.numpy as bits

        self._grammars, self._matcher, self._left = grammars, matcher, room
        self._fill = bits.fill_next_token_bitmask
        self._bits = bits.allocate_token_bitmask(1, grammars.vocabulary)
        self._end: list[int] | None = None
        self._need, self._age = len(self._shortest(matcher) or ()), 0
        self.ended_early = False

    @property
    def end(self) -> int:
        """The id that ends the reply."""
        return self._grammars.end

    def beside(self, work: Callable[[], Any]) -> Future[Any]:
        """Run it in another thread."""
        return self._grammars.threads.submit(work)

    @property
    def finished(self) -> bool:
        """Nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Any:
        """Which tokens may come next: bool, one per token."""
        import numpy as np

        if self._end is not None:
            mask = np.zeros(self._grammars.vocabulary, bool)
            mask[self._end[0]] = True
            return mask
        return self._mask(self._matcher)

    def _mask(self, matcher: Any) -> Any:
        import numpy as np

        self._fill(matcher, self._bits, 0)
        return np.unpackbits(self._bits.view(np.uint8), bitorder="little")[: self._grammars.vocabulary].view(bool)

    def checked(self, token: int) -> int:
        """The token, or the first one of the shortest end where that would no longer fit behind it."""
        if self._end is not None or self._left > self._need + _ZONE or token == self._grammars.end:
            return token
        then = self._matcher.deep_copy()
        then.consume_token(token)
        end = self._shortest(then)
        if end is not None and len(end) < self._left:
            self._need = len(end)
            return token
        self._end = self._shortest(self._matcher)
        if self._end is None or len(self._end) > self._left:
            self._end = None  # there is no way to end in time
            return token
        self.ended_early = True
        return self._end[0]

    def accept(self, token: int) -> None:
        """The token was taken."""
        self._left -= 1
        if token == self._grammars.end:
            return
        self._matcher.consume_token(token)
        if self._end is not None:
            self._end = self._end[1:] or None
            return
        self._age += 1
        if self._age >= _EVERY and self._left <= 4 * self._need + 4 * _ZONE:
            self._need, self._age = len(self._shortest(self._matcher) or ()), 0

    def forced(self) -> list[int]:
        """The tokens that must come next, accepted already; they need no forward pass of their own."""
        if self._end is not None or self.finished:
            return []
        found = list(self._matcher.compute_ff_tokens())[: max(0, self._left - 1)]
        if found:
            self._matcher.consume_tokens(found)
            self._left -= len(found)
        return found

    def _shortest(self, matcher: Any) -> list[int] | None:
        """A short way to the end from here, the token that ends the reply included; None where none was found."""
        matcher, path = matcher.deep_copy(), list[int]()
        while len(path) < _LONGEST_END:
            if matcher.is_stopped() or matcher.is_accepting():
                return [*path, self._grammars.end]
            forced = list(matcher.compute_ff_tokens())
            if not forced:
                soonest = self._grammars.soonest(self._mask(matcher))
                forced = [] if soonest is None else [soonest]
            if not forced or not matcher.consume_tokens(forced):
                return None
            path += forced
        return None
