"""Whether the large measurement fits the device: an estimate for each cell, before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..engines.checkpoint import Checkpoint
from ..engines.memory import Estimate, estimate, free_ram
from ..engines.precision import Precision
from ..errors import InsufficientMemoryError
from .cells import Cell
from .measures import OURS
from .random_model import shapes

__all__ = ["CHUNK", "Fit", "fit_of"]

#: Prompt tokens that `generate` is told to read at once where the whole prompts do not fit.
CHUNK: Final = 512
_GIB: Final = 2**30
_MARGIN: Final = 256  # columns that the engine adds to a reply's own
_KEPT_SHARE: Final = 0.8  # of what is left beside the weights, the most that the engine gives to keys and values
#: Bytes per weight while bitsandbytes quantises one matrix, its source included: measured on CPU; on CUDA by its code.
_QUANTISING: Final = {"cpu": 17, "cuda": 6}


@dataclass(frozen=True)
class Fit:
    """The device's free bytes, and what the model takes of them. `width`: what a token of a prompt takes in a layer."""

    name: str
    device: str
    free: int
    needed: Estimate
    work: int
    per_token: int
    width: int
    tokens: int

    def ours(self, cell: Cell) -> int:
        return self._held + round(cell.batch * (cell.context + self.tokens + _MARGIN) * self.per_token / _KEPT_SHARE)

    def generate(self, cell: Cell, chunk: int | None = None) -> int:
        read = min(cell.context, chunk or cell.context)
        return self._held + cell.batch * ((cell.context + self.tokens) * self.per_token + read * self.width)

    @property
    def _held(self) -> int:
        return self.needed.weights + self.needed.margin

    def why_not(self, cell: Cell, name: str) -> str:
        """Why a cell cannot be measured, with both numbers; nothing where it can."""
        bytes_needed = self.ours(cell) if name == OURS else self.generate(cell, CHUNK)
        return "" if bytes_needed <= self.free else self._short(bytes_needed)

    def chunk(self, cell: Cell) -> int | None:
        """How much of the prompts `generate` has to read at once so that it fits; None: all."""
        return None if self.generate(cell) <= self.free else CHUNK

    def _short(self, bytes_needed: int) -> str:
        return f"it needs about {bytes_needed / _GIB:.1f} GiB and {self.free / _GIB:.1f} GiB are free"

    def check(self, cells: Sequence[Cell]) -> None:
        """Raise unless the model can be made and at least one cell be measured."""
        least = min(self.ours(one) for one in cells)
        bytes_needed = max(least, self._held + self.work)
        if bytes_needed > self.free:
            raise InsufficientMemoryError(
                f"{self.name} on {self.device}: {self._short(bytes_needed)} (weights {self.needed.weights / _GIB:.1f}, "
                "the rest for keys and values and for making the weights); free memory, give --layers for fewer "
                "layers of the same shape, or --synthetic 70b-small for the same measurement in small"
            )


def fit_of(checkpoint: Checkpoint, precision: Precision, device: Any, tokens: int, cells: Sequence[Cell]) -> Fit:
    """The estimate.

    Raises:
        InsufficientMemoryError: no cell fits.
    """
    import torch

    config, held = checkpoint.config, shapes(checkpoint)
    size = 4 if precision.name == "fp32" else 2
    needed = estimate(held, config, precision, stored=False, window=1)
    largest = max(one.count for one in held)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_ram()
    # Of a layer at its widest: a few copies of the hidden state, and gate, up and their product.
    width = size * (6 * int(config["hidden_size"]) + 3 * int(config["intermediate_size"]))
    found = Fit(
        checkpoint.source.name,
        str(device),
        int(free),
        needed,
        largest * _QUANTISING.get(device.type, 6),
        needed.cache,
        width,
        tokens,
    )
    found.check(cells)
    return found
