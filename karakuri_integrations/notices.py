"""Warnings that point at the user's own line, through however many of our and a framework's functions a call goes.

A number of frames would not do: the same call comes straight, through langchain-core's `invoke`, or in a thread. What
is worth a warning is decided where it is noticed.
"""

from __future__ import annotations

import sys
import warnings
from typing import Final

__all__ = ["warn"]

#: Packages that stand between a user's line and ours.
_BETWEEN: Final = frozenset(
    {
        "karakuri_integrations", "langchain", "langchain_core", "langgraph", "llama_index",
        "llama_index_instrumentation", "workflows", "pydantic", "asyncio", "concurrent", "contextlib", "functools",
        "threading",
    }
)  # fmt: skip


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
