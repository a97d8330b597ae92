"""The manifest of a quantised copy: what it was made from, with which versions, and the SHA-256 of every file.

It grows while the copy is written, so that a run that was interrupted knows what is finished. Knows no torch. What the
files hold is `quantizing`'s, whether they still hold it is `verifying`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from ..errors import OptionError, QuantizationError
from .checkpoint import read_json

__all__ = [
    "MANIFEST",
    "File",
    "Logits",
    "Manifest",
    "Recipe",
    "fingerprint",
    "is_intact",
    "locked",
    "opened",
    "read",
    "replaced",
    "summed",
]

MANIFEST: Final = "karakuri-quantization.json"
_FORMAT: Final = 1
_PARTS: Final = ".part"
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 2**16
_PLAIN_NAME: Final = re.compile(r"[\w][\w.-]*")


@dataclass(frozen=True)
class Recipe:
    """What decides the bytes of a copy. A run goes on only where all of it is the same.

    `model` is the source's id, of a folder its name; `commit` is that of a hub model. `fingerprint` tells other weights
    of the same id. `dtype` is that of what is not quantised.
    """

    model: str
    commit: str | None
    fingerprint: str
    quantization: str
    dtype: str
    device: str
    shard_bytes: int
    torch: str
    bitsandbytes: str


@dataclass(frozen=True)
class File:
    """A finished file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Logits:
    """The logits of a fixed prompt, computed on the copy right after it was loaded.

    `environment` names what they depend on bit by bit; `top` are the largest of the last position: token and value.
    """

    prompt: str
    environment: str
    sha256: str
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Manifest:
    """A copy as far as it is written. `versions` are those of the libraries that wrote it."""

    recipe: Recipe
    versions: Mapping[str, str]
    files: Mapping[str, File] = field(default_factory=dict)
    complete: bool = False
    logits: Logits | None = None

    def with_file(self, folder: Path, name: str) -> Manifest:
        """With a file that was just written."""
        return replace(self, files={**self.files, name: summed(folder / name)})

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"
        with replaced(folder / MANIFEST) as part:
            part.write_text(text, "utf-8")


def read(folder: Path) -> Manifest | None:
    """The manifest in a folder, or None where there is none.

    Raises:
        QuantizationError: it is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return None
    found = read_json(folder / MANIFEST)
    if found.get("format") != _FORMAT:
        raise QuantizationError(
            f"{MANIFEST} has the format {found.get('format')!r:.20} and this version reads {_FORMAT}; use the version "
            "of karakuri-integrations that wrote it, or quantise again into an empty folder"
        )
    try:
        return _manifest(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise QuantizationError(f"{MANIFEST} is damaged; quantise again into an empty folder") from error


def _manifest(found: Mapping[str, Any]) -> Manifest:
    logits = found["logits"]
    files = {name: File(int(one["bytes"]), str(one["sha256"])) for name, one in found["files"].items()}
    if not all(_PLAIN_NAME.fullmatch(name) for name in files):
        raise ValueError("a name that leaves the folder")
    return Manifest(
        recipe=Recipe(**found["recipe"]),
        versions=dict(found["versions"]),
        files=files,
        complete=found["complete"] is True,
        logits=logits and Logits(**{**logits, "top": tuple((int(a), float(b)) for a, b in logits["top"])}),
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other runs out of it; on systems without flock only the first half.

    Raises:
        OptionError: it is a file, or another run writes to it.
    """
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"{folder.name!r:.80} is a file; name a folder that does not exist yet or is empty")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OptionError(
                    f"another run writes to {folder.name!r:.80}; wait for it, or name another folder"
                ) from None
        yield
    finally:
        os.close(handle)


def opened(folder: Path, recipe: Recipe, versions: Mapping[str, str]) -> Manifest:
    """The manifest to go on with: a new one in an empty folder, or that of a run with the same recipe.

    What was written by that run and is not what it wrote any more is left out, so that it is made again.

    Raises:
        OptionError: the folder holds something else, or a copy by another recipe.
    """
    manifest = read(folder)
    if manifest is None:
        if any(path.name != _PARTS for path in folder.iterdir()):
            raise OptionError(
                f"the folder {folder.name!r:.80} holds other files and no {MANIFEST}; name one that does not exist yet "
                "or is empty"
            )
        manifest = Manifest(recipe, dict(versions))
    else:
        _check_same(folder.name, manifest.recipe, recipe)
    shutil.rmtree(folder / _PARTS, ignore_errors=True)  # what a killed run had begun
    intact = {name: one for name, one in manifest.files.items() if is_intact(folder / name, one)}
    return replace(manifest, files=intact, complete=manifest.complete and len(intact) == len(manifest.files))


def _check_same(name: str, earlier: Recipe, now: Recipe) -> None:
    for one in fields(Recipe):
        before, after = getattr(earlier, one.name), getattr(now, one.name)
        if before != after:
            what = "other weights or another config.json" if one.name == "fingerprint" else f"{after!r:.60}"
            was = "" if one.name == "fingerprint" else f", it was {before!r:.60}"
            raise OptionError(
                f"the copy in {name!r:.80} was begun with another {one.name}: this run has {what}{was}; run the "
                "command as it was begun to go on with it, or name an empty folder (or delete this one) to start over"
            )


def is_intact(path: Path, expected: File) -> bool:
    """Whether a file is byte for byte what was written."""
    return path.is_file() and path.stat().st_size == expected.bytes and summed(path) == expected


def summed(path: Path) -> File:
    """A file's size and SHA-256."""
    with path.open("rb") as file:
        return File(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name to write a file under; it takes its real name once it is whole and on the disk, and not otherwise.

    It lies in a folder of its own, because safetensors too writes under a name of its own beside the one it is given.
    """
    part = path.parent / _PARTS / path.name
    part.parent.mkdir(exist_ok=True)
    part.touch()
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)  # that of a new file; safetensors makes its files unreadable for others
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
        with suppress(OSError):  # another half file is still in it
            part.parent.rmdir()


def fingerprint(paths: Iterable[Path]) -> str:
    """Tells files from others of the same names: their sizes, their beginnings, and samples spread over each.

    Whole files would take as long to read as to quantise. Weights of another training differ everywhere.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for number in range(_SAMPLES):
                file.seek(number * size // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
