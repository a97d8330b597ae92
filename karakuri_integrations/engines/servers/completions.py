"""Servers behind OpenAI's /v1/completions: vLLM, SGLang, llama.cpp, `transformers serve` and any other. Pure.

Where a field of the request is left out, vLLM, SGLang and llama.cpp take what the model's generation_config.json or
their command line says, so every field that they know is always written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from ...conversation import Usage
from .converting import llamacpp_gap
from .record import Ask, Event, Json, Probe, Recognised, Server, seed_below
from .schemas import llamacpp_schema, sglang_schema, vllm_schema

__all__ = ["LLAMACPP", "OPENAI", "SGLANG", "TRANSFORMERS", "VLLM", "chosen", "judge_models", "usage_of"]

_NARROW: Final = frozenset({"temperature", "top_p", "seed", "stop"})
_WIDE: Final = _NARROW | {"top_k", "min_p", "repetition_penalty"}

#: Below this, a seed of llama.cpp is a seed; the number itself asks for a random one.
_RANDOM_SEED: Final = 2**32 - 1


# --- requests -------------------------------------------------------------------------------------------------------


def _body(ask: Ask) -> Json:
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
        body["seed"] = seed_below(sampling.seed)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def _wide_body(ask: Ask) -> Json:
    """With the names that vLLM and SGLang share; their top_k is -1 for all tokens."""
    sampling = ask.sampling
    return {
        **_body(ask),
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }


def _vllm_body(ask: Ask) -> Json:
    scope = ask.sampling.cache_scope
    salt = {} if scope is None else {"cache_salt": scope}
    return {**_wide_body(ask), **salt, "add_special_tokens": False}  # the text brings its own BOS


def _llamacpp_body(ask: Ask) -> Json:
    sampling, body = ask.sampling, _body(ask)
    body |= {"top_k": sampling.top_k, "min_p": sampling.min_p, "repeat_penalty": sampling.repetition_penalty}
    if sampling.repetition_penalty != 1.0:
        body["repeat_last_n"] = ask.context_window or 32768  # its own is the last 64 tokens; -1 is refused since 2026
    if sampling.seed is not None:
        body["seed"] = seed_below(sampling.seed, _RANDOM_SEED)
    if ask.max_tokens is None and ask.context_window is not None:
        body["max_tokens"] = ask.context_window  # with --context-shift it would never end otherwise
    return body


def _transformers_body(ask: Ask) -> Json:
    """temperature and top_p alone do nothing there, and other names are refused: both stand in generation_config."""
    sampling = ask.sampling
    body: Json = {"model": ask.model, "prompt": ask.prompt, "stream": True, "max_tokens": ask.max_tokens}
    config: Json = {"do_sample": sampling.temperature > 0, "repetition_penalty": sampling.repetition_penalty}
    if sampling.temperature > 0:
        config |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        config |= {"min_p": sampling.min_p} if sampling.min_p else {}
    if sampling.seed is not None:
        body["seed"] = seed_below(sampling.seed)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return {**body, "generation_config": json.dumps(config)}


# --- answers --------------------------------------------------------------------------------------------------------


def _read(_name: str, payload: Json) -> Event:
    choice, usage = chosen(payload)
    if not choice:
        return Event(usage=usage)
    text = choice["text"]
    return Event("" if text is None else text, choice.get("finish_reason"), usage)


def _llamacpp_read(name: str, payload: Json) -> Event:
    """With timings_per_token, every event says in `timings` what `usage` says in the last one."""
    event, timings = _read(name, payload), payload.get("timings")
    if event.usage is not None or not isinstance(timings, dict):
        return event
    cached = _count(timings.get("cache_n"))
    usage = Usage(cached + _count(timings.get("prompt_n")), _count(timings.get("predicted_n")), cached)
    return event._replace(usage=usage)


def chosen(payload: Json) -> tuple[Json, Usage | None]:
    """The first choice ({} where the event has none of index 0) and the usage of one event.

    Raises:
        ValueError: neither of them: no event of this protocol.
    """
    choices, usage = payload.get("choices"), usage_of(payload.get("usage"))
    if not isinstance(choices, list):
        if usage is None:
            raise ValueError("neither choices nor usage")
        return {}, usage
    first: Json = choices[0] if choices else {}
    if first.get("index"):  # another choice's turn; n is never asked to be above 1
        first = next((one for one in choices if not one.get("index")), {})
    return first, usage


def usage_of(usage: Any) -> Usage | None:
    """OpenAI's counts; vLLM and SGLang name cached tokens only where their operator switched that on."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), cached)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


# --- recognition ----------------------------------------------------------------------------------------------------


def judge_models(owner: str | None) -> Callable[[int, Any], Recognised | None]:
    """A judge of /v1/models: the list's entries belong to this owner (None: to anybody)."""

    def judge(status: int, payload: Any) -> Recognised | None:
        entries = payload.get("data") if status == 200 and isinstance(payload, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
            return None
        if owner is not None and not any(entry.get("owned_by") == owner for entry in entries):
            return None
        windows = [window for window in map(_window, entries) if window]
        return Recognised(tuple(str(entry["id"]) for entry in entries), windows[0] if windows else None)

    return judge


def _window(entry: Json) -> int | None:
    """vLLM and SGLang: max_model_len; llama.cpp: meta.n_ctx, of one slot."""
    meta = entry.get("meta")
    window = entry.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return window if isinstance(window, int) else None


def _judge_transformers(status: int, payload: Any) -> Recognised | None:
    """By routes that only it has: its /v1/models lists the hub's cache, not what it serves."""
    paths = payload.get("paths") if status == 200 and isinstance(payload, dict) else None
    own = {"/load_model", "/reset", "/v1/completions"}
    return Recognised() if isinstance(paths, dict) and own <= paths.keys() else None


# --- records --------------------------------------------------------------------------------------------------------


def _prompt_only(model: str, text: str) -> Json:
    return {"model": model, "prompt": text, "add_special_tokens": False}


def _tokens(payload: Any) -> list[int]:
    return list(payload["tokens"])


#: Of OpenAI's stream_options; `include_usage` stands in every body.
_RUNNING: Final = {"stream_options": {"continuous_usage_stats": True}}

#: vllm-project/vllm vllm/entrypoints/openai/completion/{protocol,serving}.py, openai/models/serving.py, serve/tokenize,
#: vllm/sampling_params.py (2026). max_tokens: left out it is 16, and null fails after the first token (an assertion;
#: vllm#19862), so it is always a number. top_k: -1 is accepted by every version, 0 by newer ones. A reply that it gives
#: up has finish_reason "abort" or an error event. A Hugging Face Inference Endpoint may run it: base_url is
#: https://NAME.REGION.aws.endpoints.huggingface.cloud and api_key the hub's token.
VLLM: Final = Server(
    name="vllm",
    route="/v1/completions",
    body=_vllm_body,
    read=_read,
    takes_ids=True,
    adds_bos=False,  # add_special_tokens is false in the body
    sampling=_WIDE | {"cache_scope"},
    needs_max_tokens=True,
    probes=(Probe("/v1/models", judge_models("vllm")),),
    tokenize=("/tokenize", _prompt_only, _tokens),
    grammar=vllm_schema,
    running_counts=_RUNNING,
)

#: sgl-project/sglang python/sglang/srt/entrypoints/openai/{protocol,serving_completions,serving_tokenize}.py,
#: sampling/{sampling_params,sampling_batch_info}.py, managers/tokenizer_manager.py (2026). There is no
#: add_special_tokens, so text gets BOS. max_tokens is 16 and null is refused. seed counts only under
#: --enable-deterministic-inference, so it is not among the honoured fields (extra_body can set it). Versions of 2025
#: ignore repetition_penalty, and refuse prompt + max_tokens equal to the window.
SGLANG: Final = Server(
    name="sglang",
    route="/v1/completions",
    body=_wide_body,
    read=_read,
    takes_ids=True,
    sampling=_WIDE - {"seed"},
    needs_max_tokens=True,
    probes=(Probe("/v1/models", judge_models("sglang")),),
    tokenize=("/tokenize", _prompt_only, _tokens),
    grammar=sglang_schema,
    running_counts=_RUNNING,
)

#: ggml-org/llama.cpp tools/server/{server-context,server-schema,server-task,server-common}.cpp and README.md (2026).
#: /v1/completions and the native /completion share one request schema; the former has cached tokens in `usage` and
#: OpenAI's finish reasons. BOS is added to text where the GGUF says so (Llama's do), never to ids. max_tokens is -1,
#: the rest of the window.
LLAMACPP: Final = Server(
    name="llamacpp",
    route="/v1/completions",
    body=_llamacpp_body,
    read=_llamacpp_read,
    takes_ids=True,
    sampling=_WIDE,
    probes=(Probe("/v1/models", judge_models("llamacpp")),),
    tokenize=("/tokenize", lambda _, text: {"content": text, "add_special": False, "parse_special": True}, _tokens),
    grammar=llamacpp_schema,
    gap=llamacpp_gap,
    running_counts={"timings_per_token": True},
)

#: transformers/cli/serving/{completion,utils,server}.py of 5.23, and observed running. Ids are refused, BOS is always
#: added, the first word gets the tokenizer's word prefix. It does not check the window and cuts at 1024 tokens, so
#: max_tokens is needed. Its stream ends without [DONE].
TRANSFORMERS: Final = Server(
    name="transformers",
    route="/v1/completions",
    body=_transformers_body,
    read=_read,
    sampling=_WIDE,
    needs_max_tokens=True,
    probes=(Probe("/openapi.json", _judge_transformers),),
)

#: Any other. That it adds BOS is what llama-cpp-python does (measured) and most others (unverified).
OPENAI: Final = Server(
    name="openai",
    route="/v1/completions",
    body=_body,
    read=_read,
    sampling=_NARROW,
    needs_max_tokens=True,  # OpenAI's own default is 16
    probes=(Probe("/v1/models", judge_models(None)),),
)
