"""Text Generation Inference's own routes, and the containers on Amazon SageMaker that speak its language. Pure.

huggingface/text-generation-inference router/src/{lib,server,validation,sagemaker,infer/mod}.rs, launcher/src/main.rs,
server/text_generation_server/utils/tokens.py (3.3, January 2026).
deepjavalibrary/djl-serving serving/docs/lmi/user_guides/lmi_input_output_schema.md (0.31).
"""

from __future__ import annotations

from typing import Any, Final

from ...conversation import Usage
from .record import Ask, Event, Json, Probe, Recognised, Server
from .schemas import tgi_schema

__all__ = ["SAGEMAKER", "TGI"]

#: The launcher's --max-stop-sequences; more would be refused, and the decoder applies them all anyway.
_MOST_STOPS: Final = 4
_SAMPLING: Final = frozenset({"temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop"})


def _body(ask: Ask) -> Json:
    return {"inputs": ask.prompt, "parameters": _parameters(ask)}


def _parameters(ask: Ask) -> Json:
    """Greedy is do_sample=false: temperature 0, top_p 1 and top_k 0 are refused, and other values mean sampling."""
    sampling = ask.sampling
    parameters: Json = {
        "details": True,
        "return_full_text": False,
        "do_sample": sampling.temperature > 0,
        "max_new_tokens": ask.max_tokens,  # null is the rest of the window; left out, old versions cut at 20 or 100
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.temperature > 0:
        parameters["temperature"] = sampling.temperature
        parameters |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        parameters |= {"top_k": sampling.top_k} if sampling.top_k else {}
    if sampling.seed is not None:
        parameters["seed"] = sampling.seed
    if sampling.stop:
        parameters["stop"] = list(sampling.stop[:_MOST_STOPS])
    return parameters


def _read(_name: str, payload: Json) -> Event:
    token, details = payload["token"], payload.get("details") or {}
    special = token.get("special") or token.get("special_token")  # the latter is DJL's name
    text = "" if special else token.get("text") or ""
    return Event(text, details.get("finish_reason"), _usage(details))


def _usage(details: Json) -> Usage | None:
    """DJL does not count the prompt's tokens, so nothing is said then."""
    if details.get("input_length") is None:
        return None
    return Usage(details["input_length"], details.get("generated_tokens") or 0)


def _judge(status: int, payload: Any) -> Recognised | None:
    good = status == 200 and isinstance(payload, dict) and {"model_id", "max_total_tokens"} <= payload.keys()
    return Recognised((str(payload["model_id"]),), payload["max_total_tokens"]) if good else None


def _token_ids(payload: Any) -> list[int]:
    """Without the BOS that /tokenize always puts first; it stands for no character of the text."""
    tokens = [(one["id"], one["start"] == one["stop"]) for one in payload]
    return [number for place, (number, added) in enumerate(tokens) if place or not added]


#: /generate_stream answers 200 before it has looked at the request: what is wrong with it comes as an event. top_p
#: must be below 1. min_p is not known. BOS is always added and token ids are not taken. A Hugging Face Inference
#: Endpoint runs this server too: base_url is its address, api_key the hub's token.
TGI: Final = Server(
    name="tgi",
    route="/generate_stream",
    body=_body,
    read=_read,
    sampling=_SAMPLING,
    probes=(Probe("/info", _judge),),
    tokenize=("/tokenize", lambda _, text: {"inputs": text}, _token_ids),
    grammar=tgi_schema,
)


def _sagemaker_body(ask: Ask) -> Json:
    body = {**_body(ask), "stream": True}
    if ask.sampling.stop:
        body["parameters"]["stop_sequences"] = list(ask.sampling.stop)  # DJL's name
    return body


#: An endpoint of Amazon SageMaker that runs TGI's or DJL's LMI container: base_url is
#: https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME; signing and framing are in `sagemaker`. Nothing can be
#: asked of it beside replies. DJL cuts at 30 tokens where no number is given. Whether its TensorRT-LLM engine accepts
#: `stop` is unverified, and so is that every engine of DJL puts BOS first. Grammars are TGI's; DJL's schema of inputs
#: names no field for them, so what it does with one is unverified too.
SAGEMAKER: Final = Server(
    name="sagemaker",
    route="/invocations-response-stream",
    body=_sagemaker_body,
    read=_read,
    framing="aws",
    sampling=_SAMPLING,
    needs_max_tokens=True,
    grammar=tgi_schema,
)
