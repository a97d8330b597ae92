"""What RemoteEngine and its calls are given, checked before anything is sent, and written as requests need it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

from ..attributes import NAMES
from ..conversation import Control, Prompt, Sampling
from ..errors import MessageError, OptionError
from ..notices import notify
from .asking import coded
from .http import Limits
from .servers import Server

__all__ = [
    "body_of",
    "check_sampling",
    "checked_client",
    "checked_extra",
    "checked_headers",
    "checked_limits",
    "checked_retries",
    "checked_window",
    "fingerprint_of",
    "headers_with",
    "merged",
    "text_for",
    "warn_of_plain_http",
]

_OWN_KEYS: Final = frozenset(
    {"prompt", "inputs", "input_ids", "messages", "stream", "raw", "model", "n", "best_of", "echo", "suffix"}
)
_OWN_HEADERS: Final = frozenset({"content-type", "accept-encoding", "content-length", "transfer-encoding", "host"})
_CREDENTIALS: Final = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_LONGEST: Final = 1_000_000
_DEFAULT: Final = Sampling()


@functools.lru_cache(maxsize=256)
def warn_of_plain_http(origin: str) -> None:
    notify(f"the key is sent to {origin} without encryption; use https or a tunnel, or leave the key out")


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
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
            raise OptionError(f"timeouts[{name!r}] must be seconds above 0 and at most {_LONGEST}, got {value!r:.40}")
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
        if name.lower() in _OWN_HEADERS:
            raise OptionError(f"default_headers cannot set {name[:40]!r}: this class writes it")
        if (
            any(ord(one) < 32 or ord(one) in range(127, 160) or ord(one) > 255 for one in name + value)
            or not name.strip()
        ):
            raise OptionError(f"default_headers: {name[:40]!r} or its value holds a character that no header may hold")
    return dict(given or {})


def checked_extra(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of extra_body without the fields that are written here."""
    _mapping("extra_body", given or {})
    for name in given or {}:
        if name in _OWN_KEYS:
            raise OptionError(f"extra_body cannot set {name!r}: this class writes it")
    kwargs = (given or {}).get("chat_template_kwargs")
    dials = [name for name in kwargs if name in {"attributes", *NAMES}] if isinstance(kwargs, Mapping) else []
    if dials:
        raise OptionError(f"extra_body cannot set {dials[0]!r} in chat_template_kwargs; pass attributes= instead")
    return dict(given or {})


def merged(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The body with extra_body on top; mappings in both are merged in turn."""
    found = dict(body)
    for name, value in extra.items():
        below = found.get(name)
        found[name] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return found


def headers_with(standard: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The standard headers, replaced by own ones of the same name in any case."""
    names = {name.lower() for name in own}
    return {**{name: value for name, value in standard.items() if name.lower() not in names}, **own}


def fingerprint_of(settings: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """A digest of what can change a reply, for keys of caches.

    A header may choose the tenant or model that answers, and its value may be a secret: where there are some, the
    digest takes milliseconds, so that values cannot be tried out by the million. Headers that only say who asks are
    left out, as api_key is.
    """
    chosen = sorted((name.lower(), value) for name, value in headers.items() if name.lower() not in _CREDENTIALS)
    return hashlib.pbkdf2_hmac(
        "sha256", repr((settings, chosen)).encode(), b"karakuri", 10_000 if chosen else 1, 16
    ).hex()


def checked_client(name: str, client: Any, kind: str) -> Any:
    """A client of the user's own, of the class that is wanted."""
    if client is not None and kind.rpartition(".")[2] not in {base.__name__ for base in type(client).__mro__}:
        raise OptionError(f"{name} must be of the class {kind}, got {type(client).__name__}")
    return client


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


def check_sampling(server: Server, sampling: Sampling) -> None:
    """Raise OptionError for a field that the server does not know."""
    for one in fields(Sampling):
        if one.name in ("max_tokens", "timeout", "stop") or one.name in server.sampling:
            continue  # stop strings are cut here in any case
        if getattr(sampling, one.name) != getattr(_DEFAULT, one.name):
            raise OptionError(f"{server.name} does not know {one.name}; leave it out, or name another server=")


def text_for(prompt: Prompt, server: Server) -> str:
    """The prompt as text, without the BOS that the server adds."""
    segments = prompt.segments
    if server.adds_bos and segments and segments[0] == Control("<s>"):
        segments = segments[1:]
    return replace(prompt, segments=segments).text


def body_of(body: Mapping[str, Any]) -> bytes:
    """The body's bytes; what cannot be written is named."""
    try:
        return coded(body)
    except UnicodeEncodeError as error:
        raise MessageError(
            f"the text holds half a surrogate pair (U+{ord(error.object[error.start]):04X}), which is no character; "
            "decode the input with errors='replace'"
        ) from None
    except (TypeError, ValueError):
        raise OptionError("extra_body holds a value that JSON cannot write") from None
