"""Will the model fit? An estimate from headers and configuration, made before loading, against what is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import InsufficientMemoryError, OptionError
from .precision import Precision
from .safety import Tensor

__all__ = [
    "KV_CACHE_DTYPES",
    "Estimate",
    "cache_bytes",
    "check_kv_cache_dtype",
    "check_memory",
    "estimate",
    "free_ram",
    "tensor_bytes",
    "usual_cache",
]

#: In what keys and values are held: the model's own type; 8 bits with a scale, in that type, for each token and head.
KV_CACHE_DTYPES: Final = ("auto", "int8")

_GIB: Final = 2**30
_LEAST_KEPT: Final = 256 * 2**20
_MOST_KEPT: Final = 0.2  # of what is free beside the weights
_WINDOWS_KEPT: Final = 2
_LEAST_MARGIN: Final = 64 * 2**20


@dataclass(frozen=True)
class Estimate:
    """Bytes needed: the weights in their loaded form, the cache of one full context window, and a margin."""

    weights: int
    cache: int

    @property
    def margin(self) -> int:
        """For activations and buffers."""
        return max(_LEAST_MARGIN, self.weights // 20)

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.margin


def estimate(
    tensors: Iterable[Tensor],
    config: Mapping[str, Any],
    precision: Precision,
    *,
    stored: bool,
    window: int,
    kv_cache_dtype: str = "auto",
) -> Estimate:
    """What a checkpoint will need. `stored`: it is loaded as it is, because it is quantised already."""
    weights = sum(one.bytes if stored else tensor_bytes(one, precision) for one in tensors)
    size = 4 if precision.name == "fp32" else 2
    return Estimate(round(weights), window * cache_bytes(config, size, kv_cache_dtype))


def tensor_bytes(tensor: Tensor, precision: Precision) -> float:
    """Of a tensor, once it is held in this precision."""
    linear = len(tensor.shape) >= 2 and not any(part in tensor.name for part in ("embed", "lm_head"))
    each = precision.linear_bytes if linear else precision.other_bytes
    return tensor.bytes if each is None else tensor.count * each


def cache_bytes(config: Mapping[str, Any], size: int, kv_cache_dtype: str = "auto") -> int:
    """Bytes that one token adds to the key and value caches; `size` are those of a number in the model's type."""
    heads = int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or int(config.get("hidden_size") or 0) // heads)
    vectors = 2 * int(config.get("num_hidden_layers") or 0) * int(config.get("num_key_value_heads") or heads)
    return vectors * (head + size if kv_cache_dtype == "int8" else head * size)


def usual_cache(free: int, window: int, token: int) -> int:
    """Bytes to keep of earlier prompts where nobody says how many: enough for two that fill the window.

    `free` are those beside the weights, `token` those of one token's keys and values.
    """
    return max(_LEAST_KEPT, min(_WINDOWS_KEPT * window * token, int(_MOST_KEPT * free)))


def check_kv_cache_dtype(name: object) -> None:
    """Raise OptionError unless keys and values can be held so."""
    if name not in KV_CACHE_DTYPES:
        raise OptionError(f"kv_cache_dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got {name!r:.40}")


def check_memory(name: str, needed: Estimate, free: int, device: str, precision: Precision, window: int) -> None:
    """Raise InsufficientMemoryError, with the numbers and what to change, unless the estimate fits."""
    if needed.total <= free:
        return
    smaller = "" if precision.bits == 4 else ', load it with quantization="nf4"'
    elsewhere = (
        "use a machine with a GPU"
        if device == "cpu"
        else "use device='cpu', device='offload' (a part of it on the GPU) or more GPUs (device='auto')"
    )
    raise InsufficientMemoryError(
        f"{name} needs about {needed.total / _GIB:.1f} GiB on {device} (weights as {precision.name} "
        f"{needed.weights / _GIB:.1f}, cache of {window} tokens {needed.cache / _GIB:.1f}, margin "
        f"{needed.margin / _GIB:.1f}) and {free / _GIB:.1f} GiB are free; free memory{smaller} or {elsewhere}"
    )


def free_ram() -> int:
    """Bytes of main memory that can be had: what the system has available, within the container's limit."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_room()])


def _container_room() -> list[int]:
    """What is left of a cgroup's limit, version 2 or 1; nothing when there is no limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            return [int(Path(limit).read_text()) - int(Path(used).read_text()) + _reclaimable()]
    return []


def _reclaimable() -> int:
    """File pages that count as used and are given back on demand."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        return sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    return 0
