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


def __getattr__(name: str) -> Any:
    if name == "SteeringAttributes":
        from .attributes import SteeringAttributes

        return SteeringAttributes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
