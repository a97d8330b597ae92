"""Fetching a checkpoint from the Hugging Face hub: only the files that are needed, never code or pickles.

Knows huggingface_hub and nothing of models. Credentials and mirrors come from its own environment variables.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..errors import MissingDependencyError, ModelLoadError

if TYPE_CHECKING:
    from .checkpoint import Source

__all__ = ["INSTALL_HINT", "cached_folder", "fetch", "fetch_texts", "missing"]

INSTALL_HINT: Final = 'pip install "karakuri-integrations[local]"'

_SMALL: Final = ("*.json", "*.jinja", "tokenizer.model")
_WEIGHTS: Final = (*_SMALL, "*.safetensors")
_TEXTS: Final = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing("huggingface_hub") from error
    return huggingface_hub


def missing(library: str) -> MissingDependencyError:
    """The error of a library that is not installed; it is one of several, which the extra brings together."""
    return MissingDependencyError(f'local models need the extra "local" ({library} is missing): {INSTALL_HINT}')


def fetch(source: Source, *, weights: bool) -> Path:
    """The snapshot folder of a hub model, downloaded as far as it is not cached.

    Raises:
        ModelLoadError: not found, not allowed, offline, or no disk space; says what to do.
    """
    library = _library()
    with _explained(source):
        if weights and not source.local_files_only:
            _check_disk(library, source)
        folder = library.snapshot_download(
            source.name,
            revision=source.revision,
            cache_dir=source.cache_dir,
            local_files_only=source.local_files_only,
            allow_patterns=list(_WEIGHTS if weights else _SMALL),
        )
    if not (Path(folder) / "config.json").is_file():
        raise ModelLoadError(f"{source.name} has no config.json in the cache or on the hub; it is no model checkpoint")
    return Path(folder)


def fetch_texts(source: Source) -> None:
    """Put a hub model's card and licence beside its files in the cache, as far as it has any."""
    library = _library()
    with _explained(source):
        library.snapshot_download(
            source.name,
            revision=source.revision,
            cache_dir=source.cache_dir,
            local_files_only=source.local_files_only,
            allow_patterns=list(_TEXTS),
        )


def cached_folder(source: Source) -> Path | None:
    """The cached snapshot with a config.json, without any network; None when there is none."""
    try:
        import huggingface_hub

        found = huggingface_hub.try_to_load_from_cache(
            source.name, "config.json", cache_dir=source.cache_dir, revision=source.revision
        )
    except (ImportError, ValueError):
        return None
    return Path(found).parent if isinstance(found, str) else None


@contextmanager
def _explained(source: Source) -> Iterator[None]:
    """Turn the hub's many errors into one sentence that says what to do; the original is the cause."""
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(_advice(source, type(error).__name__)) from error


def _advice(source: Source, kind: str) -> str:
    what = f"{source.name} (revision {source.revision or 'main'}) could not be fetched ({kind})"
    if kind in ("GatedRepoError", "RepositoryNotFoundError"):
        return f"{what}: check the id; for a gated or private model accept its terms and set HF_TOKEN"
    if kind == "RevisionNotFoundError":
        return f"{what}: the model exists and the revision does not; check revision="
    if source.local_files_only or kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled"):
        return (
            f"{what}: it is not in the local cache and the hub cannot be asked; run `hf download {source.name}` where "
            "the network is, allow the network (leave out local_files_only= and HF_HUB_OFFLINE), or pass a folder"
        )
    return f"{what}: check the network, or run `hf download {source.name}` first and pass local_files_only=True"


def _check_disk(library: Any, source: Source) -> None:
    """Raise before a download that the disk cannot hold. Offline, the cache alone decides."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return
    try:
        planned = library.snapshot_download(
            source.name,
            revision=source.revision,
            cache_dir=source.cache_dir,
            allow_patterns=list(_WEIGHTS),
            dry_run=True,
        )
    except library.errors.DryRunError:  # the hub does not answer: what is cached must do, and nothing is downloaded
        return
    needed = sum(one.file_size or 0 for one in planned if one.will_download)
    place = Path(source.cache_dir or library.constants.HF_HUB_CACHE).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ModelLoadError(
            f"{source.name} needs {needed / 2**30:.1f} GiB of disk for its download and {free / 2**30:.1f} GiB are "
            "free in the cache; free some, or pass cache_dir= (or set HF_HOME) on a larger disk"
        )
