"""The fields of KarakuriLLM: checks, copies, sizes, pickling; from the fields to a Provider. No messages, no calls."""

from __future__ import annotations

import functools
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import SecretStr, ValidationError

from .attributes import AttributePolicy, SteeringAttributes
from .conversation import Message, Request, Sampling
from .errors import OptionError, UnsupportedError
from .provider import SAMPLING_FIELDS, EngineFields, Provider, authorised, without_credentials
from .templates import FAMILIES, Family, render

__all__ = [
    "NOT_PICKLED",
    "can_pickle",
    "checked_address",
    "checked_path",
    "checked_text",
    "first_error",
    "plain_attributes",
    "provider_of",
    "secret",
    "turn_overhead",
    "usable_window",
]

_log = logging.getLogger("karakuri_integrations")


#: What stays behind when a model is pickled.
NOT_PICKLED = ("api_key", "default_headers", "http_client", "http_async_client")


def checked_address(values: Mapping[str, Any]) -> dict[str, Any]:
    """base_url without the credentials in it, which become a header."""
    if values.get("base_url") is None:
        return {}
    shown, authorisation = without_credentials(values["base_url"])
    if authorisation is None:
        return {"base_url": shown}
    if values.get("api_key"):
        raise OptionError("base_url holds a user name and password and api_key is given; give one of them")
    headers = authorised(values.get("default_headers"), authorisation)
    return {"base_url": shown, "default_headers": headers, "api_key": None}


def secret(value: str | None) -> SecretStr | None:
    return SecretStr(value) if value else None


def plain_attributes(attributes: Any) -> dict[str, int]:
    """A checked copy as a plain dict; an object replaces all nine, so all nine are kept."""
    checked = SteeringAttributes.overlay(attributes)
    return dict(checked) if isinstance(attributes, SteeringAttributes) else {name: checked[name] for name in attributes}


def checked_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{name} must be text, got a {type(value).__name__}")
    return value


def checked_path(value: object, name: str) -> str:
    return checked_text(os.fspath(value) if isinstance(value, os.PathLike) else value, name)


def first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'fields'}: {first['msg']}"


def provider_of(values: Mapping[str, Any]) -> Provider:
    return Provider(
        fields=EngineFields(**{field.name: values[field.name] for field in fields(EngineFields)}),
        attributes=values["attributes"],
        sampling=Sampling(**{name: values[name] for name in SAMPLING_FIELDS}),
        policy=AttributePolicy(values["message_attributes"], values["attribute_bounds"]),
        template_tokens=values["template_tokens"],
        overflow=values["overflow"],
        tool_language=values["tool_language"],
    )


def usable_window(provider: Provider) -> int:
    """The window less one turn's template; the least of all families' where the family is not known yet."""
    if provider.family_at_hand():
        engine = provider.engine()
        return max(1, engine.context_window - turn_overhead(engine.family))
    window = provider.fields.context_window
    return min((window or family.context_window) - turn_overhead(family) for family in FAMILIES.values())


@functools.lru_cache(maxsize=16)
def turn_overhead(family: Family) -> int:
    """At most so many tokens does the template add to one turn with a system text.

    Counted without a tokenizer, which may not be on this machine: the template is ASCII, and no tokenizer makes more
    than one token of an ASCII character. The real count is about half; the difference pays for text that takes more
    tokens within a prompt than alone.
    """
    shown = render(Request((Message("system", "s"), Message("user", "u"))), family)
    return sum(len(part) if isinstance(part, str) else 1 for part in shown.segments) - len("su")


def can_pickle(name: str, value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception as error:  # pickle raises whatever the value raises
        if name == "engine":
            raise UnsupportedError(
                f"engine= holds a {type(value).__name__}, which cannot be pickled; "
                "pass model= instead, or build the model anew where it is needed"
            ) from error
        _log.warning("%s cannot be pickled and is left out", name)
        return False
    return True
