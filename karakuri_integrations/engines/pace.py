"""How much of a prompt is read between two tokens of the replies that are made beside it. Knows durations only."""

from __future__ import annotations

from typing import Final

from . import decoding

__all__ = ["Pace"]

_LEAST_CHUNK: Final = 32
_SLICE: Final = 2.0  # steps that a chunk of a prompt may take while others wait for their next token


class Pace:
    """How long a step and the reading of a prompt take, so that reading does not hold up those who wait for a token."""

    def __init__(self) -> None:
        self._step = self._token = 0.0  # seconds

    def chunk(self, others: bool) -> int:
        """Prompt tokens to read now."""
        if not others or not self._step or not self._token:
            return decoding.PREFILL_CHUNK
        return max(
            min(int(_SLICE * self._step / self._token), decoding.PREFILL_CHUNK),
            min(_LEAST_CHUNK, decoding.PREFILL_CHUNK),
        )

    def read(self, tokens: int, seconds: float) -> None:
        self._token = _mean(self._token, seconds / tokens)

    def stepped(self, seconds: float) -> None:
        self._step = _mean(self._step, seconds)


def _mean(before: float, now: float) -> float:
    """Of the last few."""
    return now if not before else 0.8 * before + 0.2 * now
