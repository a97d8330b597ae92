"""Ollama's /api/generate with `raw`, as JSON lines. Pure.

ollama/ollama server/routes.go, api/types.go, llm/llama_server.go (August 2026).
"""

from __future__ import annotations

from typing import Any, Final

from .completions import usage_of
from .converting import llamacpp_gap
from .record import Ask, Event, Json, Probe, Recognised, Server, seed_below
from .schemas import ollama_schema

__all__ = ["OLLAMA"]

#: A word of `done_reason` that means that no reply was asked for: the prompt was empty.
_NO_REPLY: Final = frozenset({"load", "unload"})


def _body(ask: Ask) -> Json:
    """truncate and shift are false: otherwise a long prompt loses its middle, or the reply its beginning, silently."""
    return {
        "model": ask.model,
        "prompt": ask.prompt,
        "raw": True,
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": _options(ask),
    }


def _options(ask: Ask) -> Json:
    """Its own defaults sample (0.8, 40, 0.9), so every field is written. num_ctx: the window that we count with."""
    sampling = ask.sampling
    options: Json = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "num_predict": ask.max_tokens or ask.context_window or -1,
    }
    if ask.context_window is not None:
        options["num_ctx"] = ask.context_window
    if sampling.repetition_penalty != 1.0:
        options["repeat_last_n"] = ask.context_window or 32768  # its own is the last 64 tokens
    if sampling.seed is not None:
        options["seed"] = seed_below(sampling.seed, 2**32 - 1)
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    return options


def _read(_name: str, payload: Json) -> Event:
    text = payload["response"] or ""
    if not payload["done"]:
        return Event(text)
    reason = payload.get("done_reason") or None
    if reason in _NO_REPLY:
        return Event(error=f"nothing was generated: done_reason {reason}", code=str(reason))
    counts = {"prompt_tokens": payload.get("prompt_eval_count"), "completion_tokens": payload.get("eval_count")}
    usage = usage_of(counts)
    return Event(text, reason, usage, done=True)


def _judge(status: int, payload: Any) -> Recognised | None:
    models = payload.get("models") if status == 200 and isinstance(payload, dict) else None
    if not isinstance(models, list) or not all(isinstance(one, dict) and "digest" in one for one in models):
        return None
    return Recognised(tuple(str(one.get("model") or one.get("name")) for one in models))


#: BOS is put before the text where the GGUF says so (Llama's do), and `<s>` in it is the control token; ids are not
#: taken and nothing counts tokens. prompt_eval_count holds cached tokens too, but not how many.
OLLAMA: Final = Server(
    name="ollama",
    route="/api/generate",
    body=_body,
    read=_read,
    framing="lines",
    sampling=frozenset({"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"}),
    probes=(Probe("/api/tags", _judge),),
    grammar=ollama_schema,
    gap=llamacpp_gap,
)
