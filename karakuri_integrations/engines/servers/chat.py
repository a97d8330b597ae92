"""Servers that have only a chat route: what is sent, what comes back. Pure; `chat_route` proves that dials arrive."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from ...conversation import Turn
from .completions import chosen
from .record import Ask, Event, Json, Probe, Recognised, Server, seed_below
from .schemas import chat_schema

__all__ = ["CHAT", "Way", "chat_body", "messages_of", "read"]

#: How the dials travel. turns: chat_template_kwargs {"attributes": [...]}, one mapping for each user turn, as our
#: template files take them. messages: nine keys on each user message, as the published template takes them. flat:
#: chat_template_kwargs with the nine names, one set for the whole conversation.
Way: TypeAlias = Literal["turns", "messages", "flat"]


def messages_of(turns: tuple[Turn, ...], way: str) -> list[Json]:
    """The turns as OpenAI's messages, with the dials on them where they travel that way."""
    dials = way == "messages"
    return [
        {"role": turn.role, "content": turn.text, **(dict(turn.attributes) if dials and turn.attributes else {})}
        for turn in turns
    ]


def kwargs_of(turns: tuple[Turn, ...], way: str) -> Json:
    """The chat_template_kwargs: {} where the dials travel on the messages."""
    dials = [dict(turn.attributes) for turn in turns if turn.attributes is not None]
    if way == "turns":
        return {"attributes": dials}
    return dict(dials[-1]) if way == "flat" and dials else {}


def chat_body(turns: tuple[Turn, ...], ask: Ask, way: str) -> Json:
    """The request of one call."""
    sampling = ask.sampling
    body: Json = {
        "model": ask.model,
        "messages": messages_of(turns, way),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if kwargs := kwargs_of(turns, way):
        body["chat_template_kwargs"] = kwargs
    if ask.max_tokens is not None:
        body["max_tokens"] = ask.max_tokens
    if sampling.seed is not None:
        body["seed"] = seed_below(sampling.seed)
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def read(_name: str, payload: Json) -> Event:
    """One delta; or the whole answer, where a server sends it in one piece."""
    choice, usage = chosen(payload)
    if not choice:
        return Event(usage=usage)
    said = (choice["delta"] or {}) if "delta" in choice else choice["message"]
    text = said.get("content")
    return Event("" if text is None else text, choice.get("finish_reason"), usage)


def _judge(status: int, payload: Any) -> Recognised | None:
    """By the routes that a FastAPI server lists: a chat route, and none for completions."""
    paths = payload.get("paths") if status == 200 and isinstance(payload, dict) else None
    if not isinstance(paths, dict) or "/v1/chat/completions" not in paths or "/v1/completions" in paths:
        return None
    return Recognised()


#: OpenAI's /v1/chat/completions (platform.openai.com/docs/api-reference/chat), as vLLM, SGLang, llama.cpp and
#: `transformers serve` have it. A server that has /v1/completions is better asked there: the prompt is exact. Of
#: sampling fields only OpenAI's own are sent; `transformers serve` ignores temperature and top_p here (observed), and
#: extra_body={"generation_config": ...} sets them. Our template files escape template tokens in data by themselves,
#: so template_tokens="allow" has no effect there.
CHAT: Final = Server(
    name="chat",
    route="/v1/chat/completions",
    body=lambda ask: chat_body(ask.turns, ask, ask.way),
    read=read,
    takes_turns=True,
    adds_bos=False,
    sampling=frozenset({"temperature", "top_p", "seed", "stop"}),
    probes=(Probe("/openapi.json", _judge),),
    grammar=chat_schema,
)
