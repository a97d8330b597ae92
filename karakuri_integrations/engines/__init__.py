"""The engines, loaded on first use: LocalEngine, RemoteEngine, ScriptedEngine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .local import LocalEngine
    from .remote import RemoteEngine
    from .scripted import ScriptedEngine

__all__ = ["LocalEngine", "RemoteEngine", "ScriptedEngine"]

_HOMES = {"LocalEngine": "local", "RemoteEngine": "remote", "ScriptedEngine": "scripted"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
