"""The constructor's fields and a call's options as LangChain passes them, checked by the core's own rules.

Knows LangChain's other names for our fields and what the model's profile says. The rules are the core's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from langchain_core.language_models.model_profile import ModelProfile
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ._langchain_tools import as_openai
from .attributes import AttributeLike, AttributePolicy, SteeringAttributes
from .conversation import Sampling
from .errors import AttributeConfigError, OptionError, ToolDefinitionError
from .provider import (
    SAMPLING_FIELDS,
    authorised,
    check_address,
    check_options,
    lasting_paths,
    own_first,
    unknown_option,
    without_credentials,
    without_unset,
)

__all__ = [
    "NOT_PICKLED",
    "OUTPUT_FIELDS",
    "call_options",
    "checked_fields",
    "first_error",
    "model_profile",
    "sampling_value",
    "shown_attributes",
    "shown_tools",
]

#: Other names that LangChain's users know these fields by.
_ALIASES = {"model_name": "model", "request_timeout": "timeout", "stop_sequences": "stop"}

#: Fields beside the sampling that can change a reply.
OUTPUT_FIELDS = (
    "context_window",
    "template",
    "template_tokens",
    "message_attributes",
    "attribute_bounds",
    "overflow",
    "tool_language",
    "quantization",
    "device",
    "revision",
    "server",
    "tokenizer",
    "extra_body",
)

#: What stays behind when a model is pickled.
NOT_PICKLED = ("api_key", "default_headers", "http_client", "http_async_client")

_KINDS = ("text", "image", "audio", "video")

#: What the grammar brings to models that were never taught it.
_TOOLS: Final = ("tool_calling", "tool_choice", "tool_call_streaming", "structured_output")

#: What the profile denies: the models cannot do it, or this version cannot.
_NOT_YET = (
    "image_url_inputs",
    "pdf_inputs",
    "image_tool_message",
    "pdf_tool_message",
    "reasoning_output",
    "mid_conversation_system_messages",
    "mid_conversation_tools",
    "attachment",
)


def checked_fields(fields: Mapping[str, Any], known: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The constructor's fields by their own names, checked by our rules before pydantic's, so that our errors show."""
    values = without_unset(_named(fields, known), known)
    check_address(values)
    values |= lasting_paths(values)
    values |= _address(values)
    sampling = Sampling(**{name: values[name] for name in SAMPLING_FIELDS if values.get(name) is not None})
    if values.get("stop") is not None:
        values["stop"] = list(sampling.stop)
    if values.get("attributes") is not None:
        values["attributes"] = dict(SteeringAttributes.overlay(values["attributes"]))
    policy = AttributePolicy(values.get("message_attributes", "allow"), values.get("attribute_bounds"))
    if policy.bounds is not None:
        values["attribute_bounds"] = dict(policy.bounds)
    return values


def _address(values: Mapping[str, Any]) -> dict[str, Any]:
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


def _named(fields: Mapping[str, Any], known: Mapping[str, FieldInfo]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in fields.items():
        own = _ALIASES.get(name, name)
        if own not in known:
            raise OptionError(unknown_option(name, (*own_first(known), *_ALIASES)))
        if own in values:
            raise OptionError(f"{name}= is another name of {own}=; give one of them")
        values[own] = value
    return values


def first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'fields'}: {first['msg']}"


def sampling_value(name: str, value: Any) -> Any:
    return () if name == "stop" and value is None else value


def call_options(stop: list[str] | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's options. `stream` only tells langchain-core which of our methods to use."""
    return as_openai(
        check_options({**{name: value for name, value in kwargs.items() if name != "stream"}, "stop": stop})
    )


def shown_attributes(own: AttributeLike | None, called: Any) -> Any:
    """A call's attributes for traces and cache keys: all nine as plain numbers; what is wrong stays and fails later."""
    try:
        return dict(SteeringAttributes.overlay(own, called))
    except AttributeConfigError:
        return called


def shown_tools(options: Mapping[str, Any]) -> dict[str, Any]:
    """A call's tools for traces and cache keys: plain data that tells two of them apart, as a class's name does not."""
    given = {name: options[name] for name in ("tools", "response_format", "strict") if options.get(name) is not None}
    try:
        return as_openai(given)
    except ToolDefinitionError:
        return given


def model_profile(model: str, context_window: int | None) -> ModelProfile:
    """What LangChain's middleware may expect of the model; the window in tokens, None where it is not known yet."""
    texts = {f"{kind}_{way}": kind == "text" for kind in _KINDS for way in ("inputs", "outputs")}
    profile = {
        "name": model,
        "open_weights": True,
        **({"max_input_tokens": context_window, "max_output_tokens": context_window} if context_window else {}),
        **texts,
        **dict.fromkeys(_TOOLS, True),
        **dict.fromkeys(_NOT_YET, False),
        "temperature": True,
    }
    known = ModelProfile.__annotations__  # older versions of langchain-core know fewer and warn about the others
    return cast("ModelProfile", {name: value for name, value in profile.items() if name in known})
