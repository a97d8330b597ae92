"""Our errors as langchain-core's: what ChatKarakuri raises belongs to both trees.

Knows which of langchain-core's `ModelError` classes each of ours is, and whether asking again can help. The errors
themselves live in `errors`. `with_retry`, `with_fallbacks` and LangChain's middleware look at langchain-core's classes;
`except karakuri_integrations.errors.BusyError` works just as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from langchain_core import exceptions as core

from . import errors as ours

__all__ = ["as_core_error", "core_errors"]

#: (our class, langchain-core's class, may the same call succeed when repeated); subclasses of ours inherit the line.
_TABLE: Final[tuple[tuple[type[ours.KarakuriError], type[core.ModelError], bool], ...]] = (
    (ours.KarakuriError, core.ModelError, False),
    (ours.InputError, core.ModelInvalidRequestError, False),
    (ours.UnknownModelError, core.ModelNotFoundError, False),
    (ours.ContextOverflowError, core.ContextOverflowError, False),
    (ours.UnsupportedError, core.ModelInvalidRequestError, False),
    (ours.EngineError, core.ModelAPIError, True),
    (ours.ModelLoadError, core.ModelAPIError, False),
    (ours.ModelFolderError, core.ModelNotFoundError, False),
    (ours.BusyError, core.ModelRateLimitError, True),
    (ours.DeadlineError, core.ModelTimeoutError, True),
    (ours.NumericalError, core.ModelAPIError, False),
    (ours.ForkedProcessError, core.ModelAPIError, False),
    (ours.ScriptError, core.ModelAPIError, False),
    (ours.RemoteError, core.ModelAPIError, False),
    (ours.RemoteConnectionError, core.ModelConnectionError, True),
    (ours.StreamInterruptedError, core.ModelConnectionError, True),
    (ours.RemoteTimeoutError, core.ModelTimeoutError, True),
    (ours.RemoteStreamError, core.ModelAPIError, True),
    (ours.ServerFaultError, core.ModelAPIError, True),
    (ours.RateLimitError, core.ModelRateLimitError, True),
    (ours.AuthenticationError, core.ModelAuthenticationError, False),
    (ours.AccessDeniedError, core.ModelPermissionDeniedError, False),
    (ours.EndpointNotFoundError, core.ModelNotFoundError, False),
    (ours.RemoteRequestError, core.ModelInvalidRequestError, False),
    (ours.RemoteContextOverflowError, core.ContextOverflowError, False),
)


@lru_cache(maxsize=64)
def _joined(cls: type[ours.KarakuriError]) -> type[ours.KarakuriError]:
    """A class that is both `cls` and the langchain-core class of its nearest ancestor in the table."""
    table = {mine: (theirs, again) for mine, theirs, again in _TABLE}
    theirs, again = next(table[base] for base in cls.__mro__ if base in table)
    body = {
        "__doc__": cls.__doc__,
        "__module__": cls.__module__,
        "is_retryable": again,
        "__reduce__": _reduce,
        "plain_class": cls,
    }
    return type(cls.__name__, (cls, theirs), body)


def _reduce(error: Any) -> tuple[object, ...]:
    """Pickled as the plain error of our tree, and joined again when loaded."""
    return as_core_error, (_moved(error, error.plain_class),)


def _moved(error: BaseException, cls: type[ours.KarakuriError]) -> ours.KarakuriError:
    """The same error in another class: arguments and attributes move over, no constructor runs."""
    moved = cls.__new__(cls, *error.args)
    moved.args = error.args
    moved.__dict__.update(error.__dict__)
    return moved


def as_core_error(error: ours.KarakuriError) -> ours.KarakuriError:
    """The error as one that is also langchain-core's; every attribute (`index`, `partial_text`, ...) stays."""
    if isinstance(error, core.ModelError):
        return error
    kind: Any = type(error)  # Any: some versions of mypy hold that a class cannot be hashed
    joined = _moved(error, _joined(kind))
    return joined.with_traceback(error.__traceback__)


@contextmanager
def core_errors() -> Iterator[None]:
    """Raise errors of our tree as langchain-core's as well."""
    try:
        yield
    except ours.KarakuriError as error:
        raise as_core_error(error) from error.__cause__
