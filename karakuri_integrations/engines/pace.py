"""How much of a prompt is read between two tokens of the replies that are made beside it. Knows durations only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from . import decoding

__all__ = ["Pace"]

_LEAST_CHUNK: Final = 32
_SLICE: Final = 2.0  # steps that a chunk of a prompt may take while others wait for their next token
_FILLED: Final = 0.25  # of the tokens of a pass at most; more where what it takes by itself is as much
_NEW: Final = 0.2  # the weight of what was measured last


class Pace:
    """How long a step and the reading of a prompt take, so that reading does not hold up those who wait for a token."""

    def __init__(self) -> None:
        self._step = 0.0  # seconds
        self._line = _Line()

    def chunk(self, others: bool) -> int:
        """Prompt tokens to read now."""
        most = decoding.PREFILL_CHUNK
        if not others or not self._step or not self._line.known:
            return most
        return max(min(self._line.at(_SLICE * self._step), most), min(_LEAST_CHUNK, most))

    def fill(self, prompts: Sequence[int], chunk: int) -> bool:
        """Whether prompts of so many tokens are read in one pass, the shorter ones filled up to the longest."""
        size, total = len(prompts) * max(prompts), sum(prompts)
        return size <= chunk and size - total <= max(_FILLED * total, (len(prompts) - 1) * self._line.spare)

    def read(self, tokens: int, seconds: float) -> None:
        self._line.add(tokens, seconds)

    def stepped(self, seconds: float) -> None:
        self._step = seconds if not self._step else (1 - _NEW) * self._step + _NEW * seconds


class _Line:
    """Seconds by tokens: what a pass takes whatever it reads, and what each token adds; of the last few chunks.

    A line through means that forget (least squares with exponential weights). Where all chunks were of one size, or
    longer ones took no longer, nothing is known of what a pass takes by itself, and all counts as the tokens'.
    """

    def __init__(self) -> None:
        self.known = False
        self._tokens = self._seconds = self._squares = self._products = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        for name, now in (
            ("_tokens", tokens),
            ("_seconds", seconds),
            ("_squares", tokens * tokens),
            ("_products", tokens * seconds),
        ):
            setattr(self, name, now if not self.known else (1 - _NEW) * getattr(self, name) + _NEW * now)
        self.known = True

    @property
    def spare(self) -> float:
        """Tokens that take as long as a pass does by itself."""
        begin, each = self._fit()
        return begin / each if each > 0 else 0.0

    def at(self, seconds: float) -> int:
        """The tokens that take so long; 0 where nothing is as short."""
        begin, each = self._fit()
        return max(0, int((seconds - begin) / each))

    def _fit(self) -> tuple[float, float]:
        """Seconds of a pass by itself, and of each token."""
        if not self.known:
            return 0.0, 0.0
        spread = self._squares - self._tokens**2
        each = (self._products - self._tokens * self._seconds) / spread if spread > self._tokens else 0.0
        begin = self._seconds - each * self._tokens
        return (begin, each) if each > 0 and begin >= 0 else (0.0, self._seconds / self._tokens)
