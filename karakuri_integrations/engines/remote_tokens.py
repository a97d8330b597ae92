"""Tokenizers of remote models, by the tokenizers library alone: a file, a folder or a hub id. Kept per process."""

from __future__ import annotations

import os
from typing import Any

from ..errors import MissingDependencyError, ModelLoadError
from .http import INSTALL_HINT

__all__ = ["is_loaded", "place_of", "tokens_of"]

_loaded: dict[str, Any] = {}


def place_of(tokenizer: str | os.PathLike[str]) -> str:
    """A file or folder by its whole path, so that it stays the same after os.chdir; a hub id as it is."""
    source = os.fspath(tokenizer)
    return os.path.abspath(source) if os.path.exists(source) else source


def is_loaded(source: str) -> bool:
    """Whether it is at hand without reading files or asking a hub."""
    return source in _loaded


def tokens_of(source: str) -> Any:
    """The tokenizer, as `tokens.Tokens`.

    Raises:
        MissingDependencyError: the tokenizers library is not installed.
        ModelLoadError: no tokenizer is there.
    """
    found = _loaded.get(source)
    if found is None:
        found = _loaded[source] = _load_tokens(source)
    return found


def _load_tokens(source: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(f"tokenizer= needs tokenizers: {INSTALL_HINT}") from error
    from .tokens import Tokens

    file = os.path.join(source, "tokenizer.json") if os.path.isdir(source) else source
    try:
        made = Tokenizer.from_file(file) if os.path.exists(file) else Tokenizer.from_pretrained(source)
    except Exception as error:
        raise ModelLoadError(
            f"no tokenizer can be loaded from tokenizer={source!r:.120} ({type(error).__name__}); it must be a "
            "tokenizer.json, a folder with one, or a hub id"
        ) from error
    return Tokens(made)
