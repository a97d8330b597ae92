"""Addresses of servers: what a base_url may be, what of it may be shown, and the credentials that stood in it. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import OptionError

__all__ = ["Address", "addresses_of", "basic_authorisation", "origin_of", "split_credentials"]


#: What requests add to the address, as people copy it from a server's documentation.
_ROUTE: Final = re.compile(
    r"(?:(?<=/v1)/(?:models|chat|responses|embeddings|messages)|/(?:chat/)?completions?|/generate(?:_stream)?"
    r"|/api/(?:generate|chat|tags)|/tokenize|/invocations(?:-response-stream)?)/*$"
)


@dataclass(frozen=True)
class Address:
    """A base_url without `/v1`, and the user name and password that stood in it."""

    root: str
    credentials: str = ""

    def __repr__(self) -> str:
        return f"Address({self.root!r})"


def addresses_of(base_url: object) -> list[Address]:
    """The addresses of a base_url or a list of them.

    Raises:
        OptionError: an empty list, or one that is no http or https address.
    """
    if isinstance(base_url, str):
        return [_address(base_url)]
    if not isinstance(base_url, Sequence) or not base_url:
        raise OptionError("base_url must be an address such as http://localhost:8000/v1, or a list of such")
    return [_address(one) for one in base_url]


def _address(url: object) -> Address:
    parts = _split(url.strip()) if isinstance(url, str) else None
    try:
        good = parts and parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # a port that is no number
        good = False
    if not good or parts is None or parts.query or parts.fragment:
        raise OptionError(
            "base_url must be an http or https address without query and fragment, such as http://localhost:8000/v1; "
            f"got {_shown(url)}"
        )
    if route := _ROUTE.search(parts.path):
        right = origin_of(parts.geturl()) + parts.path[: route.start()]
        raise OptionError(f"base_url must end before the route {route.group().rstrip('/')}, which is added: {right}")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    credentials = ""
    if parts.username is not None or parts.password is not None:
        credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return Address(origin_of(parts.geturl()) + path, credentials)


def _shown(url: object) -> str:
    """What was given in place of an address, without what can hold a key: user name, password, query, fragment."""
    if not isinstance(url, str):
        return f"a {type(url).__name__}"
    if not url.strip():
        return f"{url[:8]!r}; is an environment variable not set?"
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        scheme, rest = "", scheme
    return repr(f"{scheme.rpartition('@')[2]}{separator}{re.split('[?#]', rest.rpartition('@')[2])[0]}"[:120])


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # its text would show a password
        return None


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL, without user, path and query."""
    parts = _split(url)
    if parts is None:
        return ""
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.scheme}://{host}{port}" if host else ""


def basic_authorisation(credentials: str) -> str:
    """The Authorization header of "user:password"."""
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def split_credentials(base_url: Any) -> tuple[Any, str | None]:
    """base_url as it may be shown, and the Authorization header of the credentials in it, if there are any.

    Raises:
        OptionError: as `addresses_of`; or several addresses with different credentials.
    """
    addresses = addresses_of(base_url)
    credentials = {one.credentials for one in addresses if one.credentials}
    if not credentials:
        return base_url, None
    if len(credentials) > 1:
        raise OptionError("the addresses in base_url have different user names or passwords; use default_headers")
    shown = [one.root for one in addresses]
    return shown[0] if isinstance(base_url, str) else shown, basic_authorisation(credentials.pop())
