"""When a failed try may be repeated, and after how long; the one retry layer of the package is built on it.

The rules are openai-python's (https://github.com/openai/openai-python, `_base_client.py`): Retry-After is obeyed from
above 0 to 120 seconds, a longer one means no retry, a broken one is ignored; otherwise 0.5 s doubled each time, at most
8 s, less up to a quarter by chance. `x-should-retry` wins over the status.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

__all__ = ["backoff", "log_retry", "may_retry", "retry_after"]

_log = logging.getLogger("karakuri_integrations")

_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LONGEST: Final = 120.0


def may_retry(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an HTTP status allows another try."""
    said = (headers.get("x-should-retry") or "").lower()
    if said in ("true", "false"):
        return said == "true"
    asked = retry_after(headers)
    return status in _RETRIED and (asked is None or asked <= _LONGEST)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, also above the limit; None where it says nothing usable."""
    for value in (_milliseconds(headers.get("retry-after-ms")), _seconds(headers.get("retry-after"))):
        if value is not None and math.isfinite(value) and value > 0:
            return value
    return None


def _milliseconds(text: str | None) -> float | None:
    value = _float(text)
    return None if value is None else value / 1000


def _seconds(text: str | None) -> float | None:
    value = _float(text)
    if value is not None or not text:
        return value
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def backoff(tried: int, asked: float | None = None) -> float:
    """Seconds before the next try after `tried` tries; `asked` is the server's own figure."""
    if asked is not None and 0 < asked <= _LONGEST:
        return asked
    return min(8.0, 0.5 * 2.0 ** min(tried - 1, 10)) * (1 - 0.25 * random.random())  # noqa: S311  # no secret


def log_retry(failed: int | BaseException, url: str, tried: int, seconds: float) -> None:
    """Say in the log that a try, the `tried`-th, is repeated: its status or kind of error, and never what was said.

    `url` is an endpoint's, without credentials and query.
    """
    what = f"HTTP {failed}" if isinstance(failed, int) else type(failed).__name__
    _log.info("%s from %s; try %d in %.1f s", what, url, tried + 1, seconds)
