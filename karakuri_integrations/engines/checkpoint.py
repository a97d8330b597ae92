"""Where a model's files are: ids, the embedded default, the hub's cache, and what can be read without its weights.

Knows no torch and no transformers. Whether the files are safe to load is `safety`'s, loading them is `loading`'s.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ..errors import ModelFolderError, ModelLoadError, OptionError
from ..notices import notify
from ..templates import FAMILIES
from . import hub

__all__ = ["DEFAULT", "Checkpoint", "Source", "check_folder", "log", "notify", "source_of"]

log = logging.getLogger("karakuri_integrations")

_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LARGEST_JSON: Final = 64 * 2**20  # tokenizer.json of a large vocabulary is 20 MiB


@dataclass(frozen=True)
class Source:
    """What is to be loaded: a hub id with its revision, or a folder. Comparable, so that it can be a registry key.

    `name` is the public id. `packaged` files came with this package: they are trusted, and they have to run wherever
    the package does.
    """

    name: str
    folder: str | None = None
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    packaged: bool = False


#: What `model=None` means; the only place that knows it.
DEFAULT: Final = Source(name="karakuri-demo", folder=str(Path(__file__).parent.parent / "demo"), packaged=True)


def source_of(
    model: str | os.PathLike[str] | None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Source:
    """The source a caller's `model` means. Reads no file's contents.

    Raises:
        OptionError: what is neither a folder nor a hub id, or a GGUF file.
    """
    if revision is not None and not (isinstance(revision, str) and revision):
        raise OptionError(f"revision must be a commit, branch or tag, got {revision!r:.40}")
    source = _source(model, revision, cache_dir, local_files_only)
    if source.folder is not None and (revision is not None or cache_dir is not None):
        raise OptionError(
            "revision and cache_dir are for models from the hub, and this model is a folder; leave them out"
        )
    return source


def _source(
    model: str | os.PathLike[str] | None,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Source:
    if model is None:
        return DEFAULT
    text = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
    if not isinstance(text, str) or not text.strip():
        raise OptionError(
            f"model must be a hub id such as 'karakuri-ai/karakuri-lm-70b-chat-v0.1' or a folder, got {model!r:.40}"
        )
    if text.lower().endswith(".gguf"):
        raise OptionError(_gguf(text))
    path = _at_home(text)
    if isinstance(model, os.PathLike) or path.is_dir() or text.startswith((".", "~", os.sep)):
        return Source(name=path.resolve().name, folder=str(path.resolve()))
    if text == DEFAULT.name:  # the id that its answers report
        return DEFAULT
    if not _HUB_ID.fullmatch(text) or ".." in text:
        raise OptionError(f"model {text!r:.80} is neither a folder that exists nor a hub id of the form owner/name")
    name = f"karakuri-ai/{text}" if text in FAMILIES else text
    kept = None if cache_dir is None else str(Path(cache_dir).expanduser().absolute())
    return Source(name, None, revision, kept, local_files_only)


def _at_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise OptionError(f"model {text!r:.80} names a home folder that does not exist") from None


def _gguf(text: str) -> str:
    file = re.split(r"[/\\]", text)[-1]
    return (
        f"{file!r:.80} is a GGUF file, which a llama.cpp server runs: `llama-server -m {file} --port 8080`; then pass "
        'base_url="http://localhost:8080/v1" (`karakuri serve-command` prints more), or name the safetensors checkpoint'
    )


def check_folder(source: Source) -> None:
    """Raise ModelFolderError where a folder was named and holds no model. Looks whether files are there, reads none."""
    if source.folder is None:
        return
    path = Path(source.folder)
    if (path / "config.json").is_file():
        return
    if source.packaged:
        raise ModelLoadError("the embedded model's files are not in this installation; reinstall karakuri-integrations")
    problem = "has no config.json" if path.is_dir() else "is a file" if path.exists() else "does not exist"
    raise ModelFolderError(
        f"the model folder {source.name!r} {problem} (its path is {source.folder}); name one in Hugging Face "
        "format (config.json, tokenizer.json, *.safetensors) or a hub id"
    )


class Checkpoint:
    """The files of one source. Everything is read on demand; the folder is fetched as far as it is needed."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._window: int | None = None

    @cached_property
    def small_files(self) -> Path:
        """The folder with at least the configuration, tokenizer and template; downloads those of a hub model."""
        if self.source.folder is not None:
            return self._existing(self.source.folder)
        return hub.fetch(self.source, weights=False)

    def all_files(self) -> Path:
        """The folder with the weights too; downloads them after a disk-space check, safetensors only."""
        if self.source.folder is not None:
            return self._existing(self.source.folder)
        folder = hub.fetch(self.source, weights=True)
        if not re.fullmatch("[0-9a-f]{40}", self.source.revision or ""):
            notify(
                f"{self.source.name} was loaded at revision {self.source.revision or 'main'}, which is now the commit "
                f'{folder.name}; pass revision="{folder.name}" so that it stays the same'
            )
        return folder

    def _existing(self, folder: str) -> Path:
        check_folder(self.source)
        return Path(folder)

    def known_locally(self) -> Path | None:
        """The folder if its configuration can be read without the network, else None."""
        if self.source.folder is None:
            return hub.cached_folder(self.source)
        return Path(self.source.folder) if (Path(self.source.folder) / "config.json").is_file() else None

    def complete(self) -> Checkpoint:
        """This checkpoint with all its files in a folder."""
        return Checkpoint(replace(self.source, folder=str(self.all_files())))

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.small_files / "config.json")

    @cached_property
    def chat_template(self) -> str | None:
        """The checkpoint's own chat template, unrendered."""
        folder = self.small_files
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text("utf-8")
        settings = folder / "tokenizer_config.json"
        found = read_json(settings).get("chat_template") if settings.is_file() else None
        if isinstance(found, list):  # several named templates
            found = next((one.get("template") for one in found if one.get("name") == "default"), None)
        return found if isinstance(found, str) else None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Token ids that end a reply, by the checkpoint's own files."""
        generation = self.small_files / "generation_config.json"
        found: set[int] = set()
        for settings in (self.config, read_json(generation) if generation.is_file() else {}):
            value = settings.get("eos_token_id")
            found.update(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
        return frozenset(found)

    @property
    def window(self) -> int | None:
        """`max_position_embeddings`, where the configuration is at hand without the network."""
        if self._window is None and (folder := self.known_locally()) is not None:
            value = read_json(folder / "config.json").get("max_position_embeddings")
            self._window = value if isinstance(value, int) and value > 0 else None
        return self._window


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file.

    Raises:
        ModelLoadError: not JSON, not an object, or larger than any such file is.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ModelLoadError(f"{path.name} is larger than 64 MiB, which no such file is; fetch the checkpoint again")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path.name} is not valid JSON; fetch the checkpoint again") from error
    if not isinstance(found, dict):
        raise ModelLoadError(f"{path.name} must hold a JSON object, it holds a {type(found).__name__}")
    return found
