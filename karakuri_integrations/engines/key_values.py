"""The keys and values of several replies side by side, as transformers' models read and write them.

Per layer two tensors (rows, heads, columns, width): row i, column p holds token p of reply i. Replies of different
lengths need no padding on the left, so a token's place never changes and a prefix can be copied from one reply to
another. Columns behind a reply's end hold old numbers or zeros; the mask hides them. Which reply has which row is
`batching`'s. Imports torch and transformers: only what runs in a model's worker thread imports this.

In 8 bits (`int8`) the two are others: keys and values together as whole numbers, the heads of both beside each other,
and a scale for each token and head, width 1. A token is quantised when it is written, and every pass, that one
included, reads what was written; so nothing changes with how a prompt is divided into passes or what of it was kept,
and a guess that was wrong is overwritten as any other column. transformers' own quantised caches do not serve here:
those of quanto and hqq quantise groups of tokens, keep the last ones apart and quantise all of them again now and then,
and the fp8 one has one scale for a whole tensor, taken from the first pass; each has one length for all rows, and adds
at the end only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from transformers import Cache

__all__ = ["FixedPass", "KeyValues", "Pass"]

_COLUMNS: Final = 128  # columns are added in multiples of this
_LARGEST: Final = 127


class KeyValues:
    """Room for rows and columns, as it is asked for. Freed by `clear`. `dtype` is one of `memory.KV_CACHE_DTYPES`."""

    def __init__(self, dtype: str = "auto") -> None:
        self.dtype = dtype
        self._layers: list[list[Any]] = []
        self._rows = self._columns = 0
        #: Another object after each change of where the tensors are.
        self.place = object()

    def has(self, rows: int, columns: int) -> bool:
        """Whether there is room for so many in tensors that were made."""
        return bool(self._layers) and rows <= self._rows and columns <= self._columns

    @property
    def bytes(self) -> int:
        return sum(int(one.nbytes) for layer in self._layers for one in layer)

    def reserve(self, rows: int, columns: int, most: int) -> None:
        """Make room; what is there in so many rows and columns stays. Raises what the device raises when it is full.

        Rows are doubled and columns get half as many again, so that a long reply is copied a few times only; but not
        beyond `most` rows times columns: then it becomes what is asked for, and columns nobody needs are given up.
        """
        if rows <= self._rows and columns <= self._columns:
            return
        many, wide = self._rows, self._columns
        if rows > many:
            many = max(rows, 2 * many if many > 1 else rows)
        if columns > wide:
            wide = _rounded(max(columns, wide * 3 // 2))
        if many * wide > most:
            many, wide = rows, _rounded(columns)
        self._resize(many, wide)

    @staticmethod
    def least(rows: int, columns: int) -> int:
        """The tokens that `reserve` makes room for where it makes no more than it has to."""
        return rows * _rounded(columns)

    def _resize(self, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self.place = object()
        try:
            for layer in self._layers:
                layer[:] = [self._resized(one) for one in layer]
        except BaseException:  # some have their new size, some not: what is true of all
            shapes = [one.shape for layer in self._layers for one in layer]
            self._rows, self._columns = min(one[0] for one in shapes), min(one[2] for one in shapes)
            raise

    def _resized(self, old: Any) -> Any:
        # Zeros, not `empty`: a hidden column counts with weight 0, and 0 times NaN is NaN.
        new = old.new_zeros((self._rows, old.shape[1], self._columns, old.shape[3]))
        rows, columns = min(len(old), self._rows), min(old.shape[2], self._columns)
        new[:rows, :, :columns] = old[:rows, :, :columns]
        return new

    def parts(self, keys: Any, values: Any) -> list[Any]:
        """New keys and values as a layer's tensors hold them."""
        return [keys, values] if self.dtype == "auto" else _quantised(torch.cat((keys, values), 1))

    def whole(self, parts: Sequence[Any]) -> tuple[Any, Any]:
        """Keys and values in the model's type, of some rows and columns of a layer's tensors."""
        if self.dtype == "auto":
            return parts[0], parts[1]
        both = parts[0] * parts[1]  # in the type of the scales, which is the model's
        return both.tensor_split(2, 1)  # type: ignore[no-any-return]

    def layer(self, number: int, parts: Sequence[Any]) -> list[Any]:
        """A layer's tensors; made on first use, on the device and in the types of what is written."""
        while len(self._layers) <= number:
            self.place = object()
            self._layers.append(
                [one.new_zeros((self._rows, one.shape[1], self._columns, one.shape[3])) for one in parts]
            )
        return self._layers[number]

    def taken(self, row: int, length: int) -> list[Any]:
        """A copy of a row's first columns: all layers' tensors, (heads, length, width) each."""
        return [one[row, :, :length].clone() for layer in self._layers for one in layer]

    @torch.inference_mode()  # as the passes that made the tensors: nothing else may write into those
    def put(self, row: int, kept: Sequence[Any], length: int) -> None:
        """Copy the first columns of what `taken` gave into a row."""
        for number in range(len(kept) // 2):
            parts = kept[2 * number : 2 * number + 2]
            for own, one in zip(self.layer(number, [one[None] for one in parts]), parts, strict=True):
                own[row, :, :length] = one[:, :length]

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy a row's first columns over those of another row."""
        for layer in self._layers:
            for one in layer:
                one[target, :, :length] = one[source, :, :length]

    def sound(self, row: int, length: int) -> bool:
        """Whether a row's first columns are numbers. What is none in a layer is none in all behind it."""
        return not length or all(bool(one[row, :, :length].isfinite().all()) for one in self._layers[-1])

    def size(self, length: int) -> int:
        """Bytes of so many columns of one row."""
        return sum(int(one[0, :, 0].nbytes) for layer in self._layers for one in layer) * length

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Zeros in a row that may hold numbers that are none: hidden ones would still spoil what is beside them."""
        for layer in self._layers:
            for one in layer:
                one[row].zero_()

    def clear(self) -> None:
        """Free the memory."""
        self._layers.clear()
        self.place = object()
        self._rows = self._columns = 0


def _quantised(numbers: Any) -> list[Any]:
    """Whole numbers from -127 to 127, and the scale of each token and head in the type of the numbers.

    The scale is rounded to that type first, so that its own rounding adds nothing to the error. Where it is 0, or no
    number because one of them is none, the whole numbers mean nothing: times their scale they are 0, or no numbers.
    """
    scales = numbers.abs().amax(-1, keepdim=True) / _LARGEST
    exact = numbers / scales.float()
    return [exact.round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8), scales]


def _rounded(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS


class Pass(Cache):  # type: ignore[misc]
    """What one forward pass reads and writes: `count` new tokens for each of some rows that follow each other.

    Row `first` and those behind it, each from its own start. `starts` are the columns of the first new tokens,
    `columns` (rows, count) those of all, on the model's device; one row needs none.
    """

    def __init__(self, values: KeyValues, first: int, starts: Sequence[int], count: int, columns: Any = None) -> None:
        super().__init__(layers=[])
        self._values, self._starts, self._count = values, starts, count
        self._end = max(starts) + count
        self._first = first
        self._total = len(starts)
        self._columns = columns
        self._places: Any = None

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        parts = self._values.parts(keys, values)
        layer = self._values.layer(layer_idx, parts)
        for own, new in zip(layer, parts, strict=True):
            self._write(own, new)
        last = self._first + self._total
        return self._values.whole([one[self._first : last, :, : self._end] for one in layer])

    def _write(self, own: Any, new: Any) -> None:
        if self._total == 1:
            start = self._starts[0]
            own[self._first, :, start : start + self._count] = new[0]
            return
        rows, columns = self._where(own.device)
        own[rows, :, columns] = new.transpose(1, 2)  # indexed dimensions come first: (rows, count, heads, width)

    def _where(self, device: Any) -> tuple[Any, Any]:
        if self._places is None or self._places[0].device != device:
            rows = torch.arange(self._first, self._first + self._total, device=device)[:, None]
            self._places = rows, self._columns.to(device)
        return self._places  # type: ignore[no-any-return]

    # What transformers asks where it makes the mask itself: for one row, or several that all begin at column 0.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._starts[0]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self._starts[0]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._end, 0


class FixedPass:
    """What a recorded pass reads and writes (see `recording`): one new token for each of the rows 0, 1, 2, ...

    `columns` (rows, 1) say where each is written, `end` how many columns are read, all of fixed size.
    """

    def __init__(self, values: KeyValues, columns: Any, end: int) -> None:
        self._values, self._columns, self._end = values, columns, end
        self._rows = torch.arange(len(columns), device=columns.device)[:, None]

    def update(self, keys: Any, values: Any, layer_idx: int) -> tuple[Any, Any]:
        parts = self._values.parts(keys, values)
        layer = self._values.layer(layer_idx, parts)
        for own, new in zip(layer, parts, strict=True):
            own[self._rows, :, self._columns] = new.transpose(1, 2)
        return self._values.whole([one[: len(self._rows), :, : self._end] for one in layer])
