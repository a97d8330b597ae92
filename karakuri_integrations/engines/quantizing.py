"""Writing a quantised copy of a checkpoint, tensor by tensor: in memory is one shard of the copy and one source tensor.

No model is loaded and no forward pass is made, so the two ways in which saving a quantised model goes wrong cannot
happen here. bitsandbytes packs 4-bit weights for the CPU's matrix unit at the first forward, and unpacking them to save
corrupts them where the scales are not quantised too: here nothing was packed, and double quantisation is always on.
transformers cannot save a checkpoint that was loaded quantised: such a source is refused. The tensors are those that
transformers' own save_pretrained writes for the loaded model.

Each shard gets its name once it is whole and on the disk, config.json comes last (without it nothing loads the folder),
and a run that was interrupted goes on with the shards that are missing. All torch imports are inside functions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from .. import __version__
from ..errors import InsufficientMemoryError, ModelLoadError, OptionError, QuantizationError
from . import hub
from .checkpoint import Checkpoint, log
from .loading import (
    bitsandbytes_arguments,
    bitsandbytes_problem,
    check_architecture,
    empty_model,
    import_bitsandbytes,
    import_torch,
    linears,
    progress_shown,
)
from .manifest import Manifest, Recipe, fingerprint, locked, opened, replaced
from .memory import free_ram
from .model_card import companions, model_card
from .precision import PRECISIONS, Precision, missing_backend, stored_form
from .safety import check_checkpoint, check_files, check_versions, shards, tensors_of

__all__ = ["FORMS", "SHARD_BYTES", "quantize", "source_fingerprint"]

#: What a copy can be quantised to.
FORMS: Final = tuple(name for name, one in PRECISIONS.items() if one.bits is not None)
SHARD_BYTES: Final = 2 * 2**30
_INDEX: Final = "model.safetensors.index.json"
_CPU: Final = {"": "cpu"}
_GIB: Final = 2**30
_MAPS: Final = 0.01  # quantisation maps and headers, as a share of the whole
_SPARE_BYTES: Final = 2**20
#: What is in main memory per parameter while bitsandbytes quantises a layer on a CPU: the source and what was measured.
_WORK_BYTES: Final[Mapping[str, int]] = {"nf4": 17, "fp4": 31, "int8": 13}


@dataclass(frozen=True)
class _Part:
    """One tensor of the source. `layer`: the linear layer it is the weight of, when it is to be quantised, else ""."""

    name: str
    file: str
    count: int
    shape: tuple[int, ...]
    layer: str
    bytes: int


@dataclass(frozen=True)
class _Shard:
    """One file of the copy. `bytes` is an estimate."""

    name: str
    parts: tuple[_Part, ...]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.parts)


def quantize(
    checkpoint: Checkpoint, folder: Path, precision: Precision, device: str = "auto", *, shard_bytes: int = SHARD_BYTES
) -> Manifest:
    """Write a quantised copy of a checkpoint into a folder that LocalEngine loads as it is.

    Run again with the same arguments after an interruption, it goes on with what is missing; of a complete copy it
    checks the files and writes nothing.

    Raises:
        OptionError: the folder holds something else, or a copy that was begun otherwise.
        QuantizationError: the source is quantised already, or cannot be.
        ModelLoadError: and its other kinds: the source cannot be read, or the copy does not fit the disk.
    """
    _check(checkpoint, precision, device)
    complete = checkpoint.complete()
    check_checkpoint(complete)
    place = _place(device)
    recipe = _recipe(checkpoint, complete, precision, place, shard_bytes)
    plan = _planned(complete, precision, shard_bytes)
    with locked(folder):
        manifest = opened(folder, recipe, _versions())
        missing = [shard for shard in plan if shard.name not in manifest.files]
        if manifest.complete and not missing:
            return manifest
        _check_room(folder, missing, _WORK_BYTES[precision.name] if place == "cpu" else 4)
        manifest = replace(manifest, complete=False, versions=_versions())
        manifest.write(folder)
        manifest = _companions_copied(manifest, checkpoint, complete, folder)
        manifest = _shards_written(manifest, _Writer(complete, folder, precision, place), plan)
        manifest = replace(_described(manifest, complete, folder, precision, plan), complete=True)
        manifest.write(folder)
    log.info("%s quantised to %s", recipe.model, precision.name)
    return manifest


def _check(checkpoint: Checkpoint, precision: Precision, device: str) -> None:
    """All that can be said before weights are fetched."""
    if precision.bits is None:
        raise OptionError(f"quantization must be one of {', '.join(FORMS)} to quantise to, got {precision.name!r}")
    check_versions()
    check_files(checkpoint)
    stored = stored_form(checkpoint.config)
    if stored is not None:
        raise QuantizationError(
            f"{checkpoint.source.name} is quantised already (with {stored}): LocalEngine loads it as it is, and a copy "
            "of its files is a copy of it; for another form quantise the unquantised checkpoint"
        )
    import_torch()
    problem = missing_backend(precision, None) or bitsandbytes_problem(precision, device)
    if problem is not None:
        raise problem
    check_architecture(checkpoint)


def _place(device: str) -> str:
    """Where one layer at a time is quantised."""
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if device not in ("auto", "cuda") and not device.startswith("cuda:"):
        raise OptionError(f"device must be auto, cpu, cuda or cuda:<number> to quantise on, got {device!r:.40}")
    if not torch.cuda.is_available():
        raise ModelLoadError(f"device={device!r}: torch sees no CUDA device; pass device='cpu' or install a CUDA torch")
    return "cuda" if device == "auto" else device


def _recipe(checkpoint: Checkpoint, complete: Checkpoint, precision: Precision, place: str, shard_bytes: int) -> Recipe:
    return Recipe(
        model=checkpoint.source.name,
        commit=complete.small_files.name if checkpoint.source.folder is None else None,
        fingerprint=source_fingerprint(complete),
        quantization=precision.name,
        dtype=str(precision.dtype),
        device=place.partition(":")[0],
        shard_bytes=shard_bytes,
        torch=metadata.version("torch"),
        bitsandbytes=metadata.version("bitsandbytes"),
    )


def source_fingerprint(complete: Checkpoint) -> str:
    """Tells a source from another of the same name."""
    folder = complete.small_files
    return fingerprint([folder / "config.json", *(folder / one for one in shards(folder))])


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "bitsandbytes", "safetensors")
    return {"karakuri-integrations": __version__, **{name: metadata.version(name) for name in names}}


def _planned(checkpoint: Checkpoint, precision: Precision, shard_bytes: int) -> list[_Shard]:
    """The files of the copy, each filled in the source's order up to a size. The same for the same source."""
    groups: list[list[_Part]] = [[]]
    size = 0
    for part in _parts(checkpoint, precision):
        if groups[-1] and size + part.bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.bytes
    if len(groups) == 1:
        return [_Shard("model.safetensors", tuple(groups[0]))]
    count = len(groups)
    return [_Shard(f"model-{n:05d}-of-{count:05d}.safetensors", tuple(one)) for n, one in enumerate(groups, 1)]


def _parts(checkpoint: Checkpoint, precision: Precision) -> list[_Part]:
    """The source's tensors that its model has, and which of them are the weights of layers to be quantised."""
    model = empty_model(checkpoint)
    layers = {f"{name}.weight": name for name, _ in linears(model)}
    known = set(model.state_dict())
    folder = checkpoint.small_files
    parts, unknown = [], []
    for file in shards(folder):
        for one in tensors_of(folder / file):
            if one.name not in known:
                unknown.append(one.name)
                continue
            layer = layers.get(one.name, "")
            each = precision.linear_bytes if layer else precision.other_bytes
            size = round(one.count * (2 if each is None else each))
            parts.append(_Part(one.name, file, one.count, one.shape, layer, size))
    if unknown:
        log.info("left out: %d tensors that the model does not have, the first is %.80r", len(unknown), unknown[0])
    _check_names(checkpoint.source.name, model, {one.name: one.shape for one in parts})
    return parts


def _check_names(name: str, model: Any, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the source has each weight of the model, under one of its names where it is tied, in its shape."""
    names: dict[int, list[str]] = {}
    shapes = {}
    for one, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(one)
        shapes[one] = tuple(parameter.shape)
    missing = [same[0] for same in names.values() if not any(one in found for one in same)]
    wrong = [one for one, shape in found.items() if one in shapes and shapes[one] != shape]
    if missing or wrong:
        raise ModelLoadError(
            f"{name} lacks {len(missing) + len(wrong)} of the weights that its config.json describes, the first is "
            f"{(missing + wrong)[0]!r:.80}; fetch the checkpoint again"
        )


def _check_room(folder: Path, missing: Iterable[_Shard], work_bytes: int) -> None:
    """Raise before anything is written that the disk, or main memory, cannot hold."""
    todo = list(missing)
    needed = round(sum(one.bytes for one in todo) * (1 + _MAPS)) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise QuantizationError(
            f"the copy needs {needed / _GIB:.1f} GiB more of disk and {free / _GIB:.1f} GiB are free; free some, or "
            "name a folder on a larger disk"
        )
    largest = max((part.count for one in todo for part in one.parts if part.layer), default=0)
    held = max((one.bytes for one in todo), default=0) + largest * work_bytes
    if held > free_ram():
        raise InsufficientMemoryError(
            f"quantising needs about {held / _GIB:.1f} GiB of main memory (a shard of the copy and the largest layer) "
            f"and {free_ram() / _GIB:.1f} GiB are free; free memory, or use a machine with a GPU"
        )


class _Writer:
    """Reads a source's tensors, one at a time, and writes the shards of its copy."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, precision: Precision, place: str) -> None:
        import torch

        self.folder = folder
        self._source = checkpoint.small_files
        self._precision = precision
        self._dtype = getattr(torch, str(precision.dtype))
        self._place = place

    def write(self, shard: _Shard, advance: Callable[[int], object]) -> None:
        """Write one shard; `advance` is told the bytes of each tensor that is done."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        held: dict[str, Any] = {}
        with torch.inference_mode():
            for part in shard.parts:
                held.update(self._converted(part))
                advance(part.bytes)
        try:
            with replaced(self.folder / shard.name) as part_file:
                save_file(held, str(part_file), metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise QuantizationError(
                f"{shard.name} cannot be written ({type(error).__name__}); check the disk, then run the same command "
                "again: it goes on with the shards that are missing"
            ) from error

    def _converted(self, part: _Part) -> dict[str, Any]:
        from safetensors import safe_open

        # Opened for each tensor: the pages of a file that stays open would count as this process's memory.
        with safe_open(self._source / part.file, framework="pt", device="cpu") as file:
            value = file.get_tensor(part.name)
        value = value.to(self._dtype if value.is_floating_point() else value.dtype, copy=not part.layer)
        if not part.layer:
            return {part.name: value.contiguous()}
        state = self._quantized(value).state_dict(prefix=f"{part.layer}.")
        # Tables that layers share would be refused in the file: each tensor gets memory of its own.
        return {name: one.detach().cpu().contiguous().clone() for name, one in state.items()}

    def _quantized(self, weight: Any) -> Any:
        """A layer of bitsandbytes with this weight: its state is the form that transformers saves and loads."""
        import torch

        nn = import_bitsandbytes().nn
        rows, columns = weight.shape
        if self._precision.bits == 8:
            layer = nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
            layer.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(self._place)
            return layer
        form = {"compress_statistics": True, "quant_type": self._precision.kind, "quant_storage": torch.uint8}
        layer = nn.Linear4bit(columns, rows, bias=False, compute_dtype=self._dtype, device="meta", **form)
        layer.weight = nn.Params4bit(weight, requires_grad=False, module=layer, **form).to(self._place)
        return layer


def _shards_written(manifest: Manifest, writer: _Writer, plan: list[_Shard]) -> Manifest:
    from transformers.utils import logging as hf_logging

    total = sum(one.bytes for one in plan)
    todo = [one for one in plan if one.name not in manifest.files]
    done = total - sum(one.bytes for one in todo)
    with (
        progress_shown(total),
        hf_logging.tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="Quantising weights") as bar,
    ):
        for shard in todo:
            writer.write(shard, bar.update)
            manifest = manifest.with_file(writer.folder, shard.name)
            manifest.write(writer.folder)
    return manifest


def _companions_copied(manifest: Manifest, checkpoint: Checkpoint, complete: Checkpoint, folder: Path) -> Manifest:
    """Tokenizer, template, licence and the model card. They are small, so they are written in every run."""
    source = complete.small_files
    if checkpoint.source.folder is None:
        hub.fetch_texts(replace(checkpoint.source, revision=source.name))
    for name in companions(source):
        shutil.copyfile(source / name, folder / name)
        manifest = manifest.with_file(folder, name)
    card = source / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else None
    (folder / "README.md").write_text(model_card(manifest.recipe, text), "utf-8")
    return manifest.with_file(folder, "README.md")


def _described(
    manifest: Manifest, checkpoint: Checkpoint, folder: Path, precision: Precision, plan: list[_Shard]
) -> Manifest:
    """With the index of several shards, and with config.json."""
    if len(plan) > 1:
        weights = {one.name: (shard.name, one.bytes) for shard in plan for one in tensors_of(folder / shard.name)}
        index = {
            "metadata": {
                "total_parameters": sum(part.count for shard in plan for part in shard.parts),
                "total_size": sum(size for _, size in weights.values()),
            },
            "weight_map": {name: shard for name, (shard, _) in weights.items()},
        }
        with replaced(folder / _INDEX) as file:
            file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
        manifest = manifest.with_file(folder, _INDEX)
    _config_written(checkpoint, folder, precision)
    return manifest.with_file(folder, "config.json")


def _config_written(checkpoint: Checkpoint, folder: Path, precision: Precision) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(checkpoint.small_files), trust_remote_code=False, local_files_only=True)
    # The CPU's form: bfloat16, whatever this machine computes in, so that the copy does not depend on it.
    config.quantization_config = bitsandbytes_arguments(precision, _CPU)["quantization_config"]
    config.dtype = precision.dtype
    with replaced(folder / "config.json") as file:
        config.to_json_file(str(file))
