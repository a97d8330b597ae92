"""The servers that people run KARAKURI on: one frozen record of facts each. Pure functions of values; no I/O.

A record says which route continues a raw prompt, how the request's body is written, what the events of the reply mean,
how the server words its errors, and by which of its answers it is recognised. A new server is a new record. The
requests themselves, retries and time limits live in `remote` and `http`. Each record names the sources that it was read
from; what could not be checked says "unverified".

    vllm, sglang, llamacpp, transformers, openai   completions.py   OpenAI's /v1/completions
    tgi, sagemaker                                 tgi.py           Text Generation Inference's own route
    ollama                                         ollama.py        /api/generate with `raw`
    chat                                           chat.py          a server that has only a chat route

How a server is told the JSON schema of a reply is in schemas.py, how it words errors in wording.py.

A Hugging Face Inference Endpoint is vLLM's or TGI's record: base_url is its address, api_key the hub's token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...errors import OptionError
from .chat import CHAT
from .completions import LLAMACPP, OPENAI, SGLANG, TRANSFORMERS, VLLM
from .ollama import OLLAMA
from .record import Ask, Event, Json, Probe, Recognised, Server
from .tgi import SAGEMAKER, TGI
from .wording import error_of, keyword_in, overflow_in, reason_of, refuses_schema, status_of

__all__ = [
    "SERVERS",
    "Ask",
    "Event",
    "Json",
    "Probe",
    "Recognised",
    "Server",
    "error_of",
    "keyword_in",
    "overflow_in",
    "reason_of",
    "refuses_schema",
    "server_of",
    "status_of",
]

#: Every record, in the order in which they are tried: SGLang and llama.cpp imitate Ollama's routes, and many servers
#: list their models as OpenAI does, so what names itself is asked first and "openai" last.
SERVERS: Final[Mapping[str, Server]] = {
    server.name: server for server in (VLLM, SGLANG, LLAMACPP, TGI, OLLAMA, TRANSFORMERS, CHAT, SAGEMAKER, OPENAI)
}


def server_of(name: str) -> Server:
    """The record of a name as given in `server=`.

    Raises:
        OptionError: no such server; the known ones are listed.
    """
    plain = name.lower().replace(".", "").replace("-", "") if isinstance(name, str) else ""
    found = SERVERS.get(plain)  # "llama.cpp" is as good as "llamacpp"
    if found is None:
        raise OptionError(f"server must be one of {', '.join(SERVERS)}, or None to ask it, got {name!r:.40}")
    return found
