"""The servers that people run KARAKURI on: one frozen record of facts each. Pure functions of values; no I/O.

A record says which route continues a raw prompt, how the request's body is written, what the events of the reply mean,
how the server words its errors, and by which of its answers it is recognised. A new server is a new record. The
requests themselves, retries and time limits live in `remote` and `http`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from ..conversation import Sampling, Usage
from ..errors import OptionError

__all__ = ["SERVERS", "Ask", "Event", "Probe", "Recognised", "Server", "server_of"]

#: What a JSON body holds.
Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """What is asked of a server: the prompt as ids or text, and how to sample.

    `prompt` as text begins without `<s>` where the server adds it. `max_tokens` is a number wherever the server needs
    one. `extra` is the user's `extra_body`, merged last by the engine.
    """

    model: str
    prompt: str | list[int]
    sampling: Sampling
    max_tokens: int | None = None
    context_window: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What one event of a reply says.

    `finish_reason` is the server's own word. `usage` is None where the event has none. `error` is the server's text;
    `code` its kind or number. `done`: nothing follows.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    done: bool = False
    error: str | None = None
    code: str = ""


@dataclass(frozen=True)
class Recognised:
    """What a server says of itself. `models` are the ids it serves; `context_window` in tokens, None if it is silent."""

    models: tuple[str, ...] = ()
    context_window: int | None = None


@dataclass(frozen=True)
class Probe:
    """A GET that recognises a server: `judge` reads status and JSON (None where the body is none)."""

    path: str
    judge: Callable[[int, Any], Recognised | None]


@dataclass(frozen=True)
class Server:
    """The facts of one kind of server.

    name: as in `server=`. route: below the root of base_url. framing: how the reply is cut into events. takes_ids:
    whether token ids can be sent. adds_bos: whether it puts BOS before a text prompt. body: the request. read: one
    event's JSON. sampling: the fields of Sampling that it honours, beside max_tokens and timeout. needs_max_tokens: it
    would cut the reply at a small number of its own. probes: how it is recognised, best first. tokenize: (path,
    request body of a text, ids in the answer) of its tokenizer route.
    """

    name: str
    route: str
    body: Callable[[Ask], Json]
    read: Callable[[str, Json], Event]
    framing: Literal["sse", "lines"] = "sse"
    takes_ids: bool = False
    adds_bos: bool = True
    sampling: frozenset[str] = frozenset()
    needs_max_tokens: bool = False
    probes: tuple[Probe, ...] = ()
    tokenize: tuple[str, Callable[[str, str], Json], Callable[[Any], list[int]]] | None = None
    good_reasons: Mapping[str, Literal["stop", "length"]] = field(default_factory=dict)


# --- what several servers share -------------------------------------------------------------------------------------

_REASONS: Final[Mapping[str, Literal["stop", "length"]]] = {
    "stop": "stop",
    "length": "length",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "word": "stop",
    "limit": "length",
    "max_tokens": "length",
}
_OPENAI_SAMPLING: Final = frozenset({"temperature", "top_p", "seed", "stop"})
_WIDE_SAMPLING: Final = _OPENAI_SAMPLING | {"top_k", "min_p", "repetition_penalty"}


def server_of(name: str) -> Server:
    """The record of a name as given in `server=`.

    Raises:
        OptionError: no such server; the known ones are listed.
    """
    found = SERVERS.get(name.lower())
    if found is None:
        raise OptionError(f"server must be one of {', '.join(SERVERS)}, or None to ask it, got {name[:40]!r}")
    return found


def error_of(payload: Any) -> tuple[str, str] | None:
    """(text, kind) of an error in any of the shapes in use; None where there is none.

    {"error": {"message", "code"|"type"}}: OpenAI, vLLM >= 0.10.1, llama.cpp, SGLang. {"object": "error", "message"}:
    vLLM < 0.10.1. {"error": "text", "error_type"}: TGI, Ollama. {"detail": ...}: FastAPI. {"message": ...} alone: SageMaker.
    """
    if not isinstance(payload, dict):
        return None
    error = payload.get("error")
    if isinstance(error, dict):
        kind = error.get("type") or error.get("code") or ""
        return str(error.get("message") or "no message"), str(kind)
    if error:
        return str(error), str(payload.get("error_type") or "")
    if payload.get("object") == "error" or ("message" in payload and "choices" not in payload):
        return str(payload.get("message") or "no message"), str(payload.get("type") or payload.get("code") or "")
    if "detail" in payload:
        return str(payload["detail"]), ""
    return None


#: How servers say that prompt and reply are too long; groups: the window, and the prompt's tokens where they are named.
_OVERFLOW: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"maximum context length (?:is|of) (?P<ctx>\d+)(?:.*?(?:\b(?P<prompt>\d+) (?:in the (?:messages|prompt)|input tokens)))?",
        r"exceed_context_size|exceeds the available context size",
        r"`?inputs`? tokens \+ `?max_new_tokens`? must be <= (?P<ctx>\d+).*?Given: (?P<prompt>\d+)",
        r"`?inputs`? must have less than (?P<ctx>\d+) tokens.*?Given: (?P<prompt>\d+)",
        r"longer than the model'?s context length.*?(?P<ctx>\d+)?",
        r"context_length_exceeded|prompt is too long|input length .* exceeds",
    )
)


def overflow_in(text: str) -> tuple[int, int] | None:
    """(prompt tokens, window) where a server's error text says that the prompt is too long, 0 where it names none."""
    for pattern in _OVERFLOW:
        if found := pattern.search(text):
            numbers = found.groupdict()
            return int(numbers.get("prompt") or 0), int(numbers.get("ctx") or 0)
    return None


def reason_of(word: str) -> Literal["stop", "length"] | None:
    """Our finish reason for a server's word; None for one that is not known."""
    return _REASONS.get(word)


# --- OpenAI's /v1/completions ---------------------------------------------------------------------------------------


def _openai_body(ask: Ask) -> Json:
    sampling = ask.sampling
    body: Json = {
        "model": ask.model,
        "prompt": ask.prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if ask.max_tokens is not None:
        body["max_tokens"] = ask.max_tokens
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def _wide_body(ask: Ask) -> Json:
    """OpenAI's body with the names that vLLM and SGLang share for the other fields."""
    sampling, body = ask.sampling, _openai_body(ask)
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.min_p:
        body["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1.0:
        body["repetition_penalty"] = sampling.repetition_penalty
    return body


def _vllm_body(ask: Ask) -> Json:
    # max_tokens: null is the rest of the window; left out it is 16. add_special_tokens: the text brings its own BOS.
    return {**_wide_body(ask), "max_tokens": ask.max_tokens, "add_special_tokens": False}


def _openai_read(name: str, payload: Json) -> Event:
    choices = payload.get("choices")
    usage = _openai_usage(payload.get("usage"))
    if not choices:
        if not isinstance(choices, list) and usage is None:
            raise ValueError("neither choices nor usage")
        return Event(usage=usage)
    choice = choices[0]
    text = choice.get("text")
    return Event("" if text is None else text, choice.get("finish_reason"), usage)


def _openai_usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0
    )


def _models(owner: str | None) -> Callable[[int, Any], Recognised | None]:
    """A judge of /v1/models: the list's entries belong to this owner (None: to anybody)."""

    def judge(status: int, payload: Any) -> Recognised | None:
        entries = payload.get("data") if status == 200 and isinstance(payload, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
            return None
        if owner is not None and not any(entry.get("owned_by") == owner for entry in entries):
            return None
        windows = [entry["max_model_len"] for entry in entries if isinstance(entry.get("max_model_len"), int)]
        return Recognised(tuple(str(entry["id"]) for entry in entries), windows[0] if windows else None)

    return judge


VLLM = Server(
    name="vllm",
    route="/v1/completions",
    body=_vllm_body,
    read=_openai_read,
    takes_ids=True,
    adds_bos=False,  # add_special_tokens is false in the body
    sampling=_WIDE_SAMPLING,
    probes=(Probe("/v1/models", _models("vllm")),),
    tokenize=(
        "/tokenize",
        lambda model, text: {"model": model, "prompt": text, "add_special_tokens": False},
        lambda payload: list(payload["tokens"]),
    ),
)
OPENAI = Server(
    name="openai",
    route="/v1/completions",
    body=_openai_body,
    read=_openai_read,
    sampling=_OPENAI_SAMPLING,
    needs_max_tokens=True,  # its own default is 16
    probes=(Probe("/v1/models", _models(None)),),
)

#: Every record, in the order in which they are tried.
SERVERS: Final[Mapping[str, Server]] = {server.name: server for server in (VLLM, OPENAI)}
