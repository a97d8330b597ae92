"""A draft model: a small model with the same tokenizer guesses what the large one will say.

It reads the same ids as the large one, keeps the keys and values of one reply, and writes a few tokens greedily. The
large model reads them in one pass (see `guessing`). Runs in a model's worker thread, which imports it; imports torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np

from .decoding import PREFILL_CHUNK
from .forward import Forward
from .generating import out_of_memory
from .guessing import Trust
from .key_values import KeyValues
from .loading import Loaded
from .prefixes import common

__all__ = ["Draft", "DraftGuesser"]

_FIRST: Final = 4  # tokens guessed at first
_MOST: Final = 8  # each costs a pass of the small model


class Draft:
    """The small model and what it has read of one reply, kept for the next one that begins alike.

    Args:
        loaded: the small model.
        vocabulary: the large model's number of ids; none beyond is guessed.
        window: tokens that the small model was made for; behind them it guesses nothing.
    """

    def __init__(self, loaded: Loaded, vocabulary: int, window: int) -> None:
        self._model = loaded.model
        self._pass = Forward(loaded.model)
        self._vocabulary, self._window = vocabulary, window
        self._known = len(loaded.model.get_input_embeddings().weight)
        self._values = KeyValues()
        self._read: list[int] = []
        self._scope: Hashable = None
        self._kept = True
        self._given_up = False

    @property
    def bytes(self) -> int:
        """What its keys and values take."""
        return self._values.bytes

    def rest(self) -> None:
        """No reply is being made: what may not be kept is forgotten."""
        self._given_up = False
        if not self._kept:
            self.clear()

    def give_up(self) -> None:
        """The device is full: no guesses until no reply is being made."""
        self.clear()
        self._given_up = True

    def clear(self) -> None:
        """Forget everything, and free its memory."""
        self._values.clear()
        self._read = []

    def guess(self, ids: Sequence[int], count: int, scope: Hashable, kept: bool) -> list[int]:
        """`count` ids that may follow; none while it still reads what there is, a chunk each time.

        What it reads is for prompts of the same scope only, and `kept` after the reply has ended. Where the device is
        full, nobody fails for want of guesses.
        """
        if self._given_up:
            return []
        try:
            return self._guess(ids, count, scope, kept)
        except Exception as error:
            if not out_of_memory(error):
                raise
        self.give_up()  # behind the error, which holds some of the memory
        return []

    def _guess(self, ids: Sequence[int], count: int, scope: Hashable, kept: bool) -> list[int]:
        if scope != self._scope:
            self.clear()
        self._scope, self._kept = scope, kept
        count = min(count, self._window - len(ids))
        if count < 1:
            return []
        known = np.asarray(self._read, np.int64)
        del self._read[common(known, np.asarray(ids[:-1], np.int64)) :]
        unread = list(ids[len(self._read) :])
        # The large model may have more ids than its tokenizer, and this one fewer of those; on a GPU one that it lacks
        # is an assertion, after which CUDA is lost for the whole process.
        if max(unread) >= self._known:
            return []
        if len(unread) > PREFILL_CHUNK:
            self._forward(unread[:PREFILL_CHUNK])
            return []
        found = [self._forward(unread)]
        while len(found) < count:
            found.append(self._forward(found[-1:]))
        return found

    def _forward(self, new: list[int]) -> int:
        """Read some ids; the most likely one behind them."""
        start = len(self._read)
        self._values.reserve(1, start + len(new), self._window)
        logits = self._pass(self._values, 0, [new], [start], 1)
        self._read += new
        return int(logits[0, -1, : self._vocabulary].argmax())


class DraftGuesser:
    """A Guesser: a draft model's guesses for one reply."""

    def __init__(self, draft: Draft, scope: str | None, kept: bool) -> None:
        # What may not be kept is not used either: a scope of its own, which no other reply has.
        self._draft, self._kept = draft, kept
        self._scope: Hashable = scope if kept else object()
        self._trust = Trust(_FIRST, _MOST)

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        size = self._trust.size(len(ids), most)
        return self._draft.guess(ids, size, self._scope, self._kept) if size > 0 else []

    def learn(self, length: int, guessed: int, right: int) -> None:
        self._trust.learn(length, guessed, right)
