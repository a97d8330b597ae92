"""One reply in a batch, and what of its prompt others read as well. Knows ids and lengths; no model and no tensors."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Any, Final

import numpy as np

from .decoding import Sequence
from .generating import Generation, Output
from .guessing import Guesser
from .prefixes import common

__all__ = ["WORTH", "Row"]

WORTH: Final = 16  # a shared beginning of fewer tokens is read again


class Row:
    """`age` counts those that came before it. `begun`: it has taken what others had read of its prompt.

    `counted`: how much that was is noted, when it began for the first time.
    """

    def __init__(self, job: Generation, age: int, guessers: Ids[Guesser]) -> None:
        self.job, self.age = job, age
        self.sequence = Sequence(job.prompt_ids, job.sampling, job.limit, job.eos, job.constraint, guessers)
        self.output = Output(job, self.sequence)
        self.begun = self.counted = self.failed = False

    @property
    def stopped(self) -> bool:
        """Nobody waits for it any more, or its time is over."""
        channel = self.job.channel
        if not channel.cancelled and channel.deadline.passed:
            channel.put(channel.deadline.error())
            channel.cancel()
        return channel.cancelled

    def put_back(self) -> None:
        """It has no keys and values any more."""
        self.sequence.forget()
        self.sequence.read = 0
        self.begun = False

    def shared(self, other: Row, length: int | None = None) -> int:
        """How many of another's ids, but its last one, these begin with; 0 where it may not take them, or they are few.

        `length`: of these the first so many, which have been read.
        """
        if other.job.scope != self.job.scope or not (other.job.keeps and self.job.keeps):
            return 0
        if self.sequence.ids[:WORTH] != other.sequence.ids[:WORTH]:
            return 0
        return common(_array(self.sequence.ids[:length]), _array(other.sequence.ids[:-1]))

    def ahead_of(self, other: Row) -> bool:
        """Whether another that waits is better read behind this one, whose unread ids it has too, than beside it."""
        return not other.begun and self.shared(other) - self.sequence.read >= WORTH


def _array(ids: Ids[int]) -> Any:
    return np.asarray(ids, np.int64)
