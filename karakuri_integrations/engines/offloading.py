"""A model of which a GPU holds a part: its last layers stay in main memory, and the CPU computes them there.

accelerate's offloading moves such layers to the GPU for every pass, and bitsandbytes leaves them at 16 bits: of a 70B
that is tens of gigabytes over the bus for each token. Here they stay where they are, in 4 bits, and what moves is one
vector a token; `llama_pass` takes it from layer to layer. Imports torch inside functions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import InsufficientMemoryError, ModelLoadError, OptionError
from .memory import Estimate, tensor_bytes
from .precision import Precision
from .safety import Tensor

__all__ = ["Split", "check_splittable", "cost", "split", "split_of"]

_GIB: Final = 2**30
_LAYER: Final = re.compile(r"\.layers\.(\d+)\.")
_MEASURED: Final = 2**28  # bytes


@dataclass(frozen=True)
class Split:
    """The first `count` of `layers` layers, and what is no layer, are on the GPU. `left`: bytes of the others."""

    count: int
    layers: int
    left: int

    @property
    def whole(self) -> bool:
        return self.count == self.layers


def check_splittable(name: str, config: Mapping[str, Any], precision: Precision, stored: str | None) -> None:
    """Raise unless the layers of such a model can be in two places."""
    if config.get("model_type") != "llama" or stored not in (None, "bitsandbytes"):
        raise ModelLoadError(
            f'device="offload" takes Llamas whose weights are not stored as GPTQ or AWQ, and {name} is none; serve it '
            "with llama.cpp, which leaves layers in main memory too, or pass another device"
        )
    held = config.get("quantization_config")
    if precision.bits == 8 or (isinstance(held, Mapping) and held.get("load_in_8bit")):
        raise OptionError(
            f'device="offload" does not go with 8 bits, in which {name} would be; pass quantization="nf4" and a '
            "checkpoint that is not stored so"
        )


def split_of(
    name: str, tensors: Sequence[Tensor], needed: Estimate, precision: Precision, *, stored: bool, free: int
) -> Split:
    """How many layers fit into so many bytes of a GPU, with their keys and values of one full window.

    Raises:
        InsufficientMemoryError: not one does.
    """
    sizes: dict[int, float] = {}
    others = 0.0
    for one in tensors:
        held = float(one.bytes) if stored else tensor_bytes(one, precision)
        found = _LAYER.search(one.name)
        if found is None:
            others += held
        else:
            sizes[int(found[1])] = sizes.get(int(found[1]), 0.0) + held
    layers, cache = len(sizes), needed.cache / max(1, len(sizes))
    room, count = free - needed.margin - others, 0
    while count < layers and room >= sizes[count] + cache:
        room -= sizes[count] + cache
        count += 1
    if not count:
        raise InsufficientMemoryError(
            f'device="offload": {free / _GIB:.1f} GiB are free on the GPU, and beside {others / _GIB:.1f} of '
            f"embeddings and a margin of {needed.margin / _GIB:.1f} not one of the {layers} layers of {name} "
            'fits; pass device="cpu", or free memory'
        )
    return Split(count, layers, round(sum(size for number, size in sizes.items() if number >= count)))


def split(model: Any, count: int, device: Any) -> None:
    """Move all but the layers from `count` on, before the first pass has given the weights another format."""
    inner = model.model
    for one in (inner.embed_tokens, inner.norm, inner.rotary_emb, model.lm_head, *inner.layers[:count]):
        one.to(device)


def cost(name: str, found: Split, device: str) -> str:
    """What it costs, for a warning. Measures how fast main memory is read."""
    rate = _read_rate()
    left = found.layers - found.count
    return (
        f"{name}: {found.count} of {found.layers} layers are on {device}; the other {left} ({found.left / _GIB:.1f} "
        "GiB) stay in main memory and the CPU computes them. Each token reads all of these, which takes at least "
        f"{found.left / rate:.2g} s at the {rate / 1e9:.0f} GB/s measured here; a GPU that holds all has no such cost"
    )


def _read_rate() -> float:
    """Bytes a second that a copy reads."""
    import torch

    source = torch.zeros(_MEASURED, dtype=torch.uint8)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(3):
        began = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - began)
    return _MEASURED / best
