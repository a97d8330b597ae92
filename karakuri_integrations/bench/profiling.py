"""Where the time of one decode step goes: steps of a running batch, under torch's profiler, in the worker's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from ..conversation import Piece, Prompt, Sampling
from ..engines import LocalEngine
from ..engines.channel import Channel, Deadline
from .plain_generate import synchronized
from .subject import Subject

if TYPE_CHECKING:
    from ..engines.batching import Batch

__all__ = ["profiled"]

_STEPS: Final = 5  # timed without the profiler, which slows them down
_ROWS: Final = 12
_NAME: Final = 70


def profiled(subject: Subject, engine: LocalEngine, prompt: Prompt, count: int) -> list[str]:
    """Lines on one step of `count` replies to the same prompt; the replies are given up afterwards."""
    _begun()
    limit = engine.context_window - len(subject.ids(prompt))
    replies = [_Reply(engine.stream(prompt, Sampling(max_tokens=limit))) for _ in range(count)]
    try:
        for one in replies:
            one.begun.wait()
        job = _Step()
        worker = subject.shared.submit(job, count, engine.family)
        while job.channel.take(worker.alive) is not None:
            pass
        return job.lines
    finally:
        for one in replies:
            one.stop()


def _begun() -> None:
    """The profiler's library wants to be begun in the thread that imported torch."""
    from torch.profiler import profile

    with profile():
        pass


class _Reply:
    """A stream that is read in a thread until it is told to stop."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self.begun = threading.Event()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(pieces,))
        self._thread.start()

    def _read(self, pieces: Any) -> None:
        try:
            with closing(pieces):
                for _ in pieces:
                    self.begun.set()
                    if self._enough.is_set():
                        return
        finally:
            self.begun.set()

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()


class _Step:
    """A job that makes the batch's next steps itself, and watches them."""

    def __init__(self) -> None:
        self.channel = Channel(Deadline(None))
        self.lines: list[str] = []

    def run(self, loaded: Batch) -> None:
        self.lines += _watched(loaded)
        self.channel.put(None)

    def fits(self, loaded: Batch) -> bool:
        return True


def _watched(batch: Batch) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    device = batch.model.get_input_embeddings().weight.device
    seconds = median([_timed(batch.step, device) for _ in range(_STEPS)])
    rows = len(batch.active)
    if not rows:
        return ["no step could be watched: the replies had ended"]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    for _ in range(2):  # the profiler's own beginning falls into the first step, which is not looked at
        with profile(activities=activities) as watch:
            _timed(batch.step, device)
    return [f"one step of {rows} at once takes {1000 * seconds:.2f} ms", *_lines(watch.key_averages(), device, seconds)]


def _timed(work: Callable[[], None], device: Any) -> float:
    began = synchronized(device)
    work()
    return synchronized(device) - began


def _lines(events: Any, device: Any, seconds: float) -> list[str]:
    """The host's operations; before them, on a GPU, its kernels and copies, and how long it waited for the host."""
    own = [one for one in events if not one.key.startswith("ProfilerStep")]
    host = _table(
        "operations of the host",
        [(one.key, one.count, one.self_cpu_time_total) for one in own if one.device_type.name == "CPU"],
    )
    if device.type != "cuda":
        return host
    kernels = [(one.key, one.count, one.self_device_time_total) for one in own if one.device_type.name == "CUDA"]
    busy = sum(one[2] for one in kernels) / 1e6
    return [
        f"the device computes {1000 * busy:.2f} ms of it, in {sum(one[1] for one in kernels)} kernels and copies; for "
        f"{1000 * max(0.0, seconds - busy):.2f} ms it waits for the host",
        *_table("kernels and copies of the device", kernels),
        *host,
    ]


def _table(title: str, rows: list[tuple[str, int, float]]) -> list[str]:
    """Those that take the longest: microseconds become milliseconds and shares."""
    total = sum(one[2] for one in rows) or 1.0
    longest = sorted(rows, key=lambda one: -one[2])[:_ROWS]
    lines = [
        f"{micros / 1000:9.3f} ms {micros / total:6.1%} {count:6d}x  {name[:_NAME]}" for name, count, micros in longest
    ]
    return [f"{title}, {total / 1000:.2f} ms while they are watched:", *lines]
