"""The jobs that LocalEngine gives a worker: generate a reply, report what is loaded; and what their failures mean."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

from ..conversation import FinishReason, Piece, Sampling, Usage
from ..errors import DeviceMemoryError, EngineError, KarakuriError, WorkerError
from .channel import Channel
from .decoding import Sequence
from .grammars import Constraint
from .loading import Loaded, Report
from .tokens import Tokens

__all__ = ["Generation", "Reporting", "translate"]


@dataclass(frozen=True, repr=False)
class Generation:
    """Continue a prompt by at most `limit` tokens. `stepped` is called after each forward pass."""

    channel: Channel
    prompt_ids: list[int]
    sampling: Sampling
    limit: int
    eos: frozenset[int]
    tokens: Tokens
    stepped: Callable[[], None]
    constraint: Constraint | None = None

    def run(self, loaded: Loaded) -> None:
        sequence = Sequence(loaded.model, self.prompt_ids, self.sampling, self.limit, self.constraint, self.stepped)
        while sequence.unread:
            if self._stopped():
                return
            sequence.prefill()
        text = self.tokens.text_stream()
        for made in range(1, self.limit + 1):
            if self._stopped():
                return
            token = sequence.next_token()
            usage = Usage(len(self.prompt_ids), made)
            if token in self.eos:
                self.channel.put(Piece("", usage, "length" if sequence.ended_early else "stop"))
                break
            last: FinishReason = "stop" if sequence.complete else "length"
            self.channel.put(Piece(text.push(token), usage, last if made == self.limit else None))
        self.channel.put(None)

    def _stopped(self) -> bool:
        if self.channel.deadline.passed:
            self.channel.put(self.channel.deadline.error())
            return True
        return self.channel.cancelled


@dataclass(frozen=True, repr=False)
class Reporting:
    """Load the model if it is not, and note what it is."""

    channel: Channel
    found: list[Report] = field(default_factory=list)

    def run(self, loaded: Loaded) -> None:
        self.found.append(loaded.report)
        self.channel.put(None)


def translate(error: BaseException) -> tuple[EngineError, Callable[[], None]]:
    """The error to raise for what went wrong in a worker, and what cleans up after it."""
    if isinstance(error, EngineError):
        return error, _nothing
    if isinstance(error, KarakuriError):
        return _caused(error), _nothing
    if _out_of_memory(error):
        # Not the cause: a live exception keeps the tensors of its frames.
        return (
            DeviceMemoryError(
                "the device ran out of memory while generating; shorten the prompt, lower max_tokens, or load the "
                "model in fewer bits. The model stays loaded and the next call works"
            ),
            _free_memory,
        )
    return _caused(error), _nothing


def _caused(error: BaseException) -> WorkerError:
    failure = WorkerError(f"the engine's worker failed ({type(error).__name__}); call again, and report it if it stays")
    failure.__cause__ = error
    return failure


def _out_of_memory(error: BaseException) -> bool:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "OutOfMemoryError" in kinds or isinstance(error, MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return "out of memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _nothing() -> None: ...
