"""What users must be told: a line in the log, and a warning that points at their own line.

A number of frames would not find it: the same call comes straight, through langchain-core's `invoke`, or in a thread.
What is worth a notice is decided where it is noticed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from typing import Final

__all__ = ["notify", "warn"]

_log = logging.getLogger("karakuri_integrations")
_log.addHandler(logging.NullHandler())  # where nobody listens, the warning alone is shown

#: Packages that stand between a user's line and ours.
_BETWEEN: Final = frozenset(
    {
        "karakuri_integrations", "langchain", "langchain_core", "langgraph", "llama_index",
        "llama_index_instrumentation", "workflows", "pydantic", "asyncio", "concurrent", "contextlib", "functools",
        "threading",
    }
)  # fmt: skip


def notify(message: str) -> None:
    """Tell the user, in the log and as a warning, without ever failing the call that noticed it."""
    _log.warning("%s", message)
    # Under a filter that makes warnings errors the log line must do: a load in a worker thread goes on.
    with contextlib.suppress(UserWarning):
        warn(message)


def warn(message: str) -> None:
    """A UserWarning at the nearest line that is neither ours nor a framework's; in a thread without one, at ours."""
    nearest = frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        if frame.f_back is None:
            frame = nearest
            break
        frame = frame.f_back
    module, registry = frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)
