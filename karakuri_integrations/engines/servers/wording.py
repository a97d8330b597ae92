"""How servers word their errors and the ends of replies. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

__all__ = ["error_of", "keyword_in", "overflow_in", "reason_of", "refuses_schema", "status_of"]

_REASONS: Final[Mapping[str, Literal["stop", "length"]]] = {
    "stop": "stop",
    "length": "length",
    "eos_token": "stop",  # TGI, DJL
    "stop_sequence": "stop",
    "eos": "stop",  # llama.cpp's stop_type
    "word": "stop",
    "limit": "length",
    "max_tokens": "length",
}


def reason_of(word: str) -> Literal["stop", "length"] | None:
    """Our finish reason for a server's word; None for one that is not known."""
    return _REASONS.get(word)


def error_of(payload: Any) -> tuple[str, str] | None:
    """(text, kind) of an error in any of the shapes in use; None where there is none.

    {"error": {"message", "code" or "type"}}: OpenAI, vLLM >= 0.10.1, llama.cpp, SGLang's streams, TGI's chat route.
    {"object": "error", "message"}: vLLM < 0.10.1, SGLang. {"error": "text", "error_type"}: TGI, DJL, Ollama,
    transformers. {"detail": ...}: FastAPI. {"Message": ...}: AWS, with the container's own answer in OriginalMessage.
    """
    if not isinstance(payload, dict):
        return None
    error = payload.get("error")
    if isinstance(error, dict):
        return str(error.get("message") or "no message"), _kind(error)
    if error:
        return str(error), str(payload.get("error_type") or payload.get("code") or "")
    if payload.get("object") == "error" or ("message" in payload and "choices" not in payload):
        return str(payload.get("message") or "no message"), _kind(payload)
    if "Message" in payload:
        return str(payload.get("OriginalMessage") or payload["Message"]), str(payload.get("ErrorCode") or "")
    if "detail" in payload:
        return _detail(payload["detail"]), ""
    return None


def _kind(error: Mapping[str, Any]) -> str:
    """Type or code, and the two numbers that llama.cpp gives beside its text."""
    kind = str(error.get("type") or error.get("code") or "")
    if "n_ctx" in error:
        kind += f" n_prompt_tokens={error.get('n_prompt_tokens')} n_ctx={error['n_ctx']}"
    return kind


def _detail(detail: Any) -> str:
    """FastAPI's: a text, or what is wrong with each field; its `input` would repeat the request."""
    if not isinstance(detail, list):
        return str(detail)
    wrong = (one for one in detail if isinstance(one, dict))
    return "; ".join(f"{'.'.join(str(part) for part in one.get('loc', ()))}: {one.get('msg')}" for one in wrong)


def status_of(kind: str) -> int | None:
    """The status that an error in a stream's first event stands for, which came too late to be one; or None.

    TGI answers 200 before it looks at a request, and its other route gives these (router/src/server.rs).
    """
    return {"overloaded": 429, "validation": 422}.get(kind)


_PROMPT: Final = r"(?P<prompt>\d+)"
_WINDOW: Final = r"(?P<ctx>\d+)"

#: How servers say that prompt and reply are too long; what names both numbers stands first.
_OVERFLOW: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        rf"n_prompt_tokens={_PROMPT} n_ctx={_WINDOW}",  # llama.cpp, by `_kind`
        rf"maximum context length (?:is|of) {_WINDOW}.*?{_PROMPT} (?:in the (?:messages|prompt)|input tokens|"
        r"tokens from the input)",  # vLLM, SGLang
        rf"input \({_PROMPT} tokens\) is longer than the model'?s context length \({_WINDOW}",  # SGLang
        rf"prompt \(length {_PROMPT}\) is longer than the maximum model length of {_WINDOW}",  # vLLM, ids
        rf"(?:request|input) \({_PROMPT} tokens\) (?:exceeds the available|is larger than the max) context size "
        rf"\({_WINDOW}",  # llama.cpp; Ollama hands it on
        rf"`inputs` tokens \+ `max_new_tokens` must be <= {_WINDOW}\. Given: {_PROMPT}",  # TGI
        rf"`inputs` must have less than {_WINDOW} tokens\. Given: {_PROMPT}",  # TGI
        rf"maximum context length (?:is|of) {_WINDOW}",
        r"exceed_context_size|exceeds the available context size|context size has been exceeded",  # llama.cpp
        r"(?:prompt is longer|input length exceeds) (?:than )?the context length|exceeded max context length",  # Ollama
        r"longer than the (?:model'?s context length|maximum model length)|context_length_exceeded|prompt is too long",
    )
)


def overflow_in(text: str) -> tuple[int, int] | None:
    """(prompt tokens, window) where a server's error text says that the prompt is too long, 0 where it names none.

    vLLM may name a lower bound of the prompt's tokens, and TGI's window is then what it accepts as prompt.
    """
    for pattern in _OVERFLOW:
        if found := pattern.search(text):
            numbers = found.groupdict()
            return int(numbers.get("prompt") or 0), int(numbers.get("ctx") or 0)
    return None


#: How servers say that they cannot hold a reply to a schema: vLLM and SGLang name the grammar, the schema or the field,
#: TGI "grammar is not valid" or "cannot compile regex from schema", llama.cpp "JSON schema conversion failed", Ollama
#: "invalid format".
_SCHEMA: Final = re.compile(
    r"\b(?:json[_ ]?schema|schema|grammar|structured[_ ]outputs?|response_format)\b|invalid format", re.IGNORECASE
)
_QUOTED: Final = re.compile(r"[\"'`](\$?[A-Za-z]{2,40})[\"'`]|(?<!\w)(\$[A-Za-z]{3,20})")
#: The words of JSON schema that some server's grammars do not have.
_KEYWORDS: Final = frozenset(
    {
        "$anchor", "$dynamicRef", "$ref", "additionalProperties", "allOf", "anyOf", "const", "contains",
        "dependentRequired", "dependentSchemas", "else", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "if",
        "items", "maxContains", "maxItems", "maxLength", "maxProperties", "maximum", "minContains", "minItems",
        "minLength", "minProperties", "minimum", "multipleOf", "not", "oneOf", "pattern", "patternProperties",
        "prefixItems", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
    }
)  # fmt: skip


def refuses_schema(text: str) -> bool:
    """Whether the error of a request that carried a schema is about it."""
    return _SCHEMA.search(text) is not None


def keyword_in(text: str) -> str:
    """The word of JSON schema that such an error names as its cause; "" where it names none, or several."""
    found = {one for pair in _QUOTED.findall(text) for one in pair if one in _KEYWORDS}
    return found.pop() if len(found) == 1 else ""
