"""The Engine protocol, and stream()/astream(): the only place that joins an engine's pieces and the reply decoder.

Everything above works on deltas; everything below on pieces. The two functions are the only twins of the package.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any, Protocol, cast, runtime_checkable

from .closing import aclosing
from .conversation import Delta, Piece, Prompt, Reply, Sampling
from .errors import EngineError
from .reply import Decoder
from .templates import Family

__all__ = ["Engine", "astream", "fold", "stream"]


@runtime_checkable
class Engine(Protocol):
    """Continues prompts. Implementations are safe to share between threads, event loops and both frameworks.

    `stream` and `astream` yield Pieces of raw text; the last one carries `finish_reason`, and every one the usage so
    far. Closing the iterator stops the compute. Errors are KarakuriErrors. An engine checks its own window and raises
    ContextOverflowError before any compute; it honours `Sampling.timeout`; it may ignore `Sampling.stop`, which
    the decoder applies to the text in any case. It holds the reply to `Prompt.grammar`, or says in its property
    `grammars` (False) that it cannot, and raises UnsupportedError where the grammar is strict. Where its `stream`
    and `astream` have an argument `whole`, that is True when nobody looks at the reply before its end, and they may
    then yield later, and fewer pieces.
    """

    @property
    def model(self) -> str:
        """The model's public id, never a path."""
        ...

    @property
    def family(self) -> Family:
        """The prompt family; known without loading weights."""
        ...

    @property
    def context_window(self) -> int:
        """Tokens of prompt and reply together; known without loading weights."""
        ...

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Piece]: ...

    def astream(self, prompt: Prompt, sampling: Sampling) -> AsyncIterator[Piece]: ...

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of the prompt as it would be sent; loads a tokenizer at most."""
        ...

    def token_ids(self, text: str) -> list[int]:
        """Token ids of plain text, without BOS; loads a tokenizer at most."""
        ...

    def close(self) -> None:
        """Free what is held; the next call opens it again."""
        ...


def stream(engine: Engine, prompt: Prompt, sampling: Sampling, *, whole: bool = False) -> Iterator[Delta]:
    """The reply to a prompt, delta by delta; the last one carries finish_reason and usage.

    `whole`: nobody looks at it before its end, so all deltas may come then.
    """
    decoder = Decoder(prompt, sampling.stop)
    how = _how(engine.stream, sampling, whole=whole)
    with closing(cast("_Closing", engine.stream(prompt, sampling, **how))) as pieces:
        try:
            for piece in cast("Iterator[Piece]", pieces):
                yield from decoder.push(piece)
                if decoder.done:
                    return
        except EngineError as error:
            raise _with_text(error, decoder) from error.__cause__
    raise _unfinished(decoder)


async def astream(engine: Engine, prompt: Prompt, sampling: Sampling, *, whole: bool = False) -> AsyncIterator[Delta]:
    """As `stream`, natively async."""
    decoder = Decoder(prompt, sampling.stop)
    how = _how(engine.astream, sampling, whole=whole)
    async with aclosing(cast("_AsyncClosing", engine.astream(prompt, sampling, **how))) as pieces:
        try:
            async for piece in cast("AsyncIterator[Piece]", pieces):
                for delta in decoder.push(piece):
                    yield delta
                if decoder.done:
                    return
        except EngineError as error:
            raise _with_text(error, decoder) from error.__cause__
    raise _unfinished(decoder)


def fold(deltas: Iterable[Delta]) -> Reply:
    """The whole answer of a finished stream."""
    parts = list(deltas)
    last = parts[-1]
    return Reply("".join(d.text for d in parts), last.finish_reason or "stop", last.usage, last.calls)


def _how(method: object, sampling: Sampling, *, whole: bool) -> dict[str, bool]:
    """A reply that a stop text may end has to be looked at, so that the engine stops there."""
    return {"whole": True} if whole and not sampling.stop and _takes_whole(getattr(method, "__func__", method)) else {}


@lru_cache(maxsize=64)
def _takes_whole(method: Any) -> bool:
    return "whole" in inspect.signature(method).parameters


class _Closing(Protocol):
    def close(self) -> object: ...


class _AsyncClosing(Protocol):
    async def aclose(self) -> object: ...


def _with_text(error: EngineError, decoder: Decoder) -> EngineError:
    error.partial_text = decoder.received
    return error


def _unfinished(decoder: Decoder) -> EngineError:
    return _with_text(
        EngineError("the engine's stream ended without a finish reason; `.partial_text` holds what it sent"), decoder
    )
