"""Is a quantised copy what was written, and does it compute what the quantised source computes?

Two checks: the SHA-256 of every file, and the logits of a fixed prompt, always on a model that was loaded for it and
has made no other forward pass. On the same machine with the same versions the logits have to be equal to the last bit.
"""

from __future__ import annotations

import gc
import hashlib
import platform
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ..errors import NumericalError, OptionError, QuantizationError
from .checkpoint import Checkpoint, source_of
from .loading import load
from .manifest import MANIFEST, Logits, Manifest, is_intact, read
from .precision import PRECISIONS, Precision
from .quantizing import source_fingerprint
from .safety import check_checkpoint
from .tokens import load_tokenizer

__all__ = ["Computed", "check_files_intact", "compare_with_record", "compare_with_source", "computed"]

_PROMPT: Final = "富士山は日本で一番高い山です。What is the tallest mountain of Japan?"
_TOP: Final = 20
#: Between machines and versions rounding differs: with bfloat16 by one or two per cent, with damaged weights by tens.
_TOLERANCE: Final = 0.05
_READ_WITH_WEIGHTS: Final = (".json", ".jinja", ".safetensors", ".model", ".bin")


@dataclass(frozen=True, repr=False)
class Computed:
    """The logits of the fixed prompt: positions by vocabulary, float32, in main memory."""

    values: Any
    device: str
    environment: str

    @property
    def record(self) -> Logits:
        """What the manifest keeps of them."""
        last = self.values[-1].topk(min(_TOP, self.values.shape[-1]))
        top = tuple(zip(last.indices.tolist(), last.values.tolist(), strict=True))
        return Logits(_PROMPT, self.environment, hashlib.sha256(self.values.numpy().tobytes()).hexdigest(), top)


def computed(checkpoint: Checkpoint, precision: Precision, device: str) -> Computed:
    """Load a model, let it read the fixed prompt once, and free it.

    Raises:
        ModelLoadError: it cannot be loaded, or does not fit the memory.
        NumericalError: the logits are not numbers.
    """
    import torch

    ids = load_tokenizer(checkpoint)(_PROMPT, add_special_tokens=False)["input_ids"]
    loaded = load(checkpoint, precision, device)
    with torch.inference_mode():
        given = torch.tensor([ids], device=loaded.report.device)
        values = loaded.model(input_ids=given).logits[0].float().cpu()
    place = loaded.report.device
    del loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not bool(torch.isfinite(values).all()):
        raise NumericalError(f"the logits of {checkpoint.source.name} are not numbers; fetch the checkpoint again")
    return Computed(values, place.partition(":")[0], _environment(place))


def _environment(device: str) -> str:
    """What the last bits of logits depend on."""
    import torch

    versions = " ".join(f"{one} {metadata.version(one)}" for one in ("torch", "transformers", "bitsandbytes"))
    if device.startswith("cuda"):
        return f"{versions}, {torch.cuda.get_device_name(device)}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{versions}, {platform.machine()} {capability}, {torch.get_num_threads()} threads"


def check_files_intact(folder: Path) -> Manifest:
    """Compare a copy's files with its manifest.

    Raises:
        OptionError: the folder is no copy of ours, or not a finished one.
        QuantizationError: files are missing, changed, or were added.
    """
    manifest = read(folder)
    if manifest is None:
        raise OptionError(f"{folder.name!r:.80} has no {MANIFEST}, so it is no folder that `karakuri quantize` wrote")
    if not manifest.complete:
        raise OptionError(
            f"{folder.name!r:.80} is not finished: {len(manifest.files)} files are written; run `karakuri quantize` "
            "with the arguments it was begun with"
        )
    changed = sorted(name for name, one in manifest.files.items() if not is_intact(folder / name, one))
    if changed:
        raise QuantizationError(
            f"{len(changed)} of {len(manifest.files)} files are missing or not what was written: {', '.join(changed)}; "
            "run `karakuri quantize` with the same source and folder, which makes these again, or fetch the copy again"
        )
    more = sorted(one.name for one in folder.iterdir() if one.suffix in _READ_WITH_WEIGHTS and _added(one, manifest))
    if more:
        raise QuantizationError(
            f"{', '.join(more)} stands in the folder and not in its manifest, and is read with the model; remove it"
        )
    return manifest


def _added(path: Path, manifest: Manifest) -> bool:
    return path.is_file() and path.name not in manifest.files and path.name != MANIFEST


def _copy_logits(folder: Path, device: str) -> Computed:
    """The logits of a copy, freshly loaded."""
    return computed(Checkpoint(source_of(folder)), PRECISIONS["none"], device)


def compare_with_source(manifest: Manifest, folder: Path, source: Checkpoint, device: str) -> tuple[Manifest, str]:
    """Compare the copy's logits with those of its source, quantised while it is loaded.

    They have to be equal where the copy was made on such a device with these versions; elsewhere rounding may differ.
    Returns the manifest with the logits in it, not yet written, and what was found, as a sentence.

    Raises:
        OptionError: the copy was made from something else.
        QuantizationError: they differ.
        ModelLoadError: one of the two does not fit the memory.
    """
    complete = source.complete()
    check_checkpoint(complete)
    if source_fingerprint(complete) != manifest.recipe.fingerprint:
        made_from = f"{manifest.recipe.model} (commit {manifest.recipe.commit or 'unknown'})"
        raise OptionError(
            f"the copy in {folder.name!r:.80} was made from {made_from} and {source.source.name} has other "
            "weights or another config.json; name the source it was made from"
        )
    name = source.source.name
    reference = computed(complete, PRECISIONS[manifest.recipe.quantization], device)
    found = _copy_logits(folder, device)
    recorded = replace(manifest, logits=found.record)
    if found.record.sha256 == reference.record.sha256:
        return recorded, f"the logits equal those of {name} quantised in memory, to the last bit"
    distance = _distance(found.values, reference.values)
    if not _made_here(manifest, found.device) and distance <= _TOLERANCE:
        made = f"{manifest.recipe.device}, torch {manifest.recipe.torch}, bitsandbytes {manifest.recipe.bitsandbytes}"
        return recorded, f"the logits are within {distance:.2%} of those of {name} quantised here (the copy: {made})"
    raise QuantizationError(
        f"the logits of the copy differ from those of {name} quantised in memory, by {distance:.2%}; delete the folder "
        "and quantise again"
    )


def _made_here(manifest: Manifest, device: str) -> bool:
    """Whether quantising here gives the copy's own bits."""
    recipe = manifest.recipe
    here = (device, metadata.version("torch"), metadata.version("bitsandbytes"))
    return (recipe.device, recipe.torch, recipe.bitsandbytes) == here


def compare_with_record(manifest: Manifest, folder: Path, device: str) -> str:
    """Compare the copy's logits with those in its manifest. Returns what was found, as a sentence.

    Raises:
        QuantizationError: they differ more than rounding does.
    """
    expected = manifest.logits
    if expected is None:
        return "no logits were recorded; name the source too (karakuri quantize --verify MODEL OUT) to compare with it"
    found = _copy_logits(folder, device)
    if found.environment == expected.environment:
        if found.record.sha256 == expected.sha256:
            return "the logits are those that were recorded, to the last bit"
        raise QuantizationError(
            "the logits differ from those that were recorded on such a machine with the same versions; the files are "
            "right, so check the machine's memory and its libraries"
        )
    import torch

    last = found.values[-1]
    ids = [one for one, _ in expected.top]
    distance = _distance(last[ids], torch.tensor([value for _, value in expected.top]))
    if distance <= _TOLERANCE:
        return f"the logits are within {distance:.2%} of those recorded with other versions or on another machine"
    raise QuantizationError(
        f"the logits differ by {distance:.0%} from those that were recorded ({expected.environment}) and rounding "
        f"explains {_TOLERANCE:.0%}; compare with the source (karakuri quantize --verify MODEL OUT)"
    )


def _distance(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
