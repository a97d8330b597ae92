"""Endpoints of Amazon SageMaker: the signature of a request and the framing of its reply, both by botocore.

The requests themselves travel as every other's do (`http`); what a container says inside the frames is the record
"sagemaker" in `servers`. Credentials come from botocore's default chain: environment, profile, role.
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from ..errors import MissingDependencyError, OptionError
from .sse import Lines, Raw, ServerSentEvents

__all__ = ["EventStream", "sign"]

_SERVICE: Final = "sagemaker"  # the signing name in botocore's service model of sagemaker-runtime
_REGION: Final = re.compile(r"(?:^|\.)runtime(?:-fips)?\.sagemaker(?:-fips)?\.([a-z0-9-]+)\.")
_LIMIT: Final = 8 * 1024 * 1024


def _botocore(module: str) -> Any:
    try:
        return import_module(f"botocore.{module}")
    except ImportError as error:
        raise MissingDependencyError(
            'Amazon SageMaker endpoints need botocore: pip install "karakuri-integrations[sagemaker]"'
        ) from error


# --- requests -------------------------------------------------------------------------------------------------------


def sign(method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    """The headers with AWS Signature Version 4; good for one request within a few minutes, so each try is signed anew.

    Content-Type and the headers of AWS are signed, the others are sent as they are; an Authorization header is
    replaced. Reading credentials may read files or ask AWS, so an event loop calls this in a thread.

    Raises:
        MissingDependencyError: botocore is not installed.
        OptionError: no credentials, or no region in the address.
    """
    auth, awsrequest = _botocore("auth"), _botocore("awsrequest")
    own = {name: value for name, value in headers.items() if _is_signed(name)}
    request = awsrequest.AWSRequest(method=method, url=url, data=body, headers=own)
    auth.SigV4Auth(_credentials(), _SERVICE, _region(url)).add_auth(request)
    others = {name: value for name, value in headers.items() if name not in own and name.lower() != "authorization"}
    return {**others, **dict(request.headers.items())}


def _is_signed(name: str) -> bool:
    return name.lower() == "content-type" or name.lower().startswith(("x-amz-", "x-amzn-"))


def _region(url: str) -> str:
    """The region in the address; for another host, such as a proxy, the environment's."""
    found = _REGION.search(urlsplit(url).hostname or "")
    region = found[1] if found else _session(os.getpid()).get_config_variable("region")
    if not region:
        raise OptionError(
            "no AWS region: base_url must be https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME, or set "
            "AWS_DEFAULT_REGION"
        )
    return str(region)


def _credentials() -> Any:
    """As they stand now: botocore renews those that expire."""
    advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or run with a role"
    try:
        found = _session(os.getpid()).get_credentials()
        if found is None:
            raise OptionError(f"no AWS credentials were found: {advice}")
        return found.get_frozen_credentials()
    except _botocore("exceptions").BotoCoreError as error:
        raise OptionError(f"the AWS credentials cannot be used ({type(error).__name__}): {advice}") from error


@functools.lru_cache(maxsize=1)
def _session(_process: int) -> Any:
    """One per process; its credentials are looked up once."""
    return _botocore("session").get_session()


# --- replies --------------------------------------------------------------------------------------------------------


class EventStream:
    """application/vnd.amazon.eventstream to the container's events, with the interface of `sse.ServerSentEvents`.

    TGI's container sends server-sent events inside, DJL's JSON lines; the first byte tells. AWS's own errors become an
    event of the shape {"error": ...}, and bytes that are no event stream one that is no JSON.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self._module = _botocore("eventstream")
        self._buffer = self._module.EventStreamBuffer()
        self._limit = limit
        self._inner: Lines | ServerSentEvents | None = None

    def push(self, chunk: bytes) -> list[Raw]:
        """The events that this chunk completes.

        Raises:
            EventTooLargeError: an event exceeds the limit.
        """
        found: list[Raw] = []
        try:
            self._buffer.add_data(chunk)
            for message in self._buffer:
                found += self._message(message.headers, message.payload)
        except (self._module.ParserError, KeyError, ValueError, struct.error):
            found.append(("", b"no event stream of AWS"))
        return found

    def end(self) -> list[Raw]:
        """The last event, where it only lacks its line end."""
        return self._inner.end() if self._inner else []

    def _message(self, headers: Mapping[str, Any], payload: bytes) -> list[Raw]:
        kind = headers.get(":message-type")
        if kind == "exception":  # ModelStreamError, InternalStreamFailure
            return [_error(str(headers.get(":exception-type")), _message_of(payload))]
        if kind == "error":
            return [_error(str(headers.get(":error-code")), str(headers.get(":error-message")))]
        return self._part(payload) if headers.get(":event-type") == "PayloadPart" else []

    def _part(self, payload: bytes) -> list[Raw]:
        if self._inner is None and payload.strip():
            lines = payload.lstrip()[:1] == b"{"
            self._inner = Lines(self._limit) if lines else ServerSentEvents(self._limit)
        return self._inner.push(payload) if self._inner else []


def _error(kind: str, text: str) -> Raw:
    return "error", json.dumps({"error": {"message": text or kind, "type": kind}}).encode()


def _message_of(payload: bytes) -> str:
    try:
        said = json.loads(payload)
    except ValueError:
        return payload.decode("utf-8", "replace")
    return str(said.get("Message") or said.get("message") or "") if isinstance(said, dict) else str(said)
