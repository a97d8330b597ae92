"""Is a checkpoint safe to load? Pure checks on files, made before torch or transformers read any of them.

`trust_remote_code=False` alone is not a boundary (CVE-2026-4372: a config.json that named an attention kernel ran
code), so: weights only as safetensors, a configuration of a known model type that names no code, no file outside
the folder, and library versions without the known holes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ..errors import MissingDependencyError, ModelLoadError, UnsafeModelError
from ..templates import FAMILIES
from .checkpoint import Checkpoint, read_json
from .hub import missing

__all__ = ["Tensor", "check_checkpoint", "check_files", "check_versions", "shards", "tensors", "tensors_of"]

_FLOORS: Final = {
    "torch": ((2, 6), "CVE-2025-32434: older versions can run code hidden in weights"),
    "transformers": ((5, 3), "CVE-2026-4372: older versions can run code named in config.json"),
}
_MODEL_TYPES: Final = frozenset(one for family in FAMILIES.values() for one in family.model_types)
_SETTINGS: Final = ("config.json", "generation_config.json", "tokenizer_config.json")
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_LARGEST_HEADER: Final = 100 * 2**20  # the safetensors library's own limit


def check_versions() -> None:
    """Raise unless torch and transformers are installed without the known holes. Imports neither."""
    for name, (floor, why) in _FLOORS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise missing(name) from error
        if tuple(int(one) for one in re.findall(r"\d+", version)[:2]) < floor:
            least = ".".join(map(str, floor))
            raise MissingDependencyError(
                f"{name} {version} is installed and at least {least} is needed ({why}): pip install '{name}>={least}'"
            )


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise unless a checkpoint's folder holds all its weights and everything in it is safe to load."""
    check_files(checkpoint)
    _check_complete(checkpoint.source.name, checkpoint.small_files)


def check_files(checkpoint: Checkpoint) -> None:
    """Raise UnsafeModelError unless everything that is in a checkpoint's folder is safe to load."""
    folder, name = checkpoint.small_files, checkpoint.source.name
    _check_config(checkpoint)
    if (folder / "adapter_config.json").exists():
        raise UnsafeModelError(
            f"{name} holds an adapter, which would load a second model that it names; merge it first"
        )
    if checkpoint.source.folder is not None:  # of a hub model only the files that were asked for are there
        _check_pickles(name, folder)
    if (folder / _INDEX).is_file():
        shards(folder)
    if not checkpoint.source.packaged:  # what installs a package may well link its files
        _check_links(name, folder)


def _check_config(checkpoint: Checkpoint) -> None:
    name = checkpoint.source.name
    model_type = checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _MODEL_TYPES:
        raise UnsafeModelError(
            f"{name}: config.json has model_type {model_type!r:.40}; known are {', '.join(sorted(_MODEL_TYPES))}"
        )
    for file in _SETTINGS:
        path = checkpoint.small_files / file
        for key, value in _entries(read_json(path)) if path.is_file() else ():
            if _names_code(key, value):
                raise UnsafeModelError(
                    f"{name}: {file} sets {key!r:.60}, which could run code from outside; use a checkpoint without it"
                )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value in a JSON value, however deep."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            yield from one.items()
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)


def _names_code(key: str, value: Any) -> bool:
    if key in ("auto_map", "custom_generate"):
        return True
    if key == "trust_remote_code":
        return bool(value)
    if key.endswith(("_implementation", "_implementation_internal", "_implementation_autoset")):
        return not all(one is None or isinstance(one, bool) or str(one).isidentifier() for one in _leaves(value))
    return key in ("use_kernels", "kernel_config") and bool(value)


def _leaves(value: Any) -> list[Any]:
    return [leaf for one in value.values() for leaf in _leaves(one)] if isinstance(value, Mapping) else [value]


def _check_pickles(name: str, folder: Path) -> None:
    files = sorted(path.name for path in folder.iterdir())
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if pickles and not any(file.endswith(".safetensors") for file in files):
        raise UnsafeModelError(
            f"{name} holds its weights only as pickles ({pickles[0]}), which can run code when they are loaded; "
            "use a checkpoint in safetensors format"
        )


def _check_complete(name: str, folder: Path) -> None:
    for shard in shards(folder):
        if not (folder / shard).is_file():
            raise ModelLoadError(f"{name}: the weights file {shard!r:.80} is missing; fetch the checkpoint again")


def shards(folder: Path) -> list[str]:
    """The names of the weight files that will be loaded; each is a plain name inside the folder."""
    index = folder / _INDEX
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return ["model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{_INDEX} has no weight_map; fetch the checkpoint again")
    names = sorted(set(map(str, weight_map.values())))
    for one in names:
        if not re.fullmatch(r"[\w][\w.-]*\.safetensors", one):
            raise UnsafeModelError(f"{_INDEX} names {one!r:.80}, which is not a safetensors file of its folder")
    return names


def _check_links(name: str, folder: Path) -> None:
    """Files may be links only within the folder, or into the hub cache's own blobs."""
    real = folder.resolve()
    roots = [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
    for path in folder.iterdir():
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            raise UnsafeModelError(f"{name}: {path.name!r:.80} is a link that leaves the model's folder; copy the file")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, as its header describes it."""

    name: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def count(self) -> int:
        total = 1
        for one in self.shape:
            total *= one
        return total


def tensors(checkpoint: Checkpoint) -> list[Tensor]:
    """All tensors of a complete checkpoint, from the headers of its files; no weights are read.

    Raises:
        ModelLoadError: a file is damaged or cut short.
    """
    folder = checkpoint.small_files
    return [tensor for shard in shards(folder) for tensor in tensors_of(folder / shard)]


def tensors_of(path: Path) -> list[Tensor]:
    """The tensors of one file, as `tensors`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size or length > _LARGEST_HEADER:
            raise ModelLoadError(f"{path.name} is no safetensors file or is cut short; fetch the checkpoint again")
        try:
            header = json.loads(file.read(length))
            found = [_tensor(name, one) for name, one in header.items() if name != "__metadata__"]
            end = max((one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{path.name} has a damaged header; fetch the checkpoint again") from error
    if 8 + length + end != size:
        raise ModelLoadError(
            f"{path.name} has {size} bytes and its header describes {8 + length + end}; fetch the checkpoint again"
        )
    return found


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    shape = tuple(int(one) for one in entry["shape"])
    begin, end = entry["data_offsets"]
    return Tensor(name, shape, int(end) - int(begin))
