"""The arguments of RemoteEngine beside the address: checked before anything is sent."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from ..errors import OptionError
from .http import Limits

__all__ = [
    "checked_extra",
    "checked_headers",
    "checked_limits",
    "checked_retries",
    "checked_window",
    "warn_of_plain_http",
]

_OWN_KEYS: Final = frozenset({"prompt", "inputs", "input_ids", "messages", "stream", "raw"})


@functools.lru_cache(maxsize=256)
def warn_of_plain_http(origin: str) -> None:
    warnings.warn(
        f"the key is sent to {origin} without encryption; use https or a tunnel, or leave the key out",
        UserWarning,
        stacklevel=2,
    )


def checked_limits(timeouts: Mapping[str, Any] | Limits | None) -> Limits:
    """Seconds by stage, as Limits."""
    if timeouts is None or isinstance(timeouts, Limits):
        return timeouts or Limits()
    _mapping("timeouts", timeouts)
    names = [one.name for one in fields(Limits) if one.name != "total"]
    for name, value in timeouts.items():
        if name not in names:
            raise OptionError(
                f"timeouts has no {name[:40]!r}; it has {', '.join(names)}, and timeout= is the whole call's"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise OptionError(f"timeouts[{name!r}] must be seconds above 0, got {value!r:.40}")
    return Limits(**{name: float(value) for name, value in timeouts.items()})


def _mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise OptionError(f"{name} must be a mapping, got a {type(value).__name__}")


def checked_headers(given: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of the headers; no value is shown in an error."""
    _mapping("default_headers", given or {})
    for name, value in (given or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise OptionError("default_headers: names and values must be text")
        if any(ord(one) < 32 or ord(one) == 127 for one in name + value) or not name.strip():
            raise OptionError(f"default_headers: {name[:40]!r} or its value holds a character that no header may hold")
    return dict(given or {})


def checked_extra(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of extra_body without the fields that are written here."""
    _mapping("extra_body", given or {})
    for name in given or {}:
        if name in _OWN_KEYS:
            raise OptionError(f"extra_body cannot set {name!r}: this class writes it")
    return dict(given or {})


def checked_retries(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(f"max_retries must be an integer of at least 0, got {value!r:.40}")
    return value


def checked_window(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"context_window must be an integer of at least 1, got {value!r:.40}")
    return value
