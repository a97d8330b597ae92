"""The ceiling: how fast this machine copies memory and multiplies matrices, and how much of that decoding reaches.

To make one token a model reads all its weights once. So no reply can be faster than the memory's bandwidth over the
bytes of the weights, as long as these do not fit in the processor's cache.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any, Final

from .figures import Figure, Spread
from .subject import Effort, Subject

__all__ = ["CEILING", "ceiling", "copy_rate", "describe", "read_bytes"]

CEILING: Final = "Ceiling of this machine"
_COPY: Final = {"cpu": 2**28, "cuda": 2**31}  # bytes; more than any cache
_MATRIX: Final = {"cpu": 1024, "cuda": 8192}


def describe(device: Any) -> dict[str, Any]:
    """What the figures were taken on."""
    import torch

    about = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        about["gpu"] = torch.cuda.get_device_name(device)
        about["gpu_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return about


def ceiling(subject: Subject, effort: Effort, tokens_a_second: float) -> list[Figure]:
    """Measured bandwidth and matrix rate, and the share of the bandwidth that one stream reaches."""
    effort.say("the machine's own speed")
    device, weights = subject.look(
        lambda batch: (batch.model.get_input_embeddings().weight.device, read_bytes(batch.model))
    )
    copied = Spread.of(copy_rate(device) for _ in range(effort.rounds + 1))
    rate = Spread.of(_multiply(device) for _ in range(effort.rounds + 1))
    used = weights * tokens_a_second / 1e9
    share = used / copied.median
    note = f"{weights / 2**20:,.1f} MiB of weights a token; at most {1e9 * copied.median / weights:,.0f} tokens/s"
    if device.type == "cpu" and weights < 2**26:
        note += "; weights this small may stay in the processor's cache, where this is no ceiling"
    return [
        Figure(CEILING, "copying, read and written", "GB/s", copied),
        Figure(CEILING, "matrices, bf16", "GFLOP/s", rate),
        Figure(CEILING, "weights read by one stream", "GB/s", Spread(used, used, used), Spread(share, share, share),
               "of copying", note=note),
    ]  # fmt: skip


def read_bytes(model: Any) -> int:
    """Bytes of weights that a token reads: all but an embedding of its own, of which it reads a row."""
    from ..engines.loading import held_bytes

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    total = sum(held_bytes(one) for one in model.parameters())
    return total - (0 if embedding is head else int(embedding.nbytes))


def copy_rate(device: Any) -> float:
    """GB/s of one copy, what is read and what is written together."""
    import torch

    source = torch.ones(_COPY[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(device, lambda: target.copy_(source)) / 1e9


def _multiply(device: Any) -> float:
    """GFLOP/s."""
    import torch

    size = _MATRIX[device.type]
    matrix = torch.ones((size, size), dtype=torch.bfloat16, device=device)
    out = torch.empty_like(matrix)
    return 2 * size**3 / _seconds(device, lambda: torch.mm(matrix, matrix, out=out)) / 1e9


def _seconds(device: Any, work: Callable[[], object]) -> float:
    """The best of three, warmed up."""
    import torch

    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return best
