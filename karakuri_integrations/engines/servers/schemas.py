"""How each server is told the JSON schema that a whole reply must fit: what is added to the request's body. Pure.

Each function takes the schema as JSON text and gives the fields to add, or None where the server cannot be told this
one. The sources are those of autumn 2026 unless a comment says otherwise.
"""

from __future__ import annotations

import json
from typing import Any, Final

from .record import Json

__all__ = ["chat_schema", "llamacpp_schema", "ollama_schema", "sglang_schema", "tgi_schema", "vllm_schema"]

#: JSON as json.dumps writes it, which is how calls stand in prompts: an extension of JSON schema that llguidance reads
#: (guidance-ai/llguidance docs/json_schema.md) wherever a server runs on it, and that other libraries pass over
#: (xgrammar 0.2.8 does). Without it a grammar admits any white space between two tokens, and a model may write nothing
#: else until max_tokens.
_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def _styled(schema: str) -> Any:
    parsed = json.loads(schema)
    return {**parsed, "x-guidance": _STYLE} if isinstance(parsed, dict) else parsed


def vllm_schema(schema: str) -> Json | None:
    """vllm-project/vllm vllm/sampling_params.py (StructuredOutputsParams), entrypoints/openai/completion/protocol.py.

    The field since 0.11; before, it was guided_json, and older servers pass over a field that they do not know. Its
    disable_any_whitespace is not sent: a request's own is accepted and has no effect, since the backends read the
    command line's alone (v1/structured_output/backend_{xgrammar,guidance}.py, vllm#48765), and a later version may
    refuse it (vllm#48812). `karakuri serve-command` prints the flag that has one.
    """
    return {"structured_outputs": {"json": _styled(schema)}}


def sglang_schema(schema: str) -> Json | None:
    """sgl-project/sglang python/sglang/srt/entrypoints/openai/protocol.py (CompletionRequest): the schema as text."""
    return {"json_schema": json.dumps(_styled(schema), ensure_ascii=False)}


def llamacpp_schema(schema: str) -> Json | None:
    """ggml-org/llama.cpp tools/server/server-schema.cpp and README.md; its grammars bound white space themselves."""
    return {"json_schema": json.loads(schema)}


def tgi_schema(schema: str) -> Json | None:
    """huggingface/text-generation-inference router/src/{lib,validation}.rs: "Grammar must have a 'properties' field".

    So it takes no list, such as a list of calls is, and no object of any kind.
    """
    parsed = json.loads(schema)
    if not isinstance(parsed, dict) or "properties" not in parsed:
        return None
    return {"parameters": {"grammar": {"type": "json", "value": parsed}}}


def ollama_schema(schema: str) -> Json | None:
    """ollama/ollama api/types.go and llm/llama_server.go: `format` that begins with "{" is llama.cpp's json_schema."""
    parsed = json.loads(schema)
    return {"format": parsed} if isinstance(parsed, dict) else None


def chat_schema(schema: str) -> Json | None:
    """OpenAI's (platform.openai.com/docs/api-reference/chat/create), as vLLM, SGLang, llama.cpp and TGI take it.

    `transformers serve` accepts and ignores it (observed on 5.23).
    """
    wanted = {"name": "reply", "schema": json.loads(schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}
