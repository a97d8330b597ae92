"""The proxy that requests to a URL go through, as the environment says: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as urllib
reads them. Where the system itself has such settings, they are read once per process and host.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

__all__ = ["proxy_of"]

#: What urllib looks at, in its usual spellings.
_NAMES: Final = (
    "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD",
)  # fmt: skip


def proxy_of(url: str) -> str:
    """The proxy's address; "" where there is none.

    urllib goes through all of the environment twice, which every request would pay for; it is asked again when a
    variable that it looks at has changed.
    """
    parts = urlsplit(url)
    return _asked(parts.scheme, parts.hostname, tuple(os.environ.get(name) for name in _NAMES))


@lru_cache(maxsize=256)
def _asked(scheme: str, host: str | None, _variables: tuple[str | None, ...]) -> str:
    from urllib.request import getproxies, proxy_bypass  # not at the top: it takes longer than this package

    if not host or proxy_bypass(host):
        return ""
    return getproxies().get(scheme) or ""
