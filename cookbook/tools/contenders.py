"""Who is asked for a forced call, and how: our two classes and, on a server, the two clients that others would use.

Each is a function from a JSON schema to an `Outcome`; what a class does beyond that is not used.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

QUESTION = "東京の天気を調べて記録してください。"
TOOL = "record"
MODEL = "karakuri-demo"


@dataclass(frozen=True)
class Outcome:
    """One forced call. `arguments`: of the call that finished, parsed; `refused`: the word that the schema was refused
    for; `failed`: why there is no arguments object, where the reply was not merely cut by its limit."""

    arguments: Any = None
    tokens: int = 0
    finished: bool = False
    refused: str | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Contender:
    name: str
    ask: Callable[[dict[str, Any], int], Outcome]


def tool_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": TOOL, "description": "Records it.", "parameters": schema}}


def _refusal(error: BaseException) -> Outcome:
    """Ours name the word; a server answers with a status."""
    keyword = getattr(error, "keyword", None)
    if keyword is None:
        status = getattr(error, "status_code", None) or getattr(error, "status", None)
        keyword = f"HTTP {status}" if status else type(error).__name__
    return Outcome(refused=keyword or "another reason")


# --- LangChain -------------------------------------------------------------------------------------------------------


def langchain(name: str, model: Any, options: dict[str, Any], **binding: Any) -> Contender:
    """ChatKarakuri, or ChatOpenAI: both are a BaseChatModel. `binding`: further options of bind_tools."""

    def ask(schema: dict[str, Any], seed: int) -> Outcome:
        bound = model.bind_tools([tool_of(schema)], tool_choice=TOOL, parallel_tool_calls=False, **binding)
        try:
            reply = bound.invoke(QUESTION, seed=seed, **options)
        except Exception as error:  # noqa: BLE001  # whatever a client raises is counted
            return _refusal(error)
        tokens = (reply.usage_metadata or {}).get("output_tokens", 0)
        cut = reply.response_metadata.get("finish_reason") == "length"
        if len(reply.tool_calls) != 1 or reply.invalid_tool_calls:
            return Outcome(tokens=tokens, failed=None if cut else "no whole call")
        return Outcome(reply.tool_calls[0]["args"], tokens, finished=True)

    return Contender(name, ask)


# --- LlamaIndex ------------------------------------------------------------------------------------------------------


def llama_index(name: str, model: Any, options: dict[str, Any], *, limit: str = "max_tokens") -> Contender:
    """KarakuriLLM, or OpenAILike: both are a FunctionCallingLLM."""
    from llama_index.core.tools import FunctionTool
    from llama_index.core.tools.types import ToolMetadata

    class Metadata(ToolMetadata):
        """LlamaIndex makes tools of pydantic classes; this one has any JSON schema."""

        schema: dict[str, Any]

        def get_parameters_dict(self) -> dict[str, Any]:
            return self.schema

    def ask(schema: dict[str, Any], seed: int) -> Outcome:
        metadata = Metadata(name=TOOL, description="Records it.")
        metadata.schema = schema
        tool = FunctionTool(fn=lambda **given: str(given), metadata=metadata)
        try:
            reply = model.chat_with_tools([tool], QUESTION, tool_required=True, seed=seed, **options)
            calls = model.get_tool_calls_from_response(reply, error_on_no_tool_call=False)
        except Exception as error:  # noqa: BLE001  # whatever a client raises is counted
            return _refusal(error)
        tokens = reply.additional_kwargs.get("completion_tokens", 0)
        if len(calls) != 1 or reply.message.additional_kwargs.get("invalid_tool_calls"):
            return Outcome(tokens=tokens, failed=None if tokens >= options[limit] else "no whole call")
        return Outcome(calls[0].tool_kwargs, tokens, finished=True)

    return Contender(name, ask)


# --- who there is ----------------------------------------------------------------------------------------------------


def local(engine: Any, options: dict[str, Any]) -> Sequence[Contender]:
    from karakuri_integrations.langchain import ChatKarakuri
    from karakuri_integrations.llama_index import KarakuriLLM

    return [
        langchain("ChatKarakuri", ChatKarakuri(engine=engine), options),
        llama_index("KarakuriLLM", KarakuriLLM(engine=engine), options),
    ]


def strictly(engine: Any, options: dict[str, Any]) -> Sequence[Contender]:
    """Our two with strict=True: a schema with a word that the server would pass over is refused before it is sent."""
    from karakuri_integrations.langchain import ChatKarakuri
    from karakuri_integrations.llama_index import KarakuriLLM

    return [
        langchain("ChatKarakuri, strict", ChatKarakuri(engine=engine), options, strict=True),
        llama_index("KarakuriLLM, strict", KarakuriLLM(engine=engine), {**options, "strict": True}),
    ]


def served(url: str, options: dict[str, Any]) -> tuple[Sequence[Contender], Sequence[str]]:
    """Those that can ask a server, and the names of those that are not installed."""
    from karakuri_integrations.engines import RemoteEngine

    engine = RemoteEngine(url, MODEL, template="karakuri-lm-70b-chat-v0.1")
    found, absent = [*local(engine, options), *strictly(engine, options)], []
    for name, module, make in (
        ("ChatOpenAI", "langchain_openai", _chat_openai),
        ("ChatOpenAI, response_format", "langchain_openai", _chat_openai_format),
        ("OpenAILike", "llama_index.llms.openai_like", _openai_like),
    ):
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            there = False
        if there:
            found.append(make(name, url, options))
        else:
            absent.append(name)
    return found, absent


def _chat_openai(name: str, url: str, options: dict[str, Any]) -> Contender:
    from langchain_openai import ChatOpenAI

    return langchain(name, ChatOpenAI(base_url=url, api_key="none", model=MODEL, max_retries=0), options)


def _chat_openai_format(name: str, url: str, options: dict[str, Any]) -> Contender:
    """Not a call but a reply that is JSON, which is what this client has for servers whose template has no tools."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=url, api_key="none", model=MODEL, max_retries=0)

    def ask(schema: dict[str, Any], seed: int) -> Outcome:
        wanted = {"type": "json_schema", "json_schema": {"name": TOOL, "schema": schema, "strict": True}}
        try:
            reply = model.bind(response_format=wanted).invoke(QUESTION, seed=seed, **options)
        except Exception as error:  # noqa: BLE001  # whatever a client raises is counted
            return _refusal(error)
        tokens = (reply.usage_metadata or {}).get("output_tokens", 0)
        try:
            return Outcome(json.loads(str(reply.text)), tokens, finished=True)
        except ValueError:
            cut = reply.response_metadata.get("finish_reason") == "length"
            return Outcome(tokens=tokens, failed=None if cut else "no JSON")

    return Contender(name, ask)


def _openai_like(name: str, url: str, options: dict[str, Any]) -> Contender:
    from llama_index.llms.openai_like import OpenAILike

    model = OpenAILike(
        api_base=url, api_key="none", model=MODEL, max_retries=0, is_chat_model=True, is_function_calling_model=True,
        context_window=4096,
    )  # fmt: skip
    return llama_index(name, model, {**options, "parallel_tool_calls": False})
