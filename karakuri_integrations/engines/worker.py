"""One worker thread per loaded model: a first-in first-out queue of jobs, loading, failures, shutdown.

Knows no torch. All compute of a model, its loading too, runs in this one persistent thread (a fresh thread per call
costs three times as much per token). A job that fails fails alone; the worker goes on.
"""

from __future__ import annotations

import atexit
import copy
import os
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from ..errors import BusyError, EngineClosedError, EngineError, ForkedProcessError, ModelLoadError
from .channel import Channel

__all__ = ["Job", "Worker", "refuse_fork"]

LoadedT = TypeVar("LoadedT")
LoadedT_contra = TypeVar("LoadedT_contra", contravariant=True)

_EXIT_WAIT = 3.0  # seconds that the end of the interpreter waits for the step that runs

_computing_pid: int | None = None  # the process in which a worker was started
_workers: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()


class Job(Protocol[LoadedT_contra]):
    """One unit of work on the loaded model."""

    @property
    def channel(self) -> Channel: ...

    def run(self, loaded: LoadedT_contra) -> None:
        """Do the work, putting pieces and the end into the channel; stop soon after `channel.cancelled`."""
        ...


class Worker(Generic[LoadedT]):
    """Runs jobs one after another in its own thread. The model is loaded for the first job and freed at the end.

    Args:
        load: makes the loaded model; called in the thread.
        translate: the error to raise for an exception of a job, and what cleans up after it.
        after: a worker that must have ended before this one loads.
    """

    def __init__(
        self,
        load: Callable[[], LoadedT],
        translate: Callable[[BaseException], tuple[EngineError, Callable[[], None]]],
        after: Worker[LoadedT] | None = None,
    ) -> None:
        global _computing_pid
        refuse_fork()
        self._load, self._translate = load, translate
        self._after = after if after is not None and after.alive() else None
        self._jobs: deque[Job[LoadedT]] = deque()
        self._current: Job[LoadedT] | None = None
        self._changed = threading.Condition()
        self._closing = False
        _computing_pid = os.getpid()
        # A daemon: an open stream must not keep the interpreter from ending; `_at_exit` ends it in order.
        self._thread = threading.Thread(target=self._run, name="karakuri-engine", daemon=True)
        _workers.add(self)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread runs.

        Raises:
            ForkedProcessError: it runs in the parent of this process.
        """
        refuse_fork()
        return self._thread.is_alive()

    @property
    def closing(self) -> bool:
        return self._closing

    def submit(self, job: Job[LoadedT], max_queue: int) -> None:
        """Queue a job.

        Raises:
            BusyError: `max_queue` jobs are waiting already.
            EngineClosedError: the worker is closing.
        """
        with self._changed:
            if self._closing:
                raise _closed()
            self._jobs = deque(one for one in self._jobs if not one.channel.cancelled)
            if len(self._jobs) >= max_queue + (self._current is None):  # the one that is served does not wait
                raise BusyError(
                    f"{len(self._jobs)} calls are waiting for this model already (max_queue={max_queue}); "
                    "try again later or raise max_queue"
                )
            self._jobs.append(job)
            self._changed.notify()

    def close(self, wait: float) -> None:
        """End every call now, and the thread as soon as its step is done; wait for that up to `wait` seconds."""
        self._end_all(_closed())
        if threading.current_thread() is not self._thread:
            self._thread.join(wait)

    def _end_all(self, failure: EngineError) -> None:
        """Take no more calls, and end those that run or wait with copies of one error."""
        with self._changed:
            self._closing = True
            waiting = [*self._jobs] if self._current is None else [self._current, *self._jobs]
            self._jobs.clear()
            self._changed.notify_all()
        for job in waiting:
            job.channel.put(_copied(failure))
            job.channel.cancel()

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after._thread.join()
                self._after = None
            self._serve_all()
        except BaseException as error:  # noqa: BLE001  # whatever ends this thread, nobody may wait for it
            self._end_all(self._translate(error)[0])

    def _serve_all(self) -> None:
        loaded: list[LoadedT] = []  # a list, so that nothing else holds the model when it is cleared
        while (job := self._next()) is not None:
            self._serve(job, loaded)
            with self._changed:
                self._current = None
            del job

    def _next(self) -> Job[LoadedT] | None:
        """The next job that somebody waits for; None when closing."""
        with self._changed:
            while not self._closing:
                if not self._jobs:
                    self._changed.wait()
                    continue
                job = self._jobs.popleft()
                if not job.channel.cancelled:
                    self._current = job
                    return job
            return None

    def _serve(self, job: Job[LoadedT], loaded: list[LoadedT]) -> None:
        failure, clean = None, None
        try:
            if not loaded:
                loaded.append(self._load())
            if not job.channel.cancelled:
                job.run(loaded[0])
        except BaseException as error:  # noqa: BLE001  # it goes to the consumer
            failure, clean = self._translate(error)
            traceback.clear_frames(error.__traceback__)  # a caught error must not keep tensors alive
        if failure is None or clean is None:
            return
        clean()
        if isinstance(failure, ModelLoadError):
            self._fail_waiting(failure)
        job.channel.put(failure)

    def _fail_waiting(self, failure: EngineError) -> None:
        """Those who wait for the same load get the same answer, each a copy of its own."""
        with self._changed:
            waiting, self._jobs = self._jobs, deque()
        for job in waiting:
            job.channel.put(_copied(failure))


def refuse_fork() -> None:
    """Raise in a child of a process that has computed: its threads are gone, and compute would hang."""
    if _computing_pid not in (None, os.getpid()):
        raise ForkedProcessError(
            "a local model was used in the parent process before fork(), and it cannot be used in the child; start "
            'processes with multiprocessing.get_context("spawn"), or use the model only after the fork'
        )


def _copied(failure: EngineError) -> EngineError:
    """Two threads must not raise the same object: each adds its own traceback to it."""
    other = copy.copy(failure)
    other.__cause__ = failure.__cause__
    return other


def _closed() -> EngineClosedError:
    return EngineClosedError("close() ended this call; call again to load the model again")


def _at_exit() -> None:
    """A thread that is inside native code when the interpreter ends can abort the process; let the step end first."""
    if _computing_pid == os.getpid():
        end = time.monotonic() + _EXIT_WAIT
        for worker in list(_workers):
            worker.close(0)
        for worker in list(_workers):
            worker.close(max(0.0, end - time.monotonic()))


atexit.register(_at_exit)
