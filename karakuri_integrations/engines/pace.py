"""How much of prompts is read between two tokens of the replies that are made beside it. Knows durations only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from . import decoding

__all__ = ["Pace"]

_LEAST_CHUNK: Final = 32
_SLICE: Final = 2.0  # steps that reading may take while others wait for their next token
_PATIENCE: Final = 3.0  # times as long at most, where more wait for their first token than for their next
_FILLED: Final = 0.25  # of a pass's prompt tokens may be padding; more where passes of their own would cost as much
_NEW: Final = 0.2  # the weight of what was measured last
_LONGER: Final = 3.0  # times as long as expected at most: a pass that was held up says nothing of the next


class Pace:
    """How long a step and the reading of a prompt take, so that reading does not hold up those who wait for a token."""

    def __init__(self) -> None:
        self._steps, self._tokens = _Line(), _Line()

    def chunk(self, making: int, waiting: int) -> int:
        """Prompt tokens to read now, beside so many replies that are being made and so many that wait to be.

        A step counts as long as it will take when all of them are being made: that is how long they wait for a token
        then.
        """
        most = decoding.PREFILL_CHUNK
        if not making or not self._steps.known or not self._tokens.known:
            return most
        patience = min(max(waiting / making, 1.0), _PATIENCE)
        found = self._tokens.at(_SLICE * patience * self._steps.seconds(making + waiting))
        return max(min(found, most), min(_LEAST_CHUNK, most))

    def fill(self, prompts: Sequence[int], chunk: int) -> bool:
        """Whether prompts of so many tokens are read in one pass, the shorter ones filled up to the longest."""
        size, total = len(prompts) * max(prompts), sum(prompts)
        return size <= chunk and size - total <= max(_FILLED * total, (len(prompts) - 1) * self._tokens.spare)

    def read(self, tokens: int, seconds: float) -> None:
        self._tokens.add(tokens, seconds)

    def stepped(self, making: int, seconds: float) -> None:
        self._steps.add(making, seconds)


class _Line:
    """Seconds by tokens or replies: what a pass takes whatever it reads, and what each of them adds; of the last few.

    A line through means that forget (least squares with exponential weights). Where all passes were of one size, or
    larger ones took no longer, nothing is known of what a pass takes by itself.
    """

    def __init__(self) -> None:
        self.known = self._begun = False
        self._count = self._seconds = self._squares = self._products = 0.0

    def add(self, count: int, seconds: float) -> None:
        """The first pass of all is not counted: it warms up."""
        if not self._begun:
            self._begun = True
            return
        if self.known:
            seconds = min(seconds, _LONGER * self._expected(count))
        for name, now in (
            ("_count", count),
            ("_seconds", seconds),
            ("_squares", count * count),
            ("_products", count * seconds),
        ):
            setattr(self, name, now if not self.known else (1 - _NEW) * getattr(self, name) + _NEW * now)
        self.known = True

    @property
    def spare(self) -> float:
        """How many take as long as a pass does by itself."""
        fit = self._fit()
        return fit[0] / fit[1] if fit is not None else 0.0

    def at(self, seconds: float) -> int:
        """How many take so long, 0 where nothing is as short; all counts as theirs where nothing else is known."""
        begin, each = self._fit() or (0.0, self._seconds / self._count)
        return max(0, int((seconds - begin) / each))

    def seconds(self, count: int) -> float:
        """How long so many take; as long as any where nothing else is known."""
        begin, each = self._fit() or (self._seconds, 0.0)
        return begin + each * count

    def _expected(self, count: int) -> float:
        begin, each = self._fit() or (0.0, self._seconds / self._count)
        return max(begin + each * count, self._seconds)

    def _fit(self) -> tuple[float, float] | None:
        """Seconds of a pass by itself, and of each."""
        spread = self._squares - self._count**2
        if spread <= self._count:
            return None
        each = (self._products - self._count * self._seconds) / spread
        begin = self._seconds - each * self._count
        return (begin, each) if each > 0 and begin >= 0 else None
