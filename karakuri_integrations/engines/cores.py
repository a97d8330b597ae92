"""How many threads a forward pass gets on a CPU: as many as were measured to be fastest for its number of tokens.

A pass of a small model is hundreds of operations of a few microseconds. Where OpenMP's threads have to be woken for
each of them (GNU's no longer wait awake once the process has more of them than cores, as with an embedding model in
another thread, or after a call of torch in the main thread), one thread alone is faster. Knows durations only.

The threads divide the rows of a matrix, so products are the same to the last bit; of attention in fp32, one new token
behind hundreds of others, the last bits can differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Cores"]

_TRIAL: Final = 4  # passes with another number; the first of them is not counted
_SOON: Final = 6  # passes before the first trial, and the first after what is best has changed
_RARELY: Final = 768  # and between two at most
_SLOWER: Final = 2  # times as long as when it was chosen: the machine does something else, too


class Cores:
    """Chooses for each pass among `most` threads, half of them and so on to one, and tries the next one now and then.

    The next one only: of a large model a pass on one core of many would take as long as many passes.

    Args:
        most: threads that there are.
        use: makes what the calling thread computes next run on so many threads.
    """

    def __init__(self, most: int, use: Callable[[int], None]) -> None:
        self._most, self._use = most, use
        self._kinds: dict[int, _Kind] = {}

    def begin(self, tokens: int) -> None:
        """A pass over so many tokens (rows times columns) comes next."""
        kind = self._kinds.get(_rounded(tokens))
        self._use(self._most if kind is None else kind.threads)

    def took(self, tokens: int, seconds: float) -> None:
        """It is done."""
        tokens = _rounded(tokens)
        if tokens not in self._kinds:
            self._kinds[tokens] = _Kind(self._most)  # the first pass of a kind warms up
        else:
            self._kinds[tokens].took(seconds)


def _rounded(tokens: int) -> int:
    """To two binary digits, as prompts are hardly ever of the same length."""
    drop = max(0, tokens.bit_length() - 2)
    return tokens >> drop << drop


class _Kind:
    """Passes over about the same number of tokens."""

    def __init__(self, most: int) -> None:
        self.threads = most
        self._steps = [one for one in (most >> n for n in range(most.bit_length())) if one]
        self._means: dict[int, float] = {}
        self._passes = 0  # since the last trial, or in this one
        self._pause = _SOON
        self._chosen = most  # what was best; during a trial, before it
        self._trying = False
        self._expected = 0.0  # seconds, as measured when it was chosen
        self._towards = 1  # fewer threads

    def took(self, seconds: float) -> None:
        self._passes += 1
        if not (self._trying and self._passes == 1):
            before = self._means.get(self.threads, seconds)
            self._means[self.threads] = before + (seconds - before) / (2 if self._trying else 4)
        if self._trying and self._passes >= _TRIAL:
            self._decide()
        elif not self._trying and self._passes >= (_SOON if self._worse() else self._pause):
            self._try_next()

    def _worse(self) -> bool:
        return 0 < self._expected * _SLOWER < self._means[self.threads]

    def _try_next(self) -> None:
        place = self._steps.index(self.threads) + self._towards
        if not 0 <= place < len(self._steps):
            self._towards = -self._towards
            place += 2 * self._towards
        self.threads = self._steps[place]
        self._means.pop(self.threads, None)  # the machine may be another by now
        self._passes, self._trying = 0, True

    def _decide(self) -> None:
        if self._means[self.threads] < self._means[self._chosen]:
            self._pause = _SOON
        else:
            self.threads = self._chosen
            self._towards = -self._towards
            self._pause = min(2 * self._pause, _RARELY)
        self._chosen, self._expected = self.threads, self._means[self.threads]
        self._passes, self._trying = 0, False
