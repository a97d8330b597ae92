"""Passes of one new token a row, recorded once and replayed: CUDA graphs.

A large model's pass is a thousand kernels. Started one by one from Python they keep a fast GPU waiting; a graph starts
them all at once. Its shapes are fixed, so rows are rounded up to a power of two or a multiple of eight and columns to
one of 512: rows too many write where nothing stands, columns too many are hidden. It reads ids and places from tensors
of its own, and the keys and values where they were when it was made; where they have moved, it is made again.

Each recording is compared, when it is made, with the pass it records. One that gives other logits, or cannot be made,
ends recording for the model, and its passes are made one by one as before. Imports torch.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from .checkpoint import notify
from .generating import out_of_memory
from .key_values import FixedPass, KeyValues

__all__ = ["Recorder", "Recordings", "cuda_graphs"]

_COLUMNS: Final = 512
_ROWS: Final = 8
_PAUSE: Final = 1000  # passes before another is recorded, where the device was full
_OFF: Final = 0.02  # of the logits' size: several times what rounding to bfloat16 makes of them

_MOST: Final = 16  # recordings; each is thousands of kernels, in memory that nobody counts

_recording = threading.Lock()
_Work = Callable[[], torch.Tensor]
#: Makes of some work one that repeats it on the same tensors, its result in one place. Raises what the device raises.
Recorder = Callable[[_Work], _Work]


class _Model(Protocol):
    def __call__(self, ids: Any, positions: Any, mask: Any, cache: Any, wanted: int, /) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class _Recording:
    """`given` (2, rows) are ids and columns."""

    given: torch.Tensor
    replay: _Work


class Recordings:
    """A model's recorded passes, for one KeyValues at a time.

    Args:
        model: as `LlamaPass`.
        record: see `Recorder`.
        device: where the model is.
    """

    def __init__(self, model: _Model, record: Recorder, device: Any) -> None:
        self._model, self._record, self._device = model, record, device
        self._made: dict[tuple[int, int], _Recording] = {}
        self._seen = set[tuple[int, int]]()
        self._of: object = None
        self._pause = 0
        self.given_up = False

    @staticmethod
    def size(rows: int, columns: int) -> tuple[int, int]:
        """The rows and columns of the keys and values that a recording of so many reads."""
        many = 1 << (rows - 1).bit_length() if rows <= _ROWS else -(-rows // _ROWS) * _ROWS
        return many, -(-columns // _COLUMNS) * _COLUMNS

    def __call__(self, values: KeyValues, ids: Sequence[int], starts: Sequence[int], free: int) -> torch.Tensor | None:
        """Logits (rows, 1, vocabulary), which hold until the next call; None where the pass is not recorded.

        Row i reads the id behind its first starts[i] columns; in the rows behind them nothing stands in column `free`.
        The first pass of a size is not recorded: what the libraries make for themselves is made in it.
        """
        size = self.size(len(ids), max(starts) + 1)
        if self.given_up or not values.has(*size):
            return None
        if self._pause:
            self._pause -= 1
            return None
        if self._of is not values.place:  # the keys and values are not where they were
            self.forget()
            self._of = values.place
        if size not in self._seen:
            self._seen.add(size)
            return None
        more = [0] * (size[0] - len(ids))
        given = torch.tensor([[*ids, *more], [*starts, *(free for _ in more)]])
        if size not in self._made and len(self._made) == _MOST:
            self._made.clear()
        if size not in self._made and not self._begin(values, size, given.to(self._device), len(ids)):
            return None
        recording = self._made[size]
        recording.given.copy_(given)
        return recording.replay()[: len(ids)]

    def forget(self) -> None:
        """Free what the recordings hold."""
        self._made.clear()
        self._seen.clear()
        self._of = None

    def _begin(self, values: KeyValues, size: tuple[int, int], given: torch.Tensor, rows: int) -> bool:
        """Record a pass, of whose rows so many are replies, and compare it. Whether it can be used."""
        columns = size[1]

        def work() -> torch.Tensor:
            places = given[1, :, None]
            mask = torch.arange(columns, device=self._device) <= places[:, None, :, None]
            return self._model(given[0, :, None], places, mask, FixedPass(values, places, columns), 1)

        try:
            right = work()[:rows].clone()
            replay = self._record(work)
            replay().zero_()  # so that what replays nothing is off
            off = float((replay()[:rows] - right).float().norm() / right.float().norm())
        except Exception as error:  # noqa: BLE001  # whatever it is: the pass is made as it would be without
            self._failed(error)
            return False
        if off > _OFF:
            self._give_up(f"a recorded pass is off by {off:.1%}")
        if not off <= _OFF:  # or no number: then the model's own logits are none, which is for the caller to see
            self.forget()
            return False
        self._made[size] = _Recording(given, replay)
        return True

    def _failed(self, error: Exception) -> None:
        if not out_of_memory(error):
            self._give_up(f"they cannot be recorded ({type(error).__name__})")
            return
        self.forget()
        self._pause = _PAUSE

    def _give_up(self, why: str) -> None:
        self.forget()
        self.given_up = True
        notify(f"passes of this model are made kernel by kernel, which is slower: {why}")


def cuda_graphs(device: Any) -> Recorder:
    """Records CUDA graphs, which share the memory they compute in.

    On a stream of their own: torch's is of the device that is current, and shared by all who record. The work is done
    there once before it is recorded, so that what the libraries make for a stream is not the graphs' own. What other
    threads do on the device meanwhile does not concern them (`thread_local`), but one records at a time in a process.
    """
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    graphs = weakref.WeakSet[Any]()
    pools = list[Any]()

    def record(work: _Work) -> _Work:
        usual = torch.cuda.current_stream(device)
        # The outer one brings back the usual stream whatever happens: torch's own way out does not, after an error.
        with _recording, torch.cuda.device(device), torch.cuda.stream(usual):
            stream.wait_stream(usual)
            with torch.cuda.stream(stream):
                work()
            usual.wait_stream(stream)
            torch.cuda.synchronize(device)
            if not graphs:  # the pool of graphs that are gone cannot be used again
                pools[:] = [torch.cuda.graph_pool_handle()]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pools[0], stream=stream, capture_error_mode="thread_local"):
                result = work()
        graphs.add(graph)

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    return record
