"""The jobs that LocalEngine gives a worker: generate a reply, report what is loaded; and what their failures mean."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..conversation import Piece, Sampling, Usage
from ..errors import DeviceMemoryError, EngineError, KarakuriError, WorkerError
from .channel import Channel
from .decoding import Sequence
from .grammars import Constraint
from .loading import Report
from .tokens import Tokens

if TYPE_CHECKING:
    from .batching import Batch

__all__ = ["Generation", "Output", "Reporting", "out_of_memory", "translate"]


@dataclass(frozen=True, repr=False)
class Generation:
    """Continue a prompt by at most `limit` tokens.

    `max_batch` is with how many others at most, itself counted, it may share a pass; `cache_bytes` what may be kept of
    prompts and replies, this one's included, None what is usual for the model and 0 nothing, which reuses nothing
    either; `kv_cache_dtype` in what keys and values are held; `cuda_graphs` whether its passes may be recorded.
    """

    channel: Channel
    prompt_ids: list[int]
    sampling: Sampling
    limit: int
    eos: frozenset[int]
    tokens: Tokens
    constraint: Constraint | None = None
    max_batch: int = 1
    cache_bytes: int | None = 0
    prompt_lookup: bool = False
    kv_cache_dtype: str = "auto"
    cuda_graphs: bool = False

    @property
    def scope(self) -> tuple[str, str | None]:
        """Who may share what is kept of it."""
        return self.kv_cache_dtype, self.sampling.cache_scope

    @property
    def keeps(self) -> bool:
        """Whether it reuses what was kept and is kept itself."""
        return self.cache_bytes != 0

    def run(self, batch: Batch) -> None:
        batch.join(self)

    def fits(self, batch: Batch) -> bool:
        return batch.has_room(self)


class Output:
    """What a generation's tokens become in its channel."""

    def __init__(self, job: Generation, sequence: Sequence) -> None:
        self._job, self._sequence = job, sequence
        self._text = job.tokens.text_stream()
        self._made = 0

    def put(self, tokens: list[int]) -> bool:
        """A Piece for each token; whether the reply has ended."""
        job, sequence = self._job, self._sequence
        for place, token in enumerate(tokens, 1):
            self._made += 1
            usage = Usage(len(job.prompt_ids), self._made, sequence.reused)
            if token in job.eos:
                return self._end(Piece("", usage, "length" if sequence.ended_early else "stop"))
            piece = self._text.push(token)
            if self._made == job.limit:
                whole = sequence.complete and place == len(tokens)
                return self._end(Piece(piece, usage, "stop" if whole else "length"))
            job.channel.put(Piece(piece, usage, None))
        return False

    def _end(self, piece: Piece) -> bool:
        self._job.channel.put(piece)
        self._job.channel.put(None)
        return True


@dataclass(frozen=True, repr=False)
class Reporting:
    """Load the model if it is not, and note what it is. `kv_cache_dtype` is that of the calls which will follow."""

    channel: Channel
    kv_cache_dtype: str = "auto"
    found: list[Report] = field(default_factory=list)

    def run(self, batch: Batch) -> None:
        self.found.append(batch.report)
        self.channel.put(None)

    def fits(self, batch: Batch) -> bool:
        return True


def translate(error: BaseException) -> tuple[EngineError, Callable[[], None]]:
    """The error to raise for what went wrong in a worker, and what cleans up after it."""
    _let_go(error)
    if isinstance(error, EngineError):
        return error, _nothing
    if isinstance(error, KarakuriError):
        return _caused(error), _nothing
    if out_of_memory(error):
        # Not the cause: a live exception keeps the tensors of its frames.
        return (
            DeviceMemoryError(
                "the device ran out of memory while generating; shorten the prompt, lower max_tokens, or load the "
                "model in fewer bits. The model stays loaded and the next call works"
            ),
            _free_memory,
        )
    return _caused(error), _nothing


def _let_go(error: BaseException | None) -> None:
    """Take from an error the frames of the worker: they hold the model, for as long as somebody keeps the error.

    Where it was is noted as text, without messages and values. Frames that still run cannot be cleared.
    """
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if error.__traceback__ is not None:
            if not isinstance(error, KarakuriError):
                error.add_note("In the engine's worker:\n" + "".join(traceback.format_tb(error.__traceback__)))
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _caused(error: BaseException) -> WorkerError:
    failure = WorkerError(f"the engine's worker failed ({type(error).__name__}); call again, and report it if it stays")
    failure.__cause__ = error
    return failure


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that a device's memory, or the machine's, is full."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "OutOfMemoryError" in kinds or isinstance(error, MemoryError):
        return True
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return "out of memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # it is only good to have, and this may be behind another error
            torch.cuda.empty_cache()


def _nothing() -> None: ...
