"""ScriptedEngine: canned replies, and a record of the prompts it was sent. For tests of this package and of yours."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeAlias

from ..conversation import CallForm, Grammar, Piece, Prompt, Sampling, Usage
from ..errors import ContextOverflowError, ScriptError
from ..templates import Family, family_of_model, family_of_template, unknown_model

__all__ = ["ScriptedEngine"]

_Replies: TypeAlias = Iterable["str | BaseException"] | Callable[[str], str]


class ScriptedEngine:
    """Answers with canned replies, one character a token, without any model.

    Args:
        replies: texts in order, or a callable of the prompt text. An exception in the list is raised instead.
        model: the id to report; it decides the prompt family.
        template: a family's name, where the id does not tell.
        context_window: tokens; the family's by default. A token is one character, a control token one.

    `prompts` lists the prompt texts it was sent, in order. After the last reply it raises ScriptError.

    Replies are given as they stand in the script, also where tools or a response format ask for another form: so it
    answers as a server without grammars does. Under `strict=True` a reply that no model held to the schema could give
    is a ScriptError (this needs llguidance).
    """

    def __init__(
        self,
        replies: _Replies,
        model: str = "karakuri-ai/karakuri-lm-70b-chat-v0.1",
        *,
        template: str | None = None,
        context_window: int | None = None,
    ) -> None:
        family = family_of_template(template) if template else family_of_model(model)
        if family is None:
            raise unknown_model(model)
        self._replies: Callable[[str], str] | list[str | BaseException]
        self._replies = replies if callable(replies) else [replies] if isinstance(replies, str) else list(replies)
        self._model, self._family = model, family
        self._window = context_window or family.context_window
        self._lock = threading.Lock()
        self.prompts: list[str] = []
        self.samplings: list[Sampling] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> ScriptedEngine:
        return self  # an engine is shared by the copies of its provider

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    @property
    def model(self) -> str:
        return self._model

    @property
    def family(self) -> Family:
        return self._family

    @property
    def grammars(self) -> bool:
        """Nothing is held to a schema; what a script says under `strict` is checked."""
        return False

    @property
    def context_window(self) -> int:
        return self._window

    def count_tokens(self, prompt: Prompt) -> int:
        return sum(len(part) if isinstance(part, str) else 1 for part in prompt.segments)

    def token_ids(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def close(self) -> None:
        """Nothing is held."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]:
        """One Piece a character of the next reply, cut at `sampling.max_tokens`."""
        n_prompt = self.count_tokens(prompt)
        room = self._window - n_prompt
        if room < 1 or (sampling.max_tokens or 0) > room:
            raise ContextOverflowError(n_prompt, sampling.max_tokens, self._window)
        reply = self._next(prompt, sampling)
        if prompt.grammar is not None and prompt.grammar.strict:
            _check(reply, prompt.grammar, prompt.calls)
        limit = sampling.max_tokens or room
        for place, character in enumerate(reply[:limit], 1):
            yield Piece(character, Usage(n_prompt, place))
        cut = len(reply) > limit
        yield Piece("", Usage(n_prompt, min(len(reply), limit)), "length" if cut else "stop")

    async def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]:
        for piece in self.stream(prompt, sampling):
            yield piece

    def _next(self, prompt: Prompt, sampling: Sampling) -> str:
        with self._lock:
            self.prompts.append(prompt.text)
            self.samplings.append(sampling)
            call = len(self.prompts)
        if callable(self._replies):  # outside the lock: it may be slow, or call the engine itself
            return self._replies(prompt.text)
        if call > len(self._replies):
            raise ScriptError(f"the script has {len(self._replies)} replies and this is call {call}; add a reply")
        reply = self._replies[call - 1]
        if isinstance(reply, BaseException):
            raise reply
        return reply


def _check(reply: str, grammar: Grammar, calls: CallForm | None) -> None:
    from .grammars import fitting

    if calls is not None and calls.begun:  # the prompt ends with the opener, which a script may repeat
        reply = reply.lstrip().removeprefix(calls.opener.rstrip()).lstrip()
    good = fitting(grammar, reply)
    if good is not None:
        raise ScriptError(
            f"under strict=True this reply of the script leaves its schema after {good} characters; write JSON that "
            "fits it, with the keys in the schema's order, or leave strict out to have any reply read as it is"
        )
