"""KARAKURI LM Chat as a first-class chat model in LangChain and LlamaIndex, with its nine steering dials.

`ChatKarakuri` lives in `karakuri_integrations.langchain`, `KarakuriLLM` in `karakuri_integrations.llama_index`, the
engines in `karakuri_integrations.engines`, every error in `karakuri_integrations.errors`. Importing this package loads
no framework, torch, httpx or numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attributes import SteeringAttributes

__all__ = ["SteeringAttributes", "__version__"]

__version__ = "0.1.0"

#: What people look for here; each brings in a framework or an engine, so it is imported from its own module.
_ELSEWHERE = {
    "ChatKarakuri": "langchain",
    "KarakuriLLM": "llama_index",
    "LocalEngine": "engines",
    "RemoteEngine": "engines",
    "ScriptedEngine": "engines",
}


def __getattr__(name: str) -> Any:
    if name == "SteeringAttributes":
        from .attributes import SteeringAttributes

        return SteeringAttributes
    if name in _ELSEWHERE:  # an AttributeError's text would be lost in `from karakuri_integrations import ...`
        place = f"{__name__}.{_ELSEWHERE[name]}"
        raise ImportError(f"{name} lives in {place}; write: from {place} import {name}", name=place)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
